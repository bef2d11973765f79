"""`landform sharpness`."""

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
    print_table,
    run_study,
)
from landform.geometry.sharpness import Sharpness, SharpnessComparison
from landform.studies.sharpness import CompareSharpnessConfig, SharpnessStudy
from landform.tasks.task import TaskConfig

__all__ = ["sharpness"]


def sharpness(
    checkpoints: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    also: tuple[str, ...] = (),
    store: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[CompareSharpnessConfig, OptionFlags] = CompareSharpnessConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """How far the loss can rise near a checkpoint, and whether that goes along with anything.

    Example: landform sharpness runs/seed0 --task sst2 --method sam --epsilon 0.05

    Parameters
    ----------
    checkpoints
        Directories, steps of runs (runs/seed0@300), hub models, or patterns ('runs/seed*').
    split
        The split to measure on.
    also
        Further data sets to correlate with: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    store
        Study directory: every finished climb is kept, and a killed run goes on from there.
    figure
        Write the climbs of one checkpoint, or the scatter of several, as a figure (.png, .pdf,
        .svg).
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    run_study(
        lambda: SharpnessStudy.of(
            checkpoints, make_task(data), split=split, also=also_tasks(also), **dict(options)
        ),
        output,
        store=store,
        figure=figure,
        dry_run=dry_run,
        say=_say,
    )


def _say(result: Sharpness | SharpnessComparison) -> None:
    """The values of several, and what they go along with."""
    if isinstance(result, Sharpness):
        return
    columns = ["checkpoint", "method", "epsilon", "loss", "maximum", "value", "value_low"]
    print_table(result.table[[*columns, "value_high", "reach"]])
    if len(result.correlations):
        print()
        print_table(result.correlations)
        print()
