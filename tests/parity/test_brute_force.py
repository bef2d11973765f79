"""The brute force that others are measured by is itself measured against slopes and identities."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from brute_force import (
    curvature,
    layer_names,
    pairwise_scores,
    per_example_gradients,
    self_scores,
    weighted_gradients,
)
from landform.tasks.batching import Batch
from landform.tasks.objective import Objective

Tensor = torch.Tensor


def make_batches(seed: int = 0, lengths: tuple[int, ...] = (4, 7, 5, 9, 3)) -> list[Batch]:
    """Two padded batches of random tokens whose rows are not in the order of the data."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for rows in ([3, 0, 1], [2, 4]):
        width = max(lengths[r] for r in rows)
        ids = torch.randint(5, 45, (len(rows), width), generator=generator)
        mask = torch.stack([torch.arange(width) < lengths[r] for r in rows]).long()
        inputs = {"input_ids": ids * mask, "attention_mask": mask}
        batches.append(Batch(inputs, torch.tensor([r % 2 for r in rows]), torch.tensor(rows)))
    return batches


@pytest.fixture
def model(tiny_model: Any) -> Any:
    return tiny_model("classification", "bert", num_labels=3)


OBJECTIVE = Objective("classification")


def loss_of_row(model: Any, batch: Batch, i: int) -> float:
    length = int(batch.inputs["attention_mask"][i].sum())
    logits = model(input_ids=batch.inputs["input_ids"][i : i + 1, :length]).logits
    return float(torch.nn.functional.cross_entropy(logits, batch.labels[i : i + 1]))


def test_a_gradient_is_the_slope_of_the_loss(model: Any) -> None:
    batches = make_batches()
    gradients = per_example_gradients(model, OBJECTIVE, batches)
    name = "bert.encoder.layer.0.intermediate.dense"
    layer = model.get_submodule(name)
    step = 1e-5
    for parameter, place, column in ((layer.weight, (2, 5), 5), (layer.bias, (2,), -1)):
        with torch.no_grad():
            parameter[place] += step
            up = loss_of_row(model, batches[0], 0)
            parameter[place] -= 2 * step
            down = loss_of_row(model, batches[0], 0)
            parameter[place] += step
        row = int(batches[0].rows[0])
        assert float(gradients[name][row, 2, column]) == pytest.approx(
            (up - down) / (2 * step), rel=1e-6
        )


def test_gradients_come_from_inputs_and_output_gradients(model: Any) -> None:
    # In a layer with one row per example G = g a^T, so that sum G G^T = N S mean |a|^2.
    batches = make_batches()
    factors = curvature("ekfac", model, OBJECTIVE, batches)
    gradients = per_example_gradients(model, OBJECTIVE, batches)["classifier"]
    assert factors["classifier"].rows == 5
    assert factors["bert.encoder.layer.0.attention.self.query"].rows == 4 + 7 + 5 + 9 + 3
    traces = gradients.square().sum((1, 2))
    bias = gradients[..., -1]  # = g
    torch.testing.assert_close(factors["classifier"].s, bias.t() @ bias / 5)
    a_square = (traces / bias.square().sum(1)).mean()
    torch.testing.assert_close(factors["classifier"].a.trace(), a_square)
    assert float(factors["classifier"].a[-1, -1]) == pytest.approx(1)


def test_the_eigenbasis_changes_no_sum_of_squares(model: Any) -> None:
    batches = make_batches()
    diagonal = curvature("diagonal", model, OBJECTIVE, batches)
    ekfac = curvature("ekfac", model, OBJECTIVE, batches)
    for name in layer_names(model):
        torch.testing.assert_close(diagonal[name].values.sum(), ekfac[name].values.sum())


def test_true_labels_average_to_no_gradient(model: Any) -> None:
    # E_y [grad log p(y)] = 0: true of the model's own labels only, and of every layer.
    draws = weighted_gradients(model, OBJECTIVE, make_batches(), labels="true")
    assert len(draws) == 3
    torch.testing.assert_close(sum(w for w, _ in draws), torch.ones(5, dtype=torch.float64))
    for name in draws[0][1]:
        mean = sum(w[:, None, None] * g[name] for w, g in draws)
        assert float(mean.abs().max()) < 1e-12


def test_true_covariances_use_the_same_weights(model: Any) -> None:
    batches = make_batches()
    s = curvature("kfac", model, OBJECTIVE, batches, labels="true")["classifier"].s
    total = sum(
        w[:, None, None] * g["classifier"][..., -1:] @ g["classifier"][..., -1:].transpose(1, 2)
        for w, g in weighted_gradients(model, OBJECTIVE, batches, ["classifier"], labels="true")
    )
    torch.testing.assert_close(s, total.mean(0))


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
def test_self_scores_are_the_diagonal_and_positive(model: Any, strategy: str) -> None:
    batches = make_batches()
    factors = curvature(strategy, model, OBJECTIVE, batches)
    gradients = per_example_gradients(model, OBJECTIVE, batches)
    alone = sum(self_scores(factors, gradients, damping=1e-3).values())
    pairs = sum(pairwise_scores(factors, gradients, gradients, damping=1e-3).values())
    assert isinstance(alone, Tensor) and isinstance(pairs, Tensor)
    torch.testing.assert_close(alone, pairs.diagonal())
    assert bool((alone > 0).all())
    torch.testing.assert_close(pairs, pairs.t())  # H is symmetric


def test_minus_margin_falls_with_the_loss(model: Any) -> None:
    # margin = log p / (1 - p), so its negative has the gradient of the loss times 1 / (1 - p).
    batches = make_batches()
    loss = per_example_gradients(model, OBJECTIVE, batches)["classifier"]
    margin = per_example_gradients(model, OBJECTIVE, batches, measurement="margin")["classifier"]
    for batch in batches:
        with torch.no_grad():
            p = OBJECTIVE.logits(model, batch).softmax(-1).gather(1, batch.labels[:, None])
        torch.testing.assert_close(margin[batch.rows], loss[batch.rows] / (1 - p)[..., None])


def test_a_module_used_twice_has_one_gradient() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            x = torch.nn.functional.one_hot(input_ids.sum(1) % 4, 4).double()
            y = self.inner(torch.tanh(self.inner(x)))
            return type("Output", (), {"logits": y})

    torch.manual_seed(0)
    model = Twice().double()
    batches = make_batches()
    factors = curvature("ekfac", model, OBJECTIVE, batches)
    assert factors["inner"].rows == 2 * 5
    gradients = per_example_gradients(model, OBJECTIVE, batches)["inner"]
    loss = sum(
        torch.nn.functional.cross_entropy(
            OBJECTIVE.logits(model, batch), batch.labels, reduction="sum"
        )
        for batch in batches
    )
    (expected,) = torch.autograd.grad(loss, [model.inner.weight])
    torch.testing.assert_close(gradients.sum(0)[:, :-1], expected)
