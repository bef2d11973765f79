"""The figure and the atlas page of mixing weights: how much of which model, layer by layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from landform.report.parts import Kind, Row, as_text, data_table, fact, picture, with_interval
from landform.report.style import (
    GRID,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    end_names,
    loss_label,
    loss_unit_of,
    new_figure,
    pick,
    plain,
    short_labels,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from landform.geometry.mixing import MixingFit

__all__ = ["MIXING_FIGURES", "MIXING_KINDS", "plot_mixing"]

BARS = 30  # of groups outside of the layers
NUMBERED = 20  # columns of cells that hold their numbers
SHARES = LinearSegmentedColormap.from_list("shares", (PALETTE[1], "#f6f4ef", PALETTE[0]))
_NUMBERED = re.compile(r"^(?:(.*)\.)?(?:layers?|h|blocks?)\.(\d+)$")
MODELS = {"mix": "mix", "a": "a", "b": "b", "even": "even mix", "line": "best of line"}


@styled
def plot_mixing(result: MixingFit, *, data: str | None = None) -> Figure:
    """The share of `a` in every group (left), and the losses of the mix and what it is beside.

    Groups that recur from layer to layer are the cells of a matrix; the others are bars.
    """
    cells, bars = _divided(result.table)
    names = list(end_names(result.a, result.b, 12))
    figure, panels = _layout(cells, bars)
    if "cells" in panels:
        _draw_cells(panels["cells"], cells, colour_bar="bars" not in panels, names=names)
    if "bars" in panels:
        _draw_bars(panels["bars"], bars, names)
    first = panels["cells" if "cells" in panels else "bars"]
    first.set_title(f"share of {names[0]} by {result.groups}", loc="left")
    _draw_losses(panels["losses"], result, data, names)
    return figure


def _layout(cells: pd.DataFrame, bars: pd.Series) -> tuple[Figure, dict[str, Axes]]:
    """Panels beside one another; a wide matrix above the others."""
    shown = min(len(bars), BARS)
    upright = 0.055 * max((len(str(part)) for part in cells.columns), default=0)
    if cells.shape[1] > 6:
        above, below = 0.5 + 0.17 * len(cells) + upright, 0.7 + 0.17 * max(shown, 6)
        figure = new_figure(PAGE, min(9.5, above + below))
        rows: list[Any] = [["cells", "cells"], ["bars" if shown else "losses", "losses"]]
        return figure, figure.subplot_mosaic(rows, height_ratios=[above, below])
    figure = new_figure(PAGE, min(9.0, 1.0 + 0.19 * max(len(cells), shown, 6)))
    widths = {"cells": 0.7 * cells.shape[1], "bars": 2.2 if shown else 0.0, "losses": 1.9}
    kept: list[Any] = [name for name, width in widths.items() if width]
    ratios = [widths[name] for name in kept]
    return figure, figure.subplot_mosaic([kept], width_ratios=ratios)


def _divided(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """(matrix of layers and the parts that several of them have, the other groups)."""
    parts = table[table["part"] != ""]
    layers = parts.groupby("part")["layer"].nunique()
    shared = parts[parts["part"].isin(layers[layers > 1].index)]
    cells = shared.pivot(index="layer", columns="part", values="weight")
    cells = cells.loc[shared["layer"].unique(), shared["part"].unique()]
    rest = table.drop(shared.index)
    bars = pd.Series(rest["weight"].to_numpy(), index=rest["group"].astype(str))
    return cells.set_axis(_layer_labels(list(cells.index))), bars.set_axis(
        _layer_labels(list(bars.index))
    )


def _layer_labels(names: list[str]) -> list[str]:
    """`bert.encoder.layer.0` as "layer 0", or "encoder 0" where there are several stacks."""
    found = [_NUMBERED.match(name) for name in names]
    stacks = {match.group(1) for match in found if match}
    alone = [name for name, match in zip(names, found, strict=True) if match is None]
    tails = [".".join(name.split(".")[-3:]) for name in alone]
    short = dict(zip(alone, short_labels(tails, 28), strict=True)) if alone else {}
    labels = []
    for name, match in zip(names, found, strict=True):
        if match is None:
            labels.append(short[name])
            continue
        stack = (match.group(1) or "").rpartition(".")[2]
        labels.append(f"{stack if len(stacks) > 1 and stack else 'layer'} {match.group(2)}")
    return labels


def _draw_cells(axes: Axes, cells: pd.DataFrame, *, colour_bar: bool, names: list[str]) -> None:
    image = axes.imshow(cells, cmap=SHARES, vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(cells)), [plain(x) for x in cells.index])
    upright = cells.shape[1] > 3
    axes.set_xticks(
        range(cells.shape[1]),
        [plain(str(part).replace("_", " ")) for part in cells.columns],
        rotation=90 if upright else 0,
        fontsize=6 if cells.shape[1] > 8 else 7,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if cells.shape[1] <= NUMBERED:
        # The two sides of even are one grey in print: the numbers tell them apart.
        for (i, j), value in np.ndenumerate(cells.to_numpy(float)):
            if np.isfinite(value):
                dark = abs(value - 0.5) > 0.4
                axes.text(
                    j, i, f"{value:.2f}", ha="center", va="center",
                    fontsize=6 if cells.shape[1] <= 12 else 5, color="white" if dark else INK,
                )  # fmt: skip
    if colour_bar:
        bar = axes.figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], aspect=30, pad=0.02)
        bar.ax.set_yticklabels([names[1], "even", names[0]])
        bar.ax.spines["outline"].set_visible(False)


def _draw_bars(axes: Axes, bars: pd.Series, names: list[str]) -> None:
    """From the even mix to either side."""
    shown = bars.head(BARS)
    y = np.arange(len(shown))
    width = shown.to_numpy(float) - 0.5
    colours = [PALETTE[0] if w > 0 else PALETTE[1] for w in width]
    axes.barh(y, width, left=0.5, height=0.62, color=colours)
    axes.axvline(0.5, color=MUTED, linewidth=0.6)
    for k, value in enumerate(shown):
        side = 1 if value >= 0.5 else -1
        axes.annotate(
            f"{value:.2f}",
            (value, k),
            xytext=(3 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=6,
            color=INK,
        )
    axes.set_yticks(y, [plain(name) for name in shown.index])
    axes.set_ylim(max(len(shown), 6) - 0.5, -0.5)
    axes.set_xlim(-0.12, 1.12)
    axes.set_xticks([0, 0.5, 1], [names[1], "even", names[0]])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if len(bars) > BARS:
        axes.set_xlabel(f"the first {BARS} of {len(bars)} groups")


def _draw_losses(axes: Axes, result: MixingFit, data: str | None, names: list[str]) -> None:
    """Losses with intervals of the mix, the ends, the even mix and the best point of the line."""
    table = result.evaluation
    chosen = pick("data set", data, list(table["data"].unique()))
    rows: Any = table[table["data"] == chosen].set_index("model").loc[list(MODELS)]
    labels = {**MODELS, "a": names[0], "b": names[1]}
    labels["line"] = f"best of line\n(t = {float(rows.loc['line', 't']):.2g})"
    colours = {"mix": INK, "a": PALETTE[0], "b": PALETTE[1], "even": MUTED, "line": MUTED}
    y = np.arange(len(rows))
    for k, name in enumerate(rows.index):
        row = rows.loc[name]
        axes.plot([row["loss_low"], row["loss_high"]], [k, k], color=colours[name], linewidth=1.4)
        axes.plot(row["loss"], k, "o", color=colours[name], markersize=5 if name == "mix" else 4)
    axes.axvline(float(rows.loc["mix", "loss"]), color=GRID, linewidth=0.8, zorder=0)
    axes.set_yticks(y, [labels[name] for name in rows.index])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(loss_label(result))
    axes.set_title(plain(shorten(chosen, 26)), loc="left")
    axes.grid(axis="x")


# --- atlas --------------------------------------------------------------------------------------


def _mixing(result: Any, anchor: str, few: bool) -> Row:
    first = result.evaluation["data"].iloc[0]
    rows = result.evaluation[result.evaluation["data"] == first].set_index("model")
    unit = f"{loss_unit_of(result)}, on {first}"
    facts = [
        fact("a", result.a, "its share is the weight"),
        fact("b", result.b),
        fact("groups", f"{len(result.table):,}", f"by {result.groups}"),
    ]
    for name, label in MODELS.items():
        row = rows.loc[name]
        value = with_interval(row["loss"], row["loss_low"], row["loss_high"])
        note = f"{unit}; t = {as_text(float(row['t']), 3)}" if name == "line" else unit
        facts.append(fact(f"loss of {label}", value, note))
    return {
        "facts": facts,
        "figure": picture(
            plot_mixing,
            result,
            alt="The share of the first model in every group, and the losses beside one another",
            caption="Left: how much of the first model every group has. Right: the mix beside both"
            " models, their even mix, and the point of the line that is best on these rows.",
        ),
        "comparison": data_table(
            result.comparison,
            "the mix minus the others",
            caption="Examples are resampled alike in both. Below 0 the loss of the mix is lower.",
        ),
        "weights": data_table(result.table, "weights of the groups"),
    }


MIXING_FIGURES = {"MixingFit": {"mixing": plot_mixing}}
MIXING_KINDS = {
    "MixingFit": Kind(
        "Mixing weights",
        "mixing.html.j2",
        _mixing,
        lambda r: f"{r.a} and {r.b} by {r.groups}",
        "mixing_reading.html.j2",
    )
}
