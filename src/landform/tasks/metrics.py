"""Metrics: every aggregate computed from what was measured on single examples.

A metric reads a `Predictions`. Where the metric is a mean over examples, `per_example` gives the
values that are averaged; `aggregate` gives the number for the whole set, and, given how often
each example occurs in each of R bootstrap replicates, the R numbers of the replicates.

Nearly all metrics are functions of sums over examples (of correctness, of class counts, of
moments, of what falls into a calibration bin). Such a metric says only what each example adds
and how the sums make the number; the replicates are then one matrix product, counts (R, N) times
statistics (N, K), instead of R passes over resampled data. Spearman's correlation is no function
of sums, because the ranks depend on the sample: it ranks each replicate exactly, with its
repeated examples as ties.

Degenerate samples follow scikit-learn and SciPy: F1 is 0 when nothing is, or is said to be,
positive; Matthews is 0 when all labels or all predictions are the same; correlations are NaN
when a side is constant.
"""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from landform.config import nearest
from landform.errors import (
    ConfigError,
    DataError,
    LabelError,
    MissingExtraError,
    NonFiniteError,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "METRICS",
    "Metric",
    "Predictions",
    "best_of",
    "get_metric",
    "mean_loss",
    "normalize_answer",
    "reliability",
    "softmax",
]

Array = NDArray[Any]
Value = TypeVar("Value")


