"""What the raw rows hold: one pass for counts, missing rates, cardinalities and faults; then, where the schema asks for them,
means and vocabularies of the training rows. Every pass is a Ray Data pipeline whose batches report small mergeable results."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from recsys_ray.data.transform import Vocabularies, canonical, seconds, unscaled, value_hashes
from recsys_ray.schema import Categorical, Dense, Schema

SKETCH_SIZE = 4096
QUANTILES_PER_BATCH = 1001
PerRow = Callable[[pa.Table], np.ndarray]
"""Rows -> one value each: why a row is bad (None for a good one), or the index of its split."""


@dataclass(frozen=True)
class Profile:
    """Mergeable facts about a set of rows."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    smallest_hashes: dict[str, np.ndarray] = field(default_factory=dict)
    timestamps: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def merge(self, other: Profile) -> Profile:
        names = self.smallest_hashes.keys() | other.smallest_hashes.keys()
        none = np.array([], dtype=np.uint64)
        return Profile(
            self.rows + other.rows,
            self.reasons + other.reasons,
            self.missing + other.missing,
            {n: _smallest(np.concatenate([p.smallest_hashes.get(n, none) for p in (self, other)])) for n in names},
            np.concatenate([self.timestamps, other.timestamps]),
        )

    def cardinality(self, column: str) -> int:
        """Distinct values: exact below SKETCH_SIZE, else within about 1.6 % (k minimum values, Bar-Yossef et al. 2002)."""
        hashes = self.smallest_hashes.get(column, np.array([]))
        return len(hashes) if len(hashes) < SKETCH_SIZE else round((SKETCH_SIZE - 1) / (float(hashes[-1]) / 2.0**64))


def _smallest(hashes: np.ndarray) -> np.ndarray:
    return np.unique(hashes)[:SKETCH_SIZE]


def profile_rows(rows: ray.data.Dataset, schema: Schema, faults: PerRow) -> Profile:
    found = rows.map_batches(
        lambda batch: _pickled(profile_batch(batch, schema, faults)), batch_format="pyarrow", batch_size=None
    )
    return reduce(Profile.merge, _unpickled(found), Profile())


def _pickled(value: object) -> pa.Table:
    return pa.table({"result": pa.array([pickle.dumps(value)], pa.large_binary())})


def _unpickled(results: ray.data.Dataset) -> list:
    return [pickle.loads(row["result"]) for row in results.take_all()]


def profile_batch(batch: pa.Table, schema: Schema, faults: PerRow) -> Profile:
    reasons = faults(batch)
    missing = Counter({column.name: _missing(batch[column.name]) for column in schema.columns})
    hashes = {column.name: _value_sketch(column, batch[column.name].combine_chunks()) for column in schema.categorical}
    good = pa.array(reasons == None)  # noqa: E711
    stamps = batch.filter(good)[schema.timestamp.name].combine_chunks() if schema.timestamp else None
    return Profile(batch.num_rows, Counter(reason for reason in reasons if reason), missing, hashes, _timestamp_quantiles(stamps))


def _missing(values: pa.ChunkedArray) -> int:
    if pa.types.is_floating(values.type):
        return pc.sum(pc.is_null(values, nan_is_null=True)).as_py() or 0
    return values.null_count


def _value_sketch(column: Categorical, values: pa.Array) -> np.ndarray:
    values = canonical(column, values.flatten() if column.multi else values).drop_null()
    return _smallest(value_hashes(values))


def _timestamp_quantiles(stamps: pa.Array | None) -> np.ndarray:
    if stamps is None or len(stamps) == 0:
        return np.zeros((0, 2))
    ordered = np.sort(seconds(stamps).to_numpy(zero_copy_only=False))
    ranks = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), QUANTILES_PER_BATCH)).astype(int))
    return np.stack([ordered[ranks], np.full(len(ranks), len(ordered) / len(ranks))], axis=1)


def training_rows(rows: ray.data.Dataset, faults: PerRow, split_of: PerRow) -> ray.data.Dataset:
    def keep(batch: pa.Table) -> pa.Table:
        batch = batch.filter(pa.array(faults(batch) == None))  # noqa: E711
        return batch.filter(pa.array(split_of(batch) == 0))

    return rows.map_batches(keep, batch_format="pyarrow", batch_size=None)


def measure_moments(train: ray.data.Dataset, schema: Schema) -> Schema:
    """The schema with the mean and standard deviation of each standardised column, over training rows without missing ones."""
    columns = [column for column in schema.dense if column.scale == "standard"]
    if not columns:
        return schema
    found = train.map_batches(lambda batch: _pickled(_moments(batch, columns)), batch_format="pyarrow", batch_size=None)
    count, mean, squares = reduce(_merge_moments, _unpickled(found), np.zeros((3, len(columns))))
    std = np.sqrt(squares / np.maximum(count, 1))
    std[std <= 1e-9 * np.abs(mean)] = 1.0  # a constant column, but for rounding
    measured = {
        column.name: dataclasses.replace(column, mean=float(m), std=float(s))
        for column, m, s in zip(columns, mean, std, strict=True)
    }
    return Schema(tuple(measured.get(column.name, column) for column in schema.columns))


def _moments(batch: pa.Table, columns: list[Dense]) -> np.ndarray:
    """Per column: count, mean, sum of squared deviations from the mean."""
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


def count_vocabularies(train: ray.data.Dataset, schema: Schema) -> Vocabularies:
    """Values of each vocabulary table seen at least min_frequency times in training rows, most frequent first."""
    tables = {name: columns for name, columns in schema.tables.items() if columns[0].encoding == "vocabulary"}
    if not tables:
        return {}
    partial = train.map_batches(lambda batch: _value_counts(batch, tables), batch_format="pyarrow", batch_size=None)
    counted = partial.groupby(["table", "value"]).sum("frequency")
    pieces: list[Any] = [piece for piece in counted.iter_batches(batch_format="pyarrow", batch_size=None) if len(piece)]
    totals = pa.concat_tables(pieces) if pieces else None
    return {name: _vocabulary(totals, name, columns[0]) for name, columns in tables.items()}


def _value_counts(batch: pa.Table, tables: dict[str, list[Categorical]]) -> pa.Table:
    parts = [
        pa.table({"table": pa.array([], pa.string()), "value": pa.array([], pa.string()), "frequency": pa.array([], pa.int64())})
    ]
    for name, columns in tables.items():
        for column in columns:
            values = batch[column.name].combine_chunks()
            values = canonical(column, values.flatten() if column.multi else values).drop_null()
            counts = pc.value_counts(values.cast(pa.string()))
            names = pa.array([name] * len(counts), pa.string())
            parts.append(pa.table({"table": names, "value": counts.field("values"), "frequency": counts.field("counts")}))
    return pa.concat_tables(parts)


def _vocabulary(totals: pa.Table | None, name: str, column: Categorical) -> pa.Array:
    dtype = pa.int64() if column.dtype == "int" else pa.string()
    if totals is None:
        return pa.array([], dtype)
    frequent = totals.filter((pc.field("table") == name) & (pc.field("sum(frequency)") >= column.min_frequency))
    found = pa.table({"value": frequent["value"].cast(dtype), "frequency": frequent["sum(frequency)"]})
    ordered = found.sort_by([("frequency", "descending"), ("value", "ascending")])
    limit = column.num_embeddings - 1 if column.num_embeddings else len(ordered)
    return ordered["value"].combine_chunks()[:limit]
