"""The loss as a function on parameter space, with its gradient.

What sharpness climbs and what curve fitting descends:

    L(theta) = sum_i sum_t l_it(theta) / sum_i sum_t m_it,        g = dL / dtheta

for one data set, or some of its rows. The model is bound to a flat vector and its gradients to
another, so a point is moved by writing `field.flat`, and a gradient with respect to control points
w of theta = sum_k c_k w_k is `c_k g`: no graph through the mixing is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landform.errors import DataError, NonFiniteError
from landform.evaluation.points import PointsWorker, PreparedData
from landform.tasks.batching import IGNORED, Batch, cut_batches
from landform.tasks.objective import Objective
from landform.weights.space import BoundModel, ParameterSpace

__all__ = ["Field", "position_counts"]


def position_counts(objective: Objective, batch: Batch) -> Tensor:
    """(B,) positions of every example that carry a loss (of several references: their mean)."""
    targets = objective.targets(batch)
    if objective.kind == "regression":
        return targets.new_ones(len(targets))
    valid = targets != IGNORED
    return batch.per_example(valid if valid.dim() == 1 else valid.sum(-1))


class Field:
    """Loss and gradient of one data set of a `PointsWorker`, wherever its model stands.

    The worker's `point(fingerprint)` gives its members as flat vectors; `self.bound` moves the
    model. With `dropout` the model runs as in training (its noise comes from torch's global
    generator); otherwise as in evaluation.
    """

    def __init__(self, worker: PointsWorker, data: int = 0, *, dropout: bool = False) -> None:
        self.worker = worker
        self.bound: BoundModel = worker.bound
        self.space: ParameterSpace = worker.space
        self.data: PreparedData = worker.evaluator.data[data]
        self.dropout = dropout
        self.evaluations = 0.0
        """passes over the whole data set, a forward and backward pass counting as three"""
        self._slope = torch.zeros_like(self.bound.flat)
        parameters = dict(self.bound.model.named_parameters())
        for name, view in self.space.unflatten(self._slope).items():
            parameters[name].requires_grad_(True)
            parameters[name].grad = view

    @property
    def flat(self) -> Tensor:
        """Where the model stands, (numel,); write into it to move."""
        return self.bound.flat

    @property
    def size(self) -> int:
        """Number of examples."""
        return self.data.size

    def batches(self, rows: Sequence[int] | np.ndarray) -> list[Batch]:
        """Some rows of the data set as padded batches on the device, in the worker's budget."""
        part = self.data.encoded.take(rows)
        budget = self.worker.config.token_budget
        return [batch.to(self.flat.device) for batch in cut_batches(part, budget)]

    def loss(self, batches: Sequence[Batch] | None = None) -> float:
        """L at this point over the whole data set, or over `batches`."""
        self.bound.model.train(self.dropout)
        with torch.inference_mode():
            total, count = self._add(batches, backward=None)
        self._count(batches, 1.0)
        return self._checked(total / count)

    def gradient(self, batches: Sequence[Batch] | None = None) -> tuple[float, Tensor]:
        """(L, g) at this point; g, shape (numel,), is overwritten by the next call."""
        self.bound.model.train(self.dropout)
        self._slope.zero_()
        count = self._positions(batches)
        total, _ = self._add(batches, backward=count)
        self._count(batches, 3.0)
        return self._checked(total / count), self._slope

    def _chosen(self, batches: Sequence[Batch] | None) -> Sequence[Batch]:
        return self.data.batches if batches is None else batches

    def _positions(self, batches: Sequence[Batch] | None) -> float:
        """Positions that carry a loss: known before the forward pass, for one division in all."""
        objective = self.data.objective
        counted = 0.0
        for batch in self._chosen(batches):
            counted += float(position_counts(objective, batch).sum())
        if not counted:
            raise DataError(
                f"{self.data.name}: no position of these examples has a label",
                remedy="choose rows with labels",
            )
        return counted

    def _add(
        self, batches: Sequence[Batch] | None, *, backward: float | None
    ) -> tuple[float, float]:
        """Sums and counts of the losses; with `backward` = count, adds up the gradient too."""
        objective, total, count = self.data.objective, 0.0, 0.0
        for batch in self._chosen(batches):
            logits = objective.logits(self.bound.model, batch)
            losses = objective.losses(logits, objective.targets(batch)).per_example(batch)
            if backward is not None:
                torch.autograd.backward(losses.sums.sum() / backward)
            total += float(losses.sums.detach().double().sum())
            count += float(losses.counts.sum())
        return total, max(count, 1.0)

    def _count(self, batches: Sequence[Batch] | None, passes: float) -> None:
        rows = self.size if batches is None else sum(len(batch) for batch in batches)
        self.evaluations += passes * rows / max(self.size, 1)

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss on {self.data.name} became {loss}",
                remedy="a smaller step (learning rate, epsilon), or dtype float32",
            )
        return loss
