"""`landform cartography`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    check_figure_place,
    check_unread,
    emit,
    keep_result,
    open_study,
    print_table,
    save_csv,
    save_figure,
    say_next,
    task_or_none,
)
from landform.cli.texts import print_texts
from landform.errors import ConfigError
from landform.evaluation.cartography import DataMap, DataMapConfig, data_map
from landform.evaluation.map_subsets import CartographyConfig, choose_subset, export_subset
from landform.store.atomic import check_place
from landform.store.study import slug
from landform.tasks.task import TaskConfig

__all__ = ["cartography"]


def cartography(
    run: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    k: int = 3,
    out: Path | None = None,
    csv: Path | None = None,
    store: Path | None = None,
    figure: Path | None = None,
    options: Annotated[CartographyConfig, OptionFlags] = CartographyConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Read a run's data map: easy, ambiguous, hard and forgotten training rows.

    Example: landform cartography runs/seed0 --task sst2 --store study

    Parameters
    ----------
    run
        A run that was trained with --cartography, or its cartography.parquet.
    split
        The split that the model was trained on.
    k
        How many of the most ambiguous, hardest and most forgotten rows to print, where the task
        is given.
    out
        Write the rows of --choose to this file, for 'landform train --row-file'.
    csv
        Write the numbers of every row to this file.
    store
        Study directory: the map is kept there for landform report.
    figure
        Write the data map as a figure (.png, .pdf or .svg).
    """
    _check(options, out, csv, k)
    check_figure_place(figure)
    task = task_or_none(data)
    if task is None:
        check_unread({"split": split != "train"}, "without a task", "name the task: --task NAME")
    result = data_map(run, task, split=split, **options.options_of(DataMapConfig))
    chosen = None if out is None else export_subset(result, options, out)
    kept = None if store is None else open_study(store)
    place = Path(run).parent if Path(run).is_file() else Path(run)
    title = slug("cartography", place.name or "run", *(() if task is None else (task.name, split)))
    wrote = keep_result(result, kept, store, title)
    wrote += [] if out is None else [out]
    wrote += save_csv(result.table, csv)
    wrote += save_figure(result, figure)
    if output.json_:
        emit({**result.to_json(), "subset": chosen}, output, wrote)
        return
    _say(result, k)
    if chosen is not None:
        _say_subset(chosen)
    emit({}, output, wrote)
    say_next(store, output)


def _check(options: CartographyConfig, out: Path | None, csv: Path | None, k: int) -> None:
    if k < 0:
        raise ConfigError(f"option k is {k}, expected 0 or more")
    if (options.choose is None) != (out is None):
        raise ConfigError(
            "option out needs choose: which rows?"
            if options.choose is None
            else f"option choose {options.choose} needs a file to be written to",
            remedy="give both: --choose hard --size 1000 --out rows.txt",
        )
    for place in (out, csv):
        if place is not None:
            check_place(place)


def _say(result: DataMap, k: int) -> None:
    print(result.reading)
    print(f"confidence: {result.measure}")
    print()
    table = result.regions.assign(region=result.regions["region"] + ": " + result.regions["rule"])
    print_table(table.drop(columns="rule"))
    print()
    print_table(result.by_epoch)
    if result.by_label is not None:
        print()
        print_table(result.by_label)
    if k and "text" in result.table:
        print()
        _say_rows(result, k)


def _say_rows(result: DataMap, k: int) -> None:
    k = min(k, len(result.table))
    by_id = result.table.set_index("text_id", drop=False)
    titles = {"ambiguous": "most ambiguous", "hard": "hardest"}
    sections = [
        (title, by_id.loc[list(choose_subset(result.table, name, size=k))].to_dict("records"))
        for name, title in titles.items()
    ]
    sections.append(("most often forgotten", result.forgotten.head(k).to_dict("records")))
    columns = ["confidence", "variability", "correctness", "forgetting", "text_id", "label"]
    print_texts([(title, [*map(_shown, rows)]) for title, rows in sections], columns)


def _shown(record: Mapping[Any, Any]) -> dict[Any, Any]:
    numbers = {n: f"{record[n]:.3f}" for n in ("confidence", "variability", "correctness")}
    return {**record, **numbers}


def _say_subset(chosen: dict[str, Any]) -> None:
    low, high = chosen["confidence"]
    told = f"{chosen['rows']:,} rows, confidence {low:.3f} to {high:.3f}"
    parts = [f"{name} {count:,}" for name, count in chosen.get("labels", {}).items()]
    print(f"\nsubset {chosen['subset']}: {told}" + (f"; {', '.join(parts)}" if parts else ""))
