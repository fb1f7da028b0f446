"""The transform from raw columns to model columns, and the check for rows that cannot be transformed.

The same functions run in preparation, in batch inference and online, so that a model sees the same numbers everywhere.
`transform` encodes a table, `encode` one column; `rejections` finds the rows that preparation sets aside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.vocabulary import Lookups, value_hashes
from recsys_ray.schema import Categorical, Column, Dense, Label, Schema, Timestamp, Weight

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
"""Larger numbers would become infinite in the float32 columns that are stored."""
NOT_BINARY = "not 0 or 1"


def transform(table: pa.Table, schema: Schema, lookups: Lookups) -> pa.Table:
    """Encodes the columns of `schema` that `table` has. Rows keep their order and must have no `rejections`.

    Label, dense and weight columns become float32, timestamps int64, and categorical columns int32 table rows, or list<int32>
    when multi-valued. A missing or empty list becomes [0], so that every row selects at least one embedding.
    """
    columns = [column for column in schema.columns if column.name in table.column_names]
    return pa.table({column.name: encode(column, _one_chunk(table[column.name]), lookups) for column in columns})


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def encode(column: Column, values: pa.Array, lookups: Lookups) -> pa.Array:
    """Encodes the raw values of one column, as `transform` does."""
    if isinstance(column, Timestamp):
        return as_seconds(values)
    encoded, lengths = encoded_values(column, values, lookups)
    if lengths is None:
        return pa.array(encoded)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(encoded))


class EncodedValues(NamedTuple):
    """The values of a column as a batch has them, and for a multi-valued column how many each row has, int32."""

    values: np.ndarray
    lengths: np.ndarray | None = None


def encoded_values(column: Column, values: pa.Array, lookups: Lookups) -> EncodedValues:
    """Encodes the raw values of one column as arrays, without the Arrow types of `encode`."""
    match column:
        case Label():
            return EncodedValues(label_values(column, values).astype(np.float32))
        case Dense():
            return EncodedValues(scaled(column, values).astype(np.float32))
        case Weight():
            return EncodedValues(as_floats(values).astype(np.float32))
        case Timestamp():
            return EncodedValues(as_seconds(values).to_numpy())
        case Categorical(multi=True):
            return _table_rows_of_lists(column, values, lookups)
        case Categorical():
            return EncodedValues(table_rows(column, values, lookups))


def label_values(column: Label, values: pa.Array) -> np.ndarray:
    """Returns float64 labels of 0 and 1; a number compared with `positive_above` when the label has one."""
    numbers = as_floats(values)
    return numbers if column.positive_above is None else (numbers > column.positive_above).astype(np.float64)


def positive_rows(table: pa.Table, schema: Schema) -> np.ndarray:
    """Returns which rows have label 1, bool [rows]; all of them when the schema has no label. Rows must have no `rejections`."""
    if schema.label is None:
        return np.ones(table.num_rows, bool)
    return label_values(schema.label, _one_chunk(table[schema.label.name])) > 0


def as_floats(values: pa.Array) -> np.ndarray:
    """Returns the values as float64, with NaN for nulls."""
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)


def as_seconds(values: pa.Array) -> pa.Array:
    """Returns timestamps and dates as int64 seconds since 1970, and integers as int64."""
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("s"), safe=False)
    return values.cast(pa.int64())


def unstandardised(column: Dense, values: pa.Array) -> np.ndarray:
    """Returns the values as float64 after log1p and before standardisation, with NaN for missing ones."""
    numbers = as_floats(values)
    return np.sign(numbers) * np.log1p(np.abs(numbers)) if column.scale == "log1p" else numbers


def scaled(column: Dense, values: pa.Array) -> np.ndarray:
    """Returns the values as float64, scaled as the column says, with missing ones replaced by its `fill`."""
    numbers = unstandardised(column, values)
    if column.scale == "standard":
        numbers = (numbers - column.mean) / column.std
    return np.where(np.isnan(numbers), column.fill, numbers)


def table_rows(column: Categorical, values: pa.Array, lookups: Lookups) -> np.ndarray:
    """Returns the embedding table row of each id, int32; 0 for one that is null or not in the vocabulary."""
    values = canonical_ids(column, values)
    match column.encoding:
        case "vocabulary":
            return lookups[column.table_name].rows(values)
        case "identity":
            rows = pc.add(values, 1)
        case "hash":
            hashed = value_hashes(values) % np.uint64(column.num_embeddings - 1) + np.uint64(1)
            rows = pa.array(hashed, mask=values.is_null().to_numpy(zero_copy_only=False))
    return rows.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)


def canonical_ids(column: Categorical, values: pa.Array) -> pa.Array:
    """Returns ids as int64 or string, so that a value hashes the same whatever type its file used.

    Floats that are not whole numbers become null: pandas writes integers with nulls as floats, with NaN for null.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if column.dtype == "string":
        return values.cast(pa.string())
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
        whole = pc.and_(pc.is_finite(values), pc.equal(values, pc.floor(values)))
        values = pc.if_else(whole, values, None)
    # safe=False: an unsigned id above 2^63 wraps around to a negative one, which is still distinct.
    return values.cast(pa.int64(), safe=False)


