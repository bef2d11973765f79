"""`landform mix`, its step in a study file, its figure and its page."""

import json

import numpy as np
import pandas as pd
import pytest

import landform as lf
from landform.cli.app import run
from landform.geometry.mixing import MixingFit
from landform.report.atlas import write_atlas
from landform.report.mixing_figures import plot_mixing
from landform.store.artifacts import Store
from landform.store.study import load_results


@pytest.fixture
def place(tmp_path, save_checkpoint, write_rows, monkeypatch):
    for i in (1, 2):
        save_checkpoint(tmp_path / "runs" / f"seed{i}", seed=i)
    write_rows(tmp_path / "train.tsv", 24)
    write_rows(tmp_path / "dev.tsv", 15, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    return tmp_path


DATA = "--files.train train.tsv --files.validation dev.tsv --text sentence --label label --name toy"
MIX = f"mix runs/seed1 runs/seed2 {DATA} --steps 4 --batch-size 8 --replicates 50 --points 5"


def ran(command, capsys):
    capsys.readouterr()
    status = run(command.split())
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def test_a_mix_from_forecast_to_model(place, capsys):
    out = ran(f"{MIX} --learning-rates 0.1 0.3 --store study --dry-run", capsys)
    assert out.count("4 steps to do") == 2 and "6 evaluations to do" in out
    assert not (place / "study").exists()
    out = ran(f"{MIX} --groups block --store study --out mixed --figure mix.png", capsys)
    assert "mix of runs/seed1 and runs/seed2 by block" in out
    for name in ("study/results/mix-block-seed1-seed2-toy-validation", "mixed", "mix.png"):
        assert f"wrote {name}\n" in out and (place / name).exists()
    found = load_results(Store.open("study", create=False))["mix-block-seed1-seed2-toy-validation"]
    task = lf.load_task("dev.tsv", text="sentence", label="label", name="toy")
    own = lf.evaluate("mixed", task).metrics["loss"]
    assert found.evaluation.set_index("model").loss["mix"] == pytest.approx(own, abs=1e-6)
    again = ran(f"{MIX} --groups block --store study --dry-run", capsys)
    assert "0 steps to do" in again and "0 evaluations to do" in again
    value = json.loads(ran(f"{MIX} --groups block --store study --json", capsys))
    assert value["weights"] == found.weights
    assert run(f"{MIX} --out runs".split()) == 1
    assert "other things" in capsys.readouterr().err


def test_a_step_of_a_study_file(place, capsys):
    task = "{files: {train: train.tsv, validation: dev.tsv}, text: sentence, label: label}"
    step = "{a: runs/seed1, b: runs/seed2, task: toy, steps: 3, points: 3, out: mixed, compat: plm}"
    (place / "study.yaml").write_text(
        f"study: s\ntasks:\n  toy: {task}\nsteps:\n  - mix: {step}\n"
        "  - evaluate: {checkpoints: mixed, task: toy}\n"
    )
    assert "3 steps to do" in ran("run study.yaml --dry-run", capsys)
    ran("run study.yaml", capsys)
    found = load_results(Store.open("s", create=False))["mix-layer-seed1-seed2-toy-validation"]
    assert found.rates.learning_rate.tolist() == [0.1, 0.05]  # what compat stands for
    assert found.provenance["config"]["optimizer"] == "adafactor"


# --- the figure and the page --------------------------------------------------------------------


def made(groups, rows):
    """A result with these (group, layer, part) and shares that rise from 0 to 1."""
    table = pd.DataFrame(rows, columns=["group", "layer", "part"])
    table["weight"] = np.linspace(0, 1, len(table))
    table = table.assign(logit=0.0, entries=10, distance=1.0)
    models, losses = ["mix", "a", "b", "even", "line"], [0.3, 0.4, 0.5, 0.6, 0.35]
    evaluation = pd.DataFrame(
        {"data": "toy_$x:dev", "model": models, "t": [np.nan, 0, 1, 0.5, 0.2]}
    )
    for shift, name in ((0.0, "loss"), (-0.05, "loss_low"), (0.05, "loss_high")):
        evaluation[name] = np.array(losses) + shift
    comparison = pd.DataFrame(
        [
            {"data": "toy_$x:dev", "quantity": "loss", "against": m, "difference": 0.3 - loss,
             "low": 0.25 - loss, "high": 0.35 - loss}
            for m, loss in zip(models[1:], losses[1:], strict=True)
        ]
    )  # fmt: skip
    history = pd.DataFrame({"step": [1], "loss": [0.4], "learning_rate": [0.1]})
    return MixingFit(
        "runs/seed_$0", "runs/seed1", groups, "classification", table, history, pd.DataFrame(),
        evaluation, comparison, {"chosen_on": None},
    )  # fmt: skip


LAYERS = [f"encoder.block.{k}" for k in range(3)] + [f"decoder.block.{k}" for k in range(3)]
PARTS = ("attention", "cross_attention", "feed_forward")
RESULTS = {
    "layer": [(layer, layer, "") for layer in LAYERS] + [("lm_head", "lm_head", "")],
    "block": [(f"{x}.{p}", x, p) for x in LAYERS for p in PARTS if "cross" not in p or "de" in x]
    + [("shared", "embeddings", "shared")],
    "tensor": [(f"{x}.{k}", x, f"layer.{k}.weight") for x in LAYERS for k in range(8)]
    + [(f"some.very.long.name.{k}", "embeddings", f"name.{k}") for k in range(40)],
    "nothing outside": [(f"{x}.{k}", x, f"layer.{k}.weight") for x in LAYERS for k in range(8)],
}


@pytest.mark.parametrize("groups", RESULTS)
@pytest.mark.filterwarnings("error")
def test_the_figure_shows_every_share_and_loss(groups):
    result = made(groups, RESULTS[groups])
    figure = plot_mixing(result)
    figure.draw_without_rendering()
    left, *_, losses = figure.axes[: 3 if groups in ("block", "tensor") else 2]
    if groups == "layer":
        assert [t.get_text() for t in left.get_yticklabels()][:4] == [
            *(f"encoder {k}" for k in range(3)), "decoder 0",
        ]  # fmt: skip
        widths = [bar.get_width() + 0.5 for bar in left.patches]
        np.testing.assert_allclose(widths, result.table.weight, atol=1e-12)
    else:
        shown = np.ma.filled(left.images[0].get_array(), np.nan)
        inner = result.table[result.table.layer.isin(LAYERS)]
        np.testing.assert_allclose(sorted(shown[np.isfinite(shown)]), sorted(inner.weight))
    dots = [line.get_xdata()[0] for line in losses.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, result.evaluation.loss)


def test_the_page_shows_it(tmp_path):
    page = write_atlas(tmp_path / "atlas.html", [made("block", RESULTS["block"])]).read_text()
    assert "Mixing weights" in page and "best of line" in page and "by block" in page
