"""`landform simplex`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    also_tasks,
    check_figure_place,
    emit,
    make_task,
    open_existing,
    open_study,
    save_figure,
    say_forecasts,
)
from landform.geometry.fitted import check_target
from landform.studies.fits import ComplexStudy, ComplexStudyConfig
from landform.tasks.task import TaskConfig
from landform.weights.checkpoint import select

__all__ = ["simplex"]


def simplex(
    *checkpoints: str,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    eval_split: str = "validation",
    also: tuple[str, ...] = (),
    store: Path | None = None,
    out: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[ComplexStudyConfig, OptionFlags] = ComplexStudyConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Fit a simplicial complex of low loss through checkpoints.

    Example: landform simplex runs/seed0 runs/seed1 runs/seed2 --task sst2 --connectors 2

    Parameters
    ----------
    checkpoints
        The checkpoints that it goes through, by name or pattern.
    split
        The split to fit on; where a task has no train and one split only, that one.
    eval_split
        The split to evaluate on; where a task has no validation and one split only, that one.
    also
        Further data sets to evaluate: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    store
        Study directory: the fit goes on from there after a kill, points are kept and reused.
    out
        Keep the fitted complex in this directory, for `FittedComplex.load`.
    figure
        Write the result as a figure (.png, .pdf or .svg).
    dry_run
        Say what would be fitted and evaluated, with time and memory; keep nothing.
    """
    check_figure_place(figure)
    if out is not None:
        check_target(out, "complex.json")
    study = ComplexStudy.of(
        select(checkpoints),
        make_task(data),
        split=split,
        eval_split=eval_split,
        also=also_tasks(also),
        options=dict(options),
    )
    if dry_run:
        say_forecasts(["fit", "evaluation"], study.forecast(open_existing(store)), output)
        return
    found, result = study.run(open_study(store), progress=not output.quiet)
    wrote: list[Path] = []
    if store is not None:
        wrote.append(store / "results" / study.name)
    if out is not None:
        wrote.append(found.save(out))
    wrote += save_figure(result, figure)
    emit(result, output, wrote)
