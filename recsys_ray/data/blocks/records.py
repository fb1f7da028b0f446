"""Transformed rows on their way into row blocks: Arrow tables, in which for the shuffle a row's single values are one record."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recsys_ray.columns import LENGTHS, RECORD
from recsys_ray.data.blocks.layout import Block, stored_type

PACKED_AT_ONCE = 1 << 11
"""Rows: few enough for a core's own cache."""


def packed(rows: pa.Table, columns: dict[str, str]) -> pa.Table:
    """Transformed rows, all single values of a row side by side in RECORD, in the types that are stored (`mds_columns`):
    to take them in random order, one column is quicker than forty."""
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


def unpacked(rows: pa.Table, columns: dict[str, str]) -> Block:
    """As one block what `packed` packed; its columns are views of the records."""
    record, values = record_type(columns), rows[RECORD].combine_chunks()
    records: np.ndarray = np.ndarray(len(values), record, values.buffers()[1], values.offset * record.itemsize)
    return {name: records[name] for name in record.fields or ()} | to_block(rows.drop_columns([RECORD]))


def record_type(columns: dict[str, str]) -> np.dtype:
    single = [name for name in columns if not name.endswith(LENGTHS) and name + LENGTHS not in columns]
    return np.dtype([(name, stored_type(columns[name])) for name in single])


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
