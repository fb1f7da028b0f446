"""The row block: what one MDS sample is. `block_rows` rows, stored column-wise in standard MDS ndarray encodings.

A column is one array of its rows. A multi-valued column is two: `name`, the values of all rows end to end, and
`name.lengths`, how many belong to each row. Plain StreamingDataset reads them without this package.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recsys_ray.schema import Categorical, Schema, Timestamp

LENGTHS = ".lengths"
Block = dict[str, np.ndarray]


def mds_columns(schema: Schema) -> dict[str, str]:
    """MDS column name -> encoding."""
    encodings: dict[str, str] = {}
    for column in schema.columns:
        match column:
            case Categorical():
                encodings[column.name] = "ndarray:int32"
                if column.multi:
                    encodings[column.name + LENGTHS] = "ndarray:int32"
            case Timestamp():
                encodings[column.name] = "ndarray:int64"
            case _:
                encodings[column.name] = "ndarray:float32"
    return encodings


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
