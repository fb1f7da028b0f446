"""The layout of a row block: `block_rows` rows in one MDS sample, stored column-wise in standard MDS ndarray encodings.

A column is one array with a value per row. A multi-valued column is two arrays: `name`, the values of all rows end to end, and
`name.lengths`, the number of values of each row. Plain StreamingDataset reads them without this package.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recsys_ray.columns import LENGTHS
from recsys_ray.schema import Categorical, Schema, Timestamp

NDARRAY = "ndarray:"
"""What the names of MDS encodings for arrays begin with; the type of their values follows."""
Block = dict[str, np.ndarray]
"""The columns of a row block by name, with LENGTHS columns for multi-valued ones."""


def mds_columns(schema: Schema) -> dict[str, str]:
    """Returns the MDS encoding of each column of a row block, in the order of the schema."""
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
    """Returns the narrowest type that holds the rows of a column's table: fewer bytes to shuffle, compress and read."""
    return next(name for name in ("uint8", "uint16", "int32") if column.num_embeddings - 1 <= np.iinfo(name).max)


def stored_type(encoding: str) -> np.dtype:
    """Returns the numpy type of the values of an MDS encoding."""
    return np.dtype(encoding.removeprefix(NDARRAY))


def widened(block: Block) -> Block:
    """Returns the block with ids as int32, whatever type they are stored in."""
    return {name: values.astype(np.int32) if values.dtype.kind == "u" else values for name, values in block.items()}


def split_block(block: Block, block_rows: int) -> Iterator[Block]:
    """Splits a large block into blocks of `block_rows` rows, the last one perhaps shorter. Their arrays are views."""
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
