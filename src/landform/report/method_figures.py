"""Figures of what scores are good for: retraining, removing rows, finding wrong labels.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure. A method
has one colour and one marker in every figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from landform.errors import ConfigError
from landform.report.style import (
    COLUMN,
    INK,
    LONE,
    MARKERS,
    MUTED,
    PALETTE,
    Figure,
    new_figure,
    number,
    percent,
    percent_ticks,
    plain,
    short_labels,
    styled,
)

if TYPE_CHECKING:
    from landform.attribution.influence import SelfInfluence
    from landform.attribution.lds import LinearDatamodelling
    from landform.attribution.mislabel import Mislabel
    from landform.studies.counterfactual import Counterfactual

__all__ = [
    "METHODS",
    "method_styles",
    "plot_counterfactual",
    "plot_lds",
    "plot_lds_queries",
    "plot_mislabel",
    "plot_self_influence",
]

Array = np.ndarray

# --- methods ----------------------------------------------------------------------------------

METHODS = ("ekfac", "kfac", "diagonal", "identity")


def method_styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of every method: the four strategies always the same, random grey."""
    fixed = {name: (PALETTE[n], MARKERS[n]) for n, name in enumerate(METHODS)}
    styles: dict[str, tuple[str, str]] = {}
    for method in methods:
        if method.startswith("random"):
            styles[method] = (LONE, "P")
        elif method in fixed:
            styles[method] = fixed[method]
    used = set(styles.values())
    pairs = list(zip(PALETTE, MARKERS, strict=True))
    free = [pair for pair in [*pairs[len(METHODS) :], *pairs] if pair not in used]
    for n, method in enumerate(method for method in methods if method not in styles):
        styles[method] = free[n % len(free)]
    return styles


@styled
def plot_lds(result: LinearDatamodelling) -> Figure:
    """The linear datamodelling score of every method with its interval."""
    table = result.table
    methods = [str(name) for name in table["method"]]
    styles = method_styles(methods)
    figure = new_figure(COLUMN, 0.27 * len(methods) + 1.05)
    axes = figure.subplots()
    for row, record in enumerate(table.to_dict("records")):
        colour, marker = styles[methods[row]]
        axes.hlines(row, record["low"], record["high"], color=colour, linewidth=1.4)
        axes.plot(record["lds"], row, marker, color=colour, markersize=5)
        axes.annotate(
            f"{number(record['lds'], '.3f')} [{number(record['low'], '.2f')},"
            f" {number(record['high'], '.2f')}]",
            (1, row), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=6.5, color=INK,
            annotation_clip=False,
        )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=0.6)
    _method_rows(axes, methods)
    axes.margins(x=0.08)
    axes.set_xlabel("LDS (mean over queries of Spearman over masks)")
    axes.set_title(_lds_title(result), linespacing=1.35)
    return figure


def _method_rows(axes: Axes, methods: Sequence[str]) -> None:
    labels = short_labels(methods, 26)
    axes.set_yticks(range(len(methods)), [plain(label) for label in labels])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _lds_title(result: LinearDatamodelling) -> str:
    times = f" x {result.retrainings} retrainings" if result.retrainings else ""
    text = f"{result.masks} masks{times}, {percent(result.fraction)} of the rows kept"
    reliability = getattr(result, "reliability", None)
    if reliability is not None and np.isfinite(reliability):
        text += f"\nreliability of the retrained {plain(result.measurement)}s {reliability:.2f}"
    ceiling = getattr(result, "ceiling", None)
    if ceiling is not None and np.isfinite(ceiling):
        text += f", ceiling {ceiling:.2f}"
    return text


