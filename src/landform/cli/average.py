"""`landform average`."""

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
from landform.geometry.average import AverageConfig, AverageStudy
from landform.geometry.fitted import check_target
from landform.studies.kept import keep_average
from landform.tasks.task import TaskConfig

__all__ = ["average"]


def average(
    checkpoints: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    fisher: tuple[Path, ...] = (),
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    also: tuple[str, ...] = (),
    store: Path | None = None,
    out: Path | None = None,
    figure: Path | None = None,
    csv: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[AverageConfig, OptionFlags] = AverageConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Average checkpoints, plainly and weighted by Fisher information, and evaluate the averages.

    Example: landform average runs/seed0 runs/seed1 --fisher f0.safetensors f1.safetensors
    --task sst2 --out merged

    Parameters
    ----------
    checkpoints
        Two or more checkpoints of one architecture.
    fisher
        A Fisher of every checkpoint, in their order (files of landform fisher); without them there
        is the plain average only.
    split
        The split to evaluate on.
    also
        Further data sets to evaluate: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    store
        Study directory: evaluations are kept there and reused.
    out
        Write the Fisher-weighted average (without --fisher the plain one) as a checkpoint into this
        directory.
    figure
        Write the losses, and the share of every checkpoint, as a figure (.png, .pdf or .svg).
    csv
        Write the table of metrics to this file.
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    if out is not None:
        check_target(out, "config.json")
    run_study(
        lambda: keep_average(
            AverageStudy.of(
                checkpoints,
                make_task(data),
                fisher=fisher,
                split=split,
                also=also_tasks(also),
                options=options.options_written(),
            )
        ),
        output,
        store=store,
        figure=figure,
        csv=csv,
        dry_run=dry_run,
        table=lambda result: result.evaluation,
        write=lambda study, _: _write(study.plan, out),
    )


def _write(study: AverageStudy, out: Path | None) -> list[Path]:
    """The average that was asked for, as a checkpoint."""
    if out is None:
        return []
    study.save(out)
    return [out]
