"""Tuned checkpoints: PEFT both ways, moved directories, other bases, heads, merging, errors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf

import landform as lf
from landform.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    SpaceMismatchError,
    StoreError,
)
from landform.weights.checkpoint import (
    _tuning_function,
    check_same_architecture,
    load_model,
    resolve,
)
from landform.weights.space import ParameterSpace
from landform.weights.tuning import TuningConfig, _hub_place, head_modules, save_model, tune
from tuned import CAUSAL, SEQ2SEQ, call, each_family, family, ids

OPTIONS: dict[str, dict[str, Any]] = {
    "adapter": {"adapter_size": 3, "init_std": 0.5},
    "compacter": {"adapter_size": 8, "init_std": 0.5},
    "low-rank-adapter": {"adapter_size": 3},
    "lora": {"lora_rank": 2},
    "prefix": {"prefix_length": 3, "prefix_hidden": 4, "init_std": 1.0},
    "prompt": {"prompt_length": 3, "init_std": 1.0},
    "bitfit": {},
}
each_method = pytest.mark.parametrize("method", list(OPTIONS))
AUTO = {
    "SEQ_CLS": hf.AutoModelForSequenceClassification,
    "CAUSAL_LM": hf.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": hf.AutoModelForSeq2SeqLM,
}


def shaken(model: Any, seed: int = 1) -> Any:
    """The model with everything that is trained far from where it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * noise.to(parameter))
    return model.eval()


def kind_of(name: str) -> str | None:
    return None if name in CAUSAL + SEQ2SEQ else "classification"


def base_of(root: Path, name: str = "bert", seed: int = 0, **changes: Any) -> Path:
    path = root / f"{name}-base"
    family(name, seed, torch.float32, **changes).save_pretrained(path)
    return path


def tuned(
    path: Path, base: Path, method: str, name: str = "bert", seed: int = 1, **options: Any
) -> Path:
    model: Any = load_model(base, kind_of(name))
    config = TuningConfig(tuning=method, **{**OPTIONS[method], **options})
    tune(model, config, head=kind_of(name) is not None)
    save_model(shaken(model, seed), path, base, resolve(base).fingerprint)
    return path


def logits(model: Any) -> Any:
    with torch.no_grad():
        return call(model, ids(2, 6))


# --- PEFT, both ways -----------------------------------------------------------------------------


@each_family("bert", "distilbert", "gpt2", "llama", "t5", "bart")
def test_peft_reads_what_landform_writes(name: str, tmp_path: Path) -> None:
    base = base_of(tmp_path, name)
    path = tuned(tmp_path / "run", base, "lora", name)
    task = peft.PeftConfig.from_pretrained(path).task_type
    plain = AUTO[task].from_pretrained(base, num_labels=2)
    theirs = peft.PeftModel.from_pretrained(plain, path).eval()
    mine = load_model(path)
    torch.testing.assert_close(logits(theirs), logits(mine), rtol=0, atol=0)
    assert (logits(load_model(base)) - logits(mine)).abs().max() > 1e-3
    # Both call the same tensors trained, where PEFT trains on from here.
    plain = AUTO[task].from_pretrained(base, num_labels=2)
    again = peft.PeftModel.from_pretrained(plain, path, is_trainable=True)
    trained = {n for n, p in again.get_base_model().named_parameters() if p.requires_grad}
    assert trained == set(ParameterSpace.of(mine).names)


def peft_configs(task: str, target: list[str], feed_forward: list[str], norm: str) -> Any:
    at = {"task_type": task, "target_modules": target}
    both = [*target, *feed_forward]
    return {
        "lora": peft.LoraConfig(r=4, **at),
        "rslora": peft.LoraConfig(r=4, use_rslora=True, **at),
        "biases": peft.LoraConfig(r=4, bias="all", **at),
        "dora": peft.LoraConfig(r=4, use_dora=True, **at),
        "everywhere": peft.LoraConfig(task_type=task, r=2, target_modules="all-linear"),
        "tokens": peft.LoraConfig(r=4, trainable_token_indices=[5, 6], **at),
        "ia3": peft.IA3Config(
            task_type=task, target_modules=both, feedforward_modules=feed_forward
        ),
        "loha": peft.LoHaConfig(r=4, task_type=task, target_modules=both),
        "lokr": peft.LoKrConfig(r=4, **at),
        "adalora": peft.AdaLoraConfig(total_step=10, **at),
        "vera": peft.VeraConfig(r=4, task_type=task, target_modules=target[:1]),
        "norms": peft.LNTuningConfig(task_type=task, target_modules=[norm]),
        "vblora": peft.VBLoRAConfig(vector_length=8, num_vectors=10, topk=2, **at),
        "boft": peft.BOFTConfig(boft_block_size=4, **at),
    }


