"""Figures and the page of a data map: what is drawn is what was measured, and texts are inert."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hostile import EVIL
from landform.evaluation.cartography import DataMapConfig, TrainingDynamics, map_of
from landform.report import cartography_pages as pages
from landform.report.atlas import write_atlas
from landform.report.cartography_figures import drawn_rows, plot_data_map, plot_epochs
from landform.report.figures import draw, figures_of
from landform.tasks.task import load_task

CHROMIUM = shutil.which("chromium")


def make_map(size=60, epochs=4, *, texts=True, seed=0, word="w1"):
    random = np.random.default_rng(seed)
    skill = random.beta(2, 0.8, size)
    confidence = np.clip(skill + random.normal(0, 0.15, (epochs, size)), 0.01, 0.99)
    rows = pd.DataFrame(
        {"a": [f"{word} {i}" for i in range(size)], "b": ["second"] * size,
         "label": ["yes" if i % 3 else "no" for i in range(size)]}
    )  # fmt: skip
    task = load_task({"train": rows}, text=("a", "b"), label="label", name="pairs")
    examples = task.examples("train")
    dynamics = TrainingDynamics(
        examples.ids, np.arange(size), np.arange(1.0, epochs + 1), confidence, confidence > 0.5,
        np.log(confidence / (1 - confidence)), {"measure": "probability of the gold class"},
    )  # fmt: skip
    known = {"task": task, "split": "train", "examples": examples} if texts else {}
    return map_of(dynamics, run="runs/seed0", config=DataMapConfig(replicates=30), **known)


def dots(figure):
    """(x, y) of every dot, and how many have a ring."""
    axes = next(a for a in figure.axes if a.get_ylabel() == "mean confidence")
    plain, ringed = axes.collections[:2]
    return np.vstack([plain.get_offsets(), ringed.get_offsets()]), len(ringed.get_offsets())


def test_every_example_is_a_dot_where_it_belongs():
    m = make_map()
    places, ringed = dots(plot_data_map(m))
    wanted = m.table[["variability", "confidence"]].to_numpy()
    np.testing.assert_allclose(sorted(map(tuple, places)), sorted(map(tuple, wanted)))
    assert ringed == (m.table.forgetting > 0).sum() > 0
    assert figures_of(m).keys() == {"data_map", "epochs"}
    assert draw(m, "epochs").axes


def test_the_bound_holds_for_every_example():
    m = make_map(300).table
    assert (m.variability <= np.sqrt(m.confidence * (1 - m.confidence)) + 1e-12).all()


def test_many_examples_are_sampled_and_that_is_said():
    m = make_map(500)
    figure = plot_data_map(m, points=100)
    assert len(dots(figure)[0]) == 100
    assert any("100 of 500" in axes.get_title(loc="left") for axes in figure.axes)
    rows = drawn_rows(m.table, 100)
    assert len(set(rows)) == 100
    flags = (m.table.forgetting.to_numpy() > 0)[rows]
    assert (np.diff(flags.astype(int)) >= 0).all()


@pytest.mark.parametrize("epochs", [1, 2, 15])
def test_few_and_many_epochs_are_drawn(epochs):
    m = make_map(epochs=epochs)
    for draw_one in (plot_data_map, plot_epochs):
        draw_one(m).canvas.draw()


def test_an_epoch_that_was_broken_off_has_its_own_label():
    """Epochs 1, 2 and 2.128: the last two numbers were written over one another."""
    m = make_map(epochs=3)
    table = m.by_epoch.assign(epoch=[1.0, 2.0, 2.128])
    figure = plot_epochs(dataclasses.replace(m, by_epoch=table))
    figure.canvas.draw()
    labels = [t for t in figure.axes[1].get_xticklabels() if t.get_text()]
    assert [t.get_text().strip() for t in labels] == ["1", "2", "2.13"]
    regular = plot_epochs(m).axes[1].get_xticklabels()
    assert [t.get_text() for t in regular] == ["1", "2", "3"]
    assert labels[2].get_text().startswith("\n"), "one line below its neighbour"


def test_bars_are_what_was_learned_and_forgotten():
    m = make_map()
    below = plot_epochs(m).axes[1]
    heights = [bar.get_height() for bar in below.patches]
    assert heights == [*m.by_epoch.learned, *(-m.by_epoch.forgotten)]


# --- the page ------------------------------------------------------------------------------------


def payload(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="[^"]*">(.*?)</script>', page, re.S)
    return json.loads(text)


def test_the_page_has_every_example_with_its_numbers(tmp_path):
    m = make_map()
    page = write_atlas(tmp_path / "a.html", m).read_text()
    data = payload(page)
    assert data["ids"] == m.table.text_id.tolist()
    np.testing.assert_allclose(data["y"], m.table.confidence, atol=1e-4)
    np.testing.assert_allclose(data["x"], m.table.variability, atol=1e-4)
    assert data["texts"][7] == ["w1 7", "second"] and data["label"][7] == "yes"
    course = m.dynamics[m.dynamics.text_id == data["ids"][7]]
    np.testing.assert_allclose(data["course"][7], course.confidence, atol=1e-3)
    assert data["right"][7] == "".join("01"[int(v)] for v in course.correct)
    for word in ("Data maps", "Hardest", "Most often forgotten", "Toneva"):
        assert word in page
    assert "Convexity gap" not in page


def test_a_large_map_is_a_sample_with_its_extremes(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "DOTS", 300)
    m = make_map(2000)
    page = write_atlas(tmp_path / "a.html", m).read_text()
    data = payload(page)
    assert len(data["ids"]) == 300 and "300 of 2,000 examples" in page
    hardest = m.table.sort_values("confidence").text_id.head(60)
    assert set(hardest) <= set(data["ids"])


def test_without_a_task_there_are_ids_alone(tmp_path):
    page = write_atlas(tmp_path / "a.html", make_map(texts=False)).read_text()
    data = payload(page)
    assert data["label"] == [] and data["texts"][0] == [] and "task not given" in page


def test_texts_are_inert(tmp_path):
    page = write_atlas(tmp_path / "a.html", make_map(word=EVIL)).read_text()
    assert "<img src=x" not in page and page.count("<script") == 2


ACTIONS = """
<script>
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement, body = document.querySelector(".datamap");
  root.dataset.first = root.dataset.example;
  root.dataset.all = root.dataset.dots;
  const picture = body.querySelector("svg");
  for (const key of ["ArrowUp", "ArrowUp", "Enter"])
    picture.dispatchEvent(new KeyboardEvent("keydown", { key }));
  root.dataset.second = body.querySelector("h5").textContent;
  root.dataset.text = body.querySelector(".asked").textContent;
  const choose = (k, value) => {
    const select = body.querySelectorAll("select")[k];
    select.value = value;
    select.dispatchEvent(new Event("change"));
  };
  for (const colour of ["label", "forgetting", "learned"]) choose(0, colour);
  choose(1, "forgotten");
  root.dataset.forgotten = root.dataset.dots;
  choose(1, "all");
  const field = body.querySelector("input");
  field.value = " 17";
  field.dispatchEvent(new Event("input"));
  root.dataset.found = root.dataset.dots;
}, 1500));
</script></body>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not run")
def test_the_map_works_in_a_browser(tmp_path):
    m = make_map(word=EVIL)
    path = write_atlas(tmp_path / "a.html", m)
    path.write_text(path.read_text().replace("</body>", ACTIONS))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=8000", "--dump-dom", Path(path).as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    attributes = re.search(r"<html[^>]*>", dom)
    assert attributes
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', attributes[0]))
    assert found["errors"] == "0" and found["ready"] == "yes" and found["maps"] == "1"
    assert "hacked" not in found
    order = m.table.sort_values("confidence")
    assert found["first"] == order.text_id.iloc[0] and found["all"] == "60"
    assert found["second"] != found["first"]
    row = m.table.set_index("text_id").loc[found["second"]]
    assert row.confidence > order.confidence.iloc[0]
    assert int(found["forgotten"]) == (m.table.forgetting > 0).sum()
    assert found["found"] == "1"
