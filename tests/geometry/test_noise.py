"""Intervals and the noise floor of curve numbers."""

from __future__ import annotations

import numpy as np
import pytest

from landform.errors import ConfigError, NonFiniteError
from landform.evaluation.intervals import resample_counts
from landform.geometry import curves as module
from landform.geometry.curves import (
    area_under_curve,
    barrier_height,
    bump_height,
    convexity_gap,
    curve_statistics,
    replicate_statistics,
)


def simulated(true, examples, amplitude, random):
    """Losses (P, N): hard and easy examples, and wiggles of each along the line."""
    u = np.linspace(0, 1, len(true))
    smooth = np.linalg.cholesky(
        np.exp(-(((u[:, None] - u) / 0.25) ** 2)) + 1e-9 * np.eye(len(true))
    )
    level = random.exponential(0.4, size=examples) - 0.4
    size = random.choice([-1, 1], size=examples) * random.exponential(amplitude, size=examples)
    wiggle = size * (smooth @ random.normal(size=(len(true), examples)))
    jitter = 0.05 * amplitude * random.normal(size=wiggle.shape)
    return true[:, None] + level + wiggle + jitter


U = np.linspace(0, 1, 10)
LINE = 0.45 + 0.05 * U
RIDGE = np.array([0.4814, 0.4343, 0.4232, 0.451, 0.4951, 0.5005, 0.462, 0.435, 0.4494, 0.5056])


def by_hand(losses, weights, replicates, seed):
    """Mean curve and replicates of one (P, N) set of losses, one replicate at a time."""
    counts = resample_counts(losses.shape[1], replicates, seed)
    drawn = np.stack([(losses * c * weights).sum(1) / (c * weights).sum() for c in counts], axis=-1)
    return (losses * weights).sum(1) / weights.sum(), drawn


def test_statistics_equal_a_bootstrap_by_hand():
    random = np.random.default_rng(0)
    losses = np.stack([simulated(RIDGE, 40, 0.3, random) for _ in range(6)]).reshape(2, 3, 10, 40)
    weights = random.integers(1, 9, 40).astype(float)
    found = curve_statistics(
        losses, weights, replicates=101, seed=3, level=0.9, distance=np.arange(6.0).reshape(2, 3)
    )
    for place in np.ndindex(2, 3):
        mean, drawn = by_hand(losses[place], weights, 101, 3)
        np.testing.assert_allclose(found.loss[place], mean)
        np.testing.assert_allclose(found.loss_low[place], np.quantile(drawn, 0.05, axis=1))
        np.testing.assert_allclose(found.loss_high[place], np.quantile(drawn, 0.95, axis=1))
        assert found.barrier_height[place] == pytest.approx(barrier_height(mean))
        assert found.convexity_gap[place] == pytest.approx(convexity_gap(mean))
        assert found.bump_height[place] == pytest.approx(bump_height(mean))
        distance = 3.0 * place[0] + place[1]
        assert found.area_under_curve[place] == pytest.approx(area_under_curve(mean, distance))
        noise = convexity_gap(drawn.T - mean)
        floor = np.quantile(noise, 0.9)
        assert found.noise_floor[place] == pytest.approx(floor)
        gap = convexity_gap(mean)
        assert found.gap_p_value[place] == pytest.approx((1 + (noise >= gap).sum()) / 102)
        low, high = np.quantile(convexity_gap(drawn.T), [0.05, 0.95])
        expected = 0.0 if gap <= floor else max(0.0, 2 * gap - high)
        assert found.gap_low[place] == pytest.approx(expected, abs=1e-12)
        assert found.gap_high[place] == pytest.approx(max(high, 2 * gap - low))
        barrier = barrier_height(mean)
        low, high = np.quantile(barrier_height(drawn.T), [0.05, 0.95])
        assert found.barrier_low[place] == pytest.approx(max(0.0, 2 * barrier - high), abs=1e-12)
        assert found.barrier_high[place] == pytest.approx(max(high, 2 * barrier - low))


