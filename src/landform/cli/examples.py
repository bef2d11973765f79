"""`landform examples`."""

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
from landform.studies.example_table import ExampleTable, ExampleTableConfig, ExampleTableStudy
from landform.tasks.task import TaskConfig, loss_unit

__all__ = ["examples"]


def examples(
    a: str,
    b: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    cartography: Path | None = None,
    show: int = 10,
    store: Path | None = None,
    csv: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[ExampleTableConfig, OptionFlags] = ExampleTableConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """One table of training examples: training dynamics, self-influence, losses along the path.

    Example: landform examples runs/seed0 runs/seed1 --task sst2 --store study --csv examples.csv

    Parameters
    ----------
    a
        The checkpoint at t = 0; self-influence is that of this one.
    b
        The checkpoint at t = 1.
    split
        The split whose examples are listed.
    cartography
        A run that was trained with --cartography, or its cartography.parquet (default: A, where it
        has one).
    show
        How many of the examples that rise most to print.
    store
        Study directory: line, factors and scores are kept there and reused, and the result.
    csv
        Write the whole table to this file.
    figure
        Write the correlations of all columns as a figure (.png, .pdf or .svg).
    dry_run
        Say what it would take; keep nothing.
    """
    run_study(
        lambda: ExampleTableStudy.of(
            a, b, make_task(data), split=split, dynamics=cartography, **dict(options)
        ),
        output,
        store=store,
        figure=figure,
        csv=csv,
        dry_run=dry_run,
        parts=lambda _: ["line", "factors"],
        say=lambda result: _say(result, show),
    )


def _say(result: ExampleTable, show: int) -> None:
    """The correlations with the rise and with self-influence, and the rows that rise most."""
    unit = loss_unit(result.kind)
    top = result.table.sort_values("rise", ascending=False, kind="stable").head(max(show, 0))
    numbers = [n for n in ("rise", "self_influence", "confidence", "variability", "forgetting")
               if n in top]  # fmt: skip
    records: list[dict[Any, Any]] = [
        {**row, **{name.replace("_", "-"): f"{row[name]:.3g}" for name in numbers}}
        for row in top.to_dict("records")
    ]
    if records:
        columns = (*(name.replace("_", "-") for name in numbers), "label")
        print_texts([(f"largest rise ({unit}) at t = {result.t:.3g}", records)], columns)
        print()
    table = result.correlations
    asked = table[table[["x", "y"]].isin(["rise", "self_influence"]).any(axis=1)]
    print("rank correlations with the rise and with self-influence")
    print_table(asked.rename(columns={"given_loss_a": "given loss at a"}))
    print()
