"""Fits, scores and rankings as one study: what is kept, under which names, what it will cost."""

import pickle
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest

import landform as lf
from landform.errors import ConfigError, DataError
from landform.store.artifacts import Store
from landform.store.study import load_results
from landform.studies.attribute import (
    AttributionStudy,
    SuspectsStudy,
    hardest_queries,
    layer_shares,
    top_rows,
)
from landform.tasks.task import load_task


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("attribute")
    save_checkpoint(root / "model", seed=3)
    write_rows(root / "train.tsv", 30, seed=1)
    write_rows(root / "dev.tsv", 8, seed=2)
    write_rows(root / "ood.tsv", 6, seed=4)
    return root


@pytest.fixture(scope="module")
def task(place):
    files = {"train": place / "train.tsv", "validation": place / "dev.tsv"}
    return load_task(files, text="sentence", label="label", name="toy")


@pytest.fixture(scope="module")
def ood(place):
    return load_task(place / "ood.tsv", text="sentence", label="label", name="ood")


def test_the_study_is_the_two_calls(place, task, ood):
    options = {"strategy": "kfac", "labels": "empirical", "rows": 20}
    study = AttributionStudy.of(
        place / "model", task, queries=["validation", (ood, "validation")],
        measurement="margin", damping=1e-3, query_rows=5, **options,
    )  # fmt: skip
    done = study.run()
    assert done.names == () and [len(i.queries) for i in done.influences] == [5, 5]
    factors = lf.fit_factors(place / "model", task, **options)
    for queries, found in zip(["validation", (ood, "validation")], done.influences, strict=True):
        alone = lf.influence(
            factors, queries=queries, query_rows=5, measurement="margin", damping=1e-3
        )
        np.testing.assert_allclose(found.values, alone.values, rtol=1e-5)
        assert found.values.shape == (5, 20)
    assert done.factors.rows == 20 and done.factors.strategy == "kfac"


def test_rows_that_are_scored_need_not_be_those_of_the_fit(place, task):
    done = AttributionStudy.of(place / "model", task, rows=12, train_rows=25).run()
    assert done.factors.rows == 12
    assert done.influences[0].train["row"].tolist() == list(range(25))


def test_results_are_kept_under_names_that_tell_them_apart(place, task, tmp_path):
    store = Store.open(tmp_path / "s")
    names = set()
    for options in ({}, {"strategy": "kfac"}, {"labels": "empirical"}, {"dtype": "float64"},
                    {"measurement": "margin"}):  # fmt: skip
        study = AttributionStudy.of(place / "model", task, rows=10, query_rows=3, **options)
        names |= set(study.run(store).names)
    kept = load_results(store)
    assert set(kept) == names
    scores = sorted(name for name in names if name.startswith("influence"))
    assert scores == [
        "influence-model-ekfac-empirical-loss-toy-validation",
        "influence-model-ekfac-true-float64-loss-toy-validation",
        "influence-model-ekfac-true-loss-toy-validation",
        "influence-model-ekfac-true-margin-toy-validation",
        "influence-model-kfac-true-loss-toy-validation",
    ]
    assert len(names) == 5 + 4, "the factors do not depend on the measurement"
    assert kept[scores[0]].labels == "empirical" and kept[scores[0]].scores.shape == (10, 3)
    study = AttributionStudy.of(place / "model", task, rows=10, query_rows=3, keep_as="mine")
    assert study.run(store).names == ("mine-factors", "mine")
    with pytest.raises(ConfigError, match="keep_as: one name"):
        AttributionStudy.of(place / "model", task, queries=["validation", "train"], keep_as="mine")


def test_a_forecast_counts_what_is_left(place, task, tmp_path):
    store = Store.open(tmp_path / "s")
    study = AttributionStudy.of(place / "model", task, rows=20, query_rows=6)
    fit, scores = study.forecast(store)
    assert [row.kind for row in fit.rows] == ["covariance", "squares"]
    assert fit.evaluations == 40 and scores.evaluations == 20 * 6
    assert fit.seconds > 0 and scores.seconds > 0 and fit.memory > 0 and scores.memory > 0
    study.run(store)
    fit, scores = study.forecast(store)
    assert fit.evaluations == 0 and fit.seconds == 0 and fit.done == fit.jobs
    assert scores.evaluations == 0 and scores.seconds == 0
    # A fit on the same rows with other scores has its factors already; other rows have not.
    fit, scores = AttributionStudy.of(place / "model", task, rows=20).forecast(store)
    assert fit.evaluations == 0 and scores.evaluations == 20 * 8
    fit, _ = AttributionStudy.of(place / "model", task, rows=19).forecast(store)
    assert fit.evaluations == 38


@pytest.mark.parametrize(
    ("strategy", "kinds"),
    [("identity", []), ("diagonal", ["squares"]), ("kfac", ["covariance"])],
)
def test_forecasts_of_other_strategies(place, task, strategy, kinds):
    fit, scores = AttributionStudy.of(place / "model", task, strategy=strategy).forecast()
    assert [row.kind for row in fit.rows] == kinds
    assert fit.evaluations == 30 * len(kinds) and scores.seconds > 0


