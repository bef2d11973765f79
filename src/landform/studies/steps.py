"""The steps of a study file: what each one needs, checks, costs and does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landform.config import Config
from landform.evaluation.evaluate import EvaluateConfig, evaluate
from landform.geometry.fitting import STARTS
from landform.geometry.line import InterpolateConfig, interpolate
from landform.geometry.ridge import RidgeConfig, ridge
from landform.geometry.surface import SurfaceConfig, SurfaceStudy
from landform.results import Result
from landform.store.artifacts import ArtifactStore, MemoryStore
from landform.store.study import publish, slug
from landform.studies.attribute import (
    AttributionConfig,
    AttributionStudy,
    SuspectsConfig,
    SuspectsStudy,
)
from landform.studies.connect import ConnectConfig, ConnectionStudy
from landform.studies.counterfactual import CounterfactualConfig, CounterfactualStudy
from landform.studies.dynamics import DynamicsConfig, DynamicsStudy
from landform.studies.fits import (
    ComplexStudy,
    ComplexStudyConfig,
    CurveStudy,
    CurveStudyConfig,
)
from landform.studies.lds import LdsConfig, LdsStudy
from landform.studies.sharpness import CompareSharpnessConfig, SharpnessStudy
from landform.tasks.task import Task
from landform.training.finetune import TrainStudy
from landform.training.options import TrainConfig
from landform.weights.alignment import AlignConfig, align_once
from landform.weights.checkpoint import select, short_names

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["STEPS", "ReportStep", "Step", "TrainStep"]


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

    def options(self, kind: type[Config]) -> dict[str, Any]:
        """The options that belong to the operation itself."""
        return {name: getattr(self, name) for name in kind.model_fields}


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _resolve(file: StudyFile, names: Sequence[str]) -> None:
    for task, split in map(file.task, names):
        task.resolve(split)


def _find(file: StudyFile, names: Sequence[str]) -> bool:
    """Raise for checkpoints that are not there; whether none waits for an earlier step."""
    there = [name for name in names if not file.makes(name)]
    select(map(file.place, there))
    return len(there) == len(names)


def _placed(file: StudyFile, options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Options with the paths among them starting from the study file."""
    paths = {name: file.base / options[name] for name in names if options[name] is not None}
    return {**options, **paths}


def _queries(file: StudyFile, task: str, name: str) -> tuple[Task, str]:
    """A split of the task by its name, or TASK:SPLIT."""
    return file.task(name if ":" in name else f"{task.partition(':')[0]}:{name}")


def _train_split(name: str) -> str:
    """The split that TASK:SPLIT names, train where it names none."""
    return name.partition(":")[2] or "train"


class TrainStep(TrainConfig, Step):
    """Fine-tune a model with many seeds."""

    model: str
    """The checkpoint to start from."""
    task: str
    """A task of this file, or of the catalogue."""
    out: str
    """Directory of the runs."""
    split: str = "train"
    """The split to train on."""
    eval_split: str | None = "validation"
    """The split to evaluate on at the end."""

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the model where it is there already."""
        file.task(self.task)[0].resolve(self.split)
        if not file.makes(self.model):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Optimizer steps, time and memory."""
        return self.study(file).forecast().reading

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Train the runs that are missing."""
        training = self.study(file).run(progress=progress)
        publish(store, slug("train", Path(self.out).name), training)
        return [training]

    def makes(self) -> str | None:
        """The directory of the runs."""
        return self.out

    def study(self, file: StudyFile) -> TrainStudy:
        """The plan of the training."""
        return TrainStudy.of(
            file.place(self.model),
            file.task(self.task)[0],
            out=file.base / self.out,
            split=self.split,
            eval_split=self.eval_split,
            **_placed(file, self.options(TrainConfig), "row_file"),
        )


class EvaluateStep(EvaluateConfig, Step):
    """Evaluate checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""
    task: str
    """A task of this file, or of the catalogue; TASK:SPLIT for another split than validation."""

    def check(self, file: StudyFile) -> None:
        _resolve(file, [self.task])
        _find(file, _as_tuple(self.checkpoints))

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        file.task(self.task)
        return f"{len(select(file.places(self.checkpoints)))} evaluations"

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        task, split = file.task(self.task)
        chosen = select(file.places(self.checkpoints))
        results: list[Result] = []
        for name, checkpoint in zip(short_names(chosen), chosen, strict=True):
            result = evaluate(
                checkpoint,
                task,
                split=split,
                store=store,
                progress=progress,
                **self.options(EvaluateConfig),
            )
            publish(store, slug("evaluate", name, task.name, split), result)
            results.append(result)
        return results


