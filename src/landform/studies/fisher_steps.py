"""The step of a study file that computes a Fisher diagonal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landform.curvature.fisher_fit import FisherConfig, FisherStudy
from landform.evaluation.points import find_split
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.studies.step import StudyStep

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["FisherStep"]


class FisherStep(FisherConfig, StudyStep):
    """The Fisher diagonal of one checkpoint."""

    checkpoint: str
    """The checkpoint."""
    task: str
    """A task of this file, or of the catalogue."""
    split: str = "train"
    """The split whose loss it is of."""
    out: str | None = None
    """Write the diagonal to this file, which later steps may name (`ewc`, `fisher`)."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoint."""
        return (self.checkpoint,)

    def check_data(self, file: StudyFile) -> None:
        """The split."""
        find_split(file.task(self.task)[0], self.split)

    def study(self, file: StudyFile) -> FisherStudy:
        """The plan."""
        return FisherStudy.of(
            file.place(self.checkpoint),
            file.task(self.task)[0],
            split=self.split,
            **self.options_of(FisherConfig),
        )

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Compute what is missing; the scores are kept under their name."""
        out = None if self.out is None else file.base / self.out
        return [self.study(file).fisher(store=store, out=out, progress=progress).summary]

    def writes(self) -> str | None:
        """The file of the diagonal."""
        return self.out
