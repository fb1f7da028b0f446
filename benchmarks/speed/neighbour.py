"""Measures a worker of two threads alone and beside a busy process on the same two cores, and what libgomp's spinning costs.

    python -m benchmarks.speed.neighbour            # four minutes

Real runs of the training job, as its launcher starts them and with libgomp's own spin count, in turn. For two threads and a busy
process on two cores, a fair share of the cores is two thirds.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from benchmarks.speed.load import dataset
from benchmarks.speed.scale import train
from benchmarks.speed.side_by_side import Goal, in_turn, report
from recsys_ray.environment import environment

OURS, USUAL = "as launched", "libgomp's own spin count"
SPIN_COUNTS: dict[str, dict[str, str]] = {OURS: {}, USUAL: {"GOMP_SPINCOUNT": "300000"}}
CORES = [0, 1]
FAIR_SHARE = 2 / 3


@dataclass(frozen=True)
class Neighbour:
    rows: int = 1_000_000
    batch: int = 8192
    steps: int = 80
    repeats: int = 5


def main(job: Neighbour) -> None:
    blocks = dataset(job.rows)
    ways = {
        f"{name}, {'beside a busy process' if busy else 'alone'}": partial(run, blocks, job, variables, busy=busy)
        for busy in (False, True)
        for name, variables in SPIN_COUNTS.items()
    }
    rates = in_turn(ways, job.repeats)
    alone, beside = f"{OURS}, alone", f"{OURS}, beside a busy process"
    goals = [
        Goal(alone, f"{USUAL}, alone", 0.97),
        Goal(beside, alone, 0.5 * FAIR_SHARE),
        Goal(beside, f"{USUAL}, beside a busy process"),
    ]
    report("neighbour", rates, goals, {"fair_share": FAIR_SHARE})


def run(blocks: Path, job: Neighbour, variables: dict[str, str], *, busy: bool) -> float:
    """Returns rows per second: the median of the run's progress lines without the first, which includes warm-up."""
    flags = {"train.global-batch": job.batch, "train.max-steps": job.steps, "launch.cpus-per-worker": len(CORES)}
    with environment(variables), busy_process() if busy else nullcontext():
        said = train(blocks, CORES, flags, workers=1)
    return statistics.median(float(found.replace(",", "")) for found in re.findall(r"([\d,]+) rows/s", said)[1:])


@contextmanager
def busy_process() -> Iterator[None]:
    """Runs a process that computes all the time while the body runs."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main(tyro.cli(Neighbour, description=__doc__))
