"""`train` under a schedule: what is in force, what a run is known by, what lies on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

import landform as lf
from dropout_models import few_tokens, make_model
from landform.cli.app import run
from landform.errors import ConfigError, StoreError
from landform.evaluation.points import Data
from landform.store.artifacts import Store
from landform.studies.study_file import StudyFile
from landform.training import loop
from landform.training.ensemble import retrain
from landform.training.noise import watch
from landform.training.options import TrainConfig, identity
from landform.training.schedules import read_schedule, write_schedule
from landform.weights.checkpoint import load_model, resolve
from landform.weights.sites import dropout_sites, scheduled_sites

QUICK = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2, "log_steps": 2, "threads": 1}


def names(layers=2):
    ends = ("attention.self.dropout", "attention.output.dropout", "output.dropout")
    listed = [f"bert.encoder.layer.{i}.{end}" for i in range(layers) for end in ends]
    return ["bert.embeddings.dropout", *listed]


G = {name: 0.04 * i for i, name in enumerate(names())}


def weights(path):
    return {name: value.clone() for name, value in load_model(path).state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def record(run):
    return json.loads((run / "seed0" / "landform.json").read_text())


def fit(pretrained, task, out, **options):
    return lf.train(pretrained, task, out=out, eval_split=None, **{**QUICK, **options})


@pytest.fixture
def schedule(tmp_path):
    return write_schedule(tmp_path / "g.json", G)


def test_a_run_under_a_schedule(pretrained, task, schedule, tmp_path, monkeypatch):
    """The probabilities act in every training step, and in no evaluation."""
    seen = {}
    original = loop._LandformTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **named):
        with watch(model) as calls:
            found = original(self, model, inputs, *args, **named)
        seen[self.state.global_step] = [call.p for call in calls]
        return found

    monkeypatch.setattr(loop._LandformTrainer, "compute_loss", compute_loss)
    fit(pretrained, task, tmp_path / "runs", dropout=str(schedule))
    assert set(seen) == {0, 1, 2, 3}
    for found in seen.values():  # the rows of a batch may be computed in parts
        assert set(found) == {*G.values(), 0.1}
    about = record(tmp_path / "runs")
    assert about["dropout"] == {**G, "dropout": 0.1}
    assert about["config"]["dropout"] == G == about["identity"]["options"]["dropout"]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "runs" / "seed0")
    assert same(plain.state_dict(), weights(tmp_path / "runs" / "seed0"))
    assert {s.p for s in dropout_sites(plain)} == {0.1}  # config.json stays


def test_a_run_is_known_by_what_the_schedule_holds(pretrained, task, schedule, tmp_path):
    fit(pretrained, task, tmp_path / "runs", dropout=schedule)
    other = write_schedule(tmp_path / "h.json", dict(reversed(G.items())), record={"by": "hand"})
    for again in (other, G):
        assert fit(pretrained, task, tmp_path / "runs", dropout=again).runs.reused.all()
    write_schedule(schedule, {**G, names()[1]: 0.9})
    with pytest.raises(ConfigError, match=r"attention\.self\.dropout was 0\.04, now 0\.9"):
        fit(pretrained, task, tmp_path / "runs", dropout=schedule)


def test_what_was_an_option_before_is_the_same_run(pretrained, task, tmp_path):
    """No key of a run that was made without these options changes."""
    before = {"dropout", "bf16", "max_length", "learning_rate"}
    for dropout in (None, 0.0, 0.2):
        found = identity(TrainConfig(dropout=dropout))
        assert found["dropout"] == dropout and before <= set(found)
        assert not [name for name in found if name.startswith(("dropout_", "insert"))]
    assert TrainConfig(dropout="0.2").dropout == 0.2 and TrainConfig(dropout="none").dropout is None
    fit(pretrained, task, tmp_path / "a", dropout=0.3)
    fit(pretrained, task, tmp_path / "b", dropout=dict.fromkeys([*names(), "dropout"], 0.3))
    assert same(weights(tmp_path / "a" / "seed0"), weights(tmp_path / "b" / "seed0"))
    assert record(tmp_path / "a")["dropout"] == record(tmp_path / "b")["dropout"]
    fit(pretrained, task, tmp_path / "c")
    assert record(tmp_path / "c")["dropout"] is None


def test_probabilities_change_what_is_learned(pretrained, task, schedule, tmp_path):
    made = {}
    for name, options in {
        "plain": {},
        "guided": {"dropout": schedule},
        "gaussian": {"dropout": schedule, "dropout_noise": "gaussian"},
        "all gaussian": {"dropout_noise": "gaussian"},
        "original": {"dropout_noise": "gaussian", "dropout_compat": "guided-dropout"},
    }.items():
        fit(pretrained, task, tmp_path / name, **options)
        made[name] = weights(tmp_path / name / "seed0")
    for name, one in made.items():
        assert not any(same(one, other) for n, other in made.items() if n != name)
    assert record(tmp_path / "all gaussian")["dropout"] == dict.fromkeys([*names(), "dropout"], 0.1)


def test_a_killed_run_goes_on_to_the_same_weights(
    pretrained, task, schedule, tmp_path, monkeypatch
):
    options = {"dropout": schedule, "dropout_noise": "gaussian", "resume_steps": 2, "max_steps": 6}
    fit(pretrained, task, tmp_path / "whole", **options)
    step_end = loop._Companion.on_step_end

    def killed(self, args, state, control, **named):
        step_end(self, args, state, control, **named)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Companion, "on_step_end", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(pretrained, task, tmp_path / "part", **options)
    monkeypatch.setattr(loop._Companion, "on_step_end", step_end)
    fit(pretrained, task, tmp_path / "part", **options)
    assert same(weights(tmp_path / "whole" / "seed0"), weights(tmp_path / "part" / "seed0"))


@pytest.mark.parametrize("tuning", ["lora", "adapter", "bitfit"])
def test_tuned_models(pretrained, task, schedule, tmp_path, tuning):
    fit(pretrained, task, tmp_path / "runs", dropout=schedule, tuning=tuning)
    assert {**record(tmp_path / "runs")["dropout"]}.items() >= G.items()
    load_model(resolve(tmp_path / "runs" / "seed0"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory, pretrained):
    path = tmp_path_factory.mktemp("llama")
    make_model("llama", vocab_size=19, pad_token_id=0).save_pretrained(path)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(path)
    return path


def test_dropout_inserted_in_a_llama(llama, task, tmp_path):
    """A decoder that classifies, dropped where it has no dropout."""
    sites = [site.name for site in scheduled_sites(dropout_sites(make_model("llama")))]
    g = {name: 0.05 * (i + 1) for i, name in enumerate(sites)}
    with pytest.raises(ConfigError, match=r"has no dropout after model\.embed_tokens"):
        fit(llama, task, tmp_path / "runs", dropout=g)
    assert not (tmp_path / "runs").exists()
    fit(llama, task, tmp_path / "runs", dropout=g, insert_dropout=True)
    assert record(tmp_path / "runs")["dropout"] == g
    fit(llama, task, tmp_path / "number", dropout=0.2, insert_dropout=True)
    assert record(tmp_path / "number")["dropout"] == dict.fromkeys(sites, 0.2)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "runs" / "seed0")
    assert same(plain.state_dict(), weights(tmp_path / "runs" / "seed0"))
    # One number for a model of which it reaches a part: said, not passed over.
    places = r"reaches 2 of the 7 places .*\(2 x attention\); the others \(1 x embeddings, 2 x att"
    with pytest.warns(UserWarning, match=places):
        fit(llama, task, tmp_path / "part", dropout=0.1)
    inside = {name: 0.1 for name in sites if name.endswith("attention_dropout")}
    assert record(tmp_path / "part")["dropout"] == inside and len(inside) == 2
    fit(llama, task, tmp_path / "off", dropout=0.0)
    fit(llama, task, tmp_path / "none")
    first, second = (weights(tmp_path / name / "seed0") for name in ("runs", "none"))
    assert not same(first, second)


def test_many_retrainings_under_noise_are_the_runs_of_train(pretrained, task, tmp_path):
    """Models whose noise hangs on hooks are trained one by one, and as they are."""
    config = TrainConfig(**QUICK, dropout=G, dropout_noise="gaussian")
    common = {"queries": Data(task, "validation"), "together": 2}
    with pytest.warns(UserWarning, match="Gaussian noise"):
        noisy = retrain(
            resolve(pretrained), task, [np.arange(50)], seeds=(1, 2), config=config, **common
        )
    quiet = TrainConfig(**QUICK, dropout=dict.fromkeys([*G, "dropout"], 0.0))
    plain = TrainConfig(**QUICK, dropout=0.0)
    found = [
        retrain(resolve(pretrained), task, [np.arange(50)], seeds=(1, 2), config=c, **common)
        for c in (quiet, plain)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.abs(noisy - found[0]).max() > 1e-3


# --- anyone's Trainer ---------------------------------------------------------------------------


def test_callback_of_a_plain_trainer(tmp_path, schedule):
    model = make_model("bert")
    before = {site.name: site.p for site in dropout_sites(model)}
    acted = []

    class Own(Trainer):
        def compute_loss(self, model, inputs, *args, **named):
            with watch(model) as calls:
                found = super().compute_loss(model, inputs, *args, **named)
            acted.append({call.p for call in calls})
            return found

    rows = [{k: v[0] for k, v in few_tokens(model).items()} | {"labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(
        str(tmp_path / "t"), max_steps=2, report_to="none", save_strategy="no", use_cpu=True,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    callback = lf.DropoutCallback(schedule)
    Own(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    assert acted == [{*G.values(), 0.1}] * 2
    assert callback.in_force == {**G, "dropout": 0.1}
    assert {site.name: site.p for site in dropout_sites(model)} == before
    with pytest.raises(ConfigError, match="no dropout site"):
        Own(
            model, arguments, train_dataset=rows,
            callbacks=[lf.DropoutCallback({"bert.nowhere": 0.1})],
        ).train()  # fmt: skip


# --- the command line ---------------------------------------------------------------------------


def test_commands(pretrained, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["dropout", "bert-guided", "--control", "by-type", "--out", "g.json",
          "--figure", "g.png"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "wrote g.json" in out and "mean 0.0495" in out
    assert (tmp_path / "g.png").stat().st_size
    found = read_schedule("g.json")
    assert set(np.round(list(found.values()), 4)) == {0.0, 0.0839, 0.0509, 0.0179}
    write_schedule("mine.json", G)
    assert run(["train", str(pretrained), "--files.train", files["train"], "--text", "sentence",
          "--label", "label", "--eval-split", "none", "--out", "runs", "--max-steps", "1",
          "--dropout", "mine.json", "--dropout-noise", "gaussian", "--quiet"]) == 0  # fmt: skip
    assert record(tmp_path / "runs")["dropout"].items() >= G.items()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"dropout": 1.0}, ConfigError, "below 1"),
        ({"dropout": -0.1}, ConfigError, "at least 0"),
        ({"dropout": True}, ConfigError, "expected a number"),
        ({"dropout": "bert-giuded"}, ConfigError, "presets bert-guided"),
        ({"dropout": "nowhere.json"}, StoreError, r"nowhere\.json"),
        ({"dropout": {"a": 2.0}}, ConfigError, "gives a the dropout probability 2"),
        ({"dropout": {}}, ConfigError, "no site"),
        ({"insert_dropout": True}, ConfigError, "needs dropout"),
        ({"dropout_compat": "guided-dropout"}, ConfigError, "gaussian"),
    ],
    ids=["one", "negative", "bool", "preset", "missing", "two", "empty", "insert", "compat"],
)
def test_options_that_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        TrainConfig.parse(options)


def test_a_schedule_of_another_model_is_refused(pretrained, task, tmp_path):
    with pytest.raises(ConfigError, match=r"has 7 sites in 2 layers"):
        fit(pretrained, task, tmp_path / "a", dropout="bert-guided")
    with pytest.raises(ConfigError, match=r"layer\.2\..* is no dropout site of this Bert"):
        fit(pretrained, task, tmp_path / "b", dropout=dict.fromkeys(names(3), 0.1))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


# --- study files --------------------------------------------------------------------------------


def test_a_schedule_lies_where_the_study_file_says(pretrained, files, tmp_path, monkeypatch):
    """Not in the working directory; and a comparison that comes first may be what writes it."""
    (tmp_path / "study").mkdir()
    write_schedule(tmp_path / "study" / "g.json", G)
    write_schedule(tmp_path / "g.json", dict.fromkeys(G, 0.5))
    monkeypatch.chdir(tmp_path)
    small = {"files": {"train": str(files["train"])}, "text": "sentence", "label": "label"}
    train = {"model": str(pretrained), "task": "small", "eval_split": None, **QUICK}
    steps = [
        {"train": {**train, "out": "runs", "dropout": "g.json"}},
        {"train": {**train, "out": "none", "dropout": "none"}},
        {"comparison": {"model": str(pretrained), "tasks": "small", "out": "compared"}},
        {"train": {**train, "out": "more", "dropout": "compared/schedules/guided.json"}},
        {"train": {**train, "out": "lost", "dropout": "lost.json"}},
        {"train": {**train, "out": "late", "model": "runs/seed0", "dropout": "lost.json"}},
    ]
    options = {"study": "study", "tasks": {"small": small}, "steps": steps}
    file = StudyFile.of(options, base=Path("study"), where="study.yaml")
    first, none, _, waiting, lost, late = file.steps
    first.check(file)
    first.run(file, Store.open(tmp_path / "store"), False)
    assert record(tmp_path / "study" / "runs")["config"]["dropout"] == G
    assert none.dropout is None
    waiting.check(file)
    assert "waits for the schedule of an earlier step" in waiting.forecast(file, None)
    for step in (lost, late):
        with pytest.raises(StoreError, match=r"study/lost\.json"):
            step.check(file)
    (tmp_path / "study" / "compared" / "schedules").mkdir(parents=True)
    write_schedule(tmp_path / "study" / "compared" / "schedules" / "guided.json", G)
    assert waiting.study(file).work.config.dropout == G
