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
    emit,
    make_task,
    open_existing,
    open_study,
    say_forecasts,
)
from landform.cli.texts import coverage_line, print_texts, print_timings
from landform.errors import ConfigError
from landform.store.atomic import atomic_path, check_place
from landform.studies.attribute import SuspectsConfig, SuspectsStudy
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
    if k < 1:
        raise ConfigError(f"option k is {k}, expected 1 or more")
    if csv is not None:
        check_place(csv)
    study = SuspectsStudy.of(checkpoint, make_task(data), split=split, known=known, **dict(options))
    if dry_run:
        say_forecasts(["factors", "self-influence"], study.forecast(open_existing(store)), output)
        return
    done = study.run(None if store is None else open_study(store), progress=not output.quiet)
    wrote = [] if store is None else [Path(store) / "results" / name for name in done.names]
    if csv is not None:
        with atomic_path(csv) as place:
            done.ranking.table.to_csv(place, index=False)
        wrote.append(csv)
    if output.json_:
        emit({"factors": done.factors.to_json(), **done.ranking.to_json()}, output, wrote)
        return
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
    emit({}, output, wrote)
    if store is not None:
        print(f"next: landform report {store}")


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
