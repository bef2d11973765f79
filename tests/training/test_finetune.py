"""What a run computes, and what it leaves behind."""

from __future__ import annotations

import json
import math
import os
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LabelError,
    NonFiniteError,
    StoreError,
)
from landform.tasks.task import load_task
from landform.training import loop
from landform.training.finetune import TrainStudy
from landform.training.loop import count_steps
from landform.training.options import TrainConfig
from landform.training.runs import RunDirectory
from landform.weights.checkpoint import load_model, load_tokenizer, resolve

QUICK = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3, "threads": 1}


def state(path):
    # Cloned: what is loaded may be a memory map of the file.
    return {name: tensor.clone() for name, tensor in load_model(path).state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# --- the product -----------------------------------------------------------------------------


def test_a_run_is_a_checkpoint_with_the_tasks_labels(pretrained, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    r = lf.train(
        pretrained, task, out="runs", seeds=(3, 5), epochs=2, batch_size=8,
        learning_rate=1e-2, save_steps=(0, 7), eval_steps=5, log_steps=3, threads=1,
    )  # fmt: skip
    assert r.runs.name.tolist() == ["seed3", "seed5"]
    assert r.runs.steps.tolist() == [14, 14]  # 2 epochs of ceil(50 / 8) batches
    assert r.paths == ("runs/seed3", "runs/seed5")
    assert resolve("runs/seed3").label_names() == ("negative", "positive")
    assert resolve("runs/seed3").config["label2id"] == {"negative": 0, "positive": 1}
    assert (
        load_tokenizer("runs/seed3@7")("good")["input_ids"]
        == load_tokenizer(pretrained)("good").input_ids
    )
    assert sorted(os.listdir(".")) == ["runs"]
    assert sorted(os.listdir("runs")) == ["seed3", "seed5"]
    assert not equal(state("runs/seed3@0"), state("runs/seed3@7"))
    with pytest.raises(CheckpointError, match="has no step 8"):
        resolve("runs/seed3@8")
    history = r.history[r.history.run == "seed5"]
    assert history.step.tolist() == [3, 5, 6, 9, 10, 12, 14]
    assert history["validation/loss"].notna().tolist() == [
        False,
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert "seed" not in r.reading and "validation/accuracy" in r.reading
    json.dumps(r.to_json())


def test_recorded_metrics_are_those_of_evaluate(pretrained, task, tmp_path):
    r = lf.train(pretrained, task, out=tmp_path / "o", **QUICK)
    e = lf.evaluate(r.paths[0], task, replicates=20)
    assert r.runs["validation/loss"][0] == pytest.approx(e.metrics["loss"], rel=1e-5)
    assert r.runs["validation/accuracy"][0] == e.metrics["accuracy"]


def test_it_learns(pretrained, task, tmp_path):
    r = lf.train(
        pretrained, task, out=tmp_path / "o", max_steps=80, batch_size=16, learning_rate=1e-2,
        threads=1,
    )  # fmt: skip
    assert r.runs["validation/accuracy"][0] >= 0.95 and r.runs.train_loss[0] < 0.2


def test_loss_and_learning_rate_of_the_first_steps(pretrained, task, tmp_path):
    """Against transformers' own loss, on all rows at once, without dropout."""
    r = lf.train(
        pretrained, task, out=tmp_path / "o", max_steps=20, warmup_ratio=0.2, batch_size=50,
        dropout=0.0, learning_rate=1e-3, save_steps=(0,), log_steps=1, eval_split=None, threads=1,
    )  # fmt: skip
    model, tokenizer = load_model(f"{r.paths[0]}@0"), load_tokenizer(pretrained)
    examples = task.examples("train")
    inputs = tokenizer([t[0] for t in examples.texts], padding=True, return_tensors="pt")
    loss = model(**inputs, labels=torch.tensor(examples.labels)).loss
    assert r.history.loss[0] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert r.history.grad_norm[0] == pytest.approx(norm.item(), rel=1e-4)
    # Step s (from 0) has rate s/4 in the warm-up of 4 steps, then falls to 0 at step 20.
    expected = [1e-3 * (s / 4 if s < 4 else (20 - s) / 16) for s in range(20)]
    np.testing.assert_allclose(r.history.learning_rate, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["causal-lm", "classification"])
def test_accumulation_divides_sums_by_counts_once(pretrained, gpt, files, tmp_path, kind):
    """Two passes of 5 rows are one of 10, also where rows have different numbers of targets."""
    language = kind == "causal-lm"
    task = load_task(files, text="sentence", label=None if language else "label", kind=kind)
    model = gpt if language else pretrained
    common = {"max_steps": 3, "dropout": 0.0, "log_steps": 1, "eval_split": None, "clip": 0.0}
    one = lf.train(model, task, out=tmp_path / "a", batch_size=10, threads=1, **common)
    two = lf.train(
        model, task, out=tmp_path / "b", batch_size=5, accumulation=2, threads=1, **common
    )
    np.testing.assert_allclose(one.history.loss, two.history.loss, rtol=1e-5)
    np.testing.assert_allclose(one.history.grad_norm, two.history.grad_norm, rtol=1e-4)


def test_parts_of_like_length_give_the_gradient_of_the_whole(gpt, files, tmp_path, monkeypatch):
    task = load_task(files, text="sentence", kind="causal-lm")
    common = {"max_steps": 2, "dropout": 0.0, "log_steps": 1, "eval_split": None, "threads": 1}
    whole = lf.train(gpt, task, out=tmp_path / "a", **common)
    monkeypatch.setattr(loop, "PASS_TOKENS", 3)
    assert len(loop.length_parts([3, 9, 9, 3])) == 2
    parts = lf.train(gpt, task, out=tmp_path / "b", **common)
    np.testing.assert_allclose(whole.history.loss, parts.history.loss, rtol=1e-5)
    np.testing.assert_allclose(whole.history.grad_norm, parts.history.grad_norm, rtol=1e-4)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(0, 80))
def test_parts_are_the_cheapest(lengths, overhead):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "PASS_TOKENS", overhead)
        parts = loop.length_parts(lengths)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))

    def cost(groups):
        return sum(len(g) * max(g) + overhead for g in groups)

    ordered, every = sorted(lengths), range(1, len(lengths))
    cuts = (c for k in range(len(lengths)) for c in combinations(every, k))
    cheapest = min(cost([ordered[a:b] for a, b in pairwise([0, *c, len(lengths)])]) for c in cuts)
    assert cost([[lengths[row] for row in part] for part in parts]) == cheapest


