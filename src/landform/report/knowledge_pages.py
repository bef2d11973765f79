"""The atlas pages of what is known along a path: who is forgotten, where, and their texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from landform.report import knowledge_figures as figures
from landform.report.parts import (
    TEXTS,
    Kind,
    Row,
    as_text,
    data_table,
    fact,
    picture,
    with_interval,
    with_texts,
)
from landform.report.style import metric_label, percent, short_labels

__all__ = ["KNOWLEDGE_KINDS"]

ROWS = 60
LETTERS = 400
SIGNS = str.maketrans("+-~", "\N{BLACK CIRCLE}\N{WHITE CIRCLE}\N{CIRCLE WITH LEFT HALF BLACK}")
TITLES = {
    "low": "mean low", "high": "mean high", "base": "all examples",
    "difference": "difference from all", "control": "could have changed",
    "control_low": "random low", "control_high": "random high", "p_value": "p",
    "p_holm": "p (Holm)", "n": "examples",
}  # fmt: skip


def _knowledge(result: Any, anchor: str, few: bool) -> Row:
    return {
        "facts": _facts(result),
        "figure": picture(
            figures.plot_knowledge,
            result,
            alt="Mean score along the path, and the numbers of relearned and forgotten examples",
        ),
        "matrix": picture(
            figures.plot_score_matrix,
            result,
            alt="Scores of all examples that are not right at every point, grouped by their course",
            caption="A column is an example, from the first checkpoint (bottom) to the second"
            " (top): light is right, dark is wrong.",
        ),
        "forgotten": picture(
            figures.plot_forgotten,
            result,
            alt="What training said of the examples that change, against all and random examples",
            caption="Means over the examples that change on the way to each point. A mean outside"
            " its pale bar is more than chance among the examples that could have changed; that it"
            " is off the grey line only says that those are not like all.",
        ),
        "points": data_table(_points(result), "points of the path"),
        "comparison": _comparison(result),
        "texts": _texts(result),
    }


def _facts(result: Any) -> list[Row]:
    along = result.along
    facts: list[Row] = [
        fact("from", result.a),
        fact("to", result.b),
        fact(
            "examples",
            f"{len(result.table):,}",
            f"of {result.data}, at {len(result.ts)} points of the {result.path}",
        ),
    ]
    if along["score"].notna().all():
        row = along.iloc[int(along["score"].argmin())]
        value = with_interval(row["score"], row["score_low"], row["score_high"])
        where = f"at {as_text(float(row['t']), 3)}"
        facts.append(fact(f"lowest {metric_label(result.metric)}", value, where))
    for row in result.between.to_dict("records"):
        if row["of"]:
            ends = "right at both ends" if row["change"] == "forgotten" else "wrong at both ends"
            what = "not right" if row["change"] == "forgotten" else "right"
            share = f"{percent(row['low'])} to {percent(row['high'])} of {row['of']:,} {ends}"
            facts.append(fact(f"{what} somewhere between", f"{int(row['examples']):,}", share))
    return facts


def _points(result: Any) -> pd.DataFrame:
    along: pd.DataFrame = result.along
    graded = bool((along["zero"] + along["one"] < len(result.table)).any())
    lists = ["zero", "one", "up", "down", "up_to_one", "down_to_zero"] if graded else ["zero"]
    columns = ["t", "score", *lists, "forgotten", "relearned"]
    return along[columns].rename(columns={"zero": "at score 0"})


def _comparison(result: Any) -> Row | None:
    table = result.comparison
    if table is None:
        return None
    rows = table[table["n"] > 0].copy()
    steps = [
        "all steps" if s < 0 else f"start to {as_text(t, 3)}" if s == 0 else f"to {as_text(t, 3)}"
        for s, t in zip(rows["step"], rows["to_t"], strict=True)
    ]
    rows.insert(0, "on the way", steps)
    kept = ["on the way", "change", "statistic", "n", "mean", "low", "high", "base", "difference",
            "difference_low", "difference_high", "control", "control_low", "control_high",
            "p_value", "p_holm"]  # fmt: skip
    return data_table(
        rows[kept],
        "the examples that change against all examples and against random ones",
        titles=TITLES,
        caption="Random sets have as many examples, drawn from those that could have changed"
        " there. p is two-sided, corrected (Holm) over all steps together and apart from that over"
        " the single steps. Press a heading to sort.",
        mark=lambda row: "confound" if row["on the way"] == "all steps" else "",
    )


def _texts(result: Any) -> Row | None:
    table = result.changing
    if "text" not in table or not len(table):
        return None
    known = ("correctness", "confidence", "variability", "turns")
    wanted = ["course", "text", "text_pair", "label", *known, "text_id"]
    frame = with_texts(table.head(ROWS)[[name for name in wanted if name in table]], LETTERS)
    if "course" in frame:
        frame["course"] = [str(signs).translate(SIGNS) for signs in frame["course"]]
    both = int(np.count_nonzero(table["both"]))
    caption = (
        f"Newly forgotten somewhere on the way, {len(table):,} in all: first those that are right"
        f" at both ends ({both:,}). The course has a sign per point: filled right, empty wrong."
    )
    if len(table) > ROWS:
        caption += f" The first {ROWS}."
    return data_table(
        frame,
        "newly forgotten examples",
        titles={"text_id": "text id", "text_pair": "second text"},
        caption=caption,
        prose=TEXTS,
    )


def _name(result: Any) -> str:
    ends = " to ".join(short_labels([result.a, result.b], 40))
    return f"{ends} on {result.data}"


KNOWLEDGE_KINDS: dict[str, Kind] = {
    "Knowledge": Kind(
        "Knowledge along a path",
        "knowledge.html.j2",
        _knowledge,
        _name,
        guide="knowledge_reading.html.j2",
    ),
}
"""How knowledge along a path is shown."""
