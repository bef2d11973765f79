"""Metrics of classes: accuracy, F1, Matthews, Brier, and how far confidence is to be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from landform.errors import ConfigError, DataError
from landform.tasks.predictions import (
    Array,
    MeanMetric,
    Predictions,
    SumMetric,
    class_scores,
    softmax,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["class_counts", "confusion", "f1_per_class", "reliability"]


def _hits(logits: Array, labels: Array) -> Array:
    """(N,) 1.0 where the largest logit (the first of equal ones) is that of the label."""
    hits: Array = (logits.argmax(axis=1) == labels).astype(np.float64)
    return hits


class Accuracy(MeanMetric):
    """Share of examples whose largest logit (the first of equal ones) is that of the label."""

    name = "accuracy"
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        return _hits(*class_scores(p, self.name))


def class_counts(logits: Array, labels: Array) -> Array:
    """(N, 3C) one-hot blocks: the label where it was hit, the prediction, the label.

    Summed, they are the diagonal and the two margins of the confusion matrix; that is all the
    metrics below need, at 3C columns instead of C squared.
    """
    size, classes = logits.shape
    predicted = logits.argmax(axis=1)
    rows = np.arange(size)
    statistics = np.zeros((size, 3 * classes))
    statistics[rows, labels] = predicted == labels
    statistics[rows, classes + predicted] = 1.0
    statistics[rows, 2 * classes + labels] = 1.0
    return statistics


def confusion(sums: Array) -> tuple[Array, Array, Array]:
    """The summed blocks of `class_counts`: hits, predicted, actual; each (..., C)."""
    classes = sums.shape[-1] // 3
    hits = sums[..., :classes]
    return hits, sums[..., classes : 2 * classes], sums[..., 2 * classes :]


def f1_per_class(sums: Array) -> tuple[Array, Array]:
    """(..., C) F1 = 2 TP / (2 TP + FP + FN) of each class, 0 for 0/0, and its denominator."""
    hits, predicted, actual = confusion(sums)
    total = predicted + actual
    return np.where(total > 0, 2 * hits / np.where(total > 0, total, 1.0), 0.0), total


class F1(SumMetric):
    """F1 = 2 TP / (2 TP + FP + FN) of class 1 of two, as GLUE reports for MRPC and QQP.

    0 when class 1 neither occurs nor is predicted.
    """

    name = "f1"

    def statistics(self, p: Predictions) -> Array:
        logits, labels = class_scores(p, self.name)
        if logits.shape[1] != 2:
            raise DataError(
                f"metric {self.name!r} is defined for 2 classes, the logits have {logits.shape[1]}",
                remedy="use 'macro_f1'",
            )
        return class_counts(logits, labels)

    def finish(self, sums: Array) -> Array:
        scores: Array = f1_per_class(sums)[0][..., 1]
        return scores


class MacroF1(SumMetric):
    """The plain mean of F1 over the classes that occur in the sample or are predicted in it."""

    name = "macro_f1"

    def statistics(self, p: Predictions) -> Array:
        return class_counts(*class_scores(p, self.name))

    def finish(self, sums: Array) -> Array:
        scores, total = f1_per_class(sums)
        mean: Array = scores.sum(axis=-1) / (total > 0).sum(axis=-1)
        return mean


class Matthews(SumMetric):
    """Matthews' correlation for any number of classes (Gorodkin 2004, R_K).

    (c n - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2)(n^2 - sum_k t_k^2)), where c is the number
    right, n the number of examples, p_k and t_k how often class k is predicted and occurs.
    0 when all predictions or all labels are the same.
    """

    name = "matthews"

    def statistics(self, p: Predictions) -> Array:
        return class_counts(*class_scores(p, self.name))

    def finish(self, sums: Array) -> Array:
        hits, predicted, actual = confusion(sums)
        size = actual.sum(axis=-1)
        covariance = hits.sum(axis=-1) * size - (predicted * actual).sum(axis=-1)
        spread = (size**2 - (predicted**2).sum(axis=-1)) * (size**2 - (actual**2).sum(axis=-1))
        return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0)


class Brier(MeanMetric):
    """Brier's score as he defined it: the mean of sum_k (p_k - [k = label])^2, from 0 to 2.

    For two classes it is twice the one-sided score that some libraries report.
    """

    name = "brier"
    higher_is_better = False

    def per_example(self, p: Predictions) -> Array:
        logits, labels = class_scores(p, self.name)
        error = softmax(logits)
        error[np.arange(len(labels)), labels] -= 1.0
        scores: Array = (error**2).sum(axis=1)
        return scores


# --- calibration ------------------------------------------------------------------------------


def _bin_statistics(p: Predictions, bins: int, metric: str) -> Array:
    """(N, 3 * bins): per bin the membership, the confidence and the correctness of an example.

    The confidence is the largest probability; its bin is floor(bins * confidence), with
    confidence 1 in the last bin.
    """
    logits, labels = class_scores(p, metric)
    confidence = softmax(logits).max(axis=1)
    rows = np.arange(len(labels))
    place = np.minimum((bins * confidence).astype(np.int64), bins - 1)
    statistics = np.zeros((len(labels), 3, bins))
    statistics[rows, 0, place] = 1.0
    statistics[rows, 1, place] = confidence
    statistics[rows, 2, place] = _hits(logits, labels)
    return statistics.reshape(len(labels), 3 * bins)


def _check_bins(bins: int) -> int:
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ConfigError(f"option bins: expected a whole number of at least 1, given {bins!r}")
    return bins


class CalibrationError(SumMetric):
    """Expected calibration error: sum_b (n_b / n) |accuracy_b - confidence_b|.

    Equal-width bins on the largest probability (Guo et al. 2017); with 10 bins, index
    floor(10 p), p = 1 in the last. Where two logits tie, the first one is the prediction.
    """

    name = "ece"
    higher_is_better = False

    def __init__(self, bins: int = 10) -> None:
        self.bins = _check_bins(bins)

    def statistics(self, p: Predictions) -> Array:
        return _bin_statistics(p, self.bins, self.name)

    def finish(self, sums: Array) -> Array:
        count, confidence, hits = (
            sums[..., block * self.bins : (block + 1) * self.bins] for block in range(3)
        )
        # n_b cancels: (n_b / n) |hits_b / n_b - confidence_b / n_b|.
        error: Array = np.abs(hits - confidence).sum(axis=-1) / count.sum(axis=-1)
        return error


def reliability(p: Predictions, bins: int = 10) -> pd.DataFrame:
    """The reliability diagram: one row per bin of the largest probability.

    Columns: bin, lower, upper (its edges), count, confidence (mean largest probability) and
    accuracy of its examples, NaN in an empty bin. The same sums give the metric `ece`.
    """
    import pandas as pd

    sums = _bin_statistics(p, _check_bins(bins), "reliability").sum(axis=0).reshape(3, bins)
    count = sums[0]
    with np.errstate(invalid="ignore"):
        confidence, accuracy = sums[1:] / count
    edges = np.arange(bins + 1) / bins
    return pd.DataFrame(
        {
            "bin": np.arange(bins),
            "lower": edges[:-1],
            "upper": edges[1:],
            "count": count.astype(np.int64),
            "confidence": confidence,
            "accuracy": accuracy,
        }
    )
