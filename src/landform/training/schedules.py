"""Dropout schedules: a probability for every sub-layer, by how much Fisher says that it matters.

With L sites, s_k the Fisher score of the site of rank k, k = 0 the lowest and L-1 the highest:

    rank-linear          p_k = low + (high - low) (L - 1 - k) / (L - 1)
    value-proportional   p_k = high - (high - low) (s_k - min s) / (max s - min s)
    inverse              p_k = max(low, high min s / s_k), min s the lowest score above 0

All three give `high` to the lowest score. rank-linear is the schedule of Sharma et al. 2024 (arXiv
2406.14005, equations 9 and 10): it reads the order of the scores alone, equal ones in the model's
order. One site has the lowest score (`high`); of scores that are all equal, value-proportional
gives the middle of the bounds.

Whether Fisher helps is not seen by comparing such a schedule with 0.1 everywhere, whose mean is
twice as high. The controls keep the schedule's probabilities, or their mean:

    uniform    every site has the schedule's mean
    reversed   the site of rank k has the probability of rank L-1-k
    shuffled   the probabilities permuted at random (`seed`)
    by-type    every site has the mean of the sites of its type (its path without the layer)
    standard   every site has 0.1
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from landform.config import Config, nearest
from landform.curvature.fisher import Fisher, FisherScores, Weighting, load_fisher
from landform.errors import ConfigError, StoreError
from landform.results import Result
from landform.store.atomic import read_json, write_json
from landform.store.fingerprint import fingerprint

__all__ = [
    "PRESETS",
    "DropoutSchedule",
    "ScheduleConfig",
    "check_probabilities",
    "dropout_schedule",
    "is_preset",
    "make_schedule",
    "preset_scores",
    "read_schedule",
    "site_type",
    "write_schedule",
]

FORMAT = 1
WHAT = "dropout schedule"
STANDARD = 0.1

Kind = Literal["rank-linear", "value-proportional", "inverse"]
Control = Literal["uniform", "reversed", "shuffled", "by-type", "standard"]


class ScheduleConfig(Config):
    """How Fisher scores become dropout probabilities."""

    kind: Kind = "rank-linear"
    """How p falls with the score: linearly with its rank, or with its value, or as 1/score."""
    low: float = Field(0.0, ge=0, lt=1)
    """Probability of the highest score."""
    high: float = Field(0.1, ge=0, lt=1)
    """Probability of the lowest score."""
    control: Control | None = None
    """A control in place of the schedule: uniform (its mean everywhere), reversed, shuffled,
    by-type (the mean of each type of sub-layer), or standard (0.1 everywhere)."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the permutation of control shuffled."""
    weighting: Weighting = "entries"
    """Score of a sub-layer: the mean over its entries, or over its tensors of their own means."""
    matrices_only: bool = False
    """Leave biases and norms out of the scores."""
    compat: Literal["guided-dropout"] | None = None
    """The choices of the paper's code: weighting tensors, high 0.099 (where not given)."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("compat") == "guided-dropout":
            return {"weighting": "tensors", "high": 0.099, **value}
        return value

    @model_validator(mode="after")
    def _bounds(self) -> ScheduleConfig:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) lies above high ({self.high:g})")
        return self

    @model_validator(mode="after")
    def _read_by_control(self) -> ScheduleConfig:
        self.check_read(self.control == "shuffled", ["seed"], "without control shuffled")
        # What compat puts in place of a default was asked for by nobody.
        shape = ["kind", "low"] if self.compat else ["kind", "low", "high"]
        self.check_read(self.control != "standard", shape, "with control standard")
        return self


@dataclass(frozen=True)
class DropoutSchedule(Result):
    """A dropout probability for every site, and why."""

    source: str
    """the checkpoint of the Fisher, the preset, or "scores" """
    kind: str
    control: str | None
    low: float
    high: float
    table: pd.DataFrame
    """one row per site in the model's order: site, type (its path with * for the layer), score
    (Fisher), error (its standard error over examples, NaN where not known), rank (0: lowest score),
    p"""
    provenance: dict[str, Any]

    @classmethod
    def of(cls, scores: Scores, **options: Any) -> DropoutSchedule:
        """The schedule of `dropout_schedule`, with scores, errors and ranks."""
        return make_schedule(scores, **options)

    @property
    def probabilities(self) -> dict[str, float]:
        """{site: p}, what `apply_dropout` and `train` take."""
        return dict(zip(self.table.site, map(float, self.table.p), strict=True))

    @property
    def mean(self) -> float:
        """Mean probability over the sites."""
        return float(self.table.p.mean())

    @property
    def reading(self) -> str:
        """One line for a person."""
        name = self.kind if self.control is None else f"control {self.control} of {self.kind}"
        spans = self.table.groupby("type")["rank"].agg(["min", "max"]).sort_values("min")
        gaps = spans["min"].iloc[1:].to_numpy() > spans["max"].iloc[:-1].to_numpy()
        apart = self.control is None and 1 < len(spans) < len(self.table) and bool(gaps.all())
        return (
            f"{name} schedule from {self.source}: {len(self.table)} sites, p from "
            f"{self.table.p.min():.4g} to {self.table.p.max():.4g}, mean {self.mean:.4g}"
            + ("; the order is one of sub-layer types (compare control by-type)" if apart else "")
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "source": self.source,
            "kind": self.kind,
            "control": self.control,
            "low": self.low,
            "high": self.high,
            "mean": self.mean,
            "sites": self.table.to_dict("records"),
            "provenance": self.provenance,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a schedule file; its record says how it was made."""
        record = {name: v for name, v in self.to_json().items() if name != "sites"}
        scores = dict(zip(self.table.site, map(float, self.table.score), strict=True))
        return write_schedule(path, self.probabilities, record={**record, "scores": scores})


