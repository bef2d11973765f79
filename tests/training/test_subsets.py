"""Which rows are trained on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from landform.errors import ConfigError, DataError
from landform.tasks.task import Examples
from landform.training.options import TrainConfig
from landform.training.subsets import choose_rows

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
