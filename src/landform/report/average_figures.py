"""Figures and the page of averages of checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from landform.report.parts import Kind, Row, as_text, data_table, fact, picture, with_interval
from landform.report.style import (
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    loss_label,
    loss_unit_of,
    new_figure,
    pick,
    plain,
    short_labels,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from landform.geometry.average import Average

__all__ = ["AVERAGE_FIGURES", "AVERAGE_KINDS", "plot_average"]

_LAYER = re.compile(r"\b(?:layers?|h|blocks?)\.(\d+)")

MODELS = {"fisher": "Fisher average", "plain": "plain average"}


@styled
def plot_average(result: Average, *, data: str | None = None) -> Figure:
    """Losses with intervals of the averages and what they stand beside; shares of the checkpoints.

    Right, where there are Fishers: the mean share of every checkpoint (of two, the first) in the
    entries of a layer, beside its share in the plain average (dashed).
    """
    chosen = pick("data set", data, list(result.evaluation["data"].unique()))
    table: Any = result.evaluation[result.evaluation["data"] == chosen]
    shares = len(result.shares) > 0
    figure = new_figure(PAGE if shares else COLUMN, max(2.2, 0.28 * len(table) + 1.0))
    panels = figure.subplots(1, 2 if shares else 1, squeeze=False)[0]
    _draw_average_losses(panels[0], result, table, chosen)
    if shares:
        _draw_shares(panels[1], result)
    return figure


def _draw_average_losses(axes: Axes, result: Average, table: pd.DataFrame, chosen: str) -> None:
    colours = _colours(result)
    names = dict(zip(result.checkpoints, short_labels(list(result.checkpoints), 16), strict=True))
    labels = []
    for k, row in enumerate(table.to_dict("records")):
        name, kind = str(row["model"]), row["kind"]
        colour = INK if kind == "average" else colours.get(name, MUTED)
        axes.plot([row["loss_low"], row["loss_high"]], [k, k], color=colour, linewidth=1.4)
        axes.plot(row["loss"], k, "o", color=colour, markersize=5 if kind == "average" else 4)
        label = MODELS.get(name, plain(names.get(name, name)))
        labels.append(f"best of line\n(t = {row['t']:.2g})" if kind == "line" else label)
    axes.axvline(float(table["loss"].iloc[0]), color=GRID, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(loss_label(result))
    axes.set_title(plain(shorten(chosen, 30)), loc="left")
    axes.grid(axis="x")


def _colours(result: Average) -> dict[str, str]:
    return {name: PALETTE[k % len(PALETTE)] for k, name in enumerate(result.checkpoints)}


def _draw_shares(axes: Axes, result: Average) -> None:
    table = result.shares.assign(weighted=result.shares["share"] * result.shares["entries"])
    layers = list(dict.fromkeys(table["layer"]))
    sums = table.groupby(["checkpoint", "layer"])[["weighted", "entries"]].sum()
    shown = result.checkpoints[:1] if len(result.checkpoints) == 2 else result.checkpoints
    colours = _colours(result)
    y = np.arange(len(layers))
    for name, weight in zip(result.checkpoints, result.weights, strict=True):
        if name not in shown:
            continue
        part = sums.loc[name].loc[layers]
        values = (part["weighted"] / part["entries"]).to_numpy(float)
        axes.axvline(weight, color=colours[name], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(values, y, "o-", color=colours[name], markersize=3.5, linewidth=1, label=name)
    names = [_layer_label(str(layer)) for layer in layers]
    step = max(1, math.ceil(len(layers) / 14))
    axes.set_yticks(y[::step], [plain(name) for name in names][::step])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x")
    if len(shown) == 1:
        axes.set_title(f"share of {plain(shorten(shown[0], 24))} by layer", loc="left")
    else:
        axes.set_title("share of every checkpoint by layer", loc="left")
        axes.legend(loc="lower right")


def _layer_label(name: str) -> str:
    match = _LAYER.search(name)
    return f"layer {match.group(1)}" if match else shorten(name.rpartition(".")[2], 20)


def _average(result: Any, anchor: str, few: bool) -> Row:
    rows = result.evaluation[result.evaluation["data"] == result.evaluation["data"].iloc[0]]
    unit = loss_unit_of(result)
    facts = []
    for row in rows.to_dict("records"):
        label = MODELS.get(row["model"], row["model"])
        note = f"{unit}, on {row['data']}"
        if row["kind"] == "line":
            label, note = "best of line", f"{note}; t = {as_text(float(row['t']), 3)}"
        value = with_interval(row["loss"], row["loss_low"], row["loss_high"])
        facts.append(fact(f"loss of {label}", value, note))
    return {
        "facts": facts,
        "figure": picture(
            plot_average,
            result,
            alt="Losses of the averages beside those of the checkpoints",
            caption="Left: losses with intervals. Right: how much of a checkpoint the Fisher"
            " average takes in every layer; dashed: the plain average."
            if len(result.shares)
            else "Losses with intervals.",
        ),
        "evaluation": data_table(result.evaluation.drop(columns="kind"), "all metrics"),
        "comparison": data_table(
            result.comparison[
                (result.comparison["data"] == rows["data"].iloc[0])
                & (result.comparison["quantity"] == "loss")
            ],
            "differences in loss",
            caption="Examples are resampled alike in both. Below 0 the loss of the first is lower.",
        ),
        "differences": data_table(result.comparison, "all differences"),
    }


AVERAGE_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Average": {"average": plot_average}
}
AVERAGE_KINDS = {
    "Average": Kind(
        "Averages",
        "average.html.j2",
        _average,
        lambda r: f"{'Fisher' if len(r.shares) else 'plain'} average of {', '.join(r.checkpoints)}",
        "fisher_reading.html.j2",
    ),
}
