"""Scores of HANS prediction files against counting by hand, and against `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import landform as lf
from landform.errors import ConfigError, DataError, LandformError
from landform.evaluation.hans import read_predictions, score_predictions, write_predictions
from landform.results import from_parts, to_parts
from landform.tasks.hans import generate_hans, write_hans


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> Path:
    (path,) = write_hans(tmp_path_factory.mktemp("hans") / "hans.tsv", 4)
    return Path(path)


@pytest.fixture
def answers() -> dict[str, str]:
    generator = np.random.default_rng(0)
    names = ("entailment", "neutral", "contradiction", "non-entailment")
    return {f"ex{i}": names[generator.integers(4)] for i in range(120)}


def write(path: Path, answers: dict[str, str]) -> Path:
    rows = [f"{pair},{answer}\n" for pair, answer in reversed(answers.items())]
    path.write_text("pairID,gold_label\n" + "".join(rows))
    return path


def test_accuracies_by_hand(data: Path, answers: dict[str, str], tmp_path: Path) -> None:
    scores = score_predictions(write(tmp_path / "p.txt", answers), data)
    made = generate_hans(4)
    said = [answers[pair] == "entailment" for pair in made.pairID]
    made["right"] = np.asarray(said) == (made.gold_label == "entailment")
    assert scores.accuracy == pytest.approx(made.right.mean())
    assert scores.low <= scores.accuracy <= scores.high
    table = scores.table.set_index(["group", "name", "label"])
    for (heuristic, label), rows in made.groupby(["heuristic", "gold_label"]):
        row = table.loc[("heuristic", heuristic, label)]
        assert row.accuracy == pytest.approx(rows.right.mean()) and row.n == 20
    for group in ("subcase", "template"):
        for name, rows in made.groupby(group):
            row = table.loc[(group, name, "")]
            assert row.accuracy == pytest.approx(rows.right.mean()) and row.n == len(rows)
    assert len(table) == 6 + 30 + made.template.nunique()
    shown = scores.sections()
    assert [len(part) for part in shown.values()] == [3, 3, 30, made.template.nunique()]
    assert next(iter(shown)) == "Heuristic entailed results"
    kept = from_parts(*to_parts(scores))
    pd.testing.assert_frame_equal(kept.table, scores.table)
    assert kept.reading == scores.reading and "accuracy" in scores.reading


def test_every_other_answer_is_non_entailment(data: Path, answers: dict[str, str]) -> None:
    plain = {pair: a if a == "entailment" else "non-entailment" for pair, a in answers.items()}
    first, second = (score_predictions(said, data, replicates=20) for said in (answers, plain))
    pd.testing.assert_frame_equal(first.table, second.table)
    flipped = {p: "neutral" if a == "entailment" else "entailment" for p, a in answers.items()}
    other = score_predictions(flipped, data, replicates=20)
    assert np.allclose(other.table.accuracy, 1 - first.table.accuracy)


def test_it_agrees_with_evaluate(
    data: Path, save_checkpoint: Any, tmp_path: Path, capsys: Any
) -> None:
    labels = {"id2label": {0: "entailment", 1: "non-entailment"}}
    labels["label2id"] = {"entailment": 0, "non-entailment": 1}
    checkpoint = save_checkpoint(tmp_path / "model", seed=1, **labels)
    task = lf.load_task("hans", files={"validation": data})
    result = lf.evaluate(checkpoint, task)
    write_predictions(tmp_path / "p.txt", result.log)
    scores = score_predictions(tmp_path / "p.txt", task)
    assert scores.accuracy == pytest.approx(result.metrics["accuracy"])
    subsets = result.subsets[result.subsets.metric == "accuracy"].set_index("subset")
    for row in scores.table.itertuples():
        found = subsets.loc[f"{row.name}/{row.label}" if row.label else row.name]
        assert (found.value, found.low, found.high) == (row.accuracy, row.low, row.high)
    assert len(subsets) == len(scores.table)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pairID,label\nex0,entailment\n", "line 1: the header is"),
        ("pairID,gold_label\nex0\n", "line 2: 1 columns where 2"),
        ("pairID,gold_label\nex0,\n", "line 2: no answer"),
        ("pairID,gold_label\nex0,neutral\nex0,neutral\n", "line 3: the pair ex0 occurs twice"),
        ("pairID,gold_label\n", "no rows"),
        ("", "is empty"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_predictions(path)


def test_predictions_of_other_data(data: Path, answers: dict[str, str]) -> None:
    few = dict(list(answers.items())[:100])
    with pytest.raises(DataError, match=r"no prediction for ex100, .*\(20 of 120 pairs\)"):
        score_predictions(few, data)
    with pytest.raises(DataError, match="a prediction for the unknown ex900"):
        score_predictions({**answers, "ex900": "neutral"}, data)
    with pytest.raises(ConfigError, match="level"):
        score_predictions(answers, data, level=2)
    with pytest.raises(LandformError, match="does not exist"):
        score_predictions(answers, data.parent / "none.tsv")
    with pytest.raises(DataError, match="no column 'prediction'"):
        write_predictions(data.parent / "p.txt", pd.DataFrame({"text_id": ["ex0"]}))
