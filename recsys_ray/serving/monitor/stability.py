"""The statistics of alarms: the Population Stability Index with its limit, and the Wilson interval of a rate.

    PSI = sum over bins of (q - p) * ln(q / p)        p: shares of the reference, q: shares now

(Lewis 1994, "An Introduction to Credit Scoring"; it is the symmetric divergence of Jeffreys 1946.) Between two samples of n and
m independent rows it is never 0: without drift, PSI / (1/n + 1/m) follows a chi-squared distribution with bins - 1 degrees of
freedom (Yurdakul and Naranjo 2020, "Statistical properties of the population stability index"). So its mean is then
(bins - 1) * (1/n + 1/m), which for small samples exceeds any fixed threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

HALF_ROW = 0.5
"""The rows that a bin counts as where it has fewer in one of both samples, since the logarithm of 0 is not finite."""


@dataclass(frozen=True)
class Stability:
    """The distance of two samples over the same bins."""

    psi: float
    bins: int
    """Bins that either sample reaches."""
    noise: float
    """1/n + 1/m for samples of n and m independent rows."""

    @staticmethod
    def between(reference: np.ndarray, current: np.ndarray) -> Stability:
        """Compares rows by bin, float64 [bins] each, which add up to the number of independent rows of a sample."""
        reached = (reference > 0) | (current > 0)
        p, q = (np.maximum(rows[reached], HALF_ROW) / rows.sum() for rows in (reference, current))
        psi = float(np.sum((q / q.sum() - p / p.sum()) * np.log(q / q.sum() * p.sum() / p)))
        return Stability(psi, int(reached.sum()), 1 / reference.sum() + 1 / current.sum())

    def limit(self, threshold: float, chance: float) -> float:
        """Returns the PSI above which the samples differ, by more than `threshold` and not by chance.

        It is `threshold` on top of the mean without drift, and at least what PSI exceeds without drift with probability `chance`.
        """
        freedom = self.bins - 1
        by_chance = float(stats.chi2.isf(chance, freedom)) if freedom else 0.0
        return max(threshold + freedom * self.noise, by_chance * self.noise)


class Interval(NamedTuple):
    """An interval of a rate."""

    low: float
    high: float


def wilson_interval(rate: float, rows: float, chance: float) -> Interval:
    """Returns the interval that leaves out the true rate with probability `chance` (Wilson 1927).

    `rate` was observed in a number of independent rows, which may be a fraction. Unlike the normal interval it is neither empty
    nor below 0 where the rate is 0.
    """
    z = float(stats.norm.isf(chance / 2))
    centre = rate + z * z / (2 * rows)
    spread = z * math.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows))
    return Interval(max(0.0, (centre - spread) / (1 + z * z / rows)), min(1.0, (centre + spread) / (1 + z * z / rows)))


def independent_rows(clusters: np.ndarray) -> float:
    """Returns the number of independent rows among rows that belong to clusters, such as users, int64 [rows].

    Rows of a user are alike, so they are counted as if each user had one (Kish 1965): (sum of n)^2 / sum of n^2, which is the
    number of users when all have equally many.
    """
    _, sizes = np.unique(clusters, return_counts=True)
    return float(sizes.sum()) ** 2 / float(np.square(sizes, dtype=np.float64).sum()) if len(sizes) else 0.0
