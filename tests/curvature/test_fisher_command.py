"""`landform fisher` and the step `fisher`, as a user would run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import landform as lf
from landform.cli.app import run

FILES = ["--files.train", "train.tsv", "--text", "sentence", "--label", "label"]


@pytest.fixture
def place(
    tmp_path: Path, save_checkpoint: Any, write_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> Path:
    save_checkpoint(tmp_path / "runs" / "seed0")
    save_checkpoint(tmp_path / "pretrained", kind="masked-lm")
    write_rows(tmp_path / "train.tsv", 20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    return tmp_path


def said(capsys: Any, *words: str) -> tuple[int, str, str]:
    status = run(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_prints_scores_and_writes_one_file(place: Path, capsys: Any) -> None:
    status, out, _ = said(
        capsys, "fisher", "runs/seed0", *FILES, "--rows", "12", "--out", "f.safetensors",
        "--figure", "f.png",
    )  # fmt: skip
    assert status == 0
    assert "sublayers by their Fisher score (mean over entries), highest first" in out
    assert "bert.encoder.layer.1.output.dropout" in out
    assert "coverage: " in out and "on 12 examples of" in out
    assert (place / "f.png").exists()
    found = lf.load_fisher("f.safetensors")
    task = lf.load_task({"train": "train.tsv"}, text="sentence", label="label")
    assert found.fingerprint == lf.fisher("runs/seed0", task, rows=12).fingerprint
    assert sorted(path.name for path in place.iterdir()) == [
        "f.png", "f.safetensors", "pretrained", "runs", "train.tsv",
    ]  # fmt: skip


def test_a_corpus_and_json(place: Path, capsys: Any) -> None:
    (place / "corpus.txt").write_text("w1 w2 w3 w4\nw5 w6\nw7 w8 w9\n")
    words = ["fisher", "pretrained", "--task", "corpus.txt", "--kind", "masked-lm", "--json"]
    status, out, _ = said(capsys, *words, "--store", "study", "--estimator", "true")
    found = json.loads(out)
    assert status == 0
    assert found["estimator"] == "true (sampled)" and found["examples"] == 3
    assert {row["way"] for row in found["tensors"]} == {"captured"}
    (wrote,) = found["wrote"]
    assert Path(wrote, "manifest.json").exists()
    again = said(capsys, *words, "--store", "study", "--estimator", "true")[1]
    assert json.loads(again)["tensors"] == found["tensors"]
    assert said(capsys, *words[:-1], "--store", "study", "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--max-length", "4000"], "max_length 4000 is more than the model can take"),
        (["--percent", "0"], "percent"),
        (["--percent", "101"], "percent"),
        (["--stable", "2"], "stable"),
        (["--split", "nowhere"], "no split 'nowhere'"),
        (["--out", "runs"], "runs"),
        (["--by", "sublayer", "--matrices-only", "--chunk-rows", "0"], "chunk"),
    ],
    ids=["max-length", "percent-0", "percent-101", "stable", "split", "out", "chunk"],
)
def test_bad_input_leaves_nothing(place: Path, capsys: Any, words: list[str], named: str) -> None:
    before = sorted(place.rglob("*"))
    status, out, err = said(capsys, "fisher", "runs/seed0", *FILES, *words)
    assert status != 0 and named in err and not out
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "f.safetensors", "--max-length", "4000"], "max_length 4000"),
        (["--out", "f.pkl"], "another ending"),
    ],
    ids=["max-length", "pkl"],
)
def test_a_refused_out_leaves_no_partial(
    place: Path, capsys: Any, words: list[str], named: str
) -> None:
    before = sorted(path.name for path in place.iterdir())
    status, _, err = said(capsys, "fisher", "runs/seed0", *FILES, *words)
    assert status != 0 and named in err
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_study_computes_it_once_for_later_steps(place: Path, capsys: Any) -> None:
    (place / "study.yaml").write_text(
        """
study: study
tasks:
  reviews: {files: {train: train.tsv}, text: sentence, label: label}
steps:
  - fisher: {checkpoint: runs/seed0, task: reviews, rows: 8, out: f.safetensors}
  - report:
"""
    )
    assert said(capsys, "run", "study.yaml", "--dry-run")[0] == 0
    status, out, err = said(capsys, "run", "study.yaml")
    assert status == 0, err
    assert "Fisher diagonal (empirical, mean)" in out
    assert lf.load_fisher("f.safetensors").summary.examples == 8
