"""Figures of attribution show the numbers of the results."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats

import attribution_results as results
from landform.errors import ConfigError
from landform.report import factor_figures, figures, method_figures
from landform.report import influence_figures as own
from landform.report.style import percent

MAKERS = {
    "Influence": results.make_influence,
    "SelfInfluence": results.make_self_influence,
    "FactorSummary": results.make_factors,
    "LinearDatamodelling": results.make_lds,
    "Counterfactual": results.make_counterfactual,
    "Mislabel": results.make_mislabel,
}


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def texts(axes):
    return [text.get_text() for text in axes.texts]


# --- dispatch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.filterwarnings("error")
def test_every_result_has_figures_that_lay_out(kind):
    result = MAKERS[kind]()
    assert set(MAKERS) <= set(figures.FIGURES)
    for which in figures.FIGURES[kind]:
        figure = figures.draw(result, which)
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()


def test_names_with_dollars_are_drawn_as_they_are():
    evil = "_a$b_{^"
    result = results.make_influence(3, 30, texts=([evil] * 3, [evil] * 30))
    result.queries["label"] = result.queries["prediction"] = evil
    for which in figures.FIGURES["Influence"]:
        figures.draw(result, which).draw_without_rendering()
    figures.plot_agreement(result, result, labels=(evil, evil)).draw_without_rendering()
    figures.plot_lds(results.make_lds([evil, "ekfac"])).draw_without_rendering()
    figures.plot_lds_queries(results.make_lds([evil, "ekfac"])).draw_without_rendering()
    figures.plot_counterfactual(results.make_counterfactual([evil])).draw_without_rendering()
    factors = results.make_factors(1)
    factors.spectra["module"] = [f"{evil}{name}" for name in factors.spectra["module"]]
    figures.plot_spectra(factors).draw_without_rendering()


# --- scores -----------------------------------------------------------------------------------


def test_every_score_is_in_one_bar_of_its_colour():
    result = results.make_influence()
    scores = result.values
    axes = figures.plot_scores(result).axes[0]
    counted: dict[str, float] = {}
    for bar in axes.patches:
        colour = to_hex(bar.get_facecolor()).upper()
        counted[colour] = counted.get(colour, 0) + bar.get_height()
        # No bar is half helpful: it lies on one side of 0.
        assert bar.get_x() * (bar.get_x() + bar.get_width()) >= -1e-9 or not bar.get_height()
    assert counted == {own.HELPFUL: (scores >= 0).sum(), own.HARMFUL: (scores < 0).sum()}
    widest = np.abs(scores / scores.std(axis=1, keepdims=True)).max()
    ends = [b.get_x() for b in axes.patches] + [b.get_x() + b.get_width() for b in axes.patches]
    assert max(map(abs, ends)) == pytest.approx(widest, rel=0.2)


def test_the_title_says_how_concentrated_the_scores_are():
    result = results.make_influence(4, 200)
    sizes = np.sort(np.abs(result.values.astype(float)), axis=1)[:, ::-1]
    share = np.median(sizes[:, :2].sum(axis=1) / sizes.sum(axis=1))
    title = figures.plot_scores(result).axes[0].get_title(loc="left")
    assert f"hold {percent(share)}\nof its sum" in title
    zero = dataclasses.replace(result, scores=result.scores * 0)
    assert "every score is 0" in figures.plot_scores(zero).axes[0].get_title(loc="left")


def test_large_scores_are_in_units_of_a_power_of_ten():
    result = results.make_influence(3, 40)
    large = dataclasses.replace(result, scores=result.scores * 1e6)
    axes = figures.plot_scores(large, standardised=False).axes[0]
    power = int(np.floor(np.log10(np.abs(large.values).max())))
    assert axes.get_xlabel() == rf"score ($\times 10^{{{power}}}$)"
    assert max(b.get_x() + b.get_width() for b in axes.patches) < 20


def test_what_was_streamed_is_said_to_be_the_top():
    result = results.make_influence(5, 60, streamed=True)
    title = figures.plot_scores(result).axes[0].get_title(loc="left")
    assert title == "only the top was kept: 80 of 300 scores"
    with pytest.raises(ConfigError, match="only the top rows"):
        figures.plot_query_scores(result)
    with pytest.raises(ConfigError, match="cannot be compared"):
        figures.plot_agreement(result, result)


def test_the_chosen_queries_go_from_the_highest_loss_to_the_lowest():
    result = results.make_influence(30)
    chosen = own.chosen_queries(result, 6)
    losses = result.queries["loss"].to_numpy()
    assert len(set(chosen)) == 6
    assert chosen[0] == losses.argmax() and chosen[-1] == losses.argmin()
    assert list(losses[chosen]) == sorted(losses[chosen], reverse=True)
    assert sorted(own.chosen_queries(results.make_influence(4), 6)) == [0, 1, 2, 3]


def test_the_marked_rows_of_a_query_are_its_top_rows():
    result = results.make_influence(12, 80)
    axes = figures.plot_query_scores(result, queries=[7, 2], k=3).axes[0]
    marked = [line for line in axes.lines if line.get_marker() in "^v"]
    for row, query in enumerate([7, 2]):
        spread = result.values[query].astype(float).std()
        for marker, harmful in (("v", True), ("^", False)):
            (line,) = [
                m for m in marked if m.get_marker() == marker and round(m.get_ydata()[0]) == row
            ]
            expected = result.top(query, 3, harmful)["score"].to_numpy(float) / spread
            np.testing.assert_allclose(line.get_xdata(), expected, rtol=1e-5)
    label = axes.get_yticklabels()[0].get_text()
    assert label.startswith("7: ") and f"loss {result.queries.loss[7]:.3g}" in label
    with pytest.raises(ConfigError, match="no query 12: there are 12"):
        figures.plot_query_scores(result, queries=[12])


def test_no_row_of_the_wrong_sign_is_marked():
    result = results.make_influence(2, 40)
    helpful = dataclasses.replace(result, scores=result.scores.abs())
    axes = figures.plot_query_scores(helpful).axes[0]
    assert all(len(line.get_xdata()) == 0 for line in axes.lines if line.get_marker() == "v")


def test_the_sum_of_queries_is_called_that():
    result = results.make_influence(5, 40)
    summed = dataclasses.replace(result, scores=result.scores[["0"]])
    axes = figures.plot_query_scores(summed).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["the sum of 5 queries"]


# --- two results ------------------------------------------------------------------------------


def test_agreement_is_that_of_scipy():
    a, b = results.make_influence(), results.make_influence(noise=0.3)
    numbers = own.agreement(a, b)
    x, y = a.values.astype(float), b.values.astype(float)
    ranks = [stats.spearmanr(p, q).statistic for p, q in zip(x, y, strict=True)]
    assert numbers["pearson"] == pytest.approx(stats.pearsonr(x.ravel(), y.ravel()).statistic)
    assert numbers["spearman"] == pytest.approx(np.mean(ranks))
    assert numbers["lowest_spearman"] == pytest.approx(min(ranks))
    shared = [len(set(a.top(q, 10)["row"]) & set(b.top(q, 10)["row"])) / 10 for q in range(len(x))]
    assert numbers["top"] == pytest.approx(np.mean(shared))
    title = figures.plot_agreement(a, b).axes[0].get_title(loc="left")
    shown = [float(v) for v in re.findall(r"(?:Pearson|query|lowest) ([\d.]+)", title)]
    expected = [numbers["pearson"], numbers["spearman"], numbers["lowest_spearman"]]
    np.testing.assert_allclose(shown, expected, atol=0.011)


def test_the_dots_of_an_agreement_are_the_scores():
    a, b = results.make_influence(4, 30), results.make_influence(4, 30, noise=0.1)
    upper, lower = figures.plot_agreement(a, b, labels=("full", "half")).axes
    assert (upper.get_ylabel(), "full" in lower.get_xlabel()) == ("score, half", True)
    spread = a.values.astype(float).std(axis=1, keepdims=True)
    x, y = ((r.values / spread).ravel() for r in (a, b))
    dots = upper.lines[-1]
    np.testing.assert_allclose(np.sort(dots.get_xdata()), np.sort(x), rtol=1e-5)
    np.testing.assert_allclose(np.sort(dots.get_ydata()), np.sort(y), rtol=1e-5)
    rest = next(line for line in lower.lines if line.get_marker() == "o").get_ydata()
    np.testing.assert_allclose(np.sort(rest), np.sort(y - x), atol=1e-4)


def test_of_many_dots_the_largest_are_drawn():
    a = results.make_influence(20, 120)
    dots = figures.plot_agreement(a, a, points=300).axes[0].lines[-1].get_xdata()
    x = (a.values / a.values.std(axis=1, keepdims=True)).ravel()
    assert len(dots) == 300
    largest = np.sort(np.abs(x))[-30:]
    np.testing.assert_allclose(np.sort(np.abs(dots))[-30:], largest, rtol=1e-4)


def test_other_units_are_each_drawn_in_their_own():
    a = results.make_influence()
    b = dataclasses.replace(a, strategy="identity", scores=a.scores * 1e-4)
    (axes,) = figures.plot_agreement(a, b).axes
    dots = axes.lines[-1]
    np.testing.assert_allclose(dots.get_xdata(), dots.get_ydata(), rtol=1e-4)
    assert axes.get_ylabel() == "score, identity"


@pytest.mark.parametrize(
    ("r", "text"), [(1.0, "1"), (0.99999361, "0.9999936"), (0.9961, "0.9961"), (0.5, "0.50")]
)
def test_a_correlation_is_never_rounded_up_to_one(r, text):
    assert own._near_one(r) == text


def test_other_rows_do_not_compare():
    a = results.make_influence()
    with pytest.raises(ConfigError, match=r"9 queries x 120 training rows and 8 x 120"):
        figures.plot_agreement(a, results.make_influence(8))
    for other in (
        dataclasses.replace(a, train=a.train.assign(row=a.train["row"] + 1)),
        # The same row numbers of another split.
        dataclasses.replace(a, queries=a.queries.assign(text="another text")),
    ):
        with pytest.raises(ConfigError, match="different rows"):
            figures.plot_agreement(a, other)


# --- factors ----------------------------------------------------------------------------------


def test_a_spectrum_is_drawn_per_module_and_factor():
    summary = results.make_factors(1)
    panels = figures.plot_spectra(summary).axes[:3]
    for axes, factor in zip(panels, ("activation", "gradient", "lambda"), strict=True):
        assert axes.get_yscale() == "log"
        for module in summary.spectra["module"].unique():
            mine = (summary.spectra["module"] == module) & (summary.spectra["factor"] == factor)
            part = summary.spectra[mine]
            (line,) = lines(axes, f"_{module}")
            np.testing.assert_allclose(line.get_ydata(), part["eigenvalue"])
            np.testing.assert_allclose(line.get_xdata(), part["quantile"])
    assert any(np.allclose(line.get_ydata(), 1e-8) for line in panels[2].lines)
    with pytest.raises(ConfigError, match=r"did you mean 'classifier'"):
        figures.plot_spectra(summary, modules=["clasifier"])


def test_the_share_above_the_damping_is_in_the_title():
    at = np.linspace(0, 1, 101)
    spectra = pd.DataFrame(
        {"module": "m", "factor": "lambda", "quantile": at, "eigenvalue": 10.0 ** (-10 * at)}
    )
    summary = dataclasses.replace(results.make_factors(1), spectra=spectra)
    row = factor_figures.effective_ranks(summary, damping=1e-4).iloc[0]
    assert row["above_damping"] == pytest.approx(0.4)
    axes = figures.plot_spectra(summary, damping=1e-4).axes[0]
    assert "40 % above 1e-04" in axes.get_title(loc="left")


@pytest.mark.parametrize("n", [2, 40, 150, 1000, 20_000])
@pytest.mark.parametrize("fall", ["power", "one", "flat"])
def test_effective_rank_of_a_spectrum_with_its_head_kept(n, fall):
    ranks = np.arange(1, n + 1)
    values = {"power": ranks**-1.3, "one": np.r_[5.0, np.full(n - 1, 1e-3)], "flat": ranks * 0 + 2}
    places = np.unique(
        np.r_[np.linspace(0, n - 1, min(n, 100)), np.geomspace(1, n, 100) - 1].round().astype(int)
    )
    full = values[fall].astype(float)
    expected = full.sum() ** 2 / (full**2).sum() / n
    assert factor_figures._effective_rank(places / (n - 1), full[places]) == pytest.approx(
        expected, rel=0.01
    )


def test_no_effective_rank_is_given_where_the_kept_points_leave_it_open():
    values = np.r_[5.0, np.full(9999, 1e-3)]
    places = np.linspace(0, 9999, 200).round().astype(int)
    assert np.isnan(factor_figures._effective_rank(places / 9999, values[places]))


def test_factors_without_eigenvalues_have_no_spectra():
    with pytest.raises(ConfigError, match="identity has no factors"):
        figures.plot_spectra(results.make_factors(1, strategy="identity"))


def test_the_bars_of_the_phases_are_their_seconds():
    result = results.make_influence()
    axes = figures.plot_timings(result).axes[0]
    phases = {k: v for k, v in result.timings.items() if k != "total"}
    assert [bar.get_width() for bar in axes.patches] == list(phases.values())
    assert [label.get_text() for label in axes.get_yticklabels()] == list(phases)
    assert axes.get_title(loc="left") == "34.4 s in all"
    assert "14.9 (43 %)" in texts(axes)


# --- methods ----------------------------------------------------------------------------------


def test_a_method_looks_the_same_in_every_figure():
    styles = method_figures.method_styles(["random", "ekfac", "ekfac, empirical", "kfac", "mine"])
    assert len(set(styles.values())) == 5
    alone = method_figures.method_styles(["kfac"])
    assert alone["kfac"] == styles["kfac"]
    assert len(method_figures.method_styles([f"method {k}" for k in range(20)])) == 20


def test_lds_is_drawn_with_its_interval():
    result = results.make_lds()
    axes = figures.plot_lds(result).axes[0]
    spans = [tuple(c.get_segments()[0][:, 0]) for c in axes.collections]
    table = result.table
    np.testing.assert_allclose(spans, table[["low", "high"]])
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() not in ("None", "")]
    np.testing.assert_allclose(dots, table["lds"])
    title = axes.get_title(loc="left")
    assert "100 masks x 5 retrainings, 50 %" in title and "0.71" in title
    bare = figures.plot_lds(results.make_lds(reliability=np.nan)).axes[0].get_title(loc="left")
    assert "reliability" not in bare


def test_every_query_is_a_dot_in_the_strip_of_its_method():
    result = results.make_lds(queries=50)
    axes = figures.plot_lds_queries(result).axes[0]
    strips = [line for line in axes.lines if len(line.get_xdata()) == 50]
    for row, (line, method) in enumerate(zip(strips, result.table["method"], strict=True)):
        values = result.per_query["lds"][result.per_query["method"] == method]
        np.testing.assert_allclose(line.get_xdata(), values)
        assert np.abs(np.asarray(line.get_ydata()) - row).max() < 0.45


def test_counterfactuals_show_both_shares():
    result = results.make_counterfactual()
    axes = figures.plot_counterfactual(result).axes[0]
    for method in result.methods:
        part = result.curve[result.curve["method"] == method]
        (line,) = lines(axes, f"_{method}")
        np.testing.assert_allclose(line.get_ydata(), part["share"])
        np.testing.assert_allclose(line.get_xdata(), part["size"])
    faint = [line.get_ydata() for line in lines(axes, "_carried")]
    expected = [part["share_carried"] for _, part in result.curve.groupby("method", sort=False)]
    np.testing.assert_allclose(faint, expected)
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    tops = result.curve.groupby("method", sort=False)["high"].max()
    np.testing.assert_allclose([band.y1 for band in bands], tops)


def test_a_study_that_stopped_at_the_first_flip_shows_what_it_has():
    result = results.make_counterfactual()
    curve = result.curve.assign(share=np.where(result.curve["size"] > 20, np.nan, 0.1))
    axes = figures.plot_counterfactual(dataclasses.replace(result, curve=curve)).axes[0]
    for method in result.methods:
        (line,) = lines(axes, f"_{method}")
        part = curve[curve["method"] == method]
        np.testing.assert_allclose(line.get_ydata(), part["share_carried"])
    assert not lines(axes, "_carried")
    assert axes.get_title(loc="left") == "40 targets, carried forward"


def test_recall_with_the_band_of_a_random_order():
    result = results.make_mislabel()
    axes = figures.plot_mislabel(result).axes[0]
    (recall,) = lines(axes, "_recall")
    np.testing.assert_allclose(recall.get_ydata(), result.curve["recall"])
    (band,) = [c for c in axes.collections if c.get_label() == "_chance"]
    at_half = band.get_paths()[0].vertices
    at_half = at_half[np.isclose(at_half[:, 0], 0.5), 1]
    known = int(result.table["known"].sum())
    law = stats.hypergeom(400, known, 200)
    assert at_half.min() == pytest.approx(law.ppf(0.025) / known)
    assert at_half.max() == pytest.approx(law.ppf(0.975) / known)
    title = axes.get_title(loc="left")
    half = result.curve["inspected"][(result.curve["recall"] >= 0.5).idxmax()]
    assert f"{known} of 400 rows" in title and f"in {100 * half:.3g} % of" in title
    given = result.curve.assign(random_low=0.0, random_high=1.0)
    axes = figures.plot_mislabel(dataclasses.replace(result, curve=given)).axes[0]
    (band,) = [c for c in axes.collections if c.get_label() == "_chance"]
    assert np.ptp(band.get_paths()[0].vertices[:, 1]) == 1
    with pytest.raises(ConfigError, match="not known"):
        figures.plot_mislabel(results.make_mislabel(known=False))


def test_self_influence_tells_wrong_predictions_apart():
    result = results.make_self_influence()
    axes = figures.plot_self_influence(result).axes[0]
    table = result.table
    wrong = table["prediction"] != table["label"]
    right, errors = axes.lines
    np.testing.assert_allclose(errors.get_xdata(), table["loss"][wrong])
    np.testing.assert_allclose(right.get_ydata(), table["score"][~wrong])
    rho = stats.spearmanr(table["loss"], table["score"]).statistic
    assert f"{rho:.2f}" in axes.get_title(loc="left")
    negative = dataclasses.replace(result, table=table.assign(score=-table["score"]))
    assert figures.plot_self_influence(negative).axes[0].get_yscale() == "linear"
    bare = dataclasses.replace(result, table=table.drop(columns="prediction"))
    assert len(figures.plot_self_influence(bare).axes[0].lines) == 1


@pytest.mark.parametrize("share", [0, 0.004, 0.0994, 0.0996, 0.5, 1])
def test_percent_has_two_digits(share):
    text = percent(share)
    assert text.endswith(" %") and float(text[:-2]) == pytest.approx(100 * share, abs=0.5)
    assert len(text[:-2].replace(".", "").lstrip("0")) <= 3
