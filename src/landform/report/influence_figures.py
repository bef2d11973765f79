"""Figures of attribution: scores, factors, and the experiments that say how far to trust them.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure. Blue is helpful and vermilion is
harmful throughout; a method has one colour and one marker in every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from landform.errors import ConfigError
from landform.report.style import (
    COLUMN,
    GRID,
    INK,
    LONE,
    MARKERS,
    MUTED,
    PAGE,
    PALETTE,
    SEQUENTIAL,
    Figure,
    is_known,
    new_figure,
    percent,
    plain,
    short_labels,
    shorten,
    styled,
    unknown,
)

if TYPE_CHECKING:
    from landform.attribution.influence import Influence, SelfInfluence
    from landform.attribution.lds import LinearDatamodelling
    from landform.attribution.mislabel import Mislabel
    from landform.curvature.factors import FactorSummary
    from landform.studies.counterfactual import Counterfactual

__all__ = [
    "HARMFUL",
    "HELPFUL",
    "INFLUENCE_FIGURES",
    "agreement",
    "chosen_queries",
    "effective_ranks",
    "method_styles",
    "plot_agreement",
    "plot_counterfactual",
    "plot_lds",
    "plot_lds_queries",
    "plot_mislabel",
    "plot_query_scores",
    "plot_scores",
    "plot_self_influence",
    "plot_spectra",
    "plot_timings",
    "score_matrix",
]

Array = np.ndarray

HELPFUL, HARMFUL = PALETTE[0], PALETTE[1]
MINUS = "\N{MINUS SIGN}"


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


def _signed(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", MINUS)


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
    return _signed(np.floor(r * 10**digits) / 10**digits, f".{digits}f")


def _differences(a: Influence, b: Influence) -> tuple[str, str]:
    """Names that say in what two results differ."""
    fields = ("strategy", "labels", "measurement", "damping", "checkpoint")
    different = [name for name in fields if getattr(a, name) != getattr(b, name)]
    first, second = (", ".join(str(getattr(r, name)) for name in different) for r in (a, b))
    return (first, second) if different else ("first", "second")


# --- factors ----------------------------------------------------------------------------------

FACTORS = {
    "activation": "activation covariance A",
    "gradient": "gradient covariance S",
    "lambda": "curvature in the eigenbasis, \N{GREEK CAPITAL LETTER LAMDA}",
}


MOST_POINTS = 200  # that are kept of a spectrum


def effective_ranks(summary: FactorSummary, *, damping: float = 1e-8) -> pd.DataFrame:
    """Per module and factor: largest eigenvalue, effective rank, share of eigenvalues > `damping`.

    The effective rank is (sum of eigenvalues)^2 / (sum of their squares), here as a share of their
    number: 1 where all are equal. Both are taken from the points of the spectrum that were kept,
    eigenvalues between two points as if they fell by a constant factor. The effective rank is nan
    where the points leave it open: a few large eigenvalues between two points may outweigh all
    others. Columns: module, factor, largest, effective_rank, above_damping.
    """
    rows = []
    for (module, factor), part in summary.spectra.groupby(["module", "factor"], sort=False):
        part = part.sort_values("quantile", kind="stable")
        at, values = part["quantile"].to_numpy(float), part["eigenvalue"].to_numpy(float)
        values = np.clip(values, 0.0, None)
        rows.append(
            {
                "module": str(module),
                "factor": str(factor),
                "largest": float(values.max()),
                "effective_rank": _effective_rank(at, values),
                "above_damping": _share_above(at, values, damping),
            }
        )
    columns = ["module", "factor", "largest", "effective_rank", "above_damping"]
    return pd.DataFrame(rows, columns=columns)


def _effective_rank(at: Array, values: Array) -> float:
    if len(at) == 1:
        return 1.0 if values[0] > 0 else np.nan
    # A quantile is a place over the number of steps. Where two neighbours were kept they give that
    # number; two hundred evenly spaced points may be all there are or a few of very many.
    steps = round(1 / float(np.diff(at).min()))
    places = np.rint(at * steps)
    if np.abs(at * steps - places).max() > 1e-3 or len(at) == steps + 1 >= MOST_POINTS:
        return np.nan
    inner = np.diff(places) - 1
    total, low, high = _sums(values, inner)
    squares, low_squares, high_squares = _sums(values**2, inner)
    if low_squares <= 0 or high > 1.5 * low or high_squares > 2 * low_squares:
        return np.nan
    return total**2 / squares / (steps + 1)


def _sums(values: Array, inner: Array) -> tuple[float, float, float]:
    """(estimate, least, most) of a falling sequence's sum; `inner` are unseen ones in each step."""
    left, right = values[:-1], values[1:]
    kept = float(values.sum())
    falls = (right > 0) & (left > right * (1 + 1e-9))
    ratio = np.log(np.where(falls, left / np.where(right > 0, right, 1.0), np.e))
    middle = np.where(falls, (left - right) / ratio, (left + right) / 2)
    ends = (float((inner * side).sum()) + kept for side in (middle, right, left))
    return cast(tuple[float, float, float], tuple(ends))


