"""The boundary between two tasks: how far along the line between their models each of them works.

With theta_A tuned on task A and theta_B on task B from one pre-trained model, the body moves on
the line (1 - x) theta_A + x theta_B while each task keeps its own head: A is evaluated under the
head of theta_A and B under that of theta_B, for every x (Qin et al. 2022, "task boundary").

With M a task's headline metric, what is **kept** of it at x is the share of the way from a floor F
to what its own checkpoint has (x = 0 for A, x = 1 for B):

    r(x) = (M(x) - F) / (M(own end) - F)

F is chance, the best that a constant answer reaches on the same examples (for correlations 0), or
the value at the other end. What is said of the two curves is defined in `geometry.overlap`: width,
margin, crossing, area and best. Intervals are percentiles over bootstrap replicates of the
examples, of each task for itself; chance is computed anew in every replicate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from landform.errors import ConfigError
from landform.evaluation.data import as_data
from landform.evaluation.evaluate import (
    headline,
    metric_names,
    metric_replicates,
    metric_table,
)
from landform.evaluation.intervals import known_interval, resample_counts
from landform.evaluation.points import (
    Data,
    PointsConfig,
    PointsWork,
    check_same_vocabulary,
    unpack,
)
from landform.geometry.overlap import NUMBERS, overlap_numbers, overlap_regions
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store, publish, slug
from landform.tasks.metrics import Metric, Predictions, get_metric
from landform.tasks.task import Task
from landform.weights.checkpoint import (
    Checkpoint,
    check_same_architecture,
    resolve,
    select,
    short_names,
)
from landform.weights.points import Grafted, HeadPart

__all__ = [
    "Boundaries",
    "Boundary",
    "BoundaryConfig",
    "BoundaryStudy",
    "task_boundaries",
    "task_boundary",
]

Floats = npt.NDArray[np.float64]
Named = str | os.PathLike[str] | Checkpoint

COMPARED = ("width", "margin", "area", "best_kept")
"""What is compared between pairs of models."""
HEADED = ("classification", "regression", "token-classification")


class BoundaryConfig(PointsConfig):
    """How a task boundary is walked and what counts as good."""

    points: int = Field(26, ge=2)
    """Points on the line, both ends included, equally spaced."""
    head: HeadPart = "last"
    """What of a model stays with its task: the last layer of its head, or all of the head."""
    keep: float = Field(0.95, gt=0, lt=1)
    """A task is good where it keeps this share of the way from the floor to its own checkpoint's
    metric."""
    floor: Literal["chance", "other"] = "chance"
    """Where that way starts: chance (the best constant answer), or the metric at the other end."""

    @property
    def xs(self) -> tuple[float, ...]:
        """Positions of the points."""
        return tuple(k / (self.points - 1) for k in range(self.points))


@dataclass(frozen=True)
class Boundary(Result):
    """Two tasks along the line from the model of the one (x = 0) to that of the other (x = 1)."""

    a: str
    b: str
    data_a: str
    data_b: str
    metric_a: str
    metric_b: str
    keep: float
    table: pd.DataFrame
    """columns task (a or b), data, x, metric (its name), value, kept (see above), loss, and further
    metrics of the tasks, all but the first four with _low and _high"""
    summary: pd.DataFrame
    """one row: width, margin, reach_a, reach_b, crossing, crossing_kept, area, best_x, best_kept,
    each with _low and _high; and of both tasks (own_a, ...) the metric at the own and the other end
    and the floor"""
    regions: pd.DataFrame
    """one row for every stretch where both tasks are good: start, stop"""
    provenance: dict[str, Any]

    @property
    def width(self) -> float:
        """Length of the set of x where both tasks are good."""
        return float(self.summary["width"].iloc[0])

    @property
    def margin(self) -> float:
        """By how much the ranges of the two tasks overlap; below 0 the gap between them."""
        return float(self.summary["margin"].iloc[0])

    @property
    def crossing(self) -> float:
        """The first x at which task B keeps as much as task A."""
        return float(self.summary["crossing"].iloc[0])

    @property
    def reading(self) -> str:
        """One line for a person."""
        row = self.summary.iloc[0]
        for side, data in (("a", self.data_a), ("b", self.data_b)):
            if not row[f"own_{side}"] > row[f"floor_{side}"]:
                return (
                    f"{data}: its own checkpoint is at {row[f'own_{side}']:.4g}, no better than "
                    f"the floor {row[f'floor_{side}']:.4g}: there is nothing to keep"
                )
        share = f"{100 * self.keep:g} %"
        if row.width > 0:
            where = " and ".join(
                f"{r.start:.3g} to {r.stop:.3g}" for r in self.regions.itertuples()
            )
            said = (
                f"both tasks keep {share} of what they have above the floor at x = {where}: "
                f"width {_span(row, 'width')}"
            )
        else:
            said = (
                f"nowhere do both tasks keep {share} of what they have above the floor: "
                f"{self.data_a} does up to x = {row.reach_a:.3g}, {self.data_b} from "
                f"{row.reach_b:.3g} on, a gap of {-row.margin:.3g} "
                f"[{-row.margin_high:.3g}, {-row.margin_low:.3g}]"
            )
        return f"{said}; at best both keep {_span(row, 'best_kept')}, at x = {row.best_x:.3g}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "a": self.a,
            "b": self.b,
            "data": [self.data_a, self.data_b],
            "metrics": [self.metric_a, self.metric_b],
            "keep": self.keep,
            "summary": self.summary.to_dict("records")[0],
            "regions": self.regions.to_dict("records"),
            "table": self.table.to_dict("records"),
            "provenance": self.provenance,
        }


@dataclass(frozen=True)
class Boundaries(Result):
    """The boundary between two tasks for several pairs of models: over pre-training, say."""

    data_a: str
    data_b: str
    metric_a: str
    metric_b: str
    keep: float
    table: pd.DataFrame
    """one row per pair: label, a, b, the columns of `Boundary.summary`, and for width, margin, area
    and best_kept the change from the first pair with its interval (width_change, ...)"""
    curves: pd.DataFrame
    """the tables of all boundaries, under their label"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        first, last = self.table.iloc[0], self.table.iloc[-1]
        change = last["margin_change"]
        low, high = last["margin_change_low"], last["margin_change_high"]
        sure = low > 0 or high < 0
        verdict = ("wider" if change > 0 else "narrower") if sure else "not clearly other"
        return (
            f"{len(self.table)} pairs of models: the region good for both is "
            f"{_span(first, 'width')} wide at {first.label} and {_span(last, 'width')} at "
            f"{last.label}; the margin changes by {change:.3g} [{low:.3g}, {high:.3g}]: {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "data": [self.data_a, self.data_b],
            "metrics": [self.metric_a, self.metric_b],
            "keep": self.keep,
            "table": self.table.to_dict("records"),
            "curves": self.curves.to_dict("records"),
            "provenance": self.provenance,
        }


