"""Figures of attribution: scores, factors, and the experiments that say how far to trust them.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure. Blue is helpful and vermilion is
harmful throughout; a method has one colour and one marker in every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from landform.errors import ConfigError
from landform.report.style import (
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    is_known,
    new_figure,
    number,
    percent,
    plain,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from landform.attribution.influence import Influence

from landform.report.factor_figures import plot_spectra, plot_timings
from landform.report.method_figures import (
    plot_counterfactual,
    plot_lds,
    plot_lds_queries,
    plot_mislabel,
    plot_self_influence,
)

__all__ = [
    "HARMFUL",
    "HELPFUL",
    "INFLUENCE_FIGURES",
    "agreement",
    "chosen_queries",
    "plot_agreement",
    "plot_query_scores",
    "plot_scores",
    "score_matrix",
]

Array = np.ndarray

HELPFUL, HARMFUL = PALETTE[0], PALETTE[1]


# --- scores -----------------------------------------------------------------------------------


def score_matrix(result: Influence) -> Array | None:
    """Scores as (queries, training rows) in float64; None where only the top rows were kept."""
    if result.scores is None:
        return None
    return result.scores.to_numpy(dtype=np.float64).T


def chosen_queries(result: Influence, count: int = 6) -> list[int]:
    """Positions of `count` queries spread evenly from the highest loss to the lowest."""
    queries = result.queries
    n = len(queries) if result.scores is None else min(len(queries), result.scores.shape[1])
    order = np.arange(n)
    if "loss" in queries:
        losses = queries["loss"].to_numpy(dtype=float)[:n]
        order = np.argsort(-np.nan_to_num(losses, nan=-np.inf), kind="stable")
    spread = np.linspace(0, n - 1, min(count, n)).round().astype(int)
    return [int(order[at]) for at in spread]


@styled
def plot_scores(result: Influence, *, standardised: bool = True, bins: int | None = None) -> Figure:
    """How the scores of all queries with all training rows are distributed, counts on a log axis.

    Queries of a high loss have large scores for every training row, so each query's scores are
    divided by their standard deviation, unless `standardised` is false (or only the top was kept).
    Dashed: as many draws of a normal distribution of that spread. The title says how much of a
    query's sum of absolute scores (the median over queries) its largest hundredth holds.
    """
    matrix = score_matrix(result)
    if matrix is None:
        values, standardised = cast(pd.DataFrame, result.best)["score"].to_numpy(float), False
        of = len(result.queries) * len(result.train)
        note = f"only the top was kept: {len(values):,} of {of:,} scores"
    else:
        values = (_in_spreads(matrix) if standardised else matrix).ravel()
        note = _concentration(matrix)
    figure = new_figure(COLUMN, 2.6)
    axes = figure.subplots()
    edges, scale, unit = _edges(values, bins or int(np.clip(2 * len(values) ** (1 / 3), 21, 81)))
    for side, colour in ((values < 0, HARMFUL), (values >= 0, HELPFUL)):
        axes.hist(values[side] / scale, bins=list(edges), color=colour, alpha=0.8, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(axes.get_ylim()[1], 2.0))
    if standardised and len(values):
        _normal_counts(axes, edges, len(values))
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.grid(axis="y")
    label = "score / standard deviation of its query" if standardised else f"score{unit}"
    axes.set(xlabel=label, ylabel="pairs of query and row")
    axes.set_title(note)
    helpful = float((values > 0).mean()) if len(values) else 0.0
    harmful = float((values < 0).mean()) if len(values) else 0.0
    handles: list[Artist] = [
        Patch(color=HARMFUL, alpha=0.8, label=f"harmful ({percent(harmful)})"),
        Patch(color=HELPFUL, alpha=0.8, label=f"helpful ({percent(helpful)})"),
    ]
    if standardised:
        dashes = (0, (3, 2))
        handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=dashes, label="normal"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1)
    return figure


def _in_spreads(matrix: Array, by: Array | None = None) -> Array:
    """Each query's scores over the standard deviation of its scores (of those in `by`)."""
    spread = (matrix if by is None else by).std(axis=1, keepdims=True)
    return cast(Array, matrix / np.where(spread > 0, spread, 1.0))


