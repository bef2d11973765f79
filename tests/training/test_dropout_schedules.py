"""Schedules from scores: the formulas, the published table, the controls, the files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from dropout_models import make_model
from fishers import make_fisher
from landform.errors import ConfigError, StoreError
from landform.training.schedules import preset_scores, read_schedule, site_type, write_schedule
from landform.weights.sites import dropout_sites

ATTENTION = "077 088 07975 0715 06875 07425 08525 099 09075 0935 09625 0825"
OUTPUT = "06325 05225 044 03575 0385 04125 0495 055 04675 0605 05775 066"
FEED_FORWARD = "01925 00825 022 00275 0055 02475 0275 011 01375 03025 0165 033"
SCORES = {"e.drop": 5.0, "layer.0.a": 0.5, "layer.0.o": 2.0, "layer.1.a": 0.25, "layer.1.o": 4.0}


def test_the_published_schedule():
    """The 37 values that the paper's code sets, layer by layer."""
    expected = {"bert.embeddings.dropout": 0.0}
    for layer in range(12):
        for values, end in (
            (ATTENTION, "attention.self.dropout"),
            (OUTPUT, "attention.output.dropout"),
            (FEED_FORWARD, "output.dropout"),
        ):
            expected[f"bert.encoder.layer.{layer}.{end}"] = float(f"0.{values.split()[layer]}")
    found = lf.dropout_schedule("bert-guided")
    assert found == pytest.approx(expected, abs=1e-12)
    assert list(found) == list(expected)
    assert np.mean(list(found.values())) == pytest.approx(0.0495)
    for end, mean in (("self", 0.0839), ("attention.output", 0.0509)):
        part = [p for name, p in found.items() if f"{end}.dropout" in name]
        assert np.mean(part) == pytest.approx(mean, abs=5e-5)
    assert sorted(preset_scores("bert-guided").values()) == list(range(37))
    # It is the order alone that the schedule is made of.
    again = lf.dropout_schedule(preset_scores("bert-guided"), compat="guided-dropout")
    assert again == found
    model = make_model("bert", num_hidden_layers=12)
    assert lf.apply_dropout(model, "bert-guided") == found
    assert lf.dropout_in_force(model)["dropout"] == 0.1  # the classifier's stays


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2"])
def test_the_published_schedule_is_for_twelve_layers_of_bert(name):
    with pytest.raises(ConfigError, match=r"of a BERT of 12 layers; this .* has"):
        lf.apply_dropout(make_model(name), "bert-guided")
    with pytest.raises(ConfigError, match="has 19 sites in 6 layers"):
        lf.apply_dropout(make_model("bert", num_hidden_layers=6), "bert-guided")


def test_kinds_by_hand():
    linear = lf.dropout_schedule(SCORES, low=0.02, high=0.1)
    assert list(linear.values()) == pytest.approx([0.02, 0.08, 0.06, 0.1, 0.04])
    value = lf.dropout_schedule(SCORES, kind="value-proportional", low=0.02, high=0.1)
    expected = [0.1 - 0.08 * (s - 0.25) / 4.75 for s in SCORES.values()]
    assert list(value.values()) == pytest.approx(expected)
    inverse = lf.dropout_schedule(SCORES, kind="inverse", low=0.02, high=0.1)
    assert list(inverse.values()) == pytest.approx([0.02, 0.05, 0.02, 0.1, 0.02])
    assert list(lf.dropout_schedule(SCORES, kind="inverse").values()) == pytest.approx(
        [0.1 * 0.25 / s for s in SCORES.values()]
    )


@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=12),
    st.sampled_from(["rank-linear", "value-proportional", "inverse"]),
    st.floats(0, 0.4),
    st.floats(0.4, 0.9),
)
def test_properties_of_every_kind(values, kind, low, high):
    scores = {f"s{i}": value for i, value in enumerate(values)}
    found = lf.dropout_schedule(scores, kind=kind, low=low, high=high)
    p = np.array(list(found.values()))
    assert list(found) == list(scores)
    assert (p >= low - 1e-12).all() and (p <= high + 1e-12).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(p[order]) <= 1e-12).all()  # never rises with the score
    if kind == "rank-linear":  # reads nothing but the order, whatever the unit of the Fisher
        assert lf.dropout_schedule(
            {name: 8 * v for name, v in scores.items()}, low=low, high=high
        ) == pytest.approx(found)
        assert p.max() == pytest.approx(high)
    reversed_ = lf.dropout_schedule(scores, kind=kind, low=low, high=high, control="reversed")
    assert sorted(reversed_.values()) == pytest.approx(sorted(p))


def test_one_site_and_equal_scores():
    assert lf.dropout_schedule({"a": 3.0}) == {"a": 0.1}
    equal = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert list(lf.dropout_schedule(equal).values()) == pytest.approx([0.1, 0.05, 0.0])
    found = lf.dropout_schedule(equal, kind="value-proportional", low=0.02, high=0.1)
    assert list(found.values()) == pytest.approx([0.06] * 3)
    assert set(lf.dropout_schedule({"a": 0.0, "b": 0.0}, kind="inverse").values()) == {0.1}


