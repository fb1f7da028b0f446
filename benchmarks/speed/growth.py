"""Measures and plots how time grows with the rows to convert, the rows to load, and the rows of the embedding tables.

    python -m benchmarks.speed.growth            # four minutes; needs 12 GiB

The 16 million rows are 4 million under four names. Ids are uniformly random, the worst case for caches.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.distributed as dist
import tyro
from matplotlib.figure import Figure

from benchmarks.plan_memory import batches
from benchmarks.speed.convert import clicks, ours, start_ray
from benchmarks.speed.load import epochs
from benchmarks.speed.side_by_side import DATA, RESULTS, keep, seconds
from benchmarks.speed.workers import alone, build
from recsys_ray.distributed import World
from recsys_ray.schema import Categorical, Dense, Label, Schema

FLAT = 0.15
TABLES, DENSE = 26, 13
Curve = dict[int, float]
"""Size -> microseconds per row or step."""


@dataclass(frozen=True)
class Growth:
    batch: int = 8192
    steps: int = 20
    repeats: int = 3


def main(job: Growth) -> None:
    start_ray()
    folders = {rows: named(rows) for rows in (1_000_000, 4_000_000, 16_000_000)}
    for rows, folder in folders.items():
        if not (DATA / f"blocks-{rows}").exists():
            ours(folder, DATA / f"blocks-{rows}")
    curves = {"convert, by row": {rows: median(job.repeats, converting(folder)) / rows for rows, folder in folders.items()}}
    world = alone()
    torch.set_num_threads(2)
    curves["load, by row"] = {rows: loading(rows, job) / rows for rows in folders}
    curves["step, by table rows"] = {rows: step(rows, job, world) for rows in (1_000_000, 10_000_000, 100_000_000)}
    curves = {name: {size: value * 1e6 for size, value in curve.items()} for name, curve in curves.items()}
    show(curves)
    dist.destroy_process_group()


def named(rows: int) -> Path:
    if rows <= 4_000_000:
        return clicks(rows)
    source, folder = clicks(4_000_000), DATA / f"clicks-{rows}"
    (folder / "interactions").mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "schema.json", folder)
    for copy in range(rows // 4_000_000):
        for file in (source / "interactions").glob("*.parquet"):
            link = folder / "interactions" / f"{copy}-{file.name}"
            link.unlink(missing_ok=True)
            link.symlink_to(file.absolute())
    return folder


def median(repeats: int, work: Callable[[], object]) -> float:
    return statistics.median(seconds(work) for _ in range(repeats))


def converting(folder: Path) -> Callable[[], None]:
    return lambda: ours(folder, DATA / "blocks")


def loading(rows: int, job: Growth) -> float:
    """Returns the seconds of an epoch whose shards are already unpacked."""
    with tempfile.TemporaryDirectory(dir=DATA) as cache:
        epoch = epochs(DATA / f"blocks-{rows}", Path(cache), job.batch)
        epoch()
        return median(job.repeats, epoch)


def step(table_rows: int, job: Growth, world: World) -> float:
    """Returns the seconds of a step with this many rows in all tables together."""
    tables = [Categorical(f"c{number}", num_embeddings=table_rows // TABLES) for number in range(TABLES)]
    schema = Schema((Label("label"), *(Dense(f"i{number}") for number in range(DENSE)), *tables))
    trained = build(schema, world, job.batch)
    found = cycle(list(islice(batches(trained.task, schema, job.batch, seed=0), 20)))

    def steps() -> None:
        for batch in islice(found, job.steps):
            trained.step(iter([batch]))

    steps()
    return median(job.repeats, steps) / job.steps


def show(curves: dict[str, Curve]) -> None:
    print(f"{'microseconds':<24}{'size':>14}{'':>14}{'of the first':>14}")
    growth = {}
    for name, curve in curves.items():
        first = next(iter(curve.values()))
        for size, value in curve.items():
            print(f"{name:<24}{size:>14,}{value:>14,.3f}{value / first:>14.2f}")
        growth[name] = max(curve.values()) / first - 1
        print(f"  grows by at most {growth[name]:.0%}; wanted {FLAT:.0%}: {'reached' if growth[name] <= FLAT else 'SHORT'}")
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.plot(list(curve), list(curve.values()), marker="o")
        axes.set(title=name, xscale="log", xlabel="rows", ylabel="microseconds", ylim=(0, 1.2 * max(curve.values())))
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "growth.png", dpi=110)
    keep("growth", {"microseconds": curves, "growth": growth, "wanted": FLAT})


if __name__ == "__main__":
    main(tyro.cli(Growth, description=__doc__))
