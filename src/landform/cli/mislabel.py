"""`landform mislabel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from cyclopts import Parameter

from landform.attribution.mislabel import Mislabel
from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    check_k,
    make_task,
    run_study,
)
from landform.cli.texts import coverage_line, print_texts, print_timings
from landform.studies.attribute import Suspects, SuspectsConfig, SuspectsStudy
from landform.tasks.task import TaskConfig

__all__ = ["mislabel"]

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Of the rows, at which the recall is printed."""


def mislabel(
    checkpoint: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    known: Path | None = None,
    k: int = 20,
    store: Path | None = None,
    csv: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[SuspectsConfig, OptionFlags] = SuspectsConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Rank training rows by self-influence: outliers and wrong labels come first.

    Example: landform mislabel runs/seed0 --task sst2 --rows 2000 --store study

    Parameters
    ----------
    checkpoint
        A directory, a step of a run (runs/seed0@300), or a hub model.
    split
        The split that the model was trained on.
    known
        Text file with the id of one row a line whose label is known to be wrong: how well the
        ranking finds them is measured.
    k
        How many rows to print.
    store
        Study directory: factors are kept there and reused, and the results for landform report.
    csv
        Write the whole ranking to this file.
    dry_run
        Say what it would take, with time and memory; keep nothing.
    """
    check_k(k)
    run_study(
        lambda: SuspectsStudy.of(
            checkpoint, make_task(data), split=split, known=known, **dict(options)
        ),
        output,
        store=store,
        csv=csv,
        dry_run=dry_run,
        parts=lambda _: ["factors", "self-influence"],
        json_of=lambda done: {"factors": done.factors.to_json(), **done.ranking.to_json()},
        table=lambda done: done.ranking.table,
        say=lambda done: _say(done, k),
    )


def _say(done: Suspects, k: int) -> None:
    print(done.factors.reading)
    print(coverage_line(done.factors))
    print(done.ranking.reading)
    print(done.source.explanation)
    print()
    _say_rows(done.ranking.table.head(k))
    if done.ranking.curve is not None:
        print()
        _say_recall(done.ranking)
    print()
    print_timings(done.source.timings)


def _say_rows(table: pd.DataFrame) -> None:
    records = [_shown(record) for record in table.to_dict("records")]
    columns = ["rank", "score", "text_id", "label", "prediction", "known"]
    if "prediction" not in table:
        columns.remove("prediction")
    print_texts([("most suspicious", records)], columns)


def _shown(record: Mapping[Any, Any]) -> dict[Any, Any]:
    shown = {**record, "score": f"{record['score']:.4g}"}
    if "known" in record:
        shown["known"] = "wrong" if record["known"] else ""
    return shown


def _say_recall(ranking: Mislabel) -> None:
    """The recall curve at a few shares, with its interval and the band of a random order."""
    curve = ranking.curve
    assert curve is not None
    print("inspected   found   interval            a random order")
    for share in SHARES:
        # The point of the curve at this share, or the next one after it.
        point = curve[curve["inspected"] >= share - 1e-12].iloc[0]
        print(
            f"{point['inspected']:8.1%}  {point['recall']:6.1%}   "
            f"{point['low']:6.1%} to {point['high']:6.1%}    "
            f"{point['random']:.1%} ({point['random_low']:.1%} to {point['random_high']:.1%})"
        )
