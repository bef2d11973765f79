"""Subsets of the training rows by their place on the data map, to train on.

subset       rows
easy         the highest confidence
hard         the lowest confidence
ambiguous    the highest variability
forgotten    at least one forgetting event (allforget in the tables of Qin et al. 2022): all of
             them, or a random choice of `size`
forgeteasy   of the forgotten ones those of the highest confidence
forgethard   of the forgotten ones those of the lowest confidence
random       any rows: the control that every other subset should be compared with
mix          parts of the others

Rows of equal value are put in a random order that the seed decides. Easy, hard and ambiguous are
those of Swayamdipta et al. 2020 (section 3), who take a third of the rows; the other names are from
the task table of Qin et al. 2022, whose own definitions were not published.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, model_validator

from landform.config import Config
from landform.errors import ConfigError, DataError
from landform.evaluation.cartography import DataMap, DataMapConfig
from landform.tasks.rows import write_row_file

__all__ = [
    "CartographyConfig",
    "SubsetConfig",
    "SubsetName",
    "choose_subset",
    "export_subset",
    "parse_mix",
]

SubsetName = Literal[
    "easy", "hard", "ambiguous", "forgotten", "allforget", "forgeteasy", "forgethard", "random",
    "mix",
]  # fmt: skip
_FORGOTTEN = ("forgotten", "allforget", "forgeteasy", "forgethard")
_PARTS = tuple(name for name in get_args(SubsetName) if name != "mix")


class SubsetConfig(Config):
    """Which training rows are chosen by their place on the data map."""

    choose: SubsetName | None = None
    """Choose rows: easy, hard, ambiguous, forgotten (or allforget), forgeteasy, forgethard, random
    or mix."""
    size: int | None = Field(None, ge=1)
    """How many rows to choose (default: a third of them; all forgotten ones)."""
    share: float | None = Field(None, gt=0, le=1)
    """How many rows to choose, as a share of all."""
    mix: tuple[str, ...] = ()
    """Parts of a mix: NAME=ROWS, or NAME=SHARE of its size (default: easy, ambiguous and hard in
    equal parts)."""
    seed: int = Field(0, ge=0)
    """Seed of the order of equal rows, and of what is drawn at random."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size is not None and self.share is not None:
            raise ValueError("size and share both say how many rows: give one of them")
        given = [name for name in ("size", "share", "mix") if getattr(self, name)]
        if self.choose is None and given:
            raise ValueError(f"{given[0]} needs choose: which rows?")
        if self.mix:
            if self.choose != "mix":
                raise ValueError("mix needs choose mix")
            parse_mix(self.mix)
        return self


class CartographyConfig(SubsetConfig, DataMapConfig):
    """Options of the command: the map, and the rows chosen from it."""


def parse_mix(parts: Sequence[str]) -> dict[str, float]:
    """`["easy=2000", "hard=0.5"]` as a mapping; ValueError where a part cannot be read."""
    found: dict[str, float] = {}
    for part in parts:
        name, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if name not in _PARTS or not 0 < value < float("inf") or (value > 1 and value % 1):
            raise ValueError(
                f"part {part!r} of a mix: expected NAME=ROWS or NAME=SHARE with a name of "
                f"{', '.join(_PARTS)}"
            )
        if name in found:
            raise ValueError(f"{name} occurs twice in the mix")
        found[name] = value
    if len({_is_share(value) for value in found.values()}) > 1:
        raise ValueError("a mix is given in rows or in shares, not in both")
    if found and _is_share(next(iter(found.values()))) and sum(found.values()) > 1 + 1e-9:
        raise ValueError("the shares of a mix add up to more than 1")
    return found


def _is_share(value: float) -> bool:
    return value < 1  # "=1" is one row: a mix of one part alone is that subset


def choose_subset(
    table: pd.DataFrame,
    subset: str,
    *,
    size: int | None = None,
    share: float | None = None,
    mix: Mapping[str, float] | None = None,
    seed: int = 0,
) -> tuple[str, ...]:
    """Text ids of a subset of the rows of `table` (see `cartography`), the most typical first.

    `size` rows, or a `share` of all; by default a third of the rows (of the forgotten ones, all).
    A `mix` names its parts with their rows (or, all below 1, their shares of the size); a row goes
    to the first part that takes it, and later parts take their next ones. Raises `ConfigError` for
    a subset that is unknown, `DataError` where there are fewer rows than asked for.
    """
    if subset != "mix" and mix:
        raise ConfigError(f"option mix needs subset mix, not {subset!r}")
    if subset not in get_args(SubsetName):
        known = ", ".join(get_args(SubsetName))
        raise ConfigError(f"unknown subset {subset!r}", remedy=f"there are: {known}")
    count = len(table)
    if share is not None:
        size = round(share * count)
    if size is not None and not 1 <= size <= count:
        raise DataError(
            f"a subset of {size} rows cannot be chosen from {count}",
            remedy=f"choose 1 to {count} rows",
        )
    if subset == "mix":
        rows = _mixed(table, mix or {}, size, seed)
    else:
        rows = _ranked(table, subset, seed)
        if size is None and subset not in _FORGOTTEN:
            size = max(1, round(count / 3))
        rows = _first(rows, size, subset)
    return tuple(table["text_id"].iloc[rows])


