"""Preparation on Ray Data: on the cluster this process is connected to, or on a Ray of its own on this machine."""

from __future__ import annotations

import functools
import logging
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasink
from ray.data._internal.execution.interfaces import TaskContext
from ray.data.block import Block as RayBlock
from ray.data.block import BlockAccessor
from ray.data.datasource.datasink import WriteResult
from ray.exceptions import RayError

from recsys_ray.data.blocks.parts import MIN_ROWS_PER_PART, PartWriter, PartWritten
from recsys_ray.data.engines.base import EngineFailed
from recsys_ray.data.sources.parquet_files import ParquetFiles
from recsys_ray.data.sources.source import Rows, Table
from recsys_ray.host_memory import keep_freed_memory

MAX_ROWS_PER_TASK = 1 << 18
T = TypeVar("T")


class RayEngine:
    def open_table(self, name: str) -> Table:
        raise ValueError(f"table:{name} is a table of Spark's: add --engine spark")

    def share(self, value: T) -> Callable[[], T]:
        _connect()
        reference = ray.put(value)
        return lambda: ray.get(reference)

    def reduce(self, rows: Rows, measure: Callable[[pa.Table], T], merge: Callable[[T, T], T]) -> T:
        def report(batch: pa.Table) -> pa.Table:
            return pa.table({"result": pa.array([pickle.dumps(measure(batch))], pa.large_binary())})

        with _quiet():
            return functools.reduce(merge, (pickle.loads(row["result"]) for row in _mapped(rows, report).iter_rows()))

    def write_parts(self, rows: Rows, encode: Callable[[pa.Table], pa.Table], writer: PartWriter, seed: int) -> list[PartWritten]:
        datasink = MDSDatasink(writer)
        with _quiet():
            _mapped(rows, encode).random_shuffle(seed=seed).write_datasink(datasink)
        return datasink.parts

    def write_parquet(self, rows: Rows, keep: Callable[[pa.Table], pa.Table], folder: Path) -> None:
        with _quiet():
            _mapped(rows, keep).write_parquet(str(folder))


@contextmanager
def engine() -> Iterator[RayEngine]:
    yield RayEngine()


def _connect() -> None:
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)


def _mapped(rows: Rows, function: Callable[[pa.Table], pa.Table]) -> ray.data.Dataset:
    _connect()
    assert isinstance(rows.table, ParquetFiles)
    read = ray.data.read_parquet(
        list(rows.table.paths),
        filesystem=rows.table.filesystem,
        columns=rows.columns,
        include_row_hash=True,
        partitioning=None,
        file_extensions=None,
        override_num_blocks=_tasks(rows.table),
    )

    def joined(batch: pa.Table) -> pa.Table:
        keep_freed_memory()
        return function(rows.join(batch))

    return read.map_batches(joined, batch_format="pyarrow", batch_size=None)


def _tasks(files: ParquetFiles) -> int:
    """Read and write tasks, as many for each core where there are rows enough. Ray Data would make 200 at least, of which each
    costs it 30 ms, and shuffle every piece of each."""
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    rounds = max(2, -(-files.rows // (MAX_ROWS_PER_TASK * cores)))
    return max(1, min(rounds * cores, files.rows // MIN_ROWS_PER_PART))


class MDSDatasink(Datasink[PartWritten]):
    """`parts` holds the reports of the write tasks at the end."""

    def __init__(self, writer: PartWriter) -> None:
        self._writer = writer
        self.parts: list[PartWritten] = []

    @property
    def min_rows_per_write(self) -> int:
        return MIN_ROWS_PER_PART

    def write(self, blocks: Iterable[RayBlock], ctx: TaskContext) -> PartWritten:
        table = pa.concat_tables([BlockAccessor.for_block(block).to_arrow() for block in blocks])
        return self._writer.write(table, ctx.task_idx)

    def on_write_complete(self, write_result: WriteResult[PartWritten]) -> None:
        self.parts = write_result.write_returns


@contextmanager
def _quiet() -> Iterator[None]:
    """Around a Ray Data pipeline; an error raised in one of its tasks comes back as itself.

    Ray Data draws its bars on a terminal; in a log file its lines every few seconds would drown ours, one a stage. Nor may it
    log a traceback of every failure: it is raised anyway. Its newer reader (v2, the default in Ray 2.60) starts actors for every
    read, 3 seconds of a core each, and puts small files into one block, so that one writer writes all: 2,000 rows took 22 s
    rather than 3, a million 13 s rather than 4. And what it reserves for operators that run beside one another leaves half of a
    host of two cores idle: ours run one after the other.
    """
    settings = {
        "use_datasource_v2": False,
        "op_resource_reservation_enabled": False,
        "enable_progress_bars": sys.stderr.isatty(),
    }
    logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    level, before = logger.level, {name: getattr(context, name) for name in settings}
    logger.setLevel(logging.CRITICAL)
    try:
        _set(context, settings)
        yield
    except RayError as error:
        raise _root_cause(error) from error
    finally:
        logger.setLevel(level)
        _set(context, before)


def _set(context: ray.data.DataContext, settings: dict[str, bool]) -> None:
    for name, value in settings.items():
        setattr(context, name, value)


def _root_cause(error: BaseException) -> BaseException:
    while isinstance(error, RayError):
        cause = getattr(error, "cause", None) or error.__cause__
        if cause is None:
            return EngineFailed(f"Ray: {error}")
        error = cause
    return error
