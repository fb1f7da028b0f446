"""The paired bootstrap: how sure the difference of two models is, measured on the same users or rows.

Units are drawn with replacement, for both models the same ones, and the difference is measured again: its spread over many draws
is that of chance (Efron 1979, "Bootstrap Methods: Another Look at the Jackknife"). Users are drawn whole where they are known,
because rows of one user are alike, and rows drawn one by one would promise more than they can hold.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from recsys_ray.serving.promotion.measurement import LOWER_IS_BETTER, Measurement


@dataclass(frozen=True)
class MetricComparison:
    """A metric of two models, and the interval in which their difference lies with the chosen confidence."""

    metric: str
    candidate: float
    rival: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """The candidate's value minus the rival's."""
        return self.candidate - self.rival

    @property
    def candidate_is_better(self) -> bool:
        """True where the whole interval is on the candidate's side of 0."""
        return self.high < 0 if self.metric in LOWER_IS_BETTER else self.low > 0


def paired_bootstrap(
    candidate: Measurement, rival: Measurement, *, draws: int, confidence: float, seed: int = 0
) -> list[MetricComparison]:
    """Compares two models that were measured on the same units. It prints its progress to a terminal.

    The interval runs between quantiles of the drawn differences. A metric that is undefined in a draw, such as AUC without a
    positive row, leaves that draw out.
    """
    random, drawn = np.random.default_rng(seed), []
    for draw in range(draws):
        counts = np.bincount(random.integers(candidate.units, size=candidate.units), minlength=candidate.units).astype(np.float64)
        ours, theirs = candidate.of_counts(counts), rival.of_counts(counts)
        drawn.append([ours[name] - theirs[name] for name in ours])
        if sys.stderr.isatty():
            print(f"\rcomparing: draw {draw + 1} of {draws}", end="\n" if draw + 1 == draws else "", file=sys.stderr)
    tail = (1 - confidence) / 2
    bounds = np.nanquantile(np.array(drawn), [tail, 1 - tail], axis=0)
    ours, theirs = candidate.metrics(), rival.metrics()
    return [
        MetricComparison(name, value, theirs[name], float(low), float(high))
        for (name, value), low, high in zip(ours.items(), *bounds, strict=True)
    ]
