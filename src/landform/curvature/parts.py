"""The parts of a model whose per-example gradients have a short form, and which tensor they make.

With g the gradient of an example's loss with respect to the output of a part, t its positions:

    linear map      y = W x           dW = sum_t g_t x_t^T           db = sum_t g_t
    table           y = s E[id]       dE[v] = s sum over t with id_t = v of g_t     (few rows)
    norm            y = w o n(x) + b  dw = sum_t g_t o n(x_t)        db = sum_t g_t
    relative bias   y_qk = E[bucket of k - q], added to the attention of every example

A tensor that several parts use (embeddings tied to the decoder) has the sum of their gradients.
What a part is, is guessed from its class; `fisher_pass` compares every tensor with autograd on a
few examples before anything is computed, and takes those that differ by autograd for good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from landform.curvature.layers import Layer

__all__ = ["Norm", "RelativeBias", "Table", "Target", "Term", "find_parts"]


@dataclass(frozen=True, eq=False)
class Table(Layer):
    """An embedding; what is kept of its input are the ids."""

    def attach(self, hook: Callable[..., Any]) -> Any:
        """As any layer, with the ids that are looked up: a class with a forward pass of its own
        (positions of BART, OPT) makes them of what it is given."""
        if type(self.module).forward is nn.Embedding.forward:
            return super().attach(hook)
        watches: list[Any] = []

        def before(_module: nn.Module, _inputs: tuple[Any, ...]) -> None:
            watches.append(_Lookups())
            watches[-1].__enter__()

        def after(module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> Any:
            watch = watches.pop()
            watch.__exit__(None, None, None)
            if output is None:  # it ended in an error
                return None
            ids = watch.ids[0] if len(watch.ids) == 1 else None
            return hook(module, inputs if ids is None else (ids,), named, output)

        first = self.module.register_forward_pre_hook(before)
        then = self.module.register_forward_hook(after, with_kwargs=True, always_call=True)
        return _Handles((first, then))

    def seen(self, x: Tensor, output: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
        """Ids with an axis of one feature. Positions that are looked up once for the whole batch,
        (1, T), are given to every example: each has a gradient of its own there."""
        module: Any = self.module
        if x.dim() != 2 or x.is_floating_point():
            return None
        if type(module).forward is not nn.Embedding.forward and not self._is_lookup(x, output):
            return None
        if len(x) == 1 < size:
            x, output = x.expand(size, -1), output.expand(size, *output.shape[1:])
        return x.unsqueeze(-1), output

    @property
    def scale(self) -> float:
        """What the rows are multiplied with (some models scale their embeddings)."""
        return float(getattr(self.module, "embed_scale", None) or 1.0)

    def _is_lookup(self, ids: Tensor, output: Tensor) -> bool:
        """Whether a class with a forward pass of its own returns these rows."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        if int(ids.max()) >= len(weight) or output.shape != (*ids.shape, weight.shape[-1]):
            return False
        return torch.allclose(output.detach(), self.scale * weight.detach()[ids], rtol=1e-2)


@dataclass(frozen=True, eq=False)
class Norm(Layer):
    """A normalisation with a scale per feature: LayerNorm, and RMSNorm in its many spellings."""

    rows: ClassVar[Literal["positions", "examples", "whole"]] = "examples"

    def normed(self, x: Tensor) -> Tensor:
        """n(x), (n, d): what the scale is multiplied with."""
        module: Any = self.module
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(x, module.normalized_shape, None, None, module.eps)
        # Whatever the module adds, and whether it multiplies with w or 1 + w.
        held = module.weight.data
        try:
            module.weight.data = torch.ones_like(held)
            above: Tensor = module.forward(x)
            module.weight.data = torch.zeros_like(held)
            below: Tensor = module.forward(x)
            return above - below
        finally:
            module.weight.data = held


