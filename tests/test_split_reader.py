"""Reading a split outside of training, while other processes of the machine do the same."""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.split_reader import read_split
from tests.support.workers import IMPORTED_ONCE

PROCESSES, OPENED = 3, 15


def read_often(dataset: Path, ready: Barrier) -> None:
    directory = DatasetDirectory.open(dataset)
    ready.wait()
    for _ in range(OPENED):
        rows = sum(len(block["label"]) for block in read_split(directory, "test"))
        assert rows == directory.summary["rows"]["test"]


def test_processes_that_open_a_dataset_at_the_same_moment_do_not_meet(dataset: Path) -> None:
    """As replicas of a service do when it starts; names of shared memory are looked for and taken in two steps."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    ready = context.Barrier(PROCESSES)
    processes = [context.Process(target=read_often, args=(dataset, ready)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