PEFT_METHODS = tuple(peft_configs("SEQ_CLS", ["query", "value"], ["output.dense"], "LayerNorm"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", PEFT_METHODS)
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_landform_reads_what_peft_writes(name: str, method: str, tmp_path: Path) -> None:
    if name == "bert":
        task, where = "SEQ_CLS", (["query", "value"], ["output.dense"], "LayerNorm")
    else:
        task, where = "SEQ_2_SEQ_LM", (["q", "v"], ["wo"], "layer_norm")
    base = base_of(tmp_path, name)
    torch.manual_seed(0)
    changes = {"num_labels": 3, "ignore_mismatched_sizes": True} if name == "bert" else {}
    plain = AUTO[task].from_pretrained(base, **changes)
    theirs = shaken(peft.get_peft_model(plain, peft_configs(task, *where)[method]))
    theirs.save_pretrained(tmp_path / "theirs")
    trained = {n for n, p in theirs.get_base_model().named_parameters() if p.requires_grad}
    wanted = logits(theirs)
    state = torch.get_rng_state()
    mine = load_model(tmp_path / "theirs")  # has no config.json: its base tells all but the head
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(logits(mine), wanted, rtol=0, atol=0)
    assert set(ParameterSpace.of(mine).names) == trained
    assert all(p.requires_grad == (n in trained) for n, p in mine.named_parameters())


@pytest.mark.parametrize("kind", ["PrefixTuning", "PromptTuning", "PromptEncoder"])
def test_prompts_of_peft_are_refused(kind: str, tmp_path: Path) -> None:
    base = base_of(tmp_path)
    config = getattr(peft, f"{kind}Config")(task_type="SEQ_CLS", num_virtual_tokens=3)
    plain = AUTO["SEQ_CLS"].from_pretrained(base)
    peft.get_peft_model(plain, config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="landform train --tuning prefix"):
        load_model(tmp_path / "theirs")


def edited(path: Path, **changes: Any) -> Path:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


def test_methods_and_options_that_peft_does_not_know(tmp_path: Path) -> None:
    path = tuned(tmp_path / "run", base_of(tmp_path), "lora")
    before = logits(load_model(path))
    edited(path, some_new_thing=False, another=None)
    torch.testing.assert_close(logits(load_model(path)), before)
    edited(path, some_new_thing=3)
    with pytest.raises(CheckpointError, match=r"has some_new_thing, which PEFT .* does not know"):
        load_model(path)
    edited(path, some_new_thing=None, peft_type="HYPERLORA")
    with pytest.raises(CheckpointError, match="does not know the method 'HYPERLORA'"):
        load_model(path)
    edited(path, peft_type="LORA", r=0)
    with pytest.raises(CheckpointError, match="`r` should be a positive"):
        load_model(path)
    edited(path, r=3)
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_model(path)


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    path = tuned(tmp_path / "run", base_of(tmp_path), "lora")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"landform\[peft\]"):
        load_model(path)
    for method in ("adapter", "prefix", "prompt", "bitfit"):  # these need no package
        load_model(tuned(tmp_path / method, tmp_path / "bert-base", method))


# --- directories, bases and heads ----------------------------------------------------------------


@each_method
def test_directories_move_together_or_alone(method: str, tmp_path: Path) -> None:
    base = base_of(tmp_path / "here")
    path = tuned(tmp_path / "here" / "runs" / "seed0", base, method)
    wanted = logits(load_model(path))
    key = resolve(path).fingerprint
    alone = tmp_path / "elsewhere" / "deep" / "seed0"
    shutil.copytree(path, alone)
    torch.testing.assert_close(logits(load_model(alone)), wanted, rtol=0, atol=0)
    assert resolve(alone).fingerprint == key  # the same model in another place
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "runs" / "seed0"
    torch.testing.assert_close(logits(load_model(moved)), wanted, rtol=0, atol=0)
    assert resolve(moved).fingerprint == key
    with pytest.raises(CheckpointError, match=r"pre-trained model that it tunes .* is not there"):
        load_model(alone)


def test_the_base_that_fits_is_found_behind_one_that_does_not(tmp_path: Path) -> None:
    base = base_of(tmp_path / "here")
    path = tuned(tmp_path / "here" / "seed0", base, "adapter")
    wanted = logits(load_model(path))
    # Moved alone, beside another model of the same name.
    base_of(tmp_path / "there", seed=5)
    shutil.copytree(path, tmp_path / "there" / "seed0")
    torch.testing.assert_close(logits(load_model(tmp_path / "there" / "seed0")), wanted)
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=r"bert-base is not the one it tunes"):
        load_model(tmp_path / "there" / "seed0")