@dataclass(frozen=True, eq=False)
class RelativeBias(Layer):
    """T5's table of biases by distance, which it adds to the attention of every layer.

    The module is the attention block that owns the table. The bias is made once for the batch,
    (1, heads, queries, keys); every example is given its own view of it.
    """

    rows: ClassVar[Literal["positions", "examples", "whole"]] = "whole"

    def attach(self, hook: Callable[..., Any]) -> Any:
        """Stand between the making of the bias and its use."""
        module: Any = self.module
        made_of: list[Tensor] = []
        watch = module.relative_attention_bias.register_forward_hook(
            lambda _module, inputs, _output: made_of.append(inputs[0])
        )
        compute = module.compute_bias

        def compute_bias(*values: Any, **named: Any) -> Tensor:
            made_of.clear()
            output: Tensor = compute(*values, **named)
            if len(made_of) == 1:
                output = hook(module, (made_of[0],), {}, output)
            return output

        module.compute_bias = compute_bias
        # Without it the class's own is there again.
        return _Handles((watch,), lambda: delattr(module, "compute_bias"))

    def seen(self, x: Tensor, output: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
        """Buckets (queries, keys) and biases (examples, heads, queries, keys)."""
        if output.dim() != 4 or len(output) != 1 or output.shape[2:] != x.shape:
            return None
        return x, output.expand(size, *output.shape[1:])

    def gradient(self, buckets: Tensor, g: Tensor) -> Tensor:
        """(B, n, heads): the biases' gradients (B, heads, q, k), added up by bucket."""
        weight: Tensor = self.module.relative_attention_bias.weight  # type: ignore[union-attr, assignment]
        rows = g.flatten(2).transpose(1, 2)
        total = g.new_zeros(len(g), *weight.shape)
        return total.index_add_(1, buckets.flatten(), rows)


class _Lookups(TorchFunctionMode):
    """Notes the ids that are looked up while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.embedding:
            self.ids.append(args[0])
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Handles:
    """Several hooks as one."""

    hooks: tuple[Any, ...]
    then: Callable[[], None] = lambda: None

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.then()


Form = Literal["matrix", "transposed", "sum", "rows", "scale", "buckets"]


@dataclass(frozen=True)
class Term:
    """What one part adds to the gradient of one tensor."""

    part: int
    """number of the part"""
    form: Form


@dataclass(frozen=True)
class Target:
    """One tensor of the parameter space, and the parts that use it."""

    name: str
    terms: tuple[Term, ...]


def find_parts(
    model: nn.Module, names: Collection[str]
) -> tuple[tuple[Layer, ...], tuple[Target, ...]]:
    """(parts in the model's order, the tensors of `names` that they make)."""
    parameters = dict(model.named_parameters())
    wanted = {id(parameters[name]): name for name in names}
    parts: list[Layer] = []
    terms: dict[str, list[Term]] = defaultdict(list)
    for part, forms in _candidates(model):
        found = [(wanted[id(p)], form) for p, form in forms if id(p) in wanted]
        for name, form in found:
            terms[name].append(Term(len(parts), form))
        if found:
            parts.append(part)
    targets = tuple(Target(name, tuple(terms[name])) for name in names if name in terms)
    return tuple(parts), targets


def _candidates(model: nn.Module) -> list[tuple[Layer, list[tuple[nn.Parameter, Form]]]]:
    """Every part that is known, with its parameters and how their gradients are formed."""
    made: list[tuple[Layer, list[tuple[nn.Parameter, Form]]]] = []
    biases = {
        id(module.relative_attention_bias)
        for module in model.modules()
        if _has_relative_bias(module)
    }
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        bias: Any = getattr(module, "bias", None)
        forms: list[tuple[nn.Parameter, Form]] = []
        part: Layer
        if _has_relative_bias(module):
            table: Any = module.relative_attention_bias
            part = RelativeBias(f"{name}.relative_attention_bias", module, 1, 1, False)
            forms = [(table.weight, "buckets")]
        elif isinstance(module, nn.Linear | Conv1D) and isinstance(weight, nn.Parameter):
            ends = weight.shape if isinstance(module, Conv1D) else weight.shape[::-1]
            part = Layer(name, module, int(ends[0]), int(ends[1]), bias is not None)
            forms = [(weight, "transposed" if isinstance(module, Conv1D) else "matrix")]
        elif isinstance(module, nn.Embedding) and id(module) not in biases:
            part = Table(name, module, 1, int(weight.shape[1]), False)
            forms = [(weight, "rows")]
        elif _is_norm(module, weight):
            part = Norm(name, module, len(weight), len(weight), bias is not None)
            forms = [(weight, "scale")]
        else:
            continue
        if isinstance(bias, nn.Parameter):
            forms.append((bias, "sum"))
        made.append((part, forms))
    return made


def _has_relative_bias(module: nn.Module) -> bool:
    table = getattr(module, "relative_attention_bias", None)
    return isinstance(table, nn.Embedding) and callable(getattr(module, "compute_bias", None))


def _is_norm(module: nn.Module, weight: Any) -> bool:
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return (
        "Norm" in type(module).__name__
        and isinstance(weight, nn.Parameter)
        and weight.dim() == 1
        and own <= {"weight", "bias"}
        and next(module.children(), None) is None
    )
