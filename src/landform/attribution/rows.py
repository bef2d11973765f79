"""Some rows of a data set: queries, or training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from landform.curvature.factors import Factors
from landform.errors import ConfigError, DataError
from landform.evaluation.points import Data
from landform.tasks.answers import references
from landform.tasks.task import Examples, Task

__all__ = ["Rows", "Side", "label_names_of"]

Rows = int | Sequence[int] | None
"""The first so many rows, the rows at these positions, or all of them"""


@dataclass(frozen=True)
class Side:
    """Some rows of a split: the queries, or the training rows."""

    data: Data
    rows: tuple[int, ...]

    @classmethod
    def of(
        cls, factors: Factors, split: str | tuple[Task, str] | None, rows: Rows, what: str
    ) -> Side:
        """The rows that `split` and `rows` mean; without a split those the factors saw.

        `DataError` begins with `what` for rows that are not there, twice there, or none.
        """
        if split is None:
            split, rows = factors.split, factors.rows if rows is None else rows
        task, name = (factors.task, split) if isinstance(split, str) else split
        if task.kind != factors.task.kind:
            raise ConfigError(
                f"{what}: task {task.name} is {task.kind}, the factors are of {factors.task.kind}",
                remedy="ask about examples of the same kind of task",
            )
        data = Data(task, name)
        size = len(task.examples(name))
        chosen: Sequence[int]
        if rows is None:
            chosen = range(size)
        elif isinstance(rows, int):
            if rows < 1:
                raise DataError(f"{what}: {rows} rows of {data.name} leave none")
            chosen = range(min(rows, size))
        else:
            chosen = [int(row) for row in rows]
            outside = [row for row in chosen if not 0 <= row < size]
            if outside:
                raise DataError(
                    f"{what}: {data.name} has no row {outside[0]}",
                    remedy=f"rows are 0 to {size - 1}",
                )
            if len(set(chosen)) < len(chosen):
                raise DataError(f"{what}: a row is named twice", remedy="name each row once")
        if not len(chosen):
            raise DataError(f"{what}: there are no rows", remedy="choose at least one row")
        return cls(data, tuple(chosen))

    @cached_property
    def examples(self) -> Examples:
        """The chosen examples."""
        return self.data.task.examples(self.data.split).take(self.rows)

    def table(self, task: Task) -> pd.DataFrame:
        """row, text_id, text, text_pair (pairs), label."""
        examples = self.examples
        columns: dict[str, Any] = {"row": list(self.rows), "text_id": list(examples.ids)}
        if task.kind == "token-classification":
            columns["text"] = [" ".join(words) for words in examples.texts]
        else:
            names = ("text", "text_pair")
            for name, texts in zip(names, zip(*examples.texts, strict=True), strict=False):
                columns[name] = list(texts)
        columns["label"] = _label_column(self.data.task, examples)
        return pd.DataFrame(columns)

    def described(self, facts: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """`table` with what the model said of the rows: prediction (a label's name), loss, value
        and score, as far as they are among `facts`, (rows,) each."""
        table = self.table(self.data.task)
        for name in ("prediction", "loss", "value", "score"):
            if name in facts:
                table[name] = facts[name]
        if "prediction" in table:
            named = label_names_of(self.data.task, table["prediction"].to_numpy())
            table["prediction"] = named
        return table


def _label_column(task: Task, examples: Examples) -> list[Any]:
    if task.kind == "classification":
        return list(label_names_of(task, np.asarray(examples.labels)))
    if task.kind == "regression":
        return [float(label) for label in examples.labels]
    if task.kind == "token-classification":
        named = task.label_names
        return [" ".join(named[t] if t >= 0 else "-" for t in tags) for tags in examples.labels]
    if task.kind == "seq2seq" and examples.labels is not None:
        return [" | ".join(answers) for answers in references(examples)]
    return [""] * len(examples)


def label_names_of(task: Task, numbers: np.ndarray) -> np.ndarray:
    """The names of the labels with these numbers."""
    named: np.ndarray = np.array(task.label_names, dtype=object)[numbers.astype(int)]
    return named
