"""Transformed rows in Arrow tables on their way to row blocks, packed for the global shuffle.

All single values of a row are packed into one record: taking one column of records in random order is faster than taking forty
columns. Apart from `layout.py` because training workers import that module, and no Arrow.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recsys_ray.columns import LENGTHS, RECORD
from recsys_ray.data.blocks.layout import Block, stored_type

PACKED_AT_ONCE = 1 << 11
"""Rows whose records are filled column by column; few enough that they stay in a core's own cache."""


def pack_rows(rows: pa.Table, columns: dict[str, str]) -> pa.Table:
    """Packs the single values of each transformed row into RECORD, in the types that `columns` (see `mds_columns`) stores."""
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
            table = table.append_column(name, rows[name].cast(pa.list_(pa.from_numpy_dtype(stored_type(columns[name])))))
    return table


def unpack_rows(rows: pa.Table, columns: dict[str, str]) -> Block:
    """Returns rows that `pack_rows` packed as one block; its single-valued columns are views of the records."""
    record, values = record_type(columns), rows[RECORD].combine_chunks()
    records: np.ndarray = np.ndarray(len(values), record, values.buffers()[1], values.offset * record.itemsize)
    return {name: records[name] for name in record.fields or ()} | to_block(rows.drop_columns([RECORD]))


def to_block(rows: pa.Table) -> Block:
    """Returns transformed rows as one block."""
    block: Block = {}
    for name in rows.column_names:
        values = rows[name].combine_chunks()
        if pa.types.is_list(values.type):
            block[name] = values.flatten().to_numpy()
            block[name + LENGTHS] = np.diff(values.offsets.to_numpy()).astype(np.int32)
        else:
            block[name] = values.to_numpy()
    return block


def record_type(columns: dict[str, str]) -> np.dtype:
    """Returns the structured numpy type of a record: a field for each single-valued column."""
    single = [name for name in columns if not name.endswith(LENGTHS) and name + LENGTHS not in columns]
    return np.dtype([(name, stored_type(columns[name])) for name in single])
