"""Weights of other frameworks: after conversion the logits are those of the source."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from foreign_weights import flax_tree, google_variables, write_bundle, write_flax
from landform.cli.app import run
from landform.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    NonFiniteError,
    StoreError,
)
from landform.weights.checkpoint import load_model, load_tokenizer, resolve
from landform.weights.convert import convert

INPUTS = torch.tensor([[2, 7, 9, 30, 3, 11, 12, 3], [2, 8, 3, 0, 0, 0, 0, 0]])
MASK = (INPUTS > 0).long()
TYPES = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [0] * 8])


def logits(model):
    with torch.no_grad():
        return model(INPUTS, attention_mask=MASK, token_type_ids=TYPES).logits


@pytest.fixture
def model(tiny_model):
    return tiny_model(dtype=torch.float32, num_labels=3)


@pytest.fixture
def folder(tmp_path, model, word_tokenizer):
    """The source's folder with its config and tokenizer, no weights yet."""
    path = tmp_path / "source"
    model.config.save_pretrained(path)
    word_tokenizer.save_pretrained(path)
    return path


def write(format_, folder, model):
    """The model's weights in the format; what to name as the source."""
    state = {k: v for k, v in model.state_dict().items() if "position_ids" not in k}
    if format_ == "tensorflow":
        variables = google_variables(state)
        slots = {f"{name}/adam_{c}": value for name, value in variables.items() for c in "mv"}
        step = {"global_step": np.array(34110, dtype=np.int64)}
        write_bundle(folder / "model.ckpt-34110", variables | slots | step, shards=2)
        return folder / "model.ckpt-34110"
    if format_ == "flax":
        return write_flax(folder / "flax_model.msgpack", flax_tree(state))
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


FORMATS = ("tensorflow", "flax", "torch")


@pytest.mark.parametrize("format_", FORMATS)
def test_logits_are_those_of_the_source(tmp_path, folder, model, word_tokenizer, format_):
    source = write(format_, folder, model)
    result = convert(source, tmp_path / "out")
    loaded = load_model(tmp_path / "out", "classification")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=0)
    assert logits(model).abs().max() > 0.01
    assert result.kind == "classification" and result.unused == ()
    assert result.parameters == sum(p.numel() for p in model.parameters())
    assert resolve(tmp_path / "out").weight_files[0].name == "model.safetensors"
    ids = load_tokenizer(tmp_path / "out")("w1 w2")["input_ids"]
    assert ids == word_tokenizer("w1 w2")["input_ids"]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_folder_will_do_as_the_source(tmp_path, folder, model, format_):
    write(format_, folder, model)
    result = convert(folder, tmp_path / "out")
    assert result.reading.startswith(result.format)


def test_googles_config_and_labels(tmp_path, folder, model):
    source = write("tensorflow", folder, model)
    config = json.loads((folder / "config.json").read_text())
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    kept += ("vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_act")
    (folder / "config.json").unlink()
    google = {name: config[name] for name in kept} | {"pooler_type": "first_token_transform"}
    (folder / "bert_config.json").write_text(json.dumps(google))
    names = ("contradiction", "entailment", "neutral")
    convert(source, tmp_path / "out", labels=names)
    assert resolve(tmp_path / "out").label_names() == names
    loaded = load_model(tmp_path / "out", "classification")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match=r"2 labels are given and the head of .* has 3 outputs"):
        convert(source, tmp_path / "other", labels=("a", "b"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("format_", FORMATS)
def test_masked_language_models_share_their_embedding(tmp_path, tiny_model, format_):
    model = tiny_model(kind="masked-lm", dtype=torch.float32)
    folder = tmp_path / "source"
    model.config.save_pretrained(folder)
    state = {k: v for k, v in model.state_dict().items() if k != "cls.predictions.decoder.weight"}
    state = {k: v for k, v in state.items() if k != "cls.predictions.decoder.bias"}
    if format_ == "tensorflow":
        variables = google_variables(
            {k: v for k, v in state.items() if k != "cls.predictions.bias"}
        )
        variables["cls/predictions/output_bias"] = state["cls.predictions.bias"].numpy()
        variables["cls/seq_relationship/output_weights"] = np.zeros((2, 16), np.float32)
        source = write_bundle(folder / "bert_model.ckpt", variables)
    elif format_ == "flax":
        source = write_flax(folder / "flax_model.msgpack", {"params": flax_tree(state)})
    else:
        source = folder / "model.pt"
        torch.save(state, source)
    result = convert(source, tmp_path / "out")
    assert result.kind == "masked-lm"
    torch.testing.assert_close(
        logits(load_model(tmp_path / "out")), logits(model), atol=1e-6, rtol=0
    )
    if format_ == "tensorflow":
        assert result.unused == ("cls.seq_relationship.weight",)
        assert "not used: cls.seq_relationship.weight" in result.reading


def test_flax_in_chunks_and_halves(tmp_path, folder, model):
    import msgpack

    state = {k: v for k, v in model.state_dict().items() if "position_ids" not in k}
    tree = flax_tree(state)
    kernel = tree["classifier"]["kernel"]
    half = kernel.size // 2
    tree["classifier"]["kernel"] = {
        "__msgpack_chunked_array__": True,
        "shape": {str(k): n for k, n in enumerate(kernel.shape)},
        "chunks": {"0": kernel.reshape(-1)[:half], "1": kernel.reshape(-1)[half:]},
    }
    convert(write_flax(folder / "flax_model.msgpack", tree), tmp_path / "out")
    loaded = load_model(tmp_path / "out", "classification")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=0)
    # bfloat16 has no type in numpy: Flax writes its bytes under its name.
    bias = state["classifier.bias"].to(torch.bfloat16)
    packed = msgpack.packb(((3,), "bfloat16", bias.view(torch.uint8).numpy().tobytes()))
    from landform.weights.foreign import _extension

    assert torch.equal(_extension(1, packed), bias)


def test_tensorflow_2(tmp_path, folder, model):
    h5py = pytest.importorskip("h5py")
    state = {k: v for k, v in model.state_dict().items() if "position_ids" not in k}
    with h5py.File(folder / "tf_model.h5", "w") as file:
        for name, value in google_variables(state).items():
            name = name.replace("/layer_", "/layer_._")
            if name.startswith("output_"):
                name = "classifier/" + {"output_weights": "kernel", "output_bias": "bias"}[name]
                value = value.T if value.ndim == 2 else value
            if name.endswith("_embeddings"):
                name += "/embeddings"
            group = name.split("/")[0]
            file[f"{group}/tf_bert_for_sequence_classification/{name}:0"] = value
    convert(folder, tmp_path / "out")
    loaded = load_model(tmp_path / "out", "classification")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=0)


