"""Columns into texts, ids and labels: conversions, and faults with line and column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landform.errors import DataError, LabelError
from landform.tasks import columns
from landform.tasks.sources import Table


def table(name: str = "label", values: list[Any] | None = None, **others: list[Any]) -> Table:
    given = {**({} if values is None else {name: values}), **others}
    frame = pd.DataFrame({key: pd.Series(cells, dtype=object) for key, cells in given.items()})
    return Table(frame, "a.tsv", np.arange(2, 2 + len(frame)))


def test_texts_are_strings_as_written() -> None:
    found = columns.read_texts(table(a=["NA", "007"], b=["null", 7]), ("a", "b"))
    assert found == (("NA", "null"), ("007", "7"))
    assert columns.read_texts(table(a=["", "x"]), ("a",), allow_empty=True) == (("",), ("x",))


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (None, "no text"),
        (float("nan"), "no text"),
        ("", "empty"),
        (["a"], "text was expected, found list"),
        (True, "text was expected, found bool"),
        ("a\0b", "NUL"),
        ("a\ud800", "surrogate"),
    ],
)
def test_what_is_not_text_is_named(value: Any, part: str) -> None:
    with pytest.raises(DataError) as caught:
        columns.read_texts(table(a=["fine", value, "x"]), ("a",))
    assert part in str(caught.value)
    assert "a.tsv, line 3, column 'a'" in str(caught.value)


def test_ids() -> None:
    assert columns.read_ids(table(a=["x", "y"]), None, "dev", 5) == ("dev-5", "dev-6")
    assert columns.read_ids(table(a=[3, "y"]), "a", "dev") == ("3", "y")
    with pytest.raises(DataError, match=r"line 4.*'x' occurs before \(a.tsv, line 2\)"):
        columns.read_ids(table(a=["x", "y", "x"]), "a", "dev")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["1", "0", "2"], ("0", "1", "2")),
        ([1, 0, 1], ("0", "1")),
        ([1.0, 0.0], ("0", "1")),
        ([True, False], ("0", "1")),
        (["10", *map(str, range(10))], tuple(map(str, range(11)))),  # by number, not spelling
        (["pos", "neg", "pos"], ("neg", "pos")),
        (["1", "yes"], ("1", "yes")),
    ],
)
def test_label_names_are_inferred(values: list[Any], names: tuple[str, ...]) -> None:
    assert columns.infer_label_names([table(values=values)], "label") == names


def test_codes_may_be_spread_over_the_splits() -> None:
    train, validation = table(values=["0", "2"]), table(values=["1"])
    assert columns.infer_label_names([train, validation], "label") == ("0", "1", "2")
    with pytest.raises(LabelError, match="0, 2"):
        columns.infer_label_names([train], "label")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (["1", "2"], "1, 2"),
        (["-1", "-1"], "withheld"),
        (["-1", "1"], "label_names"),
        (["0", "0"], "every row has the label '0'"),
        (["a", "a"], "every row has the label 'a'"),
        (["a", None], "line 3, column 'label': no label"),
        (["a", " "], "line 3"),
        ([f"sentence {i}" for i in range(1001)], "seq2seq"),
    ],
)
def test_labels_without_a_safe_reading_are_refused(values: list[Any], part: str) -> None:
    with pytest.raises(DataError) as caught:
        columns.infer_label_names([table(values=values)], "label")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["0", "1"], "classification"),
        (["0.5", "1"], "regression"),
        ([0.5, 1], "regression"),
        (["1.0", "2.00"], "classification"),
        (["1.5", "x"], "classification"),
        (["nan", "1"], "classification"),
        ([["O"], ["B"]], "token-classification"),
    ],
)
def test_the_kind_is_inferred(values: list[Any], kind: str) -> None:
    assert columns.infer_kind([table(values=values)], "label") == kind


def test_class_codes_by_name_and_by_code() -> None:
    names = ("entailment", "not_entailment")
    values = ["not_entailment", "Entailment", "not-entailment", "0", 1, 1.0, " entailment "]
    codes = columns.class_codes(table(values=values), "label", names)
    assert codes.dtype == np.int64 and codes.tolist() == [1, 0, 1, 0, 1, 1, 0]
    # Names that are numbers are names: "1" of ("1", "2") is the first class.
    assert columns.class_codes(table(values=["2", 1]), "label", ("1", "2")).tolist() == [1, 0]
    assert columns.class_codes(table(values=["1", "0"]), "label", ("0", "1")).tolist() == [1, 0]
    assert columns.class_codes(table(values=["1", "-1"]), "label", ("-1", "1")).tolist() == [1, 0]


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "neither", None, ""])
def test_a_label_outside_is_named(value: Any) -> None:
    with pytest.raises(DataError) as caught:
        columns.class_codes(table(values=["no", value]), "label", ("no", "yes"))
    assert "a.tsv, line 3, column 'label'" in str(caught.value)
    if value:
        assert "no, yes" in str(caught.value) and isinstance(caught.value, LabelError)


def test_scores() -> None:
    scores = columns.read_scores(table(values=["0.5", 3, " 1e-2"]), "label")
    assert scores.dtype == np.float64 and scores.tolist() == [0.5, 3.0, 0.01]


@pytest.mark.parametrize("value", ["inf", float("nan"), "high", None])
def test_scores_must_be_finite_numbers(value: Any) -> None:
    with pytest.raises(DataError, match=r"line 3, column 'label'"):
        columns.read_scores(table(values=[1.0, value]), "label")


def test_words_and_tags() -> None:
    rows = table(words=[["a", "b"], ["c"]], tags=[["O", "PER"], [-100]])
    words = columns.read_words(rows, "words")
    assert words == (("a", "b"), ("c",))
    names = columns.infer_label_names([rows], "tags", tags=True)
    assert names == ("O", "PER")
    assert columns.tag_codes(rows, words, "tags", names) == ((0, 1), (-100,))


@pytest.mark.parametrize(
    ("words", "tags", "part"),
    [
        (["a"], ["O", "O"], "2 tags for 1 words"),
        (["a"], ["X"], "'X'"),
        (["a"], [None], "no label"),
        (["a"], "O", "a list of tags was expected"),
        ("a b", ["O"], "a list of words was expected"),
        ([], [], "no words"),
        ([None], ["O"], "no text"),
    ],
)
def test_words_and_tags_that_do_not_fit(words: Any, tags: Any, part: str) -> None:
    rows = table(words=[["a"], words], tags=[["O"], tags])
    with pytest.raises(DataError) as caught:
        columns.tag_codes(rows, columns.read_words(rows, "words"), "tags", ("O", "PER"))
    assert part in str(caught.value) and "a.tsv, line 3" in str(caught.value)


@pytest.mark.parametrize(
    "read",
    [
        lambda t: columns.read_texts(t, ("txet",)),
        lambda t: columns.read_ids(t, "txet", "dev"),
        lambda t: columns.class_codes(t, "txet", ("a", "b")),
    ],
)
def test_a_column_that_is_not_there(read: Callable[[Table], Any]) -> None:
    with pytest.raises(DataError, match="did you mean 'text'"):
        read(table(text=["a"]))


@pytest.mark.parametrize(
    "value", ["9" * 400, 10**400, float(10**300)], ids=["text", "int", "float"]
)
def test_numbers_that_are_no_codes(value: Any) -> None:
    """int(float("999...")) is an OverflowError: float() makes it infinite."""
    with pytest.raises(LabelError, match="is not one of the task's"):
        columns.class_codes(table(values=[0, value]), "label", ("a", "b"))
    assert columns.infer_kind([table(values=[0, value])], "label") in (
        "classification",
        "regression",
    )


def test_codes_are_read_exactly() -> None:
    names = tuple(str(2**60 + place) for place in range(3))
    assert columns.class_codes(table(values=[2**60 + 1]), "label", names).tolist() == [1]
