"""Pickles: read only when asked, never run; interpolations and their order."""

from __future__ import annotations

import contextlib
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landform.errors import DataError
from landform.exchange.connections import connection_of
from landform.exchange.interpolations import read_interpolations, write_interpolations
from landform.exchange.lines import lines_of
from landform.exchange.pickles import read_pickle, write_pickle


def dump(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


VALUES = [
    {"a": [1, 2.5, None, True, "text", b"bytes", (3, 4)]},
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4)),
    np.arange(4, dtype=">f4"),
    np.float64(0.25),
    np.zeros((0, 3)),
    torch.arange(6.0).reshape(2, 3),
    torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
    torch.arange(16.0).reshape(4, 4)[1:, 2:],
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_plain_values_and_arrays_come_back(tmp_path, value, protocol):
    found = read_pickle(dump(tmp_path / "x.pkl", value, protocol), allow_pickle=True)
    if isinstance(value, dict):
        assert found == value
    else:
        np.testing.assert_array_equal(found, np.asarray(value))
        assert not torch.is_tensor(found)


def test_a_pickle_not_asked_for(tmp_path):
    path = dump(tmp_path / "x.pkl", {})
    with pytest.raises(DataError, match=r"x\.pkl is a pickle") as caught:
        read_pickle(path, allow_pickle=False)
    assert "--allow-pickle" in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/never"),))


class Command:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, (f"touch {self.place}",))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Evil(), "pathlib"),
        (Counter("a"), "collections.Counter"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (np.array([None, 1]), "expected numbers"),
        (np.zeros(2, dtype=[("a", "f8")]), "expected numbers"),
        (np.array(["text"]), "expected numbers"),
        ({1, 2}, "set"),
        (eval, "eval"),
        (dict, "a value belongs"),
    ],
    ids=["evil", "counter", "module", "objects", "fields", "text", "set", "function", "type"],
)
def test_everything_else_is_refused_by_name(tmp_path, value, said):
    path = dump(tmp_path / "x.pkl", value)
    with pytest.raises(DataError, match=said) as caught:
        read_pickle(path, allow_pickle=True)
    assert "x.pkl" in str(caught.value)


def test_nothing_in_a_pickle_is_run(tmp_path):
    target = tmp_path / "ran"
    path = dump(tmp_path / "x.pkl", [1, Command(target)])
    with pytest.raises(DataError, match=r"asks for posix\.system"):
        read_pickle(path, allow_pickle=True)
    assert not target.exists()


def test_names_that_may_be_named_cannot_be_called(tmp_path):
    # ndarray(10**12) by hand: the class is in every pickle of an array, a call of it in none.
    path = tmp_path / "x.pkl"
    path.write_bytes(b"cnumpy\nndarray\n(I1000000000000\ntR.")
    with pytest.raises(DataError, match=r"calls numpy\.ndarray"):
        read_pickle(path, allow_pickle=True)


@pytest.mark.parametrize("value", VALUES[1:], ids=lambda value: type(value).__name__)
def test_every_truncation_is_a_typed_error(tmp_path, value):
    content = pickle.dumps(value, protocol=2)
    path = tmp_path / "x.pkl"
    for size in range(0, len(content) - 1, 7):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"x\.pkl"):
            read_pickle(path, allow_pickle=True)


def test_damaged_bytes_are_data_or_a_typed_error(tmp_path):
    generator = np.random.default_rng(0)
    content = bytearray(pickle.dumps((np.arange(4.0), {"w0": (0, 0)}), protocol=2))
    path = tmp_path / "x.pkl"
    for _ in range(300):
        damaged = bytearray(content)
        damaged[int(generator.integers(len(content)))] = int(generator.integers(256))
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(DataError):
            read_pickle(path, allow_pickle=True)


def test_written_pickles_name_modules_that_numpy_1_has(tmp_path):
    write_pickle(tmp_path / "x.pkl", (np.arange(3.0), 1))
    content = (tmp_path / "x.pkl").read_bytes()
    assert b"numpy._core" not in content and b"numpy.core.multiarray" in content
    np.testing.assert_array_equal(pickle.loads(content)[0], np.arange(3.0))


