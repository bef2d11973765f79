"""`landform average`, its step in a study file; `landform train --ewc`."""

import json

import pandas as pd
import pytest

import landform as lf
from fishers import make_fisher
from landform.cli.app import run
from landform.store.artifacts import Store
from landform.store.study import load_results
from landform.weights.checkpoint import load_model, resolve


@pytest.fixture
def place(tmp_path, save_checkpoint, write_rows, monkeypatch):
    for i in (1, 2):
        path = save_checkpoint(tmp_path / "runs" / f"seed{i}", seed=i)
        found = resolve(path)
        made = make_fisher(load_model(found), seed=i, weights=found.fingerprint)
        made.save(tmp_path / f"f{i}.safetensors")
    write_rows(tmp_path / "train.tsv", 24)
    write_rows(tmp_path / "dev.tsv", 15, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    return tmp_path


DATA = "--files.train train.tsv --files.validation dev.tsv --text sentence --label label --name toy"
FISHER = "--fisher f1.safetensors f2.safetensors"
AVERAGE = f"average runs/seed1 runs/seed2 {FISHER} {DATA} --replicates 50 --points 5"
NAME = "average-fisher-seed1-seed2-toy-validation"


def ran(command, capsys):
    capsys.readouterr()
    status = run(command.split())
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def test_an_average_from_forecast_to_model(place, capsys):
    out = ran(f"{AVERAGE} --store study --dry-run", capsys)
    assert "7" in out and not (place / "study").exists()
    made = "--store study --out merged --figure a.png --csv a.csv"
    out = ran(f"{AVERAGE} {made}", capsys)
    assert out.startswith("Fisher-weighted average of seed1 and seed2")
    for name in (f"study/results/{NAME}", "merged", "a.png", "a.csv"):
        assert f"wrote {name}\n" in out and (place / name).exists()
    found = load_results(Store.open("study", create=False))[NAME]
    task = lf.load_task("dev.tsv", text="sentence", label="label", name="toy")
    own = lf.evaluate("merged", task).metrics["loss"]
    assert found.evaluation.set_index("model").loss["fisher"] == pytest.approx(own, abs=1e-6)
    assert list(pd.read_csv("a.csv").model) == ["fisher", "plain", "seed1", "seed2", "line"]
    value = json.loads(ran(f"{AVERAGE} --store study --json", capsys))
    assert value["weights"] == [0.5, 0.5] and value["evaluation"][0]["t"] is None
    assert run(f"{AVERAGE} --out runs".split()) == 1
    assert "other things" in capsys.readouterr().err


def test_mistakes_are_named(place, capsys):
    turned = AVERAGE.replace("f1.safetensors f2.safetensors", "f2.safetensors f1.safetensors")
    for command, said in (
        (turned, "order of the checkpoints"),
        (AVERAGE.replace(" f2.safetensors", ""), "1 Fishers for 2 checkpoints"),
        (AVERAGE.replace("f2.saf", "f3.saf"), "f3.safetensors"),
        (AVERAGE.replace("f2.safetensors", "runs/seed1/model.safetensors"), "no Fisher"),
        (f"{AVERAGE} --weights 1 -1", "positive"),
        (AVERAGE.replace("average runs/seed1 runs/seed2", "average runs/seed1"), "1 checkpoints"),
    ):
        assert run(command.split()) in (1, 2), command
        assert said in " ".join(capsys.readouterr().err.split()), command


STUDY = """
study: study
tasks:
  toy: {files: {train: train.tsv, validation: dev.tsv}, text: sentence, label: label}
steps:
  - average: {checkpoints: [runs/seed1, runs/seed2], fisher: [f1.safetensors, f2.safetensors],
              task: toy, also: ["toy:train"], points: 3, replicates: 50, out: merged}
  - evaluate: {checkpoints: merged, task: toy}
"""


def test_a_step_of_a_study(place, capsys):
    (place / "study.yaml").write_text(STUDY)
    ran("run study.yaml --dry-run", capsys)
    assert not (place / "study").exists()
    out = ran("run study.yaml", capsys)
    assert "Fisher-weighted average" in out and (place / "merged" / "config.json").exists()
    results = load_results(Store.open("study", create=False))
    found = results[NAME].evaluation
    assert list(dict.fromkeys(found.data)) == ["toy:validation", "toy:train"]
    own = results["evaluate-merged-toy-validation"].metrics["loss"]
    assert float(found.loss.iloc[0]) == pytest.approx(own, abs=1e-6)
    (place / "study.yaml").write_text(STUDY.replace("f2.saf", "f9.saf"))
    assert run(["run", "study.yaml"]) == 1
    assert "f9.safetensors" in capsys.readouterr().err


def test_training_near_the_start(place, capsys):
    quick = "--max-steps 3 --batch-size 8 --log-steps 1 --warmup-ratio 0"
    command = f"train runs/seed1 {DATA} --out new {quick}"
    out = ran(f"{command} --ewc f1.safetensors --ewc-strength 5 --quiet", capsys)
    assert "wrote new" in out or "new/seed0" in out
    history = pd.read_parquet("new/seed0/history.parquet")
    # At the start nothing has moved yet.
    assert history.penalty.iloc[0] == 0 and (history.penalty.iloc[1:] > 0).all()
    assert run(f"{command} --ewc f2.safetensors --ewc-strength 5".split()) == 1
    assert "at other weights" in capsys.readouterr().err
    assert run(f"{command} --ewc f1.safetensors".split()) in (1, 2)
    assert "ewc needs ewc_strength" in capsys.readouterr().err
