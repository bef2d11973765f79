"""Volumes of simplexes in parameter space, and the cliques of a complex.

A simplex of m vertices has (m - 1)-dimensional volume V with

    V^2 = |det CM| / ( ((m - 1)!)^2 2^(m - 1) ),

CM the Cayley-Menger matrix of the squared distances, bordered with ones. The distances are all that
is needed, so volumes and their gradients cost nothing beside a forward pass, however many
parameters a vertex has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landform.errors import ConfigError

__all__ = ["OFFSET", "log_volume", "maximal_cliques", "simplex_volume", "total_volume"]

Floats = npt.NDArray[np.float64]
Cliques = Sequence[Sequence[int]]

OFFSET = 1e-4
"""Added to the volume before its logarithm is taken, as in Benton et al. 2021."""


def simplex_volume(squared: npt.ArrayLike) -> float:
    """Volume of the simplex with these squared distances (m, m) between its m vertices.

    Two vertices: their distance; three: the area; four: the volume of the tetrahedron.
    """
    matrix = torch.as_tensor(np.asarray(squared, dtype=np.float64))
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ConfigError(f"squared distances of shape {tuple(matrix.shape)}, expected (m, m)")
    return math.sqrt(float(_squared_volume(matrix)))


def _squared_volume(squared: Tensor) -> Tensor:
    m = len(squared)
    bordered = squared.new_ones(m + 1, m + 1)
    bordered[:m, :m] = squared
    bordered[m, m] = 0.0
    volume: Tensor = torch.linalg.det(bordered).abs()
    return volume / (math.factorial(m - 1) ** 2 * 2.0 ** (m - 1))


def _total(squared: Tensor, cliques: Cliques, squares: bool) -> Tensor:
    largest = max(map(len, cliques))
    parts = []
    for clique in cliques:
        if len(clique) == largest:
            index = torch.tensor(list(clique))
            parts.append(_squared_volume(squared[index][:, index]))
    volumes = torch.stack(parts)
    if not squares:  # the root has no slope at 0: a flat simplex pulls nowhere
        whole = volumes > 0
        volumes = torch.where(whole, torch.where(whole, volumes, 1.0).sqrt(), 0.0)
    return volumes.sum()


def total_volume(squared: npt.ArrayLike, cliques: Cliques, *, squares: bool = False) -> float:
    """Sum of the volumes of the cliques of the largest dimension; of V^2 with `squares`."""
    return float(_total(torch.as_tensor(np.asarray(squared, float)), cliques, squares))


def log_volume(
    squared: npt.ArrayLike, cliques: Cliques, *, squares: bool = False
) -> tuple[float, float, Floats]:
    """(V, log(V + OFFSET), C): its gradient at vertex i is sum_j C_ij w_j.

    V as in `total_volume`. With S = dlog/dD + its transpose, D the squared distances, the gradient
    at w_i is sum_j 2 S_ij (w_i - w_j); so the rows of C sum to 0.
    """
    matrix = torch.tensor(np.asarray(squared, dtype=np.float64), requires_grad=True)
    volume = _total(matrix, cliques, squares)
    value = (volume + OFFSET).log()
    (slope,) = torch.autograd.grad(value, matrix)
    both = (slope + slope.T).numpy()
    both = np.where(np.isfinite(both), both, 0.0)  # the determinant of a flat simplex has no slope
    coefficients: Floats = -2.0 * both
    np.fill_diagonal(coefficients, 0.0)
    np.fill_diagonal(coefficients, -coefficients.sum(axis=1))
    return float(volume.detach()), float(value.detach()), coefficients


def maximal_cliques(adjacency: npt.ArrayLike) -> tuple[tuple[int, ...], ...]:
    """The maximal cliques of a symmetric 0/1 matrix (n, n), each sorted, in sorted order.

    Bron and Kerbosch 1973, with a pivot of most neighbours. The diagonal does not count.
    """
    matrix = np.asarray(adjacency).astype(bool)
    if matrix.ndim != 2 or not len(matrix) or not np.array_equal(matrix, matrix.T):
        raise ConfigError(
            f"the adjacency is no symmetric square matrix (shape {matrix.shape})",
            remedy="one row and one column for each vertex, 1 where two are linked",
        )
    neighbours = [set(np.flatnonzero(row)) - {i} for i, row in enumerate(matrix)]
    found: list[tuple[int, ...]] = []

    def grow(clique: set[int], candidates: set[int], excluded: set[int]) -> None:
        if not candidates and not excluded:
            found.append(tuple(sorted(int(v) for v in clique)))
            return
        pivot = max(candidates | excluded, key=lambda v: len(candidates & neighbours[v]))
        for v in sorted(candidates - neighbours[pivot]):
            grow(clique | {v}, candidates & neighbours[v], excluded & neighbours[v])
            candidates, excluded = candidates - {v}, excluded | {v}

    grow(set(), set(range(len(matrix))), set())
    return tuple(sorted(found))
