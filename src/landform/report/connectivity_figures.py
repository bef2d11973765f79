"""Figures of connectivity beyond lines: sharpness, bent paths, complexes, triangles, ridges, time.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure. In figures of paths the curve is
drawn in full colour and the straight line beside it is dashed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
)

from landform.errors import ConfigError
from landform.report.connections import CENTROID_AXIS
from landform.report.style import (
    COLUMN,
    INK,
    LONE,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    is_known,
    loss_unit_of,
    metric_label,
    new_figure,
    number,
    percent,
    percent_ticks,
    plain,
    shorten,
    styled,
    wrapped,
)
from landform.report.surface_figures import plot_surface, plot_surface_3d, plot_surfaces

if TYPE_CHECKING:
    from landform.geometry.ridge import Ridge
    from landform.geometry.transitivity import Transitivity
    from landform.studies.connect import Connection
    from landform.studies.dynamics import Dynamics
    from landform.weights.alignment import AlignmentReport

from landform.report.path_figures import plot_complex, plot_fit, plot_path, plot_path_distances
from landform.report.sharpness_figures import plot_climb, plot_sharpness_scatter

__all__ = [
    "CONNECTIVITY_FIGURES",
    "plot_alignment",
    "plot_dynamics",
    "plot_ridge",
    "plot_transitivity",
]

Array = np.ndarray

DASHED = (0, (4, 3))
SWITCHED = PALETTE[3]


# --- triangles --------------------------------------------------------------------------------


@styled
def plot_transitivity(result: Transitivity | Connection, *, bins: int = 20) -> Figure:
    """By how much the triangle inequality of the gaps is violated: a histogram with counts.

    A triple violates it when its longest side exceeds the sum of the other two; the axis is that
    excess in percent of the longest side. Of a connection, its triangles are drawn. Raises
    `ConfigError` where it has none, and where no triple violates the inequality.
    """
    result = _triangles(result)
    table = result.table[result.table["excess"] > 0]
    values = table["percent"].to_numpy(float)
    values = values[np.isfinite(values)]
    if not len(values):
        raise ConfigError(
            f"none of {result.triples} triples violates the triangle inequality, so there is"
            " nothing to draw",
            remedy="read the result's numbers instead",
        )
    figure = new_figure(COLUMN, 2.4)
    axes = figure.subplots()
    low, high = (0.0, float(values.max()) or 1.0)
    counts, _, bars = axes.hist(
        values, bins=min(bins, max(4, int(np.sqrt(len(values)) * 2))), range=(low, high),
        color=PALETTE[0], alpha=0.8, edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    labels = [f"{int(count)}" if count else "" for count in cast(Array, counts)]
    axes.bar_label(cast(Any, bars), labels=labels, fontsize="x-small", padding=1, color=INK)
    axes.axvline(result.mean_percent, color=PALETTE[1], linewidth=1, linestyle=DASHED)
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="excess, in % of the direct gap", ylabel="triples")
    axes.set_title(
        f"{result.violations} of {result.triples} triples ({100 * result.share:.3g} %) violate"
        f" the\ntriangle inequality; dashed: their mean, {result.mean_percent:.3g} %"
    )
    return figure


def _triangles(result: Any) -> Transitivity:
    found = result if hasattr(result, "triples") else getattr(result, "transitivity", None)
    if found is None:
        raise ConfigError(
            "this study has no triangles: not all pairs were walked",
            remedy="run connect without a list of pairs, on three checkpoints or more",
        )
    return cast("Transitivity", found)


# --- who rises --------------------------------------------------------------------------------


@styled
def plot_ridge(result: Ridge, *, k: int = 5) -> Figure:
    """Which examples make a ridge: their rises, sorted; what share of it the first ones carry.

    Upper left, the rise of every example above its own chord, on a symmetric logarithmic axis
    where few of them dwarf the others; lower left, the running share of all that rises, which is
    the table `shares`; right, the `k` examples that rise most.
    """
    rises = result.table["rise"].to_numpy(float)
    rank = np.arange(1, len(rises) + 1)
    figure = new_figure(PAGE, 3.3)
    left, right = cast(Any, figure.subfigures)(1, 2, width_ratios=[1, 1.15])
    upper, lower = left.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    for side, colour in ((rises > 0, PALETTE[1]), (rises <= 0, PALETTE[0])):
        upper.fill_between(
            rank, 0, np.where(side, rises, 0.0), step="mid", color=colour, alpha=0.75, linewidth=0
        )
    upper.axhline(0, color=INK, linewidth=0.6)
    upper.set_ylabel(f"rise ({loss_unit_of(result)}){_tame(upper, rises)}")
    rising = percent(result.rising)
    upper.set_title(f"{rising} of {len(rises):,} examples rise at t = {result.t:.3g}")
    positive = np.clip(rises, 0, None)
    total = positive.sum()
    share = np.cumsum(positive) / total if total > 0 else np.zeros(len(rises))
    lower.plot(rank, share, color=INK, linewidth=1.2, label="_share")
    for row in result.shares.to_dict("records"):
        lower.plot(
            [row["examples"]], [row["share_of_rise"]], "o", color=PALETTE[1], markersize=3,
            label="_shares",
        )  # fmt: skip
    percent_ticks(lower.yaxis)
    lower.set(xlabel="examples, largest rise first", ylabel="share of the rise", ylim=(0, 1.03))
    for axes in (upper, lower):
        axes.grid(axis="y")
        axes.margins(x=0.01)
    _ridge_texts(right, result, k)
    return figure


def _tame(axes: Axes, rises: Array) -> str:
    """A logarithmic axis on both sides of 0 where the largest rises dwarf the others; its note.

    It is linear within the smallest power of ten that holds the middle half of the examples, but
    not within less than a thousandth of the largest.
    """
    sizes = np.abs(rises[np.isfinite(rises)])
    top = float(sizes.max(initial=0.0))
    middle = float(np.quantile(sizes, 0.5)) if len(sizes) else 0.0
    if top <= 0 or middle > top / 30:
        return ""
    linear = 10.0 ** np.ceil(np.log10(max(middle, top / 1000)))
    axes.set_yscale("symlog", linthresh=linear, linscale=0.6)
    # Every other power of ten where there are many.
    powers = np.arange(round(np.log10(linear)), np.floor(np.log10(top)) + 1)
    powers = powers[:: 2 if len(powers) > 2 else 1]
    axes.yaxis.set_major_locator(FixedLocator([*(-(10.0**powers)), 0.0, *(10.0**powers)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, "g")))
    return f"\nlog beyond \N{PLUS-MINUS SIGN}{linear:g}"


def _ridge_texts(figure: Any, result: Ridge, k: int) -> None:
    """The texts of the examples that rise most, one under the other."""
    axes = figure.subplots()
    axes.set_axis_off()
    y = 1.0
    axes.text(0, y, "largest rises", weight="bold", va="top", transform=axes.transAxes)
    y -= 0.085
    for row in result.table.head(k).to_dict("records"):
        words = " ".join(str(row.get("text", row.get("id", ""))).split())
        lines = textwrap.wrap(words, 62)[:2] or [""]
        if len(" ".join(lines)) < len(words):
            lines[-1] = f"{lines[-1][:60].rstrip()}\N{HORIZONTAL ELLIPSIS}"
        label = f", {plain(shorten(row['label'], 18))}" if is_known(row.get("label")) else ""
        numbers = f"chord {row['chord']:.2g}, loss {row['loss']:.2g}{label}"
        head = f"{number(row['rise'], '+.3g')}  ({numbers})"
        axes.text(0, y, head, va="top", color=PALETTE[1], transform=axes.transAxes)
        body = "\n".join(plain(line) for line in lines)
        axes.text(0, y - 0.055, body, va="top", fontsize="small", transform=axes.transAxes)
        y -= 0.1 + 0.05 * len(lines)
        if y < 0.08:
            break


# --- over time --------------------------------------------------------------------------------


@styled
def plot_dynamics(result: Dynamics, *, names: bool = False) -> Figure:
    """How checkpoints move between basins while they are trained: an arrow per step.

    x is the difference of the distances to the centroids of the two basins in the spectral
    embedding of each step (labels aligned over time), y the metric. Grey arrows stay in their
    basin, coloured ones with diamonds switch; `names` writes the checkpoints beside their last
    point. The title has the adjusted Rand index of the first step with the last.
    """
    table = result.positions
    figure = new_figure(COLUMN, 3.0)
    axes = figure.subplots()
    counts = {False: 0, True: 0}
    for name, part in table.groupby("name", sort=False):
        part = part.sort_values("step")
        x, y = part["x"].to_numpy(float), part["performance"].to_numpy(float)
        switched = part["switched"].to_numpy(bool)
        _arrows(axes, x, y, switched[1:])
        moved = bool(switched.any())
        counts[moved] += 1
        axes.plot(
            x[:1], y[:1], ".", color=MUTED, markersize=3, linestyle="none", label="_first", zorder=3
        )
        if names and len(x):
            axes.annotate(
                plain(shorten(name, 14)), (x[-1], y[-1]), xytext=(4, 2), fontsize="x-small",
                textcoords="offset points",
            )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=0.6, linestyle=DASHED, zorder=0)
    axes.grid()
    axes.margins(0.08)
    axes.set(
        xlabel=CENTROID_AXIS,
        ylabel=wrapped(plain(metric_label(result.metric)), 34),
    )
    axes.set_title(_agreement_title(result))
    handles = [
        Line2D([], [], color=LONE, marker="o", markersize=4, linewidth=1,
               label=f"stays in its basin (n = {counts[False]})"),
        Line2D([], [], color=SWITCHED, marker="D", markersize=4, linewidth=1,
               label=f"switches (n = {counts[True]})"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1)
    return figure


def _arrows(axes: Axes, x: Array, y: Array, switched: Array) -> None:
    for mask, colour, marker, order in (
        (~switched, LONE, "o", 2),
        (switched, SWITCHED, "D", 4),
    ):
        if not mask.any():
            continue
        axes.quiver(
            x[:-1][mask], y[:-1][mask], np.diff(x)[mask], np.diff(y)[mask], angles="xy",
            scale_units="xy", scale=1, color=colour, width=0.005, headwidth=4, headlength=5,
            zorder=order, label="_switching" if order == 4 else "_staying",
        )  # fmt: skip
        axes.plot(
            x[1:][mask], y[1:][mask], marker, color=colour, linestyle="none", zorder=order + 1,
            markersize=4 if order == 4 else 3, markeredgecolor="white", markeredgewidth=0.4,
            label="_switched" if order == 4 else "_stayed",
        )  # fmt: skip


def _agreement_title(result: Dynamics) -> str:
    steps = result.steps
    text = f"steps {', '.join(map(str, steps))}"
    table = result.agreement
    rows = table[(table["step_a"] == steps[0]) & (table["step_b"] == steps[-1])]
    if len(rows):
        value = number(float(rows["adjusted_rand"].iloc[0]), ".2f")
        agree = f"adjusted Rand index, first with last: {value}"
        return f"{wrapped(text, 62)}{'; ' if len(text + agree) < 58 else chr(10)}{agree}"
    return wrapped(text, 62)


# --- permutations -----------------------------------------------------------------------------


@styled
def plot_alignment(result: AlignmentReport) -> Figure:
    """The distance of every aligned part of two models, before and after the permutation."""
    table = result.parts
    labels = [_part_label(cast(dict[str, Any], row)) for row in table.to_dict("records")]
    figure = new_figure(COLUMN, 0.2 * len(table) + 1.1)
    axes = figure.subplots()
    y = np.arange(len(table))
    before, after = (table[f"distance_{when}"].to_numpy(float) for when in ("before", "after"))
    axes.hlines(y, after, before, color=MUTED, linewidth=1)
    whole = (result.distance_before, result.distance_after)
    for values, marker, colour, words in (
        (before, "o", MUTED, f" before ({whole[0]:.3g} in all)"),
        (after, "D", PALETTE[0], f" after ({whole[1]:.3g} in all)"),
    ):
        axes.plot(values, y, marker, color=colour, linestyle="none", label=words)
    axes.set_yticks(y, [plain(label) for label in labels])
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("distance (L2)")
    axes.set_title("moved", loc="right", fontsize="small", color=MUTED)
    for place, (moved, size) in enumerate(zip(table["moved"], table["size"], strict=True)):
        axes.annotate(
            f"{int(moved)}/{int(size)}", (1, place), xycoords=("axes fraction", "data"),
            ha="right", va="center", fontsize="small", color=MUTED, annotation_clip=False,
        )  # fmt: skip
    # The right part of the plot is for the counts.
    known = [value for value in (*before, *after) if np.isfinite(value)]
    span = max(known, default=1.0) - min(known, default=0.0) or 1.0
    axes.set_xlim(min(known, default=0.0) - 0.06 * span, max(known, default=1.0) + 0.36 * span)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    figure.legend(loc="outside upper left", ncols=2, columnspacing=1)
    return figure


def _part_label(row: dict[str, Any]) -> str:
    layer = str(row["layer"]) if is_known(row["layer"]) else ""
    part = str(row["part"]).replace("_", "-")
    where = f"layer {layer}, " if layer.isdigit() else f"{shorten(layer, 16)}, " if layer else ""
    return f"{where}{part}"


CONNECTIVITY_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Surface": {
        "surface": plot_surface,
        "surface3d": plot_surface_3d,
        "surfaces": plot_surfaces,
    },
    "Sharpness": {"climb": plot_climb},
    "SharpnessComparison": {"sharpness": plot_sharpness_scatter},
    "CurveFit": {"fit": plot_fit},
    "PathEvaluation": {"path": plot_path, "distances": plot_path_distances},
    "ComplexFit": {"complex": plot_complex},
    "Transitivity": {"transitivity": plot_transitivity},
    "Ridge": {"ridge": plot_ridge},
    "Dynamics": {"dynamics": plot_dynamics},
    "AlignmentReport": {"alignment": plot_alignment},
}
