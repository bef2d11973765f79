"""The steps of a study file about training examples and the path between two models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landform.studies.barrier_influence import BarrierInfluenceConfig, BarrierStudy
from landform.studies.example_table import ExampleTableConfig, ExampleTableStudy
from landform.studies.step import StudyStep, query_set

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["BarrierStep", "ExamplesStep"]


class _PairStep(StudyStep):
    """What the two steps share: two models and a task."""

    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""
    task: str
    """The task they were trained on."""

    def needs(self) -> tuple[str, ...]:
        """Both models."""
        return (self.a, self.b)


class ExamplesStep(ExampleTableConfig, _PairStep):
    """One table of training examples: dynamics, self-influence, losses along the path."""

    split: str = "train"
    """The split whose examples are listed."""
    cartography: str | None = None
    """A run with training dynamics (default: A, where it has them)."""

    def check_data(self, file: StudyFile) -> None:
        """The examples."""
        file.task(self.task)[0].resolve(self.split)

    def study(self, file: StudyFile) -> ExampleTableStudy:
        """The plan of line and scores."""
        return ExampleTableStudy.of(
            file.place(self.a),
            file.place(self.b),
            file.task(self.task)[0],
            split=self.split,
            dynamics=None if self.cartography is None else file.base / self.cartography,
            **self.options_of(ExampleTableConfig),
        )


class BarrierStep(BarrierInfluenceConfig, _PairStep):
    """Which training examples raise the ridge between two models?"""

    train: str = "train"
    """The split that both were trained on."""
    split: str = "validation"
    """What the barrier is measured on: a split of the task, or TASK:SPLIT."""

    def check_data(self, file: StudyFile) -> None:
        """The training rows, and the data of the barrier."""
        file.task(self.task)[0].resolve(self.train)
        task, split = query_set(file, self.task, self.split)
        task.resolve(split)

    def study(self, file: StudyFile) -> BarrierStudy:
        """The plan of line, scores and retrainings."""
        options = self.options_of(BarrierInfluenceConfig)
        if self.model is not None:
            options["model"] = str(file.place(self.model))
        return BarrierStudy.of(
            file.place(self.a),
            file.place(self.b),
            file.task(self.task)[0],
            train=self.train,
            split=query_set(file, self.task, self.split),
            **options,
        )
