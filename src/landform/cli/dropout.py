"""`landform dropout`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from landform.cli.common import (
    OptionFlags,
    OutputConfig,
    OutputFlags,
    check_figure_place,
    emit,
    keep_result,
    open_study,
    print_table,
    save_figure,
)
from landform.store.study import slug
from landform.training.schedules import ScheduleConfig, make_schedule

__all__ = ["dropout"]


def dropout(
    fisher: str,
    /,
    *,
    out: Path | None = None,
    store: Path | None = None,
    figure: Path | None = None,
    options: Annotated[ScheduleConfig, OptionFlags] = ScheduleConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """A dropout probability for every sub-layer, from the Fisher scores of a model.

    Example: landform dropout fisher.safetensors --kind rank-linear --high 0.1 --out schedule.json

    Parameters
    ----------
    fisher
        A file of landform fisher, or bert-guided (the order published for BERT-base).
    out
        Write the schedule to this file, for landform train --dropout FILE.
    store
        Study directory: keep the schedule as a result, for landform report.
    figure
        Write scores and probabilities as a figure (.png, .pdf, .svg).
    """
    check_figure_place(figure)
    result = make_schedule(fisher, **options.options_written())
    wrote = [] if out is None else [result.save(out)]
    kept = None if store is None else open_study(store)
    title = slug("dropout", result.source, result.kind, result.control or "")
    wrote += keep_result(result, kept, store, title)
    wrote += save_figure(result, figure)
    if not output.json_:
        print_table(result.table[["site", "score", "error", "rank", "p"]])
        print()
    emit(result, output, wrote)
