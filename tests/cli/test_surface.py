"""`landform surface` as a newcomer would type it, and as a step of a study file."""

import json

import numpy as np
import pytest

from landform.cli.app import run
from landform.store.artifacts import Store
from landform.store.study import load_results


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("surface")
    for i in range(3):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i)
    write_rows(root / "dev.tsv", 12)
    write_rows(root / "ood.tsv", 8, seed=2)
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


def through(place, *, size=5):
    seeds = [place / "runs" / f"seed{i}" for i in range(3)]
    return ["surface", "--through", *seeds, *data(place), "--size", size, "--replicates", 20]


def test_a_plane_is_kept(say, place, tmp_path):
    words = [*through(place), "--also", place / "ood.yaml", "--store", tmp_path / "s"]
    status, out, err = say(*words, "--figure", tmp_path / "plane.png")
    assert status == 0, err
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")
    assert "plane through seed0, seed1, seed2 on dev:validation, 25 evaluations" in out
    (name,) = (tmp_path / "s" / "results").iterdir()
    assert f"wrote {name}" in out and name.name == "surface-seed0-seed1-seed2-dev-validation"
    kept = load_results(Store.open(tmp_path / "s"))[name.name]
    assert kept.data == ("dev:validation", "ood:validation")
    assert kept.values["loss"].shape == (5, 5)
    status, out, err = say(*words, "--dry-run", "--json")
    assert status == 0 and json.loads(out)["evaluations"] == 0, err


def test_json_around_one_model(say, place):
    status, out, err = say(
        *("surface", "--around", place / "runs" / "seed0", "--directions", "random"),
        *(*data(place), "--size", 3, "--extent", "-0.5", "0.5", "--normalise", "tensor", "--json"),
    )
    found = json.loads(out)
    assert status == 0, err
    assert found["mode"] == "random" and found["models"] == {"seed0": [0, 0]}
    assert found["x"] == [-0.5, 0, 0.5] and len(found["table"]) == 9
    assert all(np.isfinite(row["loss"]) for row in found["table"])


def test_dry_run_keeps_nothing(say, place, tmp_path):
    words = [*through(place, size=9), "--refine", 1, "--store", tmp_path / "s", "--dry-run"]
    status, out, err = say(*words)
    assert status == 0, err
    assert "81 evaluations" in " ".join(out.split()) and "refine 1: at most that" in out
    assert not (tmp_path / "s").exists()
    status, out, err = say(*words, "--json")
    found = json.loads(out)
    assert status == 0 and found["evaluations"] == 81 and found["seconds"] > 0, err


def test_bad_words(say, place, tmp_path):
    plane, seed0 = through(place), place / "runs" / "seed0"
    cases = [
        (["surface", *data(place)], 1, "a surface of what?"),
        ([*plane, "--around", seed0], 1, "exclude each other"),
        ([*plane[:-4], "--size", 12], 1, "misses the models"),
        ([*plane[:-4], "--size", 1], 2, "option size"),
        ([*plane, "--extent", 1, 0], 2, "the smaller one first"),
        ([*plane, "--engine", "rya"], 2, "engine"),
        ([*plane, "--workers", 2], 1, "workers is 2"),
        ([*plane, "--figure", tmp_path / "plane.xyz"], 1, "plane.xyz"),
        (["surface", "--through", seed0, seed0, *data(place)], 1, "names 2 models"),
        (["surface", "--around", tmp_path / "none", *data(place)], 1, "no such directory"),
    ]
    for words, expected, message in cases:
        status, out, err = say(*words)
        assert status == expected, (words, out, err)
        assert err.startswith("error: ") and message in err and not out, (words, err)


def test_steps_of_a_study_file(say, place, tmp_path):
    for name in ("runs", "dev.tsv", "ood.tsv"):
        (tmp_path / name).symlink_to(place / name)
    columns = "text: sentence, label: label"
    (tmp_path / "study.yaml").write_text(
        "study: out\n"
        f"tasks:\n  toy: {{files: {{validation: dev.tsv}}, {columns}}}\n"
        f"  ood: {{files: {{validation: ood.tsv}}, {columns}}}\n"
        "steps:\n"
        "  - surface: {through: [runs/seed0, runs/seed1, runs/seed2], task: toy, also: [ood], "
        "size: 5, refine: 1, replicates: 20}\n"
        "  - surface: {around: runs/seed0, task: toy, size: 3, replicates: 20}\n"
    )
    status, out, err = say("run", tmp_path / "study.yaml", "--dry-run")
    assert status == 0, err
    assert "25 evaluations" in " ".join(out.split()) and "at most" in out
    status, out, err = say("run", tmp_path / "study.yaml")
    assert status == 0, err
    kept = load_results(Store.open(tmp_path / "out"))
    assert sorted(kept) == [
        "surface-seed0-random-toy-validation",
        "surface-seed0-seed1-seed2-toy-validation",
    ]
    bad = (tmp_path / "study.yaml").read_text().replace("size: 5", "size: 6")
    (tmp_path / "bad.yaml").write_text(bad)
    status, _, err = say("run", tmp_path / "bad.yaml")
    assert status == 1 and "step 1" in err and "misses the models" in err


