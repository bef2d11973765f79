"""The figure and the page of dropout schedules."""

import numpy as np
import pytest

from dropout_models import make_model
from fishers import make_fisher
from landform.cli.app import run
from landform.report.dropout_figures import DROPOUT_KINDS, plot_dropout
from landform.report.figures import figures_of
from landform.training.schedules import DropoutSchedule
from landform.weights.sites import dropout_sites


def schedule(name="bert", **options):
    model = make_model(name)
    where = {tensor: site.name for site in dropout_sites(model) for tensor in site.tensors}
    return DropoutSchedule.of(make_fisher(model, sublayers=where), **options)


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "llama"])
def test_scores_rise_and_probabilities_fall(name):
    result = schedule(name)
    figure = plot_dropout(result)
    left, right = figure.axes
    (line,) = right.lines
    assert line.get_ydata() == pytest.approx(np.linspace(0.1, 0, len(result.table)))
    assert "standard errors" in left.get_ylabel()
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(entries) == result.table["type"].nunique() == len(set(entries))
    points = np.concatenate([c.lines[0].get_xydata() for c in left.containers])
    in_order = points[np.argsort(points[:, 0]), 1]
    assert in_order == pytest.approx(np.sort(result.table.score))
    assert list(figures_of(result)) == ["dropout"]


def test_scores_of_many_magnitudes_and_of_none():
    wide = DropoutSchedule.of({f"layer.{i}.drop": 10.0**-i for i in range(6)}, control="reversed")
    figure = wide.plot()
    assert figure.axes[0].get_yscale() == "log" and "reversed" in figure.axes[0].get_title("left")
    zero = DropoutSchedule.of({"a": 0.0, "b": 1.0})
    assert zero.plot().axes[0].get_yscale() == "linear"
    assert "as published" in DropoutSchedule.of("bert-guided").plot().axes[0].get_ylabel()
    DropoutSchedule.of({"a": 1.0}, low=0.0, high=0.0).plot()


def test_page(tmp_path, capsys):
    assert set(DROPOUT_KINDS) == {"DropoutSchedule"}
    fisher = tmp_path / "f.safetensors"
    model = make_model("bert")
    where = {tensor: site.name for site in dropout_sites(model) for tensor in site.tensors}
    make_fisher(model, sublayers=where).save(fisher)
    for control in ((), ("--control", "by-type")):
        assert run(["dropout", str(fisher), *control, "--store", str(tmp_path / "study")]) == 0
    page = tmp_path / "atlas.html"
    assert run(["report", str(tmp_path / "study"), "--out", str(page)]) == 0
    text = page.read_text()
    assert (
        "Dropout schedules" in text and "control: by-type" in text and "The place of a site" in text
    )
