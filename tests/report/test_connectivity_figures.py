"""Figures of connectivity show the numbers of the results."""

from __future__ import annotations

import dataclasses
import importlib
from itertools import pairwise, permutations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy import stats

import connectivity_results as results
from landform.errors import ConfigError
from landform.report import connectivity_figures as own
from landform.report import figures, group_figures, style, surface_figures

REAL = {
    "Surface": "landform.geometry.surface",
    "Sharpness": "landform.geometry.sharpness",
    "SharpnessComparison": "landform.geometry.sharpness",
    "CurveFit": "landform.geometry.fitting",
    "PathEvaluation": "landform.geometry.fitting",
    "ComplexFit": "landform.geometry.simplexes",
    "Transitivity": "landform.geometry.transitivity",
    "Ridge": "landform.geometry.ridge",
    "Dynamics": "landform.studies.dynamics",
    "AlignmentReport": "landform.weights.alignment",
}


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def title(axes):
    return axes.get_title(loc="left")


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --- dispatch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(REAL))
def test_the_results_here_have_the_fields_of_the_real_ones(kind):
    real = getattr(importlib.import_module(REAL[kind]), kind)
    names = {field.name for field in dataclasses.fields(results.MAKERS[kind]())}
    assert names - {"reading"} <= {field.name for field in dataclasses.fields(real)}


@pytest.mark.parametrize("kind", sorted(REAL))
@pytest.mark.filterwarnings("error")
def test_every_result_has_figures_that_lay_out(kind):
    result = results.MAKERS[kind]()
    for which in figures.FIGURES[kind]:
        figure = figures.draw(result, which)
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()


def test_names_with_dollars_are_drawn_as_they_are(connection):
    evil = "_a$b_{^"
    names = (f"{evil}0", f"{evil}1", f"{evil}2")
    plane = results.make_surface(5, names=names, data=(evil, "x$y"))
    for which in figures.FIGURES["Surface"]:
        figures.draw(plane, which).draw_without_rendering()
    ridge = results.make_ridge(6, [f"{evil} {i}" for i in range(6)])
    figures.draw(ridge).draw_without_rendering()
    path = dataclasses.replace(results.make_path((evil,)), a=evil, b=f"{evil}2")
    figures.draw(path, metric="distances").draw_without_rendering()
    study = connection(names=[f"{evil}{i}" for i in range(8)], data=(evil, "z$w:dev"))
    figures.plot_ridges(study).draw_without_rendering()
    figures.plot_score_distributions({evil: study, "b": study}).draw_without_rendering()


# --- planes -----------------------------------------------------------------------------------


def test_the_colours_of_a_plane_are_its_values():
    surface = results.make_surface(9)
    axes = figures.plot_surface(surface).axes[0]
    image = next(c for c in axes.collections if hasattr(c, "levels") and c.filled)
    low, high = surface.grid("loss").min(), surface.grid("loss").max()
    assert image.levels[0] <= low and image.levels[-1] >= high
    for x, y in surface.models.values():
        shown = image.to_rgba(surface_figures.value_at(surface, "loss", x, y))
        assert np.dot(shown[:3], (0.3, 0.6, 0.1)) > 0.8  # wells are light
    assert axes.get_aspect() == 1.0
    assert axes.get_xlim() == (-0.5, 1.5)


def test_light_is_good_in_every_map():
    surface = results.make_surface(9)
    for metric, sign in (("loss", 1), ("accuracy", -1)):
        colours = surface_figures.colours_of(metric)
        ends = [np.dot(colours(share)[:3], (0.3, 0.6, 0.1)) for share in (0.0, 1.0)]
        assert sign * (ends[0] - ends[1]) > 0.5
        assert metric in surface_figures.surface_metrics(surface)
    assert "evaluated" not in surface_figures.surface_metrics(surface)


def test_the_models_are_joined_and_their_names_lie_outside():
    surface = results.make_surface(9)
    axes = figures.plot_surface(surface, point_names=["G0", "G1", "H0"]).axes[0]
    (ring,) = lines(axes, "_polygon")
    corners = list(surface.models.values())
    np.testing.assert_allclose(ring.get_xydata(), [*corners, corners[0]])
    assert ring.get_linestyle() == "--"
    centre = np.mean(corners, axis=0)
    texts = {t.get_text(): t for t in axes.texts}
    assert list(texts) == ["G0", "G1", "H0"]
    for text, corner in zip(texts.values(), corners, strict=True):
        shift = np.array(text.get_position())  # in points, away from the centre
        assert np.dot(shift, np.subtract(corner, centre)) > 0
    with pytest.raises(ConfigError, match="3 models on the plane and 2 point names"):
        figures.plot_surface(surface, point_names=["a", "b"])


def test_names_stay_apart_from_each_other_and_within_the_map():
    figure = figures.plot_surface(results.make_surface(9))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [t.get_window_extent() for t in axes.texts]
    frame = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_one_model_in_random_directions_has_no_polygon():
    axes = figures.plot_surface(results.make_surface(7, mode="random")).axes[0]
    assert not lines(axes, "_polygon")
    assert [t.get_text() for t in axes.texts] == ["seed0"]


