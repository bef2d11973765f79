"""Figures show the numbers of the result: values of artists, not looks."""

from __future__ import annotations

import dataclasses
import re
import sys
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from landform.errors import ConfigError, StoreError
from landform.report import figures


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --- dispatch ---------------------------------------------------------------------------------


def test_draw_finds_the_figures_of_every_result(connection, interpolation, evaluation, training):
    for result in (connection(), interpolation(), evaluation(), training()):
        for which in figures.FIGURES[type(result).__name__]:
            assert isinstance(figures.draw(result, which), Figure)


def test_draw_finds_the_figures_of_a_subclass(interpolation):
    class Special(type(interpolation())):
        pass

    result = interpolation()
    special = Special(**{f.name: getattr(result, f.name) for f in dataclasses.fields(result)})
    assert isinstance(figures.draw(special), Figure)


def test_draw_refuses_what_it_does_not_know(connection):
    with pytest.raises(ConfigError, match=r"no figure of a dict[\s\S]*Connection"):
        figures.draw({})
    with pytest.raises(ConfigError, match=r"'heatmaps'[\s\S]*did you mean 'heatmap'"):
        figures.draw(connection(), "heatmaps")


def test_the_callers_settings_neither_change_nor_leak(interpolation):
    with matplotlib.rc_context({"font.size": 31.0, "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        figure = figures.plot_interpolation(interpolation())
        assert dict(matplotlib.rcParams) == before
    assert figure.axes[0].yaxis.label.get_size() < 10


def test_pyplot_stays_out(interpolation):
    # A window manager must not learn of our figures, nor keep them alive.
    pyplot = sys.modules.get("matplotlib.pyplot")
    figures.plot_interpolation(interpolation())
    assert pyplot is None or pyplot.get_fignums() == []


def test_names_with_dollars_and_underscores_are_drawn_as_they_are(connection, interpolation):
    study = connection(names=[f"_a$b_{i}$^{{" for i in range(8)], data=("_x$y:dev", "z$w:dev"))
    for which in figures.FIGURES["Connection"]:
        figures.draw(study, which).draw_without_rendering()
    line = interpolation({"_x$y:dev": [1.0, 2.0, 1.0]}, a="$a_{", b="$b")
    figures.draw(line).draw_without_rendering()
    assert any(r"_x\$y:dev" in text for text in legend_texts(figures.draw(line)))


# --- lines ------------------------------------------------------------------------------------


def test_a_line_shows_the_table(interpolation):
    result = interpolation()
    upper, lower = figures.plot_interpolation(result).axes
    curve = next(line for line in upper.lines if line.get_label() == " sst2:validation")
    np.testing.assert_allclose(curve.get_xdata(), result.table["t"])
    np.testing.assert_allclose(curve.get_ydata(), result.table["loss"])
    band = upper.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(result.table["loss_low"].min())
    assert band.max() == pytest.approx(result.table["loss_high"].max())
    (ends,) = lines(upper, "_ends")
    np.testing.assert_allclose(ends.get_ydata(), result.table["loss"].iloc[[0, -1]])
    np.testing.assert_allclose(lower.lines[0].get_ydata(), result.table["accuracy"])
    assert upper.get_ylabel() == "cross-entropy (nats)"


def test_barrier_and_gap_are_segments_of_their_length(interpolation):
    # A ridge on a slope: the gap belongs to a part of the line and exceeds the barrier.
    result = interpolation({"x:dev": [0.30, 0.25, 0.42, 0.62, 0.41, 0.28, 0.35, 0.50, 0.75]})
    axes = figures.plot_interpolation(result).axes[0]
    row = result.summary.iloc[0]
    for label, expected in (("_barrier", row.barrier_height), ("_gap", row.convexity_gap)):
        (segment,) = lines(axes, label)
        assert np.ptp(segment.get_ydata()) == pytest.approx(expected)
    (chord,) = lines(axes, "_gap_chord")
    np.testing.assert_allclose(chord.get_ydata(), [0.25, 0.28])
    np.testing.assert_allclose(chord.get_xdata(), [1 / 8, 5 / 8])
    assert row.convexity_gap > row.barrier_height + 0.1


def test_the_numbers_of_the_summary_are_in_the_legend(interpolation):
    result = interpolation()
    texts = legend_texts(figures.plot_interpolation(result))
    row = result.summary.iloc[0]
    assert (
        f"barrier {row.barrier_height:.3g} [{row.barrier_low:.3g}, {row.barrier_high:.3g}]" in texts
    )
    assert any(t.startswith(f"convexity gap {row.convexity_gap:.3g} ") for t in texts)
    assert any(t.endswith("noise floor 0.01") for t in texts)


def test_long_numbers_of_a_ridge_break_behind_its_name(interpolation):
    """And nowhere else: in one line they would leave the column."""
    result = interpolation()
    row = result.summary.iloc[0]
    result.summary.loc[0, "noise_floor"] = 0.000123  # one letter more than there is room for
    result.summary.loc[0, ["gap_low", "gap_high"]] = [-0.000123, 0.000123]
    (text,) = [t for t in legend_texts(figures.plot_interpolation(result)) if "convexity" in t]
    head, numbers = text.split("\n")
    assert head == "convexity gap" and numbers.startswith(f"{row.convexity_gap:.3g} [")


def test_a_convex_line_has_no_segments(interpolation):
    axes = figures.plot_interpolation(interpolation({"x:dev": [0.3, 0.31, 0.34, 0.4]})).axes[0]
    assert not [line for line in axes.lines if line.get_label().startswith(("_barrier", "_gap"))]


def test_the_gap_segment_is_where_the_gap_is():
    losses = np.array([0.0, 1.0, 5.0, 1.5, 2.0, 3.0])
    i, k, j = figures.gap_segment(np.linspace(0, 1, 6), losses)
    height = losses[k] - ((j - k) * losses[i] + (k - i) * losses[j]) / (j - i)
    every = [
        losses[m] - ((r - m) * losses[p] + (m - p) * losses[r]) / (r - p)
        for p, m, r in combinations(range(6), 3)
    ]
    assert height == pytest.approx(max(every))
    assert figures.gap_segment(np.linspace(0, 1, 4), np.array([0.0, 1.0, 2.0, 3.0])) == (0, 0, 0)


def test_several_data_sets_are_all_drawn_and_one_is_marked(interpolation):
    result = interpolation({"x:dev": [1, 2, 1.0], "y:dev": [1, 1.2, 1.0], "z:dev": [3, 3, 3.0]})
    texts = legend_texts(figures.plot_interpolation(result, data="y:dev"))
    assert [t.strip() for t in texts[:3]] == ["x:dev", "y:dev", "z:dev"]
    assert texts[3].startswith("barrier on y:dev 0.2 ")
    with pytest.raises(ConfigError, match="did you mean 'x:dev'"):
        figures.plot_interpolation(result, data="x:test")
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        figures.plot_interpolation(result, metric="acuracy")
    close = interpolation({"x:dev": [1, 2, 1.0], "y:dev": [1, 1.6, 1.0]})
    assert len(figures.plot_interpolation(close, metric="loss").axes) == 1


def test_a_flat_ridge_is_not_hidden_by_another_data_set(interpolation):
    """On one scale a ridge of 0.03 beside losses from 0.6 to 1 is a straight line."""
    result = interpolation({"x:dev": [0.04, 0.07, 0.05], "y:dev": [0.6, 1.0, 0.9]})
    figure = figures.plot_interpolation(result, metric="loss")
    assert len(figure.axes) == 2
    for axes, losses, marks in zip(
        figure.axes, ([0.04, 0.07, 0.05], [0.6, 1, 0.9]), (1, 0), strict=True
    ):
        low, high = axes.get_ylim()
        assert high - low < 4 * (max(losses) - min(losses))
        assert list(axes.lines[0].get_ydata()) == pytest.approx(losses)
        assert len(lines(axes, "_barrier")) == marks  # where the first data set is
    many = interpolation({f"{n}:dev": [n, n + 0.1, n + 0.2] for n in range(5)})
    assert len(figures.plot_interpolation(many, metric="loss").axes) == 1


# --- one checkpoint ---------------------------------------------------------------------------


def test_reliability_bars_are_the_accuracies(evaluation):
    result = evaluation()
    upper, lower = figures.plot_reliability(result).axes
    full = result.reliability[result.reliability["count"] > 0]
    assert [bar.get_height() for bar in upper.patches] == pytest.approx(list(full["accuracy"]))
    assert [bar.get_x() for bar in upper.patches] == pytest.approx(list(full["lower"]))
    assert [bar.get_height() for bar in lower.patches] == list(full["count"])
    assert "0.080, n = 400" in upper.get_title(loc="left")


def test_reliability_needs_classes(evaluation):
    result = evaluation(classes=False)
    with pytest.raises(ConfigError, match="no reliability diagram"):
        figures.plot_reliability(result)
    assert isinstance(figures.draw(result), Figure)


def test_metrics_and_subsets_with_their_intervals(evaluation):
    result = evaluation()
    loss, metrics, subsets = figures.plot_metrics(result).axes
    assert loss.lines[0].get_xdata() == pytest.approx([result.metrics["loss"]])
    names = [n for n in result.metrics if n != "loss"]
    np.testing.assert_allclose(metrics.lines[0].get_xdata(), [result.metrics[n] for n in names])
    spans = [tuple(s[:, 0]) for s in metrics.collections[0].get_segments()]
    assert spans == [result.intervals[n] for n in names]
    accuracy = result.subsets[result.subsets["metric"] == "accuracy"]
    np.testing.assert_allclose(subsets.lines[0].get_xdata(), accuracy["value"])


# --- many checkpoints -------------------------------------------------------------------------


def cell_texts(axes):
    return {
        t.get_position(): t.get_text() for t in axes.texts if re.fullmatch(r"[\d.]+", t.get_text())
    }


@pytest.mark.parametrize("quantity", list(figures.QUANTITIES))
def test_heat_map_cells_equal_the_matrix(connection, quantity):
    study = connection()
    axes = figures.plot_heatmap(study, quantity, order="seed").axes[0]
    expected = study.matrix(quantity).to_numpy()
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(shown[off], expected[off])
    assert np.isnan(shown[~off]).all()
    texts = cell_texts(axes)
    assert len(texts) == 56
    for (j, i), text in texts.items():
        places = len(text.partition(".")[2])
        assert float(text) == pytest.approx(expected[i, j], abs=0.51 * 10**-places)


def test_heat_map_orders_by_basin_by_name_and_by_metric(connection):
    study = connection()
    by_basin = ["seed0", "seed1", "seed2", "seed4", "seed6", "seed7", "seed3", "seed5"]
    axes = figures.plot_heatmap(study).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == by_basin
    shown = np.ma.filled(axes.images[0].get_array(), 0.0)
    np.testing.assert_allclose(shown, study.gaps.loc[by_basin, by_basin])
    assert [t.get_text() for t in axes.texts if "basin" in t.get_text()] == [
        "basin 0 (n = 6)",
        "basin 1 (n = 2)",
    ]
    column = "hans:validation/accuracy"
    axes = figures.plot_heatmap(study, order=column).axes[0]
    values = sorted(study.endpoints[column], reverse=True)
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{v:.3f}" for v in values]


@pytest.mark.parametrize("basins", [(0, 1, 2, 3), (0, 0, 0, 0, 0, 0, 1, 1), (0, 1, 2, 3, 4, 5)])
def test_names_of_basins_do_not_run_into_one_another(connection, basins):
    """Four basins of one checkpoint each had their names written over one another."""
    figure = figures.plot_heatmap(connection(basins))
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if "basin" in t.get_text()]
    assert all(first.x1 < second.x0 for first, second in pairwise(boxes))
    named = len(boxes) == len(set(basins)) or len(legend_texts(figure)) >= 1
    assert named, "every basin has its name above the matrix, or in the legend"


def test_both_ends_of_a_long_path_are_legible(interpolation):
    """`0 = .../runs/seed0, 1 = .../runs/seed4` ran out of the figure."""
    long = dataclasses.replace(
        interpolation(), a="landform-demo/runs/with/a/long/way/seed0",
        b="landform-demo/runs/with/a/long/way/seed4",
    )  # fmt: skip
    label = figures.plot_interpolation(long).axes[-1].get_xlabel()
    assert "0 = seed0" in label and "1 = seed4" in label
    from landform.report.style import end_names

    assert end_names("runs/mnli/seed0", "runs/sst2/seed0") == ("mnli/seed0", "sst2/seed0")
    assert end_names("runs/seed0", "runs/seed0") == ("runs/seed0", "runs/seed0")
    assert end_names("a", "a/b") == ("a", "a/b")


def test_labels_of_the_rows_of_ridges_keep_apart(connection):
    figure = figures.plot_ridges(connection())
    figure.canvas.draw()
    rows = [axes.yaxis.label for axes in figure.axes if axes.get_ylabel()]
    boxes = [label.get_window_extent() for label in rows]
    assert len(boxes) == 2 and boxes[0].y0 > boxes[1].y1
    assert figure._supylabel.get_text() == "cross-entropy (nats)"


def test_numbers_in_names_count_as_numbers(connection):
    study = connection((0,) * 12)
    assert figures.checkpoint_order(study, "seed") == [f"seed{i}" for i in range(12)]


def test_heat_map_errors_name_what_there_is(connection):
    study = connection()
    with pytest.raises(ConfigError, match="did you mean 'hans:validation/accuracy'"):
        figures.plot_heatmap(study, order="hans:validation/acuracy")
    with pytest.raises(ConfigError, match="convexity_gap"):
        figures.plot_heatmap(study, "gap")
    with pytest.raises(ConfigError, match="nli:validation"):
        figures.plot_heatmap(study, data="nli:test")
    with pytest.raises(ConfigError, match="ticks"):
        figures.plot_heatmap(study, ticks="values")


def test_pairs_that_were_not_walked_are_hatched(connection):
    study = connection(pairs=9, known_basins=False)
    axes = figures.plot_heatmap(study).axes[0]
    hatched = [p for p in axes.patches if p.get_hatch()]
    assert len(hatched) == 8 * 7 - 2 * 9
    assert len(cell_texts(axes)) == 18


def test_curves_are_grouped_within_and_between(connection):
    study = connection()
    figure = figures.plot_curves(study, "nli:validation")
    assert legend_texts(figure) == ["within a basin (16 pairs)", "between basins (12 pairs)"]
    table = study.curves[study.curves["data"] == "nli:validation"]
    same = table["a"].map(study.basins).eq(table["b"].map(study.basins))
    for label, part in (
        ("within a basin (16 pairs)", table[same]),
        ("between basins (12 pairs)", table[~same]),
    ):
        (mean,) = lines(figure.axes[0], label)
        grouped = part.groupby("t")["loss"]
        np.testing.assert_allclose(mean.get_ydata(), grouped.mean())
        band = [c for c in figure.axes[0].collections if c.get_label().startswith("_child")]
        tops = [c.get_paths()[0].vertices[:, 1].max() for c in band]
        assert any(top == pytest.approx(grouped.quantile(0.9).max()) for top in tops)


def test_one_basin_has_no_curves_between_and_lone_ones_none_within(connection):
    assert legend_texts(figures.plot_curves(connection((0,) * 4))) == ["within a basin (6 pairs)"]
    assert legend_texts(figures.plot_curves(connection(range(4)))) == ["between basins (6 pairs)"]
    partial = connection(pairs=5, known_basins=False)
    assert legend_texts(figures.plot_curves(partial)) == ["all pairs (5 pairs)"]


def test_histogram_counts_every_checkpoint_once(connection):
    study = connection()
    figure = figures.plot_basin_histogram(study, "hans:validation/accuracy")
    axes = figure.axes[0]
    by_colour: dict[object, float] = {}
    for bar in axes.patches:
        by_colour[bar.get_facecolor()] = by_colour.get(bar.get_facecolor(), 0) + bar.get_height()
    assert sorted(by_colour.values()) == [2, 6]
    row = study.statistics.set_index("metric").loc["hans:validation/accuracy"]
    assert f"{row.auc:.2f} [{row.auc_low:.2f}, {row.auc_high:.2f}]" in axes.get_title(loc="left")
    # The in-domain confound stands beside it.
    assert "in domain (accuracy on nli:validation)" in axes.get_title(loc="left")


def test_scatter_draws_the_least_squares_line_and_says_r(connection):
    study = connection()
    axes = figures.plot_centroid_scatter(study, "hans:validation/accuracy").axes[0]
    x = study.clustering.centroid_difference.to_numpy()
    y = study.endpoints["hans:validation/accuracy"].to_numpy()
    slope, intercept = np.polyfit(x, y, 1)
    (fit,) = lines(axes, "_fit")
    np.testing.assert_allclose(fit.get_ydata(), intercept + slope * np.asarray(fit.get_xdata()))
    r = np.corrcoef(x, y)[0, 1]
    assert axes.get_title(loc="left") == f"r = {r:.2f}, p = 0.012 (permutation), n = 8"
    bare = dataclasses.replace(study, statistics=None)
    title = (
        figures.plot_centroid_scatter(bare, "hans:validation/accuracy")
        .axes[0]
        .get_title(loc="left")
    )
    assert title == f"r = {r:.2f}, p < 0.001, n = 8"
    points = {tuple(p) for line in axes.lines if line is not fit for p in line.get_xydata()}
    assert points == set(zip(x, y, strict=True))


def test_scatter_needs_two_basins(connection):
    with pytest.raises(ConfigError, match="has one"):
        figures.plot_centroid_scatter(connection((0,) * 5))
    with pytest.raises(ConfigError, match="has none"):
        figures.plot_centroid_scatter(connection(pairs=3, known_basins=False))


def test_two_points_have_no_correlation(connection):
    axes = figures.plot_centroid_scatter(connection((0, 1)), "hans:validation/accuracy").axes[0]
    assert "undefined" in axes.get_title(loc="left")


def test_endpoints_are_one_strip_per_column(connection):
    study = connection()
    axes = figures.plot_endpoints(study).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    columns = [c for c in study.endpoints if c.endswith("/accuracy")]
    assert labels == [c.rpartition("/")[0] for c in columns]
    dots = np.concatenate(
        [line.get_xdata() for line in axes.lines if line.get_linestyle() == "None"]
    )
    np.testing.assert_allclose(np.sort(dots), np.sort(study.endpoints[columns].to_numpy().ravel()))
    with pytest.raises(ConfigError, match="there are: loss, accuracy"):
        figures.plot_endpoints(study, "kappa")


def test_of_many_strips_those_that_differ_are_drawn(connection):
    study = connection()
    random = np.random.default_rng(0)
    more = {f"hans:validation/s{i}/accuracy": 0.5 + i * random.random(8) for i in range(40)}
    wide = dataclasses.replace(study, endpoints=study.endpoints.assign(**more))
    axes = figures.plot_endpoints(wide).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    count = sum(c.endswith("/accuracy") for c in wide.endpoints)
    assert len(labels) == 30 and labels[0] == "nli:validation"
    assert axes.get_title(loc="left").startswith(f"the 30 of {count}")
    assert "hans:validation/s39" in labels and "hans:validation/s0" not in labels
    assert len(figures.plot_endpoints(wide, columns=list(more)).axes[0].get_yticklabels()) == 40


def test_eigenvalues_mark_the_chosen_gap(connection):
    study = connection()
    axes = figures.plot_eigenvalues(study).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), study.clustering.eigenvalues)
    assert axes.get_title(loc="left").startswith("2 basins")
    with pytest.raises(ConfigError, match="not all pairs"):
        figures.plot_eigenvalues(connection(pairs=3, known_basins=False))


