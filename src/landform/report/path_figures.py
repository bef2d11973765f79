"""Figures of bent paths and of simplicial complexes: the loss on them, and while they were fitted.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure. The path is drawn in full colour
and the straight line beside it is dashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from landform.report.connections import metric_columns
from landform.report.style import (
    COLUMN,
    INK,
    LONE,
    MARKERS,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    column_label,
    end_names,
    interval,
    loss_label,
    loss_panels,
    metric_label,
    new_figure,
    pick,
    plain,
    short_labels,
    shorten,
    styled,
    wrapped,
)

if TYPE_CHECKING:
    from landform.geometry.fitting import CurveFit, PathEvaluation
    from landform.geometry.simplexes import ComplexFit

__all__ = [
    "clique_label",
    "plot_complex",
    "plot_fit",
    "plot_path",
    "plot_path_distances",
]

Array = np.ndarray

DASHED = (0, (4, 3))


# --- bent paths -------------------------------------------------------------------------------


@styled
def plot_path(
    result: PathEvaluation, *, metric: str | None = None, data: str | Sequence[str] | None = None
) -> Figure:
    """Loss along a bent path at equal arc length, with its band, beside the straight line.

    Losses of several data sets are in panels of their own where one would hide the flattest. Below
    them a metric of the table (by default the first one), or "distances", those of every point to
    both ends; "loss" for the losses alone. Full: the path. Dashed: the line.
    """
    table = result.table
    metrics = metric_columns(table)
    chosen = pick("metric", metric, [*metrics, "distances", "loss"])
    wanted = [data] if isinstance(data, str) else list(data or dict.fromkeys(table["data"]))
    sets = [pick("data set", name, list(dict.fromkeys(table["data"]))) for name in wanted]
    entries = [_path_entry(result, name, path) for name in sets for path in ("curve", "line")]
    lines = sum(entry.count("\n") + 1 for entry in entries)
    both = pd.concat([result.table, result.line])
    parts = {name: both[both["data"] == name] for name in sets}
    height = 2.5 + 0.14 * lines
    figure, losses, below = loss_panels(parts, height, 0.0 if chosen == "loss" else 1.2)
    handles = []
    for n, name in enumerate(sets):
        colour = PALETTE[n % len(PALETTE)]
        handles += _path_and_line(losses[name], result, name, "loss", colour)
        losses[name].set_ylabel(loss_label(result))
        if below is not None and chosen != "distances":
            _path_and_line(below, result, name, chosen, colour)
    if below is not None and chosen == "distances":
        _distances(below, result)
    elif below is not None:
        below.set_ylabel(metric_label(chosen))
    figure.axes[-1].set_xlabel(_arc_label(result))
    figure.legend(handles=handles, loc="outside upper left", ncols=1, labelspacing=0.35)
    return figure


@styled
def plot_path_distances(result: PathEvaluation) -> Figure:
    """The distance of every point of a bent path, and of the line beside it, to both ends."""
    figure = new_figure(COLUMN, 2.5)
    axes = figure.subplots()
    _distances(axes, result)
    axes.set_xlabel(_arc_label(result))
    return figure


def _path_and_line(
    axes: Axes, result: PathEvaluation, data: str, column: str, colour: str
) -> list[Line2D]:
    """Draw one column of one data set on both paths; legend entries with the barriers."""
    handles = []
    for path, table in (("curve", result.table), ("line", result.line)):
        part = table[table["data"] == data].sort_values("arc")
        if column not in part or not part[column].notna().any():
            continue
        s, values = part["arc"].to_numpy(float), part[column].to_numpy(float)
        full = path == "curve"
        if f"{column}_low" in part:
            axes.fill_between(
                s, part[f"{column}_low"].to_numpy(float), part[f"{column}_high"].to_numpy(float),
                color=colour if full else MUTED, alpha=0.18 if full else 0.1, linewidth=0,
            )  # fmt: skip
        (line,) = axes.plot(
            s, values, color=colour, marker="o", markersize=2.2 if full else 1.4,
            linewidth=1.4 if full else 0.9, linestyle="-" if full else DASHED,
            alpha=1 if full else 0.75, label=_path_entry(result, data, path),
        )  # fmt: skip
        handles.append(line)
    axes.grid(axis="y")
    axes.margins(x=0.03)
    return handles


def _path_entry(result: PathEvaluation, data: str, path: str) -> str:
    name = {"bezier": "Bezier curve"}.get(result.curve, result.curve)
    length = result.length if path == "curve" else result.chord
    head = name if path == "curve" else "straight line"
    if result.table["data"].nunique() > 1:
        head += f", {plain(shorten(data, 28))}"
    tail = f"{length:.3g} long"
    rows = result.summary[(result.summary["data"] == data) & (result.summary["path"] == path)]
    if len(rows):
        row = rows.iloc[0]
        tail += f", barrier {row['barrier_height']:.3g} {interval(row, 'barrier')}".rstrip()
    # A column has room for about 50 letters beside the sample of the line.
    return f" {head}, {tail}" if len(head + tail) < 48 else f" {head}:\n {tail}"


def _distances(axes: Axes, result: PathEvaluation) -> None:
    first = result.table["data"].iloc[0]
    for path, table in (("curve", result.table), ("line", result.line)):
        part = table[table["data"] == first].sort_values("arc")
        full = path == "curve"
        ends = zip(("a", "b"), end_names(result.a, result.b, 20), (0, 1), strict=True)
        for end, label, k in ends:
            axes.plot(
                part["arc"], part[f"distance_{end}"], color=PALETTE[2 + 4 * k], marker=MARKERS[k],
                markersize=2.2 if full else 0, linestyle="-" if full else DASHED,
                linewidth=1.2 if full else 0.8,
                label=f"to {label}" if full else f"_line to {end}",
            )  # fmt: skip
    axes.grid(axis="y")
    axes.margins(x=0.03)
    axes.set_ylabel("distance (L2)")
    axes.legend(loc="upper center", ncols=2, columnspacing=1)
    axes.set_ylim(0, 1.25 * max(result.table[["distance_a", "distance_b"]].max()))


def _arc_label(result: PathEvaluation) -> str:
    first, last = end_names(result.a, result.b)
    return f"share of the length\n0 = {first}, 1 = {last}"


@styled
def plot_fit(result: CurveFit) -> Figure:
    """The loss while a path is fitted (every step, and their running mean) and the learning rate.

    The loss of a step is that of one random point of the path on one batch, so it is noisy.
    """
    history = result.history
    step, losses = history["step"].to_numpy(float), history["loss"].to_numpy(float)
    rates = "learning_rate" in history
    rows = 2 if rates else 1
    figure = new_figure(COLUMN, 3.0 if rates else 2.4)
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[3, 1][:rows])[:, 0]
    panels[0].plot(step, losses, color=PALETTE[0], linewidth=0.6, alpha=0.35, label="_steps")
    window = max(1, len(losses) // 20)
    mean = pd.Series(losses).rolling(window, min_periods=1).mean()
    panels[0].plot(step, mean, color=PALETTE[0], linewidth=1.5, label="_mean")
    panels[0].set_ylabel(loss_label(result))
    panels[0].grid(axis="y")
    ratio = result.length / result.chord if result.chord else float("nan")
    bends = f"{result.bends} bend{'' if result.bends == 1 else 's'}"
    panels[0].set_title(
        f"{plain(result.kind)}, {bends}; {ratio:.3f} times as long as the chord\n"
        f"thick: mean of {window} steps"
    )
    if rates:
        panels[1].plot(step, history["learning_rate"], color=MUTED, linewidth=1)
        panels[1].set_ylabel("rate")
        panels[1].ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
    panels[-1].set_xlabel("step")
    return figure


# --- complexes --------------------------------------------------------------------------------


def clique_label(result: ComplexFit, clique: Any) -> str:
    """The names of a clique's vertices, which `samples` gives by number or by name."""
    try:
        members = result.cliques[int(clique)]
    except (TypeError, ValueError, IndexError):
        return str(clique)
    return ", ".join(short_labels([result.names[v] for v in members], 12))


