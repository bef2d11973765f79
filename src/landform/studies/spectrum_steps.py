"""The step of study files that looks at the spectrum of a curvature matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landform.curvature.spectrum import SpectrumStudy
from landform.geometry.spectrum_path import (
    PathSpectrumConfig,
    PathSpectrumStudy,
    spectrum_study,
)
from landform.studies.step import StudyStep, as_tuple, resolve

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["SpectrumStep"]


class SpectrumStep(PathSpectrumConfig, StudyStep):
    """Eigenvalues, trace and density at a checkpoint, or along the path between two."""

    checkpoints: str | tuple[str, ...]
    """One checkpoint; or two, to follow the line between them."""
    task: str
    """The data set, TASK or TASK:SPLIT."""
    curve: str | None = None
    """Follow the curve fitted between the two, kept in this directory."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return as_tuple(self.checkpoints)

    def check_data(self, file: StudyFile) -> None:
        """The data set."""
        resolve(file, [self.task])

    def study(self, file: StudyFile) -> SpectrumStudy | PathSpectrumStudy:
        """The plan of all products."""
        task, split = file.task(self.task)
        return spectrum_study(
            [str(file.place(name)) for name in as_tuple(self.checkpoints)],
            task,
            curve=None if self.curve is None else file.base / self.curve,
            split=split,
            options=self.options(PathSpectrumConfig),
        )