@styled
def plot_lds_queries(result: LinearDatamodelling) -> Figure:
    """The score of every single query, a strip per method, with the mean and its interval."""
    methods = [str(name) for name in result.table["method"]]
    styles = method_styles(methods)
    table = result.per_query
    figure = new_figure(COLUMN, 0.5 * len(methods) + 1.05)
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, linewidth=0.6, zorder=1)
    for row, method in enumerate(methods):
        values = table["lds"][table["method"] == method].dropna().to_numpy(float)
        colour, marker = styles[method]
        axes.plot(
            values,
            row + _swarm(values),
            marker,
            color=colour,
            markersize=2.6,
            alpha=0.6,
            markeredgewidth=0,
            linestyle="none",
            zorder=2,
        )
    for row, record in enumerate(result.table.to_dict("records")):
        axes.hlines(row, record["low"], record["high"], color=INK, linewidth=1.6, zorder=4)
        axes.plot(
            record["lds"], row, "o", color="white", markeredgecolor=INK, markeredgewidth=1.2,
            markersize=4.5, zorder=5,
        )  # fmt: skip
    _method_rows(axes, methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel("Spearman over masks, one query per dot")
    queries = table["query"].nunique() if "query" in table else 0
    axes.set_title(f"{queries} queries; circles: mean with its interval")
    return figure


def _swarm(values: Array, width: float = 0.38) -> Array:
    """Heights that spread values which lie close together, alternately up and down."""
    if not len(values):
        return np.zeros(0)
    bins = np.clip(((values + 1) * 40).astype(int), 0, 80)
    heights = np.zeros(len(values))
    most = max(int(np.bincount(bins).max()), 6)
    for place in np.unique(bins):
        members = np.flatnonzero(bins == place)
        members = members[np.argsort(values[members], kind="stable")]
        steps = (np.arange(len(members)) + 1) // 2 * np.where(np.arange(len(members)) % 2, 1, -1)
        heights[members] = steps * 2 * width / most
    return heights


# --- counterfactuals and mislabelled rows -----------------------------------------------------


@styled
def plot_counterfactual(result: Counterfactual) -> Figure:
    """How many predictions flip when the most helpful rows are removed and the model retrained.

    Solid, with its interval: the targets that flip at exactly this number of removed rows. Faint:
    the targets that have flipped at it or at a smaller one (carried forward), which grows by
    construction. A study that stopped at the first flip has only the latter: it is then solid.
    """
    curve = result.curve
    methods = list(dict.fromkeys(map(str, curve["method"])))
    styles = method_styles(methods)
    figure = new_figure(COLUMN, 3.1)
    axes = figure.subplots()
    carried = "share_carried" in curve and bool(curve["share_carried"].notna().any())
    stopped = carried and bool(curve["share"].isna().any())
    if stopped:
        names = ("share", "low", "high")
        curve = curve.assign(**{name: curve[f"{name}_carried"] for name in names})
    for method in methods:
        part = curve[curve["method"] == method].sort_values("size")
        _flip_curve(axes, part, *styles[method], carried=carried and not stopped)
    sizes = sorted(set(curve["size"]))
    # Every size is a tick where there is room for its number.
    if len(sizes) <= 10:
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=-0.02)
    percent_ticks(axes.yaxis)
    axes.grid(axis="y")
    axes.set(xlabel="training rows removed", ylabel="targets flipped")
    targets = int(curve["targets"].max()) if "targets" in curve else 0
    title = f"{targets} targets" if targets else ""
    if carried:
        title += ", carried forward" if stopped else "; faint: carried forward"
    axes.set_title(title)
    handles = [
        Line2D([], [], color=styles[m][0], marker=styles[m][1], label=f" {plain(m)}")
        for m in methods
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1)
    return figure


def _flip_curve(axes: Axes, part: pd.DataFrame, colour: str, marker: str, *, carried: bool) -> None:
    sizes = part["size"].to_numpy(float)
    if carried:
        axes.plot(
            sizes, part["share_carried"], color=colour, linewidth=0.9, alpha=0.45,
            linestyle=(0, (3, 2)), zorder=2, label="_carried",
        )  # fmt: skip
    low, high = part["low"].to_numpy(float), part["high"].to_numpy(float)
    axes.fill_between(sizes, low, high, color=colour, alpha=0.1, linewidth=0, zorder=1)
    method = str(part["method"].iloc[0])
    axes.plot(sizes, part["share"], color=colour, marker=marker, zorder=4, label=f"_{method}")


