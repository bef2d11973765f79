"""`landform interpolate`."""

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
from landform.geometry.line import InterpolateConfig
from landform.studies.kept import LineStudy
from landform.tasks.task import TaskConfig

__all__ = ["interpolate"]


def interpolate(
    a: str,
    b: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    also: tuple[str, ...] = (),
    store: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[InterpolateConfig, OptionFlags] = InterpolateConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Walk the straight line between two checkpoints.

    Example: landform interpolate runs/seed0 runs/seed1 --task sst2 --figure line.png

    Parameters
    ----------
    a
        The checkpoint at t = 0.
    b
        The checkpoint at t = 1.
    split
        The split to evaluate on.
    also
        Further data sets for every mixed model: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    store
        Study directory: outputs are kept there and reused.
    figure
        Write the curve as a figure (.png, .pdf or .svg).
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    run_study(
        lambda: LineStudy.of(
            a, b, make_task(data), split=split, also=also_tasks(also), **dict(options)
        ),
        output,
        store=store,
        figure=figure,
        dry_run=dry_run,
    )
