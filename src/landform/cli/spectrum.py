"""`landform spectrum`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    check_figure_place,
    emit,
    emit_forecast,
    make_task,
    open_existing,
    open_study,
    print_table,
    save_figure,
)
from landform.geometry.spectrum_path import PathSpectrum, PathSpectrumConfig, spectrum_study
from landform.tasks.task import TaskConfig

__all__ = ["spectrum"]


def spectrum(
    *checkpoints: str,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    curve: Path | None = None,
    store: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[PathSpectrumConfig, OptionFlags] = PathSpectrumConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Eigenvalues, trace and density of the Hessian or the Fisher matrix; also along a path.

    Example: landform spectrum runs/seed0 --task sst2 --operator hessian --top 5 --rows 512

    Parameters
    ----------
    checkpoints
        One checkpoint; or two, to follow eigenvalues and trace along the line between them.
    split
        The split whose loss it is.
    curve
        Follow the curve that landform curve fitted between the two, kept in this directory.
    store
        Study directory: finished parts are kept there, and a killed run goes on.
    figure
        Write the figure (.png, .pdf or .svg).
    dry_run
        Say how many products it takes at most, with time and memory; keep nothing.
    """
    check_figure_place(figure)
    study = spectrum_study(
        checkpoints, make_task(data), curve=curve, split=split, options=dict(options)
    )
    if dry_run:
        emit_forecast(study.forecast(open_existing(store)), output)
        return
    kept = None if store is None else open_study(store)
    result = study.run(kept, progress=not output.quiet)
    wrote = [] if store is None else [store / "results" / study.result_name]
    wrote += save_figure(result, figure)
    if not output.json_:
        along = isinstance(result, PathSpectrum)
        print_table(result.table.drop(columns=["arc", "loss_low", "loss_high"] if along else []))
    emit(result, output, wrote)
