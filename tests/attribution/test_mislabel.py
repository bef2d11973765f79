import dataclasses
import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

import landform as lf
from landform.attribution.influence import SelfInfluence
from landform.attribution.mislabel import corrupt_labels, mislabel
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.results import from_parts, to_parts


def scored(scores, rows=None):
    rows = list(range(len(scores))) if rows is None else rows
    table = pd.DataFrame(
        {
            "row": rows,
            "text_id": [f"train-{row}" for row in rows],
            "text": [f"text {row}" for row in rows],
            "label": "positive",
            "prediction": "negative",
            "loss": 1.0,
            "value": 1.0,
            "score": np.asarray(scores, dtype=float),
        }
    )
    return SelfInfluence(
        "runs/seed0", "sst2", "train", "ekfac", "true", "loss", "1e-08", table, {}, {"x": 1}
    )


def drawn(n=300, marked=30, shift=2.0, seed=0):
    random = np.random.default_rng(seed)
    known = np.zeros(n, dtype=bool)
    known[random.choice(n, marked, replace=False)] = True
    return random.normal(size=n) + shift * known, known


def test_most_suspicious_first():
    result = mislabel(scored([0.5, 3.0, -1.0, 2.0], rows=[4, 7, 2, 9]))
    assert list(result.table["row"]) == [7, 9, 4, 2]
    assert list(result.table["rank"]) == [1, 2, 3, 4]
    assert list(result.table["text_id"]) == ["train-7", "train-9", "train-4", "train-2"]
    assert result.curve is None and result.auc is None and "known" not in result.table
    assert "train-7" in result.reading and "not tested" in result.reading
    with pytest.raises(ConfigError, match="not known"):
        result.recall(0.1)


