"""`landform knowledge`, its files, its study step: as a newcomer would type them."""

import json

import pandas as pd
import pytest
import yaml

import landform as lf
from landform.cli.app import run
from landform.store.artifacts import Store
from landform.store.study import load_results


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    """Two runs with a cartography, of a base that says one thing or the other."""
    root = tmp_path_factory.mktemp("knowledge")
    base = save_checkpoint(root / "base", seed=3)
    write_rows(root / "train.tsv", 40, seed=1)
    write_rows(root / "dev.tsv", 24)
    write_rows(root / "other.tsv", 40, seed=9)
    files = {"train": str(root / "train.tsv"), "validation": str(root / "dev.tsv")}
    task = lf.load_task(files, text="sentence", label="label", name="train")
    options = {"max_steps": 10, "batch_size": 8, "learning_rate": 3e-3}
    lf.train(base, task, seeds=[0, 1], out=root / "runs", cartography=True, **options)
    return root


@pytest.fixture
def say(capsys, monkeypatch):
    """Run a command line; (status, standard output, standard error)."""
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")

    def call(*words):
        capsys.readouterr()
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def command(place, *more):
    ends = [place / "runs/seed0", place / "runs/seed1"]
    files = ["--files.train", place / "train.tsv", "--files.validation", place / "dev.tsv"]
    return ["knowledge", *ends, *files, "--text", "sentence", "--label", "label", "--name", "train",
            *more]  # fmt: skip


def test_the_command(say, place, tmp_path):
    own = ("--cartography", place / "runs/seed0", "--store", tmp_path / "study", "--show", "2")
    more = ("--csv", tmp_path / "k.csv", "--figure", tmp_path / "k.png")
    status, out, err = say(*command(place, *own, *more))
    assert status == 0, err
    assert "forgotten  relearned" in out and "p (Holm)" in out and "newly forgotten" in out
    assert {"text_id", "score_5", "turns"} <= set(pd.read_csv(tmp_path / "k.csv"))
    assert (tmp_path / "k.png").stat().st_size > 1000
    (name,) = load_results(Store.open(tmp_path / "study"))
    assert name == "knowledge-seed0-seed1-train-train"
    status, out, _ = say(*command(place, *own[:-2], "--json"))
    found = json.loads(out)
    assert len(found["scores"]) == 6 and len(found["scores"][0]) == 40
    assert found["comparison"] and found["metric"] == "accuracy"
    assert say("report", tmp_path / "study")[0] == 0
    page = (tmp_path / "study/atlas.html").read_text()
    assert "Knowledge along a path" in page and "What sort of examples change" in page
    assert "\N{BLACK CIRCLE}" in page and "Newly forgotten" in page


def test_a_dry_run_keeps_nothing(say, place, tmp_path):
    status, out, _ = say(*command(place, "--dry-run", "--json", "--store", tmp_path / "none"))
    assert status == 0 and json.loads(out)["evaluations"] == 6
    assert not (tmp_path / "none").exists()


def test_along_a_fitted_curve(say, place, tmp_path):
    path = lf.fit_curve(
        place / "runs/seed0",
        place / "runs/seed1",
        lf.load_task({"train": str(place / "train.tsv")}, text="sentence", label="label"),
        steps=2,
    ).save(tmp_path / "bent")
    more = ("--path", path, "--points", "4", "--store", tmp_path / "study")
    status, out, err = say(*command(place, *more, "--dry-run", "--json"))
    assert status == 0 and json.loads(out)["evaluations"] == 4, err
    status, out, err = say(*command(place, *more))
    assert status == 0, err
    (found,) = load_results(Store.open(tmp_path / "study")).values()
    assert found.path == "bezier" and found.scores.shape == (4, 40)


def test_files_out_and_in(say, place, tmp_path):
    study, out = tmp_path / "study", tmp_path / "plm"
    known = ("--cartography", place / "runs/seed0", "--store", study)
    assert say(*command(place, "--split", "validation", "--store", study))[0] == 0
    assert say(*command(place, *known))[0] == 0
    status, _, err = say("export", "knowledge", study, "--out", out)
    assert status == 1 and "holds 2 results of the kind knowledge" in err
    status, _, err = say("export", "knowledge", study, "--out", out, "--only", "train:test")
    assert status == 1 and "holds nothing known on train:test" in err
    both = ("train:train", "train:validation")
    status, _, err = say("export", "knowledge", study, "--out", out, "--only", *both)
    assert status == 1 and "two results would be written as valid_data_analysis.json" in err
    assert not out.exists()
    assert say("export", "knowledge", study, "--out", out, "--only", "train:train")[0] == 0
    assert say("export", "cartography", place / "runs/seed0", "--out", out)[0] == 0
    again = ("import", "knowledge", out, "--dynamics", out / "cartography.json", "--store")
    status, text, err = say(*again, tmp_path / "again")
    assert status == 0 and "newly forgotten" in text, err
    (back,) = load_results(Store.open(tmp_path / "again")).values()
    first = load_results(Store.open(study))["knowledge-seed0-seed1-train-train"]
    assert (back.scores == first.scores).all()
    kept = ["forgotten", "relearned", "correctness", "turns_p", "relearned_confidence_low"]
    pd.testing.assert_frame_equal(back.summary[kept], first.summary[kept])
    assert say("report", tmp_path / "again")[0] == 0  # without texts


