"""The leave-one-out split: each user's latest positive row is test, the one before it validation, all others training.

The usual protocol of implicit feedback (He et al. 2017, "Neural Collaborative Filtering", arXiv:1708.05031). A user with fewer
than three positive rows stays in training. Rows of one moment are told apart by their hash.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.prepare.profile import PerRow
from recsys_ray.data.transform import canonical, positives, seconds, value_hashes
from recsys_ray.schema import Schema

HELD_OUT = 2
Rows = np.ndarray
"""Of users (hashed), seconds and row hashes, three columns sorted by the first, then the second, then the third."""


def _none() -> Rows:
    return np.zeros((3, 0), np.uint64)


@dataclass(frozen=True)
class LatestRows:
    """Each user's latest positive rows, at most HELD_OUT + 1: mergeable, the same in whatever batches the rows came."""

    rows: Rows = field(default_factory=_none)

    def merge(self, other: LatestRows) -> LatestRows:
        return latest(np.concatenate([self.rows, other.rows], axis=1))

    def held_out(self) -> HeldOut:
        users = self.rows[0]
        last = np.flatnonzero(np.append(users[1:] != users[:-1], True)) if users.size else np.zeros(0, np.int64)
        enough = last[(last >= HELD_OUT) & (users[last - HELD_OUT] == users[last])]
        return HeldOut(np.sort(self.rows[2][enough - 1]), np.sort(self.rows[2][enough]))


@dataclass(frozen=True)
class HeldOut:
    """Hashes of the rows of both splits, uint64, ascending."""

    validation: np.ndarray
    test: np.ndarray

    def splits(self, batch: pa.Table) -> np.ndarray:
        """uint8: 0 train, 1 validation, 2 test."""
        hashes = batch[ROW_HASH].to_numpy()
        return np.isin(hashes, self.validation).astype(np.uint8) + 2 * np.isin(hashes, self.test).astype(np.uint8)


def latest_rows(batch: pa.Table, schema: Schema, faults: PerRow) -> LatestRows:
    """Of the good rows; the schema has a user key and a timestamp."""
    user, timestamp = schema.key("user"), schema.timestamp
    assert user is not None and timestamp is not None
    batch = batch.filter(pa.array((faults(batch) == None) & positives(batch, schema)))  # noqa: E711
    batch = batch.filter(canonical(user, batch[user.name].combine_chunks()).is_valid())
    users = value_hashes(canonical(user, batch[user.name].combine_chunks()))
    # Shifted, so that times before 1970 come first as unsigned numbers too.
    times = seconds(batch[timestamp.name].combine_chunks()).to_numpy(zero_copy_only=False).view(np.uint64) ^ np.uint64(1 << 63)
    return latest(np.stack([users, times, batch[ROW_HASH].to_numpy()]))


def latest(rows: np.ndarray) -> LatestRows:
    """Rows that are alike, as a Spark table may have, are one."""
    rows = rows[:, np.lexsort((rows[2], rows[1], rows[0]))]
    rows = rows[:, np.append(True, (rows[:, 1:] != rows[:, :-1]).any(axis=0))[: rows.shape[1]]]
    users = rows[0]
    beyond = np.zeros(len(users), bool)
    beyond[: -HELD_OUT - 1] = users[: -HELD_OUT - 1] == users[HELD_OUT + 1 :]
    return LatestRows(rows[:, ~beyond])
