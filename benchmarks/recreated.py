"""What cannot be installed from a package index, as the originals do it, in our own words.

`equal_batches` and `lanczos_largest` stand for pytorch-hessian-eigenthings 1.0.0a6: a product
differentiates the mean loss of a batch twice, anew each time, and batches count the same whatever
their size; Lanczos keeps its vectors and orthogonalises against all of them; the trace is
Hutchinson's mean. Nothing here uses landform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Any], Tensor]
"""The mean loss of one batch, with its graph."""


def equal_batches(
    loss: Loss, batches: Sequence[Any], parameters: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """v -> (mean over batches of the Hessian of their mean loss) v."""
    sizes = [parameter.numel() for parameter in parameters]

    def product(v: Tensor) -> Tensor:
        parts = [x.view_as(p) for x, p in zip(v.split(sizes), parameters, strict=True)]
        total = torch.zeros_like(v)
        for batch in batches:
            slopes = torch.autograd.grad(loss(batch), parameters, create_graph=True)
            twice = torch.autograd.grad(slopes, parameters, parts)
            total += torch.cat([part.flatten() for part in twice])
        return total / len(batches)

    return product


def lanczos_largest(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """(Ritz value of largest magnitude, its vector) after `steps` steps from `start`."""
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(steps):
        w = product(basis[-1])
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):
            for u in basis:
                w -= (u @ w) * u
        length = float(w.norm())
        if step == steps - 1 or length < 1e-12:
            break
        beside.append(length)
        basis.append(w / length)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    best = int(values.abs().argmax())
    vector = sum(float(c) * u for c, u in zip(vectors[:, best], basis, strict=True))
    assert isinstance(vector, Tensor)
    return values[best], vector


def hutchinson(
    product: Callable[[Tensor], Tensor], like: Tensor, count: int, seed: int = 0
) -> tuple[float, float]:
    """(trace, its standard error) from `count` random sign vectors."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        v = torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1
        found.append(float(v @ product(v)))
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), float(values.std()) / math.sqrt(count)
