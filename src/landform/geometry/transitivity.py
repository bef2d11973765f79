"""Is the convexity gap a distance? Triples of checkpoints that break the triangle inequality.

Where gaps obey d(a, c) <= d(a, b) + d(b, c), "no ridge between" is passed on: from a to b and from
b to c makes from a to c, and basins are groups without ambiguity. A violated triple is a pair with
a ridge between its ends though both reach a third checkpoint over lower ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from landform.errors import ConfigError
from landform.evaluation.intervals import percentile_interval, resample_counts
from landform.geometry.basins import checked_gaps
from landform.results import Result

__all__ = ["Transitivity", "transitivity"]

Sides = tuple[Any, Any, Any]
"""Indices (a, b, c) of triples; a to c is the direct way."""
Floats = npt.NDArray[np.float64]

TOLERANCE = 1e-10
"""Excess that counts as rounding; the one of the original code."""

BLOCK = 1 << 22
"""Numbers in one block of replicates times triples."""


@dataclass(frozen=True)
class Transitivity(Result):
    """How often, and by how much, triples of checkpoints break the triangle inequality."""

    names: tuple[str, ...]
    triples: int
    """N (N - 1) (N - 2) / 6 unordered triples of different checkpoints"""
    violations: int
    """triples whose largest gap exceeds the sum of the other two: no triple can break the
    inequality on more than one side"""
    clear: int | None
    """violations whose excess is above the noise floor of the direct line; None without floors"""
    share: float
    """violations / triples; NaN where there is no triple"""
    share_low: float
    share_high: float
    """ends of the bootstrap interval over checkpoints"""
    total: float
    """sum of the excesses, nats"""
    mean: float
    """mean excess of a violation, nats; 0 without violations"""
    mean_percent: float
    """mean over violations of 100 excess / direct: the part of the direct gap that the detour
    avoids, 0 to 100; 0 without violations"""
    tolerance: float
    table: pd.DataFrame
    """one row per violation, largest excess first: a, b, c, direct = d(a, c),
    detour = d(a, b) + d(b, c), excess = direct - detour, percent = 100 excess / direct"""
    compat: dict[str, float] | None
    """the figures of the original script, where asked for"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        if not self.triples:
            return f"{len(self.names)} checkpoints make no triple"
        text = (
            f"{self.violations} of {self.triples} triples break the triangle inequality, "
            f"{100 * self.share:.3g} % [{100 * self.share_low:.3g}, {100 * self.share_high:.3g}]"
        )
        if self.violations:
            text += f", by {self.mean:.3g} on average ({self.mean_percent:.3g} % of the direct gap)"
        if self.clear is not None:
            text += f"; {self.clear} of them by more than noise"
        return text

    def to_json(self) -> dict[str, Any]:
        """Plain values; of the violations the ten with the largest excess."""
        fields = (
            *("triples", "violations", "clear", "share", "share_low", "share_high"),
            *("total", "mean", "mean_percent", "tolerance", "compat"),
        )
        worst = self.table.head(10).to_dict("records")
        return {**{name: getattr(self, name) for name in fields}, "worst": worst}


