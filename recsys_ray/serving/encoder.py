"""Raw columns of a request or a table, checked and encoded by the transform that the model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from recsys_ray.columns import LENGTHS, Columns
from recsys_ray.data.transform import encoded_values, value_faults
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
        found: Columns = {}
        for column in columns:
            values = of_known_type(table[column.name].combine_chunks(), column)
            try:
                check(column, values)
                encoded, lengths = encoded_values(column, values, self.lookups)
            except (pa.ArrowException, TypeError) as error:
                raise ValueError(f"column {column.name!r} cannot be read as {kind_of(column)}: {error}") from error
            found[column.name] = torch.from_numpy(encoded)
            if lengths is not None:
                found[column.name + LENGTHS] = torch.from_numpy(lengths)
        return found


def check(column: Column, values: pa.Array) -> None:
    """Raises ValueError for a value that cannot be encoded."""
    for reason, bad in value_faults(column, values):
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"row {row}: {column.name}: {reason} ({str(values[row].as_py())[:80]!r})")


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


def of_known_type(values: pa.Array, column: Column) -> pa.Array:
    """Returns the values, with the raw type of the column where all of them are null and so have no type of their own."""
    return values.cast(raw_type(column)) if pa.types.is_null(values.type) else values


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


def kind_of(column: Column) -> str:
    """Returns what a column holds, for an error message: "a list of string ids", for example."""
    dtype = getattr(column, "dtype", "")
    if not dtype:
        return f"a {type(column).__name__.lower()} column"
    return f"a list of {dtype} ids" if getattr(column, "multi", False) else f"{dtype} ids"
