"""A DLRM of 13 dense columns, 26 tables, embeddings of 16, batches of 8,192 rows: from disk, on batches in memory, and as usual.

    python -m benchmarks.speed.train            # about four minutes

"From disk" is one epoch of a million rows from a cache that is empty at first. The recipe's loop is TorchRec's: DLRMTrain under
DistributedModelParallel with its defaults, and an Adam that is not fused.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path

import torch
import torch.distributed as dist
import tyro

from benchmarks.speed import usual_recipe
from benchmarks.speed.load import dataset, one_row_a_sample
from benchmarks.speed.side_by_side import DATA, Goal, in_turn, report, seconds
from benchmarks.speed.workers import MODEL, Trained, alone, build, resident, stream
from recsys_ray.data.dataset_directory import DatasetDirectory
from recsys_ray.models.task import Batch
from recsys_ray.schema import Schema

DISK, MEMORY, USUAL, USUAL_MEMORY = "ours, from disk", "ours, on batches in memory", "usual recipe, from disk", "usual loop, in memory"


@dataclass(frozen=True)
class Train:
    rows: int = 1_000_000
    recipe_rows: int = 60_000
    batch: int = 8192
    threads: int = 2
    repeats: int = 3


def main(job: Train) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    blocks, samples = dataset(job.rows), one_row_a_sample(4_000_000, job.recipe_rows)
    world, schema = alone(), DatasetDirectory.open(blocks).schema
    torch.set_num_threads(job.threads)
    ours = build(schema, world, job.batch)
    batches = resident(blocks, ours.task, job.batch, 40)
    usual, optimizer = usual_recipe.model(MODEL, schema)

    def recipe(batches: Iterator[usual_recipe.Batch]) -> int:
        return sum(usual_recipe.step(usual, optimizer, batch) is None for batch in batches)

    plain = [usual_recipe.Batch(batch.dense, batch.sparse, batch.labels) for batch in batches]
    steps(ours, iter(batches[:5]))
    recipe(iter(plain[:5]))
    ways: dict[str, Callable[[], float]] = {
        DISK: lambda: from_disk(ours, blocks, job),
        MEMORY: lambda: rate(lambda: steps(ours, islice(cycle(batches), 80)), 80, job),
        USUAL: lambda: usual_from_disk(recipe, samples, schema, job),
        USUAL_MEMORY: lambda: rate(lambda: recipe(islice(cycle(plain), 60)), 60, job),
    }
    goals = [Goal(DISK, MEMORY, 0.95), Goal(DISK, USUAL, 10), Goal(MEMORY, USUAL_MEMORY, 1.5)]
    report("train", in_turn(ways, job.repeats), goals, {"batch": job.batch, "threads": job.threads})


def steps(trained: Trained, batches: Iterator[Batch]) -> int:
    done = 0
    try:
        while True:
            trained.step(batches)
            done += 1
    except StopIteration:
        return done


def rate(work: Callable[[], int], wanted: int, job: Train) -> float:
    return wanted * job.batch / seconds(work)


def from_disk(ours: Trained, blocks: Path, job: Train) -> float:
    """The last batch of an epoch, which may be short, has as many rows as another: whole ones are counted."""
    with tempfile.TemporaryDirectory(dir=DATA) as cache:
        columns = stream(blocks, Path(cache), job.batch)
        whole = job.rows // job.batch
        return rate(lambda: steps(ours, islice(map(ours.task.to_batch, columns), whole)), whole, job)


def usual_from_disk(recipe: Callable[[Iterator[usual_recipe.Batch]], int], samples: Path, schema: Schema, job: Train) -> float:
    cache = DATA / "recipe-cache"
    batches = (usual_recipe.to_batch(columns, schema) for columns in usual_recipe.loader(samples, cache, job.batch))
    first = next(batches)  # its threads and shard are up
    whole = job.recipe_rows // job.batch
    found = rate(lambda: recipe(islice(chain([first], batches), 1, whole)), whole - 1, job)
    shutil.rmtree(cache)
    return found


if __name__ == "__main__":
    main(tyro.cli(Train, description=__doc__))
    dist.destroy_process_group()
