"""Columns of a table into texts, ids and labels, checked value by value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from landform.errors import DataError, LabelError
from landform.tasks.sources import Table

__all__ = [
    "IGNORED",
    "class_codes",
    "class_finder",
    "infer_kind",
    "infer_label_names",
    "normalised",
    "read_ids",
    "read_scores",
    "read_targets",
    "read_texts",
    "read_words",
    "tag_codes",
]

IGNORED = -100
"""The label of a token that takes no part in the loss (the convention of torch, transformers)."""

# No codes are longer; int() refuses thousands of digits, and float() makes them infinite.
_INTEGER = re.compile(r"([+-]?\d{1,18})(\.0*)?\Z")
_SEPARATORS = re.compile(r"[\s_\-]+")
_MANY_CLASSES = 1000


def normalised(name: str) -> str:
    """A label name without case, spaces, hyphens and underscores; numbers keep their sign."""
    if _number(name) is not None:
        return name.strip()
    return _SEPARATORS.sub("", name.casefold()) or name


# ---------------------------------------------------------------------------------------- texts


def read_texts(
    table: Table, names: Sequence[str], *, allow_empty: bool = False
) -> tuple[tuple[str, ...], ...]:
    """Per row the texts of the columns `names`, as written."""
    columns = [_text_column(table, name, allow_empty) for name in names]
    return tuple(zip(*columns, strict=True))


def _text_column(table: Table, name: str, allow_empty: bool) -> list[str]:
    values = table.values(name)
    try:
        joined = "".join(values)
        sound = (allow_empty or all(values)) and "\0" not in joined
        joined.encode("utf-8")
    except (TypeError, UnicodeEncodeError):
        sound = False
    if sound:
        return values
    # Some value is not plain text: look at each, to convert it or to say where it stands.
    return [
        _text(value, table, row, name, allow_empty=allow_empty) for row, value in enumerate(values)
    ]


def _text(value: Any, table: Table, row: int, name: str, *, allow_empty: bool = False) -> str:
    place = f"{table.place(row)}, column {name!r}"
    if _is_missing(value) or (value == "" and not allow_empty):
        raise DataError(
            f"{place}: no text" + ("" if _is_missing(value) else " (empty)"),
            remedy="fill in or remove the row"
            + ("" if _is_missing(value) else ", or pass empty_text=True to accept empty texts"),
        )
    if not isinstance(value, bool) and isinstance(value, int | float | np.number):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{place}: text was expected, found {type(value).__name__} {str(value)[:40]!r}",
            remedy="name a column that holds text"
            + (
                ", or pass kind='token-classification' for lists of words"
                if isinstance(value, list)
                else ""
            ),
        )
    if "\0" in value:
        raise DataError(f"{place}: NUL character", remedy="remove the NUL characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: character {error.start + 1} is half of a surrogate pair, not text",
            remedy="write the character itself, or a complete \\uXXXX\\uXXXX pair",
        ) from None
    return value


def read_words(table: Table, name: str) -> tuple[tuple[str, ...], ...]:
    """Per row the list of words in column `name`."""
    rows: list[tuple[str, ...]] = []
    for row, value in enumerate(table.values(name)):
        words = _list(value, table, row, name, "words")
        if not words:
            raise DataError(
                f"{table.place(row)}, column {name!r}: no words", remedy="remove the row"
            )
        rows.append(tuple(_text(word, table, row, name) for word in words))
    return tuple(rows)


def _list(value: Any, table: Table, row: int, name: str, what: str) -> list[Any]:
    if isinstance(value, np.ndarray | list | tuple):
        return list(value)
    raise DataError(
        f"{table.place(row)}, column {name!r}: a list of {what} was expected, found"
        f" {type(value).__name__} {str(value)[:40]!r}",
        remedy="token classification needs lists: use JSONL, JSON or Parquet",
    )


def read_ids(table: Table, name: str | None, split: str, start: int = 0) -> tuple[str, ...]:
    """Text ids: the column `name`, else "<split>-<row>" with rows counted from `start`."""
    if name is None:
        return tuple(f"{split}-{start + row}" for row in range(len(table)))
    ids = _text_column(table, name, allow_empty=False)
    if len(set(ids)) < len(ids):
        seen: dict[str, int] = {}
        for row, text_id in enumerate(ids):
            if text_id in seen:
                raise DataError(
                    f"{table.place(row)}, column {name!r}: the id {text_id!r} occurs before"
                    f" ({table.place(seen[text_id])})",
                    remedy="make the ids unique, or leave id= out to number the rows",
                )
            seen[text_id] = row
    return tuple(ids)


def read_targets(table: Table, name: str) -> tuple[str, ...]:
    """The target texts of a text-to-text task."""
    return tuple(_text_column(table, name, allow_empty=False))


# --------------------------------------------------------------------------------------- labels


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _written(value: Any) -> str | None:
    """A label as text: names as they are, whole numbers without a point; None when missing."""
    if isinstance(value, str):
        return value.strip() or None
    if _is_missing(value):
        return None
    if isinstance(value, int | np.integer | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _code(text: str) -> int | None:
    found = _INTEGER.match(text)
    return int(found[1]) if found else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def infer_kind(tables: Iterable[Table], label: str) -> str:
    """Lists of tags: token-classification. Numbers of which one is not whole: regression.

    Everything else: classification. Scores that all happen to be whole numbers therefore need
    an explicit kind="regression".
    """
    texts: set[str] = set()
    for table in tables:
        values = table.values(label)
        if any(isinstance(value, list | tuple | np.ndarray) for value in values):
            return "token-classification"
        texts.update(text for text in map(_written, values) if text is not None)
    found = [_number(text) for text in texts]
    if found and all(number is not None and math.isfinite(number) for number in found):
        whole = all(_INTEGER.match(text) for text in texts)
        return "classification" if whole else "regression"
    return "classification"


def infer_label_names(
    tables: Sequence[Table], label: str, *, tags: bool = False
) -> tuple[str, ...]:
    """The classes of a label column over all splits.

    Names that a hub data set declares; else, for integer codes 0..K-1, the codes themselves as
    text; else the distinct names, sorted.
    """
    for table in tables:
        if label in table.label_names:
            return table.label_names[label]
    texts = _distinct(tables, label, tags)
    origin = ", ".join(table.origin for table in tables)
    where = f"{origin}, column {label!r}"
    codes = [_code(text) for text in texts]
    if all(code is not None for code in codes):
        names = _code_names(sorted({int(code) for code in codes if code is not None}), where)
    else:
        rows = sum(len(table) for table in tables)
        if not tags and len(texts) > _MANY_CLASSES and 2 * len(texts) > rows:
            raise LabelError(
                f"{where}: {len(texts)} different labels in {rows} rows",
                remedy="name a label column with few classes, or pass kind='seq2seq' when the"
                " column holds target texts, kind='regression' when it holds scores",
            )
        names = tuple(sorted(texts))
    if len(names) < 2:
        raise LabelError(
            f"{where}: every row has the label {names[0] if names else None!r}, so the number of"
            " classes cannot be known",
            remedy="pass label_names=(...) with all classes, in the order of their codes",
        )
    return names


def _distinct(tables: Sequence[Table], label: str, tags: bool) -> set[str]:
    texts: set[str] = set()
    for table in tables:
        for row, value in enumerate(table.values(label)):
            cells = _list(value, table, row, label, "tags") if tags else (value,)
            for cell in cells:
                text = _written(cell)
                if text is None:
                    raise _no_label(table, row, label)
                if not (tags and text == str(IGNORED)):
                    texts.add(text)
    return texts


def _code_names(codes: list[int], where: str) -> tuple[str, ...]:
    if codes != list(range(len(codes))):
        shown = ", ".join(map(str, codes[:12])) + (", ..." if len(codes) > 12 else "")
        remedy = "pass label_names=(...): either the values as they are written, in the order"
        remedy += " that the model uses, or one name for each code from 0 on"
        remedy += "; kind='regression' when these are scores"
        if codes[:1] == [-1]:
            remedy += "; -1 usually marks rows whose label is withheld: leave that split out"
        raise LabelError(
            f"{where}: the integer labels are {shown}; codes 0, 1, ... without a gap were expected",
            remedy=remedy,
        )
    return tuple(map(str, codes))


def _no_label(table: Table, row: int, label: str) -> DataError:
    return DataError(
        f"{table.place(row)}, column {label!r}: no label", remedy="fill in or remove the row"
    )


def class_finder(names: Sequence[str]) -> Callable[[Any], int | None]:
    """From a label to its class: by name, by normalised name, then by integer code; None for what
    is no label of the task."""
    find = _coder(names)

    def found(value: Any) -> int | None:
        text = _written(value)
        return None if text is None else find(text)

    return found


def _coder(names: Sequence[str]) -> Callable[[str], int | None]:
    exact = {name: index for index, name in enumerate(names)}
    loose: dict[str, int] = {}
    for index, name in enumerate(names):
        loose.setdefault(normalised(name), index)
    # "1" in a task with the classes "1" to "5" is a name, never the second class.
    by_code = not any(_INTEGER.match(name) for name in names) or list(names) == [
        str(index) for index in range(len(names))
    ]

    def find(text: str) -> int | None:
        if text in exact:
            return exact[text]
        code = _code(text)
        if code is not None:
            if not by_code:
                return exact.get(str(code))
            return code if 0 <= code < len(names) else None
        return loose.get(normalised(text))

    return find


def _outside(table: Table, row: int, label: str, text: str, names: Sequence[str]) -> LabelError:
    remedy = f"known labels: {', '.join(names)}, or their codes 0 to {len(names) - 1}"
    if text == "-1":
        remedy += "; -1 marks a row whose label is withheld: use a split with labels"
    elif _number(text) is not None and _code(text) is None:
        remedy += "; pass kind='regression' when the column holds scores"
    return LabelError(
        f"{table.place(row)}, column {label!r}: the label {text!r} is not one of the task's",
        remedy=remedy,
    )


def class_codes(table: Table, label: str, names: Sequence[str]) -> np.ndarray:
    """The class of every row, int64 of shape (N,), as an index into `names`."""
    find, known = _coder(names), {}
    values = table.values(label)
    codes = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        text = _written(value)
        if text is None:
            raise _no_label(table, row, label)
        if text not in known:
            code = find(text)
            if code is None:
                raise _outside(table, row, label, text, names)
            known[text] = code
        codes[row] = known[text]
    return codes


def tag_codes(
    table: Table, words: Sequence[Sequence[str]], label: str, names: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """The class of every word of every row; -100 is kept (the word takes no part)."""
    find = _coder(names)
    rows: list[tuple[int, ...]] = []
    for row, value in enumerate(table.values(label)):
        tags = _list(value, table, row, label, "tags")
        if len(tags) != len(words[row]):
            raise DataError(
                f"{table.place(row)}, column {label!r}: {len(tags)} tags for"
                f" {len(words[row])} words",
                remedy="give every word one tag (-100 leaves a word out)",
            )
        codes: list[int] = []
        for tag in tags:
            text = _written(tag)
            if text is None:
                raise _no_label(table, row, label)
            code = IGNORED if text == str(IGNORED) else find(text)
            if code is None:
                raise _outside(table, row, label, text, names)
            codes.append(code)
        rows.append(tuple(codes))
    return tuple(rows)


def read_scores(table: Table, label: str) -> np.ndarray:
    """The scores of a regression task, float64 of shape (N,); finite numbers only."""
    values = table.values(label)
    scores = np.empty(len(values), dtype=np.float64)
    for row, value in enumerate(values):
        text = _written(value)
        if text is None:
            raise _no_label(table, row, label)
        number = _number(text)
        if number is None or not math.isfinite(number):
            raise DataError(
                f"{table.place(row)}, column {label!r}: a finite number was expected, found"
                f" {text!r}",
                remedy="repair the value, or pass kind='classification' when labels are classes",
            )
        scores[row] = number
    return scores