def _span(row: Any, name: str) -> str:
    return f"{row[name]:.3g} [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}]"


def task_boundary(
    a: Named,
    b: Named,
    task_a: Task | Data | tuple[Task, str],
    task_b: Task | Data | tuple[Task, str],
    *,
    split: str = "validation",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Boundary:
    """How far along the line from `a` (tuned on `task_a`) to `b` (on `task_b`) each task works.

    Everything but the heads is interpolated; each task is evaluated under its own head. At x = 0
    task A is evaluated by `a` itself and at x = 1 task B by `b` itself. Options are the fields of
    `BoundaryConfig` (points, keep, head, floor, rows, ...). Raises `SpaceMismatchError` for models
    of two architectures or tuning methods, `ConfigError` for tasks that are answered in words:
    their models have no head of their own, and `interpolate` with `also` walks them.
    """
    study = BoundaryStudy.of([(a, b)], task_a, task_b, split=split, options=options)
    result = study.run(store, progress=progress)
    assert isinstance(result, Boundary)  # of one pair
    return result


def task_boundaries(
    pairs: Sequence[tuple[Named, Named]],
    task_a: Task | Data | tuple[Task, str],
    task_b: Task | Data | tuple[Task, str],
    *,
    labels: Sequence[str] | None = None,
    split: str = "validation",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Boundaries:
    """`task_boundary` of several `pairs` of models, and how it changes from the first pair on.

    Of every pair the first was tuned on `task_a`, the second on `task_b`.

    `labels` name the pairs (steps of pre-training, say; default: their names). Changes are paired:
    all models are evaluated on the same examples. Options are the fields of `BoundaryConfig`.
    """
    study = BoundaryStudy.of(pairs, task_a, task_b, labels=labels, split=split, options=options)
    kept = open_store(store)
    found = [study.measure(k, kept, progress) for k in range(len(study.pairs))]
    return study.together(found)


# --- the plan ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """One task on the line: its model, and the other one under its head."""

    name: Literal["a", "b"]
    work: PointsWork

    def plan(self, xs: Sequence[float]) -> Plan:
        """The own checkpoint, the other end, and the points between from x = 0 to x = 1."""
        first, last = (0, 1) if self.name == "a" else (1, 0)
        line = self.work.line_job(first, last, xs[1:-1])
        return Plan((self.work.point_job(0), self.work.point_job(1), line))

    def predictions(self, store: ArtifactStore, xs: Sequence[float]) -> list[Predictions]:
        """At every x, from x = 0 to x = 1."""
        data = self.work.data[0]
        examples = data.examples(self.work.config.rows)

        def read(job: Job) -> list[Predictions]:
            contents = store.read(job.key)
            return unpack(contents, 0, examples, data.task.kind) if contents.tensors else []

        own, other, line = map(read, self.plan(xs).jobs)
        return [*own, *line, *other] if self.name == "a" else [*other, *line, *own]


@dataclass(frozen=True, eq=False)
class BoundaryStudy:
    """The boundary of one or several pairs of models, before anything is loaded."""

    pairs: tuple[tuple[Checkpoint, Checkpoint], ...]
    labels: tuple[str, ...]
    data: tuple[Data, Data]
    config: BoundaryConfig

    @classmethod
    def of(
        cls,
        pairs: Sequence[tuple[Named, Named]],
        task_a: Task | Data | tuple[Task, str],
        task_b: Task | Data | tuple[Task, str],
        *,
        labels: Sequence[str] | None = None,
        split: str = "validation",
        options: Mapping[str, Any],
    ) -> Self:
        """Raises for options, checkpoints, splits and tasks that do not go together."""
        config = BoundaryConfig.parse(options, where="boundary")
        found = tuple((resolve(a), resolve(b)) for a, b in pairs)
        if not found:
            raise ConfigError("no pair of models", remedy="name a model of each task")
        data = (as_data(task_a, split), as_data(task_b, split))
        for item in data:
            _check_task(item, config)
        for a, b in found:
            check_same_architecture(a, b)
            check_same_vocabulary(a, b)
        named = tuple(labels) if labels is not None else tuple(_pair_name(*pair) for pair in found)
        if len(named) != len(found) or len(set(named)) != len(named):
            raise ConfigError(
                f"option labels: {len(named)} names ({', '.join(named)}) for {len(found)} pairs",
                remedy="give every pair of models a name of its own",
            )
        return cls(found, named, data, config)

    def sides(self, pair: int) -> tuple[_Side, _Side]:
        """The two tasks on the line of a pair."""
        a, b = self.pairs[pair]
        part, pickles = self.config.head, self.config.allow_pickle
        works = [
            PointsWork((own,), (data,), self.config, (Grafted(other, own, part, pickles),))
            for own, other, data in ((a, b, self.data[0]), (b, a, self.data[1]))
        ]
        return _Side("a", works[0]), _Side("b", works[1])

    def forecast(self, store: ArtifactStore) -> Forecast:
        """Evaluations that remain; their time as that of the first pair on task A."""
        sides = [side for k in range(len(self.pairs)) for side in self.sides(k)]
        whole = Plan(job for side in sides for job in side.plan(self.config.xs).jobs)
        return sides[0].work.forecast(whole, store)

    def run(
        self, store: str | os.PathLike[str] | ArtifactStore | None, *, progress: bool = False
    ) -> Boundary | Boundaries:
        """Evaluate what is missing; the boundary of one pair, or all of them together."""
        kept = open_store(store)
        found = [self.measure(k, kept, progress) for k in range(len(self.pairs))]
        result = found[0].boundary if len(found) == 1 else self.together(found)
        publish(kept, self.name, result)
        return result

    @property
    def name(self) -> str:
        """What its result is called in a study."""
        tasks = [slug(d.task.name, d.task.resolve(d.split)) for d in self.data]
        if len(self.pairs) > 1:
            return slug("boundaries", *tasks)
        return slug("boundary", *short_names(select(self.pairs[0])), *tasks)

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.name,)

    def measure(self, pair: int, store: ArtifactStore, progress: bool = False) -> _Measured:
        """Evaluate what is missing of one pair, and measure it."""
        xs, sides = self.config.xs, self.sides(pair)
        for side, data in zip(sides, self.data, strict=True):
            run_plan(
                side.plan(xs),
                side.work,
                store,
                progress=progress,
                description=f"{data.name} on {self.labels[pair]}",
            )
        curves = [
            _Curve.of(side.name, data, side.predictions(store, xs), self.config)
            for side, data in zip(sides, self.data, strict=True)
        ]
        return _measure(self, pair, curves)

    def together(self, found: Sequence[_Measured]) -> Boundaries:
        """All pairs in one table, with the changes from the first."""
        rows, curves = [], []
        for label, item in zip(self.labels, found, strict=True):
            one = item.boundary
            row: dict[str, Any] = {"label": label, "a": one.a, "b": one.b}
            row |= {str(name): value for name, value in one.summary.iloc[0].items()}
            rows.append({**row, **_changes(found[0], item, self.config.level)})
            curves.append(one.table.assign(label=label))
        first = found[0].boundary
        curve = pd.concat(curves, ignore_index=True)
        return Boundaries(
            data_a=first.data_a,
            data_b=first.data_b,
            metric_a=first.metric_a,
            metric_b=first.metric_b,
            keep=self.config.keep,
            table=pd.DataFrame(rows),
            curves=curve[["label", *(c for c in curve if c != "label")]],
            provenance={
                "weights": [f"{a.fingerprint} {b.fingerprint}" for a, b in self.pairs],
                "config": self.config.model_dump(mode="json"),
            },
        )


def _pair_name(a: Checkpoint, b: Checkpoint) -> str:
    return " and ".join(short_names(select((a, b))))


def _check_task(data: Data, config: BoundaryConfig) -> None:
    """Raise where a task has no head of its own, or no floor of the kind that is asked for."""
    task = data.task
    if task.kind not in HEADED:
        raise ConfigError(
            f"{data.name} is a {task.kind} task: its models have no head of their own to keep",
            remedy="all their tensors are interpolated: landform interpolate A B --also the other "
            "task walks both on one path",
        )
    metric = get_metric(headline(task))
    if config.floor == "chance" and (
        task.kind == "token-classification" or not metric.higher_is_better
    ):
        raise ConfigError(
            f"{data.name}: there is no chance level of {metric.name} for a {task.kind} task",
            remedy="use floor other, or a task with another headline metric",
        )


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Curve:
    """A task's headline metric along the line, more is better, with its replicates."""

    side: str
    data: Data
    points: list[Predictions]
    metric: Metric
    values: Floats
    """(P,)"""
    drawn: Floats
    """(R, P)"""
    floor: float
    floors: Floats
    """(R,)"""

    @classmethod
    def of(cls, side: str, data: Data, points: list[Predictions], config: BoundaryConfig) -> _Curve:
        """From the predictions at all points."""
        metric = get_metric(headline(data.task))
        sign = 1.0 if metric.higher_is_better else -1.0
        # The examples of the second task are others: its replicates must not follow the first's.
        seed = config.seed + (side == "b")
        values, drawn = metric_replicates(metric.name, points, config, seed=seed)
        values, drawn = sign * values, sign * drawn
        if config.floor == "chance":
            counts = resample_counts(len(points[0]), config.replicates, seed)
            floor, floors = _chance(data.task, metric, points[0], counts)
        else:
            other = -1 if side == "a" else 0
            floor, floors = float(values[other]), drawn[:, other]
        return cls(side, data, points, metric, values, drawn, floor, floors)

    @property
    def own(self) -> int:
        """The place of the own end."""
        return 0 if self.side == "a" else -1

    def kept(self) -> tuple[Floats, Floats]:
        """r (P,) and its replicates (R, P); NaN where the own end is not above the floor."""
        return (
            _kept(self.values, np.float64(self.floor), self.own),
            _kept(self.drawn, self.floors, self.own),
        )


def _kept(values: Floats, floor: Any, own: int) -> Floats:
    floor = np.asarray(floor)[..., None]
    way = values[..., own : own + 1 or None] - floor
    with np.errstate(divide="ignore", invalid="ignore"):
        kept: Floats = np.where(way > 0, (values - floor) / way, np.nan)
    return kept


def _chance(
    task: Task, metric: Metric, points: Predictions, counts: np.ndarray
) -> tuple[float, Floats]:
    """The best value that answering one class always reaches; for correlations 0."""
    if task.kind == "regression":
        return 0.0, np.zeros(len(counts))
    constant = [
        Predictions(
            logits=np.tile(np.eye(task.n_labels)[c], (len(points), 1)),
            labels=points.labels,
            losses=points.losses,
            tokens=points.tokens,
        )
        for c in range(task.n_labels)
    ]
    values = [float(metric.aggregate(p)) for p in constant]
    drawn = np.stack([np.asarray(metric.aggregate(p, counts)) for p in constant])
    return max(values), drawn.max(axis=0)


@dataclass(frozen=True, eq=False)
class _Measured:
    """A boundary, and the replicates of its numbers."""

    boundary: Boundary
    replicates: Mapping[str, Floats]


def _measure(study: BoundaryStudy, pair: int, curves: Sequence[_Curve]) -> _Measured:
    config, xs = study.config, study.config.xs
    (kept_a, drawn_a), (kept_b, drawn_b) = (curve.kept() for curve in curves)
    values = overlap_numbers(kept_a, kept_b, xs, config.keep)
    replicates = overlap_numbers(drawn_a, drawn_b, xs, config.keep)
    row: dict[str, Any] = {}
    for name in NUMBERS:
        low, high = known_interval(replicates[name], config.level)
        row |= {name: float(values[name]), f"{name}_low": low, f"{name}_high": high}
    for curve in curves:
        sign = 1.0 if curve.metric.higher_is_better else -1.0
        other = -1 - curve.own
        row |= {
            f"own_{curve.side}": sign * float(curve.values[curve.own]),
            f"other_{curve.side}": sign * float(curve.values[other]),
            f"floor_{curve.side}": sign * curve.floor,
        }
    a, b = study.pairs[pair]
    boundary = Boundary(
        a=a.spec,
        b=b.spec,
        data_a=curves[0].data.name,
        data_b=curves[1].data.name,
        metric_a=curves[0].metric.name,
        metric_b=curves[1].metric.name,
        keep=config.keep,
        table=pd.concat([_table(curve, config) for curve in curves], ignore_index=True),
        summary=pd.DataFrame([row]),
        regions=overlap_regions(kept_a, kept_b, np.asarray(xs), config.keep),
        provenance={
            "weights": [a.fingerprint, b.fingerprint],
            "config": config.model_dump(mode="json"),
        },
    )
    return _Measured(boundary, replicates)


def _table(curve: _Curve, config: BoundaryConfig) -> pd.DataFrame:
    kept, drawn = curve.kept()
    head, names = curve.metric.name, metric_names(curve.data.task)
    rows: list[dict[str, Any]] = []
    for k, (x, predictions) in enumerate(zip(config.xs, curve.points, strict=True)):
        found = metric_table(predictions, names, config)
        low, high = known_interval(drawn[:, k], config.level)
        value = found[head]
        row: dict[str, Any] = {"task": curve.side, "data": curve.data.name, "x": x, "metric": head}
        row |= {"value": value[0], "value_low": value[1], "value_high": value[2]}
        row |= {"kept": float(kept[k]), "kept_low": low, "kept_high": high}
        for name in names:
            if name != head:
                row |= {name: found[name][0], f"{name}_low": found[name][1]}
                row[f"{name}_high"] = found[name][2]
        rows.append(row)
    return pd.DataFrame(rows)


def _changes(first: _Measured, item: _Measured, level: float) -> dict[str, float]:
    """How the numbers of a pair differ from those of the first; paired, on the same examples."""
    row: dict[str, float] = {}
    for name in COMPARED:
        here = float(item.boundary.summary[name].iloc[0])
        there = float(first.boundary.summary[name].iloc[0])
        low, high = known_interval(item.replicates[name] - first.replicates[name], level)
        row |= {f"{name}_change": here - there}
        row |= {f"{name}_change_low": low, f"{name}_change_high": high}
    return row
