"""The pages of attribution: whose texts are on them, that they are inert, that they work."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import attribution_results as results
from hostile import EVIL
from landform.report import influence_pages
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


def sections(page: str) -> list[str]:
    return re.findall(r'<section class="query".*?</section>', page, re.S)


@pytest.fixture(scope="module")
def everything():
    return {
        "ekfac": results.make_influence(30),
        "half": results.make_influence(30, noise=0.01),
        "factors": results.make_factors(2),
        "self": results.make_self_influence(),
        "mislabel": results.make_mislabel(),
        "lds": results.make_lds(queries=40),
        "counterfactual": results.make_counterfactual(),
    }


@pytest.fixture(scope="module")
def path(everything, tmp_path_factory):
    return write_atlas(tmp_path_factory.mktemp("atlas") / "a.html", everything)


def test_every_result_has_a_page(everything, path):
    page = path.read_text()
    text = words(page)
    for result in everything.values():
        assert result.reading in text
    for kind in influence_pages.INFLUENCE_KINDS.values():
        assert f"<h2>{kind.title}</h2>" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'data-source="([^"]+)"', page)) <= set(ids)
    # Its words are explained, and those of basins, which it does not use, are not.
    assert "Linear datamodelling score (LDS)" in text and "Convexity gap" not in text
    assert path.stat().st_size < 2_500_000


def test_the_chosen_queries_stand_with_their_top_rows(tmp_path):
    result = results.make_influence(30)
    page = write_atlas(tmp_path / "a.html", result).read_text()
    shown = sections(page)
    losses = result.queries["loss"].to_numpy()
    assert len(shown) == 6
    assert f"query {losses.argmax()}<" in shown[0] and f"query {losses.argmin()}<" in shown[-1]
    query = int(losses.argmax())
    sides = re.findall(r'<div class="side (\w+)">(.*?)</div>', shown[0], re.S)
    assert [name for name, _ in sides] == ["helpful", "harmful"]
    for name, side in sides:
        top = result.top(query, 5, harmful=name == "harmful")
        assert [int(row) for row in re.findall(r"row (\d+)<", side)] == list(top["row"])
        shown_scores = re.findall(r"<b>(.*?)</b>", side)
        given = [float(s.replace("\N{MINUS SIGN}", "-").replace(",", "")) for s in shown_scores]
        np.testing.assert_allclose(given, top["score"], rtol=0.01)
        assert all(escape(text) in side for text in top["text"])
        assert re.findall(r'class="tag">(\w+)<', side) == list(top["label"])
    text = words(shown[0])
    record = result.queries.iloc[query]
    assert record["text"] in text and f"label {record['label']}" in text
    assert f"prediction {record['prediction']}" in text and "wrong" in text
    assert result.explanation in words(page)


def test_any_query_can_be_chosen_and_texts_are_kept_once(tmp_path):
    result = results.make_influence(30)
    (data,) = blocks(write_atlas(tmp_path / "a.html", result).read_text())
    assert len(data["queries"]) == data["of"] == 30
    for query, entry in enumerate(data["queries"]):
        for name in ("helpful", "harmful"):
            top = result.top(query, 5, harmful=name == "harmful")
            assert [row for row, *_ in entry[name]] == list(top["row"])
            np.testing.assert_allclose([s for _, s, _ in entry[name]], top["score"], rtol=1e-3)
            for row, text in zip(top["row"], top["text"], strict=True):
                assert data["train"][str(row)]["texts"] == [text]


def test_a_large_result_makes_no_large_page(tmp_path, monkeypatch):
    monkeypatch.setattr(influence_pages, "EMBEDDED", 20_000)
    result = results.make_influence(200, 60)
    (data,) = blocks(write_atlas(tmp_path / "a.html", result).read_text())
    assert 10 < len(data["queries"]) < 100 and data["of"] == 200
    long = results.make_influence(8, 30, texts=(["word " * 5000] * 8, ["term " * 5000] * 30))
    path = write_atlas(tmp_path / "b.html", long)
    assert path.stat().st_size < 700_000
    assert "(24,999 characters)" in path.read_text()


def test_few_queries_need_no_control(tmp_path):
    page = write_atlas(tmp_path / "a.html", results.make_influence(4)).read_text()
    assert not blocks(page) and '<div class="chooser"' not in page
    assert len(sections(page)) == 4
    assert "Every query, from the highest loss to the lowest." in page


def test_a_row_on_the_wrong_side_of_zero_is_not_shown(tmp_path):
    result = results.make_influence(2, 40)
    helpful = dataclasses.replace(result, scores=result.scores.abs())
    page = write_atlas(tmp_path / "a.html", helpful).read_text()
    assert page.count("No training row is harmful.") == 2
    assert "No training row is helpful." not in page


def test_streamed_and_summed_scores_have_their_rows(tmp_path):
    full = results.make_influence(8, 60)
    streamed = results.make_influence(8, 60, streamed=True)
    pages = [
        write_atlas(tmp_path / f"{k}.html", result).read_text()
        for k, result in enumerate((full, streamed))
    ]
    assert sections(pages[0]) == sections(pages[1])
    assert "only the top was kept" not in words(pages[1]) and "helpful pairs" not in pages[1]
    summed = dataclasses.replace(full, scores=full.scores.sum(axis=1).to_frame("0"))
    (section,) = sections(write_atlas(tmp_path / "2.html", summed).read_text())
    assert "the sum of 8 queries" in section
    rows = re.findall(r"row (\d+)<", section)
    assert [int(row) for row in rows[:5]] == list(summed.top(0, 5)["row"])
    both = dataclasses.replace(full, scores=full.scores.sum(axis=0).to_frame().T)
    page = write_atlas(tmp_path / "3.html", both).read_text()
    assert not sections(page) and "The training rows were summed" in page


def test_language_models_and_pairs_of_texts(tmp_path):
    result = results.make_influence(4, pairs=True)
    (section, *_) = sections(write_atlas(tmp_path / "a.html", result).read_text())
    assert section.count('class="piece"') == 2 * 11
    bare = results.make_influence(4, measurement="loss")
    bare = dataclasses.replace(
        bare,
        queries=bare.queries.drop(columns=["label", "prediction"]),
        train=bare.train.drop(columns="label"),
    )
    (section, *_) = sections(write_atlas(tmp_path / "b.html", bare).read_text())
    assert 'class="tag"' not in section and "label" not in words(section)
    assert words(section).count("loss") == 1


def test_two_results_of_the_same_rows_are_compared(everything, tmp_path):
    page = write_atlas(tmp_path / "a.html", everything).read_text()
    assert 'alt="Scores of half against those of ekfac"' in page
    others = [results.make_influence(5), results.make_influence(6)]
    assert "against those of" not in write_atlas(tmp_path / "b.html", others).read_text()


def test_coverage_says_what_is_not_seen_and_why(path, everything):
    page = path.read_text()
    unseen = re.findall(r'<tr class="unseen">(.*?)</tr>', page, re.S)
    assert len(unseen) == 1 and "no curvature for Embedding" in unseen[0]
    facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)(?: <span|</dd>)", page)
    share = everything["factors"].share
    assert ("parameters seen", f"{100 * share:.0f} %") in facts
    assert ("modules seen", "13 of 14") in facts


def test_the_mislabelled_rows_are_marked(tmp_path):
    result = results.make_mislabel()
    page = write_atlas(tmp_path / "a.html", result).read_text()
    marked = re.findall(r'<tr class="confound"><th scope="row" data-value="([\d.]+)"', page)
    top = result.table.head(50)
    assert [int(float(rank)) for rank in marked] == list(top["rank"][top["known"]])
    assert "50 of 400 rows are shown." in page
    unknown = write_atlas(tmp_path / "b.html", results.make_mislabel(known=False)).read_text()
    assert "is not known, so there is no recall curve" in unknown and "confound" not in words(
        unknown
    )


def test_a_comparison_with_random_rows_is_a_table(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Counterfactual(results.Counterfactual):
        comparison: pd.DataFrame | None = None
        queries: int = 200

    table = pd.DataFrame({"method": ["ekfac"], "size": [20], "difference": [0.25], "p_value": 0.01})
    plain = results.make_counterfactual()
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    result = Counterfactual(**fields, comparison=table)
    text = words(write_atlas(tmp_path / "a.html", result).read_text())
    assert "p (McNemar)" in text and "queries 200" in text and "targets 40" in text
    assert "McNemar" not in words(write_atlas(tmp_path / "b.html", plain).read_text())


def test_the_ceiling_and_paired_differences_stand_with_the_lds(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class LinearDatamodelling(results.LinearDatamodelling):
        differences: pd.DataFrame | None = None
        ceiling: float = 0.91

    table = pd.DataFrame({"method": ["ekfac"], "other": ["kfac"], "difference": [0.08]})
    plain = results.make_lds()
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    result = LinearDatamodelling(**{**fields, "retrainings": 0}, differences=table)
    text = words(write_atlas(tmp_path / "a.html", result).read_text())
    assert "ceiling 0.91" in text and "ekfac kfac 0.08" in text and "retrainings not known" in text


def test_what_users_named_is_inert(everything, tmp_path):
    evil = results.make_influence(9, 30, texts=([EVIL] * 9, [EVIL] * 30))
    evil.queries[["label", "prediction", "text_id"]] = evil.train["label"] = EVIL
    hostile = {
        EVIL: dataclasses.replace(
            evil, checkpoint=EVIL, reading=EVIL, explanation=EVIL, damping=EVIL, measurement=EVIL
        ),
        "f": dataclasses.replace(everything["factors"], reading=EVIL, dtype=EVIL, task=EVIL),
        "s": dataclasses.replace(everything["self"], reading=EVIL),
        "m": dataclasses.replace(everything["mislabel"], reading=EVIL),
        "l": results.make_lds([EVIL, "ekfac"]),
        "c": results.make_counterfactual([EVIL]),
    }
    hostile["s"].table["text"] = hostile["m"].table["text"] = EVIL
    hostile["f"].coverage["name"] = EVIL
    path = write_atlas(tmp_path / "a.html", hostile, title=EVIL)
    page = path.read_text()
    # The page's own script, and the data of the control.
    assert page.count("<script") == 2
    assert blocks(page)[0]["queries"][0]["texts"] == [EVIL]
    if CHROMIUM is not None:
        assert "hacked" not in state(browse(path, tmp_path / "profile"))


# --- in a browser -----------------------------------------------------------------------------


def browse(page: Path, profile: Path, *flags: str) -> str:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={profile}", "--virtual-time-budget=8000",
        *(flags or ("--dump-dom",)), page.as_uri(),
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


CHOICE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const select = document.querySelector(".chooser select");
  const written = document.querySelectorAll("section.query");
  const number = written[2].querySelector("b").textContent.replace("query ", "");
  select.value = number;
  select.dispatchEvent(new Event("change"));
  const drawn = document.querySelector(".chooser + div section.query");
  const plain = (node) => node.textContent.replace(/\\s+/g, "");
  document.documentElement.dataset.options = select.options.length;
  document.documentElement.dataset.same = [".asked", ".meta", ".helpful", ".harmful"].map((part) =>
    plain(drawn.querySelector(part)) === plain(written[2].querySelector(part))).join(" ");
  const widths = (node) =>
    [...node.querySelectorAll(".bar")].map((bar) => parseFloat(bar.style.width));
  const given = widths(written[2]);
  const apart = widths(drawn).map((width, k) => Math.abs(width - given[k]));
  document.documentElement.dataset.bars = apart.length;
  document.documentElement.dataset.apart = Math.max(...apart);
}, 1500));
</script></body>"""


