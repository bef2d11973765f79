"""`landform run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import OutputConfig, OutputFlags, emit
from landform.report.study import write_report
from landform.studies.study_file import StudyFile, describe_study, read_study, run_study

__all__ = ["run", "run_and_report", "say_forecast"]


def run(
    study: Path,
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Run a whole study from a YAML file; run again, it goes on where it stopped.

    Example: landform run study.yaml --dry-run

    Parameters
    ----------
    study
        The study file: the keys study (a directory), tasks, and steps. A step is the name of a
        command (train, connect, influence, report, ...) and the options that its --help names.
    dry_run
        Check every step and say what it would take; run nothing.
    """
    file = read_study(study)
    if dry_run:
        say_forecast(file, output)
        return
    run_and_report(file, output)


def say_forecast(file: StudyFile, output: OutputConfig) -> None:
    """Print what every step of a study would take."""
    rows = describe_study(file)
    if output.json_:
        emit({"steps": rows}, output)
        return
    for row in rows:
        print(f"{row['step']}: {row['forecast']}")


def run_and_report(file: StudyFile, output: OutputConfig) -> None:
    """Run a study, then write its atlas where it asks for one."""

    def say(line: str) -> None:
        if not output.json_:
            print(line, flush=True)

    asked = run_study(file, progress=not output.quiet, say=say)
    wrote: list[Path] = [file.study]
    if asked is not None:
        wrote += write_report(
            file.study,
            out=None if asked.out is None else file.base / asked.out,
            figures=None if asked.figures is None else file.base / asked.figures,
            title=asked.title,
        )
    emit({"study": str(file.study)}, output, wrote)