class InterpolateStep(InterpolateConfig, Step):
    """Walk one line."""

    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""
    task: str
    """The data set, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""

    def check(self, file: StudyFile) -> None:
        _resolve(file, [self.task, *self.also])
        _find(file, [self.a, self.b])

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        file.task(self.task)
        return f"{len(self.ts) + self.adaptive} evaluations"

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        task, split = file.task(self.task)
        ends = [file.place(self.a), file.place(self.b)]
        result = interpolate(
            ends[0],
            ends[1],
            task,
            split=split,
            also=[file.task(name) for name in self.also],
            store=store,
            progress=progress,
            **self.options(InterpolateConfig),
        )
        publish(store, slug("interpolate", *short_names(select(ends)), task.name, split), result)
        return [result]


class SurfaceStep(SurfaceConfig, Step):
    """The plane through three checkpoints, or random directions around one."""

    through: tuple[str, ...] = ()
    """Three checkpoints: the first one is the origin."""
    around: str | None = None
    """One checkpoint, for random directions around it."""
    task: str
    """The data set, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""

    def check(self, file: StudyFile) -> None:
        _resolve(file, [self.task, *self.also])
        if _find(file, [*self.through, *([self.around] if self.around else [])]):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        said = self.study(file).forecast(store or MemoryStore()).reading
        return f"at most {said}" if self.refine else said

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        study = self.study(file)
        result = study.run(store, progress=progress)
        task, split = file.task(self.task)
        publish(store, slug(*study.title, task.name, split), result)
        return [result]

    def study(self, file: StudyFile) -> SurfaceStudy:
        """The plan of the cells."""
        task, split = file.task(self.task)
        return SurfaceStudy.of(
            task,
            through=[file.place(name) for name in self.through] or None,
            around=None if self.around is None else file.place(self.around),
            split=split,
            also=[file.task(name) for name in self.also],
            options=self.options(SurfaceConfig),
        )


class RidgeStep(RidgeConfig, Step):
    """The examples that rise between two checkpoints."""

    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""
    task: str
    """The data set, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""
    of: str | None = None
    """List the examples of this one of the data sets (default: the first)."""

    def check(self, file: StudyFile) -> None:
        _resolve(file, [self.task, *self.also])
        _find(file, [self.a, self.b])

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        file.task(self.task)
        return f"{len(self.ts) + self.adaptive} evaluations"

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        task, split = file.task(self.task)
        ends = [file.place(self.a), file.place(self.b)]
        result = ridge(
            ends[0],
            ends[1],
            task,
            split=split,
            also=[file.task(name) for name in self.also],
            of=self.of,
            store=store,
            progress=progress,
            **self.options(RidgeConfig),
        )
        publish(store, slug("ridge", *short_names(select(ends)), result.data), result)
        return [result]


class AlignStep(AlignConfig, Step):
    """Reorder the units of one checkpoint to lie next to another."""

    a: str
    """The checkpoint that stays."""
    b: str
    """The checkpoint whose units are reordered."""
    out: str
    """Directory of the reordered copy."""

    def check(self, file: StudyFile) -> None:
        _find(file, [self.a, self.b])

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        select([file.place(self.a), file.place(self.b)])
        return "one alignment"

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        ends = [file.place(self.a), file.place(self.b)]
        place = file.base / self.out
        report = align_once(ends[0], ends[1], place, **self.options(AlignConfig)).report
        publish(store, slug("align", *short_names(select(ends))), report)
        return [report]

    def makes(self) -> str | None:
        """The reordered copy."""
        return self.out


class ConnectStep(ConnectConfig, Step):
    """Connect all pairs of checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""
    task: str
    """The data set that makes the basins, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""
    pairs: tuple[tuple[str, str], ...] | None = None
    """Only these pairs of checkpoint names."""

    def check(self, file: StudyFile) -> None:
        _resolve(file, [self.task, *self.also])
        if _find(file, _as_tuple(self.checkpoints)):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        return self.study(file).forecast(store or MemoryStore()).reading

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        return [self.study(file).run(store, progress=progress)]

    def study(self, file: StudyFile) -> ConnectionStudy:
        """The plan of all lines."""
        task, split = file.task(self.task)
        return ConnectionStudy.of(
            file.places(self.checkpoints),
            task,
            split=split,
            also=[file.task(name) for name in self.also],
            pairs=self.pairs,
            **self.options(ConnectConfig),
        )


class SharpnessStep(CompareSharpnessConfig, Step):
    """How far the loss rises around checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""
    task: str
    """The data set to measure on, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets to correlate with, TASK or TASK:SPLIT."""

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints that are there already."""
        _resolve(file, [self.task, *self.also])
        if _find(file, _as_tuple(self.checkpoints)):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Evaluations, time and memory."""
        return self.study(file).forecast(store or MemoryStore()).reading

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Climb what is missing."""
        return [self.study(file).run(store, progress=progress)]

    def study(self, file: StudyFile) -> SharpnessStudy:
        """The plan of all climbs."""
        task, split = file.task(self.task)
        return SharpnessStudy.of(
            file.places(self.checkpoints),
            task,
            split=split,
            also=[file.task(name) for name in self.also],
            **self.options(CompareSharpnessConfig),
        )


class CurveStep(CurveStudyConfig, Step):
    """Fit a curve between two checkpoints, and walk it beside the line."""

    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""
    task: str
    """The data set to fit on, TASK or TASK:SPLIT (default split: train)."""
    eval_split: str = "validation"
    """The split to evaluate on."""
    also: tuple[str, ...] = ()
    """Further data sets to evaluate, TASK or TASK:SPLIT."""
    out: str | None = None
    """Keep the fitted path in this directory."""

    def _names(self) -> list[str]:
        return [self.a, self.b, *([] if self.start in STARTS else [self.start])]

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints that are there already."""
        _resolve(file, self.also)
        file.task(self.task)[0].resolve(self.eval_split)
        if _find(file, self._names()):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Steps and evaluations, time and memory."""
        parts = self.study(file).forecast(store or MemoryStore())
        return "; then ".join(part.reading for part in parts)

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Fit and evaluate what is missing."""
        path, found = self.study(file).run(store, progress=progress)
        if self.out is not None:
            path.save(file.base / self.out)
        return [path.fit, found]

    def study(self, file: StudyFile) -> CurveStudy:
        """The plan of the fit and the walk."""
        options = self.options(CurveStudyConfig)
        if self.start not in STARTS:
            options["start"] = str(file.place(self.start))
        return CurveStudy.of(
            file.place(self.a),
            file.place(self.b),
            file.task(self.task)[0],
            split=_train_split(self.task),
            eval_split=self.eval_split,
            also=[file.task(name) for name in self.also],
            options=options,
        )


