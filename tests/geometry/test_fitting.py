"""Fitted curves: the gradient, the valley they find, and what is said along them."""

import dataclasses
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import landform as lf
from landform.errors import ConfigError, DataError, NonFiniteError, SpaceMismatchError, StoreError
from landform.evaluation.field import Field
from landform.evaluation.points import Data, PointsWork
from landform.geometry.curves import barrier_height
from landform.geometry.descent import Descent
from landform.geometry.fitting import (
    CurveConfig,
    CurveShape,
    FittedPath,
    PathEvaluation,
    curve_work,
    fit_curve,
    walk,
)
from landform.geometry.paths import curve_weights, squared_distances
from landform.results import from_parts, to_parts
from landform.store.artifacts import MemoryStore, Store
from landform.weights.checkpoint import resolve
from landform.weights.points import Vertex
from valley import ENDS, Valley, fitted, losses_along, shape_of


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_bezier_curve_finds_the_valley_that_the_line_misses(optimizer):
    rate = 0.003 if optimizer == "sgd" else 0.05
    config = CurveConfig(steps=600, learning_rate=rate, optimizer=optimizer, samples_per_step=4)
    descent = fitted(config)
    np.testing.assert_allclose(descent.free[0], [0, 2], atol=0.02)
    line = [5 * (1 - x * x) ** 2 for x in np.linspace(-1, 1, 21)]
    assert barrier_height(line) == pytest.approx(5)
    assert barrier_height(losses_along(descent, "bezier")) < 0.01


def test_a_polyline_with_bends_follows_it():
    config = CurveConfig(kind="polyline", bends=3, steps=600, learning_rate=0.03)
    descent = fitted(config)
    assert barrier_height(losses_along(descent, "polyline")) < 0.1
    x = descent.free[:, 0]
    assert (x.diff() > 0).all()


@pytest.mark.parametrize("kind", ["bezier", "polyline"])
@pytest.mark.parametrize("bends", [1, 2, 4])
def test_bends_start_on_the_chord_in_order(kind, bends):
    """The original put them there in reverse: with 2 bends the path was 1.67 chords long."""

    def length(config, reverse=False):
        shape = CurveShape(kind, bends, "chord", reverse)
        descent = Descent(Valley(), ENDS, shape, config)
        descent.begin(0)
        x = [-1.0, *descent.free[:, 0].tolist(), 1.0]
        return x, np.abs(np.diff(x)).sum() / 2

    x, walked = length(CurveConfig(kind=kind, bends=bends))
    np.testing.assert_allclose(x, np.linspace(-1, 1, bends + 2), atol=1e-15)
    assert walked == pytest.approx(1)
    _, original = length(CurveConfig(kind=kind, bends=bends), reverse=True)
    assert original == pytest.approx({1: 1, 2: 5 / 3, 4: 2.2}[bends])


def test_other_starts():
    guided = CurveShape("polyline", 3, "checkpoint", fixed=3)
    # a, b, and the third checkpoint: half way to it, at it, half way on.
    np.testing.assert_allclose(guided.start(0), [[0.5, 0, 0.5], [0, 0, 1], [0, 0.5, 0.5]])
    assert guided.order() == [0, 3, 4, 5, 1]
    assert guided.weights(0.5)[0].tolist() == [0, 0, 0, 0, 1, 0]
    np.testing.assert_allclose(CurveShape("bezier", 1, "midpoint").start(0), [[0.5, 0.5]])
    config = CurveConfig(bends=2, noise=0.25)
    descent = Descent(Valley(), ENDS, shape_of(config), config)
    descent.begin(0)
    away = descent.free - torch.tensor([[-1 / 3, 0], [1 / 3, 0]]).double()
    np.testing.assert_allclose(away.norm(dim=1), 0.25 * 2)
    assert not torch.allclose(away[0], away[1])


def test_schedule_and_batches():
    config = CurveConfig(steps=10, learning_rate=1.0, warmup_ratio=0.3, schedule="linear")
    rates = [config.rate(s) for s in range(10)]
    np.testing.assert_allclose(
        rates, [1 / 3, 2 / 3, 1, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    )
    descent = Descent(Valley(), ENDS, shape_of(config), CurveConfig(batch_size=4))
    drawn = np.concatenate([descent.rows(k) for k in range(10)])
    for epoch in range(4):  # shuffled passes, whatever the batch size
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:20].tolist()
    assert Descent(Valley(), ENDS, shape_of(config), CurveConfig(batch_size=99)).rows(1).size == 10


