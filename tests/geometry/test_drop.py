"""How far a metric drops along a line, and the area above its chord."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError
from landform.evaluation.points import PointsConfig
from landform.geometry.curves import barrier_height
from landform.geometry.drop import DROP_FIELDS, chord_area, drop_numbers, metric_drop
from landform.tasks.metrics import Predictions
from landform.tasks.task import load_task

CURVES = st.lists(st.integers(-20, 20).map(lambda k: k / 7), min_size=2, max_size=8)


def test_by_hand():
    assert metric_drop([0.9, 0.5, 0.7, 0.8]) == pytest.approx(0.3)
    assert metric_drop([0.9, 0.95, 0.8]) == 0
    assert metric_drop([[0.9, 0.5, 0.8], [1, 1, 1]]).tolist() == pytest.approx([0.3, 0])
    # A tent of height 1 on a chord from 0 to 2, its top at a quarter of the line.
    assert chord_area([0, 1.5, 2], t=[0, 0.25, 1]) == pytest.approx(0.5)
    assert chord_area([3, 3, 3]) == 0 and chord_area([0, 1, 2]) == pytest.approx(0)
    assert chord_area([1, 0, 1]) == -0.5


@given(losses=CURVES, gaps=st.lists(st.integers(1, 5), min_size=7, max_size=7))
def test_against_a_fine_grid_and_the_barrier(losses, gaps):
    t = np.cumsum([0, *gaps])[: len(losses)].astype(float)
    fine = np.linspace(t[0], t[-1], 20001)
    share = (fine - t[0]) / (t[-1] - t[0])
    rise = np.interp(fine, t, losses) - (1 - share) * losses[0] - share * losses[-1]
    area = chord_area(losses, t=t)
    assert area == pytest.approx(rise.mean(), abs=1e-3)
    assert area <= barrier_height(losses, t=t) + 1e-9
    assert chord_area(losses[::-1], t=-t[::-1]) == pytest.approx(area, abs=1e-9)
    assert metric_drop(losses[::-1]) == metric_drop(losses) >= 0


def predictions(generator, accuracy, n=200):
    labels = np.arange(n) % 2
    right = generator.random(n) < accuracy
    logits = np.eye(2)[np.where(right, labels, 1 - labels)] * 3.0
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(n), labels]
    return Predictions(logits=logits, labels=labels, losses=losses, tokens=np.ones(n))


@pytest.fixture
def task(tmp_path, write_rows):
    return load_task(write_rows(tmp_path / "d.tsv", 8), text="sentence", label="label")


def test_the_interval_knows_chance_from_a_ridge(task):
    config, ts = PointsConfig(replicates=200), np.linspace(0, 1, 9)
    lows = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        flat = [predictions(generator, 0.8) for _ in ts]
        found = drop_numbers(task, flat, ts, config)
        assert tuple(found) == DROP_FIELDS and found["metric_drop"] >= 0
        lows.append(found["metric_drop_low"])
    # On a flat line the drop is chance; a lower end of 0 says so in 95 % of the cases or more.
    assert np.mean(np.array(lows) == 0) >= 0.9
    deep = [*flat[:4], predictions(generator, 0.5), *flat[5:]]
    found = drop_numbers(task, deep, ts, config)
    assert found["metric_drop_low"] > 0.05
    assert found["metric_drop_low"] <= found["metric_drop"] <= found["metric_drop_high"]
    assert found["chord_area_low"] < found["chord_area"] < found["chord_area_high"]


def test_of_a_loss_the_sign_is_turned(task):
    import dataclasses

    by_loss = dataclasses.replace(task, metrics=("loss",))
    generator = np.random.default_rng(1)
    points = [predictions(generator, share) for share in (0.9, 0.4, 0.8)]
    found = drop_numbers(by_loss, points, (0, 0.5, 1), PointsConfig(replicates=20))
    means = [p.losses.mean() for p in points]
    assert found["metric_drop"] == pytest.approx(means[1] - max(means[0], means[2]))


@pytest.mark.parametrize("rare", [0, 1])
def test_no_interval_where_the_metric_hardly_exists(tmp_path, rare):
    """A lower end of 0 once stood beside an upper end that did not exist, and beside a drop that
    did not: it read as "no more than chance"."""
    (tmp_path / "d.tsv").write_text("sentence\tlabel\n" + "a text\t0.5\n" * 30)
    task = load_task(tmp_path / "d.tsv", text="sentence", label="label", kind="regression")
    generator = np.random.default_rng(0)
    labels = generator.normal(size=30)

    def answers(middle):
        logits = middle[:, None]
        return Predictions(logits=logits, labels=labels, losses=middle**2, tokens=np.ones(30))

    # All answers alike but for `rare` of them, which two replicates in three have: no correlation
    # of constants.
    alike = np.zeros(30)
    alike[:rare] = 1.0
    fine = [answers(labels + generator.normal(size=30) / 5) for _ in range(2)]
    points = [fine[0], answers(alike), fine[1]]
    found = drop_numbers(task, points, (0, 0.5, 1), PointsConfig(replicates=200))
    ends = [found["metric_drop_low"], found["metric_drop_high"]]
    assert np.isfinite(ends).all() if rare else np.isnan([found["metric_drop"], *ends]).all()
    assert found["chord_area_low"] < found["chord_area"] < found["chord_area_high"]


def test_a_line_says_both(tmp_path, save_checkpoint, write_rows):
    task = load_task(write_rows(tmp_path / "d.tsv", 24), text="sentence", label="label")
    for i in range(2):
        save_checkpoint(tmp_path / f"m{i}", seed=i)
    line = lf.interpolate(tmp_path / "m0", tmp_path / "m1", task, points=5, replicates=50)
    row = line.summary.iloc[0]
    assert row.metric_drop == pytest.approx(metric_drop(line.table["accuracy"]))
    assert row.chord_area == pytest.approx(chord_area(line.table["loss"], t=line.table["t"]))
    assert row.metric_drop_low <= row.metric_drop <= row.metric_drop_high


def test_no_curves():
    with pytest.raises(ConfigError, match="needs 2 points"):
        metric_drop([1.0])
    with pytest.raises(ConfigError, match="rising positions"):
        chord_area([1, 2, 3], t=[0, 1, 1])