# --- what a metric reads ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model did on N examples, in the order of the data."""

    logits: Array | None
    """(N, C) for classes; (N,) or (N, 1) for regression; None for generated text."""
    labels: Array | None
    """(N,): the index of the right class, or the target of a regression."""
    losses: Array
    """(N,) mean loss of each example over its tokens, in nats (squared error for regression)."""
    tokens: Array
    """(N,) weight of an example in the mean loss: its valid tokens; 1 for whole-text tasks."""
    texts: tuple[str, ...] | None = None
    """The generated texts."""
    references: tuple[tuple[str, ...], ...] | None = None
    """The accepted answers of each example."""
    correct: Array | None = None
    """(N,) how many of the valid tokens were predicted right (token tasks)."""

    def __len__(self) -> int:
        return len(self.losses)

    def take(self, rows: Sequence[int] | Array) -> Predictions:
        """The predictions on `rows`: indices, or a boolean mask of length N."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)

        def pick(values: Array | None) -> Array | None:
            return None if values is None else np.asarray(values)[index]

        def pick_texts(values: tuple[Value, ...] | None) -> tuple[Value, ...] | None:
            return None if values is None else tuple(values[row] for row in index)

        return Predictions(
            logits=pick(self.logits),
            labels=pick(self.labels),
            losses=np.asarray(self.losses)[index],
            tokens=np.asarray(self.tokens)[index],
            texts=pick_texts(self.texts),
            references=pick_texts(self.references),
            correct=pick(self.correct),
        )


def softmax(logits: Array) -> Array:
    """Probabilities exp(z_k) / sum_j exp(z_j) along the last axis, in float64."""
    scores = np.asarray(logits, dtype=np.float64)
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Array = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities


# --- checks: each names the metric, the field and the row -------------------------------------


def _size(p: Predictions, metric: str) -> int:
    size = len(p.losses)
    if size == 0:
        raise DataError(
            f"metric {metric!r}: there are no predictions", remedy="evaluate at least one example"
        )
    return size


def _column(p: Predictions, field: str, metric: str) -> Array:
    """The field as a float64 vector of N values."""
    values = getattr(p, field)
    size = _size(p, metric)
    if values is None:
        raise DataError(
            f"metric {metric!r} needs {field}, which these predictions do not have",
            remedy="choose a metric that fits the kind of the task",
        )
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (size,):
        raise DataError(
            f"metric {metric!r}: {field} has shape {column.shape}, expected ({size},), "
            "one value per example"
        )
    return column


def _finite(values: Array, field: str, metric: str) -> Array:
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise NonFiniteError(
            f"metric {metric!r}: {field} of row {row} is {values[row].tolist()}",
            remedy="look for NaN or infinite weights in the checkpoint, or evaluate in float32",
        )
    return values


def _need_logits(p: Predictions, metric: str) -> Array:
    if p.logits is None or p.labels is None:
        missing = "logits" if p.logits is None else "labels"
        raise DataError(
            f"metric {metric!r} needs {missing}, which these predictions do not have",
            remedy="choose a metric that fits the kind of the task",
        )
    return np.asarray(p.logits)


def _classes(p: Predictions, metric: str) -> tuple[Array, Array]:
    """The checked logits (N, C >= 2) in float64 and labels (N,) in int64."""
    size = _size(p, metric)
    logits = _need_logits(p, metric)
    if logits.ndim != 2 or logits.shape[0] != size or logits.shape[1] < 2:
        raise DataError(
            f"metric {metric!r}: logits have shape {logits.shape}, "
            f"expected ({size}, C) with at least 2 classes",
            remedy="for regression use 'pearson' or 'spearman'",
        )
    logits = _finite(logits.astype(np.float64, copy=False), "logits", metric)
    return logits, _class_labels(p, logits.shape[1], metric)


def _class_labels(p: Predictions, classes: int, metric: str) -> Array:
    labels = np.asarray(p.labels)
    if labels.shape != (len(p.losses),):
        raise DataError(
            f"metric {metric!r}: labels have shape {labels.shape}, expected ({len(p.losses)},)"
        )
    if labels.dtype.kind not in "iub":
        raise LabelError(
            f"metric {metric!r}: labels are {labels.dtype}, expected class indices",
            remedy="for regression use 'pearson' or 'spearman'",
        )
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise LabelError(
            f"metric {metric!r}: label {labels[row]} of row {row} is outside the model's head, "
            f"which has the classes 0 to {classes - 1}",
            remedy="reconcile the labels of the data with those of the model",
        )
    return labels.astype(np.int64, copy=False)


def _scores(p: Predictions, metric: str) -> tuple[Array, Array]:
    """The checked predicted and target values (N,) of a regression, in float64."""
    size = _size(p, metric)
    logits = _need_logits(p, metric)
    if logits.shape not in {(size,), (size, 1)}:
        raise DataError(
            f"metric {metric!r}: logits have shape {logits.shape}, "
            f"expected ({size},) or ({size}, 1), one predicted value per example",
            remedy="for classes use 'accuracy', 'f1' or 'matthews'",
        )
    predicted = _finite(logits.reshape(size).astype(np.float64), "logits", metric)
    return predicted, _finite(_column(p, "labels", metric), "labels", metric)


def _answers(p: Predictions, metric: str, score: Callable[[str, Sequence[str]], float]) -> Array:
    """(N,) `score` of each generated text against the accepted answers of its example."""
    size = _size(p, metric)
    if p.texts is None or p.references is None:
        missing = "texts" if p.texts is None else "references"
        raise DataError(
            f"metric {metric!r} needs {missing}, which these predictions do not have",
            remedy="choose a metric that fits the kind of the task, or generate text",
        )
    if len(p.texts) != size or len(p.references) != size:
        raise DataError(
            f"metric {metric!r}: {len(p.texts)} texts and {len(p.references)} references "
            f"for {size} examples"
        )
    for row, answers in enumerate(p.references):
        if not answers:
            raise DataError(
                f"metric {metric!r}: row {row} has no reference",
                remedy="give each example at least one accepted answer (it may be empty)",
            )
    pairs = zip(p.texts, p.references, strict=True)
    return np.array([score(text, answers) for text, answers in pairs], dtype=np.float64)


def _weights(counts: Array, size: int, metric: str) -> Array:
    weights = np.asarray(counts, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != size:
        raise DataError(
            f"metric {metric!r}: counts have shape {weights.shape}, expected (R, {size}): "
            "how often each example occurs in each replicate"
        )
    return weights


# --- the two kinds of metric ------------------------------------------------------------------


class Metric(ABC):
    """A named number about predictions."""

    name: str
    higher_is_better: bool = True
    reads_texts: bool = False
    """whether it judges generated texts"""
    unit_interval: bool = False
    """whether it has values of single examples that lie in [0, 1]: 0 for wrong, 1 for right"""

    def per_example(self, p: Predictions) -> Array | None:
        """(N,) values of single examples; None where the metric has none (F1, Matthews, ECE...).

        Their mean is the metric, but for answer_f1 and answer_matthews, which are no means: theirs
        say which examples are right.
        """
        return None

    @abstractmethod
    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        """The metric over all examples, or over each of R replicates.

        `counts` (R, N) says how often each example occurs in each replicate; the value of a
        replicate equals that of the predictions with their rows literally repeated. Returns a
        float without counts, (R,) with them. Raises `DataError` for predictions that lack what
        the metric needs, `LabelError` for a label outside the head, `NonFiniteError` (with the
        row) for NaN or infinite logits or losses.
        """

    def __repr__(self) -> str:
        return f"<metric {self.name}>"


class _SumMetric(Metric):
    """A metric that is a function of sums over examples."""

    @abstractmethod
    def statistics(self, p: Predictions) -> Array:
        """(N, K): what each example adds to each of the K sums."""

    @abstractmethod
    def finish(self, sums: Array) -> Array:
        """(..., K) sums to (...) values."""

    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        statistics = self.statistics(p)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if counts is None:
                return float(self.finish(statistics.sum(axis=0)))
            return self.finish(_weights(counts, len(statistics), self.name) @ statistics)


class _MeanMetric(_SumMetric):
    """The mean of a per-example value: sum_i c_i v_i / sum_i c_i."""

    @abstractmethod
    def per_example(self, p: Predictions) -> Array: ...

    def statistics(self, p: Predictions) -> Array:
        values = self.per_example(p)
        return np.stack([values, np.ones_like(values)], axis=1)

    def finish(self, sums: Array) -> Array:
        mean: Array = sums[..., 0] / sums[..., 1]
        return mean


# --- losses -----------------------------------------------------------------------------------


class Loss(_SumMetric):
    """Mean loss per token: sum_i c_i n_i l_i / sum_i c_i n_i, n_i the tokens of example i.

    This is the loss of the pooled tokens, whatever the batches were; for whole-text tasks all
    n_i are 1. An example without a valid token counts for nothing. In nats.
    """

    name = "loss"
    higher_is_better = False

    def _checked(self, p: Predictions) -> tuple[Array, Array]:
        losses = _column(p, "losses", self.name)
        tokens = _finite(_column(p, "tokens", self.name), "tokens", self.name)
        if (tokens < 0).any():
            row = int(np.flatnonzero(tokens < 0)[0])
            raise DataError(f"metric {self.name!r}: tokens of row {row} is {tokens[row]}")
        # The mean loss over no tokens is 0 / 0: whatever stands there is not a fault.
        losses = np.where(tokens > 0, losses, 0.0)
        return _finite(losses, "losses", self.name), tokens

    def per_example(self, p: Predictions) -> Array:
        return self._checked(p)[0]

    def statistics(self, p: Predictions) -> Array:
        losses, tokens = self._checked(p)
        return np.stack([losses * tokens, tokens], axis=1)

    def finish(self, sums: Array) -> Array:
        mean: Array = sums[..., 0] / sums[..., 1]
        return mean


class Perplexity(Loss):
    """exp of the mean loss per token; of a single example, exp of its own mean loss."""

    name = "perplexity"

    def per_example(self, p: Predictions) -> Array:
        with np.errstate(over="ignore"):
            perplexities: Array = np.exp(super().per_example(p))
        return perplexities

    def finish(self, sums: Array) -> Array:
        perplexities: Array = np.exp(super().finish(sums))
        return perplexities


# --- classes ----------------------------------------------------------------------------------


def _hits(logits: Array, labels: Array) -> Array:
    """(N,) 1.0 where the largest logit (the first of equal ones) is that of the label."""
    hits: Array = (logits.argmax(axis=1) == labels).astype(np.float64)
    return hits


class Accuracy(_MeanMetric):
    """Share of examples whose largest logit (the first of equal ones) is that of the label."""

    name = "accuracy"
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        return _hits(*_classes(p, self.name))


def _class_counts(logits: Array, labels: Array) -> Array:
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


def _confusion(sums: Array) -> tuple[Array, Array, Array]:
    """The summed blocks of `_class_counts`: hits, predicted, actual; each (..., C)."""
    classes = sums.shape[-1] // 3
    hits = sums[..., :classes]
    return hits, sums[..., classes : 2 * classes], sums[..., 2 * classes :]


def _f1_per_class(sums: Array) -> tuple[Array, Array]:
    """(..., C) F1 = 2 TP / (2 TP + FP + FN) of each class, 0 for 0/0, and its denominator."""
    hits, predicted, actual = _confusion(sums)
    total = predicted + actual
    return np.where(total > 0, 2 * hits / np.where(total > 0, total, 1.0), 0.0), total


class F1(_SumMetric):
    """F1 = 2 TP / (2 TP + FP + FN) of class 1 of two, as GLUE reports for MRPC and QQP.

    0 when class 1 neither occurs nor is predicted.
    """

    name = "f1"

    def statistics(self, p: Predictions) -> Array:
        logits, labels = _classes(p, self.name)
        if logits.shape[1] != 2:
            raise DataError(
                f"metric {self.name!r} is defined for 2 classes, the logits have {logits.shape[1]}",
                remedy="use 'macro_f1'",
            )
        return _class_counts(logits, labels)

    def finish(self, sums: Array) -> Array:
        scores: Array = _f1_per_class(sums)[0][..., 1]
        return scores


class MacroF1(_SumMetric):
    """The plain mean of F1 over the classes that occur in the sample or are predicted in it."""

    name = "macro_f1"

    def statistics(self, p: Predictions) -> Array:
        return _class_counts(*_classes(p, self.name))

    def finish(self, sums: Array) -> Array:
        scores, total = _f1_per_class(sums)
        mean: Array = scores.sum(axis=-1) / (total > 0).sum(axis=-1)
        return mean


class Matthews(_SumMetric):
    """Matthews' correlation for any number of classes (Gorodkin 2004, R_K).

    (c n - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2)(n^2 - sum_k t_k^2)), where c is the number
    right, n the number of examples, p_k and t_k how often class k is predicted and occurs.
    0 when all predictions or all labels are the same.
    """

    name = "matthews"

    def statistics(self, p: Predictions) -> Array:
        return _class_counts(*_classes(p, self.name))

    def finish(self, sums: Array) -> Array:
        hits, predicted, actual = _confusion(sums)
        size = actual.sum(axis=-1)
        covariance = hits.sum(axis=-1) * size - (predicted * actual).sum(axis=-1)
        spread = (size**2 - (predicted**2).sum(axis=-1)) * (size**2 - (actual**2).sum(axis=-1))
        return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0)


class Brier(_MeanMetric):
    """Brier's score as he defined it: the mean of sum_k (p_k - [k = label])^2, from 0 to 2.

    For two classes it is twice the one-sided score that some libraries report.
    """

    name = "brier"
    higher_is_better = False

    def per_example(self, p: Predictions) -> Array:
        logits, labels = _classes(p, self.name)
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
    logits, labels = _classes(p, metric)
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


class CalibrationError(_SumMetric):
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


# --- correlations -----------------------------------------------------------------------------


def _correlation(x: Array, y: Array, weights: Array) -> float:
    """Pearson's correlation of one weighted sample, in two passes; NaN when a side is constant."""
    drawn = weights > 0
    x, y, weights = x[drawn], y[drawn], weights[drawn]
    if len(x) == 0 or (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    dx, dy = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    # Each side is scaled to its own size first, so that squares neither overflow nor vanish.
    dx, dy = dx / np.abs(dx).max(), dy / np.abs(dy).max()
    ratio = (weights * dx * dy).sum() / np.sqrt(
        (weights * dx * dx).sum() * (weights * dy * dy).sum()
    )
    return float(np.clip(ratio, -1.0, 1.0))


def _centred(values: Array) -> Array:
    """Shifted by the median and scaled to at most 1 in size: changes no correlation.

    The median, not the mean: one wild value would otherwise leave all others, and every replicate
    without it, far from zero, where sums of squares cancel.
    """
    shifted = values - np.median(values)
    largest = np.abs(shifted).max()
    scaled: Array = shifted / largest if largest > 0 else shifted
    return scaled


class Pearson(Metric):
    """Pearson's correlation of predicted and target values; NaN when a side is constant."""

    name = "pearson"

    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        x, y = _scores(p, self.name)
        if counts is None:
            return _correlation(x, y, np.ones_like(x))
        weights = _weights(counts, len(x), self.name)
        u, v = _centred(x), _centred(y)
        moments = weights @ np.stack([np.ones_like(u), u, v, u * u, v * v, u * v], axis=1)
        size, su, sv, suu, svv, suv = moments.T
        with np.errstate(divide="ignore", invalid="ignore"):
            var_u, var_v = suu - su * su / size, svv - sv * sv / size
            values: Array = np.clip((suv - su * sv / size) / np.sqrt(var_u * var_v), -1.0, 1.0)
        # Where the variance is what little is left of a difference of large sums, or is zero, the
        # quick formula is not to be trusted. Such replicates are rare; each is done by itself.
        sound = (var_u > 1e-4 * suu) & (var_v > 1e-4 * svv)
        for replicate in np.flatnonzero(~sound):
            values[replicate] = _correlation(x, y, weights[replicate])
        return values


def _replicate_ranks(values: Array, weights: Array) -> Array:
    """(N, R) average rank of each example among the repeated examples of each replicate.

    `weights` is (N, R). Equal values, and the copies of one example, share the mean of the places
    they take: with w copies at a value and W below it, those are the places W + 1 to W + w.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(values))))
    copies = np.add.reduceat(weights[order], first, axis=0)
    ranks: Array = (np.cumsum(copies, axis=0) - copies / 2 + 0.5)[group]
    return ranks


class Spearman(Metric):
    """Spearman's correlation: Pearson's of the average ranks; NaN when a side is constant.

    A replicate is ranked anew, its repeated examples being ties, exactly.
    """

    name = "spearman"
    _chunk = 1 << 17  # numbers per temporary array, which then stay in the processor's cache

    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        x, y = _scores(p, self.name)
        if counts is None:
            return float(self._replicates(x, y, np.ones((1, len(x))))[0])
        weights = _weights(counts, len(x), self.name)
        step = max(1, self._chunk // len(x))
        parts = [
            self._replicates(x, y, weights[start : start + step])
            for start in range(0, len(weights), step)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    @staticmethod
    def _replicates(x: Array, y: Array, weights: Array) -> Array:
        # Examples come first, so that sorting and gathering them moves whole rows of memory.
        drawn = np.ascontiguousarray(weights.T)
        # Ranks 1..n have the mean (n + 1) / 2 whatever the ties. Ranks are multiples of 1/2, so
        # these sums carry no rounding and a constant side gives a variance of exactly zero.
        mean = (drawn.sum(axis=0) + 1) / 2
        dx, dy = _replicate_ranks(x, drawn) - mean, _replicate_ranks(y, drawn) - mean
        weighted = drawn * dx
        var_x, covariance = (weighted * dx).sum(axis=0), (weighted * dy).sum(axis=0)
        var_y = (drawn * dy * dy).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = covariance / (np.sqrt(var_x) * np.sqrt(var_y))
        correlations: Array = np.clip(ratio, -1.0, 1.0)
        return correlations


class Combined(Metric):
    """GLUE's one number for tasks with two metrics: (accuracy + F1) / 2 for two classes (MRPC,
    QQP), (Pearson + Spearman) / 2 for scores (STS-B)."""

    name = "combined"

    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        logits = _need_logits(p, self.name)
        classes = logits.ndim == 2 and logits.shape[1] > 1
        pair: tuple[Metric, Metric] = (Accuracy(), F1()) if classes else (Pearson(), Spearman())
        first, second = (metric.aggregate(p, counts) for metric in pair)
        return (first + second) / 2


# --- tokens and texts -------------------------------------------------------------------------


class TokenAccuracy(_SumMetric):
    """Share of the valid tokens predicted right, over all examples; NaN when there is none.

    Of a single example: its own share, NaN when it has no valid token.
    """

    name = "token_accuracy"
    unit_interval = True

    def statistics(self, p: Predictions) -> Array:
        correct = _finite(_column(p, "correct", self.name), "correct", self.name)
        tokens = _finite(_column(p, "tokens", self.name), "tokens", self.name)
        wrong = (correct < 0) | (correct > tokens)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"metric {self.name!r}: row {row} has {correct[row]:g} tokens right "
                f"of {tokens[row]:g}"
            )
        return np.stack([correct, tokens], axis=1)

    def finish(self, sums: Array) -> Array:
        share: Array = sums[..., 0] / sums[..., 1]
        return share

    def per_example(self, p: Predictions) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.finish(self.statistics(p))


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """A text as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces.

    In this order (Rajpurkar et al. 2016), so that "a.n" becomes "an" and then nothing.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


