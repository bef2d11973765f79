"""Curvature along a path between two checkpoints: where it is sharp, and where the loss is high.

At every point theta(t) of a line, or of a fitted Bezier curve or polyline, the largest eigenvalues
and the trace of a curvature matrix (`curvature.spectrum`), beside the loss, each with its error.
Curvature is that of the loss in all directions, not along the path.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import Field

from landform.curvature.spectrum import (
    SpectrumConfig,
    SpectrumStudy,
    check_dimension,
    collect_point,
    data_of,
    point_predictions,
    run_jobs,
)
from landform.curvature.spectrum_jobs import SpectrumWork
from landform.errors import ConfigError
from landform.evaluation.evaluate import metric_table
from landform.evaluation.points import Data, PointsWork, data_fingerprint
from landform.geometry.curves import barrier_height
from landform.geometry.fitting import FittedPath
from landform.geometry.paths import Spacing
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store, publish, slug
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import (
    Checkpoint,
    CheckpointLike,
    check_same_architecture,
    resolve,
    short_names,
)

__all__ = [
    "PathSpectrum",
    "PathSpectrumConfig",
    "PathSpectrumStudy",
    "spectrum_along_path",
    "spectrum_study",
]


class PathSpectrumConfig(SpectrumConfig):
    """How curvature is followed along a path; no density is computed there."""

    points: int = Field(5, ge=2)
    """Points of a path between two checkpoints, both ends included."""
    spacing: Spacing = "arc"
    """Where they lie on a curve: at equal arc length, or at equal steps of t."""


@dataclass(frozen=True)
class PathSpectrum(Result):
    """Curvature and loss along a path from `a` (t = 0) to `b` (t = 1)."""

    a: str
    b: str
    path: str
    """line, or the kind of the fitted curve: bezier, polyline"""
    data: str
    kind: str
    """kind of the task: the loss is in nats, for regression in squared units"""
    operator: str
    table: pd.DataFrame
    """one row per point: t, arc (share of the length), loss, loss_low, loss_high (bootstrap over
    examples), trace, trace_error, trace_low, trace_high (over random vectors), eigenvalue, low,
    high, residual, data_error (of the largest eigenvalue), converged"""
    eigenvalues: pd.DataFrame
    """t, end, rank, eigenvalue, residual, data_error, low, high, example, share"""
    barrier: float
    """largest rise of the loss above the chord, at these points"""
    parameters: int
    examples: int
    level: float
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def reading(self) -> str:
        """One line for a person."""
        table, parts = self.table, []
        for name, words in (("eigenvalue", "largest eigenvalue"), ("trace", "trace")):
            values = table[name].to_numpy(dtype=float)
            if not np.isfinite(values).all():
                continue
            k = int(values.argmax())
            parts.append(
                f"{words} {values[0]:.4g} and {values[-1]:.4g} at the ends, highest "
                f"{values[k]:.4g} at t = {table['t'].iloc[k]:.3g}"
            )
        peak = table.iloc[int(table["loss"].to_numpy(dtype=float).argmax())]
        parts.append(
            f"loss highest {peak.loss:.4g} {loss_unit(self.kind)} at t = {peak.t:.3g} "
            f"(barrier {self.barrier:.3g})"
        )
        if not table["converged"].all():
            parts.append("NOT converged at every point")
        return f"{self.operator} along the {self.path} on {self.data}: {'; '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        left = ("table", "eigenvalues", "provenance")
        return {
            **{n: getattr(self, n) for n in self.__dataclass_fields__ if n not in left},
            "table": self.table.to_dict("records"),
            "eigenvalues": self.eigenvalues.to_dict("records"),
            "provenance": self.provenance,
        }


def spectrum_along_path(
    a: CheckpointLike,
    b: CheckpointLike,
    task: Task | Data | tuple[Task, str],
    *,
    curve: FittedPath | str | os.PathLike[str] | None = None,
    split: str = "validation",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> PathSpectrum:
    """Curvature at points of the line between two checkpoints, or of a curve fitted between them.

    `curve` is what `fit_curve` returned, or the directory it was saved to. Options are the fields
    of `PathSpectrumConfig` (operator, top, points, rows, ...). Errors are those of `spectrum`.
    """
    study = PathSpectrumStudy.of(a, b, task, curve=curve, split=split, **options)
    return study.run(open_store(store), progress=progress, keep=store is not None)


@dataclass(frozen=True)
class PathSpectrumStudy:
    """The plan of all points, before anything is loaded."""

    checkpoints: tuple[Checkpoint, Checkpoint]
    data: Data
    config: PathSpectrumConfig
    curve: FittedPath | None = None

    @classmethod
    def of(
        cls,
        a: CheckpointLike,
        b: CheckpointLike,
        task: Task | Data | tuple[Task, str],
        *,
        curve: FittedPath | str | os.PathLike[str] | None = None,
        split: str = "validation",
        **options: Any,
    ) -> Self:
        """Resolve checkpoints, curve, data and options; raises for what is not there."""
        config = PathSpectrumConfig.parse(options, where="spectrum")
        if not config.top and config.trace == "none":
            raise ConfigError(
                "neither eigenvalues nor the trace are asked for: nothing to follow",
                remedy="give top 1 or more, or trace hutch++",
            )
        _refuse_density(config)
        ends = resolve(a), resolve(b)
        check_same_architecture(*ends)
        check_dimension(ends[0], config)
        data = data_of(task, split)
        data.task.resolve(data.split)
        if curve is not None and not isinstance(curve, FittedPath):
            curve = FittedPath.load(Path(curve), ends)
        # Of a density there would be as many as points.
        return cls(ends, data, config.replace(density_probes=0), curve)

    @cached_property
    def _work(self) -> SpectrumWork:
        vertices = () if self.curve is None else self.curve.vertices
        points = PointsWork(self.checkpoints, (self.data,), self.config, vertices)
        return SpectrumWork(points, self.config)

    @cached_property
    def places(self) -> tuple[list[float], list[float]]:
        """(t, share of the arc length) of the points."""
        if self.curve is None:
            steps = [k / (self.config.points - 1) for k in range(self.config.points)]
            return steps, steps
        t, arc = self.curve.course.positions(self.config.points, spacing=self.config.spacing)
        return t.tolist(), arc.tolist()

    @cached_property
    def _jobs(self) -> list[dict[str, Job]]:
        """Of every point; an end is the checkpoint itself, as `spectrum` names it."""
        members = [0, 1]
        weights = [[1.0 - t, t] for t in self.places[0]]
        if self.curve is not None:
            members = [0, *range(2, 2 + len(self.curve.vertices)), 1]
            weights = self.curve.course.weights(self.places[0]).tolist()
        made = []
        for t, row in zip(self.places[0], weights, strict=True):
            used = [(m, w) for m, w in zip(members, row, strict=True) if w]
            label = f"{self.checkpoints[0].spec} -> {self.checkpoints[1].spec} at {t:.3g}"
            made.append(self._work.jobs([m for m, _ in used], [w for _, w in used], label))
        return made

    @property
    def plan(self) -> Plan:
        """All jobs."""
        return Plan(job for jobs in self._jobs for job in jobs.values())

    @property
    def result_name(self) -> str:
        """The name of the result in a study."""
        task, path = self.data.task, "line" if self.curve is None else self.curve.fit.kind
        names = short_names(self.checkpoints)
        return slug("spectrum", *names, path, task.name, self.data.split, self.config.operator)

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.result_name,)

    def forecast(self, store: ArtifactStore) -> Forecast:
        """Products that remain at most, their time and memory."""
        return self._work.forecast(self.plan, store)

    def run(
        self, store: ArtifactStore | None, *, progress: bool = False, keep: bool = True
    ) -> PathSpectrum:
        """Run what is missing; with `keep` the result is kept under its name."""
        kept = open_store(store)
        run_jobs(self._work, self.plan, kept, progress=progress)
        found = self.collect(kept)
        if keep:
            publish(kept, self.result_name, found)
        return found

    def collect(self, store: ArtifactStore) -> PathSpectrum:
        """The result, from the outputs in `store`."""
        config = self.config
        rows, pairs, sizes = [], [], (0, 0)
        for t, arc, jobs in zip(*self.places, self._jobs, strict=True):
            found = collect_point(self._work, jobs, store)
            rows.append({"t": t, "arc": arc, **self._row(found, jobs, store)})
            table: pd.DataFrame = found["table"]
            table.insert(0, "t", t)
            pairs.append(table)
            sizes = found["parameters"], found["examples"]
        points = pd.DataFrame(rows)
        return PathSpectrum(
            a=self.checkpoints[0].spec,
            b=self.checkpoints[1].spec,
            path="line" if self.curve is None else self.curve.fit.kind,
            data=self.data.name,
            kind=self.data.task.kind,
            operator=config.operator,
            table=points,
            eigenvalues=pd.concat(pairs, ignore_index=True),
            barrier=float(barrier_height(points["loss"].to_numpy(), t=points["arc"].to_numpy())),
            parameters=sizes[0],
            examples=sizes[1],
            level=config.level,
            provenance={
                "weights": [c.fingerprint for c in self.checkpoints],
                "data": data_fingerprint(self._work.points),
                "config": config.model_dump(mode="json"),
            },
        )

    def _row(
        self, found: Mapping[str, Any], jobs: Mapping[str, Job], store: ArtifactStore
    ) -> dict[str, Any]:
        """Loss, trace and largest eigenvalue of a point, with their intervals."""
        config = self.config
        point = point_predictions(self._work.points, store.read(jobs["loss"].key))
        loss, low, high = metric_table(point, ("loss",), config)["loss"]
        pairs: pd.DataFrame = found["table"]
        names = ("eigenvalue", "low", "high", "residual", "data_error")
        top = pairs[(pairs["end"] == "top") & (pairs["rank"] == 0)]
        first = {n: float(top[n].iloc[0]) if len(top) else math.nan for n in names}
        return {
            "loss": loss,
            "loss_low": low,
            "loss_high": high,
            **{n: found[n] for n in ("trace", "trace_error", "trace_low", "trace_high")},
            **first,
            "converged": found["converged"],
        }


def _refuse_density(config: PathSpectrumConfig) -> None:
    """Raise for options of the density, except for the one that says there is none."""
    defaults = PathSpectrumConfig()
    asked = config.density_probes not in (0, defaults.density_probes)
    given = ["density_probes"] if asked else []
    own = ("density_steps", "width")
    given += [name for name in own if getattr(config, name) != getattr(defaults, name)]
    if given:
        raise ConfigError(
            f"{given[0]} belongs to one checkpoint: along a path no density is computed",
            remedy="leave it out, or name one checkpoint",
        )


def spectrum_study(
    checkpoints: Sequence[CheckpointLike],
    task: Task | Data | tuple[Task, str],
    *,
    curve: FittedPath | str | os.PathLike[str] | None = None,
    split: str = "validation",
    options: Mapping[str, Any],
) -> SpectrumStudy | PathSpectrumStudy:
    """The plan of the spectrum of one checkpoint, or of the path between two.

    `options` are the fields of `PathSpectrumConfig`. Raises `ConfigError` for any other number of
    checkpoints, and for options of a path where there is none.
    """
    if len(checkpoints) == 2:
        a, b = checkpoints
        return PathSpectrumStudy.of(a, b, task, curve=curve, split=split, **options)
    if len(checkpoints) != 1:
        raise ConfigError(
            f"{len(checkpoints)} checkpoints were named",
            remedy="name one, or two to follow the line between them",
        )
    config = PathSpectrumConfig.parse(options, where="spectrum")
    defaults = PathSpectrumConfig()
    own = [n for n in PathSpectrumConfig.model_fields if n not in SpectrumConfig.model_fields]
    given = [name for name in own if getattr(config, name) != getattr(defaults, name)]
    given += ["curve"] if curve is not None else []
    if given:
        raise ConfigError(
            f"{given[0]} belongs to a path, and one checkpoint was named",
            remedy="name two checkpoints, or leave it out",
        )
    kept = {name: getattr(config, name) for name in SpectrumConfig.model_fields}
    return SpectrumStudy.of(checkpoints[0], task, split=split, **kept)