def test_steps_of_epochs():
    assert count_steps(50, TrainConfig(batch_size=8, epochs=3)) == 21
    assert count_steps(50, TrainConfig(batch_size=8, accumulation=2, epochs=3)) == 12
    assert count_steps(50, TrainConfig(batch_size=8, epochs=0.5)) == 4
    assert count_steps(50, TrainConfig(batch_size=8, max_steps=5)) == 5


def test_fractional_epochs_run_exactly_the_counted_steps(pretrained, task, tmp_path):
    options = {"batch_size": 8, "accumulation": 3, "epochs": 1.5, "log_steps": 1, "threads": 1}
    r = lf.train(pretrained, task, out=tmp_path / "o", eval_split=None, **options)
    # ceil(ceil(50/8)/3) = 3 steps an epoch, 1.5 of them: 5 steps, the third of one batch only.
    assert r.history.step.tolist() == [1, 2, 3, 4, 5]


def test_dropout_option_reaches_every_rate(pretrained, task, tmp_path):
    r = lf.train(pretrained, task, out=tmp_path / "o", dropout=0.25, eval_split=None, **QUICK)
    config = resolve(r.paths[0]).config
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.25
    assert config["classifier_dropout"] == 0.25
    assert resolve(pretrained).config["hidden_dropout_prob"] == 0.1


def test_only_the_chosen_rows_are_used_and_listed(pretrained, task, tmp_path):
    r = lf.train(
        pretrained, task, out=tmp_path / "o", rows=10, stratified=True, eval_split=None, **QUICK
    )
    listed = (tmp_path / "o/seed0/train_rows.txt").read_text().split()
    assert len(listed) == 10 == r.runs.rows[0]
    assert set(listed) <= set(task.examples("train").ids)
    again = lf.train(
        pretrained, task, out=tmp_path / "o", eval_split=None,
        row_file=tmp_path / "o/seed0/train_rows.txt", **QUICK,
    )  # fmt: skip
    assert again.runs.reused.tolist() == [True]  # the same rows, however they were chosen


# --- other kinds of tasks --------------------------------------------------------------------


def test_regression(pretrained, tmp_path):
    path = tmp_path / "r.tsv"
    lines = [f"the dog {'good ' * (i % 4)}bad\t{i % 4}.5" for i in range(24)]
    path.write_text("sentence\tscore\n" + "\n".join(lines) + "\n")
    files = {"train": str(path), "validation": str(path)}
    task = load_task(files, text="sentence", label="score", kind="regression")
    r = lf.train(
        pretrained, task, out=tmp_path / "o", max_steps=80, batch_size=24, learning_rate=3e-3,
        dropout=0.0, threads=1,
    )  # fmt: skip
    config = resolve(r.paths[0]).config
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    assert r.runs.train_loss[0] < 1 < r.history.loss[0]
    assert r.runs["validation/pearson"][0] > 0.8


