"""Figures of surfaces: planes through models, alone, side by side and in three dimensions.

Both axes of a plane have one unit, so one inch is one length in every direction. Light is good in
every map: low for losses and calibration errors, high for accuracies and the like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator

from landform.errors import ConfigError
from landform.report.connections import metric_columns
from landform.report.style import (
    COLUMN,
    INK,
    MUTED,
    PAGE,
    SEQUENTIAL,
    Figure,
    column_label,
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
    from landform.geometry.surface import Surface

__all__ = [
    "colours_of",
    "is_low_good",
    "plot_surface",
    "plot_surface_3d",
    "plot_surfaces",
    "surface_metrics",
    "value_at",
]

Array = np.ndarray
Range = Sequence[float]

LOW_IS_GOOD = ("loss", "ece", "perplexity")

STEEP = 8.0  # a highest value this many times the lowest asks for a log scale
# Round numbers of a decade, from few to many, about evenly spread on a log scale.
ROUND = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 2, 3, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.5, 2.8, 3.2, 3.6, 4, 4.5, 5, 5.6, 6.3, 7, 8, 9),
)


def is_low_good(metric: str) -> bool:
    """Whether small values of a metric are the good ones."""
    return metric in LOW_IS_GOOD


def colours_of(metric: str) -> Colormap:
    """The colours of a metric: light is good."""
    return SEQUENTIAL if is_low_good(metric) else SEQUENTIAL.reversed()


def surface_metrics(surface: Surface) -> list[str]:
    """What a surface holds per cell: the loss, then the metrics."""
    return ["loss", *metric_columns(surface.table)]


@dataclass(frozen=True)
class _Panel:
    """One map: what of which surface, between which limits."""

    surface: Surface
    data: str
    metric: str
    title: str = ""

    @property
    def values(self) -> Array:
        """(len(y), len(x)), NaN where there is nothing."""
        return np.asarray(self.surface.grid(self.metric, self.data), dtype=float)

    @property
    def skipped(self) -> Array:
        """The (x, y) of the cells that were not evaluated, (n, 2)."""
        table = self.surface.table
        if "evaluated" not in table:
            return np.empty((0, 2))
        rows = table[(table["data"] == self.data) & ~table["evaluated"].astype(bool)]
        return cast(Array, rows[["x", "y"]].to_numpy(float))


@styled
def plot_surface(
    surface: Surface,
    *,
    metric: str = "loss",
    data: str | None = None,
    levels: int = 14,
    clip_x: Range | None = None,
    clip_y: Range | None = None,
    clip_values: Range | None = None,
    scale: Literal["auto", "linear", "log"] = "auto",
    point_names: Sequence[str] | Mapping[str, str] | None = None,
) -> Figure:
    """Filled contours of one metric over a plane, with the models and the triangle they span.

    `levels` is about the number of colours; `clip_x` and `clip_y` cut the plane, `clip_values` the
    colours: what lies beyond has the colour of the end, and the bar ends in a tip. Small dots are
    cells that were not evaluated but interpolated from those around them. `scale` "log" gives equal
    ratios equal steps of colour, so that steep corners leave the models their colours; "auto" is
    "log" for metrics whose low values are good, where all values shown are positive, the highest
    is more than 8 times the lowest, and no `clip_values` are given. `point_names` replace the names
    of the models. Raises `ConfigError` for an unknown metric, data set or scale, and for a log
    scale of values that are not positive.
    """
    panel = _panel(surface, data, metric)
    figure = new_figure(COLUMN, 2.95)
    axes = figure.subplots()
    bands = _levels([panel], levels, clip_values, clip_x, clip_y, scale)
    image = _map(axes, panel, bands, clip_x, clip_y)
    _models(axes, surface, point_names)
    _axis_labels(axes, surface)
    several = len(surface.data) > 1
    where = f" on {plain(panel.data)}" if several else ""
    _colour_bar(figure, image, [axes], bands, _label(panel) + where)
    _say_skipped(axes, panel)
    return figure


@styled
def plot_surfaces(
    surfaces: Surface | Sequence[Surface] | Mapping[str, Surface],
    *,
    metric: str | Sequence[str] = "loss",
    data: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    point_names: Sequence[str] | Mapping[str, str] | None = None,
    levels: int = 14,
    clip_x: Range | None = None,
    clip_y: Range | None = None,
    clip_values: Range | None = None,
    scale: Literal["auto", "linear", "log"] = "auto",
    columns: int | None = None,
) -> Figure:
    """Several maps side by side on one colour scale: planes, data sets of a plane, or metrics.

    Without `data` every data set of a single surface is drawn, and the first one of several
    surfaces. `names` are the titles of the panels (by default what tells them apart), and
    `point_names` the names of the models of every plane, in order. The clips and `scale` are those
    of `plot_surface`. Raises `ConfigError` for unknown metrics and data sets, and where the number
    of names is not that of the panels.
    """
    panels = _panels(surfaces, metric, data, names)
    columns = min(columns or 3, len(panels))
    rows = -(-len(panels) // columns)
    width = COLUMN if columns == 1 else PAGE
    shape = _aspect(panels[0].surface, clip_x, clip_y)
    side = (width - 0.8) / columns - 0.42
    figure = new_figure(width, float(np.clip(rows * (side * shape + 0.66) + 0.1, 1.9, 9.5)))
    grid = figure.subplots(rows, columns, squeeze=False)
    bands = _levels(panels, levels, clip_values, clip_x, clip_y, scale)
    image: Any = None
    for place, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        image = _map(axes, panel, bands, clip_x, clip_y)
        _models(axes, panel.surface, point_names, side)
        axes.set_title(panel.title)
        _axis_labels(axes, panel.surface, left=place % columns == 0)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    shown = list(grid.flat)
    several = len({panel.metric for panel in panels}) > 1
    label = ", ".join(dict.fromkeys(_label(panel) for panel in (panels if several else panels[:1])))
    _colour_bar(figure, image, shown, bands, label)
    return figure


@styled
def plot_surface_3d(
    surface: Surface,
    *,
    metric: str = "loss",
    data: str | None = None,
    clip_values: Range | None = None,
    elevation: float = 34.0,
    azimuth: float = -58.0,
) -> Figure:
    """The same map as a relief, with its contours on the floor and a pin at every model.

    Height and colour are linear in the values, also where `plot_surface` takes a log scale. Angles
    are in degrees. Values beyond `clip_values` are cut off, so that one steep corner does
    not flatten the rest.
    """
    panel = _panel(surface, data, metric)
    bands = _levels([panel], 14, clip_values, None, None, "linear")
    low, high = bands.limits
    values = np.clip(panel.values, low, high)
    x, y = np.meshgrid(surface.x, surface.y)
    figure = new_figure(COLUMN, 3.0)
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    floor = low - 0.35 * (high - low)
    colours = colours_of(metric)
    norm = Normalize(low, high)
    relief = axes.plot_surface(
        x, y, values, cmap=colours, norm=norm, rstride=1, cstride=1, linewidth=0.15,
        edgecolor=(0.11, 0.14, 0.19, 0.35), antialiased=True, zorder=2,
    )  # fmt: skip
    axes.contourf(
        x, y, values, levels=bands.edges, zdir="z", offset=floor, cmap=colours, norm=norm,
        alpha=0.75, zorder=1,
    )  # fmt: skip
    for name, (p, q) in surface.models.items():
        _pin(axes, panel, name, p, q, (low, high), floor)
    axes.set_zlim(floor, high + 0.05 * (high - low))
    _relief_looks(axes, surface, elevation, azimuth)
    bar = figure.colorbar(relief, ax=axes, shrink=0.6, aspect=20, pad=0.04)
    bar.outline.set_visible(False)
    several = len(surface.data) > 1
    where = f" on {plain(panel.data)}" if several else ""
    bar.set_label(f"{_label(panel)}{where}\nlinear in height and colour")
    return figure


def _pin(
    axes: Any, panel: _Panel, name: str, x: float, y: float, ends: tuple[float, float], floor: float
) -> None:
    """A model: a dot on the relief under a stalk that carries its name."""
    at = float(np.clip(np.nan_to_num(_height(panel, x, y), nan=ends[0]), *ends))
    top = at + 0.45 * (ends[1] - ends[0])
    axes.plot([x, x], [y, y], [at, top], color=INK, linewidth=0.8, zorder=5)
    axes.plot(
        [x], [y], [at], "o", color="white", markeredgecolor=INK, markersize=4, zorder=6,
        label=f"_model {name}",
    )  # fmt: skip
    axes.text(
        x, y, top, plain(shorten(name, 16)), fontsize="small", ha="center", va="bottom", zorder=7,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )  # fmt: skip


def _relief_looks(axes: Any, surface: Surface, elevation: float, azimuth: float) -> None:
    axes.view_init(elev=elevation, azim=azimuth)
    spans = np.ptp(surface.x), np.ptp(surface.y)
    longest = max(spans)
    axes.set_box_aspect((spans[0] / longest, spans[1] / longest, 0.62), zoom=1.08)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis.line.set_color(MUTED)
        axis._axinfo["grid"].update(color="#dfe3e8", linewidth=0.4)
        axis.set_major_locator(MaxNLocator(4))
    axes.tick_params(pad=-3, labelsize="small")
    axes.set_xlabel("x", labelpad=-8)
    axes.set_ylabel("y", labelpad=-8)
    axes.zaxis.set_ticklabels([])  # the colour bar says it


# --- parts of a map ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bands:
    """Edges of the colours, shared by all panels, and whether values lie beyond them."""

    edges: Array
    extend: Any
    log: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        return float(self.edges[0]), float(self.edges[-1])


def _panel(surface: Surface, data: str | None, metric: str, title: str = "") -> _Panel:
    name = pick("data set", data, list(surface.data))
    return _Panel(surface, name, pick("metric", metric, surface_metrics(surface)), title)


def _panels(
    surfaces: Surface | Sequence[Surface] | Mapping[str, Surface],
    metric: str | Sequence[str],
    data: str | Sequence[str] | None,
    names: Sequence[str] | None,
) -> list[_Panel]:
    named = _named(surfaces)
    metrics = [metric] if isinstance(metric, str) else list(metric)
    panels = []
    for label, surface in named:
        wanted = [data] if isinstance(data, str) else list(data or ())
        sets = wanted or (list(surface.data) if len(named) == 1 else [surface.data[0]])
        for chosen in sets:
            panels += [_panel(surface, chosen, m, label) for m in metrics]
    titles = list(names) if names is not None else _titles(panels)
    if len(titles) != len(panels):
        raise ConfigError(
            f"there are {len(panels)} panels and {len(titles)} names",
            remedy="name every panel, or leave the names out",
        )
    return [
        _Panel(p.surface, p.data, p.metric, plain(title))
        for p, title in zip(panels, titles, strict=True)
    ]


def _named(
    surfaces: Surface | Sequence[Surface] | Mapping[str, Surface],
) -> list[tuple[str, Surface]]:
    if isinstance(surfaces, Mapping):
        named = list(surfaces.items())
    else:
        each = list(surfaces) if isinstance(surfaces, Sequence) else [surfaces]
        named = [(", ".join(short_labels(s.names, 14)), s) for s in each]
    if not named:
        raise ConfigError("there is no surface to draw", remedy="pass one surface or more")
    return named


def _titles(panels: Sequence[_Panel]) -> list[str]:
    """What tells the panels apart: plane, data set, metric."""
    parts = [(p.title, p.data, metric_label(p.metric)) for p in panels]
    differ = [k for k in range(3) if len({part[k] for part in parts}) > 1] or [1]
    return [wrapped(", ".join(part[k] for k in differ), 34) for part in parts]


def _inside(values: Sequence[float], clip: Range | None) -> Array:
    axis = np.asarray(values, dtype=float)
    if clip is None:
        return np.ones(len(axis), dtype=bool)
    low, high = _range(clip, "clip")
    return cast(Array, (axis >= low - 1e-9) & (axis <= high + 1e-9))


def _range(clip: Range, name: str) -> tuple[float, float]:
    if len(clip) != 2 or not float(clip[0]) < float(clip[1]):
        raise ConfigError(
            f"option {name}: {tuple(clip)} is no range", remedy="give two numbers, the lower first"
        )
    return float(clip[0]), float(clip[1])


def _levels(
    panels: Sequence[_Panel],
    count: int,
    clip: Range | None,
    clip_x: Range | None,
    clip_y: Range | None,
    scale: str,
) -> _Bands:
    """Edges of the colours that suit all panels: round numbers over what is shown."""
    if count < 2:
        raise ConfigError(f"option levels: {count} is too few", remedy="use 2 or more")
    pick("scale", scale, ["auto", "linear", "log"])
    shown = []
    for panel in panels:
        rows = np.ix_(_inside(panel.surface.y, clip_y), _inside(panel.surface.x, clip_x))
        shown.append(panel.values[rows].ravel())
    values = np.concatenate(shown)
    values = values[np.isfinite(values)]
    if not values.size:
        raise ConfigError(
            "no cell of the surface is shown", remedy="widen clip_x and clip_y, or drop them"
        )
    low, high = float(values.min()), float(values.max())
    bottom, top = _range(clip, "clip_values") if clip is not None else (low, high)
    steep = clip is None and low > 0 and high > STEEP * low
    log = scale == "log" or (
        scale == "auto" and steep and all(is_low_good(panel.metric) for panel in panels)
    )
    if log and bottom <= 0:
        raise ConfigError(
            f"option scale: a log scale has no place for {bottom:g}",
            remedy="use scale=linear, or clip_values with a lower end above 0",
        )
    if top <= bottom:
        top = bottom + max(abs(bottom), 1.0) * 1e-3
    edges = _log_edges(bottom, top, count) if log else _linear_edges(bottom, top, count)
    if clip is not None:
        inside = [v for v in edges if bottom + 1e-9 < v < top - 1e-9]
        edges = np.array([bottom, *inside, top])
    below, above = low < edges[0] - 1e-12, high > edges[-1] + 1e-12
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    return _Bands(np.asarray(edges, dtype=float), extend, log)


def _linear_edges(low: float, high: float, count: int) -> Array:
    """Evenly spaced round numbers from `low` or below to `high` or above."""
    ticks = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return np.asarray(ticks, dtype=float)


def _log_edges(low: float, high: float, count: int) -> Array:
    """Round numbers about evenly spread on a log scale: as many steps as are nearest to `count`."""
    found = [_round_numbers(low, high, heads) for heads in ROUND]
    best = min(found, key=lambda edges: abs(len(edges) - 1 - count))
    if len(best) > count / 2:
        return best[:: -(-len(best) // (2 * count))] if len(best) > 2 * count else best
    # A small part of a decade: even steps are finer, and nearly even ratios.
    even = _linear_edges(low, high, count)
    return even if even[0] > 0 else best


def _round_numbers(low: float, high: float, heads: Sequence[float]) -> Array:
    """The numbers head * 10^k from the last one up to `low` to the first one from `high`."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    every = np.array([float(f"{head}e{k}") for k in range(first, last + 1) for head in heads])
    start = int(np.searchsorted(every, low * (1 + 1e-9), side="right")) - 1
    stop = int(np.searchsorted(every, high * (1 - 1e-9)))
    return every[start : stop + 1]


