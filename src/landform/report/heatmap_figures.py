"""The heat map of all pairs of checkpoints, and what it can show.

As in `landform.report.figures`, which lists these as well, every function takes a result, looks at
its documented attributes only, and returns a matplotlib figure.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from landform.errors import ConfigError
from landform.report.connections import (
    basin_handles,
    basins_of,
    checkpoint_order,
    endpoint_column,
    styles_of,
)
from landform.report.style import (
    COLUMN,
    GRID,
    INK,
    SEQUENTIAL,
    Figure,
    decimals,
    loss_unit_of,
    metric_label,
    new_figure,
    pick,
    plain,
    short_labels,
    shorten,
    styled,
    wrapped,
)

if TYPE_CHECKING:
    from landform.studies.connect import Connection

__all__ = [
    "HEIGHTS",
    "QUANTITIES",
    "SHARES",
    "plot_heatmap",
    "quantities_of",
    "quantity_label",
    "quantity_range",
]

Array = np.ndarray

QUANTITIES: dict[str, str] = {
    "convexity_gap": "convexity gap",
    "barrier_height": "barrier height",
    "distance": "distance (L2)",
    "bump_height": "bump height",
    "area_under_curve": "area under the curve",
    "error_agreement": "error agreement",
    "functional_similarity": "same predictions",
    "js_distance": "Jensen-Shannon distance",
}
"""What heat maps show, of the columns that a study has."""

HEIGHTS = ("convexity_gap", "barrier_height", "bump_height")  # 0 is flat; in units of the loss
SPILL = 4  # letters by which the name of a basin may stand out beside the matrix

SHARES = ("error_agreement", "functional_similarity")  # large is alike: its colours are turned


def quantities_of(connection: Connection) -> list[str]:
    """Columns of `pairs` that a heat map can show: those of `QUANTITIES`, then other numbers."""
    pairs = connection.pairs
    others = [
        str(name)
        for name in pairs.columns
        if pd.api.types.is_numeric_dtype(pairs[name])
        and not str(name).endswith(("_low", "_high"))
        and name not in QUANTITIES
    ]
    return [*(name for name in QUANTITIES if name in pairs), *others]


def quantity_label(result: object, quantity: str) -> str:
    """What a heat map shows, with its unit."""
    label = QUANTITIES.get(quantity, metric_label(quantity))
    return f"{label} ({loss_unit_of(result)})" if quantity in HEIGHTS else label


def quantity_range(quantity: str, values: Array) -> tuple[float, float]:
    """The ends of the colours: heights start at 0, other quantities a little below the least."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, top = float(known.min()), float(known.max())
    if quantity in HEIGHTS:
        return 0.0, top if top > 0 else 1.0
    if quantity in SHARES:
        return low, top if top > low else low + 1e-3
    return low - 0.1 * abs(low), top if top > 0 or top > low else low + 1.0


# --- the heat map -------------------- -----------------------------------------------------------


@styled
def plot_heatmap(
    connection: Connection,
    quantity: str = "convexity_gap",
    *,
    order: str = "basin",
    ticks: str = "auto",
    data: str | None = None,
) -> Figure:
    """The matrix of pairs: light is flat, dark is a ridge; a strip on each side shows basins.

    `quantity` is a number of `pairs` (`quantities_of`); of shares (error agreement, same
    predictions), large is light, so that what is alike is light in every map. `order` is "basin",
    "seed" or a column of `endpoints`; `ticks` are checkpoint "names", the "values" of the column
    that orders ("auto": exactly then), or a column of `endpoints`. Values are printed in the cells
    up to 12 checkpoints; cells of pairs that were not walked are hatched.
    """
    pick("quantity", quantity, quantities_of(connection))
    pick("data set", data, list(connection.data))
    names = checkpoint_order(connection, order)
    values = connection.matrix(quantity, data).loc[names, names].to_numpy(float)
    n = len(names)
    side = COLUMN if n <= 24 else 4.6
    figure = new_figure(side, side * 0.94)
    axes = figure.subplots()
    off = values[~np.eye(n, dtype=bool) & np.isfinite(values)]
    low, top = quantity_range(quantity, off)
    axes.set_facecolor("#eef0f2")
    shown = np.where(np.eye(n, dtype=bool), np.nan, values)
    colours = SEQUENTIAL.reversed() if quantity in SHARES else SEQUENTIAL
    image = axes.imshow(shown, cmap=colours, vmin=low, vmax=top, interpolation="nearest")
    axes.set_box_aspect(1)
    _hatch_missing(axes, values)
    if n <= 12:
        _cell_values(axes, values, image, side)
    _heatmap_ticks(axes, connection, names, order, ticks)
    labelled = _basin_strips(axes, connection, names, order)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=22, pad=0.03)
    bar.outline.set_visible(False)
    several = len(connection.data) > 1 and quantity != "distance"
    where = f" on {plain(shorten(data or connection.data[0], 24))}" if several else ""
    bar.set_label(quantity_label(connection, quantity) + where)
    basins, styles = styles_of(connection)
    if not labelled:
        handles = basin_handles(styles, list(basins))
        figure.legend(handles=handles, loc="outside lower left", ncols=2, columnspacing=1)
    return figure


