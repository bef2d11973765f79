"""The permutation symmetries of transformers: which axes of which tensors move together.

A hidden unit has no name: reorder the units of a feed-forward block (its rows in, its columns out)
and the model computes the same function. Heads of attention, the dimensions inside a head and the
coordinates of the residual stream can be reordered in the same way. Each such freedom is a
`Symmetry`: a list of `Slot`s, places along an axis of a tensor that must be permuted in step. So
applying a permutation is one function for all of them (`permute`).

The table of an architecture says what every module reads and writes (`Rule`); a tensor that no
rule knows is an error, never left where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from landform.errors import CheckpointError
from landform.weights.architectures import FAMILIES, Family

__all__ = [
    "Attention",
    "Block",
    "Part",
    "Slot",
    "Symmetries",
    "Symmetry",
    "describe_symmetries",
    "identity",
    "permute",
]

Part = Literal["heads", "feed_forward", "residual"]
Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a symmetry acts: along `axis` of the tensor `name`.

    `positions` (batch, repeat, size, inner) are places along the axis. Unit u of permutation n owns
    the places `positions[n, :, u, :]`: a head owns `inner` neighbours, a hidden unit of a fused
    projection occurs `repeat` times, and `batch` permutations (one inside each head) act at once.
    """

    name: str
    axis: int
    positions: Array


@dataclass(frozen=True, eq=False)
class Symmetry:
    """`batch` permutations of `size` units that leave the function of the model as it is."""

    name: str
    batch: int
    size: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention block: where its heads are, by role.

    Roles: q, k, v (what the projections write), o (what the output projection reads) and h (one
    entry a head: the table of relative positions). Positions have shape (groups, queries, width)
    for q and o, (groups, 1, width) for k and v: `queries` query heads read one key and value head.
    """

    layer: str
    groups: int
    queries: int
    places: Mapping[str, tuple[Slot, ...]]
    inside: Mapping[str, Symmetry]
    """The symmetries of this block alone: queries, keys, values (see `describe_symmetries`)"""

    def width(self, role: str) -> int:
        """Dimensions of a head."""
        return int(self.places[role][0].positions.shape[-1])


@dataclass(frozen=True, eq=False)
class Block:
    """What is matched at once: one symmetry, or the heads of attention with all that is in them.

    `symmetries` are applied in this order: heads first, then inside each of them.
    """

    name: str
    layer: str
    part: Part
    symmetries: tuple[Symmetry, ...]
    attention: tuple[Attention, ...] = ()
    """Several where they share one order of heads (T5: one table of relative positions)"""

    @property
    def tensors(self) -> frozenset[str]:
        """Names of the tensors that it moves."""
        return frozenset(slot.name for s in self.symmetries for slot in s.slots)


@dataclass(frozen=True, eq=False)
class Symmetries:
    """All blocks of a model, and what was left where it is, with the reason."""

    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    single: bool = False
    """Whether parts of the model run in float32 whatever the format of its weights"""

    def only(self, parts: Iterable[str]) -> Symmetries:
        """The blocks of these parts."""
        kept = tuple(block for block in self.blocks if block.part in set(parts))
        return Symmetries(kept, self.notes, self.single)

    @property
    def all(self) -> tuple[Symmetry, ...]:
        """Every symmetry, in the order of application."""
        return tuple(s for block in self.blocks for s in block.symmetries)


# --- applying -------------------------------------------------------------------------------------


def identity(symmetry: Symmetry) -> Array:
    """The permutations that change nothing, shape (batch, size)."""
    return np.tile(np.arange(symmetry.size, dtype=np.int64), (symmetry.batch, 1))


def permute(
    tensors: Mapping[str, Tensor],
    symmetries: Sequence[Symmetry],
    permutations: Mapping[str, Array],
) -> dict[str, Tensor]:
    """Copies of the tensors that move; entry i of a permutation names the unit that comes to i.

    `permutations` by the name of the symmetry, each (batch, size); one that is missing or is the
    identity moves nothing. Applied one after the other in the order of `symmetries`.
    """
    index: dict[tuple[str, int], Array] = {}
    for symmetry in symmetries:
        order = permutations.get(symmetry.name)
        if order is None or (order == identity(symmetry)).all():
            continue
        for slot in symmetry.slots:
            key = slot.name, slot.axis
            here = index.get(key)
            if here is None:
                here = np.arange(tensors[slot.name].shape[slot.axis], dtype=np.int64)
            step = np.arange(len(here), dtype=np.int64)
            places = slot.positions
            step[places] = np.take_along_axis(places, order[:, None, :, None], axis=2)
            index[key] = here[step]
    moved: dict[str, Tensor] = {}
    for (name, axis), order in index.items():
        now = moved.get(name, tensors[name])
        moved[name] = now.index_select(axis, torch.from_numpy(order).to(now.device))
    return moved


# --- from the rules of an architecture to its symmetries ------------------------------------------


@dataclass(frozen=True)
class _Act:
    """One axis of one tensor, and what it is."""

    name: str
    axis: int
    length: int
    role: str
    layer: str
    stack: str
    """The stack whose attention has one order of heads in all layers (T5), or nothing"""


def describe_symmetries(model: nn.Module, spec: str = "the model") -> Symmetries:
    """The permutation symmetries of a transformers model, as blocks to be matched.

    residual        one order for embeddings, norms, and whatever reads or writes the stream
    feed_forward    one order of hidden units per layer (also of a pooler or classifier)
    heads           per layer one order of heads; inside each, `LAYER.values` (rows of the value
                    projection with columns of the output) and `LAYER.keys` (queries with keys;
                    not where positions rotate them). Where several query heads read one key head,
                    the groups are ordered, and `LAYER.queries` orders the heads of each group.

    Raises `CheckpointError` naming the architecture or the tensor that is not known.
    """
    config: Any = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise CheckpointError(
            f"{spec}: the permutation symmetries of {config.model_type!r} models are not known",
            remedy=f"known: {', '.join(FAMILIES)}",
        )
    acts = _acts(model, family, spec)
    notes = []
    frozen = ""
    if not _has_head(model):
        frozen = "RU"
        notes.append(
            "no head: the model's output is the residual stream itself, whose order is kept"
        )
    if family.rotary:
        notes.append("rotary positions: the dimensions of queries and keys keep their order")
    blocks = [
        *_unit_blocks(acts, "R", "residual", frozen, spec),
        *_unit_blocks(acts, "E", "residual", frozen, spec),
        *_unit_blocks(acts, "F", "feed_forward", frozen, spec),
        *_unit_blocks(acts, "U", "feed_forward", frozen, spec),
        *_head_blocks(acts, config, family, spec),
    ]
    return Symmetries(tuple(blocks), tuple(notes), family.single)


def _has_head(model: nn.Module) -> bool:
    name = type(model).__name__  # BertModel has none, BertForMaskedLM and GPT2LMHeadModel have one
    return not name.endswith("Model") or name.endswith("LMHeadModel")


def _acts(model: nn.Module, family: Family, spec: str) -> list[_Act]:
    """What every axis of every parameter is."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found: list[_Act] = []
    for name, parameter in model.named_parameters():
        path = name.rpartition(".")[0]
        short = path.removeprefix(prefix) if len(prefix) > 1 else path
        rule, match = family.rule(short)
        if rule is None or match is None or parameter.dim() not in (1, 2):
            raise CheckpointError(
                f"{spec}: tensor {name} {tuple(parameter.shape)} is not recognised: "
                "what it would have to be permuted with is not known",
                remedy="align models without such a part",
            )
        named = match.groupdict()
        layer = named.get("layer") or named.get("head") or ""
        if layer and path != short:
            layer = f"{prefix}{layer}" if path.startswith(f"{prefix}{layer}") else layer
        if named.get("cross"):
            layer = f"{layer}.cross"
        stack = named.get("stack") or ""
        roles = [rule.writes]
        if parameter.dim() == 2:
            roles.append(rule.reads)
            if type(model.get_submodule(path)).__name__ == "Conv1D":  # stored (in, out)
                roles.reverse()
        for axis, role in enumerate(roles):
            shared = stack if named.get("shared") else ""
            found.append(_Act(name, axis, parameter.shape[axis], role, layer, shared))
    return _settled(found)


