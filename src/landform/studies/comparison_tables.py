"""The tables of a comparison of arms: means, paired differences, ranks, and what they say."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from landform.geometry.ranks import holm
from landform.studies.paired import detectable, paired, smallest_p, t_interval

if TYPE_CHECKING:
    from landform.studies.comparison import DropoutComparison

__all__ = ["difference_table", "overall_table", "reading_of", "summary_table"]

CELL = ["task", "fraction", "metric"]


def _about(metrics: pd.DataFrame, task: object, metric: object) -> pd.Series:
    return metrics[(metrics.task == task) & (metrics.metric == metric)].iloc[0]


def summary_table(
    runs: pd.DataFrame, metrics: pd.DataFrame, arms: list[str], level: float
) -> pd.DataFrame:
    """Mean, t interval over seeds and rank of every arm, per task, fraction and metric."""
    parts = []
    for (task, fraction, metric), cell in runs.groupby(CELL, sort=False):
        about = _about(metrics, task, metric)
        rows = []
        for arm in arms:
            values = cell[cell.arm == arm]
            mean, low, high = t_interval(values.value.to_numpy(), level)
            rows.append(
                {
                    "task": task,
                    "fraction": fraction,
                    "metric": metric,
                    "headline": bool(about.headline),
                    "arm": arm,
                    "dropout": float(values.dropout.iloc[0]),
                    "n": len(values),
                    "mean": mean,
                    "sd": float(values.value.std(ddof=1)),
                    "low": low,
                    "high": high,
                }
            )
        part = pd.DataFrame(rows)
        part["rank"] = part["mean"].rank(ascending=not about.higher_is_better)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def difference_table(
    runs: pd.DataFrame, metrics: pd.DataFrame, reference: str, *, level: float, power: float
) -> pd.DataFrame:
    """Every other arm minus the reference, per task, fraction and metric, paired by seed."""
    parts = []
    for (task, fraction, metric), cell in runs.groupby(CELL, sort=False):
        wide = cell.pivot(index="seed", columns="arm", values="value")
        arms = [arm for arm in dict.fromkeys(cell.arm) if arm != reference]
        rows = [
            {
                "task": task,
                "fraction": fraction,
                "metric": metric,
                "headline": bool(_about(metrics, task, metric).headline),
                "arm": arm,
                **paired((wide[arm] - wide[reference]).to_numpy(), level)._asdict(),
            }
            for arm in arms
        ]
        parts.append(_corrected(pd.DataFrame(rows), level, power))
    return pd.concat(parts, ignore_index=True)


def overall_table(
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    summary: pd.DataFrame,
    reference: str,
    *,
    level: float,
    power: float,
) -> pd.DataFrame:
    """Every arm over all tasks and fractions, by headline metrics.

    The unit is a task under one seed, its gains averaged over the fractions: fractions of one seed
    share rows, so they are no repetitions.
    """
    chosen = metrics[metrics.headline]
    table = runs.merge(chosen[["task", "metric", "higher_is_better"]], on=["task", "metric"])
    table["value"] *= np.where(table.higher_is_better, 1.0, -1.0)
    units = table.groupby(["task", "seed", "arm"], sort=False).value.mean().unstack("arm")
    ranks = summary[summary.headline].groupby("arm", sort=False)
    about = ranks.agg(dropout=("dropout", "first"), rank=("rank", "mean"))
    others = [arm for arm in about.index if arm != reference]
    rows = [
        {"arm": arm, **paired((units[arm] - units[reference]).to_numpy(), level)._asdict()}
        for arm in others
    ]
    found = _corrected(pd.DataFrame(rows), level, power).rename(columns={"difference": "gain"})
    whole = about.reset_index().merge(found, on="arm", how="left")
    whole["n"] = whole["n"].astype("Int64")
    return whole.sort_values("rank", kind="stable", ignore_index=True)


def _corrected(table: pd.DataFrame, level: float, power: float) -> pd.DataFrame:
    """With p values corrected over the rows (Holm), and what could have been detected."""
    for name in ("p_t", "p_flip"):
        table[f"{name}_holm"] = math.nan
        tested = table[name].notna()
        if tested.any():
            table.loc[tested, f"{name}_holm"] = holm(table.loc[tested, name].to_numpy(float))
    strict = 1 - (1 - level) / len(table)
    table["detectable"] = [
        detectable(sd, n, level=strict, power=power)
        for sd, n in zip(table.sd, table.n, strict=True)
    ]
    return table


# --- what it says --------------------------------------------------------------------------------


def reading_of(result: DropoutComparison) -> str:
    """Who ranks first, whose difference from the reference can be told, and what could not be."""
    tasks = list(dict.fromkeys(result.metrics.task))
    shares = ", ".join(f"{f:g}" for f in dict.fromkeys(result.summary.fraction))
    seeds = len(result.seeds)
    best = float(result.overall["rank"].iloc[0])
    first = " and ".join(result.overall.arm[result.overall["rank"] == best])
    return (
        f"{len(result.arms)} arms on {', '.join(tasks)} ({shares} % of the rows, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}): best mean rank {first} "
        f"({best:.3g} of {len(result.arms)}); " + (_verdict(result) if seeds > 1 else _alone())
    )


def _alone() -> str:
    return (
        "one seed shows no spread: no interval, no test, no difference can be told (give 5 or more)"
    )


def _verdict(result: DropoutComparison) -> str:
    alpha, table = 1 - result.level, result.overall[result.overall.arm != result.reference]
    n = int(table.n.iloc[0])
    told = table[table.p_t_holm < alpha]
    cells = result.differences[result.differences.headline]
    single = cells[cells.p_t_holm < alpha]
    several = result.metrics.task.nunique() > 1
    over = (
        f"paired t over {n} pairs of task and seed"
        + (", taken as independent though tasks share seeds" if several else "")
        + f", Holm over {len(table)} arms"
    )
    if len(told):
        parts = [_gain(row) for row in told.to_dict("records")]
        text = f"told from {result.reference} ({over}): {', '.join(parts)}"
    else:
        smallest = table.p_t_holm.min()
        text = (
            f"no difference from {result.reference} can be told with {len(result.seeds)} seeds "
            f"({over}" + (f": smallest p {smallest:.2g})" if smallest == smallest else ")")
        )
    text += (
        f"; differences below {_range(table.detectable)} would not have been found "
        f"({100 * result.power:g} % power)"
    )
    count = cells.groupby(["task", "fraction"]).ngroups
    if count > 1:
        rows = single.to_dict("records")
        named = [f"{row['arm']} on {row['task']} at {row['fraction']:g} %" for row in rows]
        text += f"; in single tasks and fractions ({count}): {', '.join(named) or 'none'}"
    if smallest_p(n) * len(table) > alpha:
        text += (
            f"; the exact sign-flip test cannot confirm any with {n} pairs (its p is at least "
            f"{smallest_p(n):.2g}, before Holm)"
        )
    return text


def _gain(row: Mapping[Hashable, Any]) -> str:
    return (
        f"{row['arm']} {row['gain']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}], "
        f"p {row['p_t_holm']:.2g} (sign flips {row['p_flip_holm']:.2g})"
    )


def _range(values: pd.Series) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
