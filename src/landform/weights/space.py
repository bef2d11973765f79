"""Parameter space: the float parameters of a model as one flat vector.

A point is a 1-D tensor of `space.numel` entries. A model *bound* to a buffer has its parameters
replaced by views of that buffer, so that moving it to `(1 - t) a + t b` is one fused
`torch.lerp` over memory: no state dict, no copy, no reload.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from landform.errors import ConfigError, NonFiniteError, SpaceMismatchError

__all__ = ["BoundModel", "GroupKind", "ParameterSpace", "Region", "check_same_buffers"]

GroupKind = Literal["tensor", "sublayer", "layer", "block", "head"]

# Index of a transformer layer inside a parameter name, in the spellings of the model families
# that transformers ships: BERT `layer.0`, LLaMA `layers.0`, GPT-2 `h.0`, T5 `block.0`.
_LAYER = re.compile(r"^(.*?\b(?:layers?|h|blocks?)\.\d+)\.(.+)$")
_ATTENTION = re.compile(r"attention|attn|\bq_|\bk_|\bv_|\bo_|q_lin|k_lin|v_lin|out_lin", re.I)
# Query, and key or value: BERT `query`, DeBERTa `query_proj` and `pos_query_proj`, LLaMA `q_proj`,
# DistilBERT `q_lin`, T5 `q`.
_QUERY_ROWS = re.compile(r"(attention|attn).*\.((pos_)?query(_proj)?|q(_proj|_lin)?)\.", re.I)
_KEY_ROWS = re.compile(
    r"(attention|attn).*\.((pos_)?(key|value)(_proj)?|[kv](_proj|_lin)?)\.", re.I
)
_HEAD_COLUMNS = re.compile(
    r"(attention\.output\.dense|o_proj|out_proj|out_lin|(attention|attn)\.o)\.weight$", re.I
)
# Norms of attention whose names do not say so: those before it, and DistilBERT's after it.
_NORM_BEFORE = re.compile(
    r"^(input_layernorm|layernorm_before|ln_?1|norm_?1|sa_layer_norm)\.", re.I
)
# LLaMA's stands before the feed-forward block, Gemma 2's at the end of attention: there the
# feed-forward block has norms of its own.
_NORM_BETWEEN = "post_attention_layernorm."
_FEED_FORWARD_NORM = re.compile(r"\.(pre|post)_feedforward_layernorm\.")
# Attention of a decoder to its encoder: T5, BART, BERT and GPT-2 (`ln_cross_attn` is its norm).
_CROSS_ATTENTION = re.compile(r"EncDecAttention|encoder_attn|cross_?att", re.I)
# T5 numbers the blocks of a layer: `block.0.layer.1.layer_norm` is a norm of the second.
_NUMBERED_BLOCK = re.compile(r"^(layer\.\d+\.)layer_norm\.")


@dataclass(frozen=True)
class Region:
    """A slice `[start, stop)` along `axis` of the tensor `name`: what groups are made of."""

    name: str
    axis: int
    start: int
    stop: int


@dataclass(frozen=True)
class ParameterSpace:
    """Names, shapes and offsets of the float parameters of a model, in one flat vector.

    Tied weights occur once (under their first name). Integer parameters and buffers are not part
    of the space and are never touched. A subspace (an adapter, one layer, everything but the
    classifier) is a `ParameterSpace` over fewer tensors.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, *, trainable: bool = False) -> Self:
        """The space of `model`'s float parameters (only those that require grad if `trainable`).

        Of a tuned model (an adapter, LoRA; see `weights.tuning`) they are those that were tuned.
        Raises `SpaceMismatchError` when the parameters are of several float types: a flat vector
        has one. Load the model with `dtype=` to make them one.
        """
        tuned = getattr(model, "landform_tuned", None)
        chosen = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
            and (parameter.requires_grad or not trainable)
            and (tuned is None or name in tuned)
        ]
        if not chosen:
            raise SpaceMismatchError(
                f"{type(model).__name__} has no {'trainable ' if trainable else ''}float parameters"
            )
        kinds = {parameter.dtype for _, parameter in chosen}
        if len(kinds) > 1:
            odd = next(name for name, p in chosen if p.dtype != chosen[0][1].dtype)
            raise SpaceMismatchError(
                f"parameters of several types: {chosen[0][0]} is {chosen[0][1].dtype}, "
                f"{odd} is {dict(chosen)[odd].dtype}",
                remedy="load the model with one dtype (dtype='float32')",
            )
        return cls(
            tuple(name for name, _ in chosen),
            tuple(tuple(p.shape) for _, p in chosen),
            chosen[0][1].dtype,
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in the flat vector."""
        starts, total = [], 0
        for size in self.sizes:
            starts.append(total)
            total += size
        return tuple(starts)

    @property
    def numel(self) -> int:
        """Dimension of the space."""
        return sum(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of one point."""
        return self.numel * self.dtype.itemsize

    def flatten(
        self, source: nn.Module | Mapping[str, Tensor], out: Tensor | None = None
    ) -> Tensor:
        """The point where `source` is: a copy, shape (numel,), in `out` when given.

        `source` is a model or a mapping name -> tensor; missing tensors or other shapes raise
        `SpaceMismatchError` naming them.
        """
        tensors = dict(source.named_parameters()) if isinstance(source, nn.Module) else source
        self._check_tensors(tensors)
        if out is None:
            device = tensors[self.names[0]].device
            out = torch.empty(self.numel, dtype=self.dtype, device=device)
        with torch.no_grad():
            for name, view in self.unflatten(out).items():
                view.copy_(tensors[name])
        return out

    def _check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise SpaceMismatchError(f"no tensor named {', '.join(missing[:5])} in the source")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tuple(tensors[name].shape) != shape:
                raise SpaceMismatchError(
                    f"tensor {name}: shape {tuple(tensors[name].shape)}, expected {shape}"
                )

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a point (numel,) by name; gradients flow back to `flat`."""
        if flat.shape != (self.numel,):
            raise SpaceMismatchError(
                f"a point of this space has shape ({self.numel},), not {tuple(flat.shape)}"
            )
        return {
            name: flat[start : start + size].view(shape)
            for name, start, size, shape in zip(
                self.names, self.offsets, self.sizes, self.shapes, strict=True
            )
        }

    def check_same(self, other: ParameterSpace, here: str = "this", there: str = "other") -> None:
        """Raise `SpaceMismatchError` naming the tensors in which two spaces differ."""
        if self == other:
            return
        mine = dict(zip(self.names, self.shapes, strict=True))
        theirs = dict(zip(other.names, other.shapes, strict=True))
        faults = [f"{name} only in {here}" for name in self.names if name not in theirs]
        faults += [f"{name} only in {there}" for name in other.names if name not in mine]
        faults += [
            f"{name} is {mine[name]} in {here} and {theirs[name]} in {there}"
            for name in self.names
            if name in theirs and mine[name] != theirs[name]
        ]
        if not faults and self.dtype != other.dtype:
            faults = [f"dtype {self.dtype} in {here} and {other.dtype} in {there}"]
        if not faults:
            faults = ["the same tensors in another order"]
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise SpaceMismatchError(
            f"{here} and {there} are not points of one parameter space: "
            f"{'; '.join(faults[:5])}{more}",
            remedy="compare checkpoints of one architecture with one kind of head",
        )

    def check_finite(self, flat: Tensor, where: str) -> None:
        """Raise `NonFiniteError` naming the tensor in which a point has NaN or infinity."""
        # The smallest and the largest are finite exactly if all entries are: one fast pass, where a
        # mask, or a norm, takes thirty times as long.
        if all(math.isfinite(end) for end in torch.aminmax(flat)):
            return
        for name, view in self.unflatten(flat).items():
            bad = int((~torch.isfinite(view)).sum())
            if bad:
                raise NonFiniteError(
                    f"{where}: {bad} of {view.numel()} entries of tensor {name} are NaN or "
                    "infinite",
                    remedy="the run diverged or the file is damaged; use another checkpoint",
                )

    # --- groups and subspaces --------------------------------------------------------------

    def subspace(
        self, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()
    ) -> ParameterSpace:
        """The tensors whose names match a shell pattern of `include` and none of `exclude`."""
        include, exclude = tuple(include), tuple(exclude)
        kept = [
            index
            for index, name in enumerate(self.names)
            if any(fnmatchcase(name, p) for p in include)
            and not any(fnmatchcase(name, p) for p in exclude)
        ]
        if not kept:
            raise ConfigError(
                f"no tensor matches include={include} exclude={exclude}",
                remedy=f"tensor names look like {self.names[0]!r}, {self.names[-1]!r}",
            )
        return ParameterSpace(
            tuple(self.names[i] for i in kept), tuple(self.shapes[i] for i in kept), self.dtype
        )

    def spans(self, names: Collection[str]) -> list[tuple[int, int]]:
        """Where these tensors lie in the flat vector: [start, stop), joined where they touch."""
        wanted, found = set(names), list[tuple[int, int]]()
        for name, start, size in zip(self.names, self.offsets, self.sizes, strict=True):
            if name not in wanted:
                continue
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], start + size)
            else:
                found.append((start, start + size))
        return found

    def restrict(self, flat: Tensor, subspace: ParameterSpace) -> Tensor:
        """The coordinates of a point of this space in `subspace` (a copy)."""
        return subspace.flatten(self.unflatten(flat))

    def groups(self, kind: GroupKind, *, config: Any = None) -> dict[str, tuple[Region, ...]]:
        """The space divided into named groups.

        `tensor`: every parameter tensor. `sublayer`: the module that owns it (weight and bias
        together). `layer`: a transformer layer; what lies outside is `embeddings` or the name of
        its top module. `block`: attention, cross-attention or feed-forward of a layer, each with
        its norms.
        `head`: single attention heads (rows of query/key/value, columns of the output projection;
        other tensors under `rest`), which needs the model's `config` for the number of heads.
        Keys and values that several query heads share are groups of their own, `LAYER.kv_head.H`.
        Raises `ConfigError` where the heads of a layer cannot be told apart.
        """
        if kind == "head":
            return self._heads(config)
        namer: dict[str, Callable[[str], str]] = {
            "tensor": str,
            "sublayer": lambda name: name.rpartition(".")[0] or name,
            "layer": _layer_of,
            "block": lambda name: _block_of(name, self.names),
        }
        if kind not in namer:
            raise ConfigError(
                f"unknown kind of group {kind!r}", remedy=f"one of {[*namer, 'head']}"
            )
        result: dict[str, list[Region]] = {}
        for name, shape in zip(self.names, self.shapes, strict=True):
            whole = Region(name, 0, 0, shape[0] if shape else 1)
            result.setdefault(namer[kind](name), []).append(whole)
        return {group: tuple(regions) for group, regions in result.items()}

    def _heads(self, config: Any) -> dict[str, tuple[Region, ...]]:
        heads = getattr(config, "num_attention_heads", None)
        if not isinstance(heads, int):
            raise ConfigError(
                "groups of attention heads need the number of heads",
                remedy="pass config=model.config of a model with num_attention_heads",
            )
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        result: dict[str, list[Region]] = {}
        rows: set[str] = set()
        columns: dict[str, str] = {}
        shapes = dict(zip(self.names, self.shapes, strict=True))
        for name in self.names:
            part = _attention_part(name, shapes)
            if part == "output":
                columns.setdefault(_layer_of(name), name)
            elif part != "rest":
                rows.add(_layer_of(name))
            for label, region in _head_regions(name, shapes[name], part, heads, key_heads):
                result.setdefault(label, []).append(region)
        remedy = "use groups by block, layer, sublayer or tensor"
        if set(result) <= {"rest"}:
            raise ConfigError(
                f"no attention projections recognised among {len(self.names)} tensors",
                remedy=remedy,
            )
        half = sorted(columns.keys() - rows)
        if half:
            # Such a "head" would be a slice of the output projection and nothing else.
            raise ConfigError(
                f"{half[0]}: {columns[half[0]]} is divided among the heads, but no query, key and "
                "value projections are recognised",
                remedy=remedy,
            )
        return {group: tuple(regions) for group, regions in result.items()}

    def views(self, flat: Tensor, regions: Sequence[Region]) -> list[Tensor]:
        """Views of a point on the regions of a group."""
        tensors = self.unflatten(flat)
        return [
            tensors[r.name].narrow(r.axis, r.start, r.stop - r.start)
            if tensors[r.name].dim()
            else tensors[r.name]
            for r in regions
        ]

    # --- moving models ---------------------------------------------------------------------

    def bind(self, model: nn.Module) -> BoundModel:
        """Make the parameters of `model` views of one buffer (initially at the model's point)."""
        return BoundModel(model, self)

    def call(self, model: nn.Module, flat: Tensor, **inputs: Any) -> Any:
        """Run `model` at the point `flat`, differentiably in `flat`."""
        return torch.func.functional_call(model, self.unflatten(flat), (), inputs)


class BoundModel:
    """A model whose parameters are views of `flat`: writing `flat` moves the model."""

    def __init__(self, model: nn.Module, space: ParameterSpace) -> None:
        self.model = model
        self.space = space
        self.flat = space.flatten(model)
        parameters = dict(model.named_parameters())
        for name, view in space.unflatten(self.flat).items():
            parameters[name].data = view

    def move_to(self, point: Tensor) -> None:
        """Go to `point` (numel,)."""
        self.flat.copy_(point)

    def lerp(self, a: Tensor, b: Tensor, t: float) -> None:
        """Go to (1 - t) a + t b. Exactly `a` at t = 0 and exactly `b` at t = 1."""
        with torch.no_grad():
            torch.lerp(a, b, t, out=self.flat)

    def combine(self, points: Sequence[Tensor], weights: Sequence[float]) -> None:
        """Go to sum_i weights[i] points[i] (weights need not sum to one)."""
        if len(points) != len(weights) or not points:
            raise ConfigError(f"{len(points)} points with {len(weights)} weights")
        with torch.no_grad():
            torch.mul(points[0], weights[0], out=self.flat)
            for point, weight in zip(points[1:], weights[1:], strict=True):
                self.flat.add_(point, alpha=weight)


def _layer_of(name: str) -> str:
    match = _LAYER.match(name)
    if match:
        return match.group(1)
    if re.search(r"embed|\bwte\b|\bwpe\b|\bshared\b", name):
        return "embeddings"
    # PEFT keeps a trained head in a wrapper: classifier.modules_to_save.default.weight.
    owner = name.partition(".modules_to_save.")[0]
    owner = owner if owner != name else name.rpartition(".")[0] or name
    # bert.pooler.dense -> pooler; classifier.out_proj -> classifier: the first module that is
    # not the wrapper around the whole encoder.
    parts = owner.split(".")
    return parts[1] if len(parts) > 2 or (parts[0] in _WRAPPERS and len(parts) > 1) else parts[0]


_WRAPPERS = {
    "bert",
    "roberta",
    "distilbert",
    "transformer",
    "model",
    "electra",
    "deberta",
    "albert",
}


def _block_of(name: str, names: Sequence[str]) -> str:
    match = _LAYER.match(name)
    if not match:
        return _layer_of(name)
    layer, rest = match.groups()
    return f"{layer}.{_part_of(layer, rest, names)}"


def _part_of(layer: str, rest: str, names: Sequence[str]) -> str:
    """Which block of a layer the tensor `rest` belongs to.

    A norm belongs to attention that stands before attention or between it and its addition to the
    residual stream, and not one before the feed-forward block, whatever its name says.
    """
    siblings = [name for name in names if name.startswith(f"{layer}.")]
    if rest.startswith(_NORM_BETWEEN):
        between = any(_FEED_FORWARD_NORM.search(name) for name in siblings)
        return "attention" if between else "feed_forward"
    told_by = [rest]
    numbered = _NUMBERED_BLOCK.match(rest)
    if numbered:  # the other tensors of its block tell
        block = f"{layer}.{numbered.group(1)}"
        told_by = [name[len(block) :] for name in siblings if name.startswith(block)]
    if any(_CROSS_ATTENTION.search(name) for name in told_by):
        return "cross_attention"
    if _NORM_BEFORE.match(rest) or any(_ATTENTION.search(name) for name in told_by):
        return "attention"
    return "feed_forward"


Part = Literal["query", "key", "output", "fused", "fused output", "rest"]


def _attention_part(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Part:
    """Which projection of attention a tensor belongs to ("key": key or value)."""
    if not _LAYER.match(name):
        return "rest"
    if _QUERY_ROWS.search(name):
        return "query"
    if _KEY_ROWS.search(name):
        return "key"
    if _HEAD_COLUMNS.search(name) and len(shapes[name]) == 2:
        return "output"
    module, _, field = name.rpartition(".")
    fused = shapes.get(module.removesuffix("c_proj").removesuffix("c_attn") + "c_attn.weight", ())
    # GPT-2: one Conv1D (in, 3 in) holds query, key and value side by side. Other models store
    # other layouts under the same name, in a Linear (out, in).
    if len(fused) == 2 and fused[1] == 3 * fused[0]:
        if module.endswith("attn.c_attn"):
            return "fused"
        if module.endswith("attn.c_proj") and field == "weight":
            return "fused output"
    return "rest"


def _head_regions(
    name: str, shape: tuple[int, ...], part: Part, heads: int, key_heads: int
) -> list[tuple[str, Region]]:
    """Divide one tensor among the attention heads of its layer (or give it whole to `rest`)."""
    layer = _layer_of(name)
    if part == "query" or (part == "key" and key_heads == heads):
        return _split(name, f"{layer}.head", axis=0, size=shape[0], count=heads)
    if part == "key":
        return _split(name, f"{layer}.kv_head", axis=0, size=shape[0], count=key_heads)
    if part == "output":
        return _split(name, f"{layer}.head", axis=1, size=shape[1], count=heads)
    if part == "fused output":  # a Conv1D (in, out): its inputs are its rows
        return _split(name, f"{layer}.head", axis=0, size=shape[0], count=heads)
    if part == "fused":
        axis = len(shape) - 1
        width = shape[axis] // 3
        return [
            (label, Region(name, axis, third * width + r.start, third * width + r.stop))
            for third in range(3)
            for label, r in _split(name, f"{layer}.head", axis=axis, size=width, count=heads)
        ]
    return [("rest", Region(name, 0, 0, shape[0] if shape else 1))]


def _split(name: str, group: str, *, axis: int, size: int, count: int) -> list[tuple[str, Region]]:
    if size % count:
        raise ConfigError(
            f"tensor {name}: {size} entries along axis {axis} for {count} heads",
            remedy="use groups by block, layer, sublayer or tensor",
        )
    width = size // count
    return [(f"{group}.{h}", Region(name, axis, h * width, (h + 1) * width)) for h in range(count)]


def check_same_buffers(
    a: nn.Module, b: nn.Module, here: str = "this", there: str = "other"
) -> None:
    """Raise `SpaceMismatchError` naming a stored float buffer in which two models differ.

    Buffers (running statistics of a batch norm, fixed scales) are not coordinates of the space: a
    mix keeps those of one model. That is right only where both have the same ones. Buffers that
    are made from the config and not stored are no part of a checkpoint, and integers count steps.
    """
    mine, theirs = _stored_buffers(a), _stored_buffers(b)
    for name in sorted({*mine, *theirs}):
        x, y = mine.get(name), theirs.get(name)
        if x is None or y is None:
            fault = f"float buffer {name} only in {here if y is None else there}"
        elif x.shape != y.shape:
            fault = (
                f"float buffer {name} is {tuple(x.shape)} in {here}, {tuple(y.shape)} in {there}"
            )
        elif not torch.allclose(x, y.to(x), rtol=0.0, atol=0.0, equal_nan=True):
            fault = f"float buffer {name} has other values in {here} than in {there}"
        else:
            continue
        raise SpaceMismatchError(
            f"{fault}: only parameters are mixed, and a mix would run with those of {here}",
            remedy="give both checkpoints the same buffer before they are compared (a fixed scale, "
            "or statistics computed once), or use models without it",
        )


def _stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    stored = model.state_dict()
    return {n: b for n, b in model.named_buffers() if n in stored and b.is_floating_point()}
