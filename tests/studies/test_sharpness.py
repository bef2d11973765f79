"""Sharpness of several checkpoints by several methods, beside what they do elsewhere."""

import numpy as np
import pytest
from scipy import stats

import landform as lf
from landform.errors import ConfigError
from landform.geometry.sharpness import Sharpness, SharpnessComparison
from landform.results import from_parts, to_parts
from landform.store.artifacts import MemoryStore, Store
from landform.store.study import load_results
from landform.studies.sharpness import SharpnessStudy, compare_sharpness
from landform.studies.study_file import StudyFile, run_study

QUICK = {"steps": 2, "replicates": 40, "dtype": "float64"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("sharp")
    for i in range(4):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i)
    write_rows(root / "dev.tsv", 16)
    write_rows(root / "ood.tsv", 12, seed=2)
    return root


@pytest.fixture(scope="module")
def tasks(place):
    return [
        lf.load_task(str(place / f"{name}.tsv"), text="sentence", label="label", name=name)
        for name in ("dev", "ood")
    ]


@pytest.fixture(scope="module")
def compared(place, tasks, tmp_path_factory):
    store = Store.open(tmp_path_factory.mktemp("study") / "s")
    found = compare_sharpness(
        [place / "runs" / "seed*"], tasks[0], also=[tasks[1]], store=store,
        method=("box", "sam", "average"), draws=2, **QUICK,
    )  # fmt: skip
    return found, store


def test_every_case_is_what_it_is_alone(place, tasks, compared):
    found, _ = compared
    assert found.data == ("dev:validation", "ood:validation")
    assert found.table["checkpoint"].tolist() == [f"seed{i}" for i in range(4) for _ in range(3)]
    for method in ("box", "sam", "average"):
        alone = lf.sharpness(place / "runs" / "seed2", tasks[0], method=method, draws=2, **QUICK)
        (row,) = found.table.query("checkpoint == 'seed2' and method == @method").itertuples()
        assert row.value == pytest.approx(alone.value, rel=1e-9)
        assert (row.value_low, row.value_high) == pytest.approx(
            (alone.value_low, alone.value_high), rel=1e-9
        )
        assert row.epsilon == alone.epsilon and row.maximum == pytest.approx(alone.maximum)


def test_the_endpoints_are_those_of_connect(place, tasks, compared):
    found, _ = compared
    connection = lf.connect(
        [place / "runs" / "seed*"], tasks[0], also=[tasks[1]], points=2, dtype="float64",
        replicates=40, store=MemoryStore(),
    )  # fmt: skip
    part = found.table[found.table["method"] == "box"].set_index("checkpoint")
    for column in connection.endpoints:
        np.testing.assert_allclose(part[column], connection.endpoints[column], rtol=1e-12)


def test_correlations_and_the_confound_beside_them(compared):
    found, _ = compared
    rows = found.correlations
    assert rows.groupby("method").size().to_dict() == {"box": 2, "sam": 2, "average": 2}
    assert rows[rows["in_domain"]]["metric"].unique().tolist() == ["dev:validation/accuracy"]
    for row in rows.itertuples():
        part = found.table[found.table["method"] == row.method]
        if np.isnan(row.spearman):
            continue
        rho = stats.spearmanr(part["value"], part[row.metric]).statistic
        assert row.spearman == pytest.approx(rho) and row.n == 4
        assert np.isnan(row.p_holm) == row.in_domain
    assert "Spearman" in found.reading and "ood:validation/accuracy" in found.reading


def test_it_is_kept_and_read_again(compared):
    found, store = compared
    again = load_results(store)["sharpness"]
    assert isinstance(again, SharpnessComparison)
    assert again.table.equals(found.table) and again.reading == found.reading
    assert from_parts(*to_parts(found)).correlations.equals(found.correlations)
    assert found.climbs.columns.tolist() == ["checkpoint", "method", "restart", "step", "loss"]


