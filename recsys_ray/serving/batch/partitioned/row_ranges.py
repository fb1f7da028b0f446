"""Partitions of Parquet files by ranges of consecutive rows, whatever the sizes of files and row groups are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.data.sources.parquet_files import ParquetFiles

ROWS_READ_AT_ONCE = 1 << 16


class RowRange(NamedTuple):
    """Consecutive rows of files, counted from the first row of the first file."""

    first: int
    stop: int


def row_ranges(rows: int, size: int) -> list[RowRange]:
    """Returns ranges of at most `size` rows that differ by one row at most; a single empty one where there are no rows."""
    parts = max(1, -(-rows // size))
    return [RowRange(part * rows // parts, (part + 1) * rows // parts) for part in range(parts)]


def read_rows(files: ParquetFiles, wanted: RowRange, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields `columns` of the rows of a range, as tables of a few rows; one empty table where the range has no rows.

    Every field may be null, so that files that differ in what they declare fit together.
    """
    schema = pa.schema([files.arrow_schema.field(name).with_nullable(True) for name in columns])
    if wanted.first == wanted.stop:
        yield schema.empty_table()
    start = 0
    for path, groups in zip(files.paths, files.row_groups, strict=True):
        if start < wanted.stop and start + sum(groups) > wanted.first:
            for table in _read_file(files, path, RowRange(wanted.first - start, wanted.stop - start), list(columns)):
                yield table.select(columns).cast(schema)
        start += sum(groups)


def _read_file(files: ParquetFiles, path: str, wanted: RowRange, columns: list[str]) -> Iterator[pa.Table]:
    start = 0
    with pq.ParquetFile(path, filesystem=files.filesystem, pre_buffer=True) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if start < wanted.stop and start + size > wanted.first:
                batches = file.iter_batches(ROWS_READ_AT_ONCE, row_groups=[group], columns=columns, use_threads=False)
                yield from _within(batches, RowRange(wanted.first - start, wanted.stop - start))
            start += size


def _within(batches: Iterator[pa.RecordBatch], wanted: RowRange) -> Iterator[pa.Table]:
    start = 0
    for batch in batches:
        if start >= wanted.stop:
            return
        first, stop = max(wanted.first - start, 0), min(wanted.stop - start, batch.num_rows)
        if first < stop:
            yield pa.Table.from_batches([batch.slice(first, stop - first)])
        start += batch.num_rows


def rows_fingerprint(tables: Sequence[ParquetFiles]) -> str:
    """Returns 16 hexadecimal digits that change when a file of the tables does."""
    stamps = [stamp for table in tables for stamp in table.stamps]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]
