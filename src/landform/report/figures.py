"""Figures of results: every function takes a result object and returns a matplotlib figure.

The functions look at the documented attributes of a result and at nothing else, so that a result
read back from a study is drawn like a fresh one. None of them uses pyplot or keeps state; write a
figure with `save(figure, path)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from landform.errors import ConfigError
from landform.report.average_figures import AVERAGE_FIGURES, plot_average
from landform.report.boundary_figures import (
    BOUNDARY_FIGURES,
    plot_axes,
    plot_boundaries,
    plot_boundary,
)
from landform.report.cartography_figures import CARTOGRAPHY_FIGURES, plot_data_map, plot_epochs
from landform.report.comparison_figures import (
    COMPARISON_FIGURES,
    plot_arms,
    plot_comparison,
    plot_schedules,
)
from landform.report.connections import (
    basins_of,
    by_name,
    checkpoint_order,
    default_metric,
    endpoint_column,
    endpoint_metric,
    metric_columns,
    split_curves,
    statistic,
    styles_of,
)
from landform.report.connectivity_figures import (
    CONNECTIVITY_FIGURES,
    plot_alignment,
    plot_climb,
    plot_complex,
    plot_dynamics,
    plot_fit,
    plot_path,
    plot_path_distances,
    plot_ridge,
    plot_sharpness_scatter,
    plot_transitivity,
)
from landform.report.dropout_figures import DROPOUT_FIGURES, plot_dropout
from landform.report.example_figures import (
    EXAMPLE_FIGURES,
    plot_barrier,
    plot_examples,
    plot_examples_matrix,
)
from landform.report.fisher_figures import (
    FISHER_FIGURES,
    FISHER_OPERANDS,
    FISHER_TOGETHER,
    plot_fisher,
    plot_fisher_entries,
    plot_fisher_order,
    plot_fisher_sorted,
)
from landform.report.group_figures import (
    kernel_density,
    plot_ridges,
    plot_score_distributions,
    ridge_groups,
)
from landform.report.influence_figures import (
    INFLUENCE_FIGURES,
    plot_agreement,
    plot_counterfactual,
    plot_lds,
    plot_lds_queries,
    plot_mislabel,
    plot_query_scores,
    plot_scores,
    plot_self_influence,
    plot_spectra,
    plot_timings,
)
from landform.report.knowledge_figures import (
    KNOWLEDGE_FIGURES,
    plot_forgotten,
    plot_knowledge,
    plot_score_matrix,
)
from landform.report.landscape_figures import (
    LANDSCAPE_FIGURES,
    plot_landscape,
    plot_landscape_relief,
    plot_landscape_surfaces,
    plot_landscapes,
)
from landform.report.mixing_figures import MIXING_FIGURES, plot_mixing
from landform.report.spectrum_figures import (
    SPECTRUM_FIGURES,
    plot_path_spectrum,
    plot_spectrum,
)
from landform.report.style import (
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    SEQUENTIAL,
    BasinStyle,
    Figure,
    decimals,
    format_p,
    interval,
    loss_label,
    loss_unit_of,
    metric_label,
    new_figure,
    ordered_basins,
    pick,
    plain,
    save,
    short_labels,
    shorten,
    styled,
    unknown,
    wrapped,
)
from landform.report.surface_figures import plot_surface, plot_surface_3d, plot_surfaces

if TYPE_CHECKING:
    from landform.evaluation.evaluate import Evaluation
    from landform.geometry.line import Interpolation
    from landform.studies.connect import Connection
    from landform.training.finetune import Training

__all__ = [
    "FIGURES",
    "OPERANDS",
    "QUANTITIES",
    "TOGETHER",
    "checkpoint_order",
    "draw",
    "figures_of",
    "gap_segment",
    "plot_agreement",
    "plot_alignment",
    "plot_arms",
    "plot_average",
    "plot_axes",
    "plot_barrier",
    "plot_basin_histogram",
    "plot_boundaries",
    "plot_boundary",
    "plot_centroid_scatter",
    "plot_climb",
    "plot_comparison",
    "plot_complex",
    "plot_counterfactual",
    "plot_curves",
    "plot_data_map",
    "plot_dropout",
    "plot_dynamics",
    "plot_eigenvalues",
    "plot_endpoints",
    "plot_epochs",
    "plot_evaluation",
    "plot_examples",
    "plot_examples_matrix",
    "plot_fisher",
    "plot_fisher_entries",
    "plot_fisher_order",
    "plot_fisher_sorted",
    "plot_fit",
    "plot_forgotten",
    "plot_heatmap",
    "plot_interpolation",
    "plot_knowledge",
    "plot_landscape",
    "plot_landscape_relief",
    "plot_landscape_surfaces",
    "plot_landscapes",
    "plot_lds",
    "plot_lds_queries",
    "plot_metrics",
    "plot_mislabel",
    "plot_mixing",
    "plot_path",
    "plot_path_distances",
    "plot_path_spectrum",
    "plot_query_scores",
    "plot_reliability",
    "plot_ridge",
    "plot_ridges",
    "plot_schedules",
    "plot_score_distributions",
    "plot_score_matrix",
    "plot_scores",
    "plot_self_influence",
    "plot_sharpness_scatter",
    "plot_spectra",
    "plot_spectrum",
    "plot_surface",
    "plot_surface_3d",
    "plot_surfaces",
    "plot_timings",
    "plot_training",
    "plot_transitivity",
    "quantities_of",
    "quantity_label",
    "quantity_range",
    "ridge_groups",
    "save",
    "save_all",
]

Array = np.ndarray

QUANTITIES: dict[str, str] = {
    "convexity_gap": "convexity gap",
    "barrier_height": "barrier height",
    "distance": "distance (L2)",
    "bump_height": "bump height",
    "area_under_curve": "area under the curve",
    "error_agreement": "error agreement",
    "functional_similarity": "same predictions",
    "js_distance": "Jensen-Shannon distance",
}
"""What heat maps show, of the columns that a study has."""

HEIGHTS = ("convexity_gap", "barrier_height", "bump_height")  # 0 is flat; in units of the loss
SHARES = ("error_agreement", "functional_similarity")  # large is alike: its colours are turned


def quantities_of(connection: Connection) -> list[str]:
    """Columns of `pairs` that a heat map can show: those of `QUANTITIES`, then other numbers."""
    pairs = connection.pairs
    others = [
        str(name)
        for name in pairs.columns
        if pd.api.types.is_numeric_dtype(pairs[name])
        and not str(name).endswith(("_low", "_high"))
        and name not in QUANTITIES
    ]
    return [*(name for name in QUANTITIES if name in pairs), *others]


def quantity_label(result: object, quantity: str) -> str:
    """What a heat map shows, with its unit."""
    label = QUANTITIES.get(quantity, metric_label(quantity))
    return f"{label} ({loss_unit_of(result)})" if quantity in HEIGHTS else label


def quantity_range(quantity: str, values: Array) -> tuple[float, float]:
    """The ends of the colours: heights start at 0, other quantities a little below the least."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, top = float(known.min()), float(known.max())
    if quantity in HEIGHTS:
        return 0.0, top if top > 0 else 1.0
    if quantity in SHARES:
        return low, top if top > low else low + 1e-3
    return low - 0.1 * abs(low), top if top > 0 or top > low else low + 1.0


