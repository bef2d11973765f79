"""`landform dynamics`."""

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
from landform.studies.dynamics import Dynamics, DynamicsConfig, DynamicsStudy
from landform.tasks.task import TaskConfig

__all__ = ["dynamics"]


def dynamics(
    checkpoints: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    also: tuple[str, ...] = (),
    store: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[DynamicsConfig, OptionFlags] = DynamicsConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Basins of the same runs at several training steps, and who changes between them.

    Example: landform dynamics 'runs/seed*' --steps 100 200 --task sst2 --store study

    Parameters
    ----------
    checkpoints
        Runs, or patterns ('runs/seed*'), that kept the steps (landform train --save-steps).
    split
        The split that makes the basins.
    also
        Further data sets for every mixed model: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    store
        Study directory: every finished line is kept, and a killed run goes on from there.
    figure
        Write the figure (.png, .pdf or .svg).
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    check_figure_place(figure)
    task, further = make_task(data), also_tasks(also)
    study = DynamicsStudy.of(checkpoints, task, split=split, also=further, **dict(options))
    if dry_run:
        emit_forecast(study.forecast(open_existing(store)), output)
        return
    result = study.run(None if store is None else open_study(store), progress=not output.quiet)
    wrote = [] if store is None else [store / "results" / options.keep_as]
    wrote += save_figure(result, figure)
    if not output.json_:
        _say(result)
    emit(result, output, wrote)
    if store is not None and not output.json_:
        print(f"next: landform report {store}")


def _say(result: Dynamics) -> None:
    """Who is in which basin at which step, and how alike the steps are."""
    table = result.basins.rename(columns={step: f"step {step}" for step in result.steps})
    moved = {name: "changes" for name in result.switchers}
    table = table.assign(**{"": [moved.get(name, "") for name in table.index]})
    print_table(table.reset_index())
    print()
    columns = ["step", "n_basins", "confidence", "largest_gap", "above_noise", "performance"]
    print_table(result.summary[[*columns, "pearson_r", "p_value"]])
    print()
    print_table(result.agreement)
    print(f"\nperformance: {result.metric} at that step; pearson_r: with the position x")
