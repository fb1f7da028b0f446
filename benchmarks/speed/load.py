"""Measures MDS -> batches of 8,192 rows in one process: row blocks, one row per sample, and the limit: read, unpack, join.

    python -m benchmarks.speed.load            # 4 million rows of 40 columns; about two minutes

The first epoch unpacks the shards into an empty cache, later ones find them there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
import tyro
import zstd

from benchmarks.speed import usual_recipe
from benchmarks.speed.convert import clicks, ours, start_ray
from benchmarks.speed.side_by_side import DATA, Goal, in_turn, report, seconds
from benchmarks.speed.workers import alone, stream
from recsys_ray.columns import ROW_WEIGHT
from recsys_ray.schema import Schema

FIRST, LATER, USUAL, LIMIT = "ours, first epoch", "ours, later epochs", "usual recipe", "limit: read, unpack, concatenate"


@dataclass(frozen=True)
class Load:
    rows: int = 4_000_000
    recipe_rows: int = 60_000
    batch: int = 8192
    repeats: int = 3


def main(job: Load) -> None:
    blocks = dataset(job.rows)
    samples = one_row_a_sample(job.rows, job.recipe_rows)
    alone()
    with tempfile.TemporaryDirectory(dir=DATA) as scratch:
        later = epochs(blocks, Path(scratch, "later"), job.batch)
        later()
        fresh = (Path(scratch, str(number)) for number in range(job.repeats))
        ways = {
            FIRST: lambda: job.rows / seconds(epochs(blocks, next(fresh), job.batch)),
            LATER: lambda: job.rows / seconds(later),
            USUAL: lambda: job.recipe_rows / seconds(lambda: recipe(samples, Path(scratch, "recipe"), job)),
            LIMIT: lambda: job.rows / seconds(lambda: limit(blocks)),
        }
        rates = in_turn(ways, job.repeats)
    goals = [Goal(way, USUAL, 100) for way in (FIRST, LATER)] + [Goal(way, LIMIT, 0.7) for way in (FIRST, LATER)]
    report("load", rates, goals, {"rows": job.rows, "batch": job.batch, "recipe_rows": job.recipe_rows})


def dataset(rows: int) -> Path:
    """Returns a dataset directory of row blocks, which is prepared the first time."""
    out = DATA / f"blocks-{rows}"
    if not out.exists():
        start_ray()
        ours(clicks(rows), out)
    return out


def one_row_a_sample(rows: int, wanted: int) -> Path:
    out = DATA / f"samples-{wanted}"
    if not (out / "index.json").exists():
        files = sorted(map(str, (clicks(rows) / "interactions").glob("*.parquet")))
        with usual_recipe.spark() as session:
            usual_recipe.convert(session, files, Schema.load(str(clicks(rows) / "schema.json")), out, wanted)
    return out


def epochs(blocks: Path, cache: Path, batch: int) -> Callable[[], int]:
    """Returns a function that iterates over the next epoch and returns its rows."""
    batches = stream(blocks, cache, batch)
    return lambda: sum(len(columns[ROW_WEIGHT]) for columns in batches)


def recipe(samples: Path, cache: Path, job: Load) -> None:
    rows = sum(len(columns["label"]) for columns in usual_recipe.loader(samples, cache, job.batch))
    assert rows == job.recipe_rows
    shutil.rmtree(cache)


def limit(blocks: Path) -> int:
    shards = [np.frombuffer(zstd.decompress(file.read_bytes()), np.uint8) for file in blocks.glob("train/*/shard.*.zstd")]
    return len(np.concatenate(shards))


if __name__ == "__main__":
    main(tyro.cli(Load, description=__doc__))
    dist.destroy_process_group()
