import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import landform as lf
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.results import from_parts, to_parts
from landform.store.artifacts import MemoryStore, Store
from landform.store.study import load_results
from landform.studies.counterfactual import METHODS, CounterfactualStudy, counterfactual

ROWS, QUERIES = 60, 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, save_checkpoint):
    return save_checkpoint(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="module")
def task():
    def rows(n):
        return [{"text": f"w{i % 40}", "label": "ab"[i % 2]} for i in range(n)]

    splits = {"train": rows(ROWS), "validation": rows(QUERIES)}
    return lf.load_task(splits, text="text", label="label", name="toy")


class World:
    """A world in which query q rests on rows q, q + 12, q + 24, ...: it goes wrong when `needed`
    of these 5 are missing. `calls` keeps what was asked for."""

    def __init__(self, needed=3, wrong_at_first=(), wrong_seeds=None):
        self.needed, self.wrong_at_first = needed, set(wrong_at_first)
        self.wrong_seeds = wrong_seeds
        self.calls = []

    @staticmethod
    def support(query):
        return np.arange(query, ROWS, QUERIES)

    def __call__(self, subsets, seeds, queries):
        self.calls.append(([np.asarray(s) for s in subsets], tuple(seeds), tuple(queries)))
        logits = np.zeros((len(subsets), len(seeds), len(queries), 2), dtype=np.float32)
        for i, subset in enumerate(subsets):
            for j, seed in enumerate(seeds):
                for k, query in enumerate(queries):
                    missing = 5 - len(np.intersect1d(subset, self.support(query)))
                    flips = missing >= self.needed and self.wrong_seeds in (None, seed)
                    wrong = flips or (len(subset) == ROWS and (query, seed) in self.wrong_at_first)
                    logits[i, j, k, query % 2 if not wrong else 1 - query % 2] = 1.0
        return logits

    @property
    def subsets(self):
        return [s for subsets, _, _ in self.calls[1:] for s in subsets]


def ideal(method):
    """Scores that know the world; `identity` knows nothing, `kfac` the first two rows only."""
    scores = np.zeros((QUERIES, ROWS))
    for query in range(QUERIES):
        support = World.support(query)
        if method == "kfac":
            scores[query, support[:2]] = 1
        elif method == "ekfac":
            scores[query, support] = 5 - np.arange(5)
        else:
            scores[query, (query + 1) % QUERIES :: QUERIES] = 1
    return scores


OPTIONS = {"sizes": (2, 3, 5), "base_seeds": (0, 1), "retrain_seeds": (7, 8, 9), "replicates": 50}


def run(checkpoint, task, world, scores=ideal, store=None, **options):
    study = CounterfactualStudy.of(checkpoint, task, **{**OPTIONS, **options})
    return study.run(store or MemoryStore(), retrain=world, scores_of=scores)


@pytest.fixture(scope="module")
def result(checkpoint, task):
    return run(checkpoint, task, World(), methods=("random", "identity", "kfac", "ekfac"))


def share(result, method, size, column="share"):
    rows = result.curve.query("method == @method and size == @size")
    return float(rows[column].iloc[0])


def test_flips_are_those_of_the_world(result):
    assert result.targets == QUERIES and result.queries == QUERIES
    for size, expected in ((2, 0), (3, 1), (5, 1)):
        assert share(result, "ekfac", size) == expected
        assert share(result, "identity", size) == 0
    # kfac knows two rows of the support, then goes by position: row 0 first.
    kfac = result.flips.query("method == 'kfac' and size == 3 and flipped")["query"]
    assert list(kfac) == []
    assert len(result.flips) == 4 * QUERIES * 3
    row = result.flips.query("method == 'ekfac' and query == 5 and size == 3").iloc[0]
    assert row.accuracy == 0 and row.flipped and row.label == "b"
    assert row.text_id == "validation-5"


def test_the_rows_of_the_highest_scores_are_removed(checkpoint, task):
    world = World()
    run(checkpoint, task, world, methods=("ekfac",))
    removed = [tuple(np.setdiff1d(np.arange(ROWS), s)) for s in world.subsets]
    assert set(removed) == {
        tuple(World.support(query)[:size]) for query in range(QUERIES) for size in (2, 3, 5)
    }
    subsets, seeds, queries = world.calls[0]
    np.testing.assert_array_equal(subsets, [np.arange(ROWS)])
    assert seeds == (0, 1) and queries == tuple(range(QUERIES))
    assert world.calls[1][1] == (7, 8, 9)