def test_training_draws_a_line_per_run(training):
    result = training()
    axes = figures.draw(result).axes[0]
    assert len(axes.lines) == 3
    np.testing.assert_allclose(
        axes.lines[1].get_ydata(), result.history.loss[result.history.run == "seed1"]
    )
    with pytest.raises(ConfigError, match="did you mean 'loss'"):
        figures.plot_training(result, column="los")


@pytest.mark.parametrize("labels", [(0, 1), (0,) * 5, tuple(range(6)), (0,) * 20 + (1,) * 9 + (2,)])
@pytest.mark.filterwarnings("error")
def test_every_number_of_checkpoints_and_basins_lays_out_without_a_warning(connection, labels):
    study = connection(labels, points=4)
    for which in figures.FIGURES["Connection"]:
        if which == "scatter" and len(set(labels)) == 1:
            continue
        if which == "transitivity" and len(labels) == 2:
            continue
        figures.draw(study, which).draw_without_rendering()


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_save_writes_whole_files_and_nothing_else(interpolation, tmp_path, suffix, start):
    figure = figures.draw(interpolation())
    path = figures.save(figure, tmp_path / "new" / f"line{suffix}")
    assert path.read_bytes().startswith(start)
    assert [p.name for p in path.parent.iterdir()] == [f"line{suffix}"]
    first = path.read_bytes()
    assert figures.save(figures.draw(interpolation()), path).read_bytes() == first


