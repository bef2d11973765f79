"""Points between two models that are better than both of them, and how far that may be chance.

With M the headline metric of a data set (the loss where it has none; the sign of M such that more
is better), the margin of a point t is

    m(t) = M(t) - max(M(0), M(1))

(Qin et al. 2022 count the points with m(t) > 0.) The best of many points looks better than it is:
`bound` is a lower bound that holds for all inner points at once, m(t) - q s(t), s(t) the bootstrap
deviation of m(t) over examples, and q the `level` quantile of max_t (m_r(t) - m(t)) / s(t) over the
replicates r (the single-step max-t bootstrap). Only a point whose bound is above 0 is called
clearly better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from landform.evaluation.evaluate import headline, metric_replicates
from landform.evaluation.intervals import known_interval
from landform.evaluation.points import Data, PointsConfig
from landform.tasks.metrics import Predictions, get_metric

__all__ = ["ALL", "better_than_ends", "count_better", "say_better"]

Floats = npt.NDArray[np.float64]

ALL = "all"
"""The name under which the table says what holds on every data set."""


def better_than_ends(
    data: Sequence[Data],
    points: Sequence[Sequence[Predictions]],
    ts: Sequence[float],
    config: PointsConfig,
) -> pd.DataFrame:
    """One row per data set and inner point; with several data sets also rows of the name "all".

    `points` are the predictions of every data set at every position. Columns data, metric, t,
    value, margin, margin_low, margin_high (percentile interval of this point alone), share (of the
    replicates in which it is better), bound (see above), better (margin > 0), clear (bound > 0). In
    the rows "all" the numbers are the least of all data sets (NaN if one is), and a point is better
    where it is better on each. Every replicate resamples the examples of a data set alike at all
    points.
    """
    tables = [_one(item, found, ts, config) for item, found in zip(data, points, strict=True)]
    table = pd.concat(tables, ignore_index=True)
    if len(data) < 2:
        return table
    least = ["margin", "margin_low", "margin_high", "share", "bound", "better", "clear"]
    shared = table.groupby("t", sort=True)[least]
    # pandas passes over NaN: the least of the others is no bound for all.
    every = shared.min().where(shared.count() == len(data)).reset_index()
    every = every.assign(data=ALL, metric="each its own", value=np.nan)
    return pd.concat([table, every[table.columns]], ignore_index=True)


def _one(
    data: Data, points: Sequence[Predictions], ts: Sequence[float], config: PointsConfig
) -> pd.DataFrame:
    metric = get_metric(headline(data.task))
    sign = 1.0 if metric.higher_is_better else -1.0
    values, drawn = metric_replicates(metric.name, points, config)
    whole = np.asarray(np.isfinite(drawn).all(axis=1))
    if 2 * whole.sum() < len(drawn):
        whole = np.zeros_like(whole)  # too few to say anything, see `known_interval`
    margin, margins = _margin(sign * values), _margin(sign * drawn[whole])
    bound = _lower_bounds(margin, margins, config.level)
    rows: list[dict[str, Any]] = []
    for k in range(len(margin)):
        low, high = known_interval(margins[:, k], config.level)
        row: dict[str, Any] = {"data": data.name, "metric": metric.name, "t": float(ts[k + 1])}
        row |= {"value": float(values[k + 1]), "margin": float(margin[k])}
        row |= {"margin_low": low, "margin_high": high}
        row |= {"share": float((margins[:, k] > 0).mean()) if len(margins) else np.nan}
        row |= {"bound": float(bound[k]), "better": bool(margin[k] > 0)}
        rows.append({**row, "clear": bool(bound[k] > 0)})
    columns = ("data", "metric", "t", "value", "margin", "margin_low", "margin_high", "share",
               "bound", "better", "clear")  # fmt: skip
    return pd.DataFrame(rows, columns=list(columns))


def _margin(values: Floats) -> Floats:
    """Inner points minus the better end, along the last axis; more is better."""
    ends = np.maximum(values[..., :1], values[..., -1:])
    margin: Floats = values[..., 1:-1] - ends
    return margin


def _lower_bounds(margin: Floats, drawn: Floats, level: float) -> Floats:
    """Bounds that hold for all points at once; -inf where too little is known."""
    if len(drawn) < 2 or not margin.size:
        return np.full(margin.shape, -np.inf)
    deviation = drawn.std(axis=0)
    varies = deviation > 1e-12
    if not varies.any():
        return np.where(margin > 0, -np.inf, margin)  # a single example, resampled as itself
    away = (drawn[:, varies] - margin[varies]) / deviation[varies]
    q = max(0.0, float(np.quantile(away.max(axis=1), level)))
    bound: Floats = np.where(varies, margin - q * deviation, np.minimum(margin, 0.0))
    return bound


def count_better(table: pd.DataFrame, data: str) -> dict[str, int]:
    """{"better": points, "clearly_better": points} of one data set."""
    rows = table[table["data"] == data]
    return {"better": int(rows["better"].sum()), "clearly_better": int(rows["clear"].sum())}


def say_better(table: pd.DataFrame | None) -> str:
    """What holds on all data sets, in words for a reading; nothing without inner points."""
    if table is None or not len(table):
        return ""
    name = ALL if (table["data"] == ALL).any() else table["data"].iloc[0]
    rows = table[table["data"] == name]
    found = rows[rows["better"]]
    what = f"{rows['metric'].iloc[0]} beats" if name != ALL else "on every data set metrics beat"
    if not len(found):
        return f"{what} both ends at no inner point"
    where = ", ".join(f"{t:.3g}" for t in found["t"][:6]) + (", ..." if len(found) > 6 else "")
    clear = int(found["clear"].sum())
    certain = f"{clear} of them" if 0 < clear < len(found) else "all of them" if clear else "none"
    points = f"{len(found)} of {len(rows)} inner points (t = {where})"
    return f"{what} both ends at {points}, {certain} beyond chance"
