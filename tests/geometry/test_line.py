from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError, SpaceMismatchError
from landform.evaluation.points import PointsWorker
from landform.geometry import line
from landform.geometry.line import InterpolateConfig, forecast_line, line_work
from landform.store.artifacts import MemoryStore, Store


@pytest.fixture
def task(tmp_path, write_rows):
    return lf.load_task(str(write_rows(tmp_path / "dev.tsv", 30)), text="sentence", label="label")


@pytest.fixture
def ends(tmp_path, save_checkpoint):
    return [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in (1, 2)]


def test_every_point_against_a_mixed_state_dict(ends, task, tiny_model, word_tokenizer):
    """The originals' way: mix two state dicts, load, evaluate one example at a time."""
    curve = lf.interpolate(*ends, task, points=5, dtype="float64")
    a, b = (tiny_model(seed=s, dtype=torch.float32).double().state_dict() for s in (1, 2))
    examples = task.examples("validation")
    assert curve.table.t.tolist() == [0, 0.25, 0.5, 0.75, 1]
    for t, loss, accuracy in curve.table[["t", "loss", "accuracy"]].to_numpy():
        model = tiny_model(seed=7)
        mixed = {k: (1 - t) * a[k] + t * b[k] if a[k].is_floating_point() else a[k] for k in a}
        model.load_state_dict(mixed)
        losses, right = [], []
        for (text,), label in zip(examples.texts, examples.labels, strict=True):
            with torch.no_grad():
                out = model(
                    **word_tokenizer(text, return_tensors="pt"), labels=torch.tensor([label])
                )
            losses.append(float(out.loss))
            right.append(int(out.logits.argmax()) == label)
        assert loss == pytest.approx(np.mean(losses), rel=1e-10)
        assert accuracy == pytest.approx(np.mean(right))


def test_summary_is_the_curve_metrics_of_the_table(ends, task):
    curve = lf.interpolate(*ends, task, points=7)
    losses = curve.table.loss.to_numpy()
    assert curve.barrier_height == pytest.approx(lf.barrier_height(losses))
    assert curve.convexity_gap == pytest.approx(lf.convexity_gap(losses))
    assert curve.distance == pytest.approx(lf.distance(*map(str, ends)).l2)
    assert curve.summary.area_under_curve[0] == pytest.approx(
        lf.area_under_curve(losses, distance=curve.distance)
    )
    assert (curve.table.loss_low <= curve.table.loss).all()
    assert (curve.table.loss <= curve.table.loss_high).all()
    assert "convexity gap" in curve.reading


def test_reversed_line_is_the_same_curve_backwards(ends, task):
    there = lf.interpolate(*ends, task, points=6, dtype="float64")
    back = lf.interpolate(*reversed(ends), task, points=6, dtype="float64")
    np.testing.assert_allclose(there.table.loss, back.table.loss[::-1], rtol=1e-12)
    assert there.convexity_gap == pytest.approx(back.convexity_gap)


def test_a_model_with_itself(ends, task):
    curve = lf.interpolate(ends[0], ends[0], task, points=4)
    assert curve.distance == 0 and curve.convexity_gap == pytest.approx(0, abs=1e-7)
    assert curve.table.loss.nunique() == 1
    assert "the same weights at both ends" in curve.reading
    assert "linearly connected" not in curve.reading


def test_two_points_are_the_ends(ends, task):
    curve = lf.interpolate(*ends, task, points=2)
    expected = [lf.evaluate(path, task).metrics["loss"] for path in ends]
    assert curve.table.loss.tolist() == pytest.approx(expected, rel=1e-12)
    assert curve.barrier_height == curve.convexity_gap == 0


def test_several_data_sets_on_the_same_mixes(tmp_path, ends, task, write_rows):
    other = lf.load_task(
        str(write_rows(tmp_path / "ood.tsv", 20, seed=3)),
        text="sentence",
        label="label",
        name="ood",
    )
    both = lf.interpolate(*ends, task, also=[other], points=4)
    alone = lf.interpolate(*ends, other, points=4)
    part = both.table[both.table.data == "ood:validation"]
    np.testing.assert_allclose(part.loss, alone.table.loss)
    assert both.summary.data.tolist() == ["dev:validation", "ood:validation"]


def test_other_heads_and_bad_options(tmp_path, ends, task, save_checkpoint):
    three = save_checkpoint(tmp_path / "three", num_labels=3)
    with pytest.raises(SpaceMismatchError, match=r"has 2 labels, that of .* 3"):
        lf.interpolate(ends[0], three, task)
    with pytest.raises(ConfigError, match="points"):
        lf.interpolate(*ends, task, points=1)
    with pytest.raises(ConfigError, match="is not a task"):
        lf.interpolate(*ends, "dev.tsv")


def test_two_data_sets_of_one_name_are_refused(ends, task):
    """Their rows once went under one name, and points better than both ends were counted twice."""
    with pytest.raises(ConfigError, match=r"two data sets are called .*:validation"):
        lf.interpolate(*ends, task, also=[task], points=3)
    with pytest.raises(ConfigError, match="two data sets are called"):
        lf.walk(ends, task, also=[task], points=3)
    lf.interpolate(*ends, task, also=[replace(task, name="again")], points=3)