def test_the_top_rows_of_every_query(place, task, ood):
    done = AttributionStudy.of(
        place / "model", task, queries=["validation", (ood, "validation")]
    ).run()
    table = top_rows(done.influences, 3)
    assert len(table) == (8 + 6) * 2 * 3
    second = done.influences[1]
    for side, pick in (("helpful", np.argmax), ("harmful", np.argmin)):
        chosen = table[(table["queries"] == 1) & (table["query"] == 4) & (table["side"] == side)]
        assert chosen["rank"].tolist() == [1, 2, 3]
        assert chosen["row"].iloc[0] == pick(second.values[4])
    assert table["query_id"].iloc[-1] == "validation-5"


def test_queries_of_the_highest_loss_come_first(place, task):
    (found,) = AttributionStudy.of(place / "model", task).run().influences
    losses = found.queries["loss"].to_numpy()
    chosen = hardest_queries(found, 3)
    assert losses[chosen].tolist() == sorted(losses, reverse=True)[:3]


def test_shares_of_layers_add_up_to_one(place, task):
    (found,) = AttributionStudy.of(place / "model", task, per_module=True).run().influences
    shares = layer_shares(found)
    assert shares.sum() == pytest.approx(1) and shares.is_monotonic_decreasing
    name = shares.index[0]
    total = sum(part.abs().to_numpy().sum() for part in found.modules.values())
    assert shares.iloc[0] == pytest.approx(found.modules[name].abs().to_numpy().sum() / total)


def test_suspects_are_ranked_by_self_influence(place, task, tmp_path):
    store = Store.open(tmp_path / "s")
    known = np.zeros(30, dtype=bool)
    known[[2, 5, 20]] = True
    done = SuspectsStudy.of(place / "model", task, known=known, rows=25).run(store)
    scores = lf.self_influence(lf.fit_factors(place / "model", task, rows=25)).values
    ranked = done.ranking.table
    assert ranked["row"].tolist() == np.argsort(-scores, kind="stable").tolist()
    assert ranked["known"].sum() == 3 and done.ranking.curve is not None
    assert done.names == (
        "factors-model-ekfac-true-toy-train",
        "self-model-ekfac-true-loss-toy-train",
        "mislabel-model-ekfac-true-loss-toy-train",
    )
    kept = load_results(store)
    pd.testing.assert_frame_equal(kept[done.names[2]].table, ranked)
    fit, ranking = SuspectsStudy.of(place / "model", task, rows=25).forecast(store)
    assert fit.evaluations == 0 and ranking.evaluations == 25


def test_rows_of_a_run_that_was_trained_on_some(place, task, tmp_path):
    run = tmp_path / "runs" / "seed0"
    shutil.copytree(place / "model", run)
    (run / "landform.json").write_text("{}")
    (run / "train_rows.txt").write_text("train-20\ntrain-3\ntrain-7\n")
    with pytest.warns(UserWarning, match=r"trained on a part .* row_file is .*train_rows.txt"):
        AttributionStudy.of(run, task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = AttributionStudy.of(run, task, row_file=run / "train_rows.txt")
        done = pickle.loads(pickle.dumps(study)).run()
    found = done.influences[0]
    assert found.train["text_id"].tolist() == ["train-3", "train-7", "train-20"]
    assert done.factors.rows == 3 and len(found.queries) == 8
    rows = task.examples("train").take([3, 7, 20])
    assert found.train["text"].tolist() == [text for (text,) in rows.texts]
    suspects = SuspectsStudy.of(run, task, row_file=run / "train_rows.txt", known=[1]).run()
    assert suspects.ranking.table.query("known")["text_id"].tolist() == ["train-7"]
    (run / "other.txt").write_text("train-99\n")
    with pytest.raises(DataError, match=r"other\.txt, line 1"):
        AttributionStudy.of(run, task, row_file=run / "other.txt")


def test_what_cannot_be_scored_is_refused_before_the_model_is_loaded(place, task, ood):
    def of(**options):
        return AttributionStudy.of(place / "model", task, **options)

    with pytest.raises(ConfigError, match="did you mean 'margin'"):
        of(measurement="margins")
    with pytest.raises(ConfigError, match="option strategy"):
        of(strategy="hessian")
    with pytest.raises(ConfigError, match="option query_rows"):
        of(query_rows=0)
    with pytest.raises((ConfigError, DataError), match="tset"):
        of(queries=["tset"])
    with pytest.raises((ConfigError, DataError), match="trian"):
        of(split="trian")
    with pytest.raises(ConfigError, match="no queries"):
        of(queries=[])
    with pytest.raises(ConfigError, match="named twice"):
        of(queries=["validation", "dev"])
    with pytest.raises(ConfigError, match="top keeps whole scores"):
        of(top=3, per_module=True)
    with pytest.raises(ConfigError, match="no module fits the pattern"):
        of(include=("*.atention.*",)).run()
    with pytest.raises(ConfigError, match="did you mean 'margin'"):
        SuspectsStudy.of(place / "model", task, measurement="margins")