def _normal_counts(axes: Axes, edges: Array, count: int) -> None:
    from scipy import stats

    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    expected = count * width * stats.norm.pdf(middle)
    shown = expected > 0.3
    axes.plot(
        middle[shown], expected[shown], color=INK, linewidth=0.8, linestyle=(0, (3, 2)),
        label="_normal",
    )  # fmt: skip


def _edges(values: Array, bins: int) -> tuple[Array, float, str]:
    """Bin edges with one at 0, in units of a power of ten that is said in the label."""
    top = float(np.abs(values).max()) if len(values) else 1.0
    power = int(np.floor(np.log10(top))) if top > 0 else 0
    power = 0 if -3 <= power <= 3 else power
    scale = 10.0**power
    low, high = float(values.min(initial=0.0)) / scale, float(values.max(initial=0.0)) / scale
    width = (high - low) / bins or 1.0
    # One edge is at 0: no bar is half helpful and half harmful.
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1.5)
    return edges, scale, rf" ($\times 10^{{{power}}}$)" if power else ""


def _concentration(matrix: Array) -> str:
    sizes = -np.sort(-np.abs(matrix), axis=1)
    totals = sizes.sum(axis=1)
    if not (totals > 0).any():
        return "every score is 0"
    top = max(1, sizes.shape[1] // 100)
    share = np.median(sizes[totals > 0, :top].sum(axis=1) / totals[totals > 0])
    rows = "1 % of a query's rows hold" if top > 1 else "row of a query holds"
    return f"the largest {rows} {percent(float(share))}\nof its sum of |score|"


@styled
def plot_query_scores(
    result: Influence, *, queries: Sequence[int] | None = None, k: int = 5
) -> Figure:
    """The scores of single queries, one row each, with the `k` most helpful and harmful marked.

    Scores are divided by their standard deviation over the training rows, since queries of a high
    loss have large scores for every training row; heights are log counts. `queries` are positions
    (by default six from the highest loss to the lowest).
    """
    matrix = score_matrix(result)
    if matrix is None:
        raise ConfigError(
            "only the top rows of every query were kept, so there is no distribution per query",
            remedy="score without top, or draw plot_scores",
        )
    shown = chosen_queries(result) if queries is None else list(queries)
    if wrong := [q for q in shown if not 0 <= q < len(matrix)]:
        raise ConfigError(f"there is no query {wrong[0]}: there are {len(matrix)}")
    figure = new_figure(PAGE, 0.52 * len(shown) + 0.85)
    axes = figure.subplots()
    labels = []
    for row, query in enumerate(shown):
        _ridge(axes, row, matrix[query], k)
        labels.append(_query_label(result, query))
    axes.axvline(0, color=MUTED, linewidth=0.6, zorder=1)
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.65, -0.95)
    axes.tick_params(axis="y", length=0, labelsize=6.5)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("score / its standard deviation over the training rows")
    handles = [
        Line2D([], [], color=HARMFUL, marker="v", linestyle="none", label=f"{k} most harmful"),
        Line2D([], [], color=HELPFUL, marker="^", linestyle="none", label=f"{k} most helpful"),
        Patch(color=MUTED, alpha=0.4, linewidth=0, label="all training rows (log count)"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, columnspacing=1)
    return figure


def _ridge(axes: Axes, row: int, scores: Array, k: int) -> None:
    spread = float(scores.std()) or 1.0
    values = scores / spread
    counts, edges = np.histogram(values, bins=64)
    heights = 0.72 * np.log1p(counts) / np.log1p(counts.max())
    axes.stairs(
        row - heights, edges, baseline=row, fill=True, color=MUTED, alpha=0.4, linewidth=0, zorder=2
    )
    axes.axhline(row, color=GRID, linewidth=0.5, zorder=0)
    order = np.argsort(values, kind="stable")
    for rows, colour, marker in (
        (order[:k], HARMFUL, "v"),
        (order[::-1][:k], HELPFUL, "^"),
    ):
        sign = 1 if marker == "^" else -1
        marked = values[rows][sign * values[rows] > 0]
        axes.plot(
            marked,
            np.full(len(marked), row + 0.03),
            marker,
            color=colour,
            markersize=4.2,
            markeredgecolor="white",
            markeredgewidth=0.4,
            linestyle="none",
            zorder=5,
        )


def _query_label(result: Influence, query: int) -> str:
    if result.scores is not None and result.scores.shape[1] != len(result.queries):
        return f"the sum of {len(result.queries):,} queries"
    record = result.queries.iloc[query]
    words = f"{query}: {plain(_head(str(record.get('text', '')), 44))}"
    details = []
    if is_known(record.get("label")):
        details.append(plain(shorten(record["label"], 18)))
    if is_known(record.get("prediction")) and record["prediction"] != record.get("label"):
        details.append(f"predicted {plain(shorten(record['prediction'], 18))}")
    if is_known(record.get("loss")):
        details.append(f"loss {float(record['loss']):.3g}")
    return f"{words}\n{', '.join(details)}" if details else words


def _head(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


# --- two results of the same rows -------------------------------------------------------------


def agreement(a: Influence, b: Influence) -> dict[str, float]:
    """How two results of the same queries and training rows agree.

    `pearson` over all scores; `spearman` and `lowest_spearman`, the mean and the least over the
    queries of the rank correlation over training rows; `top` the mean share of a query's ten most
    helpful rows that both have. Raises `ConfigError` where they scored different rows.
    """
    x, y = _same_rows(a, b)
    from scipy import stats

    # A constant query has no ranks to compare; it is left out of the mean.
    per_query = [
        float(stats.spearmanr(p, q).statistic)
        for p, q in zip(x, y, strict=True)
        if np.ptp(p) > 0 and np.ptp(q) > 0
    ]
    k = min(10, x.shape[1])
    shared = [
        len(set(np.argsort(-p)[:k]) & set(np.argsort(-q)[:k])) / k
        for p, q in zip(x, y, strict=True)
    ]
    varied = np.ptp(x) > 0 and np.ptp(y) > 0
    return {
        "pearson": float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) if varied else np.nan,
        "spearman": float(np.mean(per_query)) if per_query else np.nan,
        "lowest_spearman": min(per_query, default=np.nan),
        "top": float(np.mean(shared)),
    }


def _same_rows(a: Influence, b: Influence) -> tuple[Array, Array]:
    x, y = score_matrix(a), score_matrix(b)
    if x is None or y is None:
        raise ConfigError(
            "only the top rows of every query were kept, so the scores cannot be compared",
            remedy="score both without top",
        )
    same = x.shape == y.shape and all(
        list(p[name]) == list(q[name])
        for p, q in ((a.queries, b.queries), (a.train, b.train))
        # Row 3 of one split is not row 3 of another: ids and texts tell.
        for name in ("row", "text_id", "text")
        if name in p and name in q
    )
    if not same:
        raise ConfigError(
            "the two results scored different rows: "
            f"{x.shape[0]} queries x {x.shape[1]} training rows and "
            f"{y.shape[0]} x {y.shape[1]}",
            remedy="score the same queries and training rows",
        )
    return x, y


@styled
def plot_agreement(
    a: Influence, b: Influence, *, labels: tuple[str, str] | None = None, points: int = 20_000
) -> Figure:
    """The scores of two results against each other (half precision against full, say).

    Above, a dot per query and training row (at most `points`, the largest among them) and the
    diagonal; below, the difference, which the upper panel is too small to show. Dots are in units
    of the standard deviation of the query's scores in `a`; where the two have another strategy,
    damping or measurement, and so other units, each in its own, without a difference. The
    correlations in the title are of all scores as they are. Raises `ConfigError` where the two
    scored different rows.
    """
    x, y = _same_rows(a, b)
    numbers = agreement(a, b)
    names = labels or _differences(a, b)
    units = ("strategy", "labels", "measurement", "damping")
    same = all(getattr(a, name) == getattr(b, name) for name in units)
    scaled = _in_spreads(x), _in_spreads(y, by=x if same else y)
    shown = _sample(scaled[0].ravel(), points)
    p, q = (values.ravel()[shown] for values in scaled)
    figure = new_figure(COLUMN, 3.9 if same else 3.2)
    rows = 2 if same else 1
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[2.6, 1][:rows])
    upper = panels[0, 0]
    ends = [min(p.min(), q.min()), max(p.max(), q.max())]
    upper.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for axes, values in zip(panels[:, 0], (q, q - p), strict=False):
        axes.plot(
            p, values, "o", color=PALETTE[0], markersize=1.6, alpha=0.35, markeredgewidth=0,
            linestyle="none", rasterized=len(p) > 500, zorder=2,
        )  # fmt: skip
        axes.grid()
        axes.ticklabel_format(scilimits=(-3, 4), useMathText=True)
    first, second = (plain(shorten(name, 30)) for name in names)
    upper.set_ylabel(f"score, {second}")
    if same:
        panels[1, 0].axhline(0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        panels[1, 0].set_ylabel("difference")
    panels[-1, 0].set_xlabel(f"score, {first}\n(standard deviations of its query)", loc="left")
    title = (
        f"Pearson {_near_one(numbers['pearson'])} over {x.size:,} scores\n"
        f"Spearman per query {_near_one(numbers['spearman'])}"
        f" (lowest {_near_one(numbers['lowest_spearman'])})\n"
        f"of each query's ten most helpful rows, {percent(numbers['top'])} shared"
    )
    upper.set_title(title, linespacing=1.35)
    return figure


def _sample(values: Array, points: int) -> Array:
    """At most `points` places: the largest tenth by size, the rest at random (always the same)."""
    if len(values) <= points:
        return np.arange(len(values))
    order = np.argsort(-np.abs(values), kind="stable")
    largest, rest = np.split(order, [points // 10])
    drawn = np.random.default_rng(0).choice(rest, points - len(largest), replace=False)
    return np.concatenate([drawn, largest])


def _near_one(r: float) -> str:
    """A correlation with as many digits as tell it from 1, and no rounding up to it."""
    if r != r:
        return "undefined"
    if r > 1 - 1e-9:  # 1 but for rounding
        return "1"
    digits = int(np.clip(1 - np.floor(np.log10(1 - r)), 2, 8))
    return number(np.floor(r * 10**digits) / 10**digits, f".{digits}f")


def _differences(a: Influence, b: Influence) -> tuple[str, str]:
    """Names that say in what two results differ."""
    fields = ("strategy", "labels", "measurement", "damping", "checkpoint")
    different = [name for name in fields if getattr(a, name) != getattr(b, name)]
    first, second = (", ".join(str(getattr(r, name)) for name in different) for r in (a, b))
    return (first, second) if different else ("first", "second")


INFLUENCE_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Influence": {
        "scores": plot_scores,
        "queries": plot_query_scores,
        "timings": plot_timings,
    },
    "SelfInfluence": {"self-influence": plot_self_influence, "timings": plot_timings},
    "FactorSummary": {"spectra": plot_spectra, "timings": plot_timings},
    "LinearDatamodelling": {"lds": plot_lds, "queries": plot_lds_queries},
    "Counterfactual": {"counterfactual": plot_counterfactual},
    "Mislabel": {"recall": plot_mislabel},
}
"""The figures of the results of attribution, the main one first."""
