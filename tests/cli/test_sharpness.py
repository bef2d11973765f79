"""`landform sharpness` as a newcomer would type it."""

import json

import pytest

from landform.cli.app import run


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("cli")
    for i in range(3):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i)
    write_rows(root / "dev.tsv", 14)
    write_rows(root / "ood.tsv", 10, seed=2)
    (root / "ood.yaml").write_text(
        f"name: ood\nfiles: {{validation: {root}/ood.tsv}}\ntext: sentence\nlabel: label\n"
    )
    return root


@pytest.fixture
def say(capsys, monkeypatch, place):
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")

    def call(*words):
        given = [*words, "--task", place / "dev.tsv", "--text", "sentence", "--label", "label"]
        status = run(["sharpness", *map(str, given)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_one_checkpoint(say, place, tmp_path):
    store, image = tmp_path / "study", tmp_path / "climb.png"
    status, out, err = say(
        place / "runs" / "seed0", "--steps", 2, "--store", store, "--figure", image
    )
    assert status == 0, err
    assert "box sharpness" in out and "first order predicts" in out
    assert (store / "results" / "sharpness-seed0-dev-validation-box").is_dir()
    assert image.read_bytes().startswith(b"\x89PNG")


def test_several_checkpoints_and_methods(say, place, tmp_path):
    store = tmp_path / "study"
    words = [
        place / "runs" / "seed*", "--also", place / "ood.yaml", "--method", "box", "sam",
        "--epsilon", 0.001, 0.05, "--steps", 2, "--replicates", 40, "--store", store,
    ]  # fmt: skip
    status, out, err = say(*words, "--dry-run")
    assert status == 0 and "climb" in out and not store.exists(), err
    status, out, err = say(*words)
    assert status == 0, err
    assert "Spearman" in out and "seed2" in out and "p_holm" in out
    assert (store / "results" / "sharpness" / "table.parquet").is_file()
    status, out, err = say(*words, "--json")
    found = json.loads(out)
    assert status == 0 and len(found["table"]) == 6 and len(found["correlations"]) == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--epsilon", 0), "epsilon"),
        (("--epsilon", -0.001), "epsilon"),
        (("--steps", 0), "steps"),
        (("--coordinates", 10**9), "may move"),
        (("--method", "boxes"), "box"),
        (("--subspace", 4, "--method", "adaptive"), "coordinates"),
    ],
)
def test_what_is_wrong_is_said(say, place, tmp_path, words, says):
    store = tmp_path / "study"
    status, out, err = say(place / "runs" / "seed0", *words, "--store", store)
    assert status in (1, 2) and not out
    assert err.startswith("error: ") and "what to do: " in err and says in err
    assert "Traceback" not in err
