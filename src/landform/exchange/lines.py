"""Lines that somebody else walked, checked against each other; the lines of a `Connection`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from landform.errors import DataError, NonFiniteError
from landform.studies.connect import Connection

__all__ = ["Line", "lines_of", "merge_lines", "natural_order"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Line:
    """One walked line from `a` (t = 0) to `b` (t = 1) on one data set."""

    a: str
    b: str
    data: str
    distance: float
    """|| a - b ||"""
    metrics: tuple[str, ...]
    """names of the columns of `values` after the loss"""
    t: Floats
    """(P,) rising from 0 to 1"""
    values: Floats
    """(P, 1 + metrics): the loss in nats, then the metrics"""
    origin: str
    """file, and line where there is one: for messages"""

    def reversed(self) -> Line:
        """The same line from `b` to `a`."""
        flipped = 1.0 - self.t[::-1]
        return dataclasses.replace(self, a=self.b, b=self.a, t=flipped, values=self.values[::-1])


def natural_order(names: Sequence[str]) -> list[str]:
    """Names with the numbers in them in numerical order: 2 before 10."""

    def key(name: str) -> list[tuple[int, int | str]]:
        return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name) if p]

    return sorted(names, key=key)


# --- checks --------------------------------------------------------------------------------------


def merge_lines(lines: Sequence[Line], tolerance: float) -> list[Line]:
    """The lines, each pair once per data set, after a look at everything that was said twice.

    A pair that is given again, or from the other end, must say the same, and so must every line
    about a model that it shares with another one; otherwise a `DataError` names both places.
    """
    if not lines:
        raise DataError("there are no lines", remedy="name the folder that holds the logs")
    kept: dict[tuple[str, str, str], Line] = {}
    ends: dict[tuple[str, str], tuple[str, Floats]] = {}
    columns: dict[str, Line] = {}
    for line in lines:
        _check_line(line)
        if line.a == line.b:  # the diagonal, which some programs write
            continue
        first = columns.setdefault(line.data, line)
        _check_columns(first, line)
        before = kept.get((line.data, line.a, line.b))
        mirrored = kept.get((line.data, line.b, line.a))
        if before is None and mirrored is None:
            kept[line.data, line.a, line.b] = line
        else:
            _check_repeat(before or mirrored.reversed(), line, tolerance)  # type: ignore[union-attr]
        for name, values in ((line.a, line.values[0]), (line.b, line.values[-1])):
            origin, known = ends.setdefault((line.data, name), (line.origin, values))
            _check_end(name, first, (origin, known), (line.origin, values), tolerance)
    return list(kept.values())


def _check_line(line: Line) -> None:
    if not np.isfinite(line.values).all():
        point, column = (int(i) for i in np.argwhere(~np.isfinite(line.values))[0])
        what = ("loss", *line.metrics)[column]
        raise NonFiniteError(
            f"{line.origin}: the {what} at t = {line.t[point]:.4g} between {line.a} and {line.b} "
            f"is {line.values[point, column]}",
            remedy="look for overflow in the run that wrote it; remove the line to go on without",
        )
    if not np.isfinite(line.distance) or line.distance < 0:
        raise NonFiniteError(f"{line.origin}: the distance is {line.distance}")
    ends = abs(line.t[0]) < 1e-6 and abs(line.t[-1] - 1) < 1e-6
    if len(line.t) < 2 or not ends or any(a >= b for a, b in pairwise(line.t)):
        raise DataError(
            f"{line.origin}: the points between {line.a} and {line.b} do not go from one model to "
            f"the other: t = {', '.join(f'{t:.4g}' for t in line.t)}",
            remedy="the log is cut short, or a point of it is missing: walk this line again",
        )


def _check_columns(first: Line, line: Line) -> None:
    if line.metrics != first.metrics:
        raise DataError(
            f"{line.origin} has the metrics {', '.join(line.metrics) or 'none'}, {first.origin} "
            f"has {', '.join(first.metrics) or 'none'}",
            remedy="read logs of different data sets from folders of their own",
        )
    if len(line.t) != len(first.t) or np.abs(line.t - first.t).max() > 1e-6:
        raise DataError(
            f"{line.origin} has {len(line.t)} points, {first.origin} has {len(first.t)}"
            if len(line.t) != len(first.t)
            else f"{line.origin} and {first.origin} have their points at different places",
            remedy="lines can be compared only where they were walked alike: a point is missing, "
            "or these are two experiments",
        )


def _check_repeat(before: Line, line: Line, tolerance: float) -> None:
    worst = float(np.abs(before.values - line.values).max())
    apart = abs(before.distance - line.distance) > 1e-3 * max(before.distance, line.distance)
    if worst > tolerance or apart:
        what = (
            f"distances {before.distance:g} and {line.distance:g}"
            if apart
            else f"values up to {worst:.4g} apart"
        )
        raise DataError(
            f"{before.origin} and {line.origin} both hold the line between {line.a} and {line.b} "
            f"on {line.data}, with {what}",
            remedy="remove the one that does not belong to this experiment",
        )


def _check_end(
    name: str, columns: Line, one: tuple[str, Floats], two: tuple[str, Floats], tolerance: float
) -> None:
    worst = np.abs(one[1] - two[1])
    if worst.max() <= tolerance:
        return
    k = int(worst.argmax())
    what = ("loss", *columns.metrics)[k]
    raise DataError(
        f"two files disagree about model {name} on {columns.data}: its {what} is {one[1][k]:.6g} "
        f"in {one[0]} and {two[1][k]:.6g} in {two[0]}",
        remedy="they come from different models or data: remove one, or say tolerance "
        "(--tolerance) if the difference is known",
    )


def lines_of(connection: Connection, data: str) -> list[Line]:
    """The lines of a connection on one of its data sets, in the order of its pairs."""
    own = ("data", "a", "b", "t", "loss")
    chosen = connection.curves[connection.curves.data == data]
    metrics = tuple(
        str(name)
        for name in chosen.columns
        if name not in own
        and not str(name).endswith(("_low", "_high"))
        and bool(chosen[name].notna().all())  # a metric of another data set
    )
    distances = {
        (a, b): float(d)
        for name, a, b, d in connection.pairs[["data", "a", "b", "distance"]].itertuples(
            index=False
        )
        if name == data
    }
    return [
        Line(
            a=str(a),
            b=str(b),
            data=data,
            distance=distances[a, b],
            metrics=metrics,
            t=rows["t"].to_numpy(dtype=np.float64),
            values=rows[["loss", *metrics]].to_numpy(dtype=np.float64),
            origin=f"{a}-{b}",
        )
        for (a, b), rows in chosen.groupby(["a", "b"], sort=False)
    ]
