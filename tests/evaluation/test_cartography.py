"""Data maps: the quantities, the record, and the subsets chosen from them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError, DataError, StoreError
from landform.evaluation import cartography as carto
from landform.evaluation.cartography import (
    FILE,
    DataMapConfig,
    TrainingDynamics,
    answer_dynamics,
    data_map,
    map_of,
    read_dynamics,
    summarise,
    texts_fingerprint,
)
from landform.evaluation.intervals import percentile_interval, resample_counts
from landform.evaluation.map_subsets import SubsetConfig, choose_subset, parse_mix
from landform.results import from_parts, to_parts
from landform.tasks.rows import write_row_file

# The reference's golden case: four examples, three epochs (section 6.3 of its report).
CORRECT = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 0, 1]]).T
CONFIDENCE = np.array([[0.2, 0.6, 0.9], [0.9, 0.9, 0.9], [0.1, 0.2, 0.5], [0.6, 0.4, 0.7]]).T


def made(epochs=3, size=12, seed=0, **about):
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.05, 0.95, (epochs, size))
    return TrainingDynamics(
        ids=tuple(f"r{i}" for i in range(size)),
        rows=np.arange(size),
        epochs=np.arange(1.0, epochs + 1),
        confidence=confidence,
        correct=confidence > 0.5,
        margin=np.log(confidence / (1 - confidence)),
        about={"measure": "probability of the gold class", **about},
    )


# --- the quantities ------------------------------------------------------------------------------


def test_the_golden_case_of_the_original_script():
    d = summarise(CONFIDENCE, CORRECT)
    means = ["correctness", "confidence", "variability", "turns"]

    def block(rows):
        return d.loc[rows, means].mean().tolist()

    np.testing.assert_allclose(block([0]), [0.66667, 0.56667, 0.28674, 1], atol=5e-6)
    np.testing.assert_allclose(block([2, 3]), [0.5, 0.41667, 0.14734, 1.5], atol=5e-6)
    assert d.forgetting.tolist() == [0, 0, 0, 1] and d.turns.tolist() == [1, 0, 1, 2]
    assert d.learned_at.tolist() == [2, 1, 3, 1] and (d.epochs == 3).all()
    assert d.columns.tolist() == [
        "text_id", "confidence", "variability", "correctness", "forgetting", "turns",
        "learned_at", "margin", "epochs",
    ]  # fmt: skip


@given(st.integers(1, 6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_quantity_by_brute_force(epochs, size, random):
    p = np.array([[random.random() for _ in range(size)] for _ in range(epochs)])
    c = np.array([[random.randrange(2) for _ in range(size)] for _ in range(epochs)])
    m = np.array([[random.gauss(0, 3) for _ in range(size)] for _ in range(epochs)])
    d = summarise(p, c, m, ids=[f"x{i}" for i in range(size)])
    for i, row in enumerate(d.itertuples()):
        mean = sum(p[:, i]) / epochs
        right = [int(v) for v in c[:, i]]
        pairs = list(itertools.pairwise(right))
        assert row.text_id == f"x{i}" and row.epochs == epochs
        assert row.confidence == pytest.approx(mean)
        spread = (sum((v - mean) ** 2 for v in p[:, i]) / epochs) ** 0.5
        assert row.variability == pytest.approx(spread)
        assert row.correctness == pytest.approx(sum(right) / epochs)
        assert row.forgetting == pairs.count((1, 0))
        assert row.turns == pairs.count((1, 0)) + pairs.count((0, 1))
        assert row.margin == pytest.approx(sum(m[:, i]) / epochs)
        first = right.index(1) + 1 if 1 in right else None
        assert (row.learned_at == first) if first else np.isnan(row.learned_at)


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_examples_does_not_matter(random):
    order = list(range(12))
    random.shuffle(order)
    d = made()
    whole = summarise(d.confidence, d.correct, d.margin, d.ids)
    mixed = summarise(
        d.confidence[:, order], d.correct[:, order], d.margin[:, order], [d.ids[i] for i in order]
    )
    pd.testing.assert_frame_equal(whole.iloc[order].reset_index(drop=True), mixed)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda p, c: (p, c[:2]), "one shape"),
        (lambda p, c: (p[0], c[0]), "one shape"),
        (lambda p, c: (p + 0.2, c), "is not a probability"),
        (lambda p, c: (p * np.nan, c), "example 0, epoch number 1: nan is not a probability"),
        (lambda p, c: (p, c * 2), "neither|right .1. or wrong"),
    ],
    ids=["shapes", "flat", "above-one", "nan", "not-binary"],
)
def test_what_is_no_dynamics_is_refused(change, what):
    with pytest.raises(DataError, match=what):
        summarise(*change(CONFIDENCE, CORRECT))
    with pytest.raises(DataError, match="3 ids"):
        summarise(CONFIDENCE, CORRECT, ids=["a", "b", "c"])


@given(st.integers(2, 5), st.integers(1, 6), st.randoms(use_true_random=False))
def test_probabilities_among_answers_by_brute_force(answers, size, random):
    scores = np.array([[random.uniform(-80, 0) for _ in range(answers)] for _ in range(size)])
    gold = np.zeros(scores.shape, dtype=bool)
    for row in gold:
        row[random.sample(range(answers), random.randint(1, answers - 1))] = True
    m = answer_dynamics(scores, gold)
    for i in range(size):
        weights = np.exp(scores[i] - scores[i].max())
        share = weights[gold[i]].sum() / weights.sum()
        assert m.confidence[i] == pytest.approx(share, rel=1e-9, abs=1e-300)
        assert m.correct[i] == gold[i, scores[i].argmax()]
        odds = weights[gold[i]].sum() / weights[~gold[i]].sum()
        assert m.margin[i] == pytest.approx(np.log(odds), rel=1e-9)


# --- the record ----------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(tmp_path):
    d = made(texts="abc")
    d.write(tmp_path / FILE)
    for place in (tmp_path, tmp_path / FILE, str(tmp_path)):
        back = read_dynamics(place)
        assert back.ids == d.ids and back.about == d.about
        for name in ("rows", "epochs", "confidence", "correct", "margin"):
            np.testing.assert_array_equal(getattr(back, name), getattr(d, name))
    table = lf.cartography(tmp_path)
    pd.testing.assert_frame_equal(table, summarise(d.confidence, d.correct, d.margin, d.ids))
    frame = pd.read_parquet(tmp_path / FILE)
    assert frame.columns.tolist() == ["text_id", "row", "epoch", "confidence", "correct", "margin"]
    frame.sample(frac=1, random_state=3).to_parquet(tmp_path / FILE)
    pd.testing.assert_frame_equal(lf.cartography(tmp_path), table)


def test_no_record_and_no_run(tmp_path):
    with pytest.raises(StoreError, match=r"no run at .*nowhere"):
        lf.cartography(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="train with cartography") as caught:
        lf.cartography(tmp_path)
    assert str(tmp_path) in caught.value.what


def test_damaged_and_foreign_files(tmp_path):
    place = tmp_path / FILE
    made().write(place)
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged or not a Parquet file") as caught:
        lf.cartography(tmp_path)
    assert "delete" not in str(caught.value) and FILE in str(caught.value.remedy)
    pd.DataFrame({"step": [1], "loss": [0.5]}).to_parquet(place)
    with pytest.raises(DataError, match="no column 'text_id'"):
        lf.cartography(place)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda f: f.iloc[:-1], "12 rows after epoch 1, but 11 after epoch 3"),
        (lambda f: f.assign(text_id=["a", *f.text_id[1:]]), "of different rows"),
        (lambda f: f.assign(text_id=np.tile(["r"], len(f))), "occurs twice"),
        (lambda f: f.assign(confidence=f.confidence * 2), "is not a probability"),
        (lambda f: f.assign(epoch="one"), "no numbers"),
        (lambda f: f.iloc[:0], "no epochs"),
    ],
    ids=["cut", "mixed", "twice", "probability", "words", "empty"],
)
def test_a_record_that_does_not_add_up(tmp_path, change, what):
    change(made().table()).to_parquet(tmp_path / FILE)
    with pytest.raises(DataError, match=what):
        lf.cartography(tmp_path)


@pytest.fixture
def reviews(tmp_path, write_rows):
    def load(name="train.tsv", rows=12, seed=0):
        path = write_rows(tmp_path / name, rows, seed=seed)
        return lf.load_task({"train": str(path)}, text="sentence", label="label")

    return load


def of_task(task, **changes):
    examples = task.examples("train")
    d = made(size=len(examples), texts=texts_fingerprint(examples))
    return TrainingDynamics(**{**d.__dict__, "ids": examples.ids, **changes})


def test_a_record_of_other_data_is_refused(tmp_path, reviews):
    task = reviews()
    run = tmp_path / "run"
    of_task(task).write(run / FILE)
    assert len(lf.cartography(run, task)) == 12
    with pytest.raises(DataError, match="holds 12 rows, and the data have 13"):
        lf.cartography(run, reviews("more.tsv", 13))
    with pytest.raises(DataError, match="holds 12 rows, and the data have 5"):
        lf.cartography(run, reviews("less.tsv", 5))
    with pytest.raises(DataError, match="texts or labels differ"):
        lf.cartography(run, reviews("other.tsv", 12, seed=5))
    of_task(task, ids=tuple(f"q{i}" for i in range(12))).write(run / FILE)
    with pytest.raises(DataError, match="is of other data: its row 0 is 'q0'"):
        lf.cartography(run, task)


# --- the map -------------------------------------------------------------------------------------


def test_a_map_counts_its_regions(reviews, tmp_path):
    task = reviews()
    p = np.full((3, 12), 0.6)
    c = np.ones((3, 12), dtype=bool)
    c[:, :2] = False  # never right
    c[1, 2:5] = False  # forgotten, and learned again
    c[0, 5] = False  # learned late
    d = of_task(task, confidence=p, correct=c)
    d.write(tmp_path / "run" / FILE)
    m = data_map(tmp_path / "run", task, replicates=50)
    assert dict(zip(m.regions.region, m.regions.examples, strict=True)) == {
        "easy": 6, "ambiguous": 4, "hard": 2, "forgotten": 3,
    }  # fmt: skip
    assert m.forgotten.text_id.tolist() == list(d.ids[2:5])
    assert m.by_epoch.forgotten.tolist() == [0, 3, 0]
    assert m.by_epoch.learned.tolist() == [9, 1, 3]
    assert m.table["text"].tolist() == [t[0] for t in task.examples("train").texts]
    assert m.by_label is not None and m.by_label.examples.tolist() == [6, 6]
    assert "6 (50 %) right after every epoch, 2 (16.7 %) after none, 4 (33.3 %)" in m.reading
    assert "3 forgotten at least once (25 % [" in m.reading
    assert "mean confidence 0.600 [0.600, 0.600]" in m.reading
    back = from_parts(*to_parts(m))
    assert back.reading == m.reading
    pd.testing.assert_frame_equal(back.table, m.table)
    assert m.to_json()["examples"] == 12


def test_one_epoch_says_nothing_of_change():
    m = map_of(made(epochs=1), run="r", config=DataMapConfig(replicates=20))
    assert "forgotten" not in m.reading and "variability" not in m.reading
    assert m.by_label is None and m.task is None and "1 epoch:" in m.reading


def test_intervals_are_those_of_the_shared_bootstrap():
    d = made(size=40)
    m = map_of(d, run="r", config=DataMapConfig(replicates=200, seed=3))
    counts = resample_counts(40, 200, 3)
    low, high = percentile_interval(counts @ m.table.confidence.to_numpy() / 40)
    estimate = m.provenance["means"]["confidence"]
    np.testing.assert_allclose(estimate, (m.table.confidence.mean(), low, high))
    share = (m.table.forgetting > 0).to_numpy(float)
    row = m.regions.set_index("region").loc["forgotten"]
    np.testing.assert_allclose(
        [row.share, row.low, row.high], [share.mean(), *percentile_interval(counts @ share / 40)]
    )


# --- subsets -------------------------------------------------------------------------------------


@pytest.fixture
def table():
    d = made(epochs=4, size=60, seed=2)
    return summarise(d.confidence, d.correct, d.margin, d.ids)


def test_subsets_are_what_they_are_called(table):
    by_id = table.set_index("text_id")
    easy, hard, unsure = (choose_subset(table, n, size=10) for n in ("easy", "hard", "ambiguous"))
    assert by_id.confidence[list(easy)].min() >= by_id.confidence.drop(list(easy)).max()
    assert by_id.confidence[list(hard)].max() <= by_id.confidence.drop(list(hard)).min()
    assert by_id.variability[list(unsure)].min() >= by_id.variability.drop(list(unsure)).max()
    assert by_id.confidence[list(easy)].is_monotonic_decreasing
    all_forgotten = set(by_id.index[by_id.forgetting > 0])
    assert set(choose_subset(table, "forgotten")) == all_forgotten
    assert choose_subset(table, "allforget", seed=4) == choose_subset(table, "forgotten", seed=4)
    few = choose_subset(table, "forgotten", size=7)
    assert len(few) == 7 and set(few) <= all_forgotten
    assert choose_subset(table, "forgotten", size=7, seed=1) != few
    order = by_id.confidence[sorted(all_forgotten)].sort_values()
    assert choose_subset(table, "forgethard", size=5) == tuple(order.index[:5])
    assert choose_subset(table, "forgeteasy", size=5) == tuple(order.index[::-1][:5])
    assert len(choose_subset(table, "easy")) == 20  # a third
    assert len(choose_subset(table, "random", share=0.25)) == 15


def test_ties_are_in_a_random_order_of_the_seed(table):
    same = table.assign(confidence=0.5)
    first, again, other = (choose_subset(same, "hard", size=20, seed=s) for s in (0, 0, 1))
    assert first == again and set(first) != set(other)
    assert first != tuple(same.text_id[:20])


def test_a_mix_has_its_parts_once(table):
    chosen = choose_subset(table, "mix", size=30, mix={"easy": 0.5, "hard": 0.25, "random": 0.25})
    assert len(chosen) == len(set(chosen)) == 30
    assert chosen[:15] == choose_subset(table, "easy", size=15)
    assert chosen[15:22] == choose_subset(table, "hard", size=7)
    counted = choose_subset(table, "mix", mix={"easy": 3, "ambiguous": 4})
    assert len(counted) == 7 and counted[:3] == choose_subset(table, "easy", size=3)
    assert len(choose_subset(table, "mix", size=59)) == 59  # three parts that overlap
    assert parse_mix(["easy=0.5", "hard=0.5"]) == {"easy": 0.5, "hard": 0.5}


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"subset": "harder"}, ConfigError, "unknown subset 'harder'"),
        ({"subset": "easy", "size": 61}, DataError, "61 rows cannot be chosen from 60"),
        ({"subset": "forgotten", "size": 60}, DataError, "subset forgotten: 60 rows were asked"),
        ({"subset": "mix", "mix": {"mix": 3}}, ConfigError, "cannot have the part 'mix'"),
        ({"subset": "mix", "mix": {"easy": 3}, "size": 4}, ConfigError, "are 3 rows, and size"),
        ({"subset": "easy", "mix": {"hard": 3}}, ConfigError, "needs subset mix"),
    ],
    ids=["name", "size", "forgotten", "part", "sizes", "mix"],
)
def test_subsets_that_cannot_be(table, options, error, what):
    with pytest.raises(error, match=what):
        choose_subset(table, **options)


def test_no_forgotten_rows(table):
    with pytest.raises(DataError, match="there are 0"):
        choose_subset(table.assign(forgetting=0), "forgotten")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"size": 3}, "size needs choose"),
        ({"choose": "easy", "size": 3, "share": 0.5}, "both say how many"),
        ({"choose": "easy", "mix": ("hard=3",)}, "mix needs choose mix"),
        ({"choose": "mix", "mix": ("hard",)}, "expected NAME=ROWS"),
        ({"choose": "mix", "mix": ("hard=2.5",)}, "expected NAME=ROWS"),
        ({"choose": "mix", "mix": ("hard=-1",)}, "expected NAME=ROWS"),
        ({"choose": "mix", "mix": ("hard=3", "easy=0.5")}, "not in both"),
        ({"choose": "mix", "mix": ("hard=0.6", "easy=0.5")}, "add up to more than 1"),
        ({"choose": "mix", "mix": ("hard=3", "hard=4")}, "occurs twice"),
    ],
    ids=["alone", "both", "mix", "word", "fraction", "negative", "units", "sum", "twice"],
)
def test_options_of_subsets(options, what):
    with pytest.raises(ConfigError, match=what):
        SubsetConfig.parse(options)


def test_a_row_file_is_read_by_train(tmp_path, reviews):
    from landform.training.options import TrainConfig
    from landform.training.subsets import choose_rows

    task = reviews()
    examples = task.examples("train")
    d = of_task(task)
    chosen = choose_subset(summarise(d.confidence, d.correct, ids=d.ids), "hard", size=4)
    path = write_row_file(chosen, tmp_path / "rows.txt")
    rows = choose_rows(examples, TrainConfig(row_file=path), classes=True)
    assert rows is not None and {examples.ids[row] for row in rows} == set(chosen)
    with pytest.raises(DataError, match="cannot stand on a line"):
        write_row_file(["a\nb"], tmp_path / "bad.txt")
    assert not (tmp_path / "bad.txt").exists()
    assert carto.FILE == "cartography.parquet"


def test_where_all_answers_are_right_there_is_no_margin():
    scores = np.log([[0.5, 0.3], [0.5, 0.3]])
    m = answer_dynamics(scores, np.array([[True, True], [True, False]]))
    assert m.confidence[0] == 1 and np.isnan(m.margin[0]) and np.isfinite(m.margin[1])
    margin = np.array([[np.nan, np.nan], [np.nan, 1.0], [np.nan, 3.0]])
    table = summarise(np.full((3, 2), 0.5), np.ones((3, 2)), margin)
    np.testing.assert_array_equal(table.margin, [np.nan, 2.0])