def test_random_rows_have_the_label_of_the_target(checkpoint, task):
    # Labels alternate in the training rows, so parity is the label.
    study = CounterfactualStudy.of(checkpoint, task, **OPTIONS, methods=("random",))
    drawn = {target: study._random_rows(target) for target in range(QUERIES)}
    for target, rows in drawn.items():
        assert set(rows % 2) == {target % 2}
        assert sorted(rows) == list(range(target % 2, ROWS, 2))
    assert len({tuple(rows) for rows in drawn.values()}) == QUERIES  # an order for each target
    world = World()
    study.run(MemoryStore(), retrain=world, scores_of=ideal)
    removed = {tuple(np.setdiff1d(np.arange(ROWS), s)) for s in world.subsets}
    assert removed == {tuple(sorted(rows[:k])) for rows in drawn.values() for k in (2, 3, 5)}
    other = CounterfactualStudy.of(checkpoint, task, **OPTIONS, methods=("random",), seed=1)
    assert tuple(other._random_rows(0)) != tuple(drawn[0])


def test_random_rows_do_not_depend_on_position_in_the_query_split(checkpoint, task):
    # The label that counts is the target's in the queries, the rows are those of the training set.
    queries = lf.load_task(
        [{"text": f"w{i}", "label": "b"} for i in range(4)],
        text="text", label="label", label_names=("a", "b"), name="only-b",
    )  # fmt: skip
    study = CounterfactualStudy.of(
        checkpoint, task, **OPTIONS, queries=(queries, "validation"), methods=("random",)
    )
    for target in range(4):
        assert set(study._random_rows(target) % 2) == {1}


def test_targets_are_what_every_base_model_gets_right(checkpoint, task):
    world = World(wrong_at_first=[(3, 1), (7, 0)])
    result = run(checkpoint, task, world, methods=("ekfac",))
    assert result.targets == 10
    assert set(result.flips["query"]) == set(range(QUERIES)) - {3, 7}
    assert all(queries == (0, 1, 2, 4, 5, 6, 8, 9, 10, 11) for _, _, queries in world.calls[1:])
    assert result.provenance["base_accuracy"] == {"0": 11 / 12, "1": 11 / 12}
    few = run(checkpoint, task, World(wrong_at_first=[(3, 1)]), methods=("ekfac",), targets=4)
    assert sorted(set(few.flips["query"])) == [0, 1, 2, 4] and few.queries == QUERIES


def test_most_retrained_models_must_be_wrong(checkpoint, task):
    one_of_three = run(checkpoint, task, World(wrong_seeds=8), methods=("ekfac",))
    assert share(one_of_three, "ekfac", 5) == 0
    assert one_of_three.flips["accuracy"].iloc[-1] == pytest.approx(2 / 3)
    # Half of two is not most.
    half = run(checkpoint, task, World(wrong_seeds=8), methods=("ekfac",), retrain_seeds=(8, 9))
    assert share(half, "ekfac", 5) == 0
    assert half.flips["accuracy"].iloc[-1] == 0.5


class Fickle(World):
    """Even targets flip at size 2 only, odd ones at size 5 only."""

    def __call__(self, subsets, seeds, queries):
        logits = super().__call__(subsets, seeds, queries)
        for i, subset in enumerate(subsets):
            for k, query in enumerate(queries):
                mine = len(np.intersect1d(subset, self.support(query))) < 5
                wrong = mine and ROWS - len(subset) == (2 if query % 2 == 0 else 5)
                logits[i, :, k] = 0
                logits[i, :, k, query % 2 if not wrong else 1 - query % 2] = 1
        return logits


def test_both_readings(checkpoint, task):
    result = run(checkpoint, task, Fickle(), methods=("ekfac",))
    plain = [share(result, "ekfac", size) for size in (2, 3, 5)]
    carried = [share(result, "ekfac", size, "share_carried") for size in (2, 3, 5)]
    assert plain == [0.5, 0, 0.5] and carried == [0.5, 0.5, 1]


