"""Models side by side on the same examples: a row of metrics for each, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landform.evaluation.evaluate import metric_names, metric_table
from landform.evaluation.intervals import percentile_interval, resample_counts
from landform.evaluation.points import Data, PointsConfig
from landform.geometry.better import headline
from landform.tasks.metrics import Predictions, get_metric, mean_loss

__all__ = ["mean_loss", "metric_row", "paired_differences"]


def metric_row(
    t: float, predictions: Predictions, data: Data, config: PointsConfig
) -> dict[str, Any]:
    """t, and every metric of the task with its interval: `loss`, `loss_low`, `loss_high`, ..."""
    row: dict[str, Any] = {"t": t}
    table = metric_table(predictions, metric_names(data.task), config)
    for name, (value, low, high) in table.items():
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return row


def paired_differences(
    data: Data,
    models: Mapping[str, Predictions],
    pairs: Sequence[tuple[str, str]],
    config: PointsConfig,
) -> list[dict[str, Any]]:
    """First minus second of every pair, in loss and headline metric, examples resampled alike."""
    size = len(next(iter(models.values())).losses)
    counts = resample_counts(size, config.replicates, config.seed)
    rows = []
    for name in dict.fromkeys(("loss", headline(data.task))):
        metric = get_metric(name)
        drawn = {m: np.asarray(metric.aggregate(p, counts)) for m, p in models.items()}
        values = {m: float(metric.aggregate(p)) for m, p in models.items()}
        for model, other in pairs:
            spread = drawn[model] - drawn[other]
            finite = spread[np.isfinite(spread)]
            low, high = (
                percentile_interval(finite, config.level) if len(finite) else (math.nan, math.nan)
            )
            row: dict[str, Any] = {"data": data.name, "quantity": name}
            row |= {"model": model, "against": other}
            row |= {"difference": values[model] - values[other]}
            rows.append({**row, "low": float(low), "high": float(high)})
    return rows
