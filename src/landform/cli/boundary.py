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
    check_figure_place,
    emit,
    emit_forecast,
    make_task,
    open_existing,
    open_study,
    print_table,
    save_figure,
)
from landform.errors import ConfigError
from landform.studies.boundary import Boundaries, BoundaryConfig, BoundaryStudy
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
    check_figure_place(figure)
    if len(models) % 2:
        raise ConfigError(
            f"{len(models)} models make no pairs: {', '.join(models)}",
            remedy="name a model of the first task, then one of the second, for every pair",
        )
    study = BoundaryStudy.of(
        list(zip(models[::2], models[1::2], strict=True)),
        make_task(data),
        also_tasks([task_b])[0],
        labels=labels or None,
        split=split,
        options=dict(options),
    )
    if dry_run:
        emit_forecast(study.forecast(open_existing(store)), output)
        return
    result = study.run(open_study(store), progress=not output.quiet)
    wrote = [] if store is None else [store / "results" / study.name]
    wrote += save_figure(result, figure)
    if isinstance(result, Boundaries) and not output.json_:
        columns = ["label", "width", "width_low", "width_high", "margin", "margin_low"]
        print_table(result.table[[*columns, "margin_high", "crossing", "area", "best_kept"]])
    emit(result, output, wrote)
