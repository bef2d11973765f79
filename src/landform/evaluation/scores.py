"""What a metric says of single examples: the rows behind every number of a path."""

from __future__ import annotations

import numpy as np

from landform.errors import DataError
from landform.tasks.metrics import Metric, Pearson, Predictions, Spearman, get_metric
from landform.tasks.task import Task

__all__ = ["example_scores"]


def example_scores(task: Task, predictions: Predictions, metric: str | None = None) -> np.ndarray:
    """(N,) values of `metric` (default: the task's headline metric) on single examples, float64.

    * a metric that is a mean over examples: the values that are averaged (accuracy, exact_match,
      token_f1, rouge_l, answer_accuracy, losses; token_accuracy: the share of the example's
      tokens);
    * correlations of numbers (pearson, spearman, answer_pearson): the product z_x z_y of the
      standardised values (spearman: of their ranks), whose mean is the correlation;
    * metrics of classes that are no means (f1, macro_f1, matthews, ece, answer_f1,
      answer_matthews): 1 where the example is right, else 0.

    Raises `DataError` for predictions that lack what the metric needs.
    """
    name = task.metrics[0] if metric is None else metric
    chosen: Metric = get_metric(name)
    values = chosen.per_example(predictions)
    if values is not None:
        return np.asarray(values, dtype=np.float64)
    if isinstance(chosen, Pearson | Spearman):
        return _products(predictions, ranks=isinstance(chosen, Spearman))
    right = get_metric("accuracy").per_example(predictions)
    if right is None:  # pragma: no cover - accuracy always has values of examples
        raise DataError(f"metric {name!r} has no values of single examples")
    return np.asarray(right, dtype=np.float64)


def _products(predictions: Predictions, *, ranks: bool) -> np.ndarray:
    from scipy.stats import rankdata

    if predictions.logits is None or predictions.labels is None:
        raise DataError(
            "a correlation needs predicted and target values, which these predictions do not have",
            remedy="choose a metric that fits the kind of the task",
        )
    sides = [
        np.asarray(side, dtype=np.float64).reshape(len(predictions))
        for side in (predictions.logits, predictions.labels)
    ]
    if ranks:
        sides = [rankdata(side) for side in sides]
    products: np.ndarray = _standardised(sides[0]) * _standardised(sides[1])
    return products


def _standardised(values: np.ndarray) -> np.ndarray:
    """(x - mean) / population deviation; NaN for a constant."""
    if (values == values[0]).all():
        return np.full_like(values, np.nan)
    centred = values - values.mean()
    scaled: np.ndarray = centred / np.sqrt((centred**2).mean())
    return scaled