def test_causal_lm_without_a_padding_token(gpt, files, tmp_path):
    task = load_task(files, text="sentence", kind="causal-lm")
    r = lf.train(gpt, task, out=tmp_path / "o", dropout=0.2, **{**QUICK, "max_steps": 30})
    assert r.runs.train_loss[0] < r.history.loss[0]
    assert r.runs["validation/loss"][0] < math.log(19)
    config = resolve(r.paths[0]).config
    assert config["attn_pdrop"] == config["embd_pdrop"] == config["resid_pdrop"] == 0.2


def test_masked_lm(pretrained, files, tmp_path):
    task = load_task(files, text="sentence", kind="masked-lm")
    r = lf.train(pretrained, task, out=tmp_path / "o", **{**QUICK, "max_steps": 30})
    assert r.runs.train_loss[0] < r.history.loss[0]


def test_a_head_of_its_own_keeps_its_label_order(pretrained, task, tmp_path):
    first = lf.train(
        pretrained, task, out=tmp_path / "a", max_steps=60, batch_size=16, learning_rate=1e-2,
        threads=1,
    )  # fmt: skip
    # The same model with its two outputs exchanged, as another family of models would have them.
    model = load_model(first.paths[0])
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.config.id2label = {0: "positive", 1: "negative"}
    model.config.label2id = {"positive": 0, "negative": 1}
    model.save_pretrained(tmp_path / "flipped")
    load_tokenizer(pretrained).save_pretrained(tmp_path / "flipped")
    r = lf.train(
        tmp_path / "flipped", task, out=tmp_path / "b", max_steps=1, learning_rate=1e-6, threads=1
    )
    assert resolve(r.paths[0]).label_names() == ("positive", "negative")
    assert r.runs["validation/accuracy"][0] >= 0.95
    assert r.history.loss[0] < 0.3


def test_new_head_replaces_one_that_is_there(pretrained, task, tmp_path):
    first = lf.train(pretrained, task, out=tmp_path / "a", eval_split=None, **QUICK)
    other = lf.train(
        first.paths[0], task, out=tmp_path / "b", eval_split=None, new_head=True, save_steps=(0,),
        **QUICK,
    )  # fmt: skip
    old, new = state(first.paths[0]), state(f"{other.paths[0]}@0")
    assert [n for n in old if not torch.equal(old[n], new[n])] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert not new["classifier.bias"].any()


# --- reuse and conflict ----------------------------------------------------------------------


def test_a_finished_run_is_reused_and_seeds_can_be_added(pretrained, task, tmp_path):
    lf.train(pretrained, task, out=tmp_path / "o", seeds=(0,), **QUICK)
    before = (tmp_path / "o/seed0/model.safetensors").stat().st_mtime_ns
    r = lf.train(pretrained, task, out=tmp_path / "o", seeds=(0, 1), **QUICK)
    assert r.runs.reused.tolist() == [True, False]
    assert (tmp_path / "o/seed0/model.safetensors").stat().st_mtime_ns == before


def test_other_options_in_the_same_place_are_an_error_that_names_them(pretrained, task, tmp_path):
    lf.train(pretrained, task, out=tmp_path / "o", **QUICK)
    before = state(tmp_path / "o/seed0")
    with pytest.raises(ConfigError, match=r"options\.weight_decay was 0\.01, now 0\.5"):
        lf.train(pretrained, task, out=tmp_path / "o", weight_decay=0.5, **QUICK)
    with pytest.raises(ConfigError, match=r"seeds\.head_seed was 0, now 4"):
        lf.train(pretrained, task, out=tmp_path / "o", head_seed=4, **QUICK)
    with pytest.raises(ConfigError, match="train was"):
        lf.train(pretrained, task, out=tmp_path / "o", rows=9, **QUICK)
    assert equal(state(tmp_path / "o/seed0"), before)
    r = lf.train(pretrained, task, out=tmp_path / "o", overwrite=True, **{**QUICK, "max_steps": 5})
    assert r.runs.steps.tolist() == [5] and not equal(state(tmp_path / "o/seed0"), before)


def test_a_run_of_a_task_that_means_its_codes_differently_is_not_reused(pretrained, tmp_path):
    """Same rows, same weights; but 0 and 1 stand for other names."""
    rows = [{"text": f"w{i} w{i + 1}", "label": i % 2} for i in range(12)]

    def task(**changes):
        return lf.load_task({"train": rows}, text="text", label="label", **changes)

    options = {**QUICK, "eval_split": None}
    keys = [
        TrainStudy.of(pretrained, task(label_names=names), out=tmp_path / "o", **options)
        .plan.jobs[0]
        .key
        for names in (("neg", "pos"), ("pos", "neg"))
    ]
    assert keys[0] != keys[1]


