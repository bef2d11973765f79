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

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from landform.config import nearest
from landform.errors import ConfigError, DataError
from landform.tasks.class_metrics import (
    F1,
    Accuracy,
    Brier,
    CalibrationError,
    MacroF1,
    Matthews,
    reliability,
)
from landform.tasks.correlations import Pearson, Spearman
from landform.tasks.predictions import (
    Array,
    Metric,
    Predictions,
    SumMetric,
    check_finite,
    column_of,
    need_logits,
    softmax,
)
from landform.tasks.text_metrics import (
    AnswerAccuracy,
    AnswerF1,
    AnswerMatthews,
    AnswerPearson,
    ExactMatch,
    RougeL,
    TokenF1,
    normalize_answer,
)

__all__ = [
    "METRICS",
    "Accuracy",
    "Metric",
    "Pearson",
    "Predictions",
    "Spearman",
    "best_of",
    "get_metric",
    "mean_loss",
    "normalize_answer",
    "reliability",
    "softmax",
]


# --- losses and tokens -----------------------------------------------------------------------


class Loss(SumMetric):
    """Mean loss per token: sum_i c_i n_i l_i / sum_i c_i n_i, n_i the tokens of example i.

    This is the loss of the pooled tokens, whatever the batches were; for whole-text tasks all
    n_i are 1. An example without a valid token counts for nothing. In nats.
    """

    name = "loss"
    higher_is_better = False

    def _checked(self, p: Predictions) -> tuple[Array, Array]:
        losses = column_of(p, "losses", self.name)
        tokens = check_finite(column_of(p, "tokens", self.name), "tokens", self.name)
        if (tokens < 0).any():
            row = int(np.flatnonzero(tokens < 0)[0])
            raise DataError(f"metric {self.name!r}: tokens of row {row} is {tokens[row]}")
        # The mean loss over no tokens is 0 / 0: whatever stands there is not a fault.
        losses = np.where(tokens > 0, losses, 0.0)
        return check_finite(losses, "losses", self.name), tokens

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


class TokenAccuracy(SumMetric):
    """Share of the valid tokens predicted right, over all examples; NaN when there is none.

    Of a single example: its own share, NaN when it has no valid token.
    """

    name = "token_accuracy"
    unit_interval = True

    def statistics(self, p: Predictions) -> Array:
        correct = check_finite(column_of(p, "correct", self.name), "correct", self.name)
        tokens = check_finite(column_of(p, "tokens", self.name), "tokens", self.name)
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


class Combined(Metric):
    """GLUE's one number for tasks with two metrics: (accuracy + F1) / 2 for two classes (MRPC,
    QQP), (Pearson + Spearman) / 2 for scores (STS-B)."""

    name = "combined"

    def aggregate(self, p: Predictions, counts: Array | None = None) -> float | Array:
        logits = need_logits(p, self.name)
        classes = logits.ndim == 2 and logits.shape[1] > 1
        pair: tuple[Metric, Metric] = (Accuracy(), F1()) if classes else (Pearson(), Spearman())
        first, second = (metric.aggregate(p, counts) for metric in pair)
        return (first + second) / 2


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