@styled
def plot_mislabel(result: Mislabel, *, level: float = 0.95) -> Figure:
    """Share of the mislabelled rows found against the share of rows inspected, in ranked order.

    Grey: what inspecting in random order finds, with its band (hypergeometric; of `level` where the
    result has none). Raises `ConfigError` where the mislabelled rows are not known.
    """
    curve = result.curve
    if curve is None:
        raise ConfigError(
            "which rows are mislabelled is not known, so there is no recall curve",
            remedy="give the known mislabelled rows",
        )
    figure = new_figure(COLUMN, 2.9)
    axes = figure.subplots()
    x = curve["inspected"].to_numpy(float)
    band = _random_band(result, x, level)
    if band is not None:
        axes.fill_between(x, *band, color=LONE, alpha=0.25, linewidth=0, zorder=1, label="_chance")
    expected = curve.get("random", x)
    axes.plot(x, expected, color=LONE, linewidth=1, zorder=2, label="_random")
    handles = [Line2D([], [], color=LONE, label=" random order")]
    if {"low", "high"} <= set(curve.columns) and not np.allclose(curve["low"], curve["high"]):
        axes.fill_between(
            x, curve["low"], curve["high"], color=PALETTE[0], alpha=0.16, linewidth=0, zorder=3
        )
    axes.plot(x, curve["recall"], color=PALETTE[0], zorder=4, label="_recall")
    handles.insert(0, Line2D([], [], color=PALETTE[0], label=" self-influence"))
    for axis in (axes.xaxis, axes.yaxis):
        percent_ticks(axis)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set(xlabel="rows inspected, most suspicious first", ylabel="mislabelled rows found")
    axes.grid()
    axes.set_title(_half_found(result, x), linespacing=1.35)
    figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1)
    return figure


def _known_rows(result: Mislabel) -> tuple[int, int] | None:
    """(mislabelled rows, rows) where the table says so."""
    if "known" not in result.table:
        return None
    return int(result.table["known"].astype(bool).sum()), len(result.table)


def _random_band(result: Mislabel, x: Array, level: float) -> tuple[Array, Array] | None:
    curve = cast(pd.DataFrame, result.curve)
    if {"random_low", "random_high"} <= set(curve.columns):
        return curve["random_low"].to_numpy(float), curve["random_high"].to_numpy(float)
    counts = _known_rows(result)
    if counts is None or counts[0] == 0:
        return None
    from scipy import stats

    known, rows = counts
    drawn = np.rint(x * rows).astype(int)
    law = stats.hypergeom(rows, known, drawn)
    tail = (1 - level) / 2
    return law.ppf(tail) / known, law.ppf(1 - tail) / known


def _half_found(result: Mislabel, x: Array) -> str:
    curve = cast(pd.DataFrame, result.curve)
    reached = np.flatnonzero(curve["recall"].to_numpy(float) >= 0.5)
    counts = _known_rows(result)
    text = f"{counts[0]} of {counts[1]:,} rows mislabelled" if counts else ""
    if len(reached):
        half = f"half of them are found in {100 * x[reached[0]]:.3g} % of the rows"
        text = f"{text}\n{half}" if text else half
    return text


@styled
def plot_self_influence(result: SelfInfluence) -> Figure:
    """Self-influence of every row against its loss, rows predicted wrongly in another colour."""
    table = result.table
    scores = table["score"].to_numpy(float)
    figure = new_figure(COLUMN, 2.9)
    axes = figure.subplots()
    x = table["loss"].to_numpy(float)
    wrong = np.zeros(len(table), dtype=bool)
    handles = []
    if "prediction" in table:
        wrong = (table["prediction"] != table["label"]).to_numpy(bool)
    groups = (
        (~wrong, PALETTE[0], "o", "predicted right" if "prediction" in table else "rows"),
        (wrong, PALETTE[1], "^", "predicted wrong"),
    )
    for members, colour, marker, name in groups:
        if members.any():
            axes.plot(
                x[members], scores[members], marker, color=colour, markersize=2.6, alpha=0.55,
                markeredgewidth=0, linestyle="none", rasterized=len(table) > 500,
            )  # fmt: skip
            label = f"{name} ({int(members.sum()):,})"
            handles.append(
                Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
            )
    # Both span orders of magnitude; a loss or score of exactly 0 has no place on a log axis.
    if (scores > 0).all():
        axes.set_yscale("log")
    if (x > 0).all():
        axes.set_xscale("log")
    axes.grid()
    axes.set(xlabel="loss of the row", ylabel="self-influence")
    axes.set_title(_rank_agreement(x, scores))
    figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1)
    return figure


def _rank_agreement(loss: Array, scores: Array) -> str:
    from scipy import stats

    if len(loss) < 3 or np.ptp(loss) == 0 or np.ptp(scores) == 0:
        return ""
    rho = float(stats.spearmanr(loss, scores).statistic)
    return f"Spearman of loss and self-influence {number(rho, '.2f')}"
