"""Which rows a split is made of: merged splits cut anew, a random order, a percentage, a list.

A row file lists rows by their text ids, one a line; blank lines do not count.

Everything is drawn from `random.Random.random`, whose sequence Python guarantees, so a seed gives
the same rows on every machine.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from landform.errors import DataError
from landform.store.atomic import atomic_path

if TYPE_CHECKING:
    from landform.tasks.examples import Examples

__all__ = [
    "ROW_FILE",
    "Resplit",
    "check_row_ids",
    "merged",
    "part_of",
    "read_row_file",
    "share",
    "shuffled",
    "write_row_file",
]

ROW_FILE = "train_rows.txt"
"""The row file that a run on a part of the rows has in its directory."""


def shuffled(size: int, seed: int, what: str = "shuffle") -> list[int]:
    """A random order of `size` rows, the same one for the same seed and purpose."""
    draw = random.Random(f"landform {what} {seed}").random
    keys = [draw() for _ in range(size)]
    return sorted(range(size), key=keys.__getitem__)


def part_of(size: int, percent: float) -> int:
    """How many rows `percent` of `size` are: int(size percent / 100), exactly."""
    # 0.29 * 100 is less than 29 in binary: the number is meant as it is written.
    return int(Fraction(str(percent)) * size / 100)


def share(rows: Sequence[int], percent: float, seed: int | None) -> list[int]:
    """`percent` of `rows`, at least one; a smaller percentage is part of a larger one.

    With a seed, `rows` are in its random order already and the first are taken. Without, the rows
    are those of seed 0, in the order they had.
    """
    count = max(1, part_of(len(rows), percent))
    if seed is not None:
        return list(rows[:count])
    return [rows[i] for i in sorted(shuffled(len(rows), 0)[:count])]


@dataclass(frozen=True)
class Resplit:
    """Splits that are merged and cut anew, in a random order.

    Of N merged rows the first split gets int(N (100 - percent) / 100), the last one the others;
    80/20 of RTE's 2,490 + 277 rows is 2,213 and 554.
    """

    splits: tuple[str, ...]
    """the splits of the source, in the order they are merged in"""
    percent: float
    """the share of the last of them"""
    seed: int

    @property
    def made(self) -> tuple[str, str]:
        """The names of the new splits: the first and the last of those merged."""
        return self.splits[0], self.splits[-1]

    def cut(self, pieces: Sequence[Examples]) -> dict[str, Examples]:
        """The two new splits of the examples of the old ones; `DataError` where one is empty."""
        whole = merged(dict(zip(self.splits, pieces, strict=True)))
        order = shuffled(len(whole), self.seed, "resplit")
        first = part_of(len(whole), float(100 - Fraction(str(self.percent))))
        cut = dict(zip(self.made, (order[:first], order[first:]), strict=True))
        for split, rows in cut.items():
            if not rows:
                raise DataError(
                    f"resplit {self.percent:g}: {split} has no rows of the {len(whole)} in "
                    + " and ".join(self.splits),
                    remedy="use another percentage, or more rows",
                )
        return {split: whole.take(rows) for split, rows in cut.items()}


def merged(pieces: Mapping[str, Examples]) -> Examples:
    """The examples of several splits, one after the other, as one.

    Ids that occur in several splits get the name of theirs in front ("train-17"), in all of them.
    Of further columns those stay that all splits have.
    """
    parts = list(pieces.values())
    ids = [text_id for part in parts for text_id in part.ids]
    if len(set(ids)) < len(ids):
        ids = [f"{split}-{text_id}" for split, part in pieces.items() for text_id in part.ids]
    common = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    labels: Any = None
    if isinstance(parts[0].labels, np.ndarray):
        labels = np.concatenate([part.labels for part in parts])
    elif parts[0].labels is not None:
        labels = tuple(label for part in parts for label in part.labels)
    columns = pd.concat([part.columns[common] for part in parts], ignore_index=True)
    if not common:
        columns = pd.DataFrame(index=pd.RangeIndex(len(ids)))
    return type(parts[0])(
        tuple(ids),
        tuple(text for part in parts for text in part.texts),
        labels,
        columns,
        parts[0].form,
        parts[0].noise,
    )


# --- row files ------------------------------------------------------------------------------------


def check_row_ids(ids: Iterable[str]) -> None:
    """Raise `DataError` for a text id that cannot stand on a line."""
    for text_id in ids:
        if not text_id.strip() or "\n" in text_id or "\r" in text_id:
            raise DataError(
                f"text id {text_id!r} cannot stand on a line of a row file",
                remedy="use ids that are not blank and have no line breaks",
            )


def write_row_file(ids: Iterable[str], path: str | os.PathLike[str]) -> Path:
    """Write a row file, whole or not at all; `DataError` for an id that a line cannot hold."""
    listed = list(ids)
    check_row_ids(listed)
    with atomic_path(path) as temporary:
        temporary.write_bytes("".join(f"{text_id}\n" for text_id in listed).encode())
    return Path(path)


def read_row_file(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    *,
    where: str = "row_file",
    missing: str = "no row",
    remedy: str | None = None,
) -> list[int]:
    """Positions in `ids` of the rows that a row file lists, ascending.

    Blanks around an id count only where an id of that spelling is known. Raises `DataError`, which
    begins with `where`, for a file that cannot be read or lists nothing, and naming the line of an
    id that is not among `ids` ("`missing` has the id ...", with `remedy`) or is listed twice.
    """
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{where} {path} cannot be read: {error}", remedy="name a text file with one id a line"
        ) from None
    place = {text_id: row for row, text_id in enumerate(ids)}
    chosen: dict[int, int] = {}
    # Not str.splitlines: it also breaks at U+2028 and others that occur inside text.
    for number, line in enumerate(text.split("\n"), start=1):
        written = line.removesuffix("\r")
        text_id = written if written in place else written.removeprefix("\ufeff").strip()
        if not text_id:
            continue
        if text_id not in place:
            raise DataError(
                f"{where} {path}, line {number}: {missing} has the id {text_id[:80]!r}",
                remedy=remedy or f"ids look like {ids[0]!r}",
            )
        row = place[text_id]
        if row in chosen:
            raise DataError(
                f"{where} {path}, line {number}: {text_id!r} is already on line {chosen[row]}",
                remedy="list each row once",
            )
        chosen[row] = number
    if not chosen:
        raise DataError(f"{where} {path} lists no rows", remedy="write one text id per line")
    return sorted(chosen)
