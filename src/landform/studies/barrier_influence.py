"""Which training examples raise the ridge between two models.

The barrier at position t of the line theta(t) = (1 - t) a + t b is

    B = L(theta(t)) - (1 - t) L(a) - t L(b)

with L a mean loss on data that neither was trained on. Leaving training row z out moves each end
x in {a, b} by H_x^-1 grad l_z(x) / N_x to first order (Koh and Liang 2017: the row's weight falls
by 1 / N_x), the point between them with both, and so the barrier by

    dB(z) = (1 - t) / N_a (grad L(theta(t)) - grad L(a))^T H_a^-1 grad l_z(a)
          +       t / N_b (grad L(theta(t)) - grad L(b))^T H_b^-1 grad l_z(b)

A row with dB < 0 raises the ridge: without it the ridge is lower. The gradients of L at the ends
are not zero (L is not the loss that was minimised), and stay in. H is what factors say of each end
(`landform.curvature.factors`), and only the layers that they see are moved.

First order is a claim, not a measurement: training stops before the minimum, the damping decides
the scale, and removing many rows at once is no small step. `retrain` removes rows and trains again
(`landform.studies.barrier_check`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor

from landform.attribution.directions import Directions, direction_scores, layer_share
from landform.attribution.rows import Side
from landform.attribution.scoring import CURVATURE_OPTIONS, DampingConfig
from landform.config import Config
from landform.curvature.factors import Factors, FactorsStudy
from landform.curvature.fitting import Strategy
from landform.curvature.labels import Labels
from landform.errors import ConfigError
from landform.evaluation.data import as_data
from landform.evaluation.field import Field
from landform.evaluation.intervals import percentile_interval, resample_counts
from landform.evaluation.points import Data, PointsConfig, PointsWork
from landform.geometry.line import InterpolateConfig, Walk, forecast_line, line_work, walk_line
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.plan import Forecast, Job
from landform.store.study import open_store, publish, slug
from landform.studies.barrier_check import (
    BarrierCheck,
    BarrierCheckConfig,
    trained_examples,
    verdict,
)
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import Checkpoint, short_names

__all__ = ["BarrierInfluence", "BarrierInfluenceConfig", "BarrierStudy", "barrier_influence"]

Named = str | os.PathLike[str] | Checkpoint


class BarrierInfluenceConfig(BarrierCheckConfig, DampingConfig, PointsConfig):
    """How the ridge is found, and how training rows are scored."""

    points: int = Option(11, ge=3)
    """Points of the line, among which the top of the ridge is looked for."""
    at: float | None = Option(None, gt=0, lt=1)
    """Position on the line (default: where the mean loss is highest above the chord)."""
    strategy: Strategy = "ekfac"
    """The curvature at both ends: identity, diagonal, kfac or ekfac."""
    labels: Labels = "true"
    """Whose labels the curvature is of: true (the model's own), empirical or sampled."""
    relative_damping: float | None = Option(0.1, ge=0, allow_inf_nan=False)
    """Add this times the mean eigenvalue of each layer to every eigenvalue (none: DAMPING)."""
    rows: int | None = Option(None, ge=1)
    """Score the first ROWS rows of the training split, and fit the factors on them (default: all).
    """
    eval_rows: int | None = Option(None, ge=1)
    """Measure the barrier on the first EVAL_ROWS examples (default: all)."""
    include: tuple[str, ...] = ()
    """Only layers whose names fit one of these patterns (default: all that were trained)."""
    exclude: tuple[str, ...] = ()
    """No layers whose names fit one of these patterns."""

    @model_validator(mode="before")
    @classmethod
    def _one_damping(cls, given: Any) -> Any:
        """An absolute damping that is asked for is not overruled by the default of the other."""
        absolute = isinstance(given, dict) and given.get("damping") is not None
        if absolute and "relative_damping" not in given:
            return {**given, "relative_damping": None}
        return given

    @model_validator(mode="after")
    def _of_curvature(self) -> Self:
        self.check_read(self.strategy != "identity", CURVATURE_OPTIONS, "with strategy identity")
        return self


@dataclass(frozen=True)
class BarrierInfluence(Result):
    """What leaving out each training row does to the barrier between two models."""

    a: str
    b: str
    task: str
    train: str
    """the training rows, TASK:SPLIT"""
    data: str
    """what the barrier is measured on, TASK:SPLIT"""
    kind: str
    """kind of the task: losses are in nats, for regression in squared units"""
    t: float
    """position on the line"""
    barrier: float
    """B at t"""
    low: float
    """percentile bootstrap over the examples of `data`, t held where it is"""
    high: float
    strategy: str
    labels: str
    damping: str
    table: pd.DataFrame
    """one row per training row, those that raise the ridge most first: rank, row, text_id, text,
    text_pair, label, change (dB: of the barrier, when the row is left out), top and chord (of the
    loss at t, and of the chord: change = top - chord), via_a and via_b (through each end:
    change = via_a + via_b)"""
    share_a: float
    """share of the squared length of grad L(theta(t)) - grad L(a) in the layers that are seen"""
    share_b: float
    level: float
    check: pd.DataFrame | None
    """every retrained pair: pair, seed_a, seed_b, removal (none, top, bottom, random 1, ...),
    removed (rows), predicted, barrier (at t), height (of the whole line), loss_a, loss_b, loss"""
    summary: pd.DataFrame | None
    """what the removals did, over pairs: removal, removed, predicted, change, low, high (Student's
    t over pairs), pairs; "top - random" and "bottom - random" are paired differences"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        unit = loss_unit(self.kind)
        where = (
            f"barrier {self.barrier:.4g} [{self.low:.4g}, {self.high:.4g}] {unit} at t = "
            f"{self.t:.3g} between {self.a} and {self.b} on {self.data}"
        )
        if self.barrier <= 0:
            where = f"no ridge: {where}"
        if self.summary is not None:
            return f"{where}; {verdict(self.summary, unit)}"
        lowering = self.table["change"].clip(upper=0)
        tenth = max(1, len(self.table) // 10)
        share = float(lowering.head(tenth).sum() / (lowering.sum() or 1.0))
        return (
            f"{where}; to first order, leaving out the {tenth} of {len(self.table)} rows of "
            f"{self.train} that raise it most changes it by {lowering.head(tenth).sum():+.3g} "
            f"({share:.0%} of all lowering; {self.strategy}, damping {self.damping}); not checked "
            "by retraining"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; of the rows the 50 that raise the ridge most and the 50 that lower it."""
        tables = ("table", "check", "summary")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tables}
        return {
            **plain,
            "rows": len(self.table),
            "raise": self.table.head(50).to_dict("records"),
            "lower": self.table.tail(50)[::-1].to_dict("records"),
            "check": None if self.check is None else self.check.to_dict("records"),
            "summary": None if self.summary is None else self.summary.to_dict("records"),
        }


