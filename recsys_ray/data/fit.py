"""What training needs to know of the training rows: means and deviations of standardised columns, and vocabularies. One pass of
Ray Data, whose batches report partial results that the driver merges: it must hold the distinct values of the vocabularies."""

from __future__ import annotations

import dataclasses
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from recsys_ray.data.profile import PerRow, pickled, unpickled
from recsys_ray.data.transform import Vocabularies, canonical, unscaled
from recsys_ray.schema import Categorical, Column, Dense, Schema

COMPACT_ROWS = 1 << 22
NO_COUNTS = pa.schema({"table": pa.string(), "value": pa.string(), "frequency": pa.int64()}).empty_table()
Tables = dict[str, list[Categorical]]


def fit(rows: ray.data.Dataset, schema: Schema, faults: PerRow, split_of: PerRow) -> tuple[Schema, Vocabularies]:
    """The schema completed with means, deviations and vocabulary sizes, and the vocabularies; of good training rows alone."""
    standard = [column for column in schema.dense if column.scale == "standard"]
    tables = {name: columns for name, columns in schema.tables.items() if columns[0].encoding == "vocabulary"}
    if not standard and not tables:
        return schema, {}

    def measure(batch: pa.Table) -> pa.Table:
        batch = batch.filter(pa.array(faults(batch) == None))  # noqa: E711
        batch = batch.filter(pa.array(split_of(batch) == 0))
        return pickled((_moments(batch, standard), _value_counts(batch, tables)))

    moments, counts = [np.zeros((3, len(standard)))], NO_COUNTS
    for batch_moments, batch_counts in unpickled(rows.map_batches(measure, batch_format="pyarrow", batch_size=None)):
        moments.append(batch_moments)
        counts = pa.concat_tables([counts, batch_counts])
        counts = _compacted(counts) if counts.num_rows > COMPACT_ROWS else counts
    counts = _compacted(counts)
    vocabularies = {name: _vocabulary(counts, name, columns[0]) for name, columns in tables.items()}
    measured = _measured(standard, reduce(_merge_moments, moments))
    return Schema(tuple(_completed(column, measured, vocabularies) for column in schema.columns)), vocabularies


def _completed(column: Column, measured: dict[str, Dense], vocabularies: Vocabularies) -> Column:
    if isinstance(column, Categorical) and column.table_name in vocabularies:
        return dataclasses.replace(column, num_embeddings=max(len(vocabularies[column.table_name]) + 1, 2))
    return measured.get(column.name, column)


def _measured(standard: list[Dense], moments: np.ndarray) -> dict[str, Dense]:
    count, mean, squares = moments
    std = np.sqrt(squares / np.maximum(count, 1))
    std[std <= 1e-9 * np.abs(mean)] = 1.0  # a constant column, but for rounding
    pairs = zip(standard, mean, std, strict=True)
    return {column.name: dataclasses.replace(column, mean=float(m), std=float(s)) for column, m, s in pairs}


def _moments(batch: pa.Table, columns: list[Dense]) -> np.ndarray:
    """Per column: count, mean, sum of squared deviations from the mean; shape [3, columns]."""
    if not columns:
        return np.zeros((3, 0))
    values = np.stack([unscaled(column, batch[column.name].combine_chunks()) for column in columns])
    count = (~np.isnan(values)).sum(1)
    mean = np.nansum(values, 1) / np.maximum(count, 1)
    return np.stack([count, mean, np.nansum((values - mean[:, None]) ** 2, 1)])


def _merge_moments(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Chan et al. 1979: exact where the mean is large beside the deviation, as in years or Unix times."""
    total = np.maximum(left[0] + right[0], 1)
    apart = right[1] - left[1]
    mean = left[1] + apart * right[0] / total
    return np.stack([left[0] + right[0], mean, left[2] + right[2] + apart**2 * left[0] * right[0] / total])


def _value_counts(batch: pa.Table, tables: Tables) -> pa.Table:
    """Columns table, value (as text) and frequency."""
    parts = [NO_COUNTS]
    for table, columns in tables.items():
        for column in columns:
            values = batch[column.name].combine_chunks()
            values = canonical(column, values.flatten() if column.multi else values).drop_null()
            counts = pc.value_counts(values.cast(pa.string()))
            named = pa.array([table] * len(counts), pa.string())
            parts.append(pa.table({"table": named, "value": counts.field("values"), "frequency": counts.field("counts")}))
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