def _first(rows: npt.NDArray[np.int64], size: int | None, subset: str) -> npt.NDArray[np.int64]:
    if not len(rows) or (size is not None and size > len(rows)):
        raise DataError(
            f"subset {subset}: {size or 'some'} rows were asked for, and there are {len(rows)}",
            remedy="choose fewer rows, or another subset"
            + ("; few epochs see few forgetting events" if subset in _FORGOTTEN else ""),
        )
    return rows[:size]


def _ranked(table: pd.DataFrame, subset: str, seed: int) -> npt.NDArray[np.int64]:
    """Positions in `table` of all rows of a subset, the most typical first."""
    count = len(table)
    confidence = table["confidence"].to_numpy(np.float64)
    chance = np.random.default_rng(seed).permutation(count)
    keys = {
        "easy": -confidence,
        "forgeteasy": -confidence,
        "hard": confidence,
        "forgethard": confidence,
        "ambiguous": -table["variability"].to_numpy(np.float64),
    }
    order = np.lexsort((chance, keys.get(subset, np.zeros(count))))
    if subset in _FORGOTTEN:
        order = order[table["forgetting"].to_numpy()[order] > 0]
    return order.astype(np.int64)


def _mixed(
    table: pd.DataFrame, mix: Mapping[str, float], size: int | None, seed: int
) -> npt.NDArray[np.int64]:
    parts = dict(mix) or {name: 1 / 3 for name in ("easy", "ambiguous", "hard")}
    if wrong := [name for name in parts if name not in _PARTS]:
        raise ConfigError(
            f"a mix cannot have the part {wrong[0]!r}", remedy=f"there are: {', '.join(_PARTS)}"
        )
    if all(map(_is_share, parts.values())):
        total = max(1, round(len(table) / 3)) if size is None else size
        # Rounded so that the parts of a whole add up to it.
        ends = np.rint(np.cumsum(list(parts.values())) * total).astype(int)
        sizes = np.diff(ends, prepend=0)
    else:
        sizes = np.array([int(value) for value in parts.values()])
        if size is not None and size != sizes.sum():
            raise ConfigError(
                f"the parts of the mix are {sizes.sum()} rows, and size is {size}",
                remedy="leave size out, or give shares",
            )
    taken = np.zeros(len(table), dtype=bool)
    chosen: list[npt.NDArray[np.int64]] = []
    for name, wanted in zip(parts, sizes.tolist(), strict=True):
        if not wanted:
            continue
        free = _ranked(table, name, seed)
        part = _first(free[~taken[free]], wanted, f"mix, part {name}")
        taken[part] = True
        chosen.append(part)
    return np.concatenate(chosen)


def export_subset(
    result: DataMap, config: SubsetConfig, path: str | os.PathLike[str]
) -> dict[str, Any]:
    """Choose rows of a map and write them as a row file; what was chosen, in numbers.

    subset, rows, confidence (lowest and highest), variability, correctness and, where the labels
    are known, labels: how many rows of each.
    """
    if config.choose is None:
        raise ConfigError("no subset to write", remedy="name one: easy, hard, ambiguous, ...")
    ids = choose_subset(
        result.table,
        config.choose,
        size=config.size,
        share=config.share,
        mix=parse_mix(config.mix),
        seed=config.seed,
    )
    write_row_file(ids, path)
    rows = result.table[result.table["text_id"].isin(set(ids))]
    said: dict[str, Any] = {"subset": config.choose, "rows": len(ids)}
    said["confidence"] = [float(rows["confidence"].min()), float(rows["confidence"].max())]
    said |= {name: float(rows[name].mean()) for name in ("variability", "correctness")}
    if result.by_label is not None:
        counts = rows["label"].value_counts()
        said["labels"] = {str(n): int(counts.get(n, 0)) for n in result.by_label["label"]}
    return said
