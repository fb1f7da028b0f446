"""Quality by labels that came back: calibration of the ranking scores, recall and hit rate of the recommended lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys_ray.serving.monitor.alarms import Alarm, Thresholds
from recsys_ray.serving.monitor.answers.labels import Outcomes
from recsys_ray.serving.monitor.stability import Interval, independent_rows, wilson_interval

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Predicted and observed rate of some rows."""

    name: str
    rows: int
    independent: float
    """The number of independent rows: fewer where the errors of a user's rows go together."""
    predicted: float
    observed: float
    interval: Interval
    """What the true rate may be."""

    @staticmethod
    def of(name: str, scored: pd.DataFrame, chance: float) -> Calibration:
        """Measures rows with `score`, `label` and `cluster`."""
        errors = scored["label"] - scored["score"]
        errors -= errors.mean()
        squares = float(np.square(errors).sum())
        together = float(np.square(errors.groupby(scored["cluster"]).sum()).sum())
        independent = len(scored) / max(1.0, together / squares if squares else 1.0)
        observed = float(scored["label"].mean())
        interval = wilson_interval(observed, independent, chance)
        return Calibration(name, len(scored), independent, float(scored["score"].mean()), observed, interval)

    def alarmed(self, tolerance: float) -> bool:
        """Returns whether the predicted rate differs from each plausible true rate by more than this fraction."""
        return not self.interval.low / (1 + tolerance) <= self.predicted <= self.interval.high * (1 + tolerance)


@dataclass(frozen=True)
class Quality:
    """The quality of the answers by labels; parts that the labels say nothing of are empty or NaN."""

    labels: int
    joined: int
    calibration: tuple[Calibration, ...]
    """Over all scored items, then in bins of equally many by rising score."""
    requests: int
    """Recommend requests with a positive label."""
    hit_rate: float
    """The share of these with a chosen item among those recommended."""
    hit_interval: Interval
    recall: float
    """The mean over these of the share of chosen items that were recommended, of at most as many as were recommended."""


def measure_quality(outcomes: Outcomes, chance: float) -> Quality:
    """Computes calibration, where scores are probabilities, and recall and hit rate of the lists."""
    scored, lists = outcomes.scored, outcomes.lists
    curve: tuple[Calibration, ...] = ()
    if len(scored) and scored["score"].between(0, 1).all():
        parts = np.array_split(scored["score"].to_numpy().argsort(kind="stable"), CALIBRATION_BINS)
        bins = {f"tenth {number} of {CALIBRATION_BINS} by score": part for number, part in enumerate(parts, 1) if len(part)}
        curve = tuple(Calibration.of(name, scored.iloc[part], chance) for name, part in bins.items())
        curve = (Calibration.of("all scored items", scored, chance), *curve)
    hits, shown = lists["hits"] > 0, lists[["items", "relevant"]].min(axis=1)
    rate, independent = float(hits.mean()), independent_rows(lists["cluster"].to_numpy())
    return Quality(
        labels=outcomes.labels,
        joined=outcomes.joined,
        calibration=curve,
        requests=len(lists),
        hit_rate=rate,
        hit_interval=wilson_interval(rate, independent, 2 * chance) if independent else Interval(0.0, 1.0),
        recall=float((lists["hits"] / shown.clip(lower=1)).mean()),
    )


def quality_alarms(quality: Quality, thresholds: Thresholds) -> Iterator[Alarm]:
    """Yields an alarm for calibration, over all items or in a bin, and for the hit rate."""
    wrong = [found for found in quality.calibration if found.alarmed(thresholds.calibration)]
    for found in wrong[:1]:  # the whole where it is wrong, else the first bin that is
        plausible = f"{found.interval.low:.4f} to {found.interval.high:.4f} plausible"
        rates = f"{found.name}: predicted rate {found.predicted:.4f}, observed {found.observed:.4f} ({plausible}"
        more = f"; {len(wrong) - 1} more bins are off" if len(wrong) > 1 else ""
        rows = f"{found.independent:,.0f} independent rows"
        yield Alarm("calibration", f"{rates}, {rows}; threshold {thresholds.calibration:.0%}){more}")
    if quality.requests and quality.hit_interval.high < thresholds.hit_rate:
        text = f"{quality.hit_rate:.4f} of {quality.requests:,} requests, at most {quality.hit_interval.high:.4f}"
        yield Alarm("hit rate", f"{text} (threshold {thresholds.hit_rate:g})")
