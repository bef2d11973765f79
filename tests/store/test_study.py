"""Names of results: readable, and different where the parts are; results that cannot be read."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landform.errors import StoreError
from landform.results import Result, from_parts
from landform.store.artifacts import Contents, MemoryStore
from landform.store.study import kept_name, kept_names, load_results, publish, slug
from landform.training.finetune import Training


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


@dataclass(frozen=True)
class Found(Result):
    """A result about one checkpoint; `landform.` so that it can be read again."""

    checkpoint: str
    value: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)


Found.__module__ = "landform.results"


def test_results_about_two_checkpoints_of_one_name_are_both_kept(monkeypatch, tmp_path):
    """evaluate a/seed0, then evaluate b/seed0 into one study: the second replaced the first."""
    monkeypatch.setattr("landform.results.Found", Found, raising=False)
    store = MemoryStore()
    first, second = Found("a/seed0", 1), Found("b/seed0", 2)
    assert publish(store, "evaluate-seed0", first) == "evaluate-seed0"
    other = publish(store, "evaluate-seed0", second)
    assert re.fullmatch(r"evaluate-seed0\+[0-9a-f]{6}", other)
    assert load_results(store) == {"evaluate-seed0": first, other: second}
    # Again, in any order, with other options: each in its own place.
    assert publish(store, "evaluate-seed0", Found("b/seed0", 3)) == other
    assert publish(store, "evaluate-seed0", Found("a/seed0", 4)) == "evaluate-seed0"
    assert publish(store, "evaluate-seed0", Found("./a/seed0/", 5)) == "evaluate-seed0"
    assert {name: r.value for name, r in load_results(store).items()} == {
        "evaluate-seed0": 5, other: 3,
    }  # fmt: skip
    assert kept_names(store, ("x", "evaluate-seed0"), second) == ("x", other)
    assert kept_names(store, ("evaluate-seed0",) * 2, (first, second)) == ("evaluate-seed0", other)


def test_a_checkpoint_named_in_another_way_is_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr("landform.results.Found", Found, raising=False)
    store = MemoryStore()
    here = tmp_path / "runs" / "seed0"
    here.mkdir(parents=True)
    publish(store, "fisher", Found(str(here), provenance={"weights": "w"}))
    for same in (
        Found("runs/seed0"), Found("seed0"), Found("else/seed0", provenance={"weights": "w"})
    ):  # fmt: skip
        assert kept_name(store, "fisher", same) == "fisher"
    moved = Found(str(tmp_path / "moved" / "seed0"), provenance={"weights": "v"})
    assert kept_name(store, "fisher", moved) != "fisher"
    here.rmdir()  # the whole study lies elsewhere now
    assert kept_name(store, "fisher", moved) == "fisher"
    store.publish("fisher", Contents(records={"result": {"class": "landform.gone:R"}}))
    assert kept_name(store, "fisher", moved) == "fisher"  # what cannot be read may go


def test_runs_of_one_model_in_two_directories_are_both_kept():
    """Their provenance has the weights of the model from which all of them start."""
    store = MemoryStore()
    a, b = (
        Training("m", "toy", pd.DataFrame({"path": [f"{x}/runs/seed0"]}), pd.DataFrame(), started)
        for x, started in (("a", {"weights": "w"}), ("b", {"weights": "w"}))
    )
    assert publish(store, "train-runs", a) == "train-runs"
    assert publish(store, "train-runs", b) != "train-runs" == publish(store, "train-runs", a)


def test_specs_in_the_provenance_tell_results_of_short_names_apart(monkeypatch):
    monkeypatch.setattr("landform.results.Found", Found, raising=False)
    store = MemoryStore()
    a, b = (Found("seed0", provenance={"checkpoints": [f"{x}/seed0"]}) for x in "ab")
    publish(store, "surface", a)
    found = publish(store, "surface", b)
    assert found != "surface"
    # What stands beside results in what a study returns has no name of its own.
    assert kept_names(store, ("surface", "x"), (object(), b)) == (found, "x")
    assert kept_names(store, ("surface",), object()) == ("surface",)
    # Kept by a version that did not say what it is about: replaced, as then.
    publish(store, "old", Found(""))
    monkeypatch.setattr(Found, "subject", (), raising=False)
    assert kept_name(store, "old", b) == "old"