@pytest.mark.parametrize("missing", [False, True])
def test_cells_that_were_not_evaluated_are_dots(missing):
    surface = results.make_surface(11, skipped=0.6, missing=missing)
    axes = figures.plot_surface(surface).axes[0]
    (dots,) = [c for c in axes.collections if c.get_label() == "_skipped"]
    first = surface.table[surface.table["data"] == surface.data[0]]
    skipped = first[~first["evaluated"]]
    np.testing.assert_allclose(dots.get_offsets(), skipped[["x", "y"]])
    assert title(axes) == f"dots: {len(skipped)} of 121 cells interpolated"
    whole = figures.plot_surface(results.make_surface(5)).axes[0]
    assert not [c for c in whole.collections if c.get_label() == "_skipped"]


def test_clips_cut_the_plane_and_the_colours():
    surface = results.make_surface(9)
    figure = figures.plot_surface(
        surface, clip_x=(0, 1), clip_y=(-0.25, 1), clip_values=(0.3, 0.6), levels=6
    )
    axes, bar = figure.axes
    assert axes.get_xlim() == (0, 1) and axes.get_ylim() == (-0.25, 1)
    image = next(c for c in axes.collections if hasattr(c, "levels") and c.filled)
    assert (image.levels[0], image.levels[-1], image.extend) == (0.3, 0.6, "both")
    assert bar.get_ylabel() == "cross-entropy (nats) on nli:validation"
    for wrong in ({"clip_values": (1, 0)}, {"clip_x": (0.5,)}):
        with pytest.raises(ConfigError, match="is no range"):
            figures.plot_surface(surface, **wrong)
    with pytest.raises(ConfigError, match="no cell of the surface is shown"):
        figures.plot_surface(surface, clip_x=(7, 8))
    with pytest.raises(ConfigError, match="levels: 1"):
        figures.plot_surface(surface, levels=1)


def steep_surface(size=13):
    """A loss from about 0.05 whose corners are far above its triangle of models."""
    surface = results.make_surface(size, data=("nli:validation",))
    loss = surface.table["loss"]
    share = (loss - loss.min()) / (loss.max() - loss.min())
    far = (surface.table["x"] - 0.5) ** 2 + (surface.table["y"] - 0.4) ** 2
    return dataclasses.replace(
        surface, table=surface.table.assign(loss=0.05 * 8**share * np.exp(1.5 * far))
    )


def filled(axes):
    return next(c for c in axes.collections if hasattr(c, "levels") and c.filled)


def colours_within(surface, image):
    """The bands that the cells within the triangle of models lie in."""
    (ax, ay), (bx, by), (cx, cy) = surface.models.values()
    found = set()
    for x in surface.x:
        for y in surface.y:
            p, q = np.linalg.solve([[bx - ax, cx - ax], [by - ay, cy - ay]], [x - ax, y - ay])
            if p >= 0 and q >= 0 and p + q <= 1:
                value = surface_figures.value_at(surface, "loss", x, y)
                found.add(int(np.searchsorted(image.levels, value)))
    return found


def test_a_steep_plane_has_a_log_scale_that_tells_its_models_apart():
    surface = steep_surface()
    log, linear = (
        filled(figures.plot_surface(surface, scale=s).axes[0]) for s in ("auto", "linear")
    )
    assert len(colours_within(surface, log)) >= 3 > 1 == len(colours_within(surface, linear))
    loss = surface.grid("loss")
    assert 0 < log.levels[0] <= loss.min() and log.levels[-1] >= loss.max()
    assert log.extend == "neither" and 10 <= len(log.levels) <= 20
    # Even over the levels: equal ratios are equal steps of colour.
    assert float(log.norm(np.sqrt(log.levels[0] * log.levels[-1]))) == pytest.approx(0.5)
    np.testing.assert_allclose(np.diff(linear.levels), linear.levels[1] - linear.levels[0])
    clipped = filled(figures.plot_surface(surface, clip_values=(0.1, 1.0)).axes[0])
    assert not isinstance(clipped.norm, LogNorm) and isinstance(log.norm, LogNorm)
    both = figures.plot_surface(surface, clip_values=(0.11, 1.03), scale="log")
    levels = filled(both.axes[0]).levels
    assert (levels[0], levels[-1], filled(both.axes[0]).extend) == (0.11, 1.03, "both")
    assert both.axes[1].get_ylabel().endswith("log scale")
    assert "log" not in figures.plot_surface(surface, scale="linear").axes[1].get_ylabel()