Scores = Fisher | FisherScores | Mapping[str, float] | str | os.PathLike[str]


def dropout_schedule(scores: Scores, **options: Any) -> dict[str, float]:
    """{site: dropout probability} from Fisher scores; see the formulas above.

    `scores`: a Fisher diagonal, its file, {site: score}, or the name of a preset ("bert-guided":
    the order published for BERT-base). `options` are the fields of `ScheduleConfig`: kind, low,
    high, control, seed, weighting, matrices_only, compat.

    Raises `ConfigError` for scores that are negative or not finite, and for a Fisher of a model
    whose dropout sites are not known.
    """
    return make_schedule(scores, **options).probabilities


def make_schedule(scores: Scores, **options: Any) -> DropoutSchedule:
    """The schedule of `dropout_schedule` as a result, with scores, errors and ranks."""
    source: Any = scores
    if is_preset(scores):
        options, source = {"compat": "guided-dropout", **options}, preset_scores(scores)
    config = ScheduleConfig.parse(options, where="dropout_schedule")
    for name in ("weighting", "matrices_only"):
        if isinstance(source, Mapping | pd.Series) and name in options:
            raise ConfigError(
                f"option {name} has no effect on scores of whole sub-layers: it says how the "
                "tensors of a Fisher make them",
                remedy="leave it out, or give the file of a Fisher",
            )
    made_from, table, about = _scores(source, config)
    _check_scores(table)
    table["rank"] = table.score.rank(method="first").astype(int) - 1
    table["type"] = [site_type(site) for site in table.site]
    table["p"] = _controlled(_probabilities(table, config), table, config)
    return DropoutSchedule(
        source=scores if is_preset(scores) else made_from,
        kind=config.kind,
        control=config.control,
        low=config.low,
        high=config.high,
        table=table[["site", "type", "score", "error", "rank", "p"]],
        provenance={"options": config.model_dump(mode="json"), **about},
    )


def _scores(source: Any, config: ScheduleConfig) -> tuple[str, pd.DataFrame, dict[str, Any]]:
    """Where scores come from, a table of site, score and error, and what made them."""
    if isinstance(source, Mapping | pd.Series):
        names = [str(name) for name, _ in source.items()]
        values = [float(value) for _, value in source.items()]
        table = pd.DataFrame({"site": names, "score": values, "error": math.nan})
        return "scores", table, {"scores": fingerprint(dict(zip(names, values, strict=True)))}
    if not isinstance(source, FisherScores):
        source = load_fisher(source).summary
    options = {"weighting": config.weighting, "matrices_only": config.matrices_only}
    found = source.groups("sublayer", **options)
    table = found[["name", "score", "error"]].rename(columns={"name": "site"})
    return source.checkpoint, table, {"fisher": source.provenance}


def _check_scores(table: pd.DataFrame) -> None:
    if table.empty:
        raise ConfigError(
            "a dropout schedule needs at least one site", remedy="give {site: score}, or a Fisher"
        )
    bad = table[~np.isfinite(table.score) | (table.score < 0)]
    if len(bad):
        raise ConfigError(
            f"the score of {bad.site.iloc[0]} is {bad.score.iloc[0]:g}",
            remedy="Fisher scores are finite and not negative: compute the Fisher again",
        )


def _probabilities(table: pd.DataFrame, config: ScheduleConfig) -> Any:
    low, high, count = config.low, config.high, len(table)
    score = table.score.to_numpy(dtype=float)
    if config.kind == "rank-linear":
        rank = table["rank"].to_numpy(dtype=float)
        return low + (high - low) * (count - 1 - rank) / (count - 1) if count > 1 else _all(high, 1)
    if config.kind == "value-proportional":
        span = score.max() - score.min()
        if span == 0:
            return _all((low + high) / 2, count)
        return high - (high - low) * (score - score.min()) / span
    positive = score[score > 0]
    if not len(positive):
        return _all(high, count)
    safe = np.where(score > 0, score, positive.min())
    return np.maximum(low, high * positive.min() / safe)


def _all(value: float, count: int) -> Any:
    return np.full(count, value)


