"""Curves between models tuned by every method: ends, fresh starts, Adafactor, choosing, grids."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import landform as lf
from landform.errors import ConfigError, SpaceMismatchError
from landform.evaluation.field import Field
from landform.evaluation.points import Data, PointsWork
from landform.geometry.curves import barrier_height
from landform.geometry.descent import Descent
from landform.geometry.fitting import CurveConfig, CurveShape, curve_work, fit_curve
from landform.geometry.paths import bezier_weights
from landform.studies.fits import CurveStudy
from landform.weights.checkpoint import draw_tuned, load_model, resolve
from landform.weights.tuning import TuningConfig, save_model, tune
from valley import ENDS, Valley, fitted, losses_along, shape_of

QUICK = {"steps": 5, "batch_size": 8, "learning_rate": 1e-3, "dtype": "float64", "seed": 3}
METHODS = {
    "adapter": {"adapter_size": 3, "init_std": 0.5},
    "compacter": {"adapter_size": 8, "init_std": 0.5},
    "lora": {"lora_rank": 2},
    "prefix": {"prefix_length": 4, "prefix_hidden": 5, "init_std": 0.5},
}


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


@pytest.fixture
def tuned(tmp_path, save_checkpoint, word_tokenizer):
    """Factory: two checkpoints of one pre-trained model, tuned by a method."""
    base = resolve(save_checkpoint(tmp_path / "base", seed=7))

    def make(method, names=("t0", "t1"), **options):
        made = []
        for k, name in enumerate(names):
            place = tmp_path / f"{method}-{name}"
            with torch.random.fork_rng():
                torch.manual_seed(k)
                model = load_model(base, "classification")
                tune(model, TuningConfig(tuning=method, **METHODS[method], **options), head=True)
                for tensor in (p for p in model.parameters() if p.requires_grad):
                    torch.nn.init.normal_(tensor, std=0.3)
            save_model(model, place, base.path, base.fingerprint)
            word_tokenizer.save_pretrained(place)
            made.append(place)
        return made

    return make


@pytest.fixture
def pair(ends, tuned):
    """Factory: the two ends of a method, "full" among them."""
    return lambda method: ends if method == "full" else tuned(method)


@pytest.mark.parametrize("method", ["full", *METHODS])
def test_the_ends_of_every_method_are_the_checkpoints_themselves(tmp_path, pair, task, method):
    both = pair(method)
    path = fit_curve(*both, task, bends=2, **QUICK)
    found = path.evaluate(task, points=3, replicates=20)
    for k, (t, end) in enumerate(zip((0.0, 1.0), both, strict=True)):
        own = lf.evaluate(end, task, dtype="float64")
        row = found.table[found.table.t == t].iloc[0]
        assert row.loss == pytest.approx(own.metrics["loss"], abs=1e-14)
        assert row.accuracy == own.metrics["accuracy"]
        # Every logit, bit for bit, also of the model that is written there.
        again = lf.evaluate(path.checkpoint(t, tmp_path / f"at{k}"), task, dtype="float64")
        for column in ("logit_0", "logit_1", "loss"):
            assert again.log[column].tolist() == own.log[column].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_a_bend_against_autograd(pair, task, method):
    options = {**QUICK, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0}
    config = CurveConfig(**options, warmup_ratio=0.0, schedule="constant")
    members = tuple(map(resolve, pair(method)))
    worker = PointsWork(members, (Data(task, "train"),), config)()
    field, fixed = Field(worker), [worker.point(c.fingerprint) for c in members]
    shape = shape_of(config)
    descent = Descent(field, fixed, shape, config)
    descent.begin(0)
    bend = descent.free[0].clone().requires_grad_(True)
    seen = []
    descent.shape = type("Spy", (CurveShape,), {})("bezier", 1, "chord")
    type(descent.shape).draw = lambda self, random, stage: (
        seen.append(shape.draw(random, stage)) or seen[-1]
    )
    row = descent.advance()
    mixed = sum(float(w) * p for w, p in zip(seen[0], [*fixed, bend], strict=True))
    loss = 0.0
    for i in descent.rows(0):
        example = field.data.encoded.rows[i]
        inputs = {n: torch.tensor([v]) for n, v in example.items() if n != "labels"}
        logits = field.space.call(field.bound.model, mixed, **inputs).logits
        target = torch.tensor([example["labels"]])
        loss = loss + torch.nn.functional.cross_entropy(logits, target) / 8
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-12)
    (expected,) = torch.autograd.grad(loss, bend)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(bend.detach() - descent.free[0], expected, rtol=1e-8, atol=1e-12)


# --- starts -------------------------------------------------------------------------------------


def test_with_the_bend_in_the_midpoint_the_curve_is_the_line():
    grid = np.linspace(0, 1, 26)
    weights = bezier_weights(grid, 3)
    expected = np.stack([(1 - grid) ** 2, 2 * grid * (1 - grid), grid**2], 1)
    np.testing.assert_allclose(weights, expected, atol=1e-15)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-15)
    for start in ("midpoint", "chord"):
        config = CurveConfig(start=start)
        descent = Descent(Valley(), ENDS, shape_of(config), config)
        descent.begin(0)
        for t, row in zip(grid, descent.shape.weights(grid), strict=True):
            descent.move(row)
            line = (1 - t) * ENDS[0] + t * ENDS[1]
            torch.testing.assert_close(descent.landscape.flat, line, rtol=0, atol=1e-15)


def fresh(place, seed, **changes):
    model = draw_tuned(resolve(place), "classification", seed=seed, **changes)
    return {n: p.detach() for n, p in model.named_parameters() if n in model.landform_tuned}


def test_fresh_starts_are_those_of_the_methods(tuned):
    adapter = fresh(tuned("adapter")[0], 1)
    drawn = torch.cat([v.flatten() for n, v in adapter.items() if "adapter" in n])
    assert len(drawn) == 2 * 2 * 2 * 3 * 16
    assert drawn.std().item() == pytest.approx(0.5, rel=0.15) and abs(drawn.mean()) < 0.1
    narrow = fresh(tuned("adapter", names=("u0",))[0], 1, init_std=0.02)
    drawn = torch.cat([v.flatten() for n, v in narrow.items() if "adapter" in n])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.15)
    for name, value in fresh(tuned("lora")[0], 1).items():
        if "lora_A" in name:  # Kaiming-uniform(a = sqrt 5): U(-1/sqrt(fan in), 1/sqrt(fan in))
            bound = 1 / math.sqrt(value.shape[1])
            assert 0.7 * bound < value.abs().max() <= bound
        elif "lora_B" in name:
            assert not value.any()
    prefix = fresh(tuned("prefix")[0], 1)
    assert any("prefix" in name for name in prefix) and prefix.keys() == set(
        load_model(tuned("prefix")[0]).landform_tuned
    )


@pytest.mark.parametrize("method", METHODS)
def test_random_bends_are_drawn_from_the_seed_of_the_fit_alone(tuned, task, method):
    both = tuned(method)
    tiny = {**QUICK, "steps": 1, "learning_rate": 1e-30, "start": "random", "bends": 2}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    path = fit_curve(*both, task, **tiny)
    assert torch.equal(torch.rand(2), expected)  # torch's own generator was left alone
    again = fit_curve(*both, task, **tiny)
    other = fit_curve(*both, task, **{**tiny, "seed": 4})
    one, two = (vertex.values for vertex in path.vertices)
    assert torch.equal(one, again.vertices[0].values) and torch.equal(two, again.vertices[1].values)
    assert not torch.equal(one, two) and not torch.equal(one, other.vertices[0].values)
    on_chord = fit_curve(*both, task, **{**tiny, "start": "chord"})
    assert path.fit.length > 1.05 * path.fit.chord
    assert on_chord.fit.length == pytest.approx(on_chord.fit.chord)
    # Tensors that are not fitted stay on the line.
    part = fit_curve(*both, task, parameters=("*classifier*",), **tiny)
    space, ends = part.vertices[0].space, [load_model(resolve(p)) for p in both]
    here, there = (space.unflatten(space.flatten(m).double()) for m in ends)
    found = space.unflatten(part.vertices[0].values)
    for name in space.names:
        third = (2 * here[name] + there[name]) / 3
        assert torch.allclose(found[name], third, atol=1e-6) == ("classifier" not in name)


def test_whole_models_have_no_random_start(ends, task):
    with pytest.raises(ConfigError, match=r"start.*whole model.*pre-trained"):
        fit_curve(*ends, task, start="random", **QUICK)
    with pytest.raises(ConfigError, match="whole model"):
        draw_tuned(resolve(ends[0]), seed=0)


# --- Adafactor ----------------------------------------------------------------------------------


class Slope:
    """A plane with given slopes."""

    size = 4

    def __init__(self, slope):
        self.flat, self.slope = torch.zeros_like(slope), slope

    def batches(self, rows):
        return rows

    def gradient(self, batches):
        return float(self.flat @ self.slope), self.slope.clone()


def adafactor_step(gradient, lr):
    """The first step of Shazeer & Stern 2018 without a first moment, clipped at an RMS of 1."""
    square = gradient**2 + 1e-30
    if gradient.dim() == 2:
        row, column = square.mean(1, keepdim=True), square.mean(0, keepdim=True)
        square = row * column / row.mean()
    update = gradient / square.sqrt()
    return lr * update / max(1.0, update.square().mean().sqrt())


@pytest.mark.parametrize("compat", [None, "plm"])
def test_adafactor_sees_the_tensors_in_their_own_shapes(compat):
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(17, generator=generator, dtype=torch.float64)
    points = [torch.zeros_like(slope), torch.ones_like(slope)]
    config = CurveConfig(
        optimizer="adafactor", learning_rate=0.1, schedule="constant", warmup_ratio=0.0, bends=2,
        compat=compat,
    )  # fmt: skip
    shape = shape_of(config)
    descent = Descent(Slope(slope), points, shape, config, shapes=[(3, 4), (5,)])
    descent.begin(0)
    before = descent.free.clone()
    drawn = []
    descent.shape = type("Spy", (CurveShape,), {})("bezier", 2, "chord")
    type(descent.shape).draw = lambda self, r, stage: (
        drawn.append(shape.draw(r, stage)) or drawn[-1]
    )
    descent.advance()
    moved = before - descent.free
    slopes = torch.stack([float(w) * slope for w in drawn[0][2:]])
    if compat == "plm":  # one matrix of the bends, as the original holds them
        torch.testing.assert_close(moved, adafactor_step(slopes, 0.1), rtol=1e-9, atol=1e-12)
        return
    for k in range(2):
        matrix = adafactor_step(slopes[k, :12].view(3, 4), 0.1).flatten()
        torch.testing.assert_close(moved[k, :12], matrix, rtol=1e-9, atol=1e-12)
        vector = adafactor_step(slopes[k, 12:], 0.1)
        torch.testing.assert_close(moved[k, 12:], vector, rtol=1e-9, atol=1e-12)


def test_adafactor_finds_the_valley():
    config = CurveConfig(steps=600, learning_rate=0.05, optimizer="adafactor", samples_per_step=4)
    assert barrier_height(losses_along(fitted(config), "bezier")) < 0.05


def test_a_stopped_fit_with_adafactor_and_a_random_start_goes_on(
    tmp_path, tuned, task, monkeypatch
):
    both = tuned("adapter")
    options = {**QUICK, "steps": 8, "optimizer": "adafactor", "start": "random", "bends": 2}
    options |= {"save_every": 2, "select_at": (0.25, 0.5), "select_by": "metric", "dropout": True}
    whole = fit_curve(*both, task, **options)
    advance, count = Descent.advance, [0]

    def stop(self):
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Descent, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_curve(*both, task, store=tmp_path / "study", **options)
    count[0] = -100
    rest = fit_curve(*both, task, store=tmp_path / "study", **options)
    assert count[0] == -100 + 4  # steps 5 to 8
    for one, other in zip(whole.vertices, rest.vertices, strict=True):
        assert torch.equal(one.values, other.values)
    assert rest.fit.history.equals(whole.fit.history) and rest.fit.chosen == whole.fit.chosen


# --- choosing, and the points -------------------------------------------------------------------


def test_the_bends_can_be_chosen_by_the_metric(tuned, task, monkeypatch):
    both = tuned("adapter")
    options = {**QUICK, "steps": 6, "learning_rate": 0.05, "save_every": 2, "select_at": (0.3, 0.6)}
    states = {}
    advance = Descent.advance
    monkeypatch.setattr(
        Descent,
        "advance",
        lambda self: (advance(self), states.update({self.step: self.free[0].clone()}))[0],
    )
    found = {
        by: fit_curve(*both, task, select_by=by, **options).fit.chosen for by in ("loss", "metric")
    }
    start = fit_curve(*both, task, **{**QUICK, "steps": 1, "learning_rate": 1e-30}).vertices[0]
    states[0] = start.values
    labels, values = np.array(task.examples("validation").labels), {}
    for step in (0, 2, 4, 6):
        bend = type(start)("x", start.space, states[step])
        data, members = (Data(task, "validation"),), tuple(map(resolve, both))
        work = PointsWork(members, data, CurveConfig(**QUICK), (bend,))
        rows = bezier_weights((0.3, 0.6), 3).tolist()
        contents = work().run(work.mix_job([0, 2, 1], rows, "x"))
        accuracy = (contents.tensors["0.logits"].argmax(-1) == labels).mean()
        values[step] = (accuracy, contents.tensors["0.losses"].mean())
    assert found["metric"] == max(values, key=lambda step: (values[step][0], -step))
    assert found["loss"] == min(values, key=lambda step: values[step][1])


def test_equal_steps_of_t_and_the_best_point(ends, task):
    path = fit_curve(*ends, task, **{**QUICK, "learning_rate": 0.05, "steps": 8})
    found = path.evaluate(task, points=6, spacing="t", also=[(task, "train")], replicates=20)
    own = found.table[found.table.data == "toy:validation"]
    np.testing.assert_allclose(own.t, np.linspace(0, 1, 6), atol=1e-15)
    np.testing.assert_allclose(own.arc, path.course.arc(own.t), atol=1e-12)
    line = found.line[found.line.data == "toy:validation"]
    np.testing.assert_allclose(line.t, own.arc)  # the control at the same shares of its length
    at = own.t.iloc[int(own.accuracy.to_numpy().argmax())]
    assert found.best.t.tolist() == [at, at]
    assert found.best.data.tolist() == ["toy:validation", "toy:train"]
    assert found.best.accuracy.iloc[0] == own.accuracy.max()
    assert json.dumps(found.to_json()["best"])
    arc = path.evaluate(task, points=6, replicates=20).table
    assert all(round(y - x, 9) == 0.2 for x, y in pairwise(arc.arc))


# --- as the original ----------------------------------------------------------------------------


def test_compat_plm_is_the_setting_of_the_original(ends, tuned, task):
    whole = curve_work(*ends, task, "train", CurveConfig(compat="plm")).config
    adapter = curve_work(*tuned("adapter"), task, "train", CurveConfig(compat="plm"))
    for config in (whole, adapter.config):
        assert (config.optimizer, config.learning_rate, config.rate(0)) == ("adafactor", 1e-4, 1e-4)
        assert config.dropout and config.select_by == "metric" and len(config.select_at) == 3
    assert (whole.start, whole.samples_per_step, whole.select_at[0]) == ("midpoint", 3, 0.25)
    assert (adapter.config.start, adapter.config.samples_per_step) == ("random", 1)
    assert [round(t, 4) for t in adapter.config.select_at] == [0.7726, 0.373, 0.5129]
    assert adapter.fresh and adapter.select is not None
    # What is given stays, also through a study, even where it is the default.
    options = {"compat": "plm", "samples_per_step": 1, "start": "chord"}
    study = CurveStudy.of(*ends, task, options=options)
    assert (study.fit.config.samples_per_step, study.fit.config.start) == (1, "chord")
    assert study.fit.config.optimizer == "adafactor"
    assert CurveStudy.of(*ends, task, options={"compat": "plm"}).fit.config == whole
    path = fit_curve(*tuned("adapter"), task, compat="plm", steps=2, batch_size=8)
    names = path.vertices[0].space.unflatten(path.vertices[0].values)
    drawn = torch.cat([v.flatten() for n, v in names.items() if "adapter" in n])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.15)  # whatever the ends started with
    with pytest.raises(ConfigError, match="compat"):
        lf.fit_complex(ends, task, connectors=1, compat="plm", **QUICK)


def test_the_original_adds_the_gradients_of_its_points_up():
    common = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1e-3, "samples_per_step": 3}
    common |= {"schedule": "constant", "warmup_ratio": 0.0}
    moved = []
    for compat in (None, "plm"):
        config = CurveConfig(compat=compat, **common)
        descent = Descent(Valley(), ENDS, shape_of(config), config)
        descent.begin(0)
        before = descent.free.clone()
        descent.advance()
        moved.append(descent.free - before)
    torch.testing.assert_close(moved[1], 3 * moved[0])


def test_ends_of_two_methods_or_sizes_are_refused(tuned, task, tmp_path, word_tokenizer):
    adapter, lora = tuned("adapter")[0], tuned("lora")[0]
    with pytest.raises(SpaceMismatchError, match="two tuning methods"):
        fit_curve(adapter, lora, task, **QUICK)