class ExactMatch(_MeanMetric):
    """Share of texts that equal one of their references after SQuAD's normalisation."""

    name = "exact_match"
    reads_texts = True
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        return _answers(p, self.name, self._score)

    @staticmethod
    def _score(text: str, references: Sequence[str]) -> float:
        return float(normalize_answer(text) in {normalize_answer(r) for r in references})


def _bag_f1(text: str, reference: str) -> float:
    """2 * common / (words of one + words of the other), words with their multiplicities.

    Where one side has no words (nothing is left of it after normalisation) the score is 1 if the
    other has none either, else 0, as in SQuAD 2.0.
    """
    mine, theirs = normalize_answer(text).split(), normalize_answer(reference).split()
    if not mine or not theirs:
        return float(mine == theirs)
    return 2 * (Counter(mine) & Counter(theirs)).total() / (len(mine) + len(theirs))


class TokenF1(_MeanMetric):
    """Mean F1 between the bags of words of text and reference after SQuAD's normalisation.

    With several references the best one counts.
    """

    name = "token_f1"
    reads_texts = True
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        return _answers(p, self.name, lambda text, refs: max(_bag_f1(text, ref) for ref in refs))


@lru_cache(maxsize=1)
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError.of("rouge_score", "rouge", "metric 'rouge_l'") from None
    return RougeScorer(["rougeL"], use_stemmer=False)


