"""Fitted curves and complexes as whole procedures: fit, evaluate, keep both results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy.typing as npt
from pydantic import Field

from landform.config import Config
from landform.evaluation.data import as_data, as_data_or_only
from landform.evaluation.points import Data, PointsConfig
from landform.geometry.descent import FitWork
from landform.geometry.fitting import (
    ONLY_ROWS,
    CurveConfig,
    FittedPath,
    PathConfig,
    PathEvaluation,
    curve_work,
    fit_curve,
    plan_path,
)
from landform.geometry.paths import Spacing
from landform.geometry.simplexes import (
    ComplexConfig,
    ComplexFit,
    FittedComplex,
    SampleConfig,
    complex_work,
    fit_complex,
    plan_complex,
)
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Forecast
from landform.store.study import open_store, publish, slug
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, resolve, short_names

__all__ = ["ComplexStudy", "ComplexStudyConfig", "CurveStudy", "CurveStudyConfig"]

C = TypeVar("C", bound=Config)
Named = str | os.PathLike[str] | Checkpoint


class CurveStudyConfig(CurveConfig):
    """How a curve is fitted (on ROWS rows of the split) and evaluated."""

    points: int = Field(11, ge=2)
    """Points that are evaluated, both ends included."""
    spacing: Spacing = "arc"
    """Where they lie: at equal arc length, or at equal steps of t."""
    bend_points: bool = False
    """Also evaluate where the path bends (a Bezier curve: at t = k / (BENDS + 1))."""
    eval_rows: int | None = Field(None, ge=1)
    """Use only the first EVAL_ROWS examples of each data set that is evaluated (default: all)."""


class ComplexStudyConfig(ComplexConfig):
    """How a complex is fitted (on ROWS rows of the split) and evaluated."""

    samples: int = Field(10, ge=1)
    """Random points of each clique that are evaluated."""
    eval_rows: int | None = Field(None, ge=1)
    """Use only the first EVAL_ROWS examples of each data set that is evaluated (default: all)."""


def _part(config: Config, kind: type[C]) -> C:
    """The options of one operation among those of the study: those that were given."""
    return kind.parse(config.options_written(kind))


def _evaluation(config: Any, own: Sequence[str]) -> dict[str, Any]:
    """Options of the evaluation: how to run the model, how sure to be, and its own."""
    names = [n for n in PointsConfig.model_fields if n != "rows"]
    return {**{n: getattr(config, n) for n in (*names, *own)}, "rows": config.eval_rows}


def _further(also: Sequence[Task | tuple[Task, str]], split: str) -> tuple[Data, ...]:
    return tuple(as_data(item, split) for item in also)


@dataclass(frozen=True, eq=False)
class CurveStudy:
    """A curve between two checkpoints, before anything is loaded."""

    fit: FitWork
    ends: tuple[Named, Named]
    evaluated: Data
    also: tuple[Data, ...]
    config: CurveStudyConfig

    @classmethod
    def of(
        cls,
        a: Named,
        b: Named,
        task: Task,
        *,
        split: str = "train",
        eval_split: str = "validation",
        also: Sequence[Task | tuple[Task, str]] = (),
        options: Mapping[str, Any],
    ) -> Self:
        """Raises for options, checkpoints and splits that are not there."""
        config = CurveStudyConfig.parse(options, where="curve")
        fit = curve_work(a, b, task, split, _part(config, CurveConfig))
        evaluated = as_data_or_only(task, eval_split, ONLY_ROWS)
        return cls(fit, (a, b), evaluated, _further(also, eval_split), config)

    def forecast(self, store: ArtifactStore) -> tuple[Forecast, Forecast]:
        """Steps of the fit, and evaluations after it."""
        options = _evaluation(self.config, ("points", "spacing", "bend_points"))
        if self.fit.final.key in store:
            walked = self._fitted(store).walked([self.evaluated, *self.also], **options)
            work, plan = walked.work, walked.plan
        else:
            work, plan = plan_path(self.fit, self.evaluated, self.also, PathConfig.parse(options))
        return self.fit.forecast(store), work.forecast(plan, store)

    def _fitted(self, store: ArtifactStore, progress: bool = False) -> FittedPath:
        options = dict(self.fit.config)
        return fit_curve(*self.ends, self.fit.data, store=store, progress=progress, **options)

    def run(
        self, store: str | os.PathLike[str] | ArtifactStore | None, *, progress: bool = False
    ) -> tuple[FittedPath, PathEvaluation]:
        """Fit and evaluate what is missing."""
        kept = open_store(store)
        path = self._fitted(kept, progress)
        found = path.evaluate(
            self.evaluated,
            split=self.evaluated.split,
            also=self.also,
            store=kept,
            progress=progress,
            **_evaluation(self.config, ("points", "spacing", "bend_points")),
        )
        publish(kept, self.name("curve"), found)
        publish(kept, self.name("fit"), path.fit)
        return path, found

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return self.name("curve"), self.name("fit")

    def name(self, what: str) -> str:
        """What its results are called in a study."""
        names = short_names([resolve(end) for end in self.ends])
        kind = f"{self.config.kind}{self.config.bends}"
        return slug(what, kind, *names, self.evaluated.task.name, self.evaluated.split)


@dataclass(frozen=True, eq=False)
class ComplexStudy:
    """A complex through checkpoints, before anything is loaded."""

    fit: FitWork
    adjacency: npt.ArrayLike | None
    evaluated: Data
    also: tuple[Data, ...]
    config: ComplexStudyConfig

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[Named],
        task: Task,
        *,
        split: str = "train",
        eval_split: str = "validation",
        also: Sequence[Task | tuple[Task, str]] = (),
        adjacency: npt.ArrayLike | None = None,
        options: Mapping[str, Any],
    ) -> Self:
        """Raises for options, checkpoints and splits that are not there."""
        config = ComplexStudyConfig.parse(options, where="simplex")
        fit = complex_work(checkpoints, task, split, _part(config, ComplexConfig), adjacency)
        evaluated = as_data_or_only(task, eval_split, ONLY_ROWS)
        return cls(fit, adjacency, evaluated, _further(also, eval_split), config)

    def forecast(self, store: ArtifactStore) -> tuple[Forecast, Forecast]:
        """Steps of the fit, and evaluations after it."""
        config = SampleConfig.parse(_evaluation(self.config, ("samples",)))
        work, plan = plan_complex(self.fit, self.evaluated, self.also, config)
        return self.fit.forecast(store), work.forecast(plan, store)

    def run(
        self, store: str | os.PathLike[str] | ArtifactStore | None, *, progress: bool = False
    ) -> tuple[FittedComplex, ComplexFit]:
        """Fit and evaluate what is missing."""
        kept = open_store(store)
        found = fit_complex(
            self.fit.checkpoints,
            self.fit.data,
            adjacency=self.adjacency,
            store=kept,
            progress=progress,
            **dict(_part(self.config, ComplexConfig)),
        )
        fit = found.evaluate(
            self.evaluated,
            split=self.evaluated.split,
            also=self.also,
            store=kept,
            progress=progress,
            **_evaluation(self.config, ("samples",)),
        )
        publish(kept, self.name, fit)
        return found, fit

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.name,)

    @property
    def name(self) -> str:
        """What its result is called in a study."""
        names = short_names(self.fit.checkpoints)
        return slug("simplex", *names, self.evaluated.task.name, self.evaluated.split)
