"""The text logs of `interpolate_1d` in the connectivity project (Juneja et al. 2023).

One pair of models after the other:

    Euclidean distance between 3 and 15: 21.374512.
    Interpolating between 3 and 15 on mnli
    [0.0, 1.0]
      point_num    loss    accuracy
    -----------  ------  ----------
              0  0.5056      0.8340
    [0.1111111111111111, 0.8888888888888888]
      ...

The pair of numbers are the coefficients of the first and of the second model: **point 0 is the
second model**. In landform's order, from the first model (t = 0) to the second (t = 1), the rows
come reversed. Values have four decimals, so that a gap can be off by 1e-4 by rounding alone.

A folder may hold the logs of many jobs, each with many pairs, between lines of other programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from landform.errors import ConfigError, DataError
from landform.exchange.lines import Line, lines_of
from landform.store.atomic import atomic_path, file_errors
from landform.store.study import slug
from landform.studies.connect import Connection

__all__ = ["METRIC_NAMES", "ROUNDING", "read_logs", "write_logs"]

ROUNDING = 1e-4
"""What rounding to four decimals can add to a gap: half a unit at the point and at the chord."""

METRIC_NAMES = {"matthews_correlation": "matthews", "ECE": "ece"}
"""Their names of metrics, where landform's differ."""

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_DISTANCE = re.compile(rf"Euclidean distance between (.+) and (.+): ({_NUMBER})\.?\s*$")
_DATA = re.compile(r"Interpolating between .+ and .+ on (\S+)\s*$")
_PAIR = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]\s*$")
_RULE = re.compile(r"-{3,}(\s+-{3,})+\s*$")
_SKIPPED = {".err", ".pkl", ".json"}


# --- reading -------------------------------------------------------------------------------------


@dataclass
class _Section:
    """What a log says of one pair, as it is found."""

    a: str
    b: str
    distance: float
    place: int
    data: str | None = None
    columns: tuple[str, ...] = ()
    rows: list[list[float]] = field(default_factory=list)
    coefficients: list[tuple[float, float]] = field(default_factory=list)


def read_logs(
    path: str | Path, *, data: str | None = None, skip_unfinished: bool = False
) -> list[Line]:
    """The lines in `path`: a log, or all logs of a folder (not of the folders in it).

    Files ending .err, .pkl and .json are left out, and what is not part of a table is passed over.
    `data` names the data set, where the logs do not. A pair with a missing row is a `DataError`
    that names file and line; with `skip_unfinished` a pair that ends too early (the job was
    killed) is left out instead. Lines go from the first model (t = 0) to the second (t = 1).
    """
    place = Path(path)
    files = _files(place)
    fallback = data or (place.name if place.is_dir() else place.stem)
    lines = []
    for file in files:
        for section in _sections(file):
            line = _line(file, section, data or section.data or fallback, skip_unfinished)
            if line is not None:
                lines.append(line)
    if not lines:
        raise DataError(
            f"{place}: no interpolation log in {len(files)} file{'' if len(files) == 1 else 's'}: "
            "no line says 'Euclidean distance between A and B: d.'",
            remedy="name the folder that holds the .out or .log files of interpolate_1d",
        )
    return lines


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place}: there is no such file or folder", remedy="check the path")
    with file_errors("read", place):
        found = [
            file
            for file in sorted(place.iterdir())
            if file.is_file() and file.suffix not in _SKIPPED and not file.name.startswith(".")
        ]
    if not found:
        raise DataError(f"{place}: the folder holds no logs", remedy="check the path")
    return found


def _sections(file: Path) -> Iterator[_Section]:
    # Jobs write bars and warnings between the tables, in whatever encoding: those are passed over.
    with file_errors("read", file):
        lines = file.read_bytes().decode("utf-8", errors="replace").splitlines()
    section: _Section | None = None
    header = ""
    ruled = False
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if found := _DISTANCE.search(text):
            if section is not None:
                yield section
            section = _Section(found[1], found[2], float(found[3]), number)
            ruled = False
        elif section is not None:
            if ruled:
                section.rows.append(_row(text, header, section, f"{file}:{number}"))
                ruled = False
            elif _RULE.match(text):
                ruled = True
            elif found := _PAIR.match(text):
                section.coefficients.append((float(found[1]), float(found[2])))
            elif found := _DATA.search(text):
                section.data = found[1]
            else:
                header = text
    if section is not None:
        yield section


def _row(text: str, header: str, section: _Section, where: str) -> list[float]:
    columns = tuple(header.split())
    words = text.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(columns) < 2 or len(values) != len(columns):
        raise DataError(
            f"{where}: {text[:60]!r} is not a row of the table {header[:60]!r}",
            remedy="expected 'k loss metric ...' under a dashed rule; the row is missing",
        )
    if section.columns not in ((), columns):
        raise DataError(
            f"{where}: the columns change from {' '.join(section.columns)} to {header}",
            remedy="one pair has one kind of table",
        )
    section.columns = columns
    return values


