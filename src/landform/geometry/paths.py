"""Curve algebra: Bezier curves and polylines through control points w_0, ..., w_n.

A point of either is a weighted mean, theta(t) = sum_k c_k(t) w_k with sum_k c_k(t) = 1, so every
length is known from the squared distances D_jk = || w_j - w_k ||^2 alone: a difference of two such
means is sum_k e_k w_k with sum_k e_k = 0, and

    || sum_k e_k w_k ||^2 = -1/2 e^T D e.

Nothing here touches a vector of parameters, however long the vectors are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from torch import Tensor

from landform.errors import ConfigError
from landform.weights.distance import euclidean

__all__ = [
    "Course",
    "CurveKind",
    "Spacing",
    "bezier_slopes",
    "bezier_weights",
    "curve_weights",
    "polyline_weights",
    "squared_distances",
]

Floats = npt.NDArray[np.float64]
CurveKind = Literal["bezier", "polyline"]
Spacing = Literal["arc", "t"]

PANELS = 128
"""Pieces of a Bezier curve whose lengths are integrated one by one."""
NODES = 16
"""Gauss-Legendre nodes in each of them."""
TOUCHING = 1e-9
"""Positions closer than this are one: a vertex, or a point that is there already."""


def bezier_weights(t: npt.ArrayLike, points: int) -> Floats:
    """Weights of the control points of a Bezier curve, shape (len(t), points).

    c_k(t) = C(n, k) (1 - t)^(n - k) t^k with n = points - 1 (Garipov et al. 2018, section 3.3; the
    Bernstein polynomials). Exactly (1, 0, ..., 0) at t = 0 and (0, ..., 0, 1) at t = 1.
    """
    x = np.atleast_1d(np.asarray(t, dtype=np.float64))[:, None]
    n = points - 1
    k = np.arange(points)
    binomials = np.array([math.comb(n, int(j)) for j in k], dtype=np.float64)
    return np.asarray(binomials * (1.0 - x) ** (n - k) * x**k, dtype=np.float64)


def bezier_slopes(t: npt.ArrayLike, points: int) -> Floats:
    """Derivatives of `bezier_weights` in t, shape (len(t), points); each row sums to 0.

    c_k'(t) = n (b_{k-1}(t) - b_k(t)), b the weights of n control points.
    """
    lower = bezier_weights(t, points - 1)
    slopes = np.zeros((len(lower), points))
    slopes[:, 1:] += lower
    slopes[:, :-1] -= lower
    return (points - 1) * slopes


def polyline_weights(t: npt.ArrayLike, points: int) -> Floats:
    """Weights of the vertices of a polyline, shape (len(t), points): at most two are not 0.

    Segment k runs from t = k / n to t = (k + 1) / n, n = points - 1, whatever its length.
    """
    x = np.atleast_1d(np.asarray(t, dtype=np.float64)) * (points - 1)
    nearest = np.round(x)
    x = np.where(np.abs(x - nearest) < TOUCHING, nearest, x)  # k / n, times n, may miss k
    start = np.clip(np.floor(x), 0, points - 2).astype(int)
    rows = np.arange(len(x))
    weights = np.zeros((len(x), points))
    weights[rows, start] = 1.0 - (x - start)
    weights[rows, start + 1] = x - start
    return weights


def curve_weights(kind: CurveKind, t: npt.ArrayLike, points: int) -> Floats:
    """Weights of the control points of a curve of this kind, shape (len(t), points)."""
    if kind not in get_args(CurveKind):
        raise ConfigError(
            f"unknown kind of curve {kind!r}", remedy=f"one of {', '.join(get_args(CurveKind))}"
        )
    return (bezier_weights if kind == "bezier" else polyline_weights)(t, points)


def squared_distances(points: Sequence[Tensor]) -> Floats:
    """|| w_j - w_k ||^2 of flat vectors, shape (n, n), summed in float64 block by block."""
    squared = np.zeros((len(points), len(points)))
    for j in range(len(points)):
        for k in range(j):
            squared[j, k] = squared[k, j] = euclidean(points[j], points[k]) ** 2
    return squared


@dataclass(frozen=True, eq=False)
class Course:
    """Where a curve runs: arc lengths and distances, from the squared distances (n, n)."""

    kind: CurveKind
    squared: Floats

    @property
    def points(self) -> int:
        """Number of control points."""
        return len(self.squared)

    def weights(self, t: npt.ArrayLike) -> Floats:
        """Weights of the control points, shape (len(t), points)."""
        return curve_weights(self.kind, t, self.points)

    def _norms(self, differences: Floats) -> Floats:
        """|| sum_k e_k w_k || of every row e, whose sum is 0."""
        square = -0.5 * np.einsum("ij,jk,ik->i", differences, self.squared, differences)
        return np.asarray(np.sqrt(np.maximum(square, 0.0)), dtype=np.float64)

    def speed(self, t: npt.ArrayLike) -> Floats:
        """|| theta'(t) || of a Bezier curve, shape (len(t),)."""
        return self._norms(bezier_slopes(t, self.points))

    def distances(self, t: npt.ArrayLike, vertex: int) -> Floats:
        """|| theta(t) - w_vertex ||, shape (len(t),)."""
        differences = self.weights(t)
        differences[:, vertex] -= 1.0
        return self._norms(differences)

    @property
    def chord(self) -> float:
        """Distance between the two ends."""
        return math.sqrt(float(self.squared[0, -1]))

    @property
    def length(self) -> float:
        """Arc length of the whole curve."""
        return float(self._lengths[-1])

    @property
    def bends(self) -> Floats:
        """Positions t = k / n of the inner control points; a Bezier curve only comes near them."""
        return np.arange(1, self.points - 1) / (self.points - 1)

    @cached_property
    def _knots(self) -> Floats:
        pieces = PANELS if self.kind == "bezier" else self.points - 1
        return np.linspace(0.0, 1.0, pieces + 1)

    @cached_property
    def _lengths(self) -> Floats:
        """Arc length from the start to every knot."""
        if self.kind == "polyline":
            pieces = np.sqrt(np.diagonal(self.squared, offset=1))
        else:
            knots = self._knots
            pieces = np.array([self._integral(x, y) for x, y in pairwise(knots)])
        return np.concatenate([[0.0], np.cumsum(pieces)])

    def _integral(self, start: float, stop: float) -> float:
        """Length of a Bezier curve from t = start to t = stop: sum_i g_i || theta'(t_i) ||."""
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        half = (stop - start) / 2
        return float(half * (weights @ self.speed(start + half * (nodes + 1.0))))

    def arc(self, t: npt.ArrayLike) -> Floats:
        """Share of the arc length that lies before t, in [0, 1]; shape (len(t),)."""
        at = np.atleast_1d(np.asarray(t, dtype=np.float64))
        if self.kind == "polyline":
            return np.asarray(np.interp(at, self._knots, self._lengths) / self.length)
        piece = np.clip((at * PANELS).astype(int), 0, PANELS - 1)
        rest = [self._integral(self._knots[i], x) for i, x in zip(piece, at, strict=True)]
        return np.asarray(np.clip((self._lengths[piece] + rest) / self.length, 0.0, 1.0))

    def at_arc(self, share: npt.ArrayLike) -> Floats:
        """The t at which this share of the arc length has been walked: inverse of `arc`."""
        return np.array([self._invert(s) for s in np.atleast_1d(np.asarray(share, dtype=float))])

    def _invert(self, share: float) -> float:
        if share <= 0.0 or share >= 1.0:
            return float(share >= 1.0)
        target = share * self.length
        # The last knot not beyond the target; pieces of no length (two vertices in one place) are
        # passed over.
        piece = int(np.searchsorted(self._lengths, target, side="right")) - 1
        low, high = self._knots[piece], self._knots[piece + 1]
        walked, size = self._lengths[piece], self._lengths[piece + 1] - self._lengths[piece]
        if self.kind == "polyline":
            return float(low + (high - low) * (target - walked) / size)

        def missing(t: float) -> float:
            return float(walked) + self._integral(low, t) - target

        if missing(high) <= 0.0:  # rounding, where the target is the knot itself
            return float(high)
        return float(brentq(missing, low, high, xtol=1e-14, rtol=1e-14))

    def positions(
        self, points: int, *, bends: bool = False, spacing: Spacing = "arc"
    ) -> tuple[Floats, Floats]:
        """(t, share of the arc length) of points at equal arc length or equal steps of t, both ends
        included.

        With `bends` also at the positions of the inner control points; each position once, rising.
        """
        grid = np.arange(points) / (points - 1)
        t, share = (grid, self.arc(grid)) if spacing == "t" else (self.at_arc(grid), grid)
        if bends and self.points > 2:
            own, own_share = self.bends, self.arc(self.bends)
            far = np.abs(share[:, None] - own_share[None, :]).min(axis=1) > TOUCHING
            far[[0, -1]] = True
            inner = (own_share > TOUCHING) & (own_share < 1.0 - TOUCHING)
            t = np.concatenate([t[far], own[inner]])
            share = np.concatenate([share[far], own_share[inner]])
            share, first = np.unique(np.round(share, 12), return_index=True)
            t = t[first]
        return t, share
