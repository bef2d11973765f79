"""The steps of study files about the axes of an experiment: lines of pairs, task boundaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from landform.errors import ConfigError
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.study import publish, slug
from landform.studies.axes import AxesConfig, AxisPair, axis_lines
from landform.studies.boundary import BoundaryConfig, BoundaryStudy
from landform.studies.step import Step, StudyStep, find, resolve
from landform.weights.checkpoint import select

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["AxesStep", "BoundaryStep"]


class AxesStep(AxesConfig, Step):
    """Walk the lines of the pairs of an axis, and compare them."""

    axis: str
    """What the models of a pair differ in."""
    pairs: tuple[AxisPair, ...] = Field(min_length=1)
    """The pairs: {value: ..., a: ..., b: ...}."""
    task: str
    """The data set, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints that are there already."""
        resolve(file, [self.task, *self.also])
        find(file, self._names())

    def _names(self) -> list[str]:
        return [name for pair in self.pairs for name in (pair.a, pair.b)]

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """How many points there are."""
        file.task(self.task)
        ends = len(select(file.place(name) for name in self._names()))
        inner = len(self.pairs) * (len(self.ts) - 2 + self.adaptive)
        return f"{len(self.pairs)} lines, {ends + inner} evaluations"

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Evaluate what is missing, and keep the lines and the table under their names."""
        task, split = file.task(self.task)
        result = axis_lines(
            self.axis,
            [(pair.value, file.place(pair.a), file.place(pair.b)) for pair in self.pairs],
            task,
            split=split,
            also=[file.task(name) for name in self.also],
            store=store,
            progress=progress,
            **self.options_of(AxesConfig),
        )
        publish(store, slug("axes", self.axis, task.name, split), result)
        return [result]


class BoundaryStep(BoundaryConfig, StudyStep):
    """How far along the line between the models of two tasks each of them works."""

    a: str | tuple[str, ...]
    """The model of the first task, at x = 0; or those of several pairs."""
    b: str | tuple[str, ...]
    """The model of the second task, at x = 1; or those of several pairs."""
    task: str
    """The first task, TASK or TASK:SPLIT."""
    task_b: str
    """The second task, TASK or TASK:SPLIT."""
    labels: tuple[str, ...] | None = None
    """Names of the pairs, where there are several (steps of pre-training, say)."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return tuple(name for pair in self._pairs() for name in pair)

    def _pairs(self) -> list[tuple[str, str]]:
        sides = [(s,) if isinstance(s, str) else s for s in (self.a, self.b)]
        if len(sides[0]) != len(sides[1]) or not sides[0]:
            raise ConfigError(
                f"boundary: {len(sides[0])} models of the first task and {len(sides[1])} of the "
                "second",
                remedy="give as many a as b: the k-th of both are a pair",
            )
        return list(zip(*sides, strict=True))

    def check_data(self, file: StudyFile) -> None:
        """Both tasks."""
        self._pairs()
        resolve(file, [self.task, self.task_b])

    def study(self, file: StudyFile) -> BoundaryStudy:
        """The plan of all points."""
        return BoundaryStudy.of(
            [(file.place(a), file.place(b)) for a, b in self._pairs()],
            file.task(self.task),
            file.task(self.task_b),
            labels=self.labels,
            options=self.options_of(BoundaryConfig),
        )
