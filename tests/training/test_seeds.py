"""Each source of chance is under its own seed, and under nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import landform as lf
from landform.training import loop
from landform.training.options import TrainConfig
from landform.training.seeds import DataOrder, Seeds, add_noise, isolated_randomness
from landform.weights.checkpoint import load_model

SHORT = {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-2, "save_steps": (0,), "threads": 1}


@pytest.fixture
def batches(monkeypatch):
    """Rows of every batch that a loss is computed of, in order."""
    seen: list[tuple[int, ...]] = []
    original = loop._LandformTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        seen.append(tuple(row for part in inputs["parts"] for row in part["rows"].tolist()))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(loop._LandformTrainer, "compute_loss", spy)
    return seen


def weights(path):
    return {n: p.detach().clone() for n, p in load_model(path).named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def run(pretrained, task, tmp_path, batches):
    """Trains under some seeds: (weights at step 0, final weights, batches)."""
    count = iter(range(100))

    def train(**options):
        batches.clear()
        out = tmp_path / f"out{next(count)}"
        lf.train(pretrained, task, out=out, eval_split=None, **{**SHORT, **options})
        return weights(f"{out}/seed0@0"), weights(f"{out}/seed0"), list(batches)

    return train


def test_same_seeds_give_the_same_bits(run):
    first, second = run(), run()
    assert same(first[0], second[0]) and same(first[1], second[1]) and first[2] == second[2]
    assert not same(first[0], first[1])


def test_head_seed_draws_the_head_and_nothing_else(run):
    base, other = run(), run(head_seed=7)
    changed = {name for name in base[0] if not torch.equal(base[0][name], other[0][name])}
    # This encoder was saved without a pooler, so the pooler is drawn as well; biases start at 0.
    assert changed == {"classifier.weight", "bert.pooler.dense.weight"}
    assert base[2] == other[2]
    assert float(base[0]["classifier.weight"].std()) == pytest.approx(0.02, rel=0.5)


def test_data_seed_orders_the_data_and_nothing_else(run):
    base, other = run(), run(data_seed=7)
    assert same(base[0], other[0])
    assert base[2] != other[2]
    assert not same(base[1], other[1])


def test_data_order_depends_on_the_data_seed_alone(run):
    base = run()
    other = run(head_seed=3, dropout_seed=4, perturb=0.1, perturb_seed=5, dropout=0.3)
    assert base[2] == other[2] and len(base[2]) == 6


def test_dropout_seed_is_dropout_alone(run):
    base, other = run(), run(dropout_seed=7)
    assert same(base[0], other[0]) and base[2] == other[2]
    assert not same(base[1], other[1])
    assert same(run(dropout=0.0)[1], run(dropout=0.0, dropout_seed=7)[1])


def test_run_seed_moves_all_that_is_not_fixed(pretrained, task, tmp_path, batches):
    fixed = {"head_seed": 0, "data_seed": 0, "dropout_seed": 0}
    r = lf.train(
        pretrained, task, out=tmp_path / "o", eval_split=None, seeds=(0, 1), **SHORT, **fixed
    )
    assert same(weights(r.paths[0]), weights(r.paths[1]))
    assert r.runs.head_seed.tolist() == [0, 0] and r.runs.seed.tolist() == [0, 1]
    s = Seeds.of(5, TrainConfig(head_seed=0))
    assert (s.run, s.head, s.data, s.dropout, s.perturb) == (5, 0, 5, 5, 5)


def test_epochs_visit_every_row_once_in_new_orders():
    order = DataOrder(10, 0)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_neighbouring_seeds_do_not_share_orders_one_epoch_apart():
    orders = {}
    for seed in range(4):
        order = DataOrder(30, seed)
        for epoch in range(4):
            order.set_epoch(epoch)
            orders[seed, epoch] = tuple(order)
    assert len(set(orders.values())) == 16


def test_the_callers_generators_and_threads_are_left_alone(pretrained, task, tmp_path):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    threads = torch.get_num_threads()
    lf.train(
        pretrained, task, out=tmp_path / "o", **{**SHORT, "max_steps": 1, "threads": threads + 1}
    )
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert torch.get_num_threads() == threads
    with isolated_randomness():
        torch.manual_seed(3)
    torch.manual_seed(1)
    assert torch.rand(1).item() == expected[2]


def test_noise_is_relative_to_each_tensor():
    model = nn.Sequential(nn.Linear(200, 100), nn.LayerNorm(100))
    with torch.no_grad():
        model[0].weight.mul_(50).add_(3)  # a mean that must not count as spread
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    add_noise(model, 0.1, seed=0, skip=frozenset({"0.bias"}))
    change = {n: (p.detach() - before[n]) for n, p in model.named_parameters()}
    spread = float(change["0.weight"].std())
    assert spread == pytest.approx(0.1 * float(before["0.weight"].std()), rel=0.02)
    assert abs(float(change["0.weight"].mean())) < 0.05 * spread
    assert not change["0.bias"].any() and not change["1.weight"].any()


def test_perturb_moves_the_pretrained_weights_and_not_the_head(run):
    base, noisy, again = run(), run(perturb=0.5), run(perturb=0.5, perturb_seed=9)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    moved = float((noisy[0][name] - base[0][name]).std() / base[0][name].std())
    assert moved == pytest.approx(0.5, rel=0.1)
    assert torch.equal(noisy[0]["classifier.weight"], base[0]["classifier.weight"])
    assert not torch.equal(noisy[0][name], again[0][name])
