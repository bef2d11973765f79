"""`landform barrier`."""

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
    one_query_set,
    print_table,
    run_study,
)
from landform.cli.texts import print_texts
from landform.studies.barrier_influence import (
    BarrierInfluence,
    BarrierInfluenceConfig,
    BarrierStudy,
)
from landform.tasks.task import TaskConfig, loss_unit

__all__ = ["barrier"]


def barrier(
    a: str,
    b: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    train: str = "train",
    split: str = "validation",
    show: int = 5,
    store: Path | None = None,
    csv: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[BarrierInfluenceConfig, OptionFlags] = BarrierInfluenceConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Which training examples raise the ridge between two checkpoints?

    Example: landform barrier runs/seed0 runs/seed1 --task sst2 --rows 2000 --store study

    Parameters
    ----------
    a
        The checkpoint at t = 0.
    b
        The checkpoint at t = 1.
    train
        The split that both were trained on.
    split
        What the barrier is measured on: a split, or NAME:SPLIT, FILE.yaml, FILE.yaml:SPLIT.
    show
        How many rows to print on either side.
    store
        Study directory: line, factors, scores and retrained models are kept there and reused.
    csv
        Write the whole table of rows to this file.
    figure
        Write the figure (.png, .pdf or .svg).
    dry_run
        Say what it would take; keep nothing.
    """
    run_study(
        lambda: BarrierStudy.of(
            a, b, make_task(data), train=train, split=one_query_set(split), **dict(options)
        ),
        output,
        store=store,
        figure=figure,
        csv=csv,
        dry_run=dry_run,
        parts=lambda _: ["line", "factors of a", "factors of b", "check"],
        say=lambda result: _say(result, show),
    )


def _say(result: BarrierInfluence, show: int) -> None:
    """The rows on both sides, what the layers see, and what the check found."""
    unit = loss_unit(result.kind)
    count = max(show, 0)
    ends = (
        ("the ridge is lower without", result.table.head(count)),
        ("the ridge is higher without", result.table.tail(count)[::-1]),
    )
    sides: list[tuple[str, list[dict[Any, Any]]]] = []
    for title, table in ends:
        records = [
            {**row, "change": f"{row['change']:+.3g}", "via a": f"{row['via_a']:+.3g}",
             "via b": f"{row['via_b']:+.3g}"}
            for row in table.to_dict("records")
        ]  # fmt: skip
        sides.append((f"{title} ({unit}, to first order)", records))
    if count:
        print_texts(sides, ("change", "via a", "via b", "row", "label"))
        print()
    print(
        f"the layers that are seen hold {result.share_a:.0%} (a) and {result.share_b:.0%} (b) of "
        "the squared gradient of the rise"
    )
    if result.summary is not None:
        print()
        print("change of the barrier after removing rows and training again")
        print_table(result.summary)
    print()
