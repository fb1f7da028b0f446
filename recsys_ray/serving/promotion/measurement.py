"""The metrics of one model over a fixed sample of users or rows, which can be drawn from again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Metrics = dict[str, float]
LOWER_IS_BETTER = ("ne", "logloss")


@dataclass(frozen=True)
class Measurement:
    """A model's metrics as a function of how often each unit counts. A unit is what is drawn at random: a user, or a row."""

    of_counts: Callable[[np.ndarray], Metrics]
    """Returns the metrics, given float64 [units]."""
    units: int
    unit: str
    """The plural of what a unit is, such as "users"."""
    rows: int
    """The rows of the test split behind it."""

    def metrics(self) -> Metrics:
        """Returns the metrics of the sample itself, in which each unit counts once."""
        return self.of_counts(np.ones(self.units))


def per_unit_mean(values: dict[str, np.ndarray], unit: str, rows: int) -> Measurement:
    """Returns the measurement of metrics that are means over units, given the value of each unit: float64 [units]."""

    def of_counts(counts: np.ndarray) -> Metrics:
        return {name: float(counts @ each / counts.sum()) for name, each in values.items()}

    return Measurement(of_counts, len(next(iter(values.values()))), unit, rows)
