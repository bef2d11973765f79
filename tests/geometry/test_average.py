"""Averages of checkpoints: the formula by hand, what it must not depend on, what is written."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from fishers import make_fisher
from landform.errors import ConfigError, CurvatureError, SpaceMismatchError
from landform.geometry.average import AverageStudy
from landform.results import from_parts, to_parts
from landform.store.artifacts import MemoryStore
from landform.store.study import open_store
from landform.weights.checkpoint import load_model, resolve
from landform.weights.space import ParameterSpace
from landform.weights.tuning import TuningConfig, save_model, tune

EXACT = {"dtype": "float64", "replicates": 50}
QUICK = {**EXACT, "points": 5}


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    """Three checkpoints and a few rows."""
    place = tmp_path_factory.mktemp("average")
    for seed in (1, 2, 3):
        save_checkpoint(place / f"s{seed}", seed=seed)
    write_rows(place / "dev.tsv", 15, seed=1)
    write_rows(place / "other.tsv", 9, seed=2)
    return place


@pytest.fixture(scope="module")
def task(place):
    return lf.load_task(str(place / "dev.tsv"), text="sentence", label="label", name="toy")


@pytest.fixture(scope="module")
def ends(place):
    return [place / f"s{seed}" for seed in (1, 2, 3)]


def fisher_of(end, seed, **fields):
    """A Fisher with zeros in it, at these weights."""
    found = resolve(end)
    made = make_fisher(load_model(found), seed=seed, weights=found.fingerprint, **fields)
    generator = torch.Generator().manual_seed(seed)
    for value in made.diagonal.values():
        value[torch.rand(value.shape, generator=generator) < 0.4] = 0
    return made


@pytest.fixture(scope="module")
def fishers(ends):
    return [fisher_of(end, seed, checkpoint=end.name) for seed, end in enumerate(ends)]


def weights_of(directory):
    model = load_model(resolve(directory))
    return {name: value.detach().double() for name, value in model.named_parameters()}


def by_hand(ends, fishers, weights, floor=0.0, scales=None):
    """Entry after entry, in Python's own numbers."""
    points = [weights_of(end) for end in ends]
    scales = scales or [1.0] * len(ends)
    found = {}
    for name in points[0]:
        entries = []
        for j in range(points[0][name].numel()):
            theta = [float(point[name].reshape(-1)[j]) for point in points]
            f = [
                max(float(one.diagonal[name].reshape(-1)[j]) / scale, floor)
                for one, scale in zip(fishers, scales, strict=True)
            ]
            if not any(f):
                f = [1.0] * len(f)
            above = sum(w * a * t for w, a, t in zip(weights, f, theta, strict=True))
            entries.append(above / sum(w * a for w, a in zip(weights, f, strict=True)))
        found[name] = torch.tensor(entries, dtype=torch.float64).reshape(points[0][name].shape)
    return found


def made(ends, task, **options):
    """The averages as tensors by name."""
    study = AverageStudy.of(
        ends, task, fisher=options.pop("fisher", ()), options={**EXACT, **options}
    )
    worker = study.work()
    return {
        name: {
            key: value.clone()
            for key, value in worker.space.unflatten(worker.point(one.fingerprint)).items()
        }
        for name, one in study.averages.items()
    }


# --- the formula --------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_averages_by_hand(ends, task, fishers, floor):
    weights = (0.2, 1.0, 0.5)
    found = made(ends, task, fisher=fishers, weights=weights, floor=floor)
    expected = by_hand(ends, fishers, weights, floor)
    plain = by_hand(ends, [make_fisher({n: torch.ones_like(v) for n, v in f.diagonal.items()})
                           for f in fishers], weights)  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(found["fisher"][name], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["plain"][name], plain[name], rtol=1e-12, atol=1e-12)
    name = "bert.pooler.dense.weight"
    assert (expected[name] - plain[name]).abs().max() > 0.1


