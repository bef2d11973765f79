"""Figures of connectivity beyond lines: sharpness, bent paths, complexes, triangles, ridges, time.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure. In figures of paths the curve is
drawn in full colour and the straight line beside it is dashed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from landform.errors import ConfigError
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
    format_p,
    interval,
    is_known,
    loss_label,
    loss_unit_of,
    metric_label,
    new_figure,
    percent,
    pick,
    plain,
    short_labels,
    shorten,
    styled,
    wrapped,
)
from landform.report.surface_figures import plot_surface, plot_surface_3d, plot_surfaces

if TYPE_CHECKING:
    from landform.geometry.fitting import CurveFit, PathEvaluation
    from landform.geometry.ridge import Ridge
    from landform.geometry.sharpness import Sharpness, SharpnessComparison
    from landform.geometry.simplexes import ComplexFit
    from landform.geometry.transitivity import Transitivity
    from landform.studies.connect import Connection
    from landform.studies.dynamics import Dynamics
    from landform.weights.alignment import AlignmentReport

__all__ = [
    "CONNECTIVITY_FIGURES",
    "clique_label",
    "plot_alignment",
    "plot_climb",
    "plot_complex",
    "plot_dynamics",
    "plot_fit",
    "plot_path",
    "plot_path_distances",
    "plot_ridge",
    "plot_sharpness_scatter",
    "plot_transitivity",
]

Array = np.ndarray

DASHED = (0, (4, 3))
SWITCHED = PALETTE[3]
MINUS = "\N{MINUS SIGN}"


def _number(value: float, form: str = ".3g") -> str:
    return f"{value:{form}}".replace("-", MINUS)


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
    rho = _number(float(row["spearman"]), ".2f")
    span = interval({"rho_low": row["low"], "rho_high": row["high"]}, "rho", ".2f")
    text = f"Spearman {rho} {span.replace('-', MINUS)}".rstrip()
    return f"{text}\n{format_p(float(row['p_value']))}, n = {int(row['n'])}"


# --- bent paths -------------------------------------------------------------------------------


@styled
def plot_path(
    result: PathEvaluation, *, metric: str | None = None, data: str | Sequence[str] | None = None
) -> Figure:
    """Loss along a bent path at equal arc length, with its band, beside the straight line.

    Below it a metric of the table (by default the first one), or "distances", those of every point
    to both ends; "loss" for the upper panel alone. Full: the path. Dashed: the line.
    """
    table = result.table
    metrics = metric_columns(table)
    chosen = pick("metric", metric, [*metrics, "distances", "loss"])
    wanted = [data] if isinstance(data, str) else list(data or dict.fromkeys(table["data"]))
    sets = [pick("data set", name, list(dict.fromkeys(table["data"]))) for name in wanted]
    rows = 1 if chosen == "loss" else 2
    entries = [_path_entry(result, name, path) for name in sets for path in ("curve", "line")]
    lines = sum(entry.count("\n") + 1 for entry in entries)
    figure = new_figure(COLUMN, (3.7 if rows == 2 else 2.5) + 0.14 * lines)
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[3, 2][:rows])[:, 0]
    handles = []
    for n, name in enumerate(sets):
        colour = PALETTE[n % len(PALETTE)]
        handles += _path_and_line(panels[0], result, name, "loss", colour)
        if rows == 2 and chosen != "distances":
            _path_and_line(panels[1], result, name, chosen, colour)
    panels[0].set_ylabel(loss_label(result))
    if chosen == "distances":
        _distances(panels[1], result)
    elif rows == 2:
        panels[1].set_ylabel(metric_label(chosen))
    panels[-1].set_xlabel(_arc_label(result))
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
        ends = zip(("a", "b"), short_labels([result.a, result.b], 20), (0, 1), strict=True)
        for end, label, k in ends:
            axes.plot(
                part["arc"], part[f"distance_{end}"], color=PALETTE[2 + 4 * k], marker=MARKERS[k],
                markersize=2.2 if full else 0, linestyle="-" if full else DASHED,
                linewidth=1.2 if full else 0.8,
                label=f"to {plain(label)}" if full else f"_line to {end}",
            )  # fmt: skip
    axes.grid(axis="y")
    axes.margins(x=0.03)
    axes.set_ylabel("distance (L2)")
    axes.legend(loc="upper center", ncols=2, columnspacing=1)
    axes.set_ylim(0, 1.25 * max(result.table[["distance_a", "distance_b"]].max()))


def _arc_label(result: PathEvaluation) -> str:
    first, last = (plain(label) for label in short_labels([result.a, result.b], 24))
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
    metric of `samples`. Right, the loss of the fit and the volume, step by step; a colour per
    vertex that was fitted. A complex that was not evaluated has its history alone.
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
    left.set_xlabel(_loss_or(result, column))
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


def _loss_or(result: Any, column: str) -> str:
    return loss_label(result) if column == "loss" else metric_label(column)


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
            volume.plot(part["step"], part["volume"], color=MUTED, linewidth=0.8, linestyle=DASHED)
    axes.set(xlabel="step", ylabel=f"fit: {loss_label(result)}")
    axes.grid(axis="y")
    volume.set_ylabel("volume (dashed)", color=MUTED)
    volume.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
    handles = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    figure.legend(
        handles=[Line2D([], [], linestyle="none", label="vertex fitted:"), *handles],
        loc="outside upper right", ncols=5, columnspacing=0.8,
    )  # fmt: skip


def _vertex(result: ComplexFit, vertex: Any) -> str:
    if isinstance(vertex, int | np.integer) and 0 <= vertex < len(result.names):
        return shorten(result.names[int(vertex)], 16)
    return shorten(vertex, 16)


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
    lower.yaxis.set_major_formatter(PercentFormatter(1.0))
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
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _number(v, "g")))
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
        head = f"{_number(row['rise'], '+.3g')}  ({numbers})"
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
        xlabel="distance to the centroid of basin 1 minus that of basin 0",
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
        value = _number(float(rows["adjusted_rand"].iloc[0]), ".2f")
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
