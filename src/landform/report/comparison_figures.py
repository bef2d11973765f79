"""Figures and pages of a comparison of arms: paired differences, values, schedules.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from landform.errors import ConfigError
from landform.report.parts import Kind, Row, as_text, data_table, fact, picture
from landform.report.style import (
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    SEQUENTIAL,
    Figure,
    metric_label,
    new_figure,
    plain,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from landform.studies.comparison import DropoutComparison

__all__ = [
    "COMPARISON_FIGURES",
    "COMPARISON_KINDS",
    "plot_arms",
    "plot_comparison",
    "plot_schedules",
]

ROW = 0.27
"""inches of an arm"""
COLUMNS = 3
"""panels side by side"""
SCORES = 9
"""sites of a schedule of which every one has a tick"""


@styled
def plot_comparison(result: DropoutComparison) -> Figure:
    """Every arm minus the reference, paired by seed: a panel per task, and one of all tasks.

    Points are mean differences with their t intervals over seeds; filled where the paired t test
    tells them from 0 after the correction over arms, hollow elsewhere. A grey bar reaches as far
    as a true difference would too often have been missed. Colours are shares of the training rows,
    dark for many.
    """
    others = [arm for arm in result.arms if arm != result.reference]
    cells = result.differences[result.differences.headline]
    tasks = list(dict.fromkeys(cells.task))
    colours = _fraction_colours(result)
    several = len(tasks) * len(colours) > 1
    figure, panels = _panels(len(tasks) + several, len(others), len(colours))
    for axes, task in zip(panels, tasks, strict=False):
        part = cells[cells.task == task]
        for (fraction, colour), shift in zip(colours.items(), _shifts(len(colours)), strict=True):
            chosen = part[part.fraction == fraction].set_index("arm").loc[others]
            _forest(axes, chosen, "difference", colour, shift, 1 - result.level)
        axes.set_title(plain(shorten(task, 30)))
        axes.set_xlabel(f"{metric_label(str(part.metric.iloc[0]))} minus that of {_short(result)}")
    if several:
        whole = result.overall.set_index("arm").loc[others]
        _forest(panels[len(tasks)], whole, "gain", INK, 0.0, 1 - result.level)
        panels[len(tasks)].set_title("all tasks and fractions")
        panels[len(tasks)].set_xlabel(f"gain over {_short(result)}")
    for axes in panels:
        axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
    _rows(panels, [_arm_label(result, arm) for arm in others])
    handles = _fraction_handles(colours)
    handles += [
        Line2D([], [], color=MUTED, marker="o", markersize=4, label="told apart"),
        Line2D([], [], color=MUTED, marker="o", markersize=4, markerfacecolor="white",
               label="not told apart"),
        Patch(color=GRID, label=f"missed with more than {100 - 100 * result.power:.0f} % chance"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=_legend_columns(figure))
    return figure


@styled
def plot_arms(result: DropoutComparison) -> Figure:
    """The headline metric of every arm: mean and t interval over seeds, and every seed as a tick.

    A panel per task; colours are shares of the training rows, dark for many.
    """
    table = result.summary[result.summary.headline]
    tasks = list(dict.fromkeys(table.task))
    colours = _fraction_colours(result)
    figure, panels = _panels(len(tasks), len(result.arms), len(colours))
    for axes, task in zip(panels, tasks, strict=False):
        part = table[table.task == task]
        metric = str(part.metric.iloc[0])
        runs = result.runs[(result.runs.task == task) & (result.runs.metric == metric)]
        for (fraction, colour), shift in zip(colours.items(), _shifts(len(colours)), strict=True):
            chosen = part[part.fraction == fraction].set_index("arm").loc[list(result.arms)]
            places = np.arange(len(result.arms)) + shift
            drawn = runs[runs.fraction == fraction]
            for place, arm in zip(places, result.arms, strict=True):
                values = drawn.value[drawn.arm == arm]
                axes.plot(
                    values, np.full(len(values), place), "|", color=colour, alpha=0.7,
                    markersize=4.5, markeredgewidth=0.7, zorder=2,
                )  # fmt: skip
            axes.hlines(places, chosen.low, chosen.high, color=colour, linewidth=1.3, zorder=3)
            axes.plot(chosen["mean"], places, "o", color=colour, markersize=4, zorder=4)
        axes.set_title(plain(shorten(task, 30)))
        axes.set_xlabel(metric_label(metric))
    _rows(panels, [_arm_label(result, arm) for arm in result.arms])
    handles = _fraction_handles(colours)
    mean = f"mean, {100 * result.level:g} % interval over seeds"
    handles += [
        Line2D([], [], color=MUTED, marker="|", linestyle="none", label="one seed"),
        Line2D([], [], color=MUTED, marker="o", markersize=4, label=mean),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=_legend_columns(figure))
    return figure


@styled
def plot_schedules(result: DropoutComparison) -> Figure:
    """The dropout probability of every site under every arm that has a schedule.

    Raises `ConfigError` for a comparison of arms without schedules.
    """
    table = result.schedules
    if not len(table):
        raise ConfigError("no arm of this comparison has a schedule of its own")
    wide = table.pivot(index="arm", columns="site", values="p")
    wide = wide.loc[list(dict.fromkeys(table.arm)), list(dict.fromkeys(table.site))]
    few = wide.shape[1] <= SCORES
    figure = new_figure(PAGE if wide.shape[1] > 20 else 5.0, 0.75 + 0.22 * len(wide) + 1.1 * few)
    axes = figure.subplots()
    image = axes.imshow(wide, aspect="auto", cmap=SEQUENTIAL, vmin=0, interpolation="nearest")
    axes.set_yticks(range(len(wide)), [plain(shorten(arm, 24)) for arm in wide.index])
    if few:
        names = [plain(shorten(site, 34)) for site in wide.columns]
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    else:
        axes.set_xlabel("site of the model, in its order")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=axes, label="dropout probability", pad=0.02)
    return figure


# --- parts ------------------------------------------------------------------------------------


def _forest(
    axes: Axes, table: pd.DataFrame, column: str, colour: Any, shift: float, alpha: float
) -> None:
    places = np.arange(len(table)) + shift
    axes.barh(
        places, 2 * table.detectable, left=-table.detectable, height=0.13, color=GRID, zorder=0
    )
    axes.hlines(places, table.low, table.high, color=colour, linewidth=1.3, zorder=2)
    told = (table.p_t_holm < alpha).to_numpy()
    for chosen, face in ((told, colour), (~told, "white")):
        axes.plot(
            table[column].to_numpy()[chosen], places[chosen], "o", color=colour,
            markerfacecolor=face, markersize=4, zorder=3,
        )  # fmt: skip


def _panels(count: int, rows: int, fractions: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of `rows` arms, at most COLUMNS side by side."""
    columns = min(count, COLUMNS)
    lines = -(-count // columns)
    tall = max(0.8, ROW * max(1.0, 0.62 * fractions) * rows)
    figure = new_figure(COLUMN if columns == 1 else PAGE, lines * (tall + 0.55) + 0.45)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in list(grid.flat)[count:]:
        axes.set_axis_off()
    return figure, list(grid.flat)[:count]


def _rows(panels: Sequence[Axes], names: Sequence[str]) -> None:
    for axes in panels:
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.use_sticky_edges = False  # bars are no floor
        axes.margins(x=0.04)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_ylim(len(names) - 0.5, -0.5)


def _fraction_colours(result: DropoutComparison) -> dict[float, Any]:
    fractions = sorted(dict.fromkeys(result.summary.fraction))
    return {
        fraction: SEQUENTIAL(0.45 + 0.5 * (k + 1) / len(fractions))
        for k, fraction in enumerate(fractions)
    }


def _fraction_handles(colours: dict[float, Any]) -> list[Any]:
    if len(colours) == 1:
        return []
    return [
        Line2D([], [], color=colour, marker="o", markersize=4, label=f"{fraction:g} % of the rows")
        for fraction, colour in colours.items()
    ]


def _shifts(count: int) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * min(0.26, 0.7 / count)


def _legend_columns(figure: Figure) -> int:
    return 2 if figure.get_size_inches()[0] < 5 else 5


def _arm_label(result: DropoutComparison, arm: str) -> str:
    mean = float(result.overall.set_index("arm").dropout[arm])
    return f"{plain(shorten(arm, 20))} ({mean:.2g})"


def _short(result: DropoutComparison) -> str:
    return plain(shorten(result.reference, 18))


COMPARISON_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "DropoutComparison": {
        "comparison": plot_comparison,
        "arms": plot_arms,
        "schedules": plot_schedules,
    }
}


