"""Curve numbers against their definitions, written out as loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import landform as lf
from landform.errors import ConfigError, NonFiniteError
from landform.geometry.curves import (
    area_under_curve,
    barrier_height,
    bump_area,
    bump_height,
    convexity_gap,
    convexity_gap_location,
)

GEN_GEN = [0.4814, 0.4358, 0.4116, 0.4064, 0.4100, 0.4100, 0.4064, 0.4116, 0.4358, 0.4814]
GEN_HEUR = [0.4814, 0.4343, 0.4232, 0.4510, 0.4951, 0.5005, 0.4620, 0.4350, 0.4494, 0.5056]
HEUR_HEUR = [0.5056, 0.4526, 0.4292, 0.4334, 0.4474, 0.4474, 0.4334, 0.4292, 0.4526, 0.5056]
# The same lines on HANS, lexical overlap, non-entailment.
HANS_GEN_GEN = [1.3056, 1.2229, 1.1506, 1.0938, 1.0614, 1.0614, 1.0938, 1.1506, 1.2229, 1.3056]
HANS_GEN_HEUR = [1.3056, 1.4773, 1.6191, 1.6464, 1.5992, 1.6382, 1.8458, 2.1687, 2.5562, 3.0006]
HANS_HEUR_HEUR = [3.0006, 2.5448, 2.1540, 1.8593, 1.7001, 1.7001, 1.8593, 2.1540, 2.5448, 3.0006]

losses = st.integers(2, 9).flatmap(
    lambda n: arrays(np.float64, n, elements=st.floats(-100, 100, width=32))
)


def brute(curve, t=None):
    """(barrier, gap) by the definitions."""
    n = len(curve)
    t = np.arange(n) if t is None else t
    barrier = gap = 0.0
    for i in range(n):
        for j in range(i + 2, n):
            for k in range(i + 1, j):
                chord = ((t[j] - t[k]) * curve[i] + (t[k] - t[i]) * curve[j]) / (t[j] - t[i])
                gap = max(gap, curve[k] - chord)
                if (i, j) == (0, n - 1):
                    barrier = max(barrier, curve[k] - chord)
    return barrier, gap


@pytest.mark.parametrize(
    ("curve", "gap", "barrier"),
    [
        (GEN_GEN, 0.0036, 0.0),
        (GEN_HEUR, 0.0702, 0.0057),
        (HEUR_HEUR, 0.0182, 0.0),
        (HANS_GEN_GEN, 0.0, 0.0),
        (HANS_GEN_HEUR, 0.1804, 0.0),
        (HANS_HEUR_HEUR, 0.0, 0.0),
    ],
)
def test_published_mean_curves(curve, gap, barrier):
    # The losses are rounded to four decimals, the published gaps come from those before that.
    assert lf.convexity_gap(curve) == pytest.approx(gap, abs=1e-4)
    assert lf.barrier_height(curve) == pytest.approx(barrier, abs=1e-4)
    assert isinstance(lf.convexity_gap(curve), float)


def test_many_random_curves_equal_the_loops():
    random = np.random.default_rng(0)
    for points in (3, 4, 5, 10, 17):
        curves = random.normal(size=(3, 20, points))
        t = np.cumsum(random.uniform(0.1, 3, points))
        for positions in (None, t):
            barrier, gap = barrier_height(curves, t=positions), convexity_gap(curves, t=positions)
            assert gap.shape == barrier.shape == (3, 20)
            expected = np.array([brute(c, positions) for c in curves.reshape(-1, points)])
            np.testing.assert_allclose(barrier.ravel(), expected[:, 0], atol=1e-13)
            np.testing.assert_allclose(gap.ravel(), expected[:, 1], atol=1e-13)


def test_blocks_do_not_change_the_answer():
    curves = np.random.default_rng(1).normal(size=(5003, 6))
    whole = convexity_gap(curves)
    np.testing.assert_array_equal(whole[2040:2060], convexity_gap(curves[2040:2060]))
    assert whole[5002] == pytest.approx(brute(curves[5002])[1], abs=1e-13)


def test_the_input_is_left_alone():
    curves = np.random.default_rng(1).normal(size=(1, 10))
    kept = curves.copy()
    convexity_gap(curves)
    barrier_height(curves)
    np.testing.assert_array_equal(curves, kept)


def test_unequal_spacing_changes_the_chord():
    assert barrier_height([0, 1, 0]) == 1
    assert barrier_height([0, 1, 4], t=[0, 1, 4]) == 0
    assert barrier_height([0, 1, 4], t=[0, 3, 4]) == 0
    assert barrier_height([0, 1, 4], t=[0, 0.5, 4]) == pytest.approx(0.5)


@given(losses)
def test_reversal_changes_nothing(curve):
    assert convexity_gap(curve) == pytest.approx(convexity_gap(curve[::-1]), abs=1e-10)
    assert barrier_height(curve) == pytest.approx(barrier_height(curve[::-1]), abs=1e-10)


@given(losses)
def test_gap_is_at_least_the_barrier(curve):
    barrier, gap = brute(curve)
    assert convexity_gap(curve) == pytest.approx(gap, abs=1e-10)
    assert barrier_height(curve) == pytest.approx(barrier, abs=1e-10)
    assert convexity_gap(curve) >= barrier_height(curve) - 1e-12


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=9))
def test_gap_is_zero_exactly_for_convex_curves(curve):
    convex = bool((np.diff(curve, 2) >= 0).all())
    assert (convexity_gap(curve) == 0.0) == convex
    sorted_slopes = np.cumsum([0, *sorted(curve)])
    assert convexity_gap(sorted_slopes) == 0.0


def test_rounding_is_no_ridge():
    """Straight lines whose points are no exact numbers: the formula leaves 1e-17, which is 0."""
    slopes = np.random.default_rng(0).normal(size=(500, 1))
    lines = 0.1 + slopes * np.linspace(0, 1, 10)
    assert (convexity_gap(lines) == 0.0).all()
    assert (barrier_height(lines) == 0.0).all()
    assert convexity_gap(1e-30 * np.array([0.0, 1.0, 0.0])) == 1e-30  # small, but a ridge


@given(losses, st.floats(-5, 5), st.floats(-5, 5), st.floats(0.01, 50))
def test_affine_functions_do_not_count_and_scale_does(curve, slope, offset, factor):
    tilted = curve + offset + slope * np.arange(len(curve))
    for height in (convexity_gap, barrier_height):
        assert height(tilted) == pytest.approx(height(curve), abs=1e-9)
        assert height(factor * curve) == pytest.approx(factor * height(curve), rel=1e-9, abs=1e-9)


@settings(max_examples=40)
@given(losses)
def test_location_attains_the_gap(curve):
    place = convexity_gap_location(curve)
    gap = convexity_gap(curve)
    if place is None:
        assert gap == pytest.approx(0.0, abs=1e-10)
        return
    i, k, j = place
    assert 0 <= i < k < j < len(curve)
    assert curve[k] - ((j - k) * curve[i] + (k - i) * curve[j]) / (j - i) == pytest.approx(
        gap, abs=1e-10
    )


def test_location_of_the_published_ridge():
    assert convexity_gap_location(GEN_HEUR) == (2, 5, 7)
    found = convexity_gap_location([[3, 1, 0, 1, 3], [0, 0, 1, 0, 0]])
    assert found.tolist() == [[-1, -1, -1], [1, 2, 3]]


def test_noise_lifts_the_gap_of_a_straight_line():
    """Mean 2.48 and 95th percentile 3.82 deviations at 10 points; 3.26 and 4.12 at 20 and 50."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(60_000, 10)) + np.arange(10)
    gaps = convexity_gap(noise)
    assert gaps.mean() == pytest.approx(2.48, abs=0.02)
    assert np.quantile(gaps, 0.95) == pytest.approx(3.82, abs=0.04)
    assert barrier_height(noise).mean() == pytest.approx(1.54, abs=0.02)
    assert convexity_gap(random.normal(size=(8_000, 20))).mean() == pytest.approx(3.26, abs=0.04)
    assert convexity_gap(random.normal(size=(2_000, 50))).mean() == pytest.approx(4.12, abs=0.07)


