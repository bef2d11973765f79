"""The step of a study file that follows what is known along a path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landform.geometry.fitting import FittedPath
from landform.geometry.knowledge import KnowledgeConfig, forecast_knowledge, knowledge_along_path
from landform.evaluation.data import find_split
from landform.results import Result
from landform.store.artifacts import ArtifactStore, MemoryStore
from landform.store.study import publish, slug
from landform.studies.step import Step, find, train_split
from landform.weights.checkpoint import select, short_names

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["KnowledgeStep"]


class KnowledgeStep(KnowledgeConfig, Step):
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

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints that are there already."""
        find_split(file.task(self.task)[0], train_split(self.task))
        find(file, [self.a, self.b])

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Evaluations, time and memory; without the checkpoints or the curve, their number."""
        ends = [file.place(self.a), file.place(self.b)]
        select(ends)
        curve = self._curve(file)
        if self.path is not None and curve is None:
            return f"{self.points} evaluations"
        return forecast_knowledge(
            ends[0],
            ends[1],
            file.task(self.task)[0],
            train_split(self.task),
            curve,
            store or MemoryStore(),
            **self._given(),
        ).reading

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Evaluate what is missing, and keep the result under its name."""
        ends = [file.place(self.a), file.place(self.b)]
        known = None if self.cartography is None else file.base / self.cartography
        result = knowledge_along_path(
            ends[0],
            ends[1],
            file.task(self.task)[0],
            train_split(self.task),
            cartography=known,
            path=FittedPath.load(file.base / self.path, ends) if self.path else None,
            store=store,
            progress=progress,
            **self._given(),
        )
        names = short_names(select(ends))
        along = [] if self.path is None else [Path(self.path).name]
        publish(store, slug("knowledge", *names, *result.data.rsplit(":", 1), *along), result)
        return [result]

    def _given(self) -> dict[str, Any]:
        """The options that were given; the others are, along a curve, those it was fitted with."""
        given = self.model_fields_set & set(KnowledgeConfig.model_fields)
        return {name: getattr(self, name) for name in {*given, "points"}}

    def _curve(self, file: StudyFile) -> FittedPath | None:
        """The fitted curve, where it is there."""
        if self.path is None or not (file.base / self.path).is_dir():
            return None
        return FittedPath.load(file.base / self.path, [file.place(self.a), file.place(self.b)])
