"""`landform hans` and the evaluation of HANS on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from landform.cli.app import run
from landform.tasks.hans import generate_hans


@pytest.fixture
def say(capsys: Any, monkeypatch: Any) -> Any:
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")

    def call(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_generate_then_score(say: Any, tmp_path: Path) -> None:
    status, out, err = say("hans", "--out", tmp_path / "hans.tsv", "--rows-per-subcase", 2)
    assert status == 0, err
    assert "60 pairs" in out and f"wrote {tmp_path / 'hans.tsv'}" in out
    made = generate_hans(2)
    lines = (tmp_path / "hans.tsv").read_text().splitlines()
    assert len(lines) == 61 and lines[1].split("\t") == list(made.iloc[0])
    answers = "".join(f"{pair},entailment\n" for pair in made.pairID)
    (tmp_path / "p.txt").write_text("pairID,gold_label\n" + answers)
    words = ["hans", "--predictions", tmp_path / "p.txt", "--data", tmp_path / "hans.tsv"]
    status, out, err = say(*words)
    assert status == 0, err
    for title in ("Heuristic entailed", "Heuristic non-entailed", "Subcase", "Template"):
        assert f"{title} results:" in out
    assert "accuracy 0.500" in out
    status, out, _ = say(*words, "--json")
    assert json.loads(out)["accuracy"] == 0.5


def test_a_folder_gets_both_splits(say: Any, tmp_path: Path) -> None:
    words = ["hans", "--out", tmp_path / "HANS", "--rows-per-subcase", 1, "--seed", 3, "--json"]
    status, out, err = say(*words)
    assert status == 0, err
    assert json.loads(out)["splits"] == ["validation", "train"]
    names = sorted(path.name for path in (tmp_path / "HANS").iterdir())
    assert names == ["heuristics_evaluation_set.txt", "heuristics_train_set.txt"]


def test_evaluate_says_every_group(say: Any, tmp_path: Path, save_checkpoint: Any) -> None:
    names = ("contradiction", "entailment", "neutral")
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    save_checkpoint(tmp_path / "mnli", num_labels=3, **labels)
    assert say("hans", "--out", tmp_path / "HANS", "--rows-per-subcase", 3)[0] == 0
    words = ["evaluate", tmp_path / "mnli", "--task", "hans", "--data-dir", tmp_path / "HANS"]
    status, out, err = say(*words, "--json")
    assert status == 0, err
    (found,) = json.loads(out)["evaluations"]
    subsets = {row["subset"] for row in found["subsets"]}
    assert {"lexical_overlap/non-entailment", "ln_subject/object_swap", "temp1"} <= subsets
    assert all(row["low"] <= row["value"] <= row["high"] for row in found["subsets"])
    status, out, err = say(*words, "--breakdown")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[1].split() == ["subset", "n", "accuracy", "low", "high"]
    assert len(lines) == 2 + len(subsets) and any("temp68" in line for line in lines)
    status, out, err = say(*words, "--split", "lo", "--shuffle-seed", 0, "--shard", "1/2", "--json")
    assert status == 0, err
    (found,) = json.loads(out)["evaluations"]
    assert found["split"] == "validation_lexical_overlap_non_entailment"
    assert found["examples"] == 8  # half of 5 sub-cases of 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give one of --out and --predictions"),
        (["--out", "a.tsv", "--predictions", "p.txt"], "give one of --out and --predictions"),
        (["--out", "a.tsv", "--data", "b.tsv"], "option data goes with --predictions"),
        (["--predictions", "p.txt"], "option data is missing"),
        (["--predictions", "p.txt", "--data", "b.tsv"], "p.txt does not exist"),
        (["--out", "a.tsv", "--rows-per-subcase", "9999"], "ask for at most 2688"),
        (["--out", "HANS", "--rows-per-subcase", "2000"], "ask for at most 1344"),
    ],
)
def test_what_does_not_go(
    say: Any, tmp_path: Path, monkeypatch: Any, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = say("hans", *words)
    assert status == 1 and says in err and out == ""
    assert list(tmp_path.iterdir()) == []
