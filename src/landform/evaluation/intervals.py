"""Bootstrap intervals over examples, paired by construction.

Everything that is evaluated on the same n examples is resampled with the same counts, so that
differences between two models (or between two points of a line) keep what the examples share:
the difficulty of an example cancels, as it should.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from landform.errors import ConfigError, NonFiniteError

__all__ = [
    "Interval",
    "difference_interval",
    "known_interval",
    "percentile_interval",
    "resample_counts",
]

CACHE_BYTES = 1 << 27
"""Counts of at most this size are kept (128 MiB); larger ones are made anew each time."""

_cache: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
_lock = Lock()


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float


def resample_counts(n: int, replicates: int, seed: int) -> np.ndarray:
    """How often each of n examples occurs in each bootstrap replicate: (replicates, n), float64.

    Each row is multinomial(n; 1/n, ..., 1/n) and sums to n. A row depends on n, the seed and its
    own number only, so that 100 replicates are the first 100 of 1,000. The array is read-only and
    kept between calls: the same (n, replicates, seed) gives the same object, which is what pairs
    everything evaluated on the same n examples. Raises ConfigError on n or replicates below 1 or
    a negative seed.
    """
    for name, value, least in (("n", n, 1), ("replicates", replicates, 1), ("seed", seed, 0)):
        if int(value) != value or value < least:
            raise ConfigError(f"{name}={value!r} must be an integer of at least {least}")
    key = (int(n), int(replicates), int(seed))
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    counts = _draw(*key)
    if counts.nbytes <= CACHE_BYTES:
        with _lock:
            _cache[key] = counts
            while sum(kept.nbytes for kept in _cache.values()) > CACHE_BYTES:
                _cache.popitem(last=False)
    return counts


def _draw(n: int, replicates: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    counts = np.empty((replicates, n))
    for row in counts:
        # Counting n uniform draws is the same distribution as a multinomial call with n equal
        # cells, and about ten times faster.
        row[:] = np.bincount(random.integers(0, n, size=n), minlength=n)
    counts.flags.writeable = False
    return counts


def percentile_interval(
    replicates: npt.ArrayLike, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The central `level` of the replicates along the last axis: (..., R) -> low (...), high (...).

    The ends are the (1 - level)/2 and (1 + level)/2 quantiles, linearly interpolated. Raises
    ConfigError on a level outside (0, 1) or when there are no replicates.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level!r} must lie between 0 and 1, for example 0.95")
    values = np.asarray(replicates, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ConfigError("an interval needs at least one bootstrap replicate")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], axis=-1)
    return low, high


def known_interval(replicates: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """`percentile_interval` of the replicates (R,) in which a number exists; NaN where in few.

    A number may not exist in a replicate (a correlation of constants, a mean over no examples):
    those replicates are left out. Where it exists in fewer than half of them, or in none, what is
    left says little of it, and both ends are NaN.
    """
    drawn = np.asarray(replicates, dtype=np.float64)
    known = drawn[np.isfinite(drawn)]
    if not len(known) or 2 * len(known) < len(drawn):
        return float("nan"), float("nan")
    low, high = percentile_interval(known, level)
    return float(low), float(high)


def difference_interval(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """mean(a) - mean(b) of two models on the same examples, with its paired bootstrap interval.

    `a` and `b` are per-example values (N,); `weights` (N,) are the weights of the examples in both
    means (token counts for language models). Each replicate resamples examples, not models:
    d_r = sum_n c_rn w_n (a_n - b_n) / sum_n c_rn w_n. Raises ConfigError when the lengths differ
    and NonFiniteError at the first example that is not finite.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ConfigError(
            f"paired values need one shape (N,), N >= 1; got {first.shape} and {second.shape}",
            remedy="evaluate both models on the same examples",
        )
    for name, values in (("a", first), ("b", second)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise NonFiniteError(f"{name}: the value of example {bad[0]} is {values[bad[0]]}")
    w = example_weights(weights, len(first))
    counts = resample_counts(len(first), replicates, seed)
    weighted = w * (first - second)
    with np.errstate(invalid="ignore"):
        drawn = (counts @ weighted) / (counts @ w)
    return Interval(float(weighted.sum() / w.sum()), *known_interval(drawn, level))


def example_weights(weights: npt.ArrayLike | None, n: int) -> np.ndarray:
    """Weights as float64 (n,), ones by default; ConfigError unless finite, >= 0 and not all 0."""
    if weights is None:
        return np.ones(n)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n,):
        raise ConfigError(f"weights have shape {w.shape}, expected ({n},): one per example")
    if not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
        raise ConfigError("weights must be finite, not negative, and not all zero")
    return w