@styled
def plot_complex(result: ComplexFit, *, column: str = "loss", data: str | None = None) -> Figure:
    """The loss of random points of every simplex of a complex, and the history of the fit.

    Left, a row per clique: dots are points drawn uniformly from its simplex, the bar their mean;
    in grey, below, points of the flat simplex of the checkpoints alone. `column` is the loss or a
    metric of `samples`. Right, step by step, the loss of the fit, and the volume as a share of the
    largest while the same vertex is fitted; a colour per vertex. A complex that was not evaluated
    has its history alone.
    """
    if not len(result.samples):
        figure = new_figure(COLUMN, 2.6)
        _complex_history(figure, figure.subplots(), result)
        return figure
    pick("column", column, ["loss", *metric_columns(result.samples)])
    groups = _simplex_groups(result, column, data)
    figure = new_figure(PAGE, max(2.5, 0.3 * len(groups) + 1.3))
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    for row, (_, values, colour) in enumerate(groups):
        shifts = 0.3 * (np.arange(len(values)) % 5 / 4 - 0.5)
        left.plot(
            values, row + shifts, "o", color=colour, markersize=3, alpha=0.7,
            markeredgewidth=0, linestyle="none", label=f"_simplex {row}",
        )  # fmt: skip
        left.plot(
            [np.nanmean(values)], [row], "|", color=INK, markersize=13, markeredgewidth=1.2,
            label="_mean",
        )  # fmt: skip
    left.set_yticks(range(len(groups)), [wrapped(label, 30) for label, *_ in groups])
    left.set_ylim(len(groups) - 0.4, -0.6)
    left.tick_params(axis="y", length=0)
    left.spines["left"].set_visible(False)
    left.grid(axis="x")
    left.set_xlabel(column_label(result, column))
    left.set_title(f"{len(result.cliques)} simplexes, volume {result.volume:.3g}")
    _complex_history(figure, right, result)
    return figure