def test_without_h5py_the_extra_is_named(tmp_path, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (folder / "tf_model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(MissingExtraError, match=r"landform\[convert\]"):
        convert(folder, tmp_path / "out")


def test_the_command(tmp_path, folder, model, capsys):
    source = write("tensorflow", folder, model)
    assert run(["convert", str(source), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "TensorFlow 1 -> safetensors" in said and f"wrote {tmp_path / 'out'}" in said
    assert run(["convert", str(source), str(tmp_path / "out")]) == 1
    assert "is there already" in capsys.readouterr().err


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_a_missing_head_is_an_error_not_a_random_one(tmp_path, folder, model, format_):
    state = {k: v for k, v in model.state_dict().items() if "classifier" not in k}
    if format_ == "tensorflow":
        source = write_bundle(folder / "m.ckpt", google_variables(state))
    elif format_ == "flax":
        source = write_flax(folder / "flax_model.msgpack", flax_tree(state))
    else:
        torch.save(state, source := folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"no weights for classifier\.(weight|bias)"):
        convert(source, tmp_path / "out", kind="classification")
    with pytest.raises(ConfigError, match="what kind of head"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_size_and_nan(tmp_path, folder, model):
    state = dict(model.state_dict())
    state["bert.pooler.dense.bias"] = torch.zeros(5)
    torch.save(state, folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"bert\.pooler\.dense\.bias is \(5,\) in the file"):
        convert(folder, tmp_path / "out")
    state["bert.pooler.dense.bias"] = torch.full((16,), float("nan"))
    torch.save(state, folder / "model.pt")
    with pytest.raises(NonFiniteError, match=r"bert\.pooler\.dense\.bias holds NaN"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format_", FORMATS)
def test_truncated_files(tmp_path, folder, model, format_):
    source = write(format_, folder, model)
    files = [path for path in folder.glob(f"{source.stem}*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=path.name[:8]):
            convert(source, tmp_path / "out")
        path.write_bytes(content)
    assert not (tmp_path / "out").exists()


def test_a_state_dict_with_other_objects_is_refused(tmp_path, folder, model):
    torch.save(model, folder / "model.pt")
    with pytest.raises(CheckpointError, match="not a state dict"):
        convert(folder, tmp_path / "out")


def test_what_cannot_be_converted(tmp_path, folder, model):
    with pytest.raises(CheckpointError, match="holds 0 files of weights"):
        convert(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    source = write("flax", folder, model)
    write("torch", folder, model)
    with pytest.raises(CheckpointError, match=r"flax_model\.msgpack, model\.pt"):
        convert(folder, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="does not know how Flax names the weights of 'gpt2'"):
        convert(source, tmp_path / "out")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no .*config\.json"):
        convert(source, tmp_path / "out")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="is safetensors already"):
        convert(folder / "model.safetensors", tmp_path / "out")


def test_an_existing_folder_is_left_alone(tmp_path, folder, model):
    source = write("torch", folder, model)
    shutil.copytree(folder, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(StoreError, match="is there already"):
        convert(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
