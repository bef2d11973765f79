"""Figures of Fisher information show the numbers of the results, and say what they leave out."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from fishers import make_fisher
from landform.cli.app import run
from landform.curvature.fisher import distribution_of
from landform.errors import ConfigError
from landform.geometry.average import Average
from landform.report import fisher_figures as own
from landform.report.atlas import write_atlas
from landform.report.average_figures import plot_average
from landform.report.figures import TOGETHER, draw, figures_of
from landform.store.artifacts import Store
from landform.store.study import publish
from landform.weights.sites import dropout_sites


@pytest.fixture(scope="module")
def fisher(tiny_model):
    model = tiny_model(dtype=torch.float32, num_hidden_layers=3)
    sublayers = {name: site.name for site in dropout_sites(model) for name in site.tensors}
    return make_fisher(model, sublayers=sublayers, checkpoint="runs/se$d0")


@pytest.fixture(scope="module")
def other(tiny_model):
    return make_fisher(tiny_model("masked-lm", dtype=torch.float32), seed=1, checkpoint="b")


def texts(figure):
    found = [text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))]
    return " | ".join(text for text in found if text)


# --- one model ----------------------------------------------------------------------------------


def test_bars_are_the_scores_of_the_sublayers_by_type(fisher):
    figure = fisher.plot(log=False)
    groups = fisher.groups("sublayer")
    panels = {at.get_title(loc="left").replace("\n", " "): at for at in figure.axes}
    assert list(panels) == ["embeddings", "attention", "attention output", "feed-forward output"]
    factor = float(groups.score.max() / max(b.get_height() for a in figure.axes for b in a.patches))
    assert factor == pytest.approx(1)
    heights = [bar.get_height() for at in panels.values() for bar in at.patches]
    assert sorted(heights) == pytest.approx(sorted(groups.score))
    attention = groups[groups.name.str.contains("attention.self")]
    assert [b.get_height() for b in panels["attention"].patches] == pytest.approx(
        list(attention.score)
    )
    (lines,) = panels["attention"].collections
    for segment, row in zip(lines.get_segments(), attention.itertuples(), strict=True):
        low, high = segment[:, 1]
        assert high == pytest.approx(row.score + 1.96 * row.error)
        assert low == pytest.approx(max(row.score - 1.96 * row.error, 0))
    assert r"se\$d0" in figure.get_suptitle() and "12 examples" in figure.get_suptitle()


def test_points_where_scores_differ_widely(fisher):
    tensors = fisher.summary.tensors.copy()
    tensors.loc[tensors.layer == "embeddings", "total"] *= 1e5
    wide = dataclasses.replace(fisher.summary, tensors=tensors)
    figure = own.plot_fisher(wide)
    assert figure.axes[0].get_yscale() == "log" and not figure.axes[0].patches
    assert own.plot_fisher(fisher.summary).axes[0].get_yscale() == "linear"


def test_a_model_without_sublayers_is_drawn_by_layers(other):
    figure = own.plot_fisher(other.summary)
    scores = other.by("layer")
    count = sum(len(a.patches) or len(a.lines[0].get_xdata()) for a in figure.axes)
    assert count == len(scores)
    with pytest.raises(ConfigError, match="no sublayer"):
        own.plot_fisher(other.summary, kind="sublayer")


def test_unknown_errors_have_no_line(fisher):
    unknown = dataclasses.replace(
        fisher.summary, covariance=fisher.summary.covariance * np.nan, examples=0
    )
    figure = own.plot_fisher(unknown, log=False)
    assert not any(line.get_segments() for at in figure.axes for line in at.collections)
    assert "intervals" not in figure.get_suptitle()


@pytest.mark.parametrize("kind", ["layer", "tensor"])
def test_other_groups_and_names_that_are_formulas(fisher, kind, tmp_path):
    figure = own.plot_fisher(fisher.summary, kind=kind, weighting="tensors", matrices_only=True)
    own_scores = fisher.by(kind, weighting="tensors", matrices_only=True)
    shown = [b.get_height() for a in figure.axes for b in a.patches]
    shown += [y for a in figure.axes for line in a.lines for y in line.get_ydata()]
    assert len(shown) == len(own_scores)
    figure.savefig(tmp_path / "f.png")


# --- several models -----------------------------------------------------------------------------


def test_sorted_tensors_and_what_is_left_out(fisher, other, tmp_path):
    models = {"a": fisher, "b": other.summary, "c": other.save(tmp_path / "c.safetensors")}
    figure = own.plot_fisher_sorted(models, normalise=True, drop_largest=2)
    assert "left out: the 2 largest tensors of each model" in texts(figure)
    for line, model in zip(figure.axes[0].lines, (fisher, other, other), strict=True):
        values = np.sort(model.by("tensor"))[:-2]
        expected = (values - values.min()) / (values.max() - values.min())
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert line.get_xdata()[-1] == 1
    plain = own.plot_fisher_sorted(fisher)
    np.testing.assert_allclose(plain.axes[0].lines[0].get_ydata(), np.sort(fisher.by("tensor")))
    assert "left out" not in texts(plain) and plain.axes[0].get_yscale() == "log"


def test_tensors_in_the_order_of_the_model(fisher, other):
    figure = own.plot_fisher_order(fisher, drop_largest=1)
    values = fisher.by("tensor")
    kept = values.drop(values.idxmax())
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), kept)
    gap = list(values.index).index(values.idxmax())
    assert gap not in list(line.get_xdata())
    assert "left out: the largest tensor" in texts(figure) and "layer 0" in texts(figure)
    scaled = own.plot_fisher_order({"a": fisher, "b": other}, normalise=True)
    assert [line.get_ydata().max() for line in scaled.axes[0].lines] == [1, 1]


def test_the_curve_of_all_entries(fisher):
    entries = np.sort(torch.cat([v.reshape(-1) for v in fisher.diagonal.values()]).numpy())
    line = own.plot_fisher_entries(fisher).axes[0].lines[0]
    places = np.round(line.get_xdata() * len(entries)).astype(int)
    assert places[-1] == len(entries)
    exact = entries[places - 1]
    assert (line.get_ydata() >= exact * (1 - 1e-6)).all()
    assert (line.get_ydata() <= exact * 1.04).all()
    cut = own.plot_fisher_entries(fisher, drop_largest=40, normalise=True)
    line = cut.axes[0].lines[0]
    assert "left out: the 40 largest entries" in texts(cut)
    assert line.get_ydata()[-1] == 1 and line.get_xdata()[-1] == 1


def test_sizes_are_counted_exactly_and_zeros_apart():
    value = torch.tensor([0.0, 0.0, 1e-30, 1.0, 1.0, 3.5, float("inf")])
    table = distribution_of({"a": value, "b": torch.tensor(2.0, dtype=torch.float64)})
    assert table.entries.sum() == 8 and (np.diff(table.value) > 0).all()
    assert table.value[0] == 0 and table.entries[0] == 2
    at_most_one = table.entries[table.value <= 1.04].sum()
    assert at_most_one == 5


def test_entries_that_were_not_kept(fisher):
    old = dataclasses.replace(fisher.summary, distribution=None)
    with pytest.raises(ConfigError, match="without its entries"):
        own.plot_fisher_entries(old)
    with pytest.raises(ConfigError, match="drop_largest=99999999"):
        own.plot_fisher_entries(fisher, drop_largest=99_999_999)
    with pytest.raises(ConfigError, match="drop_largest=-1"):
        own.plot_fisher_sorted(fisher, drop_largest=-1)
    with pytest.raises(ConfigError, match="int is no Fisher"):
        own.plot_fisher_sorted({"a": 3})
    with pytest.raises(ConfigError, match="no Fisher to draw"):
        own.plot_fisher_order({})


# --- averages -----------------------------------------------------------------------------------


def make_average(shares=True, count=2):
    """An average with losses that can be told apart."""
    names = [f"seed{k}" for k in range(count)]
    models = [*(["fisher"] if shares else []), "plain", *names, *(["line"] if count == 2 else [])]
    rows = []
    for k, model in enumerate(models):
        kind = {"fisher": "average", "plain": "average", "line": "line"}.get(model, "end")
        loss = 0.1 * (k + 1)
        row = {"data": "toy:validation", "model": model, "kind": kind, "t": 0.4}
        row |= {"loss": loss, "loss_low": loss - 0.05, "loss_high": loss + 0.05}
        rows.append({**row, "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 1.0})
    pairs = [(a, b) for k, a in enumerate(models[:2]) for b in models[k + 1 :]]
    differences = [
        {"data": "toy:validation", "quantity": "loss", "model": a, "against": b,
         "difference": -0.1, "low": -0.2, "high": 0.05} for a, b in pairs
    ]  # fmt: skip
    layers = ["embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"]
    table = [
        (f"{layer}.{part}", layer, 10 * (part + 1), name, (0.2 + 0.1 * part), 5)
        for layer in layers
        for part in (0, 1)
        for name in names
    ]
    columns = ["name", "layer", "entries", "checkpoint", "share", "unseen"]
    return Average(
        tuple(names), (1 / count,) * count, "classification", pd.DataFrame(rows),
        pd.DataFrame(differences), pd.DataFrame(table if shares else [], columns=columns),
        pd.DataFrame([("seed0", "seed1", 2.0)], columns=["a", "b", "distance"]), {},
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shares", [True, False])
def test_an_average_beside_what_it_is_made_of(shares, count):
    result = make_average(shares, count)
    figure = result.plot()
    left = figure.axes[0]
    centres = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert centres == pytest.approx(list(result.evaluation.loss))
    assert len(figure.axes) == 1 + shares
    if shares:
        curves = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
        assert len(curves) == (1 if count == 2 else 3)
        mean = (10 * 0.2 + 20 * 0.3) / 30
        np.testing.assert_allclose(curves[0].get_xdata(), mean)
    with pytest.raises(ConfigError, match="nothere"):
        plot_average(result, data="nothere")


# --- where they are found -----------------------------------------------------------------------


def test_pages(fisher, other, tmp_path):
    evil = dataclasses.replace(fisher.summary, task="<script>x</script>")
    results = {
        "one": evil,
        "two": other.summary,
        "avg": make_average(),
        "plain": make_average(False),
    }
    page = write_atlas(tmp_path / "atlas.html", results).read_text()
    for title in ("Fisher information", "Averages"):
        assert f"<h2>{title}</h2>" in page
    assert "<script>x" not in page
    assert page.count("bert.encoder.layer.2.output.dropout") >= 1
    assert "Spearman" in page and "Left: losses with intervals" in page


def test_they_are_drawn_from_a_study(fisher, other, tmp_path, capsys):
    store = Store.open(tmp_path / "study")
    publish(store, "fisher-a", fisher.summary)
    publish(store, "fisher-b", other.summary)
    assert set(figures_of(fisher.summary)) >= {"fisher", *own.FISHER_TOGETHER}
    assert set(own.FISHER_TOGETHER) <= set(TOGETHER)
    draw(fisher.summary, "fisher_entries")
    study, out = str(tmp_path / "study"), tmp_path / "f.png"
    assert run(["figure", study]) == 0
    assert "fisher_sorted" in capsys.readouterr().out
    arguments = ["figure", study, "fisher-*", "--which", "fisher_sorted", "--out", str(out)]
    assert run([*arguments, "--option", "drop_largest=1", "--option", "normalise=true"]) == 0
    assert out.exists()