def test_only_steep_losses_above_zero_are_log_by_themselves():
    surface = steep_surface()
    inner = dict(clip_x=(0, 0.5), clip_y=(0, 0.5))
    table = surface.table
    zero = dataclasses.replace(
        surface, table=table.assign(loss=table["loss"] - table["loss"].min())
    )
    accurate = dataclasses.replace(surface, table=table.assign(accuracy=table["loss"] / 10))
    for plane, options in ((surface, inner), (zero, {}), (accurate, {"metric": "accuracy"})):
        figure = figures.plot_surface(plane, **options)
        assert not isinstance(filled(figure.axes[0]).norm, LogNorm)
    asked = figures.plot_surface(accurate, metric="accuracy", scale="log")
    assert isinstance(filled(asked.axes[0]).norm, LogNorm)
    mixed = figures.plot_surfaces(accurate, metric=["loss", "accuracy"], data="nli:validation")
    assert not isinstance(filled(mixed.axes[0]).norm, LogNorm)
    for factor in (0.01, 100):  # the ratio decides, not the size
        times = dataclasses.replace(surface, table=table.assign(loss=table["loss"] * factor))
        for options, log in (({}, True), (inner, False)):
            image = filled(figures.plot_surface(times, **options).axes[0])
            assert isinstance(image.norm, LogNorm) == log
    planes = figures.plot_surfaces({"a": surface, "b": results.make_surface(9)})
    assert isinstance(filled(planes.axes[1]).norm, LogNorm)
    assert planes.axes[2].get_ylabel() == "cross-entropy (nats), log scale"
    with pytest.raises(ConfigError, match="no place for 0"):
        figures.plot_surface(zero, scale="log")
    with pytest.raises(ConfigError, match="did you mean 'log'"):
        figures.plot_surface(surface, scale="lag")


@pytest.mark.parametrize("ratio", [1.01, 1.5, 8.5, 60, 1e4, 1e12])
@pytest.mark.parametrize("low", [0.0312, 1.0, 470.0])
@pytest.mark.parametrize("count", [4, 14, 30])
def test_levels_of_a_log_scale_rise_are_round_and_cover_the_values(low, ratio, count):
    surface = steep_surface(5)
    log = np.log(surface.table["loss"])
    share = (log - log.min()) / (log.max() - log.min())
    surface = dataclasses.replace(surface, table=surface.table.assign(loss=low * ratio**share))
    figure = figures.plot_surface(surface, scale="log", levels=count)
    axes, bar = figure.axes
    levels = filled(axes).levels
    assert (np.diff(levels) > 0).all() and count / 2 < len(levels) <= 2 * count + 2
    assert levels[0] <= low * (1 + 1e-6)
    assert levels[-1] >= low * ratio * (1 - 1e-6) or filled(axes).extend == "max"
    if ratio > 8:  # two digits
        np.testing.assert_allclose([float(f"{v:.1e}") for v in levels], levels, rtol=1e-9)
    figure.draw_without_rendering()
    labels = [text for text in bar.get_yticklabels() if text.get_text()]
    assert len(labels) > 1
    for text, at in zip(labels, bar.get_yticks(), strict=True):
        assert float(text.get_text()) == pytest.approx(at, rel=1e-5)
        assert min(abs(levels / at - 1)) < 1e-9
    boxes = [text.get_window_extent() for text in labels]
    assert all(low.y1 < high.y0 for low, high in pairwise(boxes))


def test_a_plane_names_the_metrics_and_data_it_has():
    surface = results.make_surface(5)
    for draw in (figures.plot_surface, figures.plot_surfaces, figures.plot_surface_3d):
        with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
            draw(surface, metric="acuracy")
        with pytest.raises(ConfigError, match="did you mean 'hans:validation'"):
            draw(surface, data="hans:validatoin")


def test_planes_side_by_side_have_one_scale():
    low, high = results.make_surface(7), results.make_surface(7, height=2.0)
    figure = figures.plot_surfaces({"flat": low, "steep": high}, point_names=["G0", "G1", "H0"])
    panels = figure.axes[:2]
    assert [title(axes) for axes in panels] == ["flat", "steep"]
    images = [next(c for c in a.collections if hasattr(c, "levels") and c.filled) for a in panels]
    np.testing.assert_allclose(images[0].levels, images[1].levels)
    assert images[0].levels[-1] >= high.grid("loss").max() > low.grid("loss").max()
    assert all(lines(axes, "_polygon") for axes in panels)
    assert [t.get_text() for t in panels[1].texts] == ["G0", "G1", "H0"]
    assert len(figure.axes) == 3  # one colour bar


def test_panels_of_one_plane_are_data_sets_or_metrics():
    surface = results.make_surface(5)
    both = figures.plot_surfaces(surface)
    assert [title(axes) for axes in both.axes[:2]] == list(surface.data)
    metrics = figures.plot_surfaces(surface, metric=["loss", "accuracy"], data="nli:validation")
    assert [title(axes) for axes in metrics.axes[:2]] == ["loss", "accuracy"]
    named = figures.plot_surfaces(surface, names=["in", "out"], columns=1)
    assert [title(axes) for axes in named.axes[:2]] == ["in", "out"]
    with pytest.raises(ConfigError, match="2 panels and 1 names"):
        figures.plot_surfaces(surface, names=["in"])
    with pytest.raises(ConfigError, match="no surface"):
        figures.plot_surfaces([])


