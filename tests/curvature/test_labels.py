"""The expectation over labels, and draws that belong to examples."""

from __future__ import annotations

import pytest
import torch

from landform.curvature.labels import multinomial_columns, output_columns
from landform.tasks.batching import Batch
from landform.tasks.objective import Objective


@pytest.mark.parametrize("classes", (2, 3, 7))
def test_columns_are_a_root_of_the_covariance_of_a_label(classes: int) -> None:
    p = torch.randn(6, classes, dtype=torch.float64).mul(3).softmax(-1)
    columns = multinomial_columns(p)
    assert len(columns) == classes - 1
    total = sum(u[:, :, None] * u[:, None, :] for u in columns)
    assert torch.allclose(total, torch.diag_embed(p) - p[:, :, None] * p[:, None, :], atol=1e-15)


def test_a_saturated_model_keeps_its_digits() -> None:
    """p (1 - p) of a probability of 1e-40: no difference of nearly equal numbers is taken."""
    logits = torch.tensor([[92.0, 0.0], [0.0, 92.0], [0.0, -800.0]], dtype=torch.float64)
    (column,) = multinomial_columns(logits.softmax(-1))
    small = torch.tensor([-92.0, -92.0], dtype=torch.float64).exp()
    assert torch.allclose(column[:2].square()[:, 0], small, rtol=1e-12, atol=0)
    assert torch.isfinite(column).all()


def batch_of(lengths: list[int], width: int) -> Batch:
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = 5 + torch.arange(length) + length
        mask[row, :length] = 1
    targets = torch.where(mask.bool(), 0, -100)
    return Batch({"input_ids": ids, "attention_mask": mask}, targets, torch.arange(len(lengths)))


def test_draws_depend_on_the_example_alone() -> None:
    """Padding, the neighbours in the batch and their order change no drawn label."""
    objective = Objective("token-classification")
    z = torch.randn(8, 12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = [3, 5, 4, 7]
    together = batch_of(lengths, 9)
    (whole,) = output_columns(objective, z[:4, :9], together, "sampled", 1)
    for row, length in enumerate(lengths):
        alone = batch_of([length], length)
        (mine,) = output_columns(objective, z[row : row + 1, :length], alone, "sampled", 1)
        assert torch.equal(mine[0], whole[row, :length])
    (other,) = output_columns(objective, z[:4, :9], together, "sampled", 2)
    assert not torch.equal(other, whole)
    assert (whole[together.labels == -100] == 0).all()


def test_draws_follow_the_model() -> None:
    objective = Objective("classification")
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    batch = batch_of([3] * 1, 3)
    batch = Batch(batch.inputs, torch.zeros(1, dtype=torch.int64), batch.rows)
    drawn = []
    for seed in range(3000):
        (u,) = output_columns(objective, p.log()[None], batch, "sampled", seed)
        drawn.append(int((p - u[0]).argmax()))
    shares = torch.bincount(torch.tensor(drawn), minlength=3) / 3000
    assert torch.allclose(shares, p.float(), atol=0.03)