def test_short_curves_have_no_interior():
    for height in (convexity_gap, barrier_height, bump_height):
        assert height([1.0, 3.0]) == 0.0
    assert convexity_gap(np.zeros((0, 10))).shape == (0,)


@pytest.mark.parametrize("bad", [[1.0], 3.0, np.zeros((4, 1)), []])
def test_too_few_points(bad):
    with pytest.raises(ConfigError, match="2 points"):
        convexity_gap(bad)


@pytest.mark.parametrize("t", [[0, 1], [0, 2, 1], [0, 1, 1], [0, 1, np.nan]])
def test_bad_positions(t):
    with pytest.raises(ConfigError, match=r"^t "):
        convexity_gap([1, 2, 3], t=t)


def test_losses_that_are_not_finite_are_named():
    with pytest.raises(NonFiniteError, match=r"^point 2: the loss is nan"):
        convexity_gap([1, 2, np.nan, 4])
    curves = np.zeros((2, 3, 4))
    curves[1, 0, 3] = -np.inf
    with pytest.raises(NonFiniteError, match=r"curve \(1, 0\), point 3: the loss is -inf"):
        barrier_height(curves)
    with pytest.raises(NonFiniteError, match="curve 1, point 0"):
        area_under_curve([[0, 1], [np.inf, -np.inf]])
    assert convexity_gap([1e308, 1e308, 1e308]) == 0.0  # their sum overflows; they are finite


