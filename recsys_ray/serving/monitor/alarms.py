"""Thresholds past which a figure is an alarm, and the alarm itself."""

from __future__ import annotations

from dataclasses import dataclass

COMPARISONS_OF_A_FEATURE = 3
"""PSI, missing values, unseen values."""
OTHER_COMPARISONS = 17
"""Four scores, items outside the catalogue, hit rate, and calibration over all and in ten bins."""


@dataclass(frozen=True)
class Thresholds:
    """The limits of a report's figures; an alarm is past its limit by more than chance explains."""

    psi: float = 0.02
    """PSI of a feature or a score. When a tenth of all rows moves from some bins to others, it is at least 0.04, because PSI >= 4
    times the squared share of rows that moved (Pinsker's inequality). The usual 0.1 and 0.25 let that pass."""
    missing: float = 0.05
    """By how much the share of missing values of a feature may exceed that of the dataset."""
    unseen: float = 0.05
    """By how much the share of values that a vocabulary lacks may exceed that of the held-out rows."""
    outside_catalogue: float = 0.01
    """The share of recommended items that the dataset's catalogue does not have."""
    calibration: float = 0.1
    """With labels: by which fraction predicted and observed rate may differ, over all rows and in each tenth of them."""
    hit_rate: float = 0.0
    """With labels: the least share of requests with a chosen item among those recommended; 0: no alarm."""
    false_alarms: float = 0.001
    """The probability that a report raises any alarm although nothing has changed."""

    def chance(self, features: int) -> float:
        """Returns the probability of a false alarm that each comparison of a report may have (Bonferroni)."""
        return self.false_alarms / (COMPARISONS_OF_A_FEATURE * features + OTHER_COMPARISONS)


@dataclass(frozen=True)
class Alarm:
    """A figure that has passed its threshold."""

    about: str
    """A feature, a score or a metric."""
    text: str

    def __str__(self) -> str:
        return f"{self.about}: {self.text}"
