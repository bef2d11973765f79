"""Steps of a study file in a row: `curve`, `spectrum`, `fisher`; `landform spectrum --curve`."""

import json

import pytest

from fishers import make_fisher
from landform.cli.app import run
from landform.store.artifacts import Store
from landform.store.study import load_results
from landform.studies.study_file import describe_study, read_study
from landform.weights.checkpoint import load_model

DATA = "--files.train train.tsv --files.validation dev.tsv --text sentence --label label --name toy"
QUICK = "rows: 6, top: 1, probes: 4, steps: 4"
STUDY = """
study: s
tasks: {toy: {files: {train: train.tsv, validation: dev.tsv}, text: sentence, label: label}}
steps:
"""
CURVE = "- curve: {a: runs/seed1, b: runs/seed2, task: toy, steps: 2, points: 3, out: c}\n"
ALONG = (
    "- spectrum: {checkpoints: [runs/seed1, runs/seed2], task: toy, curve: c, points: 3, "
    f"{QUICK}}}\n"
)


@pytest.fixture
def place(tmp_path, save_checkpoint, write_rows, monkeypatch):
    for i in (1, 2):
        save_checkpoint(tmp_path / "runs" / f"seed{i}", seed=i)
    write_rows(tmp_path / "train.tsv", 12)
    write_rows(tmp_path / "dev.tsv", 8, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    return tmp_path


def test_a_curve_and_the_spectrum_along_it_in_one_study(place, capsys):
    (place / "study.yaml").write_text(STUDY + CURVE + ALONG)
    _, said = describe_study(read_study(place / "study.yaml"))
    assert said["forecast"] == "waits for the curve of an earlier step (c)"
    assert run(["run", "study.yaml"]) == 0, capsys.readouterr().err
    found = load_results(Store.open("s", create=False))
    (along,) = (result for name, result in found.items() if name.startswith("spectrum"))
    assert along.path == "bezier" and len(along.table) == 3
    capsys.readouterr()
    flags = "--curve c --points 3 --rows 6 --top 1 --probes 4 --steps 4 --store s --json"
    assert run(f"spectrum runs/seed1 runs/seed2 {DATA} {flags}".split()) == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["loss"] for row in value["table"]] == along.table["loss"].tolist()


def test_a_curve_of_no_step_must_be_there(place, capsys):
    (place / "study.yaml").write_text(STUDY + ALONG + CURVE)  # the wrong way round
    assert run(["run", "study.yaml"]) == 1
    assert "step 1" in capsys.readouterr().err and not (place / "s").exists()


def test_a_stale_fisher_does_not_stop_the_study_that_writes_it(place, capsys):
    # Of other weights: what a step before is about to replace is not to be looked at.
    make_fisher(load_model("runs/seed2"), seed=2, weights="other").save(place / "f.safetensors")
    (place / "study.yaml").write_text(
        STUDY
        + "- fisher: {checkpoint: runs/seed1, task: toy, rows: 6, out: f.safetensors}\n"
        + "- surface: {around: runs/seed1, task: toy, mask: [fisher-top], fisher: f.safetensors,"
        " size: 3, rows: 6, replicates: 20}\n"
    )
    assert run(["run", "study.yaml"]) == 0, capsys.readouterr().err


def test_the_spectrum_of_one_checkpoint_as_a_step(place, capsys):
    (place / "study.yaml").write_text(
        STUDY + f"- spectrum: {{checkpoints: runs/seed1, task: toy, operator: ggn, {QUICK}}}\n"
    )
    (said,) = describe_study(read_study(place / "study.yaml"))
    assert "products" in said["forecast"]
    assert run(["run", "study.yaml"]) == 0
    assert "Gauss-Newton matrix of" in capsys.readouterr().out
