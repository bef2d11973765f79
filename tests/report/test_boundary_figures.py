"""Figures and pages of task boundaries and axes."""

import warnings

import numpy as np
import pytest

from axes_results import make_axes, make_boundaries, make_boundary
from landform.errors import ConfigError
from landform.report import figures
from landform.report.atlas import write_atlas
from landform.results import from_parts, to_parts

MAKERS = {
    "both good": make_boundary,
    "a gap": lambda: make_boundary(gap=True),
    "nothing to keep": lambda: make_boundary(unknown=True),
    "two points": lambda: make_boundary(points=2),
    "pairs": make_boundaries,
    "many pairs": lambda: make_boundaries(6),
    "axes": make_axes,
    "one data set": lambda: make_axes(("mnli:validation",)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_result_has_figures_that_lay_out(name):
    result = MAKERS[name]()
    for which in figures.FIGURES[type(result).__name__]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure = figures.draw(result, which)
            figure.draw_without_rendering()


def test_the_good_region_is_shaded_where_both_are_good():
    result = make_boundary()
    panel = result.plot().axes[0]
    (patch,) = [p for p in panel.patches if p.get_alpha() == 0.14]
    left, right = patch.get_x(), patch.get_x() + patch.get_width()
    assert (left, right) == pytest.approx(tuple(result.regions.iloc[0]))
    assert right - left == pytest.approx(result.width)
    a, b = (line for line in panel.lines if len(line.get_xdata()) == 26)
    for line, side in ((a, "a"), (b, "b")):
        kept = result.table[result.table["task"] == side]["kept"]
        assert np.allclose(line.get_ydata(), kept)
    gap = make_boundary(gap=True).plot()
    assert not [p for p in gap.axes[0].patches if p.get_alpha() == 0.14]
    assert "gap" in gap.legends[0].get_texts()[-1].get_text()


@pytest.mark.parametrize("of", ["kept", "value", "loss"])
def test_other_curves(of):
    panel = figures.plot_boundary(make_boundary(), of=of).axes[0]
    assert panel.get_ylabel()
    with pytest.raises(ConfigError, match="unknown curve"):
        figures.plot_boundary(make_boundary(), of="losses")


def test_every_pair_has_a_dot_in_both_panels():
    result = make_axes()
    figure = result.plot()
    for panel, column in zip(figure.axes, ("barrier_height", "metric_drop"), strict=True):
        dots = [line for line in panel.lines if line.get_label() == "_value"]
        found = np.concatenate([line.get_xdata() for line in dots])
        assert sorted(found) == pytest.approx(sorted(result.table[column]))
    one = figures.plot_axes(result, data="hans:validation")
    assert len(one.legends[0].get_texts()) == 1


def test_readings_and_pages(tmp_path):
    results = [maker() for maker in MAKERS.values()]
    for result in results:
        assert result.reading and result.to_json()
        again = from_parts(*to_parts(result))
        assert again.reading == result.reading
    assert "there is nothing to keep" in make_boundary(unknown=True).reading
    page = write_atlas(tmp_path / "atlas.html", results).read_text()
    assert "Task boundaries" in page and "below 0: a gap" in page