MOST_STRIPS = 30  # rows that a page has room for

WITHIN, BETWEEN = PALETTE[0], PALETTE[1]


# --- which figure -----------------------------------------------------------------------------


def draw(result: object, which: str | None = None, **options: Any) -> Figure:
    """The figure `which` of a result (its main one by default).

    `FIGURES` lists them by the name of the result's class. `ConfigError` names an unknown figure,
    or a result that has none, and what there is.
    """
    known = figures_of(result)
    name = which or next(iter(known))
    if name not in known:
        raise unknown("figure", name, known)
    return known[name](result, **options)


# --- a line -----------------------------------------------------------------------------------


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

    All data sets are drawn; the barrier (from the chord between the ends) and the convexity gap
    (from the chord of the sub-segment where it is largest) are marked for `data`, by default the
    first. `metric` is a column of the table, by default the first metric that has one; pass
    "loss" for the upper panel alone.
    """
    table = result.table
    names = list(dict.fromkeys(table["data"]))
    marked = pick("data set", data, names)
    metrics = metric_columns(table)
    chosen = None if metric == "loss" or not metrics else pick("metric", metric, metrics)
    figure = new_figure(COLUMN, 3.9 if chosen else 2.8)
    rows = 2 if chosen else 1
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[3, 2][:rows])[:, 0]
    handles = [
        _draw_line(axes[0], table[table["data"] == name], "loss", PALETTE[n % len(PALETTE)], name)
        for n, name in enumerate(names)
    ]
    axes[0].set_ylabel(loss_label(result))
    _mark_ridge(axes[0], result, marked, handles)
    if chosen:
        for n, name in enumerate(names):
            part = table[table["data"] == name]
            if chosen in part and part[chosen].notna().any():
                _draw_line(axes[1], part, chosen, PALETTE[n % len(PALETTE)], name)
        axes[1].set_ylabel(metric_label(chosen))
    axes[-1].set_xlabel(_line_label(result.a, result.b))
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
        text = f"{label}{where} {row[column]:.3g} {interval(row, key)}".rstrip()
        if key == "gap" and np.isfinite(row.get("noise_floor", np.nan)):
            text += f", noise floor {row['noise_floor']:.2g}"
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
    first, last = (plain(label) for label in short_labels([a, b], 40))
    text = f"position t   (0 = {first}, 1 = {last})"
    return text if len(text) < 52 else f"position t\n0 = {first}\n1 = {last}"


# --- one checkpoint ---------------------------------------------------------------------------


@styled
def plot_evaluation(result: Evaluation) -> Figure:
    """The reliability diagram beside all metrics with their intervals."""
    if result.reliability is None:
        return plot_metrics(result)
    rows = len(result.metrics)
    figure = new_figure(PAGE, max(2.6, 0.32 * rows + 1.4))
    left, right = cast(Any, figure.subfigures)(1, 2, width_ratios=[1, 1.1])
    _reliability_panels(left, result)
    _metric_panels(right, result, [])
    figure.suptitle(
        f"{plain(shorten(result.checkpoint, 40))} on {plain(result.task)}:{plain(result.split)}",
        x=0.01,
        ha="left",
        fontsize=8,
    )
    return figure


@styled
def plot_reliability(result: Evaluation) -> Figure:
    """Accuracy against confidence per bin, with the number of examples below.

    Raises `ConfigError` where the task has no classes.
    """
    if result.reliability is None:
        raise ConfigError(
            f"{result.task} has no classes, so there is no reliability diagram",
            remedy="draw plot_metrics instead",
        )
    figure = new_figure(COLUMN, 3.3)
    _reliability_panels(figure, result)
    return figure


def _reliability_panels(figure: Any, result: Evaluation) -> None:
    table = cast(pd.DataFrame, result.reliability)
    full = table[table["count"] > 0]
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    width = full["upper"] - full["lower"]
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    upper.bar(
        full["lower"],
        full["accuracy"],
        width=width,
        align="edge",
        color=PALETTE[0],
        alpha=0.25,
        edgecolor="white",
        label="accuracy",
    )
    upper.plot(full["confidence"], full["accuracy"], "o-", color=PALETTE[0], linewidth=1)
    upper.vlines(
        full["confidence"],
        full["confidence"],
        full["accuracy"],
        color=PALETTE[1],
        linewidth=1.2,
        label="miscalibration",
    )
    figure.legend(loc="outside upper left", ncols=2, columnspacing=1)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    lower.bar(
        full["lower"],
        full["count"],
        width=width,
        align="edge",
        color=MUTED,
        alpha=0.55,
        edgecolor="white",
    )
    lower.set(xlabel="confidence (largest probability)", ylabel="examples")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    ece = result.metrics.get("ece")
    gap = float((full["count"] * (full["accuracy"] - full["confidence"]).abs()).sum())
    value = gap / float(full["count"].sum()) if ece is None else ece
    upper.set_title(f"calibration error (ECE) {value:.3f}, n = {int(full['count'].sum())}")


@styled
def plot_metrics(result: Evaluation, *, metric: str | None = None) -> Figure:
    """Every metric of an evaluation with its interval; below, one metric of every subset.

    `metric` is the one drawn for the subsets (by default the first that is not the loss).
    """
    subsets = result.subsets
    known = list(dict.fromkeys(subsets["metric"])) if len(subsets) else []
    headline = [name for name in known if name != "loss"] or known
    chosen = pick("metric", metric, [*headline, *known]) if known else None
    parts = subsets[subsets["metric"] == chosen] if chosen else subsets
    height = 0.23 * (len(result.metrics) + len(parts)) + 0.9 + (0.5 if len(parts) else 0)
    long = any(len(str(name)) > 20 for name in parts["subset"]) if chosen else False
    figure = new_figure(PAGE if long else COLUMN, max(height, 1.3))
    _metric_panels(figure, result, list(parts.itertuples()) if chosen else [], chosen)
    return figure


def _metric_panels(
    figure: Any, result: Evaluation, parts: list[Any], metric: str | None = None
) -> None:
    """Rows of dots with intervals: loss (its own axis), the other metrics, subsets."""
    groups: list[tuple[str, list[tuple[str, float, float, float]]]] = []
    rows = [(name, value, *result.intervals[name]) for name, value in result.metrics.items()]
    loss = [row for row in rows if row[0] == "loss"]
    if loss:
        groups.append((loss_label(result), [("loss", *loss[0][1:])]))
    others = [(metric_label(r[0]), *r[1:]) for r in rows if r[0] != "loss"]
    if others:
        groups.append(("", others))
    if parts:
        label = f"{metric_label(metric or '')} on subsets"
        groups.append(
            (
                label,
                [(f"{shorten(p.subset, 48)}  (n = {p.n})", p.value, p.low, p.high) for p in parts],
            )
        )
    panels = figure.subplots(
        len(groups), 1, squeeze=False, height_ratios=[len(g[1]) + 0.4 for g in groups]
    )[:, 0]
    for axes, (title, lines) in zip(panels, groups, strict=True):
        _dot_rows(axes, lines)
        axes.set_xlabel(title)
        if title != loss_label(result) and all(r[2] >= 0 and r[3] <= 1 for r in lines):
            axes.set_xlim(-0.02, 1.02)


def _dot_rows(axes: Axes, rows: Sequence[tuple[str, float, float, float]]) -> None:
    y = np.arange(len(rows))
    values, low, high = (np.array([row[c] for row in rows], dtype=float) for c in (1, 2, 3))
    axes.hlines(y, low, high, color=PALETTE[0], linewidth=1.4)
    axes.plot(values, y, "o", color=PALETTE[0], linestyle="none")
    axes.set_yticks(y, [plain(row[0]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.margins(x=0.12)
    for row_value, at in zip(values, y, strict=True):
        axes.annotate(
            f"{row_value:.3f}",
            (1, at),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color=INK,
            annotation_clip=False,
        )


# --- many checkpoints: order and basins -------------------------------------------------------


def _basin_handles(styles: dict[int, BasinStyle], shown: Sequence[int]) -> list[Line2D]:
    entries = [s for s in ordered_basins(styles) if any(styles[int(b)] == s for b in shown)]
    return [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle="none", label=s.label)
        for s in entries
    ]


# --- many checkpoints: the heat map -----------------------------------------------------------


@styled
def plot_heatmap(
    connection: Connection,
    quantity: str = "convexity_gap",
    *,
    order: str = "basin",
    ticks: str = "auto",
    data: str | None = None,
) -> Figure:
    """The matrix of pairs: light is flat, dark is a ridge; a strip on each side shows basins.

    `quantity` is a number of `pairs` (`quantities_of`); of shares (error agreement, same
    predictions), large is light, so that what is alike is light in every map. `order` is "basin",
    "seed" or a column of `endpoints`; `ticks` are checkpoint "names", the "values" of the column
    that orders ("auto": exactly then), or a column of `endpoints`. Values are printed in the cells
    up to 12 checkpoints; cells of pairs that were not walked are hatched.
    """
    pick("quantity", quantity, quantities_of(connection))
    pick("data set", data, list(connection.data))
    names = checkpoint_order(connection, order)
    values = connection.matrix(quantity, data).loc[names, names].to_numpy(float)
    n = len(names)
    side = COLUMN if n <= 24 else 4.6
    figure = new_figure(side, side * 0.94)
    axes = figure.subplots()
    off = values[~np.eye(n, dtype=bool) & np.isfinite(values)]
    low, top = quantity_range(quantity, off)
    axes.set_facecolor("#eef0f2")
    shown = np.where(np.eye(n, dtype=bool), np.nan, values)
    colours = SEQUENTIAL.reversed() if quantity in SHARES else SEQUENTIAL
    image = axes.imshow(shown, cmap=colours, vmin=low, vmax=top, interpolation="nearest")
    axes.set_box_aspect(1)
    _hatch_missing(axes, values)
    if n <= 12:
        _cell_values(axes, values, image, side)
    _heatmap_ticks(axes, connection, names, order, ticks)
    labelled = _basin_strips(axes, connection, names, order)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=22, pad=0.03)
    bar.outline.set_visible(False)
    several = len(connection.data) > 1 and quantity != "distance"
    where = f" on {plain(shorten(data or connection.data[0], 24))}" if several else ""
    bar.set_label(quantity_label(connection, quantity) + where)
    basins, styles = styles_of(connection)
    if not labelled:
        handles = _basin_handles(styles, list(basins))
        figure.legend(handles=handles, loc="outside lower left", ncols=2, columnspacing=1)
    return figure


def _hatch_missing(axes: Axes, values: Array) -> None:
    for i, j in np.argwhere(~np.isfinite(values)):
        axes.add_patch(_cell(i, j, hatch="////", edgecolor=GRID))


def _cell(i: int, j: int, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, linewidth=0, **style)


def _cell_values(axes: Axes, values: Array, image: Any, side: float) -> None:
    n = len(values)
    places = decimals(values)
    if n > 8:
        places = min(places, 2)
    texts = [[_cell_text(value, places) for value in row] for row in values]
    longest = max(len(text) for row in texts for text in row)
    # A digit is about 0.56 of the font size wide; leave some air in the cell.
    size = min(7.0, 0.6 * side * 72 / n * 0.85 / (0.56 * longest))
    for i, j in np.argwhere(np.isfinite(values)):
        if i == j:
            continue
        red, green, blue, _ = image.to_rgba(values[i, j])
        colour = INK if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=size, color=colour)


def _cell_text(value: float, places: int) -> str:
    """A number as short as it gets: no zero before the point."""
    text = f"{value:.{places}f}"
    return text[1:] if text.startswith("0.") else text


def _heatmap_ticks(
    axes: Axes, connection: Connection, names: list[str], order: str, ticks: str
) -> None:
    ordered_by = None if order in ("basin", "seed") else order
    if ticks == "values" and ordered_by is None:
        raise ConfigError(
            "heat map: ticks are 'values', but the order is not by a metric",
            remedy="pass order=<a column of endpoints>, ticks=<such a column>, or ticks='names'",
        )
    column = ordered_by if ticks in ("auto", "values") else None
    if ticks not in ("auto", "values", "names"):
        column = endpoint_column(connection, ticks, "ticks")
    step = -(-len(names) // 26)
    places = np.arange(0, len(names), step)
    if column is not None:
        values = connection.endpoints[column]
        labels = [f"{float(values[names[p]]):.3f}" for p in places]
        axes.set_xlabel(wrapped(plain(metric_label(column)), 44))
    else:
        labels = [plain(label) for label in short_labels([names[p] for p in places], 14)]
    size = (0.93 if len(places) <= 12 else 0.73) * float(matplotlib.rcParams["font.size"])
    turn = 0 if max(map(len, labels)) * len(labels) < 36 else 90
    axes.set_xticks(places, labels, rotation=turn, fontsize=size)
    axes.set_yticks(places, labels, fontsize=size)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _basin_strips(axes: Axes, connection: Connection, names: list[str], order: str) -> bool:
    """Coloured strips above and beside the matrix; True if every basin got its name there."""
    basins = basins_of(connection)
    if basins is None:
        return True
    _, styles = styles_of(connection)
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(styles[int(basins[name])].colour) for name in names])
    n = len(names)
    top = axes.inset_axes((0, 1.015, 1, 0.022))
    top.imshow(colours[None], aspect="auto", extent=(-0.5, n - 0.5, 0, 1), interpolation="nearest")
    right = axes.inset_axes((1.015, 0, 0.022, 1))
    right.imshow(
        colours[:, None], aspect="auto", extent=(0, 1, n - 0.5, -0.5), interpolation="nearest"
    )
    for strip in (top, right):
        strip.set_axis_off()
    if order != "basin":
        return False
    labels = [int(basins[name]) for name in names]
    edges = [i for i in range(1, n) if labels[i] != labels[i - 1]]
    for edge in edges:
        axes.axhline(edge - 0.5, color="white", linewidth=1.4)
        axes.axvline(edge - 0.5, color="white", linewidth=1.4)
    runs = list(zip([0, *edges], [*edges, n], strict=True))
    if any((stop - start) / n < 0.24 for start, stop in runs):
        return False
    for start, stop in runs:
        text = f"basin {labels[start]} (n = {stop - start})"
        axes.annotate(
            text,
            ((start + stop - 1) / 2, 1.05),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=0.87 * float(matplotlib.rcParams["font.size"]),
            annotation_clip=False,
            color=styles[labels[start]].colour,
        )
    return True


# --- many checkpoints: curves -----------------------------------------------------------------


@styled
def plot_curves(connection: Connection, data: str | None = None, *, column: str = "loss") -> Figure:
    """All curves, grouped into pairs within one basin and pairs between two.

    A panel per data set (or `data` alone). Thin lines are pairs; the thick line is their mean, the
    band holds the middle 80 % of them. `column` is "loss" or a metric of the curves.
    """
    chosen = [pick("data set", data, list(connection.data))] if data else list(connection.data)
    pick("column", column, ["loss", *metric_columns(connection.curves)])
    columns = min(len(chosen), 2)
    rows = -(-len(chosen) // columns)
    figure = new_figure(COLUMN if columns == 1 else PAGE, 2.5 * rows + 0.25)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    handles: dict[str, Line2D] = {}
    for axes, name in zip(panels, chosen, strict=False):
        handles |= _curve_panel(axes, connection, name, column)
        if len(chosen) > 1:
            axes.set_title(plain(name))
        axes.set_ylabel(loss_label(connection) if column == "loss" else metric_label(column))
        axes.set_xlabel("position t on the line")
    for axes in list(panels):
        axes.set_axis_off()
    figure.legend(
        handles=list(handles.values()), loc="outside upper left", ncols=2, columnspacing=1.2
    )
    return figure


def _curve_panel(axes: Axes, connection: Connection, data: str, column: str) -> dict[str, Line2D]:
    table = connection.curves[connection.curves["data"] == data]
    basins = basins_of(connection)
    groups: dict[str, list[tuple[Array, Array]]] = {}
    for a, b, *curve in split_curves(table, column):
        same = basins is not None and basins[a] == basins[b]
        name = "all pairs" if basins is None else "within a basin" if same else "between basins"
        groups.setdefault(name, []).append((curve[0], curve[1]))
    colours = {"within a basin": WITHIN, "between basins": BETWEEN, "all pairs": MUTED}
    handles = {}
    for name in (name for name in colours if name in groups):
        handles[name] = _curve_group(axes, groups[name], colours[name], name)
    axes.grid(axis="y")
    axes.margins(x=0.02)
    return handles


def _curve_group(axes: Axes, curves: list[tuple[Array, Array]], colour: str, name: str) -> Line2D:
    from matplotlib.collections import LineCollection

    many = len(curves) > 300
    lines = LineCollection(
        [np.column_stack(curve) for curve in curves],
        colors=colour,
        linewidths=0.5,
        alpha=float(np.clip(8 / len(curves), 0.01, 0.45)),
        rasterized=many,
        label=f"_{name}",
    )
    axes.add_collection(lines)
    # Lines may have been walked at different positions: compare them on the densest set.
    grid = max((curve[0] for curve in curves), key=len)
    values = np.array([np.interp(grid, *curve) for curve in curves])
    low, high = np.quantile(values, [0.1, 0.9], axis=0)
    axes.fill_between(grid, low, high, color=colour, alpha=0.16, linewidth=0)
    pairs = "pair" if len(curves) == 1 else "pairs"
    (mean,) = axes.plot(
        grid,
        values.mean(axis=0),
        color=colour,
        linewidth=1.8,
        zorder=5,
        label=f"{name} ({len(curves)} {pairs})",
    )
    return mean


# --- many checkpoints: behaviour --------------------------------------------------------------


@styled
def plot_basin_histogram(
    connection: Connection, metric: str | None = None, *, bins: int = 12, density: bool = True
) -> Figure:
    """How a metric of the checkpoints is distributed in each basin (every tick is a checkpoint).

    With `density`, the kernel density of every basin of at least three, in numbers per bin.
    """
    column = endpoint_metric(connection, metric)
    basins, styles = styles_of(connection)
    values = connection.endpoints[column].reindex(basins.index).astype(float)
    figure = new_figure(COLUMN, 2.5)
    axes = figure.subplots()
    low, high = float(values.min()), float(values.max())
    span = high - low or max(abs(high), 1.0) * 0.01
    edges = np.linspace(low - 0.02 * span, high + 0.02 * span, bins + 1)
    entries = ordered_basins(styles)
    members = [values[[styles[int(b)] == entry for b in basins]] for entry in entries]
    axes.hist(
        [m.to_numpy() for m in members],
        bins=list(edges),
        stacked=True,
        color=[e.colour for e in entries],
        edgecolor="white",
        linewidth=0.6,
        alpha=0.85,
        label=[e.label for e in entries],
    )
    if density:
        grid = np.linspace(edges[0], edges[-1], 200)
        for entry, member in zip(entries, members, strict=True):
            curve = kernel_density(member.to_numpy(float), grid)
            if curve is not None:
                heights = curve * len(member) * (edges[1] - edges[0])
                axes.plot(grid, heights, color=entry.colour, linewidth=1.1, label="_density")
    for entry, member in zip(entries, members, strict=True):
        axes.plot(
            member,
            np.full(len(member), -0.035),
            "|",
            color=entry.colour,
            markersize=5,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            zorder=6,
        )
    axes.tick_params(axis="x", pad=7)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=wrapped(plain(metric_label(column)), 48), ylabel="checkpoints")
    axes.set_title(_separation(connection, column))
    handles = [Patch(color=e.colour, alpha=0.85, label=e.label) for e in entries]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1)
    return figure


def _separation(connection: Connection, column: str) -> str:
    """How well a metric separates the largest basin from the rest, with the confound below it."""
    row = statistic(connection, column)
    if not row or not np.isfinite(row.get("auc", np.nan)):
        return ""
    text = f"AUC (basin 0 above the rest) {row['auc']:.2f} {interval(row, 'auc', '.2f')}".rstrip()
    if np.isfinite(row.get("p_value", np.nan)):
        text += f", {format_p(float(row['p_value']))}"
    table = cast(pd.DataFrame, connection.statistics)
    confound = table[table["role"] == "in-domain"] if "role" in table else table[:0]
    if len(confound) and row.get("role") != "in-domain":
        name = plain(metric_label(confound["metric"].iloc[0]))
        text += "\n" + wrapped(f"in domain ({name}): AUC {confound['auc'].iloc[0]:.2f}", 56)
    return text


@styled
def plot_centroid_scatter(connection: Connection, metric: str | None = None) -> Figure:
    """A metric against the difference of the distances to the two basins' centroids.

    The least-squares line, Pearson's r with its two-sided p (by permutation where the study
    computed it), and the basins as colours. Raises
    `ConfigError` where the study has no two basins.
    """
    column = endpoint_metric(connection, metric)
    difference = getattr(connection.clustering, "centroid_difference", None)
    basins, styles = styles_of(connection)
    if difference is None or basins.nunique() < 2:
        raise ConfigError(
            "the centroid scatter needs at least two basins, and this study has "
            + ("none" if basins_of(connection) is None else "one"),
            remedy="draw plot_endpoints or plot_basin_histogram instead",
        )
    x = by_name(difference, connection.names)
    y = connection.endpoints[column].reindex(list(connection.names)).astype(float)
    figure = new_figure(COLUMN, 2.7)
    axes = figure.subplots()
    axes.grid()
    for basin in sorted(set(basins)):
        style = styles[int(basin)]
        members = basins.index[basins == basin]
        axes.plot(
            x[members],
            y[members],
            style.marker,
            color=style.colour,
            linestyle="none",
            markeredgecolor="white",
            markeredgewidth=0.5,
            markersize=5,
        )
    known_p = statistic(connection, column).get("predictor_p")
    axes.set_title(_correlate(axes, x.to_numpy(), y.to_numpy(), known_p))
    axes.set(
        xlabel="distance to the centroid of basin 1 minus that of basin 0",
        ylabel=wrapped(plain(metric_label(column)), 32),
    )
    handles = _basin_handles(styles, list(basins))
    figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1)
    return figure


def _correlate(axes: Axes, x: Array, y: Array, known_p: float | None) -> str:
    """Draw the least-squares line; say r and p. Undefined for two points or a constant.

    `known_p` is the study's p by permutation; without it, p is that of a normal sample, which two
    clumps of points are not.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"r is undefined here (n = {len(x)})"
    from scipy import stats

    fit = stats.linregress(x, y)
    ends = np.array([x.min(), x.max()])
    axes.plot(
        ends, fit.intercept + fit.slope * ends, color=MUTED, linewidth=1, zorder=1, label="_fit"
    )
    r = f"{fit.rvalue:.2f}".replace("-", "\N{MINUS SIGN}")
    if known_p is not None and np.isfinite(known_p):
        return f"r = {r}, {format_p(float(known_p))} (permutation), n = {len(x)}"
    return f"r = {r}, {format_p(float(fit.pvalue))}, n = {len(x)}"