def test_positions_of_ones_own(ends, task):
    ts = (0.0, 0.05, 0.1, 0.6, 1.0)
    curve = lf.interpolate(*ends, task, positions=ts, dtype="float64")
    fine = lf.interpolate(*ends, task, points=21, dtype="float64").table.set_index("t").loss
    assert curve.table.t.tolist() == list(ts)
    expected = [fine[fine.index[round(20 * t)]] for t in ts]
    np.testing.assert_allclose(curve.table.loss, expected, rtol=1e-9)
    # Chords are drawn at the true positions: t = 0.6 lies four ninths of the way from 0.1 to 1.
    assert curve.convexity_gap == pytest.approx(lf.convexity_gap(expected, t=ts))
    assert curve.convexity_gap != pytest.approx(lf.convexity_gap(expected), rel=1e-3)
    for bad in ((0.0, 0.5), (0.0, 0.7, 0.6, 1.0), (0.1, 1.0), (1.0,)):
        with pytest.raises(ConfigError, match="positions must rise from 0 to 1"):
            lf.interpolate(*ends, task, positions=bad)


# --- points added around a ridge ------------------------------------------------------------------


def refine(curve, points, added):
    """The rounds of `walk_line` on a function of t in place of a model; the gaps on the way."""
    ts = list(np.linspace(0, 1, points))
    gaps = [lf.convexity_gap(curve(np.array(ts)), t=ts)]
    while added > 0:
        new = line._beside_the_ridge(ts, curve(np.array(ts)))[:added]
        if not new:
            break
        added -= len(new)
        ts = sorted({*ts, *new})
        gaps.append(lf.convexity_gap(curve(np.array(ts)), t=ts))
    return ts, gaps


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.integers(3, 8), st.integers(0, 9))
def test_added_points_never_lower_the_gap(waves, points, added):
    def curve(t):
        return sum(w * np.cos((k + 1) * 3 * t + k) for k, w in enumerate(waves))

    ts, gaps = refine(curve, points, added)
    assert (np.diff(gaps) >= -1e-12).all()
    assert len(ts) <= points + added and min(np.diff(ts)) >= 0.9e-3


def test_added_points_find_the_top_of_a_narrow_ridge():
    def curve(t):
        return (t - 0.5) ** 2 + 0.3 * np.exp(-(((t - 0.37) / 0.03) ** 2))

    few = lf.convexity_gap(curve(np.linspace(0, 1, 11)))
    fine = lf.convexity_gap(curve(np.linspace(0, 1, 301)))
    ts, gaps = refine(curve, 11, 6)
    assert len(ts) == 17 and gaps[-1] > 0.95 * fine > 1.3 * few
    even = lf.convexity_gap(curve(np.linspace(0, 1, 17)))
    assert gaps[-1] > even, "as many evenly spaced points see less of it"


def test_no_points_are_added_to_a_convex_curve():
    assert refine(np.square, 6, 4)[0] == list(np.linspace(0, 1, 6))
    assert line._beside_the_ridge([0, 1], [1.0, 2.0]) == ()


def test_adaptive_line_is_the_line_at_its_positions(ends, task, tmp_path):
    plain = lf.interpolate(*ends, task, points=5, dtype="float64")
    fine = lf.interpolate(*ends, task, points=5, adaptive=3, dtype="float64", store=tmp_path / "s")
    assert plain.convexity_gap > 0 and len(fine.added) == 3 and not plain.added
    ts = fine.table.t.tolist()
    assert ts == sorted({*plain.table.t, *fine.added}) and len(ts) == 8
    assert fine.convexity_gap >= plain.convexity_gap
    given = lf.interpolate(*ends, task, positions=tuple(ts), dtype="float64")
    pd.testing.assert_frame_equal(fine.table, given.table)
    pd.testing.assert_frame_equal(fine.summary, given.summary)


def test_adaptive_line_goes_on_where_it_stopped(ends, task, tmp_path, monkeypatch):
    options = {"points": 5, "adaptive": 5}
    whole = lf.interpolate(*ends, task, store=tmp_path / "whole", **options)
    ran, original = [], PointsWorker.run

    def run(self, job):
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(job.key)
        return original(self, job)

    monkeypatch.setattr(PointsWorker, "run", run)
    with pytest.raises(KeyboardInterrupt):
        lf.interpolate(*ends, task, store=tmp_path / "part", **options)
    monkeypatch.setattr(PointsWorker, "run", original)
    config = InterpolateConfig(**options)
    work = line_work(*ends, task, "validation", (), config)
    kept = Store.open(tmp_path / "part")
    assert forecast_line(work, config, kept).evaluations == 3
    again = lf.interpolate(*ends, task, store=tmp_path / "part", **options)
    pd.testing.assert_frame_equal(again.table, whole.table)
    assert again.added == whole.added
    assert forecast_line(work, config, kept).evaluations == 0
    assert forecast_line(work, config, MemoryStore()).evaluations == 5 + 5
