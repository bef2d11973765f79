"""Curvature matrices as operators: products with vectors, never the matrix.

At a point theta, for the losses l_it of the scored positions t of N examples i and their explicit
weights w_it (1, or 1/k for one of k references), with logits z, Jacobians J_it = d z_it / d theta
and n_i = sum_t w_it:

    hessian            H = sum_it w_it d^2 l_it / d theta^2                          / sum_i n_i
    ggn, fisher        G = sum_it w_it J_it^T (d^2 l_it / d z^2) J_it                / sum_i n_i
    empirical-fisher   F = sum_i g_i g_i^T                                           / N

For cross-entropy, and for squared error under its Normal of variance 1/2, the generalised
Gauss-Newton matrix *is* the Fisher matrix with labels of the model's own (Martens 2020, section
9.2): the two names mean one matrix. In the empirical Fisher g_i is the gradient of the example's
mean loss (reduction "mean"), of its sum ("sum"), or of one position ("token": then the sum runs
over positions with weights w_it and N is sum_i n_i), as in `curvature.fisher`; N counts examples
with a scored position.

Products need two graphs of a batch: theta -> z, and u -> J^T u. The second is linear in u, so
differentiating it in direction v gives J v (the double-backward trick), and

    G v = J^T (d^2 l / d z^2) (J v),    F v = J^T r (r . J v),  r = d l / d z:

one backward pass through each graph, without per-example gradients. The Hessian's product is one
backward pass through the graph of the gradient (Pearlmutter 1994). Graphs are kept between
products as far as memory allows: a product then costs its own passes and no forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from landform.config import nearest
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.field import position_counts
from landform.evaluation.points import PreparedData
from landform.tasks.batching import IGNORED, Batch
from landform.tasks.objective import Objective
from landform.weights.space import ParameterSpace

__all__ = ["CurvatureOperator", "OperatorKind", "Reduction", "differentiable_attention"]

OperatorKind = Literal["hessian", "ggn", "fisher", "empirical-fisher"]
Reduction = Literal["mean", "sum", "token"]

STEPS = (1e-4, 1e-3, 1e-2)
"""Lengths of the steps of second differences. In float64 the first one leaves an error of some
1e-8; models that take norms or softmax in float32, whatever their dtype, need the others."""
AGREE = 0.02
"""Second differences that add up to another v^T A v than this share apart say nothing."""


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Attention in a form that has second derivatives, for as long as the block lasts.

    The fused kernels of `scaled_dot_product_attention` have only first ones.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass(frozen=True, eq=False)
class _Graph:
    """What is kept of a batch between products."""

    gradients: tuple[Tensor, ...]
    """of the loss (Hessian), or J^T u; only those that depend on anything"""
    chosen: tuple[int, ...]
    """numbers of the tensors whose gradients these are"""
    logits: Tensor
    u: Tensor | None


class CurvatureOperator:
    """Products of a curvature matrix with vectors of `space`, over one data set.

    Use it as a context: inside, the model is in evaluation mode, the tensors of `space` (a subspace
    of the model's) require gradients and no others do. The model must not move between products;
    `forget` drops the graphs when it has moved. `memory` is the number of bytes that graphs may
    take between products. Numbers do not depend on it.
    """

    def __init__(
        self,
        model: nn.Module,
        space: ParameterSpace,
        data: PreparedData,
        kind: OperatorKind = "hessian",
        *,
        reduction: Reduction = "mean",
        memory: float = 0.0,
    ) -> None:
        _check("operator", kind, get_args(OperatorKind))
        _check("reduction", reduction, get_args(Reduction))
        self.model, self.space, self.data = model, space, data
        self.kind, self.reduction = kind, reduction
        self.memory = memory
        self.products = 0
        """vectors multiplied so far"""
        named = dict(model.named_parameters())
        self._parameters = tuple(named[name] for name in space.names)
        counts = [position_counts(data.objective, batch) for batch in data.batches]
        self.counts = torch.zeros(data.size, dtype=torch.float64)
        for batch, count in zip(data.batches, counts, strict=True):
            self.counts[batch.rows.cpu()] = count.double().cpu()
        """(N,) n_i, in the order of the data"""
        self.shares = (self.counts > 0).double() if self._by_example else self.counts
        """(N,) what each example adds to the denominator"""
        self.denominator = float(self.shares.sum())
        if not self.denominator:
            raise DataError(
                f"{data.name}: no position of these examples has a label",
                remedy="choose rows with labels",
            )
        self._graphs: dict[int, _Graph] = {}
        self._kept: frozenset[int] | None = None
        self._flags: list[tuple[nn.Parameter, bool]] = []

    @property
    def size(self) -> int:
        """Rows and columns of the matrix."""
        return self.space.numel

    @property
    def device(self) -> torch.device:
        """Where vectors live."""
        return self._parameters[0].device

    @property
    def _by_example(self) -> bool:
        return self.kind == "empirical-fisher" and self.reduction != "token"

    def __enter__(self) -> Self:
        self._choose()
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        self._release()

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """As the context itself, but graphs are kept for the next time."""
        self._choose()
        try:
            yield self
        finally:
            self._release()

    def _choose(self) -> None:
        self._flags = [(p, p.requires_grad) for p in self.model.parameters()]
        for parameter, _ in self._flags:
            parameter.requires_grad_(False)
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self.model.eval()

    def _release(self) -> None:
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)

    def forget(self) -> None:
        """Drop the kept graphs."""
        self._graphs.clear()

    # --- products ---------------------------------------------------------------------------

    def multiply(self, vector: Tensor) -> Tensor:
        """A v, shape (size,)."""
        return self.multiply_all([vector])[0]

    def multiply_all(
        self, vectors: Sequence[Tensor], forms: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """A v of several vectors, one after the other in every batch, whose graph is made once.

        `forms`: (N,) float64 tensors, one for each vector, to which v^T A_i v is added, where
        A = sum_i A_i / denominator; the Hessian has them from `quadratic_forms` instead.
        """
        results = [torch.zeros_like(vector) for vector in vectors]
        views = [tuple(self.space.unflatten(v).values()) for v in vectors]
        sums = [tuple(self.space.unflatten(r).values()) for r in results]
        for number, batch in enumerate(self.data.batches):
            graph = self._graph(number, batch)
            for k in range(len(vectors)):
                form = None if forms is None else forms[k]
                # The last use frees the buffers on the way, where the graph is not kept.
                last = k == len(vectors) - 1 and number not in self._graphs
                self._add(graph, batch, views[k], sums[k], form, keep=not last)
        self.products += len(vectors)
        for result in results:
            result /= self.denominator
            if not torch.isfinite(result.sum()):
                raise NonFiniteError(
                    f"a product with the {self.kind} on {self.data.name} is not finite",
                    remedy="use dtype float64, or another checkpoint",
                )
        return results

    def _add(
        self,
        graph: _Graph,
        batch: Batch,
        vector: tuple[Tensor, ...],
        total: tuple[Tensor, ...],
        form: Tensor | None,
        *,
        keep: bool,
    ) -> None:
        """total += denominator A v of one batch."""
        directions = [vector[i] for i in graph.chosen]
        if graph.u is None:
            parts = _grad(graph.gradients, self._parameters, directions, keep=keep)
        else:
            (along,) = _grad(graph.gradients, (graph.u,), directions, keep=True)
            assert along is not None
            pull, values = self._bend(graph.logits.detach(), along, batch)
            if form is not None:
                form[batch.rows.cpu()] += values.double().cpu()
            parts = _grad((graph.logits,), self._parameters, (pull,), keep=keep)
        for place, part in zip(total, parts, strict=True):
            if part is not None:
                place += part

    def _bend(self, logits: Tensor, along: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(what J^T is applied to, (B,) v^T A_i v), from J v = `along`, shaped as the logits."""
        objective = self.data.objective
        targets = objective.targets(batch)
        weights = _weights(objective, batch, along)
        if self.kind != "empirical-fisher":
            pull = output_curvature(objective, logits, targets, along) * _spread(weights, along)
            return pull, _per_example(batch, pull * along)
        slope = objective.output_gradient(logits, targets)
        if self.reduction == "token":
            if objective.kind != "regression":
                inner = (slope * along).sum(-1, keepdim=True)
            else:
                inner = slope * along
            pull = slope * inner * _spread(weights, along)
            return pull, _per_example(batch, pull * along)
        slope = slope * _spread(weights, along)
        if self.reduction == "mean":  # without a scored position there is no slope either
            counts = position_counts(objective, batch).to(slope)
            slope = slope / _spread(_per_row(batch, counts.where(counts > 0, 1)), along)
        inner = _per_example(batch, slope * along)
        return slope * _spread(_per_row(batch, inner), along), inner**2

    # --- graphs -----------------------------------------------------------------------------

    def _graph(self, number: int, batch: Batch) -> _Graph:
        if number in self._graphs:
            return self._graphs[number]
        if self._kept is None:
            self._kept = self._affordable()
        graph = self._build(batch)
        if number in self._kept:
            self._graphs[number] = graph
        return graph

    def _build(self, batch: Batch) -> _Graph:
        """The graphs of a batch (see the module's docstring)."""
        objective = self.data.objective
        with torch.enable_grad(), differentiable_attention():
            logits = objective.logits(self.model, batch)
            self._check_finite(logits, batch)
            u = None
            if self.kind == "hessian":
                losses = objective.losses(logits, objective.targets(batch)).per_example(batch)
                outputs, seeds = losses.sums.sum(), None
            else:
                u = torch.zeros_like(logits, requires_grad=True)
                outputs, seeds = logits, (u,)
            found = torch.autograd.grad(
                (outputs,), self._parameters, seeds, create_graph=True, allow_unused=True
            )
        chosen = tuple(i for i, g in enumerate(found) if g is not None and g.requires_grad)
        return _Graph(tuple(found[i] for i in chosen), chosen, logits, u)

    def _affordable(self) -> frozenset[int]:
        """Numbers of the batches whose graphs fit into `memory`, by the size of the widest one."""
        batches = self.data.batches
        if not self.memory:
            return frozenset()
        if len(batches) == 1:  # it takes as much while it is used: kept, the peak is the same
            return frozenset({0})
        sizes = [batch.inputs["input_ids"].numel() for batch in batches]
        widest = max(range(len(batches)), key=lambda i: batches[i].inputs["input_ids"].shape[1])
        each = self._graph_bytes(batches[widest]) / max(sizes[widest], 1)
        left, kept = self.memory, set()
        for number, size in enumerate(sizes):
            left -= each * size
            if left < 0:
                break
            kept.add(number)
        return frozenset(kept)

    def _graph_bytes(self, batch: Batch) -> float:
        """Bytes of what the graphs of a batch save for their backward passes."""
        seen: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self._build(batch)
        return float(sum(seen.values()))

    def _check_finite(self, logits: Tensor, batch: Batch) -> None:
        flat = logits.detach().flatten(1) if logits.dim() > 1 else logits.detach()[:, None]
        bad = (~torch.isfinite(flat).all(-1)).nonzero()
        if len(bad):
            row = int(bad[0])
            row = row if batch.owners is None else int(batch.owners[row])
            name = self.data.ids[int(batch.rows[row])]
            raise NonFiniteError(
                f"the outputs for example {name} of {self.data.name} are not finite",
                remedy="use another checkpoint, or dtype float64",
            )

    # --- what single examples say -----------------------------------------------------------

    def quadratic_forms(
        self, vectors: Sequence[Tensor], quotients: Sequence[float] | None = None
    ) -> list[Tensor]:
        """(N,) float64 for every v: v^T A_i v, where A = sum_i A_i / denominator.

        Of the Hessian by second differences of the losses l_i(theta +- h v / ||v||) in float64,
        which take two forward passes and no graph; of the others exactly, with their products.
        With `quotients` (v^T A v) differences that do not add up to them are taken again over a
        longer step, and are NaN where no step does.
        """
        if self.kind == "hessian":
            return self._second_differences(vectors, quotients)
        forms = [torch.zeros(self.data.size, dtype=torch.float64) for _ in vectors]
        self.multiply_all(vectors, forms)
        return forms

    def _second_differences(
        self, vectors: Sequence[Tensor], quotients: Sequence[float] | None
    ) -> list[Tensor]:
        wide = copy.deepcopy(self.model).double().eval()
        named = dict(wide.named_parameters())
        places = [named[name] for name in self.space.names]
        here = [p.detach().clone() for p in places]
        middle = self._losses(wide)
        found = []
        for k, vector in enumerate(vectors):
            views = [view.double() for view in self.space.unflatten(vector).values()]
            length = max(float(torch.linalg.vector_norm(vector.double())), 1e-300)
            form = torch.full_like(middle, float("nan"))
            for step in STEPS:
                total = -2 * middle
                for signed in (step / length, -step / length):
                    with torch.no_grad():
                        for place, at, view in zip(places, here, views, strict=True):
                            torch.add(at, view, alpha=signed, out=place)
                    total += self._losses(wide)
                total /= (step / length) ** 2
                told = None if quotients is None else quotients[k] * self.denominator
                if told is None or abs(float(total.sum()) - told) <= AGREE * abs(told):
                    form = total
                    break
            found.append(form)
        return found

    def _losses(self, model: nn.Module) -> Tensor:
        """(N,) summed losses of the examples under a float64 copy of the model."""
        objective, total = self.data.objective, torch.zeros(self.data.size, dtype=torch.float64)
        with torch.no_grad():
            for batch in self.data.batches:
                logits = objective.logits(model, batch)
                losses = objective.losses(logits, objective.targets(batch)).per_example(batch)
                total[batch.rows.cpu()] = losses.sums.double().cpu()
        return total

    def standard_error(self, forms: Tensor) -> float:
        """Standard error over examples of v^T A v = sum_i v^T A_i v / sum_i share_i.

        Of a ratio of means, to first order: examples as independent draws, v as given.
        """
        used = self.shares > 0
        count = int(used.sum())
        if count < 2:
            return float("nan")
        residual = (forms - forms.sum() / self.denominator * self.shares)[used]
        return float((residual.square().sum() * count / (count - 1)).sqrt() / self.denominator)


def output_curvature(
    objective: Objective, logits: Tensor, targets: Tensor, along: Tensor
) -> Tensor:
    """(d^2 l / d z^2) a of every position, 0 where it carries no loss; shaped as the logits.

    diag(p) - p p^T for cross-entropy with p = softmax(z), and 2 for squared error.
    """
    if objective.kind == "regression":
        return 2 * along
    p = logits.softmax(-1)
    bent = p * (along - (p * along).sum(-1, keepdim=True))
    return bent * (targets != IGNORED).to(bent.dtype).unsqueeze(-1)


def _weights(objective: Objective, batch: Batch, like: Tensor) -> Tensor:
    """(R,) weights of the rows of a batch's logits: 1/k for one of the k references of a text."""
    if batch.owners is None:
        return like.new_ones(len(like))
    return 1 / torch.bincount(batch.owners, minlength=len(batch))[batch.owners].to(like.dtype)


def _spread(rows: Tensor, like: Tensor) -> Tensor:
    """(R,) as (R, 1, ...), to be multiplied with `like`."""
    return rows.reshape(-1, *[1] * (like.dim() - 1))


def _per_row(batch: Batch, values: Tensor) -> Tensor:
    """(B,) values of examples as those of the rows of the logits."""
    return values if batch.owners is None else values[batch.owners]


def _per_example(batch: Batch, values: Tensor) -> Tensor:
    """(B,) sums of what stands at the logits of an example."""
    rows = values.flatten(1).sum(-1) if values.dim() > 1 else values
    if batch.owners is None:
        return rows
    return rows.new_zeros(len(batch)).index_add(0, batch.owners, rows)


def _grad(
    outputs: Sequence[Tensor], inputs: Sequence[Any], along: Sequence[Tensor], *, keep: bool
) -> tuple[Tensor | None, ...]:
    if not outputs:  # nothing depends on these tensors
        return (None,) * len(inputs)
    return torch.autograd.grad(outputs, inputs, along, retain_graph=keep, allow_unused=True)


def _check(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        guess = nearest(name, known)
        raise ConfigError(
            f"unknown {what} {name!r}",
            remedy=(f"did you mean {guess!r}? " if guess else "") + f"one of {', '.join(known)}",
        )