@styled
def plot_endpoints(
    connection: Connection, metric: str | None = None, *, columns: Sequence[str] | None = None
) -> Figure:
    """Every checkpoint on every data set and subset: a strip of dots per column of `endpoints`.

    `columns` are the strips; by default all columns of one `metric` ("accuracy", ...), itself by
    default the metric of the first out-of-distribution column. Of more than 30, the data sets
    themselves and the subsets on which the checkpoints differ most, which the title says.
    """
    known = list(map(str, connection.endpoints.columns))
    every = 0
    if columns is None:
        kinds = list(dict.fromkeys(c.rpartition("/")[2] for c in known))
        kind = pick("metric", metric or default_metric(connection).rpartition("/")[2], kinds)
        columns = [c for c in known if c.rpartition("/")[2] == kind]
        every, columns = len(columns), _that_differ(connection, columns, MOST_STRIPS)
    for column in columns:
        endpoint_column(connection, column)
    basins, styles = styles_of(connection)
    labels = [plain(c.rpartition("/")[0]) for c in columns]
    wide = max(map(len, labels)) > 22
    figure = new_figure(PAGE if wide else COLUMN, 0.27 * len(columns) + 0.95)
    axes = figure.subplots()
    for row, column in enumerate(columns):
        _strip(axes, row, connection.endpoints[column].reindex(basins.index), basins, styles)
    axes.set_yticks(range(len(columns)), [shorten(label, 52) for label in labels])
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    units = {metric_label(c.rpartition("/")[2]) for c in columns}
    axes.set_xlabel(units.pop() if len(units) == 1 else "value")
    handles = _basin_handles(styles, list(basins))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=4 if wide else 2, columnspacing=1
    )
    if len(columns) < every:
        axes.set_title(f"the {len(columns)} of {every} that differ most between checkpoints")
    return figure


