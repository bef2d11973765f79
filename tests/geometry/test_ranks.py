"""Rank correlations over few checkpoints, against scipy and by enumeration."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from landform.errors import DataError, NonFiniteError
from landform.geometry.ranks import holm, rank_correlation

numbers = st.lists(st.integers(-4, 4), min_size=3, max_size=5)


@settings(max_examples=30)
@given(numbers, st.randoms(use_true_random=False))
def test_rho_is_that_of_scipy_and_p_that_of_all_orders(x, random):
    y = [random.randint(-4, 4) for _ in x]
    found = rank_correlation(x, y, replicates=20)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(found.spearman) and found.p_value == 1
        return
    expected = stats.spearmanr(x, y).statistic
    assert found.spearman == pytest.approx(expected)
    every = [
        abs(np.corrcoef(stats.rankdata(x), order)[0, 1])
        for order in permutations(stats.rankdata(y))
    ]
    assert found.p_value == pytest.approx(np.mean(np.array(every) >= abs(expected) - 1e-9))


def test_sampled_orders_agree_with_enumeration():
    random = np.random.default_rng(0)
    x = random.normal(size=9)
    y = x + 1.5 * random.normal(size=9)
    found = rank_correlation(x, y, permutations=20_000)
    exact = stats.permutation_test(
        (x,), lambda order: stats.spearmanr(order, y).statistic,
        permutation_type="pairings", n_resamples=1000, random_state=0,
    ).pvalue  # fmt: skip
    assert found.p_value == pytest.approx(exact, abs=0.03)
    assert found.low < found.spearman < found.high and found.n == 9


def test_only_ranks_matter():
    random = np.random.default_rng(1)
    x, y, control = random.normal(size=(3, 10))
    a = rank_correlation(x, y, control, replicates=50)
    b = rank_correlation(np.exp(x), y**3, 5 * control - 2, replicates=50)
    assert a == pytest.approx(b)


def test_the_partial_correlation_holds_the_control_fixed():
    random = np.random.default_rng(2)
    control = random.normal(size=400)
    x, y = (control + 0.3 * random.normal(size=400) for _ in range(2))
    found = rank_correlation(x, y, control, replicates=20)
    assert found.spearman > 0.8 and abs(found.partial) < 0.15
    assert np.isnan(rank_correlation(x, y, replicates=20).partial)
    assert np.isnan(rank_correlation([1, 2, 3], [1, 3, 2], [3, 1, 2]).partial)


def test_holm():
    # Holm 1979: 3 x .01, then 2 x .03 and 1 x .04, never falling, never above 1.
    assert holm([0.04, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert len(holm([])) == 0


def test_bad_values():
    with pytest.raises(DataError, match="3 or more"):
        rank_correlation([1, 2], [1, 2])
    with pytest.raises(DataError, match="control"):
        rank_correlation([1, 2, 3, 4], [1, 2, 4, 3], [1, 2])
    with pytest.raises(NonFiniteError, match="x: checkpoint 1 has nan"):
        rank_correlation([1, np.nan, 3], [1, 2, 3])