# --- models -------------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path, write_rows):
    files = {
        "train": str(write_rows(tmp_path / "train.tsv", 24)),
        "validation": str(write_rows(tmp_path / "dev.tsv", 15, seed=1)),
    }
    return lf.load_task(files, text="sentence", label="label", name="toy")


@pytest.fixture
def ends(tmp_path, save_checkpoint):
    return [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in (1, 2)]


QUICK = {"steps": 5, "batch_size": 8, "learning_rate": 1e-3, "dtype": "float64", "seed": 3}


def open_field(ends, task, **options):
    config = CurveConfig(**{**QUICK, **options})
    checkpoints = tuple(map(resolve, ends))
    worker = PointsWork(checkpoints, (Data(task, "train"),), config)()
    fixed = [worker.point(c.fingerprint) for c in checkpoints]
    return Field(worker), fixed, config


@pytest.mark.parametrize("kind", ["bezier", "polyline"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradient_of_the_bends_against_autograd_through_the_mixing(ends, task, kind, weight):
    options = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "warmup_ratio": 0.0}
    options |= {"schedule": "constant", "samples_per_step": 3, "accumulation": 2, "noise": 0.1}
    field, fixed, config = open_field(
        ends, task, kind=kind, bends=2, volume_weight=weight, **options
    )
    descent = Descent(field, fixed, shape_of(config), config)
    drawn = []
    draw = CurveShape.draw
    descent.shape = type("Spy", (CurveShape,), {})(kind, 2, "chord")
    type(descent.shape).draw = lambda self, random, stage: (
        drawn.append(draw(self, random, stage)) or drawn[-1]
    )
    descent.begin(0)
    bends = descent.free.clone().requires_grad_(True)
    descent.begin(0)
    row = descent.advance()
    assert len(drawn) == 6 and len({tuple(w) for w in drawn}) == 6
    points, loss = [*fixed, *bends], 0.0
    for k, weights in enumerate(drawn):
        mixed = sum(float(w) * p for w, p in zip(weights, points, strict=True))
        for i in descent.rows(k // 3):
            example = field.data.encoded.rows[i]
            inputs = {n: torch.tensor([v]) for n, v in example.items() if n != "labels"}
            logits = field.space.call(field.bound.model, mixed, **inputs).logits
            target = torch.tensor([example["labels"]])
            loss = loss + torch.nn.functional.cross_entropy(logits, target) / (6 * 8)
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-12)
    path = [fixed[0], *bends, fixed[1]]
    length = sum((x - y).norm() for x, y in pairwise(path))
    (expected,) = torch.autograd.grad(loss - weight * torch.log(length + 1e-4), bends)
    torch.testing.assert_close(bends.detach() - descent.free, expected, rtol=1e-7, atol=1e-10)
    if weight:
        assert row["volume"] == pytest.approx(length.item(), rel=1e-9)


def test_only_the_chosen_tensors_move(ends, task):
    field, fixed, config = open_field(ends, task, bends=2)
    chosen = field.space.subspace(("*layer.0*",))
    where = field.space.spans(chosen.names)
    assert sum(stop - start for start, stop in where) == chosen.numel < field.space.numel
    descent = Descent(field, fixed, shape_of(config), config, where)
    for _ in range(3):
        descent.advance()
    assert descent.free.shape == (2, chosen.numel)
    chord = [fixed[0] + (k / 3) * (fixed[1] - fixed[0]) for k in (1, 2)]
    for k in range(2):
        for name, found in field.space.unflatten(descent.whole(k)).items():
            start = field.space.unflatten(chord[k])[name]
            same = torch.allclose(found, start, rtol=1e-9, atol=1e-12)
            # Attention does not change with the bias of its keys: no gradient moves that.
            assert same == (name not in chosen.names or name.endswith("key.bias")), name
    # A point of the curve is the mixture of whole vertices.
    weights = descent.shape.weights(0.3)[0]
    descent.move(weights)
    whole = [*fixed, descent.whole(0), descent.whole(1)]
    expected = sum(w * v for w, v in zip(weights, whole, strict=True))
    torch.testing.assert_close(field.flat, expected, rtol=1e-9, atol=1e-12)
    path = fit_curve(*ends, task, parameters=("*layer.0*",), **QUICK)
    names = path.vertices[0].space.unflatten(path.vertices[0].values)
    torch.testing.assert_close(
        names["classifier.weight"],
        field.space.unflatten((fixed[0] + fixed[1]) / 2)["classifier.weight"],
    )


def test_a_stopped_fit_goes_on_to_the_same_bends(tmp_path, ends, task, monkeypatch):
    options = {**QUICK, "steps": 9, "dropout": True, "samples_per_step": 2, "optimizer": "adamw"}
    options |= {"save_every": 2, "bends": 2, "weight_decay": 0.1, "select_at": (0.25, 0.5)}
    whole = fit_curve(*ends, task, **options)
    advance, count = Descent.advance, [0]

    def stop(self):
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Descent, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_curve(*ends, task, store=tmp_path / "study", **options)
    kept = list((tmp_path / "study" / "artifacts" / "descent").iterdir())
    assert len(kept) == 1  # one state at a time
    count[0] = -100
    rest = fit_curve(*ends, task, store=tmp_path / "study", **options)
    assert count[0] == -100 + 5  # steps 5 to 9
    for one, other in zip(whole.vertices, rest.vertices, strict=True):
        assert torch.equal(one.values, other.values)
    assert rest.fit.history.equals(whole.fit.history)
    assert (rest.fit.chosen, rest.fit.length) == (whole.fit.chosen, whole.fit.length)
    # Once more: everything is there.
    count[0] = -100
    fit_curve(*ends, task, store=tmp_path / "study", **options)
    assert count[0] == -100


def test_dropout_only_when_asked_for_and_torchs_generator_left_alone(ends, task):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    noisy = fit_curve(*ends, task, dropout=True, **QUICK)
    assert torch.equal(torch.rand(3), expected)
    plain = fit_curve(*ends, task, **QUICK)
    assert not torch.equal(noisy.vertices[0].values, plain.vertices[0].values)
    again = fit_curve(*ends, task, **QUICK)
    assert torch.equal(again.vertices[0].values, plain.vertices[0].values)


def test_selection_keeps_the_best_state(ends, task):
    options = {**QUICK, "steps": 6, "learning_rate": 0.05, "save_every": 2, "select_at": (0.5,)}
    path = fit_curve(*ends, task, **options)

    def loss(values):
        mixed = 0.25 * points[0] + 0.5 * values + 0.25 * points[1]
        vertex = Vertex("x", path.vertices[0].space, mixed)
        work = PointsWork(path.checkpoints, (Data(task, "validation"),), config, (vertex,))
        return float(work().run(work.point_job(2)).tensors["0.losses"].mean())

    config = CurveConfig(**QUICK)
    space = path.vertices[0].space
    points = [space.flatten(lf.load_model(e)).double() for e in ends]
    states = {0: (points[0] + points[1]) / 2}
    field, fixed, run = open_field(ends, task, **{**options, "select_at": ()})
    descent = Descent(field, fixed, shape_of(run), run)
    while descent.step < 6:
        descent.advance()
        states[descent.step] = descent.free[0].clone()
    found = {step: loss(states[step]) for step in (0, 2, 4, 6)}
    best = min(found, key=found.get)
    assert path.fit.chosen == best
    torch.testing.assert_close(path.vertices[0].values, states[best])


def test_a_task_with_one_split_is_fitted_on_that_one_and_says_so(tmp_path, ends, write_rows):
    file = write_rows(tmp_path / "rows.tsv", 12)
    columns = {"text": "sentence", "label": "label", "name": "one"}
    dev = lf.load_task({"validation": str(file)}, **columns)
    with pytest.warns(UserWarning, match="no 'train': fitted on the rows it is evaluated on"):
        path = fit_curve(*ends, dev, **QUICK)
    assert path.fit.provenance["data"] == "one:validation"
    named = fit_curve(*ends, dev, split="validation", **QUICK)  # a warning would be an error
    assert torch.equal(path.vertices[0].values, named.vertices[0].values)
    train = lf.load_task({"train": str(file)}, **columns)
    with pytest.warns(UserWarning, match="no 'validation': evaluated on those"):
        found = path.evaluate(train, points=3, replicates=20)
    assert set(found.table.data) == {"one:train"}
    with pytest.warns(UserWarning, match="fitted on the rows it is evaluated on"):
        lf.fit_complex([*ends], dev, connectors=1, **QUICK)
    # Only for the names that are there by default, and only where there is no choice.
    with pytest.raises(DataError, match="no split 'tset'"):
        fit_curve(*ends, dev, split="tset", **QUICK)
    both = lf.load_task({"validation": str(file), "test": str(file)}, **columns)
    with pytest.raises(DataError, match="no split 'train'"):
        fit_curve(*ends, both, **QUICK)


# --- along the path -----------------------------------------------------------------------------


def test_the_ends_are_the_checkpoints_themselves(tmp_path, ends, task):
    path = fit_curve(*ends, task, bends=2, **QUICK)
    store = Store.open(tmp_path / "study")
    own = [lf.evaluate(e, task, store=store, dtype="float64").metrics for e in ends]
    jobs = len(list((tmp_path / "study" / "artifacts" / "mix").iterdir()))
    found = path.evaluate(task, points=5, store=store)
    for table in (found.table, found.line):
        # Another order of the sum over the same per-example losses.
        assert table.loss.iloc[[0, -1]].tolist() == pytest.approx([o["loss"] for o in own], 1e-14)
        assert table.accuracy.iloc[[0, -1]].tolist() == [o["accuracy"] for o in own]
    # The ends were there; 3 points of the curve and one job for the line are new.
    assert len(list((tmp_path / "study" / "artifacts" / "mix").iterdir())) == jobs + 4
    straight = lf.interpolate(*ends, task, points=5, dtype="float64", store=store)
    np.testing.assert_array_equal(found.line.loss, straight.table.loss)
    assert len(list((tmp_path / "study" / "artifacts" / "mix").iterdir())) == jobs + 4
    assert found.line_barrier == straight.barrier_height


def test_points_along_the_curve_against_mixed_vectors(tmp_path, ends, task):
    path = fit_curve(*ends, task, bends=2, **{**QUICK, "learning_rate": 0.02})
    found = path.evaluate(task, points=6, also=[(task, "train")], replicates=50)
    space = path.vertices[0].space
    w = [space.flatten(lf.load_model(e)).double() for e in ends]
    control = torch.stack([w[0], *(v.values for v in path.vertices), w[1]]).numpy()
    table = found.table[found.table.data == "toy:validation"].reset_index(drop=True)
    walked = curve_weights("bezier", np.linspace(0, 1, 2001), 4) @ control
    steps = np.linalg.norm(np.diff(walked, axis=0), axis=1)
    assert found.length == pytest.approx(steps.sum(), rel=1e-4)
    for k, row in table.iterrows():
        at = curve_weights("bezier", row.t, 4)[0] @ control
        before = round(row.t * 2000)
        assert steps[:before].sum() / steps.sum() == pytest.approx(k / 5, abs=1e-3)
        assert row.arc == pytest.approx(k / 5)
        assert row.distance_a == pytest.approx(np.linalg.norm(at - control[0]), abs=1e-6)
        assert row.distance_b == pytest.approx(np.linalg.norm(at - control[-1]), abs=1e-6)
        model = path.checkpoint(float(row.t), tmp_path / f"at{k}")
        expected = lf.evaluate(model, task, dtype="float64").metrics["loss"]
        assert row.loss == pytest.approx(expected, abs=1e-10)
    curve = found.summary[(found.summary.path == "curve")].iloc[0]
    assert curve.barrier_height == pytest.approx(barrier_height(table.loss, t=table.arc))
    line = found.line[found.line.data == "toy:validation"]
    saved = found.reduction.iloc[0]
    assert saved.barrier == pytest.approx(
        barrier_height(line.loss, t=line.arc) - barrier_height(table.loss, t=table.arc)
    )
    assert saved.low <= saved.barrier <= saved.high
    assert set(found.summary.data) == {"toy:validation", "toy:train"}
    assert "barrier on the line" in found.reading and "along the bezier" in found.reading
    ridges = found.summary.assign(convexity_gap=1.0, noise_floor=0.1)
    verdicts = ((0.1, 0.2, "lower than the line"), (-0.2, -0.1, "higher than the line"))
    for low, high, said in (*verdicts, (-0.1, 0.1, "is not told from that of the line")):
        saved = found.reduction.assign(low=low, high=high)
        assert said in dataclasses.replace(found, summary=ridges, reduction=saved).reading
    json.dumps(found.to_json(), default=str)
    kept = from_parts(*to_parts(found))
    assert isinstance(kept, PathEvaluation) and kept.table.equals(found.table)


def test_a_path_is_saved_and_loaded(tmp_path, ends, task):
    path = fit_curve(*ends, task, kind="polyline", bends=2, **QUICK)
    assert "polyline with 2 bends" in path.reading
    path.save(tmp_path / "kept")
    path.save(tmp_path / "kept")  # its own place may be written again
    again = FittedPath.load(tmp_path / "kept")
    assert [c.fingerprint for c in again.checkpoints] == [c.fingerprint for c in path.checkpoints]
    assert again.evaluate(task, points=4).table.equals(path.evaluate(task, points=4).table)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="other things"):
        path.save(tmp_path / "mine")
    with pytest.raises(ConfigError, match="runs from 0 to 1"):
        path.checkpoint(1.5, tmp_path / "beyond")
    with pytest.raises(StoreError, match="other weights"):
        FittedPath.load(tmp_path / "kept", list(reversed(ends)))
    with pytest.raises(StoreError):
        FittedPath.load(tmp_path / "mine")
    # Loaded without its second bend, it once was another path, under the measures of this one.
    (tmp_path / "kept" / "bend2.safetensors").unlink()
    with pytest.raises(StoreError, match=r"bend2\.safetensors"):
        FittedPath.load(tmp_path / "kept")
    (tmp_path / "kept" / "path.json").write_text('{"ends": [], "tables": []}')
    with pytest.raises(StoreError, match="has no 'fit'"):
        FittedPath.load(tmp_path / "kept")


