"""The step of a study file that compares ways of dropout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from landform.curvature.fisher_fit import FisherConfig
from landform.errors import ConfigError
from landform.store.artifacts import ArtifactStore, MemoryStore
from landform.studies.comparison import ComparisonStudy, FisherFit, Source
from landform.studies.comparison_options import ComparisonConfig
from landform.studies.step import StudyStep, as_tuple, placed
from landform.training.options import placed_dropout

if TYPE_CHECKING:
    from landform.studies.study_file import StudyFile

__all__ = ["ComparisonStep", "FisherOptions"]


class FisherOptions(FisherConfig):
    """The Fisher diagonal of the starting model that schedules are made from."""

    task: str
    """A task of the study file, or of the catalogue: texts for masked language modelling, as Sharma
    et al. 2024 have it, or any other that the model has a head for."""
    split: str = "train"
    """The split of its rows."""


class ComparisonStep(ComparisonConfig, StudyStep):
    """Fine-tune under every arm, task, fraction and seed, and compare."""

    model: str
    """The checkpoint that every run starts from."""
    tasks: str | tuple[str, ...]
    """Tasks of this file, or of the catalogue."""
    out: str
    """Directory of the runs: OUT/TASK/PERCENT/ARM/seed0."""
    split: str = "train"
    """The split to train on."""
    eval_split: str = "validation"
    """The split to evaluate on."""
    fisher: FisherOptions | str | None = None
    """What schedules are made from: a file of landform fisher, or {task: NAME, rows: 256, ...}."""

    def needs(self) -> tuple[str, ...]:
        """The model."""
        return (self.model,)

    def check_data(self, file: StudyFile) -> None:
        """The rows of all tasks, and the Fisher file unless an earlier step writes it."""
        for name in as_tuple(self.tasks):
            file.task(name)[0].resolve(self.split)
        if isinstance(self.fisher, FisherOptions):
            file.task(self.fisher.task)[0].resolve(self.fisher.split)

    def check(self, file: StudyFile) -> None:
        """Look for the data, the model and the Fisher, where they are there already."""
        super().check(file)
        if isinstance(self.fisher, str) and not file.waits_for(Path(self.fisher)):
            place = file.base / self.fisher
            if not place.exists():
                raise ConfigError(
                    f"fisher: there is no file {place}",
                    remedy="make it with landform fisher, or write {task: NAME, rows: 256}",
                )

    def forecast(self, file: StudyFile, store: ArtifactStore | None) -> str:
        """Runs, optimizer steps and, where some are done, time."""
        self.check_data(file)
        study = self.study(file)
        parts = [study.forecast(store or MemoryStore()).reading]
        if isinstance(self.fisher, FisherOptions) and any(
            arm.needs_fisher for arm in self.arms.values()
        ):
            rows = "all" if self.fisher.rows is None else str(self.fisher.rows)
            parts.insert(0, f"Fisher of {rows} rows of {self.fisher.task}")
        return "; then ".join(parts)

    def makes(self) -> str | None:
        """The directory of the runs."""
        return self.out

    def study(self, file: StudyFile) -> ComparisonStudy:
        """The plan of all runs."""
        source: Source = None if self.fisher is None else str(file.base / str(self.fisher))
        if isinstance(self.fisher, FisherOptions):
            options = self.fisher.model_dump(exclude={"task", "split"}, exclude_unset=True)
            source = FisherFit(file.task(self.fisher.task)[0], self.fisher.split, options)
        arms = {
            name: arm.model_copy(update={"dropout": placed_dropout(file.base, arm.dropout)})
            for name, arm in self.arms.items()
        }
        return ComparisonStudy.of(
            file.place(self.model),
            [file.task(name)[0] for name in as_tuple(self.tasks)],
            out=file.base / self.out,
            fisher=source,
            split=self.split,
            eval_split=self.eval_split,
            **{**placed(file, self.options_of(ComparisonConfig), "ewc"), "arms": arms},
        )