def test_carrying_forward_trains_less_and_reads_the_same(checkpoint, task):
    full, short = Fickle(), Fickle()
    everything = run(checkpoint, task, full)
    less = run(checkpoint, task, short, carry_forward=True)
    columns = ["method", "size", "share_carried", "low_carried", "high_carried"]
    pd.testing.assert_frame_equal(less.curve[columns], everything.curve[columns])
    assert less.retrainings == 3 * len(short.subsets) < everything.retrainings
    ekfac = less.flips.query("method == 'ekfac'")
    assert len(ekfac) == 6 * 1 + 6 * 3  # the even targets flip at once and are left alone
    assert math.isnan(share(less, "ekfac", 5)) and share(less, "ekfac", 2) == 0.5
    assert "flipped at it or at a smaller size" in less.reading
    pd.testing.assert_frame_equal(
        less.comparison[less.comparison["carried"]].reset_index(drop=True),
        everything.comparison[everything.comparison["carried"]].reset_index(drop=True),
    )


def test_equal_removals_are_trained_once(checkpoint, task):
    world = World()
    result = run(
        checkpoint, task, world, lambda method: ideal("ekfac"),
        methods=("identity", "diagonal", "kfac", "ekfac"),
    )  # fmt: skip
    assert len(world.subsets) == QUERIES * 3
    assert result.retrainings == QUERIES * 3 * 3
    assert len(world.calls) == 2  # the base models, then everything else as one plan
    # The same rows for all targets, in another order, are the same removal.
    world = World()
    order = np.argsort(np.random.default_rng(0).random((QUERIES, 5)), axis=1)
    scores = np.zeros((QUERIES, ROWS))
    scores[:, :5] = 1 + order
    run(checkpoint, task, world, lambda method: scores, methods=("kfac",), sizes=5)
    assert len(world.subsets) == 1


def test_wilson_intervals_and_exact_mcnemar_by_hand(result, checkpoint, task):
    row = result.curve.query("method == 'ekfac' and size == 5").iloc[0]
    z, n = stats.norm.ppf(0.975), QUERIES
    assert row.low == pytest.approx(n / (n + z**2))  # Wilson at 12 of 12
    assert row.high == 1
    chance = int(result.curve.query("method == 'random' and size == 5").iloc[0].flipped)
    pair = result.comparison.query("method == 'ekfac' and size == 5 and not carried").iloc[0]
    assert pair.only_method == QUERIES - chance and pair.only_random == 0
    assert pair.p_value == pytest.approx(2 * 0.5 ** (QUERIES - chance))
    assert pair.difference == pytest.approx(1 - chance / QUERIES)
    none = result.comparison.query("method == 'identity' and size == 2 and not carried").iloc[0]
    assert none.p_value == 1 and none.difference == 0


def test_the_comparison_is_paired():
    from landform.studies.counterfactual import CounterfactualConfig, _paired

    mine = np.array([1, 1, 1, 1, 1, 0, 0, 1, 1, 0], dtype=bool)
    chance = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 0], dtype=bool)
    pair = _paired(mine, chance, CounterfactualConfig())
    assert (pair["only_method"], pair["only_random"]) == (4, 1)
    assert pair["p_value"] == pytest.approx(2 * (5 + 1) / 2**5)
    assert pair["difference"] == pytest.approx(0.3)
    assert pair["low"] < 0.3 < pair["high"]


def test_reading_names_what_is_no_better_than_random(result):
    assert "ekfac 100%" in result.reading and "of 12 targets of toy" in result.reading
    tail = result.reading.split("at no size better than random rows of the target's label: ")[1]
    assert "identity" in tail and "ekfac" not in tail


def test_one_size_of_several_must_pass_for_all_of_them(result):
    for p_value, better in ((0.016, True), (0.018, False)):  # 0.05 over three sizes is 0.0167
        table = result.comparison.copy()
        table["p_value"] = 1.0
        chosen = (table["method"] == "ekfac") & (table["size"] == 3)
        table.loc[chosen, ["p_value", "difference"]] = (p_value, 0.5)
        reading = dataclasses.replace(result, comparison=table).reading
        assert ("ekfac" not in reading.split("at no size")[1]) == better


