"""The step of study files that looks at the spectrum of a curvature matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from landform.curvature.spectrum import SpectrumStudy
from landform.geometry.spectrum_path import (
    PathSpectrumConfig,
    PathSpectrumStudy,
    spectrum_study,
)
from landform.store.artifacts import ArtifactStore
from landform.studies.step import StudyStep, as_tuple, find, resolve

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["SpectrumStep"]


class SpectrumStep(PathSpectrumConfig, StudyStep):
    """Eigenvalues, trace and density at a checkpoint, or along the path between two."""

    checkpoints: str | tuple[str, ...]
    """One checkpoint; or two, to follow the line between them."""
    task: str
    """The data set, TASK or TASK:SPLIT."""
    curve: Path | None = None
    """Follow the curve fitted between the two, kept in this directory."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return as_tuple(self.checkpoints)

    def check_data(self, file: StudyFile) -> None:
        """The data set."""
        resolve(file, [self.task])

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints and the curve that are there already."""
        self.check_data(file)
        if find(file, self.needs()) and not file.waits_for(self.curve):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Products at most, time and memory."""
        if file.waits_for(self.curve):
            return f"waits for the curve of an earlier step ({self.curve})"
        return super().forecast(file, store)

    def study(self, file: StudyFile) -> SpectrumStudy | PathSpectrumStudy:
        """The plan of all products."""
        task, split = file.task(self.task)
        return spectrum_study(
            [str(file.place(name)) for name in as_tuple(self.checkpoints)],
            task,
            curve=None if self.curve is None else file.base / self.curve,
            split=split,
            options=self.options_of(PathSpectrumConfig),
        )
