"""Curvature and influence from their definitions: one example at a time, autograd on the weights.

Slow on purpose and independent of `landform.curvature`: no hook drops padding (every example is cut
to its own tokens and run alone), no rotation is rearranged, no expectation is in closed form. For a
layer y = W x + b the gradient of an example is (d_out, d_in + 1) with the bias as the last column.

    G_b                 d l_b / d [W, b], summed over the tokens and the uses of the layer
    A = sum_t a_t a_t^T / T      a = [x; 1], over all real rows t of all examples (T of them)
    S = sum_t g_t g_t^T / T      g = d l / d y, over the same rows
    Lambda              mean over examples of (Q_S^T G_b Q_A)^2 (ekfac), of G_b^2 (diagonal),
                        l_S l_A^T (kfac), 1 (identity)
    score(q, b)         sum over layers of < Q_S [(Q_S^T G_q Q_A) / (Lambda + damping)] Q_A^T, G_b >

Rows are tokens in layers that see tokens, and examples in a pooler or a classifier. Nothing is
divided by the number of training rows. Positive scores are helpful: G_q is the gradient of what
one wants small, the loss or minus the margin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from landform.tasks.batching import IGNORED, Batch
from landform.tasks.objective import Objective

__all__ = [
    "LayerCurvature",
    "apply_operator",
    "curvature",
    "layer_names",
    "pairwise_scores",
    "per_example_gradients",
    "self_scores",
    "weighted_gradients",
]

Gradients = dict[str, Tensor]
"""layer -> (N, d_out, d_in + 1), in the order of the data"""
Measurement = str | Callable[[Tensor, Tensor], Tensor]
"""'loss', 'margin' (its negative is differentiated), or f(logits (1, ...), targets (1, ...))"""


def layer_names(model: nn.Module) -> list[str]:
    """Every linear map of the model but a head that shares its matrix with the embeddings."""
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in tied
    ]


# --- one example at a time -----------------------------------------------------------------------


def _alone(batches: Sequence[Batch], kind: str) -> Iterator[tuple[int, Batch]]:
    """(position in the data, the example as a batch of its own without any padding)."""
    aligned = kind in ("token-classification", "masked-lm", "causal-lm")
    singles: dict[int, Batch] = {}
    for batch in batches:
        for i, position in enumerate(batch.rows.tolist()):
            length = int(batch.inputs["attention_mask"][i].sum())
            inputs = {name: value[i : i + 1, :length] for name, value in batch.inputs.items()}
            labels = batch.labels[i : i + 1]
            if aligned:
                labels = labels[:, :length]
            elif kind == "seq2seq":
                labels = labels[:, : int((labels[0] != IGNORED).nonzero().max()) + 1]
            assert position not in singles, "a row is in two batches"
            singles[position] = Batch(inputs, labels, batch.rows[i : i + 1])
    return iter(sorted(singles.items()))


def _loss(kind: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The summed loss of one example."""
    if kind == "regression":
        return (logits - targets).square().sum()
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
        ignore_index=IGNORED, reduction="sum",
    )  # fmt: skip


def _minus_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the summed log odds of the gold labels: - log p_y / (1 - p_y)."""
    total = logits.new_zeros(())
    rows = logits.reshape(-1, logits.shape[-1])
    for z, y in zip(rows, targets.reshape(-1).tolist(), strict=True):
        if y != IGNORED:
            others = torch.cat([z[:y], z[y + 1 :]])
            total = total - (z[y] - others.logsumexp(0))
    return total


def _value(kind: str, measurement: Measurement, logits: Tensor, targets: Tensor) -> Tensor:
    if callable(measurement):
        return measurement(logits, targets).sum()
    if measurement == "loss":
        return _loss(kind, logits, targets)
    assert measurement == "margin", measurement
    return _minus_margin(logits, targets)


def _possible_labels(kind: str, logits: Tensor) -> list[tuple[float, Tensor]]:
    """(probability, label) of one example under the model's own distribution."""
    if kind == "regression":  # two points with the variance 1/2 of exp(-(z - y)^2)
        return [(0.5, logits.detach() + sign * 0.5**0.5) for sign in (1, -1)]
    assert kind == "classification", "the labels of a text's tokens are too many to go through"
    p = logits.detach().softmax(-1)[0]
    return [(float(p[c]), torch.tensor([c])) for c in range(len(p))]


