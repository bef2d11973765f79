"""One model over prepared data: losses, outputs and generated answers of every example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landform.errors import ConfigError, LandformError, NonFiniteError
from landform.evaluation.prepared import PreparedData
from landform.tasks.answers import references
from landform.tasks.metrics import Predictions, get_metric
from landform.tasks.task import Examples, Task

__all__ = ["Evaluator", "RawOutputs", "check_metrics"]


@dataclass(frozen=True)
class RawOutputs:
    """What one model says of one data set, in the order of the examples."""

    losses: np.ndarray
    """(N,) mean loss over the valid positions of an example, float64 (0 where it has none)"""
    tokens: np.ndarray
    """(N,) number of valid positions (of several references: their mean)"""
    logits: np.ndarray | None
    """(N, C) or (N,), in the task's label order; None for token tasks"""
    correct: np.ndarray | None
    """(N,) valid positions predicted right, for token tasks"""
    margins: np.ndarray | None = None
    """(N,) `Objective.margins` in nats, float64, where they were asked for"""
    texts: tuple[str, ...] | None = None
    """N generated answers, where they were asked for"""
    cut: int = 0
    """how many of these were cut at the maximum length"""

    def predictions(self, examples: Examples, kind: str) -> Predictions:
        """What metrics read."""
        sequence = kind in ("classification", "regression")
        return Predictions(
            logits=self.logits,
            labels=np.asarray(examples.labels) if sequence else None,
            losses=self.losses,
            tokens=self.tokens,
            texts=self.texts,
            references=None if self.texts is None else references(examples),
            correct=self.correct,
        )


class Evaluator:
    """Runs one model over prepared data sets, wherever its parameters stand at the moment."""

    def __init__(
        self, model: torch.nn.Module, data: Sequence[PreparedData], *, margins: bool = False
    ) -> None:
        self.model = model
        self.data = tuple(data)
        self.margins = margins
        self.evaluations = 0

    def run(self, where: str = "the model") -> tuple[RawOutputs, ...]:
        """Evaluate all data sets; `where` names the point in the error for a NaN loss."""
        self.evaluations += 1
        self.model.eval()  # dropout at a point would make its loss a random number
        with torch.inference_mode():
            return tuple(self._run(data, where) for data in self.data)

    def _run(self, data: PreparedData, where: str) -> RawOutputs:
        sums, counts, logits, correct, margins = [], [], [], [], []
        texts: list[str] = []
        cut = 0
        sequence = data.objective.kind in ("classification", "regression")
        for batch in data.batches:
            # The encoder's outputs serve the loss and the generated answers.
            memory = data.objective.encode(self.model, batch) if data.generation else None
            z = data.objective.logits(self.model, batch, memory)
            losses = data.objective.losses(
                z.double() if sequence else z, data.objective.targets(batch)
            ).per_example(batch)
            if self.margins:
                margins.append(
                    batch.per_example(data.objective.margins(z, data.objective.targets(batch)))
                )
            if data.generation is not None and memory is not None:
                answers, short = data.generation.run(self.model, batch, memory)
                texts += answers
                cut += short
            sums.append(losses.sums.double())
            counts.append(losses.counts.double())
            if sequence:
                logits.append(z)
            elif losses.correct is not None:
                correct.append(losses.correct.double())

        def restore(parts: list[Tensor]) -> np.ndarray:
            values = torch.cat(parts)[data.order]
            # numpy has no bfloat16; float32 holds every bfloat16 and float16 value exactly.
            wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
            return wide.cpu().numpy()

        total, count = restore(sums), restore(counts)
        if not np.isfinite(total).all():
            row = int(np.flatnonzero(~np.isfinite(total))[0])
            raise NonFiniteError(
                f"{where}: the loss of example {data.ids[row]} of {data.name} is {total[row]}",
                remedy="the weights are too large there: use another checkpoint (while training, "
                "a lower learning rate), or dtype float32",
            )
        return RawOutputs(
            total / np.where(count > 0, count, 1),
            count,
            restore(logits) if sequence else None,
            restore(correct) if correct else None,
            restore(margins) if margins else None,
            tuple(texts[i] for i in data.order.tolist()) if data.generation else None,
            cut,
        )


def check_metrics(task: Task, names: Sequence[str]) -> None:
    """Raise for a metric that does not fit the kind of the task, which two made-up examples show.

    Found after the forward passes, it would cost them.
    """
    classes, regression = task.kind == "classification", task.kind == "regression"
    answered = task.kind == "seq2seq" and task.noise is None  # what is hidden is no answer
    two = np.arange(2)
    made_up = Predictions(
        logits=np.eye(2, max(task.n_labels, 2)) if classes else two * 1.0 if regression else None,
        labels=two if classes else two * 1.0 if regression else None,
        losses=np.ones(2),
        tokens=np.ones(2),
        texts=("0", "1") if answered else None,
        references=(("0",), ("1",)) if answered else None,
        correct=None if classes or regression else np.ones(2),
    )
    for name in names:
        try:
            get_metric(name).aggregate(made_up)
        except LandformError as error:
            raise ConfigError(f"task {task.name!r}: {error.what}", remedy=error.remedy) from None
