"""The gradients of some rows in all layers, from one forward and backward pass over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from landform.curvature.gradients import Basis, GradientStore, LayerGradients
from landform.curvature.session import Session
from landform.evaluation.points import PreparedData
from landform.tasks.objective import Objective

__all__ = ["Captured", "Measure"]

Measure = Callable[[Objective, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(objective, logits, targets) -> (a value per example, the gradient of their sum by the logits)"""


@dataclass(eq=False)
class Captured:
    """Gradients as tokens, and what the model said of the rows."""

    store: GradientStore
    losses: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        session: Session,
        data: PreparedData,
        bases: Sequence[Basis],
        measure: Measure | None = None,
        *,
        drop: bool = True,
    ) -> Captured:
        """One pass over prepared data; the gradients are those of the loss, or of `measure`."""
        captured = cls(GradientStore(bases, drop=drop))
        objective = data.objective
        with session.capture(objective) as capture:
            for batch in data.batches:
                logits = session.logits(capture, batch, data.ids, data.name)
                targets = objective.targets(batch)
                z = logits.detach().double()
                if measure is None:
                    values, gradient = None, objective.output_gradient(z, targets)
                else:
                    values, gradient = measure(objective, z, targets)
                captured.note(objective, z, targets, values)
                capture.backward(logits, [gradient], captured.store.visitor(batch.rows))
        return captured

    def note(
        self, objective: Objective, logits: Tensor, targets: Tensor, values: Tensor | None = None
    ) -> None:
        """Keep what the model said of a batch (`logits` in float64)."""
        self.losses.append(objective.losses(logits, targets).sums)
        self.values.append(self.losses[-1] if values is None else values)
        if objective.kind == "classification":
            self.predictions.append(logits.argmax(-1))

    def __len__(self) -> int:
        return len(self.store)

    @property
    def layers(self) -> list[LayerGradients]:
        """The gradients by layer."""
        return self.store.layers

    @property
    def order(self) -> Tensor:
        """The row of every example held."""
        return self.store.order

    def sorted_rows(self) -> np.ndarray:
        """The rows held, ascending: the order of `facts` and of tables of scores."""
        rows: np.ndarray = self.order.sort().values.cpu().numpy()
        return rows

    def facts(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Losses, measured values and predictions in the order of the rows."""
        back = self.order.argsort()
        facts = {"loss": torch.cat(self.losses), "value": torch.cat(self.values)}
        if self.predictions:
            facts["prediction"] = torch.cat(self.predictions)
        return {f"{prefix}{name}": value[back].cpu().numpy() for name, value in facts.items()}
