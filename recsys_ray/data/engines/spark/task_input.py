"""The input of Spark's Python tasks: row groups of Parquet files or rows of a Spark table, as Arrow tables. Imports no Spark.

Arrow reads the files, not Spark: rows, types and errors are then the same as on Ray Data. Spark's own reader refuses nanoseconds
and takes the names of folders for columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.engines.spark.task_results import RecordBatches
from recsys_ray.data.sources.parquet_files import ParquetFiles

TABLE_ROWS, TABLE_BYTES = 1 << 17, 1 << 26
"""Record batches are collected into tables until these have so many rows or bytes."""
READ_ROWS = 1 << 14
ArrowTables = Iterator[pa.Table]
TaskReader = Callable[[RecordBatches], ArrowTables]
"""Turns the record batches that Spark hands to a task into tables of input rows."""


class RowGroup(NamedTuple):
    """A row group of a Parquet file, and the number of its first row in the file."""

    path: str
    number: int
    first_row: int


def assign_row_groups(files: ParquetFiles, tasks: int) -> list[list[RowGroup]]:
    """Returns the row groups that each task reads: consecutive ones, with about equally many rows per task."""
    found: list[list[RowGroup]] = [[] for _ in range(tasks)]
    before = 0
    for path, row_groups in zip(files.paths, files.row_groups, strict=True):
        first_row = 0
        for number, rows in enumerate(row_groups):
            found[min(before * tasks // files.rows, tasks - 1)].append(RowGroup(path, number, first_row))
            before, first_row = before + rows, first_row + rows
    return found


def read_row_groups(filesystem: Any, plan: list[list[RowGroup]], columns: list[str], batches: RecordBatches) -> ArrowTables:
    """Reads `columns` and ROW_HASH of the row groups plan[task], for each task number in the first column of `batches`."""
    for batch in batches:
        for task in batch.column(0).to_pylist():
            for path, groups in groupby(plan[task], key=lambda group: group.path):
                yield from large_tables(_read_file(filesystem, path, list(groups), columns))


def read_spark_rows(batches: RecordBatches) -> ArrowTables:
    """Returns the rows of a Spark table, whose last column is xxhash64 of the row as int64, with ROW_HASH as uint64."""
    for table in large_tables(batches):
        hashes = table[ROW_HASH].combine_chunks().view(pa.uint64())
        yield table.set_column(table.num_columns - 1, ROW_HASH, hashes)


def row_hashes(path: str, first_row: int, rows: int) -> np.ndarray:
    """Returns the uint64 hashes of consecutive rows of a file: splitmix64 of the MD5 of its path plus the row number.

    They equal those of ray.data.read_parquet(include_row_hash=True), so that both engines split rows alike.
    """
    start = int.from_bytes(hashlib.md5(path.encode()).digest()[:8], "little")
    hashes = np.uint64(start) + np.arange(first_row, first_row + rows, dtype=np.uint64)
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def large_tables(batches: Iterable[pa.RecordBatch]) -> ArrowTables:
    """Collects record batches into tables of about TABLE_ROWS rows or TABLE_BYTES bytes."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= TABLE_ROWS or sum(one.nbytes for one in held) >= TABLE_BYTES:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _read_file(filesystem: Any, path: str, groups: list[RowGroup], columns: list[str]) -> RecordBatches:
    row = groups[0].first_row
    with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True) as file:
        for group in groups:  # one at a time: what is read ahead stays in memory until all requested groups have been read
            for batch in file.iter_batches(READ_ROWS, row_groups=[group.number], columns=columns, use_threads=False):
                hashes = pa.array(row_hashes(path, row, batch.num_rows))
                yield batch.select(columns).append_column(ROW_HASH, hashes)
                row += batch.num_rows