def _controlled(p: Any, table: pd.DataFrame, config: ScheduleConfig) -> Any:
    if config.control is None:
        return p
    if config.control == "standard":
        return _all(STANDARD, len(p))
    if config.control == "uniform":
        return _all(float(p.mean()), len(p))
    if config.control == "shuffled":
        return np.random.default_rng(config.seed).permutation(p)
    if config.control == "reversed":
        rank = table["rank"].to_numpy()
        by_rank = np.empty_like(p)
        by_rank[rank] = p
        return by_rank[len(p) - 1 - rank]
    means: pd.Series = pd.Series(p).groupby(table.type.to_numpy()).transform("mean")
    return means.to_numpy()


def site_type(site: str) -> str:
    """The type of a sub-layer: its path with * for the number of its layer."""
    # The first number alone: in T5 block.3.layer.1 is the second part of block 3.
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", site, count=1)


# --- the published order ------------------------------------------------------------------------

_PUBLISHED: Mapping[str, tuple[int, ...]] = {
    # Layers of BERT-base from the lowest to the highest Fisher score within each type; the types
    # follow one another, the embeddings are the highest of all.
    "attention": (7, 10, 9, 8, 1, 6, 11, 2, 0, 5, 3, 4),
    "attention_output": (11, 0, 9, 10, 7, 1, 6, 8, 2, 5, 4, 3),
    "feed_forward_output": (11, 9, 6, 5, 2, 0, 10, 8, 7, 1, 4, 3),
}
_BERT_NAMES = {
    "attention": "attention.self.dropout",
    "attention_output": "attention.output.dropout",
    "feed_forward_output": "output.dropout",
}
PRESETS = ("bert-guided",)
"""Names of schedules that need no Fisher. bert-guided: the 37 values of Sharma et al. 2024 for
BERT-base, p = 0.00275 (36 - k), from the order that their code holds."""


def is_preset(value: object) -> TypeGuard[str]:
    """Whether the name of a preset is meant, and no file that is called so."""
    return isinstance(value, str) and value in PRESETS and not Path(value).exists()


def preset_scores(name: str) -> dict[str, float]:
    """{site: rank} of a preset, the site of the lowest rank first asked for in the model's order.

    Raises `ConfigError` for a name that is not known.
    """
    if name not in PRESETS:
        guess = nearest(name, PRESETS)
        raise ConfigError(
            f"there is no preset {name!r}",
            remedy=(f"did you mean {guess!r}? " if guess else "") + f"known: {', '.join(PRESETS)}",
        )
    rank = {
        (kind, layer): 12 * number + place
        for number, (kind, layers) in enumerate(_PUBLISHED.items())
        for place, layer in enumerate(layers)
    }
    scores = {"bert.embeddings.dropout": 36.0}
    for layer in range(12):
        for kind, end in _BERT_NAMES.items():
            scores[f"bert.encoder.layer.{layer}.{end}"] = float(rank[kind, layer])
    return scores


# --- files --------------------------------------------------------------------------------------


def write_schedule(
    path: str | os.PathLike[str],
    probabilities: Mapping[str, float],
    *,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write {site: p} as a schedule file."""
    target = Path(path)
    checked = check_probabilities(probabilities, "the schedule")
    about = {"format": FORMAT, "what": WHAT, "probabilities": checked, "record": dict(record or {})}
    write_json(target, json.loads(json.dumps(about, default=str)))
    return target


def read_schedule(path: str | os.PathLike[str]) -> dict[str, float]:
    """{site: p} of a schedule file. Raises `StoreError` for another file, `ConfigError` for values
    that are no probabilities."""
    place = Path(path)
    if place.suffix == ".safetensors":
        raise StoreError(
            f"{place} holds tensors, no dropout schedule",
            remedy=f"if it is a Fisher, make a schedule from it: landform dropout {place} --out "
            "schedule.json",
        )
    value = read_json(place)
    if not isinstance(value, dict) or value.get("what") != WHAT:
        raise StoreError(
            f"{place} holds no dropout schedule",
            remedy='make one with landform dropout; it is {"format": 1, "what": "dropout schedule",'
            ' "probabilities": {site: p}}',
        )
    if not isinstance(value.get("format"), int) or value["format"] > FORMAT:
        raise StoreError(
            f"{place} was written by a newer landform",
            remedy="install that version, or make it again",
        )
    if not isinstance(value.get("probabilities"), dict):
        raise StoreError(f"{place} has no probabilities", remedy="make it again: landform dropout")
    return check_probabilities(value["probabilities"], str(place))


def check_probabilities(values: Mapping[Any, Any], where: str) -> dict[str, float]:
    """The values as {str: float}; a `ConfigError` names the first that is no such probability."""
    if not values:
        raise ConfigError(f"{where} names no site", remedy="give {site: probability}")
    checked = {}
    for name, value in values.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not 0 <= value < 1:
            raise ConfigError(
                f"{where} gives {name} the dropout probability {value!r}",
                remedy="a probability is a number of at least 0 and below 1",
            )
        checked[str(name)] = float(value)
    return checked
