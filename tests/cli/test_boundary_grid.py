"""`landform boundary` and `landform grid` as commands: what they write, what they refuse."""

import json

import pytest

from landform.cli.app import run


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("cli")
    for i in range(2):
        save_checkpoint(root / f"m{i}", seed=i)
    save_checkpoint(root / "other", seed=3, intermediate_size=32)
    write_rows(root / "dev.tsv", 12)
    (root / "b.yaml").write_text("task: dev.tsv\nname: b\ntext: sentence\nlabel: label\n")
    return root


@pytest.fixture
def call(capsys, monkeypatch, place):
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    monkeypatch.chdir(place)

    def say(*words):
        capsys.readouterr()
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return say


DATA = ("--task", "dev.tsv", "--text", "sentence", "--label", "label", "--task-b", "b.yaml")


def test_a_boundary_is_said_kept_and_drawn(call, tmp_path):
    words = ("boundary", "m0", "m1", *DATA, "--points", 3, "--replicates", 20)
    status, out, _ = call(*words, "--dry-run", "--json")
    assert status == 0 and json.loads(out)
    figure = tmp_path / "f.png"
    status, out, err = call(*words, "--store", tmp_path / "s", "--figure", figure)
    assert status == 0, err
    assert figure.exists() and (tmp_path / "s" / "results").is_dir() and "wrote" in out
    status, out, _ = call(*words, "--store", tmp_path / "s", "--json")
    assert status == 0 and json.loads(out)["summary"]["width"] is not False
    status, out, err = call(
        "boundary", "m0", "m1", "m1", "m0", *words[3:], "--labels", "x", "y", "--json"
    )
    assert status == 0, err
    assert [row["label"] for row in json.loads(out)["table"]] == ["x", "y"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("boundary", "m0", "m1", "m0", *DATA), "3 models make no pairs"),
        (("boundary", "m0", "nobody", *DATA), "nobody"),
        (("boundary", "m0", "other", *DATA), "intermediate_size"),
        (("boundary", "m0", "m1", *DATA, "--keep", 2), "keep"),
        (("boundary", "m0", "m1", *DATA, "--figure", "f.bmp"), "unknown format"),
        (("grid", "--model", "m0", "--tasks", "b.yaml"), "where to?"),
        (("grid", "--out", "s"), "which model, which tasks?"),
        (("grid", "--model", "m0", "--tasks", "b.yaml", "--axes", "sed", "--out", "s"), "axes"),
        (("grid", "none.yaml", "--out", "s"), "there is no such file"),
        (("grid", "b.yaml", "--points", 3, "--out", "s"), "flags do too"),
        (("grid", "b.yaml", "--out", "s"), "model and tasks are needed"),
        (("grid", "--collect", "nowhere"), "nowhere"),
    ],
    ids=[
        *("odd", "missing", "shapes", "keep", "figure", "out", "model", "axis", "file", "both"),
        *("keys", "study"),
    ],
)
def test_what_is_refused(call, place, words, says):
    before = sorted(path.name for path in place.rglob("*"))
    status, out, err = call(*words)
    assert status in (1, 2) and not out, (out, err)
    assert err.startswith("error: ") and "what to do: " in err and says in err, err
    assert sorted(path.name for path in place.rglob("*")) == before
