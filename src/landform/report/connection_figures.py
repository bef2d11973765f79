"""Figures of lines between all pairs of many checkpoints, and of what their basins do.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from landform.errors import ConfigError
from landform.report.connections import (
    CENTROID_AXIS,
    basins_of,
    by_name,
    default_metric,
    endpoint_column,
    endpoint_metric,
    metric_columns,
    split_curves,
    statistic,
    styles_of,
)
from landform.report.connectivity_figures import plot_transitivity
from landform.report.group_figures import (
    kernel_density,
    plot_ridges,
)
from landform.report.style import (
    COLUMN,
    GRID,
    MUTED,
    PAGE,
    PALETTE,
    BasinStyle,
    Figure,
    column_label,
    format_p,
    interval,
    metric_label,
    new_figure,
    number,
    ordered_basins,
    pick,
    plain,
    shorten,
    styled,
    wrapped,
)

if TYPE_CHECKING:
    from landform.studies.connect import Connection
from landform.report.connections import basin_handles
from landform.report.heatmap_figures import plot_heatmap

__all__ = [
    "CONNECTION_FIGURES",
    "plot_basin_histogram",
    "plot_centroid_scatter",
    "plot_curves",
    "plot_eigenvalues",
    "plot_endpoints",
]

Array = np.ndarray

MOST_STRIPS = 30  # rows that a page has room for

WITHIN, BETWEEN = PALETTE[0], PALETTE[1]


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
        axes.set_ylabel(column_label(connection, column))
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
        xlabel=CENTROID_AXIS,
        ylabel=wrapped(plain(metric_label(column)), 32),
    )
    handles = basin_handles(styles, list(basins))
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
    r = number(fit.rvalue, ".2f")
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
    handles = basin_handles(styles, list(basins))
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


CONNECTION_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
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
}
