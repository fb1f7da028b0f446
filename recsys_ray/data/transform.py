"""Raw columns -> model columns. The very same functions run in preparation, in batch inference and online."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.schema import Categorical, Column, Dense, Label, Schema, Timestamp, Weight

Vocabularies = dict[str, pa.Array]
"""Table name -> its values, most frequent first; value i selects row i + 1."""


def transform(table: pa.Table, schema: Schema, vocabularies: Vocabularies) -> pa.Table:
    """Encodes the columns of `schema` that `table` has; rows keep their order, and must be free of `rejections`.

    Label, dense and weight become float32; timestamps int64; a categorical column int32 table rows, or list<int32> when
    multi-valued, where a missing or empty list is [0]: every row selects at least one embedding.
    """
    columns = [column for column in schema.columns if column.name in table.column_names]
    return pa.table({column.name: encode(column, _whole(table[column.name]), vocabularies) for column in columns})


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def encode(column: Column, values: pa.Array, vocabularies: Vocabularies) -> pa.Array:
    match column:
        case Label():
            return pa.array(label_values(column, values), pa.float32())
        case Dense():
            return pa.array(scaled(column, values), pa.float32())
        case Weight():
            return values.cast(pa.float32())
        case Timestamp():
            return seconds(values)
        case Categorical(multi=True):
            return _table_rows_of_lists(column, values, vocabularies)
        case Categorical():
            return pa.array(table_rows(column, values, vocabularies), pa.int32())


def label_values(column: Label, values: pa.Array) -> np.ndarray:
    numbers = as_floats(values)
    return numbers if column.positive_above is None else (numbers > column.positive_above).astype(np.float64)


def as_floats(values: pa.Array) -> np.ndarray:
    """float64, nulls as NaN."""
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)


def seconds(values: pa.Array) -> pa.Array:
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("s"), safe=False)
    return values.cast(pa.int64())


def unscaled(column: Dense, values: pa.Array) -> np.ndarray:
    """float64 after log1p, before standardisation; NaN where missing."""
    numbers = as_floats(values)
    return np.sign(numbers) * np.log1p(np.abs(numbers)) if column.scale == "log1p" else numbers


def scaled(column: Dense, values: pa.Array) -> np.ndarray:
    numbers = unscaled(column, values)
    if column.scale == "standard":
        numbers = (numbers - column.mean) / column.std
    return np.where(np.isnan(numbers), column.fill, numbers)


def table_rows(column: Categorical, values: pa.Array, vocabularies: Vocabularies) -> np.ndarray:
    """int32 embedding table rows; 0 where the value is null or not in the vocabulary."""
    values = canonical(column, values)
    match column.encoding:
        case "identity":
            rows = pc.add(values, 1)
        case "vocabulary":
            rows = pc.add(pc.index_in(values, value_set=vocabularies[column.table_name], skip_nulls=True), 1)
        case "hash":
            hashed = value_hashes(values) % np.uint64(column.num_embeddings - 1) + np.uint64(1)
            rows = pa.array(hashed, mask=values.is_null().to_numpy(zero_copy_only=False))
    return rows.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)


def canonical(column: Categorical, values: pa.Array) -> pa.Array:
    """int64 or string, so that a value hashes alike whatever width or dictionary its file used."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.int64() if column.dtype == "int" else pa.string())


def value_hashes(values: pa.Array) -> np.ndarray:
    """uint64, equal on every machine (pandas.util.hash_array: SipHash of strings, a mixing of int64). Nulls hash as 0 or ''."""
    if pa.types.is_integer(values.type):
        return pd.util.hash_array(values.fill_null(0).to_numpy(zero_copy_only=False))
    encoded = values.fill_null("").dictionary_encode()
    hashes = pd.util.hash_array(encoded.dictionary.to_numpy(zero_copy_only=False).astype(object), categorize=False)
    return hashes[encoded.indices.to_numpy(zero_copy_only=False)]


def _table_rows_of_lists(column: Categorical, values: pa.Array, vocabularies: Vocabularies) -> pa.Array:
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = table_rows(column, values.flatten(), vocabularies)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    rows = np.insert(rows, starts[lengths == 0], 0)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows, pa.int32()))


def rejections(table: pa.Table, schema: Schema) -> np.ndarray:
    """Why each row cannot be used, as object array of str; None for a good row. The first reason found counts."""
    reasons = np.full(table.num_rows, None, dtype=object)
    for column in schema.columns:
        for reason, bad in _faults(column, _whole(table[column.name])):
            reasons[bad & (reasons == None)] = f"{column.name}: {reason}"  # noqa: E711
    return reasons


def _faults(column: Column, values: pa.Array) -> list[tuple[str, np.ndarray]]:
    match column:
        case Label():
            raw, labels = as_floats(values), label_values(column, values)
            return [("label missing", np.isnan(raw)), ("label is not 0 or 1", (labels != 0) & (labels != 1))]
        case Dense():
            return [("infinite", np.isinf(as_floats(values)))]
        case Weight():
            weights = as_floats(values)
            return [("weight missing", np.isnan(weights)), ("weight negative or infinite", (weights < 0) | np.isinf(weights))]
        case Timestamp():
            return [("timestamp missing", values.is_null().to_numpy(zero_copy_only=False))]
        case Categorical(encoding="identity"):
            return _identity_faults(column, values)
        case Categorical():
            return []


def _identity_faults(column: Categorical, values: pa.Array) -> list[tuple[str, np.ndarray]]:
    ids = canonical(column, values.flatten() if column.multi else values).fill_null(0).to_numpy(zero_copy_only=False)
    largest = column.num_embeddings - 2
    faults = [("id negative", ids < 0), (f"id greater than {largest} (num_embeddings - 2)", ids > largest)]
    if not column.multi:
        return faults
    row_of = np.repeat(np.arange(len(values)), pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False))
    return [(reason, np.bincount(row_of[bad], minlength=len(values)) > 0) for reason, bad in faults]
