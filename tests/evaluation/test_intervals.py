"""Resampling counts and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from landform.errors import ConfigError, NonFiniteError
from landform.evaluation import intervals
from landform.evaluation.intervals import (
    difference_interval,
    known_interval,
    percentile_interval,
    resample_counts,
)


def test_counts_are_a_multinomial_sample():
    counts = resample_counts(50, 4000, seed=0)
    assert counts.shape == (4000, 50)
    assert counts.dtype == np.float64
    assert (counts.sum(axis=1) == 50).all()
    assert (counts == np.round(counts)).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.08)
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.02)
    assert np.corrcoef(counts[:, 0], counts[:, 1])[0, 1] == pytest.approx(-1 / 49, abs=0.05)


def test_same_seed_same_object_and_more_replicates_extend():
    first = resample_counts(20, 30, seed=1)
    assert resample_counts(20, 30, seed=1) is first
    np.testing.assert_array_equal(resample_counts(20, 10, seed=1), first[:10])
    assert not np.array_equal(resample_counts(20, 30, seed=2), first)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 5


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(intervals, "CACHE_BYTES", 8 * 20 * 30)
    first = resample_counts(20, 30, seed=11)
    second = resample_counts(20, 30, seed=12)
    assert resample_counts(20, 30, seed=12) is second
    again = resample_counts(20, 30, seed=11)
    assert again is not first
    np.testing.assert_array_equal(again, first)
    large = resample_counts(21, 30, seed=11)
    assert resample_counts(21, 30, seed=11) is not large


@pytest.mark.parametrize("arguments", [(0, 10, 0), (5, 0, 0), (5, 10, -1), (2.5, 10, 0)])
def test_bad_arguments(arguments):
    with pytest.raises(ConfigError, match="integer"):
        resample_counts(*arguments)


def test_percentiles_along_the_last_axis():
    values = np.arange(101.0) * np.array([[1.0], [2.0]])
    low, high = percentile_interval(values, 0.9)
    np.testing.assert_allclose(low, [5, 10])
    np.testing.assert_allclose(high, [95, 190])
    for level in (0.0, 1.0, 95):
        with pytest.raises(ConfigError, match="level"):
            percentile_interval(values, level)
    with pytest.raises(ConfigError, match="replicate"):
        percentile_interval(np.zeros((3, 0)))


def test_difference_is_paired_and_weighted():
    random = np.random.default_rng(0)
    b = random.exponential(size=400)
    a = b + 0.01 + 0.001 * random.normal(size=400)
    found = difference_interval(a, b, replicates=500)
    assert found.estimate == pytest.approx((a - b).mean())
    assert found.low < 0.0101 and found.high > 0.0099
    assert found.high - found.low < 5e-4  # unpaired it would be about 0.2
    weights = random.integers(1, 5, 400)
    weighted = difference_interval(a, b, weights, replicates=500)
    assert weighted.estimate == pytest.approx(np.average(a - b, weights=weights))
    counts = resample_counts(400, 500, 0)
    by_hand = [np.average(a - b, weights=c * weights) for c in counts]
    assert weighted[1:] == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])))


def test_difference_covers_the_truth():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        difference = random.exponential(size=100) - 1.0
        found = difference_interval(difference, np.zeros(100), replicates=300)
        hits += found.low <= 0.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_difference_refuses_bad_input():
    with pytest.raises(ConfigError, match="same examples"):
        difference_interval([1.0, 2.0], [1.0])
    with pytest.raises(NonFiniteError, match="b: the value of example 1 is nan"):
        difference_interval([1.0, 2.0], [1.0, np.nan])
    for weights in ([1.0], [-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]):
        with pytest.raises(ConfigError, match="weights"):
            difference_interval([1.0, 2.0], [1.0, 3.0], weights)


def test_a_number_that_exists_in_few_replicates_has_no_interval():
    drawn = np.arange(100.0)
    drawn[:40] = np.nan
    np.testing.assert_allclose(known_interval(drawn), np.quantile(drawn[40:], [0.025, 0.975]))
    drawn[:51] = np.nan
    assert np.isnan(known_interval(drawn)).all()
    assert np.isnan(known_interval([])).all()