def test_recall_at_every_share_by_hand():
    #                        ranks: 1    2    3    4    5
    result = mislabel(scored([5.0, 4.0, 3.0, 2.0, 1.0]), known=[0, 3])
    curve = result.curve
    np.testing.assert_allclose(curve["inspected"], [0, 0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(curve["recall"], [0, 0.5, 0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(curve["rows"], range(6))
    assert result.average_precision == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert result.auc == pytest.approx(4 / 6)  # 3 + 1 of 2 x 3 pairs
    assert result.recall(0.5) == 0.5 and result.recall(0.7) == pytest.approx(0.75)


@given(st.data())
def test_measures_are_those_of_scikit_learn_with_ties(data):
    n = data.draw(st.integers(4, 60))
    scores = data.draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    marked = data.draw(st.integers(1, n - 1))
    known = np.random.default_rng(n).permutation(np.arange(n) < marked)
    result = mislabel(scored(scores), known=known, replicates=20)
    assert result.auc == pytest.approx(roc_auc_score(known, scores))
    assert result.average_precision == pytest.approx(average_precision_score(known, scores))
    assert result.curve["recall"].is_monotonic_increasing
    assert result.curve["recall"].iloc[-1] == 1


def test_equal_scores_are_in_no_order():
    # Wrong labels in the first rows of the file must not look found because ties keep its order.
    known = np.arange(100) < 10
    result = mislabel(scored(np.ones(100)), known=known)
    np.testing.assert_allclose(result.curve["recall"], result.curve["inspected"])
    assert result.auc == 0.5 and result.p_value == 1
    assert result.reading.startswith("no better than a random order")


def test_random_band_is_hypergeometric_and_covers_random_orders():
    scores, known = drawn(n=120, marked=13)
    curve = mislabel(scored(scores), known=known, level=0.9, replicates=20).curve
    random = np.random.default_rng(1)
    found = np.stack([np.cumsum(random.permutation(known)) for _ in range(4000)])
    inside = (found / 13 >= curve["random_low"].to_numpy()[1:] - 1e-12) & (
        found / 13 <= curve["random_high"].to_numpy()[1:] + 1e-12
    )
    # Counts are whole, so the band covers 0.9 at least; one count narrower on a side would not.
    assert (inside.mean(axis=0) > 0.88).all()
    exact = stats.hypergeom(120, 13, 40).ppf([0.05, 0.95]) / 13
    np.testing.assert_allclose(curve.loc[40, ["random_low", "random_high"]].tolist(), exact)
    np.testing.assert_allclose(found.mean(axis=0) / 13, curve["random"][1:], atol=0.01)


def test_expected_average_precision_of_a_random_order():
    scores, known = drawn(n=40, marked=6)
    result = mislabel(scored(scores), known=known, replicates=20)
    random = np.random.default_rng(2)
    orders = random.random((20_000, 40))
    hits = known[(-orders).argsort(axis=1)].astype(float)
    values = (hits * hits.cumsum(axis=1) / np.arange(1, 41)).sum(axis=1) / 6
    assert values[0] == pytest.approx(average_precision_score(known, orders[0]))
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - result.average_precision_random) < 4 * error
    assert result.average_precision_random > 6 / 40 + 4 * error  # not just the share


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    inside = 0
    truth = stats.norm.cdf(1 / math.sqrt(2))  # AUC of two normals one deviation apart
    for seed in range(100):
        scores, known = drawn(n=150, marked=40, shift=1.0, seed=seed)
        result = mislabel(scored(scores), known=known, replicates=200)
        inside += result.auc_low <= truth <= result.auc_high
        assert result.average_precision_low < result.average_precision_high
    assert 85 <= inside <= 100


def test_a_good_ranking_says_so_and_a_bad_one_says_so_too():
    scores, known = drawn(shift=3.0)
    good = mislabel(scored(scores), known=known)
    assert good.better_than_chance and good.p_value < 1e-6
    assert good.reading.startswith("the first tenth of 300 rows of sst2:train holds")
    assert f"{good.recall(0.1):.0%}" in good.reading
    assert good.average_precision_low < good.average_precision < good.average_precision_high
    assert (good.curve["low"] <= good.curve["recall"] + 1e-12).all()
    for shift in (0.0, -3.0):
        scores, known = drawn(shift=shift)
        bad = mislabel(scored(scores), known=known)
        assert not bad.better_than_chance
        assert bad.reading.startswith("no better than a random order (p = ")


def test_known_as_mask_positions_and_file(tmp_path):
    scores, known = drawn(n=50, marked=5)
    rows = np.flatnonzero(known)
    listed = tmp_path / "wrong.txt"
    listed.write_text("\n" + "\n".join(f"train-{row}" for row in rows) + "\n")
    reference = mislabel(scored(scores), known=known)
    for given_as in (known.tolist(), pd.Series(known), rows, rows.tolist(), set(rows.tolist()),
                     listed, str(listed)):  # fmt: skip
        again = mislabel(scored(scores), known=given_as)
        pd.testing.assert_frame_equal(again.table, reference.table)
        assert again.auc_low == reference.auc_low
    assert set(reference.table[reference.table["known"]]["row"]) == set(rows)


def test_a_mask_is_about_the_split_not_about_the_scored_rows():
    mask = np.array([True, False, False, True, False])
    result = mislabel(scored([1.0, 2.0, 3.0], rows=[3, 1, 4]), known=mask)
    assert dict(zip(result.table["row"], result.table["known"], strict=True)) == {
        4: False, 1: False, 3: True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ([True, False], "has 2 entries, but row 3"),
        ([], "none of the 4"),
        ([0, 1, 2, 3], "all of the 4"),
        ([False] * 4, "none of the 4"),
        ([1, 1], "row 1 more than once"),
        ([1, 9], "row 9, which was not scored"),
        ([-1], "row -1, which was not scored"),
        ([0.5], "float64 values"),
        (["train-1"], "such as"),
        ([[True], [False]], "one dimension"),
        (3, "one dimension"),
        ("nowhere/ids.txt", "cannot be read"),
    ],
)
def test_known_that_does_not_fit(known, message):
    with pytest.raises(DataError, match=message) as error:
        mislabel(scored([1.0, 2.0, 3.0, 4.0]), known=known)
    assert error.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [("train-1\ntrain-8\n", "line 2: no scored row"), ("train-1\n\ntrain-1\n", "line 3.*line 1"),
     ("\n", "lists no rows")],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path, text, message):
    path = tmp_path / "ids.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        mislabel(scored([1.0, 2.0, 3.0, 4.0]), known=path)


def test_scores_that_cannot_be_ranked():
    with pytest.raises(NonFiniteError, match="train-1 is nan"):
        mislabel(scored([1.0, math.nan]))
    with pytest.raises(DataError, match="nothing to rank"):
        mislabel(scored([]))
    with pytest.raises(ConfigError, match="replicate"):
        mislabel(scored([1.0, 2.0]), known=[0], replicate=100)


def test_long_rankings_have_a_curve_of_a_thousand_steps():
    scores, known = drawn(n=2500, marked=100)
    curve = mislabel(scored(scores), known=known, replicates=20).curve
    assert len(curve) == 1001
    order = known[np.argsort(-scores)]
    for point in (0, 1, 333, 1000):
        rows = int(curve["rows"][point])
        assert curve["recall"][point] == pytest.approx(order[:rows].sum() / 100)


def test_result_survives_the_store():
    scores, known = drawn(n=60)
    for result in (mislabel(scored(scores)), mislabel(scored(scores), known=known)):
        again = from_parts(*to_parts(result))
        pd.testing.assert_frame_equal(again.table, result.table)
        assert again.reading == result.reading
        assert json.dumps(result.to_json(), allow_nan=False)


# --- making wrong labels ---


def words(n=200, classes=3):
    return lf.load_task(
        {
            split: [
                {"text": f"w{i} {split}", "label": "abc"[i % classes], "length": i}
                for i in range(n)
            ]
            for split in ("train", "validation")
        },
        text="text",
        label="label",
        name="words",
    )


def test_a_share_of_labels_is_wrong():
    task = words()
    wrong, mask = corrupt_labels(task, 0.15, seed=3)
    clean, spoilt = task.examples("train"), wrong.examples("train")
    assert mask.sum() == 30 and mask.dtype == bool
    np.testing.assert_array_equal(spoilt.labels != clean.labels, mask)
    assert set(spoilt.labels) <= {0, 1, 2}
    assert spoilt.ids == clean.ids and spoilt.texts == clean.texts
    assert list(spoilt.columns["length"]) == list(clean.columns["length"])
    assert wrong.examples("dev").fingerprint == task.examples("dev").fingerprint
    assert spoilt.fingerprint != clean.fingerprint
    assert wrong.fingerprint("train") != task.fingerprint("train")
    # The data of the task that was given stay as they are.
    np.testing.assert_array_equal(task.examples("train").labels, np.arange(200) % 3)


def test_both_other_classes_are_drawn_and_the_seed_decides():
    task = words(n=600)
    first, mask = corrupt_labels(task, 0.5, seed=1)
    step = (first.examples("train").labels - task.examples("train").labels)[mask] % 3
    assert 90 < (step == 1).sum() < 210  # of 300
    again, same = corrupt_labels(task, 0.5, seed=1)
    np.testing.assert_array_equal(mask, same)
    assert again.examples("train").fingerprint == first.examples("train").fingerprint
    assert (corrupt_labels(task, 0.5, seed=2)[1] != mask).any()


def test_two_classes_are_flipped_and_rows_and_splits_are_as_for_any_task():
    task = words(classes=2)
    wrong, mask = corrupt_labels(task, 0.25, split="dev")
    np.testing.assert_array_equal(
        wrong.examples("validation", rows=50).labels,
        np.where(mask, 1 - task.examples("dev").labels, task.examples("dev").labels)[:50],
    )
    np.testing.assert_array_equal(wrong.examples("train").labels, task.examples("train").labels)
    twice, second = corrupt_labels(wrong, 0.1, split="train")
    assert twice.examples("dev").fingerprint == wrong.examples("dev").fingerprint
    assert (twice.examples("train").labels != task.examples("train").labels).sum() == second.sum()


def test_the_spoilt_task_travels(tmp_path, write_rows):
    path = write_rows(tmp_path / "train.tsv", 40)
    task = lf.load_task({"train": str(path)}, text="sentence", label="label")
    wrong, _ = corrupt_labels(task, 0.2)
    travelled = pickle.loads(pickle.dumps(wrong))
    assert travelled.examples("train").fingerprint == wrong.examples("train").fingerprint
    named = dataclasses.replace(wrong, name="noisy", _read={})
    assert named.fingerprint("train") == wrong.fingerprint("train")
    write_rows(path, 30)
    with pytest.raises(DataError, match="has 30 rows, 40 when"):
        pickle.loads(pickle.dumps(wrong)).examples("train")


def test_labels_that_cannot_be_flipped():
    task = words(n=20)
    for share in (0, 1, -0.1, 1.5):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            corrupt_labels(task, share)
    with pytest.raises(DataError, match="is 0 rows"):
        corrupt_labels(task, 0.01)
    scores = lf.load_task(
        [{"text": f"w{i}", "label": i / 3} for i in range(5)], text="text", label="label"
    )
    with pytest.raises(ConfigError, match="cannot be flipped"):
        corrupt_labels(scores, 0.5, split="validation")