def test_normalised_fishers_by_hand(ends, task, fishers):
    loud = fisher_of(ends[1], 1)
    for value in loud.diagonal.values():
        value *= 1e4
    scales = [
        sum(float(v.double().square().sum()) for v in f.diagonal.values()) ** 0.5
        for f in (fishers[0], loud)
    ]
    found = made(ends[:2], task, fisher=[fishers[0], loud], normalise=True)
    expected = by_hand(ends[:2], [fishers[0], loud], (1, 1), scales=scales)
    again = made(ends[:2], task, fisher=fishers[:2], normalise=True)
    for name, value in expected.items():
        torch.testing.assert_close(found["fisher"][name], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again["fisher"][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_fishers_give_the_plain_average_exactly(ends, task, fishers, dtype, scale):
    diagonal = {name: value * scale for name, value in fishers[0].diagonal.items()}
    same = [make_fisher(diagonal, weights=resolve(end).fingerprint) for end in ends]
    found = made(ends, task, fisher=same, weights=(0.3, 0.5, 0.7), dtype=dtype)
    for name, value in found["plain"].items():
        assert torch.equal(found["fisher"][name], value)


def test_the_order_of_the_checkpoints_does_not_matter(ends, task, fishers):
    weights = (0.2, 1.0, 0.5)
    expected = made(ends, task, fisher=fishers, weights=weights)
    for order in itertools.permutations(range(3)):
        found = made(
            [ends[k] for k in order],
            task,
            fisher=[fishers[k] for k in order],
            weights=tuple(weights[k] for k in order),
        )
        for which in ("fisher", "plain"):
            for name, value in expected[which].items():
                torch.testing.assert_close(found[which][name], value, rtol=0, atol=1e-14)


@given(
    st.lists(st.floats(0, 2.0**100), min_size=2, max_size=4),
    st.lists(st.floats(-10, 10), min_size=4, max_size=4),
)
def test_an_average_lies_between_what_is_averaged(squares, values):
    from landform.geometry.average import _mean, fisher_shares

    theta = [torch.tensor([v]) for v in values[: len(squares)]]
    shares = fisher_shares(
        [1.0] * len(squares), [torch.tensor([f], dtype=torch.float64) for f in squares]
    )
    mean = float(_mean(theta, shares))
    low, high = (float(bound(theta)) for bound in (min, max))
    assert low - 1e-6 <= mean <= high + 1e-6
    if max(squares) > 0 and min(squares) == 0 and sum(f > 0 for f in squares) == 1:
        assert mean == pytest.approx(float(theta[int(np.argmax(squares))]))


# --- the comparison -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(ends, task, fishers, place):
    other = lf.load_task(str(place / "other.tsv"), text="sentence", label="label", name="other")
    return lf.average(ends[:2], task, fisher=fishers[:2], also=[other], weights=(1, 3), **QUICK)


def test_what_is_compared_is_what_evaluate_says(result, ends, task, fishers, tmp_path):
    table = result.evaluation.set_index(["data", "model"])
    first = result.evaluation["data"].iloc[0]
    assert set(result.evaluation["data"]) == {"toy:validation", "other:validation"}
    names = ["fisher", "plain", "s1", "s2", "line"]
    assert list(table.loc[first].index) == names
    options = {"dtype": "float64", "replicates": 50}
    for name, end in (("s1", ends[0]), ("s2", ends[1])):
        alone = lf.evaluate(end, task, **options)
        assert table.loc[(first, name), "loss"] == pytest.approx(alone.metrics["loss"], abs=1e-12)
    line = lf.interpolate(*ends[:2], task, points=5, dtype="float64", replicates=50)
    best = line.table.loc[line.table["loss"].idxmin()]
    assert table.loc[(first, "line"), "loss"] == pytest.approx(best.loss, abs=1e-12)
    assert table.loc[(first, "line"), "t"] == best.t
    study = AverageStudy.of(
        ends[:2], task, fisher=fishers[:2], options={**QUICK, "weights": (1, 3)}
    )
    study.save(tmp_path / "merged")
    alone = lf.evaluate(tmp_path / "merged", task, **options)
    assert table.loc[(first, "fisher"), "loss"] == pytest.approx(alone.metrics["loss"], abs=1e-12)


def test_differences_are_those_of_the_table_and_of_zero_width_where_models_are_one(result):
    table = result.evaluation.set_index(["data", "model"])
    for row in result.comparison.itertuples():
        mine, other = (table.loc[(row.data, m), row.quantity] for m in (row.model, row.against))
        assert row.difference == pytest.approx(mine - other, abs=1e-12)
        assert row.low <= row.difference + 1e-12 and row.difference <= row.high + 1e-12
    pairs = set(zip(result.comparison["model"], result.comparison["against"], strict=True))
    assert ("fisher", "plain") in pairs and ("plain", "line") in pairs
    assert len(pairs) == 7


def test_shares_and_distances(result, ends, fishers):
    total = result.shares.groupby("name")["share"].sum()
    np.testing.assert_allclose(total, 1, atol=1e-12)
    unseen = [
        float(((fishers[0].diagonal[n] == 0) & (fishers[1].diagonal[n] == 0)).sum())
        for n in fishers[0].diagonal
    ]
    entries = sum(v.numel() for v in fishers[0].diagonal.values())
    assert result.unseen == pytest.approx(sum(unseen) / entries)
    distance = result.distances.set_index(["a", "b"])["distance"]
    assert distance["s1", "s2"] == pytest.approx(lf.distance(*ends[:2]).l2, rel=1e-6)
    assert 0 < distance["fisher", "plain"] < distance["s1", "s2"]


def test_a_result_is_kept_and_said(result, tmp_path):
    again = from_parts(*to_parts(result))
    assert again.reading == result.reading
    assert json.dumps(result.to_json(), default=float)
    assert result.reading.startswith("Fisher-weighted average of s1 and s2 (weights 0.25, 0.75)")
    assert "the plain average" in result.reading and "no Fisher" in result.reading


def test_three_checkpoints_have_no_line(ends, task):
    found = lf.average(ends, task, **EXACT)
    assert list(found.evaluation["model"]) == ["plain", "s1", "s2", "s3"]
    assert not len(found.shares) and not len(found.distances)
    assert found.reading.startswith("plain average of s1 and s2 and s3")


def test_a_study_goes_on_where_it_stopped(ends, task, fishers, tmp_path, monkeypatch):
    arguments = {"fisher": fishers[:2], "options": QUICK}
    whole = AverageStudy.of(ends[:2], task, **arguments).run(MemoryStore())
    store = open_store(tmp_path / "study")
    study = AverageStudy.of(ends[:2], task, **arguments)
    from landform.evaluation.points import Evaluator

    run, left = Evaluator.run, [3]

    def killed(self, where="the model"):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run(self, where)

    monkeypatch.setattr(Evaluator, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        study.run(store)
    monkeypatch.setattr(Evaluator, "run", run)
    again = AverageStudy.of(ends[:2], task, **arguments)
    found = again.run(store)
    # NaN is no number equal to itself
    assert json.dumps(found.to_json(), default=float) == json.dumps(whole.to_json(), default=float)


# --- what is written ----------------------------------------------------------------------------


def test_an_average_loads_as_any_checkpoint(ends, task, fishers, tmp_path):
    from transformers import AutoModelForSequenceClassification

    found = made(ends[:2], task, fisher=fishers[:2], dtype="float32")
    for name, out in (("fisher", tmp_path / "f"), ("plain", tmp_path / "p")):
        given_ = fishers[:2] if name == "fisher" else ()
        lf.average(ends[:2], task, fisher=given_, out=out, replicates=50, points=2)
        model = AutoModelForSequenceClassification.from_pretrained(out)
        for key, value in model.named_parameters():
            assert torch.equal(value, found[name][key])


def test_a_tuned_model_is_averaged_in_what_was_tuned(ends, task, tmp_path):
    base = resolve(ends[0])
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = tune(load_model(base), TuningConfig(tuning="lora", lora_rank=2), head=True)
        for value in model.parameters():
            if value.requires_grad:
                value.data.normal_(std=0.3)
        save_model(model, tmp_path / f"lora{seed}", base.path, base.fingerprint)
        lf.load_tokenizer(base).save_pretrained(tmp_path / f"lora{seed}")
        runs.append(tmp_path / f"lora{seed}")
    squares = [fisher_of(run, k) for k, run in enumerate(runs)]
    lf.average(runs, task, fisher=squares, out=tmp_path / "merged", replicates=50, points=2)
    first, second, merged = (load_model(resolve(p)) for p in (*runs, tmp_path / "merged"))
    space = ParameterSpace.of(merged)
    a, b, c = (dict(m.named_parameters()) for m in (first, second, merged))
    for name in space.names:
        f, g = (s.diagonal[name].double() for s in squares)
        both = f + g
        mean = (a[name].double() + b[name].double()) / 2
        weighted = (f * a[name].double() + g * b[name].double()) / torch.where(both > 0, both, 1)
        expected = torch.where(both > 0, weighted, mean).float()
        torch.testing.assert_close(c[name].detach(), expected.detach(), rtol=1e-6, atol=1e-7)


def test_bodies_under_one_head(ends, task, fishers, save_checkpoint, tmp_path):
    other = save_checkpoint(tmp_path / "three", seed=9, num_labels=3)
    with pytest.raises(SpaceMismatchError, match="labels"):
        lf.average([ends[0], other], task, **QUICK)
    squares = [fishers[0], fisher_of(other, 7)]
    found = made([ends[0], other], task, fisher=squares, heads="first")
    head = weights_of(ends[0])
    for name in ("classifier.weight", "classifier.bias"):
        torch.testing.assert_close(found["fisher"][name], head[name], rtol=0, atol=1e-15)
    name = "bert.pooler.dense.weight"
    f, g = (s.diagonal[name].double() for s in squares)
    seen = f + g > 0
    theta = weights_of(other)[name]
    expected = ((f * head[name] + g * theta) / (f + g))[seen]
    torch.testing.assert_close(found["fisher"][name][seen], expected, rtol=1e-12, atol=1e-12)
    result = lf.average([ends[0], other], task, fisher=squares, heads="first", **QUICK)
    assert "classifier.weight" not in set(result.shares["name"])


# --- bad input ----------------------------------------------------------------------------------


def test_a_fisher_of_another_model(ends, task, fishers, tiny_model):
    with pytest.raises(CurvatureError, match="at other weights") as caught:
        lf.average(ends[:2], task, fisher=[fishers[1], fishers[0]], **QUICK)
    assert "order" in caught.value.remedy
    with pytest.raises(CurvatureError, match="at other weights") as caught:
        lf.average(ends[:2], task, fisher=[fishers[0], fishers[2]], **QUICK)
    assert "landform fisher" in caught.value.remedy
    wide = make_fisher(tiny_model(hidden_size=32, dtype=torch.float32), weights=None)
    with pytest.raises(CurvatureError, match=r"embeddings.*\(45, 32\).*\(45, 16\)"):
        lf.average(ends[:2], task, fisher=[fishers[0], wide], **QUICK)
    lacking = {n: v for n, v in fishers[1].diagonal.items() if "pooler" not in n}
    with pytest.raises(CurvatureError, match=r"no tensor bert\.pooler"):
        lf.average(ends[:2], task, fisher=[fishers[0], make_fisher(lacking, weights=None)], **QUICK)


def test_a_fisher_that_is_no_number(ends, task, fishers):
    bad = fisher_of(ends[1], 1)
    bad.diagonal["bert.pooler.dense.bias"][3] = float("nan")
    with pytest.raises(CurvatureError, match=r"bert\.pooler\.dense\.bias.*NaN"):
        lf.average(ends[:2], task, fisher=[fishers[0], bad], **QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"weights": (1, 0)}, "positive", id="zero"),
        pytest.param({"weights": (1, 1, 1)}, "3 weights for 2", id="weights"),
        pytest.param({"floor": -1}, "floor", id="floor"),
        pytest.param({"weight": (1, 1)}, "weights", id="unknown"),
    ],
)
def test_options_that_cannot_be(ends, task, options, said):
    with pytest.raises(ConfigError, match=said):
        lf.average(ends[:2], task, **options)


def test_numbers_that_do_not_match(ends, task, fishers):
    with pytest.raises(ConfigError, match="an average of 1 checkpoints"):
        lf.average(ends[:1], task)
    with pytest.raises(ConfigError, match="1 Fishers for 2"):
        lf.average(ends[:2], task, fisher=fishers[:1])


def test_nothing_is_written_where_other_things_lie(ends, task, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="other things"):
        lf.average(ends[:2], task, out=tmp_path / "out", **QUICK)
