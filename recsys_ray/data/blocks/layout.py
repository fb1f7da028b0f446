"""The row block: what one MDS sample is. `block_rows` rows, stored column-wise in standard MDS ndarray encodings.

A column is one array of its rows. A multi-valued column is two: `name`, the values of all rows end to end, and
`name.lengths`, how many belong to each row. Plain StreamingDataset reads them without this package.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recsys_ray.columns import LENGTHS
from recsys_ray.schema import Categorical, Schema, Timestamp

NDARRAY = "ndarray:"
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


def stored_type(encoding: str) -> np.dtype:
    return np.dtype(encoding.removeprefix(NDARRAY))


def widened(block: Block) -> Block:
    """Ids as int32, whatever the type they are stored in."""
    return {name: values.astype(np.int32) if values.dtype.kind == "u" else values for name, values in block.items()}


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
