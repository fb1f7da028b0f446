"""The stream: every row once an epoch for any number of workers, in an order that does not depend on that number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from recsys_ray.config import DataConfig, PrepareConfig, SplitConfig
from recsys_ray.data.prepare import prepare
from recsys_ray.data.stream import ROW_WEIGHT, BlockStream, batch_layout, check_elastic
from recsys_ray.schema import Categorical, Label, Schema, Weight
from tests.workers import run_workers

ROWS, BLOCK_ROWS, GLOBAL_BATCH, EPOCHS = 5_003, 64, 384, 3


@pytest.fixture(scope="module")
def numbered(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that carry their own number, lists of it, and a weight; all in train, so 79 blocks, the last of them short."""
    root = tmp_path_factory.mktemp("numbered")
    number = np.arange(ROWS)
    lists = pa.array([[n] * (n % 3) for n in number], pa.list_(pa.int64()))
    table = pa.table(
        {"label": number % 2, "row": number, "lists": lists, "importance": 1.0 + number % 5, "split": ["train"] * ROWS}
    )
    pq.write_table(table, root / "rows.parquet")
    columns = (Categorical("row", encoding="identity", num_embeddings=ROWS + 1), Weight("importance"))
    listed = Categorical("lists", encoding="identity", num_embeddings=ROWS + 1, multi=True)
    (root / "schema.json").write_text(Schema((Label("label"), *columns, listed)).to_json())
    split = SplitConfig(by="column", column="split")
    out = str(root / "dataset")
    return prepare(PrepareConfig(parquet=str(root / "rows.parquet"), out=out, block_rows=BLOCK_ROWS, split=split)).root


def read_epochs(dataset: str, out: str, first_epoch: int, first_step: int, weight: str) -> None:
    """What one worker sees: for each epoch and step its rows and weights."""
    dist.init_process_group("gloo")
    layout = batch_layout(GLOBAL_BATCH, BLOCK_ROWS, dist.get_world_size())
    cache = Path(out) / "cache"
    stream = BlockStream(f"{dataset}/train", cache, layout, seed=7, shuffle=True, config=DataConfig(), weight=weight)
    stream.start_at(first_epoch, first_step)
    seen = []
    for epoch in range(first_epoch, EPOCHS):
        steps = [
            (columns["row"].clone() - 1, columns[ROW_WEIGHT], columns["lists"], columns["lists.lengths"]) for columns in stream
        ]
        assert len(steps) == stream.steps - (first_step if epoch == first_epoch else 0)
        assert all(len(rows) == len(weights) for rows, weights, _, _ in steps)
        # As an evaluation between epochs: all rows, and the next epoch is the one that was to come.
        once = torch.cat([columns["row"][columns[ROW_WEIGHT] > 0] - 1 for columns in stream.once()])
        seen.append((steps, once))
    torch.save(seen, Path(out) / f"rank-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def epochs_of(dataset: Path, out: Path, workers: int, first_epoch: int = 0, first_step: int = 0) -> list[list[tuple]]:
    """For each epoch and global step: the rows that count, in order, and their weights."""
    out.mkdir()
    run_workers(read_epochs, workers, str(dataset), str(out), first_epoch, first_step, "importance")
    ranks = [torch.load(out / f"rank-{rank}.pt") for rank in range(workers)]
    merged = []
    for epoch_and_once in zip(*ranks, strict=True):
        epoch, once = zip(*epoch_and_once, strict=True)
        assert torch.equal(torch.cat(once).sort().values, torch.arange(ROWS))
        steps = []
        for step in zip(*epoch, strict=True):
            rows, weights = torch.cat([part[0] for part in step]), torch.cat([part[1] for part in step])
            counted = weights > 0
            for part in step:
                assert int(part[3].sum()) == len(part[2])
            order = torch.argsort(rows[counted])
            steps.append((rows[counted][order].numpy(), weights[counted][order].numpy()))
        merged.append(steps)
    return merged


@pytest.fixture(scope="module")
def by_workers(numbered: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[tuple]]]:
    root = tmp_path_factory.mktemp("epochs")
    return {workers: epochs_of(numbered, root / str(workers), workers) for workers in (1, 2, 3)}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_row_counts_once_an_epoch_with_its_weight(by_workers: dict, workers: int) -> None:
    for epoch in by_workers[workers]:
        rows = np.concatenate([step[0] for step in epoch])
        weights = np.concatenate([step[1] for step in epoch])
        assert np.array_equal(np.sort(rows), np.arange(ROWS))
        assert np.array_equal(weights, 1.0 + rows % 5)


def test_global_batches_are_the_same_for_any_number_of_workers(by_workers: dict) -> None:
    for one, two, three in zip(by_workers[1], by_workers[2], by_workers[3], strict=True):
        for alone, *shared in zip(one, two, three, strict=True):
            assert all(np.array_equal(alone[0], rows) for rows, _ in shared)


def test_epochs_differ_in_order_and_a_later_start_finds_the_same_epoch(by_workers: dict, numbered: Path, tmp_path: Path) -> None:
    epochs = by_workers[2]
    assert not np.array_equal(epochs[0][0][0], epochs[1][0][0])
    (resumed,) = epochs_of(numbered, tmp_path / "resumed", 2, first_epoch=EPOCHS - 1)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(resumed, epochs[-1], strict=True))


@pytest.mark.parametrize("workers", [1, 3])
def test_start_within_an_epoch_finds_the_rest_of_it_whoever_read_the_beginning(
    by_workers: dict, numbered: Path, tmp_path: Path, workers: int
) -> None:
    rest, *after = epochs_of(numbered, tmp_path / "rest", workers, first_epoch=1, first_step=9)
    expected = by_workers[2][1][9:]
    assert len(rest) == len(expected)
    assert all(np.array_equal(found[0], wanted[0]) for found, wanted in zip(rest, expected, strict=True))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(after[0], by_workers[2][2], strict=True))


def test_global_batch_that_is_not_whole_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--train.global-batch 1000 is not a multiple .*256 \* 2 workers: use 1024"):
        batch_layout(1000, 256, 2)
    assert batch_layout(1024, 256, 2).rows == 512


def test_sizes_of_an_elastic_run_that_cannot_share_a_batch_are_named():
    with pytest.raises(ValueError, match=r"4096 is not a multiple of block_rows 256 \* \[3\] workers, .* use a multiple of 3072"):
        check_elastic(4096, 256, 2, 4)
    check_elastic(3072, 256, 2, 4)