def test_without_random_there_is_no_comparison(checkpoint, task):
    result = run(checkpoint, task, World(), methods="ekfac")
    assert result.comparison is None and "no comparison with random rows" in result.reading


def test_result_survives_the_store(checkpoint, task, tmp_path):
    kept = run(checkpoint, task, Fickle(), store=Store.open(tmp_path / "s"), carry_forward=True)
    again = load_results(Store.open(tmp_path / "s"))["counterfactual"]
    pd.testing.assert_frame_equal(again.curve, kept.curve)
    pd.testing.assert_frame_equal(again.flips, kept.flips)
    assert again.reading == kept.reading and again.methods == METHODS
    assert json.dumps(kept.to_json(), allow_nan=False)
    assert from_parts(*to_parts(kept)).retrainings == kept.retrainings


# --- with real models ---


@pytest.fixture(scope="module")
def learnable(tmp_path_factory, save_checkpoint):
    """A task that a tiny model learns: the label is in the text, but for a few odd words."""
    random = np.random.default_rng(0)

    def rows(n):
        for i in range(n):
            words = [f"w{w}" for w in random.integers(4, 40, size=4)]
            yield {"text": " ".join([*words, f"w{2 * (i % 2) + random.integers(2)}"]),
                   "label": "ab"[i % 2]}  # fmt: skip

    root = tmp_path_factory.mktemp("learnable")
    model = save_checkpoint(root / "bert", seed=3, hidden_dropout_prob=0.0,
                            attention_probs_dropout_prob=0.0)  # fmt: skip
    splits = {"train": list(rows(40)), "validation": list(rows(10))}
    return model, lf.load_task(splits, text="text", label="label", name="learnable")