def test_save_refuses_other_formats_and_places(interpolation, tmp_path):
    figure = figures.draw(interpolation())
    with pytest.raises(ConfigError, match=r"\.bmp[\s\S]*\.png"):
        figures.save(figure, tmp_path / "line.bmp")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="write the figure"):
        figures.save(figure, tmp_path / "file" / "line.png")


def test_save_all_leaves_out_what_does_not_exist(connection, interpolation, tmp_path):
    written = figures.save_all(
        {"connect": connection((0,) * 3), "line": interpolation()}, tmp_path, suffix=".svg"
    )
    names = {path.name for path in written}
    assert names == {p.name for p in tmp_path.iterdir()}
    assert "line-interpolation.svg" in names and "connect-heatmap.svg" in names
    assert "connect-scatter.svg" not in names


def test_a_notebook_gets_a_picture(interpolation):
    assert figures.draw(interpolation())._repr_png_().startswith(b"\x89PNG")


def test_basins_beyond_the_palette_share_one_grey():
    from landform.report.style import basin_styles, ordered_basins

    few = basin_styles(pd.Series([0, 0, 0, 1, 1, 2]))
    assert len({style.colour for style in few.values()}) == 3
    labels = [b for b in range(10) for _ in range(2)] + list(range(10, 30))
    many = basin_styles(pd.Series(labels))
    assert len(many) == 30
    assert len(ordered_basins(many)) == 8
    lone = basin_styles(pd.Series([0, 0, *range(1, 9)]))
    assert [s.label for s in ordered_basins(lone)] == [
        "basin 0 (n = 2)",
        "alone in a basin (n = 8)",
    ]


def test_short_labels_stay_distinct():
    from landform.report.style import short_labels

    names = [f"runs/an-experiment-with-a-long-name/seed-{i}/final/checkpoint" for i in range(12)]
    labels = short_labels(names, 16)
    assert len(set(labels)) == 12
    assert max(map(len, labels)) <= 18
    assert short_labels(["a", "b"], 16) == ["a", "b"]
    assert short_labels(["same" * 9], 16)[0].startswith("same")