class SimplexStep(ComplexStudyConfig, Step):
    """Fit a simplicial complex through checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""
    task: str
    """The data set to fit on, TASK or TASK:SPLIT (default split: train)."""
    eval_split: str = "validation"
    """The split to evaluate on."""
    also: tuple[str, ...] = ()
    """Further data sets to evaluate, TASK or TASK:SPLIT."""
    out: str | None = None
    """Keep the fitted complex in this directory."""

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the checkpoints that are there already."""
        _resolve(file, self.also)
        file.task(self.task)[0].resolve(self.eval_split)
        if _find(file, _as_tuple(self.checkpoints)):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Steps and evaluations, time and memory."""
        parts = self.study(file).forecast(store or MemoryStore())
        return "; then ".join(part.reading for part in parts)

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
            split=_train_split(self.task),
            eval_split=self.eval_split,
            also=[file.task(name) for name in self.also],
            options=self.options(ComplexStudyConfig),
        )


class DynamicsStep(DynamicsConfig, Step):
    """Connect the same runs at several training steps."""

    checkpoints: str | tuple[str, ...]
    """Runs, or patterns; their `steps` are an option."""
    task: str
    """The data set that makes the basins, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""

    def check(self, file: StudyFile) -> None:
        _resolve(file, [self.task, *self.also])
        if not any(file.makes(name) for name in _as_tuple(self.checkpoints)):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        return self.study(file).forecast(store or MemoryStore()).reading

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        return [self.study(file).run(store, progress=progress)]

    def study(self, file: StudyFile) -> DynamicsStudy:
        """The plan of all steps."""
        task, split = file.task(self.task)
        return DynamicsStudy.of(
            file.places(self.checkpoints),
            task,
            split=split,
            also=[file.task(name) for name in self.also],
            **self.options(DynamicsConfig),
        )


