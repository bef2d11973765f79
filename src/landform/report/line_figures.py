"""Figures of the straight line between two checkpoints.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from landform.report.connections import metric_columns
from landform.report.style import (
    INK,
    MUTED,
    PALETTE,
    Figure,
    end_names,
    interval,
    loss_label,
    loss_panels,
    metric_label,
    pick,
    plain,
    styled,
)

if TYPE_CHECKING:
    from landform.geometry.line import Interpolation

__all__ = [
    "LINE_FIGURES",
    "gap_segment",
    "plot_interpolation",
]

Array = np.ndarray


def gap_segment(t: Array, losses: Array) -> tuple[int, int, int]:
    """The (i, k, j), i < k < j, at which the convexity gap is attained.

    The gap is the largest rise of a point k above the chord of any two points i and j around it:
    L_k - ((t_j - t_k) L_i + (t_k - t_i) L_j) / (t_j - t_i). (0, 0, 0) where no point rises.
    """
    best, where = 0.0, (0, 0, 0)
    for i in range(len(t) - 2):
        for j in range(i + 2, len(t)):
            inner = slice(i + 1, j)
            rise = losses[inner] - _chord(t, losses, i, j)[inner]
            k = int(rise.argmax())
            # Equal up to rounding: the first found is kept.
            if rise[k] > best + 1e-12:
                best, where = float(rise[k]), (i, i + 1 + k, j)
    return where


def _chord(t: Array, losses: Array, i: int, j: int) -> Array:
    """The straight line through points i and j, at every t."""
    weight = (t - t[i]) / (t[j] - t[i])
    return cast(Array, (1 - weight) * losses[i] + weight * losses[j])


@styled
def plot_interpolation(
    result: Interpolation, *, data: str | None = None, metric: str | None = None
) -> Figure:
    """Loss and a metric along the line between two checkpoints, with interval bands.

    All data sets are drawn, their losses each in a panel of its own where one panel would hide the
    flattest; the barrier (from the chord between the ends) and the convexity gap (from the chord of
    the sub-segment where it is largest) are marked for `data`, by default the first. `metric` is a
    column of the table, by default the first metric that has one; pass "loss" for the losses alone.
    """
    table = result.table
    names = list(dict.fromkeys(table["data"]))
    marked = pick("data set", data, names)
    metrics = metric_columns(table)
    chosen = None if metric == "loss" or not metrics else pick("metric", metric, metrics)
    parts = {name: table[table["data"] == name] for name in names}
    figure, losses, below = loss_panels(parts, 2.8, 1.1 if chosen else 0.0)
    handles = [
        _draw_line(losses[name], part, "loss", PALETTE[n % len(PALETTE)], name)
        for n, (name, part) in enumerate(parts.items())
    ]
    for axes in losses.values():
        axes.set_ylabel(loss_label(result))
    _mark_ridge(losses[marked], result, marked, handles)
    if below is not None and chosen:
        for n, (name, part) in enumerate(parts.items()):
            if chosen in part and part[chosen].notna().any():
                _draw_line(below, part, chosen, PALETTE[n % len(PALETTE)], name)
        below.set_ylabel(metric_label(chosen))
    figure.axes[-1].set_xlabel(_line_label(result.a, result.b))
    figure.legend(handles=handles, loc="outside upper left", ncols=1, labelspacing=0.35)
    return figure


def _draw_line(axes: Axes, table: pd.DataFrame, column: str, colour: str, name: str) -> Line2D:
    table = table.sort_values("t")
    t, values = table["t"].to_numpy(float), table[column].to_numpy(float)
    if f"{column}_low" in table:
        low, high = table[f"{column}_low"].to_numpy(float), table[f"{column}_high"].to_numpy(float)
        axes.fill_between(t, low, high, color=colour, alpha=0.18, linewidth=0)
    (line,) = axes.plot(
        t, values, color=colour, marker="o", markersize=2.2, label=f" {plain(name)}"
    )
    ends = [int(np.abs(t).argmin()), int(np.abs(t - 1).argmin())]
    axes.plot(
        t[ends],
        values[ends],
        "o",
        color="white",
        markeredgecolor=colour,
        markeredgewidth=1.2,
        markersize=4.5,
        linestyle="none",
        zorder=5,
        label="_ends",
    )
    axes.grid(axis="y")
    axes.margins(x=0.03)
    return line


def _mark_ridge(axes: Axes, result: Interpolation, data: str, handles: list[Line2D]) -> None:
    """Annotated segments of barrier and gap; their numbers go to the legend, off the curves."""
    table = result.table[result.table["data"] == data].sort_values("t")
    t, losses = table["t"].to_numpy(float), table["loss"].to_numpy(float)
    row = result.summary[result.summary["data"] == data].iloc[0]
    rise = losses - _chord(t, losses, 0, len(t) - 1)
    marks = []
    if rise.max() > 1e-12:
        marks.append(("barrier", (0, int(rise.argmax()), len(t) - 1), INK))
    segment = gap_segment(t, losses)
    if segment != (0, 0, 0) and segment not in [mark[1] for mark in marks]:
        marks.append(("gap", segment, PALETTE[3]))
    side_by_side = len(marks) == 2 and marks[0][1][1] == marks[1][1][1]
    for n, (name, (i, k, j), colour) in enumerate(marks):
        chord = _chord(t, losses, i, j)
        at = t[k] + (0.012 * (1 - 2 * n) if side_by_side else 0.0)
        axes.plot(
            t[[i, j]],
            chord[[i, j]],
            color=colour,
            linewidth=0.8,
            linestyle=(0, (4, 3)),
            zorder=3,
            label=f"_{name}_chord",
        )
        axes.plot(
            [at, at],
            [chord[k], losses[k]],
            color=colour,
            linewidth=1.6,
            marker="_",
            markersize=4,
            zorder=6,
            label=f"_{name}",
        )
    colours = {name: colour for name, _, colour in marks}
    same = "gap" not in colours
    where = f" on {plain(data)}" if result.table["data"].nunique() > 1 else ""
    for label, key in (("barrier", "barrier"), ("convexity gap", "gap")):
        column = "barrier_height" if key == "barrier" else "convexity_gap"
        text = f"{row[column]:.3g} {interval(row, key)}".rstrip()
        if key == "gap" and np.isfinite(row.get("noise_floor", np.nan)):
            text += f", noise floor {row['noise_floor']:.2g}"
        head = f"{label}{where}"
        text = f"{head} {text}" if len(head + text) < 58 else f"{head}\n{text}"  # a column's width
        colour = colours.get(key, colours.get("barrier", MUTED) if same else MUTED)
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker="|",
                markersize=6,
                linestyle="none",
                markeredgewidth=1.6,
                label=text,
            )
        )


def _line_label(a: str, b: str) -> str:
    first, last = end_names(a, b, 40)
    text = f"position t   (0 = {first}, 1 = {last})"
    return text if len(text) < 52 else f"position t\n0 = {first}\n1 = {last}"


LINE_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Interpolation": {"interpolation": plot_interpolation},
}
