"""The statistics of alarms: PSI and its limit, calibration and its interval, over twenty seeds with and without a change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from recsys_ray.schema import Categorical, Dense
from recsys_ray.serving.monitor.alarms import Thresholds
from recsys_ray.serving.monitor.answers.calibration import Quality, measure_quality, quality_alarms
from recsys_ray.serving.monitor.answers.labels import Outcomes
from recsys_ray.serving.monitor.drift.bins import Bins, frequency_bins, quantile_bins
from recsys_ray.serving.monitor.stability import Stability, independent_rows, wilson_interval

pytestmark = pytest.mark.unit
LIMITS, SEEDS, TRAINING, HELD_OUT, REQUESTS = Thresholds(), range(20), 20_000, 5_000, 3_000
CHANCE = LIMITS.chance(features=20)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def test_psi_is_the_formula_and_its_limit_the_distribution_without_drift() -> None:
    before, now = np.array([50.0, 30.0, 20.0]), np.array([100.0, 60.0, 40.0])
    assert Stability.between(before, now).psi == pytest.approx(0)
    found = Stability.between(np.array([50.0, 50.0, 0.0]), np.array([40.0, 60.0, 0.0]))
    assert found.psi == pytest.approx(-0.1 * np.log(0.8) + 0.1 * np.log(1.2)) and found.bins == 2
    assert 0 < Stability.between(np.array([100.0, 0.0]), np.array([90.0, 10.0])).psi < np.inf

    random, shares = np.random.default_rng(0), np.full(10, 0.1)
    drawn = [
        Stability.between(random.multinomial(2000, shares).astype(float), random.multinomial(500, shares).astype(float))
        for _ in range(2000)
    ]
    assert drawn[0].noise == 1 / 2000 + 1 / 500
    psi = np.array([one.psi for one in drawn])
    assert psi.mean() == pytest.approx(9 * drawn[0].noise, rel=0.05)
    assert np.mean(psi > drawn[0].limit(0.0, 0.05)) == pytest.approx(0.05, abs=0.02)
    assert drawn[0].limit(0.1, 0.05) == pytest.approx(0.1 + 9 * drawn[0].noise), "the threshold comes on top of the mean"


def test_intervals_and_independent_rows() -> None:
    for successes, rows in ((0, 50), (3, 40), (500, 1000)):
        expected = stats.binomtest(successes, rows).proportion_ci(0.99, "wilson")
        assert wilson_interval(successes / rows, rows, 0.01) == pytest.approx((expected.low, expected.high))
    assert independent_rows(np.arange(7)) == 7 and independent_rows(np.repeat(np.arange(7), 100)) == 7
    assert independent_rows(np.array([], np.int64)) == 0


def normal(mean: float = 0.0) -> Draw:
    return lambda random, rows: random.normal(mean, 1, rows).astype(np.float32)


def spiked(share: float = 0.4) -> Draw:
    """Returns a feature of which many values are missing, and so equal."""
    return lambda random, rows: np.where(random.random(rows) < share, 0, random.lognormal(size=rows)).astype(np.float32)


def chosen_from(shares: np.ndarray) -> Draw:
    return lambda random, rows: random.choice(len(shares), rows, p=shares / shares.sum())


def moved(shares: np.ndarray, origin: int, to: int, mass: float = 0.1) -> np.ndarray:
    changed = shares / shares.sum()
    changed[[origin, to]] += (-mass, mass)
    return changed


FEW = np.array([0.01, 0.4, 0.3, 0.15, 0.1, 0.04])
MANY = np.concatenate([[0.0], 1 / np.arange(1, 2000)])
MANY[1000:] /= 3
TO_ONE, LATER = 0.9 * MANY / MANY.sum(), MANY.copy()
TO_ONE[1500] += 0.1
LATER[500:] *= 2.2
UNSEEN = 0
FEATURES: dict[str, tuple[Draw, Draw]] = {
    "dense, mean + 0.5 sd": (normal(), normal(0.5)),
    "dense, more values missing": (spiked(), spiked(0.55)),
    "few values, a tenth moves between two": (chosen_from(FEW), chosen_from(moved(FEW, 1, 2))),
    "few values, a tenth becomes unseen": (chosen_from(FEW), chosen_from(moved(FEW, 1, UNSEEN))),
    "many values, a tenth moves to one": (chosen_from(MANY), chosen_from(TO_ONE)),
    "many values, a tenth moves to the tail": (chosen_from(MANY), chosen_from(LATER)),
}


def bins_of(values: np.ndarray) -> Bins:
    if values.dtype == np.float32:
        return quantile_bins(values, Dense("x"))
    column = Categorical("x", num_embeddings=2001)
    return frequency_bins(np.bincount(values, minlength=2001).astype(float), column, None)


def drifted(before: Draw, now: Draw, seed: int, requests: int = REQUESTS) -> bool:
    random = np.random.default_rng(seed)
    bins = bins_of(before(random, TRAINING))
    held_out, served = (bins.count(values, np.ones(len(values))) for values in (before(random, HELD_OUT), now(random, requests)))
    found = Stability.between(held_out, served)
    return found.psi > found.limit(LIMITS.psi, CHANCE)


@pytest.mark.parametrize("feature", FEATURES)
def test_a_shift_is_an_alarm_and_the_same_distribution_is_none(feature: str) -> None:
    before, now = FEATURES[feature]
    assert [seed for seed in SEEDS if drifted(before, before, seed)] == []
    assert [seed for seed in SEEDS if drifted(before, before, seed, requests=60)] == [], "few requests are no drift either"
    assert [seed for seed in SEEDS if not drifted(before, now, seed)] == []


def test_a_fixed_threshold_would_take_few_rows_for_drift() -> None:
    """The usual rule, PSI above 0.1, without a limit for chance."""
    random = np.random.default_rng(0)
    bins = quantile_bins(normal()(random, TRAINING))
    samples = [bins.count(normal()(random, 60), np.ones(60)) for _ in range(20)]
    held_out = bins.count(normal()(random, HELD_OUT), np.ones(HELD_OUT))
    assert sum(Stability.between(held_out, sample).psi > 0.1 for sample in samples) > 10


def test_rare_values_share_bins_and_dense_labels_are_raw() -> None:
    counts = np.concatenate([[10.0, 500.0, 300.0], np.full(200, 1.0), np.zeros(50)])
    bins = frequency_bins(counts, Categorical("x", encoding="identity", num_embeddings=253), None)
    assert bins.labels[:3] == ("unknown", "0", "1") and all(label.endswith(" values") for label in bins.labels[3:])
    shares = bins.count(np.arange(253), counts) / counts.sum()
    assert len(shares) == 7 and shares[3:].min() > 0.04 and bins.indices(np.array([252, 9999])).tolist() == [6, 0]
    vocabulary = frequency_bins(np.array([0.0, 9.0, 9.0]), Categorical("x", num_embeddings=3), pa.array(["Rome", "Oslo"]))
    assert vocabulary.labels == ("unknown", "Rome", "Oslo")
    column = Dense("x", scale="standard", mean=100.0, std=10.0)
    assert quantile_bins(np.array([-1.0, 0.0, 1.0], np.float32), column).labels == ("up to 90", "90 to 100", "above 100")
    assert quantile_bins(np.zeros(9, np.float32)).labels == ("up to 0", "above 0")


def clicks(seed: int, true_rate: Callable[[np.ndarray], np.ndarray], users: int = 1200, rows: int = 12_000) -> Quality:
    """Returns the quality of predicted probabilities of clicks, given the true ones; users differ in how much they click."""
    random = np.random.default_rng(seed)
    score = random.beta(2, 8, rows)
    cluster = random.integers(0, users, rows)
    habit = random.normal(0, 0.8, users)[cluster]
    rate = true_rate(score) * np.exp(habit - 0.32)
    label = (random.random(rows) < rate.clip(0, 1)).astype(float)
    return measure(pd.DataFrame({"score": score, "label": label, "cluster": cluster}))


def measure(scored: pd.DataFrame, lists: pd.DataFrame | None = None) -> Quality:
    none = pd.DataFrame({name: np.zeros(0, np.int64) for name in ("items", "relevant", "hits", "cluster")})
    return measure_quality(Outcomes(len(scored), len(scored), scored, none if lists is None else lists), CHANCE)


def test_wrong_rates_are_an_alarm_and_right_ones_are_none() -> None:
    alarms = {
        name: [len(list(quality_alarms(clicks(seed, rate), LIMITS))) for seed in SEEDS]
        for name, rate in {
            "right": lambda score: score,
            "half again too high": lambda score: score / 1.5,
            "too low": lambda score: score * 1.6,
            "right on average alone": lambda score: np.full_like(score, score.mean()),
        }.items()
    }
    assert sum(alarms.pop("right")) == 0
    assert {name: min(counts) > 0 for name, counts in alarms.items()} == dict.fromkeys(alarms, True)
    few = [clicks(seed, lambda score: score, users=10, rows=30) for seed in SEEDS]
    assert [alarm for quality in few for alarm in quality_alarms(quality, LIMITS)] == [], "no click in 30 rows is no alarm"
    (text,) = {str(alarm).split(":")[0] for alarm in quality_alarms(clicks(0, lambda score: score / 3), LIMITS)}
    assert text == "calibration"


def test_scores_that_are_no_probabilities_have_no_calibration_and_lists_have_a_hit_rate() -> None:
    scored = pd.DataFrame({"score": [3.0, 0.2], "label": [1.0, 0.0], "cluster": [0, 1]})
    lists = pd.DataFrame({"items": [10, 10, 2], "relevant": [4, 1, 5], "hits": [2, 0, 1], "cluster": [1, 2, 3]})
    quality = measure(scored, lists)
    assert quality.calibration == () and quality.requests == 3
    assert quality.hit_rate == pytest.approx(2 / 3) and quality.recall == pytest.approx((2 / 4 + 0 + 1 / 2) / 3)
    many = measure(scored, pd.concat([lists.assign(cluster=number) for number in range(500)]))
    assert [str(alarm)[:9] for alarm in quality_alarms(many, Thresholds(hit_rate=0.9))] == ["hit rate:"]
    assert list(quality_alarms(quality, Thresholds(hit_rate=0.9))) == [], "three requests prove nothing"