def test_bends_among_the_points_of_a_polyline(ends, task):
    path = fit_curve(*ends, task, kind="polyline", bends=2, **{**QUICK, "learning_rate": 0.02})
    found = path.evaluate(task, points=4, bend_points=True).table
    assert len(found) == 6 and {1 / 3, 2 / 3} <= set(found.t)
    assert (found.arc.diff().dropna() > 0).all()


# --- given checkpoints --------------------------------------------------------------------------


def test_a_walk_visits_every_model_once(tmp_path, ends, task, save_checkpoint):
    """The original never visited the last model, and could visit a vertex twice."""
    stops = [*ends, save_checkpoint(tmp_path / "s3", seed=3)]
    found = walk(stops, task, points=5, dtype="float64")
    own = [lf.evaluate(p, task, dtype="float64").metrics["loss"] for p in stops]
    at = found.table.set_index("t").loss[[0, 0.5, 1]]
    assert at.tolist() == pytest.approx(own, rel=1e-14)
    assert (found.table.arc.diff().dropna() > 1e-9).all()
    points = [
        torch.cat([p.detach().reshape(-1) for p in lf.load_model(s).parameters()]) for s in stops
    ]
    pieces = np.sqrt(np.diagonal(squared_distances(points), offset=1))
    assert found.length == pytest.approx(pieces.sum())
    middle = found.table[found.table.t == 0.5].iloc[0]
    assert middle.arc == pytest.approx(pieces[0] / pieces.sum())
    assert middle.distance_a == pytest.approx(pieces[0], rel=1e-6)
    even = walk(stops, task, points=5, bend_points=False)
    np.testing.assert_allclose(even.table.arc, [0, 0.25, 0.5, 0.75, 1])


