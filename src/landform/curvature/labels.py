"""Whose labels a Fisher matrix is made of: the data's, or the model's own.

The Fisher matrix is E_x E_{y ~ p(y|x)} [grad log p(y|x) grad log p(y|x)^T]: labels come from the
model ("true"). With the data's labels it is the empirical Fisher ("empirical"). The gradient of an
example is linear in the gradient u of the loss with respect to the logits, so an expectation over
labels needs no sampling: any columns u_k with sum_k u_k u_k^T = E[u u^T] give it exactly.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from landform.tasks.batching import IGNORED, Batch
from landform.tasks.objective import Objective

__all__ = ["EXACT_CLASSES", "Labels", "is_exact", "multinomial_columns", "output_columns"]

Labels = Literal["true", "empirical", "sampled"]

EXACT_CLASSES = 16
"""Most classes for which the expectation over labels is taken exactly: one backward pass for each
but one."""


def is_exact(objective: Objective, classes: int) -> bool:
    """Whether "true" labels are an exact expectation here, or a seeded sample."""
    if objective.kind == "regression":
        return True
    return objective.kind == "classification" and classes <= EXACT_CLASSES


def output_columns(
    objective: Objective, logits: Tensor, batch: Batch, labels: Labels, seed: int
) -> list[Tensor]:
    """Gradients of the loss by the logits whose outer products, summed, are E[u u^T].

    empirical: u of the data's labels. true: for few classes C - 1 columns with which the
    expectation over y ~ softmax(z) is exact; for a regression sqrt(2), since (z - y)^2 is the
    negative log density of a normal y with variance 1/2; otherwise as sampled. sampled: u of one
    label drawn per position, which depends on the seed and the example's tokens alone.
    """
    z = logits.detach().double()
    targets = objective.targets(batch)
    if labels == "empirical":
        return [objective.output_gradient(z, targets)]
    if labels == "true" and is_exact(objective, z.shape[-1]):
        if objective.kind == "regression":
            return [torch.full_like(z, math.sqrt(2))]
        return multinomial_columns(z.softmax(-1))
    return [objective.output_gradient(z, _draw(objective, z, targets, batch, seed))]


def multinomial_columns(p: Tensor) -> list[Tensor]:
    """C - 1 columns (B, C) with sum_k u_k u_k^T = diag(p) - p p^T, the covariance of a label.

    The Cholesky factor of the multinomial covariance in closed form (Tanabe and Sagae 1992): with
    the tails s_j = p_j + ... + p_C, u_j has the entry sqrt(p_j s_{j+1} / s_j) at j and
    -p_i sqrt(p_j / (s_j s_{j+1})) at i > j. Nothing is subtracted, so a saturated model keeps all
    its digits.
    """
    tails = p.flip(-1).cumsum(-1).flip(-1).clamp(min=torch.finfo(p.dtype).tiny)
    columns = []
    for j in range(p.shape[-1] - 1):
        column = torch.zeros_like(p)
        now, after = tails[..., j], tails[..., j + 1]
        column[..., j] = (p[..., j] * after / now).sqrt()
        # p_i / s_{j+1} <= 1 is formed first: a product of two tiny tails would be 0.
        share = p[..., j + 1 :] / after.unsqueeze(-1)
        column[..., j + 1 :] = -share * column[..., j : j + 1]
        columns.append(column)
    return columns


def _draw(objective: Objective, logits: Tensor, targets: Tensor, batch: Batch, seed: int) -> Tensor:
    """One label per position from the model's distribution, by the inverse of its distribution
    function at a uniform number that belongs to the example and not to the batch."""
    uniform = _uniforms(batch, targets.shape[1:], seed).to(logits.device)
    if objective.kind == "regression":
        values: Tensor = logits + math.sqrt(0.5) * torch.special.ndtri(uniform)
        return values
    steps = logits.softmax(-1).cumsum(-1)
    drawn = (steps < (uniform * steps[..., -1]).unsqueeze(-1)).sum(-1)
    return torch.where(targets == IGNORED, targets, drawn.clamp(max=logits.shape[-1] - 1))


def _uniforms(batch: Batch, shape: tuple[int, ...], seed: int) -> Tensor:
    """(B, *shape) numbers in (0, 1), the same for the same tokens in whatever batch."""
    ids = batch.inputs["input_ids"].cpu().numpy()
    lengths = batch.inputs["attention_mask"].sum(-1).tolist()
    table = np.empty((len(ids), *shape))
    for row, (tokens, length) in enumerate(zip(ids, lengths, strict=True)):
        digest = hashlib.sha256(f"{seed}:".encode() + tokens[:length].tobytes()).digest()
        table[row] = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(shape)
    return torch.from_numpy(table.clip(1e-300, None))
