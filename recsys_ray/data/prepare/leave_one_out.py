"""The leave-one-out split: each user's latest positive row is test, the one before it validation, all others training.

This is the usual protocol for implicit feedback (He et al. 2017, "Neural Collaborative Filtering", arXiv:1708.05031). A user with
fewer than three positive rows stays in training. Rows with the same time are ordered by their hash.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.transform import as_seconds, canonical_ids, positive_rows
from recsys_ray.data.vocabulary import value_hashes
from recsys_ray.schema import Schema

HELD_OUT = 2
"""The number of rows that a user loses to validation and test."""
UserRows = np.ndarray
"""uint64 [3, rows]: hashes of users, shifted seconds and row hashes, sorted by the first, then the second, then the third."""


def _no_rows() -> UserRows:
    return np.zeros((3, 0), np.uint64)


@dataclass(frozen=True)
class LatestRows:
    """The latest positive rows of each user, at most HELD_OUT + 1; merging gives the same in whatever batches the rows came."""

    rows: UserRows = field(default_factory=_no_rows)

    def merge(self, other: LatestRows) -> LatestRows:
        """Returns the latest rows of both."""
        return _latest_per_user(np.concatenate([self.rows, other.rows], axis=1))

    def held_out(self) -> HeldOutRows:
        """Returns the rows of validation and test."""
        users = self.rows[0]
        last = np.flatnonzero(np.append(users[1:] != users[:-1], True)) if users.size else np.zeros(0, np.int64)
        enough = last[(last >= HELD_OUT) & (users[last - HELD_OUT] == users[last])]
        return HeldOutRows(np.sort(self.rows[2][enough - 1]), np.sort(self.rows[2][enough]))


@dataclass(frozen=True)
class HeldOutRows:
    """The hashes of the rows in validation and in test, uint64, ascending."""

    validation: np.ndarray
    test: np.ndarray

    def splits(self, batch: pa.Table) -> np.ndarray:
        """Returns the split of each row, uint8: 0 train, 1 validation, 2 test."""
        hashes = batch[ROW_HASH].to_numpy()
        return np.isin(hashes, self.validation).astype(np.uint8) + 2 * np.isin(hashes, self.test).astype(np.uint8)


def latest_rows(batch: pa.Table, schema: Schema) -> LatestRows:
    """Returns the latest positive rows of each user in a batch of good rows; the schema has a user key and a timestamp."""
    user, timestamp = schema.key("user"), schema.timestamp
    assert user is not None and timestamp is not None
    batch = batch.filter(pa.array(positive_rows(batch, schema)))
    batch = batch.filter(canonical_ids(user, batch[user.name].combine_chunks()).is_valid())
    users = value_hashes(canonical_ids(user, batch[user.name].combine_chunks()))
    # The shift orders times before 1970 correctly as unsigned numbers.
    times = as_seconds(batch[timestamp.name].combine_chunks()).to_numpy(zero_copy_only=False).view(np.uint64) ^ np.uint64(1 << 63)
    return _latest_per_user(np.stack([users, times, batch[ROW_HASH].to_numpy()]))


def _latest_per_user(rows: np.ndarray) -> LatestRows:
    """Keeps each user's latest rows, with identical rows, as a Spark table may have, counted once."""
    rows = rows[:, np.lexsort((rows[2], rows[1], rows[0]))]
    rows = rows[:, np.append(True, (rows[:, 1:] != rows[:, :-1]).any(axis=0))[: rows.shape[1]]]
    users = rows[0]
    superseded = np.zeros(len(users), bool)
    superseded[: -HELD_OUT - 1] = users[: -HELD_OUT - 1] == users[HELD_OUT + 1 :]
    return LatestRows(rows[:, ~superseded])
