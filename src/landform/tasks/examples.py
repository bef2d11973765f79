"""Examples: the rows of one split, as every estimator takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from landform.errors import DataError
from landform.tasks.answers import TextForm
from landform.tasks.corruption import Noise
from landform.tasks.options import is_single
from landform.tasks.tables import missing_column

__all__ = ["Examples", "feed", "joined", "some_of"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of one split, in the order of the file.

    `texts[i]` holds the text of row i, or premise and hypothesis; for token classification it is
    the tuple of words. `labels`: classification int64 (N,), indices into `Task.label_names`;
    regression float64 (N,); token classification a tuple of tuples of int (-100: left out);
    seq2seq a tuple of target texts, or (text-to-text) of tuples of accepted answers; language
    modelling and denoising None. `columns` holds the other columns. `form`: how text-to-text
    examples are written for a model. `noise`: how much of a text denoising hides (and masked
    language modelling, where that is not 15 %).
    """

    ids: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    labels: Any
    columns: pd.DataFrame
    form: TextForm | None = None
    noise: Noise | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> Examples:
        """The given rows (0-based), in the given order."""
        index = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(index) and not (index.min() >= 0 and index.max() < len(self)):
            bad = next(int(row) for row in index if not 0 <= row < len(self))
            raise DataError(
                f"row {bad} was asked for; the rows are 0 to {len(self) - 1}",
                remedy="choose rows that exist",
            )
        order = index.tolist()
        labels = self.labels
        if isinstance(labels, np.ndarray):
            labels = labels[index]
        elif labels is not None:
            labels = tuple(labels[row] for row in order)
        return Examples(
            tuple(self.ids[row] for row in order),
            tuple(self.texts[row] for row in order),
            labels,
            self.columns.iloc[index].reset_index(drop=True),
            self.form,
            self.noise,
        )

    def filter(self, **equals: Any) -> Examples:
        """Rows whose columns have the given value, or one of several given values.

        `label=` takes the class index (of classification tasks). `DataError` when a column is not
        there or nothing is left.
        """
        keep = np.ones(len(self), dtype=bool)
        for name, wanted in equals.items():
            accepted = (wanted,) if is_single(wanted) else tuple(wanted)
            keep &= np.fromiter(
                (value in accepted for value in self.column(name)), dtype=bool, count=len(self)
            )
        if not keep.any():
            shown = ", ".join(f"{name} = {value!r}" for name, value in equals.items())
            raise DataError(
                f"all {len(self)} examples were filtered out by {shown}",
                remedy="; ".join(
                    f"values of {name}: {some_of(self.column(name))}" for name in equals
                ),
            )
        return self.take(np.flatnonzero(keep))

    def column(self, name: str) -> list[Any]:
        """The values of one of `columns`, or of `label`."""
        if name in self.columns.columns:
            return list(self.columns[name].tolist())
        if name == "label" and isinstance(self.labels, np.ndarray):
            return list(self.labels.tolist())
        raise missing_column(name, (*map(str, self.columns.columns), "label"), "these examples")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids, texts, labels and columns: changes when any of them does."""
        digest = hashlib.sha256()
        feed(digest, "ids", self.ids)
        feed(digest, "texts", (text for row in self.texts for text in (str(len(row)), *row)))
        labels = self.labels
        if isinstance(labels, np.ndarray):
            digest.update(f"{labels.dtype.str}{labels.shape}".encode())
            digest.update(np.ascontiguousarray(labels).tobytes())
        elif labels is not None:
            feed(digest, "labels", map(_label_text, labels))
        for name in self.columns.columns:
            cells = (f"{type(cell).__name__}:{cell}" for cell in self.columns[name].tolist())
            feed(digest, f"column {name}", cells)
        if self.form is not None:
            feed(digest, "form", (f"{name}={value!r}" for name, value in self.form.spec().items()))
        if self.noise is not None:
            noise = self.noise.spec().items()
            feed(digest, "noise", (f"{name}={value!r}" for name, value in noise))
        return digest.hexdigest()


def joined(label: Any) -> str:
    """A label, or several, as one text."""
    return label if isinstance(label, str) else ",".join(map(str, label))


def _label_text(label: Any) -> str:
    if not isinstance(label, str) and label and isinstance(label[0], str):
        return "".join(f"{len(answer)}:{answer}" for answer in label)  # answers may hold commas
    return joined(label)


def feed(digest: Any, title: str, texts: Iterable[str]) -> None:
    """Add a title and texts to a digest."""
    # Lengths before texts: no two different sequences give the same bytes.
    parts = [f"{len(text)}:{text}" for text in texts]
    digest.update(f"{title} {len(parts)}\n".encode())
    digest.update("".join(parts).encode("utf-8", "surrogatepass"))


def some_of(values: Iterable[Any], most: int = 12) -> str:
    """The first distinct values, for a message."""
    distinct = sorted({str(value) for value in values})
    return ", ".join(distinct[:most]) + (", ..." if len(distinct) > most else "")
