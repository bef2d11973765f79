"""The per-sample JSON of the connectivity project: exact form, round trip, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landform.errors import DataError, LabelError, LandformError, NonFiniteError, StoreError
from landform.evaluation.samples import read_samples, write_samples

NAMES = ("entailment", "non-entailment")


def log_of(logits: Any, labels: list[int], **columns: Any) -> pd.DataFrame:
    """A per-example log as `evaluate` makes it."""
    scores = np.asarray(logits, dtype=np.float64)
    names = np.array([f"class {j}" for j in range(scores.shape[1])], dtype=object)
    if scores.shape[1] == 2:
        names = np.array(NAMES, dtype=object)
    likelihood = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    rows = range(len(labels))
    return pd.DataFrame(
        {
            "text_id": [f"sample-{row}" for row in rows],
            "text": [f"premise {row}" for row in rows],
            **columns,
            "label": names[labels],
            "prediction": names[scores.argmax(1)],
            "correct": scores.argmax(1) == labels,
            "loss": -np.log(likelihood[rows, labels]),
            "tokens": np.ones(len(labels), dtype=np.int64),
            **{f"logit_{j}": scores[:, j] for j in range(scores.shape[1])},
        }
    )


def document() -> dict[str, Any]:
    third = float(np.exp(1) / (1 + np.exp(1)))
    return {
        "label_dict": {"entailment": 0, "non-entailment": 1},
        "samples": [
            {
                "probabilities": [0.5, 0.5],
                "logits": [0.25, 0.25],
                "label": 1,
                "sentence": "[CLS] the doctor saw the actor. [SEP] the actor left. [SEP]",
            },
            {
                "probabilities": [third, 1 - third],
                "logits": [2.0, 1.0],
                "label": 0,
                "sentence": "[CLS] a b [SEP] c [SEP]",
            },
        ],
    }


def save(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_the_file_has_exactly_the_projects_form(tmp_path: Path) -> None:
    log = log_of([[0.0, np.log(3.0)], [1.0, 1.0]], [1, 0], text_pair=["h 0", "h 1"])
    path = tmp_path / "new" / "eval_0.json"
    write_samples(path, log, NAMES)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert list(written) == ["label_dict", "samples"]
    assert written["label_dict"] == {"entailment": 0, "non-entailment": 1}
    first, second = written["samples"]
    assert list(first) == ["probabilities", "logits", "label", "sentence"]
    np.testing.assert_allclose(first["probabilities"], [0.25, 0.75])
    assert first["logits"] == [0.0, np.log(3.0)]
    assert (first["label"], second["label"]) == (1, 0)
    assert first["sentence"] == "[CLS] premise 0 [SEP] h 0 [SEP]"
    assert [entry.name for entry in path.parent.iterdir()] == ["eval_0.json"]


def test_a_file_of_the_project_becomes_a_log(tmp_path: Path) -> None:
    log = read_samples(save(tmp_path / "f.json", document()))
    assert log.columns.tolist() == [
        "text_id", "text", "text_pair", "label", "prediction", "correct", "loss", "tokens",
        "logit_0", "logit_1",
    ]  # fmt: skip
    assert log["text"].tolist() == ["the doctor saw the actor.", "a b"]
    assert log["text_pair"].tolist() == ["the actor left.", "c"]
    assert log["label"].tolist() == ["non-entailment", "entailment"]
    # The first of tied logits is the prediction.
    assert log["prediction"].tolist() == ["entailment", "entailment"]
    assert log["correct"].tolist() == [False, True]
    np.testing.assert_allclose(log["loss"], [np.log(2), np.log1p(np.exp(-1))], rtol=1e-12)
    assert log.attrs["label_names"] == NAMES


def test_names_are_ordered_by_their_number_not_by_their_place(tmp_path: Path) -> None:
    value = document()
    value["label_dict"] = {"non-entailment": 1, "entailment": 0}
    log = read_samples(save(tmp_path / "f.json", value))
    assert log["label"].tolist() == ["non-entailment", "entailment"]
    assert log.attrs["label_names"] == NAMES


def test_samples_keyed_by_sentence_are_read_too(tmp_path: Path) -> None:
    value = document()
    keyed = {
        "label_dict": value["label_dict"],
        "samples": {
            sample["sentence"]: {k: v for k, v in sample.items() if k != "sentence"}
            for sample in value["samples"]
        },
    }
    expected = read_samples(save(tmp_path / "list.json", value))
    pd.testing.assert_frame_equal(read_samples(save(tmp_path / "keyed.json", keyed)), expected)


@pytest.mark.parametrize("pairs", [False, True])
def test_round_trip(tmp_path: Path, pairs: bool) -> None:
    rng = np.random.default_rng(0)
    texts = ["  two  spaces ", "é “x”\n\tz", "", "plain"]
    columns = {"text": texts} | ({"text_pair": ["", " b", "c ", "ü"]} if pairs else {})
    log = log_of(rng.normal(size=(4, 3)) * 9, [0, 1, 2, 1], **columns)
    path = tmp_path / "f.json"
    write_samples(path, log, ["class 0", "class 1", "class 2"])
    pd.testing.assert_frame_equal(read_samples(path), log, rtol=1e-12)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    rows=st.lists(
        st.tuples(text, text, st.integers(0, 1), st.tuples(*[st.floats(-700, 700, width=32)] * 2)),
        min_size=1,
        max_size=4,
    )
)
def test_texts_and_logits_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int, tuple[float, float]]]
) -> None:
    path = tmp_path_factory.mktemp("samples") / "f.json"
    firsts, seconds, labels, logits = map(list, zip(*rows, strict=True))
    log = pd.DataFrame({"text": firsts, "text_pair": seconds, "label": labels})
    log[["logit_0", "logit_1"]] = np.array(logits)
    write_samples(path, log, NAMES)
    back = read_samples(path)
    for column in ("text", "text_pair", "logit_0", "logit_1"):
        assert back[column].tolist() == log[column].tolist()
    assert back["label"].tolist() == [NAMES[label] for label in labels]
    assert np.isfinite(back["loss"]).all()


def test_pairs_and_single_texts_in_one_file(tmp_path: Path) -> None:
    log = log_of([[0.0, 1.0], [1.0, 0.0]], [0, 1], text_pair=["b", None])
    write_samples(tmp_path / "f.json", log, NAMES)
    back = read_samples(tmp_path / "f.json")
    assert back["text_pair"][0] == "b"
    assert pd.isna(back["text_pair"][1])


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("[CLS] a b [SEP]", ("a b", None)),
        ("[CLS] a [SEP] b [SEP] [PAD] [PAD]", ("a", "b")),
        ("[CLS] [SEP] b [SEP]", ("", "b")),
        ("[CLS] a [SEP] b [SEP] c [SEP]", ("a", "b [SEP] c")),
        ("<s>a b</s>", ("a b", None)),
        ("<s>a</s></s>b c</s>", ("a", "b c")),
        ("<s>a</s></s>b</s><pad><pad>", ("a", "b")),
        ("<s></s></s>b</s>", ("", "b")),
        ("no markers here", ("no markers here", None)),
        ("[CLS] cut short", ("[CLS] cut short", None)),
    ],
)
def test_sentences_are_split_at_their_markers(
    tmp_path: Path, sentence: str, expected: tuple[str, str | None]
) -> None:
    value = document()
    value["samples"][0]["sentence"] = sentence
    log = read_samples(save(tmp_path / "f.json", value))
    assert log["text"][0] == expected[0]
    pair = log["text_pair"][0]
    assert (None if pd.isna(pair) else pair) == expected[1]


def test_without_any_pair_there_is_no_such_column(tmp_path: Path) -> None:
    value = document()
    for sample in value["samples"]:
        sample["sentence"] = "[CLS] one [SEP]"
    assert "text_pair" not in read_samples(save(tmp_path / "f.json", value))


# --- refusals of the reader -------------------------------------------------------------------


def broken(change: str) -> dict[str, Any]:
    value = document()
    second = value["samples"][1]
    match change:
        case "no logits" | "no label" | "no sentence" | "no probabilities":
            del second[change.removeprefix("no ")]
        case "short":
            second["logits"] = [1.0]
        case "long":
            second["probabilities"] = [0.2, 0.3, 0.5]
        case "nan":
            second["logits"][0] = float("nan")
        case "infinite":
            second["logits"][1] = float("inf")
        case "text for a number":
            second["probabilities"][1] = "0.5"
        case "label 2" | "label -1":
            second["label"] = int(change.split()[1])
        case "label true":
            second["label"] = True
        case "label 0.0":
            second["label"] = 0.0
        case "another order":
            second["probabilities"].reverse()
        case "sentence 3":
            second["sentence"] = 3
        case "not an object":
            value["samples"][1] = [1, 2]
        case _:
            raise AssertionError(change)
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no logits", "no key 'logits'"),
        ("no probabilities", "no key 'probabilities'"),
        ("no label", "no key 'label'"),
        ("no sentence", "no key 'sentence'"),
        ("short", "'logits' is 1 values, expected one number for each of the 2 classes"),
        ("long", "'probabilities' is 3 values"),
        ("nan", r"'logits'\[0\] is nan"),
        ("infinite", r"'logits'\[1\] is inf"),
        ("text for a number", r"'probabilities'\[1\] is '0.5'"),
        ("label 2", r"'label' is 2, expected one of 0 \(entailment\), 1 \(non-entailment\)"),
        ("label -1", "'label' is -1"),
        ("label true", "'label' is True"),
        ("label 0.0", "'label' is 0.0"),
        ("another order", "the softmax of 'logits' is"),
        ("sentence 3", "'sentence' is 3"),
        ("not an object", r"is \[1, 2\], expected an object"),
    ],
)
def test_a_wrong_sample_is_named(tmp_path: Path, change: str, message: str) -> None:
    path = save(tmp_path / "f.json", broken(change))
    with pytest.raises(DataError, match=message) as caught:
        read_samples(path)
    assert f"{path}: sample 1" in caught.value.what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON, or cut short"),
        (json.dumps(document())[:-40], "not JSON, or cut short"),
        ("[" * 100_000, "not JSON, or cut short"),
        ("[]", "no key 'label_dict'"),
        ('{"label_dict": {"a": 0, "b": 1}}', "no key 'samples'"),
        ('{"label_dict": {"a": 0, "b": 1}, "samples": []}', "'samples' is empty"),
        ('{"label_dict": {"a": 0, "b": 1}, "samples": 3}', "'samples' is 3"),
        ('{"label_dict": {"a": 0, "b": 2}, "samples": []}', "numbered 0, 1, 2"),
        ('{"label_dict": {"a": 0, "b": true}, "samples": []}', "numbered 0, 1, 2"),
        ('{"label_dict": {"a": 0, "b": "1"}, "samples": []}', "numbered 0, 1, 2"),
        ('{"label_dict": ["a", "b"], "samples": []}', "numbered 0, 1, 2"),
        ('{"label_dict": {"a": 0, "b": 1}, "samples": {"x": {}, "x": {}}}', "'x' is given twice"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_samples(path)
    assert str(path) in caught.value.what


def test_a_missing_file_and_broken_utf8_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.json: No such file"):
        read_samples(tmp_path / "none.json")
    path = tmp_path / "f.json"
    path.write_bytes(b'{"label_dict": {"\xff": 0}}')
    with pytest.raises(DataError, match="not UTF-8 at byte 17"):
        read_samples(path)


# --- refusals of the writer -------------------------------------------------------------------


def refused(path: Path, log: pd.DataFrame, names: tuple[str, ...]) -> LandformError:
    path.write_text("what was there before", encoding="utf-8")
    with pytest.raises(LandformError) as caught:
        write_samples(path, log, names)
    assert path.read_text(encoding="utf-8") == "what was there before"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return caught.value


def test_what_cannot_be_written_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    log = log_of([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    nan = log.assign(logit_1=[0.0, np.nan])
    cases = [
        (nan, NAMES, NonFiniteError, "row 1 of the log"),
        (log.drop(columns="logit_1"), NAMES, DataError, "no column 'logit_1'"),
        (log.drop(columns="text"), NAMES, DataError, "no column 'text'"),
        (log, ("one", "two"), LabelError, "row 0 of the log has the label 'entailment'"),
        (log.assign(label=[0, 2]), NAMES, LabelError, "row 1 of the log has the label 2"),
        (log, ("entailment",), LabelError, "at least two"),
        (log, ("a", "a"), LabelError, "all different"),
        (log.assign(logit_2=0.0), NAMES, LabelError, "more logit columns than the 2"),
        (log.iloc[:0], NAMES, DataError, "no rows"),
    ]
    for bad, names, kind, message in cases:
        error = refused(path, bad, names)
        assert isinstance(error, kind), error
        assert message in error.what


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    path = tmp_path / "file" / "f.json"
    with pytest.raises(StoreError, match=r"cannot write .*f\.json"):
        write_samples(path, log_of([[0.0, 1.0]], [0]), NAMES)
