"""Users and their interactions, brought together: both tables are divided into buckets by a hash of the user key.

Each task reads a range of rows and writes one Arrow file with a record batch for each bucket. A bucket is then read from all
files, so that no process ever holds more than one range or one bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys_ray.data.sources.column_types import value_type
from recsys_ray.data.sources.parquet_files import ParquetFiles
from recsys_ray.data.transform import canonical_ids
from recsys_ray.data.vocabulary import value_hashes
from recsys_ray.schema import Categorical
from recsys_ray.serving.batch.partitioned.output import write_whole
from recsys_ray.serving.batch.partitioned.row_ranges import RowRange, read_rows, row_ranges

ROWS_PER_RANGE = 1 << 20


@dataclass(frozen=True)
class BucketedTable:
    """A table that is divided into buckets: its Parquet files, the columns that are kept, and the folder of the Arrow files."""

    files: ParquetFiles
    columns: tuple[str, ...]
    user: Categorical
    """The user key, one of the columns."""
    folder: Path
    buckets: int

    @property
    def ranges(self) -> list[RowRange]:
        """The ranges of rows, each written by one task."""
        return row_ranges(self.files.rows, ROWS_PER_RANGE)

    def file(self, number: int) -> Path:
        """Returns where the rows of a range are written."""
        return self.folder / f"{number:05d}.arrow"

    def missing(self) -> list[int]:
        """Returns the numbers of the ranges that are not written yet."""
        return [number for number in range(len(self.ranges)) if not self.file(number).exists()]

    def write(self, number: int) -> None:
        """Writes the rows of a range. Called in a task."""
        self.folder.mkdir(exist_ok=True)
        rows = pa.concat_tables(read_rows(self.files, self.ranges[number], self.columns))
        write_whole(self.file(number), lambda path: self._write_buckets(path, rows))

    def read(self, bucket: int) -> pa.Table:
        """Reads the rows of one bucket, in the order of the table."""
        parts = []
        for number in range(len(self.ranges)):
            with pa.memory_map(str(self.file(number))) as source:
                parts.append(pa.ipc.open_file(source).get_batch(bucket))
        return pa.Table.from_batches(parts)

    def _write_buckets(self, path: Path, rows: pa.Table) -> None:
        numbers = bucket_numbers(rows[self.user.name], self.user, self.buckets)
        ordered = _without_dictionaries(rows).take(np.argsort(numbers, kind="stable"))
        sizes = np.bincount(numbers, minlength=self.buckets)
        starts = np.cumsum(sizes) - sizes
        with pa.ipc.new_file(str(path), ordered.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                writer.write_batch(_one_batch(ordered.slice(start, size)))


def bucket_numbers(keys: pa.ChunkedArray, column: Categorical, buckets: int) -> np.ndarray:
    """Returns the bucket of each user, int64; the same for a value in whatever type its file has it."""
    values = canonical_ids(column, keys.combine_chunks())
    return (value_hashes(values) % np.uint64(buckets)).astype(np.int64)


def write_range(tables: Sequence[BucketedTable], number: int) -> None:
    """Writes the range of this number, counted through all tables. Called in a task."""
    for table in tables:
        if number < len(table.ranges):
            table.write(number)
            return
        number -= len(table.ranges)


def missing_ranges(tables: Sequence[BucketedTable]) -> list[int]:
    """Returns the numbers of the ranges that are not written yet, counted through all tables."""
    found, before = [], 0
    for table in tables:
        found += [before + number for number in table.missing()]
        before += len(table.ranges)
    return found


def _without_dictionaries(rows: pa.Table) -> pa.Table:
    """Returns the rows with plain values: batches of an Arrow file cannot have dictionaries of their own."""
    return rows.cast(pa.schema([field.with_type(value_type(field.type)) for field in rows.schema]))


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    if rows.num_rows:
        return rows.combine_chunks().to_batches()[0]
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in rows.schema], schema=rows.schema)