def _that_differ(connection: Connection, columns: Sequence[str], most: int) -> list[str]:
    """At most `most` columns, in their order: data sets, then those of largest spread."""
    spread = connection.endpoints[list(columns)].std().fillna(0.0)
    ranked = sorted(columns, key=lambda c: (c.count("/") > 1, -float(spread[c])))
    kept = set(ranked[:most])
    return [column for column in columns if column in kept]


def _strip(
    axes: Axes, row: int, values: pd.Series, basins: pd.Series, styles: dict[int, BasinStyle]
) -> None:
    """One row of dots; basins sit at slightly different heights so that they do not hide."""
    entries = ordered_basins(styles)
    axes.axhline(row, color=GRID, linewidth=0.5, zorder=0)
    for level, entry in enumerate(entries):
        members = values[[styles[int(b)] == entry for b in basins]].astype(float)
        shift = 0.0 if len(entries) == 1 else 0.3 * (level / (len(entries) - 1) - 0.5)
        axes.plot(
            members,
            np.full(len(members), row + shift),
            entry.marker,
            color=entry.colour,
            linestyle="none",
            markersize=3.6,
            alpha=0.75,
            markeredgewidth=0,
        )


@styled
def plot_eigenvalues(connection: Connection) -> Figure:
    """Eigenvalues of the affinity's Laplacian, with the gap that chose the number of basins."""
    clustering = connection.clustering
    if clustering is None:
        raise ConfigError(
            "this study has no basins: not all pairs were walked",
            remedy="run connect without a list of pairs",
        )
    values = np.asarray(clustering.eigenvalues, dtype=float)
    shown = values[: min(len(values), 20)]
    k = int(clustering.n_basins)
    figure = new_figure(COLUMN, 2.3)
    axes = figure.subplots()
    axes.plot(np.arange(1, len(shown) + 1), shown, "o-", color=PALETTE[0], linewidth=0.8)
    if k < len(shown):
        axes.axvspan(k, k + 1, color=PALETTE[1], alpha=0.12, linewidth=0)
        text = (
            f"{k} basin{'s' if k > 1 else ''}: gap {values[k] - values[k - 1]:.2g} after rank {k}"
        )
        axes.set_title(text)
    else:
        axes.set_title(f"{k} basins")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="rank", ylabel="eigenvalue")
    axes.grid(axis="y")
    return figure


