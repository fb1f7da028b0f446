"""Drift: features and scores of requests compared with the reference, and the alarms that follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recsys_ray.schema import Categorical, Dense
from recsys_ray.serving.monitor.alarms import Alarm, Thresholds
from recsys_ray.serving.monitor.answers.answers import Answers
from recsys_ray.serving.monitor.drift.bins import quantile_bins
from recsys_ray.serving.monitor.drift.reference import Reference, Sample
from recsys_ray.serving.monitor.drift.served_features import ServedFeatures
from recsys_ray.serving.monitor.stability import Stability, independent_rows, wilson_interval


@dataclass(frozen=True)
class RateChange:
    """The share of missing or unseen values of a feature, now and in the reference."""

    name: str
    reference: float
    current: float
    allowed: float
    """By how much it may grow."""
    surely: float
    """The least share that chance leaves plausible."""

    @property
    def alarmed(self) -> bool:
        """The share has grown by more than is allowed, and not by chance."""
        return self.surely > self.reference + self.allowed


@dataclass(frozen=True)
class Drift:
    """A feature or a score, now and in the reference."""

    name: str
    stability: Stability | None
    """None for the key of users or items: who comes is traffic, and no drift."""
    limit: float
    """PSI above this is an alarm."""
    labels: tuple[str, ...]
    reference: Sample
    current: Sample
    rates: tuple[RateChange, ...] = ()

    @property
    def psi(self) -> float:
        """The PSI; NaN for a key."""
        return self.stability.psi if self.stability else float("nan")


@dataclass(frozen=True)
class ScoreSample:
    """Scores of one kind of request and one stage, float32 [scores], of which those of a request together weigh 1."""

    scores: np.ndarray
    weights: np.ndarray
    independent: float
    """The number of independent requests."""


def feature_drifts(reference: Reference, served: ServedFeatures, thresholds: Thresholds) -> list[Drift]:
    """Compares every feature that requests carried, in the order of the schema."""
    columns = [column for column in served.schema.features if np.sum(served.counts.get(column.name, 0)) > 0]
    return [_feature_drift(column, reference, served, thresholds) for column in columns]


def _feature_drift(column: Categorical | Dense, reference: Reference, served: ServedFeatures, limits: Thresholds) -> Drift:
    before, now = reference.samples[column.name], served.sample(column)
    chance = limits.chance(len(served.schema.features))
    is_key = isinstance(column, Categorical) and column.key
    stability = None if is_key else Stability.between(before.counts, now.counts)
    missing = served.missing_rate(column)
    rates = [("missing", reference.missing[column.name], missing, limits.missing)]
    if column.name in reference.unseen:
        unseen = max(0.0, now.counts[0] / now.rows - missing)
        rates.append(("unseen", reference.unseen[column.name], unseen, limits.unseen))
    return Drift(
        name=column.name,
        stability=stability,
        limit=stability.limit(limits.psi, chance) if stability else float("nan"),
        labels=reference.bins[column.name].labels,
        reference=before,
        current=now,
        rates=tuple(RateChange(*rate, wilson_interval(rate[2], now.rows, 2 * chance).low) for rate in rates),
    )


def score_samples(answers: Answers) -> dict[str, ScoreSample]:
    """Returns the scores of each kind of request and stage that the log has, under a name such as `rank: ranking score`."""
    request = answers.shown["request"].to_numpy()
    kinds = answers.requests["kind"].to_numpy(zero_copy_only=False)[request]
    clusters = answers.requests["cluster"].to_numpy()
    found = {}
    for kind in ("recommend", "rank"):
        for stage in ("retrieval_score", "ranking_score"):
            scores = answers.shown[stage].to_numpy(zero_copy_only=False)
            chosen = (kinds == kind) & np.isfinite(scores)
            requests, sizes = np.unique(request[chosen], return_counts=True)
            if len(requests):
                sample = ScoreSample(scores[chosen], np.repeat(1 / sizes, sizes), independent_rows(clusters[requests]))
                found[f"{kind}: {stage.replace('_', ' ')}"] = sample
    return found


def score_drift(name: str, before: ScoreSample, now: ScoreSample, *, threshold: float, chance: float) -> Drift:
    """Compares scores in bins with a tenth of the earlier ones each."""
    bins = quantile_bins(before.scores)
    reference, current = (Sample.of(bins.count(one.scores, one.weights), one.independent) for one in (before, now))
    stability = Stability.between(reference.counts, current.counts)
    return Drift(name, stability, stability.limit(threshold, chance), bins.labels, reference, current)


def drift_alarms(drifts: list[Drift], threshold: float) -> Iterator[Alarm]:
    """Yields an alarm for each PSI and each rate that has passed its limit."""
    for drift in drifts:
        if drift.psi > drift.limit:
            rows = f"{drift.current.rows:,.0f} independent requests and {drift.reference.rows:,.0f} reference rows"
            text = f"PSI {drift.psi:.3f} is above {drift.limit:.3f} (threshold {threshold:g}, for {rows})"
            yield Alarm(drift.name, text)
        for rate in drift.rates:
            if rate.alarmed:
                shares = f"{rate.name} in {rate.current:.1%} of requests, {rate.reference:.1%} in the reference"
                yield Alarm(drift.name, f"{shares} (threshold +{rate.allowed:.1%})")