def _parameters(module: Any) -> list[Tensor]:
    return [module.weight] if module.bias is None else [module.weight, module.bias]


def _gradient(module: Any, parts: Sequence[Tensor | None]) -> Tensor:
    """(d_out, d_in + 1) from the gradients of weight and bias."""
    values = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(_parameters(module), parts, strict=True)
    ]
    weight = values[0].t() if isinstance(module, Conv1D) else values[0]
    return torch.cat([weight, *[bias[:, None] for bias in values[1:]]], 1)


def per_example_gradients(
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Batch],
    layers: Sequence[str] | None = None,
    *,
    measurement: Measurement = "loss",
) -> Gradients:
    """Gradients of every example's summed loss (or measurement) in every layer."""
    ((_, gradients),) = _all_gradients(model, objective, batches, layers, measurement, "empirical")
    return gradients


def weighted_gradients(
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Batch],
    layers: Sequence[str] | None = None,
    *,
    labels: str = "empirical",
) -> list[tuple[Tensor, Gradients]]:
    """[(weights (N,), gradients)]: second moments are sums over this list of w_b G_b G_b^T.

    empirical: once, with weights 1 and the data's labels. true: once for every label, weighted by
    the probability that the model gives it.
    """
    return _all_gradients(model, objective, batches, layers, "loss", labels)


def _all_gradients(
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Batch],
    layers: Sequence[str] | None,
    measurement: Measurement,
    labels: str,
) -> list[tuple[Tensor, Gradients]]:
    modules = {name: model.get_submodule(name) for name in layers or layer_names(model)}
    wanted = [p for module in modules.values() for p in _parameters(module)]
    flags = [p.requires_grad for p in wanted]
    weights: list[list[float]] = []
    found: list[dict[str, list[Tensor]]] = []
    model.eval()
    try:
        for p in wanted:
            p.requires_grad_(True)
        for _, single in _alone(batches, objective.kind):
            logits = objective.logits(model, single)
            draws = [(1.0, objective.targets(single))]
            if labels == "true":
                draws = _possible_labels(objective.kind, logits)
            for k, (weight, targets) in enumerate(draws):
                if len(found) <= k:
                    weights.append([])
                    found.append({name: [] for name in modules})
                value = _value(objective.kind, measurement, logits, targets)
                parts = iter(
                    torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
                )
                weights[k].append(weight)
                for name, module in modules.items():
                    mine = [next(parts) for _ in _parameters(module)]
                    found[k][name].append(_gradient(module, mine).detach())
    finally:
        for p, flag in zip(wanted, flags, strict=True):
            p.requires_grad_(flag)
    return [
        (torch.tensor(w, dtype=torch.float64), {n: torch.stack(g) for n, g in gradients.items()})
        for w, gradients in zip(weights, found, strict=True)
    ]


# --- curvature ------------------------------------------------------------------------------------


@dataclass
class LayerCurvature:
    """What a strategy knows of one layer."""

    strategy: str
    a: Tensor
    """(d_in + 1, d_in + 1) mean over rows"""
    s: Tensor
    """(d_out, d_out) mean over rows"""
    rows: int
    """rows that the two were averaged over"""
    examples: int
    left: Tensor
    """Q_S; the identity where the strategy has no basis"""
    right: Tensor
    """Q_A"""
    values: Tensor
    """Lambda (d_out, d_in + 1)"""

    def precondition(
        self, gradients: Tensor, damping: float | None, relative: float | None
    ) -> Tensor:
        """(N, d_out, d_in + 1) times the damped inverse; as they are for the identity."""
        if self.strategy == "identity":
            return gradients
        total = (damping or 0.0) + (relative or 0.0) * float(self.values.mean())
        return apply_operator(self.left, self.right, 1 / (self.values + total), gradients)

    def operator(self, probe: Tensor) -> Tensor:
        """Q_S [(Q_S^T X Q_A) o Lambda] Q_A^T: what can be compared when eigenvectors cannot."""
        return apply_operator(self.left, self.right, self.values, probe)


