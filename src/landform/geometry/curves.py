"""Numbers of a loss curve along a segment: barriers, the convexity gap, bumps, and their noise.

A curve is an array of P losses at positions t_0 < ... < t_{P-1} (equally spaced unless `t` says
otherwise); a set of curves is (..., P), and every function maps (..., P) to (...), and one curve
(P,) to a Python float. Curves with fewer than three points have no interior, so their barrier,
gap and bumps are 0. The definitions follow Juneja et al. 2023 (arXiv 2205.12411).

Losses that are not finite raise NonFiniteError, which names the curve and the point; a shape or
an option that makes no sense raises ConfigError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from landform.errors import ConfigError, NonFiniteError
from landform.evaluation.intervals import example_weights, percentile_interval, resample_counts

__all__ = [
    "BumpVariant",
    "CurveStatistics",
    "area_under_curve",
    "barrier_height",
    "bump_area",
    "bump_height",
    "convexity_gap",
    "convexity_gap_location",
    "curve_statistics",
    "replicate_statistics",
]

Floats = npt.NDArray[np.float64]
BumpVariant = Literal["mean-drop", "chord", "global-chord"]

BLOCK = 2048
"""Curves worked on at a time: few enough for their buffers to stay in the processor's cache."""

REPLICATE_BYTES = 1 << 24
"""Size of the replicates of one chunk of curves; a few buffers of this size exist at a time."""

ROUNDING = 16 * np.finfo(np.float64).eps
"""Heights below this share of the curve's largest |loss| are rounding errors: reported as 0."""


# --- the shape of the input ----------------------------------------------------------------------


def _points_first(losses: npt.ArrayLike) -> tuple[Floats, tuple[int, ...]]:
    """Losses as (P, curves), contiguous, and the shape (...) of the answer."""
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] < 2:
        raise ConfigError(
            f"losses of shape {values.shape} are no curves: the last axis needs 2 points or more"
        )
    flat = values.reshape(-1, values.shape[-1])
    _check_finite(flat, values.shape[:-1])
    return np.ascontiguousarray(flat.T), values.shape[:-1]


def _check_finite(flat: Floats, shape: tuple[int, ...], first: int = 0) -> None:
    """NonFiniteError for the first bad entry of (curves, P) or (curves, P, N)."""
    # One pass without a Boolean copy of the data: a sum is finite only if its terms are, up to
    # overflow, which the exact look that follows clears.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(flat.sum()):
            return
    bad = np.argwhere(~np.isfinite(flat))
    if not len(bad):
        return
    place = tuple(int(i) for i in bad[0])
    where = f"point {place[1]}"
    if shape:
        index = tuple(int(i) for i in np.unravel_index(first + place[0], shape))
        where = f"curve {index[0] if len(index) == 1 else index}, {where}"
    if len(place) > 2:
        where += f", example {place[2]}"
    raise NonFiniteError(
        f"{where}: the loss is {flat[place]}",
        remedy="look for overflow in that model (float16?) or for a broken checkpoint",
    )


def _spacing(t: npt.ArrayLike | None, points: int) -> Floats:
    """Positions of the points, 0..P-1 by default."""
    if t is None:
        return np.arange(points, dtype=np.float64)
    positions = np.asarray(t, dtype=np.float64)
    if positions.shape != (points,):
        raise ConfigError(f"t has shape {positions.shape}, but the curves have {points} points")
    if not np.isfinite(positions).all() or (np.diff(positions) <= 0).any():
        raise ConfigError("t must be finite and strictly increasing along the curve")
    return positions


def _answer(values: Floats, shape: tuple[int, ...]) -> Any:
    """A float for one curve, an array (...) for many."""
    return values.reshape(shape) if shape else float(values[0])


def _snap(heights: Floats, curves: Floats) -> Floats:
    """Heights with those set to 0, in place, that are below the rounding error of their curve."""
    largest = max(float(curves.max(initial=0.0)), -float(curves.min(initial=0.0)))
    (small,) = np.nonzero(heights <= ROUNDING * largest)
    if len(small):
        bound = ROUNDING * np.abs(curves[:, small]).max(axis=0)
        heights[small[heights[small] <= bound]] = 0.0
    return heights