def test_an_uneven_grid_is_drawn_at_its_places():
    even = results.make_surface(9)
    x = np.asarray(even.x)
    moved = {v: float(v + 0.06 * np.sin(5 * v)) for v in x}
    table = even.table.assign(x=even.table["x"].map(moved))
    uneven = dataclasses.replace(even, x=tuple(moved[v] for v in x), table=table)
    axes = figures.plot_surface(uneven).axes[0]
    assert axes.get_xlim() == pytest.approx((uneven.x[0], uneven.x[-1]))


def test_the_relief_has_the_models_on_it():
    surface = results.make_surface(9)
    axes = figures.plot_surface_3d(surface).axes[0]
    for name, (x, y) in surface.models.items():
        (dot,) = lines(axes, f"_model {name}")
        at = [float(v[0]) for v in dot.get_data_3d()]
        assert at == pytest.approx([x, y, surface_figures.value_at(surface, "loss", x, y)])
    assert {t.get_text() for t in axes.texts} >= set(surface.models)


# --- sharpness --------------------------------------------------------------------------------


def test_the_climbs_are_those_of_the_table():
    result = results.make_sharpness()
    figure = figures.draw(result)
    axes = figure.axes[0]
    for restart, part in result.table.groupby("restart"):
        (line,) = lines(axes, f"restart {restart}")
        np.testing.assert_allclose(line.get_ydata(), part["loss"])
    (best,) = lines(axes, "_best")
    assert best.get_ydata()[0] == pytest.approx(result.table["loss"].max())
    (start,) = lines(axes, "_start")
    assert start.get_ydata()[0] == result.loss
    expected = f"sharpness {result.value:.3g} [{result.value_low:.3g}, {result.value_high:.3g}]"
    assert title(axes).startswith(expected)


def test_an_average_has_draws_and_no_climb():
    table = pd.DataFrame({"restart": [0, 0, 1, 1], "step": [0, 1, 0, 1], "loss": [1.0, 2, 3, 4]})
    result = dataclasses.replace(results.make_sharpness(), method="average", table=table)
    figure = figures.draw(result)
    axes = figure.axes[0]
    assert list(lines(axes, " +v")[0].get_ydata()) == [1, 3]
    assert list(lines(axes, " \N{MINUS SIGN}v")[0].get_ydata()) == [2, 4]
    assert axes.lines[0].get_linestyle() == "None" and "average" in title(axes)


def test_the_scatter_has_a_panel_per_method_with_its_rank_correlation():
    result = results.make_comparison()
    figure = figures.draw(result)
    assert len(figure.axes) == 2
    for axes, method in zip(figure.axes, ("box", "sam"), strict=True):
        part = result.table[result.table["method"] == method]
        (dots,) = lines(axes, "_checkpoints")
        np.testing.assert_allclose(dots.get_xdata(), part["value"])
        np.testing.assert_allclose(dots.get_ydata(), part["hans:validation/accuracy"])
        rho = stats.spearmanr(part["value"], part["hans:validation/accuracy"]).statistic
        shown = title(axes).replace("\N{MINUS SIGN}", "-")
        assert shown.startswith(f"{method}\nSpearman {rho:.2f} [")
        assert "p = 0.031, n = 12" in shown
    assert "hans" in figure.axes[0].get_ylabel()
    one = figures.draw(result, metric="nli:validation/accuracy", methods=["sam"])
    assert len(one.axes) == 1 and "nli" in one.axes[0].get_ylabel()
    with pytest.raises(ConfigError, match="did you mean 'hans:validation/loss'"):
        figures.draw(result, metric="hans:validation/los")
    with pytest.raises(ConfigError, match="did you mean 'box'"):
        figures.draw(result, methods="bx")


def test_three_methods_stand_in_a_row():
    methods = ("box", "sam", "average", "box_relative", "sam_relative")
    figure = figures.draw(results.make_comparison(methods=methods))
    shown = [axes for axes in figure.axes if axes.axison]
    assert [title(axes).split("\n")[0] for axes in shown] == list(methods)
    figure.draw_without_rendering()
    tops = [round(axes.get_position().y1, 6) for axes in shown]
    assert len(set(tops[:3])) == 1 and len(set(tops[3:])) == 1 and tops[3] < tops[0]
    boxes = [axes._left_title.get_window_extent() for axes in shown]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert [bool(axes.get_ylabel()) for axes in shown] == [True, False, False, True, False]


def test_too_few_checkpoints_have_no_correlation_but_dots():
    result = results.make_comparison()
    bare = dataclasses.replace(result, correlations=result.correlations[:0])
    assert title(figures.draw(bare).axes[0]) == "box\nn = 12"


# --- paths ------------------------------------------------------------------------------------


