"""What Spark's Python tasks do, each by `DataFrame.mapInArrow`: functions of record batches, which import no Spark.

A task returns pickled results in a binary column. On their way through the global shuffle rows travel as Arrow IPC bytes, one
value for all rows of a batch that go to the same part: Spark then moves a few large values rather than every cell of every row.
"""

from __future__ import annotations

import base64
import hashlib
import pickle
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.sources.parquet_files import ParquetFiles

TABLE_ROWS, TABLE_BYTES = 1 << 17, 1 << 26
READ_ROWS = 1 << 14
MARK = "recsys_ray error "
Batches = Iterator[pa.RecordBatch]
Tables = Iterator[pa.Table]
Reader = Callable[[Batches], Tables]


class RowGroup(NamedTuple):
    path: str
    number: int
    first_row: int


def shares(files: ParquetFiles, tasks: int) -> list[list[RowGroup]]:
    """The row groups that each task reads: neighbours, of about equally many rows."""
    found: list[list[RowGroup]] = [[] for _ in range(tasks)]
    before = 0
    for path, row_groups in zip(files.paths, files.row_groups, strict=True):
        first_row = 0
        for number, rows in enumerate(row_groups):
            found[min(before * tasks // files.rows, tasks - 1)].append(RowGroup(path, number, first_row))
            before, first_row = before + rows, first_row + rows
    return found


def read_files(filesystem: Any, plan: list[list[RowGroup]], columns: list[str], batches: Batches) -> Tables:
    """`batches` hold the numbers of shares in the plan. Arrow reads the files, not Spark: rows, types and faults are then those
    that Ray Data sees, which Spark's own reader would alter (it refuses nanoseconds, and takes folders for columns)."""
    for batch in batches:
        for share in batch.column(0).to_pylist():
            for path, groups in groupby(plan[share], key=lambda group: group.path):
                yield from large_tables(_read_file(filesystem, path, list(groups), columns))


def _read_file(filesystem: Any, path: str, groups: list[RowGroup], columns: list[str]) -> Batches:
    row = groups[0].first_row
    with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True) as file:
        for group in groups:  # one at a time: what is read ahead stays in memory until all that was asked for has been read
            for batch in file.iter_batches(READ_ROWS, row_groups=[group.number], columns=columns, use_threads=False):
                hashes = pa.array(row_hashes(path, row, batch.num_rows))
                yield batch.select(columns).append_column(ROW_HASH, hashes)
                row += batch.num_rows


def row_hashes(path: str, first_row: int, rows: int) -> np.ndarray:
    """uint64, the very ones of ray.data.read_parquet(include_row_hash=True): splitmix64 of the path's MD5 plus the row number."""
    start = int.from_bytes(hashlib.md5(path.encode()).digest()[:8], "little")
    hashes = np.uint64(start) + np.arange(first_row, first_row + rows, dtype=np.uint64)
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def read_table(batches: Batches) -> Tables:
    """Rows of a Spark table, whose last column is xxhash64 of the row, an int64."""
    for table in large_tables(batches):
        hashes = table[ROW_HASH].combine_chunks().view(pa.uint64())
        yield table.set_column(table.num_columns - 1, ROW_HASH, hashes)


def large_tables(batches: Iterable[pa.RecordBatch]) -> Tables:
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= TABLE_ROWS or sum(one.nbytes for one in held) >= TABLE_BYTES:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def merged(results: Iterator[Any], merge: Callable[[Any, Any], Any]) -> Iterator[Any]:
    """One result, or none of none."""
    for first in results:
        yield reduce(merge, results, first)


def scatter(tables: Tables, encode: Callable[[pa.Table], pa.Table], parts: np.ndarray, seed: int) -> Batches:
    """Encodes rows and sends each to one of `parts`, by its hash: the same when a task runs again."""
    for table in tables:
        encoded = encode(table)
        chosen = (_shuffled_hashes(encoded, seed) % np.uint64(len(parts))).astype(np.min_scalar_type(len(parts)))
        rows = encoded.take(np.argsort(chosen, kind="stable"))
        sizes = np.bincount(chosen, minlength=len(parts))
        used, starts = np.flatnonzero(sizes), np.cumsum(sizes) - sizes
        chunks = [_to_ipc(rows.slice(starts[number], sizes[number])) for number in used]
        yield pa.RecordBatch.from_pydict({"part": pa.array(parts[used]), "rows": pa.array(chunks, pa.binary())})


def gather(batches: Batches, writer: Any, parts: np.ndarray, seed: int) -> Iterator[Any]:
    """Writes what a task was sent. Rows are ordered by hash, hence the same in whatever order they come."""
    chunks, part = [], 0
    for batch in batches:
        part = batch.column("part")[0].as_py()
        chunks += [pa.ipc.open_stream(chunk.as_buffer()).read_all() for chunk in batch.column("rows")]
    if chunks:
        rows = pa.concat_tables(chunks)
        chunks.clear()
        rows = rows.take(np.argsort(_shuffled_hashes(rows, seed)))
        yield writer.write(rows, int(np.flatnonzero(parts == part)[0]))


def _shuffled_hashes(table: pa.Table, seed: int) -> np.ndarray:
    """Not those that split the rows by chance: these would send training rows to some parts only."""
    return pd.util.hash_array(table[ROW_HASH].to_numpy() ^ np.uint64((seed + 1) * 0xD1B54A32D192ED03 % 2**64))


def _to_ipc(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()


def set_aside(tables: Tables, keep: Callable[[pa.Table], pa.Table], folder: Path) -> Iterator[str]:
    """One file for an attempt of a task, where it keeps any rows; returns its name. Files may differ in which columns must not be
    null."""
    kept = [rows for rows in map(keep, tables) if rows.num_rows]
    if kept:
        name = f"{uuid.uuid4().hex}.parquet"
        pq.write_table(pa.concat_tables(kept, promote_options="default"), folder / name)
        yield name


def pickled(results: Iterable[Any]) -> Batches:
    for result in results:
        yield pa.RecordBatch.from_pydict({"result": pa.array([pickle.dumps(result)], pa.binary())})


def unpickled(batches: Batches) -> Iterator[Any]:
    return (pickle.loads(result.as_buffer()) for batch in batches for result in batch.column(0))


def carrying_errors(task: Callable[[Batches], Batches]) -> Callable[[Batches], Batches]:
    """Spark reports what a Python task raises as text: here the text holds the error, for `carried_error` to find."""

    def run(batches: Batches) -> Batches:
        try:
            yield from task(batches)
        except Exception as error:
            raise RuntimeError(f"{MARK}{base64.b64encode(pickle.dumps(_portable(error))).decode()};") from error

    return run


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot travel (it holds a lock, or wants more than its words to be made) its words."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def carried_error(text: str) -> Exception | None:
    found = re.search(f"{MARK}([A-Za-z0-9+/=]+);", text)
    return pickle.loads(base64.b64decode(found[1])) if found else None
