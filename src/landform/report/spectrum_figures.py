"""Figures and atlas pages of spectra: density of eigenvalues, the largest ones, along a path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from landform.errors import ConfigError
from landform.report.parts import Kind, Row, as_text, data_table, fact, picture, with_interval
from landform.report.style import (
    COLUMN,
    MINUS,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    end_names,
    loss_label,
    new_figure,
    plain,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from landform.curvature.spectrum import Spectrum
    from landform.geometry.spectrum_path import PathSpectrum

__all__ = [
    "SPECTRUM_FIGURES",
    "SPECTRUM_KINDS",
    "plot_path_spectrum",
    "plot_spectrum",
]

FLOOR = 1e-2
"""Densities are drawn down to this share of one eigenvalue's own peak."""
TOP, BOTTOM = PALETTE[1], PALETTE[0]
WORDS = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "empirical-fisher": "empirical Fisher",
}


@styled
def plot_spectrum(result: Spectrum) -> Figure:
    """The density of eigenvalues on a log scale, and the outermost eigenvalues with intervals.

    Left: mean over probes, and the band between the lowest and the highest of them; ticks are
    eigenvalues that Lanczos found. Right: thick bars are residuals, thin ones add what another
    sample of examples would move.
    """
    drawn = [len(result.density) > 0, len(result.table) > 0]
    if not any(drawn):
        raise ConfigError(
            "this spectrum has neither a density nor eigenvalues to draw",
            remedy="ask for top or density_probes",
        )
    both = all(drawn)
    figure = new_figure(PAGE if both else COLUMN, 2.5)
    panels = figure.subplots(1, 2 if both else 1, squeeze=False, width_ratios=[3, 2][: sum(drawn)])
    axes = iter(panels[0])
    if drawn[0]:
        _draw_density(next(axes), result)
    if drawn[1]:
        _draw_eigenvalues(next(axes), result)
    name = shorten(result.checkpoint, 34)
    panels[0, 0].set_title(f"{WORDS[result.operator]} of {plain(name)}")
    return figure


def _draw_density(panel: Axes, result: Spectrum) -> None:
    table = result.density
    x, y = table["eigenvalue"].to_numpy(), table["density"].to_numpy()
    # One eigenvalue of D makes a peak this high; far below it there is only the Gaussians' tail.
    peak = 1 / (result.parameters * result.sigma * math.sqrt(2 * math.pi))
    floor = FLOOR * peak
    panel.fill_between(
        x,
        np.maximum(table["low"], floor),
        np.maximum(table["high"], floor),
        color=PALETTE[0],
        alpha=0.25,
        linewidth=0,
    )
    panel.plot(x, np.maximum(y, floor), color=PALETTE[0], linewidth=1.0)
    panel.set_yscale("log")
    panel.set_ylim(floor, 3 * max(float(y.max()), peak))
    panel.axhline(peak, color=MUTED, linewidth=0.6, linestyle=(0, (4, 3)))
    panel.annotate(
        "one eigenvalue",
        (1.0, peak),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=MUTED,
        fontsize=6,
    )
    for row in result.table.to_dict("records"):
        colour = TOP if row["end"] == "top" else BOTTOM
        panel.plot([row["eigenvalue"]] * 2, [0, 0.05], color=colour, linewidth=1.2,
                   transform=panel.get_xaxis_transform(), clip_on=False)  # fmt: skip
    panel.set_xlabel("eigenvalue")
    panel.set_ylabel("density")


def _draw_eigenvalues(panel: Axes, result: Spectrum) -> None:
    table = result.table
    order = table.sort_values("eigenvalue", ascending=False).reset_index(drop=True)
    for place, row in enumerate(order.to_dict("records")):
        colour = TOP if row["end"] == "top" else BOTTOM
        value, residual = row["eigenvalue"], row["residual"]
        panel.plot([place] * 2, [row["low"], row["high"]], color=colour, linewidth=0.8)
        panel.plot([place] * 2, [value - residual, value + residual], color=colour, linewidth=3,
                   alpha=0.5, solid_capstyle="butt")  # fmt: skip
        panel.plot(place, value, marker="o", color=colour, markersize=3.5)
    panel.axhline(0, color=MUTED, linewidth=0.6)
    panel.set_xticks(range(len(order)))
    names = [f"{'' if e == 'top' else MINUS}{r + 1}" for e, r in zip(
        order["end"], order["rank"].astype(int), strict=True)]  # fmt: skip
    panel.set_xticklabels(names)
    panel.set_xlim(-0.6, len(order) - 0.4)
    panel.set_xlabel("rank")
    panel.set_ylabel("eigenvalue")
    panel.set_title(f"with {100 * result.level:.0f} % intervals over examples")