def transitivity(
    gaps: pd.DataFrame | npt.ArrayLike,
    *,
    tolerance: float = TOLERANCE,
    noise_floor: npt.ArrayLike | None = None,
    compat: Literal["connectivity"] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Transitivity:
    """Triangle-inequality statistics of pairwise gaps.

    `gaps`: a symmetric N x N table or array d >= 0, zero on the diagonal (a table's index names the
    checkpoints). An unordered triple of three different checkpoints has three sides; each can be
    the direct way, the other two together are then the detour. It is a violation where

        d(a, c) > d(a, b) + d(b, c) + tolerance

    for one side, which can only be its largest. `noise_floor` (N, N) are the gaps that noise alone
    reaches: excesses above the floor of their direct line are counted as `clear`.

    The interval of the share resamples checkpoints (`replicates` times, counts c): the share of a
    replicate is sum c_a c_b c_c over violations / the same sum over all triples. Gaps of different
    triples share lines, which an interval over triples would ignore.

    `compat="connectivity"` adds what the script of Juneja et al. 2023 prints, in `compat`: all N^3
    ordered triples, repeated checkpoints among them (those never violate, and each unordered triple
    is met twice), percent relative to the detour, 100 (direct - detour) / (detour + 1e-10), and a
    'clustering coefficient' sum_ijk d_ij d_jk d_ki / sum_i k_i (k_i - 1), k_i = sum_j d_ij, whose
    denominator is that of 0/1 edges: it is negative for small gaps and means nothing for distances.

    Raises DataError for gaps that are no such matrix, ConfigError for options.
    """
    names, square = checked_gaps(gaps)
    if not tolerance >= 0:
        raise ConfigError(f"tolerance is {tolerance}, expected 0 or more")
    if compat not in (None, "connectivity"):
        raise ConfigError(f"compat is {compat!r}", remedy="the one there is: connectivity")
    sides = _violations(square, tolerance)
    triples = comb(len(square), 3)
    share, low, high = _share(sides, len(square), triples, replicates, seed, level)
    direct, detour = _ways(square, sides)
    excess = direct - detour
    table = _table(names, sides, direct, detour)
    return Transitivity(
        names=names,
        triples=triples,
        violations=len(table),
        clear=None if noise_floor is None else _clear(excess, sides, noise_floor, square.shape),
        share=share,
        share_low=low,
        share_high=high,
        total=float(excess.sum()),
        mean=float(excess.mean()) if len(table) else 0.0,
        mean_percent=float(table["percent"].mean()) if len(table) else 0.0,
        tolerance=tolerance,
        table=table,
        compat=None if compat is None else _as_published(square),
        provenance={"replicates": replicates, "seed": seed, "level": level},
    )


def _violations(square: Floats, tolerance: float) -> Sides:
    """Indices (a, b, c), a < c, of the triples with d_ac > d_ab + d_bc + tolerance."""
    found = []
    upper = np.triu(np.ones(square.shape, dtype=bool), 1)
    for b, row in enumerate(square):
        # One step of a min-plus product: all detours over b at once.
        broken = (square > row[:, None] + row + tolerance) & upper
        broken[b] = broken[:, b] = False
        a, c = np.nonzero(broken)
        found.append(np.stack([a, np.full_like(a, b), c]))
    together = np.concatenate(found, axis=1)
    return together[0], together[1], together[2]


def _ways(square: Floats, sides: Sides) -> tuple[Floats, Floats]:
    """(direct, detour) of triples."""
    a, b, c = sides
    return square[a, c], square[a, b] + square[b, c]


def _clear(excess: Floats, sides: Sides, noise_floor: npt.ArrayLike, shape: tuple[int, ...]) -> int:
    """How many excesses are above the floor of their direct line."""
    floors = np.broadcast_to(np.asarray(noise_floor, dtype=np.float64), shape)
    return int((excess > floors[sides[0], sides[2]]).sum())


def _table(names: Sequence[str], sides: Sides, direct: Floats, detour: Floats) -> pd.DataFrame:
    """One row per violation, the largest first."""
    columns: dict[str, Any] = {
        key: np.array(names, dtype=object)[side] for key, side in zip("abc", sides, strict=True)
    }
    excess = direct - detour
    columns |= {"direct": direct, "detour": detour, "excess": excess}
    table = pd.DataFrame({**columns, "percent": 100.0 * excess / direct})
    return table.sort_values("excess", ascending=False, kind="stable", ignore_index=True)


def _share(
    sides: Sides, n: int, triples: int, replicates: int, seed: int, level: float
) -> tuple[float, float, float]:
    """Share of violated triples and its interval over resampled checkpoints."""
    if not triples:
        return float("nan"), float("nan"), float("nan")
    counts = resample_counts(n, replicates, seed)
    p1, p2, p3 = ((counts**power).sum(axis=1) for power in (1, 2, 3))
    # The elementary symmetric polynomial: sum over different checkpoints of c_a c_b c_c.
    drawn_triples = (p1**3 - 3 * p1 * p2 + 2 * p3) / 6
    drawn = np.zeros(len(counts))
    a, b, c = sides
    step = max(1, BLOCK // len(counts))
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        drawn += (counts[:, a[part]] * counts[:, b[part]] * counts[:, c[part]]).sum(axis=1)
    usable = drawn_triples > 0.5  # a replicate of one or two checkpoints has no triple
    if not usable.any():
        return len(a) / triples, 0.0, 1.0
    low, high = percentile_interval(drawn[usable] / drawn_triples[usable], level)
    return len(a) / triples, float(low), float(high)


def _as_published(square: Floats) -> dict[str, float]:
    """What the original script prints, on all N^3 ordered triples."""
    excesses, percents = [], []
    for row in square:
        detour = row[:, None] + row
        broken = detour + TOLERANCE < square
        excess = square[broken] - detour[broken]
        excesses.append(excess)
        percents.append(100 * excess / (detour[broken] + 1e-10))
    excess, percent = np.concatenate(excesses), np.concatenate(percents)
    strengths = square.sum(axis=1)
    numerator = float(np.einsum("ij,ji->", square @ square, square))
    denominator = float((strengths * (strengths - 1)).sum())
    number = len(square) ** 3
    return {
        "triples": number,
        "satisfied": number - len(excess),
        "violations": len(excess),
        "total": float(excess.sum()),
        # The original divides by zero where there is no violation.
        "mean": float(excess.mean()) if len(excess) else 0.0,
        "mean_percent": float(percent.mean()) if len(excess) else 0.0,
        "clustering_coefficient": numerator / denominator if denominator else 0.0,
        "numerator": numerator,
        "denominator": denominator,
    }
