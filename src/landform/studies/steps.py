"""The steps of a study file: what each one needs, checks, costs and does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from landform.errors import ConfigError
from landform.evaluation.cartography import DataMapConfig, data_map
from landform.evaluation.evaluate import EvaluateConfig
from landform.evaluation.map_subsets import CartographyConfig, export_subset
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.study import publish, slug
from landform.studies.attribution_steps import (
    CounterfactualStep,
    InfluenceStep,
    LdsStep,
    MislabelStep,
)
from landform.studies.axes_steps import AxesStep, BoundaryStep
from landform.studies.comparison_steps import ComparisonStep
from landform.studies.example_steps import BarrierStep, ExamplesStep
from landform.studies.fisher_steps import FisherStep
from landform.studies.geometry_steps import (
    AlignStep,
    AverageStep,
    ConnectStep,
    CurveStep,
    DynamicsStep,
    InterpolateStep,
    MixStep,
    RidgeStep,
    SharpnessStep,
    SimplexStep,
    SurfaceStep,
)
from landform.studies.kept import EvaluationStudy
from landform.studies.knowledge_steps import KnowledgeStep
from landform.studies.spectrum_steps import SpectrumStep
from landform.studies.step import (
    PlacedTraining,
    Step,
    StudyStep,
    as_tuple,
    find,
    resolve,
    train_split,
)
from landform.training.finetune import TrainStudy
from landform.training.options import TrainConfig, placed_dropout
from landform.training.schedules import PRESETS
from landform.weights.checkpoint import select, short_names

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["STEPS", "CartographyStep", "EvaluateStep", "ReportStep", "Step", "TrainStep"]


class TrainStep(PlacedTraining, Step):
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
        if self._waits(file):
            return
        if not file.makes(self.model):
            self.study(file)
        else:
            TrainConfig.parse({"dropout": placed_dropout(file.base, self.dropout)})

    def _waits(self, file: StudyFile) -> Path | None:
        """A file that an earlier step writes, and that is not there yet."""
        name = self.dropout
        if isinstance(name, str) and name not in PRESETS and file.makes(name):
            schedule = file.base / name  # of an arm of a comparison
            if not schedule.exists():
                return Path(name)
        return next((f for f in (self.row_file, self.ewc) if file.waits_for(f)), None)

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Optimizer steps, time and memory."""
        if waits := self._waits(file):
            names = {self.row_file: "the rows", self.ewc: "the Fisher"}
            what = names.get(waits, "the schedule")
            return f"waits for {what} of an earlier step ({waits})"
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
            **self.placed(file),
        )


class EvaluateStep(EvaluateConfig, StudyStep):
    """Evaluate checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""
    task: str
    """A task of this file, or of the catalogue; TASK:SPLIT for another split than validation."""

    def needs(self) -> tuple[str, ...]:
        """The checkpoints."""
        return as_tuple(self.checkpoints)

    def check_data(self, file: StudyFile) -> None:
        """The split."""
        resolve(file, [self.task])

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Evaluate what is missing, and keep every evaluation under its name."""
        return list(self.study(file).run(store, progress=progress))

    def study(self, file: StudyFile) -> EvaluationStudy:
        """The plan of all evaluations."""
        task, split = file.task(self.task)
        return EvaluationStudy.of(
            file.places(self.checkpoints), task, split=split, **self.options_of(EvaluateConfig)
        )


class CartographyStep(CartographyConfig, Step):
    """Read the data maps of runs that were trained with cartography."""

    runs: str | tuple[str, ...]
    """Names or patterns of the runs."""
    task: str
    """The task that they were trained on, TASK or TASK:SPLIT (default split: train)."""
    out: str | None = None
    """Write the rows of `choose` to this file, which `row_file` of a later step may name."""

    def check(self, file: StudyFile) -> None:
        """Look for the data, and for the runs that are there already."""
        task, _ = file.task(self.task)
        task.resolve(train_split(self.task))
        find(file, as_tuple(self.runs))
        if (self.out is None) != (self.choose is None):
            raise ConfigError("choose and out belong together", remedy="give both of them")

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """What is read."""
        return f"{len(select(file.places(self.runs)))} records to read"

    def run(self, file: StudyFile, store: ArtifactStore, progress: bool) -> list[Result]:
        """Read every record, and keep its map under its name."""
        task, split = file.task(self.task)[0], train_split(self.task)
        chosen = select(file.places(self.runs))
        if self.out is not None and len(chosen) > 1:
            raise ConfigError(
                f"step cartography: {self.out} takes the rows of one run, and {len(chosen)} match",
                remedy="name one run",
            )
        results: list[Result] = []
        for name, run in zip(short_names(chosen), chosen, strict=True):
            result = data_map(run, task, split=split, **self.options_of(DataMapConfig))
            publish(store, slug("cartography", name, task.name, split), result)
            if self.out is not None:
                export_subset(result, self, file.base / self.out)
            results.append(result)
        return results

    def writes(self) -> str | None:
        """The row file."""
        return self.out


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
    "cartography": CartographyStep,
    "knowledge": KnowledgeStep,
    "interpolate": InterpolateStep,
    "surface": SurfaceStep,
    "ridge": RidgeStep,
    "align": AlignStep,
    "connect": ConnectStep,
    "curve": CurveStep,
    "mix": MixStep,
    "average": AverageStep,
    "simplex": SimplexStep,
    "sharpness": SharpnessStep,
    "spectrum": SpectrumStep,
    "fisher": FisherStep,
    "dynamics": DynamicsStep,
    "boundary": BoundaryStep,
    "axes": AxesStep,
    "examples": ExamplesStep,
    "barrier": BarrierStep,
    "influence": InfluenceStep,
    "mislabel": MislabelStep,
    "lds": LdsStep,
    "counterfactual": CounterfactualStep,
    "comparison": ComparisonStep,
    "report": ReportStep,
}
