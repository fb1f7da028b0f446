"""What preparation asks of the engine that reads, shuffles and writes, and the table of engines. An adapter is imported only when
its engine is asked for; everything else here is pure functions of Arrow tables, which both engines run alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa

from recsys_ray.command_line import JobError
from recsys_ray.data.blocks.parts import PartWriter, PartWritten
from recsys_ray.data.sources.source import Rows, Table

ENGINES = {"ray": "recsys_ray.data.engines.ray_data", "spark": "recsys_ray.data.engines.spark.engine"}
PACKAGES = {"ray": "ray", "spark": "pyspark"}
T = TypeVar("T")


class EngineFailed(JobError):
    """The engine, not the input, is at fault: its cluster is gone, out of memory, or cannot be started."""


class Engine(Protocol):
    """Functions given to it run in tasks on a cluster, on tables of as many rows as fit a task well. What they raise is raised
    here. A task may run more than once; its results count once."""

    def open_table(self, name: str) -> Table:
        """A table or view of Spark's. Raises ValueError where there is none."""

    def share(self, value: T) -> Callable[[], T]:
        """Hands `value` to all tasks, once; they call what this returns."""

    def reduce(self, rows: Rows, measure: Callable[[pa.Table], T], merge: Callable[[T, T], T]) -> T:
        """`measure` of every table of rows, merged, in any order."""

    def write_parts(self, rows: Rows, encode: Callable[[pa.Table], pa.Table], writer: PartWriter, seed: int) -> list[PartWritten]:
        """Encodes the rows, shuffles them globally (encoded rows keep their ROW_HASH, to shuffle by) and writes them in parts."""

    def write_parquet(self, rows: Rows, keep: Callable[[pa.Table], pa.Table], folder: Path) -> None:
        """Parquet files of what `keep` returns."""


def open_engine(name: Literal["ray", "spark"]) -> AbstractContextManager[Engine]:
    """The engine, which finds its cluster, or starts one, when it is first used. Raises ValueError when it is not installed."""
    try:
        adapter: Any = import_module(ENGINES[name])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != PACKAGES[name]:
            raise
        raise ValueError(f"--engine {name} wants {PACKAGES[name]}: pip install 'recsys-ray[{name}]'") from error
    return adapter.engine()
