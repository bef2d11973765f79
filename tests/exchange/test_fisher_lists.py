"""The guided-dropout scripts' lists: names from a checkpoint, every shape checked, and back."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from fishers import make_fisher
from landform.cli.app import run
from landform.curvature.fisher import Fisher
from landform.errors import DataError
from landform.exchange.fisher_lists import read_fisher_list, read_trace_list, write_fisher_lists
from landform.weights.checkpoint import resolve


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint):
    """A masked language model, and what the scripts would have written of it."""
    place = tmp_path_factory.mktemp("lists")
    save_checkpoint(place / "model", kind="masked-lm")
    return place


@pytest.fixture(scope="module")
def lists(place, tiny_model):
    """The list, and the model it is of."""
    model = tiny_model("masked-lm", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    squares = [torch.rand(p.shape, generator=generator) for p in model.parameters()]
    with (place / "fisher_bert.pkl").open("wb") as file:
        pickle.dump(squares, file)
    numbers = [0.5, 0.25, 3.0, 0.0]
    with (place / "individual_gradients.pkl").open("wb") as file:
        pickle.dump(numbers, file)
    return squares, numbers, model


def write(path, value):
    with path.open("wb") as file:
        pickle.dump(value, file)
    return path


def test_a_list_is_read_by_position(place, lists):
    squares, numbers, model = lists
    found = read_fisher_list(
        place / "fisher_bert.pkl",
        place / "model",
        allow_pickle=True,
        traces=place / "individual_gradients.pkl",
    )
    names = [name for name, _ in model.named_parameters()]
    assert list(found.diagonal) == names == list(found.summary.tensors["name"])
    for name, value in zip(names, squares, strict=True):
        assert torch.equal(found.diagonal[name], value)
    size = sum(p.numel() for p in model.parameters())
    assert found.summary.examples == found.summary.terms == 4
    np.testing.assert_allclose(found.summary.traces["trace"], np.array(numbers) * size)
    means = found.by("tensor")
    np.testing.assert_allclose(means, [float(s.double().mean()) for s in squares], rtol=1e-12)
    assert "bert.encoder.layer.0.attention.self.dropout" in found.by("sublayer").index
    assert np.isnan(found.groups("layer")["error"]).all()
    assert "fisher_bert.pkl" in found.reading
    # The checkpoint lends names: at which weights the file was computed nobody knows.
    assert found.weights is None
    assert found.summary.provenance["names_of"] == resolve(place / "model").fingerprint


def test_there_and_back(place, lists, tmp_path):
    squares, numbers, _ = lists
    found = read_fisher_list(
        place / "fisher_bert.pkl",
        place / "model",
        allow_pickle=True,
        traces=place / "individual_gradients.pkl",
    )
    # A file of tensors need not keep the order of the model.
    again = Fisher.load(found.save(tmp_path / "f.safetensors"))
    write_fisher_lists(again, tmp_path / "out")
    with (tmp_path / "out" / "fisher.pkl").open("rb") as file:
        kept = pickle.load(file)
    assert isinstance(kept, list) and len(kept) == len(squares)
    for mine, theirs in zip(kept, squares, strict=True):
        assert type(mine) is torch.Tensor and mine.dtype == torch.float32
        assert torch.equal(mine, theirs)
        assert mine.untyped_storage().nbytes() == 4 * mine.numel()
    with (tmp_path / "out" / "individual_gradients.pkl").open("rb") as file:
        assert pickle.load(file) == pytest.approx(numbers)
    table = pd.read_csv(tmp_path / "out" / "tensors.csv")
    np.testing.assert_allclose(table["mean"], [float(s.mean()) for s in squares], rtol=1e-5)
    traces = pd.read_csv(tmp_path / "out" / "traces.csv")
    np.testing.assert_allclose(traces["mean_square"], numbers)


def test_without_traces_nothing_is_made_up(place, lists, tmp_path):
    found = read_fisher_list(place / "fisher_bert.pkl", place / "model", allow_pickle=True)
    assert found.summary.examples == 0 and not len(found.summary.traces)
    wrote = write_fisher_lists(found, tmp_path / "out")
    assert [path.name for path in wrote] == ["fisher.pkl", "tensors.csv"]


def test_bert_base_has_202_tensors():
    """The count that the original's scripts rely on, with nothing in memory."""
    import transformers as hf

    with torch.device("meta"):
        model = hf.BertForMaskedLM(hf.BertConfig())
    model.tie_weights()
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == 202
    assert names[0] == "bert.embeddings.word_embeddings.weight"
    assert sum(p.numel() for p in model.parameters()) == 109_514_298


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda x: x[:-1], r"holds \d+ tensors.*is missing", id="short"),
        pytest.param(lambda x: [*x, x[0]], r"parameters only", id="long"),
        pytest.param(
            lambda x: [x[1], x[0], *x[2:]],
            r"tensor 0 is \(32, 16\), but parameter 0 of .*word_embeddings\.weight, is \(45, 16\)",
            id="order",
        ),
        pytest.param(lambda x: [-x[0], *x[1:]], "no mean of squares", id="negative"),
        pytest.param(lambda x: [x[0] * float("nan"), *x[1:]], "no mean of squares", id="nan"),
        pytest.param(lambda x: {"a": x[0]}, "no list of tensors", id="dict"),
        pytest.param(lambda x: [0.5, 0.25], "no list of tensors", id="numbers"),
    ],
)
def test_lists_of_other_models_are_refused(place, lists, tmp_path, change, said):
    path = write(tmp_path / "fisher.pkl", change(lists[0]))
    with pytest.raises(DataError, match=said):
        read_fisher_list(path, place / "model", allow_pickle=True)


