"""The pages of connectivity: what is on them, that they are inert, that the planes answer."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import connectivity_results as results
from hostile import EVIL
from landform.report import connectivity_pages
from landform.report.atlas import write_atlas

CHROMIUM = shutil.which("chromium")


def blocks(page: str) -> list[dict]:
    """The data blocks of a page."""
    found = re.findall(r'<script type="application/([^"]*)" id="[^"]*">(.*?)</script>', page, re.S)
    return [
        json.loads(gzip.decompress(base64.b64decode(text)) if "gzip" in kind else text)
        for kind, text in found
    ]


def words(page: str) -> str:
    page = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S).replace("<wbr>", "")
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


@pytest.fixture(scope="module")
def everything(connection):
    found = {kind.lower(): make() for kind, make in results.MAKERS.items()}
    found["interpolated"] = results.make_surface(11, skipped=0.4, seed=2)
    return {**found, "connect": connection()}


@pytest.fixture(scope="module")
def path(everything, tmp_path_factory):
    return write_atlas(tmp_path_factory.mktemp("atlas") / "a.html", everything)


def test_every_result_has_a_page(everything, path):
    page = path.read_text()
    text = words(page)
    for result in everything.values():
        assert result.reading in text
    for kind in connectivity_pages.CONNECTIVITY_KINDS.values():
        assert f"<h2>{kind.title}</h2>" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'data-source="([^"]+)"', page)) <= set(ids)
    assert "Cayley" in text
    # Two planes stand side by side above their own pages.
    assert "on one colour scale" in text
    assert path.stat().st_size < 4_000_000
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_the_numbers_of_every_page(everything, path):
    text = words(path.read_text())
    ridge, dynamics = everything["ridge"], everything["dynamics"]
    assert ridge.table["text"].iloc[0] in text
    assert "The first 60 of 120." in text
    assert "switch basins 1 seed7" in text
    triangles = everything["transitivity"]
    assert f"violations {triangles.violations}" in text
    # A connection shows its own triangles as well.
    assert text.count("in % of the direct gap") == 0  # that is within pictures
    assert text.count("of 8 checkpoints violations") == 2
    assert "saved by bending" not in text  # this path has no paired reduction
    assert f"{len(dynamics.steps)} 100, 200, 300" in text
    assert "21 % less" in text


def test_the_data_of_a_plane_are_its_values(tmp_path):
    surface = results.make_surface(9, skipped=0.5, missing=True)
    (data,) = blocks(write_atlas(tmp_path / "a.html", surface).read_text())
    np.testing.assert_allclose(data["x"], surface.x, atol=1e-3)
    assert [m["name"] for m in data["models"]] == list(surface.models)
    for k, name in enumerate(surface.data):
        part = data["sets"][k]
        assert part["name"] == name
        loss, accuracy = part["metrics"]
        assert (loss["low_is_good"], accuracy["low_is_good"]) == (True, False)
        shown = np.array([np.nan if v is None else v for v in loss["values"]]).reshape(9, 9)
        np.testing.assert_allclose(shown, surface.grid("loss", name), rtol=2e-3)
        assert part["evaluated"] == [int(v is not None) for v in loss["values"]]
    whole = blocks(write_atlas(tmp_path / "b.html", results.make_surface(5)).read_text())
    assert whole[0]["sets"][0]["evaluated"] == []


def test_a_study_without_triangles_says_nothing_of_them(connection, tmp_path):
    page = write_atlas(tmp_path / "a.html", [connection((0, 1))]).read_text()
    assert "<h4>Triangles</h4>" not in page
    none = results.make_transitivity(metric=True)
    text = words(write_atlas(tmp_path / "b.html", none).read_text())
    assert "None of 56 triples violates the triangle inequality" in text


def test_a_comparison_of_two_checkpoints_has_no_correlations(tmp_path):
    result = results.make_comparison(2)
    bare = dataclasses.replace(result, correlations=result.correlations[:0])
    assert "rank correlations" not in write_atlas(tmp_path / "a.html", bare).read_text()


def test_an_unevaluated_complex_has_a_page(tmp_path):
    result = results.make_complex()
    bare = dataclasses.replace(result, samples=result.samples[:0])
    assert "maximal cliques" in write_atlas(tmp_path / "a.html", bare).read_text()


# --- in a browser -----------------------------------------------------------------------------


def browse(page: Path, profile: Path, *flags: str) -> str:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={profile}", "--virtual-time-budget=8000", *flags,
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def state(dom: str) -> dict[str, str]:
    attributes = re.search(r"<html[^>]*>", dom)
    assert attributes
    return dict(re.findall(r'data-(\w+)="([^"]*)"', attributes[0]))


browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page is not looked at")

USE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  const place = document.querySelector(".plane");
  const picture = () => place.querySelector("svg");
  const readout = () => place.querySelector(".readout").textContent;
  const legend = () =>
    [...place.querySelectorAll(".legend span")].map((node) => node.textContent).join(" ");
  const key = (name) => {
    const event = new KeyboardEvent("keydown", { key: name, bubbles: true });
    picture().dispatchEvent(event);
  };
  root.dataset.start = readout();
  key("ArrowRight"); key("ArrowUp");
  root.dataset.moved = readout();
  const [metric, set] = place.querySelectorAll("select");
  metric.value = "1";
  metric.dispatchEvent(new Event("change"));
  set.value = "1";
  set.dispatchEvent(new Event("change"));
  root.dataset.second = readout();
  root.dataset.legend = legend();
  const slider = place.querySelectorAll("input[type=range]")[1];
  slider.value = "50";
  slider.dispatchEvent(new Event("input"));
  root.dataset.clipped = legend();
  const box = picture().getBoundingClientRect();
  const corner = { bubbles: true, clientX: box.left, clientY: box.bottom };
  picture().dispatchEvent(new PointerEvent("pointermove", corner));
  root.dataset.corner = root.dataset.cell;
}, 1500));
</script></body>"""


