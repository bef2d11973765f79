"""`landform surface`."""

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
    print_table,
    save_figure,
)
from landform.geometry.landscape import Landscape, surface_study
from landform.geometry.surface import SurfaceConfig
from landform.store.study import slug
from landform.tasks.task import TaskConfig

__all__ = ["surface"]


def surface(
    *,
    through: tuple[str, ...] = (),
    around: str | None = None,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    also: tuple[str, ...] = (),
    fisher: Path | None = None,
    store: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[SurfaceConfig, OptionFlags] = SurfaceConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """The plane through three checkpoints, or random directions around one.

    Example: landform surface --through runs/seed0 runs/seed1 runs/seed2 --task sst2 --store study

    Several masks or pairs of directions are compared: a surface each, and a profile over them.

    Parameters
    ----------
    through
        Three checkpoints: the first one is the origin.
    around
        One checkpoint, for random directions around it.
    split
        The split to evaluate on.
    also
        Further data sets for every mixed model: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    fisher
        The Fisher of the model, which the masks fisher-top and fisher-bottom rank by: the file of
        landform fisher.
    store
        Study directory: every cell is kept, and a killed run goes on from there.
    figure
        Write the surface as a figure (.png, .pdf or .svg).
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    check_figure_place(figure)
    task = make_task(data)
    study = surface_study(
        task,
        through=through or None,
        around=around,
        split=split,
        also=also_tasks(also),
        fisher=fisher,
        options=dict(options),
    )
    if dry_run:
        emit_forecast(study.forecast(open_existing(store)), output)
        if options.refine and not output.json_:
            print(f"refine {options.refine}: at most that; what can be interpolated is not run")
        return
    kept = None if store is None else open_study(store)
    result = study.run(kept, progress=not output.quiet)
    wrote = keep_result(result, kept, store, slug(*study.title, task.name, split))
    wrote += save_figure(result, figure)
    if not output.json_:
        for note in result.notes:
            print(note)
        if isinstance(result, Landscape):
            print_table(result.summary)
    emit(result, output, wrote)