def test_distances_and_curves_in_files(say, place, tmp_path):
    ends = (place / "runs/seed0", place / "runs/seed1")
    assert say("distance", *ends, "--out", tmp_path / "plm")[0] == 0
    assert (tmp_path / "plm/distance.txt").read_text().startswith("L2 distance is: \n")
    data = ("--task", place / "dev.tsv", "--text", "sentence", "--label", "label")
    store = ("--store", tmp_path / "study")
    status, out, _ = say("interpolate", *ends, *data, "--points", "5", *store)
    assert status == 0 and "accuracy beats both ends at" in out
    assert say("export", "line", tmp_path / "study", "--out", tmp_path / "plm")[0] == 0
    assert len(pd.read_csv(tmp_path / "plm/result.csv")) == 6


def test_a_step_of_a_study_file(say, place, tmp_path):
    task = {"files": {"train": str(place / "train.tsv")}, "text": "sentence", "label": "label"}
    step = {"a": str(place / "runs/seed0"), "b": str(place / "runs/seed1"), "task": "rows"}
    known = {**step, "points": 4, "cartography": str(place / "runs/seed1")}
    curve = {**step, "steps": 2, "out": "bent", "eval_split": "train"}
    bent = {**step, "path": "bent"}
    steps = [{"knowledge": known}, {"curve": curve}, {"knowledge": bent}]
    study = {"study": "study", "tasks": {"rows": task}, "steps": steps}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    status, out, err = say("run", tmp_path / "study.yaml", "--dry-run")
    assert status == 0 and "6 evaluations" in out, err
    status, out, err = say("run", tmp_path / "study.yaml")
    assert status == 0, err
    found = load_results(Store.open(tmp_path / "study"))
    assert found["knowledge-seed0-seed1-rows-train"].scores.shape == (4, 40)
    assert found["knowledge-seed0-seed1-rows-train-bent"].path == "bezier"


def test_a_cartography_of_other_data(say, place):
    wrong = ["--files.train" if w == "--files.train" else w for w in command(place)]
    wrong[wrong.index("--files.train") + 1] = place / "other.tsv"
    status, out, err = say(*wrong, "--cartography", place / "runs/seed0")
    assert status == 1 and not out and "is of other data" in err
    status, _, err = say(*command(place, "--cartography", place / "base"))
    assert status == 1 and "no record of its training dynamics" in err


def test_the_dry_run_along_a_curve_forecasts_what_the_run_evaluates(say, place, tmp_path):
    """Options that are not given are those of the fit: here float64."""
    task = lf.load_task({"train": str(place / "train.tsv")}, text="sentence", label="label")
    ends = [place / "runs/seed0", place / "runs/seed1"]
    options = {"steps": 1, "dtype": "float64"}
    lf.fit_curve(*ends, task, **options).save(tmp_path / "bent")
    more = ("--path", tmp_path / "bent", "--points", "3", "--store", tmp_path / "study")
    assert say(*command(place, *more))[0] == 0
    status, out, err = say(*command(place, *more, "--dry-run", "--json"))
    assert status == 0 and json.loads(out)["evaluations"] == 0, err
    step = {"a": str(ends[0]), "b": str(ends[1]), "task": "train", "path": "bent", "points": 3}
    files = {"files": {"train": str(place / "train.tsv")}, "text": "sentence", "label": "label"}
    study = {"study": "study", "tasks": {"train": files}, "steps": [{"knowledge": step}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    status, out, err = say("run", tmp_path / "study.yaml", "--dry-run")
    assert status == 0 and "0 evaluations" in out, err


def test_a_refused_command_leaves_no_study(say, place, tmp_path):
    a, *rest = command(place, "--store", tmp_path / "study")
    words = [str(word).replace("seed1", "missing") for word in (a, *rest)]
    status, _, err = say(*words)
    assert status == 1 and "missing" in err
    assert not (tmp_path / "study").exists()