@browser
@pytest.mark.parametrize("queries", [30, 1200])
def test_a_chosen_query_is_drawn_as_the_written_ones_are(tmp_path, queries):
    path = write_atlas(tmp_path / "a.html", results.make_influence(queries))
    page = path.read_text()
    assert ("application/gzip" in page) == (queries > 100)
    path.write_text(page.replace("</body>", CHOICE))
    found = state(browse(path, tmp_path / "profile"))
    assert found["errors"] == "0" and found["ready"] == "yes"
    assert found["options"] == str(queries + 1)
    assert found["same"] == "true true true true"
    # Per cent, rounded from scores of four digits.
    assert found["bars"] == "10" and float(found["apart"]) <= 1


@browser
def test_the_page_runs_without_an_error_and_fits_a_phone(path, tmp_path):
    probe = """<script>addEventListener("load", () => setTimeout(() => {
      const root = document.documentElement;
      root.dataset.over = root.scrollWidth - root.clientWidth;
    }, 1000));</script></body>"""
    copy = tmp_path / "a.html"
    copy.write_text(path.read_text().replace("</body>", probe))
    found = state(browse(copy, tmp_path / "profile", "--dump-dom", "--window-size=500,900"))
    assert found.get("problems") is None and found["errors"] == "0"
    assert int(found["over"]) <= 0
    assert int(found["tables"]) >= 6