class RougeL(_MeanMetric):
    """Mean F-measure of the longest common subsequence of words (Lin 2004); best reference.

    Computed by the package rouge_score without stemming. Its words are runs of a-z and 0-9:
    a text without any, be it punctuation or another script, scores 0. The EMNLP 2022 code uses
    the package rouge, whose F weighs precision by (precision / recall)^2 instead of 1 and whose
    words are what white space separates: its numbers are not these.
    """

    name = "rouge_l"
    reads_texts = True
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        scorer = _rouge()

        def score(text: str, references: Sequence[str]) -> float:
            return max(float(scorer.score(ref, text)["rougeL"].fmeasure) for ref in references)

        return _answers(p, self.name, score)


# --- answers that stand for labels --------------------------------------------------------------


def _first(p: Predictions, metric: str) -> tuple[list[str], list[str]]:
    """Texts without surrounding white space, and the first reference of each."""
    _answers(p, metric, lambda text, references: 0.0)  # the checks
    assert p.texts is not None and p.references is not None
    return [text.strip() for text in p.texts], [answers[0] for answers in p.references]


class AnswerAccuracy(_MeanMetric):
    """Share of texts that equal one of their references but for case (CrossFit's ACC)."""

    name = "answer_accuracy"
    reads_texts = True
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        def score(text: str, references: Sequence[str]) -> float:
            return float(text.strip().lower() in {reference.lower() for reference in references})

        return _answers(p, self.name, score)