def barrier_influence(
    a: Named,
    b: Named,
    task: Task,
    *,
    train: str = "train",
    split: str | tuple[Task, str] = "validation",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> BarrierInfluence:
    """Score training rows by what leaving them out does to the barrier between two models.

    The module's docstring has the formula. `train` is the split that both were trained on (a run of
    `train` on a part of it is known by its record: rows it never met do not move it), `split` the
    data of the barrier, a split of the task or (task, split). Options are the fields of
    `BarrierInfluenceConfig`; `retrain=True` removes rows and trains both models again. With a
    `store` the line, factors, scores and retrained models are kept there and reused, and the
    result is kept for reports. Raises `ConfigError` for two models of the same weights, and for
    a check of models that are not the end of a run.
    """
    study = BarrierStudy.of(a, b, task, train=train, split=split, **options)
    return study.run(None if store is None else open_store(store), progress=progress)


@dataclass(frozen=True)
class BarrierStudy:
    """The plan of a `barrier_influence`, before anything is loaded."""

    work: PointsWork
    train: Data
    config: BarrierInfluenceConfig

    @classmethod
    def of(
        cls,
        a: Named,
        b: Named,
        task: Task,
        *,
        train: str = "train",
        split: str | tuple[Task, str] = "validation",
        **options: Any,
    ) -> Self:
        """Resolve models, data and options; raises for what cannot be done."""
        config = BarrierInfluenceConfig.parse(options, where="barrier_influence")
        data = as_data(task, split) if isinstance(split, str) else as_data(split)
        line = _line_config(config)
        work = line_work(a, b, data.task, data.split, (), line)
        if len({checkpoint.fingerprint for checkpoint in work.checkpoints}) == 1:
            raise ConfigError(
                f"{work.checkpoints[0].spec} and {work.checkpoints[1].spec} have the same weights: "
                "there is no barrier between them",
                remedy="name different checkpoints",
            )
        study = cls(work, Data(task, task.resolve(train)), config)
        for checkpoint in work.checkpoints:
            trained_examples(checkpoint, study.train)
        if config.retrain:
            study.checker.prepare()
        return study

    @cached_property
    def line(self) -> InterpolateConfig:
        """How the line is walked."""
        return _line_config(self.config)

    @cached_property
    def fits(self) -> tuple[FactorsStudy, ...]:
        """The fits of the factors at both ends."""
        names = ("strategy", "labels", "rows", "include", "exclude", "max_length", "token_budget",
                 "device", "dtype", "allow_pickle", "model_labels", "seed")  # fmt: skip
        options = {name: getattr(self.config, name) for name in names}
        return tuple(
            FactorsStudy.of(checkpoint, self.train.task, split=self.train.split, **options)
            for checkpoint in self.work.checkpoints
        )

    @cached_property
    def checker(self) -> BarrierCheck:
        """The removals and retrainings."""
        first, second = self.work.checkpoints
        return BarrierCheck(first, second, self.train, self.work.data[0], self.line, self.config)

    def forecast(self, store: ArtifactStore) -> tuple[Forecast, ...]:
        """Evaluations of the line, rows of the factors and, with `retrain`, steps of training."""
        found = [forecast_line(self.work, self.line, store)]
        found += [fit.forecast(store) for fit in self.fits]
        if self.config.retrain:
            found.append(self.checker.forecast())
        return tuple(found)

    def run(self, store: ArtifactStore | None, *, progress: bool = False) -> BarrierInfluence:
        """Do what is missing; the result is published in the store."""
        result = self._run(open_store(store), progress)
        if store is not None:
            publish(store, self.name, result)
        return result

    @property
    def name(self) -> str:
        """What its result is called in a study."""
        data = self.work.data[0]
        return slug("barrier", *short_names(self.work.checkpoints), data.task.name, data.split)

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.name,)

    def _run(self, store: ArtifactStore, progress: bool) -> BarrierInfluence:
        walk = walk_line(self.work, self.line, store, progress=progress)
        place = _top(walk) if self.config.at is None else walk.ts.index(self.config.at)
        t = walk.ts[place]
        factors = tuple(fit.run(store=store, progress=progress) for fit in self.fits)
        gradients = _Gradients(self.work, t)
        table = self._table(factors, gradients, t, store, progress)
        check = summary = None
        if self.config.retrain:
            check, summary = self.checker.run(table, t, store, progress)
        barrier, low, high = _barrier(walk, place, self.config)
        config = self.config
        shares = _shares(factors, gradients, store)
        return BarrierInfluence(
            a=self.work.checkpoints[0].spec,
            b=self.work.checkpoints[1].spec,
            task=self.train.task.name,
            train=self.train.name,
            data=self.work.data[0].name,
            kind=self.work.data[0].task.kind,
            t=t,
            barrier=barrier,
            low=low,
            high=high,
            strategy=config.strategy,
            labels=factors[0].labels,
            damping="none" if config.strategy == "identity" else config.words,
            table=table,
            share_a=shares[0],
            share_b=shares[1],
            level=config.level,
            check=check,
            summary=summary,
            provenance={
                "weights": [c.fingerprint for c in self.work.checkpoints],
                "factors": [f.fingerprint for f in factors],
                "train": factors[0].examples.fingerprint,
                "config": config.model_dump(mode="json"),
            },
        )

    def _table(
        self,
        factors: tuple[Factors, ...],
        gradients: _Gradients,
        t: float,
        store: ArtifactStore,
        progress: bool,
    ) -> pd.DataFrame:
        """dB of every row and its parts, the most lowering first."""
        side = Side.of(factors[0], None, None, "training rows")
        parts = []
        for end, share in enumerate((1 - t, t)):
            scores = direction_scores(
                factors[end],
                gradients.directions(end),
                store=store,
                progress=progress,
                damping=self.config.damping,
                relative_damping=self.config.relative_damping,
            ).astype(np.float64)
            met = trained_examples(self.work.checkpoints[end], self.train)
            known = np.isin(np.asarray(side.examples.ids), met.ids)
            parts.append(share * scores / len(met) * known[:, None])
        both = parts[0] + parts[1]
        table = side.table(self.train.task).assign(
            change=both[:, 0] - both[:, 1],
            top=both[:, 0],
            chord=both[:, 1],
            via_a=parts[0][:, 0] - parts[0][:, 1],
            via_b=parts[1][:, 0] - parts[1][:, 1],
        )
        table = table.sort_values("change", kind="stable", ignore_index=True)
        table.insert(0, "rank", np.arange(1, len(table) + 1))
        return table


