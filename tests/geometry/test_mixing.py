"""Mixing weights of groups: the gradient, a mix that is known, the loop, what is said of it."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers as hf

import landform as lf
from landform.errors import ConfigError, NonFiniteError, SpaceMismatchError, StoreError
from landform.evaluation.field import Field
from landform.evaluation.points import Data, PointsWork
from landform.geometry.mixing import (
    MixConfig,
    MixingFit,
    MixingLoop,
    MixStudy,
    fit_mixing,
    group_spans,
    mix_groups,
)
from landform.results import from_parts, to_parts
from landform.store.artifacts import Contents
from landform.weights.checkpoint import load_model, resolve
from landform.weights.space import ParameterSpace
from landform.weights.tuning import TuningConfig, save_model, tune

QUICK = {"steps": 6, "batch_size": 8, "dtype": "float64", "seed": 3, "replicates": 50}


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


# --- groups -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5_base():
    """The space of T5 v1.1 base, with nothing in memory."""
    config = hf.T5Config(
        **{"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12},
        **{"num_decoder_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu"},
    )
    with torch.device("meta"):
        model = hf.T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        return ParameterSpace.of(model)


# What the original calls weight, layer and block.
@pytest.mark.parametrize(("groups", "count"), [("tensor", 282), ("block", 64), ("layer", 28)])
def test_the_groups_of_a_t5_base_divide_its_vector(t5_base, groups, count):
    found = group_spans(t5_base, groups)
    assert len(found) == count
    pieces = sorted(span for where in found.values() for span in where)
    assert pieces[0][0] == 0 and pieces[-1][1] == t5_base.numel == 247_577_856
    assert all(one[1] == two[0] for one, two in pairwise(pieces))
    if groups == "block":
        assert "decoder.block.3.cross_attention" in found


def test_a_mix_is_exactly_an_end_where_its_share_is_all():
    a, b = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    out = torch.empty(9)
    mix_groups(out, a, b, [[(0, 2), (6, 9)], [(2, 6)]], np.array([1.0, 0.0]))
    assert torch.equal(out, torch.cat([a[:2], b[2:6], a[6:]]))


# --- the fit ------------------------------------------------------------------------------------


class Bowl:
    """1/2 || p - p* ||^2."""

    size = 12

    def __init__(self, goal):
        self.flat, self.goal = torch.zeros_like(goal), goal

    def batches(self, rows):
        return rows

    def gradient(self, batches):
        away = self.flat - self.goal
        return float(away.square().sum() / 2), away


@pytest.mark.parametrize("optimizer", ["adam", "adafactor"])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_a_mix_that_is_known_is_found(optimizer, spread):
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    where = [[(0, 4), (20, 26)], [(4, 11)], [(11, 20)], [(26, 30)]]
    shares = np.array([0.9, 0.3, 0.55, 0.05])
    goal = torch.empty_like(a)
    mix_groups(goal, a, b, where, shares)
    config = MixConfig(steps=400, learning_rate=0.1, init_std=spread, optimizer=optimizer)
    loop = MixingLoop(Bowl(goal), [a, b], where, config)
    while loop.step < loop.total:
        loop.advance()
    np.testing.assert_allclose(loop.shares, shares, atol=0.01)


@pytest.mark.parametrize("groups", ["tensor", "sublayer", "layer", "block"])
def test_gradient_against_autograd_through_the_mixing(ends, task, groups):
    options = {**QUICK, "groups": groups, "init_std": 1.0, "accumulation": 2}
    options |= {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0}
    config = MixConfig(**options, warmup_ratio=0.0, schedule="constant")
    members = tuple(map(resolve, ends))
    worker = PointsWork(members, (Data(task, "train"),), config)()
    field, points = Field(worker), [worker.point(c.fingerprint) for c in members]
    where = group_spans(field.space, groups)
    loop = MixingLoop(field, points, list(where.values()), config)
    loop.begin(0)
    assert loop.free.std() > 0.5
    a = loop.free.clone().requires_grad_(True)
    parts = [field.space.unflatten(point) for point in points]
    home = {r.name: g for g, regions in field.space.groups(groups).items() for r in regions}
    names = list(where)
    mixed = {}
    for name in field.space.names:
        share = torch.sigmoid(a[names.index(home[name])])
        mixed[name] = share * parts[0][name] + (1 - share) * parts[1][name]
    row, loss = loop.advance(), 0.0
    for i in [*loop.rows(0), *loop.rows(1)]:
        example = field.data.encoded.rows[i]
        inputs = {n: torch.tensor([v]) for n, v in example.items() if n != "labels"}
        logits = torch.func.functional_call(field.bound.model, mixed, (), inputs).logits
        target = torch.tensor([example["labels"]])
        loss = loss + torch.nn.functional.cross_entropy(logits, target) / 16
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-12)
    (expected,) = torch.autograd.grad(loss, a)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(a.detach() - loop.free, expected, rtol=1e-8, atol=1e-12)


def test_a_stopped_fit_goes_on_to_the_same_weights(tmp_path, ends, task, monkeypatch):
    options = {**QUICK, "steps": 8, "dropout": True, "keep": "best", "save_every": 2}
    options |= {"init_std": 1.0, "learning_rates": (0.3, 0.1)}
    whole = fit_mixing(*ends, task, **options)
    advance, count = MixingLoop.advance, [0]

    def stop(self):
        count[0] += 1
        if count[0] == 14:  # in the second fit
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(MixingLoop, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_mixing(*ends, task, store=tmp_path / "study", **options)
    count[0] = -100
    rest = fit_mixing(*ends, task, store=tmp_path / "study", **options)
    assert count[0] == -100 + 4  # steps 5 to 8 of the second
    assert rest.table.equals(whole.table) and rest.history.equals(whole.history)
    assert rest.rates.equals(whole.rates) and rest.evaluation.equals(whole.evaluation)


def test_the_best_of_several_learning_rates_is_kept(ends, task):
    options = {**QUICK, "keep": "best", "save_every": 2, "init_std": 0.5}
    single = {rate: fit_mixing(*ends, task, learning_rate=rate, **options) for rate in (1.0, 0.01)}
    both = fit_mixing(*ends, task, learning_rates=(1.0, 0.01), **options)
    values = [float(fit.rates.value.iloc[0]) for fit in single.values()]
    assert both.rates.value.tolist() == values
    chosen = both.rates[both.rates.chosen].learning_rate.tolist()
    assert chosen == [list(single)[int(np.argmin(values))]]
    assert both.table.equals(single[chosen[0]].table)
    # The value is the loss of that mix on the split of the choice.
    own = both.evaluation.set_index("model").loss["mix"]
    assert both.rates.value.min() == pytest.approx(own, abs=1e-12)
    assert "chosen on the same rows" in both.reading and both.provenance["chosen_on"]
    last = fit_mixing(*ends, task, **{**options, "keep": "last"}, learning_rate=1.0)
    assert last.rates.step.tolist() == [6] and math.isnan(last.rates.value.iloc[0])
    by_metric = fit_mixing(*ends, task, learning_rates=(1.0, 0.01), select_by="metric", **options)
    accuracy = by_metric.evaluation.set_index("model").accuracy["mix"]
    assert by_metric.rates.value.max() == accuracy


# --- what is said -------------------------------------------------------------------------------


def test_the_mix_beside_the_ends_the_even_mix_and_the_line(tmp_path, ends, task):
    fit = fit_mixing(*ends, task, groups="block", also=[(task, "train")], points=5, **QUICK)
    assert len(fit.table) == len(group_spans(ParameterSpace.of(load_model(ends[0])), "block"))
    here, there = (load_model(end) for end in ends)
    entries = sum(p.numel() for p in here.parameters())
    assert fit.table.entries.sum() == entries
    square = sum(
        float((p - q).detach().double().square().sum())
        for p, q in zip(here.parameters(), there.parameters(), strict=True)
    )
    assert (fit.table.distance**2).sum() == pytest.approx(square, rel=1e-6)
    np.testing.assert_allclose(fit.table.weight, 1 / (1 + np.exp(-fit.table.logit)), rtol=1e-12)
    place = fit.checkpoint(tmp_path / "mixed")
    line = lf.interpolate(*ends, task, points=5, also=[(task, "train")], dtype="float64").table
    for split in ("validation", "train"):
        rows = fit.evaluation[fit.evaluation.data == f"toy:{split}"].set_index("model")
        for model, checkpoint in (("a", ends[0]), ("b", ends[1]), ("mix", place)):
            own = lf.evaluate(checkpoint, task, split=split, dtype="float64").metrics
            tolerance = 1e-6 if model == "mix" else 1e-14  # it was written in float64
            assert rows.loss[model] == pytest.approx(own["loss"], abs=tolerance)
        on_line = line[line.data == f"toy:{split}"]
        assert rows.loss["even"] == pytest.approx(on_line.loss[on_line.t == 0.5].iloc[0], rel=1e-12)
        best = on_line.iloc[int(on_line.loss.to_numpy().argmin())]
        assert (rows.t["line"], rows.loss["line"]) == (best.t, pytest.approx(best.loss, rel=1e-12))
        said = fit.comparison[fit.comparison.data == f"toy:{split}"]
        for row in said.itertuples():
            expected = rows[row.quantity]["mix"] - rows[row.quantity][row.against]
            assert row.difference == pytest.approx(expected, abs=1e-12)
            assert row.low - 1e-12 <= row.difference <= row.high + 1e-12
    assert set(fit.comparison.quantity) == {"loss", "accuracy"}
    assert "by block" in fit.reading and "best point of the line" in fit.reading
    json.dumps(fit.to_json(), default=str)
    again = from_parts(*to_parts(fit))
    assert isinstance(again, MixingFit) and again.table.equals(fit.table)
    assert again.weights == fit.weights


def test_the_reading_says_what_the_interval_says(ends, task):
    fit = fit_mixing(*ends, task, **QUICK)
    loss = fit.comparison.quantity == "loss"
    for low, high, said in ((-2, -1, "lower than any"), (1, 2, "higher"), (-1, 1, "not told from")):
        changed = fit.comparison.assign(low=low, high=high)[loss]
        assert said in replace(fit, comparison=changed).reading


def test_without_a_step_the_mix_is_even(ends, task):
    fit = fit_mixing(*ends, task, **{**QUICK, "steps": 1}, learning_rate=1e-12)
    rows = fit.evaluation.set_index("model")
    assert rows.loss["mix"] == pytest.approx(rows.loss["even"], abs=1e-10)
    assert fit.table.weight.tolist() == pytest.approx([0.5] * len(fit.table))


def test_as_the_original():
    config = MixConfig(compat="plm").settled()
    assert (config.init_std, config.optimizer, config.rates) == (10, "adafactor", (0.1, 0.05))
    assert config.keep == "best" and config.dropout and config.rate(0) == config.learning_rate
    assert MixConfig(compat="plm", learning_rate=0.01).settled().rates == (0.01,)
    assert MixConfig(compat="plm", init_std=0.0).settled().init_std == 0
    # 83 % of its first shares lie outside [0.1, 0.9].
    drawn = torch.zeros(4000, dtype=torch.float64)
    loop = MixingLoop(Bowl(drawn), [drawn, drawn + 1], [[(0, 1)]] * 4000, config)
    loop.begin(0)
    outside = (loop.shares < 0.1) | (loop.shares > 0.9)
    assert outside.mean() == pytest.approx(0.83, abs=0.02)


METHODS = {"adapter": {"adapter_size": 3}, "lora": {"lora_rank": 2}, "prefix": {"prefix_length": 3}}


@pytest.mark.parametrize("method", METHODS)
def test_what_was_tuned_is_mixed(tmp_path, save_checkpoint, word_tokenizer, task, method):
    base = resolve(save_checkpoint(tmp_path / "base", seed=7))
    both = []
    for k in range(2):
        model = load_model(base, "classification")
        tune(model, TuningConfig(tuning=method, **METHODS[method]), head=True)
        generator = torch.Generator().manual_seed(k)
        for tensor in (p for p in model.parameters() if p.requires_grad):
            torch.nn.init.normal_(tensor, std=0.3, generator=generator)
        save_model(model, tmp_path / f"t{k}", base.path, base.fingerprint)
        word_tokenizer.save_pretrained(tmp_path / f"t{k}")
        both.append(tmp_path / f"t{k}")
    fit = fit_mixing(*both, task, groups="layer", **QUICK)
    layers = {"bert.encoder.layer.0", "bert.encoder.layer.1"}
    # A prefix is made by one small network for all layers.
    own = {"embeddings", "encoder"} if method == "prefix" else layers
    assert set(fit.table.group) == {*own, "classifier"}
    mixed = fit.checkpoint(tmp_path / "mixed")
    assert mixed.tuning is not None
    own = lf.evaluate(mixed, task, dtype="float64").metrics["loss"]
    assert fit.evaluation.set_index("model").loss["mix"] == pytest.approx(own, abs=1e-6)


def test_bad_input(tmp_path, ends, task, save_checkpoint):
    twin = save_checkpoint(tmp_path / "twin", seed=1)
    three = save_checkpoint(tmp_path / "three", num_labels=3)
    cases = [
        (ConfigError, "same weights", (ends[0], twin), {}),
        (SpaceMismatchError, "labels", (ends[0], three), {}),
        (ConfigError, "groups", ends, {"groups": "head"}),
        (ConfigError, "init_std", ends, {"init_std": -1.0}),
        (ConfigError, "each once", ends, {"learning_rates": (0.1, 0.1)}),
        (ConfigError, "positive", ends, {"learning_rates": (0.0,)}),
        (ConfigError, "select_by has no effect", ends, {"select_by": "metric"}),
        (ConfigError, "select_split has no", ends, {"select_split": "test", "groups": "tensor"}),
        (ConfigError, "learning_rate has no", ends, {"learning_rate": 1, "learning_rates": (0.1,)}),
        (ConfigError, "did you mean 'learning_rates'", ends, {"learning_rats": 1}),
        (lf.errors.DataError, "no split 'tset'", ends, {"keep": "best", "select_split": "tset"}),
    ]
    for kind, match, pair, options in cases:
        with pytest.raises(kind, match=match):
            fit_mixing(*pair, task, store=tmp_path / "study", **{**QUICK, **options})
    fit = fit_mixing(*ends, task, **QUICK)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="other things"):
        fit.checkpoint(tmp_path / "mine")
    with pytest.raises(StoreError, match="other weights"):
        replace(fit, b=fit.a).checkpoint(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    loop = MixingLoop(Bowl(torch.ones(2)), [torch.ones(2), torch.zeros(2)], [[(0, 2)]], MixConfig())
    loop.begin(0)
    loop.free.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="lower learning_rate"):
        loop.check_finite()


def test_a_forecast_counts_steps_and_evaluations(ends, task, tmp_path):
    from landform.store.study import open_store

    study = MixStudy.of(*ends, task, options={**QUICK, "learning_rates": (0.1, 0.2), "points": 5})
    store = open_store(tmp_path / "study")
    *fits, evaluations = study.forecast(store)
    assert [fit.evaluations for fit in fits] == [6, 6]
    assert evaluations.evaluations == 6  # two ends, three inner points, the mix
    study.run(store)
    assert [part.evaluations for part in study.forecast(store)][:2] == [0, 0]


def test_a_rate_without_a_score_is_not_chosen(ends, task):
    study = MixStudy.of(*ends, task, options={**QUICK, "learning_rates": (1.0, 0.1, 0.01)})
    found = [Contents(records={"best": {"value": v, "step": 6}}) for v in (np.nan, 0.9, 0.5)]
    rates, best = study._chosen(found)
    assert best == 2 and rates.chosen.tolist() == [False, False, True]
