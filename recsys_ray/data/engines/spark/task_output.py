"""The output of Spark's Python tasks: rows sent to parts by a global shuffle, the parts, and bad rows. Imports no Spark.

In the shuffle rows travel as Arrow IPC bytes, one value for all rows of a batch that go to the same part: Spark then moves a few
large values rather than every cell of every row.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.blocks.parts import PartReport, PartWriter
from recsys_ray.data.engines.spark.task_input import ArrowTables
from recsys_ray.data.engines.spark.task_results import RecordBatches


def send_to_parts(tables: ArrowTables, encode: Callable[[pa.Table], pa.Table], parts: np.ndarray, seed: int) -> RecordBatches:
    """Encodes rows and yields them with the number in `parts` they go to.

    A row's part depends on its hash, so that it is the same when a task runs again.
    """
    for table in tables:
        encoded = encode(table)
        chosen = (_shuffled_hashes(encoded, seed) % np.uint64(len(parts))).astype(np.min_scalar_type(len(parts)))
        rows = encoded.take(np.argsort(chosen, kind="stable"))
        sizes = np.bincount(chosen, minlength=len(parts))
        used, starts = np.flatnonzero(sizes), np.cumsum(sizes) - sizes
        chunks = [_to_ipc(rows.slice(starts[number], sizes[number])) for number in used]
        yield pa.RecordBatch.from_pydict({"part": pa.array(parts[used]), "rows": pa.array(chunks, pa.binary())})


def write_part(batches: RecordBatches, writer: PartWriter, parts: np.ndarray, seed: int) -> Iterator[PartReport]:
    """Writes the rows that `send_to_parts` sent to this task, ordered by hash, so that their order of arrival does not matter."""
    chunks, part = [], 0
    for batch in batches:
        part = batch.column("part")[0].as_py()
        chunks += [pa.ipc.open_stream(chunk.as_buffer()).read_all() for chunk in batch.column("rows")]
    if chunks:
        rows = pa.concat_tables(chunks)
        chunks.clear()
        rows = rows.take(np.argsort(_shuffled_hashes(rows, seed)))
        yield writer.write(rows, int(np.flatnonzero(parts == part)[0]))


def write_kept_rows(tables: ArrowTables, keep: Callable[[pa.Table], pa.Table], folder: Path) -> Iterator[str]:
    """Writes the rows that `keep` returns to one file per attempt of a task, and yields its name; no rows, no file.

    Files may differ in which columns are declared not null.
    """
    kept = [rows for rows in map(keep, tables) if rows.num_rows]
    if kept:
        name = f"{uuid.uuid4().hex}.parquet"
        pq.write_table(pa.concat_tables(kept, promote_options="default"), folder / name)
        yield name


def _shuffled_hashes(table: pa.Table, seed: int) -> np.ndarray:
    """Returns row hashes other than those of the random split, which would send training rows to some parts only."""
    return pd.util.hash_array(table[ROW_HASH].to_numpy() ^ np.uint64((seed + 1) * 0xD1B54A32D192ED03 % 2**64))


def _to_ipc(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()