def test_a_path_is_drawn_beside_its_line():
    result = results.make_path(("nli:validation", "hans:validation"))
    figure = figures.draw(result)
    upper, lower = figure.axes
    drawn = [line for line in upper.lines if not line.get_label().startswith("_")]
    assert len(drawn) == 4
    for line, (name, path) in zip(
        drawn, ((d, p) for d in ("nli", "hans") for p in ("curve", "line")), strict=True
    ):
        table = result.table if path == "curve" else result.line
        part = table[table["data"] == f"{name}:validation"]
        np.testing.assert_allclose(line.get_ydata(), part["loss"])
        np.testing.assert_allclose(line.get_xdata(), part["arc"])
        assert (line.get_linestyle() == "-") == (path == "curve")
    row = result.summary.iloc[0]
    assert legend_texts(figure)[0].strip() == (
        f"Bezier curve, nli:validation:\n 9.1 long, barrier {row.barrier_height:.3g} "
        f"[{row.barrier_low:.3g}, {row.barrier_high:.3g}]"
    )
    assert lower.get_ylabel() == "accuracy"


@pytest.mark.parametrize("look", [None, "paper"])
def test_the_entries_of_a_path_fit_beside_it(look):
    names = ("embedded:validation", "a_study_with_a_long_name:and_a_subset_with_one")
    with style.using(look):
        figure = figures.draw(results.make_path(names))
        figure.draw_without_rendering()
    for legend in figure.legends:
        for text in legend.get_texts():
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert figure.axes[0].get_position().height * figure.get_figheight() > 1.2


def test_below_a_path_stand_metrics_or_distances():
    result = results.make_path()
    lower = figures.draw(result, metric="distances").axes[1]
    np.testing.assert_allclose(lower.lines[0].get_ydata(), result.table["distance_a"])
    np.testing.assert_allclose(lower.lines[1].get_ydata(), result.table["distance_b"])
    assert len(figures.draw(result, metric="loss").axes) == 1
    alone = figures.draw(result, "distances").axes[0]
    assert [t.get_text() for t in alone.get_legend().get_texts()] == [
        "to seed0",
        "to seed1",
    ]
    with pytest.raises(ConfigError, match="there are: accuracy, distances, loss"):
        figures.draw(result, metric="arc")
    with pytest.raises(ConfigError, match="there are: nli:validation"):
        figures.draw(result, data="x")


def test_a_fit_shows_its_steps_and_their_mean():
    result = results.make_fit(100)
    upper, lower = figures.draw(result).axes
    np.testing.assert_allclose(lines(upper, "_steps")[0].get_ydata(), result.history["loss"])
    mean = result.history["loss"].rolling(5, min_periods=1).mean()
    np.testing.assert_allclose(lines(upper, "_mean")[0].get_ydata(), mean)
    np.testing.assert_allclose(lower.lines[0].get_ydata(), result.history["learning_rate"])
    regression = dataclasses.replace(result, task_kind="regression")
    assert figures.draw(regression).axes[0].get_ylabel() == "squared error"


def test_the_points_of_every_simplex_are_a_row():
    result = results.make_complex()
    left = figures.draw(result).axes[0]
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels[0] == "seed0, connector0, connector1"
    assert labels[-1] == "flat, between the checkpoints"
    for row, (_, part) in enumerate(result.samples.groupby("clique")):
        np.testing.assert_allclose(lines(left, f"_simplex {row}")[0].get_xdata(), part["loss"])
        assert lines(left, "_mean")[row].get_xdata()[0] == pytest.approx(part["loss"].mean())
    with pytest.raises(ConfigError, match="there are: loss, accuracy"):
        figures.draw(result, column="f1")
    bare = dataclasses.replace(result, samples=result.samples[:0])
    _, volume = figures.draw(bare).axes  # the history with its volume
    for line, (_, part) in zip(volume.lines, result.history.groupby("vertex"), strict=True):
        assert line.get_ydata() == pytest.approx(part["volume"] / part["volume"].max())


# --- triangles, ridges, time, permutations ----------------------------------------------------


def test_every_violation_is_counted_once():
    result = results.make_transitivity()
    axes = figures.draw(result).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert sum(heights) == result.violations
    shown = [int(t.get_text()) for t in axes.texts if t.get_text()]
    assert shown == [int(h) for h in heights if h]
    assert title(axes).startswith(f"{result.violations} of {result.triples} triples")


def test_without_a_violation_there_is_nothing_to_draw(connection):
    with pytest.raises(ConfigError, match="none of 56 triples"):
        figures.draw(results.make_transitivity(metric=True))
    with pytest.raises(ConfigError, match="no triangles"):
        figures.draw(connection((0, 1)), "transitivity")
    assert isinstance(figures.draw(connection(), "transitivity"), Figure)


def test_the_ridge_adds_up_and_its_texts_are_the_highest():
    result = results.make_ridge(80)
    upper, lower, right = figures.draw(result, k=3).axes
    (share,) = lines(lower, "_share")
    rises = result.table["rise"].clip(lower=0)
    np.testing.assert_allclose(share.get_ydata(), rises.cumsum() / rises.sum())
    for mark, row in zip(lines(lower, "_shares"), result.shares.itertuples(), strict=True):
        assert mark.get_xydata()[0] == pytest.approx([row.examples, row.share_of_rise])
        at = float(np.interp(row.examples, share.get_xdata(), share.get_ydata()))
        assert at == pytest.approx(row.share_of_rise)
    words = " ".join(t.get_text().replace("\n", " ") for t in right.texts)
    for text in result.table["text"][:3]:
        assert text in words
    assert result.table["text"][3] not in words
    assert f"of {len(result.table)} examples rise at t = 0.5" in title(upper)