def _simplex_groups(
    result: ComplexFit, column: str, data: str | None
) -> list[tuple[str, Array, str]]:
    """(label, values, colour) of the points of every simplex, the flat one last."""

    def of_data(table: pd.DataFrame) -> pd.DataFrame:
        if "data" not in table or not len(table):
            return table
        return table[table["data"] == pick("data set", data, list(dict.fromkeys(table["data"])))]

    samples = of_data(result.samples)
    groups = [
        (plain(clique_label(result, clique)), part[column].to_numpy(float), PALETTE[0])
        for clique, part in samples.groupby("clique", sort=False)
    ]
    control = of_data(getattr(result, "control", pd.DataFrame()))
    if len(control) and column in control:
        groups.append(("flat, between the checkpoints", control[column].to_numpy(float), LONE))
    return groups


def _complex_history(figure: Figure, axes: Axes, result: ComplexFit) -> None:
    history = result.history
    volume = axes.twinx()
    volume.spines["right"].set_visible(True)
    for k, (vertex, part) in enumerate(history.groupby("vertex", sort=False)):
        colour = PALETTE[k % len(PALETTE)]
        losses = part["loss"].rolling(max(1, len(part) // 20), min_periods=1).mean()
        name = _vertex(result, vertex)
        axes.plot(part["step"], losses, color=colour, linewidth=1.2, label=f" {plain(name)}")
        if "volume" in part:
            # Of another dimension for every vertex (an area, then a volume): shares compare.
            share = part["volume"] / (part["volume"].max() or 1.0)
            volume.plot(part["step"], share, color=MUTED, linewidth=0.8, linestyle=DASHED)
    axes.set(xlabel="step", ylabel=f"fit: {loss_label(result)}")
    axes.grid(axis="y")
    volume.set_ylabel("volume / its largest (dashed)", color=MUTED)
    volume.set_ylim(0, 1.05)
    handles = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    figure.legend(
        handles=[Line2D([], [], linestyle="none", label="vertex fitted:"), *handles],
        loc="outside upper right", ncols=5, columnspacing=0.8,
    )  # fmt: skip


def _vertex(result: ComplexFit, vertex: Any) -> str:
    if isinstance(vertex, int | np.integer) and 0 <= vertex < len(result.names):
        return shorten(result.names[int(vertex)], 16)
    return shorten(vertex, 16)
