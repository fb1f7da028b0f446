"""Measures how long training waits for a checkpoint: ours, written in the background, and torch.distributed.checkpoint's `save`.

    python benchmarks/checkpoint_stall.py            # a model of 1 GB, about a minute

One process trains a real DLRM with its optimizer state and saves it in both ways in turn. "Pause" is the duration of the call;
"time lost" also has how much longer the training steps took while the background thread was writing, since it takes CPU from
them.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tyro

from recsys_ray.checkpoint.saver import Saver
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.logs import configure_logging
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import Batch, BuildContext, Task
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.steps import make_step

DIM, TABLES = 64, 8


@dataclass(frozen=True)
class Stall:
    gib: float = 1.0
    """GiB of embedding tables."""
    repeats: int = 5
    batch: int = 4096
    folder: str = ""
    """Where checkpoints are written; empty: the temporary folder."""


def main(stall: Stall) -> None:
    configure_logging()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    world = World(0, 1, 0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    task, rows = _task(stall, world)
    model = shard_model(task.module, world, sharding=ShardingConfig(), optimizer=OptimizerConfig(), local_batch=stall.batch)
    initialise_tables(model, 0.0, 0)
    optimizer = build_optimizer(model, OptimizerConfig())
    step, batches = make_step(model, optimizer, world), [_batch(task, seed, stall.batch, rows) for seed in range(8)]

    def train(seconds: float) -> int:
        """Trains for that time and returns the number of steps, at least one."""
        began, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - began < seconds:
            step(iter([batches[steps % 8]]))
            steps += 1
        return steps

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    _forget_peak()
    before = _peak_gib()
    with tempfile.TemporaryDirectory(dir=stall.folder or None) as scratch:
        found = measure(stall, Path(scratch), state, train, before)
    show(found)
    dist.destroy_process_group()


def measure(stall: Stall, folder: Path, state: dict[str, Any], train: Callable[[float], int], before: float) -> dict[str, Any]:
    saver = Saver(CheckpointStore(str(folder / "ours")), keep_last=1)
    pauses: dict[str, list[float]] = {"library": [], "ours": []}
    peaks: dict[str, float] = {}
    written, lost = [], []
    saver.reserve(state)
    train(3)  # warm up; the buffers are allocated by then
    for number in range(stall.repeats):
        _forget_peak()
        began = time.perf_counter()
        dcp.save(state, checkpoint_id=folder / "library" / str(number))
        pauses["library"].append(time.perf_counter() - began)
        peaks["library"] = _peak_gib()
        shutil.rmtree(folder / "library")
        quiet = train(2) / 2
        _forget_peak()
        began = time.perf_counter()
        saver.save(number, state, {})
        pauses["ours"].append(time.perf_counter() - began)
        # Train in short bursts until the checkpoint is written.
        steps, training = 0, time.perf_counter()
        while any(not pending.done() for pending in saver._pending):
            steps += train(0.05)
        busy = time.perf_counter() - training
        written.append(time.perf_counter() - began)
        lost.append(pauses["ours"][-1] + busy - steps / quiet)
        peaks["ours"] = _peak_gib()
        if number == 0:
            first = pauses["ours"].pop()
            lost.clear()
    saver.close()
    library, ours = statistics.median(pauses["library"]), statistics.median(pauses["ours"])
    return {
        "model_gib": stall.gib,
        "library_pause": library,
        "our_first_pause": first,
        "our_pause": ours,
        "pause_ratio": ours / library,
        "pause_ratios": [mine / theirs for mine, theirs in zip(pauses["ours"], pauses["library"][1:], strict=True)],
        "our_time_lost": statistics.median(lost),
        "time_lost_ratio": statistics.median(lost) / library,
        "our_write": statistics.median(written),
        "training_gib": before,
        "library_peak_gib": peaks["library"],
        "our_peak_gib": peaks["ours"],
    }


def show(found: dict[str, Any]) -> None:
    spread = ", ".join(f"{ratio:.3f}" for ratio in sorted(found["pause_ratios"]))
    print(f"model of {found['model_gib']:g} GiB, optimizer state besides; seconds, median")
    print(f"{'':<34}{'seconds':>10}{'of the library':>16}")
    print(f"{'dcp.save: training waits':<34}{found['library_pause']:>10.3f}{1:>16.3f}")
    first = found["our_first_pause"]
    print(f"{'ours: pause, the first':<34}{first:>10.3f}{first / found['library_pause']:>16.3f}")
    print(f"{'ours: pause, later ones':<34}{found['our_pause']:>10.3f}{found['pause_ratio']:>16.3f}   ({spread})")
    print(f"{'ours: all time lost to training':<34}{found['our_time_lost']:>10.3f}{found['time_lost_ratio']:>16.3f}")
    print(f"{'ours: until it is on disk':<34}{found['our_write']:>10.3f}")
    gib = {name: found[f"{name}_gib"] for name in ("training", "library_peak", "our_peak")}
    print(
        "resident GiB: training alone {training:.2f}; at most, our buffers included: dcp.save {library_peak:.2f}, "
        "ours {our_peak:.2f}".format(**gib)
    )
    print(json.dumps(found))


def _task(stall: Stall, world: World) -> tuple[Task, int]:
    rows = int(stall.gib * 2**30 / 4 / DIM / TABLES)
    tables = [Categorical(f"c{number}", "item", num_embeddings=rows) for number in range(TABLES)]
    schema = Schema((Label("label"), Dense("d"), *tables))
    return build_task(DLRMConfig(embedding_dim=DIM), BuildContext(schema, world.device)), rows


def _batch(task: Task, seed: int, batch: int, rows: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = {f"c{n}": torch.randint(0, rows, (batch,), generator=generator, dtype=torch.int32) for n in range(TABLES)}
    numbers = {name: torch.rand(batch, generator=generator) for name in ("d", "label")}
    return task.to_batch({**ids, **numbers, "weight": torch.ones(batch)})


def _forget_peak() -> None:
    """Resets the peak resident size of this process, on Linux."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_gib() -> float:
    """Returns the peak resident size of this process since it was reset."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / (1 << 20)


if __name__ == "__main__":
    main(tyro.cli(Stall, description=__doc__))
