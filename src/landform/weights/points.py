"""Points and directions of parameter space that are not checkpoints on a disk.

A mix names its members by fingerprint. Besides checkpoints these are *vertices* (the bends of a
trained path, a corner of a simplex: tensors that landform made), *directions* (drawn from a seed
around a checkpoint, so that nothing of them needs to be kept; whole, or *masked*) and *grafts* (one
checkpoint under the head of another).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from landform.errors import ConfigError, SpaceMismatchError
from landform.store.fingerprint import fingerprint
from landform.weights.checkpoint import (
    Checkpoint,
    LoadConfig,
    check_same_architecture,
    load_model,
)
from landform.weights.space import ParameterSpace, check_same_buffers
from landform.weights.tuning import head_modules

__all__ = [
    "Direction",
    "Grafted",
    "HeadPart",
    "MaskedDirection",
    "Member",
    "Normalise",
    "Selection",
    "Vertex",
    "head_tensors",
    "moved_tensors",
    "random_direction",
]

# GPT-2 and its kin keep their matrices as (in, out), in layers of these names.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D = re.compile(r"(attn|attention)\.(c_attn|q_attn|c_proj)\.weight$|mlp\.c_(fc|proj)\.weight$")

Normalise = Literal["filter", "tensor", "none"]
HeadPart = Literal["last", "all"]
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
                row of a matrix, which is what one output unit reads, or one token's embedding; in
                GPT-2, whose matrices are stored (in, out), a column
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
        parts = (self.around.fingerprint, self.seed, self.normalise, self.one_axis)
        return fingerprint((*parts, "columns") if self._stores_columns else parts)

    @property
    def _stores_columns(self) -> bool:
        return self.around.config.get("model_type") in _CONV1D_MODELS

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """The direction's vector, shape (space.numel,)."""
        return random_direction(
            space,
            read(self.around.fingerprint),
            self.seed,
            normalise=self.normalise,
            one_axis=self.one_axis,
            columns=filter(_CONV1D.search, space.names) if self._stores_columns else (),
        )


class Selection(Protocol):
    """Which entries of parameter space are chosen, by a rule."""

    @property
    def spec(self) -> str:
        """As people are told of it."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the choice depends on."""

    def keep(self, space: ParameterSpace) -> Tensor:
        """Whether each entry is chosen, shape (space.numel,), bool, on the CPU."""


@dataclass(frozen=True, eq=False)
class MaskedDirection:
    """A random direction d of which only chosen entries are kept: M d, M the diagonal of 0 and 1.

    With `match_norm` it is (||d|| / ||M d||) M d: as long as the whole direction of the same seed,
    whatever the mask.
    """

    direction: Direction
    mask: Selection
    match_norm: bool = False

    @property
    def spec(self) -> str:
        """As people are told of it."""
        return f"{self.direction.spec}, masked by {self.mask.spec}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the direction and the mask."""
        parts = (self.direction.fingerprint, self.mask.fingerprint, self.match_norm)
        return fingerprint(("masked", parts))

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """The masked direction, shape (space.numel,); `ConfigError` where nothing of it is left."""
        return self.parts(space, read)[0]

    def parts(self, space: ParameterSpace, read: ReadPoint) -> tuple[Tensor, float, float]:
        """The masked direction, || M d || before it is made as long as d, and || d ||."""
        flat = self.direction.flat(space, read)
        whole = _length(flat)
        flat[~self.mask.keep(space).to(flat.device)] = 0
        left = _length(flat)
        if not left > 0:
            raise ConfigError(
                f"the mask {self.mask.spec} leaves nothing of a direction: all that it selects are "
                "tensors of one axis (biases, norms), which stay where they are",
                remedy="perturb those too (option one_axis), rank matrices alone (mask_by matrix), "
                "or take a larger mask_share",
            )
        if self.match_norm:
            flat *= whole / left
        return flat, left, whole


def _length(flat: Tensor) -> float:
    # In float64: a norm of a hundred million squares in float32 has few digits.
    return float(torch.linalg.vector_norm(flat, dtype=torch.float64))


