"""Lines of other programs as a connection: the same numbers as `connect` has, or an error."""

from __future__ import annotations

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import landform as lf
from known_lines import made_lines
from landform.errors import ConfigError, DataError
from landform.exchange.connections import ImportConfig, connection_of
from landform.exchange.lines import lines_of, merge_lines, natural_order
from landform.geometry.basins import cluster
from landform.results import from_parts, to_parts


def brute_gap(losses):
    best = 0.0
    for i in range(len(losses)):
        for j in range(i + 2, len(losses)):
            for k in range(i + 1, j):
                chord = ((j - k) * losses[i] + (k - i) * losses[j]) / (j - i)
                best = max(best, losses[k] - chord)
    return best


def test_gaps_are_those_of_the_curves(lines, connection):
    for line in lines:
        gap = connection.gaps.loc[line.a, line.b]
        assert gap == pytest.approx(brute_gap(line.values[:, 0]), abs=1e-12)
        assert connection.distances.loc[line.b, line.a] == line.distance


def test_basins_are_those_of_the_gaps(connection):
    expected = cluster(connection.gaps, noise_floor=0.01)
    assert connection.clustering is not None
    pd.testing.assert_series_equal(connection.basins, expected.basins)
    assert connection.basins["10"] != connection.basins["0"]
    assert connection.names == ("0", "1", "2", "10"), "numbers in numerical order"


def test_what_is_unknown_is_nan(connection):
    unknown = ["barrier_low", "barrier_high", "gap_low", "gap_high", "gap_p_value"]
    assert connection.pairs[unknown].isna().all(axis=None)
    assert connection.curves[["loss_low", "loss_high"]].isna().all(axis=None)
    assert (connection.pairs.noise_floor == 0.01).all()
    assert "assumed" in connection.provenance["noise_floor"]


def test_direction_and_order_of_the_files_do_not_matter(lines, connection):
    turned = [line.reversed() if k % 2 else line for k, line in enumerate(reversed(lines))]
    other = connection_of(turned, config=ImportConfig(replicates=20))
    pd.testing.assert_frame_equal(other.gaps, connection.gaps, atol=1e-12)
    pd.testing.assert_series_equal(other.basins, connection.basins)
    pd.testing.assert_frame_equal(other.endpoints, connection.endpoints)


def test_mirrored_and_repeated_pairs_count_once(lines):
    merged = merge_lines([*lines, lines[0].reversed(), lines[1]], 1e-6)
    assert len(merged) == len(lines)
    diagonal = dataclasses.replace(lines[0], b=lines[0].a)
    assert len(merge_lines([*lines, diagonal], 1e-6)) == len(lines)


def test_endpoints_and_statistics(lines):
    further = [dataclasses.replace(line, data="hans") for line in made_lines(seed=3)]
    found = connection_of([*lines, *further], config=ImportConfig(replicates=20))
    assert found.data == ("mnli", "hans")
    assert list(found.endpoints) == ["mnli/loss", "mnli/accuracy", "hans/loss", "hans/accuracy"]
    assert found.endpoints.loc["0", "mnli/loss"] == lines[0].values[0, 0]
    assert found.statistics is not None and found.basin_metrics is not None
    assert list(found.statistics.metric) == ["hans/accuracy", "mnli/accuracy"]
    assert list(found.statistics.role) == ["ood", "in-domain"]
    assert found.evaluations == 4 + 6 * 8


def test_per_sample_metrics_join_by_name(lines):
    extra = pd.DataFrame(
        {"hans:validation/accuracy": [0.1, 0.2, 0.3, 0.9], "mnli/accuracy": 0.5},
        index=["10", "0", "1", "2"],
    )
    found = connection_of(lines, endpoints=extra, config=ImportConfig(replicates=20))
    assert found.endpoints["hans:validation/accuracy"].to_dict() == {
        "0": 0.2, "1": 0.3, "2": 0.9, "10": 0.1,
    }  # fmt: skip
    assert (found.endpoints["mnli/accuracy"] == 0.5).all(), "the files of all examples win"
    with pytest.raises(DataError, match="no per-sample file for model '2'"):
        connection_of(lines, endpoints=extra.drop(index="2"))