def _settled(acts: Sequence[_Act]) -> list[_Act]:
    """E is R unless a projection lies between, C is U where a classifier has a hidden layer."""
    tensors: dict[str, set[str]] = {}
    for act in acts:
        tensors.setdefault(act.name, set()).add(act.role)
    projected = any({"R", "E"} <= roles for name, roles in tensors.items() if "embeddings" in name)
    hidden = any(act.role == "U" for act in acts)
    names = {"E": "E" if projected else "R", "C": "U" if hidden else "R"}
    return [
        _Act(a.name, a.axis, a.length, names.get(a.role, a.role), a.layer, a.stack) for a in acts
    ]


# --- blocks ---------------------------------------------------------------------------------------


def _unit_blocks(
    acts: Sequence[_Act], role: str, part: Part, frozen: str, spec: str
) -> list[Block]:
    """One block for each layer that has units of this role (one in all for R, E and U)."""
    if role in frozen:
        return []
    chosen = [act for act in acts if act.role == role]
    by_layer: dict[str, list[_Act]] = {}
    for act in chosen:
        by_layer.setdefault(act.layer if role == "F" else "", []).append(act)
    blocks = []
    for layer, members in by_layer.items():
        label = layer or {"R": "all", "E": "embeddings"}.get(role, "")
        label = label or next((act.layer for act in members if act.layer), "classifier")
        size = members[0].length
        odd = next((act for act in members if act.length != size), None)
        if odd is not None:
            raise CheckpointError(
                f"{spec}: tensor {odd.name} has {odd.length} entries along axis {odd.axis}, "
                f"{members[0].name} has {size}: they should be the same {part} units",
                remedy="align models without such a part",
            )
        positions = np.arange(size, dtype=np.int64).reshape(1, 1, size, 1)
        slots = tuple(Slot(act.name, act.axis, positions) for act in members)
        name = "residual" if role == "R" else f"{label}.{part}"
        blocks.append(Block(name, label, part, (Symmetry(name, 1, size, slots),)))
    return blocks