# --- barrier and gap -----------------------------------------------------------------------------


def _barriers(curves: Floats, t: Floats) -> Floats:
    """Barrier heights of (P, curves)."""
    best = np.zeros(curves.shape[1])
    share = (t - t[0]) / (t[-1] - t[0])
    for start in range(0, curves.shape[1], BLOCK):
        block, out = curves[:, start : start + BLOCK], best[start : start + BLOCK]
        rise, part = np.empty_like(out), np.empty_like(out)
        for k in range(1, len(t) - 1):
            np.multiply(block[0], share[k] - 1.0, out=rise)
            np.multiply(block[-1], share[k], out=part)
            rise -= part
            rise += block[k]
            np.maximum(out, rise, out=out)
        _snap(out, block)
    return best


def _gaps(curves: Floats, t: Floats) -> Floats:
    """Convexity gaps of (P, curves)."""
    best = np.zeros(curves.shape[1])
    for start in range(0, curves.shape[1], BLOCK):
        block, out = curves[:, start : start + BLOCK], best[start : start + BLOCK]
        hull = _convex_minorant(block, t)
        for k in range(1, len(t) - 1):
            np.subtract(block[k], hull[k], out=hull[k])
            np.maximum(out, hull[k], out=out)
        _snap(out, block)
    return best


def _convex_minorant(block: Floats, t: Floats) -> Floats:
    """The greatest convex function below each curve of (P, curves), at the points.

    Points are added from left to right. With point m the minorant E of points 0..m-1 can only fall,
    to the lowest line from (t_m, L_m) to a point of E on the left:
    E(k) <- min(E(k), L_m - (t_m - t_k) max_{i<k} (L_m - E(i)) / (t_m - t_i)).
    The maximum runs along with k, so that a curve costs P^2/2 steps and three rows of memory.
    """
    hull = np.array(block)
    steepest, line = np.empty(block.shape[1]), np.empty(block.shape[1])
    for m in range(2, len(t)):
        np.subtract(block[m], hull[0], out=steepest)
        steepest /= t[m] - t[0]
        for k in range(1, m):
            np.multiply(steepest, t[k] - t[m], out=line)
            line += block[m]
            np.minimum(hull[k], line, out=hull[k])
            if k < m - 1:
                np.subtract(block[m], hull[k], out=line)
                line /= t[m] - t[k]
                np.maximum(steepest, line, out=steepest)
    return hull


def barrier_height(losses: npt.ArrayLike, *, t: npt.ArrayLike | None = None) -> Any:
    """Barrier height: how far the curve rises above the chord between its two ends.

    BH = max(0, max_k L_k - [(1 - s_k) L_0 + s_k L_{P-1}]), s_k = (t_k - t_0) / (t_{P-1} - t_0),
    in the unit of the losses (nats). `losses` (..., P) -> (...); `t` (P,) if not equally spaced.
    """
    curves, shape = _points_first(losses)
    return _answer(_barriers(curves, _spacing(t, len(curves))), shape)


def convexity_gap(losses: npt.ArrayLike, *, t: npt.ArrayLike | None = None) -> Any:
    """Convexity gap: the largest barrier height of any sub-segment of the curve.

    CG = max(0, max_{i<k<j} L_k - [(t_j - t_k) L_i + (t_k - t_i) L_j] / (t_j - t_i)), in the unit of
    the losses (nats). `losses` (..., P) -> (...); `t` (P,) if not equally spaced.

    For a fixed k the lowest chord over k is the greatest convex function below the curve, so the
    gap is the largest distance of the curve from that function: exact in P^2/2 instead of P^3/6
    steps.
    The gap is 0 exactly when the curve is convex at its points, never below the barrier height,
    unchanged by reversal and by adding an affine function, and scales with the losses. It is a
    maximum, so noise can only raise it: see `noise_floor` in `curve_statistics`.
    """
    curves, shape = _points_first(losses)
    return _answer(_gaps(curves, _spacing(t, len(curves))), shape)


