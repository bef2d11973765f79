"""Which examples a model loses and gains from point to point of a path, and what is known of them.

Everything here is a function of the matrix of scores (points, examples), each score from 0 (wrong)
to 1 (right), and of numbers about the examples. With Z_k the examples of score 0 at point k,

    newly forgotten at k:  F_k = Z_k \\ Z_{k-1}        relearned at k:  R_k = Z_{k-1} \\ Z_k

and Z_{-1} empty, so that F_0 are the examples that the left end has wrong (the procedure of
Mode-Connectivity-PLM, Qin et al. 2022).

That forgotten examples are hard ones is nearly true by definition: those that could be forgotten
were right before. So the mean over F_k stands beside the mean over *all* examples and beside its
control: sets of the same size, drawn at random from the examples that could be forgotten at k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from landform.errors import DataError
from landform.evaluation.intervals import known_interval, resample_counts
from landform.geometry.ranks import holm

__all__ = [
    "CHANGES",
    "LISTS",
    "STATISTICS",
    "along_path",
    "check_scores",
    "compare_changes",
    "forgotten_and_relearned",
    "score_lists",
    "step_summary",
]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

STATISTICS = ("correctness", "confidence", "variability", "turns")
"""What training dynamics say of an example, as the columns of `landform.cartography`."""
CHANGES = ("forgotten", "relearned")
LISTS = ("zero", "one", "up", "down", "up_to_one", "down_to_zero")
"""The lists of a point: score 0; score 1; above, below the score at the point before; and of those
the ones that arrived at 1 and at 0."""
POOLED = -1
"""The number of the row that takes all steps together."""


def check_scores(scores: npt.ArrayLike) -> Floats:
    """Scores as float64 (points, examples); `DataError` where they are no such matrix, or empty."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(f"scores have shape {values.shape}, expected (points, examples)")
    return values


def forgotten_and_relearned(scores: npt.ArrayLike) -> tuple[tuple[Rows, ...], tuple[Rows, ...]]:
    """Rows newly forgotten (F_k) and relearned (R_k) at every point, in rising order."""
    wrong = check_scores(scores) == 0
    before = np.vstack([np.zeros((1, wrong.shape[1]), dtype=bool), wrong[:-1]])
    forgotten = tuple(np.flatnonzero(row) for row in wrong & ~before)
    return forgotten, tuple(np.flatnonzero(row) for row in before & ~wrong)


def score_lists(scores: npt.ArrayLike) -> tuple[dict[str, Rows], ...]:
    """The rows of `LISTS` at every point.

    Before the first point all scores count as 0, as in the original: there `up` holds every example
    with a score and `up_to_one` is `one`.
    """
    values = check_scores(scores)
    lists, before = [], np.zeros(values.shape[1])
    for now in values:
        masks = {
            "zero": now == 0,
            "one": now == 1,
            "up": now > before,
            "down": now < before,
            "up_to_one": (now == 1) & (before < 1),
            "down_to_zero": (now == 0) & (before > 0),
        }
        lists.append({name: np.flatnonzero(masks[name]) for name in LISTS})
        before = now
    return tuple(lists)