@dataclass
class _Heads:
    """The axes of one attention block while they are collected."""

    stack: str = ""
    acts: list[_Act] = field(default_factory=list)


def _head_blocks(acts: Sequence[_Act], config: Any, family: Family, spec: str) -> list[Block]:
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    collected: dict[str, _Heads] = {}
    for act in acts:
        if act.role in ("q", "k", "v", "o", "h", "qkv", "qkv*"):
            entry = collected.setdefault(act.layer, _Heads(act.stack))
            entry.acts.append(act)
    shared: dict[str, list[Attention]] = {}
    for layer, entry in collected.items():
        places: dict[str, list[Slot]] = {}
        for act in entry.acts:
            for role, positions in _head_positions(act, heads, groups, spec):
                places.setdefault(role, []).append(Slot(act.name, act.axis, positions))
        kept = {role: tuple(slots) for role, slots in places.items()}
        inside = _inside(layer, kept, groups, heads // groups, family.rotary)
        attention = Attention(layer, groups, heads // groups, kept, inside)
        shared.setdefault(entry.stack or layer, []).append(attention)
    return [_head_block(name, members) for name, members in shared.items()]


def _head_positions(act: _Act, heads: int, groups: int, spec: str) -> list[tuple[str, Array]]:
    """(role, places of the heads) along an axis: (groups, queries, width), see `Attention`."""
    queries, length = heads // groups, act.length
    parts = {"qkv": heads + 2 * groups, "qkv*": 3 * heads, "k": groups, "v": groups}
    count = parts.get(act.role, heads)
    if length % count or heads % groups or (act.role == "qkv*" and groups != heads):
        raise CheckpointError(
            f"{spec}: tensor {act.name}: {length} entries along axis {act.axis} for {heads} heads",
            remedy="config.json (num_attention_heads) and the weights do not belong together",
        )
    width = length // count
    every = np.arange(length, dtype=np.int64)
    if act.role == "qkv":
        q, k, v = np.split(every, [heads * width, (heads + groups) * width])
        return [
            ("q", q.reshape(groups, queries, width)),
            ("k", k.reshape(groups, 1, width)),
            ("v", v.reshape(groups, 1, width)),
        ]
    if act.role == "qkv*":
        by_head = every.reshape(heads, 3, width)
        return [(role, by_head[:, n : n + 1]) for n, role in enumerate("qkv")]
    per_group = 1 if act.role in ("k", "v") else queries
    return [(act.role, every.reshape(groups, per_group, width))]


def _inside(
    layer: str, places: Mapping[str, tuple[Slot, ...]], groups: int, queries: int, rotary: bool
) -> dict[str, Symmetry]:
    """The symmetries inside the heads of one attention block, `groups` permutations each."""

    def over(roles: str, grid: str) -> tuple[Slot, ...]:
        slots = [slot for role in roles for slot in places.get(role, ())]
        if grid == "queries":  # (groups, 1, queries, width): heads of a group change places
            return tuple(Slot(s.name, s.axis, s.positions[:, None]) for s in slots)
        # (groups, queries, width, 1): dimensions change places, in all heads of a group alike
        return tuple(Slot(s.name, s.axis, s.positions[..., None]) for s in slots)

    inside = {}
    if queries > 1:
        inside["queries"] = Symmetry(f"{layer}.queries", groups, queries, over("qo", "queries"))
    width = {role: slots[0].positions.shape[-1] for role, slots in places.items()}
    if not rotary:
        inside["keys"] = Symmetry(f"{layer}.keys", groups, width["k"], over("qk", "dimensions"))
    inside["values"] = Symmetry(f"{layer}.values", groups, width["v"], over("vo", "dimensions"))
    return inside


def _head_block(name: str, members: Sequence[Attention]) -> Block:
    """The heads of attention blocks that have one order, and everything inside them."""
    groups = members[0].groups
    slots = tuple(
        Slot(slot.name, slot.axis, slot.positions.reshape(1, 1, groups, -1))
        for attention in members
        for role in attention.places
        for slot in attention.places[role]
    )
    heads = Symmetry(f"{name}.heads", 1, groups, slots)
    inner = [s for attention in members for s in attention.inside.values()]
    layer = members[0].layer if len(members) == 1 else name
    return Block(heads.name, layer, "heads", (heads, *inner), tuple(members))
