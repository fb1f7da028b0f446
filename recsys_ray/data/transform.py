"""Raw columns -> model columns. The very same functions run in preparation, in batch inference and online."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.schema import Categorical, Column, Dense, Label, Schema, Timestamp, Weight

Vocabularies = dict[str, pa.Array]
"""Table name -> its values, most frequent first, after those of the dataset it grew from; value i selects row i + 1."""
LARGEST = float(np.finfo(np.float32).max)
"""Numbers beyond it would be infinite as the float32 that is stored."""
NOT_BINARY = "not 0 or 1"


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
            return pa.array(as_floats(values), pa.float32())
        case Timestamp():
            return seconds(values)
        case Categorical(multi=True):
            return _table_rows_of_lists(column, values, vocabularies)
        case Categorical():
            return pa.array(table_rows(column, values, vocabularies), pa.int32())


def label_values(column: Label, values: pa.Array) -> np.ndarray:
    numbers = as_floats(values)
    return numbers if column.positive_above is None else (numbers > column.positive_above).astype(np.float64)


def positives(table: pa.Table, schema: Schema) -> np.ndarray:
    """bool: rows whose label is 1, of rows free of `rejections`; all of them where the schema has no label."""
    if schema.label is None:
        return np.ones(table.num_rows, bool)
    return label_values(schema.label, _whole(table[schema.label.name])) > 0


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
    """int64 or string, so that a value hashes alike whatever type its file used. Doubles that are no whole number are null:
    pandas writes integers with nulls as doubles, with NaN for null."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if column.dtype == "string":
        return values.cast(pa.string())
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
        whole = pc.and_(pc.is_finite(values), pc.equal(values, pc.floor(values)))
        values = pc.if_else(whole, values, None)
    # safe=False: an unsigned id above 2^63 wraps to a negative one, which hashes as well as any.
    return values.cast(pa.int64(), safe=False)


def value_hashes(values: pa.Array) -> np.ndarray:
    """uint64, equal on every machine (pandas.util.hash_array: SipHash of strings, a mixing of int64). Nulls hash as 0 or ''."""
    # Not at the top: training workers import this module, and hash nothing.
    import pandas as pd

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
            if bad.any():  # looking at the objects takes longer than all the rest
                reasons[bad & (reasons == None)] = f"{column.name}: {reason}"  # noqa: E711
    return reasons


def _faults(column: Column, values: pa.Array) -> list[tuple[str, np.ndarray]]:
    match column:
        case Label():
            raw, labels = as_floats(values), label_values(column, values)
            return [("missing, but it is the label", np.isnan(raw)), (NOT_BINARY, (labels != 0) & (labels != 1))]
        case Dense():
            return [("infinite, or too large for float32", np.abs(unscaled(column, values)) > LARGEST)]
        case Weight():
            weights = as_floats(values)
            return [
                ("missing, but it is the weight", np.isnan(weights)),
                ("negative, or too large for float32", (weights < 0) | (weights > LARGEST)),
            ]
        case Timestamp():
            return [("missing, but it is the timestamp", values.is_null().to_numpy(zero_copy_only=False))]
        case Categorical(multi=True):
            lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
            row_of = np.repeat(np.arange(len(values)), lengths)
            faults = _id_faults(column, values.flatten())
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
        ids = canonical(column, values).fill_null(0).to_numpy(zero_copy_only=False)
        largest = column.num_embeddings - 2
        faults.append((f"id is not between 0 and {largest} (num_embeddings - 2)", (ids < 0) | (ids > largest)))
    return faults
