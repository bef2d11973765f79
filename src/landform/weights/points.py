"""Points and directions of parameter space that are not checkpoints on a disk.

A mix names its members by fingerprint. Besides checkpoints these are *vertices* (the bends of a
trained path, a corner of a simplex: tensors that landform made) and *directions* (drawn from a seed
around a checkpoint, so that nothing of them needs to be kept).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from landform.errors import SpaceMismatchError
from landform.store.fingerprint import fingerprint
from landform.weights.checkpoint import Checkpoint
from landform.weights.space import ParameterSpace

__all__ = ["Direction", "Member", "Normalise", "Vertex", "random_direction"]

Normalise = Literal["filter", "tensor", "none"]
ReadPoint = Callable[[str], Tensor]


class Member(Protocol):
    """What a mix is made of, checkpoints aside: named, and turned into a flat vector on demand."""

    @property
    def spec(self) -> str:
        """As people are told of it."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that its flat vector depends on."""

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """The vector, shape (space.numel,); `read` gives that of a checkpoint's fingerprint."""


@dataclass(frozen=True, eq=False)
class Vertex:
    """A point that landform made, as a flat vector of `space`."""

    spec: str
    space: ParameterSpace
    values: Tensor
    """(space.numel,), on the CPU"""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names, the shapes and the values."""
        kept = self.values.detach().cpu().contiguous()
        return fingerprint((self.space.names, self.space.shapes, kept.numpy()))

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """Its vector in the number format of `space`; `SpaceMismatchError` for other tensors."""
        if (self.space.names, self.space.shapes) != (space.names, space.shapes):
            space.check_same(self.space, "the model", self.spec)
        return self.values.to(space.dtype)


@dataclass(frozen=True)
class Direction:
    """A random direction around a checkpoint theta: Gaussian, then given theta's own scale.

    filter      d_j <- d_j ||theta_j|| / ||d_j|| for every filter j (Li et al. 2018, section 4): a
                row of a matrix, which is what one output unit reads, or one token's embedding
    tensor      the same for whole tensors
    none        entries as drawn, N(0, 1)

    Biases and the scales of norms (tensors of one axis) stay where they are unless `one_axis`.
    """

    around: Checkpoint
    seed: int
    normalise: Normalise = "filter"
    one_axis: bool = False

    @property
    def spec(self) -> str:
        """As people are told of it."""
        return f"random direction {self.seed} around {self.around.spec}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the checkpoint and the options: they decide the vector."""
        return fingerprint((self.around.fingerprint, self.seed, self.normalise, self.one_axis))

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """The direction's vector, shape (space.numel,)."""
        return random_direction(
            space,
            read(self.around.fingerprint),
            self.seed,
            normalise=self.normalise,
            one_axis=self.one_axis,
        )


def random_direction(
    space: ParameterSpace,
    point: Tensor,
    seed: int,
    *,
    normalise: Normalise = "filter",
    one_axis: bool = False,
) -> Tensor:
    """A Gaussian direction with the scale of `point` (see `Direction`), shape (space.numel,).

    Drawn on the CPU in float32, tensor by tensor, so that it is the same on every device and in
    every number format.
    """
    if point.shape != (space.numel,):
        raise SpaceMismatchError(f"a point of {space.numel} entries, not {tuple(point.shape)}")
    generator = torch.Generator().manual_seed(seed)
    direction = torch.zeros_like(point)
    here, there = space.unflatten(point), space.unflatten(direction)
    for name, shape in zip(space.names, space.shapes, strict=True):
        drawn = torch.randn(shape, generator=generator).to(point)
        if len(shape) > 1 or one_axis:
            there[name].copy_(_scaled(drawn, here[name], normalise))
    return direction


def _scaled(drawn: Tensor, theta: Tensor, normalise: Normalise) -> Tensor:
    if normalise == "none":
        return drawn
    rows = drawn.shape[0] if normalise == "filter" and drawn.dim() > 1 else 1
    d, t = drawn.reshape(rows, -1), theta.reshape(rows, -1)
    length = torch.linalg.vector_norm(d.double(), dim=1, keepdim=True).clamp(min=1e-300)
    target = torch.linalg.vector_norm(t.double(), dim=1, keepdim=True)
    scaled: Tensor = d * (target / length).to(d.dtype)
    return scaled.view(drawn.shape)
