"""Masks: which entries of the parameters a random direction may move.

A surface theta(x, y) = theta_0 + M (x d + y e) with M a diagonal of 0 and 1 looks at a part of the
parameters. Parts are chosen by the diagonal F of the Fisher matrix (Sharma et al. 2024, arXiv
2406.14005), or at random with the same count, the control. With share s:

    tensor            the n tensors of the model ranked by their mean F; the floor(s n) highest
                      (fisher-top) or lowest (fisher-bottom), each as a whole. The paper's code.
    matrix            the same among the tensors of two axes or more
    entry             the entries that a direction moves, ranked by F: the floor(s P) highest or
                      lowest of all P of them
    entry-per-tensor  the same within every tensor that a direction moves

Of equal values the one that stands earlier in the model ranks lower. For s <= 1/2 top and bottom
never overlap: where n is odd and s = 1/2, the middle one belongs to neither. `random` takes the
floor(s n) tensors or entries with the highest of n random numbers.

A direction leaves tensors of one axis (biases, norms) where they are unless told otherwise. Those
tend to have a high mean F, so half of the *tensors* by mean F can be far less than half of what
moves: the count of entries and the lengths belong to every surface, and `measure` tells them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor

from landform.config import Config
from landform.curvature.fisher import Fisher, load_fisher
from landform.errors import ConfigError, NonFiniteError
from landform.store.fingerprint import fingerprint
from landform.weights.checkpoint import Checkpoint
from landform.weights.points import (
    Direction,
    MaskedDirection,
    ReadPoint,
    Selection,
    moved_tensors,
)
from landform.weights.space import ParameterSpace

__all__ = [
    "FisherLike",
    "Mask",
    "MaskBy",
    "MaskConfig",
    "MaskKind",
    "check_masks",
    "mask_notes",
    "masks_of",
    "measure",
]

MaskKind = Literal["none", "fisher-top", "fisher-bottom", "random"]
MaskBy = Literal["tensor", "matrix", "entry", "entry-per-tensor"]


FisherLike = Fisher | str | os.PathLike[str]


class MaskConfig(Config):
    """Options of masks of random directions."""

    mask: tuple[MaskKind, ...] = ("none",)
    """Which entries random directions may move: all (none), those of high or of low Fisher, or a
    random choice. Several: one surface each, compared."""
    mask_by: MaskBy = "tensor"
    """What a mask ranks: whole tensors by their mean Fisher, whole matrices, entries, or entries
    within every tensor."""
    mask_share: float = Field(0.5, gt=0, le=1)
    """The share of tensors or entries that a mask selects."""
    match_norm: bool = False
    """Rescale a masked direction to the length of the whole one of the same seed."""
    one_axis: bool = False
    """Directions move tensors of one axis (biases, norms) too."""
    fisher_elsewhere: bool = False
    """The Fisher may be of other weights than the model's (the pre-trained model's, say)."""
    pairs: int = Field(1, ge=1)
    """Pairs of random directions, one surface each."""

    @field_validator("mask", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("mask")
    @classmethod
    def _each_once(cls, value: tuple[MaskKind, ...]) -> tuple[MaskKind, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name each mask once")
        return value


@dataclass(frozen=True, eq=False)
class Mask:
    """A `Selection` of entries by Fisher or by chance (see the module)."""

    kind: Literal["fisher-top", "fisher-bottom", "random"]
    by: MaskBy = "tensor"
    share: float = 0.5
    one_axis: bool = False
    """whether tensors of one axis move, and so whether their entries are ranked"""
    seed: int = 0
    """of the random mask"""
    fisher: Fisher | None = None
    key: str | None = None
    """fingerprint of the Fisher, where that has been computed"""

    @property
    def spec(self) -> str:
        """As people are told of it."""
        return f"{self.kind} by {self.by}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the rule and of the values that it ranks."""
        ranked = self.seed if self.kind == "random" else self.key or self._fisher.fingerprint
        return fingerprint((self.kind, self.by, self.share, self.one_axis, ranked))

    @property
    def _fisher(self) -> Fisher:
        if self.fisher is None:
            raise ConfigError(f"the mask {self.kind} ranks by a Fisher", remedy="give one (fisher)")
        return self.fisher

    @property
    def told(self) -> dict[str, Any] | None:
        """What tells the Fisher from others."""
        if self.fisher is None:
            return None
        names = ("checkpoint", "task", "split", "estimator", "reduction", "examples")
        summary = {name: getattr(self.fisher.summary, name) for name in names}
        return {**summary, "weights": self.fisher.weights, "values": self.key}

    def keep(self, space: ParameterSpace) -> Tensor:
        """Whether each entry is chosen, shape (space.numel,), bool.

        `CurvatureError` naming a tensor that the Fisher lacks or has another shape of, and
        `ConfigError` where the share of what can be chosen is none.
        """
        names, values = self._ranked(space)
        if self.by in ("tensor", "matrix"):
            means = np.array([float(np.mean(values[name], dtype=np.float64)) for name in names])
            chosen = dict(zip(names, self._chosen(means, "tensors"), strict=True))
            parts = {name: np.full(values[name].size, picked) for name, picked in chosen.items()}
        elif self.by == "entry":
            whole = self._chosen(np.concatenate([values[name] for name in names]), "entries")
            ends = np.cumsum([values[name].size for name in names])
            parts = dict(zip(names, np.split(whole, ends[:-1]), strict=True))
        else:
            parts = {name: self._chosen(values[name]) for name in names}
            if not any(part.any() for part in parts.values()):
                raise self._none("entries of any tensor")
        kept = torch.zeros(space.numel, dtype=torch.bool)
        for name, view in space.unflatten(kept).items():
            if name in parts:
                view.copy_(torch.from_numpy(parts[name]).view(view.shape))
        return kept

    def _ranked(self, space: ParameterSpace) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        """The tensors that can be chosen (from), and what they are ranked by, each flat."""
        names = moved_tensors(space, self.one_axis)
        if self.by == "tensor":
            names = space.names
        elif self.by == "matrix":
            names = moved_tensors(space)
        if not names:
            raise ConfigError(f"the model has nothing that a mask by {self.by} could select")
        sizes = dict(zip(space.names, space.sizes, strict=True))
        if self.kind == "random":
            drawn = np.random.default_rng(self.seed)
            if self.by in ("tensor", "matrix"):  # one number for a tensor: its mean
                return names, {name: np.broadcast_to(drawn.random(), sizes[name]) for name in names}
            return names, {name: drawn.random(sizes[name], dtype=np.float32) for name in names}
        fisher = self._fisher
        fisher.check(space, "the model", only=names)
        values = {name: fisher.diagonal[name].detach().cpu().numpy().ravel() for name in names}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise NonFiniteError(
                    f"the Fisher of {fisher.summary.checkpoint} has NaN or infinity in {name}",
                    remedy="compute it again, in float32 or float64",
                )
        return names, values

    def _chosen(self, values: np.ndarray, what: str | None = None) -> np.ndarray:
        """Which of the values are the floor(share n) highest, or lowest."""
        # A product such as 0.29 * 100 lies below the whole number that is meant.
        count = math.floor(self.share * len(values) + 1e-9)
        if not count and what:
            raise self._none(f"{len(values)} {what}")
        if self.kind == "fisher-bottom":
            return _lowest(values, count)
        return ~_lowest(values, len(values) - count)

    def _none(self, what: str) -> ConfigError:
        return ConfigError(
            f"option mask_share: {self.share:g} of {what} is none", remedy="take a larger share"
        )


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Which are the `count` lowest; of equal ones the first."""
    if count in (0, len(values)):
        return np.full(len(values), count > 0)
    edge = np.partition(values, count - 1)[count - 1]
    chosen = np.asarray(values < edge)
    chosen[np.flatnonzero(values == edge)[: count - int(chosen.sum())]] = True
    return chosen


def check_masks(config: MaskConfig, fisher: FisherLike | None) -> None:
    """Raise `ConfigError` for an option, or a Fisher, that none of the masks reads."""
    unread: list[str] = []
    if not {"fisher-top", "fisher-bottom"} & set(config.mask):
        unread = [
            *(["fisher"] if fisher is not None else []),
            *config.options_given(["fisher_elsewhere"]),
        ]
    readers = "fisher-top, fisher-bottom" if unread else "fisher-top, fisher-bottom, random"
    if config.mask == ("none",):
        unread += config.options_given(["mask_by", "mask_share", "match_norm"])
    if unread:
        raise ConfigError(
            f"option {unread[0]} has no effect with mask {', '.join(config.mask)}",
            remedy=f"leave it out, or name a mask that reads it: {readers}",
        )


def masks_of(
    centre: Checkpoint, config: MaskConfig, fisher: FisherLike | None, seed: int
) -> dict[MaskKind, tuple[Mask | None, ...]]:
    """The masks that `config` names, one for every pair of directions (None: no mask).

    Those by Fisher are the same for all pairs, the random ones are not. Raises `ConfigError` where
    there is no Fisher, `CurvatureError` where it is of another model.
    """
    pairs = range(config.pairs)
    found: dict[MaskKind, tuple[Mask | None, ...]] = {}
    ranked: tuple[Fisher, str] | None = None
    for kind in config.mask:
        if kind == "none":
            found[kind] = tuple(None for _ in pairs)
            continue
        rule = (kind, config.mask_by, config.mask_share, config.one_axis)
        if kind == "random":
            sequence = np.random.SeedSequence(seed, spawn_key=(1,))
            found[kind] = tuple(Mask(*rule, int(s)) for s in sequence.generate_state(config.pairs))
            continue
        if fisher is None:
            raise ConfigError(
                f"the mask {kind} ranks by a Fisher, and there is none (option fisher)",
                remedy="make one: landform fisher CHECKPOINT --task TASK --out FILE.safetensors",
            )
        if ranked is None:
            read = load_fisher(fisher)
            read.check_weights(
                centre,
                elsewhere=config.fisher_elsewhere,
                remedy="compute it there (landform fisher), or say that another model's is meant: "
                "fisher_elsewhere",
            )
            ranked = read, read.fingerprint
        mask = Mask(*rule, 0, *ranked)
        found[kind] = tuple(mask for _ in pairs)
    return found


# --- what a mask leaves of a direction --------------------------------------------------------


def measure(
    member: Direction | MaskedDirection, space: ParameterSpace, read: ReadPoint
) -> dict[str, Any]:
    """What a direction perturbs, as plain numbers.

    entries       that the direction moves, of `of`, those of the model
    movable       entries that it would move without a mask
    tensors       that the mask selects, of `tensors_of`; `vectors` of them have one axis
    still         entries that the mask selects and that do not move: they lie in such vectors
    unseen        entries that move and whose Fisher is exactly 0 (None without a Fisher)
    norm          ||d|| as used; `masked_norm` before it was rescaled, `whole_norm` without a mask
    control_share, control_norm
                  a random mask of as many entries: its share of `movable`, and the length that it
                  would leave: whole_norm sqrt(entries / movable), the root of the mean square
    """
    mask: Selection | None = None
    matched = False
    if isinstance(member, MaskedDirection):
        direction, mask, matched = member.direction, member.mask, member.match_norm
        _, left, whole = member.parts(space, read)
    else:
        direction = member
        left = whole = float(torch.linalg.vector_norm(member.flat(space, read).double()))
    names = moved_tensors(space, direction.one_axis)
    moved = torch.zeros(space.numel, dtype=torch.bool)
    for name, view in space.unflatten(moved).items():
        view.fill_(name in names)
    movable = int(moved.sum())
    selected = moved if mask is None else mask.keep(space)
    entries = int((selected & moved).sum())
    picked = {n: v for n, v in space.unflatten(selected).items() if bool(v.any())}
    return {
        "mask": getattr(mask, "kind", "none"),
        "by": getattr(mask, "by", None),
        "seed": direction.seed,
        "entries": entries,
        "of": space.numel,
        "movable": movable,
        "tensors": len(picked),
        "tensors_of": len(space.names),
        "vectors": sum(view.dim() < 2 for view in picked.values()) if mask else 0,
        "still": int(selected.sum()) - entries,
        "unseen": _unseen(mask, space, selected & moved),
        "norm": whole if matched else left,
        "masked_norm": left,
        "whole_norm": whole,
        "control_share": entries / movable if movable else math.nan,
        "control_norm": whole * math.sqrt(entries / movable) if movable else math.nan,
    }


def _unseen(mask: Selection | None, space: ParameterSpace, moved: Tensor) -> int | None:
    fisher = getattr(mask, "fisher", None)
    if fisher is None:
        return None
    views = space.unflatten(moved)
    return sum(
        int((view & (fisher.diagonal[name] == 0)).sum())
        for name, view in views.items()
        if bool(view.any())
    )


def mask_notes(directions: pd.DataFrame) -> tuple[str, ...]:
    """What `measure` found of the directions of a surface, in sentences; nothing without a mask."""
    first = directions.iloc[0]
    if first["mask"] == "none":
        return ()
    of = first["of"]
    lengths, wholes, controls, kept = (
        " and ".join(f"{value:.4g}" for value in directions[name])
        for name in ("norm", "whole_norm", "control_norm", "masked_norm")
    )
    rescaled = first["norm"] != first["masked_norm"]
    said = [
        f"mask {first['mask']} by {first['by']}: moves {first['entries']:,} of {of:,} entries "
        f"({first['entries'] / of:.1%}; without a mask {first['movable']:,}), in directions of "
        f"length {lengths}" + (f" (before rescaling {kept})" if rescaled else f" of {wholes}"),
        f"control: a random mask of as many entries (--mask random --mask-by entry --mask-share "
        f"{first['control_share']:.8g}) leaves a length of {controls}",
    ]
    if first["still"]:
        said.append(
            f"note: {first['vectors']} of the {first['tensors']} tensors that the mask selects are "
            f"vectors (biases, norms), which do not move: {first['still']:,} of its entries are "
            "selected for nothing (--one-axis moves them, --mask-by matrix ranks matrices alone)"
        )
    if pd.notna(first["unseen"]) and first["unseen"]:
        said.append(
            f"note: {first['unseen']:,} of the entries that move have a Fisher of exactly 0 "
            "(embeddings of tokens that the data do not have, say)"
        )
    return tuple(said)
