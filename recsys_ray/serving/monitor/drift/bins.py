"""The bins of a feature in which rows now are compared with reference rows, decided by training rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from recsys_ray.schema import Categorical, Dense

DENSE_BINS = 10
SMALLEST_SHARE = 0.05
"""A value with this share of the training rows has a bin of its own; the others are grouped into bins of about this share."""
UNKNOWN = "unknown"
"""The bin of embedding row 0: missing or never seen."""


@dataclass(frozen=True)
class Bins:
    """The bins of a feature, and how its encoded values fall into them."""

    labels: tuple[str, ...]
    edges: np.ndarray | None = None
    """For a dense feature or a score: float32, ascending; bin i holds the values above edge i - 1, up to edge i."""
    of_row: np.ndarray | None = None
    """For a categorical feature: the bin of each row of its embedding table, uint8."""

    def indices(self, values: np.ndarray) -> np.ndarray:
        """Returns the bin of each encoded value."""
        if self.edges is not None:
            return np.searchsorted(self.edges, values, side="left")
        assert self.of_row is not None
        return self.of_row[np.where(values < len(self.of_row), values, 0)]

    def count(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Returns the sum of weights in each bin, float64 [bins]."""
        return np.bincount(self.indices(values), weights, len(self.labels))


def quantile_bins(values: np.ndarray, column: Dense | None = None) -> Bins:
    """Returns bins with a tenth of the values each, fewer where many values are equal; labelled with raw values of `column`."""
    steps = np.arange(1, DENSE_BINS) / DENSE_BINS
    edges = np.unique(np.quantile(values.astype(np.float32), steps, method="lower")) if len(values) else np.zeros(0, np.float32)
    names = [f"{raw_value(float(edge), column):.4g}" for edge in edges]
    middle = [f"{low} to {high}" for low, high in pairwise(names)]
    labels = (f"up to {names[0]}", *middle, f"above {names[-1]}") if names else ("all",)
    return Bins(labels, edges=edges)


def raw_value(scaled: float, column: Dense | None) -> float:
    """Returns the raw value of a scaled one."""
    match column.scale if column else "none":
        case "log1p":
            return float(np.sign(scaled) * np.expm1(abs(scaled)))
        case "standard":
            assert column is not None
            return scaled * column.std + column.mean
    return scaled


def frequency_bins(counts: np.ndarray, column: Categorical, vocabulary: pa.Array | None) -> Bins:
    """Returns the bins of a categorical feature, given how many training rows have each row of its table, float64 [table rows].

    Row 0 has a bin of its own, and so has every frequent value. All others are grouped from most to least frequent; those that
    the training rows do not have are in the last group.
    """
    least = max(counts.sum() * SMALLEST_SHARE, 1e-9)
    frequent = 1 + np.flatnonzero(counts[1:] >= least)
    frequent = frequent[np.argsort(-counts[frequent], kind="stable")]
    rest = np.setdiff1d(np.arange(1, len(counts)), frequent)
    rest = rest[np.argsort(-counts[rest], kind="stable")]
    of_row = np.zeros(len(counts), np.uint8)
    of_row[frequent] = 1 + np.arange(len(frequent))
    labels = [UNKNOWN, *(_value_name(row, column, vocabulary) for row in frequent)]
    if len(rest):
        mass = np.cumsum(counts[rest])
        groups = max(1, round(mass[-1] / least))
        group = np.minimum(((mass - counts[rest] / 2) * groups / max(mass[-1], 1e-9)).astype(np.int64), groups - 1)
        of_row[rest] = 1 + len(frequent) + group
        labels += [f"{size:,} values" for size in np.bincount(group, minlength=groups)]
    return Bins(tuple(labels), of_row=of_row)


def _value_name(row: int, column: Categorical, vocabulary: pa.Array | None) -> str:
    if vocabulary is not None:
        return str(vocabulary[int(row) - 1].as_py())
    return str(row - 1) if column.encoding == "identity" else f"hash {row}"
