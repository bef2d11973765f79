"""Where two curves along one line are both good: one from the first point on, one up to the last.

The curves a and b are given at positions x_0 < ... < x_{P-1} and taken to be linear between them.
Both are *good* at x where both are at least `keep`. Then

    width     length of the set of all x where both are good
    reach_a   how far a stays good from x_0 on; reach_b: from where b is good up to x_{P-1}
    margin    reach_a - reach_b: the width where each curve fails once for good, and below 0 the
              length of the gap between the two
    crossing  the first x at which b comes from below to a, and the value there
    area      integral of min(a, b): 1 where both are 1 all along a line of length 1
    best      the largest min(a, b), and the first x that has it

Numbers of curves with a NaN are NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["NUMBERS", "overlap_numbers", "overlap_regions"]

Floats = npt.NDArray[np.float64]

NUMBERS = (
    *("width", "margin", "reach_a", "reach_b", "crossing", "crossing_kept", "area"),
    *("best_x", "best_kept"),
)
"""What is said of two curves, in the order of the tables."""


def overlap_numbers(
    kept_a: npt.ArrayLike, kept_b: npt.ArrayLike, x: npt.ArrayLike, keep: float
) -> dict[str, Floats]:
    """What the module's docstring defines, of curves (..., P) at positions x (P,): (...) each."""
    a, b = np.asarray(kept_a, dtype=np.float64), np.asarray(kept_b, dtype=np.float64)
    xs = np.asarray(x, dtype=np.float64)
    steps = np.diff(xs)
    starts, stops = _both_good(a, b, keep)
    reach_a = _reach(a, xs, keep)
    reach_b = xs[0] + xs[-1] - _reach(b[..., ::-1], xs[0] + xs[-1] - xs[::-1], keep)
    low, least, crossings = _lower_envelope(a, b, xs)
    found = {
        "width": (np.maximum(stops - starts, 0.0) * steps).sum(axis=-1),
        "margin": reach_a - reach_b,
        "reach_a": reach_a,
        "reach_b": reach_b,
        "area": ((low[..., 1:] + low[..., :-1]) / 2 * np.diff(least, axis=-1)).sum(axis=-1),
    }
    found |= _crossing(a, b, xs, crossings)
    best = np.where(np.isnan(low), -np.inf, low).argmax(axis=-1)[..., None]
    found["best_x"] = np.take_along_axis(least, best, axis=-1)[..., 0]
    found["best_kept"] = np.take_along_axis(low, best, axis=-1)[..., 0]
    unknown = np.isnan(a).any(axis=-1) | np.isnan(b).any(axis=-1)
    return {name: np.where(unknown, np.nan, found[name]) for name in NUMBERS}


def _both_good(a: Floats, b: Floats, keep: float) -> tuple[Floats, Floats]:
    """Of every segment, from 0 to 1, where both are at `keep` or above (start > stop: nowhere)."""
    starts, stops = [], []
    for curve in (a, b):
        left, right = curve[..., :-1], curve[..., 1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            at = (keep - left) / (right - left)
        starts.append(np.where(left >= keep, 0.0, np.where(right >= keep, at, np.inf)))
        stops.append(np.where(right >= keep, 1.0, np.where(left >= keep, at, -np.inf)))
    return np.maximum(*starts), np.minimum(*stops)


def _reach(curve: Floats, xs: Floats, keep: float) -> Floats:
    """How far from the first point on a curve stays at `keep` or above."""
    bad = curve[..., 1:] < keep
    first = bad.argmax(axis=-1)[..., None]
    left = np.take_along_axis(curve, first, axis=-1)[..., 0]
    right = np.take_along_axis(curve, first + 1, axis=-1)[..., 0]
    start, stop = xs[first[..., 0]], xs[first[..., 0] + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        at = start + (stop - start) * (left - keep) / (left - right)
    reach: Floats = np.where(bad.any(axis=-1), at, xs[-1])
    reach = np.where(curve[..., 0] < keep, xs[0], reach)  # bad from the start: nowhere
    return reach


def _lower_envelope(a: Floats, b: Floats, xs: Floats) -> tuple[Floats, Floats, Floats]:
    """min(a, b) with a corner in every segment where they cross.

    Values and positions (..., 2P - 1), and where in its segment, from 0 to 1, the curves cross
    (..., P - 1; NaN: nowhere).
    """
    d = a - b
    left, right = d[..., :-1], d[..., 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where((left * right < 0), left / (left - right), np.nan)
    at = np.where(np.isnan(share), 0.5, share)
    low = np.minimum(a, b)
    middle = np.minimum(
        a[..., :-1] + at * np.diff(a, axis=-1), b[..., :-1] + at * np.diff(b, axis=-1)
    )
    values = np.empty((*low.shape[:-1], 2 * low.shape[-1] - 1))
    places = np.empty_like(values)
    values[..., ::2], values[..., 1::2] = low, middle
    places[..., ::2], places[..., 1::2] = xs, xs[:-1] + at * np.diff(xs)
    return values, places, share


def _crossing(a: Floats, b: Floats, xs: Floats, share: Floats) -> dict[str, Floats]:
    """The first x where the second curve comes from below to the first, and the value there."""
    d = a - b
    falls = (d[..., :-1] > 0) & (d[..., 1:] <= 0)
    first = falls.argmax(axis=-1)[..., None]
    at = np.where(np.isnan(share), 1.0, share)  # meets it exactly at the right point
    s = np.take_along_axis(at, first, axis=-1)[..., 0]
    start, stop = xs[first[..., 0]], xs[first[..., 0] + 1]
    left = np.take_along_axis(a, first, axis=-1)[..., 0]
    right = np.take_along_axis(a, first + 1, axis=-1)[..., 0]
    known = falls.any(axis=-1)
    return {
        "crossing": np.where(known, start + s * (stop - start), np.nan),
        "crossing_kept": np.where(known, left + s * (right - left), np.nan),
    }


def overlap_regions(a: Floats, b: Floats, xs: Floats, keep: float) -> pd.DataFrame:
    """The stretches where both curves are at least `keep`, joined over the points."""
    starts, stops = _both_good(a, b, keep)
    found: list[list[float]] = []
    for k, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if not start <= stop:
            continue
        step = xs[k + 1] - xs[k]
        begin, end = float(xs[k] + start * step), float(xs[k] + stop * step)
        if found and begin <= found[-1][1] + 1e-12:
            found[-1][1] = end
        else:
            found.append([begin, end])
    return pd.DataFrame([r for r in found if r[1] > r[0]], columns=["start", "stop"], dtype=float)