def _log_ticks(edges: Array) -> list[float]:
    """As many of the edges as find room on a colour bar: 1, 3, or 1, 2, 5, and so on."""
    length = math.log10(edges[-1] / edges[0])
    for heads in reversed(ROUND):
        near = _round_numbers(edges[0], edges[-1], heads)
        ticks = [float(v) for v in near if np.isclose(edges, v, rtol=1e-9, atol=0).any()]
        if len(ticks) > 1 and float(np.diff(np.log10(ticks)).min()) > 0.095 * length:
            return ticks
    return [float(v) for v in edges[:: -(-len(edges) // 8)]]


def _aspect(surface: Surface, clip_x: Range | None, clip_y: Range | None) -> float:
    x = _range(clip_x, "clip_x") if clip_x else (surface.x[0], surface.x[-1])
    y = _range(clip_y, "clip_y") if clip_y else (surface.y[0], surface.y[-1])
    return float((y[1] - y[0]) / (x[1] - x[0]))


def _map(
    axes: Axes, panel: _Panel, bands: _Bands, clip_x: Range | None, clip_y: Range | None
) -> Any:
    x, y = np.asarray(panel.surface.x, float), np.asarray(panel.surface.y, float)
    values = np.ma.masked_invalid(panel.values)
    axes.set_facecolor("#eef0f2")
    image = axes.contourf(
        x, y, values, levels=bands.edges, cmap=colours_of(panel.metric), extend=bands.extend,
        norm=LogNorm(*bands.limits) if bands.log else None,
    )  # fmt: skip
    axes.contour(x, y, values, levels=bands.edges, colors="white", linewidths=0.35, alpha=0.75)
    _mark_skipped(axes, panel, image)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlim(_range(clip_x, "clip_x") if clip_x else (x[0], x[-1]))
    axes.set_ylim(_range(clip_y, "clip_y") if clip_y else (y[0], y[-1]))
    axes.tick_params(length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _mark_skipped(axes: Axes, panel: _Panel, image: Any) -> None:
    """A dot in every cell that was not evaluated, dark on light and light on dark."""
    skipped = panel.skipped
    if not len(skipped):
        return
    colours = image.to_rgba([_height(panel, x, y) for x, y in skipped])
    bright = colours[:, :3] @ (0.3, 0.6, 0.1) > 0.5
    axes.scatter(
        skipped[:, 0], skipped[:, 1], s=1.6, c=np.where(bright, INK, "white"), alpha=0.55,
        linewidths=0, label="_skipped", zorder=2,
    )  # fmt: skip


def _axis_labels(axes: Axes, surface: Surface, left: bool = True) -> None:
    # A surface of another program does not tell how long its unit is.
    length = "" if math.isnan(surface.unit) else f"  (1 = {surface.unit:.3g} in weights)"
    axes.set_xlabel(f"x{length}")
    axes.set_ylabel("y  (same unit)" if left else "")


def _label(panel: _Panel) -> str:
    return column_label(panel.surface, panel.metric)


def _colour_bar(
    figure: Figure, image: Any, axes: Sequence[Axes], bands: _Bands, label: str
) -> None:
    bar = figure.colorbar(image, ax=list(axes), shrink=0.85, aspect=24, pad=0.03)
    bar.outline.set_visible(False)
    edges = bands.edges
    if bands.log:
        ticks = _log_ticks(edges)
        bar.set_ticks(ticks, labels=[f"{v:g}" for v in ticks])
        bar.ax.yaxis.set_minor_locator(NullLocator())
        label += "\nlog scale" if len(label) > 30 else ", log scale"
    else:
        bar.set_ticks(list(edges[:: -(-len(edges) // 8)]))
    bar.ax.tick_params(length=0, which="both")
    bar.set_label(label)


def _say_skipped(axes: Axes, panel: _Panel) -> None:
    count = len(panel.skipped)
    if count:
        total = len(panel.surface.x) * len(panel.surface.y)
        axes.set_title(f"dots: {count} of {total} cells interpolated")


# --- the models on a map ----------------------------------------------------------------------


def _models(
    axes: Axes,
    surface: Surface,
    point_names: Sequence[str] | Mapping[str, str] | None,
    inches: float = 2.2,
) -> None:
    """The models, joined by a dashed polygon, with their names outside of it."""
    models = surface.models
    labels = _point_labels(list(models), point_names)
    places = np.array([models[name] for name in models], dtype=float).reshape(-1, 2)
    if len(places) > 2:
        ring = np.vstack([places, places[:1]])
        axes.plot(
            ring[:, 0], ring[:, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)),
            label="_polygon", zorder=4,
        )  # fmt: skip
    axes.plot(
        places[:, 0], places[:, 1], "o", color="white", markeredgecolor=INK, markeredgewidth=1.0,
        markersize=4.5, linestyle="none", label="_models", zorder=5,
    )  # fmt: skip
    centre = places.mean(axis=0) if len(places) else places
    for (x, y), label in zip(places, labels, strict=True):
        _name_outside(axes, x, y, centre, label, inches)


def _point_labels(
    names: Sequence[str], given: Sequence[str] | Mapping[str, str] | None
) -> list[str]:
    if isinstance(given, Mapping):
        names = [given.get(name, name) for name in names]
    elif given is not None:
        if len(given) != len(names):
            raise ConfigError(
                f"there are {len(names)} models on the plane and {len(given)} point names",
                remedy=f"name all of {', '.join(names)}",
            )
        names = list(given)
    return [plain(label) for label in (short_labels(names, 16) if names else [])]


def _name_outside(axes: Axes, x: float, y: float, centre: Array, label: str, inches: float) -> None:
    """A name on the side of its model that faces away from the others.

    Beside the model if it fits between there and the edge of the map, which is about `inches`
    wide; above or below otherwise.
    """
    dx, dy = x - centre[0], y - centre[1]
    low, high = sorted(axes.get_xlim())
    span = high - low
    # A letter is about 0.6 of the font's size wide, which is "small"; 6 points keep it off the dot.
    points = 0.6 * 0.833 * float(matplotlib.rcParams["font.size"]) * len(label)
    width = points / 72 / inches * span
    room = (x - low if dx < 0 else high - x) - 9 / 72 / inches * span
    if abs(dx) > abs(dy) and width < room:
        shift, ha, va = (6 if dx > 0 else -6, 0), "left" if dx > 0 else "right", "center"
    else:
        shift, va = ((0, 5), "bottom") if dy >= 0 else ((0, -5), "top")
        near = min(x - low, high - x) < width / 2
        ha = "center" if not near else "left" if x - low < high - x else "right"
    axes.annotate(
        label, (x, y), xytext=shift, textcoords="offset points", ha=ha, va=va, fontsize="small",
        path_effects=[withStroke(linewidth=2, foreground="white")], zorder=6,
        annotation_clip=True,
    )  # fmt: skip


def value_at(surface: Surface, metric: str, x: float, y: float, data: str | None = None) -> float:
    """The value of the cell nearest to a point (models lie on the grid); NaN where none is."""
    values = np.asarray(surface.grid(metric, data), dtype=float)
    column = int(np.abs(np.asarray(surface.x) - x).argmin())
    row = int(np.abs(np.asarray(surface.y) - y).argmin())
    return float(values[row, column])


def _height(panel: _Panel, x: float, y: float) -> float:
    return value_at(panel.surface, panel.metric, x, y, panel.data)