def _hatch_missing(axes: Axes, values: Array) -> None:
    for i, j in np.argwhere(~np.isfinite(values)):
        axes.add_patch(_cell(i, j, hatch="////", edgecolor=GRID))


def _cell(i: int, j: int, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, linewidth=0, **style)


def _cell_values(axes: Axes, values: Array, image: Any, side: float) -> None:
    n = len(values)
    places = decimals(values)
    if n > 8:
        places = min(places, 2)
    texts = [[_cell_text(value, places) for value in row] for row in values]
    longest = max(len(text) for row in texts for text in row)
    # A digit is about 0.56 of the font size wide; leave some air in the cell.
    size = min(7.0, 0.6 * side * 72 / n * 0.85 / (0.56 * longest))
    for i, j in np.argwhere(np.isfinite(values)):
        if i == j:
            continue
        red, green, blue, _ = image.to_rgba(values[i, j])
        colour = INK if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=size, color=colour)


def _cell_text(value: float, places: int) -> str:
    """A number as short as it gets: no zero before the point."""
    text = f"{value:.{places}f}"
    return text[1:] if text.startswith("0.") else text


def _heatmap_ticks(
    axes: Axes, connection: Connection, names: list[str], order: str, ticks: str
) -> None:
    ordered_by = None if order in ("basin", "seed") else order
    if ticks == "values" and ordered_by is None:
        raise ConfigError(
            "heat map: ticks are 'values', but the order is not by a metric",
            remedy="pass order=<a column of endpoints>, ticks=<such a column>, or ticks='names'",
        )
    column = ordered_by if ticks in ("auto", "values") else None
    if ticks not in ("auto", "values", "names"):
        column = endpoint_column(connection, ticks, "ticks")
    step = -(-len(names) // 26)
    places = np.arange(0, len(names), step)
    if column is not None:
        values = connection.endpoints[column]
        labels = [f"{float(values[names[p]]):.3f}" for p in places]
        axes.set_xlabel(wrapped(plain(metric_label(column)), 44))
    else:
        labels = [plain(label) for label in short_labels([names[p] for p in places], 14)]
    size = (0.93 if len(places) <= 12 else 0.73) * float(matplotlib.rcParams["font.size"])
    turn = 0 if max(map(len, labels)) * len(labels) < 36 else 90
    axes.set_xticks(places, labels, rotation=turn, fontsize=size)
    axes.set_yticks(places, labels, fontsize=size)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _basin_strips(axes: Axes, connection: Connection, names: list[str], order: str) -> bool:
    """Coloured strips above and beside the matrix; True if every basin got its name there."""
    basins = basins_of(connection)
    if basins is None:
        return True
    _, styles = styles_of(connection)
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(styles[int(basins[name])].colour) for name in names])
    n = len(names)
    top = axes.inset_axes((0, 1.015, 1, 0.022))
    top.imshow(colours[None], aspect="auto", extent=(-0.5, n - 0.5, 0, 1), interpolation="nearest")
    right = axes.inset_axes((1.015, 0, 0.022, 1))
    right.imshow(
        colours[:, None], aspect="auto", extent=(0, 1, n - 0.5, -0.5), interpolation="nearest"
    )
    for strip in (top, right):
        strip.set_axis_off()
    if order != "basin":
        return False
    size = 0.87 * float(matplotlib.rcParams["font.size"])
    labels = [int(basins[name]) for name in names]
    edges = [i for i in range(1, n) if labels[i] != labels[i - 1]]
    for edge in edges:
        axes.axhline(edge - 0.5, color="white", linewidth=1.4)
        axes.axvline(edge - 0.5, color="white", linewidth=1.4)
    runs = list(zip([0, *edges], [*edges, n], strict=True))
    words = [f"basin {labels[start]} (n = {stop - start})" for start, stop in runs]
    # The matrix takes about 0.6 of the figure's width, a letter 0.5 of its height.
    letters = 0.6 * cast(Figure, axes.figure).get_figwidth() * 72 / (0.5 * size)
    centres = [(start + stop) / 2 / n * letters for start, stop in runs]
    spans = [
        (at - len(text) / 2, at + len(text) / 2) for at, text in zip(centres, words, strict=True)
    ]
    touching = any(right + 1 > left for (_, right), (left, _) in pairwise(spans))
    if touching or spans[0][0] < -SPILL or spans[-1][1] > letters + SPILL:
        return False
    for text, (start, stop) in zip(words, runs, strict=True):
        axes.annotate(
            text,
            ((start + stop - 1) / 2, 1.05),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=size,
            annotation_clip=False,
            color=styles[labels[start]].colour,
        )
    return True
