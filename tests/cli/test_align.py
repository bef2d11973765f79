"""`landform align` as a newcomer would type it."""

import json

import numpy as np
import pytest
import torch

from landform.cli.app import run
from landform.weights.checkpoint import load_model
from landform.weights.permutations import describe_symmetries, permute


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, word_tokenizer):
    root = tmp_path_factory.mktemp("align")
    save_checkpoint(root / "a")
    model = load_model(root / "a")
    symmetries = describe_symmetries(model)
    rng = np.random.default_rng(0)
    orders = {
        s.name: np.stack([rng.permutation(s.size) for _ in range(s.batch)]) for s in symmetries.all
    }
    parameters = dict(model.named_parameters())
    tensors = {name: p.detach() for name, p in parameters.items()}
    for name, tensor in permute(tensors, symmetries.all, orders).items():
        parameters[name].data = tensor
    model.save_pretrained(root / "b")
    word_tokenizer.save_pretrained(root / "b")
    return root


@pytest.fixture
def say(capsys, monkeypatch):
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")

    def call(*words):
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_align_says_what_moved_and_where_it_is(say, place, tmp_path):
    out = tmp_path / "aligned" / "b"
    status, text, err = say("align", place / "a", place / "b", "--out", out)
    assert status == 0, err
    assert "-> 0;" in text and "feed_forward" in text and f"wrote {out}" in text
    a, b = (dict(load_model(path).named_parameters()) for path in (place / "a", out))
    assert all(torch.equal(a[name], b[name]) for name in a)
    status, text, err = say("align", place / "a", place / "b", "--out", out)
    assert status == 1 and "exists already" in err and "what to do" in err


def test_align_json(say, place, tmp_path):
    words = ["align", place / "a", place / "a", "--out", tmp_path / "same", "--json"]
    status, text, _ = say(*words, "--parts", "heads", "feed_forward")
    found = json.loads(text)
    assert status == 0 and found["moved"] == 0 and found["wrote"] == [str(tmp_path / "same")]
    assert {row["part"] for row in found["parts"]} == {"heads", "feed_forward"}


def test_align_needs_a_place_and_two_of_a_kind(say, place, tmp_path, save_checkpoint):
    status, text, err = say("align", place / "a", place / "b")
    assert status == 2 and "--out" in err and not text
    other = save_checkpoint(tmp_path / "other", hidden_size=8)
    status, text, err = say("align", place / "a", other, "--out", tmp_path / "out")
    assert status == 1 and "hidden_size" in err and not (tmp_path / "out").exists()
