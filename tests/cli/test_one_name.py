"""Checkpoints of one short name in one study: a/seed0 and b/seed0 do not replace one another."""

import json

import pytest

from landform.cli.app import run
from landform.store.artifacts import Store
from landform.store.study import load_results

DATA = "--files.train train.tsv --files.validation dev.tsv --text sentence --label label --name toy"
FEW = "--replicates 20"
COMMANDS = {
    "evaluate": f"evaluate X/seed0 {FEW}",
    "interpolate": f"interpolate X/seed0 X/seed1 --points 3 {FEW}",
    "ridge": f"ridge X/seed0 X/seed1 --points 3 {FEW}",
    "knowledge": "knowledge X/seed0 X/seed1 --points 3",
    "plane": f"surface --through X/seed0 X/seed1 X/seed2 --size 5 {FEW}",
    "around": f"surface --around X/seed0 --directions random --size 3 {FEW}",
    "masks": f"surface --around X/seed0 --directions random --size 3 --mask none random {FEW}",
    "sharpness": "sharpness X/seed0 --steps 1 --restarts 1",
    "spectrum": "spectrum X/seed0 --top 1 --trace none --density-probes 0",
    "path-spectrum": "spectrum X/seed0 X/seed1 --points 3 --top 1 --trace none",
    "fisher": "fisher X/seed0",
    "curve": f"curve X/seed0 X/seed1 --steps 2 --points 3 {FEW}",
    "mix": f"mix X/seed0 X/seed1 --steps 2 --batch-size 8 --points 3 {FEW}",
    "simplex": f"simplex X/seed0 X/seed1 --connectors 1 --steps 2 --samples 2 {FEW}",
    "average": "average X/seed0 X/seed1 --out X-average",
    "boundary": f"boundary X/seed0 X/seed1 --task-b other.yaml --points 3 {FEW}",
    "influence": "influence X/seed0 --strategy identity --query-rows 3",
    "mislabel": "mislabel X/seed0 --strategy identity",
    "examples": "examples X/seed0 X/seed1 --strategy identity --points 3",
    "barrier": "barrier X/seed0 X/seed1 --strategy identity --points 3",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("names")
    for i in range(3):
        save_checkpoint(root / "a" / f"seed{i}", seed=i)
        save_checkpoint(root / "b" / f"seed{i}", seed=10 + i)
    write_rows(root / "train.tsv", 12, seed=1)
    write_rows(root / "dev.tsv", 8)
    (root / "other.yaml").write_text(
        "name: other\nfiles: {validation: dev.tsv}\ntext: sentence\nlabel: label\n"
    )
    return root


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_what_is_kept_of_two_checkpoints_of_one_name(place, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(place)
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    store = tmp_path / "study"

    def kept(folder):
        line = f"{words} {DATA}".replace("X", folder).split()
        status = run([*line, "--store", str(store)])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        found = load_results(Store.open(store, create=False))
        for name in found.keys() - before:
            assert f"results/{name}\n" in captured.out, captured.out
        return {
            name: json.dumps(result.to_json(), sort_keys=True) for name, result in found.items()
        }

    before = set()
    first = kept("a")
    before = set(first)
    both = kept("b")
    assert {name: both[name] for name in first} == first
    assert len(both) == 2 * len(first)
    assert all(name.partition("+")[0] in first for name in both)
    before = set(both)
    assert set(kept("a")) == set(kept("b")) == set(both)
