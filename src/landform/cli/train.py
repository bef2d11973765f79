"""`landform train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    emit,
    emit_forecast,
    make_task,
)
from landform.tasks.task import TaskConfig
from landform.training.finetune import TrainStudy
from landform.training.options import TrainConfig

__all__ = ["train"]


class _TrainingData(TaskConfig):
    """Data whose percentage is the option of training: `percent` of `TrainConfig`."""

    percent: Annotated[float | None, Parameter(parse=False)] = None
    """No flag of this command: --percent is that of training."""
    percent_of: Annotated[tuple[str, ...] | None, Parameter(parse=False)] = None
    """No flag of this command."""


def train(
    model: str,
    /,
    *,
    out: Path,
    data: Annotated[_TrainingData, DataFlags] = _TrainingData(),
    split: str = "train",
    eval_split: str | None = "validation",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[TrainConfig, OptionFlags] = TrainConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Fine-tune a model once for every seed.

    Example: landform train microsoft/MiniLM-L12-H384-uncased --task sst2 --seeds 0 1 2 --out runs

    Parameters
    ----------
    model
        The pre-trained model: a directory or a hub name.
    out
        Directory of the runs: OUT/seed0, OUT/seed1, ...
    split
        The split to train on.
    eval_split
        The split to evaluate on at the end ('none' for no evaluation).
    dry_run
        Say what would be trained; train nothing.
    """
    study = TrainStudy.of(
        model,
        make_task(data),
        out=out,
        split=split,
        eval_split=None if eval_split in (None, "none", "None") else eval_split,
        **dict(options),
    )
    if dry_run:
        emit_forecast(study.forecast(), output)
        return
    result = study.run(progress=not output.quiet)
    emit(result, output, [Path(path) for path in result.paths])
