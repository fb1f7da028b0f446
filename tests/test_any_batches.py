"""Means, deviations and split boundaries in time are identical to the last bit for any batches and any order of rows."""

from __future__ import annotations

from fractions import Fraction
from functools import reduce

import numpy as np
import pytest

from recsys_ray.data.prepare import splits
from recsys_ray.data.prepare.exact_sums import Moments, moments_of
from recsys_ray.data.prepare.splits import TimeCounts

pytestmark = pytest.mark.unit


def test_moments_of_large_numbers_close_together():
    values = np.random.default_rng(0).normal(1.7e9, 0.5, 10_001)
    found = sum(map(moments_of, (values[:1], values[1:400], values[400:])), Moments())
    assert (found.count, found.mean, found.std) == pytest.approx((10_001, values.mean(), values.std()), rel=1e-9)
    assert moments_of(np.full(7, 0.1)).std == 0 and moments_of(np.zeros(0)) == Moments()


def test_moments_are_equal_however_the_numbers_are_cut():
    random = np.random.default_rng(1)
    values = np.concatenate([random.lognormal(0, 20, 3000), -random.random(3000), [1e38, 5e-324, -1e-160, 0.0]])
    whole = moments_of(values)
    assert whole.total == sum(map(Fraction, values.tolist()))
    for parts in (7, 100):
        shuffled = random.permutation(values)
        assert sum(map(moments_of, np.array_split(shuffled, parts)), Moments()) == whole


def test_counts_over_time_are_equal_however_the_rows_are_cut(monkeypatch):
    monkeypatch.setattr(splits, "MAX_INTERVALS", 50)
    random = np.random.default_rng(2)
    moments = np.concatenate([random.integers(1_600_000_000, 1_700_000_000, 5000), [-(2**63), 0, 2**63 - 1]])
    whole = TimeCounts.of(moments)
    assert len(whole.intervals) <= 50 and whole.rows.sum() == len(moments)
    later = (moments >= whole.quantile(0.9)).mean()
    assert later == pytest.approx(0.1, abs=1 / 20)
    for parts in (3, 200):
        cut = [TimeCounts.of(part) for part in np.array_split(random.permutation(moments), parts)]
        merged = reduce(TimeCounts.merge, cut, TimeCounts())
        assert merged.shift == whole.shift
        assert (merged.intervals == whole.intervals).all() and (merged.rows == whole.rows).all()