def test_a_second_run_computes_nothing(place, tasks, compared, monkeypatch):
    _, store = compared

    def never(*arguments):
        raise AssertionError("a worker was opened")

    monkeypatch.setattr("landform.geometry.sharpness_jobs.SharpnessWork.__call__", never)
    monkeypatch.setattr("landform.evaluation.points.PointsWork.__call__", never)
    study = SharpnessStudy.of(
        [place / "runs" / "seed*"], tasks[0], also=[tasks[1]],
        method=("box", "sam", "average"), draws=2, **QUICK,
    )  # fmt: skip
    again = study.run(store)
    assert again.table.equals(compared[0].table)
    # A further model adds its own climbs only.
    fewer = SharpnessStudy.of([place / "runs" / "seed1"], tasks[0], method="box", **QUICK)
    assert not fewer.climbs.plan.missing(store)


def test_other_processes_give_the_same(place, tasks, tmp_path, pickled_engine):
    options = {"method": ("box", "average"), "draws": 2, **QUICK}
    checkpoint = [place / "runs" / "seed0"]
    here = compare_sharpness(checkpoint, tasks[0], store=tmp_path / "here", **options)
    there = compare_sharpness(
        checkpoint, tasks[0], store=tmp_path / "there", engine="ray", workers=2, **options
    )
    assert pickled_engine == [["mix", "climb", "region"], ["mix"] * 3]
    assert there.table.equals(here.table)


def test_one_case_is_a_sharpness(place, tasks):
    study = SharpnessStudy.of([place / "runs" / "seed0"], tasks[0], **QUICK)
    store = MemoryStore()
    found = study.run(store)
    assert isinstance(found, Sharpness)
    assert store.results() == ("sharpness-seed0-dev-validation-box",)
    study = SharpnessStudy.of(
        [place / "runs" / "seed0"], tasks[0], method=["box", "sam"], epsilon=[0.01], **QUICK
    )
    found = study.run(store)
    assert isinstance(found, SharpnessComparison) and not len(found.correlations)
    assert found.table["epsilon"].tolist() == [0.01, 0.01]
    assert "1 checkpoint on dev" in found.reading


def test_one_method_with_several_radii(place, tasks):
    study = SharpnessStudy.of(
        [place / "runs" / "seed0"], tasks[0], method=["box", "box"], epsilon=[0.001, 0.01], **QUICK
    )
    table = study.run(MemoryStore()).table
    assert table["method"].tolist() == ["box 0.001", "box 0.01"]
    assert table["value"].is_monotonic_increasing


def test_a_step_of_a_study_file(place, tmp_path):
    task = {"files": {"validation": "dev.tsv"}, "text": "sentence", "label": "label"}
    step = {"checkpoints": "runs/seed0", "task": "dev", "method": "sam", "epsilon": 0.05, **QUICK}
    file = StudyFile.of(
        {"study": str(tmp_path / "study"), "tasks": {"dev": task}, "steps": [{"sharpness": step}]},
        base=place,
        where="here",
    )
    said = []
    run_study(file, progress=False, say=said.append)
    assert any("sam sharpness" in line for line in said)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": ("box", "sam"), "epsilon": (1e-3, 1e-2, 0.1)}, "3 radii for 2 methods"),
        ({"method": ("box", "box")}, "twice"),
        ({"method": ()}, "at least one method"),
        ({"epsilon": (0.0,)}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"ood": ("ood:validation/acuracy",)}, "accuracy"),
        ({"engine": "ray", "workers": 0}, "workers"),
        ({"method": ("box", "adaptive"), "subspace": 3}, "coordinates"),
    ],
)
def test_bad_options(place, tasks, options, says):
    with pytest.raises(ConfigError, match=says):
        SharpnessStudy.of([place / "runs" / "seed*"], tasks[0], also=[tasks[1]], **options)


def test_two_data_sets_of_one_name(place, tasks):
    with pytest.raises(ConfigError, match="two data sets"):
        SharpnessStudy.of([place / "runs" / "seed0"], tasks[0], also=[tasks[0]])
