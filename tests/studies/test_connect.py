import json
import signal
import time

import numpy as np
import pandas as pd
import pytest

import landform as lf
from landform.errors import CheckpointError, ConfigError
from landform.results import from_parts, to_parts
from landform.store.artifacts import Store
from landform.store.study import load_results
from landform.studies.connect import ConnectionStudy


@pytest.fixture(scope="module")
def study_parts(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("connect")
    for i in range(4):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i)
    write_rows(root / "dev.tsv", 24)
    lines = write_rows(root / "ood.tsv", 24, seed=5).read_text().splitlines()
    lines = [lines[0] + "\theuristic"] + [
        f"{x}\t{'pq'[i % 3 == 0]}" for i, x in enumerate(lines[1:])
    ]
    (root / "ood.tsv").write_text("\n".join(lines) + "\n")
    return root


def tasks(root):
    task = lf.load_task(str(root / "dev.tsv"), text="sentence", label="label")
    ood = lf.load_task(
        str(root / "ood.tsv"), text="sentence", label="label", name="ood", subsets=(("heuristic",),)
    )
    return task, ood


@pytest.fixture(scope="module")
def connection(study_parts):
    task, ood = tasks(study_parts)
    return lf.connect([f"{study_parts}/runs/seed*"], task, points=5, also=[ood])


def test_every_pair_is_the_line_between_them(connection, study_parts):
    task, ood = tasks(study_parts)
    assert connection.names == ("seed0", "seed1", "seed2", "seed3")
    for a, b in (("seed0", "seed1"), ("seed1", "seed3")):
        runs = study_parts / "runs"
        line = lf.interpolate(runs / a, runs / b, task, points=5, also=[ood])
        for data in connection.data:
            rows = connection.curves.query("data == @data and a == @a and b == @b")
            expected = line.table[line.table.data == data]
            np.testing.assert_allclose(rows.loss, expected.loss, rtol=1e-6)
            np.testing.assert_allclose(rows.accuracy, expected.accuracy)
        assert connection.gaps.loc[a, b] == pytest.approx(line.convexity_gap, rel=1e-5)
        assert connection.barriers.loc[b, a] == pytest.approx(line.barrier_height, rel=1e-5)
        assert connection.distances.loc[a, b] == pytest.approx(line.distance, rel=1e-9)


def test_evaluations_are_counted_as_promised(connection):
    n, pairs, points = 4, 6, 5
    assert connection.evaluations == n + pairs * (points - 2)


def test_checkpoints_are_loaded_once(study_parts, monkeypatch):
    from landform.evaluation import points

    loads = []
    original = points.load_model
    monkeypatch.setattr(
        points, "load_model", lambda c, *a, **k: loads.append(c.spec) or original(c, *a, **k)
    )
    task, _ = tasks(study_parts)
    lf.connect([f"{study_parts}/runs/seed*"], task, points=4)
    assert len(loads) == len(set(loads)) == 4


def test_matrices_are_square_symmetric_and_zero_on_the_diagonal(connection):
    for matrix in (connection.gaps, connection.barriers, connection.distances):
        assert list(matrix.index) == list(matrix.columns) == list(connection.names)
        np.testing.assert_array_equal(matrix, matrix.T)
        assert not np.diag(matrix).any()
    other = connection.matrix("convexity_gap", "ood:validation")
    assert other.shape == (4, 4) and not np.allclose(other, connection.gaps)
    with pytest.raises(ConfigError, match="no nonsense"):
        connection.matrix("nonsense")


def test_basins_and_endpoints(connection, study_parts):
    assert isinstance(connection.basins, pd.Series)
    assert list(connection.basins.index) == list(connection.names)
    _, ood = tasks(study_parts)
    result = lf.evaluate(study_parts / "runs" / "seed2", ood)
    row = connection.endpoints.loc["seed2"]
    assert row["ood:validation/accuracy"] == pytest.approx(result.metrics["accuracy"])
    part = result.log[result.log.heuristic == "q"]
    assert row["ood:validation/q/accuracy"] == pytest.approx(part.correct.mean())
    assert "basin" in connection.reading
    assert json.dumps(connection.to_json(), default=str)


def test_result_survives_the_store(connection, tmp_path, study_parts):
    task, ood = tasks(study_parts)
    kept = lf.connect(
        [f"{study_parts}/runs/seed*"], task, points=5, also=[ood], store=tmp_path / "s"
    )
    again = load_results(Store.open(tmp_path / "s"))["connect"]
    assert again.names == kept.names and again.evaluations == kept.evaluations
    pd.testing.assert_frame_equal(again.curves, kept.curves)
    pd.testing.assert_frame_equal(again.gaps, connection.gaps)
    pd.testing.assert_series_equal(again.basins, kept.basins)
    tables, record = to_parts(kept)
    pd.testing.assert_frame_equal(from_parts(tables, record).pairs, kept.pairs)