class AnswerF1(_SumMetric):
    """The plain mean of F1 over the labels that occur as first references (Classification-F1).

    F1 = 2 TP / (2 TP + FP + FN) of a label as text, case and all; a text that is none of the
    labels is a miss of its own label only. `sklearn.metrics.f1_score(references, texts,
    labels=unique(references), average="macro")`. Of a single example: whether its text is its
    label.
    """

    name = "answer_f1"
    reads_texts = True
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        texts, labels = _first(p, self.name)
        return np.array([text == label for text, label in zip(texts, labels, strict=True)], float)

    def statistics(self, p: Predictions) -> Array:
        texts, labels = _first(p, self.name)
        place = {label: column for column, label in enumerate(dict.fromkeys(labels))}
        statistics = np.zeros((len(texts), 3 * len(place)))
        for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
            statistics[row, place[label]] = text == label
            if text in place:
                statistics[row, len(place) + place[text]] = 1.0
            statistics[row, 2 * len(place) + place[label]] = 1.0
        return statistics

    def finish(self, sums: Array) -> Array:
        occurs = _confusion(sums)[2] > 0
        mean: Array = np.where(occurs, _f1_per_class(sums)[0], 0.0).sum(-1) / occurs.sum(-1)
        return mean


class AnswerMatthews(Matthews):
    """Matthews' correlation of "acceptable" against every other text (CoLA as text).

    0 when all predictions or all labels are the same. Of a single example: whether both are
    acceptable or neither is.
    """

    name = "answer_matthews"
    reads_texts = True
    unit_interval = True

    def _codes(self, p: Predictions) -> tuple[Array, Array]:
        texts, labels = _first(p, self.name)
        codes = [np.array([x == "acceptable" for x in side], dtype=int) for side in (texts, labels)]
        return codes[0], codes[1]

    def per_example(self, p: Predictions) -> Array:
        predicted, actual = self._codes(p)
        right: Array = (predicted == actual).astype(np.float64)
        return right

    def statistics(self, p: Predictions) -> Array:
        predicted, actual = self._codes(p)
        return _class_counts(np.eye(2)[predicted], actual)


