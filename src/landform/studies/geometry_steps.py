"""The steps of a study file between and around checkpoints: lines, planes, curves, basins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from landform.evaluation.data import find_split
from landform.geometry.average import AverageConfig, AverageStudy
from landform.geometry.fitting import STARTS
from landform.geometry.landscape import surface_study
from landform.geometry.line import InterpolateConfig
from landform.geometry.mixing import MixConfig, MixStudy
from landform.geometry.ridge import RidgeConfig
from landform.geometry.surface import SurfaceConfig
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.study import publish, slug
from landform.studies.connect import ConnectConfig, ConnectionStudy
from landform.studies.dynamics import DynamicsConfig, DynamicsStudy
from landform.studies.fits import (
    ComplexStudy,
    ComplexStudyConfig,
    CurveStudy,
    CurveStudyConfig,
)
from landform.studies.kept import (
    KeptStudy,
    LineStudy,
    RidgeStudy,
    keep_average,
    keep_mix,
    keep_surface,
)
from landform.studies.sharpness import CompareSharpnessConfig, SharpnessStudy
from landform.studies.step import Step, StudyStep, as_tuple, find, resolve, train_split
from landform.tasks.task import Task
from landform.weights.alignment import AlignConfig, align_once
from landform.weights.checkpoint import select, short_names

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = [
    "AlignStep",
    "AverageStep",
    "ConnectStep",
    "CurveStep",
    "DynamicsStep",
    "InterpolateStep",
    "MixStep",
    "RidgeStep",
    "SharpnessStep",
    "SimplexStep",
    "SurfaceStep",
]


class AlsoStep(Step):
    """What the steps share that evaluate on several data sets."""

    task: str
    """The data set, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""

    def further(self, file: StudyFile) -> list[tuple[Task, str]]:
        """The further data sets."""
        return [file.task(name) for name in self.also]


class LineStep(AlsoStep, StudyStep):
    """What the steps share that walk the line between two checkpoints."""

    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""

    def needs(self) -> tuple[str, ...]:
        """Both checkpoints."""
        return (self.a, self.b)

    def check_data(self, file: StudyFile) -> None:
        """All data sets."""
        resolve(file, [self.task, *self.also])


class DataStep(AlsoStep, StudyStep):
    """What the studies of checkpoints on data sets share; the first one is measured on."""

    def check_data(self, file: StudyFile) -> None:
        """All data sets."""
        resolve(file, [self.task, *self.also])


class FitStep(AlsoStep, StudyStep):
    """What the steps share that fit something, and evaluate it."""

    task: str
    """The data set to fit on, TASK or TASK:SPLIT (default split: train)."""
    eval_split: str = "validation"
    """The split to evaluate on."""
    out: str | None = None
    """Keep what is fitted in this directory."""

    def check_data(self, file: StudyFile) -> None:
        """What is evaluated; the study looks for what is fitted on."""
        resolve(file, self.also)
        find_split(file.task(self.task)[0], self.eval_split)


class InterpolateStep(InterpolateConfig, LineStep):
    """Walk one line."""

    def study(self, file: StudyFile) -> LineStudy:
        """The plan of the line."""
        task, split = file.task(self.task)
        return LineStudy.of(
            file.place(self.a),
            file.place(self.b),
            task,
            split=split,
            also=self.further(file),
            **self.options_of(InterpolateConfig),
        )


