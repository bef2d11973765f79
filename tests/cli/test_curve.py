"""`landform curve`, `landform simplex`, and their steps in a study file."""

import json

import pytest

import landform as lf
from landform.cli.app import run
from landform.store.artifacts import Store
from landform.store.study import load_results


@pytest.fixture
def place(tmp_path, save_checkpoint, write_rows, monkeypatch):
    for i in (1, 2, 3):
        save_checkpoint(tmp_path / "runs" / f"seed{i}", seed=i)
    write_rows(tmp_path / "train.tsv", 24)
    write_rows(tmp_path / "dev.tsv", 15, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    return tmp_path


DATA = "--files.train train.tsv --files.validation dev.tsv --text sentence --label label --name toy"
FIT = "--steps 4 --batch-size 8 --replicates 50"
CURVE = f"curve runs/seed1 runs/seed2 {DATA} {FIT} --points 5"
SIMPLEX = f"simplex runs/seed1 runs/seed2 runs/seed3 {DATA} {FIT} --samples 2"


def ran(command, capsys):
    capsys.readouterr()
    status = run(command.split())
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def failed(command, capsys):
    capsys.readouterr()
    assert run(command.split()) == 1
    return capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_one_split_serves_both_and_the_command_says_so(place, capsys):
    data = DATA.replace("--files.train train.tsv ", "")
    for command in (CURVE, SIMPLEX):
        capsys.readouterr()
        assert run(f"{command.replace(DATA, data)} --quiet".split()) == 0
        assert "fitted on the rows it is evaluated on" in capsys.readouterr().err
    file = place / "study.yaml"
    task = "{files: {train: train.tsv}, text: [sentence], label: label}"
    step = "{a: runs/seed1, b: runs/seed2, task: toy, steps: 2, points: 3, replicates: 20}"
    file.write_text(f"tasks: {{toy: {task}}}\nstudy: s\nsteps:\n- curve: {step}\n")
    assert run(["run", str(file)]) == 0
    captured = capsys.readouterr()
    assert "evaluated on those, which may be the rows it was fitted on" in captured.err
    assert "curve-bezier1-seed1-seed2-toy-train" in load_results(Store.open("s", create=False))


def test_a_curve_from_forecast_to_model(place, capsys):
    out = ran(f"{CURVE} --store study --dry-run", capsys)
    assert "4 steps to do" in out and "8 evaluations to do" in out
    assert not (place / "study").exists()
    out = ran(f"{CURVE} --store study --out path --models-at 0.25", capsys)
    assert "barrier on the line" in out and "along the bezier" in out
    assert "wrote path\n" in out and "wrote path/at0.25" in out
    kept = load_results(Store.open("study", create=False))
    found = kept["curve-bezier1-seed1-seed2-toy-validation"]
    assert len(found.table) == len(found.line) == 5
    assert len(kept["fit-bezier1-seed1-seed2-toy-validation"].history) == 4
    again = ran(f"{CURVE} --store study --dry-run", capsys)
    assert "0 steps to do" in again and "0 evaluations to do" in again
    path = lf.FittedPath.load("path")
    task = lf.load_task("dev.tsv", text="sentence", label="label", name="toy")
    assert path.evaluate(task, points=5, replicates=50).table.loss.tolist() == pytest.approx(
        found.table.loss.tolist(), rel=1e-12
    )
    whole = json.loads(ran(f"{CURVE} --store study --json", capsys))
    assert whole["barrier_height"] == found.barrier_height


def test_kinds_rows_and_a_third_checkpoint(place, capsys):
    out = ran(
        f"{CURVE} --curve polyline --bends 2 --start runs/seed3 --rows 12 --eval-rows 10 "
        "--bend-points --json",
        capsys,
    )
    value = json.loads(out)
    assert value["curve"] == "polyline" and len(value["table"]) == 7


def test_a_complex(place, capsys):
    out = ran(f"{SIMPLEX} --store study --dry-run", capsys)
    assert "8 steps to do" in out
    out = ran(f"{SIMPLEX} --store study --out complex", capsys)
    assert "complex of 3 checkpoints and 2 connectors, 3 cliques" in out
    assert "0 steps to do" in ran(f"{SIMPLEX} --store study --dry-run", capsys)
    assert len(lf.FittedComplex.load("complex").vertices) == 2
    value = json.loads(ran(f"{SIMPLEX} --store study --json", capsys))
    assert len(value["samples"]) == 6 and len(value["cliques"]) == 3


STUDY = """
study: study
tasks:
  toy: {files: {train: train.tsv, validation: dev.tsv}, text: sentence, label: label, name: toy}
steps:
  - curve: {a: runs/seed1, b: runs/seed2, task: toy, steps: 3, points: 4, start: runs/seed3, out: p}
  - simplex: {checkpoints: "runs/seed*", task: toy, connectors: 1, steps: 3, samples: 2, out: c}
"""


def test_steps_of_a_study_file(place, capsys):
    (place / "study.yaml").write_text(STUDY)
    out = ran("run study.yaml --dry-run", capsys)
    assert "3 steps to do" in out
    out = ran("run study.yaml", capsys)
    assert "along the bezier" in out and "1 connector, 3 cliques" in out
    assert (place / "p" / "path.json").exists() and (place / "c" / "complex.json").exists()


def test_bad_input_names_the_option_and_writes_nothing(place, capsys):
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("x")
    cases = {
        f"{CURVE} --out mine": "mine holds other things",
        f"{CURVE} --models-at 0.5": "models_at needs a directory",
        f"{CURVE} --out p --models-at 2": "from 0 to 1",
        f"{CURVE} --split test": "test",
        f"curve runs/seed1 runs/seed1 {DATA} {FIT} --store study": "same weights",
        f"{CURVE} --learning-rate 1e38 --warmup-ratio 0": "lower learning_rate",
        f"simplex runs/seed1 {DATA} {FIT}": "noise",
    }
    for command, match in cases.items():
        assert match in failed(command, capsys), command
    assert run(f"curve runs/seed1 runs/seed2 {DATA} --bends 0".split()) in (1, 2)
    assert not (place / "p").exists()
    assert [p.name for p in (place / "mine").iterdir()] == ["notes.txt"]


def test_a_ridge_is_named_by_task_and_split(place, capsys):
    ran(f"ridge runs/seed1 runs/seed2 {DATA} --points 3 --replicates 20 --store s", capsys)
    step = "{a: runs/seed1, b: runs/seed2, task: toy, points: 3, replicates: 20}"
    toy = "{files: {validation: dev.tsv}, text: [sentence], label: label}"
    text = f"study: again\ntasks: {{toy: {toy}}}\nsteps:\n- ridge: {step}\n"
    (place / "study.yaml").write_text(text)
    ran("run study.yaml", capsys)
    for study in ("s", "again"):
        assert "ridge-seed1-seed2-toy-validation" in load_results(Store.open(study, create=False))
