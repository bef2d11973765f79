"""How alike two models answer: on the same examples, whatever lies between their weights.

Three numbers of a pair of classifiers, after Juneja et al. 2023 (arXiv 2205.12411): how often they
choose the same class, how often both are right or both wrong, and how far their probabilities are
apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from landform.errors import ConfigError, DataError, LabelError, NonFiniteError
from landform.evaluation.evaluate import Evaluation
from landform.evaluation.intervals import percentile_interval, resample_counts
from landform.results import Result

__all__ = [
    "SIMILARITIES",
    "Similarity",
    "error_agreement",
    "functional_similarity",
    "js_distance",
    "similarity",
]

Floats = npt.NDArray[np.float64]

SIMILARITIES = {"error_agreement": 1.0, "functional_similarity": 1.0, "js_distance": 0.0}
"""The three numbers of a pair, and their value for a model and itself."""

BLOCK = 1 << 21
"""Probabilities in one block of pairs."""


@dataclass(frozen=True)
class Similarity(Result):
    """Two models on the same examples."""

    a: str
    b: str
    examples: int
    """examples that both were evaluated on"""
    functional_similarity: float
    """share of examples with the same predicted class"""
    error_agreement: float
    """share of examples on which both are right or both are wrong"""
    js_distance: float
    """mean Jensen-Shannon distance of the predicted probabilities, 0 to sqrt(ln 2) = .833"""
    table: pd.DataFrame
    """columns measure, value, low, high: percentile bootstrap over examples"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        parts = [
            f"{row['measure'].replace('_', ' ')} {row['value']:.4g} "
            f"[{row['low']:.4g}, {row['high']:.4g}]"
            for row in self.table.to_dict("records")
        ]
        return f"{self.a} and {self.b} on {self.examples} examples: {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "a": self.a,
            "b": self.b,
            "examples": self.examples,
            "measures": self.table.to_dict("records"),
            "provenance": self.provenance,
        }


# --- many models at once -------------------------------------------------------------------------


def functional_similarity(logits: npt.ArrayLike) -> Floats:
    """Share of examples with equal predicted class, of every pair: (N, n, C) -> (N, N).

    F_ij = 1/n sum_e [argmax z_ie = argmax z_je]; 1 on the diagonal. Of equal logits the first class
    counts, as everywhere in landform.
    """
    z = _logits(logits)
    chosen = z.argmax(axis=-1)
    same = np.zeros((len(z), len(z)))
    for label in range(z.shape[-1]):
        one = (chosen == label).astype(np.float64)
        same += one @ one.T
    shares: Floats = same / z.shape[1]
    return shares