# --- training ---------------------------------------------------------------------------------


@styled
def plot_training(result: Training, *, column: str = "loss") -> Figure:
    """A column of the training history (the loss by default) against the step, a line per run."""
    history = result.history
    for needed in ("run", "step", column):
        if needed not in history:
            raise unknown("column", needed, [str(c) for c in history.columns])
    figure = new_figure(COLUMN, 2.4)
    axes = figure.subplots()
    runs = list(history.dropna(subset=[column]).groupby("run", sort=False))
    for n, (run, part) in enumerate(runs):
        part = part.sort_values("step")
        colour = PALETTE[n % len(PALETTE)] if len(runs) <= len(PALETTE) else PALETTE[0]
        axes.plot(
            part["step"],
            part[column],
            color=colour,
            label=f" {shorten(plain(run))}",
            alpha=1 if len(runs) <= len(PALETTE) else 0.4,
            linewidth=1,
        )
    label = "training " + loss_label(result) if column == "loss" else metric_label(column)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(axis="y")
    if 1 < len(runs) <= len(PALETTE):
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1)
    else:
        axes.set_title(f"{len(runs)} run{'s' if len(runs) != 1 else ''}")
    return figure


FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Evaluation": {
        "evaluation": plot_evaluation,
        "reliability": plot_reliability,
        "metrics": plot_metrics,
    },
    "Interpolation": {"interpolation": plot_interpolation},
    "Training": {"training": plot_training},
    "Connection": {
        "heatmap": plot_heatmap,
        "curves": plot_curves,
        "histogram": plot_basin_histogram,
        "scatter": plot_centroid_scatter,
        "endpoints": plot_endpoints,
        "eigenvalues": plot_eigenvalues,
        "ridges": plot_ridges,
        "transitivity": plot_transitivity,
    },
    **BOUNDARY_FIGURES,
    **CARTOGRAPHY_FIGURES,
    **CONNECTIVITY_FIGURES,
    **DROPOUT_FIGURES,
    **EXAMPLE_FIGURES,
    **AVERAGE_FIGURES,
    **FISHER_FIGURES,
    **INFLUENCE_FIGURES,
    **KNOWLEDGE_FIGURES,
    **LANDSCAPE_FIGURES,
    **MIXING_FIGURES,
    **SPECTRUM_FIGURES,
    **COMPARISON_FIGURES,
}
"""The figures of each kind of result, its main one first."""


