"""Basin statistics against published numbers, scipy and plain loops."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import landform as lf
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.geometry.statistics import (
    basin_statistics,
    basin_summary,
    basin_table,
    centroid_predictor,
    partial_correlation,
)

LEXICAL, CONSTITUENT, MNLI = "Lexical (nonent)", "Constituent (nonent)", "MNLI dev acc."


def loop_auc(first, second):
    wins = [1.0 if x > y else 0.5 if x == y else 0.0 for x in first for y in second]
    return sum(wins) / len(wins)


def test_published_numbers(hans, small_basin):
    """HANS accuracies of 100 MNLI fine-tunes and their two published basins."""
    found = lf.basin_statistics(hans[LEXICAL], small_basin)
    assert found.auc == pytest.approx(0.97633, abs=5e-6)
    assert found.rank_biserial == pytest.approx(0.95265, abs=5e-6)
    assert found.means == pytest.approx((0.09637, 0.30114), abs=6e-6)
    assert found.deviations == pytest.approx((0.03456, 0.11025), abs=5e-6)
    assert found.sizes == (12, 88)
    assert (found.auc_low, found.auc_high) == pytest.approx((0.943, 1.0), abs=0.006)
    assert found.p_value == pytest.approx(1e-4) and not found.exact  # the least 9,999 can give

    constituent = basin_statistics(hans[CONSTITUENT], small_basin)
    assert constituent.auc == pytest.approx(0.17045, abs=5e-6)
    assert constituent.rank_biserial == pytest.approx(-0.65909, abs=5e-6)
    assert constituent.p_value < 1e-3
    assert (constituent.auc_low, constituent.auc_high) == pytest.approx((0.080, 0.279), abs=0.02)
    assert basin_statistics(hans[MNLI], small_basin).auc == pytest.approx(0.96212, abs=5e-6)


def test_the_complement_is_the_same_division(hans, small_basin):
    one = basin_statistics(hans[LEXICAL], small_basin)
    other = basin_statistics(hans[LEXICAL], ~small_basin)
    assert (one.auc, one.auc_low, one.auc_high, one.p_value) == (
        other.auc,
        other.auc_low,
        other.auc_high,
        other.p_value,
    )
    assert one.means == other.means[::-1] and one.sizes == other.sizes[::-1]


def test_equal_sizes_take_the_basin_first():
    assert basin_statistics([3, 4, 1, 2], [True, True, False, False]).auc == 1.0
    assert basin_statistics([3, 4, 1, 2], [False, False, True, True]).auc == 0.0


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=9).filter(
        lambda rows: len({inside for _, inside in rows}) == 2
    )
)
def test_auc_and_exact_p_equal_loops(rows):
    values = np.array([value for value, _ in rows], dtype=float)
    inside = np.array([flag for _, flag in rows])
    found = basin_statistics(values, inside, replicates=10)
    first = inside if 2 * inside.sum() >= len(inside) else ~inside
    assert found.auc == pytest.approx(loop_auc(values[first], values[~first]))
    extreme = total = 0
    for chosen in combinations(range(len(values)), int(first.sum())):
        mask = np.isin(np.arange(len(values)), chosen)
        auc = loop_auc(values[mask], values[~mask])
        extreme += abs(auc - 0.5) >= abs(found.auc - 0.5) - 1e-12
        total += 1
    assert found.exact
    assert found.p_value == pytest.approx(extreme / total)


def test_p_agrees_with_mann_whitney():
    random = np.random.default_rng(0)
    values, inside = random.normal(size=11), np.arange(11) < 4
    values[inside] += 1.0
    exact = stats.mannwhitneyu(values[inside], values[~inside], method="exact").pvalue
    assert basin_statistics(values, inside).p_value == pytest.approx(exact)
    values, inside = random.normal(size=60), np.arange(60) < 20
    values[inside] += 0.5
    found = basin_statistics(values, inside)
    near = stats.mannwhitneyu(values[inside], values[~inside], method="asymptotic").pvalue
    assert not found.exact and found.p_value == pytest.approx(near, abs=0.01)
    assert found == basin_statistics(values, inside)  # seeded


def test_interval_of_the_auc_covers():
    random = np.random.default_rng(2)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    inside = np.arange(40) < 15
    hits = 0
    for _ in range(150):
        values = random.normal(size=40) + ~inside
        found = basin_statistics(values, inside, replicates=300, permutations=1)
        hits += found.auc_low <= truth <= found.auc_high
    assert 0.87 <= hits / 150 <= 1.0


def test_groups_of_one():
    found = basin_statistics([0.1, 0.5, 0.6], [True, False, False])
    assert found.auc == 1.0 and found.p_value == pytest.approx(2 / 3)
    assert np.isnan(found.deviations.in_basin)
    assert found.deviations.rest == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert json.loads(json.dumps(found.to_json()))["deviations"]["in_basin"] is None
    assert "AUC 1.000" in found.reading


def test_series_are_aligned_by_name():
    values = pd.Series([1.0, 2.0, 3.0], index=["a", "b", "c"])
    basin = pd.Series([True, False, False], index=["c", "b", "a"])
    assert basin_statistics(values, basin).means.in_basin == 3.0
    with pytest.raises(DataError, match="'d'"):
        basin_statistics(values, pd.Series([True, False, False, True], index=[*"abcd"]))


def test_bad_input():
    inside = [True, False, False]
    with pytest.raises(NonFiniteError, match="checkpoint s1 has nan"):
        basin_statistics(pd.Series([1.0, np.nan, 2.0], index=["s0", "s1", "s2"]), inside)
    with pytest.raises(NonFiniteError, match="checkpoint 2 has inf"):
        basin_statistics([1.0, 2.0, np.inf], inside)
    with pytest.raises(DataError, match="rest is empty"):
        basin_statistics([1.0, 2.0, 3.0], [True] * 3)
    with pytest.raises(DataError, match="basin is empty"):
        basin_statistics([1.0, 2.0, 3.0], [0, 0, 0])
    with pytest.raises(DataError, match=r"shape \(2,\), expected \(3,\)"):
        basin_statistics([1.0, 2.0, 3.0], [True, False])
    with pytest.raises(DataError, match="True or False"):
        basin_statistics([1.0, 2.0, 3.0], [0, 1, 2])
    with pytest.raises(DataError, match="not numbers"):
        basin_statistics(["a", "b", "c"], inside)
    with pytest.raises(DataError, match="shape"):
        basin_statistics([[1.0, 2.0]], inside)
    with pytest.raises(ConfigError, match="permutations"):
        basin_statistics([1.0, 2.0, 3.0], inside, permutations=0)


# --- correlations --------------------------------------------------------------------------------


def test_published_partial_correlation(hans, small_basin):
    large = ~small_basin
    assert np.corrcoef(large, hans[LEXICAL])[0, 1] == pytest.approx(0.541, abs=5e-4)
    assert partial_correlation(large, hans[LEXICAL], hans[MNLI]) == pytest.approx(0.345, abs=5e-4)


def test_partial_correlation_is_that_of_residuals():
    random = np.random.default_rng(0)
    c = random.normal(size=50)
    x, y = c + random.normal(size=50), 2 * c + random.normal(size=50)
    rxy, rxc, ryc = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, c), (y, c)))
    expected = (rxy - rxc * ryc) / np.sqrt((1 - rxc**2) * (1 - ryc**2))
    assert partial_correlation(x, y, c) == pytest.approx(expected)
    assert partial_correlation(x, y, 3 - 7 * c) == pytest.approx(expected)
    assert partial_correlation(x, y, np.ones(50)) == pytest.approx(rxy)
    assert np.isnan(partial_correlation(2 * c + 1, y, c))
    assert np.isnan(partial_correlation(np.full(50, 0.1), y, c))
    with pytest.raises(DataError, match="lengths 50, 50, 3"):
        partial_correlation(x, y, [1.0, 2.0, 3.0])
    with pytest.raises(NonFiniteError, match="control"):
        partial_correlation(x, y, np.where(c > 1, np.nan, c))


def test_predictor_against_scipy():
    random = np.random.default_rng(1)
    x = np.round(random.normal(size=30), 1)
    y = x + random.normal(size=30)
    found = centroid_predictor(x, y)
    assert found.pearson_r == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.spearman_rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.n == 30
    weak = random.normal(size=30)
    near = stats.pearsonr(x, weak).pvalue
    assert centroid_predictor(x, weak).p_value == pytest.approx(near, abs=0.02)
    assert centroid_predictor(x, -y).pearson_r == pytest.approx(-found.pearson_r)
    still = centroid_predictor(x, np.full(30, 0.3))
    assert np.isnan(still.pearson_r) and still.p_value == 1.0
    with pytest.raises(DataError, match="30 differences and 2 values"):
        centroid_predictor(x, [1.0, 2.0])


# --- tables --------------------------------------------------------------------------------------


def test_table_of_the_published_basins(hans, small_basin):
    names = [f"run{i}" for i in hans.index]
    basins = pd.Series(small_basin.astype(int).to_numpy(), index=names)
    endpoints = hans.set_axis(names)
    difference = pd.Series(np.where(basins == 0, 1.0, -1.0), index=names)
    table = basin_table(
        basins[::-1], endpoints, ood=[LEXICAL, CONSTITUENT], in_domain=MNLI,
        centroid_difference=difference[::-1],
    ).set_index("metric")  # fmt: skip
    assert table["role"].tolist() == ["ood", "ood", "in-domain"]
    row = table.loc[LEXICAL]
    assert (row.n_basin, row.n_rest) == (88, 12)
    assert (row.mean_basin, row.mean_rest) == pytest.approx((0.30114, 0.09637), abs=6e-6)
    assert (row.sd_basin, row.sd_rest) == pytest.approx((0.11025, 0.03456), abs=5e-6)
    assert row.auc == pytest.approx(0.97633, abs=5e-6)
    assert row.partial_r == pytest.approx(0.345, abs=5e-4)
    assert row.pearson_r == pytest.approx(0.541, abs=5e-4)
    assert row.predictor_p == pytest.approx(1e-4)
    assert table.loc[CONSTITUENT].auc == pytest.approx(0.17045, abs=5e-6)
    assert table.loc[CONSTITUENT].pearson_r < 0
    assert table.loc[MNLI].auc == pytest.approx(0.96212, abs=5e-6)
    assert np.isnan(table.loc[MNLI].partial_r)


def test_table_orientation_is_that_of_basin_0_even_when_it_is_small():
    basins = pd.Series([0, 0, 1, 2, 3], index=list("abcde"))
    endpoints = pd.DataFrame({"m": [5.0, 6.0, 1.0, 2.0, 3.0]}, index=list("abcde"))
    row = basin_table(basins, endpoints, ood=["m"]).iloc[0]
    assert row.auc == 1.0 and row.rank_biserial == 1.0
    assert (row.n_basin, row.n_rest) == (2, 3)
    assert row.p_value == pytest.approx(0.2)  # of ten divisions, this one and its mirror image


def test_table_without_a_comparison():
    endpoints = pd.DataFrame({"m": [1.0, 2.0, 3.0], "gone": [1.0, np.nan, 2.0]}, index=list("abc"))
    one = basin_table(pd.Series(0, index=list("abc")), endpoints, ood=["m"]).iloc[0]
    assert one.mean_basin == 2.0 and one.n_rest == 0
    assert np.isnan(one.auc) and np.isnan(one.mean_rest)
    two = basin_table(pd.Series([0, 0, 1], index=list("abc")), endpoints, ["m", "gone"], "gone")
    assert two["auc"].notna().tolist() == [True, False, False]
    assert two["partial_r"].isna().all()


def test_summary_is_long():
    basins = pd.Series([0, 1, 0], index=["a", "b", "c"])
    endpoints = pd.DataFrame({"m": [3.0, 4.0, 1.0], "k": [0.0, 1.0, 2.0]}, index=["c", "b", "a"])
    table = basin_summary(basins, endpoints)
    assert table.columns.tolist() == ["basin", "metric", "n", "mean", "sd", "min", "max"]
    first = table[(table.basin == 0) & (table.metric == "m")].iloc[0]
    assert (first.n, first["mean"], first["min"], first["max"]) == (2, 2.0, 1.0, 3.0)
    assert first.sd == pytest.approx(np.sqrt(2))
    alone = table[(table.basin == 1) & (table.metric == "k")].iloc[0]
    assert alone["mean"] == 1.0 and np.isnan(alone.sd)
    assert len(table) == 4


def test_tables_refuse_what_does_not_match():
    basins = pd.Series([0, 1], index=["a", "b"])
    endpoints = pd.DataFrame({"accuracy": [1.0, 2.0]}, index=["a", "b"])
    with pytest.raises(ConfigError, match=r"'acuracy'.*\n.*'accuracy'"):
        basin_table(basins, endpoints, ood=["acuracy"])
    with pytest.raises(DataError, match="'c'"):
        basin_summary(basins, endpoints.reindex(["a", "b", "c"]))
    with pytest.raises(DataError, match="twice"):
        basin_summary(pd.Series([0, 1], index=["a", "a"]), endpoints)
    with pytest.raises(DataError, match="no checkpoints"):
        basin_summary(basins[:0], endpoints[:0])
    with pytest.raises(DataError, match="'b' has no basin"):
        basin_table(pd.Series([0, None], index=["a", "b"]), endpoints, ood=["accuracy"])
