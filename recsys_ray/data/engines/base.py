"""The engine protocol: what preparation and batch inference ask of Ray Data or Spark, and how an engine is opened by name.

An adapter is imported only when its engine is asked for. Everything else is functions of Arrow tables, which both engines run in
their tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa

from recsys_ray.command_line import JobError
from recsys_ray.data.blocks.parts import PartReport, PartWriter
from recsys_ray.data.sources.table import InputTable, PassInput

ENGINE_MODULES = {"ray": "recsys_ray.data.engines.ray_data", "spark": "recsys_ray.data.engines.spark.engine"}
ENGINE_PACKAGES = {"ray": "ray", "spark": "pyspark"}
T = TypeVar("T")


@dataclass(frozen=True)
class TaskWorkers:
    """The processes that run numbered tasks. Spark makes one a core, whatever this says."""

    count: int = 0
    """0: one a core, or with `gpu` one a GPU."""
    gpu: bool = False


class EngineFailed(JobError):
    """An error of the engine rather than of the input: its cluster is lost, out of memory, or does not start."""


class Engine(Protocol):
    """A cluster that runs functions of Arrow tables in tasks, on tables of as many rows as fit a task well.

    What these functions raise is raised by the methods here. A task may run more than once; its results count once.
    """

    def open_table(self, name: str) -> InputTable:
        """Opens a table or view of Spark. Raises ValueError when there is none."""

    def broadcast(self, value: T) -> Callable[[], T]:
        """Sends `value` to all tasks once; tasks call the returned function to get it."""

    def reduce(self, rows: PassInput, measure: Callable[[pa.Table], T], merge: Callable[[T, T], T]) -> T:
        """Returns the merged results of `measure` for every table of rows, in any order."""

    def write_parts(
        self, rows: PassInput, encode: Callable[[pa.Table], pa.Table], writer: PartWriter, seed: int
    ) -> list[PartReport]:
        """Encodes the rows, shuffles them globally and writes them in parts.

        Encoded rows keep their ROW_HASH, by which an engine may shuffle them.
        """

    def write_parquet(self, rows: PassInput, keep: Callable[[pa.Table], pa.Table], folder: Path) -> None:
        """Writes the rows that `keep` returns as Parquet files in `folder`."""

    def run_tasks(self, numbers: Sequence[int], task: Callable[[int], None], workers: TaskWorkers) -> None:
        """Calls `task` with each number, in any order, in processes that do many tasks each: what a task loads, it can keep.

        A task may run more than once, so it must leave the same whenever it does.
        """


def open_engine(name: Literal["ray", "spark"]) -> AbstractContextManager[Engine]:
    """Returns the engine, which connects to its cluster, or starts one, when it is first used.

    Raises ValueError when it is not installed.
    """
    try:
        adapter: Any = import_module(ENGINE_MODULES[name])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != ENGINE_PACKAGES[name]:
            raise
        raise ValueError(f"--engine {name} wants {ENGINE_PACKAGES[name]}: pip install 'recsys-ray[{name}]'") from error
    return adapter.engine()
