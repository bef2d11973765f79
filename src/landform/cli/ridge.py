"""`landform ridge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from landform.cli.texts import print_texts
from landform.geometry.ridge import Ridge, RidgeConfig
from landform.studies.kept import RidgeStudy
from landform.tasks.task import TaskConfig, loss_unit

__all__ = ["ridge"]


def ridge(
    a: str,
    b: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    also: tuple[str, ...] = (),
    of: str | None = None,
    show: int = 10,
    store: Path | None = None,
    csv: Path | None = None,
    figure: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[RidgeConfig, OptionFlags] = RidgeConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Which examples rise between two checkpoints, and by how much.

    Example: landform ridge runs/seed0 runs/seed1 --task sst2 --store study

    Parameters
    ----------
    a
        The checkpoint at t = 0.
    b
        The checkpoint at t = 1.
    split
        The split whose mean loss names the ridge.
    also
        Further data sets for every mixed model: NAME, NAME:SPLIT, FILE.yaml or FILE.yaml:SPLIT.
    of
        List the examples of this one of the data sets (default: the first).
    show
        How many examples to print.
    store
        Study directory: what `interpolate` kept there of the line is reused.
    csv
        Write the whole table of examples to this file.
    figure
        Write the figure (.png, .pdf or .svg).
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    run_study(
        lambda: RidgeStudy.of(
            a, b, make_task(data), split=split, also=also_tasks(also), **dict(options)
        ).about(of),
        output,
        store=store,
        figure=figure,
        csv=csv,
        dry_run=dry_run,
        say=lambda result: _say(result, show),
    )


def _say(result: Ridge, show: int) -> None:
    """The examples that rise most, and what the top ones carry together."""
    unit = loss_unit(result.kind)
    records: list[dict[Any, Any]] = []
    for row in result.table.head(max(show, 0)).to_dict("records"):
        found = {"rise": f"{row['rise']:+.3g}"}
        found |= {"ridge": f"{row['loss']:.3g}", "left": f"{row['loss_a']:.3g}"}
        found |= {"right": f"{row['loss_b']:.3g}", "label": str(row.get("label", ""))}
        if "prediction" in row:
            found["at left"] = str(row["prediction_a"])
            found["at ridge"] = str(row["prediction"])
            found["at right"] = str(row["prediction_b"])
        records.append({**row, **found})
    columns = ("rise", "left", "ridge", "right", "label", "at left", "at ridge", "at right")
    if records:
        print_texts([(f"losses in {unit}, largest rise first", records)], columns)
        print()
    for share in result.shares.to_dict("records"):
        print(
            f"the top {100 * share['top']:g} % ({share['examples']}) carry "
            f"{100 * share['share_of_rise']:.3g} % of all rises "
            f"[{100 * share['low']:.3g}, {100 * share['high']:.3g}]"
        )
    print()
