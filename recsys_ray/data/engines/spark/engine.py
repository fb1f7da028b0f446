"""The Spark engine: preparation and batch inference on the active session, or on a Spark of its own on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from recsys_ray.data.blocks.parts import MIN_ROWS_PER_PART, PartReport, PartWriter
from recsys_ray.data.dataset.atomic_folder import remove_folder
from recsys_ray.data.engines.base import TaskWorkers
from recsys_ray.data.engines.spark.session import run_jobs, spark_session
from recsys_ray.data.engines.spark.tables import SparkTable, open_spark_table
from recsys_ray.data.engines.spark.task_input import TaskReader, assign_row_groups, read_row_groups, read_spark_rows
from recsys_ray.data.engines.spark.task_output import send_to_parts, write_kept_rows, write_part
from recsys_ray.data.engines.spark.task_results import (
    RecordBatches,
    carrying_errors,
    from_result_column,
    merge_results,
    to_result_column,
    unpickled,
)
from recsys_ray.data.sources.parquet_files import ParquetFiles
from recsys_ray.data.sources.table import PassInput

MIN_ROWS_PER_SPARK_TASK, MAX_ROWS_PER_SPARK_TASK = 1 << 15, 1 << 21
TASKS_PER_CORE = 4
MERGED_AT_ONCE = 8
"""With more cores than this, results are merged by one task per core before a single task merges the rest."""
T = TypeVar("T")


class _TaskRows(NamedTuple):
    frame: DataFrame
    read: TaskReader
    """Makes tables of joined rows from the frame's record batches, in a task."""


class SparkEngine:
    """An Engine on Spark; the session opens at first use and is closed by `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def _spark(self) -> SparkSession:
        return self._stack.enter_context(spark_session())

    @property
    def _cores(self) -> int:
        return self._spark.sparkContext.defaultParallelism

    def open_table(self, name: str) -> SparkTable:
        """Opens a table or view of the session. Raises ValueError when there is none or it cannot be read."""
        return open_spark_table(self._spark, name)

    def broadcast(self, value: T) -> Callable[[], T]:
        """Returns a function that gets `value` in a task, by a broadcast variable."""
        broadcast = self._spark.sparkContext.broadcast(value)
        return lambda: broadcast.value

    def reduce(self, rows: PassInput, measure: Callable[[pa.Table], T], merge: Callable[[T, T], T]) -> T:
        """Returns the merged results of `measure`; tasks merge them, since the driver may not hold those of all tasks."""
        frame, read = self._task_rows(rows)
        found = _results(frame, lambda batches: merge_results(map(measure, read(batches)), merge))
        for tasks in (self._cores, 1) if self._cores > MERGED_AT_ONCE else (1,):
            found = _results(found.repartition(tasks), lambda batches: merge_results(from_result_column(batches), merge))
        return next(self._collected(found))

    def write_parts(
        self, rows: PassInput, encode: Callable[[pa.Table], pa.Table], writer: PartWriter, seed: int
    ) -> list[PartReport]:
        """Encodes the rows, sends each to a part chosen by its hash, and writes each part in one task."""
        frame, read = self._task_rows(rows)
        parts = self._part_numbers(rows.table.rows, writer.part_rows)
        send = carrying_errors(lambda batches: send_to_parts(read(batches), encode, parts, seed))
        sent = frame.mapInArrow(send, "part long, rows binary").repartition(len(parts), "part")
        return list(self._collected(_results(sent, lambda batches: write_part(batches, writer, parts, seed))))

    def write_parquet(self, rows: PassInput, keep: Callable[[pa.Table], pa.Table], folder: Path) -> None:
        """Writes the rows that `keep` returns as Parquet; only files of attempts that succeeded move to `folder`."""
        frame, read = self._task_rows(rows)
        attempts = folder.with_name(f"{folder.name}.attempts")
        attempts.mkdir()
        written = list(self._collected(_results(frame, lambda batches: write_kept_rows(read(batches), keep, attempts))))
        folder.mkdir()
        for name in written:
            (attempts / name).rename(folder / name)
        remove_folder(attempts)

    def run_tasks(self, numbers: Sequence[int], task: Callable[[int], None], workers: TaskWorkers) -> None:
        """Runs each task as one of Spark's, in its Python workers, which Spark keeps from task to task."""

        def run(batches: RecordBatches) -> Iterator[int]:
            for batch in batches:
                for place in batch.column(0).to_pylist():
                    task(numbers[place])
                    yield place

        list(self._collected(_results(self._spark.range(0, len(numbers), 1, len(numbers)), run)))

    def _task_rows(self, rows: PassInput) -> _TaskRows:
        join = rows.join
        if isinstance(rows.table, SparkTable):
            return _TaskRows(rows.table.select(rows.columns), lambda batches: map(join, read_spark_rows(batches)))
        assert isinstance(rows.table, ParquetFiles)
        files = rows.table
        most = max(TASKS_PER_CORE * self._cores, files.rows // MAX_ROWS_PER_SPARK_TASK)
        tasks = max(1, min(most, sum(map(len, files.row_groups)), files.rows // MIN_ROWS_PER_SPARK_TASK))
        read = partial(read_row_groups, files.filesystem, assign_row_groups(files, tasks), rows.columns)
        return _TaskRows(self._spark.range(0, tasks, 1, tasks), lambda batches: map(join, read(batches)))

    def _collected(self, results: DataFrame) -> Iterator[Any]:
        return unpickled(row.result for row in run_jobs(self._spark, results.collect))

    def _part_numbers(self, rows: int, part_rows: int) -> np.ndarray:
        """Returns one number for each part, which Spark's hash partitioning sends to a partition of its own."""
        parts = max(1, min(rows // MIN_ROWS_PER_PART, max(2 * self._cores, rows // part_rows)))
        numbers = self._spark.range(0, 20 * parts, 1, 1).selectExpr("id", f"pmod(hash(id), {parts}) AS partition")
        first = {row.partition: row.id for row in reversed(run_jobs(self._spark, numbers.collect))}
        return np.array([first.get(partition, partition) for partition in range(parts)])


def _results(frame: DataFrame, task: Callable[[RecordBatches], Iterator[Any]]) -> DataFrame:
    return frame.mapInArrow(carrying_errors(lambda batches: to_result_column(task(batches))), "result binary")


@contextmanager
def engine() -> Iterator[SparkEngine]:
    """Yields the engine, and stops the session at the end when the engine started it."""
    with ExitStack() as stack:
        yield SparkEngine(stack)
