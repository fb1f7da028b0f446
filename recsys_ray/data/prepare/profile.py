"""The profile of the raw rows: counts, missing rates, cardinalities and reasons for rejection, measured in one pass.

Each batch of rows gives a small Profile; merged they are the same in whatever batches the rows came.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.prepare.splits import TimeCounts
from recsys_ray.data.sources.table import row_hash_sum
from recsys_ray.data.transform import as_seconds, canonical_ids
from recsys_ray.data.vocabulary import value_hashes
from recsys_ray.schema import Categorical, Schema

SKETCH_SIZE = 4096


@dataclass(frozen=True)
class Profile:
    """Mergeable facts about a set of rows."""

    rows: int = 0
    bytes: int = 0
    """About how much memory the rows take."""
    hash_sum: int = 0
    """The `row_hash_sum` of the good rows."""
    reasons: Counter[str] = field(default_factory=Counter)
    """How many rows are rejected for each reason."""
    missing: Counter[str] = field(default_factory=Counter)
    """How many values each column lacks."""
    sketches: dict[str, np.ndarray] = field(default_factory=dict)
    """A k-minimum-values sketch of each categorical column: its SKETCH_SIZE smallest hashes, uint64, ascending."""
    timestamps: TimeCounts = field(default_factory=TimeCounts)
    """The times of the good rows."""

    def merge(self, other: Profile) -> Profile:
        """Returns the profile of the rows of both."""
        names = self.sketches.keys() | other.sketches.keys()
        none = np.array([], dtype=np.uint64)
        return Profile(
            self.rows + other.rows,
            self.bytes + other.bytes,
            (self.hash_sum + other.hash_sum) % 2**64,
            self.reasons + other.reasons,
            self.missing + other.missing,
            {n: _smallest(np.concatenate([p.sketches.get(n, none) for p in (self, other)])) for n in names},
            self.timestamps.merge(other.timestamps),
        )

    @property
    def rejected(self) -> int:
        """The number of bad rows."""
        return sum(self.reasons.values())

    @property
    def worst_reasons(self) -> dict[str, int]:
        """The number of rows rejected for each reason, most frequent first."""
        return dict(sorted(self.reasons.items(), key=lambda found: (-found[1], found[0])))

    def cardinality(self, column: str) -> int:
        """Returns the number of distinct values: exact below SKETCH_SIZE, else within about 1.6 % (Bar-Yossef et al. 2002)."""
        hashes = self.sketches.get(column, np.array([]))
        return len(hashes) if len(hashes) < SKETCH_SIZE else round((SKETCH_SIZE - 1) / (float(hashes[-1]) / 2.0**64))


def profile_batch(batch: pa.Table, schema: Schema, reasons: np.ndarray) -> Profile:
    """Returns the profile of a batch; `reasons` says why each row is bad, None for a good one (see `RowRules.faults`)."""
    good = pa.array(reasons == None)  # noqa: E711
    times = TimeCounts()
    if schema.timestamp:
        kept = as_seconds(batch[schema.timestamp.name].filter(good).combine_chunks())
        times = TimeCounts.of(kept.to_numpy(zero_copy_only=False))
    return Profile(
        rows=batch.num_rows,
        bytes=batch.nbytes,
        hash_sum=row_hash_sum(batch.select([ROW_HASH]).filter(good)),
        reasons=Counter(reason for reason in reasons if reason),
        missing=Counter({column.name: _missing(batch[column.name]) for column in schema.columns}),
        sketches={column.name: _sketch(column, batch[column.name].combine_chunks()) for column in schema.categorical},
        timestamps=times,
    )


def _missing(values: pa.ChunkedArray) -> int:
    if pa.types.is_floating(values.type):
        return pc.sum(pc.is_null(values, nan_is_null=True)).as_py() or 0
    return values.null_count


def _sketch(column: Categorical, values: pa.Array) -> np.ndarray:
    values = canonical_ids(column, values.flatten() if column.multi else values).drop_null()
    return _smallest(value_hashes(values.unique()))


def _smallest(hashes: np.ndarray) -> np.ndarray:
    return np.unique(hashes)[:SKETCH_SIZE]
