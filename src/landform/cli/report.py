"""`landform report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from landform.cli.common import OutputConfig, OutputFlags, emit
from landform.report.study import write_report

__all__ = ["report"]


def report(
    study: Path,
    /,
    *,
    out: Path | None = None,
    figures: Path | None = None,
    title: str | None = None,
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Write the HTML atlas of a study: one file that opens anywhere, without a network.

    Example: landform report study

    Parameters
    ----------
    study
        The study directory (the --store of connect, evaluate, interpolate, run).
    out
        The HTML file to write (default: STUDY/atlas.html).
    figures
        Also write every figure as PDF into this directory.
    title
        Title of the page.
    """
    wrote = write_report(study, out=out, figures=figures, title=title)
    emit({}, output, wrote)
