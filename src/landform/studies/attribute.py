"""Factors and what is made of them in one go: scores of several query sets, a ranking of rows.

This is what `landform influence`, `landform mislabel` and study files run: fit (or read) the
factors, score, and keep the results in the study under names made of what they are about, so that
several strategies, measurements and query sets have a place each.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from landform.attribution.influence import (
    DampingConfig,
    Influence,
    InfluenceConfig,
    InfluenceStudy,
    SelfInfluence,
    influence,
    self_influence,
)
from landform.attribution.measurement import Measurement
from landform.attribution.mislabel import Known, Mislabel, MislabelConfig, known_rows, mislabel
from landform.attribution.scoring import CURVATURE_OPTIONS
from landform.config import Config
from landform.curvature.factors import FactorsConfig, FactorsStudy, FactorSummary
from landform.errors import ConfigError
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Forecast
from landform.store.study import publish, slug
from landform.studies.attribute_cost import FitCost
from landform.tasks.task import Examples, Task
from landform.training.options import TrainConfig
from landform.training.subsets import choose_rows
from landform.weights.checkpoint import Checkpoint, resolve, short_names

__all__ = [
    "Attribution",
    "AttributionConfig",
    "AttributionStudy",
    "Suspects",
    "SuspectsConfig",
    "SuspectsStudy",
    "hardest_queries",
    "layer_shares",
    "top_rows",
]

CheckpointLike = str | os.PathLike[str] | Checkpoint
Queries = Sequence[str | tuple[Task, str]]


class ScoredRowsConfig(Config):
    """Which training rows are scored, on what, and where the result is kept."""

    measurement: str = "loss"
    """What is asked about a query: loss, or margin (the log odds of its gold label)."""
    row_file: Path | None = None
    """Only the rows of the split whose text ids this file lists, one per line: the train_rows.txt
    of a run that was trained on a part of the rows."""
    train_rows: int | None = Field(None, ge=1)
    """Score the first TRAIN_ROWS rows of the split (default: those the factors are fitted on)."""
    keep_as: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the result in the study (default: made of checkpoint, task, strategy, ...)."""


class AttributionConfig(FactorsConfig, InfluenceConfig, ScoredRowsConfig):
    """How factors are fitted and training rows are scored."""

    rows: int | None = Field(None, ge=1)
    """Fit the factors on the first ROWS training rows, and score these rows (default: all)."""
    memory: float | None = Field(None, gt=0, allow_inf_nan=False)
    """GiB for gradients held in memory (default: a quarter of what the machine has)."""
    query_rows: int | None = Field(None, ge=1)
    """Score for the first QUERY_ROWS rows of each query set (default: all)."""

    @model_validator(mode="after")
    def _of_curvature(self) -> Self:
        self.check_read(self.strategy != "identity", CURVATURE_OPTIONS, "with strategy identity")
        return self


class SuspectsConfig(FactorsConfig, DampingConfig, MislabelConfig, ScoredRowsConfig):
    """How factors are fitted and training rows are ranked by self-influence."""

    rows: int | None = Field(None, ge=1)
    """Fit the factors on the first ROWS training rows, and rank these rows (default: all)."""
    memory: float | None = Field(None, gt=0, allow_inf_nan=False)
    """GiB for gradients held in memory (default: a quarter of what the machine has)."""

    @model_validator(mode="after")
    def _of_curvature(self) -> Self:
        self.check_read(self.strategy != "identity", CURVATURE_OPTIONS, "with strategy identity")
        return self


@dataclass(frozen=True, eq=False)
class _Restricted(Task):
    """A task with some rows of one split. It reads them from `base`, elsewhere too."""

    base: Task | None = None
    restricted: str = ""
    kept: tuple[int, ...] = ()

    def _examples(self, split: str) -> Examples:
        assert self.base is not None
        examples = self.base.examples(split)
        return examples.take(self.kept) if split == self.restricted else examples


def _trained_rows(task: Task, split: str, checkpoint: Checkpoint, config: ScoredRowsConfig) -> Task:
    """The task with the rows of `row_file` only; warns where a run's own list is not used."""
    split = task.resolve(split)
    if config.row_file is not None:
        chosen = choose_rows(
            task.examples(split), TrainConfig(row_file=config.row_file), classes=False
        )
        values = {field.name: getattr(task, field.name) for field in fields(Task)}
        values["_read"] = {}
        return _Restricted(**values, base=task, restricted=split, kept=chosen or ())
    for folder in (checkpoint.path, checkpoint.path.parent):
        if (folder / "train_rows.txt").is_file() and (folder / "landform.json").is_file():
            warnings.warn(
                f"{checkpoint.spec} was trained on a part of the rows; those it never met are "
                f"scored too, unless row_file is {folder / 'train_rows.txt'}",
                stacklevel=3,
            )
            break
    return task


