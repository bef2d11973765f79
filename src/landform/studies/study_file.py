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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from landform.config import read_yaml
from landform.errors import CheckpointError, ConfigError, LandformError
from landform.store.artifacts import ArtifactStore, Store
from landform.studies.steps import STEPS, ReportStep, Step
from landform.tasks.task import Task, TaskConfig

__all__ = ["ReportStep", "StudyFile", "describe_study", "read_study", "run_study"]


@dataclass(frozen=True)
class StudyFile:
    """A study that has been parsed."""

    study: Path
    tasks: Mapping[str, TaskConfig]
    steps: tuple[Step, ...]
    base: Path
    """The directory that relative paths start from."""
    before: int | None = None
    """Number of steps before the one that is looked at (default: all steps)."""

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
        outs = [Path(out) for out in (step.makes() for step in self.steps) if out is not None]
        made = any(out in (Path(name), *Path(name).parents) for out in outs)
        return str(path.absolute()) if made else name

    def places(self, names: str | tuple[str, ...]) -> list[str]:
        """`place` for one name or several."""
        return [self.place(name) for name in ([names] if isinstance(names, str) else names)]

    def waits_for(self, rows: Path | None) -> bool:
        """Whether an earlier step writes a file: what is there now may be of another study."""
        if rows is None:
            return False
        written = [step.writes() for step in self.steps[: self.before]]
        files = [os.path.normpath(self.base / path) for path in written if path is not None]
        return os.path.normpath(self.base / rows) in files

    def makes(self, name: str) -> bool:
        """Whether a checkpoint or pattern is, or lies in, a directory that a step fills."""
        path = os.path.normpath(self.base / name)
        made = [step.makes() for step in self.steps]
        folders = [os.path.normpath(self.base / out) for out in made if out is not None]
        return any(f"{path}{os.sep}".startswith(f"{folder}{os.sep}") for folder in folders)


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


def _step(value: Any, where: str) -> Step:
    named = _mapping(value, where)
    if len(named) != 1 or next(iter(named)) not in STEPS:
        raise ConfigError(
            f"{where}: expected one of {', '.join(STEPS)}, found {', '.join(map(str, named))}",
            remedy="write each step as '- NAME: {...}'",
        )
    name, options = next(iter(named.items()))
    return STEPS[name].parse(
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
        _check_step(replace(file, before=number - 1), step, f"step {number}")
    store = Store.open(file.study)
    report: ReportStep | None = None
    for step in file.steps:
        if isinstance(step, ReportStep):
            report = step
            continue
        for result in step.run(file, store, progress):
            say(result.reading)
    return report


def _check_step(file: StudyFile, step: Step, where: str) -> None:
    """Raise for what can be seen to be wrong with a step before any step has run."""
    try:
        step.check(file)
    except LandformError as error:
        LandformError.__init__(error, f"{where}: {error.what}", remedy=error.remedy)
        raise


def describe_study(file: StudyFile) -> list[dict[str, Any]]:
    """What every step would take, as far as it can be known before the earlier ones have run."""
    store = Store.open(file.study, create=False) if file.study.exists() else None
    rows = []
    for number, step in enumerate(file.steps, start=1):
        said = _forecast(replace(file, before=number - 1), step, store)
        name = next(key for key, kind in STEPS.items() if type(step) is kind)
        rows.append({"step": f"{number} {name}", "forecast": said})
    return rows


def _forecast(file: StudyFile, step: Step, store: ArtifactStore | None) -> str:
    try:
        return step.forecast(file, store)
    except CheckpointError as error:
        if not any(other.makes() for other in file.steps):
            raise
        return f"waits for the runs of an earlier step ({error.what})"
