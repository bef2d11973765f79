"""`landform mix`."""

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
from landform.geometry.fitted import check_target
from landform.geometry.mixing import MixConfig, MixingFit, MixStudy
from landform.studies.kept import keep_mix
from landform.tasks.task import TaskConfig

__all__ = ["mix"]


def mix(
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
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[MixConfig, OptionFlags] = MixConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Fit how much of which of two checkpoints every group of tensors takes.

    Example: landform mix runs/seed0 runs/seed1 --task sst2 --groups layer --store study

    Parameters
    ----------
    a
        The checkpoint whose shares are fitted.
    b
        The other checkpoint.
    split
        The split to fit on; where a task has no train and one split only, that one.
    eval_split
        The split to evaluate on; where a task has no validation and one split only, that one.
    also
        Further data sets to evaluate: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    store
        Study directory: the fit goes on from there after a kill, evaluations are kept and reused.
    out
        Write the mixed model as a checkpoint into this directory.
    figure
        Write the weights as a figure (.png, .pdf or .svg).
    dry_run
        Say what would be fitted and evaluated, with time and memory; keep nothing.
    """
    if out is not None:
        check_target(out, "config.json")
    run_study(
        lambda: keep_mix(
            MixStudy.of(
                a,
                b,
                make_task(data),
                split=split,
                eval_split=eval_split,
                also=also_tasks(also),
                options=options.options_written(),
            )
        ),
        output,
        store=store,
        figure=figure,
        dry_run=dry_run,
        parts=lambda study: [*(f"fit at {r:g}" for r in study.plan.config.rates), "evaluation"],
        write=lambda _, result: _write(result, out),
    )


def _write(result: MixingFit, out: Path | None) -> list[Path]:
    """The mixed model as a checkpoint."""
    if out is None:
        return []
    result.checkpoint(out)
    return [out]
