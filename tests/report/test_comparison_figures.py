"""Figures and the page of a comparison of ways of dropout."""

import warnings

import numpy as np
import pytest

from comparison_results import make_comparison
from landform.errors import ConfigError
from landform.report import figures
from landform.report.atlas import write_atlas
from landform.results import from_parts, to_parts

MAKERS = {
    "two tasks": lambda: make_comparison(gains={"guided": 0.02, "none": -0.02}),
    "one cell": lambda: make_comparison(tasks=("rte",), fractions=(100.0,)),
    "one seed": lambda: make_comparison(tasks=("rte",), seeds=(0,)),
    "two arms, many tasks": lambda: make_comparison(
        arms=("guided", "standard"), tasks=tuple(f"task_{k}$" for k in range(5))
    ),
    "a loss": lambda: make_comparison(lower=True, sites=4),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_figure_lays_out(name):
    result = MAKERS[name]()
    for which in figures.FIGURES["DropoutComparison"]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figures.draw(result, which).draw_without_rendering()


def test_points_are_the_differences_and_filled_where_they_are_told():
    result = make_comparison(gains={"guided": 0.03})
    sst2, _, whole = result.plot().axes
    cells = result.differences[result.differences.task == "sst2"]
    drawn = {}
    for line in sst2.lines:
        if line.get_marker() == "o":
            filled = line.get_markerfacecolor() != "white"
            drawn |= dict.fromkeys(np.round(np.asarray(line.get_xdata(), float), 12), filled)
    told = dict(zip(cells.difference.round(12), cells.p_t_holm < 0.05, strict=True))
    assert drawn == told
    assert any(told.values()) and not all(told.values())
    labels = [tick.get_text() for tick in sst2.get_yticklabels()]
    assert labels == ["guided (0.05)", "uniform (0.05)", "shuffled (0.05)", "none (0)"]
    assert whole.get_title(loc="left") == "all tasks and fractions"


def test_bars_reach_as_far_as_what_is_detectable():
    result = make_comparison(tasks=("rte",), fractions=(100.0,))
    (axes,) = result.plot().axes
    widths = [patch.get_width() / 2 for patch in axes.patches]
    assert widths == pytest.approx(list(result.differences.detectable))
    low, high = axes.get_xlim()
    assert low < -max(widths) and high > max(widths)


def test_every_seed_is_a_tick_of_its_arm():
    result = make_comparison(tasks=("rte",), fractions=(100.0,))
    (axes,) = figures.plot_arms(result).axes
    ticks = [line for line in axes.lines if line.get_marker() == "|"]
    assert [len(line.get_xdata()) for line in ticks] == [5] * 5
    guided = result.runs[result.runs.arm == "guided"].value
    np.testing.assert_allclose(ticks[0].get_xdata(), guided)


def test_without_schedules_there_is_no_figure_of_them():
    result = make_comparison(arms=("standard", "none"))
    with pytest.raises(ConfigError, match="no arm"):
        figures.plot_schedules(result)


def test_the_page_shows_it_all(tmp_path):
    result = make_comparison(gains={"guided": 0.02})
    again = from_parts(*to_parts(result))
    assert again.reading == result.reading
    page = write_atlas(tmp_path, [again, make_comparison(arms=("standard", "none"))]).read_text(
        encoding="utf-8"
    )
    assert result.reading.partition(";")[0] in page
    assert "all tasks and fractions" in page and "2 / 2<sup>" in page
    assert page.count("<img") >= 5
    assert "No arm of this comparison has a schedule of its own." in page
