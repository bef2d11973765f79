"""Figures of training dynamics: the data map, and how a run came to it epoch by epoch.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure. Blue is right after every epoch,
vermilion after none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
)

from landform.report.style import (
    COLUMN,
    HATCHED,
    INK,
    MUTED,
    PALETTE,
    Figure,
    new_figure,
    percent,
    percent_ticks,
    plain,
    styled,
)

if TYPE_CHECKING:
    from landform.evaluation.cartography import DataMap

__all__ = [
    "CARTOGRAPHY_FIGURES",
    "CORRECTNESS_COLOURS",
    "drawn_rows",
    "plot_data_map",
    "plot_epochs",
]

# From never right to always right; all of them are seen on white, and by colour-blind readers.
CORRECTNESS_COLOURS = ("#a63603", "#e06c1b", "#e8a33d", "#8dbfd0", "#3a8fc4", "#08589e")
CORRECTNESS = LinearSegmentedColormap.from_list("correctness", CORRECTNESS_COLOURS)

MANY = 3000  # from so many dots on, a dot alone is not looked at


def drawn_rows(table: pd.DataFrame, points: int, seed: int = 0) -> np.ndarray:
    """Positions of the rows that are drawn, in the order of drawing: at most `points`, at random.

    In the order of the file, the last class of a sorted file would cover the others. Those that
    were forgotten come last.
    """
    order = np.random.default_rng(seed).permutation(len(table))[:points]
    forgotten = table["forgetting"].to_numpy()[order] > 0
    return np.concatenate([order[~forgotten], order[forgotten]])


@styled
def plot_data_map(result: DataMap, *, points: int = 20_000, seed: int = 0) -> Figure:
    """The data map: mean confidence against its variability, a dot per training example.

    Colours are the share of epochs after which the model is right; a dark ring marks examples that
    were forgotten at least once. The histograms are of all examples, also where no more than
    `points` are drawn. Dashed: sqrt(mu (1 - mu)), the largest deviation that probabilities of mean
    mu can have.
    """
    table = result.table
    figure = new_figure(COLUMN, 3.55)
    grid = figure.add_gridspec(2, 2, width_ratios=(4.6, 1), height_ratios=(1, 4.6))
    axes = figure.add_subplot(grid[1, 0])
    _dots(axes, table, drawn_rows(table, points, seed))
    top = max(0.05, 1.12 * float(table["variability"].max()))
    top = max(top, 0.545) if top > 0.47 else top  # room for a word right of the dashed line
    mean = np.linspace(0, 1, 201)
    axes.plot(np.sqrt(mean * (1 - mean)), mean, "--", color=MUTED, linewidth=0.7, zorder=1)
    axes.set(xlim=(-0.02 * top, top), ylim=(-0.075, 1.075))
    axes.set(xlabel="variability (standard deviation over epochs)", ylabel="mean confidence")
    axes.yaxis.set_major_locator(FixedLocator(np.linspace(0, 1, 6).tolist()))
    axes.grid()
    # Beyond where examples can lie, so that no word covers any.
    _word(axes, 0.02 * top, 1.012, "easy", va="bottom")
    _word(axes, 0.02 * top, -0.012, "hard", va="top")
    _word(axes, 0.995 * top, 0.5, "ambiguous", ha="right", va="center", rotation=270)
    above = figure.add_subplot(grid[0, 0])
    _margin(above, table["variability"], axes.get_xlim(), upright=True)
    _margin(figure.add_subplot(grid[1, 1]), table["confidence"], axes.get_ylim(), upright=False)
    _legend(figure, table)
    if len(table) > points:
        above.set_title(f"{points:,} of {len(table):,} examples are drawn", fontsize=6.5)
    return figure


def _dots(axes: Axes, table: pd.DataFrame, rows: np.ndarray) -> None:
    drawn = table.iloc[rows]
    ringed = drawn["forgetting"].to_numpy() > 0
    many = len(rows) > MANY
    for mask, order in ((~ringed, 2), (ringed, 3)):
        part = drawn[mask]
        axes.scatter(
            part["variability"],
            part["confidence"],
            s=3.5 if many else 9,
            c=part["correctness"],
            cmap=CORRECTNESS,
            norm=_levels(int(table["epochs"].iloc[0])),
            linewidths=(0.3 if many else 0.55) * (order == 3),
            edgecolors=INK if order == 3 else "none",
            alpha=(0.45 if many else 0.7) if order == 2 else 0.9,
            # Thousands of dots as an image: the letters around them stay letters.
            rasterized=len(rows) > 500,
            zorder=order,
        )


def _word(axes: Axes, x: float, y: float, words: str, **options: Any) -> None:
    axes.text(x, y, words, color=MUTED, fontsize=6.5, fontstyle="italic", zorder=6, **options)


def _margin(axes: Axes, values: pd.Series, limits: tuple[float, float], *, upright: bool) -> None:
    """The histogram of one coordinate along its axis, counts on a log scale."""
    low, high = max(limits[0], 0.0), min(limits[1], 1.0)
    orientation: Any = "vertical" if upright else "horizontal"
    axes.hist(
        values, bins=np.linspace(low, high, 41).tolist(), orientation=orientation, color=MUTED,
        alpha=0.6, linewidth=0, log=True,
    )  # fmt: skip
    axes.set(**{"xlim" if upright else "ylim": limits})
    along, across = (axes.xaxis, axes.yaxis) if upright else (axes.yaxis, axes.xaxis)
    along.set_ticklabels([])
    across.set_major_locator(_decades(axes.get_ylim() if upright else axes.get_xlim()))
    across.set_minor_locator(MaxNLocator(1))
    across.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    across.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    across.set_tick_params(which="minor", length=0)
    across.set_tick_params(labelsize=6)
    axes.set(**{"ylabel" if upright else "xlabel": "examples"})
    if upright:
        axes.yaxis.label.set_fontsize(6.5)
    else:
        axes.xaxis.label.set_fontsize(6.5)


def _decades(limits: tuple[float, float]) -> Any:
    top = int(np.floor(np.log10(max(limits[1], 1.0))))
    return FixedLocator([10.0**k for k in range(0, top + 1, max(1, (top + 1) // 2))])


def _legend(figure: Figure, table: pd.DataFrame) -> None:
    epochs = int(table["epochs"].iloc[0])
    forgotten = float((table["forgetting"] > 0).mean())
    scale = ScalarMappable(_levels(epochs), CORRECTNESS)
    bar = figure.colorbar(
        scale, ax=figure.axes, location="bottom", aspect=42, fraction=0.04, pad=0.015
    )
    bar.outline.set_visible(False)
    bar.set_label("correctness: epochs after which the model is right", fontsize=7)
    bar.ax.tick_params(labelsize=6.5, length=0 if epochs <= FEW else 2)
    if epochs <= FEW:
        marks = [k / epochs for k in range(epochs + 1)]
        bar.set_ticks(
            marks, labels=[f"{k} of {epochs}" if k == epochs else str(k) for k in range(epochs + 1)]
        )
    ring = Line2D(
        [], [], marker="o", linestyle="none", markersize=4, markerfacecolor="none",
        markeredgecolor=INK, markeredgewidth=0.7, label=f"forgotten at least once "
        f"({percent(forgotten)})",
    )  # fmt: skip
    bound = Line2D([], [], color=MUTED, linestyle="--", linewidth=0.7, label="largest possible")
    figure.legend(handles=[ring, bound], loc="outside upper left", ncols=2, columnspacing=1.2)


FEW = 12  # epochs whose number of right answers is one of so few that each has its colour


def _levels(epochs: int) -> Normalize:
    """A colour for each of the shares 0, 1/E, ..., 1 that E epochs can have."""
    if epochs > FEW:
        return Normalize(0, 1)
    edges = (np.arange(epochs + 2) - 0.5) / epochs
    return BoundaryNorm(edges.tolist(), CORRECTNESS.N)


@styled
def plot_epochs(result: DataMap) -> Figure:
    """Confidence, accuracy, and what was learned and forgotten, epoch by epoch.

    Above: the mean confidence of all training examples with the band that holds the middle 80 % of
    them, and the share that is right, with its interval. Below: examples that the model has right
    and had wrong an epoch before (learned; in the first epoch all it has right), and the reverse.
    """
    table = result.by_epoch
    x = table["epoch"].to_numpy()
    figure = new_figure(COLUMN, 3.1)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.6, 1))
    blue, green, red = PALETTE[0], PALETTE[2], PALETTE[1]
    above.fill_between(
        x, table["confidence_10"], table["confidence_90"], color=blue, alpha=0.13, linewidth=0
    )
    above.plot(x, table["confidence"], "o-", color=blue, markersize=3)
    spread = [table["correct"] - table["correct_low"], table["correct_high"] - table["correct"]]
    above.errorbar(
        x, table["correct"], yerr=np.clip(spread, 0, None), color=green, marker="s",
        markersize=3, linewidth=1.1, elinewidth=0.8,
    )  # fmt: skip
    above.set(ylim=(0, 1.03), ylabel="of all examples")
    above.grid(axis="y")
    width = min(0.4, 0.8 * float(np.diff(x).min() if len(x) > 1 else 1.0))
    below.bar(x, table["learned"], width, color=green, alpha=0.85, linewidth=0)
    below.bar(x, -table["forgotten"], width, facecolor=red, alpha=0.9, **HATCHED)
    below.axhline(0, color=INK, linewidth=0.6)
    # One epoch learns most of what there is: small numbers beside it stay visible.
    below.set_yscale("symlog", linthresh=10)
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
    _thin_ticks(below, table)
    below.set(xlabel="epoch", ylabel="examples")
    if len(x) <= FEW:
        below.set_xticks(x, _epoch_labels(x))
    else:
        below.xaxis.set_major_locator(MaxNLocator(8))
    below.set_xlim(x[0] - 0.6, x[-1] + 0.6)
    below.grid(axis="y")
    handles = [
        Line2D([], [], color=blue, marker="o", markersize=3, label="mean confidence"),
        Patch(color=blue, alpha=0.13, linewidth=0, label="middle 80 %"),
        Line2D([], [], color=green, marker="s", markersize=3, label="right"),
        Patch(color=green, alpha=0.85, linewidth=0, label="learned"),
        Patch(facecolor=red, alpha=0.9, **HATCHED, label="forgotten"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1.2)
    percent_ticks(above.yaxis)
    above.set_title(plain(_net(table)))
    return figure


def _epoch_labels(epochs: np.ndarray) -> list[str]:
    """Numbers of epochs; one of a broken-off run that stands close to the last goes below it."""
    labels = [f"{epoch:.3g}" for epoch in epochs]
    close = 0.05 * (float(np.ptp(epochs)) + 1.2)
    for k in range(1, len(labels)):
        if epochs[k] - epochs[k - 1] < close * len(labels[k]) / 2 and labels[k - 1][0] != "\n":
            labels[k] = f"\n{labels[k]}"
    return labels


def _thin_ticks(axes: Axes, table: pd.DataFrame) -> None:
    def decades(top: float) -> list[float]:
        return [10.0**k for k in range(1, int(np.log10(max(top, 1))) + 1)]

    up, down = decades(table["learned"].max()), decades(table["forgotten"].max())
    axes.yaxis.set_major_locator(FixedLocator([*(-value for value in down[::-1]), 0, *up]))
    axes.yaxis.set_minor_locator(NullLocator())


def _net(table: pd.DataFrame) -> str:
    if len(table) < 2:
        return ""
    learned, forgotten = int(table["learned"].iloc[1:].sum()), int(table["forgotten"].sum())
    return f"since the first epoch: {learned:,} learned, {forgotten:,} forgotten"


CARTOGRAPHY_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "DataMap": {"data_map": plot_data_map, "epochs": plot_epochs},
}
"""The figures of each kind of result, its main one first."""
