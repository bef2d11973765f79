"""Newly forgotten and relearned examples, and what is known of them: by brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from landform.errors import DataError
from landform.geometry.forgetting import (
    STATISTICS,
    along_path,
    compare_changes,
    forgotten_and_relearned,
    score_lists,
    step_summary,
)

SCORES = np.array([[0, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 1]], dtype=float)
ACC = ((0, 1, 1), (1, 1, 1), (0, 0, 1), (1, 0, 1))
CONFIDENCE = ((0.2, 0.6, 0.9), (0.9, 0.9, 0.9), (0.1, 0.2, 0.5), (0.6, 0.4, 0.7))
TS = (0.0, 0.5, 1.0)


def golden():
    """The cartography of the original's golden case (mean, population deviation, turns)."""
    correct, confidence = np.array(ACC, float), np.array(CONFIDENCE)
    return {
        "correctness": correct.mean(axis=1),
        "confidence": confidence.mean(axis=1),
        "variability": confidence.std(axis=1),
        "turns": (correct[:, 1:] != correct[:, :-1]).sum(axis=1),
    }


def test_the_golden_case_of_the_original():
    """Made with the original's own script."""
    comparison = compare_changes(SCORES, golden(), TS, replicates=50, controls=50)
    summary = step_summary(along_path(SCORES, TS, replicates=50), comparison)
    assert summary.forgotten.tolist() == [1, 2, 0]
    assert summary.relearned.tolist() == [0, 0, 2]
    wanted = [[0.66667, 0.56667, 0.28674, 1.0], [0.5, 0.41667, 0.14734, 1.5]]
    np.testing.assert_allclose(summary[list(STATISTICS)].iloc[:2], wanted, atol=5e-6)
    assert summary[list(STATISTICS)].iloc[2].isna().all()  # of none there is no mean
    np.testing.assert_allclose(summary.correct, [0.75, 0.25, 0.75])


def test_lists_of_every_point():
    scores = np.array([[0.0, 1.0, 0.5], [0.5, 0.0, 0.5], [1.0, 0.2, 0.0]])
    lists = [{name: rows.tolist() for name, rows in found.items()} for found in score_lists(scores)]
    assert lists == [
        {"zero": [0], "one": [1], "up": [1, 2], "down": [], "up_to_one": [1], "down_to_zero": []},
        {"zero": [1], "one": [], "up": [0], "down": [1], "up_to_one": [], "down_to_zero": [1]},
        {"zero": [2], "one": [0], "up": [0, 1], "down": [2], "up_to_one": [0],
         "down_to_zero": [2]},
    ]  # fmt: skip
    sizes = along_path(scores, TS, replicates=50)
    for k, found in enumerate(lists):
        assert {name: sizes[name][k] for name in found} == {n: len(r) for n, r in found.items()}


matrices = st.integers(1, 5).flatmap(
    lambda points: st.integers(1, 8).flatmap(
        lambda n: arrays(float, (points, n), elements=st.sampled_from([0.0, 0.5, 1.0]))
    )
)


@given(matrices)
def test_changes_by_sets(scores):
    forgotten, relearned = forgotten_and_relearned(scores)
    before: set[int] = set()
    for k, row in enumerate(scores):
        zero = {i for i, value in enumerate(row) if value == 0}
        assert forgotten[k].tolist() == sorted(zero - before)
        assert relearned[k].tolist() == sorted(before - zero)
        # The number that the original prints.
        assert len(relearned[k]) == len(forgotten[k]) - (len(zero) - len(before))
        before = zero


@given(matrices, st.integers(0, 3))
def test_comparison_by_loops(scores, seed):
    points, n = scores.shape
    random = np.random.default_rng(seed)
    x = {"confidence": random.random(n), "turns": random.integers(0, 4, n)}
    ts = np.linspace(0, 1, points) if points > 1 else [0.0]
    table = compare_changes(scores, x, ts, replicates=20, controls=20, seed=seed)
    events = {change: [] for change in ("forgotten", "relearned")}
    for change, found in zip(events, forgotten_and_relearned(scores), strict=True):
        for k in range(points):
            rows = table[(table.step == k) & (table.change == change)].set_index("statistic")
            if change == "relearned" and k == 0:
                assert not len(rows)
                continue
            for name, values in x.items():
                chosen = [float(values[i]) for i in found[k]]
                row = rows.loc[name]
                assert row.n == len(chosen)
                assert row.base == pytest.approx(np.mean(values))
                if chosen:
                    assert row["mean"] == pytest.approx(sum(chosen) / len(chosen))
                    wrong = scores[k - 1] == 0 if k else np.zeros(n, dtype=bool)
                    pool = values[~wrong if change == "forgotten" else wrong]
                    assert row.control == pytest.approx(pool.mean())
                    assert pool.min() - 1e-9 <= row.control_low <= row.control_high
                    assert 1 / 21 <= row.p_value <= row.p_holm <= 1
                else:
                    assert np.isnan(row["mean"]) and np.isnan(row.p_value)
            if k:
                events[change] += list(found[k])
        for name, values in x.items():
            row = table[
                (table.step == -1) & (table.change == change) & (table.statistic == name)
            ].iloc[0]
            assert row.n == len(events[change])
            if row.n:
                assert row["mean"] == pytest.approx(np.mean([values[i] for i in events[change]]))


