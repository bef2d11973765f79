"""Models side by side on the same examples: a row of metrics for each, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from landform.evaluation.evaluate import (
    headline,
    metric_names,
    metric_replicates,
    metric_table,
)
from landform.evaluation.intervals import known_interval
from landform.evaluation.points import Data, PointsConfig
from landform.tasks.metrics import Predictions

__all__ = ["metric_row", "paired_differences"]


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
    place = {model: k for k, model in enumerate(models)}
    rows = []
    for name in dict.fromkeys(("loss", headline(data.task))):
        values, drawn = metric_replicates(name, list(models.values()), config)
        for model, other in pairs:
            i, j = place[model], place[other]
            low, high = known_interval(drawn[:, i] - drawn[:, j], config.level)
            row: dict[str, Any] = {"data": data.name, "quantity": name}
            row |= {"model": model, "against": other}
            row |= {"difference": float(values[i] - values[j])}
            rows.append({**row, "low": low, "high": high})
    return rows
