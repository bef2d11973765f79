"""Metrics of generated texts: how near they are to the accepted answers, and answers as labels."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from landform.errors import DataError, MissingExtraError
from landform.tasks.class_metrics import Matthews, class_counts, confusion, f1_per_class
from landform.tasks.correlations import centred, correlation
from landform.tasks.predictions import (
    Array,
    MeanMetric,
    Metric,
    Predictions,
    SumMetric,
    judged,
    weights_of,
)

__all__ = ["normalize_answer"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """A text as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces.

    In this order (Rajpurkar et al. 2016), so that "a.n" becomes "an" and then nothing.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


class ExactMatch(MeanMetric):
    """Share of texts that equal one of their references after SQuAD's normalisation."""

    name = "exact_match"
    reads_texts = True
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        return judged(p, self.name, self._score)

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


class TokenF1(MeanMetric):
    """Mean F1 between the bags of words of text and reference after SQuAD's normalisation.

    With several references the best one counts.
    """

    name = "token_f1"
    reads_texts = True
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        return judged(p, self.name, lambda text, refs: max(_bag_f1(text, ref) for ref in refs))


@lru_cache(maxsize=1)
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError.of("rouge_score", "rouge", "metric 'rouge_l'") from None
    return RougeScorer(["rougeL"], use_stemmer=False)


class RougeL(MeanMetric):
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

        return judged(p, self.name, score)


# --- answers that stand for labels --------------------------------------------------------------


def _first(p: Predictions, metric: str) -> tuple[list[str], list[str]]:
    """Texts without surrounding white space, and the first reference of each."""
    judged(p, metric, lambda text, references: 0.0)  # the checks
    assert p.texts is not None and p.references is not None
    return [text.strip() for text in p.texts], [answers[0] for answers in p.references]


class AnswerAccuracy(MeanMetric):
    """Share of texts that equal one of their references but for case (CrossFit's ACC)."""

    name = "answer_accuracy"
    reads_texts = True
    unit_interval = True

    def per_example(self, p: Predictions) -> Array:
        def score(text: str, references: Sequence[str]) -> float:
            return float(text.strip().lower() in {reference.lower() for reference in references})

        return judged(p, self.name, score)


class AnswerF1(SumMetric):
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
        occurs = confusion(sums)[2] > 0
        mean: Array = np.where(occurs, f1_per_class(sums)[0], 0.0).sum(-1) / occurs.sum(-1)
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
        return class_counts(np.eye(2)[predicted], actual)


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
        weights = weights_of(counts, len(x), self.name)
        return np.array([self._one(x, y, row) for row in weights])

    @staticmethod
    def _one(x: Array, y: Array, weights: Array) -> float:
        found = np.isfinite(x) & (weights > 0)
        # The mean of equal numbers need not be that number to the last bit.
        if not found.any() or (x[found] == x[found][0]).all():
            return float("nan")
        middle = np.average(x[found], weights=weights[found])
        return correlation(np.where(np.isfinite(x), x, middle), y, weights)


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
    shifted = centred(values)
    shifted = shifted - shifted.mean()
    scaled: Array = shifted / np.sqrt((shifted**2).mean())
    return scaled
