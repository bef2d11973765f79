"""Figures and the atlas page of landscapes: random surfaces under masks, side by side.

A mask shortens the directions, so a flatter surface may just be a shorter walk: profiles are drawn
over r, in units of the directions, and over the distance walked in the space of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from landform.errors import ConfigError
from landform.geometry.landscape import Landscape, ring_means
from landform.report.parts import Kind, Row, as_text, data_table, fact, picture
from landform.report.style import (
    COLUMN,
    INK,
    MARKERS,
    PAGE,
    PALETTE,
    Figure,
    loss_label,
    loss_unit_of,
    new_figure,
    percent,
    pick,
    plain,
    shorten,
    styled,
)
from landform.report.surface_figures import plot_surface_3d, plot_surfaces

if TYPE_CHECKING:
    from landform.geometry.surface import Surface

__all__ = [
    "LANDSCAPE_FIGURES",
    "LANDSCAPE_KINDS",
    "plot_landscape",
    "plot_landscape_relief",
    "plot_landscape_surfaces",
    "plot_landscapes",
]

# A mask has one look in all figures; what has no place here takes the colours that are left.
LOOKS = {"none": INK, "fisher-top": PALETTE[1], "fisher-bottom": PALETTE[0], "random": PALETTE[2]}
OTHERS = PALETTE[3:]


@dataclass(frozen=True)
class _Profile:
    """One line: the losses of one mask over the distance from the model."""

    label: str
    colour: str
    rings: pd.DataFrame
    """radius, loss, low, high"""
    length: float
    """of one unit of r in the space of weights; NaN where it is not known"""


@styled
def plot_landscape(
    result: Landscape,
    *,
    data: str | None = None,
    scale: Literal["linear", "log"] = "linear",
) -> Figure:
    """Mean loss over the distance from the model, one line for every mask of a landscape.

    Left over r, right over the distance walked, r ||d||, where the masks differ in length. Bands
    reach from the lowest to the highest pair of directions; with one pair, from the lowest to the
    highest cell of each ring. `scale` is that of the losses.
    """
    name = pick("data set", data, list(result.data))
    profiles: list[_Profile] = []
    for mask in result.masks:
        rows = result.profile
        rings = rows[(rows["mask"] == mask) & (rows["data"] == name)]
        if result.pairs == 1:
            rings = rings.assign(low=rings["cell_low"], high=rings["cell_high"])
        moved = result.directions[result.directions["mask"] == mask]
        profiles.append(_profile(mask, mask, rings, moved, len(profiles)))
    band = f"of {result.pairs} pairs" if result.pairs > 1 else "of the cells"
    return _draw(profiles, _label(result, name), band, scale)


@styled
def plot_landscapes(
    results: Mapping[str, Surface | Landscape],
    *,
    data: str | None = None,
    scale: Literal["linear", "log"] = "linear",
) -> Figure:
    """The profiles of several random surfaces, or landscapes of one mask, on the same axes.

    For surfaces of other programs too: the radii are theirs, the distance walked is not known.
    Bands reach from the lowest to the highest cell of each ring. Raises `ConfigError` for a plane
    through models, which has no centre.
    """
    profiles: list[_Profile] = []
    for name, result in results.items():
        surfaces: dict[str, Surface] = {name: result} if not isinstance(result, Landscape) else {}
        if isinstance(result, Landscape):
            several = len(result.masks) > 1
            surfaces = {
                f"{name}, {m}" if several else name: result.surface(m) for m in result.masks
            }
        for label, surface in surfaces.items():
            if surface.mode != "random":
                raise ConfigError(
                    f"{label} is a plane through models, which has no centre",
                    remedy="use the figure surfaces",
                )
            rings = ring_means(surface, data=data).rename(columns={"mean": "loss"})
            moved = surface.directions
            kind = surface.mask if moved is not None and len(results) == 1 else label
            profiles.append(_profile(label, kind, rings, moved, len(profiles)))
    if not profiles:
        raise ConfigError("there is no surface to draw", remedy="pass one surface or more")
    first = next(iter(results.values()))
    return _draw(profiles, _label(first, data or first.data[0]), "of the cells", scale)


def _surfaces(name: str, result: Surface | Landscape) -> dict[str, Surface]:
    """A surface, or the first pair of every mask of a landscape."""
    if not isinstance(result, Landscape):
        return {name: result}
    several = len(result.masks) > 1
    return {f"{name}, {m}" if several else name: result.surface(m) for m in result.masks}


def _profile(
    label: str, kind: str, rings: pd.DataFrame, moved: pd.DataFrame | None, place: int
) -> _Profile:
    colour = LOOKS.get(kind.split(" ")[0], (*OTHERS, *PALETTE)[place % (len(OTHERS) + 7)])
    if moved is None:
        return _Profile(plain(shorten(label, 40)), colour, rings, float("nan"))
    share = _share(moved)
    entries = round(float(moved["entries"].mean()))
    named = "all" if label == "none" else label
    text = f"{plain(shorten(named, 40))}: {entries:,} entries ({percent(share)})"
    return _Profile(text, colour, rings, float(moved["norm"].mean()))


def _share(moved: pd.DataFrame) -> float:
    """The mean share of the entries that a mask lets move."""
    return float((moved["entries"] / moved["of"]).mean())


def _draw(profiles: Sequence[_Profile], label: str, band: str, scale: str) -> Figure:
    pick("scale", scale, ["linear", "log"])
    lengths = np.array([profile.length for profile in profiles])
    both = bool(np.isfinite(lengths).all()) and float(np.ptp(lengths)) > 1e-6 * lengths.max()
    figure = new_figure(PAGE if both else COLUMN, 2.6 + (0.09 if both else 0.16) * len(profiles))
    panels = figure.subplots(1, 2 if both else 1, squeeze=False, sharey=True)[0]
    for axes, by_length in zip(panels, (False, True), strict=False):
        for k, profile in enumerate(profiles):
            _line(axes, profile, by_length, MARKERS[k % len(MARKERS)])
        axes.set_yscale(scale)
        axes.grid(axis="y")
        axes.margins(x=0.02)
        axes.set_xlabel(
            "distance from the model in weights, r ‖d‖" if by_length else "r, in directions"
        )
    panels[0].set_ylabel(label)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside upper left", ncols=2 if both else 1, labelspacing=0.35
    )
    panels[-1].set_title(f"bands: lowest and highest {band}", loc="right", fontsize="small")
    return figure


def _line(axes: Axes, profile: _Profile, by_length: bool, marker: str) -> None:
    rings = profile.rings
    x = rings["radius"].to_numpy(float) * (profile.length if by_length else 1.0)
    low, mean, high = (rings[name].to_numpy(float) for name in ("low", "loss", "high"))
    axes.fill_between(x, low, high, color=profile.colour, alpha=0.15, linewidth=0)
    axes.plot(x, mean, color=profile.colour, marker=marker, markersize=2.4, label=profile.label)


def _label(result: Any, data: str) -> str:
    where = f" on {plain(data)}" if len(result.data) > 1 else ""
    return f"mean {loss_label(result)}{where}"


def plot_landscape_surfaces(result: Landscape, *, pair: int = 0, **options: Any) -> Figure:
    """The surfaces of all masks side by side on one colour scale; options as of `plot_surfaces`."""
    shown = {mask: result.surface(mask, pair) for mask in result.masks}
    names = []
    for mask, surface in shown.items():
        moved = surface.directions
        moving = "" if moved is None else f": {percent(_share(moved))}"
        names.append(f"{'all' if mask == 'none' else mask}{moving}")
    defaults: dict[str, Any] = {"names": names, "columns": 2 if len(shown) == 4 else None}
    return plot_surfaces(shown, **{**defaults, **options})


def plot_landscape_relief(
    result: Landscape, *, mask: str | None = None, pair: int = 0, **options: Any
) -> Figure:
    """One of the surfaces as a relief; options as of `plot_surface_3d`."""
    return plot_surface_3d(result.surface(mask or result.masks[0], pair), **options)


# --- the page -----------------------------------------------------------------------------------


def _page(result: Landscape, anchor: str, few: bool) -> Row:
    facts = [
        fact("model", result.checkpoint, f"on {', '.join(result.data)}"),
        fact("masks", len(result.masks), ", ".join(result.masks)),
        fact("pairs of directions", result.pairs, "for every mask"),
        fact("model evaluations", f"{result.evaluations:,}"),
        fact(
            "loss",
            f"{as_text(float(result.profile['loss'].iloc[0]), 3)} {loss_unit_of(result)}",
            "nearest to the model",
        ),
    ]
    return {
        "facts": facts,
        "notes": list(result.notes),
        "profile": picture(
            plot_landscape, result, alt="Mean loss over the distance from the model, by mask"
        ),
        "maps": picture(
            plot_landscape_surfaces,
            result,
            alt="The surfaces of all masks on one colour scale",
            caption="The first pair of directions under every mask, with the share of the entries "
            "that move.",
        ),
        "summary": data_table(result.summary, "masks", caption="Means over pairs, by r."),
    }


LANDSCAPE_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "Landscape": {
        "landscape": plot_landscape,
        "surfaces": plot_landscape_surfaces,
        "surface3d": plot_landscape_relief,
    }
}
LANDSCAPE_KINDS = {
    "Landscape": Kind(
        "Landscapes",
        "landscape.html.j2",
        _page,
        lambda r: f"around {r.checkpoint}: {', '.join(r.masks)}",
        "connectivity_reading.html.j2",
    )
}
