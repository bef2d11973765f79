"""`landform boundary`."""

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
from landform.errors import ConfigError
from landform.studies.boundary import Boundaries, Boundary, BoundaryConfig, BoundaryStudy
from landform.tasks.task import TaskConfig

__all__ = ["boundary"]


def boundary(
    models: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    task_b: str,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    labels: tuple[str, ...] = (),
    store: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[BoundaryConfig, OptionFlags] = BoundaryConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """How far along the line between the models of two tasks does each of them work?

    Example: landform boundary runs/mnli runs/sst2 --task mnli --task-b sst2 --store study

    Parameters
    ----------
    models
        The model of the first task (--task) and that of the second; or several such pairs, one
        after the other: A B A B.
    task_b
        The second task: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    split
        The split to evaluate on.
    labels
        Names of the pairs, where there are several.
    store
        Study directory: every finished point is kept there and reused.
    figure
        Write the figure (.png, .pdf or .svg).
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    if len(models) % 2:
        raise ConfigError(
            f"{len(models)} models make no pairs: {', '.join(models)}",
            remedy="name a model of the first task, then one of the second, for every pair",
        )
    run_study(
        lambda: BoundaryStudy.of(
            list(zip(models[::2], models[1::2], strict=True)),
            make_task(data),
            also_tasks([task_b])[0],
            labels=labels or None,
            split=split,
            options=dict(options),
        ),
        output,
        store=store,
        figure=figure,
        dry_run=dry_run,
        say=_say,
    )


def _say(result: Boundary | Boundaries) -> None:
    if isinstance(result, Boundaries):
        columns = ["label", "width", "width_low", "width_high", "margin", "margin_low"]
        print_table(result.table[[*columns, "margin_high", "crossing", "area", "best_kept"]])
