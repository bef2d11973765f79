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
    make_task,
    print_table,
    run_study,
)
from landform.curvature.spectrum import Spectrum
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
    run_study(
        lambda: spectrum_study(
            checkpoints, make_task(data), curve=curve, split=split, options=dict(options)
        ),
        output,
        store=store,
        figure=figure,
        dry_run=dry_run,
        say=_say,
    )


def _say(result: Spectrum | PathSpectrum) -> None:
    along = isinstance(result, PathSpectrum)
    print_table(result.table.drop(columns=["arc", "loss_low", "loss_high"] if along else []))