def test_pairs_can_be_chosen(study_parts):
    task, _ = tasks(study_parts)
    some = lf.connect(
        [f"{study_parts}/runs/seed*"],
        task,
        points=3,
        pairs=[("seed0", "seed2"), ("seed2", "seed0")],
    )
    assert some.evaluations == 4 + 1
    assert np.isfinite(some.gaps.loc["seed0", "seed2"]) and np.isnan(
        some.gaps.loc["seed0", "seed1"]
    )
    assert some.clustering is None and some.basins.isna().all()
    assert "1 lines" in some.reading


def test_compat_and_given_choices(study_parts):
    task, _ = tasks(study_parts)
    old = lf.connect([f"{study_parts}/runs/seed*"], task, points=3, compat="connectivity")
    assert old.clustering.n_basins == 2 and old.clustering.scale == 1.0
    three = lf.connect([f"{study_parts}/runs/seed*"], task, points=3, basins=3, affinity_scale=0.2)
    assert three.basins.nunique() == 3


def test_plan_is_known_before_anything_runs(study_parts, tmp_path):
    task, ood = tasks(study_parts)
    study = ConnectionStudy.of([f"{study_parts}/runs/seed*"], task, also=[ood], points=10)
    store = Store.open(tmp_path / "s")
    forecast = study.forecast(store)
    assert forecast.evaluations == 4 + 6 * 8
    assert forecast.seconds > 0 and forecast.memory > 0
    assert not list((tmp_path / "s").glob("artifacts/*/*")), "a forecast keeps nothing"


def test_bad_requests(study_parts, tmp_path):
    task, _ = tasks(study_parts)
    runs = study_parts / "runs"
    with pytest.raises(ConfigError, match="at least two"):
        lf.connect([runs / "seed0"], task)
    with pytest.raises(ConfigError, match="at least two"):
        lf.connect([runs / "seed0", runs / "seed0"], task)
    with pytest.raises(CheckpointError, match="no checkpoint matches"):
        lf.connect([f"{runs}/none*"], task)
    with pytest.raises(ConfigError, match="no checkpoint is called 'seed9'"):
        lf.connect([f"{runs}/seed*"], task, pairs=[("seed0", "seed9")])
    with pytest.raises(ConfigError, match="two data sets are called"):
        lf.connect([f"{runs}/seed*"], task, also=[task])
    with pytest.raises(ConfigError, match="there is no endpoint metric"):
        lf.connect([f"{runs}/seed*"], task, points=2, ood=("dev:validation/acuracy",))


def test_pairs_say_how_alike_their_ends_answer(connection, study_parts):
    """The endpoints alone, of every pair, as two evaluations compared."""
    for name, data in zip(connection.data, tasks(study_parts), strict=True):
        a, b = (lf.evaluate(study_parts / "runs" / f"seed{i}", data) for i in (1, 3))
        found = lf.similarity(a, b)
        row = connection.pairs.query("data == @name and a == 'seed1' and b == 'seed3'").iloc[0]
        for measure in ("functional_similarity", "error_agreement", "js_distance"):
            value = getattr(found, measure)
            assert row[measure] == pytest.approx(value, rel=1e-5)
            matrix = connection.matrix(measure, name)
            assert matrix.loc["seed3", "seed1"] == pytest.approx(value, rel=1e-5)
            assert (np.diag(matrix) == (0 if measure == "js_distance" else 1)).all()


def test_regression_has_no_classes_to_agree_on(tmp_path, save_checkpoint, write_rows):
    for i in range(2):
        save_checkpoint(tmp_path / f"s{i}", kind="regression", seed=i, num_labels=1)
    rows = write_rows(tmp_path / "dev.tsv", 12).read_text().splitlines()
    text = [rows[0], *(f"{row}.{i}" for i, row in enumerate(rows[1:]))]
    (tmp_path / "dev.tsv").write_text("\n".join(text) + "\n")
    task = lf.load_task(str(tmp_path / "dev.tsv"), text="sentence", label="label")
    two = lf.connect([f"{tmp_path}/s*"], task, points=3)
    assert two.pairs[["error_agreement", "js_distance"]].isna().all(axis=None)


def test_triples_are_those_of_the_gaps(connection, study_parts):
    found = connection.transitivity
    expected = lf.transitivity(connection.gaps, noise_floor=connection.matrix("noise_floor"))
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert found.triples == 4 and found.clear == expected.clear and found.compat is None
    assert connection.to_json()["transitivity"]["triples"] == 4
    task, _ = tasks(study_parts)
    old = lf.connect([f"{study_parts}/runs/seed*"], task, points=3, compat="connectivity")
    assert old.transitivity.compat["triples"] == 4**3
    some = lf.connect([f"{study_parts}/runs/*"], task, points=3, pairs=[("seed0", "seed1")])
    assert some.transitivity is None and some.to_json()["transitivity"] is None


def test_two_checkpoints(study_parts):
    """The least there is to connect: one line, one basin or two, and no triple."""
    task, ood = tasks(study_parts)
    runs = [study_parts / "runs" / f"seed{i}" for i in (0, 1)]
    two = lf.connect(runs, task, points=4, also=[ood])
    assert two.evaluations == 2 + 2 and len(two.basins) == 2
    assert two.transitivity.triples == 0 and "no triple" in two.transitivity.reading
    alone = lf.connect(runs, task, points=4, also=[ood], basins=2)
    assert sorted(alone.basins) == [0, 1] and "a basin of its own" in alone.reading
    assert json.dumps(alone.to_json(), default=str)
    with pytest.raises(ConfigError, match="at least three checkpoints in two, got 2"):
        lf.connect(runs, task, points=4, compat="connectivity")


