"""The straight line between two checkpoints: theta(t) = (1 - t) a + t b."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from landform.errors import ConfigError
from landform.evaluation.evaluate import metric_names, metric_table
from landform.evaluation.points import Data, PointsConfig, PointsWork, unpack
from landform.geometry.curves import CurveStatistics, curve_statistics
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Plan
from landform.store.study import open_store
from landform.tasks.metrics import Predictions
from landform.tasks.task import Examples, Task, loss_unit
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = [
    "InterpolateConfig",
    "Interpolation",
    "LineConfig",
    "as_data",
    "interpolate",
    "line_predictions",
    "line_statistics",
    "plan_line",
]


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
    gap_low, gap_high, gap_p_value, noise_floor, area_under_curve, bump_height"""
    provenance: dict[str, Any]

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
        if row.convexity_gap <= row.noise_floor:
            verdict = "no ridge above the noise floor: linearly connected"
        else:
            verdict = "a ridge between them: not linearly connected"
        unit = loss_unit(self.kind)
        barrier = f"{row.barrier_height:.4g} [{row.barrier_low:.4g}, {row.barrier_high:.4g}]"
        gap = f"{row.convexity_gap:.4g} [{row.gap_low:.4g}, {row.gap_high:.4g}]"
        return (
            f"barrier {barrier} {unit}, convexity gap {gap} (noise floor {row.noise_floor:.2g}) "
            f"on {row.data}: {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "a": self.a,
            "b": self.b,
            "distance": self.distance,
            "barrier_height": self.barrier_height,
            "convexity_gap": self.convexity_gap,
            "table": self.table.to_dict("records"),
            "summary": self.summary.to_dict("records"),
            "provenance": self.provenance,
        }


def as_data(task: Task | Data | tuple[Task, str], split: str = "validation") -> Data:
    """A data set to evaluate on: a task (its `split`), or a task with a split of its own."""
    if isinstance(task, Data):
        return task
    if isinstance(task, tuple):
        return Data(*task)
    if not isinstance(task, Task):
        raise ConfigError(f"{task!r} is not a task", remedy="make one with landform.load_task(...)")
    return Data(task, split)


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
    """
    work, plan = plan_line(a, b, task, split, also, options)
    config, data = InterpolateConfig.parse(options), work.data
    ts = config.ts
    kept = open_store(store)
    run_plan(plan, work, kept, progress=progress)
    ends = [kept.read(work.point_job(m).key) for m in (0, 1)]
    interior = kept.read(work.line_job(0, 1, ts[1:-1]).key)
    tables, rows = [], []
    distance = float(interior.records["points"]["distance"])
    for d, item in enumerate(data):
        examples = item.examples(config.rows)
        points = line_predictions(ends, interior, d, examples, item.task.kind)
        statistics = line_statistics([points], config, distance)
        tables.append(_table(item, ts, points, statistics, config))
        rows.append(_summary(item, statistics))
    return Interpolation(
        a=work.checkpoints[0].spec,
        b=work.checkpoints[1].spec,
        distance=distance,
        kind=data[0].task.kind,
        table=pd.concat(tables, ignore_index=True),
        summary=pd.DataFrame(rows),
        provenance={
            "weights": [c.fingerprint for c in work.checkpoints],
            "config": config.model_dump(mode="json"),
        },
    )


def plan_line(
    a: str | os.PathLike[str] | Checkpoint,
    b: str | os.PathLike[str] | Checkpoint,
    task: Task,
    split: str,
    also: Sequence[Task | Data | tuple[Task, str]],
    options: Mapping[str, Any],
) -> tuple[PointsWork, Plan]:
    """What walking a line would take, before anything is loaded: both ends, then the interior."""
    config = InterpolateConfig.parse(options, where="interpolate")
    data = (as_data(task, split), *(as_data(item, split) for item in also))
    work = PointsWork((resolve(a), resolve(b)), data, config)
    interior = config.ts[1:-1]
    return work, Plan((work.point_job(0), work.point_job(1), work.line_job(0, 1, interior)))


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
) -> CurveStatistics:
    """Barrier, gap and their intervals of several lines over the same examples."""
    losses = np.stack([[point.losses for point in points] for points in curves])
    return curve_statistics(
        losses,
        weights=curves[0][0].tokens,
        replicates=config.replicates,
        seed=config.seed,
        level=config.level,
        distance=distance,
        t=config.ts,
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
        row["loss"] = float(statistics.loss[0, k])
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
