"""Figures of task boundaries and of the axes of an experiment.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes as Panel
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from landform.report.style import (
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    end_names,
    interval,
    loss_unit_of,
    metric_label,
    new_figure,
    pick,
    plain,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from landform.studies.axes import Axes
    from landform.studies.boundary import Boundaries, Boundary

__all__ = ["BOUNDARY_FIGURES", "plot_axes", "plot_boundaries", "plot_boundary"]

SIDES = {"a": PALETTE[0], "b": PALETTE[1]}
GOOD = PALETTE[2]
DASHED = (0, (4, 3))


@styled
def plot_boundary(result: Boundary, *, of: str = "kept") -> Figure:
    """What both tasks keep along the line, with interval bands; shaded where both are good.

    The bars above are the intervals of the ends of the two ranges: how far the first task is good
    from x = 0 on, and from where the second is up to x = 1. `of`: kept, value (the metrics
    themselves) or loss.
    """
    column = pick("curve", of, ["kept", "value", "loss"])
    figure = new_figure(COLUMN, 2.9)
    panel = figure.subplots()
    handles: list[Any] = [_curve(panel, result, side, column) for side in ("a", "b")]
    row = result.summary.iloc[0]
    for start, stop in result.regions[["start", "stop"]].to_numpy(float):
        panel.axvspan(start, stop, color=GOOD, alpha=0.14, linewidth=0, zorder=0)
    if column == "kept":
        panel.axhline(result.keep, color=MUTED, linewidth=0.7, linestyle=DASHED, zorder=1)
        panel.axhline(0, color=GRID, linewidth=0.6, zorder=0)
        _ends(panel, row)
    width = f"both keep {100 * result.keep:g} %: width {row['width']:.3g} {interval(row, 'width')}"
    if result.width > 0:
        handles.append(Patch(color=GOOD, alpha=0.25, linewidth=0, label=f" {width}"))
    else:
        gap = f"[{-row['margin_high']:.3g}, {-row['margin_low']:.3g}]"
        label = f" nowhere do both keep {100 * result.keep:g} %: gap {-row['margin']:.3g} {gap}"
        handles.append(Line2D([], [], linestyle="none", label=label))
    first, last = end_names(result.a, result.b, 22)
    panel.set_xlabel(f"x: {first} (0) to {last} (1)")
    panel.set_ylabel(_side_label(result, column))
    panel.margins(x=0.03)
    figure.legend(handles=handles, loc="outside upper left", ncols=1, labelspacing=0.35)
    return figure


def _side_label(result: Boundary | Boundaries, column: str) -> str:
    if column == "kept":
        return "kept of the way above the floor"
    if column == "loss":
        return "loss"
    names = dict.fromkeys(metric_label(name) for name in (result.metric_a, result.metric_b))
    return " / ".join(names)


def _curve(panel: Panel, result: Boundary, side: str, column: str) -> Line2D:
    part = result.table[result.table["task"] == side].sort_values("x")
    x, values = part["x"].to_numpy(float), part[column].to_numpy(float)
    low, high = (part[f"{column}_{end}"].to_numpy(float) for end in ("low", "high"))
    panel.fill_between(x, low, high, color=SIDES[side], alpha=0.18, linewidth=0)
    name = result.data_a if side == "a" else result.data_b
    (line,) = panel.plot(
        x, values, color=SIDES[side], marker="o", markersize=2.2, label=f" {plain(name)}"
    )
    own = 0 if side == "a" else -1
    panel.plot(
        x[own], values[own], "o", color="white", markeredgecolor=SIDES[side], markeredgewidth=1.2,
        markersize=4.5, zorder=5, label="_own",
    )  # fmt: skip
    panel.grid(axis="y")
    return line


def _ends(panel: Panel, row: pd.Series) -> None:
    """The intervals of where the two ranges end, over the curves."""
    for name, side, height in (("reach_a", "a", 1.035), ("reach_b", "b", 1.075)):
        low, at, high = (row[f"{name}{end}"] for end in ("_low", "", "_high"))
        if not np.isfinite(at):
            continue
        place = panel.get_xaxis_transform()
        panel.plot(
            [low, high], [height - 0.04] * 2, color=SIDES[side], linewidth=2, alpha=0.55,
            transform=place, clip_on=False, solid_capstyle="butt", label="_range",
        )  # fmt: skip
        panel.plot(
            at, height - 0.04, "|", color=SIDES[side], markersize=6, markeredgewidth=1.4,
            transform=place, clip_on=False, label="_range_end",
        )  # fmt: skip


@styled
def plot_boundaries(result: Boundaries, *, of: str = "margin") -> Figure:
    """A number of the boundary for every pair of models, with its interval; the curves above.

    `of`: margin (below 0 there is a gap), width, area, best_kept or crossing.
    """
    number = pick("number", of, ["margin", "width", "area", "best_kept", "crossing"])
    labels = [str(label) for label in result.table["label"]]
    figure = new_figure(PAGE if len(labels) > 3 else 5.4, 3.6)
    grid = figure.add_gridspec(2, len(labels), height_ratios=[3, 2])
    first: Panel | None = None
    for k, label in enumerate(labels):
        panel = figure.add_subplot(grid[0, k], sharey=first)
        for side in ("a", "b"):
            chosen = (result.curves["label"] == label) & (result.curves["task"] == side)
            part = result.curves[chosen].sort_values("x")
            x = part["x"].to_numpy(float)
            panel.fill_between(
                x, part["kept_low"].to_numpy(float), part["kept_high"].to_numpy(float),
                color=SIDES[side], alpha=0.18, linewidth=0,
            )  # fmt: skip
            panel.plot(x, part["kept"].to_numpy(float), color=SIDES[side])
        panel.axhline(result.keep, color=MUTED, linewidth=0.7, linestyle=DASHED)
        panel.set_title(plain(shorten(label, 16)))
        panel.set_xlabel("x")
        panel.grid(axis="y")
        if first is None:
            panel.set_ylabel("kept")
            first = panel
        else:
            panel.tick_params(labelleft=False)
    below = figure.add_subplot(grid[1, :])
    _dots(below, result.table, number, np.arange(len(labels)), INK, vertical=True)
    below.set_xticks(range(len(labels)), [plain(shorten(label, 16)) for label in labels])
    below.set_xlim(-0.5, len(labels) - 0.5)
    below.set_ylabel(number.replace("_", " "))
    if number == "margin":
        below.axhline(0, color=MUTED, linewidth=0.7, linestyle=DASHED)
    below.grid(axis="y")
    names = {"a": result.data_a, "b": result.data_b}
    handles = [Line2D([], [], color=SIDES[s], label=f" {plain(n)}") for s, n in names.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return figure


def _dots(
    panel: Panel,
    table: pd.DataFrame,
    column: str,
    places: np.ndarray,
    colour: str,
    *,
    vertical: bool = False,
    prefix: str | None = None,
) -> None:
    """Values with their intervals."""
    name = prefix or column
    values = table[column].to_numpy(float)
    ends = np.stack([table[f"{name}_{end}"].to_numpy(float) for end in ("low", "high")])
    for place, low, high in zip(places, *ends, strict=True):
        along, across = ([place, place], [low, high]) if vertical else ([low, high], [place, place])
        panel.plot(along, across, color=colour, linewidth=1.2, alpha=0.75, label="_interval")
    x, y = (places, values) if vertical else (values, places)
    panel.plot(x, y, "o", color=colour, markersize=3.6, linestyle="none", label="_value")


@styled
def plot_axes(result: Axes, *, data: str | None = None) -> Figure:
    """Barrier and drop of the metric, with intervals, of every pair, by axis and value.

    `data`: one data set; all of them by default, each in its colour.
    """
    names = list(dict.fromkeys(result.table["data"]))
    chosen = names if data is None else [pick("data set", data, names)]
    groups = list(dict.fromkeys(zip(result.table["axis"], result.table["value"], strict=True)))
    places, ticks = _rows(result.table, groups)
    height = 1.1 + 0.15 * (max(places.values()) + 1)
    figure = new_figure(PAGE, height)
    panels = figure.subplots(1, 2, sharey=True)
    handles = []
    for n, name in enumerate(chosen):
        part = result.table[result.table["data"] == name]
        shift = 0.28 * (n - (len(chosen) - 1) / 2)
        at = np.array([places[key] for key in _keys(part)]) + shift
        colour = PALETTE[n % len(PALETTE)]
        _dots(panels[0], part, "barrier_height", at, colour, prefix="barrier")
        _dots(panels[1], part, "metric_drop", at, colour)
        handles.append(Line2D([], [], color=colour, marker="o", markersize=3.6, label=f" {name}"))
    for panel in panels:
        panel.axvline(0, color=MUTED, linewidth=0.7)
        panel.grid(axis="x")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.margins(y=0.02)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(list(ticks.values()), [plain(shorten(t, 44)) for t in ticks])
    panels[0].invert_yaxis()
    panels[0].set_xlabel(f"barrier ({loss_unit_of(result)})")
    metrics = dict.fromkeys(result.table["metric"])
    panels[1].set_xlabel(f"drop of {' / '.join(metric_label(m) for m in metrics)}")
    figure.legend(handles=handles, loc="outside upper left", ncols=min(3, len(handles)))
    return figure


def _keys(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name] for name in ("axis", "value", "a", "b")), strict=True))


def _rows(
    table: pd.DataFrame, groups: list[tuple[Any, Any]]
) -> tuple[dict[tuple[Any, ...], float], dict[str, float]]:
    """A line for every pair; those of one value together, its name in the middle."""
    places: dict[tuple[Any, ...], float] = {}
    ticks: dict[str, float] = {}
    at, before = 0.0, None
    for axis, value in groups:
        part = table[(table["axis"] == axis) & (table["value"] == value)]
        at += 0.9 if before not in (None, axis) else 0.35 if before is not None else 0.0
        before, start = axis, at
        for key in dict.fromkeys(_keys(part)):
            places[key] = at
            at += 1.0
        ticks[f"{axis}: {value}"] = (start + at - 1.0) / 2
    return places, ticks


BOUNDARY_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Boundary": {"boundary": plot_boundary},
    "Boundaries": {"boundaries": plot_boundaries},
    "Axes": {"axes": plot_axes},
}