REAL = {
    "sizes": (5, 15), "base_seeds": (0, 1), "retrain_seeds": (5, 6, 7), "targets": 3,
    "methods": ("random", "identity", "ekfac"), "replicates": 50, "rows": 36,
    "train": {"learning_rate": 3e-3, "epochs": 4, "batch_size": 8, "new_head": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def real(learnable, tmp_path_factory):
    model, task = learnable
    store = tmp_path_factory.mktemp("study") / "s"
    return store, counterfactual(model, task, store=store, **REAL)


def test_real_removals_are_trainings_without_those_rows(real, learnable, tmp_path):
    _, result = real
    model, task = learnable
    assert result.targets == 3 and result.retrainings <= 3 * 3 * 3 * 2
    study = CounterfactualStudy.of(model, task, **REAL)
    target = int(result.flips["query"].iloc[0])
    removed = study._random_rows(target)[:15]
    kept = tmp_path / "kept.txt"
    ids = task.examples("train").ids
    kept.write_text("\n".join(ids[i] for i in range(36) if i not in removed))
    training = lf.train(
        model, task, out=tmp_path / "runs", seeds=(5, 6, 7), row_file=kept, eval_split=None,
        **REAL["train"],
    )  # fmt: skip
    right = [lf.evaluate(path, task).log["correct"].iloc[target] for path in training.paths]
    row = result.flips.query("method == 'random' and query == @target and size == 15").iloc[0]
    assert row.accuracy == pytest.approx(np.mean(right))


def test_a_finished_study_is_read_not_trained(real, learnable, monkeypatch):
    from landform.training import ensemble, work

    store, result = real
    monkeypatch.setattr(ensemble.EnsembleWorker, "_train", None)
    monkeypatch.setattr(work, "run_loop", None)
    again = counterfactual(*learnable, store=store, **REAL)
    pd.testing.assert_frame_equal(again.curve, result.curve)
    pd.testing.assert_frame_equal(again.flips, result.flips)


def test_a_killed_study_goes_on(learnable, tmp_path, monkeypatch, real):
    from landform.training import ensemble

    train, calls = ensemble.EnsembleWorker._train, []

    def dies(self, members, limit=None):
        calls.append(len(members))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(self, members, limit)

    with monkeypatch.context() as patch:
        patch.setattr(ensemble.EnsembleWorker, "_train", dies)
        with pytest.raises(KeyboardInterrupt):
            counterfactual(*learnable, store=tmp_path / "s", **REAL)
    done = calls[:3]
    calls.clear()
    monkeypatch.setattr(
        ensemble.EnsembleWorker, "_train",
        lambda self, members, limit=None: calls.append(len(members)) or train(self, members),
    )  # fmt: skip
    result = counterfactual(*learnable, store=tmp_path / "s", **REAL)
    assert sum(done) + sum(calls) == 2 + result.retrainings  # nothing was trained twice
    pd.testing.assert_frame_equal(result.flips, real[1].flips)


def test_forecast_is_the_most_it_can_take(learnable, real):
    model, task = learnable
    study = CounterfactualStudy.of(model, task, **REAL)
    fresh = study.forecast(MemoryStore())
    # 36 rows in batches of 8 for 4 epochs, after a removal 31 and 21.
    assert fresh.evaluations == 2 * 20 + 3 * 3 * 3 * (16 + 12)
    assert fresh.seconds > 0 and fresh.memory > 0 and "steps to do" in fresh.reading
    assert study.forecast(Store.open(real[0])).evaluations == fresh.evaluations - 2 * 20


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (20, 60)}, "60 rows cannot be removed from 60 training rows"),
        ({"sizes": 40, "rows": 30}, "40 rows cannot be removed from 30"),
        ({"sizes": 40}, "40 random rows of the label 'a'.*have 30"),
        ({"sizes": ()}, "at least one"),
        ({"sizes": (5, 5)}, "twice"),
        ({"sizes": 0}, "greater than or equal to 1"),
        ({"methods": ("random", "nearest")}, "'random', 'identity'"),
        ({"methods": ()}, "at least one"),
        ({"retrain_seeds": (1, 1)}, "twice"),
        ({"size": 5}, "unknown option 'size'"),
        ({"train": {"rows": 5}}, "train.rows has no meaning"),
        ({"train": {"seeds": (1,)}}, "train.seeds has no meaning"),
        ({"train": {"perturb": 0.1}}, "train.perturb"),
        ({"train": {"learning_rate": -1}}, "train.learning_rate"),
    ],
)
def test_options_that_cannot_be(checkpoint, task, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        CounterfactualStudy.of(checkpoint, task, **options)
    assert error.value.remedy


def test_removals_without_random_need_no_matching_label(checkpoint, task):
    assert CounterfactualStudy.of(checkpoint, task, sizes=40, methods="ekfac").config.sizes == (40,)


def test_no_query_that_all_base_models_get_right(checkpoint, task):
    world = World(wrong_at_first=[(q, q % 2) for q in range(QUERIES)])
    with pytest.raises(DataError, match="no query of toy:validation is answered right by all 2"):
        run(checkpoint, task, world)
    assert len(world.calls) == 1


def test_tasks_that_have_no_right_answer(checkpoint, task):
    scores = lf.load_task(
        {s: [{"text": f"w{i}", "label": i / 7} for i in range(9)] for s in ("train", "validation")},
        text="text", label="label",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="regression"):
        CounterfactualStudy.of(checkpoint, scores, sizes=2)
    other = lf.load_task(
        [{"text": "w1", "label": label} for label in "cd"], text="text", label="label"
    )
    with pytest.raises(ConfigError, match="are c, d, those of toy a, b"):
        CounterfactualStudy.of(checkpoint, task, queries=(other, "validation"), sizes=2)


def test_scores_and_logits_that_do_not_fit(checkpoint, task):
    with pytest.raises(DataError, match=r"scores of ekfac have shape \(3, 4\)"):
        run(checkpoint, task, World(), lambda m: np.ones((3, 4)), methods="ekfac")
    bad = ideal("ekfac")
    bad[4, 9] = np.inf
    with pytest.raises(NonFiniteError, match="ekfac score of training row 9 for query 4 is inf"):
        run(checkpoint, task, World(), lambda m: bad, methods="ekfac")
    with pytest.raises(DataError, match="gave logits of shape"):
        run(checkpoint, task, lambda *_: np.zeros((1, 2, 3, 2)))
    with pytest.raises(NonFiniteError, match="not a number"):
        run(checkpoint, task, lambda *_: np.full((1, 2, QUERIES, 2), np.nan))
