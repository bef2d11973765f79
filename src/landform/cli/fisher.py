"""`landform fisher`."""

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
from landform.curvature.fisher import ALONE, FisherScores, GroupBy, Weighting
from landform.curvature.fisher_fit import FisherConfig, FisherStudy
from landform.errors import ConfigError
from landform.store.atomic import check_place
from landform.store.study import kept_name
from landform.tasks.task import TaskConfig

__all__ = ["fisher"]

SHOWN = 8
"""Groups shown at either end of the table."""


def fisher(
    checkpoint: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    out: Path | None = None,
    store: Path | None = None,
    by: GroupBy | None = None,
    weighting: Weighting = "entries",
    matrices_only: Annotated[bool, Parameter(negative=())] = False,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[FisherConfig, OptionFlags] = FisherConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """The diagonal of the Fisher matrix: how much the loss depends on every parameter.

    Example: landform fisher runs/seed0 --task sst2 --rows 2000 --out fisher.safetensors

    Parameters
    ----------
    checkpoint
        A directory, a step of a run (runs/seed0@300), or a hub model.
    split
        The split whose loss it is.
    out
        Write the diagonal to this file, one safetensors of the size of the model.
    store
        Study directory: the diagonal and its scores are kept there and reused.
    by
        What to score: tensors, sublayers (what a dropout follows) or layers (default: sublayers,
        where the model's are known).
    weighting
        entries: the mean over a group's entries. tensors: the mean of its tensors' means.
    matrices_only
        Leave out biases and norms.
    figure
        Write the scores as a figure (.png, .pdf, .svg).
    dry_run
        Say what would be computed; keep nothing.
    """
    check_figure_place(figure)
    if out is not None:
        check_place(out)
        if out.suffix != ".safetensors":
            raise ConfigError(
                f"option out: {out} would be a safetensors file under another ending",
                remedy=f"--out {out.with_suffix('.safetensors')}",
            )
    study = FisherStudy.of(checkpoint, make_task(data), split=split, **dict(options))
    if dry_run:
        emit_forecast(study.forecast(open_existing(store)), output)
        return
    kept = None if store is None else open_study(store)
    result = study.fisher(store=kept, out=out, progress=not output.quiet).summary
    wrote = [] if out is None else [out]
    if store is not None and kept is not None:
        wrote.append(store / "results" / kept_name(kept, study.result_name, result))
    wrote += save_figure(result, figure)
    if not output.json_:
        _print(result, by, weighting, matrices_only)
    emit(result, output, wrote)


def _print(
    result: FisherScores, by: GroupBy | None, weighting: Weighting, matrices_only: bool
) -> None:
    """The groups with the highest and the lowest scores, and how they were found."""
    if by is None:
        by = "sublayer" if result.tensors.sublayer.notna().any() else "tensor"
    table = result.groups(by, weighting=weighting, matrices_only=matrices_only)
    table = table.sort_values("rank", ascending=False)[["name", "entries", "score", "error"]]
    print(f"{by}s by their Fisher score (mean over {weighting}), highest first:")
    if len(table) <= 2 * SHOWN:
        print_table(table)
    else:
        print_table(table.head(SHOWN))
        print(f"... {len(table) - 2 * SHOWN} more ...")
        print_table(table.tail(SHOWN))
    print(_coverage(result))


def _coverage(result: FisherScores) -> str:
    """How many tensors and parameters it is of, and which of them took longer."""
    tensors = result.tensors
    line = f"coverage: {len(tensors)} tensors, {int(tensors.entries.sum()):,} parameters"
    alone = tensors[tensors.way == ALONE]
    if len(alone):
        names = ", ".join(alone.name[:3]) + (", ..." if len(alone) > 3 else "")
        line += f"; {len(alone)} of them one example at a time ({names})"
    return line
