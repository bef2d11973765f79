"""Figures that compare groups of checkpoints: pairs of the best and the worst, two sets of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from landform.errors import ConfigError
from landform.report.connections import endpoint_metric, metric_columns, split_curves
from landform.report.style import (
    COLUMN,
    HATCHED,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    column_label,
    format_p,
    metric_label,
    new_figure,
    pick,
    plain,
    shorten,
    styled,
    wrapped,
)
from landform.report.surface_figures import is_low_good

if TYPE_CHECKING:
    from landform.evaluation.evaluate import Evaluation
    from landform.studies.connect import Connection

__all__ = [
    "endpoint_table",
    "kernel_density",
    "plot_ridges",
    "plot_score_distributions",
    "ridge_groups",
    "two_sample_p",
]

Array = np.ndarray

MOST_PANELS = 16  # the loss and a metric of the 3 x 2 subsets of HANS, of HANS and of MNLI
GROUPS = ("gen.", "middle", "heur.")


# --- peaks, valleys, plains -------------------------------------------------------------------


def ridge_groups(
    connection: Connection, metric: str | None = None, k: int | None = None
) -> dict[str, list[str]]:
    """The k best, k middle and k worst checkpoints by a metric of `endpoints`, best first.

    "gen." are the best (they generalise), "heur." the worst (they follow a heuristic), "middle"
    those around the median. `metric` is a column of `endpoints`, by default the first
    out-of-distribution one; of losses, small is good. `k` is 5 by default, or a third of the
    checkpoints where there are fewer than 15. Groups do not overlap; where there are fewer than 3 k
    checkpoints the middle is smaller, down to nothing. Raises `ConfigError` for an unknown metric
    and for fewer than 2 k checkpoints.
    """
    column = endpoint_metric(connection, metric)
    n = len(connection.names)
    k = max(1, min(5, n // 3)) if k is None else k
    if k < 1 or 2 * k > n:
        raise ConfigError(
            f"option k: {k} best and {k} worst of {n} checkpoints cannot be told apart",
            remedy=f"use 1 to {n // 2}",
        )
    values = connection.endpoints[column].astype(float).reindex(list(connection.names))
    sign = 1 if is_low_good(column.rpartition("/")[2]) else -1
    order = [str(name) for name in (sign * values).sort_values(kind="stable").index]
    rest = order[k : n - k]
    size = min(k, len(rest))
    start = (len(rest) - size) // 2
    return {"gen.": order[:k], "middle": rest[start : start + size], "heur.": order[n - k :]}


@styled
def plot_ridges(
    connection: Connection,
    metric: str | None = None,
    *,
    k: int | None = None,
    column: str = "loss",
    data: str | Sequence[str] | None = None,
    middle: bool = True,
) -> Figure:
    """Peaks, valleys and plains: the mean line between two good, two bad, a good and a bad model.

    `ridge_groups` picks the models by `metric`. A row per data set, a column per type of pair; the
    line is the mean of `column` (the loss or a metric of the curves) over the ordered pairs, the
    band its 95 % interval (normal, over the unordered pairs, since a line walked back is no new
    line), N in the title the number of ordered pairs. `middle=False` leaves out the plains.
    """
    groups = ridge_groups(connection, metric, k)
    names = [name for name in GROUPS if groups[name] and (middle or name != "middle")]
    pick("column", column, ["loss", *metric_columns(connection.curves)])
    wanted = [data] if isinstance(data, str) else list(data or connection.data)
    sets = [pick("data set", name, list(connection.data)) for name in wanted]
    types = _pair_types(connection, groups, names)
    figure = new_figure(PAGE, 1.25 * len(sets) + 0.75)
    grid = figure.subplots(len(sets), len(types), squeeze=False, sharex=True, sharey="row")
    for row, name in enumerate(sets):
        table = connection.curves[connection.curves["data"] == name]
        curves = {frozenset(c[:2]): c for c in split_curves(table, column)}
        for axes, (a, b) in zip(grid[row], types, strict=True):
            lines = _oriented(curves, groups[a], groups[b], same=a == b)
            count = _mean_line(axes, lines)
            if row == 0:
                axes.set_title(f"{a} to {b}\nN = {count}")
        if len(sets) > 1:
            grid[row][0].set_ylabel(wrapped(plain(shorten(name.replace(":", ": "), 30)), 16))
    label = column_label(connection, column)
    if len(sets) > 1:
        figure.supylabel(label, fontsize="medium")
    else:
        grid[0][0].set_ylabel(label)
    for axes in grid[-1]:
        axes.set_xticks([0, 0.5, 1], ["(1, 0)", "", "(0, 1)"])
    figure.supxlabel("position on the line: weights of the two models", fontsize="medium")
    return figure


def _pair_types(
    connection: Connection, groups: Mapping[str, Sequence[str]], names: Sequence[str]
) -> list[tuple[str, str]]:
    """The types of pairs that were walked: within the groups, then between them."""
    walked = {frozenset(pair) for pair in zip(connection.pairs.a, connection.pairs.b, strict=True)}
    types = [(a, a) for a in names] + list(combinations(names, 2))
    there = [
        (a, b)
        for a, b in types
        if any(frozenset((p, q)) in walked for p in groups[a] for q in groups[b])
    ]
    if not there:
        raise ConfigError(
            "no line between the chosen checkpoints was walked",
            remedy="choose another metric or k, or connect all pairs",
        )
    return there


def _oriented(
    curves: Mapping[frozenset[str], tuple[str, str, Array, Array]],
    first: Sequence[str],
    second: Sequence[str],
    same: bool,
) -> list[tuple[str, str, Array, Array]]:
    """All walked lines from one group to another, in that direction; both ways within a group."""
    pairs = list(permutations(first, 2)) if same else [(a, b) for a in first for b in second]
    lines = []
    for a, b in pairs:
        found = curves.get(frozenset((a, b)))
        if found is None:
            continue
        start, _, t, values = found
        lines.append((a, b, t, values) if start == a else (a, b, 1 - t[::-1], values[::-1]))
    return lines


def _mean_line(axes: Axes, lines: Sequence[tuple[str, str, Array, Array]]) -> int:
    """Draw the mean of lines and its band; how many there were."""
    axes.grid(axis="y")
    axes.margins(x=0.02)
    grid = max((line[2] for line in lines), key=len)
    values = np.array([np.interp(grid, line[2], line[3]) for line in lines])
    mean = values.mean(axis=0)
    distinct = len({frozenset(line[:2]) for line in lines})
    if distinct > 1:
        half = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(distinct)
        axes.fill_between(grid, mean - half, mean + half, color=PALETTE[0], alpha=0.2, linewidth=0)
    axes.plot(grid, mean, "o-", color=PALETTE[0], markersize=2.2)
    return len(lines)


# --- two groups of runs -----------------------------------------------------------------------


def endpoint_table(group: Connection | Evaluation | Sequence[Evaluation]) -> pd.DataFrame:
    """Checkpoints by `data/metric` and `data/subset/metric`, of a connection or of evaluations."""
    if hasattr(group, "endpoints"):
        return cast(pd.DataFrame, group.endpoints)
    evaluations = list(group) if isinstance(group, Sequence) else [group]
    rows: dict[str, dict[str, float]] = {}
    for e in evaluations:
        row = rows.setdefault(str(e.checkpoint), {})
        data = f"{e.task}:{e.split}"
        row |= {f"{data}/{name}": float(value) for name, value in e.metrics.items()}
        for part in e.subsets.itertuples():
            row[f"{data}/{part.subset}/{part.metric}"] = float(cast(Any, part.value))
    return pd.DataFrame.from_dict(rows, orient="index")


def kernel_density(values: Array, grid: Array) -> Array | None:
    """Gaussian kernel density (Scott's bandwidth) on a grid; None where values do not vary."""
    from scipy import stats

    values = values[np.isfinite(values)]
    if len(values) < 3 or np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return None
    return cast(Array, stats.gaussian_kde(values)(grid))


def two_sample_p(a: Array, b: Array, test: str) -> float:
    """Two-sided p that two samples are of one distribution: "ks" or "mann-whitney"."""
    from scipy import stats

    if len(a) < 2 or len(b) < 2:
        return float("nan")
    if pick("test", test, ["ks", "mann-whitney"]) == "ks":
        return float(stats.ks_2samp(a, b).pvalue)
    return float(stats.mannwhitneyu(a, b, alternative="two-sided").pvalue)


@styled
def plot_score_distributions(
    groups: Mapping[str, Any] | Sequence[Any],
    *,
    metrics: Sequence[str] | str | None = None,
    names: Sequence[str] | None = None,
    same_x_scale: bool = False,
    test: Literal["ks", "mann-whitney"] = "ks",
    bins: int = 12,
    columns: int = 3,
) -> Figure:
    """How two groups of runs (the original and the retrained ones, say) score on every subset.

    A group is a connection or a sequence of evaluations. A panel per metric of a data set or
    subset that both have: histograms as densities with kernel density estimates, ticks for the
    runs, and in the title the p of the `test` (Kolmogorov-Smirnov, or Mann-Whitney). `metrics` are
    columns `data/subset/metric`, or the last word of them ("accuracy": all of those). With
    `same_x_scale` panels of one metric share their axis. Without `metrics`, the loss and the first
    metric of the data set and of its first subsets, at most 16 panels, without those that are the
    same in all runs; a line below them says how many were left out. Many panels are many
    tests: expect a small p among twenty.
    """
    named = _two_groups(groups, names)
    shown = _shared_columns(named, metrics)
    every = len(shown)
    if metrics is None:
        shown = ([c for c in shown if _varies(named, c)] or shown)[:MOST_PANELS]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(PAGE if columns > 1 else COLUMN, 1.45 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    limits = _shared_limits(named, shown) if same_x_scale else {}
    for place, (axes, column) in enumerate(zip(grid.flat, shown, strict=False)):
        samples = [table[column].dropna().to_numpy(float) for table in named.values()]
        _densities(axes, samples, bins, limits.get(column.rpartition("/")[2]))
        p = two_sample_p(samples[0], samples[1], test)
        said = format_p(p) if np.isfinite(p) else ""
        title = wrapped(plain(column.rpartition("/")[0]), 30)
        axes.set_title(f"{title}\n{said}" if said else title)
        axes.set_xlabel(metric_label(column.rpartition("/")[2]))
        if place % columns == 0:
            axes.set_ylabel("density")
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    handles = [
        Patch(
            facecolor=PALETTE[g],
            alpha=0.6,
            **(HATCHED if g else {}),
            label=f"{plain(name)} (n = {len(table)})",
        )
        for g, (name, table) in enumerate(named.items())
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1)
    if len(shown) < every:
        note = f"{len(shown)} of {every} subsets and metrics; option metrics: others"
        figure.supxlabel(note, x=0.01, ha="left", fontsize="small", color=MUTED)
    return figure


def _two_groups(
    groups: Mapping[str, Any] | Sequence[Any], names: Sequence[str] | None
) -> dict[str, pd.DataFrame]:
    if isinstance(groups, Mapping):
        labels, members = [str(name) for name in groups], list(groups.values())
    else:
        labels, members = [f"group {k + 1}" for k in range(len(groups))], list(groups)
    labels = list(names) if names is not None else labels
    if len(members) != 2 or len(labels) != 2 or len(set(labels)) != 2:
        raise ConfigError(
            f"score distributions compare two groups, got {len(members)} groups and "
            f"{len(labels)} names",
            remedy="pass two connections, or two lists of evaluations, with two different names",
        )
    return {label: endpoint_table(m) for label, m in zip(labels, members, strict=True)}


def _shared_columns(
    named: Mapping[str, pd.DataFrame], metrics: Sequence[str] | str | None
) -> list[str]:
    """The columns to draw: those asked for, or the loss and the first metric of everything."""
    first, second = named.values()
    shared = [str(c) for c in first.columns if c in second.columns]
    if not shared:
        raise ConfigError(
            "the two groups have no data set and metric in common",
            remedy="evaluate both on the same data",
        )
    if metrics is None:
        words = list(dict.fromkeys(c.rpartition("/")[2] for c in shared))
        others = [word for word in words if word != "loss"]
        keep = {"loss", *others[:1]}
        return [c for c in shared if c.rpartition("/")[2] in keep]
    chosen: list[str] = []
    for asked in [metrics] if isinstance(metrics, str) else metrics:
        ends = [c for c in shared if c.rpartition("/")[2] == asked]
        chosen += ends or [pick("metric", asked, shared)]
    return list(dict.fromkeys(chosen))


def _varies(named: Mapping[str, pd.DataFrame], column: str) -> bool:
    values = np.concatenate([table[column].dropna().to_numpy(float) for table in named.values()])
    return len(values) > 0 and float(np.ptp(values)) > 0


def _shared_limits(
    named: Mapping[str, pd.DataFrame], shown: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """metric -> the range of its values over all panels."""
    limits: dict[str, tuple[float, float]] = {}
    for word in {c.rpartition("/")[2] for c in shown}:
        same = [c for c in shown if c.rpartition("/")[2] == word]
        values = np.concatenate([t[same].to_numpy(float).ravel() for t in named.values()])
        values = values[np.isfinite(values)]
        limits[word] = (float(values.min()), float(values.max()))
    return limits


def _densities(
    axes: Axes, samples: Sequence[Array], bins: int, limits: tuple[float, float] | None
) -> None:
    every = np.concatenate(samples)
    low, high = limits or (float(every.min()), float(every.max()))
    span = high - low or max(abs(high), 1.0) * 0.1
    edges = np.linspace(low - 0.04 * span, high + 0.04 * span, bins + 1)
    grid = np.linspace(edges[0], edges[-1], 200)
    for g, values in enumerate(samples):
        colour = PALETTE[g]
        axes.hist(
            values, bins=list(edges), density=True, facecolor=colour, alpha=0.3,
            **(HATCHED if g else {}),
            label=f"_group {g}",
        )  # fmt: skip
        density = kernel_density(values, grid)
        if density is not None:
            axes.plot(
                grid,
                density,
                "--" if g else "-",
                color=colour,
                linewidth=1.1,
                label=f"_density {g}",
            )
        axes.plot(
            values, np.full(len(values), -0.04 - 0.05 * g), "|", color=colour, markersize=3.5,
            transform=axes.get_xaxis_transform(), clip_on=False, label=f"_runs {g}",
        )  # fmt: skip
    axes.set_xlim(edges[0], edges[-1])
    axes.tick_params(axis="x", pad=7)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(3))