def test_some_pairs_make_no_basins(lines):
    found = connection_of(lines[:3])
    assert found.clustering is None and found.statistics is None
    assert found.gaps.isna().to_numpy().any()
    assert "3 lines" in found.reading


def test_it_is_kept_shown_and_drawn(connection, tmp_path):
    tables, record = to_parts(connection)
    again = from_parts(tables, json.loads(json.dumps(record)))
    pd.testing.assert_frame_equal(again.pairs, connection.pairs)
    assert again.reading == connection.reading
    assert "basins" in connection.reading
    connection.plot()
    plt.close("all")
    from landform.store.study import load_results, open_store, publish

    store = open_store(tmp_path / "study")
    publish(store, "connect", connection)
    page = tmp_path / "atlas.html"
    lf.write_atlas(page, load_results(store))
    assert "convexity" in page.read_text().lower()


def test_every_figure_of_a_connection_can_be_drawn(lines):
    from landform.report.figures import draw, figures_of

    further = [dataclasses.replace(line, data="hans") for line in made_lines(seed=3)]
    found = connection_of([*lines, *further], config=ImportConfig(replicates=20))
    names = list(figures_of(found))
    assert len(names) > 4
    for name in names:
        draw(found, name)
        plt.close("all")


def test_lines_of_a_connection_are_the_lines_it_was_made_of(lines, connection):
    for line, again in zip(lines, lines_of(connection, "mnli"), strict=True):
        assert (again.a, again.b, again.metrics) == (line.a, line.b, line.metrics)
        np.testing.assert_array_equal(again.values, line.values)


def test_options(lines):
    found = connection_of(lines, config=ImportConfig(compat="connectivity", replicates=20))
    assert found.clustering is not None and found.clustering.method == "compat"
    found = connection_of(lines, config=ImportConfig(basins=4, replicates=20))
    assert found.clustering is not None and found.clustering.n_basins == 4
    with pytest.raises(ConfigError, match="no endpoint metric 'mnli/acuracy'"):
        connection_of(lines, config=ImportConfig(ood=("mnli/acuracy",)))


# --- bad input -----------------------------------------------------------------------------------


def test_two_files_that_disagree_are_both_named(lines):
    values = lines[1].values.copy()
    values[0, 0] += 3e-4
    bad = dataclasses.replace(lines[1], values=values, origin="other.out:7")
    with pytest.raises(DataError, match="model 0 on mnli") as caught:
        merge_lines([lines[0], bad, *lines[2:]], 1.5e-4)
    assert "made:0-1" in str(caught.value) and "other.out:7" in str(caught.value)
    merge_lines([lines[0], bad, *lines[2:]], 1e-3)


def test_a_pair_told_in_two_ways(lines):
    values = lines[0].values.copy()
    values[4] += 0.01
    bad = dataclasses.replace(lines[0], values=values, origin="other.out:7").reversed()
    with pytest.raises(DataError, match=r"other\.out:7 both hold the line") as caught:
        merge_lines([*lines, bad], 1.5e-4)
    assert "made:0-1" in str(caught.value)
    far = dataclasses.replace(lines[0], distance=99.0)
    with pytest.raises(DataError, match="distances"):
        merge_lines([*lines, far], 1.5e-4)


def test_lines_walked_in_other_ways(lines):
    with pytest.raises(DataError, match="has 9 points"):
        merge_lines([*lines, *made_lines(("5", "6"), points=9)], 1e-4)
    with pytest.raises(DataError, match="has the metrics"):
        merge_lines([*lines, *made_lines(("5", "6"), metrics=("f1",))], 1e-4)
    cut = dataclasses.replace(lines[0], t=lines[0].t[:-1], values=lines[0].values[:-1])
    with pytest.raises(DataError, match="do not go from one model to the other"):
        merge_lines([cut], 1e-4)
    with pytest.raises(DataError, match="no lines"):
        merge_lines([], 1e-4)


def test_names_in_natural_order():
    """A superscript counts as a digit to Python, and is none that int() reads."""
    assert natural_order(["m10", "m2", "m²", "m"]) == ["m", "m2", "m10", "m²"]
