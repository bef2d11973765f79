"""The rises of single examples against the curve they add up to."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import landform as lf
from landform.errors import ConfigError
from landform.evaluation.intervals import resample_counts
from landform.evaluation.points import PointsWorker
from landform.geometry import ridge as module
from landform.geometry.ridge import RidgeConfig
from landform.results import from_parts, to_parts


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("ridge")
    for i in (1, 2):
        save_checkpoint(root / f"s{i}", seed=i)
    write_rows(root / "dev.tsv", 60)
    write_rows(root / "ood.tsv", 30, seed=4)
    return root


def tasks(root):
    return [
        lf.load_task(str(root / f"{name}.tsv"), text="sentence", label="label")
        for name in ("dev", "ood")
    ]


@pytest.fixture(scope="module")
def found(place):
    dev, ood = tasks(place)
    options = {"points": 9, "also": [ood], "dtype": "float64", "store": place / "store"}
    line = lf.interpolate(place / "s1", place / "s2", dev, **options)
    return line, lf.ridge(place / "s1", place / "s2", dev, **options)


def test_the_mean_rise_is_the_convexity_gap(found):
    line, ridge = found
    assert ridge.mean == pytest.approx(line.convexity_gap) and ridge.mean > 0
    assert ridge.mean == pytest.approx(ridge.table.rise.mean())
    assert ridge.left < ridge.t < ridge.right
    curve = line.table[line.table.data == "dev:validation"]
    i, k, j = module.convexity_gap_location(curve.loss, t=curve.t)
    assert [ridge.left, ridge.t, ridge.right] == curve.t.iloc[[i, k, j]].tolist()


def test_every_row_is_its_own_line(found, place):
    """Each example's losses against evaluations at the three positions."""
    _, ridge = found
    dev, _ = tasks(place)
    table = ridge.table.set_index("id").sort_index()
    for column, t in (("loss_a", ridge.left), ("loss", ridge.t), ("loss_b", ridge.right)):
        step = lf.interpolate(
            place / "s1", place / "s2", dev, positions=(0.0, t, 1.0), dtype="float64"
        )
        assert table[column].mean() == pytest.approx(step.table.loss.iloc[1], rel=1e-9)
    share = (ridge.t - ridge.left) / (ridge.right - ridge.left)
    chord = (1 - share) * table.loss_a + share * table.loss_b
    np.testing.assert_allclose(table.chord, chord)
    np.testing.assert_allclose(table.rise, table.loss - chord)
    assert ridge.table["rank"].tolist() == list(range(1, 61))
    assert ridge.table.rise.is_monotonic_decreasing
    assert set(ridge.table.prediction) <= {"0", "1"} and "text" in ridge.table
    assert ridge.rising == pytest.approx((table.rise > 0).mean())
    assert ridge.low <= ridge.rising <= ridge.high


