"""Batch scoring by workers that share one model: sharded tables, uneven rows, and a job that was killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys_ray.bundle.reader import open_bundle
from recsys_ray.config import LaunchConfig, ShardingConfig
from recsys_ray.distributed import join_world
from recsys_ray.serving import ranker as ranker_module
from recsys_ray.serving.batch.models import BatchModel
from recsys_ray.serving.batch.partitioned.output import BatchOutput, BatchResult
from recsys_ray.serving.batch.scoring import sharded
from recsys_ray.serving.batch.scoring.job import ScoreConfig, score
from recsys_ray.serving.batch.scoring.sharded import ShardedScoring
from recsys_ray.serving.batch.scoring.sharded_ranker import load_sharded_ranker
from recsys_ray.serving.bundle import load_ranker
from tests.support.two_stages import TwoStages, rows_to_score
from tests.support.workers import run_workers

ROW_WISE = ShardingConfig(types=("row_wise",))
LOCAL = LaunchConfig("local", 2)
ROWS, BAD, ROWS_PER_FILE, KILLED_AT = 3000, 1234, 125, 5
ROWS_OF_RANK = (350, 130)


def score_own_rows(model: BatchModel, rows: pa.Table, folder: Path) -> None:
    """Scores ROWS_OF_RANK rows, a few at a time, and writes the scores and the sizes of the shards that this rank holds."""
    ranker_module.PREDICTED_AT_ONCE = 100
    with join_world(1) as world:
        ranker = load_sharded_ranker(model, world, ROW_WISE, stop_requested=lambda: False)
        scores = ranker.predict(rows.slice(world.rank * ROWS_OF_RANK[0], ROWS_OF_RANK[world.rank]))
        ranker.attend()
        tables = {name: one for name, one in ranker.task.module.state_dict().items() if hasattr(one, "local_shards")}
        held = {name: [shard.tensor.numel() for shard in one.local_shards()] for name, one in tables.items()}
    np.save(folder / f"scores-{world.rank}.npy", scores)
    (folder / f"held-{world.rank}.json").write_text(json.dumps(held))


def test_ranks_that_each_hold_half_of_every_table_score_uneven_rows(two_stages: TwoStages, tmp_path: Path) -> None:
    rows, whole = rows_to_score(two_stages.raw, sum(ROWS_OF_RANK)), load_ranker(two_stages.ranker)
    run_workers(score_own_rows, 2, BatchModel(str(two_stages.ranker), whole.version), rows, tmp_path)
    scores = np.concatenate([np.load(tmp_path / f"scores-{rank}.npy") for rank in range(2)])
    np.testing.assert_allclose(scores, whole.predict(rows), atol=1e-6)
    held = [json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in range(2)]
    stored = open_bundle(two_stages.ranker).manifest.tensors
    assert len(held[0]) == len(whole.schema.tables)
    for name, shards in held[0].items():
        sizes, all_of_it = (sum(shards), sum(held[1][name])), int(np.prod(stored[name].shape))
        assert sum(sizes) == all_of_it and max(sizes) < all_of_it, (name, sizes)


def config(runs: TwoStages, folder: Path, **settings: Any) -> ScoreConfig:
    common = {"model": str(runs.ranker), "rows": str(folder / "rows.parquet"), "out": str(folder / "out"), "sharded": True,
              "rows_per_file": ROWS_PER_FILE, "launch": LOCAL, "sharding": ROW_WISE}  # fmt: skip
    return ScoreConfig(**{**common, **settings})


def test_a_killed_job_goes_on_and_every_row_has_the_score_of_an_unsharded_model(
    two_stages: TwoStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_to_score(two_stages.raw, ROWS)
    prices = rows["price"].to_pylist()
    prices[BAD] = float("inf")
    rows = rows.set_column(rows.column_names.index("price"), "price", pa.array(prices))
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=333)
    settings = config(two_stages, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(torch.multiprocessing.ProcessExitedException):
        patch.setattr(sharded, "launcher", lambda launch: nullcontext(DyingWorkers()))
        score(settings)
    work = tmp_path / ".out.partial"
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("part-*")}
    assert (
        len(finished) >= KILLED_AT - 1
        and len(list(work.glob(f".part-{KILLED_AT:05d}*"))) == 1
        and not (tmp_path / "out").exists()
    )

    assert score(settings) == {"rows": ROWS, "not_scored": 1}
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert finished.items() <= files.items(), "finished partitions stay"
    assert sorted(files) == ["_SUCCESS", "_manifest.json", *(f"part-{n:05d}.parquet" for n in range(ROWS // ROWS_PER_FILE))]
    found, good = pq.read_table(tmp_path / "out"), np.arange(ROWS) != BAD
    assert found.select(rows.column_names).equals(rows), "all columns of every row, in the order of the input"
    whole = load_ranker(two_stages.ranker)
    np.testing.assert_allclose(found["score"].to_numpy()[good], whole.predict(rows.filter(pa.array(good))), atol=1e-6)
    assert found["score"].null_count == 1 and found["reason"].null_count == ROWS - 1
    assert found["reason"][BAD].as_py() == "price: infinite, or too large for float32"
    assert set(found["model_version"].to_pylist()) == {whole.version}
    assert [path.name for path in tmp_path.glob(".out*")] == []


class DyingWorkers:
    """A Launcher of two workers, of which one is killed while it writes a partition."""

    def run(self, work: Callable[[ShardedScoring], None], scoring: ShardedScoring) -> None:
        run_workers(work_until_killed, 2, work, scoring)


def work_until_killed(work: Callable[[ShardedScoring], None], scoring: ShardedScoring) -> None:
    write = BatchOutput.write

    def last_words(results: Iterable[BatchResult]) -> Iterator[BatchResult]:
        yield next(iter(results))
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(output: BatchOutput, number: int, results: Iterable[BatchResult]) -> None:
        write(output, number, last_words(results) if number == KILLED_AT else results)

    BatchOutput.write = dying_write
    work(scoring)


def test_what_cannot_be_sharded_is_said_at_once(two_stages: TwoStages, tmp_path: Path) -> None:
    def refused(pattern: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=pattern):
            score(config(two_stages, tmp_path, **settings))

    refused("two_tower holds a two_tower, which retrieves: a ranking model is needed here", model=str(two_stages.retriever))
    refused("--workers has no effect with --sharded: --launch.workers says how many there are", workers=2)
    refused("--inference has no effect with --sharded: PyTorch runs the model", inference="onnx")
    refused("--launch and --sharding are for workers that share one model: add --sharded", sharded=False)