class AnswerPearson(Metric):
    """Pearson's correlation of the numbers in texts and first references.

    A text that is no finite number stands for the mean of those that are: it says nothing, and
    brings the correlation nearer to 0 (with scipy.stats.pearsonr the whole would be NaN). NaN when
    a side is constant, or no text is a number. Of a single example: the product z_x z_y of the
    standardised numbers, whose mean is the correlation. A reference that is no number is a
    `DataError`.
    """

    name = "answer_pearson"
    reads_texts = True

    def _numbers(self, p: Predictions) -> tuple[Array, Array]:
        texts, labels = _first(p, self.name)
        x, y = (np.array([_as_number(cell) for cell in side]) for side in (texts, labels))
        if np.isnan(y).any():
            row = int(np.flatnonzero(np.isnan(y))[0])
            raise DataError(
                f"metric {self.name!r}: the reference of row {row} is no number: {labels[row]!r}",
                remedy="use metrics='answer_accuracy' for answers that are not all numbers",
            )
        return x, y

    def per_example(self, p: Predictions) -> Array:
        x, y = self._numbers(p)
        found = np.isfinite(x)
        if not found.any() or (x[found] == x[found][0]).all():
            return np.full_like(x, np.nan)
        x = np.where(found, x, x[found].mean())
        return _standardised(x) * _standardised(y)

    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        x, y = self._numbers(p)
        if counts is None:
            return self._one(x, y, np.ones_like(x))
        weights = _weights(counts, len(x), self.name)
        return np.array([self._one(x, y, row) for row in weights])

    @staticmethod
    def _one(x: Array, y: Array, weights: Array) -> float:
        found = np.isfinite(x) & (weights > 0)
        # The mean of equal numbers need not be that number to the last bit.
        if not found.any() or (x[found] == x[found][0]).all():
            return float("nan")
        middle = np.average(x[found], weights=weights[found])
        return _correlation(np.where(np.isfinite(x), x, middle), y, weights)


