from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landform.config import Config
from landform.errors import StoreError
from landform.store.fingerprint import (
    fingerprint,
    fingerprint_array,
    fingerprint_file,
    fingerprint_files,
    to_plain,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


class Colour(Enum):
    RED = "red"


class Lora(Config):
    rank: int = 8


class Adapter(Config):
    rank: int = 8


@dataclass(frozen=True)
class Point:
    x: float


def test_a_known_value_keeps_its_fingerprint() -> None:
    # SHA-256 of {"a":[1,2.5,"x",null,true]}; a change here makes every study on disk stale.
    assert fingerprint({"a": (1, 2.5, "x", None, True)}) == (
        "781726d78a18d28b70aa4d2a55e0b19c9e418ed192472a1ceebf5275c3d89f4f"
    )


@settings(max_examples=40)
@given(PLAIN)
def test_reading_back_its_json_gives_the_same_fingerprint(value: Any) -> None:
    assert fingerprint(json.loads(json.dumps(to_plain(value)))) == fingerprint(value)


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_keys_does_not_matter(value: Mapping[str, int]) -> None:
    assert fingerprint(dict(reversed(list(value.items())))) == fingerprint(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2), [1, 2]),
        (-0.0, 0.0),
        (float("nan"), -float("nan")),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Colour.RED, "red"),
        (PurePosixPath("a/b"), "a/b"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        ({"b", "a", "c"}, ["a", "b", "c"]),
        ({Colour.RED: 1}, {"red": 1}),
        (np.arange(6).reshape(2, 3).T, np.array([[0, 3], [1, 4], [2, 5]])),
    ],
)
def test_equal_meanings_have_equal_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (1, "1"),
        (None, "null"),
        (0.1, np.float32(0.1)),
        (float("nan"), "NaN"),
        (float("inf"), -float("inf")),
        ([1, [2]], [[1], 2]),
        ({}, []),
        (Lora(), Adapter()),
        (Lora(), Lora(rank=9)),
        (Point(1.0), Point(2.0)),
        ("é", "e"),
        ("\ud800", "?"),
    ],
)
def test_different_meanings_have_different_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("value", [object(), b"x", 1j, lambda: 0, Point, np.array([object()])])
def test_a_value_without_canonical_form_is_refused_and_named(value: Any) -> None:
    with pytest.raises(StoreError):
        fingerprint(value)
    if not isinstance(value, np.ndarray):
        with pytest.raises(StoreError, match=r"value\['a'\]\[1\]"):
            fingerprint({"a": [0, value]})


def test_keys_that_json_would_change_are_refused() -> None:
    with pytest.raises(StoreError, match="key 1 of type int"):
        fingerprint({"a": {1: 2}})


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(StoreError, match="contains itself"):
        fingerprint(loop)


def test_other_processes_give_the_same_fingerprint() -> None:
    code = "from landform.store.fingerprint import *; print(fingerprint({'s': {'b','a','c'}}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {fingerprint({"s": {"a", "b", "c"}})}


def test_plain_values_are_for_reading() -> None:
    plain = to_plain({"c": Lora(), "p": Path("x/y"), "a": np.eye(2), "d": Point(1.5)})
    assert plain == {
        "c": {"rank": 8},
        "p": "x/y",
        "a": [[1.0, 0.0], [0.0, 1.0]],
        "d": {"x": 1.5},
    }


def test_arrays_differ_by_dtype_shape_and_bytes() -> None:
    base = np.arange(6, dtype=np.float32)
    others = [
        base.astype(np.float64),
        base.astype(np.int32),
        base.reshape(2, 3),
        base.reshape(3, 2),
        base[::-1],
        np.zeros(0, np.float32),
        np.zeros((0, 3), np.float32),
        np.float32(0).reshape(()),
    ]
    assert len({fingerprint_array(a) for a in [base, *others]}) == 9
    assert fingerprint_array(base.astype(">f4")) == fingerprint_array(base)
    assert fingerprint_array(base.reshape(2, 3).T) == fingerprint_array(
        np.ascontiguousarray(base.reshape(2, 3).T)
    )
    assert fingerprint_array(np.array([0.0])) != fingerprint_array(np.array([-0.0]))


def test_files_are_known_by_name_and_content_not_by_place(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        folder.mkdir()
        (folder / "a.bin").write_bytes(b"A")
        (folder / "b.bin").write_bytes(b"B")
    expected = fingerprint_files([first / "a.bin", first / "b.bin"])
    assert fingerprint_files([second / "b.bin", second / "a.bin"]) == expected
    (second / "a.bin").write_bytes(b"B")
    (second / "b.bin").write_bytes(b"A")
    assert fingerprint_files([second / "a.bin", second / "b.bin"]) != expected
    with pytest.raises(StoreError, match=r"nothing\.bin"):
        fingerprint_file(tmp_path / "nothing.bin")
