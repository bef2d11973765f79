"""Rank correlation over few checkpoints, with what few checkpoints call for.

Spearman's rho has a meaning at any scale of the two quantities; its interval comes from resampling
checkpoints, its p value from permutations, and a third quantity can be held fixed.
"""

from __future__ import annotations

from itertools import permutations as orders
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from landform.errors import ConfigError, DataError
from landform.evaluation.intervals import known_interval, resample_counts
from landform.geometry.statistics import finite_values, partial_correlation, pearson

__all__ = ["RankCorrelation", "holm", "rank_correlation"]

EXACT = 8
"""Up to this many checkpoints all orders are enumerated (8! = 40,320); beyond, they are sampled."""


class RankCorrelation(NamedTuple):
    """Spearman's correlation of two quantities over checkpoints."""

    spearman: float
    """NaN where one side does not vary"""
    low: float
    high: float
    p_value: float
    """of |rho| under permutations, two-sided; 1 where rho is NaN"""
    partial: float
    """with the ranks of the control held fixed; NaN without one, and for N = 3 (where it is always
    1 or -1)"""
    n: int


def rank_correlation(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    control: npt.ArrayLike | None = None,
    *,
    replicates: int = 1000,
    permutations: int = 9999,
    seed: int = 0,
    level: float = 0.95,
) -> RankCorrelation:
    """Spearman's rho of x and y (N,), N >= 3: Pearson's r of their ranks (mean ranks for ties).

    low, high: percentile bootstrap over checkpoints (a replicate in which one side does not vary
    says nothing and is left out). p: the share of orders of y with at least the observed |rho|, all
    N! of them up to N = 8, else (b + 1) / (m + 1) of m seeded ones. Raises `DataError` on lengths
    and `NonFiniteError` naming the entry.
    """
    a, b = finite_values(x, "x"), finite_values(y, "y")
    n = len(a)
    if len(b) != n or n < 3:
        raise DataError(f"{n} and {len(b)} values: 3 or more pairs are needed")
    if permutations < 1:
        raise ConfigError(f"permutations={permutations} must be at least 1")
    rho = pearson(rankdata(a), rankdata(b))
    if np.isnan(rho):
        return RankCorrelation(rho, rho, rho, 1.0, rho, n)
    partial = float("nan")
    if control is not None and n > 3:
        held = finite_values(control, "control")
        if len(held) != n:
            raise DataError(f"{len(held)} values of the control for {n} pairs")
        partial = partial_correlation(rankdata(a), rankdata(b), rankdata(held))
    low, high = _interval(a, b, replicates, seed, level)
    return RankCorrelation(rho, low, high, _p_value(a, b, permutations, seed), partial, n)


def holm(p_values: npt.ArrayLike) -> np.ndarray:
    """p values (K,) of K questions asked at once, adjusted by Holm's step-down method."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _interval(
    a: np.ndarray, b: np.ndarray, replicates: int, seed: int, level: float
) -> tuple[float, float]:
    counts = resample_counts(len(a), replicates, seed).astype(np.int64)
    drawn = np.array(
        [pearson(rankdata(np.repeat(a, times)), rankdata(np.repeat(b, times))) for times in counts]
    )
    return known_interval(drawn, level)


def _p_value(a: np.ndarray, b: np.ndarray, permutations: int, seed: int) -> float:
    n = len(a)
    x, y = rankdata(a) - (n + 1) / 2, rankdata(b) - (n + 1) / 2
    least = abs(float(x @ y)) - 1e-9
    if n <= EXACT:
        every = y[np.array(list(orders(range(n))))]
        return float(np.mean(np.abs(every @ x) >= least))
    random = np.random.default_rng(seed)
    drawn = random.permuted(np.tile(y, (permutations, 1)), axis=1)
    return (int((np.abs(drawn @ x) >= least).sum()) + 1) / (permutations + 1)