def error_agreement(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Share of examples on which both are right or both wrong: (N, n, C), (n,) -> (N, N).

    Two models of accuracies p and q that err independently agree on p q + (1 - p) (1 - q); read
    the number beside that. 1 on the diagonal.
    """
    z = _logits(logits)
    gold = np.asarray(labels)
    if gold.shape != (z.shape[1],):
        raise ConfigError(f"labels have shape {gold.shape}, expected ({z.shape[1]},)")
    right = (z.argmax(axis=-1) == gold).astype(np.float64)
    wrong = 1.0 - right
    agreement: Floats = (right @ right.T + wrong @ wrong.T) / z.shape[1]
    return agreement


def js_distance(logits: npt.ArrayLike) -> Floats:
    """Mean Jensen-Shannon distance of the predicted probabilities: (N, n, C) -> (N, N).

    With p = softmax(z_i), q = softmax(z_j) of an example and m = (p + q) / 2,
    JS = sqrt((KL(p || m) + KL(q || m)) / 2), natural logarithm, averaged over examples: the mean of
    `scipy.spatial.distance.jensenshannon`. 0 on the diagonal.
    """
    probabilities = _softmax(_logits(logits))
    models, examples, classes = probabilities.shape
    found = np.zeros((models, models))
    step = max(1, BLOCK // (examples * classes))
    for i in range(models):
        for start in range(i + 1, models, step):
            others = probabilities[start : start + step]
            found[i, start : start + step] = _js(probabilities[i], others).mean(axis=-1)
    return found + found.T


def _js(p: Floats, q: Floats) -> Floats:
    """Jensen-Shannon distances of distributions over the last axis."""
    from scipy.special import rel_entr

    middle = (p + q) / 2.0
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / 2.0
    distance: Floats = np.sqrt(np.maximum(divergence, 0.0))  # rounding may leave -1e-17
    return distance


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _logits(logits: npt.ArrayLike) -> Floats:
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 3 or 0 in z.shape:
        raise ConfigError(
            f"logits have shape {z.shape}, expected (models, examples, classes)",
            remedy="these measures compare classifiers on the same examples",
        )
    if not np.isfinite(z).all():
        model, example, _ = (int(i) for i in np.argwhere(~np.isfinite(z))[0])
        raise NonFiniteError(f"model {model}, example {example}: a logit is not finite")
    return z


# --- two evaluations -----------------------------------------------------------------------------


def similarity(
    a: Evaluation | pd.DataFrame,
    b: Evaluation | pd.DataFrame,
    *,
    label_names: Sequence[Sequence[str] | None] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Similarity:
    """How alike two evaluated classifiers answer.

    `a` and `b` are results of `evaluate`, or per-example logs of that form (text_id, label,
    prediction, logit_0 ...), for which `label_names` gives the class of each logit: two lists, or
    None for one of them (as the evaluation says, or read off predictions and logits). Classes are
    matched by name, examples by text_id: those that both logs have are compared. Intervals are
    percentile bootstrap over examples.

    Raises LabelError where the two name different classes, DataError where the logs share no
    example, or one id means two texts.
    """
    given = (None, None) if label_names is None else tuple(label_names)
    if len(given) != 2:
        raise ConfigError("label_names needs two lists of names, one for each log")
    first, second = (
        _log(item, names, which) for item, names, which in zip((a, b), given, "ab", strict=True)
    )
    if sorted(first.labels) != sorted(second.labels):
        raise LabelError(
            f"{first.name} tells apart {', '.join(first.labels)}, {second.name} "
            f"{', '.join(second.labels)}",
            remedy="compare models of one task; gather finer labels with label_groups",
        )
    x, y = _common(first, second)
    order = [f"logit_{second.labels.index(label)}" for label in first.labels]
    z = np.stack([x[[f"logit_{k}" for k in range(len(order))]], y[order]]).astype(np.float64)
    z = _logits(z)
    right = z.argmax(-1) == x["label"].map(first.labels.index).to_numpy()
    p = _softmax(z)
    values = {
        "functional_similarity": (z[0].argmax(-1) == z[1].argmax(-1)).astype(np.float64),
        "error_agreement": (right[0] == right[1]).astype(np.float64),
        "js_distance": _js(p[0], p[1]),
    }
    counts = resample_counts(len(x), replicates, seed)
    rows = []
    for measure, each in values.items():
        low, high = percentile_interval(counts @ each / len(x), level)
        rows.append((measure, float(each.mean()), float(low), float(high)))
    return Similarity(
        a=first.name,
        b=second.name,
        examples=len(x),
        **{row[0]: row[1] for row in rows},
        table=pd.DataFrame(rows, columns=["measure", "value", "low", "high"]),
        provenance={"replicates": replicates, "seed": seed, "level": level},
    )


@dataclass(frozen=True)
class _Log:
    """A per-example log and the class of each of its logits."""

    name: str
    table: pd.DataFrame
    labels: tuple[str, ...]


def _log(item: Any, names: Sequence[str] | None, which: str) -> _Log:
    table = item.log if isinstance(item, Evaluation) else item
    name = item.checkpoint if isinstance(item, Evaluation) else f"log {which}"
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(
            f"{which} is a {type(item).__name__}, expected an evaluation or its per-example log",
            remedy="pass what landform.evaluate returns",
        )
    logits = [column for column in table.columns if str(column).startswith("logit_")]
    missing = [c for c in ("text_id", "label", "prediction") if c not in table.columns]
    if missing or len(logits) < 2:
        raise DataError(
            f"{name}: no column {missing[0] if missing else 'logit_1'} in the log",
            remedy="similarity compares logs of classifiers, as landform.evaluate makes them",
        )
    if table["text_id"].duplicated().any():
        twice = table["text_id"][table["text_id"].duplicated()].iloc[0]
        raise DataError(f"{name}: example {twice} is in the log twice")
    if names is None and isinstance(item, Evaluation):
        names = item.label_names
    labels = tuple(names) if names is not None else _labels_of(name, table, len(logits))
    if len(labels) != len(logits):
        raise LabelError(f"{name}: {len(labels)} label names for {len(logits)} logits")
    unknown = sorted(set(table["label"]) - set(labels))
    if unknown:
        raise LabelError(f"{name}: label {unknown[0]!r} is none of {', '.join(labels)}")
    return _Log(name, table, labels)


def _labels_of(name: str, table: pd.DataFrame, classes: int) -> tuple[str, ...]:
    """The class of each logit, from what is predicted where it is the largest."""
    z = table[[f"logit_{k}" for k in range(classes)]].to_numpy(dtype=np.float64)
    found = dict(zip(z.argmax(-1).tolist(), table["prediction"], strict=True))
    if len(found) < classes:
        lost = next(k for k in range(classes) if k not in found)
        raise LabelError(
            f"{name}: no example is predicted as the class of logit_{lost}, so its name is unknown",
            remedy="pass label_names=(names of a, names of b)",
        )
    return tuple(str(found[k]) for k in range(classes))


def _common(first: _Log, second: _Log) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of both logs for the examples that both have, in the order of the first."""
    other = second.table.set_index("text_id")
    x = first.table[first.table["text_id"].isin(other.index)]
    if x.empty:
        raise DataError(
            f"{first.name} and {second.name} have no example in common (by text_id)",
            remedy="evaluate both on the same split",
        )
    y = other.loc[x["text_id"]].reset_index()
    for column in ("text", "text_pair", "label"):
        if column in x and column in y:
            differ = np.flatnonzero(x[column].to_numpy() != y[column].to_numpy())
            if len(differ):
                raise DataError(
                    f"example {x['text_id'].iloc[differ[0]]} has another {column} in "
                    f"{second.name} than in {first.name}",
                    remedy="the two logs are of different data sets",
                )
    left_out = len(first.table) + len(second.table) - 2 * len(x)
    if left_out:
        warnings.warn(
            f"{left_out} examples are in one of the two logs only and are left out", stacklevel=3
        )
    return x.reset_index(drop=True), y