@pytest.mark.browser
@browser
def test_a_plane_answers_to_keys_pointer_and_controls(everything, path, tmp_path):
    page = tmp_path / "a.html"
    page.write_text(path.read_text().replace("</body>", USE))
    found = state(browse(page, tmp_path / "profile", "--dump-dom"))
    assert found["errors"] == "0" and found["planes"] == "2"
    surface = everything["surface"]
    loss = surface.grid("loss")
    c, r = (int(np.argmin(np.abs(np.asarray(axis)))) for axis in (surface.x, surface.y))
    assert found["start"].startswith("x 0, y 0: seed0")
    assert f"cross-entropy (nats) {loss[r, c]:.3g}" in found["start"]
    assert f"cross-entropy (nats) {loss[r + 1, c + 1]:.3g}" in found["moved"]
    second = surface.grid("accuracy", "hans:validation")
    assert "on hans:validation" in found["second"]
    assert f"accuracy {second[r + 1, c + 1]:.3g}" in found["second"]
    low, high = second.min(), second.max()
    ends = [float(v) for v in re.findall(r"[\d.]+", found["legend"])]
    assert ends == pytest.approx([low, high], rel=5e-3)
    clipped = [float(v) for v in re.findall(r"[\d.]+", found["clipped"])]
    assert clipped == pytest.approx([low, (low + high) / 2], rel=5e-3)
    assert found["corner"] == "0,0"


SLIDE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const place = document.querySelector(".plane"), root = document.documentElement;
  const legend = () =>
    [...place.querySelectorAll(".legend span")].map((node) => node.textContent).join(" ");
  root.dataset.legend = legend();
  const slider = place.querySelectorAll("input[type=range]")[1];
  slider.value = "50";
  slider.dispatchEvent(new Event("input"));
  root.dataset.clipped = legend();
  const metric = place.querySelector("select");
  metric.value = "1";
  metric.dispatchEvent(new Event("change"));
  root.dataset.other = legend();
}, 1500));
</script></body>"""


@pytest.mark.browser
@browser
def test_the_colours_of_a_steep_plane_go_by_the_logarithm(tmp_path):
    surface = results.make_surface(7, data=("nli:validation",))
    loss = surface.table["loss"]
    share = (loss - loss.min()) / (loss.max() - loss.min())
    steep = dataclasses.replace(surface, table=surface.table.assign(loss=0.04 * 100**share))
    path = write_atlas(tmp_path / "a.html", steep)
    path.write_text(path.read_text().replace("</body>", SLIDE))
    found = state(browse(path, tmp_path / "profile", "--dump-dom"))
    assert found["errors"] == "0"
    assert found["legend"] == "0.04 4 cross-entropy (nats), log scale"
    assert found["clipped"] == "0.04 0.4 cross-entropy (nats), log scale"
    assert found["other"].endswith("accuracy")


@pytest.mark.browser
@browser
def test_hostile_names_and_texts_do_not_run(tmp_path):
    names = tuple(f"{EVIL}{i}" for i in range(3))
    shown = [
        results.make_surface(5, names=names, data=(EVIL, f"{EVIL}2")),
        results.make_ridge(4, [EVIL] * 4),
        dataclasses.replace(results.make_path((EVIL,)), a=EVIL, b=f"{EVIL}2"),
    ]
    path = write_atlas(tmp_path / "a.html", shown, title=EVIL)
    found = state(browse(path, tmp_path / "profile", "--dump-dom"))
    assert "hacked" not in found and found["errors"] == "0" and found["planes"] == "1"


@pytest.mark.browser
@browser
def test_a_plane_is_seen(tmp_path):
    from matplotlib.image import imread

    path = write_atlas(tmp_path / "a.html", results.make_surface(9))
    shot = tmp_path / "shot.png"
    browse(
        path, tmp_path / "profile", f"--screenshot={shot}", "--window-size=900,1600",
        "--hide-scrollbars",
    )  # fmt: skip
    pixels = imread(shot)[..., :3]
    # Dark cells of the rim and light ones of the wells, between paper.
    assert (pixels.sum(axis=2) < 0.9).mean() > 0.01
    assert (pixels.min(axis=2) > 0.9).mean() > 0.4
