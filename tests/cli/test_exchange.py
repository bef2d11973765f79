"""`landform import` and `landform export`: a study goes out in the originals' formats and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from known_lines import made_lines
from landform.cli.app import run
from landform.exchange.connections import ImportConfig, connection_of
from landform.store.artifacts import Store
from landform.store.study import load_results, open_store, publish


@pytest.fixture
def study(tmp_path: Path, save_checkpoint: Any, write_rows: Any) -> Path:
    """A study with evaluations of four checkpoints, and lines between models of their names."""
    rows = write_rows(tmp_path / "dev.tsv", 24)
    for i in (0, 1, 2, 10):
        save_checkpoint(tmp_path / "runs" / str(i), seed=i)
    words = ["--task", str(rows), "--text", "sentence", "--label", "label", "--quiet"]
    place = tmp_path / "study"
    assert run(["evaluate", f"{tmp_path}/runs/*", *words, "--store", str(place)]) == 0
    lines = made_lines(data="dev:validation")
    publish(open_store(place), "connect", connection_of(lines, config=ImportConfig(replicates=20)))
    return place


def kept(study: Path) -> dict[str, Any]:
    return load_results(Store.open(study, create=False))


def test_out_and_back(study, tmp_path, capsys):
    logs, pickles, samples, again = (tmp_path / n for n in ("logs", "pickles", "samples", "again"))
    assert run(["export", "logs", str(study), "--out", str(logs)]) == 0
    assert run(["export", "interpolations", str(study), "--out", str(pickles)]) == 0
    assert run(["export", "samples", str(study), "--out", str(samples)]) == 0
    assert f"wrote {logs / 'dev-validation' / 'interpolations.out'}" in capsys.readouterr().out
    words = ["--samples", str(samples / "dev-validation"), "--store", str(again)]
    assert run(["import", "logs", str(logs / "dev-validation"), *words]) == 0
    said = capsys.readouterr().out
    assert "dev:validation: 6 lines between 4 models" in said
    assert "noise floor 0.01 nats" in said and f"next: landform report {again}" in said
    before, after = kept(study)["connect"], kept(again)["connect"]
    pd.testing.assert_frame_equal(after.gaps, before.gaps, atol=2e-4)
    pd.testing.assert_series_equal(after.basins, before.basins)
    evaluations = [name for name in kept(again) if name.startswith("evaluate-")]
    assert len(evaluations) == 4
    for name in evaluations:
        one = kept(again)[name]
        match = next(
            value
            for value in kept(study).values()
            if getattr(value, "checkpoint", "").endswith(f"/{one.checkpoint}")
        )
        assert one.metrics["loss"] == pytest.approx(match.metrics["loss"], abs=1e-6)
        assert one.metrics["accuracy"] == match.metrics["accuracy"]
    assert run(["report", str(again)]) == 0
    capsys.readouterr()
    pickle = str(next(pickles.iterdir()))
    assert run(["import", "interpolations", pickle, "--allow-pickle", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.lstrip())
    gaps = {(row["a"], row["b"]): row["convexity_gap"] for row in found["pairs"]}
    assert gaps["0", "10"] == before.gaps.loc["0", "10"]


def test_surfaces(tmp_path, capsys):
    import numpy as np
    import torch

    from landform.exchange.pickles import write_pickle

    g = np.linspace(-2, 2, 9)
    grid = np.meshgrid(g, g)
    places = {"w0": (0.0, 0.0), "w1": (1.0, 0.0), "w2": (0.5, 1.0)}
    files = []
    for metric in ("loss", "acc"):
        path = tmp_path / f"mnli_test_99_44_73_2_{metric}_surface.pkl"
        write_pickle(path, ((*grid, torch.rand(9, 9)), places))
        files.append(str(path))
    store = tmp_path / "study"
    assert run(["import", "surface", *files, "--store", str(store)]) == 1
    assert "--allow-pickle" in capsys.readouterr().err
    assert run(["import", "surface", *files, "--allow-pickle", "--store", str(store)]) == 0
    assert run(["report", str(store)]) == 0
    assert run(["export", "surface", str(store), "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        Path(file).name for file in files
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "logs", "{tmp}/nowhere"], "no such file or folder"),
        (["import", "logs", "{study}", "--name", "a", "b"], "2 names for 1 sources"),
        (["import", "samples", "{tmp}/nothing_"], "no per-sample file of that prefix"),
        (["import", "hub", "org/m-"], "no folder to download to"),
        (["export", "logs", "{tmp}/nowhere", "--out", "{tmp}/out"], "there is no study"),
        (["export", "surface", "{study}", "--out", "{tmp}/out"], "holds 0 results of the kind"),
        (
            ["export", "logs", "{study}", "--result", "x", "--out", "{tmp}/out"],
            "--result): connect",
        ),
        (["export", "logs", "{study}", "--only", "x", "--out", "{tmp}/out"], "no data set 'x'"),
    ],
)
def test_bad_input(tmp_path, capsys, words, said):
    study = tmp_path / "study"
    publish(open_store(study), "connect", connection_of(made_lines()[:1]))
    assert run([word.format(tmp=tmp_path, study=study) for word in words]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
