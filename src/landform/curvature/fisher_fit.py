"""Computing the diagonal of a Fisher matrix: one pass of squared per-example gradients.

With l_i the loss of example i at the checkpoint theta (dropout off) and y its label,

    F_j = 1/N sum_i E_y [ (d l_i(y) / d theta_j)^2 ]

over all N examples, exactly N in the denominator. An example without a scored token (a text of
which nothing is masked) has no gradient: it adds 0 and counts.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from landform.curvature.fisher import Fisher, FisherScores
from landform.curvature.labels import is_exact, output_columns
from landform.evaluation.points import Data, DataConfig, PreparedData, prepare
from landform.store.artifacts import ArtifactStore
from landform.tasks.batching import IGNORED, Batch, cut_batches
from landform.tasks.objective import Objective
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, load_model, load_tokenizer, resolve
from landform.weights.space import ParameterSpace

__all__ = ["FisherConfig", "fisher"]

Estimator = Literal["empirical", "true", "sampled"]
Reduction = Literal["mean", "sum", "token"]


class FisherConfig(DataConfig):
    """How a Fisher diagonal is computed."""

    estimator: Estimator = "empirical"
    """Whose labels: empirical (the data's), true (the model's own; exact for few classes, sampled
    otherwise), sampled (one draw from the model)."""
    reduction: Reduction = "mean"
    """What one gradient is of: mean or sum of an example's token losses, or a single token."""


def fisher(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    split: str = "train",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Fisher:
    """The Fisher diagonal of a checkpoint's loss on a split of a task.

    Options are the fields of `FisherConfig` (rows, estimator, reduction, dtype, ...).
    """
    config = FisherConfig.parse(options, where="fisher")
    found, data = resolve(checkpoint), Data(task, split)
    model: Any = load_model(found, task.kind, config)
    model.to(config.torch_device()).eval()
    space = ParameterSpace.of(model)
    prepared = prepare(data, found, model, load_tokenizer(found), config)
    squares = [_squares(model, space, prepared, config, row) for row in range(prepared.size)]
    sums = [sum(parts) for parts in zip(*[s for s, _ in squares], strict=True)]
    diagonal = {
        n: torch.as_tensor(s) / prepared.size for n, s in zip(space.names, sums, strict=True)
    }
    totals = np.array([[float(p.sum()) for p in parts] for parts, _ in squares])
    layer_of: dict[str, str] = {}
    for layer, regions in space.groups("layer").items():
        layer_of |= {region.name: layer for region in regions}
    tensors = pd.DataFrame(
        {
            "name": space.names,
            "dims": [len(shape) for shape in space.shapes],
            "entries": space.sizes,
            "total": totals.mean(0),
            "largest": [float(diagonal[n].max()) for n in space.names],
            "layer": [layer_of[n] for n in space.names],
            "sublayer": None,
        }
    )
    covariance = np.atleast_2d(np.cov(totals.T)) / len(totals)
    examples = data.examples(config.rows)
    summary = FisherScores(
        checkpoint=found.spec,
        task=task.name,
        split=task.resolve(split),
        estimator=_labels(config, prepared.objective, len(task.label_names)),
        reduction=config.reduction,
        examples=len(examples),
        terms=len(examples),
        tensors=tensors,
        covariance=pd.DataFrame(covariance, columns=list(space.names)),
        traces=pd.DataFrame(
            {"text_id": examples.ids, "tokens": [t for _, t in squares], "trace": totals.sum(1)}
        ),
        stability=pd.DataFrame(columns=["groups", "examples", "correlation", "low", "high"]),
        provenance={
            "weights": found.fingerprint,
            "examples": examples.fingerprint,
            "config": config.model_dump(mode="json"),
        },
    )
    return Fisher(summary, diagonal)


def _squares(
    model: Any, space: ParameterSpace, data: PreparedData, config: FisherConfig, row: int
) -> tuple[list[Tensor], int]:
    """Squared gradients of one example, run alone; the number of its scored tokens."""
    (batch,) = (b.to(config.torch_device()) for b in cut_batches(data.encoded.take([row]), 1))
    parameters = dict(model.named_parameters())
    chosen = [parameters[name].requires_grad_(True) for name in space.names]
    logits = data.objective.logits(model, batch)
    tokens = _scored(data.objective, batch)
    columns = output_columns(data.objective, logits, batch, config.estimator, config.seed)
    total = [torch.zeros_like(p, requires_grad=False) for p in chosen]
    for column in columns:
        if config.reduction == "mean":
            column = column / max(tokens, 1)
        found = torch.autograd.grad(
            logits, chosen, column.to(logits.dtype), retain_graph=True, allow_unused=True
        )
        for sum_, gradient in zip(total, found, strict=True):
            if gradient is not None:
                sum_ += gradient.square()
    return total, tokens


def _scored(objective: Objective, batch: Batch) -> int:
    if objective.kind == "regression":
        return 1
    return int((objective.targets(batch) != IGNORED).sum())


def _labels(config: FisherConfig, objective: Objective, classes: int) -> str:
    if config.estimator == "true":
        return f"true ({'exact' if is_exact(objective, classes) else 'sampled'})"
    return config.estimator