# --- the relatives -------------------------------------------------------------------------------


def test_area_is_a_trapezoid_over_the_minimum():
    curve = np.array([3.0, 1.0, 2.0, 5.0])
    assert area_under_curve(curve) == pytest.approx((1 + 0 + 1 + 2) / 3)
    assert area_under_curve(curve, 6.0) == pytest.approx(6 * area_under_curve(curve))
    assert area_under_curve(curve) == pytest.approx(np.trapezoid(curve - 1, dx=1 / 3))
    several = area_under_curve(np.stack([curve, curve + 7]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(several, [4 / 3, 8 / 3])
    t = np.array([0.0, 1.0, 5.0, 6.0])
    assert area_under_curve(curve, t=t) == pytest.approx(np.trapezoid(curve - 1, t) / 6)
    assert area_under_curve([2.0, 2.0, 2.0]) == 0.0
    for distance in ([1.0, 2.0], -1.0, np.nan):
        with pytest.raises(ConfigError, match="distance"):
            area_under_curve(curve, distance)


def brute_bump(curve, variant):
    """(height, i, j) by walking down from every peak."""
    best = (0.0, 0, 0)
    n = len(curve)
    for k in range(1, n - 1):
        if not (curve[k] > curve[k - 1] and curve[k] > curve[k + 1]):
            continue
        i, j = k - 1, k + 1
        if variant == "global-chord":
            i = max(range(k), key=lambda m: (-curve[m], m))
            j = min(range(k + 1, n), key=lambda m: (curve[m], m))
        else:
            while i > 0 and curve[i - 1] < curve[i]:
                i -= 1
            while j < n - 1 and curve[j + 1] < curve[j]:
                j += 1
        low = (curve[i] + curve[j]) / 2
        if variant != "mean-drop":
            low = ((j - k) * curve[i] + (k - i) * curve[j]) / (j - i)
        if curve[k] - low > best[0]:
            best = (curve[k] - low, i, j)
    return best


@pytest.mark.parametrize("variant", ["mean-drop", "chord", "global-chord"])
def test_bumps_equal_a_walk(variant):
    random = np.random.default_rng(3)
    curves = random.integers(0, 6, size=(400, 9)).astype(float)  # many ties and plateaus
    expected = [brute_bump(curve, variant) for curve in curves]
    np.testing.assert_allclose(bump_height(curves, variant), [e[0] for e in expected], atol=1e-12)
    areas = []
    for curve, (height, i, j) in zip(curves, expected, strict=True):
        chord = np.interp(np.arange(i, j + 1), [i, j], [curve[i], curve[j]])
        area = np.trapezoid(curve[i : j + 1] - chord) / 8 if height else 0.0
        areas.append(max(area, 0.0))
    np.testing.assert_allclose(bump_area(curves, variant=variant), areas, atol=1e-12)


def test_bumps_by_hand():
    curve = [5.0, 1.0, 2.0, 6.0, 3.0, 0.0, 4.0]
    assert bump_height(curve) == pytest.approx(6 - (1 + 0) / 2)
    assert bump_height(curve, "chord") == pytest.approx(6 - 0.5)  # k = 3 of i = 1, j = 5
    # The small peak (k = 4) stands higher above its chord than the high one (k = 2).
    curve = [2.0, 1.0, 3.0, 2.5, 2.6, 0.0]
    assert bump_height(curve) == pytest.approx(2.6 - (2.5 + 0.0) / 2)
    assert bump_height(curve, "chord") == pytest.approx(2.6 - (2.5 + 0.0) / 2)
    assert bump_height(curve, "global-chord") == pytest.approx(2.6 - (0.25 * 1.0 + 0.75 * 0.0))
    assert bump_height([1.0, 2.0, 2.0, 1.0]) == 0.0  # a plateau is no strict maximum
    assert bump_area([0.0, 1.0, 0.0], 3.0) == pytest.approx(1.5)
    with pytest.raises(ConfigError, match="bogus"):
        bump_height(curve, "bogus")
