"""Raw columns of a request or a table, checked and encoded by the transform that the model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from recsys_ray.columns import Columns
from recsys_ray.data.blocks.packing import to_block
from recsys_ray.data.transform import rejections, transform
from recsys_ray.data.vocabulary import Lookups
from recsys_ray.schema import Categorical, Column, Schema, Timestamp

if TYPE_CHECKING:
    import pandas as pd

RawRows: TypeAlias = "pa.Table | pd.DataFrame"
"""Rows of raw columns, as preparation reads them. Columns that the model does not know are ignored."""


@dataclass(frozen=True)
class Encoder:
    """The schema of a model and the look-ups of its vocabularies, which are built once."""

    schema: Schema
    lookups: Lookups

    def encode(self, rows: RawRows, columns: Sequence[Column]) -> Columns:
        """Returns these columns of `rows` as a batch has them.

        Raises ValueError naming a column that is missing or has another type, or the first value that cannot be used.
        """
        table = as_table(rows)
        if missing := [column.name for column in columns if column.name not in table.column_names]:
            raise ValueError(f"column {', '.join(map(repr, missing))} is missing: the model reads it; null stands for unknown")
        table = with_known_types(table.select([column.name for column in columns]), columns)
        self.check(table, columns)
        return to_tensors(transform(table, self.schema, self.lookups))

    def check(self, table: pa.Table, columns: Sequence[Column]) -> None:
        """Raises ValueError for a value that cannot be encoded."""
        for column in columns:
            try:
                reasons = rejections(table, [column])
            except (pa.ArrowException, TypeError) as error:
                raise ValueError(f"column {column.name!r} cannot be read as {kind_of(column)}: {error}") from error
            bad = np.flatnonzero(reasons != None)  # noqa: E711 (element by element)
            if len(bad):
                value = table[column.name][int(bad[0])].as_py()
                raise ValueError(f"row {bad[0]}: {reasons[bad[0]]} ({str(value)[:80]!r})")


def as_table(rows: RawRows) -> pa.Table:
    """Returns the rows as an Arrow table, without a pandas index."""
    return rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)


def with_unknown(rows: RawRows, columns: Sequence[Column]) -> pa.Table:
    """Returns the rows with a column of nulls, which stand for unknown, for each of `columns` that they do not have."""
    table = as_table(rows)
    for column in columns:
        if column.name not in table.column_names:
            table = table.append_column(column.name, pa.nulls(table.num_rows, raw_type(column)))
    return table


def with_known_types(table: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """Returns the table of these columns with a type for those that hold nulls alone, which JSON and pandas leave without one."""
    for place, column in enumerate(columns):
        if pa.types.is_null(table.schema.field(place).type):
            table = table.set_column(place, column.name, table.column(place).cast(raw_type(column)))
    return table


def raw_type(column: Column) -> pa.DataType:
    """Returns an Arrow type that holds raw values of a column."""
    match column:
        case Categorical(multi=True):
            return pa.list_(pa.int64() if column.dtype == "int" else pa.string())
        case Categorical():
            return pa.int64() if column.dtype == "int" else pa.string()
        case Timestamp():
            return pa.int64()
        case _:
            return pa.float64()


def to_tensors(encoded: pa.Table) -> Columns:
    """Returns encoded rows as the tensors of a batch."""
    return {name: torch.from_numpy(values.copy()) for name, values in to_block(encoded).items()}


def kind_of(column: Column) -> str:
    """Returns what a column holds, for an error message: "a list of string ids", for example."""
    dtype = getattr(column, "dtype", "")
    if not dtype:
        return f"a {type(column).__name__.lower()} column"
    return f"a list of {dtype} ids" if getattr(column, "multi", False) else f"{dtype} ids"