class SurfaceStep(SurfaceConfig, DataStep):
    """The plane through three checkpoints, or random directions around one."""

    through: tuple[str, ...] = ()
    """Three checkpoints: the first one is the origin."""
    around: str | None = None
    """One checkpoint, for random directions around it."""
    fisher: Path | None = None
    """The Fisher that the masks rank by: a file of landform fisher."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return self.through if self.around is None else (*self.through, self.around)

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints and the Fisher that are there already."""
        self.check_data(file)
        if find(file, self.needs()) and not file.waits_for(self.fisher):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Evaluations, time and memory: with `refine` at most those."""
        if file.waits_for(self.fisher):
            return f"waits for the Fisher of an earlier step ({self.fisher})"
        said = super().forecast(file, store)
        return f"at most {said}" if self.refine else said

    def study(self, file: StudyFile) -> KeptStudy:
        """The plan of the cells."""
        task, split = file.task(self.task)
        study = surface_study(
            task,
            through=[file.place(name) for name in self.through] or None,
            around=None if self.around is None else file.place(self.around),
            split=split,
            also=self.further(file),
            fisher=None if self.fisher is None else file.base / self.fisher,
            options=self.options_of(SurfaceConfig),
        )
        return keep_surface(study, task, split)


class RidgeStep(RidgeConfig, LineStep):
    """The examples that rise between two checkpoints."""

    of: str | None = None
    """List the examples of this one of the data sets (default: the first)."""

    def study(self, file: StudyFile) -> RidgeStudy:
        """The plan of the line."""
        task, split = file.task(self.task)
        return RidgeStudy.of(
            file.place(self.a),
            file.place(self.b),
            task,
            split=split,
            also=self.further(file),
            **self.options_of(RidgeConfig),
        ).about(self.of)


class AlignStep(AlignConfig, Step):
    """Reorder the units of one checkpoint to lie next to another."""

    a: str
    """The checkpoint that stays."""
    b: str
    """The checkpoint whose units are reordered."""
    out: str
    """Directory of the reordered copy."""

    def check(self, file: StudyFile) -> None:
        """Look for the checkpoints that are there already."""
        find(file, [self.a, self.b])

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """One alignment."""
        select([file.place(self.a), file.place(self.b)])
        return "one alignment"

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Do it, and keep the result under its name."""
        ends = [file.place(self.a), file.place(self.b)]
        place = file.base / self.out
        report = align_once(ends[0], ends[1], place, **self.options_of(AlignConfig)).report
        publish(store, slug("align", *short_names(select(ends))), report)
        return [report]

    def makes(self) -> str | None:
        """The reordered copy."""
        return self.out


class ConnectStep(ConnectConfig, DataStep):
    """Connect all pairs of checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""
    pairs: tuple[tuple[str, str], ...] | None = None
    """Only these pairs of checkpoint names."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return as_tuple(self.checkpoints)

    def study(self, file: StudyFile) -> ConnectionStudy:
        """The plan of all lines."""
        task, split = file.task(self.task)
        return ConnectionStudy.of(
            file.places(self.checkpoints),
            task,
            split=split,
            also=self.further(file),
            pairs=self.pairs,
            **self.options_of(ConnectConfig),
        )


class SharpnessStep(CompareSharpnessConfig, DataStep):
    """How far the loss rises around checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return as_tuple(self.checkpoints)

    def study(self, file: StudyFile) -> SharpnessStudy:
        """The plan of all climbs."""
        task, split = file.task(self.task)
        return SharpnessStudy.of(
            file.places(self.checkpoints),
            task,
            split=split,
            also=self.further(file),
            **self.options_of(CompareSharpnessConfig),
        )


class CurveStep(CurveStudyConfig, FitStep):
    """Fit a curve between two checkpoints, and walk it beside the line."""

    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return (self.a, self.b, *(() if self.start in STARTS else (self.start,)))

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Fit and evaluate what is missing."""
        path, found = self.study(file).run(store, progress=progress)
        if self.out is not None:
            path.save(file.base / self.out)
        return [path.fit, found]

    def writes(self) -> str | None:
        """The directory of the fitted curve."""
        return self.out

    def study(self, file: StudyFile) -> CurveStudy:
        """The plan of the fit and the walk."""
        options = self.options_written(CurveStudyConfig)  # the others are for `compat` to choose
        if self.start not in STARTS:
            options["start"] = str(file.place(self.start))
        return CurveStudy.of(
            file.place(self.a),
            file.place(self.b),
            file.task(self.task)[0],
            split=train_split(self.task),
            eval_split=self.eval_split,
            also=self.further(file),
            options=options,
        )