def test_a_damaged_run_is_trained_again(pretrained, task, tmp_path):
    lf.train(pretrained, task, out=tmp_path / "o", **QUICK)
    before = state(tmp_path / "o/seed0")
    file = tmp_path / "o/seed0/model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    r = lf.train(pretrained, task, out=tmp_path / "o", **QUICK)
    assert r.runs.reused.tolist() == [False] and equal(state(tmp_path / "o/seed0"), before)


def test_a_dry_run_writes_nothing(pretrained, task, tmp_path):
    study = TrainStudy.of(pretrained, task, out=tmp_path / "o", seeds=(0, 1), **QUICK)
    assert study.forecast().jobs == 2 and study.forecast().evaluations == 8
    assert not (tmp_path / "o").exists()


# --- bad input -------------------------------------------------------------------------------


def test_nan_names_run_and_step_and_leaves_nothing(pretrained, task, tmp_path):
    options = {**QUICK, "learning_rate": 1e30, "max_steps": 8, "resume_steps": 1, "clip": 0.0}
    with pytest.raises(NonFiniteError, match=r"seed2: .*(at|after) step [2-8]"):
        lf.train(pretrained, task, out=tmp_path / "o", seeds=(2,), eval_split=None, **options)
    assert not (tmp_path / "o").exists()


