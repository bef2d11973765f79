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
    make_task,
    run_study,
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
    if out is not None:
        check_target(out, "complex.json")
    run_study(
        lambda: ComplexStudy.of(
            select(checkpoints),
            make_task(data),
            split=split,
            eval_split=eval_split,
            also=also_tasks(also),
            options=dict(options),
        ),
        output,
        store=store,
        figure=figure,
        dry_run=dry_run,
        parts=lambda _: ["fit", "evaluation"],
        result_of=lambda done: done[1],
        write=lambda _, done: [] if out is None else [done[0].save(out)],
    )
