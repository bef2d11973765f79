"""Figures of what is known along a path: who is forgotten where, and what sort of examples.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from landform.errors import ConfigError
from landform.report.style import (
    COLUMN,
    GRID,
    HATCHED,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    SEQUENTIAL,
    Figure,
    end_names,
    metric_label,
    new_figure,
    plain,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from landform.geometry.knowledge import Knowledge

__all__ = [
    "GROUPS",
    "KNOWLEDGE_FIGURES",
    "course_groups",
    "plot_forgotten",
    "plot_knowledge",
    "plot_score_matrix",
]

Array = np.ndarray

COLOURS = {"forgotten": PALETTE[1], "relearned": PALETTE[0]}
GROUPS = {
    "lost": "right at a, not at b",
    "between": "right at both ends, not between",
    "inside": "right only between",
    "gained": "right at b, not at a",
    "never": "right nowhere",
}
"""Examples that are not right everywhere, by their course from a to b."""


def _ends(result: Knowledge) -> str:
    a, b = end_names(result.a, result.b)
    along = "line" if result.path == "line" else f"{result.path} curve"
    return f"position on the {along}\n{a} to {b}"


# --- how many ---------------------------------------------------------------------------------


@styled
def plot_knowledge(result: Knowledge) -> Figure:
    """The mean score along the path with its band, and below it how many examples change.

    A bar stands at the point that the step leads to: relearned upwards, newly forgotten downwards.
    The examples that the left end has wrong are no bar: the title of the lower panel counts them.
    """
    along = result.along
    t = along["t"].to_numpy(float)
    figure = new_figure(COLUMN, 3.3)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.15, 1])
    if along["score"].notna().all():
        upper.fill_between(
            t, along["score_low"], along["score_high"], color=INK, alpha=0.13, linewidth=0
        )
        upper.plot(t, along["score"], "o-", color=INK, markersize=3)
        upper.set_ylabel(metric_label(result.metric))
    else:  # read from lists of zeros and ones
        upper.plot(t, along["zero"], "o-", color=INK, markersize=3)
        upper.set_ylabel("examples at score 0")
    upper.set_title(f"{plain(shorten(result.data, 32))}, {len(result.table):,} examples")
    width = 0.55 * float(np.diff(t).min()) if len(t) > 1 else 0.5
    for name, sign in (("relearned", 1), ("forgotten", -1)):
        lower.bar(
            t[1:], sign * along[name].to_numpy()[1:], width, facecolor=COLOURS[name], label=name,
            **(HATCHED if sign < 0 else {}),
        )  # fmt: skip
    lower.axhline(0, color=INK, linewidth=0.6)
    lower.set_ylabel("examples")
    lower.set_xlabel(_ends(result))
    lower.set_title(f"{int(along['forgotten'].iloc[0]):,} not known at the start")
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    lower.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    for axes in (upper, lower):
        axes.grid(axis="y")
        axes.margins(x=0.03)
    figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


# --- what sort --------------------------------------------------------------------------------


@styled
def plot_forgotten(result: Knowledge) -> Figure:
    """What training said of the examples that change, beside all examples and beside chance.

    A panel per statistic. Points are means over the examples that change on the way to t, with
    bootstrap intervals; the grey line is the mean of all examples. The broad pale bars hold the
    means of random sets of as many examples that could have changed there: a point outside its bar
    is more than chance. At the right, all steps together. Raises `ConfigError` for a result without
    a cartography.
    """
    if result.comparison is None:
        raise ConfigError(
            "there is no cartography to compare the forgotten examples with",
            remedy="give one: landform knowledge ... --cartography RUN",
        )
    table = result.comparison
    names = list(dict.fromkeys(table["statistic"]))
    figure = new_figure(PAGE, 1.85 * -(-len(names) // 2) + 0.45)
    grid = figure.subplots(-(-len(names) // 2), min(2, len(names)), sharex=True, squeeze=False)
    level = 100 * float(result.provenance["config"]["level"])
    for axes, name in zip(grid.flat, names, strict=False):
        _statistic(axes, table[table["statistic"] == name], result.ts)
        axes.set_title(str(name))
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    handles: list[Any] = [
        Line2D([], [], color=colour, marker="o", markersize=3.5, label=name)
        for name, colour in COLOURS.items()
    ]
    handles.append(Line2D([], [], color=MUTED, linewidth=1.2, label="all examples"))
    pale = Patch(color=MUTED, alpha=0.3, label=f"random sets that could have changed ({level:g} %)")
    figure.legend(handles=[*handles, pale], loc="outside upper left", ncols=4, columnspacing=1.2)
    figure.supxlabel(_ends(result), fontsize="medium")
    return figure


def _statistic(axes: Axes, rows: pd.DataFrame, ts: tuple[float, ...]) -> None:
    """Means of one statistic, step by step, then of all steps."""
    last = len(ts) + 0.6
    base = rows.iloc[0]
    axes.axhspan(base["base_low"], base["base_high"], color=MUTED, alpha=0.18, linewidth=0)
    axes.axhline(base["base"], color=MUTED, linewidth=1.2)
    for (name, colour), shift in zip(COLOURS.items(), (-0.17, 0.17), strict=True):
        part = rows[(rows["change"] == name) & (rows["n"] > 0)]
        x = np.where(part["step"] < 0, last, part["step"]) + shift
        mean = part["mean"].to_numpy(float)
        low, high = (part[f"control_{end}"].to_numpy(float) for end in ("low", "high"))
        axes.bar(x, high - low, 0.3, bottom=low, color=colour, alpha=0.25, linewidth=0)
        apart = np.stack([mean - part["low"], part["high"] - mean])
        axes.errorbar(
            x, mean, yerr=np.nan_to_num(np.maximum(apart, 0)), fmt="o", color=colour,
            markersize=3.2, elinewidth=1, capsize=0,
        )  # fmt: skip
    axes.axvline(len(ts) - 0.2, color=GRID, linewidth=0.8)
    axes.use_sticky_edges = False  # a point at 0 is drawn whole
    step = 1 if len(ts) <= 12 else -(-len(ts) // 9)
    shown = list(range(0, len(ts), step))
    labels = ["start", *(f"{ts[k]:.3g}" for k in shown[1:])]
    axes.set_xticks([*shown, last], [*labels, "all"])
    axes.set_xlim(-0.6, last + 0.6)
    axes.grid(axis="y")


# --- every example ----------------------------------------------------------------------------


def course_groups(scores: Array) -> dict[str, Array]:
    """Rows of the examples that are not right at every point, by their course, in order.

    `scores` is (points, examples). The keys are those of `GROUPS`; within a group examples follow
    one another by where they change first, then by how often they are right. An example without a
    score somewhere counts as not right there.
    """
    right = scores == 1
    first, last, ever = right[0], right[-1], right.any(axis=0)
    masks = {
        "lost": first & ~last,
        "between": first & last & ~right.all(axis=0),
        "inside": ~first & ~last & ever,
        "gained": ~first & last,
        "never": ~ever,
    }
    changed = right != right[:1]
    where = np.where(changed.any(axis=0), changed.argmax(axis=0), len(scores))
    mean = np.nan_to_num(scores, nan=0.5).mean(axis=0)
    order = np.lexsort((-mean, where))
    return {name: order[masks[name][order]] for name in GROUPS}


@styled
def plot_score_matrix(result: Knowledge) -> Figure:
    """The scores of all examples that are not right everywhere: a column each, from a up to b.

    Light is right, dark is wrong. Examples are grouped by their course (see `GROUPS`), and within
    a group sorted by where they change. Raises `ConfigError` where every example is right
    everywhere.
    """
    scores = result.scores
    groups = {name: rows for name, rows in course_groups(scores).items() if len(rows)}
    if not groups:
        raise ConfigError(
            "every example is right at every point: there is no course to draw",
            remedy="follow examples that are harder, or models that are further apart",
        )
    rows = np.concatenate(list(groups.values()))
    figure = new_figure(PAGE, 2.1)
    axes = figure.subplots()
    image = np.ma.masked_invalid(scores[:, rows])
    axes.imshow(
        1 - image, cmap=SEQUENTIAL, vmin=0, vmax=1.15, aspect="auto", origin="lower",
        interpolation="nearest", extent=(0, len(rows), -0.5, len(scores) - 0.5),
    )  # fmt: skip
    place = 0
    marks: list[tuple[float, str]] = []
    for k, (name, own) in enumerate(groups.items()):
        if place:
            axes.axvline(place, color="white", linewidth=2.2)
            axes.axvline(place, color=INK, linewidth=0.7)
        marks.append((place + len(own) / 2, f"{chr(65 + k)}"))
        place += len(own)
        axes.plot([], [], " ", label=f"{chr(65 + k)}  {GROUPS[name]} ({len(own):,})")
    top = axes.secondary_xaxis("top")
    top.set_xticks([x for x, _ in marks], [text for _, text in marks])
    top.tick_params(length=0)
    top.spines["top"].set_visible(False)
    step = 1 if len(result.ts) <= 7 else -(-len(result.ts) // 6)
    shown = sorted({*range(0, len(result.ts), step), len(result.ts) - 1})
    axes.set_yticks(shown, [f"{result.ts[k]:.3g}" for k in shown])
    axes.set_ylabel("position on the path")
    everywhere = len(result.table) - len(rows)
    axes.set_xlabel(
        f"{len(rows):,} examples (light: right, dark: wrong); the other {everywhere:,} are right at"
        " every point"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    figure.legend(
        loc="outside lower center", ncols=4 if len(groups) < 5 else 3, handlelength=0,
        handletextpad=0, columnspacing=1.6,
    )  # fmt: skip
    return figure


KNOWLEDGE_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Knowledge": {
        "knowledge": plot_knowledge,
        "forgotten": plot_forgotten,
        "score_matrix": plot_score_matrix,
    }
}
