"""Grids of a plane: coordinates that hit the models, and cells that need not be evaluated.

Coordinates are the coefficients (g, h) of theta = origin + g u1 + h u2. A surface that misses the
very models it is about (an even number of points on [-R, R] never hits 0) shows a landscape without
its landmarks, so every model is a cell of the grid here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from landform.errors import ConfigError

__all__ = ["Cell", "Grid", "evaluate_cells", "hits", "regular", "with_coordinate"]

Cell = tuple[int, int]
"""(column, row): indices into x and y"""
Evaluate = Callable[[Sequence[Cell]], np.ndarray]
"""cells -> (cells, K): the K numbers of each"""

_DIGITS = 12  # coordinates that two grids share are the same number, whatever their sizes
_HIT = 1e-9
_UNKNOWN = 1e300  # a second derivative beyond all; times 0 it is 0, as infinity is not


@dataclass(frozen=True)
class Grid:
    """Rising coordinates of both axes, and which of them a model needs."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    models: tuple[Cell, ...]
    """cells of the models; none where the grid was asked to miss them"""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, row by row, to and fro."""
        return _snake(product(range(len(self.x)), range(len(self.y))))

    def lattice(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Column and row numbers of a coarse grid: every 2^level-th, the last, and the models'."""
        sizes = len(self.x), len(self.y)
        columns, rows = (
            np.unique([*range(0, n, 2**level), n - 1, *(cell[axis] for cell in self.models)])
            for axis, n in enumerate(sizes)
        )
        return columns, rows


def regular(size: int, extent: tuple[float, float], needed: Sequence[float]) -> tuple[float, ...]:
    """`size` equally spaced coordinates over `extent`, which hit those of the models exactly.

    `ConfigError` where one of `needed` lies outside or between two coordinates; it names sizes
    that work.
    """
    low, high = extent
    outside = [value for value in needed if not low <= value <= high]
    if outside:
        raise ConfigError(
            f"a grid from {low:g} to {high:g} (option extent or range) leaves the model at "
            f"{outside[0]:g} outside",
            remedy=f"use an extent that holds {' and '.join(f'{v:g}' for v in needed)}, "
            "such as -0.5 1.5",
        )
    missed = _missed(size, extent, needed)
    if missed:
        raise ConfigError(
            f"a grid of size {size} (option size or density) over {low:g} to {high:g} misses the "
            f"models: no coordinate is {' or '.join(f'{v:g}' for v in missed)}",
            remedy=_sizes_that_hit(size, extent, needed),
        )
    step = (high - low) / (size - 1)
    coordinates = [round(low + k * step, _DIGITS) + 0.0 for k in range(size)]
    for value in needed:
        coordinates[round((value - low) / step)] = float(value)
    return tuple(coordinates)


def hits(size: int, extent: tuple[float, float], value: float) -> bool:
    """Whether `regular` coordinates have `value` among them."""
    return extent[0] <= value <= extent[1] and not _missed(size, extent, [value])


def with_coordinate(
    coordinates: Sequence[float], value: float, needed: Sequence[float], name: str
) -> tuple[float, ...]:
    """The coordinates with `value` among them: the nearest one is moved onto it.

    The ends, which say how far the grid goes, and coordinates in `needed` do not move: where the
    nearest is one of these, `value` comes in addition. `ConfigError` for a `value` beyond the ends.
    """
    low, high = coordinates[0], coordinates[-1]
    if not low <= value <= high:
        raise ConfigError(
            f"a grid from {low:g} to {high:g} (option extent or range) leaves {name} outside: it "
            f"stands at x = {value:.4g}",
            remedy=f"use an extent that holds {value:.3g}, or give the models in another order",
        )
    nearest = min(coordinates, key=lambda other: abs(other - value))
    if nearest == value:
        return tuple(coordinates)
    kept = [c for c in coordinates if c != nearest or c in (low, high, *needed)]
    return tuple(sorted([*kept, value]))


def _missed(size: int, extent: tuple[float, float], needed: Sequence[float]) -> list[float]:
    low, high = extent
    steps = [(value - low) / (high - low) * (size - 1) for value in needed]
    return [v for v, step in zip(needed, steps, strict=True) if abs(step - round(step)) > _HIT]


def _sizes_that_hit(size: int, extent: tuple[float, float], needed: Sequence[float]) -> str:
    found = [n for n in range(3, max(8 * size, 101)) if not _missed(n, extent, needed)]
    near = sorted(sorted(found, key=lambda n: abs(n - size))[:3])
    if not near:
        return "use an extent of round numbers, such as -0.5 1.5 with size 13"
    return f"sizes that hit them over this extent: {', '.join(map(str, near))}, ..."


def _snake(cells: Iterator[Cell] | Sequence[Cell]) -> tuple[Cell, ...]:
    return tuple(sorted(cells, key=lambda cell: (cell[1], cell[0] * (-1) ** cell[1])))


# --- from coarse to fine ---------------------------------------------------------------------


