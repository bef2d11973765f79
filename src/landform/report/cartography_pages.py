"""The atlas page of a data map: every dot with its text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from landform.report import cartography_figures as figures
from landform.report.parts import (
    TEXTS,
    Kind,
    Row,
    data_table,
    fact,
    packed,
    picture,
    texts_of,
    with_interval,
    with_texts,
)
from landform.report.style import is_known

__all__ = ["CARTOGRAPHY_KINDS"]

DOTS = 4000  # examples on the interactive map
EXTREMES = 60  # of each sort that are on it in any case
LETTERS = 400  # of a text; a longer one is cut
EMBEDDED = 1_500_000  # characters of texts behind the map
LISTED = 25  # rows of each table


def _data_map(result: Any, anchor: str, few: bool) -> Row:
    rows = _shown(result.table)
    encoding, payload = packed(_payload(result, rows))
    return {
        "facts": _facts(result),
        "measure": result.measure,
        "map": picture(
            figures.plot_data_map, result, alt="Mean confidence against variability, coloured by"
            " correctness",
        ),
        "shown": _shown_sentence(result.table, len(rows)),
        "encoding": encoding,
        "payload": payload,
        "regions": data_table(result.regions, "regions of the map"),
        "epochs_figure": picture(
            figures.plot_epochs, result, alt="Confidence, accuracy, learned and forgotten examples"
        ),
        "epochs": data_table(result.by_epoch, "every epoch"),
        "labels": None
        if result.by_label is None
        else data_table(result.by_label, "every label", caption="Forgotten and hard are shares."),
        "lists": _lists(result),
    }  # fmt: skip


def _facts(result: Any) -> list[Row]:
    regions = {row["region"]: row for row in result.regions.to_dict("records")}
    facts = [
        fact("examples", f"{len(result.table):,}", _where(result)),
        fact("epochs", str(len(result.by_epoch))),
    ]
    for name in ("easy", "ambiguous", "hard", "forgotten"):
        row = regions[name]
        ends = f"[{100 * row['low']:.3g}, {100 * row['high']:.3g}]"
        note = f"{row['rule']}; {100 * row['share']:.3g} % {ends}"
        facts.append(fact(name, f"{int(row['examples']):,}", note))
    for name, ends in result.provenance["means"].items():
        facts.append(fact(f"mean {name}", with_interval(*ends)))
    return facts


def _where(result: Any) -> str:
    return f"{result.task}:{result.split}" if result.task else "task not given"


def _shown(table: pd.DataFrame) -> list[int]:
    """Positions of the rows on the interactive map: all, or a random sample and the extremes."""
    count = len(table)
    letters = table["text"].str.len().clip(upper=LETTERS).mean() if "text" in table else 0
    room = int(min(DOTS, EMBEDDED / (letters * (2 if "text_pair" in table else 1) + 60)))
    if count <= room:
        return list(range(count))
    keys = (table["confidence"], -table["variability"], -table["forgetting"])
    extremes = [np.argsort(key.to_numpy(), kind="stable") for key in keys]
    chosen = dict.fromkeys(int(row) for order in extremes for row in order[:EXTREMES])
    for row in np.random.default_rng(0).permutation(count):
        if len(chosen) >= room:
            break
        chosen.setdefault(int(row))
    return sorted(chosen)


def _shown_sentence(table: pd.DataFrame, shown: int) -> str:
    if shown == len(table):
        return ""
    return (
        f"{shown:,} of {len(table):,} examples: a random sample, and the {EXTREMES} hardest, most "
        "ambiguous and most often forgotten ones."
    )


def _payload(result: Any, rows: list[int]) -> Row:
    """Columns of the shown rows, with few digits: the page holds thousands of them."""
    table = result.table.iloc[rows]
    size = len(result.table)
    epochs = len(result.by_epoch)
    course = result.dynamics["confidence"].to_numpy().reshape(epochs, size)[:, rows]
    right = result.dynamics["correct"].to_numpy().reshape(epochs, size)[:, rows]
    labels = sorted(set(table["label"])) if "label" in table else []
    few = labels if 2 <= len(labels) <= 24 else []
    data: Row = {
        "colours": list(figures.CORRECTNESS_COLOURS),
        "epochs": [float(epoch) for epoch in result.by_epoch["epoch"]],
        "x": [round(float(v), 4) for v in table["variability"]],
        "y": [round(float(v), 4) for v in table["confidence"]],
        "correctness": [round(float(v), 4) for v in table["correctness"]],
        "forgetting": [int(v) for v in table["forgetting"]],
        "learned": [float(v) if is_known(v) else None for v in table["learned_at"]],
        "ids": [str(v) for v in table["text_id"]],
        "course": [[round(float(v), 3) for v in column] for column in course.T],
        "right": ["".join("1" if v else "0" for v in column) for column in right.T],
        "labels": few,
        "label": [str(v) for v in table["label"]] if "label" in table else [],
        "texts": [texts_of(record, LETTERS) for record in table.to_dict("records")],
    }
    return data


def _lists(result: Any) -> list[Row]:
    """The extremes as tables: what to read first."""
    table = result.table
    orders = {
        "hardest": table.sort_values("confidence", kind="stable"),
        "most ambiguous": table.sort_values("variability", ascending=False, kind="stable"),
        "most often forgotten": result.forgotten,
    }
    wanted = ("text_id", "text", "text_pair", "label", "confidence", "variability", "correctness",
              "forgetting")  # fmt: skip
    lists = []
    for title, rows in orders.items():
        frame = with_texts(rows.head(LISTED)[[name for name in wanted if name in rows]], LETTERS)
        shown = data_table(
            frame,
            title,
            titles={"text_id": "text id", "text_pair": "second text"},
            prose=TEXTS,
        )
        note = f"{len(frame)} of {len(rows):,}" if title.endswith("forgotten") else f"{len(frame)}"
        lists.append({"title": f"{title} ({note})", "table": shown if len(frame) else None})
    return lists


def _name(result: Any) -> str:
    return f"{result.run}" + (f" on {_where(result)}" if result.task else "")


CARTOGRAPHY_KINDS: dict[str, Kind] = {
    "DataMap": Kind(
        "Data maps",
        "data_map.html.j2",
        _data_map,
        _name,
        guide="cartography_reading.html.j2",
    ),
}
"""How data maps are shown."""
