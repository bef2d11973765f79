"""`landform connect`."""

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
    read_pairs,
    run_study,
)
from landform.studies.connect import ConnectConfig, ConnectionStudy
from landform.tasks.task import TaskConfig

__all__ = ["connect"]


def connect(
    checkpoints: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    also: tuple[str, ...] = (),
    pairs: str | None = None,
    store: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[ConnectConfig, OptionFlags] = ConnectConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Lines between all pairs of many checkpoints: barriers, convexity gaps, basins.

    Example: landform connect 'runs/seed*' --task sst2 --also sst2_ood.yaml --store study

    Parameters
    ----------
    checkpoints
        Directories, steps of runs (runs/seed0@300), hub models, or patterns ('runs/seed*').
    split
        The split that makes the basins.
    also
        Further data sets for every mixed model: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    pairs
        Only these pairs: 'seed0,seed1 seed0,seed2', or a text file with one pair a line.
    store
        Study directory: every finished line is kept, and a killed run goes on from there.
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    run_study(
        lambda: ConnectionStudy.of(
            checkpoints,
            make_task(data),
            split=split,
            also=also_tasks(also),
            pairs=read_pairs(pairs),
            **dict(options),
        ),
        output,
        store=store,
        dry_run=dry_run,
    )
