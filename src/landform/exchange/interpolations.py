"""The pickles of `interpolate_1d`: every number in full, in an order of their own.

    {(a, b): ([[k, loss, metric, ...], ...], distance), (b, a): (reversed list, distance), ...}

The list of the key (a, b) starts with model **b** (k = 0 is the second model), and the list of
(b, a) with model a. The text logs tell the same; the pickles have no names of metrics or data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landform.errors import DataError
from landform.exchange.lines import Line, lines_of
from landform.exchange.pickles import read_pickle, write_pickle
from landform.studies.connect import Connection

__all__ = ["read_interpolations", "write_interpolations"]

_METRICS = {"cola": ("matthews",), "qqp": ("accuracy", "f1"), "paws": ("accuracy",)}
_DEFAULT = ("accuracy", "f1")


def read_interpolations(
    path: str | Path,
    *,
    allow_pickle: bool = False,
    data: str | None = None,
    metrics: Sequence[str] | None = None,
) -> list[Line]:
    """The lines in an interpolation pickle, from the first model of its key (t = 0) to the second.

    `data` is the name of the data set (default: that of the file) and `metrics` those of the
    columns after the loss (default: by the name of the data set, accuracy and F1 otherwise).
    `path` is read without running it; `allow_pickle` runs it, for files of a library of its own:
    only if you trust whoever made it. Raises `DataError` for anything that is not such a pickle,
    naming the pair.
    """
    file = Path(path)
    value = read_pickle(file, allow_pickle=allow_pickle)
    if not isinstance(value, dict) or not value:
        raise DataError(
            f"{file} holds {type(value).__name__}, expected a dict of pairs of models",
            remedy="an interpolation pickle is {(a, b): ([[k, loss, ...], ...], distance)}",
        )
    name = data or _data_name(file)
    return [_line(file, key, entry, name, metrics) for key, entry in value.items()]


def _data_name(file: Path) -> str:
    found = re.search(r"(?:^|_)(mnli|hans|qqp|paws|cola)(?:_|$)", file.stem.lower())
    return found[1] if found else re.sub(r"^interpol[a-z]*_", "", file.stem)


def _line(file: Path, key: Any, entry: Any, data: str, metrics: Sequence[str] | None) -> Line:
    where = f"{file}: pair {key!r}"
    if not (isinstance(key, tuple) and len(key) == 2):
        raise DataError(f"{where}: expected a pair of models as the key")
    try:
        rows, distance = entry
        values = np.array(rows, dtype=np.float64)
        length = float(distance)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: expected a list of equally long rows [k, loss, ...] and a distance ({error})"
        ) from error
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 2:
        raise DataError(
            f"{where}: the table has shape {values.shape}, expected (points, 2 or more)"
        )
    numbers = values[:, 0]
    order = np.arange(len(values))
    if not (np.array_equal(numbers, order) or np.array_equal(numbers, order[::-1])):
        raise DataError(
            f"{where}: the rows are numbered {', '.join(f'{k:g}' for k in numbers)}",
            remedy="a row is missing: walk this line again",
        )
    extra = values.shape[1] - 2
    names = tuple(metrics) if metrics is not None else _METRICS.get(data, _DEFAULT)[:extra]
    if len(names) != extra:
        raise DataError(
            f"{where}: {extra} columns after the loss, {len(names)} names for them "
            f"({', '.join(names)})",
            remedy="name them: metrics=(...) (--metrics)",
        )
    t = order / (len(values) - 1)
    return Line(str(key[0]), str(key[1]), data, length, names, t, values[::-1, 1:], where)


def write_interpolations(connection: Connection, path: str | Path, data: str | None = None) -> Path:
    """Write the lines of a connection on one data set (default: the first) as such a pickle."""
    name = data or connection.data[0]
    if name not in connection.data:
        raise DataError(
            f"there is no data set {name!r} in this connection",
            remedy=f"there are: {', '.join(connection.data)}",
        )
    table: dict[tuple[str, str], tuple[list[list[float]], float]] = {}
    for line in lines_of(connection, name):
        rows = [[k, *map(float, row)] for k, row in enumerate(line.values[::-1])]
        table[line.a, line.b] = (rows, line.distance)
        table[line.b, line.a] = (rows[::-1], line.distance)
    write_pickle(path, table)
    return Path(path)