def _line_config(config: BarrierInfluenceConfig) -> InterpolateConfig:
    """The options of the line; a position that is asked for is one of its points."""
    options = {name: getattr(config, name) for name in PointsConfig.model_fields}
    options |= {"rows": config.eval_rows, "points": config.points}
    line = InterpolateConfig.parse(options)
    if config.at is None or config.at in line.ts:
        return line
    return InterpolateConfig.parse({**options, "positions": sorted({*line.ts, config.at})})


def _top(walk: Walk) -> int:
    """The inner point that is highest above the chord."""
    return 1 + int(walk.above_chord()[1:-1].argmax())


def _barrier(walk: Walk, place: int, config: Config) -> tuple[float, float, float]:
    """B at a position, with its interval over examples."""
    t, points = walk.ts[place], walk.points[0]
    weights = np.asarray(points[0].tokens, dtype=np.float64)
    rises = points[place].losses - (1 - t) * points[0].losses - t * points[-1].losses
    options: Any = config
    counts = resample_counts(len(rises), options.replicates, options.seed)
    totals = counts @ weights
    drawn = (counts @ (weights * rises))[totals > 0] / totals[totals > 0]
    low, high = percentile_interval(drawn, options.level)
    return float(np.average(rises, weights=weights)), float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Gradients:
    """Gradients of the mean loss at both ends and at the point between them, when needed."""

    work: PointsWork
    t: float

    @cached_property
    def _values(self) -> tuple[Mapping[str, Tensor], ...]:
        worker = self.work()
        field = Field(worker)
        a, b = worker.points([checkpoint.fingerprint for checkpoint in self.work.checkpoints])
        found = []
        for t in (0.0, 1.0, self.t):
            worker.bound.lerp(a, b, t)
            _, slope = field.gradient()
            found.append(field.space.unflatten(slope.clone()))
        return tuple(found)

    def rise(self, end: int) -> Mapping[str, Tensor]:
        """grad L(theta(t)) - grad L(end)."""
        top, here = self._values[2], self._values[end]
        return {name: top[name] - here[name] for name in top}

    @property
    def key(self) -> str:
        """What they are made of: models, position, data."""
        return self.work.line_job(0, 1, [self.t]).key

    def directions(self, end: int) -> Directions:
        """grad L(theta(t)) and grad L(end); kept scores are known by what these are made of."""
        key = {"loss at a point of a line and at its end": self.key, "end": end}
        return Directions(key, lambda: (self._values[2], self._values[end]), 2)


def _shares(
    factors: Sequence[Factors], gradients: _Gradients, store: ArtifactStore
) -> tuple[float, ...]:
    """What the layers see of grad L(theta(t)) - grad L(end), at both ends."""
    spec = {"gradients": gradients.key, "factors": [f.fingerprint for f in factors]}
    job = Job("barrier-shares", spec)
    if job.key not in store:
        found = [layer_share(f, gradients.rise(end)) for end, f in enumerate(factors)]
        store.write(job.key, Contents(records={"shares": found}), provenance=job.provenance())
    return tuple(store.read(job.key).records["shares"])
