"""Which rows are bad, and which are train, validation and test: pure functions of the row, so that every pass agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import ROW_HASH, SPLITS
from recsys_ray.config import SplitConfig
from recsys_ray.data.prepare.leave_one_out import HeldOut
from recsys_ray.data.prepare.time_counts import TimeCounts
from recsys_ray.data.sources.column_types import is_text
from recsys_ray.data.transform import rejections, seconds
from recsys_ray.schema import Schema

NO_SPLIT = 255
AFTER_ALL = np.iinfo(np.int64).max


def check_split(split: SplitConfig, schema: Schema, table: pa.Schema, origin: str) -> None:
    """Raises ValueError for fractions that leave no training rows, or a column that is missing or holds no words."""
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


def time_boundaries(split: SplitConfig, counts: TimeCounts) -> tuple[int, int]:
    """First timestamp of validation and of test."""
    later = split.validation + split.test
    return (
        counts.reaching(1 - later) if later else AFTER_ALL,
        counts.reaching(1 - split.test) if split.test else AFTER_ALL,
    )


def assign_split(table: pa.Table, split: SplitConfig, seed: int, timestamp: str, boundaries: tuple[int, int]) -> np.ndarray:
    """uint8 index into SPLITS for each row; NO_SPLIT where the split column holds another word. Not for leave_one_out, which no
    row alone decides."""
    match split.by:
        case "random":
            # The seed is mixed in by hashing once more: row_hash itself depends on nothing but file and position.
            mixed = pd.util.hash_array(table[ROW_HASH].to_numpy() ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64))
            place = mixed / 2.0**64
            return (place >= 1 - split.validation - split.test).astype(np.uint8) + (place >= 1 - split.test).astype(np.uint8)
        case "time":
            when = seconds(table[timestamp].combine_chunks()).to_numpy(zero_copy_only=False)
            return (when >= boundaries[0]).astype(np.uint8) + (when >= boundaries[1]).astype(np.uint8)
        case "column":
            words = table[split.column].cast(pa.string())
            found = pc.index_in(words, value_set=pa.array(SPLITS)).fill_null(NO_SPLIT)
            return found.to_numpy().astype(np.uint8)
    raise AssertionError(split.by)


@dataclass(frozen=True)
class RowRules:
    """Which rows are bad and which split a row belongs to; picklable, for the engine's tasks."""

    schema: Schema
    split: SplitConfig
    seed: int
    boundaries: tuple[int, int] = (0, 0)
    held_out: Callable[[], HeldOut] | None = None
    """For leave_one_out, once it is known."""

    @property
    def columns(self) -> list[str]:
        """What the rules, and the encoding, want to see of a row."""
        names = [column.name for column in self.schema.columns]
        return [*names, self.split.column] if self.split.by == "column" and self.split.column not in names else names

    def faults(self, batch: pa.Table) -> np.ndarray:
        reasons = rejections(batch, self.schema)
        if self.split.by == "column":
            reasons[(self.splits(batch) == NO_SPLIT) & (reasons == None)] = (  # noqa: E711
                f"{self.split.column}: split is not train, validation or test"
            )
        return reasons

    def splits(self, batch: pa.Table) -> np.ndarray:
        if self.split.by == "leave_one_out":
            assert self.held_out is not None
            return self.held_out().splits(batch)
        timestamp = self.schema.timestamp.name if self.schema.timestamp else ""
        return assign_split(batch, self.split, self.seed, timestamp, self.boundaries)
