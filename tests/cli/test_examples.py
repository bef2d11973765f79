"""`landform examples` and `landform barrier`: what they print, write and keep, and their pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from landform.cli.app import run
from landform.studies.example_steps import BarrierStep, ExamplesStep
from landform.studies.study_file import StudyFile, read_study

SIDES = {"num_labels": 2, "id2label": {0: "0", 1: "1"}, "label2id": {"0": 0, "1": 1}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any, save_checkpoint: Any, write_rows: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("examples")
    save_checkpoint(root / "base", **SIDES)
    for i, name in enumerate(("train", "dev")):
        write_rows(root / f"{name}.tsv", 16, seed=i)
    words = ["train", root / "base", *data(root), "--cartography", "--epochs", "3", "--batch-size"]
    done = run([*map(str, [*words, "8", "--seeds", "0", "1", "--out", root / "runs"]), "--quiet"])
    assert done == 0
    return root


def data(root: Path) -> list[str]:
    files = ["--files.train", root / "train.tsv", "--files.validation", root / "dev.tsv"]
    return [*map(str, files), "--text", "sentence", "--label", "label"]


def ends(root: Path) -> list[str]:
    return [str(root / "runs" / "seed0"), str(root / "runs" / "seed1"), *data(root), "--quiet"]


def test_examples_prints_writes_and_keeps(place: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["examples", *ends(place), "--points", "3", "--strategy", "identity", "--show", "2"]
    store, csv, figure = (str(tmp_path / name) for name in ("study", "rows.csv", "rows.png"))
    assert run([*words, "--store", store, "--csv", csv, "--figure", figure]) == 0
    said = capsys.readouterr().out
    assert "largest rise" in said and "rank correlations with the rise" in said
    assert "16 examples of" in said and "given loss at a" in said
    table = pd.read_csv(csv)
    assert {"confidence", "forgetting", "self_influence", "rise", "forgotten"} <= set(table)
    assert len(table) == 16 and Path(figure).stat().st_size > 10_000
    (name,) = (path.name for path in (tmp_path / "study" / "results").iterdir())
    out = str(tmp_path / "columns.svg")
    assert run(["figure", store, name, "--which", "columns", "--out", out]) == 0
    assert run(["report", store]) == 0
    page = (tmp_path / "study" / "atlas.html").read_text("utf-8")
    assert "Training examples" in page and "rise above the chord" in page


def test_barrier_prints_writes_and_keeps(place: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["barrier", *ends(place), "--points", "3", "--strategy", "identity", "--show", "2",
             "--retrain", "--remove", "2", "--pairs", "2", "--random", "1"]  # fmt: skip
    store, csv, figure = (str(tmp_path / name) for name in ("study", "rows.csv", "rows.png"))
    assert run([*words, "--store", store, "--dry-run"]) == 0
    assert "retraining" in capsys.readouterr().out or not Path(store).exists()
    assert run([*words, "--store", store, "--csv", csv, "--figure", figure]) == 0
    said = capsys.readouterr().out
    assert "the ridge is lower without" in said and "squared gradient of the rise" in said
    assert "top - random" in said and "trained again (2 pairs of seeds)" in said
    assert len(pd.read_csv(csv)) == 16 and Path(figure).stat().st_size > 10_000
    assert run([*words, "--store", store, "--json"]) == 0  # from the store
    record = json.loads(capsys.readouterr().out)
    assert len(record["check"]) == 8 and {"removal", "low", "high"} <= set(record["summary"][0])
    assert run(["report", store]) == 0
    page = (tmp_path / "study" / "atlas.html").read_text("utf-8")
    assert "Influence on a barrier" in page and "rows that raise the ridge" in page


def test_an_absolute_damping_on_the_command_line_counts(place: Path, capsys: Any) -> None:
    words = ["barrier", *ends(place), "--points", "3", "--strategy", "diagonal", "--json"]
    assert run([*words, "--damping", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out)["damping"] == "0.5"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["barrier", "--retrain", "--remove", "9"], "option remove"),
        (["barrier", "--at", "1.5"], "at"),
        (["barrier", "--split", "nowhere"], "nowhere"),
        (["examples", "--points", "2"], "points"),
        (["examples", "--cartography", "base"], "cartography"),
        (["examples", "--figure", "rows.xyz"], "unknown format"),
    ],
    ids=["remove", "at", "split", "points", "cartography", "figure"],
)
def test_bad_input_is_an_error(
    place: Path, words: list[str], said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    assert run([words[0], *ends(place), *words[1:]]) != 0
    error = capsys.readouterr().err
    assert said in error and "what to do" in error
    assert sorted(path.name for path in place.iterdir()) == before


def test_steps_of_a_study_file(place: Path) -> None:
    path = place / "study.yaml"
    path.write_text(
        "study: study\n"
        "tasks:\n"
        "  side: {files: {train: train.tsv, validation: dev.tsv}, text: sentence, label: label}\n"
        "steps:\n"
        "- examples: {a: runs/seed0, b: runs/seed1, task: side, points: 3}\n"
        "- barrier: {a: runs/seed0, b: runs/seed1, task: side, points: 3, retrain: true, remove: 2,"
        " pairs: 2, model: base}\n",
        "utf-8",
    )
    file: StudyFile = read_study(path)
    first, second = file.steps
    assert isinstance(first, ExamplesStep) and isinstance(second, BarrierStep)
    for step in (first, second):
        step.check(file)
    assert "steps to do" in second.forecast(file, None)
    assert first.study(file).dynamics is not None
    path.unlink()
