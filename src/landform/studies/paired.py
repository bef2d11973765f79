"""Paired comparison over seeds: intervals, tests and what they could have seen.

Runs of two arms under one seed share first weights, order and rows, so what is compared is the
difference d_s of each seed s = 1 ... n, not two clouds of values:

    interval     mean(d) +- t_{n-1, (1 + level) / 2} sd(d) / sqrt(n)
    paired t     P(|T_{n-1}| >= |mean(d)| sqrt(n) / sd(d))
    sign flip    the share of the 2^n patterns of signs e for which |sum e_s d_s| >= |sum d_s|:
                 exact where signs are exchangeable, without a normal distribution, and never
                 below 2 / 2^n
    detectable   the smallest |mean| that the paired t test at 1 - level, with this sd(d), would
                 find with probability `power` (noncentral t)
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from landform.errors import ConfigError

__all__ = ["Paired", "detectable", "paired", "sign_flip", "smallest_p", "t_interval"]

EXACT = 20
"""Up to this many pairs all 2^n patterns of signs are counted; beyond, BLOCKS x BLOCK are drawn."""
BLOCKS, BLOCK = 100, 1000


class Paired(NamedTuple):
    """A mean difference, its interval, and two tests of it against 0."""

    n: int
    difference: float
    sd: float
    low: float
    high: float
    p_t: float
    """of the paired t test; NaN with fewer than 2 pairs, or where no two differences differ"""
    p_flip: float
    """of the exact sign-flip test; NaN with fewer than 2 pairs"""


def paired(differences: npt.ArrayLike, level: float = 0.95) -> Paired:
    """`Paired` of the differences (n,); NaN among them makes all of it NaN.

    Raises `ConfigError` where there is no pair.
    """
    from scipy import stats

    d = _values(differences)
    mean, low, high = t_interval(d, level)
    sd = float(d.std(ddof=1)) if len(d) > 1 else math.nan
    if not sd > 1e-12 * max(float(np.abs(d).max()), 1e-300):
        # No spread: t would be infinite. Differences that are all 0 are no difference.
        p_t = 1.0 if len(d) > 1 and not d.any() else math.nan
    else:
        p_t = float(2 * stats.t.sf(abs(mean) * math.sqrt(len(d)) / sd, len(d) - 1))
    return Paired(len(d), mean, sd, low, high, p_t, sign_flip(d))


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of the mean of values (n,); the ends are NaN for n = 1."""
    from scipy import stats

    x = _values(values)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - half, mean + half


def sign_flip(differences: npt.ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test of differences (n,).

    All 2^n patterns up to n = 20; beyond, (b + 1) / (m + 1) of m = 100,000 seeded ones.
    """
    d = _values(differences)
    if len(d) < 2 or not np.isfinite(d).all():
        return math.nan
    observed = abs(float(d.sum()))
    # Sums of the same numbers in another order differ in their last bits: they are ties.
    reach = observed - 1e-9 * float(np.abs(d).sum())
    if len(d) > EXACT:
        draw = np.random.default_rng(seed)
        hits = sum(
            int((np.abs(draw.choice((-1.0, 1.0), (BLOCK, len(d))) @ d) >= reach).sum())
            for _ in range(BLOCKS)
        )
        return (hits + 1) / (BLOCKS * BLOCK + 1)
    # Half of the patterns are the others negated. Sums are built up one difference at a time.
    sums = d[:1]
    for value in d[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= reach).mean())


def smallest_p(n: int) -> float:
    """The smallest p that the sign-flip test of n pairs can give: 2 / 2^n."""
    return math.nan if n < 2 else 2.0 ** (1 - n)


def detectable(sd: float, n: int, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest |mean| of n differences with standard deviation `sd` that a two-sided t test at
    1 - `level` finds with probability `power`; NaN for n < 2."""
    if n < 2 or not math.isfinite(sd):
        return math.nan
    return _noncentrality(n, level, power) * sd / math.sqrt(n)


@lru_cache(maxsize=256)
def _noncentrality(n: int, level: float, power: float) -> float:
    from scipy import integrate, optimize, special, stats

    df, limit = n - 1, float(stats.t.ppf((1 + level) / 2, n - 1))
    largest = float(stats.chi.isf(1e-12, df))

    def lack(shift: float) -> float:
        # The noncentral t as the mean over sd(d): scipy's own is NaN far from 0.
        def found(chi: float) -> float:
            edge = limit * chi / math.sqrt(df)
            # The far tail is what a difference of the other sign would be found for.
            both = special.ndtr(shift - edge) + special.ndtr(-shift - edge)
            return float(both * stats.chi.pdf(chi, df))

        return float(integrate.quad(found, 0.0, largest, limit=200)[0]) - power

    top = 1.0
    while lack(top) < 0:
        top *= 2
    return float(optimize.brentq(lack, 0.0, top, xtol=1e-9))


def _values(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found):
        raise ConfigError(
            f"values over seeds have the shape {found.shape}, expected (n,) with n >= 1",
            remedy="give one value per seed",
        )
    return found
