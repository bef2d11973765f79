"""A whole study as one YAML file: what is trained, evaluated, connected and reported.

    study: study                 # the study directory, relative to this file like every path here
    tasks:
      sst2: {task: sst2, data_dir: GLUE/SST-2}
    steps:
      - train: {model: org/pre-trained, task: sst2, out: study/runs, seeds: [0, 1, 2, 3]}
      - evaluate: {checkpoints: study/runs/seed*, task: sst2}
      - connect: {checkpoints: study/runs/seed*, task: sst2, points: 10}
      - report: {title: SST-2}

Every step is parsed, with all its options, before the first one spends compute. Run again, a study
goes on where it stopped: finished runs, points and lines are reused.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landform.config import Config, read_yaml
from landform.errors import CheckpointError, ConfigError, LandformError
from landform.evaluation.evaluate import EvaluateConfig, evaluate
from landform.geometry.line import InterpolateConfig, interpolate
from landform.results import Result
from landform.store.artifacts import ArtifactStore, MemoryStore, Store
from landform.store.study import publish, slug
from landform.studies.connect import ConnectConfig, ConnectionStudy
from landform.tasks.task import Task, TaskConfig
from landform.training.finetune import TrainStudy
from landform.training.options import TrainConfig
from landform.weights.checkpoint import select, short_names

__all__ = ["ReportStep", "StudyFile", "describe_study", "read_study", "run_study"]


class TrainStep(TrainConfig):
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


class EvaluateStep(EvaluateConfig):
    """Evaluate checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""
    task: str
    """A task of this file, or of the catalogue; TASK:SPLIT for another split than validation."""


