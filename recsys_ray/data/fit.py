"""What training needs to know of the training rows: means and deviations of standardised columns, vocabularies, and how often
each item was chosen. Batches of rows report partial results, which are merged: the driver must hold the distinct values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.exact_sums import Moments, moments_of
from recsys_ray.data.profile import PerRow
from recsys_ray.data.transform import Vocabularies, canonical, positives, unscaled
from recsys_ray.schema import Categorical, Column, Dense, Schema

COMPACT_ROWS = 1 << 22
NO_COUNTS = pa.schema({"table": pa.string(), "value": pa.string(), "frequency": pa.int64()}).empty_table()
ITEMS = ""
"""Under this name, which no table has, `counts` holds the frequencies of items."""
Tables = dict[str, list[Categorical]]


@dataclass(frozen=True)
class Fitted:
    schema: Schema
    """With means, deviations and vocabulary sizes."""
    vocabularies: Vocabularies
    item_frequencies: pa.Table
    """value (as text) and frequency of the item key's values among positive training rows; empty where it has none."""


@dataclass(frozen=True)
class Measured:
    """Mergeable facts about a set of training rows."""

    moments: dict[str, Moments] = field(default_factory=dict)
    counts: pa.Table = field(default_factory=lambda: NO_COUNTS)
    """Columns table, value (as text) and frequency; a value may be there more than once."""
    compacted: int = 0
    """How many rows `counts` had when each value was last there once."""

    def merge(self, other: Measured) -> Measured:
        names = self.moments.keys() | other.moments.keys()
        moments = {name: self.moments.get(name, Moments()) + other.moments.get(name, Moments()) for name in names}
        counts = pa.concat_tables([self.counts, other.counts])
        if counts.num_rows <= max(COMPACT_ROWS, 2 * self.compacted):
            return Measured(moments, counts, self.compacted)
        counts = _compacted(counts)
        return Measured(moments, counts, counts.num_rows)


def wants_fitting(schema: Schema) -> bool:
    return bool(_standard(schema) or _tables(schema) or schema.key("item"))


def measure(batch: pa.Table, schema: Schema, faults: PerRow, split_of: PerRow) -> Measured:
    """Of the good training rows in the batch."""
    batch = batch.filter(pa.array(faults(batch) == None))  # noqa: E711
    batch = batch.filter(pa.array(split_of(batch) == 0))
    counts = [_value_counts(batch, _tables(schema))]
    if item := schema.key("item"):
        counts.append(_value_counts(batch.filter(pa.array(positives(batch, schema))), {ITEMS: [item]}))
    moments = {column.name: _moments(column, batch[column.name]) for column in _standard(schema)}
    return Measured(moments, pa.concat_tables(counts))


def completed(schema: Schema, measured: Measured) -> Fitted:
    counts = _compacted(measured.counts)
    vocabularies = {name: _vocabulary(counts, name, columns[0]) for name, columns in _tables(schema).items()}
    columns = tuple(_completed(column, measured.moments, vocabularies) for column in schema.columns)
    items = counts.filter(pc.field("table") == ITEMS).select(["value", "frequency"])
    return Fitted(Schema(columns), vocabularies, items)


def _standard(schema: Schema) -> list[Dense]:
    return [column for column in schema.dense if column.scale == "standard"]


def _tables(schema: Schema) -> Tables:
    return {name: columns for name, columns in schema.tables.items() if columns[0].encoding == "vocabulary"}


def _completed(column: Column, found: dict[str, Moments], vocabularies: Vocabularies) -> Column:
    if isinstance(column, Categorical) and column.table_name in vocabularies:
        return dataclasses.replace(column, num_embeddings=max(len(vocabularies[column.table_name]) + 1, 2))
    if isinstance(column, Dense) and column.name in found:
        return dataclasses.replace(column, mean=found[column.name].mean, std=found[column.name].std or 1.0)
    return column


def _moments(column: Dense, values: pa.ChunkedArray) -> Moments:
    numbers = unscaled(column, values.combine_chunks())
    return moments_of(numbers[~np.isnan(numbers)])


def _value_counts(batch: pa.Table, tables: Tables) -> pa.Table:
    """Columns table, value (as text) and frequency."""
    parts = [NO_COUNTS]
    for table, columns in tables.items():
        for column in columns:
            values = batch[column.name].combine_chunks()
            values = canonical(column, values.flatten() if column.multi else values).drop_null()
            counts = pc.value_counts(values)
            named, text = pa.array([table] * len(counts), pa.string()), counts.field("values").cast(pa.string())
            parts.append(pa.table({"table": named, "value": text, "frequency": counts.field("counts")}))
    return pa.concat_tables(parts)


def _compacted(counts: pa.Table) -> pa.Table:
    summed = counts.group_by(["table", "value"]).aggregate([("frequency", "sum")])
    return summed.rename_columns({"frequency_sum": "frequency"}).select(counts.column_names)


def _vocabulary(counts: pa.Table, name: str, column: Categorical) -> pa.Array:
    """Values seen at least min_frequency times, most frequent first; equally frequent ones in their own order."""
    frequent = counts.filter((pc.field("table") == name) & (pc.field("frequency") >= column.min_frequency))
    dtype = pa.int64() if column.dtype == "int" else pa.string()
    found = pa.table({"value": frequent["value"].cast(dtype), "frequency": frequent["frequency"]})
    ordered = found.sort_by([("frequency", "descending"), ("value", "ascending")])
    limit = column.num_embeddings - 1 if column.num_embeddings else len(ordered)
    return ordered["value"].combine_chunks()[:limit]
