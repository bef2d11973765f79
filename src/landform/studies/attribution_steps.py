"""The steps of a study file about training rows: which ones made the model what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from landform.config import Config
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.studies.attribute import (
    AttributionConfig,
    AttributionStudy,
    SuspectsConfig,
    SuspectsStudy,
)
from landform.studies.counterfactual import CounterfactualConfig, CounterfactualStudy
from landform.studies.lds import LdsConfig, LdsStudy
from landform.studies.step import PlacedTraining, StudyStep, as_tuple, placed, query_set
from landform.tasks.task import Task

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["CounterfactualStep", "InfluenceStep", "LdsStep", "MislabelStep"]


class RowsStep(StudyStep):
    """What the steps share that look at the training rows of one model."""

    checkpoint: str
    """The fine-tuned model."""
    task: str
    """The task it was trained on."""
    split: str = "train"
    """The split it was trained on."""

    def needs(self) -> tuple[str, ...]:
        """The model."""
        return (self.checkpoint,)

    def check_data(self, file: StudyFile) -> None:
        """The training rows."""
        file.task(self.task)[0].resolve(self.split)


class InfluenceStep(AttributionConfig, RowsStep):
    """Score training rows for queries."""

    queries: str | tuple[str, ...] = "validation"
    """What is asked about: splits of the task, or TASK:SPLIT."""

    def check_data(self, file: StudyFile) -> None:
        """The training rows and the queries."""
        super().check_data(file)
        for task, split in self.query_sets(file):
            task.resolve(split)

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Fit and score what is missing."""
        done = self.study(file).run(store, progress=progress)
        return [done.factors, *done.influences]

    def query_sets(self, file: StudyFile) -> list[tuple[Task, str]]:
        """What is asked about, as tasks and their splits."""
        return [query_set(file, self.task, name) for name in as_tuple(self.queries)]

    def study(self, file: StudyFile) -> AttributionStudy:
        """The plan of fit and scores."""
        return AttributionStudy.of(
            file.place(self.checkpoint),
            file.task(self.task)[0],
            split=self.split,
            queries=self.query_sets(file),
            **placed(file, self.options_of(AttributionConfig), "row_file"),
        )


class MislabelStep(SuspectsConfig, RowsStep):
    """Rank training rows by self-influence."""

    known: str | None = None
    """Text file with the ids of rows whose labels are known to be wrong, one a line."""

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Fit what is missing, and rank."""
        done = self.study(file).run(store, progress=progress)
        return [done.factors, done.ranking]

    def study(self, file: StudyFile) -> SuspectsStudy:
        """The plan of fit and ranking."""
        return SuspectsStudy.of(
            file.place(self.checkpoint),
            file.task(self.task)[0],
            split=self.split,
            known=None if self.known is None else file.base / self.known,
            **placed(file, self.options_of(SuspectsConfig), "row_file"),
        )


class RetrainingStep(StudyStep):
    """What the steps share that train models again on other rows."""

    model: str
    """The checkpoint that every training starts from."""
    task: str
    """The task to train on."""
    split: str = "train"
    """The split to train on."""
    queries: str = "validation"
    """What is asked about: a split of the task, or TASK:SPLIT."""
    scored: str | None = None
    """The fine-tuned model that is scored (default: trained on all rows with the base seeds)."""
    train: PlacedTraining = PlacedTraining()
    """How every model is trained: the options of `train`."""

    def needs(self) -> tuple[str, ...]:
        """What is trained from, and what is scored."""
        return (self.model, *(() if self.scored is None else (self.scored,)))

    def check_data(self, file: StudyFile) -> None:
        """The training rows."""
        file.task(self.task)[0].resolve(self.split)

    def of_operation(self, file: StudyFile, kind: type[Config]) -> dict[str, Any]:
        """The options of the operation, those of training with their paths."""
        return {**self.options_of(kind), "train": self.train.placed(file)}


class LdsStep(RetrainingStep, LdsConfig):
    """Compare scores with retraining on random parts of the rows."""

    def study(self, file: StudyFile) -> LdsStudy:
        """The plan of the retrainings."""
        return LdsStudy.of(
            file.place(self.model),
            file.task(self.task)[0],
            split=self.split,
            queries=query_set(file, self.task, self.queries),
            scored=None if self.scored is None else file.place(self.scored),
            **placed(file, self.of_operation(file, LdsConfig), "mask_file", "margin_file"),
        )


class CounterfactualStep(RetrainingStep, CounterfactualConfig):
    """Remove the most helpful rows, train again, count the flips."""

    def study(self, file: StudyFile) -> CounterfactualStudy:
        """The plan of the removals."""
        return CounterfactualStudy.of(
            file.place(self.model),
            file.task(self.task)[0],
            split=self.split,
            queries=query_set(file, self.task, self.queries),
            scored=None if self.scored is None else file.place(self.scored),
            **self.of_operation(file, CounterfactualConfig),
        )
