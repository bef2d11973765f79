"""Climbing the loss inside a region: projected ascent that keeps the best point it has seen.

In the coordinates u of a region (see `landform.geometry.regions`), with h = dL/du and r the radius,

    u <- project(u + alpha_k d(h)),      alpha_k = step_size 2 r (1 - k / steps),   k = 0, 1, ...

    optimizer    d(h) in a box                      d(h) in a ball
    sign         sign(h)                            sign(h) / sqrt(p)
    gradient     h sqrt(p) / ||h||_2                h / ||h||_2
    adam         m / (sqrt(s) + 1e-12)              the same / sqrt(p)
    sgd          alpha_k d(h) is learning_rate A^T g, in the parameters' own units

sign in a box and gradient in a ball are steepest ascent. The first step from the centre is as long
as the region is wide: it ends in the corner sign(g) of the box (the first-order optimum), or at
rho g / ||g|| (the step of SAM). Long steps between corners never lose on a convex loss; the
shrinking ones that follow refine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from landform.geometry.loop import LossField
from landform.geometry.regions import Region

__all__ = ["Ascent", "Climb", "ClimbedField", "Optimizer", "climb"]

Optimizer = Literal["sign", "gradient", "adam", "sgd"]


class ClimbedField(LossField, Protocol):
    """What is climbed: `landform.evaluation.field.Field`, or anything with its verbs."""

    dropout: bool

    def loss(self, batches: Any = None) -> float:
        """The loss here, of all examples or of these."""

    def gradient(self, batches: Any = None) -> tuple[float, Tensor]:
        """The loss here and its gradient (n,), of all examples or of these."""


@dataclass(frozen=True)
class Ascent:
    """How a region is climbed."""

    steps: int
    optimizer: Optimizer | None = None
    """None: steepest ascent in the region's own norm"""
    step_size: float = 1.0
    """of the first step, in widths of the region"""
    learning_rate: float = 8e-5
    """of sgd"""
    batch_rows: int | None = None
    """rows that each gradient is computed on; None: all"""
    in_order: bool = False
    """batches are consecutive rows, not random ones"""
    dropout: bool = False
    """gradients with dropout on, as in training; losses are always without"""
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True, eq=False)
class Climb:
    """What a climb found."""

    u: Tensor
    """the point kept, (p,)"""
    loss: float
    """its loss on the data that were climbed on"""
    losses: tuple[float, ...]
    """of every iterate, `steps` + 1 of them, the start first"""
    first_order: float | None
    """the first-order gain at the centre (`Region.gain`); None for a climb from elsewhere"""


def climb(field: ClimbedField, region: Region, ascent: Ascent, restart: int = 0) -> Climb:
    """Maximise the loss over the region from start number `restart` (0: the centre).

    The point kept is the best of all iterates on the whole data (with keep "last", the last one).
    Leaves the model where the climb ended.
    """
    optimizer = ascent.optimizer or ("sign" if region.norm == "linf" else "gradient")
    mover = _Mover(region, ascent, optimizer)
    u = region.start(restart)
    best_u, best, losses, first_order = u, -math.inf, [], None
    rows = np.random.default_rng([region.seed, restart])
    with _noise(ascent.dropout, region.seed, restart):
        for step in range(ascent.steps):
            region.place(u, field.flat)
            loss, slope = _measure(field, ascent, step, rows)
            h = region.pull(slope)
            if step == 0 and restart == 0:
                first_order = region.gain(_whole_slope(field, region, ascent, h))
            losses.append(loss)
            if loss > best:
                best_u, best = u, loss
            u = region.project(u + mover.move(h, step))
        region.place(u, field.flat)
        losses.append(field.loss())
    if losses[-1] > best or ascent.keep == "last":
        best_u, best = u, losses[-1]
    return Climb(best_u, best, tuple(losses), first_order)


def _measure(
    field: ClimbedField, ascent: Ascent, step: int, rows: np.random.Generator
) -> tuple[float, Tensor]:
    """The loss on all rows, and the gradient on all of them or on those of this step."""
    if ascent.batch_rows is None and not ascent.dropout:
        return field.gradient()
    loss = field.loss()  # iterates can be compared on the same rows only, and without noise
    batches = None
    if ascent.batch_rows is not None:
        count = min(ascent.batch_rows, field.size)
        if ascent.in_order:
            begin = step * count % field.size
            chosen = np.arange(begin, min(begin + count, field.size))
        else:
            chosen = rows.choice(field.size, count, replace=False)
        batches = field.batches(chosen)
    field.dropout = ascent.dropout
    try:
        return loss, field.gradient(batches)[1]
    finally:
        field.dropout = False


def _whole_slope(field: ClimbedField, region: Region, ascent: Ascent, h: Tensor) -> Tensor:
    """dL/du on all rows without dropout: `h` where it is that already."""
    if ascent.batch_rows is None and not ascent.dropout:
        return h
    return region.pull(field.gradient()[1])


class _Mover:
    """The steps of one climb."""

    def __init__(self, region: Region, ascent: Ascent, optimizer: Optimizer) -> None:
        self.region, self.ascent, self.optimizer = region, ascent, optimizer
        self.root = math.sqrt(region.dimension)
        if optimizer == "adam":
            self.mean, self.square = region.zero(), region.zero()

    def move(self, h: Tensor, step: int) -> Tensor:
        """alpha_k d(h)."""
        if self.optimizer == "sgd":
            # h = T A^T g and v = A T u: a step of lr A^T g in v is one of lr h / T^2 in u.
            squares = self.region.weights.square()
            return torch.where(squares > 0, self.ascent.learning_rate * h / squares, 0.0)
        decay = 1 - step / self.ascent.steps
        return self._direction(h, step) * (self.ascent.step_size * 2 * self.region.radius * decay)

    def _direction(self, h: Tensor, step: int) -> Tensor:
        box = self.region.norm == "linf"
        if self.optimizer == "gradient":
            norm = float(torch.linalg.vector_norm(h.double()))
            return h * ((self.root if box else 1.0) / norm) if norm > 0 else torch.zeros_like(h)
        entries = h.sign() if self.optimizer == "sign" else self._adam(h, step)
        return entries if box else entries / self.root

    def _adam(self, h: Tensor, step: int) -> Tensor:
        self.mean.lerp_(h, 1 - 0.9)
        self.square.lerp_(h.square(), 1 - 0.999)
        mean = self.mean / (1 - 0.9 ** (step + 1))
        square = self.square / (1 - 0.999 ** (step + 1))
        # The usual 1e-8 would be as large as the gradients of a well-trained model.
        return mean / (square.sqrt() + 1e-12)


@contextmanager
def _noise(dropout: bool, seed: int, restart: int) -> Iterator[None]:
    """Dropout draws from torch's global generator: seeded here, and left as it was found."""
    if not dropout:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed * 1_000_003 + restart)
        yield
