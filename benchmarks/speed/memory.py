"""Measures the peak resident memory of workers with 2 GB of tables each: a billion parameters, row-wise over two workers.

    python -m benchmarks.speed.memory            # half a minute; needs 8 GiB

It is compared with what must be there: tables, optimizer state, dense part (weights, gradients, Adam's averages) and the current
batch. The peak has what Python and its libraries take, but no checkpoints: a run that writes them in the background holds a copy
of each worker's tables (docs/checkpoints.md).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.plan_memory import WORKERS, resident, run, tables
from benchmarks.speed.side_by_side import keep
from recsys_ray.config import LaunchConfig, LoopConfig, ShardingConfig, TrainConfig
from recsys_ray.distributed import join_world
from recsys_ray.launch.launcher import launcher
from recsys_ray.logs import configure_logging
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.planning.workload import make_workload
from recsys_ray.schema import Schema

WANTED = 1.25


@dataclass(frozen=True)
class Memory:
    parameters: int = 1_000_000_000
    dim: int = 16
    batch: int = 16384
    """Rows of a step, over both workers."""
    steps: int = 10


def main(job: Memory) -> None:
    configure_logging()
    with tempfile.TemporaryDirectory() as folder:
        schema = tables(job.parameters * 4 / (1 << 30), job.dim)
        Path(folder, "schema.json").write_text(schema.to_json())
        config = TrainConfig(
            run_dir=folder,
            model=DLRMConfig(interaction="dot", embedding_dim=job.dim),
            train=LoopConfig(global_batch=job.batch, max_steps=job.steps),
            sharding=ShardingConfig(("row_wise",), memory_gib=8),
            launch=LaunchConfig("local", WORKERS, gpus_per_worker=0),
        )
        with launcher(config.launch) as engine:
            engine.run(measure, config)
        found = [json.loads(Path(folder, f"memory-{rank}.json").read_text()) for rank in range(WORKERS)]
    show(found, job, job.batch // WORKERS * make_workload(config, schema, 1.0).batch_bytes)


def measure(config: TrainConfig) -> None:
    """Measures this worker and writes the figures to the run directory."""
    with join_world(1) as world:
        found = run(config, Schema.load(Path(config.run_dir, "schema.json")), world)
        found["peak"] = resident("VmHWM")
        Path(config.run_dir, f"memory-{world.rank}.json").write_text(json.dumps(found))


def show(found: list[dict[str, Any]], job: Memory, batch: float) -> None:
    """Prints the ratios and appends them to the results; `batch` is the bytes of a worker's batch."""
    print(f"{'MiB':<12}{'tables':>10}{'optimizer':>11}{'dense':>8}{'batch':>8}{'together':>10}{'peak':>10}{'ratio':>8}")
    ratios = []
    for rank, part in enumerate(found):
        sizes = [part["tables"], part["optimizer"], part["dense"], batch]
        ratios.append(part["peak"] / sum(sizes))
        in_mib = [size / (1 << 20) for size in (*sizes, sum(sizes), part["peak"])]
        print("worker {:<5}{:>10.1f}{:>11.1f}{:>8.2f}{:>8.2f}{:>10.1f}{:>10.1f}{:>8.2f}".format(rank, *in_mib, ratios[-1]))
    print(f"largest ratio {max(ratios):.2f}; wanted {WANTED}: {'reached' if max(ratios) <= WANTED else 'SHORT'}")
    keep("memory", {"parameters": job.parameters, "workers": found, "batch": batch, "ratios": ratios, "wanted": WANTED})


if __name__ == "__main__":
    main(tyro.cli(Memory, description=__doc__))
