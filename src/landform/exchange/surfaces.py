"""The pickles of `interpolate_2d`: one quantity on a plane through three models.

    ((X, Y, F), {"w0": (0, 0), "w1": (1, 0), "w2": (r, s)})

X and Y (n, n) are numpy's `meshgrid` of the coordinates, F[i, j] the value at x_i and y_j: its
first index is x, so F is transposed against X, Y and against landform's grids (len(y), len(x)).
Loss, accuracy and calibration error of a plane are three files of one name,
`[AllData_]<data>_<split>_<anchor>_<base1>_<base2>_<range>_{loss,acc,ece}_surface.pkl`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from landform.errors import ConfigError, DataError, NonFiniteError
from landform.exchange.pickles import read_pickle, write_pickle
from landform.geometry.surface import Surface

__all__ = ["read_surfaces", "write_surfaces"]

Floats = NDArray[np.float64]

_NAME = re.compile(
    r"(?:(?P<all>AllData)_)?(?P<data>[A-Za-z0-9.-]+)_(?P<split>\w+?)_(?P<models>[^_]+_[^_]+_[^_]+)"
    r"_(?P<range>[\d.]+)_(?P<metric>loss|acc|accuracy|ece)_surface$",
    re.I,
)
_ENDING = re.compile(r"_(loss|acc|accuracy|ece)(?:_surface)?$", re.I)
_METRICS = {"acc": "accuracy"}
_LETTERS = {"accuracy": "acc"}


@dataclass(frozen=True, eq=False)
class _Sheet:
    """One file: a quantity on a plane."""

    file: Path
    data: str
    metric: str
    names: tuple[str, ...]
    x: Floats
    y: Floats
    values: Floats
    """(len(y), len(x))"""
    points: dict[str, tuple[float, float]]


def read_surfaces(
    paths: str | Path | Sequence[str | Path], *, allow_pickle: bool = False, data: str | None = None
) -> Surface:
    """One `Surface` from the pickles of a plane: its quantities, on one data set or on several.

    `paths` are the files, or their folder; they are read without being run, unless `allow_pickle`.
    Data set, quantity and the names of the models are taken from the names of the files. One of
    the quantities must be the loss, and the grids and models must be the same (`DataError` naming
    two files otherwise). Intervals are NaN, and so is the length of the unit, which the files do
    not tell.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    if not paths:
        raise ConfigError("no surface files were given", remedy="name the _surface.pkl files")
    sheets = [_sheet(Path(path), allow_pickle, data) for path in paths]
    first = sheets[0]
    for other in sheets[1:]:
        _check_same(first, other)
    tables = []
    for name in dict.fromkeys(sheet.data for sheet in sheets):
        tables.append(_table(name, [sheet for sheet in sheets if sheet.data == name]))
    names = first.names
    return Surface(
        names=names,
        data=tuple(dict.fromkeys(sheet.data for sheet in sheets)),
        kind="classification",
        mode="plane",
        x=tuple(map(float, first.x)),
        y=tuple(map(float, first.y)),
        unit=float("nan"),
        table=pd.concat(tables, ignore_index=True),
        points=pd.DataFrame(
            [(name, *place) for name, place in zip(names, first.points.values(), strict=True)],
            columns=["name", "x", "y"],
        ),
        evaluations=len(first.x) * len(first.y),
        provenance={"imported": [str(path) for path in paths]},
    )


def _sheet(file: Path, allow_pickle: bool, data: str | None) -> _Sheet:
    value = read_pickle(file, allow_pickle=allow_pickle)
    try:
        (grid_x, grid_y, values), locations = value
        x, y, heights = (np.asarray(part, dtype=np.float64) for part in (grid_x, grid_y, values))
        points = {str(k): (float(v[0]), float(v[1])) for k, v in dict(locations).items()}
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{file} does not hold a surface ({error})",
            remedy="a surface pickle is ((X, Y, F), {'w0': (0, 0), 'w1': ..., 'w2': ...})",
        ) from error
    axis_x, axis_y = _axes(file, x, y)
    shape = (len(axis_x), len(axis_y))
    if heights.shape != shape:
        raise DataError(
            f"{file}: the values have shape {heights.shape}, expected {shape}, one for each point "
            "of the grid",
            remedy="the surface is truncated: compute it again",
        )
    if not np.isfinite(heights).all():
        i, j = (int(k) for k in np.argwhere(~np.isfinite(heights))[0])
        raise NonFiniteError(
            f"{file}: the value at ({axis_x[i]:.4g}, {axis_y[j]:.4g}) is {heights[i, j]}"
        )
    if len(points) != 3:
        raise DataError(f"{file}: {len(points)} models on the plane, expected three")
    described = _NAME.match(file.stem)
    ending = _ENDING.search(file.stem)
    metric = ending[1].lower() if ending else "loss"
    names = tuple(described["models"].split("_")) if described else tuple(points)
    told = ""
    if described:
        told = f"{described['data']}{'-all' if described['all'] else ''}:{described['split']}"
    stem = file.stem[: ending.start()] if ending else file.stem
    name = data or told or stem
    metric = _METRICS.get(metric, metric)
    return _Sheet(file, name, metric, names, axis_x, axis_y, heights.T, points)


