"""Figures of sharpness: the climb of the loss, and a metric against it.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import (
    MaxNLocator,
)

from landform.report.style import (
    COLUMN,
    INK,
    MARKERS,
    MINUS,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    format_p,
    interval,
    is_known,
    loss_label,
    metric_label,
    new_figure,
    number,
    pick,
    plain,
    styled,
    wrapped,
)

if TYPE_CHECKING:
    from landform.geometry.sharpness import Sharpness, SharpnessComparison

__all__ = [
    "plot_climb",
    "plot_sharpness_scatter",
]

Array = np.ndarray

DASHED = (0, (4, 3))


# --- sharpness --------------------------------------------------------------------------------


@styled
def plot_climb(result: Sharpness) -> Figure:
    """The loss over the steps of every restart of the ascent, with its start and the best iterate.

    The title has the sharpness with its interval; the loss at the checkpoint is dashed. Of an
    average over random perturbations there is no climb: a dot per draw, in both its directions.
    """
    if "average" in str(result.method):
        return _draws(result)
    table = result.table
    restarts = list(dict.fromkeys(table["restart"]))
    few = len(restarts) <= len(PALETTE)
    figure = new_figure(COLUMN, 2.5)
    axes = figure.subplots()
    for k, restart in enumerate(restarts):
        part = table[table["restart"] == restart].sort_values("step")
        axes.plot(
            part["step"], part["loss"], color=PALETTE[k if few else 0], linewidth=1.1,
            alpha=1 if few else 0.45, label=f"restart {restart}",
        )  # fmt: skip
    best = table.sort_values("loss").tail(1)
    if len(best):
        axes.plot(
            best["step"], best["loss"], "o", color="white", markeredgecolor=INK, zorder=5,
            label="_best",
        )  # fmt: skip
    axes.axhline(result.loss, color=MUTED, linewidth=0.8, linestyle=DASHED, label="_start")
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step of the ascent", ylabel=f"{loss_label(result)}")
    axes.set_title(_sharpness_title(result))
    if len(restarts) > 1 and few:
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1)
    return figure


def _draws(result: Sharpness) -> Figure:
    """The loss at every draw of an average: filled for v, empty for -v."""
    figure = new_figure(COLUMN, 2.5)
    axes = figure.subplots()
    for step, (face, words) in enumerate(((PALETTE[0], " +v"), ("white", f" {MINUS}v"))):
        part = result.table[result.table["step"] == step]
        axes.plot(
            part["restart"], part["loss"], "o", color=face, markeredgecolor=PALETTE[0],
            linestyle="none", label=words,
        )  # fmt: skip
    axes.axhline(result.loss, color=MUTED, linewidth=0.8, linestyle=DASHED, label="_start")
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="draw of a perturbation v", ylabel=loss_label(result))
    axes.set_title(_sharpness_title(result))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _sharpness_title(result: Sharpness) -> str:
    span = interval({"value_low": result.value_low, "value_high": result.value_high}, "value")
    what = f"{plain(result.method)}, epsilon {_epsilon(result.epsilon)}"
    return f"sharpness {result.value:.3g} {span}".rstrip() + f"  ({what})"


def _epsilon(value: Any) -> str:
    """A radius: a number, or something that says itself."""
    return f"{value:.3g}" if isinstance(value, int | float | np.number) else plain(value)


@styled
def plot_sharpness_scatter(
    result: SharpnessComparison, metric: str | None = None, *, methods: Sequence[str] | None = None
) -> Figure:
    """A metric of every checkpoint against its sharpness, a panel per method.

    The title has Spearman's rank correlation with its interval and p. `metric` is a column of the
    table, by default the first out-of-distribution one of `correlations`. Bars are the intervals
    of the sharpness; its axis is logarithmic where it spans more than a factor of 20. Three panels
    stand in a row.
    """
    column = pick("metric", metric, _scatter_metrics(result))
    known = list(map(str, dict.fromkeys(result.table["method"])))
    wanted = [methods] if isinstance(methods, str) else list(methods or known)
    chosen = [pick("method", method, known) for method in wanted]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(COLUMN if columns == 1 else PAGE, 2.45 * rows + 0.15)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for k, (axes, method) in enumerate(zip(panels.flat, chosen, strict=False)):
        part = result.table[result.table["method"] == method]
        _sharpness_dots(axes, part, column, PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)])
        axes.set_title(f"{plain(method)}\n{_rank_correlation(result, method, column)}")
        axes.set_xlabel("sharpness")
    for axes in panels.flat[len(chosen) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel(wrapped(plain(metric_label(column)), 32))
    return figure


def _scatter_metrics(result: SharpnessComparison) -> list[str]:
    """Columns of endpoints, the out-of-distribution ones that were correlated first."""
    table = result.correlations
    columns = [str(c) for c in result.table.columns if "/" in str(c)]
    if not len(table):
        return columns
    inside = table["in_domain"].astype(bool)
    first = [str(m) for m in dict.fromkeys(table["metric"][~inside])]
    return list(dict.fromkeys([*(m for m in first if m in columns), *columns]))


def _sharpness_dots(axes: Axes, part: pd.DataFrame, column: str, colour: str, mark: str) -> None:
    x, y = part["value"].to_numpy(float), part[column].to_numpy(float)
    axes.hlines(y, part["value_low"], part["value_high"], color=colour, linewidth=0.8, alpha=0.5)
    axes.plot(
        x, y, mark, color=colour, linestyle="none", markeredgecolor="white", markeredgewidth=0.5,
        markersize=5, label="_checkpoints",
    )  # fmt: skip
    if len(x) and x.min() > 0 and x.max() / x.min() > 20:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid()


def _rank_correlation(result: SharpnessComparison, method: str, column: str) -> str:
    table = result.correlations
    rows = table[(table["method"] == method) & (table["metric"] == column)]
    count = int((result.table["method"] == method).sum())
    if not len(rows) or not is_known(rows["spearman"].iloc[0]):
        return f"n = {count}"
    row = rows.iloc[0]
    rho = number(float(row["spearman"]), ".2f")
    span = interval({"rho_low": row["low"], "rho_high": row["high"]}, "rho", ".2f")
    text = f"Spearman {rho} {span.replace('-', MINUS)}".rstrip()
    return f"{text}\n{format_p(float(row['p_value']))}, n = {int(row['n'])}"
