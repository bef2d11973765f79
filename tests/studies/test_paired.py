"""Paired comparison over seeds against scipy, against all patterns of signs, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from landform.errors import ConfigError
from landform.studies.paired import detectable, paired, sign_flip, smallest_p, t_interval

VALUES = st.lists(st.floats(-1, 1, allow_nan=False, width=32), min_size=2, max_size=8)


@given(VALUES)
def test_the_sign_flip_test_counts_all_patterns(values):
    d = np.array(values, dtype=float)
    signs = np.array(list(itertools.product((1, -1), repeat=len(d))))
    reach = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    expected = np.mean(np.abs(signs @ d) >= reach)
    assert sign_flip(d) == pytest.approx(expected, abs=1e-15)
    assert sign_flip(d) == sign_flip(-d[::-1]) >= smallest_p(len(d))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_against_scipy(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    found = paired(d, 0.9)
    test = stats.ttest_1samp(d, 0)
    interval = test.confidence_interval(0.9)
    assert (found.n, found.difference) == (n, pytest.approx(d.mean()))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_t == pytest.approx(test.pvalue)
    assert found.sd == pytest.approx(d.std(ddof=1))
    exact = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert found.p_flip == pytest.approx(exact)
    assert t_interval(d, 0.9) == pytest.approx((d.mean(), interval.low, interval.high))


def test_many_pairs_are_sampled_alike_each_time():
    d = np.random.default_rng(1).normal(0.25, 1, 40)
    assert sign_flip(d) == sign_flip(d)
    assert sign_flip(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert sign_flip(np.ones(30)) == pytest.approx(1 / 100_001)


@pytest.mark.parametrize(
    ("n", "level", "power"),
    [(5, 0.95, 0.8), (3, 0.9, 0.5), (10, 0.99, 0.9), (5, 1 - 0.05 / 8, 0.8)],
)
def test_what_is_detectable_is_found_as_often_as_was_said(n, level, power):
    draws = np.random.default_rng(0).normal(
        detectable(2.0, n, level=level, power=power), 2.0, (40_000, n)
    )
    t = np.abs(draws.mean(1)) * math.sqrt(n) / draws.std(1, ddof=1)
    found = (t > stats.t.ppf((1 + level) / 2, n - 1)).mean()
    assert found == pytest.approx(power, abs=0.01)


def test_what_cannot_be_said_is_nan():
    assert smallest_p(5) == 0.0625
    alone = paired([0.4])
    assert alone.difference == 0.4
    assert all(map(math.isnan, (alone.low, alone.high, alone.p_t, alone.p_flip, alone.sd)))
    assert math.isnan(detectable(0.1, 1)) and math.isnan(smallest_p(1))
    same = paired([0.0, 0.0, 0.0])
    assert (same.p_t, same.p_flip, same.low, same.high) == (1.0, 1.0, 0.0, 0.0)
    steady = paired([0.1, 0.1, 0.1])  # no spread: no t, but signs can be flipped
    assert math.isnan(steady.p_t) and steady.p_flip == 0.25
    lost = paired([0.1, math.nan, 0.2])
    assert all(map(math.isnan, (lost.difference, lost.low, lost.p_t, lost.p_flip)))
    with pytest.raises(ConfigError, match=r"shape \(0,\)"):
        paired([])
