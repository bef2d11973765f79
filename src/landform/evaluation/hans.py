"""Scoring a file of HANS predictions, as the data set's own script does, with intervals.

The format of HANS: a text file with the header "pairID,gold_label", then one line per pair,
"ex17,entailment" or "ex17,non-entailment"; as in the original script every other answer (neutral,
contradiction) counts as non-entailment. McCoy, Pavlick and Linzen, "Right for the Wrong Reasons",
ACL 2019.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from landform.config import Config
from landform.errors import DataError
from landform.evaluation.evaluate import metric_table, subset_masks
from landform.evaluation.points import PointsConfig
from landform.results import Result
from landform.store.atomic import atomic_path
from landform.tasks.metrics import Predictions
from landform.tasks.sources import FileFormat, read_file
from landform.tasks.task import Examples, Task, load_task

__all__ = [
    "HansScores",
    "ScoreConfig",
    "read_predictions",
    "score_predictions",
    "write_predictions",
]

_HEADER = ("pairID", "gold_label")
_ENTAILMENT, _OTHER = "entailment", "non-entailment"


class ScoreConfig(Config):
    """How sure the accuracies are."""

    replicates: int = Field(1000, ge=20)
    """Bootstrap replicates (resampled pairs)."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals."""


@dataclass(frozen=True)
class HansScores(Result):
    """Accuracies of predictions on HANS-like data."""

    predictions: str
    """the file, or what else the predictions are called"""
    accuracy: float
    low: float
    high: float
    table: pd.DataFrame
    """columns group (heuristic, subcase, template), name, label (of a heuristic's half, else ""),
    n, accuracy, low, high; in the order of the data"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        parts = self.table[self.table.group == "heuristic"]
        halves = ", ".join(
            f"{label} {parts[parts.label == label].accuracy.mean():.3f}"
            for label in dict.fromkeys(parts.label)
        )
        n = int(parts.n.sum())
        return (
            f"{self.predictions}: accuracy {self.accuracy:.3f} [{self.low:.3f}, {self.high:.3f}] "
            f"on {n} pairs (mean over heuristics: {halves})"
        )

    def to_json(self) -> dict[str, Any]:
        """The accuracies of all groups."""
        return {
            "predictions": self.predictions,
            "accuracy": self.accuracy,
            "interval": [self.low, self.high],
            "table": self.table.to_dict("records"),
            "provenance": self.provenance,
        }

    def sections(self) -> dict[str, pd.DataFrame]:
        """The four tables that the original script prints, under its headings: columns name,
        n, accuracy, low, high."""
        table, shown = self.table, ["name", "n", "accuracy", "low", "high"]
        heuristic = table.group == "heuristic"
        chosen = {
            "Heuristic entailed results": heuristic & (table.label == _ENTAILMENT),
            "Heuristic non-entailed results": heuristic & (table.label == _OTHER),
            "Subcase results": table.group == "subcase",
            "Template results": table.group == "template",
        }
        return {title: table.loc[rows, shown] for title, rows in chosen.items()}


def read_predictions(path: str | os.PathLike[str]) -> dict[str, str]:
    """The predictions of a file by pairID: "entailment", or "non-entailment" for anything else.

    Raises `DataError` naming the file and line for another header, a row that is not
    "pairID,answer", an empty answer, or a pair that occurs twice.
    """
    file = Path(path)
    if not file.suffix:
        raise DataError(f"{file}: a prediction file ends in .txt or .csv", remedy="rename it")
    table = read_file(file, FileFormat(quoting=False, delimiter=","))
    header = tuple(map(str, table.frame.columns))
    if header != _HEADER:
        raise DataError(
            f"{file}, line 1: the header is {','.join(header)[:60]!r}",
            remedy=f"the first line must be {','.join(_HEADER)!r}",
        )
    found: dict[str, str] = {}
    pairs = zip(table.values("pairID"), table.values("gold_label"), strict=True)
    for row, (pair, answer) in enumerate(pairs):
        if not pair or not answer.strip():
            raise DataError(f"{table.place(row)}: no answer", remedy="write pairID,answer")
        if pair in found:
            raise DataError(
                f"{table.place(row)}: the pair {pair} occurs twice", remedy="keep one of them"
            )
        found[pair] = _ENTAILMENT if answer.strip() == _ENTAILMENT else _OTHER
    return found


def write_predictions(path: str | os.PathLike[str], log: pd.DataFrame) -> None:
    """Write the log of an evaluation on HANS (`Evaluation.log`) as a prediction file.

    `log` needs the columns text_id (the pairID) and prediction. The file is whole or absent.
    """
    for name in ("text_id", "prediction"):
        if name not in log:
            raise DataError(
                f"the log has no column {name!r}", remedy="pass the log of an evaluation on HANS"
            )
    answers = ["entailment" if p == _ENTAILMENT else _OTHER for p in log["prediction"]]
    lines = [",".join(_HEADER), *map(",".join, zip(log["text_id"], answers, strict=True))]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def score_predictions(
    predictions: str | os.PathLike[str] | Mapping[str, str],
    data: str | os.PathLike[str] | Task,
    *,
    split: str = "validation",
    **options: Any,
) -> HansScores:
    """Accuracy of predictions per heuristic and label, per sub-case and per template.

    `predictions`: a file (see `read_predictions`) or a mapping from pairID to answer. `data`: a
    file or folder of HANS, or a loaded task of its kind. Options: the fields of `ScoreConfig`.
    accuracy = share of the group's pairs whose answer is the gold label; intervals are percentile
    bootstraps over the pairs of the group. Raises `DataError` for a pair without a prediction, and
    for predictions of pairs that the data does not have.
    """
    if isinstance(predictions, Mapping):
        answers, title = dict(predictions), "predictions"
    else:
        answers, title = read_predictions(predictions), os.fspath(predictions)
    config = ScoreConfig.parse(options, where="score_predictions")
    points = PointsConfig(replicates=config.replicates, level=config.level)
    task = data if isinstance(data, Task) else _task(Path(data), split)
    examples = task.examples(split)
    said = _said(answers, examples, title, task)
    value, low, high = metric_table(said, ["accuracy"], points)["accuracy"]
    return HansScores(
        predictions=title,
        accuracy=value,
        low=low,
        high=high,
        table=_table(task, examples, said, points),
        provenance={"examples": examples.fingerprint, "config": config.model_dump(mode="json")},
    )


def _task(place: Path, split: str) -> Task:
    if place.is_dir():
        return load_task("hans", data_dir=place)
    return load_task("hans", files={split: str(place)})


def _said(answers: Mapping[str, str], examples: Examples, title: str, task: Task) -> Predictions:
    """The answers as predictions whose larger logit is the answer's."""
    missing = [pair for pair in examples.ids if pair not in answers]
    spare = sorted(set(answers) - set(examples.ids))
    if missing or spare:
        few, what = (
            (missing, "no prediction for") if missing else (spare, "a prediction for the unknown")
        )
        raise DataError(
            f"{title}: {what} {', '.join(few[:5])}{', ...' if len(few) > 5 else ''}"
            f" ({len(few)} of {len(examples)} pairs)",
            remedy="give the data that the predictions were made for, all of it",
        )
    labels = np.asarray(examples.labels)
    entailment = task.label_names.index(_ENTAILMENT)
    chosen = [_index(answers[pair], entailment) for pair in examples.ids]
    logits = np.eye(2)[np.asarray(chosen)]
    ones = np.ones(len(labels))
    return Predictions(logits, labels, np.zeros(len(labels)), ones)


def _index(answer: str, entailment: int) -> int:
    return entailment if answer == _ENTAILMENT else 1 - entailment


def _table(task: Task, examples: Examples, said: Predictions, config: PointsConfig) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for group, columns in _groups(task):
        for name, mask in subset_masks(_divided(task, columns), examples).items():
            value, low, high = metric_table(said.take(mask), ["accuracy"], config)["accuracy"]
            title, _, label = name.partition("/") if len(columns) > 1 else (name, "", "")
            rows.append(
                {
                    "group": group,
                    "name": title,
                    "label": label,
                    "n": int(mask.sum()),
                    "accuracy": value,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


def _groups(task: Task) -> Iterable[tuple[str, tuple[str, ...]]]:
    return [(columns[0], columns) for columns in task.subsets]


def _divided(task: Task, columns: tuple[str, ...]) -> Task:
    import dataclasses

    return dataclasses.replace(task, subsets=(columns,))
