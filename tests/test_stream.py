"""The stream reads every row once an epoch, in global batches that do not depend on the number of workers."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from recsys_ray.columns import ROW_WEIGHT
from recsys_ray.compat.streaming_compat import StreamingWorld, generate_work_random_batching, patch_shared_memory
from recsys_ray.config import DataConfig, PrepareConfig, SplitConfig
from recsys_ray.data.loading.batch_order import EMPTY, decode_blocks
from recsys_ray.data.loading.block_dataset import BlockDataset
from recsys_ray.data.loading.stream import BlockStream, batch_layout
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.schema import Categorical, Label, Schema, Weight
from tests.support.workers import run_workers

ROWS, BLOCKS, BLOCK_ROWS, GLOBAL_BATCH, EPOCHS = 5_003, 79, 64, 384, 3


@pytest.fixture(scope="module")
def numbered(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepares rows that carry their number, lists of it and a weight, all in train: 79 blocks, the last of them short."""
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


def read_epochs(dataset: str, out: str, first_epoch: int, first_block: int, global_batch: int, data: DataConfig) -> None:
    """Saves what one worker sees: the rows and weights of each epoch and step."""
    dist.init_process_group("gloo")
    layout = batch_layout(global_batch, BLOCK_ROWS, dist.get_world_size())
    cache = Path(out) / "cache"
    stream = BlockStream(f"{dataset}/train", cache, layout, seed=7, shuffle=True, config=data, weight="importance")
    assert (stream.blocks, stream.steps) == (BLOCKS, -(-BLOCKS // layout.global_blocks))
    stream.start_at(first_epoch, first_block)
    seen = []
    for epoch in range(first_epoch, EPOCHS):
        steps = [
            (columns["row"].clone() - 1, columns[ROW_WEIGHT], columns["lists"], columns["lists.lengths"]) for columns in stream
        ]
        left = BLOCKS - (first_block if epoch == first_epoch else 0)
        assert len(steps) == -(-left // layout.global_blocks)
        assert all(len(rows) == len(weights) for rows, weights, _, _ in steps)
        # As an evaluation between epochs: all rows, and the next epoch is the one that was to come.
        once = torch.cat([columns["row"][columns[ROW_WEIGHT] > 0] - 1 for columns in stream.once()])
        seen.append((steps, once))
    torch.save(seen, Path(out) / f"rank-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def epochs_of(
    dataset: Path,
    out: Path,
    workers: int,
    first_epoch: int = 0,
    first_block: int = 0,
    global_batch: int = GLOBAL_BATCH,
    data: DataConfig | None = None,
) -> list[list[tuple]]:
    """Returns, for each epoch and global step, the rows that count, in order, and their weights."""
    out.mkdir()
    run_workers(read_epochs, workers, str(dataset), str(out), first_epoch, first_block, global_batch, data or DataConfig())
    ranks = [torch.load(out / f"rank-{rank}.pt") for rank in range(workers)]
    merged = []
    for epoch_and_once in zip(*ranks, strict=True):
        epoch, once = zip(*epoch_and_once, strict=True)
        assert torch.equal(torch.cat(once).sort().values, torch.arange(ROWS))
        steps = []
        for step in zip(*epoch, strict=True):
            assert len({len(part[0]) for part in step}) == 1, "workers have unequal numbers of rows"
            rows, weights = torch.cat([part[0] for part in step]), torch.cat([part[1] for part in step])
            counted = weights > 0
            for part in step:
                assert int(part[3].sum()) == len(part[2])
            order = torch.argsort(rows[counted])
            steps.append((rows[counted][order].numpy(), weights[counted][order].numpy()))
        merged.append(steps)
    assert len(merged) == EPOCHS - first_epoch
    return merged


def assert_same_batches(found: list[tuple], wanted: list[tuple]) -> None:
    for (rows, weights), (wanted_rows, wanted_weights) in zip(found, wanted, strict=True):
        assert np.array_equal(rows, wanted_rows) and np.array_equal(weights, wanted_weights)


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
    for workers, epoch in itertools.product((2, 3), range(EPOCHS)):
        assert_same_batches(by_workers[workers][epoch], by_workers[1][epoch])


def test_epochs_differ_in_order_and_a_later_start_finds_the_same_epoch(by_workers: dict, numbered: Path, tmp_path: Path) -> None:
    epochs = by_workers[2]
    assert not np.array_equal(epochs[0][0][0], epochs[1][0][0])
    (resumed,) = epochs_of(numbered, tmp_path / "resumed", 2, first_epoch=EPOCHS - 1)
    assert_same_batches(resumed, epochs[-1])


@pytest.mark.parametrize("workers", [1, 3])
def test_start_within_an_epoch_finds_the_rest_of_it_whoever_read_the_beginning(
    by_workers: dict, numbered: Path, tmp_path: Path, workers: int
) -> None:
    rest, after = epochs_of(numbered, tmp_path / "rest", workers, first_epoch=1, first_block=9 * GLOBAL_BATCH // BLOCK_ROWS)
    assert_same_batches(rest, by_workers[2][1][9:])
    assert_same_batches(after, by_workers[2][2])


def test_three_workers_share_batches_of_four_blocks(by_workers: dict, numbered: Path, tmp_path: Path) -> None:
    """Each reads two blocks a step, of which two are padding; the start is within an epoch of larger batches."""
    alone = epochs_of(numbered, tmp_path / "alone", 1, 1, 18, 4 * BLOCK_ROWS)
    three = epochs_of(numbered, tmp_path / "three", 3, 1, 18, 4 * BLOCK_ROWS, DataConfig(loader_workers=2))
    for found, wanted in zip(three, alone, strict=True):
        assert_same_batches(found, wanted)
    rest = np.concatenate([rows for rows, _ in three[0]])
    before = np.concatenate([rows for rows, _ in by_workers[2][1][:3]])
    assert np.array_equal(np.sort(np.concatenate([before, rest])), np.arange(ROWS))
    assert np.array_equal(np.sort(np.concatenate([rows for rows, _ in three[1]])), np.arange(ROWS))


WORLDS = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1), (1, 5), (5, 1)]
"""Nodes, and workers on each."""


def simulated(blocks: int, global_blocks: int, canonical_nodes: int) -> BlockDataset:
    """Returns as much of a dataset of two shards as assigning its blocks needs."""
    dataset = BlockDataset.__new__(BlockDataset)
    settings = {"shuffle": True, "shuffle_algo": "py1e", "shuffle_seed": 3, "shuffle_block_size": 1 << 18, "batch_size": 1}
    nodes = {"num_canonical_nodes": canonical_nodes, "initial_physical_nodes": None}
    shards = np.array([blocks // 2, blocks - blocks // 2])
    resampled = {
        "num_samples": blocks,
        "epoch_size": blocks,
        "resample_streams": lambda epoch: (shards[shards > 0], np.arange(blocks)),
    }
    vars(dataset).update({**settings, **nodes, **resampled, "partition_algo": "orig", "global_blocks": global_blocks})
    return dataset


def assigned(dataset: BlockDataset, nodes: int, ranks: int, done: int) -> list[list[int]]:
    """Returns the blocks that count in each step, and checks that all workers read equally many, all of which exist."""
    slots = dataset.assign_batches(StreamingWorld(nodes, ranks, 1, 0), 1, done)[:, :, 0]
    read = (slots != EMPTY).sum(-1).reshape(nodes * ranks, -1)
    assert (read == read[0]).all() and (read > 0).all(), "workers have unequal numbers of rows"
    assert (decode_blocks(slots, dataset.num_samples) < dataset.num_samples).all()
    steps = slots.transpose(2, 0, 1, 3).reshape(slots.shape[2], -1)
    return [sorted(step[counts(dataset, step)]) for step in steps]


def counts(dataset: BlockDataset, slots: np.ndarray) -> np.ndarray:
    return (slots != EMPTY) & (slots < dataset.num_samples)


@pytest.mark.parametrize("canonical_nodes", [1, 2, 4])
@pytest.mark.parametrize("blocks", [*(pytest.param(blocks, marks=pytest.mark.unit) for blocks in (5, 7)), 16, 21])
def test_any_world_counts_the_same_blocks_in_the_same_batch(blocks: int, canonical_nodes: int) -> None:
    """The start may be at any block, after batches of any size."""
    for global_blocks in (1, 2, 3, 4, 8):
        dataset = simulated(blocks, global_blocks, canonical_nodes)
        order = dataset.global_order(1)
        assert dataset.blocks_per_epoch == len(order)
        for done in range(len(order)):
            alone = assigned(dataset, 1, 1, done)
            assert sorted([*{*order[:done]}, *itertools.chain(*alone)]) == list(range(blocks))
            for step, batch in enumerate(alone):
                start = done + step * global_blocks
                assert batch == sorted({*order[start : start + global_blocks]} - {*order[:start]})
            for nodes, ranks in WORLDS:
                assert assigned(dataset, nodes, ranks, done) == alone, (global_blocks, done, nodes, ranks)
        assert dataset.assign_batches(StreamingWorld(1, 3, 2, 0), 1, len(order)).size == 0


@pytest.mark.unit
def test_loader_processes_get_the_batches_in_turn() -> None:
    dataset = simulated(21, 4, 1)
    one, two = (dataset.assign_batches(StreamingWorld(1, 3, loaders, 0), 1, 0) for loaders in (1, 2))
    assert two.shape == (1, 3, 2, 3, 2)
    assert np.array_equal(two.transpose(0, 1, 3, 2, 4).reshape(1, 3, 1, 6, 2), one)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("nodes", "ranks", "canonical_nodes"), [(1, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 2), (2, 4, 4), (4, 1, 2)]
)
def test_even_shares_are_those_of_mosaic_streaming(nodes: int, ranks: int, canonical_nodes: int) -> None:
    """Shares are equal slot by slot, but for what Mosaic Streaming repeats at the end of an epoch."""
    for blocks in (16, 21):
        dataset = simulated(blocks, 8, canonical_nodes)
        dataset.batch_size = 8 // (nodes * ranks)
        world = StreamingWorld(nodes, ranks, 1, 0)
        ours, theirs = dataset.assign_batches(world, 1, 0), generate_work_random_batching(dataset, world, 1, 0)
        assert np.array_equal(ours == EMPTY, theirs == EMPTY)
        assert np.array_equal(ours[counts(dataset, ours)], theirs[counts(dataset, ours)])


@pytest.mark.unit
@pytest.mark.parametrize(("rows", "use"), [(1000, "768 or 1024"), (100, "256"), (0, "256"), (-256, "256")])
def test_global_batch_that_is_not_whole_blocks_is_refused(rows: int, use: str) -> None:
    with pytest.raises(
        ValueError, match=rf"--train.global-batch {rows} is not a positive multiple .* block_rows 256: use {use}$"
    ):
        batch_layout(rows, 256, 2)


@pytest.mark.unit
def test_what_uneven_shares_cost_is_told() -> None:
    assert batch_layout(1024, 256, 2).rows == 512 and batch_layout(1024, 256, 2).padding_note() == ""
    told = "16 blocks of a global batch over 3 workers: each reads 6, and 2 of the 18 are padding that counts nothing (11%)"
    assert batch_layout(4096, 256, 3).padding_note() == told.replace("11%", "11 %")
    told = "1 block of a global batch over 2 workers: each reads 1, and 1 of the 2 is padding that counts nothing (50 %)"
    assert batch_layout(256, 256, 2).padding_note() == told


@pytest.mark.unit
@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="this system keeps shared memory elsewhere")
def test_shared_memory_that_another_worker_is_still_making_is_waited_for() -> None:
    from streaming.base.shared import SharedMemory  # after recsys_ray.compat.streaming_compat

    patch_shared_memory()
    segment = Path("/dev/shm") / uuid.uuid4().hex[:12]
    segment.touch()

    def size_it() -> None:
        time.sleep(0.2)
        segment.write_bytes(bytes(4096))

    maker = threading.Thread(target=size_it)
    maker.start()
    try:
        assert len(SharedMemory(segment.name, size=4096).buf) == 4096
    finally:
        maker.join()
        segment.unlink()