def test_a_pickle_is_read_only_when_asked_for(place, lists, tmp_path):
    with pytest.raises(DataError, match="read only when asked for"):
        read_fisher_list(place / "fisher_bert.pkl", place / "model", allow_pickle=False)
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(DataError, match=r"os\.system"):
        read_fisher_list(evil, place / "model", allow_pickle=True)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([], id="empty"),
        pytest.param({"a": 1.0}, id="dict"),
        pytest.param([0.5, "x"], id="text"),
        pytest.param([0.5, -1.0], id="negative"),
    ],
)
def test_traces_are_numbers(tmp_path, value):
    with pytest.raises(DataError, match=r"traces\.pkl"):
        read_trace_list(write(tmp_path / "traces.pkl", value), allow_pickle=True)


def test_commands(place, lists, tmp_path, capsys):
    out = tmp_path / "f.safetensors"
    both = [str(place / "fisher_bert.pkl"), str(place / "individual_gradients.pkl")]
    named = ["--checkpoint", str(place / "model"), "--out", str(out)]
    assert run(["import", "fisher", *both, *named]) == 1
    assert "--allow-pickle" in capsys.readouterr().err and not out.exists()
    assert run(["import", "fisher", *both, *named, "--allow-pickle"]) == 0
    assert "on 4 examples" in capsys.readouterr().out
    assert run(["export", "fisher", str(out), "--out", str(tmp_path / "lists")]) == 0
    again = read_fisher_list(tmp_path / "lists" / "fisher.pkl", place / "model", allow_pickle=True)
    assert again.fingerprint == Fisher.load(out).fingerprint
    table = tmp_path / "traces.csv"
    assert run(["import", "traces", both[1], "--allow-pickle", "--out", str(table)]) == 0
    assert "4 examples" in capsys.readouterr().out and len(pd.read_csv(table)) == 4
    assert run(["import", "fisher", both[0]]) == 1
    assert "--checkpoint" in capsys.readouterr().err


def test_a_fisher_of_another_order_is_written_in_the_models(tmp_path, tiny_model):
    made = make_fisher(tiny_model(dtype=torch.float32))
    turned = Fisher(made.summary, dict(reversed(made.diagonal.items())))
    write_fisher_lists(turned, tmp_path)
    with (tmp_path / "fisher.pkl").open("rb") as file:
        kept = pickle.load(file)
    for name, value in zip(made.summary.tensors["name"], kept, strict=True):
        assert torch.equal(made.diagonal[name], value)