def _table_rows_of_lists(column: Categorical, values: pa.Array, lookups: Lookups) -> EncodedValues:
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)
    rows = table_rows(column, values.flatten(), lookups)
    if not lengths.all():
        starts = np.cumsum(lengths) - lengths
        rows = np.insert(rows, starts[lengths == 0], 0)
    return EncodedValues(rows, np.maximum(lengths, 1))


def rejections(table: pa.Table, columns: Iterable[Column]) -> np.ndarray:
    """Returns for each row why the values of these columns cannot be used, as an object array of str; None for a good row.

    The first reason found counts.
    """
    reasons = np.full(table.num_rows, None, dtype=object)
    for column in columns:
        for reason, bad in value_faults(column, _one_chunk(table[column.name])):
            if bad.any():  # comparing objects takes longer than all the rest
                reasons[bad & (reasons == None)] = f"{column.name}: {reason}"  # noqa: E711
    return reasons


def value_faults(column: Column, values: pa.Array) -> list[tuple[str, np.ndarray]]:
    """Returns the reasons for which values of a column cannot be encoded, each with the rows that it holds for, bool [rows]."""
    match column:
        case Label():
            raw, labels = as_floats(values), label_values(column, values)
            return [("missing, but it is the label", np.isnan(raw)), (NOT_BINARY, (labels != 0) & (labels != 1))]
        case Dense():
            return [("infinite, or too large for float32", np.abs(unstandardised(column, values)) > LARGEST_FLOAT32)]
        case Weight():
            weights = as_floats(values)
            return [
                ("missing, but it is the weight", np.isnan(weights)),
                ("negative, or too large for float32", (weights < 0) | (weights > LARGEST_FLOAT32)),
            ]
        case Timestamp():
            return [("missing, but it is the timestamp", values.is_null().to_numpy(zero_copy_only=False))]
        case Categorical(multi=True):
            if not (faults := _id_faults(column, values.flatten())):
                return []
            lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
            row_of = np.repeat(np.arange(len(values)), lengths)
            return [(reason, np.bincount(row_of[bad], minlength=len(values)) > 0) for reason, bad in faults]
        case Categorical():
            return _id_faults(column, values)


def _id_faults(column: Categorical, values: pa.Array) -> list[tuple[str, np.ndarray]]:
    faults = []
    if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        numbers = as_floats(values)
        fraction = (numbers != np.floor(numbers)) | (np.abs(numbers) >= 2.0**63)
        faults.append(("id is not a whole number of 64 bits", fraction & ~np.isnan(numbers)))
    if column.encoding == "identity":
        ids = canonical_ids(column, values).fill_null(0).to_numpy(zero_copy_only=False)
        largest = column.num_embeddings - 2
        faults.append((f"id is not between 0 and {largest} (num_embeddings - 2)", (ids < 0) | (ids > largest)))
    return faults
