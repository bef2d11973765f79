"""Names of results: readable, and different where the parts are; results that cannot be read."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landform.errors import StoreError
from landform.results import from_parts
from landform.store.artifacts import Contents, MemoryStore
from landform.store.study import load_results, slug


def test_simple_names_are_their_words():
    assert slug("evaluate", "seed0", "embedded", "heuristics") == (
        "evaluate-seed0-embedded-heuristics"
    )
    assert slug("evaluate", "v1.2_b", "other-reviews", "test") == (
        "evaluate-v1.2_b-other--reviews-test"
    )


def test_names_of_different_parts_differ():
    parts = [
        *(("runs/seed0",), ("runs-seed0",), ("runs", "seed0"), ("runs_seed0",), ("runs//seed0",)),
        *(("evaluate", "a-b", "c"), ("evaluate", "a", "b-c"), ("evaluate", "a", "b", "c")),
        *(("seed0@300",), ("seed0-300",), ("seed0_300",), ("a-", "b"), ("a", "-b"), ("a--b",)),
        *(("",), ("", ""), (".",), ("..",), ("a" * 40,), ("a" * 41,), ("a\n",), ("a",)),
    ]
    made = [slug(*each) for each in parts]
    for one, two in itertools.combinations(range(len(parts)), 2):
        assert made[one] != made[two], (parts[one], parts[two])


WORDS = st.lists(st.text("ab-_./@ ü", max_size=5), min_size=1, max_size=3)


@given(WORDS, WORDS)
def test_any_two_names(one, two):
    assert (slug(*one) == slug(*two)) == (one == two)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,127}", slug(*one))


@pytest.mark.parametrize(
    "record",
    [
        {"class": "landform.gone:Result", "fields": {}},
        {"class": "landform.results:Gone", "fields": {}},
        {"class": "landform.results:Result", "fields": {}},
        {"class": "os:stat_result", "fields": {}},
        {"class": "landform.store.plan:ForecastRow", "fields": {"colour": 1}},
        {"map": [["a"]]},
        {"table": "curve"},
    ],
    ids=["module", "class", "no-result", "foreign", "fields", "map", "table"],
)
def test_results_of_another_version(record):
    """A class that had moved to another module ended in a ModuleNotFoundError."""
    with pytest.raises(StoreError, match="a kept result") as caught:
        from_parts({}, record)
    assert "another version" in str(caught.value.remedy)


def test_a_result_that_is_none():
    store = MemoryStore()
    store.publish("odd", Contents(records={"other": 1}))
    with pytest.raises(StoreError, match="results/odd holds no result"):
        load_results(store)
