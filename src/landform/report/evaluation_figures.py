"""Figures of one checkpoint's evaluation, and of the runs that were trained.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from landform.errors import ConfigError
from landform.report.style import (
    COLUMN,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    loss_label,
    metric_label,
    new_figure,
    pick,
    plain,
    shorten,
    styled,
    unknown,
)

if TYPE_CHECKING:
    from landform.evaluation.evaluate import Evaluation
    from landform.training.finetune import Training

__all__ = [
    "EVALUATION_FIGURES",
    "plot_evaluation",
    "plot_metrics",
    "plot_reliability",
    "plot_training",
]

Array = np.ndarray

# --- one checkpoint ---------------------------------------------------------------------------


@styled
def plot_evaluation(result: Evaluation) -> Figure:
    """The reliability diagram beside all metrics with their intervals."""
    if result.reliability is None:
        return plot_metrics(result)
    need = 0.26 * len(result.metrics) + 1.3
    figure = new_figure(PAGE, max(2.8, need))
    left, right = cast(Any, figure.subfigures)(1, 2, width_ratios=[1.25, 1])
    _reliability_panels(left, result)
    # Rows keep their distance: a few metrics stand at the top, and do not spread over the height.
    spare = max(2.8 - need, 1e-3)
    _metric_panels(right.subfigures(2, 1, height_ratios=[need, spare])[0], result, [])
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


EVALUATION_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Evaluation": {
        "evaluation": plot_evaluation,
        "reliability": plot_reliability,
        "metrics": plot_metrics,
    },
    "Training": {"training": plot_training},
}