# --- interpolations ------------------------------------------------------------------------------


def test_the_first_row_of_a_key_is_its_second_model(tmp_path):
    rows = [[0, 0.5, 0.8], [1, 0.4, 0.9], [2, 0.45, 0.85]]
    table = {("3", "15"): (rows, 21.5), ("15", "3"): (rows[::-1], 21.5)}
    path = dump(tmp_path / "interpol_mnli.pkl", table)
    one, two = read_interpolations(path, allow_pickle=True)
    assert (one.a, one.b, one.data, one.metrics) == ("3", "15", "mnli", ("accuracy",))
    assert one.values[:, 0].tolist() == [0.45, 0.4, 0.5], "t = 0 is model 3"
    assert two.values[:, 0].tolist() == [0.5, 0.4, 0.45], "t = 0 is model 15"
    found = connection_of([one, two])
    assert len(found.pairs) == 1 and found.endpoints.loc["15", "mnli/loss"] == 0.5


def test_interpolations_keep_every_digit(connection, tmp_path):
    path = write_interpolations(connection, tmp_path / "interpol_mnli.pkl")
    raw = pickle.loads(path.read_bytes())
    first = lines_of(connection, "mnli")[0]
    assert raw["0", "1"][0][0][1] == first.values[-1, 0], "index 0 is the second model"
    assert raw["1", "0"][0][0][1] == first.values[0, 0]
    found = connection_of(read_interpolations(path, allow_pickle=True))
    assert found.gaps.equals(connection.gaps)
    assert found.distances.equals(connection.distances)
    assert found.basins.equals(connection.basins)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "expected a dict of pairs"),
        ({}, "expected a dict of pairs"),
        ({"a": 1}, "expected a pair of models"),
        ({("a", "b"): 1}, "expected a list of equally long rows"),
        ({("a", "b"): ([[0, 1.0], [1]], 2.0)}, "expected a list of equally long rows"),
        ({("a", "b"): ([[0, 1.0], [2, 1.0]], 2.0)}, "numbered 0, 2"),
        ({("a", "b"): ([[0, 1.0]], 2.0)}, "has shape"),
        ({("a", "b"): ([[0, 1.0, 1, 1, 1], [1, 1.0, 1, 1, 1]], 2.0)}, "3 columns after the loss"),
    ],
)
def test_other_things_are_no_interpolations(tmp_path, value, said):
    path = dump(tmp_path / "x.pkl", value)
    with pytest.raises(DataError, match=said):
        read_interpolations(path, allow_pickle=True)


def test_a_second_file_that_disagrees(tmp_path, lines):
    from landform.exchange.lines import merge_lines

    def write(name: str, loss: float) -> Path:
        return dump(tmp_path / name, {("a", "b"): ([[0, loss], [1, 0.3]], 2.0)})

    both = [write("one.pkl", 0.5), write("two.pkl", 0.6)]
    found = [
        line for path in both for line in read_interpolations(path, allow_pickle=True, data="mnli")
    ]
    with pytest.raises(DataError, match=r"one\.pkl.*two\.pkl"):
        merge_lines(found, 1e-4)


def test_a_place_that_would_take_all_memory(tmp_path):
    """Found by fuzzing: Python's reader makes a table as long as the highest place in the file."""
    file = tmp_path / "bomb.pkl"
    file.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")
    with pytest.raises(DataError, match="numbers its parts up to 2147483647"):
        read_pickle(file, allow_pickle=True)


def test_a_part_that_occurs_often_is_made_once(tmp_path):
    """Lists of the same list twice, sixty deep: 2 ** 60 lists, were each made anew."""
    value = [1.0]
    for _ in range(60):
        value = [value, value]
    (tmp_path / "deep.pkl").write_bytes(pickle.dumps(value))
    found = read_pickle(tmp_path / "deep.pkl", allow_pickle=True)
    assert found[0] is found[1]
    for _ in range(60):
        found = found[0]
    assert found == [1.0]