@dataclass(frozen=True)
class Grafted:
    """A checkpoint under the head of another: what two models of two tasks have in common.

    theta_i = (theta_i of `head`) for the tensors of the head, (theta_i of `body`) for all others.
    It is a point of the space of `head`, whose head may have another number of outputs. `part` is
    `last` for the last layer alone (of RoBERTa's head `classifier.out_proj`, so that
    `classifier.dense` counts to the body, as in Qin et al. 2022), or `all` for the whole head.
    Tuned checkpoints (adapters, LoRA) are grafted as whole ones are.
    """

    body: Checkpoint
    head: Checkpoint
    part: HeadPart = "last"
    allow_pickle: bool = False
    """Read a body in pickled weights."""

    @property
    def spec(self) -> str:
        """As people are told of it."""
        return f"{self.body.spec} with the head of {self.head.spec}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the two checkpoints and which tensors are taken from which."""
        return fingerprint(("graft", self.body.fingerprint, self.head.fingerprint, self.part))

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """Its vector, shape (space.numel,).

        Raises `SpaceMismatchError` naming a tensor outside the head in which the two differ, or an
        option of their configs, and `ConfigError` where a model does not tell its head.
        """
        check_same_architecture(self.head, self.body)
        dtype: Any = str(space.dtype).removeprefix("torch.")
        config = LoadConfig(dtype=dtype, allow_pickle=self.allow_pickle)
        model = load_model(self.body, None, config)
        theirs = ParameterSpace.of(model)
        kept = head_tensors(model, space.names, self.part)
        dropped = head_tensors(model, theirs.names, self.part)
        mine = space.subspace(exclude=map(escape, kept))
        mine.check_same(
            theirs.subspace(exclude=map(escape, dropped)), self.head.spec, self.body.spec
        )
        if any(buffer.is_floating_point() for buffer in model.buffers()):
            headed = load_model(self.head, None, config)
            check_same_buffers(headed, model, self.head.spec, self.body.spec)
        flat = read(self.head.fingerprint).clone()
        with torch.no_grad():
            views, tensors = space.unflatten(flat), dict(model.named_parameters())
            for name in mine.names:
                views[name].copy_(tensors[name])
        space.check_finite(flat, self.spec)
        return flat


def head_tensors(model: nn.Module, names: Iterable[str], part: HeadPart = "all") -> tuple[str, ...]:
    """Those of the tensors `names` of `model` that belong to its head, in their order.

    `part` last: only those of the module that owns the last of them, the layer whose outputs are
    the labels. `ConfigError` where the class does not tell its head from its body, or has none.
    """
    modules = head_modules(model)
    found = tuple(name for name in names if name.split(".")[0] in modules)
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no head beside its body",
            remedy="a model that answers in words has the same outputs for every task: walk the "
            "line on both data sets (landform interpolate --also)",
        )
    if part == "all":
        return found
    last = found[-1].rpartition(".")[0]
    return tuple(name for name in found if name.rpartition(".")[0] == last)


def moved_tensors(space: ParameterSpace, one_axis: bool = False) -> tuple[str, ...]:
    """The tensors that a `Direction` moves: those of two axes or more; all with `one_axis`."""
    return tuple(
        name
        for name, shape in zip(space.names, space.shapes, strict=True)
        if len(shape) > 1 or one_axis
    )


def random_direction(
    space: ParameterSpace,
    point: Tensor,
    seed: int,
    *,
    normalise: Normalise = "filter",
    one_axis: bool = False,
    columns: Iterable[str] = (),
) -> Tensor:
    """A Gaussian direction with the scale of `point` (see `Direction`), shape (space.numel,).

    Drawn on the CPU in float32, tensor by tensor, so that it is the same on every device and in
    every number format. `columns`: the matrices that are stored (in, out), whose filters are their
    columns.
    """
    if point.shape != (space.numel,):
        raise SpaceMismatchError(f"a point of {space.numel} entries, not {tuple(point.shape)}")
    generator = torch.Generator().manual_seed(seed)
    direction = torch.zeros_like(point)
    here, there = space.unflatten(point), space.unflatten(direction)
    moved, turned = set(moved_tensors(space, one_axis)), set(columns)
    for name, shape in zip(space.names, space.shapes, strict=True):
        drawn = torch.randn(shape, generator=generator).to(point)
        if name in moved:
            if name in turned:
                there[name].copy_(_scaled(drawn.t(), here[name].t(), normalise).t())
            else:
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
    return scaled.reshape(drawn.shape)
