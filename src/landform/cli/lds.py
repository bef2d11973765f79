"""`landform lds`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.attribution.lds import LinearDatamodelling
from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    make_task,
    one_query_set,
    print_table,
    run_study,
)
from landform.cli.texts import print_timings
from landform.studies.lds import LdsConfig, LdsStudy
from landform.tasks.task import TaskConfig

__all__ = ["lds"]


def lds(
    model: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    queries: str = "validation",
    scored: str | None = None,
    store: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[LdsConfig, OptionFlags] = LdsConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Do influence scores predict what training on half of the rows gives?

    Example: landform lds org/pre-trained --task sst2 --rows 1000 --query-rows 100 \
    --train.max-steps 100 --store study

    Parameters
    ----------
    model
        The pre-trained model that every training starts from: a directory or a hub name.
    split
        The split to train on.
    queries
        What is asked about: a split of the task, or NAME:SPLIT, FILE.yaml, FILE.yaml:SPLIT.
    scored
        The fine-tuned model whose gradients make the scores (default: one trained on all rows for
        each of BASE_SEEDS).
    store
        Study directory: finished trainings, factors and scores are kept there and reused.
    figure
        Write the scores of the methods as a figure (.png, .pdf or .svg).
    dry_run
        Say what would be trained, with time and memory; keep nothing.
    """

    def study() -> LdsStudy:
        return LdsStudy.of(
            model,
            make_task(data),
            split=split,
            queries=one_query_set(queries),
            scored=scored,
            **dict(options),
        )

    run_study(study, output, store=store, figure=figure, dry_run=dry_run, say=_say)


def _say(result: LinearDatamodelling) -> None:
    print_table(result.table)
    if len(result.differences):
        print()
        print_table(result.differences)
    print()
    print_timings(result.timings)
    print()