def _as_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")


def _standardised(values: Array) -> Array:
    """(x - mean) / population deviation; NaN for a constant."""
    if (values == values[0]).all():
        return np.full_like(values, np.nan)
    centred = _centred(values)
    centred = centred - centred.mean()
    scaled: Array = centred / np.sqrt((centred**2).mean())
    return scaled


# --- by name ----------------------------------------------------------------------------------

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Loss(),
            Perplexity(),
            Accuracy(),
            F1(),
            MacroF1(),
            Matthews(),
            Pearson(),
            Spearman(),
            Combined(),
            CalibrationError(),
            Brier(),
            TokenAccuracy(),
            ExactMatch(),
            TokenF1(),
            RougeL(),
            AnswerAccuracy(),
            AnswerF1(),
            AnswerMatthews(),
            AnswerPearson(),
        )
    }
)


def get_metric(name: str) -> Metric:
    """The metric called `name`; an unknown name is a `ConfigError` with the nearest known one."""
    if name in METRICS:
        return METRICS[name]
    guess = nearest(name, METRICS)
    raise ConfigError(
        f"unknown metric {name!r}",
        remedy=(f"did you mean {guess!r}? " if guess else "")
        + f"Known metrics: {', '.join(METRICS)}",
    )


def mean_loss(predictions: Predictions) -> float:
    """The loss, over tokens where examples have several."""
    return float(get_metric("loss").aggregate(predictions))


def best_of(values: Sequence[float] | Array, *, higher: bool) -> int:
    """The place of the best value, of equal ones the first; NaN only where there is nothing else.

    (numpy's argmax takes a NaN for the highest, and no value is higher than one.)
    """
    scores = [float(value) if higher else -float(value) for value in values]
    return max(range(len(scores)), key=lambda k: (scores[k] == scores[k], scores[k], -k))