def apply_operator(left: Tensor, right: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """Q_S [(Q_S^T X Q_A) o values] Q_A^T of matrices X (..., d_out, d_in + 1)."""
    return left @ ((left.t() @ x @ right) * values) @ right.t()


def _covariances(
    model: nn.Module, objective: Objective, batches: Sequence[Batch], names: list[str], labels: str
) -> dict[str, tuple[Tensor, Tensor, int]]:
    """layer -> (A, S, rows), from what goes into the layer and what comes back to its output."""
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def hook(name: str) -> Callable[..., Tensor]:
        def forward_hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            y = output if output.requires_grad else output.requires_grad_(True)
            seen[name].append((inputs[0].detach(), y))
            return y

        return forward_hook

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    totals: dict[str, list[Any]] = {name: [0.0, 0.0, 0] for name in names}
    model.eval()
    try:
        for _, single in _alone(batches, objective.kind):
            seen.update({name: [] for name in names})
            logits = objective.logits(model, single)
            draws = [(1.0, objective.targets(single))]
            if labels == "true":
                draws = _possible_labels(objective.kind, logits)
            for name, uses in seen.items():
                for x, _ in uses:
                    a = x.reshape(-1, x.shape[-1])
                    if modules[name].bias is not None:
                        a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
                    totals[name][0] = totals[name][0] + a.t() @ a
                    totals[name][2] += len(a)
            outputs = [(name, y) for name, uses in seen.items() for _, y in uses]
            for weight, targets in draws:
                value = _loss(objective.kind, logits, targets)
                gradients = torch.autograd.grad(
                    value, [y for _, y in outputs], retain_graph=True, allow_unused=True
                )
                for (name, y), g in zip(outputs, gradients, strict=True):
                    flat = torch.zeros_like(y) if g is None else g
                    flat = flat.reshape(-1, y.shape[-1])
                    totals[name][1] = totals[name][1] + weight * flat.t() @ flat
    finally:
        for handle in handles:
            handle.remove()
    return {name: (a / rows, s / rows, rows) for name, (a, s, rows) in totals.items()}


def curvature(
    strategy: str,
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Batch],
    layers: Sequence[str] | None = None,
    *,
    labels: str = "empirical",
) -> dict[str, LayerCurvature]:
    """The factors of a strategy (identity, diagonal, kfac, ekfac) for every layer."""
    names = list(layers or layer_names(model))
    draws = weighted_gradients(model, objective, batches, names, labels=labels)
    covariances = _covariances(model, objective, batches, names, labels)
    found = {}
    for name in names:
        a, s, rows = covariances[name]
        left, right = torch.eye(len(s), dtype=s.dtype), torch.eye(len(a), dtype=a.dtype)
        examples = len(draws[0][0])
        values = torch.ones(len(s), len(a), dtype=s.dtype)
        if strategy in ("kfac", "ekfac"):
            l_s, left = torch.linalg.eigh(s)
            l_a, right = torch.linalg.eigh(a)
            values = torch.outer(l_s.clamp(min=0), l_a.clamp(min=0))
        if strategy in ("diagonal", "ekfac"):
            values = torch.zeros_like(values)
            for weights, gradients in draws:
                rotated = left.t() @ gradients[name] @ right
                values += (weights[:, None, None] * rotated.square()).sum(0) / examples
        found[name] = LayerCurvature(strategy, a, s, rows, examples, left, right, values)
    return found


# --- scores ---------------------------------------------------------------------------------------


def pairwise_scores(
    factors: dict[str, LayerCurvature],
    queries: Gradients,
    train: Gradients,
    *,
    damping: float | None = 1e-8,
    relative_damping: float | None = None,
) -> dict[str, Tensor]:
    """layer -> (Q, N); their sum is the score."""
    return {
        name: factor.precondition(queries[name], damping, relative_damping).flatten(1)
        @ train[name].flatten(1).t()
        for name, factor in factors.items()
    }


def self_scores(
    factors: dict[str, LayerCurvature],
    gradients: Gradients,
    measured: Gradients | None = None,
    **damping: float | None,
) -> dict[str, Tensor]:
    """layer -> (N,): < H^-1 g_m, g > of every row; `measured` None = its own loss on both sides."""
    pairs = pairwise_scores(factors, measured or gradients, gradients, **damping)
    return {name: scores.diagonal() for name, scores in pairs.items()}
