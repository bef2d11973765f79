"""A killed training goes on, and ends where it would have ended."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

import landform as lf
from landform.weights.checkpoint import load_model

OPTIONS = {
    "max_steps": 17, "batch_size": 8, "learning_rate": 1e-2, "log_steps": 4, "eval_steps": 6,
    "save_steps": (2, 7, 14), "threads": 1,
}  # fmt: skip

SCRIPT = """
import json, os, signal, sys
import landform as lf
from landform.training import loop, runs

model, files, out, options, place = map(json.loads, sys.argv[1:])

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if place == "finish":
    original = runs.write_json
    runs.write_json = lambda path, v: die() if path.name == runs.RECORD else original(path, v)
elif place == "state":
    # Between the Trainer's own writing of a state and the rename that makes it count.
    original = loop.os.replace
    loop.os.replace = lambda a, b: die() if "state-10" in str(b) else original(a, b)
else:
    step_end = loop._Companion.on_step_end
    def on_step_end(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == place:
            die()
    loop._Companion.on_step_end = on_step_end
task = lf.load_task(files, text="sentence", label="label")
lf.train(model, task, out=out, **options)
"""


def state(path):
    # Cloned: what is loaded may be a memory map of the file.
    return {name: tensor.clone() for name, tensor in load_model(path).state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def kill_at(zygote, pretrained, files, tmp_path):
    """`kill_at(place, out, options)` trains in a process that dies there."""

    def start(place, out, options):
        arguments = [json.dumps(v) for v in (str(pretrained), files, str(out), options, place)]
        ended = zygote.run(arguments, tmp_path, script=SCRIPT)
        assert ended.status == -signal.SIGKILL, ended.err

    return start


@pytest.mark.parametrize(
    ("place", "resume_steps", "resumed_from"),
    [
        (12, 5, 10),  # within the second epoch of 7 steps, and within a row of the history
        (16, 7, 14),  # from the end of an epoch
        ("state", 5, 5),
        ("finish", 5, 15),
    ],
)
def test_a_killed_run_goes_on_and_ends_the_same(
    kill_at, pretrained, task, tmp_path, monkeypatch, place, resume_steps, resumed_from
):
    options = {**OPTIONS, "resume_steps": resume_steps}
    whole = lf.train(pretrained, task, out=tmp_path / "whole", **options)
    out = tmp_path / "o"
    kill_at(place, out, options)
    assert not (out / "seed0").exists()
    states = [p.name for p in (out / ".seed0.partial").glob("state-*")]
    assert states == [f"state-{resumed_from}"]

    from landform.training import loop

    steps = []
    original = loop._LandformTrainer.compute_loss

    def spy(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(loop._LandformTrainer, "compute_loss", spy)
    r = lf.train(pretrained, task, out=out, **options)
    assert steps == list(range(resumed_from, 17))
    for at in ("", "@2", "@7", "@14"):
        assert equal(state(r.paths[0] + at), state(whole.paths[0] + at)), at
    columns = [c for c in r.history if c != "seconds"]
    assert r.history[columns].equals(whole.history[columns])
    assert os.listdir(out) == ["seed0"]
    names = [p.name for p in out.rglob("*")]
    assert not any(name.endswith((".pt", ".pth", ".bin")) or "state" in name for name in names)


def test_a_state_of_other_options_is_not_continued(kill_at, pretrained, task, tmp_path):
    out = tmp_path / "o"
    kill_at(12, out, {**OPTIONS, "resume_steps": 5})
    other = {**OPTIONS, "learning_rate": 1e-3}
    r = lf.train(pretrained, task, out=out, **other)
    fresh = lf.train(pretrained, task, out=tmp_path / "p", **other)
    assert equal(state(r.paths[0]), state(fresh.paths[0]))


def test_a_killed_run_keeps_the_same_best(kill_at, pretrained, task, tmp_path):
    options = {**OPTIONS, "keep_best": "loss", "eval_steps": 2, "early_stop": 3, "resume_steps": 5}
    options |= {"save_steps": (), "max_steps": 16, "learning_rate": 2e-2}
    whole = lf.train(pretrained, task, out=tmp_path / "whole", **options)
    out = tmp_path / "o"
    # After the best of the whole run was kept, and before a state holds it.
    place = int(whole.runs.best_step[0])
    kill_at(place, out, options)
    r = lf.train(pretrained, task, out=out, **options)
    for at in ("", "@best"):
        assert equal(state(r.paths[0] + at), state(whole.paths[0] + at)), at
    columns = [c for c in r.history if c != "seconds"]
    assert r.history[columns].equals(whole.history[columns])
    assert r.runs.best_step[0] == place
    assert os.listdir(out) == ["seed0"]