class MixStep(MixConfig, FitStep):
    """Fit how much of which of two checkpoints every group of tensors takes."""

    a: str
    """The checkpoint whose shares are fitted."""
    b: str
    """The other checkpoint."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return (self.a, self.b)

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Fit and evaluate what is missing."""
        result = self.study(file).run(store, progress=progress)
        if self.out is not None:
            result.checkpoint(file.base / self.out)
        return [result]

    def makes(self) -> str | None:
        """The mixed model."""
        return self.out

    def study(self, file: StudyFile) -> KeptStudy:
        """The plan of the fit and the evaluations."""
        study = MixStudy.of(
            file.place(self.a),
            file.place(self.b),
            file.task(self.task)[0],
            split=train_split(self.task),
            eval_split=self.eval_split,
            also=self.further(file),
            options=self.options_written(MixConfig),
        )
        return keep_mix(study)


class AverageStep(AverageConfig, DataStep):
    """Average checkpoints, plainly and weighted by Fisher information."""

    checkpoints: tuple[str, ...]
    """The checkpoints."""
    fisher: tuple[Path, ...] = ()
    """A Fisher of every checkpoint, in their order."""
    out: str | None = None
    """Write the average as a checkpoint into this directory."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return self.checkpoints

    def waits(self, file: StudyFile) -> list[str]:
        """The Fishers that an earlier step writes."""
        return [str(place) for place in self.fisher if file.waits_for(place)]

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints and Fishers that are there already."""
        self.check_data(file)
        if find(file, self.needs()) and not self.waits(file):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Evaluations, time and memory."""
        if waits := self.waits(file):
            return f"waits for the Fisher of an earlier step ({waits[0]})"
        return super().forecast(file, store)

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Evaluate what is missing, and keep the result under its name."""
        study = self.study(file)
        result = study.run(store, progress=progress)
        if self.out is not None:
            study.plan.save(file.base / self.out)
        return [result]

    def makes(self) -> str | None:
        """The average."""
        return self.out

    def study(self, file: StudyFile) -> KeptStudy:
        """The plan of the evaluations."""
        task, split = file.task(self.task)
        study = AverageStudy.of(
            [file.place(name) for name in self.checkpoints],
            task,
            fisher=[file.base / place for place in self.fisher],
            split=split,
            also=self.further(file),
            options=self.options_written(AverageConfig),
        )
        return keep_average(study)


class SimplexStep(ComplexStudyConfig, FitStep):
    """Fit a simplicial complex through checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return as_tuple(self.checkpoints)

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Fit and evaluate what is missing."""
        found, fit = self.study(file).run(store, progress=progress)
        if self.out is not None:
            found.save(file.base / self.out)
        return [fit]

    def study(self, file: StudyFile) -> ComplexStudy:
        """The plan of the fit and the samples."""
        return ComplexStudy.of(
            select(file.places(self.checkpoints)),
            file.task(self.task)[0],
            split=train_split(self.task),
            eval_split=self.eval_split,
            also=self.further(file),
            options=self.options_of(ComplexStudyConfig),
        )


class DynamicsStep(DynamicsConfig, DataStep):
    """Connect the same runs at several training steps."""

    checkpoints: str | tuple[str, ...]
    """Runs, or patterns; their `steps` are an option."""

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the steps of runs that are there already."""
        self.check_data(file)
        if not any(file.makes(name) for name in as_tuple(self.checkpoints)):
            self.study(file)

    def study(self, file: StudyFile) -> DynamicsStudy:
        """The plan of all steps."""
        task, split = file.task(self.task)
        return DynamicsStudy.of(
            file.places(self.checkpoints),
            task,
            split=split,
            also=self.further(file),
            **self.options_of(DynamicsConfig),
        )
