"""The rules that say which rows are bad, and which are train, validation and test: functions of a row, so that all passes agree.

`RowRules` applies both to a batch. `TimeCounts` finds the boundaries of the split by time; the leave-one-out split is in
`leave_one_out.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import ROW_HASH, SPLITS
from recsys_ray.config import SplitConfig
from recsys_ray.data.prepare.leave_one_out import HeldOutRows
from recsys_ray.data.sources.column_types import is_text
from recsys_ray.data.transform import as_seconds, rejections
from recsys_ray.schema import Schema

NO_SPLIT = 255
"""The split of a row whose split column holds another word than train, validation or test."""
NEVER = np.iinfo(np.int64).max
MAX_INTERVALS = 1 << 16


def check_split(split: SplitConfig, schema: Schema, table: pa.Schema, origin: str) -> None:
    """Raises ValueError for fractions that leave no training rows, or a column that is missing or of the wrong type."""
    if split.by == "leave_one_out" and not (schema.timestamp and schema.key("user")):
        raise ValueError('--split.by leave_one_out wants a timestamp in the schema, and "key": true at the column of users')
    if split.by == "column" and not split.column:
        raise ValueError("--split.by column wants --split.column, the name of a column holding train, validation or test")
    if split.by == "column" and not (split.column in table.names and is_text(table.field(split.column).type)):
        raise ValueError(f"--split.column {split.column!r} is not a column of strings in {origin}: {', '.join(table.names)}")
    if split.by == "time" and not schema.timestamp:
        raise ValueError("--split.by time wants a timestamp column in the schema: add one, or choose another split")
    if min(split.validation, split.test) < 0 or split.validation + split.test >= 1:
        fractions = f"--split.validation {split.validation} and --split.test {split.test}"
        raise ValueError(f"{fractions} must be 0 or more and below 1 together: the rest is for training")


@dataclass(frozen=True)
class TimeCounts:
    """The number of rows in each time interval, mergeable and the same in whatever batches the rows came.

    Intervals are 2^shift long. The shift is the smallest that leaves at most MAX_INTERVALS intervals with a row. It depends on
    all rows together and not on their batches: merging only ever makes it larger, and never larger than that of all rows.
    """

    shift: int = 0
    intervals: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64, ascending: timestamp >> shift."""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @staticmethod
    def of(timestamps: np.ndarray) -> TimeCounts:
        """Counts rows with these int64 timestamps."""
        return _coarsened(0, *np.unique(timestamps, return_counts=True))

    def merge(self, other: TimeCounts) -> TimeCounts:
        """Returns the counts of the rows of both."""
        shift = max(self.shift, other.shift)
        intervals = np.concatenate([counts.intervals >> (shift - counts.shift) for counts in (self, other)])
        order = np.argsort(intervals, kind="stable")
        return _coarsened(shift, *_summed(intervals[order], np.concatenate([self.rows, other.rows])[order]))

    def quantile(self, fraction: float) -> int:
        """Returns the start of the interval in which this fraction of the rows, ordered by time, is reached."""
        reached = np.cumsum(self.rows) / self.rows.sum()
        return int(self.intervals[np.searchsorted(reached, fraction)]) << self.shift


class TimeBoundaries(NamedTuple):
    """The first timestamps of validation and of test."""

    validation: int
    test: int


def time_boundaries(split: SplitConfig, counts: TimeCounts) -> TimeBoundaries:
    """Returns the boundaries that give validation and test their fractions of the rows."""
    later = split.validation + split.test
    return TimeBoundaries(
        counts.quantile(1 - later) if later else NEVER,
        counts.quantile(1 - split.test) if split.test else NEVER,
    )


@dataclass(frozen=True)
class RowRules:
    """The rules that say which rows are bad and to which split a row belongs; picklable, for the tasks of an engine."""

    schema: Schema
    split: SplitConfig
    seed: int
    boundaries: TimeBoundaries | None = None
    """For the split by time, once they are known."""
    held_out: Callable[[], HeldOutRows] | None = None
    """For leave_one_out, once it is known."""

    @property
    def columns(self) -> list[str]:
        """The columns that the rules and the encoding read."""
        names = [column.name for column in self.schema.columns]
        return [*names, self.split.column] if self.split.by == "column" and self.split.column not in names else names

    def faults(self, batch: pa.Table) -> np.ndarray:
        """Returns why each row is bad, as an object array of str; None for a good row."""
        reasons = rejections(batch, self.schema.columns)
        if self.split.by == "column":
            reasons[(self.splits(batch) == NO_SPLIT) & (reasons == None)] = (  # noqa: E711
                f"{self.split.column}: split is not train, validation or test"
            )
        return reasons

    def good_rows(self, batch: pa.Table) -> pa.Table:
        """Returns the rows that are not bad."""
        good = self.faults(batch) == None  # noqa: E711
        return batch if good.all() else batch.filter(pa.array(good))

    def training_rows(self, batch: pa.Table) -> pa.Table:
        """Returns the good rows of the training split."""
        batch = self.good_rows(batch)
        return batch.filter(pa.array(self.splits(batch) == SPLITS.index("train")))

    def splits(self, batch: pa.Table) -> np.ndarray:
        """Returns the split of each row, uint8: an index into SPLITS, or NO_SPLIT."""
        match self.split.by:
            case "random":
                return self._random_splits(batch)
            case "time":
                return self._time_splits(batch)
            case "column":
                words = batch[self.split.column].cast(pa.string())
                return pc.index_in(words, value_set=pa.array(SPLITS)).fill_null(NO_SPLIT).to_numpy().astype(np.uint8)
            case "leave_one_out":
                assert self.held_out is not None
                return self.held_out().splits(batch)

    def _random_splits(self, batch: pa.Table) -> np.ndarray:
        # The seed is mixed in by hashing again: ROW_HASH depends only on file and position.
        mixed = pd.util.hash_array(batch[ROW_HASH].to_numpy() ^ np.uint64(self.seed * 0x9E3779B97F4A7C15 % 2**64))
        position, test = mixed / 2.0**64, self.split.test
        return (position >= 1 - self.split.validation - test).astype(np.uint8) + (position >= 1 - test).astype(np.uint8)

    def _time_splits(self, batch: pa.Table) -> np.ndarray:
        assert self.schema.timestamp is not None and self.boundaries is not None
        times = as_seconds(batch[self.schema.timestamp.name].combine_chunks()).to_numpy(zero_copy_only=False)
        return (times >= self.boundaries.validation).astype(np.uint8) + (times >= self.boundaries.test).astype(np.uint8)


def _coarsened(shift: int, intervals: np.ndarray, rows: np.ndarray) -> TimeCounts:
    while len(intervals) > MAX_INTERVALS:
        shift += 1
        intervals, rows = _summed(intervals >> 1, rows)
    return TimeCounts(shift, intervals, rows)


def _summed(intervals: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending intervals, each once, and the number of rows in each."""
    first = np.flatnonzero(np.diff(intervals, prepend=intervals[:1] - 1))
    return intervals[first], np.add.reduceat(rows, first) if len(rows) else rows
