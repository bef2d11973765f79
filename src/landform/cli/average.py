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
    check_figure_place,
    emit,
    emit_forecast,
    keep_result,
    make_task,
    open_existing,
    open_study,
    save_csv,
    save_figure,
)
from landform.geometry.average import AverageConfig, AverageStudy
from landform.geometry.fitted import check_target
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
    check_figure_place(figure)
    if out is not None:
        check_target(out, "config.json")
    study = AverageStudy.of(
        checkpoints,
        make_task(data),
        fisher=fisher,
        split=split,
        also=also_tasks(also),
        options=options.model_dump(exclude_unset=True),
    )
    if dry_run:
        emit_forecast(study.forecast(open_existing(store)), output)
        return
    kept = open_study(store)
    result = study.run(kept, progress=not output.quiet)
    wrote = keep_result(result, kept, store, study.name)
    if out is not None:
        study.save(out)
        wrote.append(out)
    wrote += [*save_csv(result.evaluation, csv), *save_figure(result, figure)]
    emit(result, output, wrote)
