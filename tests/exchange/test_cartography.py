"""cartography.json of the original code: read, written, and refused where it is something else."""

from __future__ import annotations

import json

import numpy as np
import pytest

import landform as lf
from landform.errors import DataError
from landform.evaluation.cartography import DataMapConfig, map_of, read_dynamics, summarise
from landform.exchange.cartography import dynamics_of, read_cartography, write_cartography

GOLDEN = {
    "0": {"acc": [0, 1, 1], "confidence": [0.2, 0.6, 0.9]},
    "1": {"acc": [1, 1, 1], "confidence": [0.9, 0.9, 0.9]},
    "2": {"acc": [0, 0, 1], "confidence": [0.1, 0.2, 0.5]},
    "3": {"acc": [1, 0, 1], "confidence": [0.6, 0.4, 0.7]},
}


@pytest.fixture
def write(tmp_path):
    def save(document, name="cartography.json"):
        path = tmp_path / name
        text = document if isinstance(document, str) else json.dumps(document)
        path.write_text(text, encoding="utf-8")
        return path

    return save


def test_the_original_file_is_read(write):
    d = read_cartography(write(GOLDEN))
    table = summarise(d.confidence, d.correct, ids=d.ids)
    assert table.text_id.tolist() == ["0", "1", "2", "3"]
    assert table.loc[0, "variability"] == pytest.approx(0.28674, abs=5e-6)
    assert table.turns.tolist() == [1, 0, 1, 2]


def test_positions_are_numbers_not_words(write):
    """ "10" comes after "9", whatever the order of the file."""
    document = {str(i): {"acc": [i % 2], "confidence": [i / 20]} for i in reversed(range(12))}
    d = read_cartography(write(document))
    np.testing.assert_allclose(d.confidence[0], np.arange(12) / 20)


def test_written_and_read_again(write, tmp_path):
    d = read_cartography(write(GOLDEN))
    again = write_cartography(d, tmp_path / "out" / "again.json")
    assert json.loads(again.read_text()) == GOLDEN
    kept = map_of(d, run="r", config=DataMapConfig(replicates=20))
    assert json.loads(write_cartography(dynamics_of(kept), again).read_text()) == GOLDEN
    d.write(tmp_path / "run" / "cartography.parquet")
    assert read_dynamics(tmp_path / "run").ids == ("0", "1", "2", "3")


def test_confidence_one_has_no_margin(write):
    d = read_cartography(write({"0": {"acc": [1, 1], "confidence": [1, 0.5]}}))
    assert np.isnan(d.margin[0, 0]) and d.margin[1, 0] == 0


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ('{"0": {"acc": [1], "confi', "not JSON, or cut short"),
        ('{"0": {"acc": [1], "confidence": [1]}, "0": {}}', "the key '0' is given twice"),
        ([1, 2], "no JSON object"),
        ({}, "or an empty one"),
        ({"a": {"acc": [1], "confidence": [0.5]}}, "the key 'a' is no position"),
        ({"-1": {"acc": [1], "confidence": [0.5]}}, "the key '-1' is no position"),
        ({"0": {"acc": [1]}}, "example 0 has no 'acc' and 'confidence'"),
        ({"0": {"acc": [1], "confidence": "high"}}, "'confidence' is no list of numbers"),
        ({"0": {"acc": [], "confidence": []}}, "'acc' is no list of numbers"),
        ({"0": {"acc": [1, 0], "confidence": [0.5]}}, "2 values of 'acc' and 1"),
        ({"0": {"acc": [2], "confidence": [0.5]}}, "'acc' holds 2"),
        ({"0": {"acc": [1], "confidence": [1.5]}}, "holds 1.5, which is no probability"),
        ('{"0": {"acc": [1], "confidence": [NaN]}}', "no list of numbers"),
        (
            {**GOLDEN, "4": {"acc": [1, 1], "confidence": [0.5, 0.5]}},
            "example 4 has 2 epochs, example 0 has 3",
        ),
    ],
    ids=["cut", "twice", "list", "empty", "word", "negative", "missing", "text", "none", "lengths",
         "acc", "probability", "nan", "epochs"],
)  # fmt: skip
def test_what_is_refused(write, document, what):
    path = write(document)
    with pytest.raises(DataError, match=what) as caught:
        read_cartography(path)
    assert str(path) in caught.value.what and caught.value.remedy


def test_a_file_of_other_data(write, tmp_path, write_rows):
    def examples(rows):
        path = write_rows(tmp_path / f"{rows}.tsv", rows)
        task = lf.load_task({"train": str(path)}, text="sentence", label="label")
        return task.examples("train")

    d = read_cartography(write(GOLDEN), examples(4))
    assert d.ids == examples(4).ids
    for rows in (3, 5):
        with pytest.raises(DataError, match=f"holds 4 examples .* and the data\\s+have {rows}"):
            read_cartography(write(GOLDEN), examples(rows))