def test_a_walk_over_two_models_is_the_line(ends, task):
    found = walk(ends, task, points=5)
    np.testing.assert_array_equal(
        found.table.loss, lf.interpolate(*ends, task, points=5).table.loss
    )
    np.testing.assert_array_equal(found.table.loss, found.line.loss)


def test_a_round_trip(ends, task):
    found = walk([ends[0], ends[1], ends[0]], task, points=5, replicates=50)
    assert found.chord == 0 and "times the chord" not in found.reading
    assert found.table.distance_a.iloc[2] == pytest.approx(found.length / 2, rel=1e-6)
    np.testing.assert_allclose(found.table.loss, found.table.loss[::-1], rtol=1e-5)


def test_a_walk_by_pattern_says_what_its_path_crosses(tmp_path, task, save_checkpoint):
    for k in range(3):
        save_checkpoint(tmp_path / f"s{k}", seed=k)
    found = walk(f"{tmp_path}/s?", task, points=5, replicates=50)
    assert [Path(p).name for p in (found.a, found.b)] == ["s0", "s2"] and len(found.table) > 5
    rows = found.summary.assign(noise_floor=1.0)
    for gaps, said in (((0.0, 2.0), "go round, the path has one"), ((0.0, 0.0), "to go round;")):
        gap = rows.path.map(dict(zip(("line", "curve"), gaps, strict=True)))
        assert said in replace(found, summary=rows.assign(convexity_gap=gap)).reading
    with pytest.raises(ConfigError, match="1 checkpoints"):
        walk(str(tmp_path / "s0"), task)