def test_a_base_that_changed_is_not_the_base(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    path = tuned(tmp_path / "run", base, "lora")
    family("bert", seed=4, dtype=torch.float32).save_pretrained(base)
    with pytest.raises(CheckpointError, match="are others now"):
        load_model(path)


def test_a_base_may_be_named_in_other_ways(tmp_path: Path, monkeypatch: Any) -> None:
    base = base_of(tmp_path)
    path = tuned(tmp_path / "run", base, "lora")
    wanted = logits(load_model(path))
    (path / "landform_base.json").unlink()
    for named in ("../bert-base", str(base)):
        torch.testing.assert_close(
            logits(load_model(edited(path, base_model_name_or_path=named))), wanted
        )
    monkeypatch.chdir(tmp_path)
    edited(path, base_model_name_or_path="bert-base")
    torch.testing.assert_close(logits(load_model(path)), wanted)
    for named in (None, "", "/not/there"):
        with pytest.raises(CheckpointError, match="is not there"):
            load_model(edited(path, base_model_name_or_path=named))
    with pytest.raises(CheckpointError, match=r"run: the pre-trained model that it tunes: org/no"):
        load_model(edited(path, base_model_name_or_path="org/no"))
    with pytest.raises(CheckpointError, match="is a tuned model itself"):
        load_model(edited(path, base_model_name_or_path=str(path)))


def test_models_of_the_hub_keep_their_name(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name" / "snapshots" / "abc123"
    assert _hub_place(cache) == {"base_model_name_or_path": "org/name", "revision": "abc123"}
    assert _hub_place(tmp_path / "snapshots" / "abc") == {}
    family("bert", dtype=torch.float32).save_pretrained(cache)
    path = tuned(tmp_path / "run", cache, "adapter")
    written = json.loads((path / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/name", "abc123")
    assert str(tmp_path) not in "".join(f.read_text() for f in path.glob("*.json"))


@each_method
@pytest.mark.parametrize("classes", [2, 5])
def test_the_base_may_be_a_classifier_with_any_head(
    method: str, classes: int, tmp_path: Path
) -> None:
    """It keeps its head where that fits, and gets one of another size where it does not."""
    base = base_of(tmp_path)  # two classes
    torch.manual_seed(0)
    model: Any = hf.BertForSequenceClassification.from_pretrained(
        base, num_labels=classes, ignore_mismatched_sizes=True
    )
    model.config.id2label = {i: f"class {i}" for i in range(classes)}
    tune(model, TuningConfig(tuning=method, **OPTIONS[method]), head=True)
    save_model(shaken(model), tmp_path / "run", base)
    read = load_model(tmp_path / "run")
    torch.testing.assert_close(logits(read), logits(model), rtol=0, atol=0)
    assert read.config.id2label == model.config.id2label
    assert {"classifier.weight", "classifier.bias"} <= {
        n.replace("modules_to_save.default.", "") for n in read.landform_tuned
    }


def test_a_head_that_was_not_saved_is_missed(tmp_path: Path) -> None:
    import safetensors.torch as st

    config = family("bert").config
    hf.BertModel(config).save_pretrained(tmp_path / "bert-base")
    model: Any = load_model(tmp_path / "bert-base", "classification", new_head=True)
    tune(model, TuningConfig(tuning="adapter", adapter_size=3), head=True)
    save_model(model, tmp_path / "run", tmp_path / "bert-base")
    file = tmp_path / "run" / "adapter_model.safetensors"
    tensors = st.load_file(file)
    st.save_file({k: v for k, v in tensors.items() if "classifier" not in k}, file)
    with pytest.raises(CheckpointError, match=r"no weights for classifier\.bias"):
        load_model(tmp_path / "run")
    lacking = "bert.encoder.layer.0.output.dense.adapter.up.weight"
    st.save_file({k: v for k, v in tensors.items() if k != lacking}, file)
    with pytest.raises(CheckpointError, match=f"lacks {lacking}"):
        load_model(tmp_path / "run")
    st.save_file({**tensors, "odd.weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"odd\.weight .* is none of the model's"):
        load_model(tmp_path / "run")
    st.save_file({**tensors, lacking: torch.zeros(2, 2)}, file)
    with pytest.raises(CheckpointError, match=r"is \(2, 2\) in adapter_model.* and \(16, 3\) in"):
        load_model(tmp_path / "run")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_pickled_adapters_are_read_only_when_asked_for(method: str, tmp_path: Path) -> None:
    import safetensors.torch as st

    path = tuned(tmp_path / "run", base_of(tmp_path), method)
    wanted = logits(load_model(path))
    tensors = st.load_file(path / "adapter_model.safetensors")
    (path / "adapter_model.safetensors").unlink()
    torch.save(tensors, path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle"):
        load_model(path)
    allowed = lf.weights.checkpoint.LoadConfig(allow_pickle=True)
    torch.testing.assert_close(logits(load_model(path, config=allowed)), wanted, rtol=0, atol=0)
    (path / "adapter_model.bin").write_bytes(b"no archive")
    with pytest.raises(CheckpointError):
        load_model(path, config=allowed)


def test_two_names_of_one_method_do_not_agree(tmp_path: Path) -> None:
    path = edited(
        tuned(tmp_path / "run", base_of(tmp_path), "adapter"), peft_type="LANDFORM_PROMPT"
    )
    with pytest.raises(CheckpointError, match="says LANDFORM_PROMPT and tuning adapter"):
        load_model(path)


# --- what is compared ----------------------------------------------------------------------------


def test_different_methods_sizes_and_bases_are_named(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    runs = {m: resolve(tuned(tmp_path / m, base, m)) for m in OPTIONS}
    with pytest.raises(SpaceMismatchError, match=r"adapter is adapter, .*lora is lora"):
        check_same_architecture(runs["adapter"], runs["lora"])
    with pytest.raises(SpaceMismatchError, match=r"bitfit is bitfit, .*bert-base is full"):
        check_same_architecture(runs["bitfit"], resolve(base))
    wide = resolve(tuned(tmp_path / "wide", base, "adapter", adapter_size=4))
    with pytest.raises(
        SpaceMismatchError, match=r"two kinds of adapter: adapter_size is 3 in .* and 4 in"
    ):
        check_same_architecture(runs["adapter"], wide)
    ranked = resolve(tuned(tmp_path / "ranked", base, "lora", lora_rank=4))
    with pytest.raises(SpaceMismatchError, match=r"two kinds of lora: r is 2 in .* and 4 in"):
        check_same_architecture(runs["lora"], ranked)
    other = base_of(tmp_path / "other", seed=3)
    elsewhere = resolve(tuned(tmp_path / "elsewhere", other, "adapter"))
    with pytest.raises(SpaceMismatchError, match="tune two different pre-trained models"):
        check_same_architecture(runs["adapter"], elsewhere)


def test_how_training_began_is_no_other_kind(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    one = tuned(tmp_path / "a", base, "adapter", init_std=0.02)
    two = tuned(tmp_path / "b", base, "adapter", init_std=0.08, adapter_activation="silu")
    check_same_architecture(resolve(one), resolve(two))
    one, two = (tuned(tmp_path / n, base, "lora") for n in ("c", "d"))
    edited(two, lora_dropout=0.3, task_type=None, modules_to_save=["classifier", "score"])
    check_same_architecture(resolve(one), resolve(two))


def test_tuned_models_are_not_aligned(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    one, two = (tuned(tmp_path / str(i), base, "adapter", seed=i) for i in range(2))
    with pytest.raises(ConfigError, match=r"are tuned \(adapter\): .* frozen"):
        lf.align(one, two)


def test_options_of_another_method_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="adapter_size is an option of tuning adapter, compacter or low-rank-adapter, not of "
        "lora",
    ):
        TuningConfig.parse({"tuning": "lora", "adapter_size": 3})
    with pytest.raises(ConfigError, match="name layers of this model"):
        tune(family("bert"), TuningConfig(tuning="lora", lora_modules=("q_proj",)), head=False)
    with pytest.raises(ConfigError, match="biases are missing in T5"):
        tune(family("t5"), TuningConfig(tuning="bitfit"), head=False)


def test_further_tensors_are_trained_besides(tmp_path: Path) -> None:
    norms = "*LayerNorm*"
    for method in OPTIONS:
        path = tuned(tmp_path / method, base_of(tmp_path), method, train_also=norms)
        read = load_model(path)
        names = {n for n in read.landform_tuned if "LayerNorm" in n}
        assert len(names) == 2 * (1 + 2 * 2)  # embeddings, and two in each of two layers
        assert "classifier" in head_modules(load_model(tmp_path / "bert-base"))


# --- merging -------------------------------------------------------------------------------------


@each_family("bert", "gpt2", "llama", "t5", "bart")
def test_merged_models_have_the_same_outputs(name: str, tmp_path: Path) -> None:
    base = base_of(tmp_path, name)
    path = tuned(tmp_path / "run", base, "lora", name)
    result = lf.merge(path, tmp_path / "merged")
    merged: Any = load_model(tmp_path / "merged")
    # Sums of float32 in another order; in float64, below, they are the same.
    torch.testing.assert_close(logits(merged), logits(load_model(path)), rtol=1e-2, atol=2e-3)
    assert not hasattr(merged, "landform_tuned")
    assert resolve(tmp_path / "merged").tuning is None
    ParameterSpace.of(merged).check_same(ParameterSpace.of(load_model(base)))
    head = 2 if kind_of(name) else 0
    assert len(result.changed) == len(load_model(path).landform_tuned) // 2 + head // 2
    plain: Any = type(merged).from_pretrained(tmp_path / "merged")  # and transformers reads it
    torch.testing.assert_close(logits(plain), logits(merged))
    exact = lf.merge(path, tmp_path / "exact", dtype="float64")
    double = lf.weights.checkpoint.LoadConfig(dtype="float64")
    a, b = (load_model(p, config=double) for p in (path, tmp_path / "exact"))
    torch.testing.assert_close(logits(a), logits(b), rtol=1e-12, atol=1e-12)
    assert exact.parameters == result.parameters


def test_merged_biases_are_exact(tmp_path: Path) -> None:
    path = tuned(tmp_path / "run", base_of(tmp_path), "bitfit")
    result = lf.merge(path, tmp_path / "merged")
    assert torch.equal(logits(load_model(tmp_path / "merged")), logits(load_model(path)))
    assert all(name.endswith("bias") or name == "classifier.weight" for name in result.changed)
    assert "bitfit" in result.reading and json.dumps(result.to_json())


def test_what_cannot_be_merged_is_said(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    for method in ("adapter", "prefix", "prompt"):
        path = tuned(tmp_path / method, base, method)
        with pytest.raises(ConfigError, match=f"{method} adds computation"):
            lf.merge(path, tmp_path / "merged")
    with pytest.raises(ConfigError, match="is a whole model"):
        lf.merge(base, tmp_path / "merged")
    with pytest.raises(StoreError, match="is there already"):
        lf.merge(tuned(tmp_path / "lora", base, "lora"), base)
    assert sorted(os.listdir(tmp_path)) == ["adapter", "bert-base", "lora", "prefix", "prompt"]


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_first_weights_taken_out_of_the_frozen_ones(start: str, tmp_path: Path) -> None:
    path = edited(tuned(tmp_path / "run", base_of(tmp_path), "lora"), init_lora_weights=start)
    for use in (load_model, lambda p: resolve(p).fingerprint):
        with pytest.raises(CheckpointError, match=f"init_lora_weights is '{start}'") as error:
            use(path)
        assert "path_initial_model_for_weight_conversion" in str(error.value.remedy)


@pytest.mark.parametrize("start", [None, True, False, "gaussian", "orthogonal", "eva"], ids=str)
def test_other_first_weights_are_overwritten(start: Any, tmp_path: Path) -> None:
    path = tuned(tmp_path / "run", base_of(tmp_path), "lora")
    before = logits(load_model(path))
    torch.testing.assert_close(logits(load_model(edited(path, init_lora_weights=start))), before)


def test_the_order_of_replicated_layers_tells_functions_apart() -> None:
    def told(**options: Any) -> Any:
        return _tuning_function({"peft_type": "LORA", **options}, "spec")

    one, two = (told(layer_replication=order) for order in ([[0, 2], [0, 1]], [[0, 1], [0, 2]]))
    assert one != two
    names = ["query", "value"]
    assert told(target_modules=names) == told(target_modules=names[::-1])
