"""`landform curve`."""

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
    run_study,
)
from landform.errors import ConfigError
from landform.geometry.fitted import check_target
from landform.geometry.fitting import FittedPath
from landform.geometry.paths import CurveKind
from landform.studies.fits import CurveStudy, CurveStudyConfig
from landform.tasks.task import TaskConfig

__all__ = ["curve"]


class CurveFlags(CurveStudyConfig):
    """The options under the names of flags: `--kind` is the task's."""

    kind: Annotated[CurveKind, Parameter(name="--curve")] = "bezier"
    """bezier: a Bezier curve of degree BENDS + 1; polyline: straight pieces from bend to bend."""


def curve(
    a: str,
    b: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    eval_split: str = "validation",
    also: tuple[str, ...] = (),
    store: Path | None = None,
    out: Path | None = None,
    models_at: tuple[float, ...] = (),
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[CurveFlags, OptionFlags] = CurveFlags(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Fit a curve of low loss between two checkpoints, and walk it beside the line.

    Example: landform curve runs/seed0 runs/seed1 --task sst2 --bends 1 --store study

    Parameters
    ----------
    a
        The checkpoint at t = 0.
    b
        The checkpoint at t = 1.
    split
        The split to fit on; where a task has no train and one split only, that one.
    eval_split
        The split to evaluate on; where a task has no validation and one split only, that one.
    also
        Further data sets to evaluate: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    store
        Study directory: the fit goes on from there after a kill, points are kept and reused.
    out
        Keep the fitted path in this directory, for `FittedPath.load`.
    models_at
        Write the models at these t as checkpoints into OUT/at<T>.
    figure
        Write the curve as a figure (.png, .pdf or .svg).
    dry_run
        Say what would be fitted and evaluated, with time and memory; keep nothing.
    """
    _check_places(out, models_at)
    run_study(
        lambda: CurveStudy.of(
            a,
            b,
            make_task(data),
            split=split,
            eval_split=eval_split,
            also=also_tasks(also),
            options=options.options_written(),
        ),
        output,
        store=store,
        figure=figure,
        dry_run=dry_run,
        parts=lambda _: ["fit", "evaluation"],
        result_of=lambda done: done[1],
        say=lambda done: print(done[0].reading),
        write=lambda _, done: _write(done[0], out, models_at),
    )


def _write(path: FittedPath, out: Path | None, models_at: tuple[float, ...]) -> list[Path]:
    """Keep the path, and models on it beside."""
    if out is None:
        return []
    wrote = [path.save(out)]
    for t in models_at:
        path.checkpoint(t, out / f"at{t:g}")
        wrote.append(out / f"at{t:g}")
    return wrote


def _check_places(out: Path | None, models_at: tuple[float, ...]) -> None:
    """Raise for what could not be written in the end, before anything is computed."""
    if models_at and out is None:
        raise ConfigError("option models_at needs a directory", remedy="give --out DIR too")
    if any(not 0 <= t <= 1 for t in models_at):
        raise ConfigError(f"option models_at: {models_at}", remedy="a curve runs from 0 to 1")
    if out is not None:
        check_target(out, "path.json")
