"""Figures and page of knowledge along a path."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from landform.errors import ConfigError
from landform.geometry.knowledge import KnowledgeConfig, knowledge_of
from landform.report.atlas import write_atlas
from landform.report.figures import draw, figures_of
from landform.report.knowledge_figures import GROUPS, course_groups
from landform.report.knowledge_pages import KNOWLEDGE_KINDS

TS = (0.0, 0.25, 0.5, 0.75, 1.0)


def make(n=80, known=True, graded=False, seed=0):
    random = np.random.default_rng(seed)
    hard = random.random(n)
    scores = (random.random((5, n)) > 0.5 * hard).astype(float)
    scores[:, : n // 2] = 1.0
    if graded:
        scores[2, :10] = 0.5
    texts = pd.DataFrame(
        {
            "text_id": [f"train-{i}" for i in range(n)],
            "text": [f"text <b>{i}</b> & more" for i in range(n)],
            "label": ["yes", "no"] * (n // 2),
        }
    )
    numbers = pd.DataFrame(
        {
            "correctness": 1 - hard,
            "confidence": 1 - hard / 2,
            "variability": hard / 4,
            "turns": random.integers(0, 3, n),
        }
    )
    return knowledge_of(
        scores,
        TS,
        texts,
        numbers if known else None,
        KnowledgeConfig(replicates=60, controls=60),
        provenance={},
        a="runs/seed0",
        b="runs/seed1",
        data="nli:train",
        kind="classification",
        metric="accuracy",
        path="line",
    )


def test_groups_are_a_partition_of_what_is_not_always_right():
    k = make()
    right = k.scores == 1
    groups = course_groups(k.scores)
    assert list(groups) == list(GROUPS)
    rows = np.concatenate(list(groups.values()))
    assert sorted(rows) == np.flatnonzero(~right.all(axis=0)).tolist()
    assert right[0, groups["lost"]].all() and not right[-1, groups["lost"]].any()
    assert right[[0, -1]][:, groups["between"]].all()
    inside = right[:, groups["inside"]]
    assert not inside[[0, -1]].any() and inside.any(axis=0).all()
    assert not right[:, groups["never"]].any()


def test_every_figure_is_drawn():
    k = make()
    assert list(figures_of(k)) == ["knowledge", "forgotten", "score_matrix"]
    upper, lower = draw(k, "knowledge").axes
    np.testing.assert_allclose(upper.lines[0].get_ydata(), k.along.score)
    heights = [bar.get_height() for bar in lower.patches]
    assert heights[:4] == k.along.relearned.tolist()[1:]
    assert heights[4:] == [-x for x in k.along.forgotten[1:]]
    panels = [axes for axes in draw(k, "forgotten").axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "correctness", "confidence", "variability", "turns",
    ]  # fmt: skip
    image = draw(k, "score_matrix").axes[0].images[0].get_array()
    assert image.shape == (5, int((~(k.scores == 1).all(axis=0)).sum()))


def test_what_cannot_be_drawn():
    with pytest.raises(ConfigError, match="no cartography to compare"):
        draw(make(known=False), "forgotten")
    k = make(known=False)
    perfect = k.table.copy()
    perfect[[f"score_{i}" for i in range(5)]] = 1.0
    with pytest.raises(ConfigError, match="right at every point"):
        draw(dataclasses.replace(k, table=perfect), "score_matrix")
    unknown = dataclasses.replace(k, along=k.along.assign(score=np.nan))
    assert draw(unknown, "knowledge").axes[0].get_ylabel() == "examples at score 0"


def test_the_page(tmp_path):
    page = write_atlas(tmp_path / "atlas.html", {"k": make(), "plain": make(known=False)})
    text = page.read_text()
    assert "text &lt;b&gt;" in text and "<b>" not in text
    assert text.count("What sort of examples change") == 1 and "Random sets" in text
    context = KNOWLEDGE_KINDS["Knowledge"].context(make(graded=True), "s1", True)
    titles = [column["title"] for column in context["points"]["columns"]]
    assert titles == ["t", "score", "at score 0", "one", "up", "down", "up to one", "down to zero",
                      "forgotten", "relearned"]  # fmt: skip
    first = context["comparison"]["rows"][0]
    assert first["mark"] == "confound" and first["cells"][0]["text"] == "all steps"
    course = context["texts"]["rows"][0]["cells"][0]["text"]
    assert len(course) == 5 and set(course) <= set("●○◐")


def test_examples_in_order_of_interest():
    k = make()
    found = k.changing
    later = {row for rows in k.forgotten[1:] for row in rows.tolist()}
    assert set(found.index) == later
    assert found.both.tolist() == sorted(found.both, reverse=True)
    for row, course in found.course.items():
        assert course == "".join("+" if score else "-" for score in k.scores[:, row])
