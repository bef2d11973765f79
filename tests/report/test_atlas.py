"""The atlas: one inert, offline file, looked at by a real browser where there is one."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hostile import EVIL
from landform.errors import ConfigError, StoreError
from landform.report import atlas
from landform.report.atlas import write_atlas

CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """Tags, ids, visible text and the data blocks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.blocks: dict[str, tuple[str, str]] = {}
        self._open = ""
        self._attributes: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._open, self._attributes = tag, {k: v or "" for k, v in attrs}
        self.tags.append((tag, self._attributes))

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            if "id" in self._attributes:
                self.blocks[self._attributes["id"]] = (self._attributes["type"], data)
        elif self._open != "style":
            self.text.append(data)

    def data(self, name: str) -> dict:
        kind, text = self.blocks[name]
        if "gzip" in kind:
            text = gzip.decompress(base64.b64decode(text)).decode()
        return json.loads(text)


def write(path: Path, results, **options) -> Page:
    return Page(write_atlas(path, results, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def everything(connection, interpolation, evaluation, training):
    return {
        "connect": connection(),
        "line": interpolation(),
        "evaluate-0": evaluation(),
        "evaluate-1": dataclasses.replace(evaluation(), checkpoint="runs/seed1"),
        "train": training(),
    }


@pytest.fixture(scope="module")
def path(everything, tmp_path_factory):
    """The page of everything, written once."""
    target = tmp_path_factory.mktemp("atlas") / "a.html"
    return write_atlas(target, everything, provenance={"connect": {"url": "https://x.org"}})


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_a_page_fetches_nothing(path, page):
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:image/svg+xml;base64,")), attributes
    style = re.search(r"<style>(.*?)</style>", path.read_text(), re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_every_link_and_id_has_its_counterpart(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        if tag == "a":
            assert attributes["href"][1:] in ids
        if "data-source" in attributes:
            assert attributes["data-source"] in ids


def test_what_users_named_is_inert(connection, interpolation, evaluation, training, tmp_path):
    study = connection(names=[f"{EVIL}{i}" for i in range(8)], data=(f"{EVIL}:dev", "b"))
    study = dataclasses.replace(study, reading=EVIL, provenance={EVIL: EVIL})
    results = {
        EVIL: [study],
        "line": interpolation({EVIL: [1.0, 2.0, 1.0]}, a=EVIL, b=f"{EVIL}b"),
        "evaluation": dataclasses.replace(evaluation(), checkpoint=EVIL, task=EVIL, reading=EVIL),
        "train": dataclasses.replace(training(), model=EVIL),
    }
    page = write(tmp_path / "a.html", results, title=EVIL, provenance={EVIL: EVIL})
    scripts = [a for tag, a in page.tags if tag == "script"]
    # The page's own script, and the data of the heat map.
    assert [a.get("type") for a in scripts] == ["application/json", None]
    assert page.data("s1-1-data")["names"][3] == f"{EVIL}3"
    assert sum(EVIL in text for text in page.text) > 5


def test_the_data_of_the_heat_map_are_the_results(connection, tmp_path):
    study = connection()
    data = write(tmp_path / "a.html", [study]).data("s1-1-data")
    assert data["names"] == list(study.names)
    assert [s["name"] for s in data["sets"]] == list(study.data)
    for block, name in zip(data["sets"], study.data, strict=True):
        assert len(block["pairs"]) == 28
        for pair in block["pairs"]:
            a, b = study.names[pair["i"]], study.names[pair["j"]]
            expected = study.matrix("convexity_gap", name).loc[a, b]
            assert pair["convexity_gap"] == pytest.approx(expected, rel=1e-3)
            rows = study.curves.query("data == @name and a == @a and b == @b").sort_values("t")
            np.testing.assert_allclose(pair["loss"], rows["loss"], rtol=1e-3)
            np.testing.assert_allclose(pair["high"], rows["loss_high"], rtol=1e-3)
        np.testing.assert_allclose(block["t"], np.linspace(0, 1, 10), atol=1e-4)
    assert data["orders"][0]["rows"] == [0, 1, 2, 4, 6, 7, 3, 5]


def test_many_checkpoints_are_packed_and_small(connection, tmp_path):
    study = connection([0] * 40 + [1] * 10)
    page = write(tmp_path / "a.html", [study])
    assert page.blocks["s1-1-data"][0] == "application/gzip+base64"
    assert len(page.data("s1-1-data")["sets"][0]["pairs"]) == 1225
    assert (tmp_path / "a.html").stat().st_size < 3_000_000


def test_missing_numbers_are_null_and_dashes(connection, tmp_path):
    study = connection(pairs=9, known_basins=False)
    study.pairs.loc[0, "gap_high"] = np.nan
    page = write(tmp_path / "a.html", [study])
    assert page.data("s1-1-data")["sets"][0]["pairs"][0]["gap_high"] is None
    assert "NaN" not in page.blocks["s1-1-data"][1]


def test_the_summary_says_what_was_done(connection, tmp_path):
    study = connection()
    text = " ".join(write(tmp_path / "a.html", [study]).text)
    assert study.reading in text
    assert "There are 2 basins." in text
    assert str(study.evaluations) in text
    assert "gap within basins" in text and "gap between basins" in text
    assert "in-domain" in text


def test_a_study_is_told_from_its_basins_on(
    connection, interpolation, evaluation, training, tmp_path
):
    """Names of results decide nothing: which basin comes first, how good next. Titles that
    a user gives keep their order."""
    results = {"a": training(), "b": evaluation(), "c": interpolation(), "d": connection()}
    path = write_atlas(tmp_path / "atlas.html", results)
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", path.read_text(encoding="utf-8"))
    shown = [title for title in titles if title in {k.title for k in atlas.KINDS.values()}]
    assert shown == ["Connections", "Lines", "Evaluations", "Training"]
    own = {"Zebra": [evaluation()], "Aardvark": [connection()]}
    text = write_atlas(tmp_path / "own.html", own).read_text(encoding="utf-8")
    assert text.index("Zebra") < text.index("Aardvark")


def test_one_basin_is_called_one_basin(connection, tmp_path):
    text = " ".join(write(tmp_path / "a.html", [connection((0,) * 5)]).text)
    assert "There is one basin" in text
    assert "Do the basins behave differently?" not in text
    assert "gap between basins" not in text


def test_lone_checkpoints_and_unknown_basins_are_said(connection, tmp_path):
    text = " ".join(write(tmp_path / "a.html", [connection(range(4))]).text)
    assert "No two of the 4 checkpoints share a basin" in text
    assert "Do the basins behave differently?" not in text
    text = " ".join(write(tmp_path / "b.html", [connection(pairs=5, known_basins=False)]).text)
    assert "Basins were not determined" in text


def test_the_confound_is_marked(connection, tmp_path):
    write_atlas(tmp_path / "a.html", [connection()])
    text = (tmp_path / "a.html").read_text()
    rows = re.findall(r'<tr class="confound">(.*?)</tr>', text, re.S)
    assert len(rows) == 1 and "in-domain" in rows[0]


def test_many_evaluations_are_a_table_without_figures(evaluation, tmp_path):
    results = [dataclasses.replace(evaluation(), checkpoint=f"runs/seed{i}") for i in range(13)]
    page = write(tmp_path / "a.html", results)
    text = " ".join(page.text)
    assert all(f"seed{i}" in text for i in range(13))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "at most 12" in text


def test_figures_have_a_text_for_those_who_cannot_see_them(page):
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) >= 8
    assert all(len(a["alt"]) > 10 for a in pictures)


def test_forms_of_results(interpolation, tmp_path):
    line = interpolation()
    for results in (line, [line], {"mine": line}, {"A part": [line]}):
        write_atlas(tmp_path / "a.html", results)
    assert "A part" in (tmp_path / "a.html").read_text()
    assert write_atlas(tmp_path, line) == tmp_path / "atlas.html"


def test_nothing_to_show_and_unknown_results_are_errors(tmp_path):
    for empty in ([], {}, {"part": []}):
        with pytest.raises(ConfigError, match="no results"):
            write_atlas(tmp_path / "a.html", empty)
    with pytest.raises(ConfigError, match=r"int has no place[\s\S]*Connection"):
        write_atlas(tmp_path / "a.html", [3])
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_page(interpolation, tmp_path, monkeypatch):
    path = write_atlas(tmp_path / "a.html", interpolation())
    before = path.read_bytes()

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(StoreError, match=r"a\.html[\s\S]*disk space"):
        write_atlas(path, interpolation())
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_the_templates_are_part_of_the_package():
    folder = Path(atlas.__file__).parent / "templates"
    assert {"atlas.html.j2", "atlas.css", "atlas.js"} <= {p.name for p in folder.iterdir()}


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


def browser(test):
    """Marks a test that opens a page."""
    reason = "no chromium on this machine: the page is not looked at"
    return pytest.mark.browser(pytest.mark.skipif(CHROMIUM is None, reason=reason)(test))


def state(dom: str) -> dict[str, str]:
    attributes = re.search(r"<html[^>]*>", dom)
    assert attributes
    return dict(re.findall(r'data-(\w+)="([^"]*)"', attributes[0]))


@browser
def test_the_page_runs_without_an_error(path, tmp_path):
    found = state(browse(path, tmp_path / "profile", "--dump-dom"))
    assert found.get("problems") is None
    assert found["ready"] == "yes" and found["errors"] == "0"
    assert int(found["cells"]) == 56
    assert int(found["curves"]) >= 1
    assert int(found["tables"]) >= 3


@browser
def test_hostile_names_do_not_run_and_packed_data_unpack(connection, tmp_path):
    names = [f"{EVIL}{i}" for i in range(40)]
    path = write_atlas(
        tmp_path / "a.html", [connection([0] * 36 + [1] * 4, names=names)], title=EVIL
    )
    assert "application/gzip+base64" in path.read_text()
    dom = browse(path, tmp_path / "profile", "--dump-dom")
    found = state(dom)
    assert "hacked" not in found
    assert found["errors"] == "0" and found["cells"] == str(40 * 39)


CLICKS = """
<script>
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  const body = document.querySelector(".heatmap");
  const cell = body.querySelector("svg .cells rect[data-at='0,1']");
  cell.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  root.dataset.clicked = body.querySelector("h5").textContent;
  root.dataset.drawn = body.querySelectorAll(".pair-curve circle").length;
  const choice = body.querySelectorAll("select")[1];
  choice.value = "1";
  choice.dispatchEvent(new Event("change"));
  root.dataset.second = body.querySelector(".readout").textContent;
  const heads = [...document.querySelectorAll("table.sortable thead button")];
  const head = heads.find((b) => b.textContent.startsWith("mean gap"));
  const table = head.closest("table");
  const column = head.closest("th").cellIndex;
  head.click();
  const values = [...table.tBodies[0].rows].map((r) => r.cells[column].dataset.value);
  root.dataset.sorted = values.join(" ");
  root.dataset.breaks = heads.filter((b) => b.querySelector("wbr")).length;
}, 1500));
</script></body>"""


@browser
def test_clicking_and_sorting_work(connection, tmp_path):
    study = connection()
    path = write_atlas(tmp_path / "a.html", [study])
    path.write_text(path.read_text().replace("</body>", CLICKS))
    found = state(browse(path, tmp_path / "profile", "--dump-dom"))
    assert found["errors"] == "0"
    assert found["clicked"] == "seed0 \N{EN DASH} seed1"
    assert found["drawn"] == "10"
    gap = study.matrix("convexity_gap", "hans:validation").loc["seed0", "seed1"]
    shown = re.search(r"convexity gap ([\d.]+)", found["second"])
    assert shown and float(shown[1]) == pytest.approx(gap, rel=0.01)
    values = [float(value) for value in found["sorted"].split()]
    assert len(values) == 8 and values == sorted(values, reverse=True)
    # Long names may still break where the template allows it.
    assert int(found["breaks"]) >= study.endpoints.shape[1]


@browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_screenshot_is_no_blank_page(path, tmp_path, width):
    from matplotlib.image import imread

    shot = tmp_path / "shot.png"
    browse(
        path,
        tmp_path / "profile",
        f"--screenshot={shot}",
        f"--window-size={width},1600",
        "--hide-scrollbars",
    )
    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (1600, width)
    # Dark cells of ridges are there, and most of the page is paper.
    assert (pixels.sum(axis=2) < 0.9).mean() > 0.01
    assert (pixels.min(axis=2) > 0.9).mean() > 0.5
