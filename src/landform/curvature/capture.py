"""Capture: what goes into every layer and what gradient comes back, and no weight gradient at all.

For an example b and a linear layer, the gradient of the loss is

    G_b = sum_t g_bt a_bt^T

with a_bt the layer's input at token t (a 1 appended for the bias) and g_bt the gradient of the loss
with respect to its output. Everything that landform computes from per-example gradients is made
of these two, so the weights are frozen, autograd carries gradients of activations only, and each
layer is handed to a visitor inside the backward pass, as soon as its gradients are there.

Padded tokens are dropped before the visitor sees anything. A module that is used several times in
one forward pass is handed over once, with all its uses: its gradient is their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from landform.curvature.layers import Layer
from landform.errors import CurvatureError, NonFiniteError
from landform.tasks.batching import IGNORED, Batch
from landform.tasks.objective import Objective

__all__ = ["Capture", "Positions", "Use", "Visitor", "check_finite"]


@dataclass(frozen=True, eq=False)
class Positions:
    """Which rows of a flattened activation are real, and which example each belongs to."""

    index: Tensor | None
    """(n,) rows of the flattened activation that are no padding, by example; None = all of them"""
    examples: Tensor
    """(n,) the example of each such row, ascending"""
    axis: str
    """"example" for one row per example, "token" for one per token of the text, "target" for one
    per token of a decoder's target"""

    def take(self, activation: Tensor) -> Tensor:
        """(n, d): the real rows of an activation (..., d)."""
        flat = activation.flatten(0, -2)
        return flat if self.index is None else flat[self.index]


@dataclass(eq=False)
class Use:
    """One use of a layer in one forward pass: its input now, its output gradient later."""

    layer: int
    name: str
    input: Tensor
    version: int
    positions: Positions
    shape: torch.Size
    """of the output, and so of its gradient"""
    gradient: Tensor | None = None
    cache: dict[int, Tensor] = field(default_factory=dict)

    def inputs(self) -> Tensor:
        """(n, d_in): the inputs at real positions. Layers that share an input share the copy."""
        key = id(self.input)
        if key not in self.cache:
            if self.input._version != self.version:
                raise CurvatureError(
                    f"layer {self.name}: the model overwrites its input after using it",
                    remedy=f"leave it out: exclude {self.name!r}",
                )
            self.cache[key] = self.positions.take(self.input.detach())
        return self.cache[key]

    def gradients(self) -> Tensor:
        """(n, d_out): the gradients of the outputs at real positions."""
        assert self.gradient is not None
        return self.positions.take(self.gradient)


Visitor = Callable[[int, list[Use]], None]
"""Called in the backward pass with a layer's number and all its uses."""


