"""Curvature matrices from their definitions: whole, on tiny models, one example at a time.

Every example is cut to its own tokens and run alone under eager attention, as a function of the
flat vector of parameters; matrices are formed entry by entry with `torch.func` or autograd. Nothing
of `landform.curvature.operators` is used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landform.evaluation.points import PreparedData
from landform.tasks.batching import Batch, Encoded
from landform.tasks.objective import Objective
from landform.weights.space import ParameterSpace

__all__ = ["dense", "make_data"]


def make_data(kind: str, rows: Sequence[dict[str, Any]], batches: Sequence[Sequence[int]], *,
              extra: int = 0, causal: bool = False) -> PreparedData:  # fmt: skip
    """Rows of `input_ids` and `labels` (seq2seq: several under `labels`) as padded batches."""
    made = [_batch(kind, [rows[i] for i in chosen], chosen, extra) for chosen in batches]
    size = len(rows)
    encoded = Encoded(tuple(rows), kind, 0, 0)
    ids = tuple(f"row {i}" for i in range(size))
    return PreparedData("toy", Objective(kind), tuple(made), size, ids, 0, encoded)  # type: ignore[arg-type]


def _batch(kind: str, rows: Sequence[dict[str, Any]], places: Sequence[int], extra: int) -> Batch:
    width = max(len(row["input_ids"]) for row in rows) + extra
    ids = _padded([row["input_ids"] for row in rows], width, 0)
    mask = _padded([[1] * len(row["input_ids"]) for row in rows], width, 0)
    inputs, owners = {"input_ids": ids, "attention_mask": mask}, None
    if kind == "seq2seq":
        targets = [target for row in rows for target in row["labels"]]
        owners = torch.tensor([b for b, row in enumerate(rows) for _ in row["labels"]])
        labels = _padded(targets, max(map(len, targets)) + extra, -100)
    elif kind in ("classification", "regression"):
        dtype = torch.long if kind == "classification" else torch.float64
        labels = torch.tensor([row["labels"] for row in rows], dtype=dtype)
    else:
        labels = _padded([row["labels"] for row in rows], width, -100)
    return Batch(inputs, labels, torch.tensor(list(places)), owners)


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    return torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows])


def dense(kind: str, operator: str, model: Any, rows: Sequence[dict[str, Any]], *,
          space: ParameterSpace | None = None, reduction: str = "mean") -> Tensor:  # fmt: skip
    """The matrix (D, D) of an operator, from its definition."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    space = space or ParameterSpace.of(model)
    point = space.flatten(model)
    size = space.numel
    matrix, positions, examples = torch.zeros(size, size, dtype=point.dtype), 0.0, 0
    for row in rows:
        pairs = _positions(kind, row)  # (reference, place, target, weight)
        if not pairs:
            continue
        examples += 1
        positions += sum(weight for *_, weight in pairs)

        def outputs(flat: Tensor, row: Any = row) -> Tensor:
            return _logits(kind, model, space, flat, row)

        def loss(flat: Tensor, pairs: Any = pairs, outputs: Any = outputs) -> Tensor:
            z = outputs(flat)
            return sum(w * _loss(kind, z[r, t], y) for r, t, y, w in pairs)

        if operator == "hessian":
            matrix += torch.autograd.functional.hessian(loss, point, vectorize=True)
            continue
        if operator == "empirical-fisher" and reduction != "token":
            g = torch.autograd.functional.jacobian(loss, point)
            g = g / sum(w for *_, w in pairs) if reduction == "mean" else g
            matrix += torch.outer(g, g)
            continue
        jacobian = torch.autograd.functional.jacobian(outputs, point, vectorize=True)
        z = outputs(point)
        for r, t, y, w in pairs:
            j = jacobian[r, t].reshape(-1, size)
            if operator == "empirical-fisher":
                slope = torch.autograd.functional.jacobian(
                    lambda v, y=y: _loss(kind, v, y), z[r, t]
                )
                matrix += w * torch.outer(slope.reshape(-1) @ j, slope.reshape(-1) @ j)
            else:
                bend = torch.func.hessian(lambda v, y=y: _loss(kind, v, y))(z[r, t])
                matrix += w * j.t() @ bend.reshape(len(j), len(j)) @ j
    by_example = operator == "empirical-fisher" and reduction != "token"
    return matrix / (examples if by_example else positions)


def _positions(kind: str, row: dict[str, Any]) -> list[tuple[int, int, Any, float]]:
    if kind in ("classification", "regression"):
        return [(0, 0, row["labels"], 1.0)]
    if kind == "seq2seq":
        share = 1 / len(row["labels"])
        return [
            (r, t, y, share)
            for r, target in enumerate(row["labels"])
            for t, y in enumerate(target)
            if y != -100
        ]
    labels = row["labels"]
    shift = 1 if kind == "causal-lm" else 0
    return [(0, t - shift, y, 1.0) for t, y in enumerate(labels) if t >= shift and y != -100]


def _logits(kind: str, model: Any, space: ParameterSpace, flat: Tensor, row: Any) -> Tensor:
    """(references, positions, ...)"""
    inputs = {"input_ids": torch.tensor([row["input_ids"]])}
    if kind != "seq2seq":
        z = space.call(model, flat, **inputs).logits
        if kind == "regression":
            return z[:, None, 0]
        return z[:, None] if z.dim() == 2 else z
    parts = []
    width = max(map(len, row["labels"]))
    for target in row["labels"]:
        labels = torch.tensor([target + [0] * (width - len(target))])
        parts.append(space.call(model, flat, **inputs, labels=labels).logits[0])
    return torch.stack(parts)


def _loss(kind: str, z: Tensor, y: Any) -> Tensor:
    if kind == "regression":
        return ((z - y) ** 2).sum()
    return F.cross_entropy(z[None], torch.tensor([y]))
