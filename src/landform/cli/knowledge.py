"""`landform knowledge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    make_task,
    print_table,
    run_study,
)
from landform.cli.texts import print_texts
from landform.geometry.forgetting import POOLED, STATISTICS
from landform.geometry.knowledge import Knowledge, KnowledgeConfig
from landform.studies.kept import KnowledgeStudy
from landform.tasks.task import TaskConfig

__all__ = ["knowledge"]


def knowledge(
    a: str,
    b: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    cartography: Path | None = None,
    path: Path | None = None,
    show: int = 10,
    store: Path | None = None,
    csv: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[KnowledgeConfig, OptionFlags] = KnowledgeConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Which examples are forgotten and relearned on the way from one checkpoint to another?

    Example: landform knowledge runs/seed0 runs/seed1 --task sst2 --cartography runs/seed0

    Parameters
    ----------
    a
        The checkpoint at t = 0.
    b
        The checkpoint at t = 1.
    split
        The split whose examples are followed; where a task has no train and one split only, that.
    cartography
        A run that was trained with --cartography, or its cartography.parquet: what changes is
        compared with all examples and with random ones.
    path
        Follow this curve in place of the line: a directory of landform curve --out.
    show
        How many forgotten examples to print.
    store
        Study directory: what `interpolate` kept there of the line is reused.
    csv
        Write the scores of every example at every point to this file.
    figure
        Write the figure (.png, .pdf or .svg).
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    run_study(
        lambda: KnowledgeStudy.of(
            a,
            b,
            make_task(data),
            split=split,
            cartography=cartography,
            path=path,
            options=options,
        ),
        output,
        store=store,
        figure=figure,
        csv=csv,
        dry_run=dry_run,
        say=lambda result: _say(result, show),
    )


def _say(result: Knowledge, show: int) -> None:
    """Every point, what is known of the forgotten, and some of their texts."""
    along = result.along.rename(columns={"score": result.metric})
    # Of scores that are 0 or 1 the lists up and down say the same as the last two columns.
    graded = (along.zero + along.one < len(result.table)).any()
    lists = ["zero", "one", "up", "down"] if graded else ["zero"]
    print_table(along[["t", result.metric, *lists, "forgotten", "relearned"]])
    print()
    if result.comparison is not None:
        _say_comparison(result)
    changing = result.changing
    records: list[dict[Any, Any]] = []
    for row in changing.head(max(show, 0)).to_dict("records"):
        known = {name: f"{row[name]:.2g}" for name in STATISTICS[:2] if name in row}
        records.append({**row, **known, "label": str(row.get("label", ""))})
    if records and "text" in changing:
        title = f"newly forgotten ({len(changing)} in all; + right, - wrong, point by point)"
        print_texts([(title, records)], ("course", "label", *STATISTICS[:2]))
        print()


def _say_comparison(result: Knowledge) -> None:
    """All steps together: what changes, as many random ones that could have, all examples."""
    assert result.comparison is not None
    rows = result.comparison[result.comparison.step == POOLED]
    names = {"change": "change", "n": "n", "statistic": "statistic", "mean": "mean", "low": "low"}
    names |= {"high": "high", "control": "could have", "control_low": "random low"}
    names |= {"control_high": "random high", "base": "all", "p_holm": "p (Holm)"}
    print_table(rows[list(names)].rename(columns=names))
    print()
