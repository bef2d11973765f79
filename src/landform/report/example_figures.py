"""Figures of training examples: what goes with what, and which of them raise a ridge.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from landform.errors import ConfigError
from landform.report.style import (
    COLUMN,
    INK,
    MINUS,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    loss_unit_of,
    new_figure,
    number,
    percent,
    styled,
    unknown,
)

if TYPE_CHECKING:
    from landform.studies.barrier_influence import BarrierInfluence
    from landform.studies.example_table import ExampleTable

__all__ = ["EXAMPLE_FIGURES", "plot_barrier", "plot_examples", "plot_examples_matrix"]

LOWERS, RAISES = PALETTE[0], PALETTE[1]
DIVERGING = LinearSegmentedColormap.from_list("signed", [PALETTE[0], "#f7f7f5", PALETTE[1]])
FORGOTTEN: dict[str, Any] = {"marker": "D", "edgecolors": INK, "linewidths": 0.5}
MANY = 3000  # dots of one panel; more are drawn as a random part

WORDS = {
    "self_influence": "self-influence",
    "loss_a": "loss at a",
    "loss_b": "loss at b",
    "path_mean": "mean loss on the path",
    "path_max": "highest loss on the path",
    "rise": "rise above the chord",
    "forgotten": "forgotten on the path",
    "forgetting": "forgetting in training",
}


def _words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


# --- the table of examples -------------------------------------------------------------------


@styled
def plot_examples_matrix(result: ExampleTable) -> Figure:
    """Rank correlations of all columns: below the diagonal as they are, above it with the ranks of
    the loss at a held fixed. Numbers whose interval holds 0 are grey."""
    names = result.columns
    size = len(names)
    values = np.full((size, size), np.nan)
    sure = np.zeros((size, size), dtype=bool)
    for row in result.correlations.to_dict("records"):
        i, j = sorted((names.index(row["x"]), names.index(row["y"])))
        values[j, i], values[i, j] = row["spearman"], row["given_loss_a"]
        sure[j, i] = not row["low"] <= 0 <= row["high"]
        sure[i, j] = True
    figure = new_figure(0.44 * size + 1.9, 0.36 * size + 1.6)
    axes = figure.subplots()
    image = axes.imshow(values, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
    for i in range(size):
        for j in range(size):
            if np.isfinite(values[i, j]):
                _cell_number(axes, i, j, values[i, j], sure[i, j])
    axes.set_xticks(range(size), [_words(n) for n in names], rotation=40, ha="right")
    axes.set_yticks(range(size), [_words(n) for n in names])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(
        f"{result.compared:,} examples; below the diagonal Spearman's rank correlation,\n"
        "above it with the loss at a held fixed"
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.outline.set_visible(False)
    return figure


def _cell_number(axes: Axes, i: int, j: int, value: float, sure: bool) -> None:
    dark = abs(value) > 0.75
    colour = "white" if dark else INK if sure else MUTED
    axes.text(
        j, i, number(value, ".2f"), ha="center", va="center", fontsize=6, color=colour
    )  # fmt: skip


@styled
def plot_examples(
    result: ExampleTable, *, against: str = "rise", columns: Sequence[str] | None = None
) -> Figure:
    """One column against others: dots are examples, diamonds those forgotten on the path.

    `columns` are up to six of the result's (by default self-influence, the dynamics there are, and
    the loss at b). Both axes are by rank, which is what the correlations in the titles compare.
    """
    default = ("self_influence", "confidence", "variability", "forgetting", "loss_a", "loss_b")
    shown = [n for n in default if n in result.columns] if columns is None else list(columns)
    for name in (against, *shown):
        if name not in result.columns:
            raise unknown("column", name, list(result.columns))
    if not 0 < len(shown) <= 6:
        raise ConfigError(f"{len(shown)} columns: the figure has room for 1 to 6")
    wide = min(len(shown), 3)
    tall = -(-len(shown) // wide)
    figure = new_figure(PAGE if wide > 1 else COLUMN, 2.2 * tall + 0.35)
    grid = np.atleast_1d(figure.subplots(tall, wide, sharey=True, squeeze=False)).ravel()
    table = result.table.dropna(subset=[against, *shown])
    chosen = np.random.default_rng(0).permutation(len(table))[:MANY]
    forgotten = table["forgotten"].to_numpy(bool) if "forgotten" in table else np.zeros(len(table))
    for axes, name in zip(grid, shown, strict=False):
        x = table[name].rank(pct=True).to_numpy()[chosen]
        y = table[against].rank(pct=True).to_numpy()[chosen]
        gone = forgotten.astype(bool)[chosen]
        style: dict[str, Any] = {"s": 4 if len(chosen) > 500 else 9, "linewidths": 0}
        axes.scatter(x[~gone], y[~gone], color=MUTED, alpha=0.35, **style)
        axes.scatter(x[gone], y[gone], facecolors=RAISES, **FORGOTTEN, s=14, zorder=3)
        found = result.correlation(name, against)
        title = f"{found['spearman']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
        axes.set_title(title.replace("-", MINUS))
        axes.set(xlabel=f"{_words(name)} (rank)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[::wide]:
        axes.set_ylabel(f"{_words(against)} (rank)")
    if forgotten.any():
        empty = grid[0].scatter
        handles = [
            grid[0].scatter(
                [], [], facecolors=RAISES, **FORGOTTEN, s=14, label="forgotten on the path"
            ),
            empty([], [], color=MUTED, linewidths=0, s=9, label="not forgotten"),
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2, columnspacing=1)
    return figure


# --- influence on a barrier ----------------------------------------------------------------------


@styled
def plot_barrier(result: BarrierInfluence) -> Figure:
    """What leaving out rows does to a barrier: predicted for every row and, where it was checked,
    measured by training again.

    Left, the predicted change of every row, sorted, on a symmetric logarithmic axis. Right, with a
    check: the change of the barrier of every retrained pair of seeds (dots), their mean with its
    interval, per removal; without one, the parts of a row's change through each end.
    """
    figure = new_figure(PAGE, 2.7)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    changes = result.table["change"].to_numpy(float)
    unit = loss_unit_of(result)
    rank = np.arange(1, len(changes) + 1)
    for side, colour in ((changes < 0, RAISES), (changes >= 0, LOWERS)):
        left.fill_between(
            rank, 0, np.where(side, changes, 0.0), step="mid", color=colour, alpha=0.8, linewidth=0
        )
    _symmetric(left, changes)
    left.axhline(0, color=INK, linewidth=0.6)
    raising = float((changes < 0).mean())
    left.set_title(f"{percent(raising)} of {len(changes):,} rows raise the ridge, to first order")
    left.set(xlabel="training rows, sorted", ylabel=f"predicted change without the row ({unit})")
    left.grid(axis="y")
    left.margins(x=0.01)
    if result.check is None:
        _by_end(right, result, unit)
    else:
        _checked(right, result, unit)
    return figure


def _symmetric(axes: Axes, values: np.ndarray, which: str = "y") -> None:
    """Logarithmic on both sides of 0, linear up to the order of magnitude of the median size.

    Ticks are at most three powers of ten on a side: the labels of more run into one another.
    """
    sizes = np.abs(values)
    linear = 10.0 ** np.floor(np.log10(float(np.quantile(sizes, 0.5)) or 1.0))
    first = round(np.log10(linear))
    last = max(first, int(np.floor(np.log10(sizes.max(initial=linear)))))
    powers = 10.0 ** np.arange(last, first - 1, (first - last - 1) // 3)
    ticks = [*-powers, 0.0, *powers[::-1]]
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    shown = [tick for tick in ticks if low <= tick <= high]
    if which in ("y", "both"):
        axes.set_yscale("symlog", linthresh=linear, linscale=0.5)
        axes.set_yticks(shown)
    if which in ("x", "both"):
        axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
        axes.set_xticks(shown)


def _by_end(axes: Axes, result: BarrierInfluence, unit: str) -> None:
    table = result.table
    chosen = np.random.default_rng(0).permutation(len(table))[:MANY]
    a, b = (table[name].to_numpy(float)[chosen] for name in ("via_a", "via_b"))
    colours = np.where(a + b < 0, RAISES, LOWERS)
    axes.scatter(a, b, s=5, c=colours, alpha=0.5, linewidths=0)
    _symmetric(axes, np.concatenate([a, b]), "both")
    axes.axhline(0, color=MUTED, linewidth=0.5)
    axes.axvline(0, color=MUTED, linewidth=0.5)
    reach = 1.5 * max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    limits = axes.get_xlim(), axes.get_ylim()
    both = np.geomspace(1e-6, 1, 200) * reach
    axes.plot([*-both[::-1], *both], [*both[::-1], *-both], "--", color=INK, linewidth=0.6)
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.set_title("below the dashed line a row raises the ridge")
    axes.set(xlabel=f"change through a ({unit})", ylabel=f"change through b ({unit})")


def _checked(axes: Axes, result: BarrierInfluence, unit: str) -> None:
    assert result.check is not None and result.summary is not None
    check = result.check.assign(kind=result.check["removal"].str.replace(r" \d+$", "", regex=True))
    pairs = check.pivot_table(index="pair", columns="kind", values="barrier", aggfunc="mean")
    summary = result.summary.set_index("removal")
    titles = {
        "top": "said to\nraise it most",
        "random": "random rows\nof those labels",
        "bottom": "said to\nlower it most",
    }
    colours = {"top": RAISES, "random": MUTED, "bottom": LOWERS}
    for _, pair in pairs.iterrows():
        values = [pair[name] - pair["none"] for name in titles]
        axes.plot(range(3), values, color=MUTED, linewidth=0.5, alpha=0.5, zorder=1)
    for place, name in enumerate(titles):
        changes = pairs[name] - pairs["none"]
        axes.plot(
            np.full(len(changes), place), changes, "o", color=colours[name], markersize=3, alpha=0.6
        )
        row = summary.loc[name]
        axes.errorbar(
            [place + 0.14], [row["change"]],
            yerr=[[row["change"] - row["low"]], [row["high"] - row["change"]]],
            fmt="D", color=colours[name], markersize=4, capsize=2.5, linewidth=1.1,
        )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_xticks(range(3), list(titles.values()))
    axes.set_xlim(-0.4, 2.5)
    axes.grid(axis="y")
    removed = int(summary["removed"].max())
    axes.set_title(f"{len(pairs)} pairs trained again without {removed:,} rows")
    axes.set_ylabel(f"change of the barrier at t = {result.t:.3g} ({unit})")


EXAMPLE_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "ExampleTable": {"matrix": plot_examples_matrix, "columns": plot_examples},
    "BarrierInfluence": {"barrier": plot_barrier},
}
"""The figures of each kind of result, its main one first."""
