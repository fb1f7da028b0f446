"""What the raw rows hold: one pass for counts, missing rates, cardinalities and faults. Each batch of rows reports a small
Profile; merged they are the same in whatever batches the rows came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.prepare.time_counts import TimeCounts
from recsys_ray.data.sources.source import hash_sum
from recsys_ray.data.transform import canonical, seconds, value_hashes
from recsys_ray.schema import Categorical, Schema

SKETCH_SIZE = 4096
PerRow = Callable[[pa.Table], np.ndarray]
"""Rows -> one value each: why a row is bad (None for a good one), or the index of its split."""


@dataclass(frozen=True)
class Profile:
    """Mergeable facts about a set of rows."""

    rows: int = 0
    bytes: int = 0
    """In memory, about."""
    hash_sum: int = 0
    """Of the good rows."""
    reasons: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    smallest_hashes: dict[str, np.ndarray] = field(default_factory=dict)
    timestamps: TimeCounts = field(default_factory=TimeCounts)

    def merge(self, other: Profile) -> Profile:
        names = self.smallest_hashes.keys() | other.smallest_hashes.keys()
        none = np.array([], dtype=np.uint64)
        return Profile(
            self.rows + other.rows,
            self.bytes + other.bytes,
            (self.hash_sum + other.hash_sum) % 2**64,
            self.reasons + other.reasons,
            self.missing + other.missing,
            {n: _smallest(np.concatenate([p.smallest_hashes.get(n, none) for p in (self, other)])) for n in names},
            self.timestamps.merge(other.timestamps),
        )

    @property
    def worst_reasons(self) -> dict[str, int]:
        """Reason -> rows, most frequent first."""
        return dict(sorted(self.reasons.items(), key=lambda found: (-found[1], found[0])))

    def cardinality(self, column: str) -> int:
        """Distinct values: exact below SKETCH_SIZE, else within about 1.6 % (k minimum values, Bar-Yossef et al. 2002)."""
        hashes = self.smallest_hashes.get(column, np.array([]))
        return len(hashes) if len(hashes) < SKETCH_SIZE else round((SKETCH_SIZE - 1) / (float(hashes[-1]) / 2.0**64))


def _smallest(hashes: np.ndarray) -> np.ndarray:
    return np.unique(hashes)[:SKETCH_SIZE]


def profile_batch(batch: pa.Table, schema: Schema, faults: PerRow) -> Profile:
    reasons = faults(batch)
    missing = Counter({column.name: _missing(batch[column.name]) for column in schema.columns})
    hashes = {column.name: _value_sketch(column, batch[column.name].combine_chunks()) for column in schema.categorical}
    good = pa.array(reasons == None)  # noqa: E711
    times = TimeCounts()
    if schema.timestamp:
        kept = seconds(batch[schema.timestamp.name].filter(good).combine_chunks())
        times = TimeCounts.of(kept.to_numpy(zero_copy_only=False))
    kept_hashes = hash_sum(batch.select([ROW_HASH]).filter(good))
    return Profile(
        batch.num_rows, batch.nbytes, kept_hashes, Counter(reason for reason in reasons if reason), missing, hashes, times
    )


def _missing(values: pa.ChunkedArray) -> int:
    if pa.types.is_floating(values.type):
        return pc.sum(pc.is_null(values, nan_is_null=True)).as_py() or 0
    return values.null_count


def _value_sketch(column: Categorical, values: pa.Array) -> np.ndarray:
    values = canonical(column, values.flatten() if column.multi else values).drop_null()
    return _smallest(value_hashes(values.unique()))
