"""The memory of exporting a model that one host could not hold: tables of 6 GB on two ranks, each limited to 4.5 GB.

    python benchmarks/export_memory.py [--gib 6 --limit-gib 4.5]

A run is trained for a few steps and its export made to fail. Then it is run again, with the limit: it finds its outcome, exports
only, and finishes. Every tensor of the bundle is compared with the checkpoint, bit by bit, a piece at a time. A rank whose
resident private memory passes the limit, as a container would count it, is ended at once.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed.checkpoint as dcp
import tyro

from recsys_ray.bundle.reader import Rectangle, open_bundle
from recsys_ray.config import DataConfig, LoopConfig, PrepareConfig, ShardingConfig, TrackingConfig, TrainConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.schema import Categorical, Label, Schema
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
    """Private memory that each rank may have while it exports."""


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


def limited_train(config: TrainConfig, limit: int) -> None:
    """Trains under the limit, and writes the greatest private memory that this rank had."""
    peak = [0]

    def watch() -> None:
        while True:
            resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
            peak[0] = max(peak[0], (resident - shared) * resource.getpagesize())
            if peak[0] > limit:
                os._exit(137)
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    train(config)
    Path(config.run_dir, f"peak-{os.environ['RANK']}").write_text(str(peak[0]))


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
        began = time.perf_counter()
        run_workers(limited_train, RANKS, config, int(job.limit_gib * GIB))
        figures = {
            "tables_gib": round(open_bundle(config.run_dir).tensor_bytes() / GIB, 2),
            "limit_gib": job.limit_gib,
            "peak_gib": [round(int(Path(config.run_dir, f"peak-{rank}").read_text()) / GIB, 2) for rank in range(RANKS)],
            "seconds": round(time.perf_counter() - began, 1),
            "files": len(open_bundle(config.run_dir).manifest.files),
            "differing_tensors": differing_tensors(Path(config.run_dir)),
        }
    for name, value in figures.items():
        print(f"{name:<20}{value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