def test_controls_keep_what_they_say():
    plain = lf.dropout_schedule(SCORES)
    by = {c: lf.dropout_schedule(SCORES, control=c) for c in
          ("uniform", "reversed", "by-type", "standard")}  # fmt: skip
    by["shuffled"] = lf.dropout_schedule(SCORES, control="shuffled", seed=3)
    mean = np.mean(list(plain.values()))
    assert set(by["uniform"].values()) == {mean}
    assert list(by["reversed"].values()) == pytest.approx([0.1, 0.025, 0.05, 0.0, 0.075])
    assert sorted(by["shuffled"].values()) == sorted(plain.values()) != list(plain.values())
    assert by["shuffled"] == lf.dropout_schedule(SCORES, control="shuffled", seed=3)
    assert by["shuffled"] != lf.dropout_schedule(SCORES, control="shuffled", seed=4)
    kinds = list(map(site_type, SCORES))
    assert kinds == ["e.drop", "layer.*.a", "layer.*.o", "layer.*.a", "layer.*.o"]
    p, q = list(plain.values()), list(by["by-type"].values())
    halves = [p[0], (p[1] + p[3]) / 2, (p[2] + p[4]) / 2]
    assert q == pytest.approx([halves[0], halves[1], halves[2], halves[1], halves[2]])
    assert set(by["standard"].values()) == {0.1}
    for name in ("uniform", "reversed", "shuffled", "by-type"):
        assert np.mean(list(by[name].values())) == pytest.approx(mean)


def fisher(model=None):
    model = model or make_model("bert")
    where = {tensor: site.name for site in dropout_sites(model) for tensor in site.tensors}
    return make_fisher(model, sublayers=where)


def test_from_a_fisher(tmp_path):
    f = fisher()
    g = lf.dropout_schedule(f, kind="rank-linear", low=0.0, high=0.1)
    scores = f.by("sublayer")
    assert list(g) == [s.name for s in dropout_sites(make_model("bert")) if s.kind != "head"]
    order = [g[name] for name in scores.sort_values().index]
    assert order == pytest.approx(np.linspace(0.1, 0, len(g)))
    f.save(tmp_path / "f.safetensors")
    assert lf.dropout_schedule(tmp_path / "f.safetensors") == g
    assert lf.dropout_schedule(f.summary) == g
    model = make_model("bert")
    assert lf.apply_dropout(model, g) == g

    options = {"weighting": "tensors", "matrices_only": True}
    other = lf.DropoutSchedule.of(f, **options)
    expected = f.by("sublayer", **options)
    assert other.table.score.tolist() == expected.tolist()
    compat = lf.DropoutSchedule.of(f, compat="guided-dropout")
    assert compat.table.score.tolist() == f.by("sublayer", weighting="tensors").tolist()
    assert compat.table.p.max() == pytest.approx(0.099)
    assert compat.table.error.notna().all()


def test_the_result_says_what_it_is():
    result = lf.DropoutSchedule.of("bert-guided")
    assert "37 sites, p from 0 to 0.099, mean 0.0495" in result.reading
    assert "sub-layer types" in result.reading
    assert "sub-layer types" not in lf.DropoutSchedule.of(SCORES).reading.replace("types (", "x(")
    assert result.probabilities == lf.dropout_schedule("bert-guided")
    assert json.loads(json.dumps(result.to_json()))["mean"] == pytest.approx(0.0495)
    assert result.plot() is not None
    assert lf.DropoutSchedule.of(fisher(), control="by-type").plot() is not None


def test_files(tmp_path):
    result = lf.DropoutSchedule.of(fisher(), control="reversed")
    path = result.save(tmp_path / "deep" / "g.json")
    assert read_schedule(path) == result.probabilities
    about = json.loads(path.read_text())
    assert (about["format"], about["what"]) == (1, "dropout schedule")
    assert about["record"]["control"] == "reversed"
    model = make_model("bert")
    assert lf.apply_dropout(model, path) == lf.apply_dropout(model, result) == result.probabilities
    assert write_schedule(tmp_path / "h.json", {"a": 0.1}).is_file()


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{", StoreError, "g.json"),
        ('{"what": "a cake"}', StoreError, "no dropout schedule"),
        ('{"what": "dropout schedule", "format": 2}', StoreError, "newer landform"),
        ('{"what": "dropout schedule", "format": 1}', StoreError, "no probabilities"),
        ('{"what": "dropout schedule", "format": 1, "probabilities": {}}', ConfigError, "no site"),
        ('{"what": "dropout schedule", "format": 1, "probabilities": {"a": 1}}', ConfigError,
         "gives a the dropout probability 1"),
        ('{"what": "dropout schedule", "format": 1, "probabilities": {"a": "x"}}', ConfigError,
         "probability 'x'"),
    ],
    ids=["damaged", "other", "newer", "none", "empty", "one", "text"],
)  # fmt: skip
def test_files_that_are_none(tmp_path, text, kind, message):
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(kind, match=message):
        read_schedule(tmp_path / "g.json")


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({"a": -1.0}, {}, "score of a is -1"),
        ({"a": math.nan}, {}, "score of a is nan"),
        ({}, {}, "at least one site"),
        ({"a": 1.0}, {"low": 0.2, "high": 0.1}, "lies above"),
        ({"a": 1.0}, {"high": 1.0}, "high"),
        ({"a": 1.0}, {"kind": "cubic"}, "rank-linear"),
        ({"a": 1.0}, {"hihg": 0.2}, "did you mean 'high'"),
    ],
    ids=["negative", "nan", "empty", "bounds", "one", "kind", "unknown"],
)
def test_what_cannot_be_scheduled(scores, options, message):
    with pytest.raises(ConfigError, match=message):
        lf.dropout_schedule(scores, **options)
    with pytest.raises(ConfigError, match="no sublayer"):
        lf.dropout_schedule(make_fisher({"a": make_model("bert").classifier.weight.data}))
