"""Which rows are trained on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landform.errors import ConfigError, DataError
from landform.tasks.task import Examples
from landform.training.options import TrainConfig
from landform.training.subsets import choose_rows, part_rows

LABELS = np.array([0] * 70 + [1] * 20 + [2] * 10)


@pytest.fixture
def examples():
    n = len(LABELS)
    ids = tuple(f"train-{i}" for i in range(n))
    return Examples(ids, tuple((f"t{i}",) for i in range(n)), LABELS, pd.DataFrame(index=range(n)))


def choose(examples, classes=True, **options):
    return choose_rows(examples, TrainConfig(**options), classes=classes)


def test_all_rows_without_an_option(examples):
    assert choose(examples) is None


def test_rows_and_percentages(examples):
    assert len(choose(examples, rows=13)) == 13
    assert len(choose(examples, percent=7)) == 7
    assert choose(examples, percent=100) == tuple(range(100))
    chosen = choose(examples, rows=50)
    assert list(chosen) == sorted(set(chosen)) and max(chosen) < 100


def test_the_seed_decides_and_smaller_choices_are_nested(examples):
    assert choose(examples, rows=20) == choose(examples, rows=20)
    assert choose(examples, rows=20) != choose(examples, rows=20, subset_seed=1)
    assert set(choose(examples, rows=20)) < set(choose(examples, rows=40))


@pytest.mark.parametrize(
    ("count", "shares"), [(10, [7, 2, 1]), (50, [35, 10, 5]), (13, [9, 3, 1]), (1, [1, 0, 0])]
)
def test_stratified_keeps_the_shares(examples, count, shares):
    chosen = choose(examples, rows=count, stratified=True)
    assert np.bincount(LABELS[list(chosen)], minlength=3).tolist() == shares


def test_rows_of_a_file(examples, tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("train-7\n\n train-3 \n")
    assert choose(examples, row_file=path) == (3, 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train-7\nnobody\n", "line 2: no training row has the id 'nobody'"),
        ("train-7\ntrain-7\n", "line 2: 'train-7' is already on line 1"),
        ("\n\n", "lists no rows"),
    ],
)
def test_faults_of_a_file(examples, tmp_path, content, message):
    path = tmp_path / "rows.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        choose(examples, row_file=path)


def test_missing_file(examples, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.txt cannot be read"):
        choose(examples, row_file=tmp_path / "nothing.txt")


def test_nothing_left(examples):
    with pytest.raises(DataError, match=r"0\.1 % of 100 rows leaves none"):
        choose(examples, percent=0.1)


def test_more_rows_than_there_are(examples):
    with pytest.raises(DataError, match="the training split has 100 rows"):
        choose(examples, rows=101)


def test_stratified_needs_classes(examples):
    with pytest.raises(ConfigError, match="one class label per row"):
        choose(examples, classes=False, rows=5, stratified=True)


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan"), float("inf")])
def test_absurd_percentages(percent):
    with pytest.raises(ConfigError, match="option percent: a percentage lies above 0"):
        TrainConfig.parse({"percent": percent})


def test_one_way_to_choose():
    with pytest.raises(ConfigError, match="rows and percent both choose rows"):
        TrainConfig.parse({"rows": 3, "percent": 5})
    with pytest.raises(ConfigError, match="stratified needs rows or percent"):
        TrainConfig.parse({"stratified": True})


# --- parts ------------------------------------------------------------------------------------

HOW = ("stratified", "random", "contiguous")


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    parts=st.integers(1, 5),
    how=st.sampled_from(HOW),
    seed=st.integers(0, 3),
)
def test_parts_are_disjoint_and_exhaustive(labels, parts, how, seed):
    size, values = len(labels), np.array(labels)
    parts = min(parts, size)
    found = [part_rows(size, i + 1, parts, how, values, seed) for i in range(parts)]
    assert sorted(np.concatenate(found).tolist()) == list(range(size))
    sizes = [len(rows) for rows in found]
    assert max(sizes) - min(sizes) <= 1
    assert all((np.diff(rows) > 0).all() for rows in found)
    if how == "stratified":
        for label in set(labels):
            counts = [int((values[rows] == label).sum()) for rows in found]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("size", [10, 11])
def test_contiguous_halves_are_those_of_the_original(size):
    first = part_rows(size, 1, 2, "contiguous", None, 0)
    rest = part_rows(size, 2, 2, "contiguous", None, 0)
    assert first.tolist() == list(range(size // 2))  # lines[:len(lines) // 2]
    assert rest.tolist() == list(range(size // 2, size))


def test_parts_are_stratified_where_there_are_labels(examples):
    one, two = choose(examples, part="1/2"), choose(examples, part="2/2")
    assert np.bincount(LABELS[list(one)]).tolist() == [35, 10, 5]
    assert set(one).isdisjoint(two)
    assert one == choose(examples, part="1/2", part_by="stratified")
    assert choose(examples, classes=False, part="1/2") == choose(
        examples, part="1/2", part_by="random"
    )
    assert choose(examples, part="1/2", subset_seed=1) != one
    assert choose(examples, part=" 1 / 2 ") == one and choose(examples, part="1/1") == tuple(
        range(100)
    )


def test_rows_of_a_part_lie_in_it(examples):
    part = set(choose(examples, part="2/2"))
    few = choose(examples, part="2/2", rows=20, stratified=True)
    assert set(few) < part and np.bincount(LABELS[list(few)]).tolist() == [14, 4, 2]
    assert len(choose(examples, part="2/2", percent=50)) == 25
    assert set(choose(examples, part="2/2", rows=10)) < set(choose(examples, part="2/2", rows=20))
    with pytest.raises(DataError, match=r"the training split's part 2/2 has 50 rows"):
        choose(examples, part="2/2", rows=51)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "half", "1/0", "-1/2"])
def test_absurd_parts(part):
    with pytest.raises(ConfigError, match="option part: expected NUMBER/PARTS"):
        TrainConfig.parse({"part": part})


def test_parts_that_cannot_be(examples, tmp_path):
    with pytest.raises(ConfigError, match="part and row_file both choose rows"):
        TrainConfig.parse({"part": "1/2", "row_file": tmp_path / "rows.txt"})
    with pytest.raises(ConfigError, match="part_by needs part"):
        TrainConfig.parse({"part_by": "random"})
    with pytest.raises(ConfigError, match="part_by is stratified: it needs a task"):
        choose(examples, classes=False, part="1/2", part_by="stratified")
    with pytest.raises(DataError, match="part 101/101 of 100 rows has none"):
        choose(examples, part="101/101")
