"""Two more numbers of a line beside its barrier: how far the metric drops, and the area above the
chord.

    drop   min(M_0, M_{P-1}) - min_k M_k      of the headline metric, more is better (of a loss the
                                              sign is turned); 0 where no point is worse than both
                                              ends
    area   integral of L(t) - chord(t) over the line, its length taken as 1: the barrier height is
           the largest value of that difference, this is its mean; below 0 where the line runs
           under its chord

The drop is a maximum over points, so noise can only raise it: its interval is built as that of the
barrier (see `geometry.curves`), and its lower end is 0 where chance alone explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from landform.errors import ConfigError
from landform.evaluation.evaluate import headline, metric_replicates
from landform.evaluation.intervals import known_interval
from landform.evaluation.points import PointsConfig
from landform.tasks.metrics import Predictions, get_metric
from landform.tasks.task import Task

__all__ = ["DROP_FIELDS", "chord_area", "drop_numbers", "metric_drop"]

Floats = npt.NDArray[np.float64]

DROP_FIELDS = (
    *("metric_drop", "metric_drop_low", "metric_drop_high"),
    *("chord_area", "chord_area_low", "chord_area_high"),
)
"""What is said of a line here, in the order of the tables."""


def metric_drop(values: npt.ArrayLike) -> Any:
    """min(M_0, M_{P-1}) - min_k M_k of metrics (..., P) of which more is better: (...), never below
    0."""
    curves = _curves(values)
    drop = np.minimum(curves[..., 0], curves[..., -1]) - curves.min(axis=-1)
    return drop if drop.ndim else float(drop)


def chord_area(losses: npt.ArrayLike, *, t: npt.ArrayLike | None = None) -> Any:
    """Mean over the line of L minus its chord, by the trapezoid rule: losses (..., P) -> (...).

    With positions t (P,), equally spaced by default: the sum of the trapezoids over t_{P-1} - t_0,
    minus (L_0 + L_{P-1}) / 2, in the unit of the losses.
    """
    curves = _curves(losses)
    points = curves.shape[-1]
    places = np.arange(points, dtype=np.float64) if t is None else np.asarray(t, dtype=np.float64)
    if places.shape != (points,) or (np.diff(places) <= 0).any():
        raise ConfigError(f"t must be {points} rising positions, one for every point")
    under = ((curves[..., 1:] + curves[..., :-1]) / 2 * np.diff(places)).sum(axis=-1)
    area = under / (places[-1] - places[0]) - (curves[..., 0] + curves[..., -1]) / 2
    return area if area.ndim else float(area)


def _curves(values: npt.ArrayLike) -> Floats:
    curves = np.asarray(values, dtype=np.float64)
    if curves.ndim == 0 or curves.shape[-1] < 2:
        raise ConfigError(f"values of shape {curves.shape} are no curve: it needs 2 points or more")
    return curves


def drop_numbers(
    task: Task, points: Sequence[Predictions], ts: Sequence[float], config: PointsConfig
) -> dict[str, float]:
    """The fields of `DROP_FIELDS` of one data set along a line, with bootstrap intervals.

    Every replicate resamples the examples alike at all points. Replicates in which the metric does
    not exist at some point (a correlation of constants) are left out; where it exists at all points
    in fewer than half of them, or not for the examples themselves, there is no interval (NaN).
    """
    metric = get_metric(headline(task))
    sign = 1.0 if metric.higher_is_better else -1.0
    values, drawn = metric_replicates(metric.name, points, config)
    drop = float(metric_drop(sign * values))
    low, high = known_interval(metric_drop(sign * drawn), config.level)
    found = {"metric_drop": drop, "metric_drop_low": np.nan, "metric_drop_high": np.nan}
    if np.isfinite([drop, low, high]).all():
        # The barrier's interval: the basic one below, the larger upper end of both.
        found["metric_drop_low"] = max(0.0, 2 * drop - high)
        found["metric_drop_high"] = max(high, 2 * drop - low)
    losses, drawn = metric_replicates("loss", points, config)
    low, high = known_interval(chord_area(drawn, t=ts), config.level)
    area = float(chord_area(losses, t=ts))
    return {**found, "chord_area": area, "chord_area_low": low, "chord_area_high": high}