class InfluenceStep(AttributionConfig, Step):
    """Score training rows for queries."""

    checkpoint: str
    """The fine-tuned model."""
    task: str
    """The task it was trained on."""
    split: str = "train"
    """The split it was trained on."""
    queries: str | tuple[str, ...] = "validation"
    """What is asked about: splits of the task, or TASK:SPLIT."""

    def check(self, file: StudyFile) -> None:
        file.task(self.task)[0].resolve(self.split)
        for task, split in self.query_sets(file):
            task.resolve(split)
        if _find(file, [self.checkpoint]):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        parts = self.study(file).forecast(store)
        return "; then ".join(part.reading for part in parts)

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        done = self.study(file).run(store, progress=progress)
        return [done.factors, *done.influences]

    def query_sets(self, file: StudyFile) -> list[tuple[Task, str]]:
        """What is asked about, as tasks and their splits."""
        return [_queries(file, self.task, name) for name in _as_tuple(self.queries)]

    def study(self, file: StudyFile) -> AttributionStudy:
        """The plan of fit and scores."""
        return AttributionStudy.of(
            file.place(self.checkpoint),
            file.task(self.task)[0],
            split=self.split,
            queries=self.query_sets(file),
            **_placed(file, self.options(AttributionConfig), "row_file"),
        )


class MislabelStep(SuspectsConfig, Step):
    """Rank training rows by self-influence."""

    checkpoint: str
    """The fine-tuned model."""
    task: str
    """The task it was trained on."""
    split: str = "train"
    """The split it was trained on."""
    known: str | None = None
    """Text file with the ids of rows whose labels are known to be wrong, one a line."""

    def check(self, file: StudyFile) -> None:
        file.task(self.task)[0].resolve(self.split)
        if _find(file, [self.checkpoint]):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        parts = self.study(file).forecast(store)
        return "; then ".join(part.reading for part in parts)

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        done = self.study(file).run(store, progress=progress)
        return [done.factors, done.ranking]

    def study(self, file: StudyFile) -> SuspectsStudy:
        """The plan of fit and ranking."""
        return SuspectsStudy.of(
            file.place(self.checkpoint),
            file.task(self.task)[0],
            split=self.split,
            known=None if self.known is None else file.base / self.known,
            **_placed(file, self.options(SuspectsConfig), "row_file"),
        )


class RetrainingStep(Step):
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

    def check(self, file: StudyFile) -> None:
        file.task(self.task)[0].resolve(self.split)
        if _find(file, [self.model, *([] if self.scored is None else [self.scored])]):
            self.study(file)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        return self.study(file).forecast(store).reading

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        return [self.study(file).run(store, progress=progress)]

    def study(self, file: StudyFile) -> LdsStudy | CounterfactualStudy:
        """The plan of the trainings."""
        raise NotImplementedError


class LdsStep(LdsConfig, RetrainingStep):
    """Compare scores with retraining on random parts of the rows."""

    def study(self, file: StudyFile) -> LdsStudy:
        """The plan of the retrainings."""
        return LdsStudy.of(
            file.place(self.model),
            file.task(self.task)[0],
            split=self.split,
            queries=_queries(file, self.task, self.queries),
            scored=None if self.scored is None else file.place(self.scored),
            **_placed(file, self.options(LdsConfig), "mask_file", "margin_file"),
        )


class CounterfactualStep(CounterfactualConfig, RetrainingStep):
    """Remove the most helpful rows, train again, count the flips."""

    def study(self, file: StudyFile) -> CounterfactualStudy:
        """The plan of the removals."""
        return CounterfactualStudy.of(
            file.place(self.model),
            file.task(self.task)[0],
            split=self.split,
            queries=_queries(file, self.task, self.queries),
            scored=None if self.scored is None else file.place(self.scored),
            **self.options(CounterfactualConfig),
        )


class ReportStep(Step):
    """Write the HTML atlas."""

    title: str | None = None
    """Title of the page."""
    out: str | None = None
    """The file to write (default: atlas.html in the study)."""
    figures: str | None = None
    """Also write every figure as PDF into this directory."""

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """One page, whatever it shows."""
        return "one page"

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Nothing: a page is written by the floor above, from everything that is kept."""
        return []


STEPS: dict[str, type[Step]] = {
    "train": TrainStep,
    "evaluate": EvaluateStep,
    "interpolate": InterpolateStep,
    "surface": SurfaceStep,
    "ridge": RidgeStep,
    "align": AlignStep,
    "connect": ConnectStep,
    "curve": CurveStep,
    "simplex": SimplexStep,
    "sharpness": SharpnessStep,
    "dynamics": DynamicsStep,
    "influence": InfluenceStep,
    "mislabel": MislabelStep,
    "lds": LdsStep,
    "counterfactual": CounterfactualStep,
    "report": ReportStep,
}