def _line(file: Path, section: _Section, data: str, skip_unfinished: bool) -> Line | None:
    """The line of a section in landform's direction; None where it is to be skipped."""
    where = f"{file}:{section.place}"
    numbers = [row[0] for row in section.rows]
    faults = [k for k, number in enumerate(numbers) if number != k]
    pair = f"between {section.a} and {section.b}"
    if faults:
        raise DataError(
            f"{where}: the row of point {faults[0]} {pair} is missing (found point "
            f"{numbers[faults[0]]:g} in its place)",
            remedy="walk this line again, or remove it from the log",
        )
    weights = _weights(section, where)
    if len(numbers) < 2 or not np.isclose(weights[-1], round(weights[-1]), atol=1e-6):
        if skip_unfinished:
            return None
        raise DataError(
            f"{where}: the line {pair} ends after {len(numbers)} points, before the other model",
            remedy="the job was killed: walk this line again, or leave out such lines "
            "(--skip-unfinished)",
        )
    values = np.array([row[1:] for row in section.rows], dtype=np.float64)
    line = Line(
        section.a,
        section.b,
        data,
        section.distance,
        tuple(METRIC_NAMES.get(name, name) for name in section.columns[2:]),
        weights,
        values,
        where,
    )
    if weights[0] > weights[-1]:
        line = Line(
            line.a, line.b, data, line.distance, line.metrics, weights[::-1], values[::-1], where
        )
    return line


def _weights(section: _Section, where: str) -> np.ndarray[Any, Any]:
    """Share of the second model at every row: the second coefficient, or the known order."""
    points = len(section.rows)
    given = section.coefficients
    if not given or not points:
        return 1.0 - np.arange(points) / max(1, points - 1)
    if len(given) == points + 1:  # killed between the pair and its row
        given = given[:points]
    if len(given) != points:
        raise DataError(
            f"{where}: {len(given)} pairs of coefficients and {points} rows between {section.a} "
            f"and {section.b}",
            remedy="every '[c1, c2]' needs its table below; walk this line again",
        )
    for k, (first, second) in enumerate(given):
        if not abs(first + second - 1.0) <= 1e-6:  # NaN is no share either
            raise DataError(
                f"{where}: the coefficients of point {k} are {first:g} and {second:g}, which do "
                "not sum to 1",
                remedy="only straight lines between two models can be read",
            )
    # 0.333333 and 0.3333 are both a third: equal steps are restored where the text is near them.
    shares = np.array([second for _, second in given])
    even = np.linspace(shares[0], shares[-1], points) if points > 1 else shares
    return even if np.abs(even - shares).max() < 1e-3 else shares


# --- writing -------------------------------------------------------------------------------------


def write_logs(
    connection: Connection, folder: str | Path, data: Sequence[str] | None = None
) -> list[Path]:
    """Write the lines of a connection as text logs, one folder per data set; the files written.

    Each is `<folder>/<data set>/interpolations.out`, in the layout that the module describes, with
    four decimals. The original plots take lines of exactly 10 points.
    """
    chosen = tuple(data or connection.data)
    for name in chosen:
        if name not in connection.data:
            raise ConfigError(
                f"there is no data set {name!r} in this connection",
                remedy=f"there are: {', '.join(connection.data)}",
            )
    written = []
    for name in chosen:
        path = Path(folder) / slug(*name.split(":")) / "interpolations.out"
        text = "".join(_pages(connection, name))
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _pages(connection: Connection, data: str) -> Iterator[str]:
    theirs = {ours: name for name, ours in METRIC_NAMES.items()}
    for line in lines_of(connection, data):
        yield f"Euclidean distance between {line.a} and {line.b}: {_plain(line.distance)}.\n"
        said = data if re.fullmatch(r"\S+", data) else slug(data)
        yield f"Interpolating between {line.a} and {line.b} on {said}\n"
        columns = ("point_num", "loss", *(theirs.get(name, name) for name in line.metrics))
        for k, (t, row) in enumerate(zip(line.t[::-1], line.values[::-1], strict=True)):
            yield f"[{1.0 - float(t)!r}, {float(t)!r}]\n"
            yield _table(columns, [str(k), *(f"{value:.4f}" for value in row)])
        yield f"Completed interpolation from {line.a} to {line.b}\n"


def _plain(distance: float) -> str:
    """A number that the original's pattern, digits and a point, finds."""
    text = repr(float(distance))
    return f"{distance:.12f}" if "e" in text else text


def _table(columns: Sequence[str], cells: Sequence[str]) -> str:
    """The 'simple' layout of the tabulate package: right-aligned, two spaces between columns."""
    widths = [max(len(c) + 2, len(v)) for c, v in zip(columns, cells, strict=True)]
    rows = (columns, ["-" * width for width in widths], cells)
    return "".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + "\n"
        for row in rows
    )
