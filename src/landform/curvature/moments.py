"""What is kept of per-example sums as they come: their covariance, and random halves of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import rankdata

__all__ = ["DIVISIONS", "Halves", "Moments"]

DIVISIONS = 20
"""Random divisions of the examples into two halves."""

Array = np.ndarray


@dataclass(eq=False)
class Moments:
    """Number, means and co-moments of vectors, added in chunks (Chan, Golub and LeVeque 1983).

    The last coordinate is the number of terms of an example (1, or its scored tokens).
    """

    size: int
    count: int = 0
    mean: Array = field(init=False)
    products: Array = field(init=False)
    """sum of (x - mean) (x - mean)^T"""

    def __post_init__(self) -> None:
        self.mean = np.zeros(self.size)
        self.products = np.zeros((self.size, self.size))

    def add(self, values: Array) -> None:
        """(n, size) more vectors."""
        if not len(values):
            return
        mean = values.mean(0)
        centred = values - mean
        step = mean - self.mean
        total = self.count + len(values)
        self.products += centred.T @ centred
        self.products += np.outer(step, step) * (self.count * len(values) / total)
        self.mean += step * (len(values) / total)
        self.count = total

    def covariance(self) -> Array:
        """(size - 1, size - 1) covariance of the ratios sum_i x_i / sum_i m_i, m the last one.

        With r_i = x_i - ratio m_i it is N / (N - 1) sum_i r_i r_i^T / (sum_i m_i)^2: examples are
        drawn, not their tokens (Cochran 1977, 6.3). Where every m_i is 1 that is the covariance of
        a mean. NaN for one example.
        """
        terms = self.mean[-1] * self.count
        if self.count < 2 or not terms:
            return np.full((self.size - 1, self.size - 1), np.nan)
        ratio = self.mean[:-1] / self.mean[-1]
        cross = np.outer(ratio, self.products[-1, :-1])
        inner = self.products[:-1, :-1] - cross - cross.T
        inner += np.outer(ratio, ratio) * self.products[-1, -1]
        found: Array = inner * (self.count / (self.count - 1) / terms**2)
        return found


@dataclass(eq=False)
class Halves:
    """Sums of the two halves of the examples under several random divisions.

    Examples 2k and 2k + 1 go to different halves; which to which is drawn from the seed and k, so
    neither chunks nor batches matter.
    """

    size: int
    seed: int
    sums: Array = field(init=False)
    """(divisions, 2, size)"""

    def __post_init__(self) -> None:
        self.sums = np.zeros((DIVISIONS, 2, self.size))

    def add(self, values: Array, first: int) -> None:
        """(n, size) vectors of the examples from number `first` on."""
        for row, vector in enumerate(values, start=first):
            drawn = np.random.default_rng([self.seed, row // 2]).integers(0, 2, DIVISIONS)
            self.sums[np.arange(DIVISIONS), drawn ^ (row % 2)] += vector

    def stability(
        self, groups: Mapping[str, Sequence[str | None]], entries: Array, examples: int
    ) -> pd.DataFrame:
        """Spearman's correlation of the halves' scores for each kind of group.

        `groups` gives every tensor's group (None: in none); a score is the sum over the group by
        its number of entries.
        """
        rows = []
        for kind, names in groups.items():
            labels, codes = np.unique([name or "" for name in names], return_inverse=True)
            used = np.flatnonzero(labels != "")
            if len(used) < 3 or examples < 2:
                continue
            member = (codes == used[:, None]).astype(float)
            scores = self.sums @ member.T / (member @ entries)
            found = [_spearman(a, b) for a, b in scores]
            low, middle, high = np.quantile(found, [0.05, 0.5, 0.95])
            rows.append((kind, examples, middle, low, high))
        columns = ["groups", "examples", "correlation", "low", "high"]
        return pd.DataFrame(rows, columns=columns).astype({"examples": int})


def _spearman(a: Array, b: Array) -> float:
    ranks = np.array([rankdata(a), rankdata(b)])
    if (ranks == ranks[:, :1]).all(1).any():  # no order in one of them, so none to agree with
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])
