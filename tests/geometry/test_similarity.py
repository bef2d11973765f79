"""Function-space measures against scipy and loops over examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

import landform as lf
from landform.errors import ConfigError, DataError, LabelError, NonFiniteError
from landform.geometry import similarity as module
from landform.geometry.similarity import error_agreement, functional_similarity, js_distance


@pytest.fixture(scope="module")
def logits():
    z = np.random.default_rng(0).normal(size=(5, 23, 3)) * 3
    z[1] = z[0]
    z[2, 4] = [0.0, -900.0, 900.0]  # probabilities of exactly 0
    return z


def test_every_pair_against_loops_and_scipy(logits):
    labels = np.random.default_rng(1).integers(0, 3, 23)
    same, agree, js = (
        functional_similarity(logits),
        error_agreement(logits, labels),
        js_distance(logits),
    )
    for i in range(5):
        for j in range(5):
            p, q = softmax(logits[i], -1), softmax(logits[j], -1)
            chosen, other = p.argmax(-1), q.argmax(-1)
            assert same[i, j] == pytest.approx(np.mean(chosen == other))
            right = (chosen == labels) == (other == labels)
            assert agree[i, j] == pytest.approx(np.mean(right))
            expected = [jensenshannon(a, b) for a, b in zip(p, q, strict=True)]
            assert js[i, j] == pytest.approx(np.mean(np.nan_to_num(expected)), abs=1e-12)
    assert js[0, 1] == 0 and same[0, 1] == agree[0, 1] == 1
    assert js.max() <= np.sqrt(np.log(2))


def test_blocks_change_nothing(logits, monkeypatch):
    whole = js_distance(logits)
    monkeypatch.setattr(module, "BLOCK", 1)
    np.testing.assert_array_equal(js_distance(logits), whole)


def test_bad_logits(logits):
    with pytest.raises(ConfigError, match=r"expected \(models, examples"):
        functional_similarity(logits[0])
    with pytest.raises(ConfigError, match="labels have shape"):
        error_agreement(logits, [0, 1])
    broken = logits.copy()
    broken[3, 7, 1] = np.nan
    with pytest.raises(NonFiniteError, match="model 3, example 7"):
        js_distance(broken)


# --- two evaluations -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("similar")
    rows = write_rows(root / "dev.tsv", 40, classes=3)
    task = lf.load_task(str(rows), text="sentence", label="label")
    paths = [save_checkpoint(root / f"s{i}", seed=i, num_labels=3) for i in range(2)]
    return [lf.evaluate(path, task) for path in paths]


def test_two_evaluations_are_a_pair_of_the_matrices(evaluations):
    a, b = evaluations
    found = lf.similarity(a, b)
    z = np.stack([e.log[["logit_0", "logit_1", "logit_2"]].to_numpy() for e in evaluations])
    labels = a.log.label.map(a.label_names.index).to_numpy()
    assert found.functional_similarity == pytest.approx(functional_similarity(z)[0, 1])
    assert found.error_agreement == pytest.approx(error_agreement(z, labels)[0, 1])
    assert found.js_distance == pytest.approx(js_distance(z)[0, 1])
    assert found.examples == 40 and "on 40 examples" in found.reading
    assert (found.table.low <= found.table.value).all()
    assert (found.table.value <= found.table.high).all()
    same = lf.similarity(a, a)
    assert (same.functional_similarity, same.error_agreement, same.js_distance) == (1, 1, 0)


def test_label_orders_are_matched_by_name(evaluations):
    """Another model may number its classes otherwise, and its log list the rows otherwise."""
    a, b = evaluations
    log = b.log.sample(frac=1, random_state=0).rename(
        columns={"logit_0": "logit_2", "logit_1": "logit_0", "logit_2": "logit_1"}
    )
    names = (b.label_names[1], b.label_names[2], b.label_names[0])
    turned = lf.similarity(a.log, log, label_names=(a.label_names, names))
    assert turned.table.value.tolist() == pytest.approx(lf.similarity(a, b).table.value.tolist())
    # Without names they are read off the predictions, if every class is predicted somewhere.
    made = log.iloc[:3].copy()
    made[["logit_0", "logit_1", "logit_2"]] = np.eye(3)
    made["prediction"] = names
    assert module._log(made, None, "b").labels == names
    other = ("0", "1", "other")
    with pytest.raises(LabelError, match="label '2' is none of 0, 1, other"):
        lf.similarity(a, log, label_names=(None, other))
    with pytest.raises(LabelError, match="s0 tells apart 0, 1, 2, log b 0, 1, other"):
        lf.similarity(a, log.assign(label="0"), label_names=(None, other))


def test_examples_are_matched_by_id(evaluations):
    a, b = evaluations
    with pytest.warns(UserWarning, match="10 examples are in one of the two logs only"):
        rows = b.log.iloc[10:].sample(frac=1, random_state=1)
        part = lf.similarity(a, rows, label_names=(None, b.label_names))
    z = np.stack([e.log[["logit_0", "logit_1", "logit_2"]].to_numpy()[10:] for e in evaluations])
    assert part.js_distance == pytest.approx(js_distance(z)[0, 1]) and part.examples == 30
    with pytest.raises(DataError, match="no example in common"):
        lf.similarity(a.log[:10], b.log[10:], label_names=(a.label_names, b.label_names))
    other = b.log.assign(text=["something else", *b.log.text[1:]])
    with pytest.raises(DataError, match="has another text"):
        lf.similarity(a, other, label_names=(a.label_names, b.label_names))
    twice = b.log.assign(text_id=b.log.text_id.iloc[0])
    with pytest.raises(DataError, match="in the log twice"):
        lf.similarity(a, twice, label_names=(None, b.label_names))
    with pytest.raises(DataError, match="no column logit_1"):
        lf.similarity(a, b.log.drop(columns=["logit_1", "logit_2"]))
    with pytest.raises(ConfigError, match="expected an evaluation"):
        lf.similarity(a, "log.csv")
    one = b.log[b.log.prediction == b.log.prediction.iloc[0]]
    with pytest.raises(LabelError, match="its name is unknown"):
        lf.similarity(a, one)