def test_few_large_rises_do_not_hide_the_others():
    result = results.make_ridge(80)
    rise = np.full(80, 0.01)
    rise[0], rise[-2:] = 5.0, -2.0
    tall = dataclasses.replace(result, table=result.table.assign(rise=rise))
    upper = figures.draw(tall).axes[0]
    assert (
        upper.get_yscale() == "symlog"
        and "log beyond \N{PLUS-MINUS SIGN}0.01" in upper.get_ylabel()
    )
    low, high = upper.get_ylim()
    assert low <= -2 and high >= 5
    place = upper.transData.transform([(1, 0.0), (1, 0.01), (1, 5.0)])[:, 1]
    assert (place[1] - place[0]) / (place[2] - place[0]) > 0.1  # 0.002 on a linear axis
    even = dataclasses.replace(result, table=result.table.assign(rise=np.linspace(1, -0.5, 80)))
    upper = figures.draw(even).axes[0]
    assert upper.get_yscale() == "linear" and upper.get_ylabel() == "rise (nats)"
    none = dataclasses.replace(result, table=result.table.assign(rise=0.0))
    figures.draw(none).draw_without_rendering()


def test_long_and_odd_texts_fit_beside_the_ridge():
    texts = ["word " * 200, "", "x" * 500, "two\nlines"]
    figure = figures.draw(results.make_ridge(4, texts), k=4)
    figure.draw_without_rendering()
    for text in figure.axes[-1].texts:
        assert text.get_window_extent().x1 <= figure.bbox.x1 + 1


def test_the_arrows_go_from_step_to_step_and_switchers_stand_out():
    result = results.make_dynamics()
    figure = figures.draw(result, names=True)
    axes = figure.axes[0]
    quivers = [c for c in axes.collections if c.get_label() in ("_staying", "_switching")]
    count = {"_staying": 0, "_switching": 0}
    ends = []
    for q in quivers:
        count[q.get_label()] += q.N
        ends += list(zip(q.X + q.U, q.Y + q.V, strict=True))
        colour = own.SWITCHED if q.get_label() == "_switching" else style.LONE
        assert to_hex(q.get_facecolor()[0]).upper() == colour.upper()
    assert count == {"_staying": 15, "_switching": 1}
    later = result.positions[result.positions["step"] > 100]
    expected = later[["x", "performance"]].to_numpy()
    np.testing.assert_allclose(sorted(ends), sorted(map(tuple, expected)))
    assert {line.get_marker() for line in lines(axes, "_switched")} == {"D"}
    assert legend_texts(figure) == ["stays in its basin (n = 7)", "switches (n = 1)"]
    assert "0.50" in title(axes)
    assert [t.get_text() for t in axes.texts] == list(result.names)


def test_parts_are_drawn_before_and_after():
    result = results.make_alignment()
    figure = figures.draw(result)
    before, after = figure.axes[0].lines
    np.testing.assert_allclose(before.get_xdata(), result.parts["distance_before"])
    np.testing.assert_allclose(after.get_xdata(), result.parts["distance_after"])
    assert legend_texts(figure)[0].strip() == "before (31.2 in all)"
    axes = figure.axes[0]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels[1] == "layer 0, feed-forward"
    row = result.parts.iloc[1]
    assert axes.texts[1].get_text() == f"{row.moved}/{row['size']}"
    figure.draw_without_rendering()
    assert axes.get_position().width > 0.55
    right = max(np.nanmax(line.get_window_extent().x1) for line in axes.lines)
    assert right < min(t.get_window_extent().x0 for t in axes.texts)


# --- groups -----------------------------------------------------------------------------------


def test_the_groups_are_the_best_the_middle_and_the_worst(connection):
    study = connection([0] * 9 + [1] * 6)
    column = "hans:validation/accuracy"
    groups = figures.ridge_groups(study, column, 3)
    order = list(study.endpoints[column].sort_values(ascending=False).index)
    assert groups == {"gen.": order[:3], "middle": order[6:9], "heur.": order[12:]}
    by_loss = figures.ridge_groups(study, "hans:validation/loss", 3)
    best = study.endpoints["hans:validation/loss"].sort_values().index[:3]
    assert by_loss["gen."] == list(best)
    assert [len(g) for g in figures.ridge_groups(study, column).values()] == [5, 5, 5]
    assert [len(g) for g in figures.ridge_groups(connection(), column, 4).values()] == [4, 0, 4]
    with pytest.raises(ConfigError, match="5 best and 5 worst of 8"):
        figures.ridge_groups(connection(), column, 5)
    with pytest.raises(ConfigError, match="did you mean 'hans:validation/accuracy'"):
        figures.ridge_groups(study, "hans:validation/acuracy")


