import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from landform.errors import CheckpointError, SpaceMismatchError
from landform.weights import checkpoint as module
from landform.weights.checkpoint import (
    LoadConfig,
    check_same_architecture,
    expand,
    load_model,
    load_tokenizer,
    resolve,
    select,
    short_names,
)


@pytest.fixture
def saved(tmp_path, save_checkpoint):
    return save_checkpoint(tmp_path / "runs" / "seed0")


def test_loaded_weights_are_the_saved_ones(saved, tiny_model):
    model = load_model(saved, "classification")
    expected = tiny_model(dtype=torch.float32)
    assert not model.training
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name])


def test_missing_checkpoint_says_what_is_there(saved):
    with pytest.raises(CheckpointError, match="no such directory") as caught:
        resolve(saved.parent / "seed7")
    assert "seed0" in str(caught.value)


def test_directory_without_config_points_inside(saved):
    with pytest.raises(CheckpointError, match=r"no config\.json") as caught:
        resolve(saved.parent)
    assert "seed0" in str(caught.value)


def test_directory_without_weights(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        resolve(saved)


def test_steps_are_matched_exactly(saved, save_checkpoint):
    save_checkpoint(saved / "checkpoint-5000", seed=1)
    save_checkpoint(saved / "checkpoint-15000", seed=2)
    assert resolve(f"{saved}@5000").path == saved / "checkpoint-5000"
    with pytest.raises(CheckpointError, match="no step 500") as caught:
        resolve(f"{saved}@500")
    assert "5000, 15000" in str(caught.value)
    with pytest.raises(CheckpointError, match="no revision"):
        resolve(saved, revision="main")


def _hub(commits=(), branches=("main",)):
    return SimpleNamespace(
        list_repo_refs=lambda name: SimpleNamespace(
            branches=[SimpleNamespace(name=b) for b in branches], tags=[]
        ),
        list_repo_commits=lambda name: [
            SimpleNamespace(commit_id=f"sha{i}", title=title, message="")
            for i, title in enumerate(commits)
        ],
    )


def test_hub_steps_are_never_a_part_of_a_longer_number():
    api = _hub(["add step 15000", "add step 25000", "add step 5000", "readme"])
    assert module._revision_of_step(api, "org/m", 5000) == "sha2"
    with pytest.raises(CheckpointError, match="says step 500"):
        module._revision_of_step(api, "org/m", 500)
    assert module._revision_of_step(_hub(branches=["main", "step-300"]), "org/m", 300) == "step-300"
    with pytest.raises(CheckpointError, match="2 revisions"):
        module._revision_of_step(_hub(["step 7", "redo step 7"]), "org/m", 7)


def test_hub_failure_names_the_checkpoint():
    with pytest.raises(CheckpointError, match="no local directory of that name"):
        resolve("someone/no-such-model-anywhere")


def test_headless_model_is_refused_not_randomised(tmp_path, tiny_model, word_tokenizer):
    tiny_model(dtype=torch.float32).bert.save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(
        CheckpointError, match=r"no weights for classifier\.bias, classifier\.weight"
    ):
        load_model(tmp_path / "base", "classification")
    model = load_model(tmp_path / "base", "classification", new_head=True, num_labels=3)
    assert model.landform_new_tensors == {"classifier.weight", "classifier.bias"}
    assert model.classifier.out_features == 3


def test_truncated_safetensors(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        load_model(saved, "classification")
    file.write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or not"):
        load_model(saved, "classification")


def test_config_of_another_size(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(CheckpointError, match="seed0"):
        load_model(saved, "classification")


def test_broken_config(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        load_model(saved, "classification")


def test_pickle_is_read_only_on_request(saved, tiny_model):
    (saved / "model.safetensors").unlink()
    torch.save(tiny_model(dtype=torch.float32).state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle") as caught:
        load_model(saved, "classification")
    assert "allow_pickle" in str(caught.value)
    model = load_model(saved, "classification", LoadConfig(allow_pickle=True))
    assert torch.equal(model.classifier.weight, tiny_model(dtype=torch.float32).classifier.weight)


def test_remote_code_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="run code that comes with the checkpoint"):
        load_model(saved, "classification")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8"])
def test_quantised_weights_are_refused(saved, method):
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"quantised \({method}\)") as caught:
        load_model(saved, "classification")
    assert "dequantize" in str(caught.value)


def test_missing_tokenizer_is_an_error(saved):
    for file in saved.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer files"):
        load_tokenizer(saved)


def test_wrong_head_for_the_architecture(tmp_path, save_checkpoint):
    path = save_checkpoint(tmp_path / "t5", kind="seq2seq", architecture="t5")
    with pytest.raises(CheckpointError):
        load_model(path, "masked-lm")


def test_select_natural_order_patterns_and_repeats(tmp_path, saved):
    for i in (2, 10):
        shutil.copytree(saved, saved.parent / f"seed{i}")
    (saved.parent / "seed99").mkdir()  # a run that is not finished: no config
    found = select(f"{saved.parent}/seed*")
    assert [c.path.name for c in found] == ["seed0", "seed2", "seed10"]
    assert len(select([f"{saved.parent}/seed*", str(saved), *found])) == 3
    assert len(expand([f"{saved.parent}/seed*", saved, *found])) == 7
    assert [c.path.name for c in expand(str(saved))] == ["seed0"]  # a name, not its letters
    with pytest.raises(CheckpointError, match="no checkpoint matches"):
        select(f"{saved.parent}/other*")


@pytest.mark.parametrize("spec", [None, 3, ["runs/seed0"]])
def test_what_names_no_checkpoint(spec):
    with pytest.raises(CheckpointError, match="not by a"):
        resolve(spec)


def test_short_names_are_the_shortest_unique_tails():
    def spec(name: str) -> module.Checkpoint:
        return module.Checkpoint(name, Path(name))

    assert short_names([spec("runs/a"), spec("runs/b")]) == ("a", "b")
    assert short_names([spec("x/last"), spec("y/last")]) == ("x/last", "y/last")


def test_fingerprint_follows_weights_and_config(saved, tmp_path, save_checkpoint):
    first = resolve(saved).fingerprint
    again = shutil.copytree(saved, tmp_path / "copy")
    assert resolve(again).fingerprint == first, "the place of a checkpoint does not matter"
    assert resolve(save_checkpoint(tmp_path / "other", seed=1)).fingerprint != first
    config = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert resolve(again).fingerprint != first


def test_label_names_follow_the_ids_not_the_order_in_the_file(saved):
    config = json.loads((saved / "config.json").read_text())
    config["id2label"] = {"1": "b", "0": "a"}
    (saved / "config.json").write_text(json.dumps(config))
    assert resolve(saved).label_names() == ("a", "b")


@pytest.mark.parametrize("name", ["tokenizer.model", "spm.model", "source.spm", "bpe.codes"])
def test_tokenizer_fingerprint_follows_every_vocabulary(saved, name):
    (saved / name).write_bytes(b"one")
    before = resolve(saved).tokenizer_fingerprint
    (saved / name).write_bytes(b"two")
    assert resolve(saved).tokenizer_fingerprint != before


# --- two configs --------------------------------------------------------------------------------


def configs(tmp_path, one, two):
    """Two checkpoints that are nothing but their configs."""
    made = []
    for name, config in (("a", one), ("b", two)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        made.append(module.Checkpoint(name, tmp_path / name))
    return made


def rope(theta):
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}}


@pytest.mark.parametrize(
    ("kind", "one", "two", "named"),
    [
        ("llama", rope(1e4), rope(1e6), "rope_parameters"),
        ("llama", {"rope_theta": 1e6}, rope(1e4), "rope_parameters"),
        ("llama", {}, {"rope_theta": 1e6}, "rope_parameters"),  # absent: the default, 1e4
        ("llama", {"rms_norm_eps": 1e-5}, {}, "rms_norm_eps"),
        ("bert", {"hidden_act": "relu"}, {}, "hidden_act"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {}, "scale_attn_by_inverse_layer_idx"),
        ("deberta-v2", {"position_buckets": 256}, {}, "position_buckets"),  # unknown to the class
        ("t5", {"feed_forward_proj": "gated-gelu"}, {}, "feed_forward_proj"),
        (
            "bert",
            {"architectures": ["BertForMaskedLM"]},
            {"architectures": ["BertForTokenClassification"]},
            "the head is for masked-lm in a",
        ),
    ],
)
def test_configs_of_two_functions_are_refused(tmp_path, kind, one, two, named):
    a, b = configs(tmp_path, {"model_type": kind, **one}, {"model_type": kind, **two})
    with pytest.raises(SpaceMismatchError, match=named):
        check_same_architecture(a, b)
    with pytest.raises(
        SpaceMismatchError,
        match=named.replace(" a", " b").replace("masked-lm", "token-classification"),
    ):
        check_same_architecture(b, a)


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        ("llama", {"rope_theta": 1e4}, rope(1e4)),  # the spellings of two versions
        (
            "llama",
            {"torch_dtype": "bfloat16", "transformers_version": "4.30.0"},
            {"dtype": "float32"},
        ),
        ("llama", {"pad_token_id": 0, "use_cache": False}, {"attention_dropout": 0.1}),
        ("bert", {"position_embedding_type": "absolute"}, {}),  # gone from the class
        ("bert", {"hidden_dropout_prob": 0.3, "initializer_range": 0.1, "_name_or_path": "x"}, {}),
        ("bert", {"problem_type": "regression", "gradient_checkpointing": True}, {}),
        ("bert", {"architectures": ["BertForPreTraining"]}, {"architectures": ["BertForMaskedLM"]}),
        (
            "gpt2",
            {"task_specific_params": {"text-generation": {"max_length": 50}}},
            {"do_sample": True},
        ),
        ("nobody-knows", {"heads": 2}, {"heads": 2}),
    ],
)
def test_configs_that_differ_in_what_does_not_matter_pass(tmp_path, kind, one, two):
    a, b = configs(tmp_path, {"model_type": kind, **one}, {"model_type": kind, **two})
    check_same_architecture(a, b)
    check_same_architecture(b, a)


