"""Measures training steps of a DLRM on one GPU: ours on resident batches and from disk, and TorchRec's own modules.

    python -m benchmarks.speed.gpu.dataset runs/bench/gpu
    python -m benchmarks.speed.gpu runs/bench/gpu --dim 128 --batches 16384 65536          # four minutes

One process, without Ray, MLflow, Spark and a network; bf16 on a GPU. Every line is printed as soon as it is measured, the last
one is a JSON object with all figures, and an error in one of them does not end the others. On a CPU it is a slow test of itself.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import torch.distributed as dist
import tyro

from benchmarks.speed.gpu.case import CUDA, PRECISION, Case, Interaction, Source, release_memory
from benchmarks.speed.gpu.models import Ours, Pipeline, measure_pipeline, measure_torchrec
from benchmarks.speed.side_by_side import keep, machine
from benchmarks.speed.workers import alone
from recsys_ray.data.dataset.directory import DatasetDirectory

RATIOS = {
    "ours_over_torchrec": ("resident_rows_per_second", "torchrec_rows_per_second"),
    "disk_first_over_resident": ("disk_first_rows_per_second", "resident_rows_per_second"),
    "disk_later_over_resident": ("disk_later_rows_per_second", "resident_rows_per_second"),
}
COLUMNS = {
    "resident ms": "resident_ms",
    "rows/s": "resident_rows_per_second",
    "TorchRec ms": "torchrec_ms",
    "ours/TorchRec": "ours_over_torchrec",
    "disk first ms": "disk_first_ms",
    "later ms": "disk_later_ms",
    "disk/resident": "disk_first_over_resident",
    "later": "disk_later_over_resident",
    "peak GiB": "ours_peak_gib",
    "first step s": "first_step_seconds",
    "fill s/billion": "fill_seconds_per_billion",
}
"""The columns of the table for people, and the figure in each."""
T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    dataset: Annotated[Path, tyro.conf.Positional]
    dim: int = 128
    batches: tuple[int, ...] = (16384, 65536)
    only: Interaction | None = None
    """None: both."""
    loaders: int | None = None
    """The loader processes, as data.loader_workers has them; None is the trainer's default."""
    seconds: float = 200
    """After these nothing new begins."""
    skip_torchrec: bool = False
    pipelines: tuple[Pipeline, ...] = ()
    """Measure TorchRec's modules in these of its pipelines as well."""
    profile: bool = False
    """Print the kernels of our step by time."""


def main(job: Gpu) -> None:
    limit = Limit(time.monotonic() + job.seconds)
    dataset = DatasetDirectory.open(job.dataset)
    alone()
    logging.getLogger().setLevel(logging.ERROR)
    cases = []
    for rows in job.batches:
        source = Source(dataset, rows, job.loaders)
        for interaction in (job.only,) if job.only else ("dcn", "dot"):
            cases.append(Case(source, interaction, job.dim))
            measure(cases[-1], job, limit)
        source.drop_resident()
    print_table(cases)
    print_figures(cases, dataset)
    dist.destroy_process_group()


@dataclass(frozen=True)
class Limit:
    """The time after which nothing new begins."""

    deadline: float

    def attempt(self, case: Case, name: str, work: Callable[[], T]) -> T | None:
        """Returns what `work` returns, None where it fails or the time is over; both are printed."""
        error = "left out: the time is over"
        if time.monotonic() < self.deadline:
            try:
                return work()
            except Exception as problem:
                error = f"{type(problem).__name__}: {problem}"[:300]
                traceback.print_exc()
        case.errors.append(f"{name}: {error}")
        print(f"  {case.name:<12} {case.errors[-1]}", flush=True)
        return None


def measure(case: Case, job: Gpu, limit: Limit) -> None:
    """Measures a case; the memory of our model is free again when TorchRec's is built."""
    if not limit.attempt(case, "batches", lambda: case.source.resident):
        return
    release_memory()
    ours = limit.attempt(case, "ours", lambda: Ours(case))
    if ours is not None:
        limit.attempt(case, "ours, resident", ours.resident)
        limit.attempt(case, "ours, from disk", ours.disk)
        if job.profile:
            limit.attempt(case, "profile", ours.profile)
    del ours
    release_memory()
    if not job.skip_torchrec:
        limit.attempt(case, "TorchRec", lambda: measure_torchrec(case))
        release_memory()
    for pipeline in job.pipelines:
        limit.attempt(case, f"TorchRec, {pipeline}", partial(measure_pipeline, case, pipeline))
        release_memory()
    found = case.figures
    found |= {name: found[way] / found[than] for name, (way, than) in RATIOS.items() if way in found and than in found}


def print_table(cases: list[Case]) -> None:
    installed = ", ".join(f"{package} {version}" for package, version in versions().items() if version)
    print(f"\n{machine()['gpu'] or machine()['cpu']}, {precision()}, {installed}")
    print(f"{'':<12}" + "".join(f"{title:>15}" for title in COLUMNS))
    for case in cases:
        print(f"{case.name:<12}" + "".join(f"{_readable(case.figures.get(name)):>15}" for name in COLUMNS.values()))
    print(flush=True)


def _readable(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.2f}"


def print_figures(cases: list[Case], dataset: DatasetDirectory) -> None:
    """Prints all figures as one line of JSON, which joins the results where it is a GPU's."""
    facts = {"precision": precision(), "dataset_rows": dataset.summary["rows"], "cases": [_figures(case) for case in cases]}
    keep("gpu", {**versions(), **facts}, append=CUDA)


def _figures(case: Case) -> dict[str, Any]:
    rounded = {name: float(f"{value:.5g}") for name, value in case.figures.items()}
    return {"model": case.interaction, "batch": case.source.rows, "dim": case.dim, **rounded, "errors": case.errors}


def precision() -> str:
    return "bf16" if PRECISION else "fp32"


def versions() -> dict[str, str | None]:
    """Returns the installed versions of what the speed depends on."""
    found = {"torch": torch.__version__, "cuda": torch.version.cuda}
    return found | {"torchrec": _installed("torchrec"), "fbgemm": _installed("fbgemm-gpu", "fbgemm-gpu-cpu")}


def _installed(*packages: str) -> str | None:
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


if __name__ == "__main__":
    main(tyro.cli(Gpu, description=__doc__))
