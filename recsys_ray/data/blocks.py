"""The row block: what one MDS sample is. `block_rows` rows, stored column-wise in standard MDS ndarray encodings.

A column is one array of its rows. A multi-valued column is two: `name`, the values of all rows end to end, and
`name.lengths`, how many belong to each row. Plain StreamingDataset reads them without this package.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from recsys_ray.schema import Categorical, Schema, Timestamp

LENGTHS = ".lengths"
RECORD = "__record__"
NDARRAY = "ndarray:"
PACKED_AT_ONCE = 1 << 11
"""Rows: few enough for a core's own cache."""
Block = dict[str, np.ndarray]


def mds_columns(schema: Schema) -> dict[str, str]:
    """MDS column name -> encoding."""
    encodings: dict[str, str] = {}
    for column in schema.columns:
        match column:
            case Categorical():
                encodings[column.name] = f"{NDARRAY}{id_type(column)}"
                if column.multi:
                    encodings[column.name + LENGTHS] = f"{NDARRAY}int32"
            case Timestamp():
                encodings[column.name] = f"{NDARRAY}int64"
            case _:
                encodings[column.name] = f"{NDARRAY}float32"
    return encodings


def id_type(column: Categorical) -> str:
    """The narrowest that holds the rows of its table: half the bytes, or a quarter, to shuffle, compress and read."""
    return next(name for name in ("uint8", "uint16", "int32") if column.num_embeddings - 1 <= np.iinfo(name).max)


def packed(rows: pa.Table, columns: dict[str, str]) -> pa.Table:
    """Transformed rows, all single values of a row side by side in RECORD, in the types that are stored (`mds_columns`).

    To shuffle, one column of records takes a tenth of the time of forty columns.
    """
    record = record_type(columns)
    records: np.ndarray = np.empty(rows.num_rows, record)
    values = {name: rows[name].to_numpy() for name in record.fields or ()}
    for start in range(0, rows.num_rows, PACKED_AT_ONCE):
        few = slice(start, start + PACKED_AT_ONCE)
        for name, column in values.items():
            records[name][few] = column[few]
    stored = [None, pa.py_buffer(records.view(np.uint8))]
    table = pa.table({RECORD: pa.FixedSizeBinaryArray.from_buffers(pa.binary(record.itemsize), rows.num_rows, stored)})
    for name in rows.column_names:
        if name not in values:
            table = table.append_column(name, rows[name].cast(pa.list_(pa.from_numpy_dtype(_stored(columns[name])))))
    return table


def unpacked(rows: pa.Table, columns: dict[str, str]) -> Block:
    """As one block what `packed` packed; its columns are views of the records."""
    record, values = record_type(columns), rows[RECORD].combine_chunks()
    records: np.ndarray = np.ndarray(len(values), record, values.buffers()[1], values.offset * record.itemsize)
    return {name: records[name] for name in record.fields or ()} | to_block(rows.drop_columns([RECORD]))


def record_type(columns: dict[str, str]) -> np.dtype:
    single = [name for name in columns if not name.endswith(LENGTHS) and name + LENGTHS not in columns]
    return np.dtype([(name, _stored(columns[name])) for name in single])


def _stored(encoding: str) -> np.dtype:
    return np.dtype(encoding.removeprefix(NDARRAY))


def widened(block: Block) -> Block:
    """Ids as int32, whatever the type they are stored in."""
    return {name: values.astype(np.int32) if values.dtype.kind == "u" else values for name, values in block.items()}


def to_block(rows: pa.Table) -> Block:
    """Transformed rows as one block."""
    block: Block = {}
    for name in rows.column_names:
        values = rows[name].combine_chunks()
        if pa.types.is_list(values.type):
            block[name] = values.flatten().to_numpy()
            block[name + LENGTHS] = np.diff(values.offsets.to_numpy()).astype(np.int32)
        else:
            block[name] = values.to_numpy()
    return block


def cut(block: Block, block_rows: int) -> Iterator[Block]:
    """A large block as small ones of `block_rows` rows, the last perhaps shorter. They are views."""
    multi = {
        name.removesuffix(LENGTHS): np.concatenate([[0], np.cumsum(block[name])]) for name in block if name.endswith(LENGTHS)
    }
    rows = next(len(values) for name, values in block.items() if name not in multi)
    for start in range(0, rows, block_rows):
        stop = min(start + block_rows, rows)
        yield {
            name: values[multi[name][start] : multi[name][stop]] if name in multi else values[start:stop]
            for name, values in block.items()
        }