@styled
def plot_path_spectrum(result: PathSpectrum) -> Figure:
    """Largest eigenvalue, trace and loss along a path, one above the other on one axis t.

    Bands: of the eigenvalue what another sample of examples would move, of the trace the random
    vectors, of the loss a bootstrap over examples.
    """
    table = result.table
    columns = [
        (name, *rest)
        for name, *rest in (
            ("eigenvalue", "low", "high", "largest\neigenvalue", PALETTE[1]),
            ("trace", "trace_low", "trace_high", "trace", PALETTE[2]),
            ("loss", "loss_low", "loss_high", loss_label(result), PALETTE[0]),
        )
        if table[name].notna().all()
    ]
    figure = new_figure(COLUMN, 0.6 + 1.15 * len(columns))
    panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    t = table["t"].to_numpy(dtype=float)
    for panel, (name, low, high, label, colour) in zip(panels, columns, strict=True):
        values = table[name].to_numpy(dtype=float)
        panel.fill_between(t, table[low], table[high], color=colour, alpha=0.2, linewidth=0)
        panel.plot(t, values, color=colour, marker="o", markersize=3)
        panel.set_ylabel(label)
        panel.grid(axis="y")
    ends = " to ".join(end_names(result.a, result.b, 20))
    panels[0].set_title(f"{WORDS[result.operator]} along the {plain(result.path)}\n{ends}")
    panels[-1].set_xlabel("t")
    figure.align_ylabels()
    return figure


# --- pages ------------------------------------------------------------------------------------

TITLES = {"data_error": "error over examples", "share": "share of one example"}


def _spectrum(result: Any, anchor: str, few: bool) -> Row:
    facts: list[Row] = [
        fact("checkpoint", result.checkpoint),
        fact("rows of the matrix", f"{result.parameters:,}", "parameters"),
        fact("examples", f"{result.examples:,}", f"of {result.data}"),
    ]
    for end, words in (("top", "largest eigenvalue"), ("bottom", "smallest eigenvalue")):
        rows = result.table[result.table["end"] == end]
        if len(rows):
            row = rows.iloc[0]
            value = with_interval(row["eigenvalue"], row["low"], row["high"])
            facts.append(fact(words, value, "residual and examples"))
    if math.isfinite(result.trace):
        value = with_interval(result.trace, result.trace_low, result.trace_high)
        note = f"{result.trace_method}: {result.trace_products} products, "
        note += f"{result.trace_vectors} random vectors"
        facts.append(fact("trace", value, note))
    return {
        "facts": facts,
        "figure": picture(
            plot_spectrum,
            result,
            alt="Density of eigenvalues on a log scale, and the outermost eigenvalues",
            caption="Left: the band is the range over random vectors; ticks are eigenvalues that"
            " Lanczos found. Right: thick bars are residuals, thin ones what another sample of"
            " examples would move.",
        ),
        "eigenvalues": data_table(result.table, "eigenvalues", titles=TITLES),
    }


def _path(result: Any, anchor: str, few: bool) -> Row:
    facts: list[Row] = [
        fact("from", result.a),
        fact("to", result.b, result.path),
        fact("rows of the matrix", f"{result.parameters:,}", "parameters"),
        fact("examples", f"{result.examples:,}", f"of {result.data}"),
        fact("barrier", as_text(result.barrier, 3), "at these points"),
    ]
    return {
        "facts": facts,
        "figure": picture(
            plot_path_spectrum,
            result,
            alt="Largest eigenvalue, trace and loss along the path",
            caption="Bands: of the eigenvalue over examples, of the trace over random vectors, of"
            " the loss by bootstrap over examples.",
        ),
        "eigenvalues": data_table(result.table, "points of the path", titles=TITLES),
    }


SPECTRUM_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Spectrum": {"spectrum": plot_spectrum},
    "PathSpectrum": {"path": plot_path_spectrum},
}
SPECTRUM_KINDS = {
    "Spectrum": Kind(
        "Spectra",
        "spectrum.html.j2",
        _spectrum,
        lambda r: f"{r.operator} of {r.checkpoint} on {r.data}",
        "spectrum_reading.html.j2",
    ),
    "PathSpectrum": Kind(
        "Curvature along paths",
        "spectrum.html.j2",
        _path,
        lambda r: f"{r.operator}, {r.a} to {r.b} ({r.path})",
        "spectrum_reading.html.j2",
    ),
}