def _axes(file: Path, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coordinates of the columns and rows of a meshgrid."""
    if x.ndim == 1 and y.ndim == 1:
        axes = x, y
    elif x.ndim == 2 and x.shape == y.shape and x.size:
        axes = x[0], y[:, 0]
        if not (np.array_equal(x, np.tile(axes[0], (len(axes[1]), 1))) and (axes[1] == y.T).all()):
            raise DataError(f"{file}: X and Y are not a grid", remedy="expected numpy's meshgrid")
    else:
        raise DataError(f"{file}: X has shape {x.shape} and Y {y.shape}, expected a grid")
    for name, axis in zip("xy", axes, strict=True):
        if len(axis) < 2 or not np.isfinite(axis).all() or (np.diff(axis) <= 0).any():
            raise DataError(f"{file}: the coordinates {name} do not rise along the grid")
    return axes


def _check_same(first: _Sheet, other: _Sheet) -> None:
    same = (
        np.array_equal(first.x, other.x)
        and np.array_equal(first.y, other.y)
        and first.names == other.names
        and np.allclose(list(first.points.values()), list(other.points.values()), atol=1e-6)
    )
    if not same:
        raise DataError(
            f"{first.file} and {other.file} are of different planes",
            remedy="read planes through other models, or with other grids, one at a time",
        )


def _table(name: str, sheets: Sequence[_Sheet]) -> pd.DataFrame:
    metrics = [sheet.metric for sheet in sheets]
    repeated = [m for m in metrics if metrics.count(m) > 1]
    if repeated or "loss" not in metrics:
        files = ", ".join(sheet.file.name for sheet in sheets)
        raise DataError(
            f"the {repeated[0]} of {name} is given twice: {files}"
            if repeated
            else f"no file holds the loss of {name}: {files}",
            remedy="name the _loss_surface.pkl of the plane, and each file once",
        )
    x, y = sheets[0].x, sheets[0].y
    columns: dict[str, Any] = {
        "data": name,
        "x": np.tile(x, len(y)),
        "y": np.repeat(y, len(x)),
    }
    for sheet in sorted(sheets, key=lambda sheet: (sheet.metric != "loss", sheet.metric)):
        columns[sheet.metric] = sheet.values.reshape(-1)
        columns |= {f"{sheet.metric}_low": float("nan"), f"{sheet.metric}_high": float("nan")}
    return pd.DataFrame({**columns, "evaluated": True})


def write_surfaces(
    surface: Surface, folder: str | Path, *, metrics: Sequence[str] | None = None
) -> list[Path]:
    """Write a plane through three models as such pickles, one per data set and quantity.

    `metrics` are the columns to write (default: loss, and accuracy and ece where there are any).
    The models become w0, w1 and w2 in the order of the surface. Returns the files written:
    `<task>_<split>_<model>_<model>_<model>_<range>_<quantity>_surface.pkl`.
    """
    if len(surface.points) != 3:
        raise ConfigError(
            f"the surface has {len(surface.points)} models, and the format knows three",
            remedy="export a plane through three models (landform surface --through A B C)",
        )
    import torch

    names = [str(name) for name in surface.points["name"]]
    places = surface.points[["x", "y"]].to_numpy(dtype=np.float64)
    locations = {f"w{k}": (float(px), float(py)) for k, (px, py) in enumerate(places)}
    grid = np.meshgrid(np.array(surface.x), np.array(surface.y))
    written = []
    for data in surface.data:
        known = [m for m in ("loss", "accuracy", "ece") if _has(surface, m, data)]
        for metric in metrics or known:
            # Indexed [x, y], and a tensor of torch: that is what the original's plots take.
            values = torch.from_numpy(surface.grid(metric, data).T.astype(np.float32).copy())
            task, _, split = data.partition(":")
            reach = f"{max(map(abs, surface.x)):g}"
            title = "_".join((_word(task), split or "all", *map(_word, names), reach))
            path = Path(folder) / f"{title}_{_LETTERS.get(metric, metric)}_surface.pkl"
            write_pickle(path, ((*grid, values), locations))
            written.append(path)
    return written


def _has(surface: Surface, metric: str, data: str) -> bool:
    rows = surface.table[surface.table.data == data]
    return metric in rows and bool(rows[metric].notna().all())


def _word(name: str) -> str:
    """A part of a file name without the mark that separates the parts."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
