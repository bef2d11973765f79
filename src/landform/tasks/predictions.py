"""What a metric reads, the checks of it, and what every metric is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from landform.errors import DataError, LabelError, NonFiniteError

__all__ = [
    "Array",
    "Metric",
    "Predictions",
    "check_finite",
    "class_scores",
    "column_of",
    "judged",
    "need_logits",
    "size_of",
    "softmax",
    "target_scores",
    "weights_of",
]

Array = NDArray[Any]
Value = TypeVar("Value")


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


def size_of(p: Predictions, metric: str) -> int:
    """How many examples there are, at least one."""
    size = len(p.losses)
    if size == 0:
        raise DataError(
            f"metric {metric!r}: there are no predictions", remedy="evaluate at least one example"
        )
    return size


def column_of(p: Predictions, field: str, metric: str) -> Array:
    """The field as a float64 vector of N values."""
    values = getattr(p, field)
    size = size_of(p, metric)
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


def check_finite(values: Array, field: str, metric: str) -> Array:
    """The values, if none of them is NaN or infinite."""
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise NonFiniteError(
            f"metric {metric!r}: {field} of row {row} is {values[row].tolist()}",
            remedy="look for NaN or infinite weights in the checkpoint, or evaluate in float32",
        )
    return values


def need_logits(p: Predictions, metric: str) -> Array:
    """The logits, where there are logits and labels."""
    if p.logits is None or p.labels is None:
        missing = "logits" if p.logits is None else "labels"
        raise DataError(
            f"metric {metric!r} needs {missing}, which these predictions do not have",
            remedy="choose a metric that fits the kind of the task",
        )
    return np.asarray(p.logits)


def class_scores(p: Predictions, metric: str) -> tuple[Array, Array]:
    """The checked logits (N, C >= 2) in float64 and labels (N,) in int64."""
    size = size_of(p, metric)
    logits = need_logits(p, metric)
    if logits.ndim != 2 or logits.shape[0] != size or logits.shape[1] < 2:
        raise DataError(
            f"metric {metric!r}: logits have shape {logits.shape}, "
            f"expected ({size}, C) with at least 2 classes",
            remedy="for regression use 'pearson' or 'spearman'",
        )
    logits = check_finite(logits.astype(np.float64, copy=False), "logits", metric)
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


def target_scores(p: Predictions, metric: str) -> tuple[Array, Array]:
    """The checked predicted and target values (N,) of a regression, in float64."""
    size = size_of(p, metric)
    logits = need_logits(p, metric)
    if logits.shape not in {(size,), (size, 1)}:
        raise DataError(
            f"metric {metric!r}: logits have shape {logits.shape}, "
            f"expected ({size},) or ({size}, 1), one predicted value per example",
            remedy="for classes use 'accuracy', 'f1' or 'matthews'",
        )
    predicted = check_finite(logits.reshape(size).astype(np.float64), "logits", metric)
    return predicted, check_finite(column_of(p, "labels", metric), "labels", metric)


def judged(p: Predictions, metric: str, score: Callable[[str, Sequence[str]], float]) -> Array:
    """(N,) `score` of each generated text against the accepted answers of its example."""
    size = size_of(p, metric)
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


def weights_of(counts: Array, size: int, metric: str) -> Array:
    """(R, N) how often each example occurs in each replicate, in float64."""
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


class SumMetric(Metric):
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
            return self.finish(weights_of(counts, len(statistics), self.name) @ statistics)


class MeanMetric(SumMetric):
    """The mean of a per-example value: sum_i c_i v_i / sum_i c_i."""

    @abstractmethod
    def per_example(self, p: Predictions) -> Array: ...

    def statistics(self, p: Predictions) -> Array:
        values = self.per_example(p)
        return np.stack([values, np.ones_like(values)], axis=1)

    def finish(self, sums: Array) -> Array:
        mean: Array = sums[..., 0] / sums[..., 1]
        return mean
