"""A dataset of numbered rows, and training that records which rows each step had.

python -m tests.support.audit --data.path ... --run-dir ...      # jobs/train_dlrm.py, with the rows recorded
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.columns import ROW_WEIGHT, Columns
from recsys_ray.config import PrepareConfig, SplitConfig, TrainConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.launch import stopping
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from tests.support.faults import batches_through
from tests.support.runs import logged_train

ROWS, ROW, BLOCK_ROWS = 24_000, "row", 128


def numbered_rows(root: Path) -> Path:
    """Prepares a dataset directory whose timestamp, which no model reads, is the row's number; all rows are for training."""
    draw = np.random.default_rng(0)
    user, item = draw.integers(0, 300, ROWS), draw.integers(0, 200, ROWS)
    label = (draw.random(ROWS) < 0.2 + 0.6 * ((user + item) % 3 == 0)).astype(np.int64)
    pq.write_table(pa.table({"label": label, "user": user, "item": item, ROW: np.arange(ROWS)}), root / "rows.parquet")
    columns = [{"kind": "label", "name": "label"}, {"kind": "timestamp", "name": ROW}]
    ids = {"kind": "categorical", "encoding": "identity", "dtype": "int", "num_embeddings": 400}
    columns += [{**ids, "name": name, "side": name} for name in ("user", "item")]
    (root / "schema.json").write_text(json.dumps({"columns": columns}))
    split = SplitConfig(validation=0, test=0)
    prepare(PrepareConfig(parquet=str(root / "rows.parquet"), out=str(root / "dataset"), block_rows=BLOCK_ROWS, split=split))
    return root / "dataset"


def audited_train(config: TrainConfig, stop_after: int = 0, pace: float = 0) -> None:
    """Calls train(config) and writes the row numbers of each step's batch to a file of the run directory.

    Requests a stop at step `stop_after`, and sleeps `pace` seconds before each step. Each rank logs to a file.
    """
    run_dir, place = Path(config.run_dir), f"{os.environ['RANK']}-{os.environ['WORLD_SIZE']}"
    store = CheckpointStore(str(run_dir / "checkpoints"))
    saved = store.committed()
    steps = itertools.count(store.marker(saved[0])["note"]["progress"]["step"] + 1 if saved else 1)

    def audited(batches: Iterator[Columns]) -> Iterator[Columns]:
        for columns in batches:
            rows, step = columns[ROW][columns[ROW_WEIGHT] > 0], next(steps)
            np.save(run_dir / f"rows-{step}-{time.time_ns()}-{place}.npy", rows.numpy())
            if step == stop_after:
                (run_dir / stopping.STOP_FILE).touch()
                time.sleep(1.1 * stopping.CHECK_SECONDS)  # so that it is seen after this very step
            time.sleep(pace)
            yield columns

    with batches_through(audited):
        logged_train(config)


def rows_by_step(run_dir: Path, steps: int) -> list[np.ndarray]:
    """Returns the sorted row numbers of each step, without padding; those of the last attempt where a step was repeated."""
    files: dict[int, list[tuple[int, int, int, Path]]] = {}
    for file in run_dir.glob("rows-*.npy"):
        step, when, rank, workers = map(int, file.stem.removeprefix("rows-").split("-"))
        files.setdefault(step, []).append((when, rank, workers, file))
    return [np.sort(np.concatenate([np.load(file) for file in _last(files[step])])) for step in range(1, steps + 1)]


def _last(files: list[tuple[int, int, int, Path]]) -> list[Path]:
    workers = max(files)[2]
    return [max(found for found in files if found[1:3] == (rank, workers))[3] for rank in range(workers)]


def assert_every_row_once_an_epoch(rows: list[np.ndarray], global_batch: int) -> None:
    """Fails unless `rows`, one array a step, are whole epochs in each of which every row was trained once."""
    steps = -(-ROWS // global_batch)
    assert rows and len(rows) % steps == 0
    for epoch in range(0, len(rows), steps):
        assert np.array_equal(np.sort(np.concatenate(rows[epoch : epoch + steps])), np.arange(ROWS))


if __name__ == "__main__":
    wanted = tyro.cli(TrainConfig, default=TrainConfig(model=DLRMConfig()), config=(tyro.conf.AvoidSubcommands,))
    # Workers can import the function by this name, but not from __main__.
    from tests.support.audit import audited_train as train_with_audit

    with launcher(wanted.launch) as engine:
        engine.run(partial(train_with_audit, pace=0.08), wanted)  # so that a cluster has time to change