class InterpolateStep(InterpolateConfig):
    """Walk one line."""

    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""
    task: str
    """The data set, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""


class ConnectStep(ConnectConfig):
    """Connect all pairs of checkpoints."""

    checkpoints: str | tuple[str, ...]
    """Names or patterns."""
    task: str
    """The data set that makes the basins, TASK or TASK:SPLIT."""
    also: tuple[str, ...] = ()
    """Further data sets, TASK or TASK:SPLIT."""
    pairs: tuple[tuple[str, str], ...] | None = None
    """Only these pairs of checkpoint names."""


class ReportStep(Config):
    """Write the HTML atlas."""

    title: str | None = None
    """Title of the page."""
    out: str | None = None
    """The file to write (default: atlas.html in the study)."""
    figures: str | None = None
    """Also write every figure as PDF into this directory."""


_STEPS: dict[str, type[Config]] = {
    "train": TrainStep,
    "evaluate": EvaluateStep,
    "interpolate": InterpolateStep,
    "connect": ConnectStep,
    "report": ReportStep,
}


@dataclass(frozen=True)
class StudyFile:
    """A study that has been parsed."""

    study: Path
    tasks: Mapping[str, TaskConfig]
    steps: tuple[Config, ...]
    base: Path
    """The directory that relative paths start from."""

    @classmethod
    def of(cls, options: Mapping[str, Any], *, base: Path, where: str) -> StudyFile:
        """Parse the mapping a YAML file holds; `ConfigError` names the step and the option."""
        unknown = set(options) - {"study", "tasks", "steps"}
        if unknown or "study" not in options or not options.get("steps"):
            fault = (
                f"unknown key {min(map(str, unknown))!r}"
                if unknown
                else "study and steps are needed"
            )
            raise ConfigError(f"{where}: {fault}", remedy="the keys are study, tasks and steps")
        if not isinstance(options["study"], str):
            raise ConfigError(
                f"{where}: study must be the path of a directory, found {options['study']!r}",
                remedy="write study: NAME, with quotes if it is a number",
            )
        tasks = {}
        for name, task in _mapping(options.get("tasks") or {}, f"{where}: tasks").items():
            tasks[str(name)] = TaskConfig.parse(
                {"name": str(name), **_mapping(task, f"{where}: task {name}")},
                where=f"{where}: task {name}",
            )
        steps = tuple(
            _step(step, f"{where}: step {number}")
            for number, step in enumerate(_list(options["steps"], where), start=1)
        )
        return cls(base / options["study"], tasks, steps, base)

    def task(self, name: str) -> tuple[Task, str]:
        """The task and split that `TASK` or `TASK:SPLIT` means."""
        title, _, split = name.partition(":")
        config = self.tasks.get(title) or TaskConfig(task=title)
        return Task.from_config(config.placed(self.base)), split or "validation"

    def place(self, name: str) -> str:
        """A checkpoint name or pattern as found from the study file; hub names stay as they are."""
        path = self.base / name
        stem = str(path).rpartition("@")[0] or str(path)
        meant = path.parent != self.base and path.parent.is_dir()  # org/name is seldom a folder
        if meant or glob.glob(stem) or glob.glob(str(path)):
            return str(path)
        # What an earlier step makes is local before it is there: no hub is asked for it.
        outs = [Path(step.out) for step in self.steps if isinstance(step, TrainStep)]
        made = any(out in Path(name).parents for out in outs)
        return str(path.absolute()) if made else name

    def makes(self, name: str) -> bool:
        """Whether a checkpoint or pattern lies in a directory that a training step fills."""
        path = os.path.normpath(self.base / name)
        folders = [self.base / step.out for step in self.steps if isinstance(step, TrainStep)]
        return any(path.startswith(f"{os.path.normpath(f)}{os.sep}") for f in folders)


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where}: expected a mapping of options, found {value!r}",
            remedy="write NAME: {option: value, ...}",
        )
    return dict(value)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(
            f"{where}: steps must be a list", remedy="write each step as '- NAME: {...}'"
        )
    return value


def _step(value: Any, where: str) -> Config:
    named = _mapping(value, where)
    if len(named) != 1 or next(iter(named)) not in _STEPS:
        raise ConfigError(
            f"{where}: expected one of {', '.join(_STEPS)}, found {', '.join(map(str, named))}",
            remedy="write each step as '- NAME: {...}'",
        )
    name, options = next(iter(named.items()))
    return _STEPS[name].parse(
        _mapping(options or {}, f"{where} ({name})"), where=f"{where} ({name})"
    )


def read_study(path: Path) -> StudyFile:
    """Read and parse a study file."""
    return StudyFile.of(read_yaml(path), base=path.parent, where=str(path))


def run_study(
    file: StudyFile,
    *,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> ReportStep | None:
    """Run every step but the report; returns the report's options where the file asks for one.

    Before the first step, every task is read and every checkpoint that no earlier step makes is
    looked for: the last step's typing error should not be found after the first one's hours.
    """
    for number, step in enumerate(file.steps, start=1):
        _check_step(file, step, f"step {number}")
    store = Store.open(file.study)
    report: ReportStep | None = None
    for step in file.steps:
        if isinstance(step, ReportStep):
            report = step
            continue
        for result in _run_step(file, step, store, progress):
            say(result.reading)
    return report


def _check_step(file: StudyFile, step: Config, where: str) -> None:
    """Raise for what can be seen to be wrong with a step before any step has run."""
    try:
        if isinstance(step, TrainStep):
            file.task(step.task)[0].resolve(step.split)
            if not file.makes(step.model):
                _training(file, step)
        elif isinstance(step, EvaluateStep | InterpolateStep | ConnectStep):
            further = () if isinstance(step, EvaluateStep) else step.also
            for task, split in map(file.task, (step.task, *further)):
                task.resolve(split)
            names = (step.a, step.b) if isinstance(step, InterpolateStep) else step.checkpoints
            there = [name for name in _as_tuple(names) if not file.makes(name)]
            select(map(file.place, there))
            if isinstance(step, ConnectStep) and len(there) == len(_as_tuple(names)):
                _connection(file, step)
    except LandformError as error:
        LandformError.__init__(error, f"{where}: {error.what}", remedy=error.remedy)
        raise


def describe_study(file: StudyFile) -> list[dict[str, Any]]:
    """What every step would take, as far as it can be known before the earlier ones have run."""
    store = Store.open(file.study, create=False) if file.study.exists() else None
    rows = []
    for number, step in enumerate(file.steps, start=1):
        name = next(key for key, kind in _STEPS.items() if type(step) is kind)
        rows.append({"step": f"{number} {name}", "forecast": _forecast(file, step, store)})
    return rows


def _forecast(file: StudyFile, step: Config, store: ArtifactStore | None) -> str:
    try:
        if isinstance(step, TrainStep):
            return _training(file, step).forecast().reading
        if isinstance(step, ConnectStep):
            return _connection(file, step).forecast(store or MemoryStore()).reading
        if isinstance(step, EvaluateStep):
            file.task(step.task)
            return f"{len(select(_places(file, step.checkpoints)))} evaluations"
        if isinstance(step, InterpolateStep):
            file.task(step.task)
            return f"{len(step.ts)} evaluations"
    except CheckpointError as error:
        trained = any(isinstance(other, TrainStep) for other in file.steps)
        if not trained:
            raise
        return f"waits for the runs of an earlier step ({error.what})"
    return "one page"


def _run_step(file: StudyFile, step: Config, store: ArtifactStore, progress: bool) -> list[Result]:
    if isinstance(step, TrainStep):
        return [_train(file, step, store, progress)]
    if isinstance(step, EvaluateStep):
        return _evaluate(file, step, store, progress)
    if isinstance(step, InterpolateStep):
        return [_interpolate(file, step, store, progress)]
    assert isinstance(step, ConnectStep)
    return [_connection(file, step).run(store, progress=progress)]


def _options(step: Config, base: type[Config]) -> dict[str, Any]:
    """The options of a step that belong to the operation itself."""
    return {name: getattr(step, name) for name in base.model_fields}


def _training(file: StudyFile, step: TrainStep) -> TrainStudy:
    task, _ = file.task(step.task)
    return TrainStudy.of(
        file.place(step.model),
        task,
        out=file.base / step.out,
        split=step.split,
        eval_split=step.eval_split,
        **{
            **_options(step, TrainConfig),
            "row_file": None if step.row_file is None else file.base / step.row_file,
        },
    )


def _train(file: StudyFile, step: TrainStep, store: ArtifactStore, progress: bool) -> Result:
    training = _training(file, step).run(progress=progress)
    publish(store, slug("train", Path(step.out).name), training)
    return training


def _evaluate(
    file: StudyFile, step: EvaluateStep, store: ArtifactStore, progress: bool
) -> list[Result]:
    task, split = file.task(step.task)
    chosen = select(_places(file, step.checkpoints))
    results: list[Result] = []
    for name, checkpoint in zip(short_names(chosen), chosen, strict=True):
        result = evaluate(
            checkpoint,
            task,
            split=split,
            store=store,
            progress=progress,
            **_options(step, EvaluateConfig),
        )
        publish(store, slug("evaluate", name, task.name, split), result)
        results.append(result)
    return results


def _interpolate(
    file: StudyFile, step: InterpolateStep, store: ArtifactStore, progress: bool
) -> Result:
    task, split = file.task(step.task)
    ends = [file.place(step.a), file.place(step.b)]
    result = interpolate(
        ends[0],
        ends[1],
        task,
        split=split,
        also=[file.task(name) for name in step.also],
        store=store,
        progress=progress,
        **_options(step, InterpolateConfig),
    )
    publish(store, slug("interpolate", *short_names(select(ends)), task.name, split), result)
    return result


def _connection(file: StudyFile, step: ConnectStep) -> ConnectionStudy:
    task, split = file.task(step.task)
    return ConnectionStudy.of(
        _places(file, step.checkpoints),
        task,
        split=split,
        also=[file.task(name) for name in step.also],
        pairs=step.pairs,
        **_options(step, ConnectConfig),
    )


def _places(file: StudyFile, names: str | tuple[str, ...]) -> list[str]:
    return [file.place(name) for name in _as_tuple(names)]
