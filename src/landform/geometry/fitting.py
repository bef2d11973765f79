"""Curves of low loss between two checkpoints: Bezier curves and polylines with fitted bends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field as Option
from pydantic import field_validator, model_validator

from landform.errors import ConfigError, StoreError
from landform.evaluation.data import as_data_or_only, data_sets
from landform.evaluation.evaluate import metric_names, metric_replicates, metric_table
from landform.evaluation.intervals import known_interval
from landform.evaluation.points import Data, PointsConfig, PointsWork, unpack
from landform.geometry.better import better_than_ends, say_better
from landform.geometry.curves import barrier_height, curve_statistics
from landform.geometry.descent import FitConfig, FitWork, history_table, run_fit
from landform.geometry.fitted import (
    as_fitted,
    check_target,
    load_fitted,
    save_fitted,
    save_point,
    space_of,
)
from landform.geometry.line import SUMMARY_FIELDS, line_predictions
from landform.geometry.loop import SelectConfig
from landform.geometry.paths import (
    Course,
    CurveKind,
    Spacing,
    curve_weights,
    squared_distances,
)
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Job, Plan
from landform.store.study import open_store
from landform.tasks.metrics import Predictions, best_of, get_metric
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import (
    Checkpoint,
    CheckpointLike,
    LoadConfig,
    check_same_architecture,
    expand,
    load_model,
    resolve,
)
from landform.weights.points import Vertex
from landform.weights.space import ParameterSpace

__all__ = [
    "CurveConfig",
    "CurveFit",
    "FittedPath",
    "PathConfig",
    "PathEvaluation",
    "WalkConfig",
    "curve_work",
    "fit_curve",
    "plan_path",
    "walk",
]

Floats = npt.NDArray[np.float64]
STARTS = ("chord", "midpoint", "random")
SAME_ROWS = "fitted on the rows it is evaluated on"
ONLY_ROWS = "evaluated on those, which may be the rows it was fitted on"
_RECORD = "path.json"


PLM_COMMON = {
    "optimizer": "adafactor",
    "learning_rate": 1e-4,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "dropout": True,
    "select_by": "metric",
}
PLM_WHOLE = {"start": "midpoint", "samples_per_step": 3, "select_at": (0.25, 0.5, 0.75)}
PLM_TUNED = {
    "start": "random",
    "samples_per_step": 1,
    # The three positions in their file valid_random_itpl_points.csv.
    "select_at": (0.7725638477843416, 0.3729565378240084, 0.5129354059597469),
}
"""How Qin et al. 2022 fit curves: between whole models, and between adapters, LoRA or prefixes."""


class CurveConfig(SelectConfig, FitConfig):
    """How a curve is fitted."""

    kind: CurveKind = "bezier"
    """bezier: a Bezier curve of degree BENDS + 1; polyline: straight pieces from bend to bend."""
    bends: int = Option(1, ge=1)
    """Control points that are fitted, between the two ends."""
    start: str = "chord"
    """Where they start: chord (on it, in order, at equal distances), midpoint (all in its middle;
    with noise, or two bends are the same), random (where the training of adapters, LoRA, prefixes
    or prompts starts, drawn under the seed), or a third checkpoint on the way."""
    select_at: tuple[float, ...] = ()
    """Keep the bends whose mean loss (or metric) at these t is best on `select_split`, looked at
    every SAVE_EVERY steps (default: keep the last)."""
    compat: Literal["connectivity", "plm"] | None = None
    """connectivity: as the code of Juneja et al. 2023 does it; bends start in reverse order, and
    volumes enter squared, with a weight of 1e-4 unless volume_weight says otherwise. plm: as that
    of Qin et al. 2022; bends start anew (of whole models: in the midpoint), one t per step (three,
    their gradients added up), Adafactor at a constant 1e-4, dropout, the bends kept that are best
    by the metric at three t. Options that are given stay."""

    @field_validator("select_at")
    @classmethod
    def _on_the_curve(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= t <= 1 for t in value):
            raise ValueError("positions on a curve lie from 0 to 1")
        return value

    @model_validator(mode="after")
    def _used_options(self) -> Self:
        if self.select_at or self.compat == "plm":  # plm stands for positions of its own
            return self
        for name, field in SelectConfig.model_fields.items():
            if getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} says how select_at chooses, and without it the last bends are kept: "
                    "give select_at too (0.25 0.5 0.75, say)"
                )
        return self

    def settled(self, *, tuned: bool) -> Self:
        """With what `compat` stands for, where nothing else was given; `tuned`: of what was tuned
        of a model, not of a whole one."""
        if self.compat != "plm":
            return self
        return self.parse(
            {**PLM_COMMON, **(PLM_TUNED if tuned else PLM_WHOLE), **self.options_written()}
        )


class PathConfig(PointsConfig):
    """How a path is evaluated."""

    points: int = Option(11, ge=2)
    """Points on the path, both ends included."""
    spacing: Spacing = "arc"
    """Where they lie: at equal arc length, or at equal steps of t."""
    bend_points: bool = False
    """Also evaluate where the path bends (a Bezier curve: at t = k / (BENDS + 1))."""


class WalkConfig(PathConfig):
    """How a path through given checkpoints is evaluated."""

    bend_points: bool = True
    """Also evaluate the checkpoints on the way, wherever the equal steps fall."""


@dataclass(frozen=True)
class CurveShape:
    """A curve from fixed vertex 0 to fixed vertex 1 through the free ones (see `Shape`)."""

    kind: CurveKind
    bends: int
    start_at: str
    reverse: bool = False
    """start in the order of the original code, which is not that of the curve"""
    checked: tuple[float, ...] = ()
    fixed: int = 2
    stages: int = 1

    def count(self, stage: int) -> int:
        """All bends, from the beginning."""
        return self.bends

    def order(self) -> list[int]:
        """Vertex numbers from one end to the other."""
        return [0, *range(self.fixed, self.fixed + self.bends), 1]

    def start(self, stage: int) -> Floats:
        """Weights of the fixed vertices (bends, fixed) where the bends start."""
        t = np.arange(1, self.bends + 1) / (self.bends + 1)
        if self.start_at == "midpoint":
            t = np.full(self.bends, 0.5)
        if self.reverse:
            t = t[::-1]
        if self.fixed == 2:
            return np.stack([1.0 - t, t], axis=1)
        ends_and_guide = curve_weights("polyline", t, 3)  # a, the third checkpoint, b
        return ends_and_guide[:, [0, 2, 1]]

    def weights(self, t: npt.ArrayLike) -> Floats:
        """Weights (points, vertices) of the curve at t."""
        rows = np.zeros((np.size(t), self.fixed + self.bends))
        rows[:, self.order()] = curve_weights(self.kind, t, self.bends + 2)
        return rows

    def draw(self, random: np.random.Generator, stage: int) -> Floats:
        """A point at t ~ U[0, 1]."""
        return np.asarray(self.weights(random.random())[0], dtype=np.float64)

    def cliques(self, stage: int) -> list[tuple[int, int]]:
        """The edges of the (control) polygon."""
        order = self.order()
        return list(pairwise(order))

    def checks(self) -> Floats:
        """The positions that choose the best bends."""
        return self.weights(np.array(self.checked, dtype=np.float64))


@dataclass(frozen=True)
class CurveFit(Result):
    """How a curve was fitted between `a` (t = 0) and `b` (t = 1)."""

    a: str
    b: str
    kind: str
    """bezier or polyline"""
    bends: int
    task_kind: str
    history: pd.DataFrame
    """columns step, loss (mean of the drawn points on the batches of the step), learning_rate"""
    length: float
    """arc length of the curve, in the units of the weights"""
    chord: float
    """|| a - b ||"""
    distances: pd.DataFrame
    """squared distances between the control points, ends included, in order"""
    chosen: int | None
    """the step whose bends were kept, where `select_at` chose"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        edge = max(1, len(self.history) // 10)
        first, last = self.history.loss[:edge].mean(), self.history.loss[-edge:].mean()
        bends = f"{self.bends} bend{'' if self.bends == 1 else 's'}"
        return (
            f"{self.kind} with {bends} from {self.a} to {self.b}: training loss along it "
            f"{first:.4g} in the first tenth of {len(self.history)} steps, {last:.4g} in the last; "
            f"length {self.length:.4g}, {self.length / self.chord:.3f} times the chord"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("a", "b", "kind", "bends", "task_kind", "length", "chord", "chosen", "provenance")
        return {
            **{name: getattr(self, name) for name in names},
            "history": self.history.to_dict("records"),
        }


@dataclass(frozen=True)
class PathEvaluation(Result):
    """Losses and metrics along a path from `a` to `b`, beside the straight line between them."""

    a: str
    b: str
    kind: str
    """kind of the task: the loss is in nats, for regression in squared units"""
    curve: str
    """bezier or polyline"""
    table: pd.DataFrame
    """columns data, t, arc (share of the arc length), distance_a, distance_b, loss, loss_low,
    loss_high, and the same three for every metric"""
    line: pd.DataFrame
    """the straight line at the same shares of its length, same columns"""
    summary: pd.DataFrame
    """one row per data set and path ("curve", "line"): data, path, and the columns of
    `Interpolation.summary`; t is the share of the arc length"""
    reduction: pd.DataFrame
    """columns data, barrier (of the line minus that of the path), low, high: paired bootstrap"""
    length: float
    chord: float
    provenance: dict[str, Any]
    better: pd.DataFrame | None = None
    """every inner point of both paths ("curve", "line" in the column path) against the better end,
    see `better_than_ends`; t is the share of the arc length; None in older studies"""

    @property
    def best(self) -> pd.DataFrame:
        """Where the path is best on the first data set, by its first metric (else the loss): the
        rows of the table at that t. On the further data sets it is no best of many."""
        first = self.table[self.table["data"] == self.table["data"].iloc[0]]
        metric = headline_column(first)
        place = best_of(first[metric].to_numpy(), higher=get_metric(metric).higher_is_better)
        t = float(first["t"].iloc[place])
        return self.table[self.table["t"] == t].reset_index(drop=True)

    def _row(self, path: str) -> Any:
        first = self.summary[self.summary.data == self.summary.data.iloc[0]]
        return first[first.path == path].iloc[0]

    @property
    def barrier_height(self) -> float:
        """Along the path, on the first data set."""
        return float(self._row("curve").barrier_height)

    @property
    def line_barrier(self) -> float:
        """On the straight line, on the first data set."""
        return float(self._row("line").barrier_height)

    @property
    def reading(self) -> str:
        """One line for a person."""
        curve, line = self._row("curve"), self._row("line")
        saved = self.reduction.iloc[0]
        rises = curve.convexity_gap > curve.noise_floor
        if line.convexity_gap <= line.noise_floor:
            verdict = "the line has no ridge to go round" + (", the path has one" if rises else "")
        elif not rises:
            verdict = "the path goes round the ridge of the line"
        elif saved.low > 0:
            verdict = "the path is lower than the line, but a ridge remains"
        elif saved.high < 0:
            verdict = "the path is higher than the line"
        else:
            verdict = "the barrier of the path is not told from that of the line"
        heights = [
            f"{r.barrier_height:.4g} [{r.barrier_low:.4g}, {r.barrier_high:.4g}]"
            for r in (line, curve)
        ]
        return (
            f"barrier on the line {heights[0]}, along the {self.curve} {heights[1]} "
            f"{loss_unit(self.kind)} on {curve.data}: {verdict}; length {self.length:.4g}"
            + (f", {self.length / self.chord:.3f} times the chord" if self.chord else "")
            + (f"; along it {said}" if (said := self._better_on_path()) else "")
        )

    def _better_on_path(self) -> str:
        return say_better(None if self.better is None else self.better[self.better.path == "curve"])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("a", "b", "kind", "curve", "length", "chord", "provenance")
        tables = ("table", "line", "summary", "reduction")
        return {
            **{name: getattr(self, name) for name in names},
            "barrier_height": self.barrier_height,
            "line_barrier": self.line_barrier,
            "best": self.best.to_dict("records"),
            **{name: getattr(self, name).to_dict("records") for name in tables},
            "better": [] if self.better is None else self.better.to_dict("records"),
        }


def headline_column(table: pd.DataFrame) -> str:
    """The first metric of a table with intervals; "loss" where it has no other."""
    named = (str(c).removesuffix("_low") for c in table.columns if str(c).endswith("_low"))
    return next((name for name in named if name != "loss"), "loss")


# --- fitting ------------------------------------------------------------------------------------


def curve_work(
    a: CheckpointLike,
    b: CheckpointLike,
    task: Task | Data | tuple[Task, str],
    split: str,
    config: CurveConfig,
) -> FitWork:
    """The fit of a curve, before anything is loaded."""
    ends = [resolve(a), resolve(b)]
    config = config.settled(tuned=ends[0].tuning is not None)
    guide = [] if config.start in STARTS else [resolve(config.start)]
    data = as_data_or_only(task, split, SAME_ROWS)
    alike = config.start == "midpoint" and config.bends > 1 and not config.noise
    if alike and config.compat != "plm":
        raise ConfigError(
            f"option start: {config.bends} bends in the midpoint are one and the same",
            remedy="use start chord, one bend, or noise (0.1, say)",
        )
    if config.start == "random" and ends[0].tuning is None:
        raise ConfigError(
            f"option start: {ends[0].spec} is a whole model, whose training began at the "
            "pre-trained one and not at random weights",
            remedy="start there: start=PRE-TRAINED (a checkpoint with a head), or use chord or "
            "midpoint, with noise for chance",
        )
    shape = CurveShape(
        kind=config.kind,
        bends=config.bends,
        start_at=config.start if not guide else "checkpoint",
        reverse=config.compat == "connectivity",
        checked=config.select_at,
        fixed=2 + len(guide),
    )
    select = Data(data.task, config.select_split) if config.select_at else None
    label = f"{config.kind} {ends[0].spec} -> {ends[1].spec}"
    return FitWork(
        (*ends, *guide),
        data,
        shape,
        config,
        label,
        select,
        select_by=config.select_by,
        fresh=config.start == "random",
    )


def fit_curve(
    a: CheckpointLike,
    b: CheckpointLike,
    task: Task | Data | tuple[Task, str],
    *,
    split: str = "train",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> FittedPath:
    """Fit a curve from `a` to `b` along which the training loss is low.

        min over w_1 ... w_n of  E_{t ~ U[0,1]} [ L(theta(t)) ] - lambda log(length + 1e-4)

    theta(t) is the Bezier curve of degree n + 1 with control points a, w_1, ..., w_n, b, or the
    polyline through them (Garipov et al. 2018, arXiv 1802.10026, section 3.3). Options are the
    fields of `CurveConfig`. A task with one split and no `train` is fitted on that one, with a
    warning. With a `store` a fit that was stopped goes on where it was. Raises `ConfigError` for
    two ends with the same weights, `SpaceMismatchError` for models that cannot be mixed,
    `NonFiniteError` where the learning rate is too high.
    """
    work = curve_work(a, b, task, split, CurveConfig.parse(options, where="fit_curve"))
    config: CurveConfig = work.config
    contents = run_fit(work, open_store(store), progress=progress)
    ends = work.checkpoints[0], work.checkpoints[1]
    order = work.shape.order()
    squared = np.array(contents.records["distances"])[np.ix_(order, order)]
    course = Course(config.kind, squared)
    best = contents.records["best"]
    fit = CurveFit(
        a=ends[0].spec,
        b=ends[1].spec,
        kind=config.kind,
        bends=config.bends,
        task_kind=work.data.task.kind,
        history=history_table(contents, {n: n for n in ("step", "loss", "learning_rate")}),
        length=course.length,
        chord=course.chord,
        distances=pd.DataFrame(squared, columns=_control_names(config.bends)),
        chosen=None if best is None else int(best["step"]),
        provenance={
            "weights": [c.fingerprint for c in work.checkpoints],
            "data": work.data.name,
            "config": config.model_dump(mode="json"),
        },
    )
    space = space_of(ends[0], work.data.task.kind, config)
    bends = tuple(
        Vertex(f"bend {k + 1} of {work.label}", space, torch.from_numpy(np.array(values)))
        for k, values in enumerate(contents.tensors["vertices"])
    )
    return FittedPath(ends, bends, fit)


def _control_names(bends: int) -> list[str]:
    return ["a", *(f"bend{k + 1}" for k in range(bends)), "b"]


def plan_path(
    fit: FitWork,
    evaluation: Data,
    also: Sequence[Task | Data | tuple[Task, str]],
    config: PathConfig,
) -> tuple[PointsWork, Plan]:
    """What evaluating a curve takes, before it is fitted: its own points are only stood for."""
    data = data_sets(evaluation, evaluation.split, also)
    work = PointsWork(fit.checkpoints[:2], data, config)
    shares = np.arange(config.points) / (config.points - 1)
    extra = fit.shape.bends if config.bend_points else 0
    curve = Job("mix", {"of": fit.final.key}, cost=float(config.points - 2 + extra), label="path")
    line = work.line_job(0, 1, shares[1:-1].tolist())
    return work, Plan((work.point_job(0), work.point_job(1), curve, line))


# --- evaluating ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FittedPath:
    """A curve between two checkpoints, with the bends that were fitted."""

    checkpoints: tuple[Checkpoint, Checkpoint]
    vertices: tuple[Vertex, ...]
    """the bends (control points of a Bezier curve), in order from a to b; members of mixes"""
    fit: CurveFit

    @property
    def course(self) -> Course:
        """Its geometry."""
        kind: Any = self.fit.kind
        return Course(kind, self.fit.distances.to_numpy())

    @property
    def reading(self) -> str:
        """One line for a person."""
        return self.fit.reading

    def plot(self, **options: Any) -> Any:
        """The figure of the fit."""
        return self.fit.plot(**options)

    def evaluate(
        self,
        task: Task | Data | tuple[Task, str],
        *,
        split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        store: str | os.PathLike[str] | ArtifactStore | None = None,
        progress: bool = False,
        **options: Any,
    ) -> PathEvaluation:
        """Evaluate points of the path, and the straight line at the same shares of its length.

        The ends are the checkpoints themselves. Options are the fields of `PathConfig` (points,
        bend_points, rows, ...); how the model is run (dtype, token_budget, device, ...) is as in
        the fit unless given. A task with one split and no `validation` is evaluated on that one,
        with a warning.
        """
        first = as_data_or_only(task, split, ONLY_ROWS)
        data = data_sets(first, split, also)
        walked = self.walked(data, **options)
        return walked.run(open_store(store), progress=progress)

    def walked(self, data: Sequence[Data], **options: Any) -> WalkWork:
        """Its evaluation, before it is run."""
        config = PathConfig.parse({**as_fitted(self.fit), **options}, where="evaluate")
        work = PointsWork(self.checkpoints, tuple(data), config, self.vertices)
        return WalkWork(work, (0, *range(2, 2 + len(self.vertices)), 1), self.course, config)

    def checkpoint(self, t: float, directory: str | os.PathLike[str], **options: Any) -> Checkpoint:
        """Write the model at position t as a checkpoint: config and tokenizer are those of a.

        Options are the fields of `LoadConfig`. Raises `ConfigError` for t outside [0, 1] or a
        directory that holds other things.
        """
        if not 0 <= t <= 1:
            raise ConfigError(f"t is {t}: a curve runs from 0 to 1")
        kept = self.fit.provenance["config"]
        load = LoadConfig.parse({**{n: kept[n] for n in LoadConfig.model_fields}, **options})
        target = check_target(directory, "config.json")
        model: Any = load_model(self.checkpoints[0], self.fit.task_kind, load)
        other = load_model(self.checkpoints[1], self.fit.task_kind, load)
        space = ParameterSpace.of(model)
        here, there = space.flatten(model), space.flatten(other)
        points = [here, *(v.flat(space, _no_checkpoint) for v in self.vertices), there]
        bound = space.bind(model)
        bound.combine(points, self.course.weights(t)[0].tolist())
        return save_point(model, self.checkpoints[0], target)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Keep the path: a safetensors file for each bend, by tensor name, and path.json.

        The ends are not copied: `load` finds them where they were, seen from the directory.
        """
        return save_fitted(directory, _RECORD, self.checkpoints, self.vertices, self.fit, "bend")

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], ends: Sequence[CheckpointLike] | None = None
    ) -> Self:
        """A path that was saved. `ends` names its checkpoints where they have moved.

        Raises `StoreError` for a directory that holds none, and for ends with other weights.
        """
        checkpoints, vertices, fit = load_fitted(directory, _RECORD, ends, "bend")
        return cls((checkpoints[0], checkpoints[1]), vertices, fit)


def _no_checkpoint(key: str) -> torch.Tensor:
    raise StoreError(f"a bend does not depend on the checkpoint {key}")


def walk(
    checkpoints: Sequence[CheckpointLike],
    task: Task | Data | tuple[Task, str],
    *,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> PathEvaluation:
    """Walk the polyline through given checkpoints, at equal arc length.

    Names may be patterns. Both ends and, unless `bend_points` is false, the checkpoints on the way
    are points of it; none occurs twice. Options are the fields of `WalkConfig`.
    """
    config = WalkConfig.parse(options, where="walk")
    members = tuple(expand(checkpoints))
    if len(members) < 2:
        raise ConfigError(f"a path through {len(members)} checkpoints", remedy="name two or more")
    for one, other in pairwise(members):
        check_same_architecture(one, other)
    work = PointsWork(members, data_sets(task, split, also), config)
    squared = _walked(work)
    for k, (one, other) in enumerate(pairwise(members)):
        if not squared[k, k + 1]:
            raise ConfigError(
                f"{one.spec} and {other.spec} follow one another and have the same weights",
                remedy="name each checkpoint once",
            )
    course = Course("polyline", squared)
    walked = WalkWork(work, tuple(range(len(members))), course, config)
    return walked.run(open_store(store), progress=progress)


def _walked(work: PointsWork) -> Floats:
    """Squared distances between the checkpoints of a walk."""
    space, points = None, []
    for checkpoint in work.checkpoints:
        model = load_model(checkpoint, work.data[0].task.kind, work.config)
        here = ParameterSpace.of(model)
        if space is not None:
            space.check_same(here, work.checkpoints[0].spec, checkpoint.spec)
        space = here
        points.append(here.flatten(model))
        here.check_finite(points[-1], checkpoint.spec)
    return squared_distances(points)


@dataclass(frozen=True, eq=False)
class WalkWork:
    """The evaluation of a path whose control points are these members of `work`, in order."""

    work: PointsWork
    members: tuple[int, ...]
    course: Course
    config: PathConfig

    @cached_property
    def places(self) -> tuple[Floats, Floats]:
        """(t, share of the arc length) of the points."""
        config = self.config
        return self.course.positions(
            config.points, bends=config.bend_points, spacing=config.spacing
        )

    @cached_property
    def jobs(self) -> list[Job]:
        """One for each point: a vertex is evaluated as itself, so that it is evaluated once."""
        weights = self.course.weights(self.places[0])
        return [_point(self.work, self.members, row) for row in weights]

    @cached_property
    def line(self) -> Job:
        """The inner points of the straight line."""
        shares = self.places[1][1:-1].tolist()
        return self.work.line_job(self.members[0], self.members[-1], shares)

    @property
    def plan(self) -> Plan:
        """Everything to be evaluated."""
        return Plan((self.jobs[0], self.jobs[-1], *self.jobs[1:-1], self.line))

    def run(self, store: ArtifactStore, *, progress: bool = False) -> PathEvaluation:
        """Evaluate what is missing."""
        work, course = self.work, self.course
        run_plan(self.plan, work, store, progress=progress, description="walking")
        contents, chord = [store.read(job.key) for job in self.jobs], store.read(self.line.key)
        curves, lines = [], []
        for d, data in enumerate(work.data):
            examples, kind = data.examples(self.config.rows), data.task.kind
            curves.append([unpack(one, d, examples, kind)[0] for one in contents])
            ends = contents[0], contents[-1]
            lines.append(line_predictions(ends, chord, d, examples, kind))
        parts = [self._compare(*one) for one in zip(work.data, curves, lines, strict=True)]
        first, last = work.members[self.members[0]], work.members[self.members[-1]]
        tables = [pd.concat([part[i] for part in parts], ignore_index=True) for i in range(4)]
        return PathEvaluation(
            a=first.spec,
            b=last.spec,
            kind=work.data[0].task.kind,
            curve=course.kind,
            table=tables[0],
            line=tables[1],
            summary=tables[2],
            reduction=tables[3],
            length=course.length,
            chord=course.chord,
            provenance={
                "members": [work.members[m].fingerprint for m in self.members],
                "config": self.config.model_dump(mode="json"),
            },
            better=self._better(curves, lines),
        )

    def predictions(
        self, store: ArtifactStore, *, progress: bool = False
    ) -> list[list[Predictions]]:
        """Predictions of every data set at every point of the path, without the line beside it."""
        plan = Plan((self.jobs[0], self.jobs[-1], *self.jobs[1:-1]))
        run_plan(plan, self.work, store, progress=progress, description="walking")
        contents = [store.read(job.key) for job in self.jobs]
        rows = self.config.rows
        return [
            [unpack(one, d, data.examples(rows), data.task.kind)[0] for one in contents]
            for d, data in enumerate(self.work.data)
        ]

    def _better(
        self, curves: Sequence[Sequence[Predictions]], lines: Sequence[Sequence[Predictions]]
    ) -> pd.DataFrame:
        """Both paths against their ends."""
        tables = []
        for path, points in (("curve", curves), ("line", lines)):
            found = better_than_ends(self.work.data, points, self.places[1].tolist(), self.config)
            found.insert(0, "path", path)
            tables.append(found)
        return pd.concat(tables, ignore_index=True)

    def _compare(
        self, data: Data, curve: Sequence[Predictions], line: Sequence[Predictions]
    ) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """(table, line, summary, reduction) of one data set."""
        course, (t, share) = self.course, self.places
        on_curve = {"t": t, "arc": share, "distance_a": course.distances(t, 0)}
        on_curve["distance_b"] = course.distances(t, course.points - 1)
        on_line = {"t": share, "arc": share, "distance_a": share * course.chord}
        on_line["distance_b"] = (1.0 - share) * course.chord
        first, table = _statistics(data, curve, on_curve, course.length, self.config)
        second, straight = _statistics(data, line, on_line, course.chord, self.config)
        summary = [
            {"data": data.name, "path": "curve", **first},
            {"data": data.name, "path": "line", **second},
        ]
        saved = {"data": data.name, **_reduction(line, curve, share, self.config)}
        return table, straight, pd.DataFrame(summary), pd.DataFrame([saved])


def _point(work: PointsWork, members: Sequence[int], weights: Floats) -> Job:
    """The job of one point: at a vertex that member itself, so that it is evaluated once."""
    used = [(m, float(w)) for m, w in zip(members, weights, strict=True) if w]
    if len(used) == 1:
        return work.point_job(used[0][0])
    ends = work.members[members[0]], work.members[members[-1]]
    label = f"path {ends[0].spec} -> {ends[1].spec}"
    return work.mix_job([m for m, _ in used], [[w for _, w in used]], label)


def _statistics(
    data: Data,
    points: Sequence[Predictions],
    places: Mapping[str, Floats],
    length: float,
    config: PointsConfig,
) -> tuple[dict[str, float], pd.DataFrame]:
    """(summary, table) of a path: curve statistics over the share of the arc length."""
    statistics = curve_statistics(
        np.stack([point.losses for point in points])[None],
        weights=points[0].tokens,
        replicates=config.replicates,
        seed=config.seed,
        level=config.level,
        distance=length,
        t=places["arc"],
    )
    names = [name for name in metric_names(data.task) if name != "loss"]
    rows: list[dict[str, Any]] = []
    for k, predictions in enumerate(points):
        row: dict[str, Any] = {"data": data.name}
        row |= {name: float(values[k]) for name, values in places.items()}
        row["loss"] = float(np.asarray(get_metric("loss").aggregate(predictions)))
        row |= {n: float(getattr(statistics, n)[0, k]) for n in ("loss_low", "loss_high")}
        for name, (value, low, high) in metric_table(predictions, names, config).items():
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return {n: float(getattr(statistics, n)[0]) for n in SUMMARY_FIELDS}, pd.DataFrame(rows)


def _reduction(
    line: Sequence[Predictions], curve: Sequence[Predictions], t: Floats, config: PointsConfig
) -> dict[str, float]:
    """Barrier of the line minus barrier of the path, examples resampled alike in both."""
    heights = []
    for points in (line, curve):
        values, drawn = metric_replicates("loss", points, config)
        known = np.isfinite(drawn).all(axis=1)  # a replicate of examples without weight has no mean
        heights.append((barrier_height(values, t=t), barrier_height(drawn[known], t=t)))
    (line_height, line_drawn), (curve_height, curve_drawn) = heights
    low, high = known_interval(line_drawn - curve_drawn, config.level)
    return {"barrier": line_height - curve_height, "low": low, "high": high}