# --- bad input ----------------------------------------------------------------------------------


def test_bad_input(tmp_path, ends, task, save_checkpoint):
    twin = save_checkpoint(tmp_path / "twin", seed=1)
    three = save_checkpoint(tmp_path / "three", num_labels=3)
    cases = [
        (ConfigError, "same weights", (ends[0], twin), {}),
        (ConfigError, "same weights", (ends[0], ends[0]), {}),
        (SpaceMismatchError, "labels", (ends[0], three), {}),
        (ConfigError, "bends", ends, {"bends": 0}),
        (ConfigError, "steps", ends, {"steps": 0}),
        (ConfigError, "learning_rate", ends, {"learning_rate": float("nan")}),
        (ConfigError, "learning_rate", ends, {"learning_rate": -1.0}),
        (ConfigError, "kind", ends, {"kind": "spline"}),
        (ConfigError, "start", ends, {"start": "midpoint", "bends": 2}),
        (ConfigError, "from 0 to 1", ends, {"select_at": (1.2,)}),
        (ConfigError, "no tensor matches", ends, {"parameters": ("*adapter*",)}),
        (NonFiniteError, r"lower learning_rate \(it is 1e\+300\)", ends, {"learning_rate": 1e300}),
    ]
    for kind, match, pair, options in cases:
        with pytest.raises(kind, match=match):
            fit_curve(*pair, task, store=tmp_path / "study", **{**QUICK, **options})
    with pytest.raises(ConfigError, match="two or more"):
        walk(ends[:1], task)
    with pytest.raises(ConfigError, match="follow one another"):
        walk([ends[0], twin, ends[1]], task)
    with pytest.raises(SpaceMismatchError):
        walk([ends[0], three], task)


