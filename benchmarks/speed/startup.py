"""Measures the time from the command to the first step of a training job, by part.

    python -m benchmarks.speed.startup            # two minutes

The job prints where its worker's time went. The imports of the launching process and of the worker are timed separately; the rest
of the time before the worker began is the launcher's.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.speed.load import dataset
from benchmarks.speed.side_by_side import DATA, keep

LAUNCHING, LAUNCHER, WORKER = "imports of the launching process", "launcher", "imports of the worker"
IMPORTS = {
    LAUNCHING: "import runpy; runpy.run_path('jobs/train_dlrm.py')",
    WORKER: "import recsys_ray.training.train",
}
SAID = re.compile(r"first step ([0-9.]+) s after the worker began: (.*)")


@dataclass(frozen=True)
class Startup:
    engines: tuple[str, ...] = ("local", "ray")
    repeats: int = 3


def main(job: Startup) -> None:
    blocks = dataset(1_000_000)
    found = {engine: [first_step(blocks, engine) for _ in range(job.repeats)] for engine in job.engines}
    medians = {engine: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for engine, runs in found.items()}
    print(f"{'seconds, median of ' + str(job.repeats):<40}" + "".join(f"{engine:>10}" for engine in medians))
    for part in next(iter(medians.values())):
        print(f"{part:<40}" + "".join(f"{parts[part]:>10.2f}" for parts in medians.values()))
    print(f"{'all':<40}" + "".join(f"{sum(parts.values()):>10.2f}" for parts in medians.values()))
    keep("startup", {"seconds": medians})


def first_step(blocks: Path, engine: str) -> dict[str, float]:
    """Runs the job to its first step and returns the seconds of each part."""
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        flags = ["--data.path", blocks, "--run-dir", folder, "--launch.engine", engine, "--train.max-steps", "1"]
        began = time.perf_counter()
        command = [sys.executable, "jobs/train_dlrm.py", *map(str, flags)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            told = ((SAID.search(line), time.perf_counter() - began) for line in process.stdout)
            said, elapsed = next((found, seconds) for found, seconds in told if found)
            process.stdout.read()
    parts = {name.strip(): float(seconds) for name, seconds in re.findall(r"([a-z ]+) ([0-9.]+)", said[2])}
    launching, worker = (imported(code) for code in IMPORTS.values())
    return {LAUNCHING: launching, LAUNCHER: elapsed - float(said[1]) - launching - worker, WORKER: worker, **parts}


def imported(code: str) -> float:
    """Returns the seconds from the start of a Python process until it has run `code`."""
    began = time.time()
    done = "import time; print('done', time.time())"
    said = subprocess.run([sys.executable, "-c", f"{code}; {done}"], check=True, capture_output=True, text=True).stdout
    return float(said.split("done")[-1]) - began


if __name__ == "__main__":
    main(tyro.cli(Startup, description=__doc__))
