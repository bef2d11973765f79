"""The step of a study file that follows what is known along a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landform.evaluation.data import find_split
from landform.geometry.knowledge import KnowledgeConfig
from landform.store.artifacts import ArtifactStore
from landform.studies.kept import KnowledgeStudy
from landform.studies.step import StudyStep, find, train_split
from landform.weights.checkpoint import select

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["KnowledgeStep"]


class KnowledgeStep(KnowledgeConfig, StudyStep):
    """Who is forgotten and relearned between two checkpoints."""

    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""
    task: str
    """The data set whose examples are followed, TASK or TASK:SPLIT (default split: train)."""
    cartography: str | None = None
    """A run that was trained with cartography, or its cartography.parquet."""
    path: str | None = None
    """The directory of a fitted curve to follow in place of the line: `out` of a curve step."""

    def needs(self) -> tuple[str, ...]:
        """Both checkpoints."""
        return (self.a, self.b)

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints that are there already."""
        find_split(file.task(self.task)[0], train_split(self.task))
        find(file, self.needs())

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Evaluations, time and memory; without the checkpoints or the curve, their number."""
        select([file.place(self.a), file.place(self.b)])
        if self.path is not None and not (file.base / self.path).is_dir():
            return f"{self.points} evaluations"
        return super().forecast(file, store)

    def study(self, file: StudyFile) -> KnowledgeStudy:
        """The plan of the points."""
        return KnowledgeStudy.of(
            file.place(self.a),
            file.place(self.b),
            file.task(self.task)[0],
            split=train_split(self.task),
            cartography=None if self.cartography is None else file.base / self.cartography,
            path=None if self.path is None else file.base / self.path,
            options=self,
        )
