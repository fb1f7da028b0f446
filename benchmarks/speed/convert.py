"""Measures Parquet -> MDS with a global shuffle: ours on Ray Data, the usual recipe on Spark, and as limit pyarrow copying files.

    python -m benchmarks.speed.convert             # 4 million rows of 40 columns; two minutes

Each engine runs once before it is timed. The recipe gets fewer rows, since it is slow and its time is linear in them.
"""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import tyro

from benchmarks.speed import usual_recipe
from benchmarks.speed.side_by_side import DATA, Goal, in_turn, report, seconds
from recsys_ray.config import PrepareConfig, SplitConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import synthetic
from recsys_ray.schema import Schema

PROCESSES = 2
OURS, USUAL, LIMIT = "ours, both passes", "usual recipe", "limit: pyarrow copies it, 2 processes"


@dataclass(frozen=True)
class Convert:
    rows: int = 4_000_000
    recipe_rows: int = 60_000
    repeats: int = 3


def main(job: Convert) -> None:
    start_ray()
    source = clicks(job.rows)
    files = sorted(map(str, (source / "interactions").glob("*.parquet")))
    schema = Schema.load(str(source / "schema.json"))
    with usual_recipe.spark() as session, ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        recipe = partial(usual_recipe.convert, session, files, schema, DATA / "one-row-a-sample")
        recipe(1000)
        ours(source, DATA / "blocks")
        list(pool.map(copy, files[:PROCESSES]))
        ways = {
            OURS: lambda: job.rows / seconds(lambda: ours(source, DATA / "blocks")),
            USUAL: lambda: job.recipe_rows / seconds(lambda: recipe(job.recipe_rows)),
            LIMIT: lambda: job.rows / seconds(lambda: list(pool.map(copy, files))),
        }
        rates = in_turn(ways, job.repeats)
    goals = [Goal(OURS, USUAL, 50), Goal(OURS, LIMIT, 0.6)]
    report("convert", rates, goals, {"rows": job.rows, "columns": len(schema.columns), "recipe_rows": job.recipe_rows})


def start_ray() -> None:
    ray.init("local", logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)


def clicks(rows: int) -> Path:
    return synthetic.generate_clicks(DATA / f"clicks-{rows}", rows)


def ours(source: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    prepare(PrepareConfig(parquet=str(source / "interactions"), out=str(out), split=SplitConfig(validation=0.0, test=0.0)))


def copy(file: str) -> None:
    """Copies a file with one thread, since there are as many processes as cores."""
    pa.set_cpu_count(1)
    folder = DATA / "copied"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pq.read_table(file, use_threads=False), folder / Path(file).name, compression="zstd")


if __name__ == "__main__":
    main(tyro.cli(Convert, description=__doc__))