def test_a_panel_is_the_mean_over_ordered_pairs(connection):
    study = connection([0] * 6 + [1] * 6)
    column = "hans:validation/accuracy"
    figure = figures.plot_ridges(study, column, k=3)
    groups = figures.ridge_groups(study, column, 3)
    names = list(groups)
    types = [(a, a) for a in names] + [(names[0], names[1]), (names[0], names[2])]
    types.append((names[1], names[2]))
    panels = np.array(figure.axes).reshape(2, 6)
    for row, data in enumerate(study.data):
        curves = study.curves[study.curves["data"] == data]
        for axes, (a, b) in zip(panels[row], types, strict=True):
            values = []
            pairs = permutations(groups[a], 2) if a == b else None
            for p, q in pairs or [(p, q) for p in groups[a] for q in groups[b]]:
                part = curves[(curves["a"] == p) & (curves["b"] == q)].sort_values("t")
                back = curves[(curves["a"] == q) & (curves["b"] == p)].sort_values("t")
                values.append(part["loss"].to_numpy() if len(part) else back["loss"][::-1])
            np.testing.assert_allclose(axes.lines[0].get_ydata(), np.mean(values, axis=0))
            if row == 0:
                assert title(axes) == f"{a} to {b}\nN = {len(values)}"
    assert "hans" in panels[1][0].get_ylabel()


def test_plains_can_be_removed_and_accuracy_shown(connection):
    study = connection([0] * 6 + [1] * 6)
    figure = figures.plot_ridges(study, k=3, middle=False, column="accuracy", data=study.data[0])
    assert [title(axes).split("\n")[0] for axes in figure.axes] == [
        "gen. to gen.",
        "heur. to heur.",
        "gen. to heur.",
    ]
    assert figure.axes[0].get_ylabel() == "accuracy"
    with pytest.raises(ConfigError, match="there are: loss, accuracy"):
        figures.plot_ridges(study, column="f1")
    with pytest.raises(ConfigError, match="nli:validation"):
        figures.plot_ridges(study, data="nli:test")


def test_lines_that_were_not_walked_have_no_panel(connection):
    study = connection(pairs=1, known_basins=False)
    picked = figures.ridge_groups(study, k=1)
    walked = set(study.pairs[["a", "b"]].iloc[0])
    if {picked["gen."][0], picked["heur."][0]} != walked:
        with pytest.raises(ConfigError, match="no line between the chosen"):
            figures.plot_ridges(study, k=1, middle=False)


def test_two_groups_are_compared_per_subset(connection, evaluation):
    a, b = connection(), connection(seed=4)
    figure = figures.plot_score_distributions({"first": a, "second": b}, metrics="accuracy")
    columns = [c for c in a.endpoints if c.endswith("/accuracy")]
    assert legend_texts(figure) == ["first (n = 8)", "second (n = 8)"]
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == len(columns)
    for axes, column in zip(shown, columns, strict=True):
        p = stats.ks_2samp(a.endpoints[column], b.endpoints[column]).pvalue
        assert title(axes).endswith(style.format_p(float(p)))
        for g, table in enumerate((a.endpoints, b.endpoints)):
            np.testing.assert_allclose(lines(axes, f"_runs {g}")[0].get_xdata(), table[column])
    other = figures.plot_score_distributions(
        {"first": a, "second": b}, metrics=columns[:1], test="mann-whitney"
    )
    p = stats.mannwhitneyu(a.endpoints[columns[0]], b.endpoints[columns[0]]).pvalue
    assert title(other.axes[0]).endswith(style.format_p(float(p)))


def test_panels_that_were_left_out_are_counted(connection):
    study = connection()
    random = np.random.default_rng(0)
    more = {f"nli:validation/s{i}/accuracy": random.random(8) for i in range(20)}
    same = {"nli:validation/same/accuracy": np.ones(8)}
    wide = dataclasses.replace(study, endpoints=study.endpoints.assign(**more, **same))
    figure = figures.plot_score_distributions([wide, wide])
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == group_figures.MOST_PANELS
    words = {"loss", "accuracy"}
    every = sum(c.rpartition("/")[2] in words for c in wide.endpoints)
    assert figure.get_supxlabel().startswith(f"16 of {every} subsets and metrics")
    assert not any("same" in title(axes) for axes in shown)
    asked = figures.plot_score_distributions([wide, wide], metrics="nli:validation/same/accuracy")
    assert "same" in title(asked.axes[0]) and not asked.get_supxlabel()


def test_densities_integrate_to_one_and_constants_have_none(connection):
    values = np.random.default_rng(0).normal(size=40)
    grid = np.linspace(-8, 8, 2000)
    density = group_figures.kernel_density(values, grid)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    assert group_figures.kernel_density(np.full(9, 0.3), grid) is None
    study = connection()
    flat = dataclasses.replace(study, endpoints=study.endpoints * 0 + 0.25)
    figures.plot_score_distributions([flat, study]).draw_without_rendering()


