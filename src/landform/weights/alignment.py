"""Aligning two models: b's hidden units, heads and coordinates reordered to lie next to a's.

Two networks that were trained from different initialisations can compute much the same and still
be far apart, because the order of hidden units is arbitrary. `align` finds an order of b's in which
its weights are near a's (Git Re-Basin, Ainsworth et al. 2023) and writes it as a checkpoint that
computes exactly what b computes.
"""

from __future__ import annotations

import atexit
import inspect
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from landform.errors import CheckpointError, ConfigError, StoreError
from landform.results import Result
from landform.store.atomic import (
    atomic_directory,
    check_place,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from landform.weights.checkpoint import (
    Checkpoint,
    LoadConfig,
    check_same_architecture,
    load_model,
    quiet_transformers,
    resolve,
)
from landform.weights.matching import Matching, match_weights
from landform.weights.permutations import (
    Attention,
    Block,
    Part,
    Symmetries,
    describe_symmetries,
    identity,
    permute,
)
from landform.weights.space import ParameterSpace, check_same_buffers
from landform.weights.tuning import method_name

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

__all__ = ["AlignConfig", "AlignedCheckpoint", "AlignmentReport", "align", "align_once"]

Squares = dict[str, float]
Orders = dict[str, np.ndarray[Any, Any]]
_PARTS: tuple[Part, ...] = ("heads", "feed_forward", "residual")


class AlignConfig(LoadConfig):
    """Options of `align`."""

    parts: tuple[Part, ...] = _PARTS
    """What may be reordered: attention heads and the dimensions inside them, feed-forward units
    (with those of a pooler or classifier), the residual stream."""
    restarts: int = Field(3, ge=1)
    """Starts of the search; the best is kept. The first begins with what the embeddings tell, the
    others with b as it is, taking the layers in random orders."""
    seed: int = 0
    """Seed of the orders in which layers are matched."""
    max_iterations: int = Field(50, ge=1)
    """Rounds over all layers, at most, from each start."""

    @field_validator("parts")
    @classmethod
    def _some(cls, value: tuple[Part, ...]) -> tuple[Part, ...]:
        if not value:
            raise ValueError("name at least one part")
        return value


@dataclass(frozen=True)
class AlignmentReport(Result):
    """What aligning `b` to `a` moved, and what that did to the distance."""

    a: str
    b: str
    distance_before: float
    """|| a - b ||"""
    distance_after: float
    """|| a - pi(b) ||, never larger"""
    parts: pd.DataFrame
    """columns layer, part (heads, feed_forward or residual), size and moved (heads, units or
    coordinates), dimensions and dimensions_moved (those inside heads), distance_before and
    distance_after (of the tensors of that part of the layer)"""
    exact: float
    """largest difference of an output of b and of the aligned copy, on random inputs"""
    notes: tuple[str, ...]
    """what keeps its order in this architecture, and why"""
    provenance: dict[str, Any]

    @property
    def moved(self) -> int:
        """Heads, units, coordinates and dimensions inside heads that changed places."""
        return int(self.parts["moved"].sum() + self.parts["dimensions_moved"].sum())

    @property
    def reading(self) -> str:
        """One line for a person."""
        if not self.moved:
            return (
                f"identity: already aligned; no reordering was found that brings {self.b} nearer "
                f"to {self.a} (distance {self.distance_before:.4g}). That is what models "
                "fine-tuned from one pre-trained model show"
            )
        counts = []
        for part, word in (
            ("residual", "residual coordinates"),
            ("heads", "heads"),
            ("feed_forward", "feed-forward units"),
        ):
            rows = self.parts[self.parts["part"] == part]
            if len(rows):
                counts.append(f"{rows['moved'].sum()} of {rows['size'].sum()} {word}")
        return (
            f"distance {self.distance_before:.4g} -> {self.distance_after:.4g}; moved "
            f"{', '.join(counts)}; the function is that of {self.b} (largest difference of an "
            f"output {self.exact:.1g})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{k: v for k, v in vars(self).items() if k != "parts"},
            "notes": list(self.notes),
            "moved": self.moved,
            "parts": self.parts.to_dict("records"),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AlignmentReport:
        """The report that `to_json` wrote."""
        import pandas as pd

        fields = {name: item for name, item in value.items() if name != "moved"}
        fields |= {"parts": pd.DataFrame(value["parts"]), "notes": tuple(value["notes"])}
        return cls(**fields)


@dataclass(frozen=True)
class AlignedCheckpoint(Checkpoint):
    """A checkpoint that computes what `b` computes, permuted to lie next to `a`."""

    report: AlignmentReport = field(compare=False, repr=False)
    """What moved, and the distance before and after"""
    permutations: Mapping[str, np.ndarray[Any, Any]] = field(compare=False, repr=False)
    """By name of the symmetry, (batch, size): entry i names the unit of b that came to i"""


def align(
    a: str | os.PathLike[str] | Checkpoint,
    b: str | os.PathLike[str] | Checkpoint,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> AlignedCheckpoint:
    """A checkpoint that computes the function of `b`, its units reordered to lie next to `a`.

    Minimises || a - pi(b) || over the permutations pi that leave b's function as it is: heads and
    the dimensions inside them, feed-forward units, the residual stream
    (`describe_symmetries` says which an architecture has, `match_weights` how they are found: Git
    Re-Basin's weight matching, Ainsworth et al. 2023, algorithm 1). A local optimum, never farther
    than b itself. Models fine-tuned from one pre-trained model are usually aligned already.

    The copy has b's tokenizer, number format and tied weights. It is written to `out`, a new
    directory, or where none is given to a temporary one that is removed when the process ends.
    Options are the fields of `AlignConfig` (parts, restarts, seed, ...).

    Raises `SpaceMismatchError` for two architectures, `ConfigError` for tuned models (adapters,
    LoRA), whose units are the frozen ones of one model, `CheckpointError` for one whose symmetries
    are not known, or if the outputs of the copy differ from b's by more than rounding (nothing is
    written then), `StoreError` where `out` exists.
    """
    config = AlignConfig.parse(options, where="align")
    ends = resolve(a), resolve(b)
    if out is not None:
        _check_free(Path(out))
    check_same_architecture(*ends)
    if ends[0].tuning is not None:
        method = method_name(ends[0].tuning)
        raise ConfigError(
            f"{ends[0].spec} and {ends[1].spec} are tuned ({method}): the units that could be "
            "reordered are frozen, and the same in both",
            remedy="tuned models of one pre-trained model are aligned already: compare them as "
            "they are",
        )
    symmetries, found, permutations, distances = _search(ends, config)
    parts = _parts_table(symmetries, permutations, *distances[:2])
    place = Path(out).expanduser() if out is not None else _temporary(ends[1])
    spec = str(out) if out is not None else f"{ends[1].spec}-aligned"
    with atomic_directory(place, durable=out is not None) as directory:
        exact = _write(ends[1], symmetries, permutations, directory, config)
        report = AlignmentReport(
            a=ends[0].spec,
            b=ends[1].spec,
            distance_before=distances[2],
            distance_after=distances[3],
            parts=parts,
            exact=exact,
            notes=symmetries.notes,
            provenance={
                "weights": [end.fingerprint for end in ends],
                "config": config.model_dump(mode="json"),
                "start": found.start,
                "rounds": found.rounds,
            },
        )
        write_json(directory / "alignment.json", report.to_json())
        write_tensors(directory / "permutations.safetensors", permutations)
    return AlignedCheckpoint(spec, place.absolute(), report, permutations)


def align_once(
    a: str | os.PathLike[str] | Checkpoint,
    b: str | os.PathLike[str] | Checkpoint,
    out: str | os.PathLike[str],
    **options: Any,
) -> AlignedCheckpoint:
    """`align`, or what it wrote to `out` before, from the same weights with the same options.

    Raises `StoreError` where `out` holds anything else.
    """
    place = Path(out).expanduser()
    if not (place / "alignment.json").exists():
        return align(a, b, out, **options)
    config = AlignConfig.parse(options, where="align")
    kept = read_json(place / "alignment.json")
    asked = {
        "weights": [resolve(a).fingerprint, resolve(b).fingerprint],
        "config": config.model_dump(mode="json"),
    }
    if any(kept.get("provenance", {}).get(name) != value for name, value in asked.items()):
        raise StoreError(
            f"{out} holds the alignment of other checkpoints, or with other options",
            remedy="remove it, or name another directory",
        )
    report = AlignmentReport.from_json(kept)
    orders = read_tensors(place / "permutations.safetensors")
    return AlignedCheckpoint(str(out), place.absolute(), report, orders)


def _check_free(out: Path) -> None:
    if out.expanduser().exists():
        raise StoreError(f"{out} exists already", remedy="name a directory that does not exist yet")
    check_place(out.expanduser())


def _temporary(b: Checkpoint) -> Path:
    """A directory that lives as long as this process (and not as long as its forks)."""
    root, owner = Path(tempfile.mkdtemp(prefix="landform-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(root, ignore_errors=True)

    atexit.register(remove)
    return root / f"{b.path.name}-aligned"


def _checked_symmetries(
    models: Sequence[PreTrainedModel], ends: Sequence[Checkpoint]
) -> Symmetries:
    """The symmetries of the architecture of two models that are points of one space."""
    spaces = [ParameterSpace.of(model) for model in models]
    spaces[0].check_same(spaces[1], ends[0].spec, ends[1].spec)
    check_same_buffers(models[0], models[1], ends[0].spec, ends[1].spec)
    for model, space, end in zip(models, spaces, ends, strict=True):
        space.check_finite(space.flatten(model), end.spec)
    return describe_symmetries(models[1], ends[1].spec)


def _search(
    ends: Sequence[Checkpoint], config: AlignConfig
) -> tuple[Symmetries, Matching, Orders, tuple[Squares, Squares, float, float]]:
    """The symmetries, the best match of all starts, and what it does to the distance."""
    models = [load_model(end, None, config) for end in ends]
    symmetries = _checked_symmetries(models, ends).only(config.parts)
    points = [{n: p.detach() for n, p in model.named_parameters()} for model in models]
    found = match_weights(
        points[0],
        points[1],
        symmetries,
        restarts=config.restarts,
        seed=config.seed,
        max_iterations=config.max_iterations,
    )
    return symmetries, found, *_nearest(points, symmetries, found)


# --- what the search found ------------------------------------------------------------------------


def _nearest(
    points: Sequence[Mapping[str, Tensor]], symmetries: Symmetries, found: Matching
) -> tuple[Orders, tuple[Squares, Squares, float, float]]:
    """The permutations found, or the identity where they bring b no nearer; and the squared
    distances of every tensor before and after, and their roots of sums."""
    a, b = points
    orders = dict(found.permutations)
    before = {name: _squared(a[name], b[name]) for name in a}
    moved = permute(b, symmetries.all, orders)
    after = before | {name: _squared(a[name], tensor) for name, tensor in moved.items()}
    near, far = (math.sqrt(math.fsum(squares.values())) for squares in (after, before))
    if near >= far:
        orders = {symmetry.name: identity(symmetry) for symmetry in symmetries.all}
        after, near = before, far
    return orders, (before, after, far, near)


def _squared(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).square().sum())


def _parts_table(
    symmetries: Symmetries, orders: Orders, before: Squares, after: Squares
) -> pd.DataFrame:
    """One row for each part of each layer; a tensor belongs to its heads or units, and to the
    residual stream only where it has neither."""
    import pandas as pd

    inner = {name for b in symmetries.blocks if b.part != "residual" for name in b.tensors}
    rows = []
    for block in symmetries.blocks:
        for row, names in _rows(block, orders):
            own = [name for name in names if block.part != "residual" or name not in inner]
            for title, squares in (("distance_before", before), ("distance_after", after)):
                row[title] = math.sqrt(math.fsum(squares[name] for name in own))
            rows.append(row)
    return pd.DataFrame(rows)


def _rows(block: Block, orders: Orders) -> list[tuple[dict[str, Any], set[str]]]:
    """(what moved, names of the tensors) of a block: one row for each of its attention blocks."""
    if block.attention:
        heads = orders[block.symmetries[0].name][0]
        return [_heads_row(attention, heads, orders) for attention in block.attention]
    order = orders[block.symmetries[0].name][0]
    row = {"layer": block.layer, "part": block.part, "size": len(order), "moved": _moved(order)}
    return [(row | {"dimensions": 0, "dimensions_moved": 0}, set(block.tensors))]


def _heads_row(
    attention: Attention, groups: np.ndarray[Any, Any], orders: Orders
) -> tuple[dict[str, Any], set[str]]:
    queries = np.arange(attention.queries)[None].repeat(attention.groups, axis=0)
    if "queries" in attention.inside:
        queries = orders[attention.inside["queries"].name]
    heads = (groups[:, None] * attention.queries + queries).reshape(-1)
    inside = [orders[s.name] for kind, s in attention.inside.items() if kind != "queries"]
    row = {
        "layer": attention.layer,
        "part": "heads",
        "size": len(heads),
        "moved": _moved(heads),
        "dimensions": sum(order.size for order in inside),
        "dimensions_moved": sum(_moved(order) for order in inside),
    }
    return row, {slot.name for slots in attention.places.values() for slot in slots}


def _moved(order: np.ndarray[Any, Any]) -> int:
    return int((order != np.arange(order.shape[-1])).sum())


# --- writing the copy, and trying it --------------------------------------------------------------

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LARGE = 1_000_000_000  # parameters from which outputs are compared in float32


def _write(
    b: Checkpoint, symmetries: Symmetries, orders: Orders, directory: Path, config: AlignConfig
) -> float:
    """Write the permuted copy of `b`; the largest difference of its outputs from those of `b`."""
    model = load_model(b, None, LoadConfig(dtype=_stored(b), allow_pickle=config.allow_pickle))  # type: ignore[arg-type]
    parameters = dict(model.named_parameters())
    for name, tensor in permute(
        {n: p.detach() for n, p in parameters.items()}, symmetries.all, orders
    ).items():
        parameters[name].data = tensor  # of the parameter itself: tied weights stay tied
    with quiet_transformers():
        model.save_pretrained(directory)
    for path in b.tokenizer_files:
        shutil.copyfile(path, directory / path.name)
    size = sum(p.numel() for p in parameters.values())
    del model, parameters
    return _check_function(
        b, directory, symmetries, config, "float32" if size > _LARGE else "float64"
    )


def _stored(checkpoint: Checkpoint) -> str:
    """The number format of the stored weights (the widest, where there are several)."""
    from safetensors import safe_open

    found = set()
    for path in checkpoint.weight_files:
        if path.suffix != ".safetensors":
            named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
            return str(named or "float32")
        with safe_open(path, "numpy") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    kept = [name for code, name in _DTYPES.items() if code in found]
    if not kept:
        raise CheckpointError(
            f"{checkpoint.spec}: weights stored as {', '.join(sorted(found))}",
            remedy="align the model in float16 or wider, then quantise it",
        )
    return kept[0]


def _check_function(
    b: Checkpoint, copy: Path, symmetries: Symmetries, config: AlignConfig, dtype: str
) -> float:
    """The largest difference between outputs of `b` and its copy; raises if it is not rounding."""
    load = LoadConfig(dtype=dtype, allow_pickle=config.allow_pickle)  # type: ignore[arg-type]
    outputs = []
    for checkpoint in (b, Checkpoint(f"the aligned copy of {b.spec}", copy)):
        model = load_model(checkpoint, None, load)
        outputs.append(_probe(model))
        del model
    difference = max(float((x - y).abs().max()) for x, y in zip(*outputs, strict=True))
    scale = max(1.0, *(float(x.abs().max()) for x in outputs[0]))
    allowed = scale * (1e-4 if symmetries.single or dtype == "float32" else 1e-9)
    if not difference <= allowed:
        raise CheckpointError(
            f"{b.spec}: the permuted copy computes something else: an output differs by "
            f"{difference:.3g} (rounding would be below {allowed:.1g})",
            remedy="this model has a part that its architecture's description lacks; align "
            "without it (parts), and report it",
        )
    return difference


@torch.no_grad()
def _probe(model: PreTrainedModel) -> list[Tensor]:
    """Outputs on random texts: logits, or the hidden states of a model without a head."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    outputs: list[Tensor] = []
    limit = getattr(config, "max_position_embeddings", None) or 64
    for length in sorted({min(n, max(int(limit) - 4, 2)) for n in (4, 9, 17)}):
        ids = torch.randint(0, int(config.vocab_size), (1, length), generator=generator)
        reserved = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
        for token in reserved:  # what marks an end stands at the end, and nowhere else
            if isinstance(token, int) and 0 <= token < config.vocab_size:
                ids[ids == token] = (token + 7) % config.vocab_size
        if isinstance(reserved[1], int) and 0 <= reserved[1] < config.vocab_size:
            ids[0, -1] = reserved[1]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(config, "type_vocab_size", 0) and config.type_vocab_size > 1:
            inputs["token_type_ids"] = (torch.arange(length)[None] > length // 2).long()
        if "decoder_input_ids" in inspect.signature(model.forward).parameters:
            inputs["decoder_input_ids"] = ids.flip(1)
        found = model(**inputs)
        if getattr(found, "logits", None) is not None:
            outputs.append(found.logits)
            continue
        outputs.append(found.last_hidden_state)
        if getattr(found, "pooler_output", None) is not None:
            outputs.append(found.pooler_output)
    return outputs
