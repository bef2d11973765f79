"""Weights, arc lengths and distances of curves, against vectors and dense sums."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import BPoly

from landform.errors import ConfigError
from landform.geometry.paths import (
    Course,
    bezier_slopes,
    bezier_weights,
    curve_weights,
    polyline_weights,
    squared_distances,
)

T = np.linspace(0, 1, 23)


def control(points, size=7, seed=0):
    return np.random.default_rng(seed).normal(size=(points, size))


def course(kind, points):
    return Course(kind, squared_distances([torch.from_numpy(p) for p in points]))


@pytest.mark.parametrize("points", [2, 3, 4, 6])
def test_bezier_is_scipys(points):
    w = control(points)
    reference = BPoly(w[:, None, :], [0, 1])
    np.testing.assert_allclose(bezier_weights(T, points) @ w, reference(T), atol=1e-13)
    np.testing.assert_allclose(bezier_slopes(T, points) @ w, reference.derivative()(T), atol=1e-12)
    np.testing.assert_allclose(bezier_weights(T, points).sum(1), 1, atol=1e-14)


def test_the_quadratic_by_its_formula():
    expected = np.stack([(1 - T) ** 2, 2 * T * (1 - T), T**2], axis=1)
    np.testing.assert_allclose(bezier_weights(T, 3), expected, atol=1e-15)
    # With the middle point on the chord the curve is the line.
    a, b = control(2)
    line = bezier_weights(T, 3) @ np.stack([a, (a + b) / 2, b])
    np.testing.assert_allclose(line, np.outer(1 - T, a) + np.outer(T, b), atol=1e-14)


@pytest.mark.parametrize("kind", ["bezier", "polyline"])
@pytest.mark.parametrize("points", [2, 3, 5])
def test_both_ends_exactly(kind, points):
    weights = curve_weights(kind, [0, 1], points)
    assert weights.tolist() == [[1.0] + [0.0] * (points - 1), [0.0] * (points - 1) + [1.0]]


def test_polyline_weights_between_and_at_vertices():
    expected = np.array([[0.75, 0.25, 0, 0], [0, 0, 1, 0], [0, 0, 0.1, 0.9]])
    np.testing.assert_allclose(polyline_weights([1 / 12, 2 / 3, 29 / 30], 4), expected, atol=1e-12)
    for n in range(2, 60):  # k / n times n is not always k
        rows = polyline_weights(np.arange(n + 1) / n, n + 1)
        assert (rows == np.eye(n + 1)).all()


def test_an_unknown_kind():
    with pytest.raises(ConfigError, match="spline"):
        curve_weights("spline", T, 3)


@pytest.mark.parametrize("kind", ["bezier", "polyline"])
def test_lengths_and_distances_of_the_vectors_themselves(kind):
    w = control(5)
    found = course(kind, w)
    t = np.linspace(0, 1, 40_001)
    walked = curve_weights(kind, t, 5) @ w
    steps = np.linalg.norm(np.diff(walked, axis=0), axis=1)
    assert found.length == pytest.approx(steps.sum(), rel=1e-7)
    expected = (np.cumsum(steps) / steps.sum())[::400]
    np.testing.assert_allclose(found.arc(t[1::400]), expected, atol=1e-6)
    for vertex in range(5):
        expected = np.linalg.norm(walked - w[vertex], axis=1)
        np.testing.assert_allclose(found.distances(t, vertex), expected, atol=1e-6)
    assert found.chord == pytest.approx(np.linalg.norm(w[0] - w[-1]))


def test_the_length_of_a_parabola():
    # (2t - 1, 4t(1 - t)): from (-1, 0) over (0, 1) to (1, 0).
    found = course("bezier", np.array([[-1.0, 0], [0, 2], [1, 0]]))
    expected, _ = quad(lambda x: math.sqrt(1 + 4 * x * x), -1, 1)
    assert found.length == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["bezier", "polyline"])
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), n=st.integers(2, 6), points=st.integers(2, 12))
def test_points_at_equal_arc_length(kind, seed, n, points):
    found = course(kind, control(n, seed=seed))
    t, share = found.positions(points)
    assert t[0] == 0 and t[-1] == 1 and (np.diff(t) > 0).all()
    np.testing.assert_allclose(share, np.arange(points) / (points - 1), atol=1e-15)
    np.testing.assert_allclose(found.arc(t), share, atol=1e-10)


@pytest.mark.parametrize("kind", ["bezier", "polyline"])
def test_bends_among_the_points_each_once(kind):
    w = control(4)
    found = course(kind, w)
    t, share = found.positions(6, bends=True)
    assert len(t) == 8 and (np.diff(share) > 0).all() and (np.diff(t) > 0).all()
    assert {1 / 3, 2 / 3} <= set(t)
    np.testing.assert_allclose(found.arc(t), share, atol=1e-10)
    # Bends that are points already occur once: a polyline of equal pieces.
    even = course(kind, np.arange(4.0)[:, None] * np.ones(3))
    t, share = even.positions(4, bends=True)
    np.testing.assert_allclose(t, [0, 1 / 3, 2 / 3, 1])
    assert t[0] == share[0] == 0 and t[-1] == share[-1] == 1


def test_two_bends_in_one_place():
    w = np.array([[0.0, 0], [1, 1], [1, 1], [2, 0]])
    found = course("polyline", w)
    t, _ = found.positions(5)
    np.testing.assert_allclose(
        found.weights(t) @ w, [[0, 0], [0.5, 0.5], [1, 1], [1.5, 0.5], [2, 0]]
    )
    t, share = found.positions(5, bends=True)
    assert (np.diff(share) > 0).all()
