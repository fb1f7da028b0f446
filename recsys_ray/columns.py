"""Names and types of columns, from the rows of a table to the batches of a model, defined once for the whole package."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

Columns: TypeAlias = "dict[str, torch.Tensor]"
"""Column name -> its values [rows]; a multi-valued column has the values of all rows end to end, and `name.lengths` [rows]."""
LENGTHS = ".lengths"
"""The ending of the name of the column that holds how many values each row of a multi-valued column has."""
ROW_HASH = "row_hash"
"""uint64, added by the engine: a row keeps it in every pass. For Parquet both engines derive the same one from file and position;
for a Spark table, which has neither, it comes from the row's values."""
ROW_WEIGHT = "__row_weight__"
"""float32 [rows]: the weight column, or 1; 0 for rows that must not count: padding, and blocks that are there a second time."""
RECORD = "__record__"
"""All single values of a row packed side by side, for the global shuffle."""
SPLIT_COLUMN = "__split__"
"""uint8: the index of the row's split in SPLITS."""
FREQUENCY = "__frequency__"
"""int64, a column of the catalogue: how many positive training rows have the item."""
RESERVED = frozenset([ROW_HASH, ROW_WEIGHT, RECORD, SPLIT_COLUMN, FREQUENCY])
"""Names that a schema must not use."""
SPLITS = ("train", "validation", "test")