def _share_above(at: Array, values: Array, damping: float) -> float:
    below = np.flatnonzero(values <= damping)
    if not len(below):
        return 1.0
    first = int(below[0])
    if first == 0:
        return 0.0
    # Spectra fall by orders of magnitude: the crossing is found on the log axis where it can be.
    high, low = values[first - 1], values[first]
    if low > 0 and damping > 0:
        high, low, damping = np.log(high), np.log(low), np.log(damping)
    share = (high - damping) / (high - low) if high > low else 0.0
    return float(at[first - 1] + share * (at[first] - at[first - 1]))


@styled
def plot_spectra(
    summary: FactorSummary, *, damping: float = 1e-8, modules: Sequence[str] | None = None
) -> Figure:
    """Eigenvalues of every module's factors, largest first, on a log axis.

    Dashed in the panel of the curvature: `damping`, what is added to every eigenvalue before it is
    inverted; directions far below it are inverted alike. Titles give the median over modules of
    the effective rank (where the points kept of the spectrum tell it) and of the share of
    eigenvalues above the damping. Eigenvalues more than
    twelve orders of magnitude below the largest are off the panel. Raises `ConfigError` where the
    strategy has no eigenvalues.
    """
    spectra = summary.spectra
    if not len(spectra):
        raise ConfigError(
            f"the strategy {summary.strategy} has no factors to decompose, so no spectra",
            remedy="fit with kfac or ekfac",
        )
    names = list(dict.fromkeys(map(str, spectra["module"])))
    if modules is not None:
        for module in modules:
            if module not in names:
                raise unknown("module", module, names)
        names = list(modules)
        spectra = spectra[spectra["module"].isin(names)]
    factors = [name for name in FACTORS if (spectra["factor"] == name).any()]
    ranks = effective_ranks(summary, damping=damping)
    ranks = ranks[ranks["module"].isin(names)]
    figure = new_figure(PAGE if len(factors) > 1 else COLUMN, 2.7)
    panels = figure.subplots(1, len(factors), squeeze=False)[0]
    colours = _module_colours(names)
    for axes, factor in zip(panels, factors, strict=True):
        part = spectra[spectra["factor"] == factor]
        _spectrum_panel(axes, part, colours)
        medians = ranks[ranks["factor"] == factor]
        rank = float(medians["effective_rank"].median())
        known = [f"effective rank {percent(rank)}"] if np.isfinite(rank) else []
        if factor == "lambda":
            axes.axhline(damping, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=4)
            _widen(axes, damping)
            above = percent(float(medians["above_damping"].median()))
            known.append(f"{above} above {damping:.0e}")
        axes.set_title(f"{FACTORS[factor]}\n{', '.join(known)}", linespacing=1.35)
    panels[0].set_ylabel("eigenvalue")
    figure.supxlabel("share of the eigenvalues, largest first", fontsize=7.5)
    _module_key(figure, panels, names, colours)
    return figure