def _plot_two_agree(
    results: Mapping[str, Any], *, labels: Sequence[str] | None = None, points: int = 20_000
) -> Figure:
    """`plot_agreement` of exactly two results, each named by its key."""
    meant = sum(len(r) if isinstance(r, list) else 1 for r in results.values())
    if (len(results), meant) != (2, 2):
        raise ConfigError(
            f"agreement compares two results, and {meant} are meant: {', '.join(results)}",
            remedy="name two results of landform influence that scored the same rows",
        )
    names = list(labels or results)
    if len(names) != 2:
        raise ConfigError(f"agreement has two labels, got {len(names)}: {', '.join(names)}")
    first, second = results.values()
    return plot_agreement(first, second, labels=(names[0], names[1]), points=points)


TOGETHER: dict[str, Callable[..., Figure]] = {
    "surfaces": plot_surfaces,
    "score_distributions": plot_score_distributions,
    "agreement": _plot_two_agree,
    "landscapes": plot_landscapes,
    **FISHER_TOGETHER,
}
"""The figures of several results: each takes them as a mapping from names."""

OPERANDS: dict[str, tuple[str, ...]] = {
    "surfaces": ("Surface",),
    "score_distributions": ("Connection", "Evaluation"),
    "agreement": ("Influence",),
    "landscapes": ("Surface", "Landscape"),
    **FISHER_OPERANDS,
}
"""The kinds of results that a figure of several takes."""


def save_all(
    results: Mapping[str, object], folder: str | os.PathLike[str], *, suffix: str = ".pdf"
) -> list[Path]:
    """Write every figure of every result as `<name>-<figure><suffix>`; the files written.

    A figure that does not exist for a result (a centroid scatter of one basin, say) is left out.
    """
    written = []
    for name, result in results.items():
        for which in figures_of(result):
            try:
                figure = draw(result, which)
            except ConfigError:
                continue
            written.append(save(figure, Path(folder) / f"{name}-{which}{suffix}"))
    return written


def figures_of(result: object) -> dict[str, Callable[..., Figure]]:
    """The figures of a result by name, its main one first; `ConfigError` where it has none."""
    for kind in type(result).__mro__:
        if kind.__name__ in FIGURES:
            return FIGURES[kind.__name__]
    raise ConfigError(
        f"there is no figure of a {type(result).__name__}",
        remedy=f"figures exist for: {', '.join(sorted(FIGURES))}",
    )
