"""The memory of exporting and using a model that one host could not hold: tables of 6 GB on two ranks, each limited to 4.5 GB.

    python benchmarks/export_memory.py [--gib 6 --limit-gib 4.5]

A run is trained for a few steps and its export made to fail. Then it is run again, with the limit: it finds its outcome, exports
only, and finishes. Every tensor of the bundle is compared with the checkpoint, bit by bit, a piece at a time. A rank whose
resident private memory passes the limit, as a container would count it, is ended at once. At last two ranks under the same limit
score the rows, with the tables sharded over them.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed.checkpoint as dcp
import tyro

from recsys_ray.bundle.reader import Rectangle, open_bundle
from recsys_ray.config import DataConfig, LaunchConfig, LoopConfig, PrepareConfig, ShardingConfig, TrackingConfig, TrainConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.schema import Categorical, Label, Schema
from recsys_ray.serving.batch.scoring import sharded
from recsys_ray.serving.batch.scoring.job import ScoreConfig, score
from recsys_ray.training.finishing import export
from recsys_ray.training.train import train
from tests.support.workers import run_workers

DIM, TABLES, RANKS, ROWS = 64, 12, 2, 20_000
GIB = 1 << 30
COMPARED_ROWS = 1 << 18


@dataclass(frozen=True)
class Job:
    """The flags of this benchmark."""

    gib: float = 6.0
    """Size of all tables together."""
    limit_gib: float = 4.5
    """Private memory that each rank may have while it exports, and while it scores."""


def write_clicks(folder: Path, num_embeddings: int) -> None:
    """Writes random clicks whose hashed ids fill tables of so many rows."""
    random = np.random.default_rng(0)
    columns = {f"c{number}": random.integers(0, 1 << 60, ROWS) for number in range(TABLES)}
    folder.mkdir()
    pq.write_table(pa.table({"label": random.integers(0, 2, ROWS), **columns}), folder / "rows.parquet")
    features = [Categorical(name, num_embeddings=num_embeddings) for name in columns]
    (folder / "schema.json").write_text(Schema((Label("label"), *features)).to_json())


def failing_export(config: TrainConfig) -> None:
    """Trains, and fails where the model would be written."""

    def fail(*_: object) -> None:
        raise OSError("no export this time")

    export.write_parts = fail  # type: ignore[assignment]
    train(config)


@dataclass(frozen=True)
class LimitedWorkers:
    """A Launcher of workers with a limit, which leaves the greatest private memory of each rank in `folder`."""

    folder: Path
    limit: int

    def run(self, work: Callable[[Any], None], config: Any) -> None:
        """Runs `work` once on every worker."""
        run_workers(limited_work, RANKS, work, config, self)

    def peaks(self, work: Callable[[Any], None]) -> list[float]:
        """Returns the peak of each rank in GiB."""
        return [round(int((self.folder / f"{work.__name__}-{rank}").read_text()) / GIB, 2) for rank in range(RANKS)]


def limited_work(work: Callable[[Any], None], config: Any, limited: LimitedWorkers) -> None:
    """Calls work(config) under the limit, and writes the greatest private memory that this rank had."""
    peak = [0]

    def watch() -> None:
        while True:
            resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
            peak[0] = max(peak[0], (resident - shared) * resource.getpagesize())
            if peak[0] > limited.limit:
                os._exit(137)
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    work(config)
    (limited.folder / f"{work.__name__}-{os.environ['RANK']}").write_text(str(peak[0]))


def differing_tensors(run_dir: Path) -> list[str]:
    """Returns the tensors of the bundle that differ from the checkpoint."""
    bundle = open_bundle(run_dir)
    checkpoint = str(run_dir / "checkpoints" / f"step_{bundle.manifest.step}")
    different = []
    for name, stored in bundle.manifest.tensors.items():
        expected = {"model": {name: torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))}}
        dcp.load(expected, checkpoint_id=checkpoint, no_dist=True)
        whole = expected["model"][name]
        for first in range(0, len(whole) if whole.dim() else 1, COMPARED_ROWS):
            piece = whole[first : first + COMPARED_ROWS] if whole.dim() else whole
            found = torch.empty_like(piece)
            offsets = (first, *(0 for _ in stored.shape[1:])) if whole.dim() else ()
            bundle.read_into(name, found, Rectangle(offsets, tuple(piece.shape)))
            if not torch.equal(found, piece):
                different.append(name)
    return different


def scoring_figures(config: TrainConfig, rows: Path, workers: LimitedWorkers) -> dict[str, Any]:
    """Scores the rows by the limited workers, and returns the figures of that."""
    began = time.perf_counter()
    sharded.launcher = lambda launch: nullcontext(workers)  # type: ignore[assignment]
    counts = score(
        ScoreConfig(
            model=config.run_dir,
            rows=str(rows),
            out=str(workers.folder / "scores"),
            rows_per_file=ROWS // 8,
            sharded=True,
            sharding=config.sharding,
            launch=LaunchConfig(workers=RANKS),
        )
    )
    return {
        "scored_rows": counts["rows"] - counts["not_scored"],
        "scoring_peak_gib": workers.peaks(sharded.score_share),
        "scoring_seconds": round(time.perf_counter() - began, 1),
    }


def main(job: Job) -> None:
    """Trains, exports under the limit, compares, and prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        raw, rows = Path(folder, "raw"), int(job.gib * GIB / TABLES / DIM / 4)
        write_clicks(raw, rows)
        dataset = prepare(PrepareConfig(parquet=str(raw), out=f"{folder}/dataset")).root
        config = TrainConfig(
            run_dir=f"{folder}/run",
            data=DataConfig(path=str(dataset)),
            model=DLRMConfig(embedding_dim=DIM),
            train=LoopConfig(epochs=1, max_steps=3, global_batch=1024),
            sharding=ShardingConfig(types=("row_wise",), memory_gib=job.gib),
            tracking=TrackingConfig(backend="none"),
        )
        try:
            run_workers(failing_export, RANKS, config)
        except Exception as error:
            assert "no export this time" in str(error), error
        workers = LimitedWorkers(Path(folder), int(job.limit_gib * GIB))
        began = time.perf_counter()
        workers.run(train, config)
        figures = {
            "tables_gib": round(open_bundle(config.run_dir).tensor_bytes() / GIB, 2),
            "limit_gib": job.limit_gib,
            "peak_gib": workers.peaks(train),
            "seconds": round(time.perf_counter() - began, 1),
            "files": len(open_bundle(config.run_dir).manifest.files),
            "differing_tensors": differing_tensors(Path(config.run_dir)),
            **scoring_figures(config, raw / "rows.parquet", workers),
        }
    for name, value in figures.items():
        print(f"{name:<20}{value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