def test_nan_on_a_chosen_step_is_the_training_loss(pretrained, task, tmp_path, monkeypatch):
    original = loop._LandformTrainer.compute_loss

    def spoiled(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step == 2:
            loss = loss * math.nan
            self.recent[-1] = (self.recent[-1][0], loss.detach())
        return loss

    monkeypatch.setattr(loop._LandformTrainer, "compute_loss", spoiled)
    with pytest.raises(NonFiniteError, match="seed0: the training loss is nan at step 3"):
        lf.train(pretrained, task, out=tmp_path / "o", eval_split=None, **QUICK)


def test_save_steps_beyond_the_last(pretrained, task, tmp_path):
    with pytest.raises(ConfigError, match="step 9 lies beyond the last step, 4"):
        lf.train(pretrained, task, out=tmp_path / "o", save_steps=(2, 9), **QUICK)
    assert not (tmp_path / "o").exists()


def test_out_is_a_file(pretrained, task, tmp_path):
    (tmp_path / "o").write_text("x")
    with pytest.raises(StoreError, match="/o"):
        lf.train(pretrained, task, out=tmp_path / "o", **QUICK)


def test_other_peoples_files_are_never_replaced(pretrained, task, tmp_path):
    (tmp_path / "o/seed0").mkdir(parents=True)
    (tmp_path / "o/seed0/thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="holds other things than a run"):
        lf.train(pretrained, task, out=tmp_path / "o", overwrite=True, **QUICK)
    (tmp_path / "p").mkdir()
    (tmp_path / "p/seed0").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        lf.train(pretrained, task, out=tmp_path / "p", overwrite=True, **QUICK)


def test_model_without_weights(pretrained, task, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text((pretrained / "config.json").read_text())
    with pytest.raises(CheckpointError, match="no weights"):
        lf.train(tmp_path / "m", task, out=tmp_path / "o", **QUICK)


def test_a_head_that_does_not_fit(pretrained, task, files, tmp_path):
    r = lf.train(pretrained, task, out=tmp_path / "a", eval_split=None, **QUICK)
    path = tmp_path / "three.tsv"
    path.write_text("sentence\tlabel\n" + "the dog good\tx\nthe cat bad\ty\na bird\tz\n" * 3)
    three = load_task({"train": str(path)}, text="sentence", label="label")
    with pytest.raises(LabelError, match="its head does not fit the task") as caught:
        lf.train(r.paths[0], three, out=tmp_path / "b", eval_split=None, **QUICK)
    assert "new_head" in str(caught.value)
    r = lf.train(r.paths[0], three, out=tmp_path / "b", eval_split=None, new_head=True, **QUICK)
    assert resolve(r.paths[0]).label_names() == ("x", "y", "z")


def test_unknown_split_says_how_to_do_without(pretrained, files, tmp_path):
    task = load_task({"train": files["train"]}, text="sentence", label="label")
    with pytest.raises(DataError, match="eval_split=None"):
        lf.train(pretrained, task, out=tmp_path / "o", **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"learning_rate": -1}, "option learning_rate"),
        ({"learning_rate": math.nan}, "option learning_rate"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "a seed occurs twice"),
        ({"seeds": (-1,)}, "option seeds"),
        ({"dropout": 1.0}, "option dropout"),
        ({"epochs": 0}, "option epochs"),
        ({"save_steps": (-3,)}, "option save_steps"),
        ({"prefix": "../x"}, "option prefix"),
        ({"device": "gpu"}, "option device"),
    ],
)
def test_absurd_options(pretrained, task, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        lf.train(pretrained, task, out=tmp_path / "o", **options)


def test_max_length_beyond_the_model(pretrained, task, tmp_path):
    with pytest.raises(DataError, match="max_length 400"):
        lf.train(pretrained, task, out=tmp_path / "o", max_length=400, **QUICK)
    assert not (tmp_path / "o").exists()


def test_another_process_at_the_same_run(pretrained, task, tmp_path):
    with (
        RunDirectory(tmp_path / "o/seed0").claimed("train/other"),
        pytest.raises(StoreError, match=r"another process is training .*seed0"),
    ):
        lf.train(pretrained, task, out=tmp_path / "o", **QUICK)
    r = lf.train(pretrained, task, out=tmp_path / "o", **QUICK)
    assert os.listdir(tmp_path / "o") == ["seed0"] and Path(r.paths[0]).is_dir()


@pytest.fixture
def hidden(monkeypatch):
    """What every batch of a training asks for: {(row, position): token}, in order."""
    seen: list[dict[tuple[int, int], int]] = []
    original = loop._LandformTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        seen.append(
            {
                (row, position): token
                for part in inputs["parts"]
                for row, labels in zip(part["rows"].tolist(), part["labels"].tolist(), strict=True)
                for position, token in enumerate(labels)
                if token != -100
            }
        )
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(loop._LandformTrainer, "compute_loss", spy)
    return seen


def test_masks_are_new_in_every_epoch_and_under_every_seed(pretrained, files, tmp_path, hidden):
    """50 rows in batches of 25: two steps are an epoch, which hides tokens of every row once."""
    task = load_task(files, text="sentence", kind="masked-lm")
    count = iter(range(10))

    def epochs(**options):
        hidden.clear()
        out = tmp_path / f"o{next(count)}"
        lf.train(pretrained, task, out=out, batch_size=25, max_steps=6, eval_split=None,
                 threads=1, **options)  # fmt: skip
        return [{**hidden[i], **hidden[i + 1]} for i in (0, 2, 4)]

    first = epochs(seeds=0)
    assert all({row for row, _ in epoch} == set(range(50)) for epoch in first)
    assert len({tuple(sorted(epoch)) for epoch in first}) == 3, "other positions in every epoch"
    assert epochs(seeds=0) == first
    assert epochs(seeds=1, data_seed=0) == first, "the data seed decides"
    assert not {tuple(sorted(e)) for e in epochs(seeds=1)} & {tuple(sorted(e)) for e in first}


def test_masks_survive_an_interruption(pretrained, files, tmp_path, hidden, monkeypatch):
    task = load_task(files, text="sentence", kind="masked-lm")
    common = dict(batch_size=25, max_steps=6, eval_split=None, threads=1, resume_steps=1)
    lf.train(pretrained, task, out=tmp_path / "a", **common)
    whole = list(hidden)
    hidden.clear()
    original = loop._LandformTrainer.compute_loss

    def stop(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._LandformTrainer, "compute_loss", stop)
        lf.train(pretrained, task, out=tmp_path / "b", **common)
    assert hidden == whole[:3]
    lf.train(pretrained, task, out=tmp_path / "b", **common)
    assert hidden == whole


def test_a_decoder_is_trained_and_saved_with_its_own_padding_id(gpt, task, tmp_path):
    """In every run, also in those for which the rows were prepared before."""
    runs = lf.train(gpt, task, out=tmp_path / "o", seeds=(0, 1), max_steps=1, threads=1)
    tokenizer = load_tokenizer(gpt)
    for path in runs.paths:
        assert load_model(path).config.pad_token_id == tokenizer.eos_token_id
    other = tmp_path / "other"
    model = load_model(gpt, "causal-lm")
    model.config.pad_token_id = 1
    model.save_pretrained(other)
    load_tokenizer(gpt).save_pretrained(other)
    work = TrainStudy.of(other, task, out=tmp_path / "p", max_steps=1).work
    worker = work()
    encoded = worker._prepare(load_model(other, "classification", new_head=True))
    assert encoded.pad_id == 1 and set(encoded.rows[0]) == {"input_ids", "labels"}