def test_shares_of_the_rise_against_a_loop(found):
    _, ridge = found
    rises = ridge.table.rise.to_numpy()
    counts = resample_counts(60, 1000, 0)
    order = np.argsort([int(i.split("-")[1]) for i in ridge.table.id])
    drawn = []
    for c in counts:
        sample = np.sort(np.repeat(np.maximum(rises[order], 0), c.astype(int)))[::-1]
        drawn.append(sample[:3].sum() / sample.sum())
    row = ridge.shares.iloc[1]
    assert row.examples == 3 and row.top == 0.05
    assert row.share_of_rise == pytest.approx(rises[:3].sum() / rises[rises > 0].sum())
    assert row.share_of_mean == pytest.approx(rises[:3].sum() / rises.sum())
    assert [row.low, row.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_what_interpolate_kept_is_reused(found, place, monkeypatch):
    monkeypatch.setattr(PointsWorker, "run", lambda self, job: pytest.fail("evaluated again"))
    dev, ood = tasks(place)
    options = {"points": 9, "also": [ood], "dtype": "float64", "store": place / "store"}
    again = lf.ridge(place / "s1", place / "s2", dev, **options)
    pd.testing.assert_frame_equal(again.table, found[1].table)
    other = lf.ridge(place / "s1", place / "s2", dev, of="ood", **options)
    assert other.data == "ood:validation" and len(other.table) == 30
    assert other.t == found[1].t, "the ridge is that of the first data set"
    with pytest.raises(ConfigError, match="no data set is called 'odd'"):
        lf.ridge(place / "s1", place / "s2", dev, of="odd", **options)


def test_survives_the_store_and_json(found):
    _, ridge = found
    tables, record = to_parts(ridge)
    again = from_parts(tables, json.loads(json.dumps(record)))
    pd.testing.assert_frame_equal(again.table, ridge.table)
    assert again.reading == ridge.reading and "cross-fitted" in ridge.reading
    assert json.dumps(ridge.to_json(), default=str)


def test_barrier_and_bad_options(place):
    dev, _ = tasks(place)
    line = lf.interpolate(place / "s1", place / "s2", dev, points=7)
    ridge = lf.ridge(place / "s1", place / "s2", dev, points=7, at="barrier")
    assert (ridge.left, ridge.right) == (0, 1)
    assert max(ridge.mean, 0) == pytest.approx(line.barrier_height, abs=1e-7)
    with pytest.raises(ConfigError, match="same weights"):
        lf.ridge(place / "s1", place / "s1", dev, points=4)
    with pytest.raises(ConfigError, match="two points"):
        lf.ridge(place / "s1", place / "s2", dev, points=2)
    with pytest.raises(ConfigError, match="splits"):
        lf.ridge(place / "s1", place / "s2", dev, splits=0)


# --- the control ---------------------------------------------------------------------------------


def noisy_lines(seed, ridge=0.0, examples=120, points=11):
    """Losses (points, examples) along a straight mean, each example with wiggles of its own."""
    random = np.random.default_rng(seed)
    t = np.linspace(0, 1, points)
    wiggles = random.normal(size=(examples, 4))
    waves = np.stack([np.sin((k + 1) * np.pi * t) for k in range(4)])
    return t, (wiggles @ waves).T + ridge * np.sin(np.pi * t)[:, None] + 5


def test_cross_fitting_takes_the_bias_of_the_choice_away():
    """On lines without a ridge the chosen place rises by chance; at ridges that other examples
    chose, the rise is 0 on average. A true ridge is still found."""
    config = RidgeConfig(splits=10, replicates=20)
    plain, crossed, true = [], [], []
    for seed in range(60):
        t, losses = noisy_lines(seed)
        ones = np.ones(losses.shape[1])
        place = module._place(t, losses, ones, "gap")
        plain.append(module._rises(t, losses, place).mean())
        crossed.append(module._cross_fitted(t, losses, ones, losses, config, True).mean())
        t, losses = noisy_lines(seed, ridge=2.0)
        true.append(module._cross_fitted(t, losses, ones, losses, config, True).mean())
    error = np.std(crossed) / np.sqrt(60)
    assert np.mean(plain) > 10 * error, "the plain rise is far above nothing"
    assert abs(np.mean(crossed)) < 3 * error
    assert np.mean(true) == pytest.approx(2.0, rel=0.05)


def test_halves_of_a_cross_fit_do_not_touch():
    """An example's cross-fitted rise must not change with its own loss: it never chooses its
    own place."""
    t, losses = noisy_lines(3)
    config = RidgeConfig(splits=1)
    ones = np.ones(losses.shape[1])
    before = module._cross_fitted(t, losses, ones, losses, config, True)
    changed = losses.copy()
    changed[:, 7] += 1000 * np.sin(np.pi * t * 3)
    after = module._cross_fitted(t, changed, ones, changed, config, True)
    half = module._half(np.random.default_rng(config.seed), losses.shape[1])
    same_half = (half == half[7]) & (np.arange(len(ones)) != 7)
    np.testing.assert_array_equal(after[same_half], before[same_half])
    assert not np.allclose(after[half != half[7]], before[half != half[7]])


def test_weights_are_in_the_mean():
    t, losses = noisy_lines(0)
    weights = np.random.default_rng(1).integers(1, 9, losses.shape[1]).astype(float)
    place = module._place(t, losses, weights, "gap")
    curve = losses @ weights / weights.sum()
    rises = module._rises(t, losses, place)
    assert np.average(rises, weights=weights) == pytest.approx(lf.convexity_gap(curve, t=t))