def test_intervals_cover_and_one_example_has_none():
    random = np.random.default_rng(0)
    n = 400
    x = random.normal(size=n)
    wrong = random.random(n) < 1 / (1 + np.exp(2 * x))  # what is low is forgotten
    scores = np.stack([np.ones(n), 1.0 - wrong])
    table = compare_changes(scores, {"confidence": x}, (0.0, 1.0))
    row = table[(table.step == 1) & (table.change == "forgotten")].iloc[0]
    assert row.low < row["mean"] < row.high < row.base_low
    assert row.difference_high < 0 and row.p_value == pytest.approx(1 / 1001)
    assert row.control_low < row.base < row.control_high  # all could be forgotten here
    standard = x[wrong].std() / np.sqrt(wrong.sum())
    assert (row.high - row.low) / (2 * 1.96 * standard) == pytest.approx(1, abs=0.15)
    one = np.array([[1.0, 1, 1, 1], [0, 1, 1, 1]])
    table = compare_changes(one, {"confidence": np.arange(4)}, (0.0, 1.0), replicates=50)
    row = table[(table.step == 1) & (table.change == "forgotten")].iloc[0]
    assert row["mean"] == 0 and np.isnan(row.low) and np.isnan(row.difference_high)


def test_the_control_is_the_hypergeometric_mean():
    """The deviation of means of random sets without replacement is known."""
    random = np.random.default_rng(1)
    x = random.random(30)
    scores = np.ones((2, 30))
    scores[1, :12] = 0
    row = compare_changes(
        scores, {"confidence": x}, (0, 1), controls=4000, level=0.6827
    ).query("step == 1 and change == 'forgotten'").iloc[0]  # fmt: skip
    deviation = x.std(ddof=1) * np.sqrt((1 - 12 / 30) / 12)
    assert (row.control_high - row.control_low) / 2 == pytest.approx(deviation, rel=0.06)


def test_chance_alone_is_seldom_called_a_difference():
    random = np.random.default_rng(2)
    called = 0
    for _ in range(60):
        scores = (random.random((4, 60)) < 0.8).astype(float)
        x = {name: random.random(60) for name in STATISTICS}
        table = compare_changes(scores, x, (0, 1, 2, 3), replicates=20, controls=99)
        called += bool((table[table.step == -1].p_holm <= 0.05).any())
    assert called <= 9  # 3 of 60 on average; 9 or fewer with probability 0.999


def test_what_cannot_be_compared():
    with pytest.raises(DataError, match="expected \\(points, examples\\)"):
        score_lists([1.0, 0.0])
    with pytest.raises(DataError, match="3 examples are described, 4 have scores"):
        compare_changes(SCORES, {"turns": [1, 2, 3]}, TS)
    with pytest.raises(DataError, match="the turns of example 2 is nan"):
        compare_changes(SCORES, {"turns": [1, 2, np.nan, 3]}, TS)


def test_differences_are_resampled_together_and_p_has_two_sides():
    random = np.random.default_rng(4)
    x = random.random(25)
    chosen = np.argsort(x)
    for rows in (chosen[:6], chosen[-6:]):  # the lowest and the highest
        scores = np.ones((2, 25))
        scores[1, rows] = 0
        table = compare_changes(scores, {"confidence": x}, (0, 1), replicates=80, controls=200)
        row = table.query("step == 1 and change == 'forgotten'").iloc[0]
        assert row.p_value == pytest.approx(1 / 201)
        generator, drawn = np.random.default_rng(0), []
        for _ in range(80):
            sample = generator.integers(0, 25, size=25)
            own = [i for i in sample if i in set(rows)]
            if own:
                drawn.append(x[own].mean() - x[sample].mean())
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (row.difference_low, row.difference_high) == pytest.approx((low, high))


def test_p_against_all_sets_of_that_size():
    from itertools import combinations

    x = np.array([0.1, 0.3, 0.35, 0.5, 0.52, 0.6, 0.7, 0.8, 0.95, 0.2])
    scores = np.ones((2, 10))
    rows = [1, 9, 3]
    scores[1, rows] = 0
    table = compare_changes(scores, {"confidence": x}, (0, 1), replicates=20, controls=4000)
    row = table.query("step == 1 and change == 'forgotten'").iloc[0]
    means = np.array([x[list(chosen)].mean() for chosen in combinations(range(10), 3)])
    far = abs(x[rows].mean() - x.mean())
    exact = np.mean(np.abs(means - x.mean()) >= far - 1e-12)
    assert row.p_value == pytest.approx(exact, abs=0.025)
    assert np.mean(means - x.mean() >= far) < exact - 0.05, "one side alone would be told apart"
