"""Passes over examples that add up their squared gradients: all at once where parts allow it, and
one example at a time where they do not.

Before anything is computed, a few examples go both ways with a random gradient at the outputs, in
float32 at least. A tensor whose sums differ (a norm of a kind of its own, a weight used behind its
module's back), or that none of them reaches (an expert to which others are routed), is taken by
autograd, one example at a time, from then on, and the result names it. Where a later batch reaches
a part in another way than those examples did, its tensors are taken so in that batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landform.curvature.capture import Capture
from landform.curvature.labels import Labels as Estimator
from landform.curvature.labels import is_exact, output_columns
from landform.curvature.operators import Reduction
from landform.curvature.parts import Target, find_parts
from landform.curvature.session import finite_logits
from landform.curvature.squares import Squares, supported
from landform.errors import NonFiniteError
from landform.evaluation.field import position_counts
from landform.evaluation.points import Data, DataConfig, PreparedData, check_padding, prepare
from landform.tasks.batching import IGNORED, Batch, cut_batches
from landform.tasks.objective import Objective
from landform.tasks.task import Examples
from landform.weights.checkpoint import Checkpoint, load_model, load_tokenizer
from landform.weights.space import ParameterSpace

__all__ = ["Estimator", "FisherPass", "Reduction"]

SAMPLE = 64
"""Examples among which those for the comparison are chosen."""


@dataclass(frozen=True)
class _Asked:
    """Which gradients are squared."""

    estimator: Estimator
    reduction: Reduction
    seed: int

    def columns(self, objective: Objective, logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        """Gradients by the logits, one for each backward pass."""
        columns = output_columns(objective, logits, batch, self.estimator, self.seed)
        targets = objective.targets(batch)
        if targets.dim() == 1:
            return columns
        valid = targets != IGNORED
        if self.reduction == "mean":
            scale = 1 / valid.sum(-1).clamp(min=1).to(columns[0].dtype)
            return [column * scale[:, None, None] for column in columns]
        return columns if self.reduction == "sum" else _ByToken(columns, valid)


class _ByToken(Sequence[Tensor]):
    """Each column once for the first scored token of every example, once for the second, ...

    Made when they are needed: together they would be as many as the longest example has tokens.
    """

    def __init__(self, columns: Sequence[Tensor], valid: Tensor) -> None:
        self.columns, self.valid = columns, valid
        self.number = valid.cumsum(-1)
        self.most = int(valid.sum(-1).max()) if valid.numel() else 0

    def __len__(self) -> int:
        return len(self.columns) * max(self.most, 1)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        column, token = divmod(index, max(self.most, 1))
        chosen = self.valid & (self.number == token + 1)
        return self.columns[column] * chosen.unsqueeze(-1)


class FisherPass:
    """An opened checkpoint whose squared gradients are added to `totals`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: Data,
        config: DataConfig,
        estimator: Estimator,
        reduction: Reduction,
    ) -> None:
        self.checkpoint, self.data, self.config = checkpoint, data, config
        self.asked = _Asked(estimator, reduction, config.seed)
        model: Any = load_model(checkpoint, data.task.kind, config)
        self.model = model.to(config.torch_device()).eval()
        self.tokenizer: Any = load_tokenizer(checkpoint)
        self.space = ParameterSpace.of(self.model)
        self.parameters = {
            name: p for name, p in self.model.named_parameters() if name in set(self.space.names)
        }
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            self.space.check_finite(self.space.flatten(self.model), checkpoint.spec)
        wide = torch.float64 if self.space.dtype == torch.float64 else torch.float32
        device = next(iter(self.parameters.values())).device
        self.totals = {
            name: torch.zeros(shape, dtype=wide, device=device)
            for name, shape in zip(self.space.names, self.space.shapes, strict=True)
        }
        self.parts, targets = find_parts(self.model, self.space.names)
        self.targets: tuple[Target, ...] = tuple(t for t in targets if supported(t))
        self._compare()

    @property
    def alone(self) -> tuple[str, ...]:
        """Names of the tensors that are taken one example at a time."""
        captured = {target.name for target in self.targets}
        return tuple(name for name in self.space.names if name not in captured)

    def prepare(self, examples: Examples) -> PreparedData:
        """Examples as batches; that texts are cut is said once, by whoever adds them up."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return prepare(
                self.data, self.checkpoint, self.model, self.tokenizer, self.config, examples
            )

    def check_padding(self, data: PreparedData) -> None:
        """Raise where the model's outputs depend on padding."""
        check_padding(self.model, data, self.checkpoint.spec)

    # --- sums -----------------------------------------------------------------------------------

    def add(self, data: PreparedData) -> tuple[np.ndarray, np.ndarray]:
        """Add up examples: (n, tensors) sums of their squared gradients, float64, and (n,) their
        scored tokens, in the order of the data."""
        norms = torch.zeros(data.size, len(self.space.names), dtype=torch.float64)
        tokens = torch.zeros(data.size, dtype=torch.int64)
        squares = Squares(self.parts, self.targets, self.space.names, self.totals)
        strange: list[tuple[set[str], list[int]]] = []
        with Capture(self.model, self.parts, data.objective, lenient=True) as capture:
            for batch in data.batches:
                capture.unassigned.clear()
                capture.groups = None  # nothing is concluded from which layers share an input
                logits = finite_logits(capture, batch, data.ids, data.name, self.checkpoint.spec)
                left = self._strange(capture)
                squares.begin(len(batch), capture.called(), left)
                columns = self.asked.columns(data.objective, logits, batch)
                capture.backward(logits, columns, squares.visit)
                rows = batch.rows.cpu()
                norms[rows] = squares.norms.cpu()
                tokens[rows] = position_counts(data.objective, batch).to(tokens)
                if left:
                    strange.append((left, rows.tolist()))
        self._add_alone(data, norms, self.alone, range(data.size))
        for left, few in strange:
            self._add_alone(data, norms, left, few)
        self._check(norms, data)
        return norms.numpy(), tokens.numpy()

    def _strange(self, capture: Capture) -> set[str]:
        """Tensors of which a part was not used in the way that was compared."""
        odd = set(capture.unassigned)
        odd |= {n for n, known in enumerate(self.ways) if not _ways(capture, n) <= known}
        return {t.name for t in self.targets if odd & {term.part for term in t.terms}}

    def _add_alone(
        self, data: PreparedData, norms: Tensor, names: Collection[str], rows: Iterable[int]
    ) -> None:
        """Add up tensors of some rows by autograd."""
        if not names:
            return
        chosen = [self.parameters[name] for name in names]
        places = [self.space.names.index(name) for name in names]
        with _Trained(self.model, chosen):
            for row in rows:
                batch = self._single(data, row)
                logits = data.objective.logits(self.model, batch)
                if not logits.requires_grad:  # it uses none of them
                    continue
                columns = self.asked.columns(data.objective, logits, batch)
                for number, column in enumerate(columns):
                    found = torch.autograd.grad(
                        logits,
                        chosen,
                        column.to(logits.dtype),
                        retain_graph=number + 1 < len(columns),
                        allow_unused=True,
                    )
                    for name, place, gradient in zip(names, places, found, strict=True):
                        if gradient is not None:
                            squares = gradient.to(self.totals[name].dtype).square_()
                            self.totals[name] += squares
                            norms[row, place] += squares.sum(dtype=torch.float64).cpu()

    def _single(self, data: PreparedData, row: int) -> Batch:
        (batch,) = cut_batches(data.encoded.take([row]), 1)
        return batch.to(self.config.torch_device())

    def _check(self, norms: Tensor, data: PreparedData) -> None:
        """Raise `NonFiniteError` naming the example and the tensor of what is not finite."""
        bad = (~torch.isfinite(norms)).nonzero()
        if len(bad):
            row, place = bad[0].tolist()
            raise NonFiniteError(
                f"{self.checkpoint.spec}: the gradient of example {data.ids[row]} of {data.name} "
                f"in tensor {self.space.names[place]} is not finite",
                remedy="use another checkpoint, or dtype float32",
            )

    # --- the comparison -------------------------------------------------------------------------

    def _compare(self) -> None:
        """Find the tensors that have to be taken alone (see the module's docstring)."""
        data = self._sample()
        (batch,) = (b.to(self.config.torch_device()) for b in cut_batches(data.encoded, 1 << 30))
        with _Wide(self.model):
            with Capture(self.model, self.parts, data.objective, lenient=True) as capture:
                logits = finite_logits(capture, batch, data.ids, data.name, self.checkpoint.spec)
                self.exact = is_exact(data.objective, logits.shape[-1])
                self._leave_out(capture)
                self.ways = tuple(_ways(capture, n) for n in range(len(self.parts)))
                called = capture.called()
                probe = _probe(data.objective, logits, batch)
                squares = Squares(
                    self.parts, self.targets, self.space.names, self.totals, lenient=True
                )
                squares.begin(len(batch), called)
                capture.backward(logits, [probe], squares.visit)
            self._keep_but(squares.left)
            ours, theirs = self._both(data, batch, probe)
        unproven = {
            target.name
            for target in self.targets
            if not theirs[target.name] and not all(called[term.part] for term in target.terms)
        }
        self._keep_but(self._apart(ours, theirs) | unproven)
        for total in self.totals.values():
            total.zero_()

    def _keep_but(self, names: Collection[str]) -> None:
        self.targets = tuple(t for t in self.targets if t.name not in names)

    def _sample(self) -> PreparedData:
        """The shortest, a middle and the longest of the first examples: so that padding shows."""
        rows = self.config.rows
        few = self.data.task.examples(
            self.data.split, rows=SAMPLE if rows is None else min(rows, SAMPLE)
        )
        lengths = self.prepare(few).encoded.lengths
        order = np.argsort(lengths, kind="stable")
        chosen = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])})
        if len(chosen) == lengths[chosen].max():  # examples and tokens must not look alike
            chosen = chosen[1:] or chosen
        return self.prepare(few.take(chosen))

    def _leave_out(self, capture: Capture) -> None:
        """Parts whose rows belong to no example, with all tensors that they make."""
        lost = set(capture.unassigned)
        self.targets = tuple(t for t in self.targets if not lost & {term.part for term in t.terms})

    def _both(
        self, data: PreparedData, batch: Batch, probe: Tensor
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Sums by tensor as captured, and those of autograd; these are subtracted from `totals`."""
        names = {target.name for target in self.targets}
        ours = {name: float(self.totals[name].sum(dtype=torch.float64)) for name in names}
        theirs = dict.fromkeys(names, 0.0)

        def subtract(name: str, parameter: Tensor) -> None:
            assert parameter.grad is not None
            squares = parameter.grad.to(self.totals[name].dtype).square_()
            theirs[name] += float(squares.sum(dtype=torch.float64))
            self.totals[name] -= squares
            parameter.grad = None  # one tensor's gradient at a time, not a copy of the model

        chosen = [self.parameters[name] for name in names]
        with _Trained(self.model, chosen):
            parameters: dict[str, Any] = self.parameters
            hooks = [
                parameters[name].register_post_accumulate_grad_hook(
                    lambda parameter, name=name: subtract(name, parameter)
                )
                for name in names
            ]
            try:
                for place, row in enumerate(batch.rows.tolist()):
                    logits = data.objective.logits(self.model, self._single(data, row))
                    own = probe[place : place + 1]
                    own = own[:, : logits.shape[1]] if logits.dim() == 3 else own
                    if logits.requires_grad:
                        torch.autograd.backward(logits, own.to(logits.dtype))
            finally:
                for hook in hooks:
                    hook.remove()
        return ours, theirs

    def _apart(self, ours: dict[str, float], theirs: dict[str, float]) -> set[str]:
        """Names whose difference is more than rounding can be.

        Half the digits are allowed; and differences that are nothing beside the gradient as a
        whole, since the gradient of a key's bias is zero but for rounding.
        """
        epsilon = torch.finfo(next(iter(self.totals.values())).dtype).eps
        floor = (100 * epsilon) ** 2 * sum(theirs.values())
        apart = set()
        for name, total in self.totals.items():
            if name in ours:
                residual = float(total.abs().sum(dtype=torch.float64))
                allowed = 3 * math.sqrt(epsilon) * max(ours[name], theirs[name]) + floor
                if not residual <= allowed:
                    apart.add(name)
        return apart


class _Trained:
    """Within the block only the chosen parameters ask for gradients, and the model evaluates."""

    def __init__(self, model: Any, chosen: Sequence[Tensor]) -> None:
        self.model, self.chosen = model, chosen

    def __enter__(self) -> None:
        self.flags = [(p, p.requires_grad) for p in self.model.parameters()]
        for p, _ in self.flags:
            p.requires_grad_(False)
        for p in self.chosen:
            p.requires_grad_(True)
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for p, flag in self.flags:
            p.requires_grad_(flag)


class _Wide:
    """Within the block a model of half precision computes in float32: its own rounding would hide
    what is missing in a small tensor."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.narrow: list[tuple[Tensor, torch.dtype]] = []
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
                self.narrow.append((tensor, tensor.dtype))
                tensor.data = tensor.data.float()

    def __exit__(self, *_: object) -> None:
        for tensor, dtype in self.narrow:
            tensor.data = tensor.data.to(dtype)


def _ways(capture: Capture, part: int) -> frozenset[tuple[str, int]]:
    """How the last forward pass used a part: what its rows were, and their number of axes."""
    return frozenset((use.positions.axis, use.input.dim()) for use in capture.uses(part))


def _probe(objective: Objective, logits: Tensor, batch: Batch) -> Tensor:
    """Random numbers in the place of the gradient by the logits, where there is a loss."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits.device)
    targets = objective.targets(batch)
    if targets.dim() == 1 or objective.kind == "regression":
        return probe
    return probe * (targets != IGNORED).unsqueeze(-1)
