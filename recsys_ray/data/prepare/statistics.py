"""Statistics of the training rows: means and standard deviations of columns, vocabularies, and how often each item was chosen.

Each batch gives a BatchStatistics; merged and completed they are the Statistics of a dataset. The driver must hold the distinct
values of all vocabularies. A dataset that grows from an earlier one keeps the statistics of that one (see `growth.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.prepare.exact_sums import Moments, moments_of
from recsys_ray.data.transform import canonical_ids, positive_rows, unstandardised
from recsys_ray.data.vocabulary import Vocabularies
from recsys_ray.schema import Categorical, Column, Dense, Schema

COMPACT_ROWS = 1 << 22
"""Merged counts are summed by value when they have more rows than this, and twice as many as after the last time."""
NO_COUNTS = pa.schema({"table": pa.string(), "value": pa.string(), "frequency": pa.int64()}).empty_table()
ITEMS = ""
"""The table name under which `counts` holds the frequencies of items; no embedding table has it."""


class Scale(NamedTuple):
    """The mean and standard deviation of a standardised column."""

    mean: float
    std: float


class KeptStatistics(NamedTuple):
    """The statistics of an earlier dataset that a new one takes over unchanged."""

    vocabularies: Vocabularies
    scales: dict[str, Scale]
    """By column name."""


NOTHING_KEPT = KeptStatistics({}, {})


@dataclass(frozen=True)
class Statistics:
    """All that the training rows decide about a dataset."""

    schema: Schema
    """The schema with means, standard deviations and vocabulary sizes."""
    vocabularies: Vocabularies
    item_frequencies: pa.Table
    """Columns value (the item key as text) and frequency among positive training rows; empty without an item key."""


@dataclass(frozen=True)
class BatchStatistics:
    """Mergeable statistics of a set of training rows."""

    moments: dict[str, Moments] = field(default_factory=dict)
    """Of each standardised column by name."""
    counts: pa.Table = field(default_factory=lambda: NO_COUNTS)
    """Columns table, value (as text) and frequency; a value may occur in several rows."""
    compacted: int = 0
    """The number of rows of `counts` when they were last summed by value."""

    def merge(self, other: BatchStatistics) -> BatchStatistics:
        """Returns the statistics of the rows of both."""
        names = self.moments.keys() | other.moments.keys()
        moments = {name: self.moments.get(name, Moments()) + other.moments.get(name, Moments()) for name in names}
        counts = pa.concat_tables([self.counts, other.counts])
        if counts.num_rows <= max(COMPACT_ROWS, 2 * self.compacted):
            return BatchStatistics(moments, counts, self.compacted)
        counts = sum_by_value(counts)
        return BatchStatistics(moments, counts, counts.num_rows)


def needs_statistics(schema: Schema) -> bool:
    """Returns whether the schema has a standardised column, a vocabulary or an item key."""
    return bool(standardised_columns(schema) or _vocabulary_tables(schema) or schema.key("item"))


def measure_batch(rows: pa.Table, schema: Schema) -> BatchStatistics:
    """Returns the statistics of a batch of good training rows."""
    counts = [count_values(rows, _vocabulary_tables(schema))]
    if item := schema.key("item"):
        counts.append(count_values(rows.filter(pa.array(positive_rows(rows, schema))), {ITEMS: [item]}))
    moments = {column.name: _moments(column, rows[column.name]) for column in standardised_columns(schema)}
    return BatchStatistics(moments, pa.concat_tables(counts))


def complete_statistics(schema: Schema, measured: BatchStatistics, kept: KeptStatistics) -> Statistics:
    """Returns the statistics of a dataset from those of all its training rows, and what is kept of an earlier dataset."""
    counts, old = sum_by_value(measured.counts), kept.vocabularies
    tables = _vocabulary_tables(schema)
    vocabularies = {name: build_vocabulary(counts, name, columns[0], old.get(name)) for name, columns in tables.items()}
    # Kept scales win: for weights trained on the earlier dataset the same raw value must remain the same number.
    scales = {name: Scale(found.mean, found.std or 1.0) for name, found in measured.moments.items()} | kept.scales
    columns = tuple(_complete_column(column, scales, vocabularies) for column in schema.columns)
    items = counts.filter(pc.field("table") == ITEMS).select(["value", "frequency"])
    return Statistics(Schema(columns), vocabularies, items)


def standardised_columns(schema: Schema) -> list[Dense]:
    """Returns the columns that are scaled by their mean and standard deviation."""
    return [column for column in schema.dense if column.scale == "standard"]


def table_size(values: int) -> int:
    """Returns the number of embeddings of a vocabulary with so many values: row 0 besides, and at least 2."""
    return max(values + 1, 2)


def count_values(rows: pa.Table, tables: dict[str, list[Categorical]]) -> pa.Table:
    """Counts the values of the columns of each table; returns columns table, value (as text) and frequency."""
    parts = [NO_COUNTS]
    for table, columns in tables.items():
        for column in columns:
            values = rows[column.name].combine_chunks()
            values = canonical_ids(column, values.flatten() if column.multi else values).drop_null()
            counts = pc.value_counts(values)
            named, text = pa.array([table] * len(counts), pa.string()), counts.field("values").cast(pa.string())
            parts.append(pa.table({"table": named, "value": text, "frequency": counts.field("counts")}))
    return pa.concat_tables(parts)


def sum_by_value(counts: pa.Table) -> pa.Table:
    """Returns counts in which each value of a table has one row."""
    summed = counts.group_by(["table", "value"]).aggregate([("frequency", "sum")])
    return summed.rename_columns({"frequency_sum": "frequency"}).select(counts.column_names)


def build_vocabulary(counts: pa.Table, name: str, column: Categorical, old: pa.Array | None = None) -> pa.Array:
    """Returns the values of table `name`: those of `old`, then new ones, most frequent first.

    New values occur at least `min_frequency` times, fill the table up to its `num_embeddings`, and are in their own order when
    equally frequent.
    """
    frequent = counts.filter((pc.field("table") == name) & (pc.field("frequency") >= column.min_frequency))
    dtype = pa.int64() if column.dtype == "int" else pa.string()
    found = pa.table({"value": frequent["value"].cast(dtype), "frequency": frequent["frequency"]})
    old = pa.array([], dtype) if old is None else old
    new = found.filter(pc.invert(pc.is_in(found["value"], value_set=old)))
    ordered = new.sort_by([("frequency", "descending"), ("value", "ascending")])
    limit = column.num_embeddings - 1 - len(old) if column.num_embeddings else len(ordered)
    return pa.concat_arrays([old, ordered["value"].combine_chunks()[:limit]])


def _vocabulary_tables(schema: Schema) -> dict[str, list[Categorical]]:
    return {name: columns for name, columns in schema.tables.items() if columns[0].encoding == "vocabulary"}


def _complete_column(column: Column, scales: dict[str, Scale], vocabularies: Vocabularies) -> Column:
    if isinstance(column, Categorical) and column.table_name in vocabularies:
        return dataclasses.replace(column, num_embeddings=table_size(len(vocabularies[column.table_name])))
    if isinstance(column, Dense) and column.name in scales:
        return dataclasses.replace(column, mean=scales[column.name].mean, std=scales[column.name].std)
    return column


def _moments(column: Dense, values: pa.ChunkedArray) -> Moments:
    numbers = unstandardised(column, values.combine_chunks())
    return moments_of(numbers[~np.isnan(numbers)])
