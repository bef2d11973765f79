"""`landform figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import OutputConfig, OutputFlags, check_unread, emit, print_table
from landform.report.figures import TOGETHER
from landform.report.study import kept_figures, write_figure

__all__ = ["figure"]


def figure(
    study: Path,
    results: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    /,
    *,
    which: str | None = None,
    out: Path | None = None,
    option: tuple[str, ...] = (),
    style: str | None = None,
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Draw any figure of any result that a study keeps; lists them when none is asked for.

    Example: landform figure study connect --which heatmap --option order=seed --out heatmap.pdf

    Parameters
    ----------
    study
        The study directory (the --store of connect, surface, evaluate, ...).
    results
        Names of results, or patterns ('surface-*'). Several: figures side by side.
    which
        The figure (default: the result's main one). Without --which and --out the command lists
        what there is.
    out
        The file to write: .pdf, .png or .svg (default: STUDY/figures/RESULT-FIGURE.pdf).
    option
        Options of the figure as name=value; several values with commas (clip_x=-0.5,1.5).
    style
        'paper' (large serif letters), or a matplotlib style file.
    """
    if which is None and out is None:
        given = {"option": option, "style": style}
        check_unread(given, "on the list of figures", "name a figure too: --which FIGURE")
        table = kept_figures(study, results)
        if output.json_:
            emit({"results": table.to_dict("records")}, output)
        else:
            print_table(table)
            print(f"of several results: {', '.join(TOGETHER)}")
            print(f"next: landform figure {study} RESULT --which FIGURE --out figure.pdf")
        return
    path = write_figure(study, results, which=which, out=out, options=option, style=style)
    emit({}, output, [path])