class Capture:
    """Hooks on the layers of a model: `with Capture(...) as capture: capture.forward(batch)`.

    Inside the block the model is in evaluation mode and its parameters are frozen; both, and the
    model itself, are as before after it.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        objective: Objective,
        *,
        lenient: bool = False,
    ) -> None:
        self.model: Any = model
        self.lenient = lenient
        """pass over a layer whose rows belong to no example, and name it in `unassigned`"""
        self.unassigned: set[int] = set()
        self.layers = tuple(layers)
        self.objective = objective
        self.groups: tuple[int, ...] | None = None
        """for each layer, the number of the first layer that always has the same input"""
        self._uses: list[list[Use]] = [[] for _ in self.layers]
        self._pending = [0] * len(self.layers)
        self._visit: Visitor | None = None
        self._size = 0
        self._positions: dict[tuple[int, ...], Positions] = {}
        self._cache: dict[int, Tensor] = {}

    # --- hooks -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        parameter = next(self.model.parameters())
        # With all weights frozen nothing would ask autograd for a graph; this zero does.
        self._root = torch.zeros(
            (), dtype=parameter.dtype, device=parameter.device, requires_grad=True
        )
        self._training = self.model.training
        self._flags = [(p, p.requires_grad) for p in self.model.parameters()]
        self._cached = getattr(self.model.config, "use_cache", None)
        for p, _ in self._flags:
            p.requires_grad_(False)
        if self._cached is not None:
            self.model.config.use_cache = False  # keys and values for generation: never read here
        self.model.eval()
        self._hooks = [layer.attach(self._hook(number)) for number, layer in enumerate(self.layers)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for p, flag in self._flags:
            p.requires_grad_(flag)
        if self._cached is not None:
            self.model.config.use_cache = self._cached
        self.model.train(self._training)
        self._clear()

    def _hook(self, number: int) -> Any:
        name = self.layers[number].name

        def forward_hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> Tensor:
            # The tensor itself, not a detached copy: layers that share it are known by that.
            x: Tensor = inputs[0] if inputs else next(iter(named.values()))
            seen = self.layers[number].seen(x, output, self._size)
            positions = self._positions_of(number, x, *(seen or (x, None)))
            if seen is None or positions is None:
                return output
            x, output = seen
            if not self.layers[number].inputs:  # only the bias is trained: no input is looked at
                x = x.new_empty((*x.shape[:-1], 0))
            use = Use(number, name, x, x._version, positions, output.shape, cache=self._cache)
            if not output.requires_grad:
                output = output + self._root
            hook: Any = output.register_hook  # torch gives it no types
            hook(lambda gradient: self._arrived(use, gradient))
            self._uses[number].append(use)
            return output

        return forward_hook

    def _arrived(self, use: Use, gradient: Tensor) -> None:
        use.gradient = gradient
        self._pending[use.layer] -= 1
        if self._pending[use.layer] == 0 and self._visit is not None:
            uses = self._uses[use.layer]
            self._visit(use.layer, uses)
            for done in uses:
                done.gradient = None

    # --- one batch -------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Tensor:
        """The logits of a batch, in the task's order; inputs are kept for `backward`."""
        self._clear()
        if batch.owners is not None:
            raise CurvatureError(
                "an example with several accepted answers has several rows in the decoder and one "
                "in the encoder: its gradients cannot be told apart layer by layer",
                remedy="load the task with references='first'",
            )
        batch = _distinct_lengths(batch, self.objective)
        self._positions = _positions(batch, self.objective)
        self._size = len(batch)
        with torch.enable_grad():
            logits = self.objective.logits(self.model, batch)
        self._check_groups()
        return logits

    def backward(self, logits: Tensor, gradients: Sequence[Tensor], visit: Visitor) -> None:
        """One backward pass for each gradient of the loss with respect to the logits."""
        self._visit = visit
        try:
            for number, gradient in enumerate(gradients):
                self._pending = [len(uses) for uses in self._uses]
                last = number == len(gradients) - 1
                torch.autograd.grad(
                    logits, self._root, gradient.to(logits.dtype), retain_graph=not last
                )
                self._visit_rest()
        finally:
            self._visit = None
        self._clear()

    def _visit_rest(self) -> None:
        """Layers of which some outputs do not reach the logits: their gradients there are 0."""
        for number, uses in enumerate(self._uses):
            for use in uses if self._pending[number] else ():
                if use.gradient is None:
                    self._arrived(use, self._root.new_zeros(use.shape))

    def uses(self, layer: int) -> list[Use]:
        """The uses of a layer in the last forward pass."""
        return self._uses[layer]

    def called(self) -> tuple[bool, ...]:
        """For each layer, whether the last forward pass used it."""
        return tuple(bool(uses) for uses in self._uses)

    def _clear(self) -> None:
        for uses in self._uses:
            uses.clear()
        self._cache.clear()
        self._positions = {}

    def _positions_of(
        self, number: int, given: Tensor, x: Tensor, output: Tensor | None
    ) -> Positions | None:
        shape = tuple(x.shape[:-1])
        positions = self._positions.get(shape)
        everyone = self._positions[(self._size,)]
        rows = self.layers[number].rows
        if rows == "whole":
            positions = everyone
        elif rows == "examples" and len(shape) > 2 and shape[0] == self._size:
            # Padding need not be known: it has no gradient.
            owners = everyone.examples.repeat_interleave(math.prod(shape[1:]))
            positions = Positions(None, owners, "token")
        fits = output is not None and (rows == "whole" or output.shape[:-1] == x.shape[:-1])
        if positions is None or not fits:
            if self.lenient:
                self.unassigned.add(number)
                return None
            sizes = " or ".join(str(known) for known in self._positions)
            raise CurvatureError(
                f"layer {self.layers[number].name}: its input has the shape {tuple(given.shape)}, "
                f"whose rows belong to no example or token of the batch (expected {sizes} rows)",
                remedy=f"leave it out: exclude {self.layers[number].name!r}",
            )
        return positions

    def _check_groups(self) -> None:
        """Find the layers that share an input on the first batch; see that they still do later."""
        inputs = [tuple(id(use.input) for use in uses) for uses in self._uses]
        first: dict[tuple[Any, ...], int] = {}
        groups = tuple(
            first.setdefault((ids, layer.bias) if ids else (number,), number)
            for number, (ids, layer) in enumerate(zip(inputs, self.layers, strict=True))
        )
        if self.groups is None:
            self.groups = groups
        elif groups != self.groups:
            number = next(i for i, g in enumerate(groups) if g != self.groups[i])
            raise CurvatureError(
                f"layer {self.layers[number].name} does not see the same input as before: the "
                "model takes another way through its layers from batch to batch",
                remedy="exclude the layers that depend on the batch",
            )


def _positions(batch: Batch, objective: Objective) -> dict[tuple[int, ...], Positions]:
    """What the rows of an activation mean, by the shape of the activation without its features."""
    mask = batch.inputs["attention_mask"].bool()
    size, device = len(batch), mask.device
    everyone = torch.arange(size, device=device)
    known: dict[tuple[int, ...], Positions] = {(size,): Positions(None, everyone, "example")}
    masks = {"token": mask}
    if objective.kind == "seq2seq":
        # A decoder reads its own targets up to the last one that counts; what follows is padding.
        valid = (batch.labels != IGNORED).flip(-1).cumsum(-1).flip(-1) > 0
        masks["target"] = valid
    for axis, chosen in masks.items():
        index = None if bool(chosen.all()) else chosen.flatten().nonzero().squeeze(-1)
        owner = everyone.repeat_interleave(chosen.sum(-1))
        positions = Positions(index, owner, axis)
        known[tuple(chosen.shape)] = positions
        if chosen.shape[1] != 1:  # some models flatten batch and tokens into one axis
            known.setdefault((chosen.numel(),), positions)
    return known


def _distinct_lengths(batch: Batch, objective: Objective) -> Batch:
    """A batch whose texts and targets have different widths, so that a shape tells the two apart.

    One more padded column of the text changes no result (that is what masks are for).
    """
    if objective.kind != "seq2seq" or batch.labels.shape[1] != batch.inputs["input_ids"].shape[1]:
        return batch
    inputs = {name: nn.functional.pad(value, (0, 1)) for name, value in batch.inputs.items()}
    return Batch(inputs, batch.labels, batch.rows)


def check_finite(values: Tensor, what: str, layer: Layer) -> None:
    """Raise `NonFiniteError` naming the layer where `values` has NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            f"the {what} of layer {layer.name} are not finite",
            remedy="compute in float32 (dtype), or leave the layer out (exclude)",
        )
