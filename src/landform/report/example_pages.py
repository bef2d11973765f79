"""The atlas pages of training examples: their table, and which of them raise a ridge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from landform.report import example_figures as figures
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
from landform.report.style import loss_unit_of, percent

__all__ = ["EXAMPLE_KINDS"]

LISTED = 200  # rows of a table that can be sorted
SIDE = 25  # rows of either side of a barrier
LETTERS = 300  # of a text


TITLES: Mapping[str, str] = {
    "text_id": "text id",
    "text_pair": "second text",
    "given_loss_a": "given loss at a",
    **{name: words for name, words in figures.WORDS.items()},
}


# --- the table of examples -------------------------------------------------------------------


def _examples(result: Any, anchor: str, few: bool) -> Row:
    unit = loss_unit_of(result)
    table = result.table.sort_values("rise", ascending=False, kind="stable")
    texts = [n for n in ("text_id", "text", "text_pair", "label") if n in table]
    order = [*texts, "rise", *(n for n in result.columns if n != "rise")]
    facts = [
        fact("from", result.a, "a, t = 0"),
        fact("to", result.b, "b, t = 1"),
        fact("examples", f"{len(table):,}", result.data),
        fact("rise at", as_text(result.t, 3), f"t; the mean rise is {_mean_rise(result)} {unit}"),
    ]
    if result.dynamics:
        facts.append(fact("training dynamics of", result.dynamics))
    if "forgotten" in table:
        share = percent(float(table["forgotten"].mean()))
        facts.append(fact("forgotten on the path", share, "right at a point, wrong at the next"))
    return {
        "facts": facts,
        "matrix": picture(
            figures.plot_examples_matrix,
            result,
            alt="Rank correlations of all columns as a coloured matrix",
        ),
        "columns": picture(
            figures.plot_examples,
            result,
            alt="Rise on the path against self-influence, training dynamics and losses",
            caption="Dots are examples, both axes by rank.",
        ),
        "table": data_table(
            with_texts(table[order].head(LISTED), LETTERS),
            "examples",
            titles=TITLES,
            caption=f"The {min(LISTED, len(table)):,} of {len(table):,} examples that rise most.",
            prose=TEXTS,
        ),
        "correlations": data_table(result.correlations, "rank correlations", titles=TITLES),
    }


def _mean_rise(result: Any) -> str:
    return as_text(float(result.table["rise"].mean()), 3)


# --- influence on a barrier ----------------------------------------------------------------------


def _barrier(result: Any, anchor: str, few: bool) -> Row:
    unit = loss_unit_of(result)
    wanted = ("text_id", "text", "text_pair", "label", "change", "top", "chord", "via_a", "via_b")
    table = result.table[[name for name in wanted if name in result.table]]
    facts = [
        fact("from", result.a, "a, t = 0"),
        fact("to", result.b, "b, t = 1"),
        fact(
            "barrier",
            with_interval(result.barrier, result.low, result.high),
            f"{unit} at t = {as_text(result.t, 3)}, on {result.data}",
        ),
        fact("training rows", f"{len(table):,}", result.train),
        fact("curvature", result.strategy, f"{result.labels} labels, damping {result.damping}"),
        fact(
            "gradient that is seen",
            f"{percent(result.share_a)} (a), {percent(result.share_b)} (b)",
            "of the rise's squared gradient, in the layers of the factors",
        ),
        fact("checked by retraining", "no" if result.check is None else "yes"),
    ]
    titles = {
        "text_id": "text id",
        "text_pair": "second text",
        "change": f"change ({unit})",
        "top": "of the loss at t",
        "chord": "of the chord",
        "via_a": "through a",
        "via_b": "through b",
    }

    def side(part: pd.DataFrame, label: str) -> Row:
        return data_table(with_texts(part, LETTERS), label, titles=titles, prose=TEXTS)

    return {
        "facts": facts,
        "figure": picture(
            figures.plot_barrier,
            result,
            alt="Predicted change of the barrier for every row, and what removing rows did",
            caption="Left: to first order. Diamonds: means over pairs, with their intervals."
            if result.check is not None
            else "To first order; not checked by retraining.",
        ),
        "summary": None
        if result.summary is None
        else data_table(
            result.summary,
            "removals",
            caption=f"Change of the barrier ({unit}) after removing rows and training again.",
        ),
        "raising": side(table.head(SIDE), "rows that raise the ridge"),
        "lowering": side(table.tail(SIDE)[::-1], "rows that lower the ridge"),
    }


EXAMPLE_KINDS: dict[str, Kind] = {
    "ExampleTable": Kind(
        "Training examples",
        "examples.html.j2",
        _examples,
        lambda r: f"{r.data} between {r.a} and {r.b}",
        guide="example_reading.html.j2",
    ),
    "BarrierInfluence": Kind(
        "Influence on a barrier",
        "barrier.html.j2",
        _barrier,
        lambda r: f"{r.a} to {r.b} on {r.data}",
        guide="example_reading.html.j2",
    ),
}
"""How tables of examples and influence on barriers are shown."""