def test_saved_in_two_formats_is_the_same_function(tmp_path, save_checkpoint):
    paths = [
        save_checkpoint(tmp_path / str(dtype), dtype=dtype, architecture=architecture, kind=kind)
        for architecture, kind in (("gpt2", "causal-lm"),)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    one, two = (resolve(path) for path in paths)
    assert one.config != two.config
    check_same_architecture(one, two)


# --- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model, whose files are those of a directory; what was asked of it."""
    import fnmatch

    import huggingface_hub

    folder, asked = tmp_path / "hub", {}
    folder.mkdir()

    def files(name, revision=None):
        asked["revision"] = revision
        if asked.get("offline"):
            raise ConnectionError("no network")
        return [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]

    def download(name, *, revision, ignore_patterns):
        asked["ignored"] = ignore_patterns
        copy = tmp_path / "snapshot"
        for p in folder.rglob("*"):
            here = str(p.relative_to(folder))
            if p.is_file() and not any(fnmatch.fnmatchcase(here, i) for i in ignore_patterns):
                (copy / here).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(p, copy / here)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(list_repo_files=files))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder, asked


def test_hub_gives_one_format_of_the_weights(hub):
    folder, asked = hub
    (folder / "original").mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "original/x.safetensors"):
        (folder / name).write_text("{}")
    found = resolve("org/name@main")
    assert sorted(p.name for p in found.path.iterdir()) == ["config.json", "model.safetensors"]
    assert asked["revision"] == "main" and [p.name for p in found.weight_files] == [
        "model.safetensors"
    ]


@pytest.mark.parametrize("offline", [False, True])
def test_hub_gives_pickles_where_there_is_nothing_else(hub, offline):
    folder, asked = hub
    asked["offline"] = offline  # then what was downloaded before may do
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    assert [p.name for p in resolve("org/name").weight_files] == ["pytorch_model.bin"]


def test_hub_models_pass_the_same_checks_as_directories(hub):
    folder, _ = hub
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match="pre-trained model that it tunes"):
        load_model("org/adapter")
    (folder / "adapter_model.safetensors").unlink()
    shutil.rmtree(folder.parent / "snapshot")
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"org/empty: no weights"):
        resolve("org/empty")
