"""Figures of landscapes show the numbers of the results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from landform.errors import ConfigError
from landform.geometry.landscape import Landscape, _axes, _over, _profile
from landform.geometry.surface import Surface
from landform.report import figures
from landform.report.atlas import write_atlas

LENGTHS = {"none": 10.0, "fisher-top by tensor": 4.0, "random by tensor": 7.0}


def make_one(mask: str, pair: int, length: float) -> Surface:
    """A bowl of the curvature 1 + pair, of directions of some length."""
    axis = tuple(np.linspace(-1, 1, 5))
    x, y = np.meshgrid(axis, axis)
    loss = (0.3 + (1 + pair) * length * (x**2 + y**2)).ravel()
    table = pd.DataFrame({"data": "sst$2:dev", "x": x.ravel(), "y": y.ravel(), "loss": loss})
    kind, _, by = mask.partition(" by ")
    rows = [
        {"axis": a, "mask": kind, "by": by or None, "entries": int(length), "of": 12,
         "movable": 10, "tensors": 3, "vectors": 1, "still": 1, "unseen": None, "norm": length,
         "masked_norm": length, "whole_norm": 10.0, "control_share": length / 10,
         "control_norm": 10 * (length / 10) ** 0.5}
        for a in "xy"
    ]  # fmt: skip
    return Surface(
        ("seed0",), ("sst$2:dev",), "classification", "random", axis, axis, length,
        table.assign(loss_low=loss, loss_high=loss, evaluated=True),
        pd.DataFrame([{"name": "seed0", "x": 0.0, "y": 0.0}]), 25, {}, pd.DataFrame(rows),
    )  # fmt: skip


def make_landscape(pairs: int = 2, lengths: dict[str, float] = LENGTHS) -> Landscape:
    groups = {m: [make_one(m, k, length) for k in range(pairs)] for m, length in lengths.items()}
    directions = [
        s.directions.assign(mask=m, pair=k)
        for m, group in groups.items()
        for k, s in enumerate(group)
    ]
    data = ("sst$2:dev",)
    return Landscape(
        "seed0", data, "classification", tuple(lengths), pairs,
        tuple(s for group in groups.values() for s in group),
        pd.concat(directions, ignore_index=True), _over(groups, data, _profile),
        _over(groups, data, _axes), 25 * len(lengths) * pairs, {},
    )  # fmt: skip


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.filterwarnings("error")
def test_every_figure_lays_out(pairs):
    result = make_landscape(pairs)
    for which in figures.FIGURES["Landscape"]:
        figure = figures.draw(result, which)
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()


def test_profiles_over_r_and_over_the_distance_walked():
    result = make_landscape()
    figure = figures.plot_landscape(result)
    left, right = figure.axes
    assert len(left.lines) == len(right.lines) == 3
    for mask, near, far in zip(result.masks, left.lines, right.lines, strict=True):
        rows = result.profile[result.profile["mask"] == mask]
        np.testing.assert_allclose(near.get_xdata(), rows.radius)
        np.testing.assert_allclose(near.get_ydata(), rows.loss)
        np.testing.assert_allclose(far.get_xdata(), rows.radius * LENGTHS[mask])
        assert near.get_color() == far.get_color()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == "all: 10 entries (83 %)" and "fisher-top by tensor: 4 entries" in texts[1]
    assert "of 2 pairs" in right.get_title(loc="right")
    band = left.collections[0].get_paths()[0].vertices[:, 1]
    rows = result.profile[result.profile["mask"] == "none"]
    assert (band.min(), band.max()) == pytest.approx((rows.low.min(), rows.high.max()))


def test_directions_of_one_length_have_one_panel():
    figure = figures.plot_landscape(make_landscape(1, {"none": 5.0, "random by entry": 5.0}))
    (axes,) = figure.axes
    assert "of the cells" in axes.get_title(loc="right")


def test_several_results_together():
    result = make_landscape(1)
    one = dataclasses.replace(result.surfaces[0], directions=None)
    figure = figures.plot_landscapes({"theirs": one, "ours": result})
    assert len(figure.axes) == 1 and len(figure.axes[0].lines) == 4  # no length: one panel
    plane = dataclasses.replace(one, mode="plane")
    with pytest.raises(ConfigError, match="plane through models, which has no centre"):
        figures.plot_landscapes({"plane": plane})
    with pytest.raises(ConfigError, match="no surface to draw"):
        figures.plot_landscapes({})
    with pytest.raises(ConfigError, match="unknown scale 'cubic'"):
        figures.plot_landscape(result, scale="cubic")


def test_maps_have_one_colour_scale_and_name_their_masks():
    figure = figures.plot_landscape_surfaces(make_landscape())
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == ["all: 83 %", "fisher-top by tensor: 33 %", "random by tensor: 58 %"]


def test_the_page(tmp_path):
    write_atlas(tmp_path / "atlas.html", {"landscape-seed0": make_landscape()})
    page = (tmp_path / "atlas.html").read_text(encoding="utf-8")
    assert "Landscapes" in page and "fisher-top by tensor" in page
    assert "selected for nothing" in page