def evaluate_cells(
    grid: Grid,
    evaluate: Evaluate,
    *,
    levels: int = 0,
    tolerance: float = 0.1,
    judged: Sequence[tuple[int, int]] = ((0, 0),),
) -> tuple[np.ndarray, np.ndarray]:
    """The K numbers of every cell, (rows, columns, K), and which cells were evaluated.

    With `levels` 0 all are. Otherwise the lattice of every 2^levels-th coordinate is evaluated
    first, and each finer lattice is filled by bilinear interpolation of the one before, where that
    is good enough. The error of interpolation at a new cell is estimated from the second
    differences of the lattice around it (linear interpolation between x1 and x2 errs by
    f'' (x - x1)(x2 - x) / 2), and the cell is evaluated where the estimate exceeds

        tolerance (F_high - F_min)

    F_min the lowest value found, F_high the upper end of the interval of the predicted value: an
    error counts beside the height above the valley floor, and beside the noise of the data. Where
    an evaluated cell turns out to differ from its prediction by more than that, its neighbours are
    evaluated too, and so on. `judged` are (value, upper end) columns among the K that are watched.
    """
    columns, rows = grid.lattice(levels)
    coarse = _snake(product(columns.tolist(), rows.tolist()))
    found = evaluate(coarse)
    values = np.full((len(grid.y), len(grid.x), found.shape[1]), np.nan)
    done = np.zeros(values.shape[:2], dtype=bool)
    _put(values, done, coarse, found)
    for level in range(levels - 1, -1, -1):
        _refine(grid, level, values, done, evaluate, tolerance, judged)
    return values, done


def _put(values: np.ndarray, done: np.ndarray, cells: Sequence[Cell], found: np.ndarray) -> None:
    index = np.array(cells).T
    values[index[1], index[0]] = found
    done[index[1], index[0]] = True


def _refine(
    grid: Grid,
    level: int,
    values: np.ndarray,
    done: np.ndarray,
    evaluate: Evaluate,
    tolerance: float,
    judged: Sequence[tuple[int, int]],
) -> None:
    """Fill the lattice of `level` from the next coarser one (see `evaluate_cells`)."""
    columns, rows = grid.lattice(level)
    fine = np.ix_(rows, columns)
    predicted, error = _predict(grid, level, values, [value for value, _ in judged])
    new = np.isnan(values[fine][..., judged[0][0]])
    values[fine] = np.where(new[..., None], predicted, values[fine])
    lowest = np.array([values[..., value][done].min() for value, _ in judged])
    highest = np.array([values[..., value][done].max() for value, _ in judged])
    height = predicted[..., [high for _, high in judged]] - lowest
    # At the lowest cell of data without noise rounding alone would be too much.
    allowed = tolerance * np.maximum(height, 1e-9 * (highest - lowest))
    wanted = new & (error > allowed).any(-1)
    while wanted.any():
        places = [(int(columns[i]), int(rows[j])) for j, i in np.argwhere(wanted)]
        cells = _snake(places)
        _put(values, done, cells, evaluate(cells))
        here = values[fine][..., [value for value, _ in judged]]
        guess = predicted[..., [value for value, _ in judged]]
        surprise = wanted & (np.abs(here - guess) > allowed).any(-1)
        wanted = _neighbours(surprise) & new & ~done[fine]


def _neighbours(mask: np.ndarray) -> np.ndarray:
    """Where a cell or one of its eight neighbours is set."""
    padded = np.pad(mask, 1)
    m, n = mask.shape
    near = [padded[a : a + m, b : b + n] for a in range(3) for b in range(3)]
    return np.asarray(np.logical_or.reduce(near))


def _predict(
    grid: Grid, level: int, values: np.ndarray, judged: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear interpolation of the coarser lattice on that of `level`, (rows, columns, K), and
    the estimate of its error, (rows, columns, judged)."""
    coarse, fine = grid.lattice(level + 1), grid.lattice(level)
    known = values[np.ix_(coarse[1], coarse[0])]
    (left, right, u, across), (below, above, v, along) = (
        _brackets(np.array(axis), old, new)
        for axis, old, new in zip((grid.x, grid.y), coarse, fine, strict=True)
    )
    between = (1 - u)[None, :, None] * known[:, left] + u[None, :, None] * known[:, right]
    predicted = (1 - v)[:, None, None] * between[below] + v[:, None, None] * between[above]
    f = known[..., list(judged)]
    bends_x = _bends(np.array(grid.x)[coarse[0]], f.swapaxes(0, 1)).swapaxes(0, 1)
    bends_y = _bends(np.array(grid.y)[coarse[1]], f)
    error = np.zeros((len(fine[1]), len(fine[0]), len(judged)))
    for bends, factor in ((bends_x, across[None, :, None]), (bends_y, along[:, None, None])):
        corners = [bends[a][:, b] for a in (below, above) for b in (left, right)]
        error += factor * np.maximum.reduce(corners)
    return predicted, error


def _brackets(
    axis: np.ndarray, coarse: np.ndarray, fine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For every fine coordinate x: the numbers of the coarse ones at both sides (the same twice
    where it is one of them), how far x is on the way between, and (x - x1)(x2 - x) / 2."""
    right = np.searchsorted(coarse, fine)
    left = np.where(coarse[right] == fine, right, right - 1)
    x, x1, x2 = axis[fine], axis[coarse[left]], axis[coarse[right]]
    gap = np.where(x2 > x1, x2 - x1, 1.0)
    return left, right, (x - x1) / gap, (x - x1) * (x2 - x) / 2


def _bends(axis: np.ndarray, f: np.ndarray) -> np.ndarray:
    """|f''| along the first axis from second differences, the ends as their neighbours; unknown
    where there are fewer than three coordinates."""
    if len(axis) < 3:
        return np.full(f.shape, _UNKNOWN)
    shape = (-1,) + (1,) * (f.ndim - 1)
    slopes = np.diff(f, axis=0) / np.diff(axis).reshape(shape)
    inner = 2 * np.abs(np.diff(slopes, axis=0)) / (axis[2:] - axis[:-2]).reshape(shape)
    return np.concatenate([inner[:1], inner, inner[-1:]])