def convexity_gap_location(losses: npt.ArrayLike, *, t: npt.ArrayLike | None = None) -> Any:
    """Where the convexity gap is: the ridge k and the ends i < k < j of the sub-segment.

    One curve: a tuple (i, k, j), or None for a convex curve. Many curves (..., P): an integer array
    (..., 3), with -1 three times for convex curves. Among equal maxima the shortest, then the first
    sub-segment is named.
    """
    curves, shape = _points_first(losses)
    positions = _spacing(t, len(curves))
    gaps = _gaps(curves, positions)
    best = np.zeros_like(gaps)
    place = np.full((len(gaps), 3), -1)
    for width in range(2, len(curves)):
        for i in range(len(curves) - width):
            j = i + width
            for k in range(i + 1, j):
                share = (positions[k] - positions[i]) / (positions[j] - positions[i])
                rise = curves[k] - (1.0 - share) * curves[i] - share * curves[j]
                # A longer segment must be better by more than rounding.
                better = (gaps > 0) & (rise > best + ROUNDING * np.abs(curves[k]))
                best[better] = rise[better]
                place[better] = (i, k, j)
    if shape:
        return place.reshape(*shape, 3)
    return None if place[0, 0] < 0 else tuple(int(index) for index in place[0])


# --- the three relatives -------------------------------------------------------------------------


def area_under_curve(
    losses: npt.ArrayLike,
    distance: npt.ArrayLike = 1.0,
    *,
    t: npt.ArrayLike | None = None,
) -> Any:
    """Area between the curve and its own minimum: the trapezoid rule over L - min L.

    `losses` (..., P) at the positions `t` (P,), rising (default: equally spaced) -> (...).
    `distance` is the length of the segment in weight space, a number or an array (...): the area is
    proportional to it. The unit is nats times the unit of `distance`.
    """
    curves, shape = _points_first(losses)
    positions = _spacing(t, len(curves))
    length = np.asarray(distance, dtype=np.float64)
    if length.shape not in ((), shape):
        raise ConfigError(f"distance has shape {length.shape}, expected {shape} or one number")
    if not np.isfinite(length).all() or (length < 0).any():
        raise ConfigError("distance must be finite and not negative")
    return _answer(_areas(curves, positions) * length.reshape(-1), shape)


def _areas(curves: Floats, t: Floats) -> Floats:
    """Areas of (P, curves) for a segment of length 1."""
    steps = np.diff(t) / (t[-1] - t[0])
    weights = np.concatenate([[0.0], steps]) / 2 + np.concatenate([steps, [0.0]]) / 2
    area: Floats = weights @ curves - curves.min(axis=0)
    return np.maximum(area, 0.0)


def bump_height(
    losses: npt.ArrayLike,
    variant: BumpVariant = "mean-drop",
    *,
    t: npt.ArrayLike | None = None,
) -> Any:
    """Height of the highest bump: a strict interior maximum over the minima beside it.

    From every point k with L_{k-1} < L_k > L_{k+1}, i and j are the local minima that strict
    descent to the left and to the right ends in. By `variant` the height is

    * "mean-drop": L_k - (L_i + L_j) / 2;
    * "chord": L_k above the straight line from (t_i, L_i) to (t_j, L_j);
    * "global-chord": the same with the lowest points of the whole curve left and right of k;

    the largest over k, and 0 for a curve without such a point. `losses` (..., P) at the positions
    `t` (P,), equally spaced by default -> (...).
    """
    curves, shape = _points_first(losses)
    _check_variant(variant)
    return _answer(_bumps(curves, _spacing(t, len(curves)), variant)[0], shape)