# --- the page ---------------------------------------------------------------------------------

TITLES = {
    "fraction": "% of rows", "dropout": "mean dropout", "n": "pairs", "p_t": "p (t)",
    "p_flip": "p (sign flips)", "p_t_holm": "p (t, Holm)", "p_flip_holm": "p (sign flips, Holm)",
}  # fmt: skip


def _comparison(result: Any, anchor: str, few: bool) -> Row:
    tests = dict.fromkeys(result.metrics.test)
    facts = [
        fact("model", result.model),
        fact("arms", str(len(result.arms)), ", ".join(result.arms)),
        fact("seeds", str(len(result.seeds)), "arms are paired by seed"),
        fact("test set", ", ".join(tests), _test_note(result)),
    ]
    if result.fisher is not None:
        facts.append(fact("Fisher", "of " + result.fisher))
    return {
        "facts": facts,
        "figure": picture(
            plot_comparison,
            result,
            alt="Every arm minus the reference arm, paired by seed, with intervals",
            caption="Numbers behind the names are mean dropout probabilities. Filled: told from 0"
            " by a paired t test after Holm's correction over the arms.",
        ),
        "levels": picture(plot_arms, result, alt="The metric of every arm, by share of the rows"),
        "schedules": picture(plot_schedules, result, alt="Dropout of every site in every arm"),
        "overall": data_table(
            result.overall, "all tasks and fractions", titles=TITLES, caption=_overall_note(result)
        ),
        "differences": data_table(result.differences, "differences", titles=TITLES),
        "summary": data_table(result.summary, "arms", titles=TITLES),
    }


def _test_note(result: Any) -> str:
    rows = result.metrics[result.metrics.headline]
    return ", ".join(
        f"{task}: {as_text(int(size))} rows"
        for task, size in zip(rows.task, rows.test_rows, strict=True)
    )


def _overall_note(result: Any) -> str:
    return (
        f"Gains over {result.reference} in the headline metric, positive: better; pairs are tasks"
        " and seeds, averaged over shares of the rows. detectable: the smallest true gain that"
        f" would have been found in {100 * result.power:g} of 100 such comparisons."
    )


COMPARISON_KINDS = {
    "DropoutComparison": Kind(
        "Dropout compared",
        "dropout_comparison.html.j2",
        _comparison,
        lambda r: f"{len(r.arms)} arms on {', '.join(dict.fromkeys(r.metrics.task))}",
        "dropout_comparison_reading.html.j2",
    )
}