# --- scores that are no numbers, one step, what is not used ---------------------------------------


def test_a_start_without_a_score_is_not_kept_as_the_best(ends, task, monkeypatch):
    scores = iter([np.nan, 0.5, 0.6])

    class Scores:
        higher_is_better = False

        def aggregate(self, predictions):
            return next(scores)

    monkeypatch.setattr("landform.geometry.descent.get_metric", lambda name: Scores())
    path = fit_curve(*ends, task, **{**QUICK, "steps": 4, "save_every": 2, "select_at": (0.5,)})
    assert path.fit.chosen == 2


def test_the_best_of_a_path_is_no_nan():
    table = pd.DataFrame({"data": "x", "t": [0.0, 0.5, 1.0], "accuracy": [np.nan, 0.5, 0.7]})
    table["accuracy_low"] = table["accuracy"]
    path = object.__new__(PathEvaluation)
    object.__setattr__(path, "table", table)
    assert path.best.t.tolist() == [1.0]


def test_the_forecast_of_one_step(ends, task):
    work = curve_work(*ends, task, "train", CurveConfig(**{**QUICK, "steps": 1}))
    assert work.forecast(MemoryStore()).jobs == 1


def test_a_stage_begins_once(ends, task, monkeypatch):
    begun = []
    begin = Descent.begin
    monkeypatch.setattr(Descent, "begin", lambda self, k: (begun.append(k), begin(self, k))[1])
    fit_curve(*ends, task, **{**QUICK, "steps": 2})
    assert begun == [0]


@pytest.mark.parametrize("option", [{"select_split": "test"}, {"select_by": "metric"}], ids=str)
def test_how_to_choose_needs_where(option):
    with pytest.raises(ConfigError, match=f"{next(iter(option))} says how select_at"):
        CurveConfig.parse(option)
    CurveConfig.parse({**option, "select_at": (0.5,)})
    CurveConfig.parse({**option, "compat": "plm"})
