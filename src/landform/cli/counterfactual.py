"""`landform counterfactual`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
from cyclopts import Parameter

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
from landform.studies.counterfactual import (
    Counterfactual,
    CounterfactualConfig,
    CounterfactualStudy,
)
from landform.tasks.task import TaskConfig

__all__ = ["counterfactual"]


def counterfactual(
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
    options: Annotated[CounterfactualConfig, OptionFlags] = CounterfactualConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Which predictions flip without the training rows that are said to help them most?

    Example: landform counterfactual org/pre-trained --task sst2 --rows 1000 --sizes 20 40 80 \
    --train.max-steps 100 --store study

    Parameters
    ----------
    model
        The pre-trained model that every training starts from: a directory or a hub name.
    split
        The split to train on.
    queries
        Where targets are sought: a split of the task, or NAME:SPLIT, FILE.yaml, FILE.yaml:SPLIT.
    scored
        The fine-tuned model whose gradients make the scores (default: one trained on all rows with
        the first of BASE_SEEDS).
    store
        Study directory: finished trainings, factors and scores are kept there and reused.
    figure
        Write the curve as a figure (.png, .pdf or .svg).
    dry_run
        Say what would be trained, with time and memory; keep nothing.
    """

    def study() -> CounterfactualStudy:
        return CounterfactualStudy.of(
            model,
            make_task(data),
            split=split,
            queries=one_query_set(queries),
            scored=scored,
            **dict(options),
        )

    run_study(study, output, store=store, figure=figure, dry_run=dry_run, say=_say)


def _say(result: Counterfactual) -> None:
    print(f"{result.targets} targets among {result.queries} queries; the share of them that flips")
    curve = result.curve
    table = curve[["method", "size"]].assign(
        **{
            "at this size": _shares(curve, ""),
            "at it or a smaller one": _shares(curve, "_carried"),
        }
    )
    print_table(table)
    if result.comparison is not None:
        print()
        print("against random rows of the target's label, on the same targets")
        names = {"only_method": "only it", "only_random": "only random", "p_value": "p"}
        print_table(result.comparison.rename(columns=names))
    print()


def _shares(curve: pd.DataFrame, end: str) -> list[str]:
    """Shares with their intervals, for people; what was not trained is a dash."""
    return [
        "-"
        if pd.isna(row[f"share{end}"])
        else f"{row[f'share{end}']:.0%} [{row[f'low{end}']:.0%}, {row[f'high{end}']:.0%}]"
        for row in curve.to_dict("records")
    ]
