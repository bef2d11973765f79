"""The straight line between two checkpoints: theta(t) = (1 - t) a + t b."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, field_validator

from landform.evaluation.data import data_sets
from landform.evaluation.evaluate import metric_names, metric_table
from landform.evaluation.points import Data, PointsConfig, PointsWork, unpack
from landform.geometry.better import better_than_ends, count_better, say_better
from landform.geometry.curves import (
    CurveStatistics,
    convexity_gap_location,
    curve_statistics,
)
from landform.geometry.drop import drop_numbers
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store
from landform.tasks.metrics import Predictions, get_metric
from landform.tasks.task import Examples, Task, loss_unit
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = [
    "InterpolateConfig",
    "Interpolation",
    "LineConfig",
    "Walk",
    "forecast_line",
    "interpolate",
    "line_predictions",
    "line_statistics",
    "line_work",
    "walk_line",
]

NEAREST = 1e-3
"""Added points come no nearer to others than this: their losses would differ by rounding."""


class LineConfig(PointsConfig):
    """How lines are walked."""

    points: int = Field(11, ge=2)
    """Points on the line, both ends included, equally spaced."""
    positions: tuple[float, ...] | None = None
    """Any other positions in place of equally spaced ones: rising, from 0 to 1."""

    @field_validator("positions")
    @classmethod
    def _from_end_to_end(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        rising = all(a < b for a, b in pairwise(value))
        if len(value) < 2 or value[0] != 0 or value[-1] != 1 or not rising:
            raise ValueError("positions must rise from 0 to 1, both ends included")
        return value

    @property
    def ts(self) -> tuple[float, ...]:
        """Positions of the points."""
        if self.positions is not None:
            return self.positions
        return tuple(k / (self.points - 1) for k in range(self.points))


class InterpolateConfig(LineConfig):
    """Options of `interpolate`."""

    adaptive: int = Field(0, ge=0)
    """Further points, put where the highest ridge so far stands, on the first data set."""


@dataclass(frozen=True)
class Interpolation(Result):
    """Losses and metrics along the line from `a` (t = 0) to `b` (t = 1)."""

    a: str
    b: str
    distance: float
    """|| a - b ||"""
    table: pd.DataFrame
    """columns data, t, loss, loss_low, loss_high, and the same three for every metric"""
    kind: str
    """kind of the task: the loss is in nats, for regression in squared units"""
    summary: pd.DataFrame
    """one row per data set: data, barrier_height, barrier_low, barrier_high, convexity_gap,
    gap_low, gap_high, gap_p_value, noise_floor, area_under_curve, bump_height, and the numbers of
    inner points that are better, and clearly_better, than both ends; metric_drop and chord_area
    (see `geometry.drop`) with _low and _high"""
    provenance: dict[str, Any]
    added: tuple[float, ...] = ()
    """positions that were added around the ridge, in the order of their choice"""
    better: pd.DataFrame | None = None
    """every inner point against the better end, see `better_than_ends`; None in older studies"""

    @property
    def barrier_height(self) -> float:
        """On the first data set: the largest rise of the loss above the chord between the ends."""
        return float(self.summary["barrier_height"].iloc[0])

    @property
    def convexity_gap(self) -> float:
        """On the first data set: the largest barrier of any sub-segment of the line."""
        return float(self.summary["convexity_gap"].iloc[0])

    @property
    def reading(self) -> str:
        """One line for a person."""
        row = self.summary.iloc[0]
        if self.distance == 0:
            verdict = "the same weights at both ends, so this says nothing of two models"
        elif row.convexity_gap <= row.noise_floor:
            verdict = "no ridge above the noise floor: linearly connected"
        else:
            verdict = "a ridge between them: not linearly connected"
        unit = loss_unit(self.kind)
        barrier = f"{row.barrier_height:.4g} [{row.barrier_low:.4g}, {row.barrier_high:.4g}]"
        gap = f"{row.convexity_gap:.4g} [{row.gap_low:.4g}, {row.gap_high:.4g}]"
        return (
            f"barrier {barrier} {unit}, convexity gap {gap} (noise floor {row.noise_floor:.2g}) "
            f"on {row.data}: {verdict}" + (f"; {said}" if (said := say_better(self.better)) else "")
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "a": self.a,
            "b": self.b,
            "distance": self.distance,
            "barrier_height": self.barrier_height,
            "convexity_gap": self.convexity_gap,
            "added": list(self.added),
            "table": self.table.to_dict("records"),
            "summary": self.summary.to_dict("records"),
            "better": [] if self.better is None else self.better.to_dict("records"),
            "provenance": self.provenance,
        }


def interpolate(
    a: str | os.PathLike[str] | Checkpoint,
    b: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Interpolation:
    """Walk the straight line between two checkpoints and evaluate every point of it.

    `also` names further data sets: each mixed model is evaluated on all of them. Options are the
    fields of `InterpolateConfig` (points, rows, max_length, device, replicates, ...).

    With `adaptive` points, the line is refined where the convexity gap of the first data set is:
    the middles of the two segments beside its ridge are evaluated, the gap is looked for again, and
    so on. More points can only raise the gap; a convex curve gets none.
    """
    config = InterpolateConfig.parse(options, where="interpolate")
    work = line_work(a, b, task, split, also, config)
    walk = walk_line(work, config, open_store(store), progress=progress)
    better = better_than_ends(work.data, walk.points, walk.ts, config)
    tables, rows = [], []
    for data, points in zip(work.data, walk.points, strict=True):
        statistics = line_statistics([points], config, walk.distance, walk.ts)
        tables.append(_table(data, walk.ts, points, statistics, config))
        row = {**_summary(data, statistics), **count_better(better, data.name)}
        rows.append({**row, **drop_numbers(data.task, points, walk.ts, config)})
    return Interpolation(
        a=work.checkpoints[0].spec,
        b=work.checkpoints[1].spec,
        distance=walk.distance,
        kind=work.data[0].task.kind,
        table=pd.concat(tables, ignore_index=True),
        summary=pd.DataFrame(rows),
        provenance={
            "weights": [c.fingerprint for c in work.checkpoints],
            "config": config.model_dump(mode="json"),
        },
        added=walk.added,
        better=better,
    )


# --- walking -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """A line whose points have been evaluated."""

    ts: tuple[float, ...]
    """all positions, rising"""
    added: tuple[float, ...]
    """those that were added around the ridge, in the order of their choice"""
    points: tuple[list[Predictions], ...]
    """predictions at every position, of every data set"""
    distance: float
    """|| a - b ||"""

    def mean_losses(self, data: int = 0) -> npt.NDArray[np.float64]:
        """(T,) the mean loss at every position, over the examples or tokens of a data set."""
        return np.array([np.average(p.losses, weights=p.tokens) for p in self.points[data]])

    def above_chord(self, data: int = 0) -> npt.NDArray[np.float64]:
        """(T,) how far the mean loss lies above the chord of the ends: B(t) = L(t) - (1 - t) L(0)
        - t L(1)."""
        ts, losses = np.array(self.ts), self.mean_losses(data)
        above: npt.NDArray[np.float64] = losses - (1 - ts) * losses[0] - ts * losses[-1]
        return above


def line_work(
    a: str | os.PathLike[str] | Checkpoint,
    b: str | os.PathLike[str] | Checkpoint,
    task: Task,
    split: str,
    also: Sequence[Task | Data | tuple[Task, str]],
    config: LineConfig,
) -> PointsWork:
    """The two ends and the data sets of a line, before anything is loaded."""
    return PointsWork((resolve(a), resolve(b)), data_sets(task, split, also), config)


def _first_plan(work: PointsWork, config: LineConfig) -> Plan:
    """Both ends, then the interior."""
    interior = config.ts[1:-1]
    return Plan((work.point_job(0), work.point_job(1), work.line_job(0, 1, interior)))


def forecast_line(work: PointsWork, config: LineConfig, store: ArtifactStore) -> Forecast:
    """What walking a line takes, with all `adaptive` points, which a flat line will not need."""
    plan = _first_plan(work, config)
    jobs, left = list(plan.jobs), _adaptive(config)
    if not plan.missing(store):
        for ts, job in _rounds(work, config, store):
            left -= len(ts)
            jobs.append(job)
            if job.key not in store:
                break
        else:
            left = 0  # it is known where the walk ends
    if left:  # where they will be is not known yet: no round has its points at t = 0
        jobs.append(work.line_job(0, 1, [0.0] * left))
    return work.forecast(Plan(jobs), store)


def walk_line(
    work: PointsWork, config: LineConfig, store: ArtifactStore, *, progress: bool = False
) -> Walk:
    """Evaluate what is missing of the line between members 0 and 1, and read all of it."""
    worker = cache(work)  # one loaded model for all rounds
    plan = _first_plan(work, config)
    run_plan(plan, worker, store, progress=progress)
    parts = [(config.ts[1:-1], plan.jobs[-1])]
    for ts, job in _rounds(work, config, store):
        run_plan(Plan([job]), worker, store, progress=progress, description="adding points")
        parts.append((ts, job))
    points = tuple(
        _ordered(work, store, parts, d, data.examples(config.rows))
        for d, data in enumerate(work.data)
    )
    return Walk(
        ts=tuple(sorted((0.0, 1.0, *(t for ts, _ in parts for t in ts)))),
        added=tuple(t for ts, _ in parts[1:] for t in ts),
        points=points,
        distance=float(store.read(parts[0][1].key).records["points"]["distance"]),
    )


def _adaptive(config: LineConfig) -> int:
    """How many points may be added; analyses at given points have no such option."""
    return config.adaptive if isinstance(config, InterpolateConfig) else 0


Part = tuple[tuple[float, ...], Job]


def _rounds(work: PointsWork, config: LineConfig, store: ArtifactStore) -> Iterator[Part]:
    """Added points and their job, round by round; each must be in the store before the next."""
    parts: list[Part] = [(config.ts[1:-1], work.line_job(0, 1, config.ts[1:-1]))]
    left = _adaptive(config)
    examples = work.data[0].examples(config.rows) if left else None
    while left and examples is not None:
        ts = sorted((0.0, 1.0, *(t for part, _ in parts for t in part)))
        points = _ordered(work, store, parts, 0, examples)
        losses = [float(np.average(p.losses, weights=p.tokens)) for p in points]
        new = _beside_the_ridge(ts, losses)[:left]
        if not new:
            return
        parts.append((new, work.line_job(0, 1, new)))
        yield parts[-1]
        left -= len(new)


def _beside_the_ridge(ts: Sequence[float], losses: Sequence[float]) -> tuple[float, ...]:
    """Middles of the two segments beside the ridge of the convexity gap, the wider one first."""
    place = convexity_gap_location(losses, t=ts)
    if place is None:
        return ()
    k = place[1]
    sides = sorted(((ts[k] - ts[k - 1], ts[k - 1]), (ts[k + 1] - ts[k], ts[k])), reverse=True)
    return tuple(left + width / 2 for width, left in sides if width / 2 >= NEAREST)


def _ordered(
    work: PointsWork, store: ArtifactStore, parts: Sequence[Part], data: int, examples: Examples
) -> list[Predictions]:
    """Predictions at all positions of a line walked in parts, in rising order of t."""
    kind = work.data[data].task.kind
    ends = [store.read(work.point_job(m).key) for m in (0, 1)]
    found: dict[float, Predictions] = {}
    for ts, job in parts:
        first, *inner, last = line_predictions(ends, store.read(job.key), data, examples, kind)
        found |= {0.0: first, 1.0: last, **dict(zip(ts, inner, strict=True))}
    return [found[t] for t in sorted(found)]


def line_predictions(
    ends: Sequence[Any], interior: Any, data: int, examples: Examples, kind: str
) -> list[Predictions]:
    """Predictions at every point of a line: first end, interior points, second end."""
    first, last = (unpack(end, data, examples, kind)[0] for end in ends)
    inner = unpack(interior, data, examples, kind) if interior.tensors else []
    return [first, *inner, last]


def line_statistics(
    curves: Sequence[Sequence[Predictions]],
    config: LineConfig,
    distance: float | np.ndarray | None = None,
    ts: Sequence[float] | None = None,
) -> CurveStatistics:
    """Barrier, gap and their intervals of several lines over the same examples.

    `ts` are the positions of the points where they are not those of `config`.
    """
    losses = np.stack([[point.losses for point in points] for points in curves])
    return curve_statistics(
        losses,
        weights=curves[0][0].tokens,
        replicates=config.replicates,
        seed=config.seed,
        level=config.level,
        distance=distance,
        t=config.ts if ts is None else ts,
    )


def _table(
    data: Data,
    ts: Sequence[float],
    points: Sequence[Predictions],
    statistics: CurveStatistics,
    config: PointsConfig,
) -> pd.DataFrame:
    names = [name for name in metric_names(data.task) if name != "loss"]
    rows: list[dict[str, Any]] = []
    for k, (t, predictions) in enumerate(zip(ts, points, strict=True)):
        row: dict[str, Any] = {"data": data.name, "t": t}
        # The metric itself: at the ends it is that of `evaluate`, to the last digit.
        row["loss"] = float(np.asarray(get_metric("loss").aggregate(predictions)))
        row["loss_low"] = float(statistics.loss_low[0, k])
        row["loss_high"] = float(statistics.loss_high[0, k])
        for name, (value, low, high) in metric_table(predictions, names, config).items():
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


SUMMARY_FIELDS = (
    "barrier_height",
    "barrier_low",
    "barrier_high",
    "convexity_gap",
    "gap_low",
    "gap_high",
    "gap_p_value",
    "noise_floor",
    "area_under_curve",
    "bump_height",
)
"""What is said of a curve, in the order of the tables."""


def _summary(data: Data, statistics: CurveStatistics) -> dict[str, Any]:
    return {
        "data": data.name,
        **{name: float(getattr(statistics, name)[0]) for name in SUMMARY_FIELDS},
    }
