"""Products against curvlinops (Dangel et al. 2025), on data without padding or masks.

It knows neither: its sums divide by the number of loss terms of the batches as they are given.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dense_curvature import make_data
from landform.curvature.operators import CurvatureOperator
from landform.weights.space import ParameterSpace

curvlinops = pytest.importorskip(
    "curvlinops", reason="curvlinops-for-pytorch is not installed (make test installs it)"
)

SHAPE = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
}  # fmt: skip
OPERATORS = {
    "hessian": "HessianLinearOperator",
    "ggn": "GGNLinearOperator",
    "empirical-fisher": "EFLinearOperator",
}


class Logits(torch.nn.Module):
    """A model as curvlinops calls it: token ids to logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_products_are_the_same(tiny_model: Any, kind: str, operator: str) -> None:
    classes = 3 if kind == "classification" else 1
    model = tiny_model(kind, "bert", **SHAPE, num_labels=classes)
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 45, (7, 6), generator=generator)
    labels = [0, 1, 2, 2, 1, 0, 1] if classes > 1 else [0.1, -1.0, 2.0, 0.3, 0.0, 1.0, -0.7]
    rows = [
        {"input_ids": row, "labels": label} for row, label in zip(ids.tolist(), labels, strict=True)
    ]
    data = make_data(kind, rows, ([0, 1, 2], [3, 4, 5, 6]))
    space = ParameterSpace.of(model)
    v = torch.randn(space.numel, generator=generator, dtype=torch.float64)
    with CurvatureOperator(model, space, data, operator) as a:  # type: ignore[arg-type]
        mine = a.multiply(v)
    if kind == "classification":
        loss: Any = torch.nn.CrossEntropyLoss()
        targets = torch.tensor(labels)
    else:
        loss, targets = torch.nn.MSELoss(), torch.tensor(labels, dtype=torch.float64)[:, None]
    wrapped = Logits(model)
    batches = [(ids[:3], targets[:3]), (ids[3:], targets[3:])]
    theirs = getattr(curvlinops, OPERATORS[operator])(
        wrapped, loss, list(wrapped.parameters()), batches
    )
    expected = theirs @ v
    ours, others = space.unflatten(mine), space.unflatten(expected)
    for name in space.names:
        if operator == "hessian" and name.endswith("LayerNorm.weight"):
            continue
        torch.testing.assert_close(ours[name], others[name], rtol=1e-9, atol=1e-10)
    if operator == "hessian":
        # Its Hessian is forward over reverse mode, and torch's forward mode is wrong there (2.13).
        _check_by_slopes(wrapped, loss, ids, targets, space, v, mine)


def _check_by_slopes(
    model: Any, loss: Any, ids: Any, targets: Any, space: Any, v: Any, product: Any
) -> None:
    """Every entry of H v by central differences of the gradient."""
    parameters = list(model.parameters())

    def gradient(step: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, space.unflatten(v).values(), strict=True):
                p += step * d
        slopes = torch.autograd.grad(loss(model(ids), targets), parameters)
        with torch.no_grad():
            for p, d in zip(parameters, space.unflatten(v).values(), strict=True):
                p -= step * d
        return torch.cat([slope.reshape(-1) for slope in slopes])

    slopes = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    torch.testing.assert_close(product, slopes, rtol=1e-5, atol=1e-5)
