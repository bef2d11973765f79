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
    make_task,
    print_table,
    run_study,
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
    run_study(
        lambda: DynamicsStudy.of(
            checkpoints, make_task(data), split=split, also=also_tasks(also), **dict(options)
        ),
        output,
        store=store,
        figure=figure,
        dry_run=dry_run,
        say=_say,
    )


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
