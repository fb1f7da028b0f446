"""Preparation on Spark: on the active session (Databricks, spark-submit), or on a Spark of its own on this machine."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from recsys_ray.data.blocks.parts import MIN_ROWS_PER_PART, PartWriter, PartWritten
from recsys_ray.data.dataset.directory import remove_folder
from recsys_ray.data.engines.spark.session import run_jobs, spark_session
from recsys_ray.data.engines.spark.tables import SparkTable, open_spark_table
from recsys_ray.data.engines.spark.tasks import (
    Batches,
    Reader,
    carrying_errors,
    gather,
    merged,
    pickled,
    read_files,
    read_table,
    scatter,
    set_aside,
    shares,
    unpickled,
)
from recsys_ray.data.sources.parquet_files import ParquetFiles
from recsys_ray.data.sources.source import Rows

MIN_ROWS_PER_TASK, MAX_ROWS_PER_TASK = 1 << 15, 1 << 21
TASKS_PER_CORE, MERGED_AT_ONCE = 4, 8
T = TypeVar("T")


class SparkEngine:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def _spark(self) -> SparkSession:
        return self._stack.enter_context(spark_session())

    @property
    def _cores(self) -> int:
        return self._spark.sparkContext.defaultParallelism

    def open_table(self, name: str) -> SparkTable:
        return open_spark_table(self._spark, name)

    def share(self, value: T) -> Callable[[], T]:
        broadcast = self._spark.sparkContext.broadcast(value)
        return lambda: broadcast.value

    def reduce(self, rows: Rows, measure: Callable[[pa.Table], T], merge: Callable[[T, T], T]) -> T:
        """Merged by tasks: the driver would have to hold the reports of all."""
        frame, read = self._read(rows)
        found = _results(frame, lambda batches: merged(map(measure, read(batches)), merge))
        for tasks in (self._cores, 1) if self._cores > MERGED_AT_ONCE else (1,):
            found = _results(found.repartition(tasks), lambda batches: merged(unpickled(batches), merge))
        return next(self._collected(found))

    def write_parts(self, rows: Rows, encode: Callable[[pa.Table], pa.Table], writer: PartWriter, seed: int) -> list[PartWritten]:
        frame, read = self._read(rows)
        parts = self._parts(rows.table.rows, writer.part_rows)
        send = carrying_errors(lambda batches: scatter(read(batches), encode, parts, seed))
        sent = frame.mapInArrow(send, "part long, rows binary").repartition(len(parts), "part")
        return list(self._collected(_results(sent, lambda batches: gather(batches, writer, parts, seed))))

    def write_parquet(self, rows: Rows, keep: Callable[[pa.Table], pa.Table], folder: Path) -> None:
        frame, read = self._read(rows)
        attempts = folder.with_name(f"{folder.name}.attempts")
        attempts.mkdir()
        written = list(self._collected(_results(frame, lambda batches: set_aside(read(batches), keep, attempts))))
        folder.mkdir()
        for name in written:
            (attempts / name).rename(folder / name)
        remove_folder(attempts)

    def _read(self, rows: Rows) -> tuple[DataFrame, Reader]:
        """A DataFrame, and the function by which a task makes tables of joined rows of its batches."""
        join = rows.join
        if isinstance(rows.table, SparkTable):
            return rows.table.select(rows.columns), lambda batches: map(join, read_table(batches))
        assert isinstance(rows.table, ParquetFiles)
        files = rows.table
        most = max(TASKS_PER_CORE * self._cores, files.rows // MAX_ROWS_PER_TASK)
        tasks = max(1, min(most, sum(map(len, files.row_groups)), files.rows // MIN_ROWS_PER_TASK))
        read = partial(read_files, files.filesystem, shares(files, tasks), rows.columns)
        return self._spark.range(0, tasks, 1, tasks), lambda batches: map(join, read(batches))

    def _collected(self, results: DataFrame) -> Iterator[Any]:
        found = run_jobs(self._spark, results.collect)
        return (pickle.loads(row.result) for row in found)

    def _parts(self, rows: int, part_rows: int) -> np.ndarray:
        """One number for each part, which Spark's hash partitioning sends to a partition of its own."""
        parts = max(1, min(rows // MIN_ROWS_PER_PART, max(2 * self._cores, rows // part_rows)))
        numbers = self._spark.range(0, 20 * parts, 1, 1).selectExpr("id", f"pmod(hash(id), {parts}) AS partition")
        first = {row.partition: row.id for row in reversed(run_jobs(self._spark, numbers.collect))}
        return np.array([first.get(partition, partition) for partition in range(parts)])


def _results(frame: DataFrame, task: Callable[[Batches], Iterator[Any]]) -> DataFrame:
    return frame.mapInArrow(carrying_errors(lambda batches: pickled(task(batches))), "result binary")


@contextmanager
def engine() -> Iterator[SparkEngine]:
    with ExitStack() as stack:
        yield SparkEngine(stack)
