"""What the floors below can do, as studies: planned before it runs, kept under a name.

The commands and the steps of study files run the same studies, so that what one has kept the other
finds. Each has `forecast`, `run` (which keeps the result where there is a store) and `kept`, the
names of what it keeps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from landform.evaluation.evaluate import EvaluateConfig, Evaluation, evaluate, plan_evaluation
from landform.geometry.average import AverageStudy
from landform.geometry.fitting import FittedPath
from landform.geometry.knowledge import (
    Knowledge,
    KnowledgeConfig,
    forecast_knowledge,
    knowledge_along_path,
)
from landform.geometry.landscape import LandscapeStudy
from landform.geometry.line import (
    InterpolateConfig,
    Interpolation,
    forecast_line,
    interpolate,
    line_work,
)
from landform.geometry.mixing import MixStudy
from landform.geometry.ridge import Ridge, RidgeConfig, ridge
from landform.geometry.surface import SurfaceStudy
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Forecast, Plan
from landform.store.study import publish, slug
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, select, short_names

__all__ = [
    "EvaluationStudy",
    "KeptStudy",
    "KnowledgeStudy",
    "LineStudy",
    "RidgeStudy",
    "Study",
    "keep_average",
    "keep_mix",
    "keep_surface",
]

Named = str | os.PathLike[str]


class Study(Protocol):
    """What a command or a step of a study file runs."""

    def forecast(self, store: ArtifactStore) -> Forecast | tuple[Forecast, ...]:
        """What is left to do; of several parts one for each."""

    def run(self, store: ArtifactStore | None, *, progress: bool = False) -> Any:
        """Do what is missing, and keep what comes of it where there is a store."""

    def kept(self, result: Any) -> tuple[str, ...]:
        """The names under which a study keeps what came of it."""


@dataclass(frozen=True)
class KeptStudy:
    """A plan of the floor below, whose result is kept."""

    plan: Any
    name: str

    def forecast(self, store: ArtifactStore) -> Any:
        """That of the plan."""
        return self.plan.forecast(store)

    def run(self, store: ArtifactStore | None, *, progress: bool = False) -> Any:
        """Do what is missing, and keep the result under its name."""
        result = self.plan.run(store, progress=progress)
        if store is not None:
            publish(store, self.name, result)
        return result

    def kept(self, result: Result) -> tuple[str, ...]:
        """Its name."""
        return (self.name,)


def keep_average(study: AverageStudy) -> KeptStudy:
    """An average that is kept."""
    return KeptStudy(study, study.name)


def keep_mix(study: MixStudy) -> KeptStudy:
    """A mix that is kept."""
    return KeptStudy(study, study.name)


def keep_surface(study: SurfaceStudy | LandscapeStudy, task: Task, split: str) -> KeptStudy:
    """A surface, or several, on a split of a task, that is kept."""
    return KeptStudy(study, slug(*study.title, task.name, split))


# --- between two checkpoints ---------------------------------------------------------------------


@dataclass(frozen=True)
class _PairStudy:
    """Two checkpoints and the data between them."""

    a: Named
    b: Named
    task: Task
    split: str

    @property
    def names(self) -> tuple[str, ...]:
        """The checkpoints as results call them."""
        return short_names(select([self.a, self.b]))

    def run(self, store: ArtifactStore | None, *, progress: bool = False) -> Any:
        """Evaluate what is missing, and keep the result under its name."""
        result = self._run(store, progress)
        if store is not None:
            (name,) = self.kept(result)
            publish(store, name, result)
        return result

    def _run(self, store: ArtifactStore | None, progress: bool) -> Result:
        raise NotImplementedError

    def kept(self, result: Any) -> tuple[str, ...]:
        """Its name."""
        raise NotImplementedError


@dataclass(frozen=True)
class LineStudy(_PairStudy):
    """The line between two checkpoints: `interpolate`."""

    also: tuple[Any, ...]
    config: InterpolateConfig

    @classmethod
    def of(
        cls, a: Named, b: Named, task: Task, *, split: str, also: Sequence[Any], **options: Any
    ) -> Self:
        """Raises for options, checkpoints and data sets that are not there."""
        study = cls(a, b, task, split, tuple(also), cls._config(options))
        line_work(a, b, task, split, also, study.config)
        return study

    @staticmethod
    def _config(options: dict[str, Any]) -> InterpolateConfig:
        return InterpolateConfig.parse(options, where="interpolate")

    def forecast(self, store: ArtifactStore) -> Forecast:
        """Evaluations that remain, their time and memory."""
        work = line_work(self.a, self.b, self.task, self.split, self.also, self.config)
        return forecast_line(work, self.config, store)

    def _run(self, store: ArtifactStore | None, progress: bool) -> Interpolation:
        return interpolate(
            self.a,
            self.b,
            self.task,
            split=self.split,
            also=self.also,
            store=store,
            progress=progress,
            **dict(self.config),
        )

    def kept(self, result: Any) -> tuple[str, ...]:
        """Its name."""
        return (slug("interpolate", *self.names, self.task.name, self.split),)


@dataclass(frozen=True)
class RidgeStudy(LineStudy):
    """The examples that rise between two checkpoints: `ridge`."""

    of_data: str | None = None
    """the data set whose examples are listed (default: the first)"""

    @staticmethod
    def _config(options: dict[str, Any]) -> RidgeConfig:
        return RidgeConfig.parse(options, where="ridge")

    def about(self, data: str | None) -> Self:
        """The study that lists the examples of this one of the data sets."""
        return replace(self, of_data=data)

    def _run(self, store: ArtifactStore | None, progress: bool) -> Ridge:  # type: ignore[override]
        return ridge(
            self.a,
            self.b,
            self.task,
            split=self.split,
            also=self.also,
            of=self.of_data,
            store=store,
            progress=progress,
            **dict(self.config),
        )

    def kept(self, result: Ridge) -> tuple[str, ...]:
        """Its name."""
        return (slug("ridge", *self.names, *result.data.rsplit(":", 1)),)


@dataclass(frozen=True)
class KnowledgeStudy(_PairStudy):
    """What is forgotten between two checkpoints: `knowledge_along_path`."""

    cartography: Path | None
    path: Path | None
    """directory of a fitted curve to follow in place of the line"""
    given: dict[str, Any]
    """the options that were given; the others are, along a curve, those it was fitted with"""

    @classmethod
    def of(
        cls,
        a: Named,
        b: Named,
        task: Task,
        *,
        split: str,
        cartography: Path | None,
        path: Path | None,
        options: KnowledgeConfig,
    ) -> Self:
        """The options may be those of a class that has more of them."""
        given = {**options.options_written(KnowledgeConfig), "points": options.points}
        return cls(a, b, task, split, cartography, path, given)

    @property
    def curve(self) -> FittedPath | None:
        """The fitted curve."""
        return None if self.path is None else FittedPath.load(self.path, [self.a, self.b])

    def forecast(self, store: ArtifactStore) -> Forecast:
        """Evaluations that remain, their time and memory."""
        return forecast_knowledge(
            self.a, self.b, self.task, self.split, self.curve, store, **self.given
        )

    def _run(self, store: ArtifactStore | None, progress: bool) -> Knowledge:
        return knowledge_along_path(
            self.a,
            self.b,
            self.task,
            self.split,
            cartography=self.cartography,
            path=self.curve,
            store=store,
            progress=progress,
            **self.given,
        )

    def kept(self, result: Knowledge) -> tuple[str, ...]:
        """Its name."""
        along = () if self.path is None else (self.path.name,)
        return (slug("knowledge", *self.names, *result.data.rsplit(":", 1), *along),)


# --- many checkpoints by themselves --------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationStudy:
    """Evaluations of checkpoints: `evaluate` for each."""

    checkpoints: tuple[Checkpoint, ...]
    task: Task
    split: str
    config: EvaluateConfig

    @classmethod
    def of(
        cls, checkpoints: Iterable[Named], task: Task, *, split: str, **options: Any
    ) -> EvaluationStudy:
        """Names or patterns; raises for those that are not there."""
        config = EvaluateConfig.parse(options, where="evaluate")
        return cls(tuple(select(checkpoints)), task, split, config)

    @property
    def names(self) -> tuple[str, ...]:
        """The checkpoints as results call them."""
        return short_names(self.checkpoints)

    def forecast(self, store: ArtifactStore) -> Forecast:
        """Evaluations that remain, their time and memory."""
        options = dict(self.config)
        planned = [plan_evaluation(c, self.task, self.split, options) for c in self.checkpoints]
        return planned[0][0].forecast(Plan(j for _, plan in planned for j in plan.jobs), store)

    def run(self, store: ArtifactStore | None, *, progress: bool = False) -> tuple[Evaluation, ...]:
        """Evaluate what is missing, and keep every evaluation under its name."""
        results: list[Evaluation] = []
        for checkpoint, name in zip(self.checkpoints, self.kept(()), strict=True):
            result = evaluate(
                checkpoint,
                self.task,
                split=self.split,
                store=store,
                progress=progress,
                **dict(self.config),
            )
            if store is not None:
                publish(store, name, result)
            results.append(result)
        return tuple(results)

    def kept(self, result: Any) -> tuple[str, ...]:
        """Their names."""
        return tuple(slug("evaluate", name, self.task.name, self.split) for name in self.names)
