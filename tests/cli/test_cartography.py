"""`landform cartography`, its step, and the original's file from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

import landform as lf
from landform.cli.app import run
from landform.evaluation.cartography import FILE, DataMap, TrainingDynamics, texts_fingerprint
from landform.store.artifacts import Store
from landform.store.study import load_results


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)

    def say(*words):
        capsys.readouterr()
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return say


DATA = ("--files.train", "train.tsv", "--text", "sentence", "--label", "label")


@pytest.fixture
def place(tmp_path, write_rows):
    """A directory with a record of 30 rows of train.tsv over 4 epochs."""
    write_rows(tmp_path / "train.tsv", 30)
    task = lf.load_task({"train": str(tmp_path / "train.tsv")}, text="sentence", label="label")
    examples = task.examples("train")
    random = np.random.default_rng(0)
    confidence = random.uniform(0.02, 0.98, (4, 30))
    TrainingDynamics(
        examples.ids, np.arange(30), np.arange(1.0, 5), confidence, confidence > 0.4,
        np.log(confidence / (1 - confidence)),
        {"measure": "probability of the gold class", "texts": texts_fingerprint(examples)},
    ).write(tmp_path / "runs" / "seed0" / FILE)  # fmt: skip
    return tmp_path


def test_the_command_says_and_writes(call, place):
    status, out, err = call(
        "cartography", "runs/seed0", *DATA, "--choose", "hard", "--size", 5, "--out", "rows.txt",
        "--csv", "all.csv", "--store", "study", "--figure", "map.png", "--replicates", 50,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "30 examples over 4 epochs" in out and "forgotten at least once" in out
    assert "most ambiguous" in out and "w1" in out and "subset hard: 5 rows" in out
    table = lf.cartography("runs/seed0")
    hardest = table.sort_values("confidence").text_id.head(5).tolist()
    assert (place / "rows.txt").read_text().splitlines() == hardest
    assert (place / "map.png").stat().st_size > 10_000
    assert len((place / "all.csv").read_text().splitlines()) == 31
    (kept,) = load_results(Store.open(place / "study")).values()
    assert isinstance(kept, DataMap) and "text" in kept.table


def test_without_a_task_and_as_json(call, place):
    status, out, _ = call("cartography", "runs/seed0", "--replicates", 50)
    assert status == 0 and "30 examples" in out and "most ambiguous" not in out
    status, out, _ = call(
        "cartography", f"runs/seed0/{FILE}", "--json", "--choose", "mix", "--mix", "easy=0.5",
        "random=0.5", "--share", 0.4, "--out", "rows.txt",
    )  # fmt: skip
    value = json.loads(out)
    assert status == 0 and value["subset"]["rows"] == 12 and value["wrote"] == ["rows.txt"]
    assert len(value["by_epoch"]) == 4


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("nowhere",), "no run at nowhere"),
        (("runs/seed0", "--choose", "hard"), "needs a file"),
        (("runs/seed0", "--out", "rows.txt"), "out needs choose"),
        (("runs/seed0", "--choose", "hard", "--size", "31", "--out", "rows.txt"), "31 rows"),
        (("runs/seed0", "--size", "3"), "size needs choose"),
        (("runs", "--choose", "hard", "--out", "rows.txt"), "train with cartography"),
        (("runs/seed0", "--figure", "map.gif"), "unknown format"),
        (("runs/seed0", "--files.train", "other.tsv", *DATA[2:]), "is of other data"),
    ],
    ids=["nowhere", "no-file", "no-choice", "too-many", "size", "no-record", "figure", "data"],
)
def test_what_is_wrong_is_said_and_nothing_is_written(call, place, write_rows, words, what):
    write_rows(place / "other.tsv", 30, seed=9)
    before = sorted(place.rglob("*"))
    status, out, err = call("cartography", *words)
    assert status in (1, 2) and what in err and "what to do" in err and out == ""
    assert sorted(place.rglob("*")) == before


def test_the_originals_file_out_and_in(call, place):
    status, _, err = call("export", "cartography", "runs/seed0", "--out", "original")
    assert (status, err) == (0, "")
    status, out, err = call(
        "import", "cartography", "original/cartography.json", "--out", "runs/again", *DATA,
        "--store", "study",
    )  # fmt: skip
    assert (status, err) == (0, "") and "30 examples over 4 epochs" in out
    first, second = lf.cartography("runs/seed0"), lf.cartography("runs/again")
    np.testing.assert_allclose(second.confidence, first.confidence)
    assert second.text_id.tolist() == first.text_id.tolist()
    status, out, _ = call("export", "cartography", "study", "--out", "more")
    assert status == 0
    (written,) = (place / "more").iterdir()
    assert json.loads(written.read_text()) == json.loads(
        (place / "original" / "cartography.json").read_text()
    )


def test_a_study_trains_on_the_rows_that_it_chose(call, place, save_checkpoint):
    save_checkpoint(place / "start", seed=3)
    (place / "study.yaml").write_text(
        """
study: study
tasks:
  words: {files: {train: train.tsv}, text: sentence, label: label}
steps:
  - train: {model: start, task: words, out: study/runs, eval_split: null, epochs: 2,
            batch_size: 8, cartography: true}
  - cartography: {runs: study/runs/seed0, task: words, choose: hard, size: 6, out: hard.txt,
                  replicates: 20}
  - train: {model: start, task: words, out: study/hard, eval_split: null, epochs: 1,
            batch_size: 8, row_file: hard.txt}
  - report: {}
""",
        encoding="utf-8",
    )
    status, out, err = call("run", "study.yaml", "--dry-run")
    assert status == 0 and "waits for the rows" in " ".join(out.split()), err
    status, out, err = call("run", "study.yaml")
    assert status == 0, err
    assert "30 examples over 2 epochs" in out
    rows = (place / "study" / "hard" / "seed0" / "train_rows.txt").read_text().split()
    assert sorted(rows) == sorted((place / "hard.txt").read_text().split())
    assert "Data maps" in (place / "study" / "atlas.html").read_text()
