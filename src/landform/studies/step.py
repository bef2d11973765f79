"""What the steps of a study file have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from landform.config import Config
from landform.results import Result
from landform.store.artifacts import ArtifactStore, MemoryStore
from landform.tasks.task import Task
from landform.training.options import TrainConfig, named_dropout, placed_dropout
from landform.weights.checkpoint import select

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = [
    "PlacedTraining",
    "Step",
    "StudyStep",
    "as_tuple",
    "find",
    "placed",
    "query_set",
    "resolve",
    "train_split",
]


class Step(Config):
    """One entry of `steps`; its fields are the options of the command of that name."""

    def check(self, file: StudyFile) -> None:
        """Raise for what can be seen to be wrong before any step has run."""

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """What is left to do; `CheckpointError` where a checkpoint is not there yet."""
        raise NotImplementedError

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Do it, keep the results in the store, and return those to be said."""
        raise NotImplementedError

    def makes(self) -> str | None:
        """The directory of the checkpoints, or the checkpoint, that this step writes."""
        return None

    def writes(self) -> str | None:
        """What it writes for later steps: a row file, a Fisher, or the directory of a curve."""
        return None


class StudyStep(Step):
    """A step whose operation is a study: a plan that forecasts, runs and keeps by itself."""

    def needs(self) -> tuple[str, ...]:
        """Names or patterns of the checkpoints that must be there."""
        raise NotImplementedError

    def check_data(self, file: StudyFile) -> None:
        """Raise for data sets that are not there."""
        raise NotImplementedError

    def study(self, file: StudyFile) -> Any:
        """The plan."""
        raise NotImplementedError

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints that are there already."""
        self.check_data(file)
        if find(file, self.needs()):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Evaluations or steps, time and memory, of each of its parts."""
        found = self.study(file).forecast(store or MemoryStore())
        parts = found if isinstance(found, tuple) else (found,)
        return "; then ".join(part.reading for part in parts)

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Do what is missing."""
        return [self.study(file).run(store, progress=progress)]


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name or several as several."""
    return (names,) if isinstance(names, str) else names


def resolve(file: StudyFile, names: Sequence[str]) -> None:
    """Raise for data sets, TASK or TASK:SPLIT, that are not there."""
    for task, split in map(file.task, names):
        task.resolve(split)


def find(file: StudyFile, names: Sequence[str]) -> bool:
    """Raise for checkpoints that are not there; whether none waits for an earlier step."""
    there = [name for name in names if not file.makes(name)]
    select(map(file.place, there))
    return len(there) == len(names)


def placed(file: StudyFile, options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Options with the paths among them starting from the study file."""
    paths = {name: file.base / options[name] for name in names if options[name] is not None}
    return {**options, **paths}


class PlacedTraining(TrainConfig):
    """Options of training in a study file: files lie where it says, and may not be there yet."""

    @field_validator("dropout", mode="before")
    @classmethod
    def _schedule(cls, value: object) -> object:
        return named_dropout(value)

    def placed(self, file: StudyFile) -> dict[str, Any]:
        """The options with their paths starting from the study file."""
        options = placed(file, self.options_of(TrainConfig), "row_file", "ewc")
        return {**options, "dropout": placed_dropout(file.base, self.dropout)}


def query_set(file: StudyFile, task: str, name: str) -> tuple[Task, str]:
    """A split of the task by its name, or TASK:SPLIT."""
    return file.task(name if ":" in name else f"{task.partition(':')[0]}:{name}")


def train_split(name: str) -> str:
    """The split that TASK:SPLIT names, train where it names none."""
    return name.partition(":")[2] or "train"