def _module_colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour of its own for each of few modules, else a shade by the place in the network."""
    if len(names) <= len(PALETTE):
        return dict(zip(names, PALETTE, strict=False))
    # The lightest shades are near white.
    shades = np.linspace(0.3, 1.0, len(names))
    return {name: SEQUENTIAL(shade) for name, shade in zip(names, shades, strict=True)}


def _spectrum_panel(axes: Axes, spectra: pd.DataFrame, colours: dict[str, Any]) -> None:
    for module, part in spectra.groupby("module", sort=False):
        part = part.sort_values("quantile", kind="stable")
        values = part["eigenvalue"].to_numpy(float)
        axes.plot(
            part["quantile"],
            np.where(values > 0, values, np.nan),
            color=colours[str(module)],
            linewidth=1.2 if len(colours) <= len(PALETTE) else 0.7,
            label=f"_{module}",
        )
    axes.set_yscale("log")
    positive = spectra["eigenvalue"].to_numpy(float)
    positive = positive[np.isfinite(positive) & (positive > 0)]
    if len(positive):
        top = float(positive.max())
        axes.set_ylim(max(float(positive.min()), top * 1e-12) / 2, top * 3)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.grid()


def _widen(axes: Axes, value: float) -> None:
    low, high = axes.get_ylim()
    if value > 0:
        axes.set_ylim(min(low, value / 3), max(high, value * 3))


def _module_key(
    figure: Figure, panels: Sequence[Axes], names: Sequence[str], colours: dict[str, Any]
) -> None:
    if len(names) <= len(PALETTE):
        labels = short_labels(names, 30)
        handles = [
            Line2D([], [], color=colours[name], label=f" {plain(label)}")
            for name, label in zip(names, labels, strict=True)
        ]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=3, columnspacing=1, labelspacing=0.35
        )
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    shades = ListedColormap([colours[name] for name in names])
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), shades), ax=list(panels), aspect=30, pad=0.01
    )
    bar.set_ticks([0.0, 1.0], labels=["first", "last"])
    bar.ax.tick_params(length=0)
    cast(Any, bar.outline).set_visible(False)
    bar.ax.invert_yaxis()
    bar.set_label(f"{len(names)} modules, in order", labelpad=-12)


# --- timings ----------------------------------------------------------------------------------


@styled
def plot_timings(result: Any) -> Figure:
    """Seconds of every phase of a result that has `timings`."""
    timings = {name: float(s) for name, s in result.timings.items() if name != "total"}
    if not timings:
        raise ConfigError("this result has no timings to draw")
    total = float(result.timings.get("total", sum(timings.values())))
    figure = new_figure(COLUMN, 0.24 * len(timings) + 0.75)
    axes = figure.subplots()
    y = np.arange(len(timings))
    axes.barh(y, list(timings.values()), height=0.62, color=PALETTE[0], alpha=0.85, linewidth=0)
    axes.set_yticks(y, [plain(name.replace("_", " ")) for name in timings])
    axes.set_ylim(len(timings) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlim(0, 1.38 * max(timings.values()) or 1)
    for value, at in zip(timings.values(), y, strict=True):
        share = f" ({percent(value / total)})" if total > 0 else ""
        axes.annotate(
            f"{_seconds(value)}{share}", (value, at), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=6.5, color=INK,
        )  # fmt: skip
    axes.set_xlabel("seconds")
    axes.set_title(f"{_seconds(total)} s in all")
    return figure


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value < 0.1 else f"{value:#.3g}"


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
            f"{_signed(record['lds'], '.3f')} [{_signed(record['low'], '.2f')},"
            f" {_signed(record['high'], '.2f')}]",
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
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
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
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
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
    return f"Spearman of loss and self-influence {_signed(rho, '.2f')}"


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
