"""Figures of curvature factors, their spectra and what they cost in time.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from landform.errors import ConfigError
from landform.report.style import (
    COLUMN,
    INK,
    PAGE,
    PALETTE,
    SEQUENTIAL,
    Figure,
    new_figure,
    percent,
    percent_ticks,
    plain,
    short_labels,
    styled,
    unknown,
)

if TYPE_CHECKING:
    from landform.curvature.factors import FactorSummary

__all__ = [
    "FACTORS",
    "MOST_POINTS",
    "effective_ranks",
    "plot_spectra",
    "plot_timings",
]

Array = np.ndarray

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
    percent_ticks(axes.xaxis)
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
