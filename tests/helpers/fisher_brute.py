"""The Fisher diagonal from its definition: one example alone, autograd on the weights, float64.

Independent of `landform.curvature`: losses are written out, expectations over labels are sums over
all labels, and nothing is batched. Only tokens come from the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landform.evaluation.points import Data, DataConfig, prepare
from landform.tasks.batching import IGNORED
from landform.tasks.task import Task
from landform.weights.checkpoint import load_model, load_tokenizer, resolve
from landform.weights.space import ParameterSpace

__all__ = ["Brute", "brute_fisher"]


@dataclass
class Brute:
    """What the definition gives."""

    diagonal: dict[str, Tensor]
    sums: Tensor
    """(N, tensors) sums over a tensor's entries of an example's squared gradients"""
    tokens: list[int]
    terms: int
    names: list[str] = field(default_factory=list)


def brute_fisher(
    path: Any,
    task: Task,
    split: str = "train",
    *,
    reduction: str = "mean",
    true: bool = False,
    **options: Any,
) -> Brute:
    """One example at a time; `true`: the expectation over the model's own labels."""
    config = DataConfig(**{"dtype": "float64", **options})
    checkpoint = resolve(path)
    model: Any = load_model(checkpoint, task.kind, config).eval()
    names = list(ParameterSpace.of(model).names)
    chosen = [dict(model.named_parameters())[name].requires_grad_(True) for name in names]
    data = prepare(Data(task, split), checkpoint, model, load_tokenizer(checkpoint), config)
    total = [torch.zeros_like(p).detach() for p in chosen]
    sums, counts, terms = [], [], 0
    for row in data.encoded.rows:
        logits, targets = _alone(model, task.kind, row, data.objective)
        own = torch.zeros(len(chosen), dtype=torch.float64)
        losses = list(_losses(task.kind, logits, targets, true))
        tokens = max(len(at_one_label) for _, at_one_label in losses)
        counts.append(tokens)
        terms += tokens if reduction == "token" else 1
        for probability, positions in losses:
            if reduction == "token":
                parts = positions
            elif positions:
                whole = torch.stack(positions)
                parts = [whole.mean() if reduction == "mean" else whole.sum()]
            else:
                parts = []
            for loss in parts:
                found = torch.autograd.grad(loss, chosen, retain_graph=True, allow_unused=True)
                for number, gradient in enumerate(found):
                    if gradient is not None:
                        squares = probability * gradient.square()
                        total[number] += squares
                        own[number] += squares.sum()
        sums.append(own)
    diagonal = {name: t / terms for name, t in zip(names, total, strict=True)}
    return Brute(diagonal, torch.stack(sums), counts, terms, names)


def _alone(model: Any, kind: str, row: dict[str, Any], objective: Any) -> tuple[Tensor, Tensor]:
    """(logits of one example by its targets, targets)."""
    inputs = {k: torch.tensor([v]) for k, v in row.items() if k != "labels"}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    dtype = torch.float64 if kind == "regression" else torch.int64
    labels = torch.tensor(row["labels"], dtype=dtype)
    if kind == "seq2seq":
        shifted = model.prepare_decoder_input_ids_from_labels(labels=labels[None])
        inputs["decoder_input_ids"] = shifted
    logits = model(**inputs).logits[0]
    if kind == "causal-lm":
        return logits[:-1], labels[1:]
    if kind in ("classification", "token-classification"):
        logits = objective.labels(logits) if objective.labels is not None else logits
    return logits, labels


def _losses(
    kind: str, logits: Tensor, targets: Tensor, true: bool
) -> Iterator[tuple[float, list[Tensor]]]:
    """(probability of the labels, losses of the scored positions)."""
    if kind == "regression":
        z = logits.squeeze()
        labels = [(1.0, targets)]
        if true:  # two points with the variance 1/2 of the density exp(-(z - y)^2)
            labels = [(0.5, z.detach() + sign * 0.5**0.5) for sign in (1, -1)]
        for probability, y in labels:
            yield probability, [(z - y).square()]
    elif kind == "classification":
        logp = F.log_softmax(logits, -1)
        for c in range(len(logp)) if true else [int(targets)]:
            yield (float(logp[c].detach().exp()) if true else 1.0), [-logp[c]]
    else:
        assert not true, "the labels of a text are too many to go through"
        logp = F.log_softmax(logits, -1)
        scored = (targets != IGNORED).nonzero().flatten().tolist()
        yield 1.0, [-logp[t, int(targets[t])] for t in scored]
