"""Basins over training: labels aligned, agreement against scikit-learn, a study of steps."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

import landform as lf
from landform.errors import CheckpointError, ConfigError
from landform.results import from_parts, to_parts
from landform.store.artifacts import MemoryStore, Store
from landform.store.study import load_results
from landform.studies.dynamics import (
    DynamicsConfig,
    DynamicsStudy,
    adjusted_rand_index,
    align_labels,
    assemble,
)

labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=12)


@given(labels)
def test_adjusted_rand_index_is_that_of_scikit_learn(pairs):
    a, b = np.array(pairs).T
    assert adjusted_rand_index(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    many = adjusted_rand_index(a, np.stack([b, a, b[::-1]]))
    expected = [adjusted_rand_score(a, x) for x in (b, a, b[::-1])]
    assert many.tolist() == pytest.approx(expected, abs=1e-12)


@given(labels)
def test_alignment_is_the_best_renaming(pairs):
    """Against all ways to give the groups of the second the names of the first."""
    before, now = np.array(pairs).T
    found = align_labels(before, now)
    assert len(set(zip(now.tolist(), found.tolist(), strict=True))) == len(set(now)), "one to one"
    assert len(set(found)) == len(set(now))
    groups = sorted(set(now))
    names = [*sorted(set(before)), *range(100, 100 + len(groups))]
    best = max(
        sum(dict(zip(groups, way, strict=True))[y] == x for x, y in pairs)
        for way in permutations(names, len(groups))
    )
    assert (found == before).sum() == best


def test_new_basins_get_new_numbers():
    assert align_labels([0, 0, 0, 1, 1], [1, 1, 1, 0, 0]).tolist() == [0, 0, 0, 1, 1]
    assert align_labels([0, 0, 0, 0, 0], [0, 0, 0, 1, 1]).tolist() == [0, 0, 0, 1, 1]
    assert align_labels([0, 0, 1, 1], [0, 1, 2, 2], fresh=7).tolist()[2:] == [1, 1]
    assert sorted(align_labels([0, 0, 1, 1], [0, 1, 2, 2], fresh=7)) == [0, 1, 1, 7]
    with pytest.raises(ConfigError, match="expected one"):
        align_labels([0, 1], [0])


# --- from connections ----------------------------------------------------------------------------


def connection(gaps, performance):
    """A Connection of given gaps, as `connect` would make it."""
    from landform.geometry.basins import cluster

    n = len(gaps)
    names = tuple(f"s{i}" for i in range(n))
    rows = [
        {
            "data": "d",
            "a": names[i],
            "b": names[j],
            "convexity_gap": gaps[i, j],
            "noise_floor": 0.02,
        }
        for i in range(n)
        for j in range(i + 1, n)
    ]
    return lf.Connection(
        names=names,
        data=("d",),
        kind="classification",
        curves=pd.DataFrame(),
        pairs=pd.DataFrame(rows).assign(noise_floor=0.02),
        clustering=cluster(pd.DataFrame(gaps, names, names), noise_floor=0.02),
        endpoints=pd.DataFrame({"d/accuracy": performance}, index=list(names)),
        statistics=None,
        basin_metrics=None,
        evaluations=10,
        provenance={},
    )


def grouped(groups):
    groups = np.array(groups)
    random = np.random.default_rng(0)
    gaps = np.where(groups[:, None] == groups, 0.005, 0.4) * random.uniform(
        0.9, 1.1, (len(groups),) * 2
    )
    gaps = np.triu(gaps, 1)
    return gaps + gaps.T


def test_labels_keep_their_meaning_over_time():
    """One basin; it splits in two; one run goes over, which makes the second the larger one."""
    history = {
        100: [0, 0, 0, 0, 0, 0, 0],
        200: [0, 0, 0, 0, 1, 1, 1],
        300: [0, 0, 0, 1, 1, 1, 1],
    }
    accuracy = np.linspace(0.5, 0.9, 7)
    found = {step: connection(grouped(g), accuracy + step / 1e4) for step, g in history.items()}
    assert found[300].basins.tolist() == [1, 1, 1, 0, 0, 0, 0], "numbered by size at each step"
    result = assemble(found, "d/accuracy", DynamicsConfig(steps=(100, 200, 300)))
    assert result.basins.T.to_numpy().tolist() == list(history.values())
    assert list(result.basins.columns) == [100, 200, 300] and result.basins.index.name == "name"
    table = result.positions.set_index(["step", "name"])
    assert not table.switched[100].any() and (table.x[100] == 0).all()
    assert table.switched[200].tolist() == [False] * 4 + [True] * 3
    assert table.switched[300].tolist() == [i == 3 for i in range(7)]
    assert result.switchers == ("s3", "s4", "s5", "s6")
    for step in (200, 300):
        # Positive is nearer to basin 0 at every step, whichever basin is the larger one.
        assert ((table.x[step] > 0) == (table.basin[step] == 0)).all()
    assert table.performance[300].tolist() == pytest.approx(accuracy + 0.03)
    rows = result.agreement.set_index(["step_a", "step_b"])
    assert rows.adjusted_rand[200, 300] == pytest.approx(
        adjusted_rand_score(history[200], history[300])
    )
    assert rows.switched[200, 300] == 1 and rows.switched[100, 300] == 4
    # By enumeration of all orders.
    every = adjusted_rand_index(history[200], np.array(list(permutations(history[300]))))
    expected = np.mean(every >= rows.adjusted_rand[200, 300] - 1e-9)
    assert rows.p_value[200, 300] == pytest.approx(expected, abs=0.04)
    assert rows.p_value[100, 200] == 1.0, "one basin agrees with anything as well"
    assert result.summary.n_basins.tolist() == [1, 2, 2] and result.evaluations == 30
    assert np.isnan(result.summary.pearson_r[0]) and result.summary.pearson_r[1] < -0.8
    assert "1 at step 100, 2 at step 200" in result.reading
    assert json.dumps(result.to_json(), default=str)


def test_basin_0_stays_on_its_side_when_its_counterpart_is_gone():
    """The second step has basin 0 and a new one: x is positive near basin 0 all the same."""
    history = {10: [0, 0, 0, 0, 0, 1], 20: [0, 0, 0, 0, 1, 0], 30: [1, 1, 0, 0, 0, 0]}
    found = {step: connection(grouped(g), np.arange(6.0)) for step, g in history.items()}
    result = assemble(found, "d/accuracy", DynamicsConfig(steps=tuple(history)))
    assert result.basins[20].tolist() == [0, 0, 0, 0, 2, 0]
    for _, rows in result.positions.groupby("step"):
        assert ((rows.x > 0) == (rows.basin == 0)).all()


# --- a study -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("dynamics")
    for i in range(3):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i)
        for step in (10, 20):
            save_checkpoint(root / "runs" / f"seed{i}" / f"checkpoint-{step}", seed=10 * i + step)
    write_rows(root / "dev.tsv", 30)
    write_rows(root / "ood.tsv", 20, seed=2)
    return root


def tasks(root):
    return [
        lf.load_task(str(root / f"{name}.tsv"), text="sentence", label="label")
        for name in ("dev", "ood")
    ]


OPTIONS = {"points": 3, "replicates": 50}


def test_every_step_is_a_connection_of_its_own(place, tmp_path):
    dev, ood = tasks(place)
    runs = f"{place}/runs/seed*"
    store = tmp_path / "s"
    found = lf.dynamics([runs], dev, steps=(20, 10), also=[ood], basins=2, store=store, **OPTIONS)
    assert found.steps == (10, 20) and found.names == ("seed0", "seed1", "seed2")
    assert found.metric == "ood:validation/accuracy" and found.evaluations == 2 * (3 + 3)
    kept = load_results(Store.open(store))
    assert set(kept) == {"dynamics", "dynamics-10", "dynamics-20"}
    for step in (10, 20):
        single = lf.connect([f"{runs}@{step}"], dev, also=[ood], basins=2, **OPTIONS)
        own = kept[f"dynamics-{step}"]
        assert own.names == found.names
        np.testing.assert_allclose(own.gaps, single.gaps, atol=1e-7)
        rows = found.positions[found.positions.step == step].set_index("name")
        at_the_step = single.endpoints["ood:validation/accuracy"].to_numpy()
        np.testing.assert_allclose(rows.performance, at_the_step)
    pd.testing.assert_frame_equal(kept["dynamics"].basins, found.basins)
    pd.testing.assert_frame_equal(from_parts(*to_parts(found)).positions, found.positions)
    # Again, from what is kept; and as a mapping, with names of one's own.
    assert (
        DynamicsStudy.of([runs], dev, steps=(10, 20), also=[ood], basins=2, **OPTIONS)
        .forecast(Store.open(store))
        .evaluations
        == 0
    )
    mapped = lf.dynamics(
        {s: [f"{runs}@{s}"] for s in (10, 20)}, dev, also=[ood], basins=2, store=store,
        metric="dev:validation/loss", **OPTIONS,
    )  # fmt: skip
    pd.testing.assert_frame_equal(mapped.basins, found.basins)
    assert mapped.metric == "dev:validation/loss"


def test_names_are_those_of_the_runs(place):
    dev, _ = tasks(place)
    paths = {
        step: [place / "runs" / f"seed{i}" / f"checkpoint-{step}" for i in order]
        for step, order in ((10, (0, 1, 2)), (20, (2, 0, 1)))
    }
    study = DynamicsStudy.of(paths, dev, landmark_names=("seed2", "seed0"), **OPTIONS)
    assert study.studies[20].names == ("seed0", "seed1", "seed2")
    assert study.studies[20].landmarks == (2, 0)
    specs = [c.spec for c in study.studies[20].work.checkpoints]
    assert [s.split("/")[-2] for s in specs] == ["seed0", "seed1", "seed2"]
    assert study.forecast(MemoryStore()).evaluations > 0


def test_bad_steps(place):
    dev, _ = tasks(place)
    runs = [f"{place}/runs/seed*"]
    with pytest.raises(ConfigError, match="at least two steps, got 1"):
        lf.dynamics(runs, dev, steps=(10,))
    with pytest.raises(ConfigError, match="names a step twice"):
        lf.dynamics(runs, dev, steps=(10, 10))
    with pytest.raises(CheckpointError, match="has no step 30"):
        lf.dynamics(runs, dev, steps=(10, 30))
    with pytest.raises(ConfigError, match="is one step of a run"):
        lf.dynamics([f"{runs[0]}@10"], dev, steps=(10, 20))
    with pytest.raises(ConfigError, match="given for each step already"):
        lf.dynamics({10: runs, 20: runs}, dev, steps=(10,))
    with pytest.raises(ConfigError, match="not of the same runs: seed2"):
        lf.dynamics({10: [f"{runs[0]}@10"], 20: [f"{place}/runs/seed[01]@20"]}, dev)
    with pytest.raises(ConfigError, match="no endpoint metric 'dev:validation/acuracy'"):
        lf.dynamics(runs, dev, steps=(10, 20), metric="dev:validation/acuracy")


def test_as_a_command_and_as_a_step(place, tmp_path, monkeypatch, capsys):
    from landform.cli.app import run

    monkeypatch.chdir(place)
    words = ["dynamics", "runs/seed*", "--steps", "10", "20", "--task", "dev.tsv", "--text"]
    words += ["sentence", "--label", "label", "--points", "3", "--replicates", "50", "--quiet"]
    assert run([*words, "--dry-run"]) == 0
    assert "evaluations" in capsys.readouterr().out
    assert run([*words, "--store", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "step 10" in out and "adjusted_rand" in out and "3 runs, basins" in out
    (place / "study.yaml").write_text(
        f"study: {tmp_path / 's'}\n"
        "tasks: {dev: {files: {validation: dev.tsv}, text: sentence, label: label}}\n"
        "steps:\n"
        "  - dynamics: {checkpoints: 'runs/seed*', steps: [10, 20], task: dev, points: 3,\n"
        "               replicates: 50}\n"
        "  - ridge: {a: runs/seed0, b: runs/seed1, task: dev, points: 4, replicates: 50}\n"
    )
    assert run(["run", "study.yaml"]) == 0
    assert "mean rise" in (said := capsys.readouterr().out) or "no ridge" in said
    assert {"dynamics", "dynamics-10"} <= set(load_results(Store.open(tmp_path / "s")))
