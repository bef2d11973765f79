"""Recording training dynamics: in `train`, and in a Trainer of somebody else's."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch

import landform as lf
from landform.errors import ConfigError, LabelError, StoreError
from landform.evaluation.cartography import FILE, read_dynamics
from landform.training.cartography import CartographyCallback, steps_per_epoch
from landform.training.options import TrainConfig, identity
from landform.weights.checkpoint import load_model

OPTIONS = {
    "epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "threads": 1, "cartography": True,
}  # fmt: skip


def state(path):
    # Cloned: what is loaded may be a memory map of the file.
    return {name: tensor.clone() for name, tensor in load_model(path).state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def alone(path, task, kind="classification"):
    """Confidence, correctness and margin of every training row, one at a time in float64."""
    from landform.weights.checkpoint import load_tokenizer

    model, tokenizer = load_model(path).double(), load_tokenizer(path)
    found = []
    with torch.no_grad():
        examples = task.examples("train")
        for (text,), label in zip(examples.texts, examples.labels, strict=True):
            z = model(**tokenizer(text, return_tensors="pt")).logits[0]
            p = z.softmax(-1)
            others = torch.cat([z[:label], z[label + 1 :]]).logsumexp(0)
            found.append((float(p[label]), int(z.argmax()) == label, float(z[label] - others)))
    return map(np.array, zip(*found, strict=True))


# --- train ---------------------------------------------------------------------------------------


def test_every_epoch_is_that_of_the_kept_checkpoint(pretrained, task, tmp_path):
    """50 rows in batches of 8 are 7 steps an epoch; the rows are also evaluated in batches."""
    r = lf.train(pretrained, task, out=tmp_path, save_steps=(7, 14, 21), seeds=(0, 1), **OPTIONS)
    for path in r.paths:
        d = read_dynamics(path)
        assert d.epochs.tolist() == [1, 2, 3] and d.ids == task.examples("train").ids
        for epoch, step in enumerate((7, 14, 21)):
            p, c, m = alone(f"{path}@{step}", task)
            np.testing.assert_allclose(d.confidence[epoch], p, atol=1e-6)
            np.testing.assert_array_equal(d.correct[epoch], c)
            np.testing.assert_allclose(d.margin[epoch], m, atol=1e-5)
        table = lf.cartography(path, task)
        assert len(table) == 50 and table.text_id.tolist() == list(d.ids)
        np.testing.assert_allclose(table.confidence, d.confidence.mean(0))
    assert not equal(state(r.paths[0]), state(r.paths[1]))


def test_recording_changes_no_weight_and_no_history(pretrained, task, tmp_path):
    plain = lf.train(pretrained, task, out=tmp_path / "a", **{**OPTIONS, "cartography": False})
    mapped = lf.train(pretrained, task, out=tmp_path / "b", **OPTIONS)
    assert equal(state(plain.paths[0]), state(mapped.paths[0]))
    columns = [c for c in plain.history if c != "seconds"]
    pd.testing.assert_frame_equal(plain.history[columns], mapped.history[columns])
    assert not (tmp_path / "a" / "seed0" / FILE).exists()
    files = {p.name for p in (tmp_path / "b" / "seed0").iterdir()}
    assert files == {p.name for p in (tmp_path / "a" / "seed0").iterdir()} | {FILE}
    with pytest.raises(StoreError, match="train with cartography"):
        lf.cartography(plain.paths[0])


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"epochs": 1.5}, [1, 11 / 7]),
        ({"max_steps": 4}, [4 / 7]),
        ({"accumulation": 3}, [1, 2, 3]),
    ],
    ids=["fraction", "steps", "accumulation"],
)
def test_whole_epochs_and_the_end(pretrained, task, tmp_path, options, epochs):
    options = {**OPTIONS, **options}
    r = lf.train(pretrained, task, out=tmp_path, eval_split=None, **options)
    d = read_dynamics(r.paths[0])
    np.testing.assert_allclose(d.epochs, epochs)
    p, _, _ = alone(r.paths[0], task)
    np.testing.assert_allclose(d.confidence[-1], p, atol=1e-6)


def test_the_end_of_a_training_that_stops_early(pretrained, task, tmp_path):
    """The second evaluation, at step 8 of 21, is no better than the first."""
    options = {**OPTIONS, "learning_rate": 1e-12, "eval_steps": 4, "early_stop": 1}
    r = lf.train(pretrained, task, out=tmp_path, **options)
    assert r.runs.steps.tolist() == [8]
    np.testing.assert_allclose(read_dynamics(r.paths[0]).epochs, [1, 8 / 7])


@pytest.mark.parametrize("tuning", ["lora", "adapter"])
def test_tuned_models_are_measured_as_they_are_evaluated(pretrained, task, tmp_path, tuning):
    r = lf.train(pretrained, task, out=tmp_path, tuning=tuning, **{**OPTIONS, "epochs": 1})
    log = lf.evaluate(r.paths[0], task, split="train", replicates=20).log
    d = read_dynamics(r.paths[0])
    np.testing.assert_allclose(d.confidence[0], np.exp(-log.loss), rtol=1e-5)
    np.testing.assert_array_equal(d.correct[0], log.correct)


def test_steps_of_an_epoch():
    assert [steps_per_epoch(50, 8, k) for k in (1, 2, 3, 7, 8)] == [7, 4, 3, 1, 1]


def test_a_run_on_some_rows_knows_their_places(pretrained, task, tmp_path):
    r = lf.train(pretrained, task, out=tmp_path, rows=20, **{**OPTIONS, "epochs": 1})
    d = read_dynamics(r.paths[0])
    ids = task.examples("train").ids
    assert len(d.ids) == 20 and [ids[row] for row in d.rows] == list(d.ids)
    m = lf.data_map(r.paths[0], task, replicates=20)
    examples = task.examples("train")
    assert m.table.text.tolist() == [examples.texts[row][0] for row in m.table.row]
    # What it says is hard can be trained on.
    from landform.evaluation.map_subsets import choose_subset
    from landform.tasks.rows import write_row_file

    rows = write_row_file(choose_subset(m.table, "hard", size=5), tmp_path / "rows.txt")
    again = lf.train(
        pretrained, task, out=tmp_path / "hard", row_file=rows, **{**OPTIONS, "epochs": 1}
    )
    assert again.runs.rows.tolist() == [5]


def test_it_is_no_part_of_a_runs_identity(pretrained, task, tmp_path):
    plain = {**OPTIONS, "cartography": False, "epochs": 1}
    assert identity(TrainConfig(cartography=True)) == identity(TrainConfig())
    first = lf.train(pretrained, task, out=tmp_path, **plain)
    weights = state(first.paths[0])
    with pytest.warns(UserWarning, match="without cartography: it is trained again, to the same"):
        second = lf.train(pretrained, task, out=tmp_path, **{**plain, "cartography": True})
    assert second.runs.reused.tolist() == [False] and equal(state(second.paths[0]), weights)
    assert (tmp_path / "seed0" / FILE).is_file()
    for cartography in (True, False):
        third = lf.train(pretrained, task, out=tmp_path, **{**plain, "cartography": cartography})
        assert third.runs.reused.tolist() == [True]


def test_a_regression_has_no_map(pretrained, tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tscore\ngood dog\t0.5\nbad cat\t1.25\n")
    task = lf.load_task({"train": str(path)}, text="sentence", label="score", kind="regression")
    with pytest.raises(ConfigError, match="is a regression"):
        lf.train(pretrained, task, out=tmp_path / "o", eval_split=None, **OPTIONS)
    assert not (tmp_path / "o").exists()


def test_language_models_have_the_probability_of_their_tokens(gpt, files, tmp_path):
    task = lf.load_task(files, text="sentence", kind="causal-lm")
    r = lf.train(gpt, task, out=tmp_path, **{**OPTIONS, "epochs": 1})
    d = read_dynamics(r.paths[0])
    e = lf.evaluate(r.paths[0], task, split="train", replicates=20)
    np.testing.assert_allclose(d.confidence[0], np.exp(-e.log.loss), rtol=1e-4)
    np.testing.assert_array_equal(d.correct[0], e.log.correct == 1)
    assert "tokens" in d.about["measure"] and np.isfinite(d.margin).all()


# --- text to text ---------------------------------------------------------------------------------


def token_losses(path, text, answer):
    """-log p of every token of one target after the sentinel, one unpadded pair in float64."""
    from transformers import AutoModelForSeq2SeqLM

    from text_models import text_tokenizer

    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path).double().eval(), text_tokenizer()
    source = tokenizer(f" [toy] {text}", return_tensors="pt")
    target = tokenizer(f"<extra_id_0>{answer}", return_tensors="pt").input_ids
    with torch.no_grad():
        z = model(**source, labels=target).logits[0]
    return np.array([float(-z[t].log_softmax(-1)[y]) for t, y in enumerate(target[0])])


def text_task(tmp_path, rows):
    from text_models import write_answers

    write_answers(tmp_path / "toy" / "toy_train.tsv", rows)
    return lf.load_task(tmp_path / "toy", kind="text-to-text", metrics="exact_match")


TEXT_OPTIONS = {**OPTIONS, "epochs": 2, "batch_size": 4, "eval_split": None}


def test_answers_of_a_closed_set_have_teacher_forced_probabilities(tmp_path):
    """Some answers are the beginning of others, and a row may accept several."""
    from text_models import save_text_model

    answers = [("yes",), ("no",), ("no w1",), ("yes", "no"), ("no",), ("yes",), ("no w1",)]
    rows = [(f"w{i} w{i + 3} w2", *accepted) for i, accepted in enumerate(answers)]
    task = text_task(tmp_path, rows)
    start = save_text_model(tmp_path / "start")
    r = lf.train(start, task, out=tmp_path / "runs", save_steps=(2, 4), **TEXT_OPTIONS)
    d = read_dynamics(r.paths[0])
    assert d.about["measure"] == "probability among 3 answers"
    for epoch, step in enumerate((2, 4)):
        for i, (text, *accepted) in enumerate(rows):
            path = tmp_path / "runs" / "seed0" / f"checkpoint-{step}"
            p = {a: np.exp(-token_losses(path, text, a)[1:].sum()) for a in ("yes", "no", "no w1")}
            share = sum(p[a] for a in accepted) / sum(p.values())
            assert d.confidence[epoch, i] == pytest.approx(share, rel=1e-4)
            assert d.correct[epoch, i] == (max(p, key=p.get) in accepted)
            assert d.margin[epoch, i] == pytest.approx(np.log(share / (1 - share)), abs=1e-3)
    m = lf.data_map(r.paths[0], task, replicates=20)
    assert m.table.label[3] == "yes | no"


def test_free_answers_have_the_probability_of_their_tokens(tmp_path):
    from text_models import save_text_model

    rows = [(f"w{i} w2", f"w{i} w{i + 1}") for i in range(6)]
    task = text_task(tmp_path, rows)
    start = save_text_model(tmp_path / "start")
    r = lf.train(start, task, out=tmp_path / "runs", **{**TEXT_OPTIONS, "epochs": 1})
    d = read_dynamics(r.paths[0])
    assert "tokens" in d.about["measure"]
    for i, (text, answer) in enumerate(rows):
        expected = np.exp(-token_losses(r.paths[0], text, answer).mean())
        assert d.confidence[0, i] == pytest.approx(expected, rel=1e-4)


# --- killed --------------------------------------------------------------------------------------

SCRIPT = """
import json, os, signal, sys
import landform as lf
from landform.training import cartography, runs

