"""Measures training a DLRM (13 dense columns, 26 tables of 16, batch 8,192) from disk, from memory, and by the usual recipe.

    python -m benchmarks.speed.train            # two minutes

"From disk" is one epoch of a million rows with an empty cache, and the epoch after it. The recipe's loop is TorchRec's: DLRMTrain
under DistributedModelParallel with its defaults, and an Adam that is not fused.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
import tyro

from benchmarks.speed import usual_recipe
from benchmarks.speed.load import dataset, one_row_a_sample
from benchmarks.speed.side_by_side import DATA, Goal, Rates, report, seconds
from benchmarks.speed.workers import ALONE, MODEL, alone, build, resident, stream
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.stream import BlockStream
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import Batch, BuildContext

FIRST, LATER, MEMORY = "ours, from disk, first epoch", "ours, from disk, later epochs", "ours, on batches in memory"
USUAL, USUAL_MEMORY = "usual recipe, from disk", "usual loop, on batches in memory"
BURST = 10
"""Steps from disk and steps in memory alternate in bursts of this many, since a machine's speed drifts within a run."""


@dataclass(frozen=True)
class Train:
    rows: int = 1_000_000
    recipe_rows: int = 60_000
    batch: int = 8192
    threads: int = 2
    repeats: int = 3


def main(job: Train) -> None:
    blocks, samples = dataset(job.rows), one_row_a_sample(4_000_000, job.recipe_rows)
    # The usual loop runs in a process of its own, since this one has changed its allocator's settings.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        usual = pool.submit(Usual.start, job, blocks, samples)
        usual.result()
        ours = Ours(job, blocks)
        rates: Rates = {FIRST: [], LATER: [], MEMORY: [], USUAL: [], USUAL_MEMORY: []}
        for number in range(job.repeats):
            measured = zip(rates, [*ours.measure(), *pool.submit(Usual.measure).result()], strict=True)
            for name, found in measured:
                rates[name].append(found)
                print(f"  {number + 1}/{job.repeats}  {name:<44}{found:>14,.0f} rows/s", flush=True)
    goals = [Goal(FIRST, MEMORY, 0.95), Goal(LATER, MEMORY, 0.95), Goal(FIRST, USUAL, 10), Goal(MEMORY, USUAL_MEMORY, 1.5)]
    report("train", rates, goals, {"batch": job.batch, "threads": job.threads})


class Ours:
    def __init__(self, job: Train, blocks: Path) -> None:
        self._job, self._blocks, world = job, blocks, alone()
        self._bursts = job.rows // job.batch // BURST
        torch.set_num_threads(job.threads)
        self._trained = build(DatasetDirectory.open(blocks).schema, world, job.batch)
        self._batches = cycle(resident(blocks, self._trained.task, job.batch, 40))
        self._steps(islice(self._batches, 5))

    def measure(self) -> tuple[float, float, float]:
        """Returns rows per second from disk, with an empty cache and in the next epoch, and in memory."""
        with tempfile.TemporaryDirectory(dir=DATA) as cache:
            columns = stream(self._blocks, Path(cache), self._job.batch)
            (first, beside), (later, memory) = self._epoch(columns), self._epoch(columns)
        rows = self._bursts * BURST * self._job.batch
        return rows / first, rows / later, 2 * rows / (beside + memory)

    def _epoch(self, columns: BlockStream) -> tuple[float, float]:
        """Returns the seconds of whole bursts from disk and in memory."""
        disk = memory = 0.0
        batches = map(self._trained.task.to_batch, columns)
        for _ in range(self._bursts):
            disk += seconds(lambda: self._steps(islice(batches, BURST)))
            memory += seconds(lambda: self._steps(islice(self._batches, BURST)))
        return disk, memory

    def _steps(self, batches: Iterator[Batch]) -> None:
        with suppress(StopIteration):
            while True:
                self._trained.step(batches)


class Usual:
    """The usual recipe, in its own process."""

    here: Usual

    def __init__(self, job: Train, blocks: Path, samples: Path) -> None:
        os.environ |= ALONE
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        torch.set_num_threads(job.threads)
        self._job, self._samples, self._schema = job, samples, DatasetDirectory.open(blocks).schema
        self._model, self._optimizer = usual_recipe.model(MODEL, self._schema)
        ours = resident(blocks, build_task(MODEL, BuildContext(self._schema, torch.device("cpu"))), job.batch, 40)
        self._batches = cycle([usual_recipe.Batch(batch.dense, batch.sparse, batch.labels) for batch in ours])
        self._steps(islice(self._batches, 5))

    @staticmethod
    def start(job: Train, blocks: Path, samples: Path) -> None:
        logging.getLogger().setLevel(logging.ERROR)
        Usual.here = Usual(job, blocks, samples)

    @staticmethod
    def measure() -> tuple[float, float]:
        """Returns rows per second from disk, after the first batch has arrived, and in memory."""
        self, cache, whole = Usual.here, DATA / "recipe-cache", Usual.here._job.recipe_rows // Usual.here._job.batch
        loader = usual_recipe.loader(self._samples, cache, self._job.batch)
        batches = (usual_recipe.to_batch(columns, self._schema) for columns in loader)
        self._steps(islice(batches, 1))
        disk = seconds(lambda: self._steps(islice(batches, whole - 1)))
        memory = seconds(lambda: self._steps(islice(self._batches, 60)))
        shutil.rmtree(cache)
        return (whole - 1) * self._job.batch / disk, 60 * self._job.batch / memory

    def _steps(self, batches: Iterator[usual_recipe.Batch]) -> None:
        for batch in batches:
            usual_recipe.step(self._model, self._optimizer, batch)


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)
    main(tyro.cli(Train, description=__doc__))
    dist.destroy_process_group()