def test_a_basin_of_one(study_parts):
    """As in the published CoLA study, 1 against 47: every number exists, or is NaN."""
    task, ood = tasks(study_parts)
    forced = lf.connect(
        [f"{study_parts}/runs/seed*"], task, points=4, also=[ood], basins=3, affinity_scale=0.05
    )
    assert 1 in forced.basins.value_counts().tolist()
    alone = forced.basins.index[forced.basins == 2]
    table = forced.basin_metrics
    assert table[table.basin == 2].sd.isna().all() and len(alone) == 1
    assert forced.statistics.auc.between(0, 1).all()
    assert json.dumps(forced.to_json(), default=str)


# --- killed and resumed ------------------------------------------------------------------------

SCRIPT = """
import sys, time
import landform as lf
from landform.evaluation import points
root, store, log, slow = sys.argv[1:5]
original = points.PointsWorker.run
def run(self, job):
    with open(log, "a") as file:
        file.write(job.key + "\\n")
    time.sleep(float(slow))
    return original(self, job)
points.PointsWorker.run = run
task = lf.load_task(root + "/dev.tsv", text="sentence", label="label")
lf.connect([root + "/runs/seed*"], task, points=4, store=store)
"""


def _files(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != "study.json"
    }


def test_killed_study_resumes_to_the_identical_result(zygote, study_parts, tmp_path):
    def start(store, log, slow):
        return zygote.start([study_parts, store, log, slow], tmp_path, script=SCRIPT)

    whole = tmp_path / "whole"
    assert start(whole, tmp_path / "whole.log", 0).wait().status == 0
    killed, log = tmp_path / "killed", tmp_path / "killed.log"
    for jobs in (2, 5, 8):
        process = start(killed, log, 0.1)
        deadline = time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < jobs:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send(signal.SIGKILL)
        assert process.wait().status == -signal.SIGKILL
        keys = [line for line in log.read_text().splitlines()]
        store = Store.open(killed)
        finished = [key for key in dict.fromkeys(keys) if key in store]
        for key in finished:
            store.read(key)  # whole: sizes and hashes are verified
        assert not (killed / "results" / "connect").exists()
    assert start(killed, log, 0).wait().status == 0
    ran = log.read_text().splitlines()
    # 4 points and 6 lines; only what was in flight at one of the three kills ran again.
    assert len(set(ran)) == 10 and len(ran) <= 13
    assert _files(killed) == _files(whole)


def test_other_processes_give_the_same_study(study_parts, tmp_path, pickled_engine):
    task, ood = tasks(study_parts)
    options = {"points": 4, "also": [ood]}
    here = lf.connect([f"{study_parts}/runs/seed*"], task, store=tmp_path / "here", **options)
    there = lf.connect(
        [f"{study_parts}/runs/seed*"],
        task,
        store=tmp_path / "there",
        engine="ray",
        workers=2,
        **options,
    )
    assert pickled_engine
    for name in ("curves", "pairs", "endpoints"):
        pd.testing.assert_frame_equal(getattr(here, name), getattr(there, name))
    assert there.evaluations == here.evaluations
    assert len(list((tmp_path / "there" / "artifacts" / "mix").iterdir())) == 4 + 6


def test_a_study_can_connect_more_than_once(study_parts, tmp_path):
    task, ood = tasks(study_parts)
    runs = [f"{study_parts}/runs/seed*"]
    lf.connect(runs, task, points=3, store=tmp_path / "s")
    lf.connect(runs, ood, points=3, store=tmp_path / "s", keep_as="connect-ood")
    found = load_results(Store.open(tmp_path / "s"))
    assert {name: found[name].data for name in found} == {
        "connect": ("dev:validation",),
        "connect-ood": ("ood:validation",),
    }


def test_planted_basins_are_found(tmp_path, tiny_model, word_tokenizer, write_rows):
    """Two unrelated models, each with a close neighbour: the gaps must reach the clustering."""
    import torch

    for seed in (0, 1):
        for copy in ("a", "b"):
            model = tiny_model(seed=seed, dtype=torch.float32)
            with torch.no_grad():
                torch.manual_seed(7)
                for parameter in model.parameters() if copy == "b" else ():
                    parameter.add_(1e-3 * torch.randn_like(parameter))
            model.save_pretrained(tmp_path / f"{seed}{copy}")
            word_tokenizer.save_pretrained(tmp_path / f"{seed}{copy}")
    # Enough rows for the ridge to stand above the noise: with 24 of them it would not.
    rows = write_rows(tmp_path / "many.tsv", 800)
    task = lf.load_task(str(rows), text="sentence", label="label")
    found = lf.connect([f"{tmp_path}/??"], task, points=11)
    assert found.names == ("0a", "0b", "1a", "1b")
    assert found.basins.tolist() == [0, 0, 1, 1], found.clustering.note
