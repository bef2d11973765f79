"""Every command as a newcomer would type it, in this process, on tiny models."""

import ast
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from landform.cli.app import run
from landform.evaluation.samples import read_samples


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("cli")
    for i in range(3):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i)
    write_rows(root / "train.tsv", 40, seed=1)
    write_rows(root / "dev.tsv", 24)
    write_rows(root / "ood.tsv", 20, seed=2)
    (root / "ood.yaml").write_text(
        f"name: ood\nfiles: {{validation: {root}/ood.tsv}}\ntext: sentence\nlabel: label\n"
    )
    return root


@pytest.fixture
def say(capsys, monkeypatch):
    """Run a command line; (status, standard output, standard error)."""
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")

    def call(*words):
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def data(place):
    return ["--task", place / "dev.tsv", "--text", "sentence", "--label", "label"]


COMMANDS = (
    "train", "evaluate", "interpolate", "connect", "surface", "align", "sharpness", "distance",
    "influence", "mislabel", "lds", "counterfactual", "report", "run", "demo",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(say, command):
    status, out, _ = say(command, "--help")
    assert status == 0 and "Usage: landform" in out
    table = [line for line in out.splitlines() if line.startswith("│")]
    assert len(table) > 3
    text = " ".join(" ".join(table).replace("│", " ").split())
    assert "--json" in text and "as JSON" in text


def test_top_level_help_lists_the_commands(say):
    status, out, _ = say("--help")
    assert status == 0 and all(command in out for command in COMMANDS)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom landform.cli.app import run\nrun(['--help'])\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_evaluate(say, place, tmp_path):
    status, out, err = say(
        "evaluate", place / "runs" / "seed0", *data(place), "--store", tmp_path / "s",
        "--samples", tmp_path / "samples",
    )  # fmt: skip
    assert status == 0, err
    assert "accuracy" in out and "[" in out
    log = pd.read_parquet(
        tmp_path / "s" / "results" / "evaluate-seed0-dev-validation" / "log.parquet"
    )
    assert len(log) == 24 and {"text_id", "loss", "logit_0", "prediction"} <= set(log.columns)
    samples = read_samples(tmp_path / "samples" / "seed0.json")
    assert samples.loss.tolist() == pytest.approx(log.loss.tolist(), abs=1e-6)


def test_evaluate_json_is_json_and_nothing_else(say, place):
    status, out, _ = say(
        "evaluate", place / "runs" / "seed0", place / "runs" / "seed1", *data(place), "--json"
    )
    found = json.loads(out)["evaluations"]
    assert status == 0 and len(found) == 2 and found[0]["examples"] == 24


def test_interpolate_writes_a_figure(say, place, tmp_path):
    status, out, err = say(
        "interpolate", place / "runs" / "seed0", place / "runs" / "seed1", *data(place),
        "--also", place / "ood.yaml", "--points", 4, "--figure", tmp_path / "line.png",
    )  # fmt: skip
    assert status == 0, err
    assert "convexity gap" in out and "wrote" in out
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")


def test_connect_then_report(say, place, tmp_path):
    study = tmp_path / "study"
    words = ["connect", f"{place}/runs/seed*", *data(place), "--points", 4, "--store", study]
    words += ["--also", place / "ood.yaml:validation"]
    status, out, err = say(*words, "--dry-run")
    assert status == 0, err
    assert "9 evaluations" in out.replace("\n", " ") and not study.exists()
    status, out, err = say(*words, "--dry-run", "--json")
    assert json.loads(out)["evaluations"] == 3 + 3 * 2
    status, out, err = say(*words)
    assert status == 0, err
    assert "basin" in out and f"landform report {study}" in out
    curves = pd.read_parquet(study / "results" / "connect" / "curves.parquet")
    assert len(curves) == 2 * 3 * 4
    status, out, err = say("report", study, "--figures", tmp_path / "figures")
    assert status == 0, err
    page = (study / "atlas.html").read_text()
    assert "<html" in page and "seed2" in page
    assert list((tmp_path / "figures").glob("*.pdf"))


def test_connect_pairs_from_text_and_file(say, place, tmp_path):
    words = ["connect", f"{place}/runs/seed*", *data(place), "--points", 3, "--json"]
    _, out, _ = say(*words, "--pairs", "seed0,seed1")
    assert len(json.loads(out)["pairs"]) == 1
    (tmp_path / "pairs.txt").write_text("seed0,seed1\nseed1,seed2\n")
    _, out, _ = say(*words, "--pairs", tmp_path / "pairs.txt")
    assert len(json.loads(out)["pairs"]) == 2
    status, _, err = say(*words, "--pairs", "seed0")
    assert status == 1 and "'seed0' is not a pair" in err


@pytest.mark.parametrize(
    ("words", "evaluations"),
    [(["evaluate", "seed0", "seed1"], 2), (["interpolate", "seed0", "seed1", "--points", 7], 7)],
)
def test_dry_runs_keep_nothing(say, place, tmp_path, words, evaluations):
    named = [place / "runs" / word if str(word).startswith("seed") else word for word in words]
    status, out, err = say(*named, *data(place), "--store", tmp_path / "s", "--dry-run", "--json")
    assert status == 0, err
    forecast = json.loads(out)
    assert forecast["evaluations"] == evaluations and forecast["seconds"] > 0
    assert not (tmp_path / "s").exists()


def test_dry_run_of_the_demo(say, tmp_path):
    status, out, err = say("demo", "--out", tmp_path / "demo", "--seeds", 3, "--dry-run")
    assert status == 0, err
    assert "train" in out and "report" in out and not (tmp_path / "demo").exists()
    assert "waits for" in out and "hub" not in out, "runs still to be made are local names"


def test_distance(say, place):
    status, out, _ = say(
        "distance", place / "runs" / "seed0", place / "runs" / "seed1", "--by", "block"
    )
    assert status == 0 and "bert.encoder.layer.1.attention" in out and "cosine" in out


def test_train_then_connect(say, place, tmp_path):
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(place / "runs" / "seed0")
    base.bert.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((place / "runs" / "seed0" / name).read_bytes())
    files = ["--files.train", place / "train.tsv", "--files.validation", place / "dev.tsv",
             "--text", "sentence", "--label", "label"]  # fmt: skip
    words = ["train", tmp_path / "base", *files, "--seeds", 0, 1, "--max-steps", 3]
    words += ["--save-steps", 2, "--out", tmp_path / "out"]
    status, out, err = say(*words, "--dry-run")
    assert status == 0 and not (tmp_path / "out").exists(), err
    status, out, err = say(*words)
    assert status == 0, err
    status, out, err = say(
        "connect", f"{tmp_path}/out/seed*@2", *data(place), "--points", 3, "--json"
    )
    assert status == 0, err
    assert json.loads(out)["names"] == ["seed0@2", "seed1@2"]


STUDY = """
study: study
tasks:
  toy: {{files: {{train: train.tsv, validation: dev.tsv}}, text: sentence, label: label}}
  ood: {{files: {{validation: ood.tsv}}, text: sentence, label: label}}
steps:
  - evaluate: {{checkpoints: runs/seed*, task: ood}}
  - connect: {{checkpoints: runs/seed*, task: toy, also: [ood], points: {points}}}
  - report: {{title: toys}}
"""


def test_run_a_study_file(say, place, tmp_path):
    for name in ("runs", "train.tsv", "dev.tsv", "ood.tsv"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "study.yaml").write_text(STUDY.format(points=3))
    status, _, err = say("run", tmp_path / "study.yaml", "--dry-run")
    assert status == 0 and not (tmp_path / "study").exists(), err
    status, _, err = say("run", tmp_path / "study.yaml")
    assert status == 0, err
    assert (tmp_path / "study" / "atlas.html").exists()
    assert len(list((tmp_path / "study" / "results").glob("evaluate-*"))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study: s\nsteps:\n  - conect: {}\n", "step 1: expected one of"),
        (
            "study: s\nsteps:\n  - connect: {checkpoints: x, task: sst2, pionts: 3}\n",
            "unknown option 'pionts'",
        ),
        (
            "study: s\nsteps:\n  - connect: {checkpoints: x, task: sst2, points: 1}\n",
            "option points",
        ),
        ("steps: []\n", "study and steps are needed"),
        ("study: s\nstepz: []\nsteps: [{report: {}}]\n", "unknown key 'stepz'"),
        ("study: [\n", "not YAML"),
        ("just text\n", "expected a mapping"),
        ("study: s\nsteps: [{train: {a: 1, b: 2,\n a: 3}}]\n", "line 3: 'a' is written twice"),
        ("study: s\ntasks: {a: {txet: b}}\nsteps: [{report: {}}]\n", "did you mean 'text'"),
    ],
)
def test_study_files_are_parsed_before_anything_runs(say, tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    status, _, err = say("run", tmp_path / "study.yaml")
    assert status == 1 and message in err
    assert not (tmp_path / "s").exists(), "nothing is written before the whole file is understood"


def test_bad_words(say, place, tmp_path):
    seed0 = place / "runs" / "seed0"
    cases = {
        ("evaluate", seed0): (1, "no data: which task?"),
        ("evaluate", seed0, "--task", "sst3"): (1, "did you mean 'sst2'"),
        ("evaluate", tmp_path / "none", *data(place)): (1, "no such directory"),
        ("evaluate", seed0, *data(place), "--rows", 0): (2, "option rows"),
        ("evaluate", seed0, *data(place), "--rwos", 4): (2, "Did you mean --rows"),
        ("evaluate", seed0, *data(place), "--split", "tset"): (1, "no split 'tset'"),
        ("interpolate", seed0, *data(place)): (2, "B"),
        ("connect", seed0, *data(place)): (1, "at least two checkpoints"),
        ("report", tmp_path / "nothing"): (1, "nothing"),
        ("run", tmp_path / "no.yaml"): (1, "there is no such file"),
        ("evalute", seed0): (2, "evaluate"),
    }
    for words, (expected, message) in cases.items():
        status, out, err = say(*words)
        assert status == expected, (words, out, err)
        assert err.startswith("error: ") and message in err, (words, err)
        assert "Traceback" not in err and "errors.pydantic.dev" not in err


def test_installed_command_reports_errors_by_status(tmp_path):
    code = "from landform.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "distance", str(tmp_path / "a"), str(tmp_path / "b")],
        capture_output=True, text=True, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: ") and not done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(say, monkeypatch, shell):
    read = Counter()
    find = inspect.getsource

    def count(thing):
        read[thing] += 1
        return find(thing)

    monkeypatch.setattr(inspect, "getsource", count)
    status, out, _ = say("completion", "--shell", shell)
    assert status == 0
    for word in ("landform", "interpolate", "--learning-rate"):
        assert word in out
    assert read and set(read.values()) == {1}, "a class that commands share is read once"
    assert inspect.getsource is count and not hasattr(ast.parse, "cache_info")


def test_a_directory_that_is_not_a_study_is_left_alone(say, place, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    status, _, err = say(
        "evaluate", place / "runs" / "seed0", *data(place), "--store", tmp_path / "mine"
    )
    assert status == 1 and "mine" in err
    assert [p.name for p in Path(tmp_path / "mine").iterdir()] == ["notes.txt"]
