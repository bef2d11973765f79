"""`landform interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    also_tasks,
    emit,
    make_task,
    open_study,
)
from landform.geometry.line import InterpolateConfig
from landform.geometry.line import interpolate as walk
from landform.store.study import publish, slug
from landform.tasks.task import TaskConfig
from landform.weights.checkpoint import resolve, short_names

__all__ = ["interpolate"]


def interpolate(
    a: str,
    b: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    also: tuple[str, ...] = (),
    store: Path | None = None,
    figure: Path | None = None,
    options: Annotated[InterpolateConfig, OptionFlags] = InterpolateConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Walk the straight line between two checkpoints.

    Example: landform interpolate runs/seed0 runs/seed1 --task sst2 --figure line.png

    Parameters
    ----------
    a
        The checkpoint at t = 0.
    b
        The checkpoint at t = 1.
    split
        The split to evaluate on.
    also
        Further data sets for every mixed model: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    store
        Study directory: outputs are kept there and reused.
    figure
        Write the curve as a figure (.png, .pdf or .svg).
    """
    kept = open_study(store)
    result = walk(
        a,
        b,
        make_task(data),
        split=split,
        also=also_tasks(also),
        store=kept,
        progress=not output.quiet,
        **dict(options),
    )
    wrote: list[Path] = []
    if store is not None:
        title = slug("interpolate", *short_names([resolve(a), resolve(b)]))
        publish(kept, title, result)
        wrote.append(Path(store) / "results" / title)
    if figure is not None:
        from landform.report.figures import save

        wrote.append(save(result.plot(), figure))
    emit(result, output, wrote)
