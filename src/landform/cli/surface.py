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
    make_task,
    print_table,
    run_study,
)
from landform.geometry.landscape import Landscape, surface_study
from landform.geometry.surface import Surface, SurfaceConfig
from landform.studies.kept import KeptStudy, keep_surface
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

    def study() -> KeptStudy:
        task = make_task(data)
        found = surface_study(
            task,
            through=through or None,
            around=around,
            split=split,
            also=also_tasks(also),
            fisher=fisher,
            options=dict(options),
        )
        return keep_surface(found, task, split)

    run_study(study, output, store=store, figure=figure, dry_run=dry_run, say=_say)
    if dry_run and options.refine and not output.json_:
        print(f"refine {options.refine}: at most that; what can be interpolated is not run")


def _say(result: Surface | Landscape) -> None:
    for note in result.notes:
        print(note)
    if isinstance(result, Landscape):
        print_table(result.summary)
