"""The figure and the atlas page of dropout schedules: scores in order, and what they became."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from landform.report.parts import Kind, Row, as_text, data_table, picture
from landform.report.style import (
    COLUMN,
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    Figure,
    new_figure,
    plain,
    shorten,
    styled,
)
from landform.training.schedules import PRESETS

if TYPE_CHECKING:
    from landform.training.schedules import DropoutSchedule

__all__ = ["DROPOUT_FIGURES", "DROPOUT_KINDS", "plot_dropout"]

WORDS = {
    "embeddings": "embeddings",
    "attention.self": "attention",
    "attention.output": "attention output",
    "output": "feed-forward output",
}


@styled
def plot_dropout(result: DropoutSchedule) -> Figure:
    """Sub-layers in the order of their Fisher scores (left axis, with two standard errors), and the
    dropout probability of each (right axis)."""
    table = result.table.sort_values("rank", kind="stable").reset_index(drop=True)
    types = list(dict.fromkeys(result.table["type"]))
    figure = new_figure(COLUMN * 1.35, 2.9 + 0.11 * ((len(types) + 1) // 2))
    axes = figure.subplots()
    _draw_scores(axes, table, types)
    if result.source in PRESETS:
        axes.set_ylabel("rank of the Fisher score, as published")
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.plot(table.index, table.p, color=INK, linewidth=1.0, drawstyle="steps-mid", zorder=3)
    top = max(float(table.p.max()), 0.01)
    right.set_ylim(-0.02 * top, 1.06 * top)
    right.set_ylabel("dropout probability (line)")
    axes.set_xlabel("sub-layers, from the lowest to the highest Fisher score")
    name = result.kind if result.control is None else f"{result.control} (of {result.kind})"
    axes.set_title(plain(f"{name}, mean p {result.mean:.4g}"), loc="left")
    handles = [
        Line2D([], [], color=_colour(i), marker=MARKERS[i % len(MARKERS)], linestyle="none")
        for i in range(len(types))
    ]
    figure.legend(
        handles, [plain(shorten(word, 34)) for word in _words(types)], loc="outside lower center",
        ncols=2 if len(types) > 1 else 1, columnspacing=1.2, handletextpad=0.3,
    )  # fmt: skip
    return figure


def _draw_scores(axes: Axes, table: Any, types: list[str]) -> None:
    score = table.score.to_numpy(float)
    positive = score[score > 0]
    # Scores span orders of magnitude; ranks (a preset) do not.
    wide = len(positive) == len(score) and score.max() > 30 * positive.min()
    for i, kind in enumerate(types):
        rows = table[table["type"] == kind]
        error = 2 * rows.error.fillna(0.0)
        below = np.minimum(error, 0.9 * rows.score) if wide else error
        axes.errorbar(
            rows.index, rows.score, yerr=[below, error], fmt=MARKERS[i % len(MARKERS)],
            color=_colour(i), markersize=3.5, elinewidth=0.7, linestyle="none", zorder=4,
        )  # fmt: skip
    if wide:
        axes.set_yscale("log")
    known = bool(table.error.notna().any())
    axes.set_ylabel("Fisher score" + (" (± 2 standard errors)" if known else ""))
    axes.set_xlim(-0.8, len(table) - 0.2)
    axes.grid(axis="y")
    axes.tick_params(axis="both", colors=MUTED, labelcolor=INK)


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _words(types: list[str]) -> list[str]:
    """What follows the number of the layer, in words where they are known."""
    found = []
    for kind in types:
        end = kind.rpartition("*.")[2].removesuffix(".dropout")
        short = "embeddings" if "*" not in kind and "embed" in kind else WORDS.get(end, end)
        found.append(short)
    return found if len(set(found)) == len(found) else types


# --- atlas --------------------------------------------------------------------------------------


def _dropout(result: Any, anchor: str, few: bool) -> Row:
    control = "none" if result.control is None else result.control
    return {
        "facts": [
            {"label": "scores", "value": result.source, "note": ""},
            {"label": "schedule", "value": result.kind, "note": f"control: {control}"},
            {"label": "sites", "value": f"{len(result.table):,}", "note": ""},
            {"label": "mean p", "value": as_text(result.mean, 4), "note": "standard is 0.1"},
        ],
        "figure": picture(
            plot_dropout,
            result,
            alt="Fisher scores of sub-layers in ascending order, and the probability of each",
            caption="Sub-layers from the lowest to the highest Fisher score, and the dropout"
            " probability that each of them gets.",
        ),
        "sites": data_table(result.table, "sites"),
    }


DROPOUT_FIGURES = {"DropoutSchedule": {"dropout": plot_dropout}}
DROPOUT_KINDS = {
    "DropoutSchedule": Kind(
        "Dropout schedules",
        "dropout.html.j2",
        _dropout,
        lambda r: f"{r.kind}{'' if r.control is None else ', ' + r.control} from {r.source}",
        "dropout_reading.html.j2",
    )
}