def bump_area(
    losses: npt.ArrayLike,
    distance: npt.ArrayLike = 1.0,
    variant: BumpVariant = "mean-drop",
    *,
    t: npt.ArrayLike | None = None,
) -> Any:
    """Area of the highest bump: between the curve and the chord of its two minima.

    The bump and its minima i < j are those of `bump_height(losses, variant)`; the trapezoid rule is
    applied to L minus the line from (t_i, L_i) to (t_j, L_j), not below 0, on a segment of length
    `distance` (a number or an array (...)), at the positions `t` (P,), equally spaced by default.
    0 where there is no bump.
    """
    curves, shape = _points_first(losses)
    _check_variant(variant)
    positions = _spacing(t, len(curves))
    length = np.asarray(distance, dtype=np.float64)
    if length.shape not in ((), shape):
        raise ConfigError(f"distance has shape {length.shape}, expected {shape} or one number")
    _, left, right = _bumps(curves, positions, variant)
    columns = np.arange(curves.shape[1])
    # Cumulative trapezoids turn the integral from i to j into a difference.
    steps = np.diff(positions)[:, None] * (curves[1:] + curves[:-1]) / 2
    cumulative = np.vstack([np.zeros((1, curves.shape[1])), np.cumsum(steps, axis=0)])
    under_curve = cumulative[right, columns] - cumulative[left, columns]
    width = positions[right] - positions[left]
    under_chord = width * (curves[left, columns] + curves[right, columns]) / 2
    area = np.maximum(under_curve - under_chord, 0.0) / (positions[-1] - positions[0])
    return _answer(area * length.reshape(-1), shape)


def _check_variant(variant: str) -> None:
    if variant not in get_args(BumpVariant):
        raise ConfigError(
            f"bump variant {variant!r} is unknown",
            remedy=f"choose one of {', '.join(get_args(BumpVariant))}",
        )


