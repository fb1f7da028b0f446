"""How many rows fall into which stretch of time, for the split by time: mergeable, and the same in whatever batches rows come."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

STRETCHES = 1 << 16


@dataclass(frozen=True)
class TimeCounts:
    """Stretches are 2^shift long. The shift is the smallest that leaves at most STRETCHES of them with a row, which depends on
    all rows together and not on their batches: merging only ever makes it larger, and never beyond that of the whole."""

    shift: int = 0
    stretches: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64, ascending: timestamp >> shift."""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @staticmethod
    def of(timestamps: np.ndarray) -> TimeCounts:
        """`timestamps`: int64."""
        return _coarsened(0, *np.unique(timestamps, return_counts=True))

    def merge(self, other: TimeCounts) -> TimeCounts:
        shift = max(self.shift, other.shift)
        stretches = np.concatenate([counts.stretches >> (shift - counts.shift) for counts in (self, other)])
        order = np.argsort(stretches, kind="stable")
        return _coarsened(shift, *_summed(stretches[order], np.concatenate([self.rows, other.rows])[order]))

    def reaching(self, fraction: float) -> int:
        """The start of the stretch in which this fraction of the rows, in order of time, is reached."""
        reached = np.cumsum(self.rows) / self.rows.sum()
        return int(self.stretches[np.searchsorted(reached, fraction)]) << self.shift


def _coarsened(shift: int, stretches: np.ndarray, rows: np.ndarray) -> TimeCounts:
    while len(stretches) > STRETCHES:
        shift += 1
        stretches, rows = _summed(stretches >> 1, rows)
    return TimeCounts(shift, stretches, rows)


def _summed(stretches: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending stretches, each once."""
    first = np.flatnonzero(np.diff(stretches, prepend=stretches[:1] - 1))
    return stretches[first], np.add.reduceat(rows, first) if len(rows) else rows
