"""Correlations of predicted and target values, of a sample and of all its bootstrap replicates."""

from __future__ import annotations

import numpy as np

from landform.tasks.predictions import Array, Metric, Predictions, target_scores, weights_of

__all__ = ["centred", "correlation"]


def correlation(x: Array, y: Array, weights: Array) -> float:
    """Pearson's correlation of one weighted sample, in two passes; NaN when a side is constant."""
    drawn = weights > 0
    x, y, weights = x[drawn], y[drawn], weights[drawn]
    if len(x) == 0 or (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    dx, dy = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    # Each side is scaled to its own size first, so that squares neither overflow nor vanish.
    dx, dy = dx / np.abs(dx).max(), dy / np.abs(dy).max()
    ratio = (weights * dx * dy).sum() / np.sqrt(
        (weights * dx * dx).sum() * (weights * dy * dy).sum()
    )
    return float(np.clip(ratio, -1.0, 1.0))


def centred(values: Array) -> Array:
    """Shifted by the median and scaled to at most 1 in size: changes no correlation.

    The median, not the mean: one wild value would otherwise leave all others, and every replicate
    without it, far from zero, where sums of squares cancel.
    """
    shifted = values - np.median(values)
    largest = np.abs(shifted).max()
    scaled: Array = shifted / largest if largest > 0 else shifted
    return scaled


class Pearson(Metric):
    """Pearson's correlation of predicted and target values; NaN when a side is constant."""

    name = "pearson"

    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        x, y = target_scores(p, self.name)
        if counts is None:
            return correlation(x, y, np.ones_like(x))
        weights = weights_of(counts, len(x), self.name)
        u, v = centred(x), centred(y)
        moments = weights @ np.stack([np.ones_like(u), u, v, u * u, v * v, u * v], axis=1)
        size, su, sv, suu, svv, suv = moments.T
        with np.errstate(divide="ignore", invalid="ignore"):
            var_u, var_v = suu - su * su / size, svv - sv * sv / size
            values: Array = np.clip((suv - su * sv / size) / np.sqrt(var_u * var_v), -1.0, 1.0)
        # Where the variance is what little is left of a difference of large sums, or is zero, the
        # quick formula is not to be trusted. Such replicates are rare; each is done by itself.
        sound = (var_u > 1e-4 * suu) & (var_v > 1e-4 * svv)
        for replicate in np.flatnonzero(~sound):
            values[replicate] = correlation(x, y, weights[replicate])
        return values


def _replicate_ranks(values: Array, weights: Array) -> Array:
    """(N, R) average rank of each example among the repeated examples of each replicate.

    `weights` is (N, R). Equal values, and the copies of one example, share the mean of the places
    they take: with w copies at a value and W below it, those are the places W + 1 to W + w.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(values))))
    copies = np.add.reduceat(weights[order], first, axis=0)
    ranks: Array = (np.cumsum(copies, axis=0) - copies / 2 + 0.5)[group]
    return ranks


class Spearman(Metric):
    """Spearman's correlation: Pearson's of the average ranks; NaN when a side is constant.

    A replicate is ranked anew, its repeated examples being ties, exactly.
    """

    name = "spearman"
    _chunk = 1 << 17  # numbers per temporary array, which then stay in the processor's cache

    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        x, y = target_scores(p, self.name)
        if counts is None:
            return float(self._replicates(x, y, np.ones((1, len(x))))[0])
        weights = weights_of(counts, len(x), self.name)
        step = max(1, self._chunk // len(x))
        parts = [
            self._replicates(x, y, weights[start : start + step])
            for start in range(0, len(weights), step)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    @staticmethod
    def _replicates(x: Array, y: Array, weights: Array) -> Array:
        # Examples come first, so that sorting and gathering them moves whole rows of memory.
        drawn = np.ascontiguousarray(weights.T)
        # Ranks 1..n have the mean (n + 1) / 2 whatever the ties. Ranks are multiples of 1/2, so
        # these sums carry no rounding and a constant side gives a variance of exactly zero.
        mean = (drawn.sum(axis=0) + 1) / 2
        dx, dy = _replicate_ranks(x, drawn) - mean, _replicate_ranks(y, drawn) - mean
        weighted = drawn * dx
        var_x, covariance = (weighted * dx).sum(axis=0), (weighted * dy).sum(axis=0)
        var_y = (drawn * dy * dy).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = covariance / (np.sqrt(var_x) * np.sqrt(var_y))
        correlations: Array = np.clip(ratio, -1.0, 1.0)
        return correlations