def along_path(
    scores: npt.ArrayLike,
    ts: Sequence[float],
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """One row per point: t, score (mean over examples) with its interval, the sizes of the lists.

    Columns t, score, score_low, score_high, zero, one, up, down, up_to_one, down_to_zero,
    forgotten, relearned. The interval resamples examples; a score that is NaN (an example without
    a token to predict) counts for nothing.
    """
    values = check_scores(scores)
    known = np.isfinite(values)
    counts = resample_counts(values.shape[1], replicates, seed)
    filled = np.where(known, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=1) / known.sum(axis=1)
        drawn = (counts @ filled.T) / (counts @ known.T.astype(np.float64))
    forgotten, relearned = forgotten_and_relearned(values)
    rows: list[dict[str, Any]] = []
    for k, found in enumerate(score_lists(values)):
        low, high = known_interval(drawn[:, k], level)
        row: dict[str, Any] = {"t": float(ts[k]), "score": float(mean[k])}
        row |= {"score_low": low, "score_high": high}
        row |= {name: len(found[name]) for name in LISTS}
        rows.append({**row, "forgotten": len(forgotten[k]), "relearned": len(relearned[k])})
    return pd.DataFrame(rows)


# --- what is known of those that change ----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Change:
    """Examples that changed at a step, or at all steps together."""

    step: int
    change: str
    events: Floats
    """(N,) how often each example changed: 0 or 1 at a step"""
    drawn: Floats
    """(controls, statistics) means over random sets of as many examples that could have"""
    expected: Floats
    """(statistics,) the mean over all that could have: what random sets have on average"""

    @property
    def n(self) -> int:
        return int(self.events.sum())


def compare_changes(
    scores: npt.ArrayLike,
    known: Mapping[str, npt.ArrayLike],
    ts: Sequence[float],
    *,
    replicates: int = 1000,
    controls: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """What is known of the examples that change, against all examples and against random ones.

    `known` has one number per example under every name. One row per step, change (forgotten,
    relearned) and name, columns

        step, from_t, to_t, change, statistic, n, mean, low, high, base, base_low, base_high,
        difference, difference_low, difference_high, control, control_low, control_high,
        p_value, p_holm

    * mean: over the n examples that changed, m = sum_i e_i x_i / sum_i e_i with e_i = 1 for those;
    * base: over all examples; difference = mean - base. Intervals are percentile bootstraps over
      examples that resample both alike. Fewer than two different examples have none (NaN): one
      example says nothing about its like.
    * control: random sets of n of the examples that could have changed there (to forget, those not
      wrong at the point before; to relearn, those that were wrong): their mean, and the central
      `level` of `controls` such sets. p_value is two-sided, (1 + #{|m_c - mu| >= |m - mu|}) /
      (1 + controls), mu the mean over all that could have changed.

    Steps are numbered by the point they lead to; step 0 is the left end itself, where all examples
    could be wrong. Step -1 takes all steps but that one together: e_i counts how often an example
    changed, and a random set is drawn at every step. p_holm is corrected over the rows of step -1,
    and apart from them over the rows of the single steps. Raises `DataError` for a number that is
    missing or not finite.
    """
    values = check_scores(scores)
    names, x = _numbers(known, values.shape[1])
    random = np.random.default_rng(seed)
    changes = [change for kind in CHANGES for change in _changes(values, x, kind, controls, random)]
    counts = resample_counts(values.shape[1], replicates, seed)
    base = x.mean(axis=0)
    base_drawn = counts @ x / values.shape[1]
    rows: list[dict[str, Any]] = []
    for change in changes:
        start = float(ts[max(change.step - 1, 0)])
        place: dict[str, Any] = {"step": change.step, "change": change.change}
        place["from_t"] = start if change.step > 0 else float("nan")
        place["to_t"] = float("nan") if change.step == POOLED else float(ts[change.step])
        for s, found in enumerate(_against(change, x, counts, base, base_drawn, level)):
            rows.append({**place, "statistic": names[s], **found})
    table = pd.DataFrame(rows).sort_values("step", kind="stable", ignore_index=True)
    table["p_holm"] = np.nan
    for family in (table.step == POOLED, table.step != POOLED):
        tested = family & table.p_value.notna()
        if tested.any():
            table.loc[tested, "p_holm"] = holm(table.loc[tested, "p_value"].to_numpy(np.float64))
    return table


def _numbers(known: Mapping[str, npt.ArrayLike], n: int) -> tuple[list[str], Floats]:
    """Names and values (examples, names)."""
    names = list(known)
    x = np.stack([np.asarray(known[name], dtype=np.float64) for name in names], axis=1)
    if len(x) != n:
        raise DataError(f"{len(x)} examples are described, {n} have scores")
    if not np.isfinite(x).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise DataError(f"the {names[column]} of example {row} is {x[row, column]}")
    return names, x


def _changes(
    scores: Floats, x: Floats, kind: str, controls: int, random: np.random.Generator
) -> list[_Change]:
    """All steps of one kind of change, and all of them together."""
    wrong = scores == 0
    before = np.vstack([np.zeros((1, wrong.shape[1]), dtype=bool), wrong[:-1]])
    could = ~before if kind == "forgotten" else before
    did = (wrong if kind == "forgotten" else ~wrong) & could
    steps = []
    for step in range(len(scores)):
        if kind == "relearned" and not step:
            continue  # nothing is known to have been wrong before the first point
        pool = np.flatnonzero(could[step])
        size = int(did[step].sum())
        drawn = _random_means(x[pool], size, controls, random)
        expected = x[pool].mean(axis=0) if len(pool) else np.full(x.shape[1], np.nan)
        steps.append(_Change(step, kind, did[step].astype(np.float64), drawn, expected))
    later = [change for change in steps if change.step]
    filled = [change for change in later if change.n]
    total = sum(change.n for change in filled)
    nothing = np.full((controls, x.shape[1]), np.nan)
    together = _Change(
        POOLED,
        kind,
        np.sum([change.events for change in later], axis=0) if later else np.zeros(scores.shape[1]),
        sum((c.n * c.drawn for c in filled), np.zeros_like(nothing)) / total if total else nothing,
        sum((c.n * c.expected for c in filled), np.zeros(x.shape[1])) / total
        if total
        else nothing[0],
    )
    return [*steps, together]


def _random_means(pool: Floats, size: int, controls: int, random: np.random.Generator) -> Floats:
    """(controls, statistics): means over random sets of `size` rows of the pool."""
    if not size:
        return np.full((controls, pool.shape[1]), np.nan)
    drawn = np.empty((controls, pool.shape[1]))
    for row in drawn:
        chosen = random.choice(len(pool), size, replace=False, shuffle=False)
        row[:] = pool[chosen].mean(axis=0)
    return drawn


def _against(
    change: _Change,
    x: Floats,
    counts: Floats,
    base: Floats,
    base_drawn: Floats,
    level: float,
) -> list[dict[str, Any]]:
    """Mean, base rate, control and p of every statistic."""
    e = change.events
    unknown = float("nan"), float("nan")
    alone = bool(np.count_nonzero(e) < 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (e @ x) / e.sum()
        drawn = (counts @ (e[:, None] * x)) / (counts @ e)[:, None]
    rows = []
    for s in range(x.shape[1]):
        row: dict[str, Any] = {"n": change.n, "mean": float(mean[s])}
        own = unknown if alone else known_interval(drawn[:, s], level)
        row["low"], row["high"] = own
        row["base"] = float(base[s])
        row["base_low"], row["base_high"] = known_interval(base_drawn[:, s], level)
        row["difference"] = float(mean[s] - base[s])
        apart = unknown if alone else known_interval(drawn[:, s] - base_drawn[:, s], level)
        row["difference_low"], row["difference_high"] = apart
        row["control"] = float(change.expected[s]) if change.n else float("nan")
        row["control_low"], row["control_high"] = known_interval(change.drawn[:, s], level)
        row["p_value"] = _p_value(float(mean[s]), change.drawn[:, s], row["control"])
        rows.append(row)
    return rows


def _p_value(mean: float, drawn: Floats, expected: float) -> float:
    """Two-sided share of random sets at least as far from their mean as this one."""
    if not np.isfinite(mean):
        return float("nan")
    # Means of the same numbers in another order differ by rounding, and are no less extreme.
    far = abs(mean - expected) - 1e-12 * max(1.0, abs(mean))
    return float((1 + np.count_nonzero(np.abs(drawn - expected) >= far)) / (1 + len(drawn)))


def step_summary(along: pd.DataFrame, comparison: pd.DataFrame | None) -> pd.DataFrame:
    """One row per point: what changed on the way there, and what is known of it.

    Columns point, from_t (NaN for the first), to_t, forgotten, relearned, correct (mean score);
    with a comparison, for every statistic of the newly forgotten <s>, <s>_low, <s>_high, <s>_base
    (of all examples), <s>_difference, <s>_difference_low, <s>_difference_high, <s>_control,
    <s>_p; and all of these again of the relearned as relearned_<s>...
    """
    ts = along["t"].to_numpy(np.float64)
    table = pd.DataFrame(
        {
            "point": np.arange(len(ts)),
            "from_t": [float("nan"), *ts[:-1]],
            "to_t": ts,
            "forgotten": along["forgotten"],
            "relearned": along["relearned"],
            "correct": along["score"],
        }
    )
    if comparison is None:
        return table
    kept = {"mean": "", "low": "_low", "high": "_high", "base": "_base"}
    kept |= {name: f"_{name}" for name in ("difference", "difference_low", "difference_high")}
    kept |= {"control": "_control", "p_value": "_p"}
    columns: dict[str, Any] = {}
    for (change, statistic), rows in comparison.groupby(["change", "statistic"], sort=False):
        head = str(statistic) if change == "forgotten" else f"{change}_{statistic}"
        by_step = rows.set_index("step").reindex(range(len(ts)))
        columns |= {f"{head}{end}": by_step[name].to_numpy() for name, end in kept.items()}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)
