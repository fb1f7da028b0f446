"""What the raw rows hold: one pass for counts, missing rates, cardinalities and faults; then, where the schema asks for them,
means and vocabularies of the training rows. Every pass is a Ray Data pipeline whose batches report small mergeable results."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from recsys_ray.data.transform import canonical, seconds, value_hashes
from recsys_ray.schema import Categorical, Schema

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
    found = rows.map_batches(lambda batch: pickled(profile_batch(batch, schema, faults)), batch_format="pyarrow", batch_size=None)
    return reduce(Profile.merge, unpickled(found), Profile())


def pickled(value: object) -> pa.Table:
    return pa.table({"result": pa.array([pickle.dumps(value)], pa.large_binary())})


def unpickled(results: ray.data.Dataset) -> Iterator[Any]:
    return (pickle.loads(row["result"]) for row in results.iter_rows())


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