def test_panels_of_one_metric_can_share_their_axis(connection):
    study = connection()
    figure = figures.plot_score_distributions(
        [study, connection(seed=2)], metrics="accuracy", same_x_scale=True
    )
    assert len({axes.get_xlim() for axes in figure.axes if axes.axison}) == 1


def test_evaluations_are_groups_too(evaluation):
    first = [dataclasses.replace(evaluation(), checkpoint=f"a{i}") for i in range(4)]
    second = [dataclasses.replace(evaluation(), checkpoint=f"b{i}") for i in range(3)]
    figure = figures.plot_score_distributions([first, second], names=["old", "new"])
    assert legend_texts(figure) == ["old (n = 4)", "new (n = 3)"]
    table = group_figures.endpoint_table(first)
    assert list(table.index) == ["a0", "a1", "a2", "a3"]
    assert table.loc["a0", "hans:validation/accuracy"] == first[0].metrics["accuracy"]
    row = first[0].subsets.iloc[1]
    assert table.loc["a0", f"hans:validation/{row.subset}/{row.metric}"] == row.value


def test_bad_groups_are_refused(connection):
    study = connection()
    for groups, match in (
        ([study], "compare two groups"),
        ({"a": study, "b": connection(data=("other:dev",))}, "nothing|no data set and metric"),
    ):
        with pytest.raises(ConfigError, match=match):
            figures.plot_score_distributions(groups)
    with pytest.raises(ConfigError, match="there are: ks, mann-whitney"):
        figures.plot_score_distributions([study, study], test="t")
    with pytest.raises(ConfigError, match="did you mean 'hans:validation/accuracy'"):
        figures.plot_score_distributions([study, study], metrics=["hans:validation/acuracy"])


def test_heat_maps_of_how_alike_two_models_answer_turn_their_colours(connection):
    study = connection()
    axes = figures.plot_heatmap(study, "functional_similarity").axes[0]
    image = axes.images[0]
    high, low = (np.dot(image.to_rgba(v)[:3], (0.3, 0.6, 0.1)) for v in image.get_clim()[::-1])
    assert high > low
    shown = figures.plot_heatmap(study, ticks="hans:validation/accuracy").axes[0]
    names = figures.checkpoint_order(study)
    values = study.endpoints["hans:validation/accuracy"][names]
    assert [t.get_text() for t in shown.get_yticklabels()] == [f"{v:.3f}" for v in values]
    assert set(figures.QUANTITIES) <= set(figures.quantities_of(study))


def test_the_histogram_has_a_density_per_basin(connection):
    study = connection([0] * 5 + [1] * 5)
    axes = figures.plot_basin_histogram(study, "hans:validation/accuracy").axes[0]
    curves = lines(axes, "_density")
    assert len(curves) == 2
    plain = figures.plot_basin_histogram(study, "hans:validation/accuracy", density=False).axes[0]
    assert not lines(plain, "_density")
    width = np.ptp([p.get_x() for p in axes.patches]) / 11
    for curve in curves:  # in checkpoints per bin: the area is 5 bins
        area = np.trapezoid(curve.get_ydata(), curve.get_xdata()) / width
        assert area == pytest.approx(5, rel=0.35)


# --- the style of papers ----------------------------------------------------------------------


def test_the_paper_style_has_larger_serif_letters_and_larger_figures(tmp_path):
    surface = results.make_surface(5)
    usual = figures.plot_surface(surface)
    before = dict(matplotlib.rcParams)
    with style.using("paper"):
        paper = figures.plot_surface(surface)
        style.save(paper, tmp_path / "paper.png")
    assert dict(matplotlib.rcParams) == before
    sizes = [f.axes[0].xaxis.label.get_size() for f in (usual, paper)]
    assert sizes[1] > 1.4 * sizes[0]
    assert paper.axes[0].xaxis.label.get_family()[0] == "serif"
    assert 1 < paper.get_figwidth() / usual.get_figwidth() < sizes[1] / sizes[0]
    assert imread(tmp_path / "paper.png").std() > 0.05
    again = figures.plot_surface(surface)
    assert again.axes[0].xaxis.label.get_size() == sizes[0]


def test_the_paper_style_is_a_style_file_of_matplotlib(tmp_path):
    import matplotlib.style

    with matplotlib.style.context(str(style.PAPER)):
        assert matplotlib.rcParams["font.family"] == ["serif"]
    own_file = tmp_path / "mine.mplstyle"
    own_file.write_text("font.size: 20\n")
    with style.using(own_file):
        figure = figures.draw(results.make_fit(20))
    assert figure.axes[0].yaxis.label.get_size() > 7
    with pytest.raises(ConfigError, match="nowhere"), style.using(tmp_path / "nowhere.mplstyle"):
        pass


def test_every_table_column_of_pairs_can_be_a_heat_map(connection):
    study = connection()
    for quantity in figures.quantities_of(study):
        assert pd.api.types.is_numeric_dtype(study.pairs[quantity])
        figures.plot_heatmap(study, quantity)
    with pytest.raises(ConfigError, match="did you mean 'js_distance'"):
        figures.plot_heatmap(study, "js_distanc")
