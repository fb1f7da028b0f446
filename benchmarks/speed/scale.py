"""Compares two workers on two cores with one worker on one core, in real runs of the training job.

The limit is two runs of one worker at the same time, which share nothing but the machine.

    python -m benchmarks.speed.scale            # two minutes

Each worker has 8,192 rows a step, one thread, and its tables' shards; they exchange ids, embeddings and gradients over gloo.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from benchmarks.speed.load import dataset
from benchmarks.speed.side_by_side import DATA, Goal, in_turn, report

ONE, TWO, LIMIT = "1 worker, 1 core", "2 workers, 2 cores", "limit: two runs of 1 worker at once, 2 cores"


@dataclass(frozen=True)
class Scale:
    rows: int = 1_000_000
    batch: int = 8192
    steps: int = 60
    repeats: int = 3


def main(job: Scale) -> None:
    blocks = dataset(job.rows)
    ways = {
        ONE: lambda: run(blocks, job, [0]),
        TWO: lambda: run(blocks, job, [0, 1]),
        LIMIT: lambda: two_runs(blocks, job),
    }
    rates = in_turn(ways, job.repeats)
    report("scale", rates, [Goal(TWO, ONE, 1.6), Goal(TWO, LIMIT)], {"rows_a_step_and_worker": job.batch})


def run(blocks: Path, job: Scale, cores: list[int]) -> float:
    """Returns rows per second: the median of the run's progress lines without the first, which includes warm-up."""
    said = train(blocks, cores, {"train.global-batch": job.batch * len(cores), "train.max-steps": job.steps})
    return statistics.median(float(found.replace(",", "")) for found in re.findall(r"([\d,]+) rows/s", said)[1:])


def two_runs(blocks: Path, job: Scale) -> float:
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda core: run(blocks, job, [core]), (0, 1)))


def train(blocks: Path, cores: list[int], flags: dict[str, Any], *, workers: int = 0) -> str:
    """Runs jobs/train_dlrm.py on these cores, with one worker on each unless `workers` says otherwise, and returns its output."""
    fixed = {"launch.engine": "local", "model.interaction": "dot", "train.log-every": 10, "tracking.log-weights-below-mib": 0}
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        flags = {"data.path": blocks, "run-dir": folder, "launch.workers": workers or len(cores), **fixed, **flags}
        said = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "jobs/train_dlrm.py", *said]
        pin = partial(os.sched_setaffinity, 0, cores)
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=pin)
        return done.stdout


if __name__ == "__main__":
    main(tyro.cli(Scale, description=__doc__))