def test_chunks_do_not_change_the_answer(monkeypatch):
    losses = np.random.default_rng(1).random((7, 5, 30)).astype(np.float32)
    whole = curve_statistics(losses, replicates=50)
    monkeypatch.setattr(module, "REPLICATE_BYTES", 8 * 5 * 50 * 2)
    pieces = curve_statistics(losses, replicates=50)
    single = curve_statistics(losses[4], replicates=50)
    for name in vars(whole):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-12)
        np.testing.assert_allclose(getattr(single, name), getattr(whole, name)[4], atol=1e-12)


def test_given_replicates_give_the_same():
    losses = simulated(RIDGE, 60, 0.2, np.random.default_rng(2))
    mean, drawn = by_hand(losses, np.ones(60), 80, 0)
    expected = curve_statistics(losses, replicates=80, seed=0)
    found = replicate_statistics(mean, drawn)
    for name in vars(expected):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-12)
    with pytest.raises(ConfigError, match="replicates"):
        replicate_statistics(mean, drawn[:-1])


def test_the_upper_end_is_the_larger_of_two():
    """Replicates skewed downwards: 2 h - q_low lies above q_high."""
    curve = np.array([0.0, 1.0, 0.0])
    drawn = np.zeros((3, 101))
    drawn[1] = 1.0 - np.linspace(0, 0.8, 101)
    found = replicate_statistics(curve, drawn)
    low, high = np.quantile(drawn[1], [0.025, 0.975])
    assert high < 1.0
    for end in (found.barrier_high, found.gap_high):
        assert end == pytest.approx(2.0 - low)


def test_what_examples_share_is_no_noise():
    """Hard examples shift the whole curve, not its shape: no floor comes of them."""
    level = np.random.default_rng(0).exponential(size=200)
    found = curve_statistics(RIDGE[:, None] + level, replicates=100)
    assert found.noise_floor == pytest.approx(0.0, abs=1e-12)
    assert found.gap_low == pytest.approx(found.convexity_gap, abs=1e-12)
    assert found.loss_high[0] - found.loss_low[0] > 0.1
    assert found.gap_p_value == pytest.approx(1 / 101)


def test_coverage_and_floor():
    """A straight line stays under the floor as often as promised; a ridge stands above it."""
    random = np.random.default_rng(5)
    for true, covered_at_least in ((LINE, 0.89), (RIDGE, 0.90)):
        gap, barrier = convexity_gap(true), barrier_height(true)
        losses = np.stack([simulated(true, 256, 0.1, random) for _ in range(300)])
        found = curve_statistics(losses, replicates=300)
        covered = (found.gap_low <= gap) & (gap <= found.gap_high)
        assert covered.mean() >= covered_at_least
        covered = (found.barrier_low <= barrier) & (barrier <= found.barrier_high)
        assert covered.mean() >= covered_at_least
        exceeds = (found.convexity_gap > found.noise_floor).mean()
        if true is LINE:
            assert 0.02 <= exceeds <= 0.11
            assert 0.02 <= (found.gap_p_value <= 0.05).mean() <= 0.11
        else:
            assert exceeds > 0.95


def test_replicates_without_weight_are_dropped():
    losses = np.random.default_rng(0).random((4, 3))
    found = curve_statistics(losses, [1.0, 0.0, 0.0], replicates=60)
    np.testing.assert_allclose(found.loss, losses[:, 0])
    np.testing.assert_allclose(found.loss_low, losses[:, 0])


def test_bad_input_is_named():
    losses = np.zeros((3, 4, 5))
    losses[2, 1, 3] = np.nan
    with pytest.raises(NonFiniteError, match="curve 2, point 1, example 3: the loss is nan"):
        curve_statistics(losses)
    for shape in ((5,), (1, 5), (4, 0)):
        with pytest.raises(ConfigError, match="losses have shape"):
            curve_statistics(np.zeros(shape))
    good = np.zeros((4, 5))
    with pytest.raises(ConfigError, match="weights"):
        curve_statistics(good, np.ones(4))
    with pytest.raises(ConfigError, match="level"):
        curve_statistics(good, level=1.0)
    with pytest.raises(ConfigError, match="replicates"):
        curve_statistics(good, replicates=0)
    with pytest.raises(ConfigError, match="distance"):
        curve_statistics(good, distance=[1.0, 2.0])