# --- influence --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attribution:
    """What was fitted, what was scored with it, and the names under which a study keeps them."""

    factors: FactorSummary
    influences: tuple[Influence, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class AttributionStudy:
    """The plan of a fit and its scores, before any weights are loaded."""

    fit: FactorsStudy
    queries: tuple[tuple[Task, str], ...]
    config: AttributionConfig

    @classmethod
    def of(
        cls,
        checkpoint: CheckpointLike,
        task: Task,
        *,
        split: str = "train",
        queries: Queries = ("validation",),
        **options: Any,
    ) -> AttributionStudy:
        """Resolve checkpoint, rows and options; a query set is a split of the task, or
        (task, split)."""
        config = AttributionConfig.parse(options, where="influence")
        Measurement.of(config.measurement)
        found = resolve(checkpoint)
        task = _trained_rows(task, split, found, config)
        asked = tuple((task, named) if isinstance(named, str) else named for named in queries)
        if not asked:
            raise ConfigError("there are no queries", remedy="name a split, such as validation")
        for other, named in asked:
            other.resolve(named)
            if other.kind != task.kind:
                raise ConfigError(
                    f"queries: task {other.name} is {other.kind}, the factors are of {task.kind}",
                    remedy="ask about examples of the same kind of task",
                )
        if len({(other.name, other.resolve(named)) for other, named in asked}) < len(asked):
            raise ConfigError("queries: a query set is named twice", remedy="name each one once")
        if config.keep_as is not None and len(asked) > 1:
            raise ConfigError(
                f"option keep_as: one name ({config.keep_as}) for {len(asked)} query sets",
                remedy="leave it out, or ask about one query set at a time",
            )
        fit = FactorsStudy.of(found, task, split=split, **config.options_of(FactorsConfig))
        return cls(fit, asked, config)

    def forecast(self, store: ArtifactStore | None = None) -> tuple[Forecast, ...]:
        """What fitting takes, and what every query set takes after that: time and memory from a
        pass over a few training rows."""
        cost = FitCost.of(self.fit.work)
        forecasts = [cost.forecast(store)]
        for queries in self.queries:
            study = InfluenceStudy.of(
                cost.factors,
                queries=queries,
                query_rows=self.config.query_rows,
                train=self._train,
                train_rows=self.config.train_rows,
                measurement=self.config.measurement,
                **self.config.options_of(InfluenceConfig),
            )
            pairs = study.forecast(store)
            rows = len(study.work.queries.rows) + len(study.work.train.rows)
            passes = rows * cost.seconds["covariance"] if pairs.evaluations else 0.0
            forecasts.append(replace(pairs, seconds=(pairs.seconds or 0.0) + passes))
        return tuple(forecasts)

    def run(self, store: ArtifactStore | None = None, *, progress: bool = False) -> Attribution:
        """Fit and score what the store does not hold; results are published in it."""
        factors = self.fit.run(store=store, progress=progress)
        results = tuple(
            influence(
                factors,
                queries=queries,
                query_rows=self.config.query_rows,
                train=self._train,
                train_rows=self.config.train_rows,
                measurement=self.config.measurement,
                store=store,
                progress=progress,
                **self.config.options_of(InfluenceConfig),
            )
            for queries in self.queries
        )
        summary = factors.summary()
        names = self.names() if store is not None else ()
        if store is not None:
            found = zip(names, (summary, *results), strict=True)
            names = tuple(publish(store, name, result) for name, result in found)
        return Attribution(summary, results, names)

    def kept(self, result: Attribution) -> tuple[str, ...]:
        """The names under which a study keeps what came of it."""
        return result.names

    @property
    def _train(self) -> str | None:
        return None if self.config.train_rows is None else self.fit.work.data.split

    def names(self) -> tuple[str, ...]:
        """The names in a study of the factors and of the scores of each query set."""
        config = self.config
        if config.keep_as is not None:
            return f"{config.keep_as}-factors", config.keep_as
        about = _about(config, self.fit.work.checkpoint)
        scores = tuple(
            slug("influence", *about, config.measurement, task.name, task.resolve(split))
            for task, split in self.queries
        )
        task = self.fit.work.data.task
        return slug("factors", *about, task.name, task.resolve(self.fit.work.data.split)), *scores


def _about(config: FactorsConfig, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Checkpoint, strategy, labels, and the number format where it is not the usual one."""
    parts = (short_names([checkpoint])[0], config.strategy, config.labels)
    return parts if config.dtype == "float32" else (*parts, config.dtype)


def hardest_queries(result: Influence, count: int) -> list[int]:
    """Positions of the queries with the highest loss, highest first."""
    losses = result.queries["loss"].to_numpy(dtype=float)
    return [int(query) for query in np.argsort(-losses, kind="stable")[:count]]


def layer_shares(result: Influence) -> pd.Series:
    """Each layer's share of the sum over layers of its absolute scores, largest first."""
    parts = {name: part.abs().to_numpy().sum() for name, part in (result.modules or {}).items()}
    shares = pd.Series(parts, dtype=float).sort_values(ascending=False, kind="stable")
    return shares / (shares.sum() or 1.0)


def top_rows(results: Sequence[Influence], k: int) -> pd.DataFrame:
    """The k most helpful and k most harmful rows of every query, one below the other.

    Columns: queries (the number of the query set), query, query_id, side, rank (from 1), row,
    score, label, text and, of pairs, text_pair.
    """
    tables = []
    for number, result in enumerate(results):
        summed = result.scores is not None and result.scores.shape[1] != len(result.queries)
        ids = ["all"] if summed else list(result.queries["text_id"])
        for query, text_id in enumerate(ids):
            for side, harmful in (("helpful", False), ("harmful", True)):
                top = result.top(query, k, harmful=harmful)
                about = {"queries": number, "query": query, "query_id": text_id, "side": side}
                ranks = range(1, len(top) + 1)
                tables.append(top.assign(**about, rank=ranks)[[*about, "rank", *top.columns]])
    return pd.concat(tables, ignore_index=True)


# --- wrong labels -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Suspects:
    """What was fitted, the self-influence of the rows, and the ranking by it."""

    factors: FactorSummary
    source: SelfInfluence
    ranking: Mislabel
    names: tuple[str, ...]


@dataclass(frozen=True)
class SuspectsStudy:
    """The plan of a ranking, before anything is loaded."""

    fit: FactorsStudy
    known: Known | None
    config: SuspectsConfig

    @classmethod
    def of(
        cls,
        checkpoint: CheckpointLike,
        task: Task,
        *,
        split: str = "train",
        known: Known | None = None,
        **options: Any,
    ) -> SuspectsStudy:
        """Resolve checkpoint, rows and options; raises for what `known` names and is not there."""
        config = SuspectsConfig.parse(options, where="mislabel")
        unread = config.options_given(["replicates", "level"]) if known is None else []
        if unread:
            raise ConfigError(
                f"option {unread[0]} has no effect without known: it says how sure the recall is",
                remedy="leave it out, or name the rows whose labels are known to be wrong",
            )
        Measurement.of(config.measurement)
        found = resolve(checkpoint)
        task = _trained_rows(task, split, found, config)
        fit = FactorsStudy.of(found, task, split=split, **config.options_of(FactorsConfig))
        if known is not None and not isinstance(known, str | os.PathLike):
            known = known if hasattr(known, "__array__") else list(cast(Iterable[int], known))
        study = cls(fit, known, config)
        if known is not None:
            ids = task.examples(split, rows=study._rows).ids
            known_rows(known, pd.DataFrame({"row": range(len(ids)), "text_id": ids}))
        return study

    def forecast(self, store: ArtifactStore | None = None) -> tuple[Forecast, ...]:
        """What fitting takes, and what ranking the rows takes after that."""
        cost = FitCost.of(self.fit.work)
        split = self.fit.work.data.split
        rows = len(cost.factors.task.examples(split, rows=self._rows))
        passes = 2 if self.config.measurement == "loss" else 3
        return cost.forecast(store), cost.rows_forecast("self-influence", rows, passes)

    @property
    def _rows(self) -> int | None:
        config = self.config
        return config.rows if config.train_rows is None else config.train_rows

    def run(self, store: ArtifactStore | None = None, *, progress: bool = False) -> Suspects:
        """Fit and rank what the store does not hold; results are published in it."""
        factors = self.fit.run(store=store, progress=progress)
        wanted = self.config.train_rows
        source = self_influence(
            factors,
            split=None if wanted is None else self.fit.work.data.split,
            rows=wanted,
            measurement=self.config.measurement,
            store=store,
            progress=progress,
            memory=self.config.memory,
            **self.config.options_of(DampingConfig),
        )
        ranking = mislabel(source, known=self.known, **self.config.options_of(MislabelConfig))
        summary = factors.summary()
        names = self.names() if store is not None else ()
        if store is not None:
            found = zip(names, (summary, source, ranking), strict=True)
            names = tuple(publish(store, name, result) for name, result in found)
        return Suspects(summary, source, ranking, names)

    def kept(self, result: Suspects) -> tuple[str, ...]:
        """The names under which a study keeps what came of it."""
        return result.names

    def names(self) -> tuple[str, ...]:
        """The names in a study of the factors, of the self-influence and of the ranking."""
        config, data = self.config, self.fit.work.data
        if config.keep_as is not None:
            return f"{config.keep_as}-factors", f"{config.keep_as}-scores", config.keep_as
        about = _about(config, self.fit.work.checkpoint)
        task = (data.task.name, data.task.resolve(data.split))
        return (
            slug("factors", *about, *task),
            slug("self", *about, config.measurement, *task),
            slug("mislabel", *about, config.measurement, *task),
        )