model, files, out, options, place = map(json.loads, sys.argv[1:])

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if place == "finish":
    original = runs.write_json
    runs.write_json = lambda path, v: die() if path.name == runs.RECORD else original(path, v)
else:  # while the second epoch is measured
    measure = cartography.Probe.measure
    cartography.Probe.measure = lambda self, where: (
        die() if where.endswith("step 14") else measure(self, where)
    )
task = lf.load_task(files, text="sentence", label="label")
lf.train(model, task, out=out, **options)
"""


@pytest.mark.parametrize(
    ("place", "resume_steps", "kept"),
    [("record", 5, 1), ("finish", 5, 3)],
    ids=["while-measuring", "at-the-end"],
)
def test_a_killed_run_has_the_identical_record(
    zygote, pretrained, files, task, tmp_path, place, resume_steps, kept
):
    options = {**OPTIONS, "resume_steps": resume_steps}
    lf.train(pretrained, task, out=tmp_path / "whole", **options)
    out = str(tmp_path / "o")
    arguments = [json.dumps(v) for v in (str(pretrained), files, out, options, place)]
    ended = zygote.run(arguments, tmp_path, script=SCRIPT)
    assert ended.status == -signal.SIGKILL, ended.err
    partial = tmp_path / "o" / ".seed0.partial"
    assert len(list(partial.glob("epoch-*"))) == kept and list(partial.glob("state-*"))
    lf.train(pretrained, task, out=tmp_path / "o", **options)
    whole, resumed = (tmp_path / name / "seed0" / FILE for name in ("whole", "o"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert os.listdir(tmp_path / "o") == ["seed0"]
    assert equal(state(tmp_path / "whole" / "seed0"), state(tmp_path / "o" / "seed0"))


def test_a_run_under_way_without_a_record_starts_again_with_one(
    pretrained, task, tmp_path, monkeypatch
):
    from landform.training import loop

    step_end = loop._Companion.on_step_end

    def interrupted(self, args, state, control, **named):
        step_end(self, args, state, control, **named)
        if state.global_step == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Companion, "on_step_end", interrupted)
    options = {**OPTIONS, "resume_steps": 5}
    with pytest.raises(KeyboardInterrupt):
        lf.train(pretrained, task, out=tmp_path, **{**options, "cartography": False})
    assert list((tmp_path / ".seed0.partial").glob("state-*"))
    monkeypatch.setattr(loop._Companion, "on_step_end", step_end)
    lf.train(pretrained, task, out=tmp_path, **options)
    assert read_dynamics(tmp_path / "seed0").epochs.tolist() == [1, 2, 3]


# --- somebody else's Trainer ---------------------------------------------------------------------


def own_trainer(pretrained, task, out, callback, *, epochs=2, resume=None, **arguments):
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    torch.manual_seed(0)
    names = dict(enumerate(task.label_names))
    model = AutoModelForSequenceClassification.from_pretrained(
        pretrained, id2label=names, label2id={name: i for i, name in names.items()}
    )
    examples = task.examples("train")
    rows = [
        {**tokenizer(text), "labels": int(label)}
        for (text,), label in zip(examples.texts, examples.labels, strict=True)
    ]
    trainer = Trainer(
        model,
        TrainingArguments(
            str(out), num_train_epochs=epochs, per_device_train_batch_size=8, learning_rate=1e-2,
            report_to="none", use_cpu=True, seed=0, disable_tqdm=True, save_strategy="epoch",
            **arguments,
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture
def tokenizer(pretrained):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pretrained)


def test_a_callback_records_in_a_trainer_of_ones_own(pretrained, tokenizer, task, tmp_path):
    callback = lf.CartographyCallback(task, tokenizer, out=tmp_path / "run")
    with_record = own_trainer(pretrained, task, tmp_path / "t", callback)
    d = read_dynamics(tmp_path / "run")
    assert d.epochs.tolist() == [1, 2]
    checkpoints = sorted((tmp_path / "t").glob("checkpoint-*"), key=lambda p: p.stat().st_mtime)
    for epoch, path in enumerate(checkpoints):
        tokenizer.save_pretrained(path)
        p, c, m = alone(path, task)
        np.testing.assert_allclose(d.confidence[epoch], p, atol=1e-6)
        np.testing.assert_array_equal(d.correct[epoch], c)
        np.testing.assert_allclose(d.margin[epoch], m, atol=1e-5)
    assert len(lf.cartography(tmp_path / "run", task)) == 50
    without = own_trainer(pretrained, task, tmp_path / "u", None)
    assert equal(with_record.model.state_dict(), without.model.state_dict())


def test_a_resumed_trainer_goes_on_with_its_record(pretrained, tokenizer, task, tmp_path):
    def callback(name):
        return CartographyCallback(task, tokenizer, out=tmp_path / name / "map.parquet")

    own_trainer(pretrained, task, tmp_path / "t", callback("whole"), epochs=3)
    whole = read_dynamics(tmp_path / "whole" / "map.parquet")
    # The file is as a kill within the third epoch leaves it.
    read = read_dynamics(tmp_path / "whole" / "map.parquet")
    part = {n: getattr(read, n)[:2] for n in ("epochs", "confidence", "correct", "margin")}
    type(read)(**{**read.__dict__, **part}).write(tmp_path / "part" / "map.parquet")
    own_trainer(
        pretrained, task, tmp_path / "t", callback("part"), epochs=3,
        resume=str(tmp_path / "t" / "checkpoint-14"),
    )  # fmt: skip
    resumed = read_dynamics(tmp_path / "part" / "map.parquet")
    np.testing.assert_array_equal(resumed.epochs, whole.epochs)
    np.testing.assert_allclose(resumed.confidence, whole.confidence, atol=1e-6)
    # Begun anew, a training does not go on with what another one left.
    own_trainer(pretrained, task, tmp_path / "t2", callback("part"), epochs=1)
    assert read_dynamics(tmp_path / "part" / "map.parquet").epochs.tolist() == [1]


def test_what_a_callback_refuses(pretrained, tokenizer, task, tmp_path):
    path = tmp_path / "scores.tsv"
    path.write_text("sentence\tscore\ngood dog\t0.5\nbad cat\t1.25\n")
    scores = lf.load_task({"train": str(path)}, text="sentence", label="score", kind="regression")
    with pytest.raises(ConfigError, match="is a regression"):
        CartographyCallback(scores, tokenizer, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="is not a task"):
        CartographyCallback("sst2", tokenizer, out=tmp_path / "run")
    from types import SimpleNamespace

    callback = CartographyCallback(task, tokenizer, out=tmp_path / "run")
    unnamed = SimpleNamespace(config=SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"}))
    with pytest.raises(LabelError, match=r"model_labels=task\.label_names"):
        callback._objective(unnamed)
    named = CartographyCallback(
        task, tokenizer, out=tmp_path / "run", model_labels=task.label_names
    )
    assert named._objective(unnamed).labels is not None


def test_a_callback_leaves_the_models_own_config(pretrained, tokenizer, task, tmp_path):
    from types import SimpleNamespace

    model = load_model(pretrained, "classification", new_head=True)
    model.config.id2label = dict(enumerate(task.label_names))
    model.config.pad_token_id = None
    seen, forward = [], model.forward

    def spy(input_ids=None, attention_mask=None, token_type_ids=None):
        seen.append(model.config.pad_token_id)
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )

    model.forward = spy
    callback = CartographyCallback(task, tokenizer, out=tmp_path / "run")
    state = SimpleNamespace(epoch=0.0, global_step=0, is_world_process_zero=True)
    callback.on_train_begin(None, state, None, model=model)
    assert model.config.pad_token_id is None
    state.epoch = 1.0
    callback.on_epoch_end(None, state, None, model=model)
    assert model.config.pad_token_id is None
    # The evaluation itself is padded as its rows are.
    assert seen and set(seen) == {tokenizer.pad_token_id}