def _bumps(
    curves: Floats, t: Floats, variant: str
) -> tuple[Floats, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Height of the highest bump of each of (P, curves), and the indices of its two minima."""
    points, number = curves.shape
    left = _minima(curves, "global" in variant)
    right = points - 1 - _minima(curves[::-1], "global" in variant)[::-1]
    columns = np.arange(number)
    best = np.zeros(number)
    ends = np.zeros((2, number), dtype=np.intp)
    for k in range(1, points - 1):
        i, j = left[k - 1], right[k + 1]
        share = (t[k] - t[i]) / (t[j] - t[i]) if "chord" in variant else 0.5
        height = curves[k] - (1 - share) * curves[i, columns] - share * curves[j, columns]
        peak = (curves[k] > curves[k - 1]) & (curves[k] > curves[k + 1])
        higher = peak & (height > best)
        best[higher] = height[higher]
        ends[0, higher], ends[1, higher] = i[higher], j[higher]
    return best, ends[0], ends[1]


def _minima(curves: Floats, everywhere: bool) -> npt.NDArray[np.intp]:
    """For each point, the index of the minimum that descent to the left ends in (P, curves).

    With `everywhere`, the lowest point at or left of it, the nearest of equals.
    """
    index = np.zeros(curves.shape, dtype=np.intp)
    lowest = curves[0].copy()
    for k in range(1, len(curves)):
        below = curves[k] <= lowest if everywhere else curves[k] <= curves[k - 1]
        index[k] = np.where(below, k, index[k - 1])
        lowest = np.minimum(lowest, curves[k])
    return index


# --- noise ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurveStatistics:
    """What curves say and how sure they are: arrays over the curves (...), losses (..., P).

    **Noise floor.** The gap is a maximum over sub-segments, so noise raises it: on a straight line
    with independent noise of deviation s at 10 points its mean is 2.48 s. Among convex curves the
    straight line is the worst (any curvature hides noise), and the gap ignores straight lines, so
    the gaps of the deviations L_r - L of the replicates r follow the null distribution. Their
    `level` quantile is the floor; `gap_p_value` = (1 + #{gap(L_r - L) >= gap(L)}) / (1 + R).

    **Intervals.** With q the (1 +- level)/2 quantiles of the replicates' barriers (or gaps) and h
    the observed one, low = max(0, 2 h - q_high) and high = max(q_high, 2 h - q_low): the lower end
    of the basic interval, which undoes the upward bias, and the larger of both upper ends, because
    that of the basic interval comes too early where it is clipped. A gap within the noise floor
    gets low = 0. Coverage of the gap at a nominal 95 % (512 examples with heavy-tailed losses, 10
    points, 1,000 runs, the worse of two noise levels; `tests/geometry/test_noise.py` repeats it):

        true curve                    percentile   basic, clipped   this one
        straight line, gap 0                0.00             0.90       0.94
        weakly convex, gap 0                0.00             0.93       0.97
        U with a hump, gap .0036            0.82             0.82       0.99
        line with a hump, gap .0087         0.34             0.85       0.93
        two humps, gap .0185                0.54             0.92       0.95
        ridge, gap .0702                    0.93             0.94       0.96

    The barrier's interval is built in the same way: 0.94 to 1.00 on the same curves.
    """

    loss: Floats
    """mean loss at every point (..., P), nats"""
    loss_low: Floats
    """lower end of its bootstrap interval (..., P)"""
    loss_high: Floats
    """upper end (..., P)"""
    barrier_height: Floats
    barrier_low: Floats
    barrier_high: Floats
    convexity_gap: Floats
    gap_low: Floats
    """lower end of the gap's interval: 0 whenever the gap is within the noise floor"""
    gap_high: Floats
    noise_floor: Floats
    """gap that noise alone reaches in a share 1 - level of cases on a convex curve"""
    gap_p_value: Floats
    """probability of a gap as large on a convex curve, by noise alone"""
    area_under_curve: Floats
    """of L - min L, times the distance where one was given"""
    bump_height: Floats
    """the mean of the two drops"""


def curve_statistics(
    losses: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    distance: npt.ArrayLike | None = None,
    t: npt.ArrayLike | None = None,
) -> CurveStatistics:
    """Mean curves, barriers and gaps with their paired bootstrap intervals and the noise floor.

    `losses` (..., P, N): the loss of each of N examples at each of P points; `weights` (N,): their
    weights in the mean (token counts for language models). A replicate r resamples examples, the
    same for all points and curves: L_kr = sum_n c_rn w_n l_kn / sum_n c_rn w_n, one matrix product.
    Examples are shared between points, so what makes one example hard cancels from the shape.

    How noise floor and intervals are made of the replicates is said in `CurveStatistics`.

    `distance` (a number or (...)) scales the area under the curve. Memory stays under about 100 MB
    beside the input, however many curves there are. Raises NonFiniteError naming curve, point
    and example, and ConfigError on shapes and options.
    """
    values = np.asarray(losses)
    if values.ndim < 2 or values.shape[-2] < 2 or values.shape[-1] < 1:
        raise ConfigError(
            f"losses have shape {values.shape}, expected (..., points >= 2, examples >= 1)"
        )
    shape, (points, examples) = values.shape[:-2], values.shape[-2:]
    flat = values.reshape(-1, points, examples)
    w = example_weights(weights, examples)
    counts = resample_counts(examples, replicates, seed)
    totals = counts @ w
    if not totals.all():
        # Only possible with zero weights: such a replicate has no examples, and so no mean.
        counts, totals = counts[totals > 0], totals[totals > 0]
    chunk = _chunk(points * max(len(counts), examples))
    parts = []
    for start in range(0, len(flat), chunk):
        block = np.array(flat[start : start + chunk], dtype=np.float64)
        _check_finite(block, shape, start)
        rows = np.ascontiguousarray(block.transpose(1, 0, 2)).reshape(-1, examples)
        rows *= w  # in place: the losses of a chunk are held once
        loss = (rows.sum(axis=1) / w.sum()).reshape(points, -1)
        drawn = rows @ counts.T
        drawn /= totals
        parts.append(_reduce(loss, drawn.reshape(points, -1, len(counts)), level, t))
    return _gather(parts, shape, points, distance)


def replicate_statistics(
    loss: npt.ArrayLike,
    replicates: npt.ArrayLike,
    *,
    level: float = 0.95,
    distance: npt.ArrayLike | None = None,
    t: npt.ArrayLike | None = None,
) -> CurveStatistics:
    """`curve_statistics` from the curves (..., P) and their bootstrap replicates (..., P, R).

    For quantities that are no weighted mean of per-example losses, or replicates over seeds. The
    replicates must be paired: replicate r resamples the same examples at every point.
    """
    observed = np.asarray(loss, dtype=np.float64)
    drawn = np.asarray(replicates)
    if observed.ndim < 1 or drawn.shape[:-1] != observed.shape or drawn.shape[-1] < 1:
        raise ConfigError(
            f"curves of shape {observed.shape} need replicates of shape {observed.shape} + (R,), "
            f"got {drawn.shape}"
        )
    curves, shape = _points_first(observed)
    flat = drawn.reshape(-1, *drawn.shape[-2:])
    chunk = _chunk(flat.shape[1] * flat.shape[2])
    parts = []
    for start in range(0, len(flat), chunk):
        block = np.array(flat[start : start + chunk], dtype=np.float64)
        _check_finite(block, shape, start)
        block = np.ascontiguousarray(block.transpose(1, 0, 2))
        parts.append(_reduce(curves[:, start : start + chunk], block, level, t))
    return _gather(parts, shape, len(curves), distance)


def _chunk(floats_per_curve: int) -> int:
    return max(1, REPLICATE_BYTES // (8 * floats_per_curve))


def _reduce(
    loss: Floats, drawn: Floats, level: float, t: npt.ArrayLike | None
) -> dict[str, Floats]:
    """Statistics of (P, c) curves with (P, c, R) replicates, which are overwritten."""
    points, curves, count = drawn.shape
    positions = _spacing(t, points)
    rows = drawn.reshape(points, -1)
    low, high = percentile_interval(drawn, level)
    found = {"loss": loss, "loss_low": low, "loss_high": high}
    for name, prefix, height in (
        ("barrier_height", "barrier", _barriers),
        ("convexity_gap", "gap", _gaps),
    ):
        value = height(loss, positions)
        low, high = percentile_interval(height(rows, positions).reshape(curves, count), level)
        found[name] = value
        found[f"{prefix}_low"] = np.maximum(0.0, 2.0 * value - high)
        found[f"{prefix}_high"] = np.maximum(high, 2.0 * value - low)
    drawn -= loss[:, :, None]
    noise = _gaps(rows, positions).reshape(curves, count)
    gap = found["convexity_gap"]
    floor = np.quantile(noise, level, axis=-1)
    found["noise_floor"] = floor
    found["gap_p_value"] = (1.0 + (noise >= gap[:, None]).sum(axis=-1)) / (1.0 + count)
    found["gap_low"][gap <= floor] = 0.0
    found["area_under_curve"] = _areas(loss, positions)
    found["bump_height"] = _bumps(loss, positions, "mean-drop")[0]
    return found


def _gather(
    parts: list[dict[str, Floats]],
    shape: tuple[int, ...],
    points: int,
    distance: npt.ArrayLike | None,
) -> CurveStatistics:
    """Put chunks of curves together and give them the shape of the input."""
    fields: dict[str, Floats] = {}
    for name in CurveStatistics.__dataclass_fields__:
        if name in ("loss", "loss_low", "loss_high"):
            rows = [part[name].T for part in parts] or [np.empty((0, points))]
            fields[name] = np.concatenate(rows).reshape(*shape, points)
        else:
            rows = [part[name] for part in parts] or [np.empty(0)]
            fields[name] = np.concatenate(rows).reshape(shape)
    if distance is not None:
        length = np.asarray(distance, dtype=np.float64)
        if length.shape not in ((), shape):
            raise ConfigError(f"distance has shape {length.shape}, expected {shape} or one number")
        fields["area_under_curve"] = fields["area_under_curve"] * length
    return CurveStatistics(**fields)