@pytest.fixture(scope="module")
def fisher(place):
    import landform as lf

    task = lf.load_task(str(place / "dev.tsv"), text="sentence", label="label")
    found = lf.fisher(place / "runs" / "seed0", task, split="validation")
    return found.save(place / "fisher.safetensors")


def around(place, fisher, *more):
    seed0 = place / "runs" / "seed0"
    words = ["surface", "--around", seed0, "--directions", "random", *data(place), "--size", 3]
    return [*words, "--replicates", 20, "--fisher", fisher, *more]


def test_one_mask(say, place, fisher, tmp_path):
    words = around(place, fisher, "--mask", "fisher-top", "--mask-by", "entry", "--match-norm")
    status, out, err = say(*words, "--store", tmp_path / "s", "--figure", tmp_path / "one.png")
    assert status == 0, err
    assert "mask fisher-top by entry: moves" in out and "before rescaling" in out
    assert "control: a random mask of as many entries" in out
    name = "surface-seed0-random-fisher--top-entry-match_norm-dev-validation"
    assert (tmp_path / "s" / "results" / name).is_dir(), out
    status, out, err = say(*words, "--json")
    found = json.loads(out)
    assert status == 0 and found["directions"][0]["mask"] == "fisher-top", err
    assert found["directions"][0]["norm"] == pytest.approx(found["directions"][0]["whole_norm"])


def test_several_masks_and_pairs(say, place, fisher, tmp_path):
    masks = ["--mask", "none", "fisher-top", "fisher-bottom", "random", "--mask-by", "matrix"]
    words = around(place, fisher, *masks, "--pairs", 2, "--store", tmp_path / "s")
    status, out, err = say(*words, "--dry-run")
    assert status == 0 and "evaluations" in out and not (tmp_path / "s").exists(), err
    status, out, err = say(*words, "--figure", tmp_path / "all.png")
    assert status == 0, err
    assert "2 pairs of random directions around seed0 on dev:validation, 72 evaluations" in out
    assert all(f"{kind} by matrix" in out for kind in ("fisher-top", "fisher-bottom", "random"))
    assert "control" in out and "length" in out
    (name,) = (tmp_path / "s" / "results").iterdir()
    assert name.name == "landscape-seed0-matrix-dev-validation"
    status, out, err = say(
        *("export", "surface", tmp_path / "s", "--out", tmp_path / "h5", "--as", "hdf5"),
        *("--directions-of", place / "runs" / "seed0", "--fisher", fisher),
    )
    assert status == 0 and out.count("wrote") == 16, err
    files = sorted((tmp_path / "h5").glob("surf_*.h5"))
    status, out, err = say("import", "surface", *files[:2], "--store", tmp_path / "again")
    assert status == 0 and "reaches 3" in out and "curvature_high" in out, err
    status, out, err = say("import", "surface", *files[:2], "--keep-as", "x")
    assert status == 1 and "one --keep-as" in err
    status, out, err = say("import", "surface", files[0], "--json")
    assert status == 0 and json.loads(out)["statistics"][0]["cells"] == 1
    status, out, err = say("report", tmp_path / "s", "--out", tmp_path / "atlas.html")
    assert status == 0 and "Landscapes" in (tmp_path / "atlas.html").read_text(), err


def test_a_masked_step_of_a_study_file(say, place, fisher, tmp_path):
    for name in ("runs", "dev.tsv", "fisher.safetensors"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "study.yaml").write_text(
        "study: out\n"
        "tasks:\n  toy: {files: {validation: dev.tsv}, text: sentence, label: label}\n"
        "steps:\n"
        "  - surface: {around: runs/seed0, task: toy, size: 3, replicates: 20, "
        "mask: [none, fisher-top], fisher: fisher.safetensors}\n"
        "  - surface: {around: runs/seed0, task: toy, size: 3, replicates: 20, mask: random}\n"
    )
    status, _, err = say("run", tmp_path / "study.yaml")
    assert status == 0, err
    assert sorted(load_results(Store.open(tmp_path / "out"))) == [
        "landscape-seed0-tensor-toy-validation",
        "surface-seed0-random-random-tensor-toy-validation",
    ]


def test_bad_masks(say, place, fisher, tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"no")
    cases = [
        (around(place, fisher, "--mask", "fisher"), 2, "mask"),
        (around(place, fisher, "--mask-share", 0), 2, "mask_share"),
        (around(place, tmp_path / "no.safetensors", "--mask", "fisher-top"), 1, "cannot be read"),
        ([*around(place, fisher, "--mask", "fisher-top")[:2], place / "runs" / "seed1",
          *around(place, fisher, "--mask", "fisher-top")[3:]], 1, "landform fisher"),
        ([*through(place), "--mask", "random"], 1, "directions around one model"),
    ]  # fmt: skip
    for words, expected, message in cases:
        status, out, err = say(*words)
        assert status == expected, (words, out, err)
        assert err.startswith("error: ") and message in err and not out, (words, err)
