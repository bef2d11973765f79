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
    check_figure_place,
    emit,
    emit_forecast,
    keep_result,
    make_task,
    open_existing,
    open_study,
    save_figure,
)
from landform.geometry.line import InterpolateConfig, forecast_line, line_work
from landform.geometry.line import interpolate as walk
from landform.store.study import slug
from landform.tasks.task import TaskConfig
from landform.weights.checkpoint import select, short_names

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
    check_figure_place(figure)
    task, further = make_task(data), also_tasks(also)
    if dry_run:
        work = line_work(a, b, task, split, further, options)
        emit_forecast(forecast_line(work, options, open_existing(store)), output)
        return
    kept = open_study(store)
    result = walk(
        a,
        b,
        task,
        split=split,
        also=further,
        store=kept,
        progress=not output.quiet,
        **dict(options),
    )
    title = slug("interpolate", *short_names(select([a, b])), task.name, split)
    wrote = keep_result(result, kept, store, title)
    wrote += save_figure(result, figure)
    emit(result, output, wrote)
