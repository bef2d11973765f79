"""The best evaluation is kept, and training stops when nothing gets better."""

from __future__ import annotations

import pytest
import torch

import landform as lf
from landform.errors import CheckpointError, ConfigError
from landform.training.loop import BestRule
from landform.training.options import TrainConfig, identity
from landform.weights.checkpoint import load_model, resolve, select

OPTIONS = {
    "max_steps": 16, "batch_size": 8, "learning_rate": 2e-2, "log_steps": 4, "eval_steps": 2,
    "save_steps": (2, 4, 6, 8, 10, 12, 14, 16), "threads": 1, "keep_best": "loss",
}  # fmt: skip


def state(path):
    # Cloned: what is loaded may be a memory map of the file.
    return {name: tensor.clone() for name, tensor in load_model(path).state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def rows(*values):
    return [{"step": 2 * k, "v/m": value} for k, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "higher", "place", "since"),
    [
        ((0.5, 0.7, 0.7, 0.6), True, 1, 2),  # the earliest of equal ones
        ((0.5, 0.7, 0.7, 0.6), False, 0, 3),
        ((0.5, float("nan"), 0.6), True, 2, 0),
        ((float("nan"), 0.1), True, 1, 0),
        ((float("nan"), float("nan")), True, 0, 1),
    ],
)
def test_the_rule(values, higher, place, since):
    history = [{"step": 1, "loss": 0.0}, *rows(*values)]  # rows of the loss are no evaluations
    best, after = BestRule("v/m", higher).best(history)
    assert (best["step"], after) == (2 * place, since)


def test_the_best_evaluation_is_kept(pretrained, task, tmp_path):
    r = lf.train(pretrained, task, out=tmp_path / "o", **OPTIONS)
    history = r.history.dropna(subset="validation/loss")
    place = history["validation/loss"].idxmin()
    step = int(history.step[place])
    assert r.runs.best_step[0] == step
    assert r.runs.best_value[0] == history["validation/loss"][place]
    # A best one that is the last or the first would hide one that is never or always replaced.
    assert 2 < step < 16
    assert equal(state(f"{r.paths[0]}@best"), state(f"{r.paths[0]}@{step}"))
    assert not equal(state(f"{r.paths[0]}@best"), state(r.paths[0]))
    assert resolve(f"{r.paths[0]}@best").path.name == "checkpoint-best"
    assert [c.spec for c in select(f"{tmp_path}/o/seed*@best")] == [f"{r.paths[0]}@best"]
    with pytest.raises(CheckpointError, match=r"has no step 7\n.*best"):
        resolve(f"{r.paths[0]}@7")


def test_training_stops_when_nothing_gets_better(pretrained, task, tmp_path):
    whole = lf.train(pretrained, task, out=tmp_path / "w", **OPTIONS)
    options = {**OPTIONS, "early_stop": 2}
    r = lf.train(pretrained, task, out=tmp_path / "o", **options)
    history = r.history.dropna(subset="validation/loss")
    values = history["validation/loss"].tolist()
    stopped = int(history.step.iloc[-1])
    assert stopped < 16 and r.runs.steps[0] == stopped
    # By hand: the first evaluation after which two in a row were no new minimum.
    full = whole.history.dropna(subset="validation/loss")["validation/loss"].tolist()
    best, since, expected = float("inf"), 0, len(full)
    for k, value in enumerate(full):
        best, since = (value, 0) if value < best else (best, since + 1)
        if since == 2:
            expected = k + 1
            break
    assert values == full[:expected]
    assert equal(state(r.paths[0]), state(f"{whole.paths[0]}@{stopped}"))
    assert r.history.loss.notna().any() and r.history.step.iloc[-1] == stopped
    assert equal(state(f"{r.paths[0]}@best"), state(f"{whole.paths[0]}@{r.runs.best_step[0]}"))
    again = lf.train(pretrained, task, out=tmp_path / "o", **options)
    assert again.runs.reused.tolist() == [True]


def test_runs_without_these_options_are_the_runs_they_were():
    assert not {"keep_best", "early_stop", "part", "part_by"} & set(identity(TrainConfig()))
    best = TrainConfig(keep_best="loss", eval_steps=1)
    assert identity(best)["keep_best"] == "loss"


def test_options_that_cannot_be(pretrained, task, tmp_path):
    with pytest.raises(ConfigError, match="keep_best needs eval_steps"):
        lf.train(pretrained, task, out=tmp_path / "o", keep_best="loss")
    with pytest.raises(ConfigError, match="early_stop needs eval_steps"):
        lf.train(pretrained, task, out=tmp_path / "o", early_stop=2)
    with pytest.raises(ConfigError, match=r"'acuracy' is no metric .*\n.*did you mean 'accuracy'"):
        lf.train(pretrained, task, out=tmp_path / "o", keep_best="acuracy", eval_steps=1)
    with pytest.raises(ConfigError, match="early_stop needs evaluations"):
        lf.train(pretrained, task, out=tmp_path / "o", early_stop=1, eval_steps=1, eval_split=None)
    plain = lf.train(pretrained, task, out=tmp_path / "p", max_steps=1, threads=1)
    with pytest.raises(CheckpointError, match="has no best model"):
        resolve(f"{plain.paths[0]}@best")


@pytest.mark.parametrize("option", [{"eval_steps": 1}, {"max_new_tokens": 3}])
def test_options_of_evaluations_need_evaluations(pretrained, task, tmp_path, option):
    """They were passed over in silence."""
    with pytest.raises(
        ConfigError, match=f"{next(iter(option))} has no effect without evaluations"
    ):
        lf.train(pretrained, task, out=tmp_path / "o", eval_split=None, **option)
    assert not (tmp_path / "o").exists()


def test_dropout_cannot_be_inserted_where_none_is_missing(pretrained, task, tmp_path):
    with pytest.raises(ConfigError, match=r"a BertForSequenceClassification lacks dropout in no"):
        lf.train(pretrained, task, out=tmp_path / "o", dropout=0.1, insert_dropout=True)
    assert not (tmp_path / "o").exists()
