"""Many models of one architecture in one pass: rows of all of them in one batch.

A batch of K models holds the rows of model 0, then as many of model 1, and so on. Whatever has no
parameters (attention, activations, residuals) sees an ordinary batch, and every module that has
some is replaced by one that gives each model's rows that model's weights: one batched matrix
product in place of K. The model's own code runs, so nothing is written twice; weight gradients are
added straight into one buffer, from which the optimizer reads.

`torch.func.vmap` over the same models needs masks made by hand (the models look at values to
choose a path, which it refuses) and is slower: see `benchmarks/`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landform.training.noise import changed_dropout

__all__ = ["NotStackable", "Single", "Stack", "check_stack", "decayed"]

_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


class NotStackable(Exception):
    """This model cannot be run stacked, and the message says why; caught before a user sees it."""


def decayed(model: nn.Module) -> frozenset[str]:
    """Names of the parameters with weight decay: all but biases and normalisation.

    The rule of the Hugging Face Trainer, by the names of all modules on the way and the type of
    the last one.
    """
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    return frozenset(
        name
        for name, _ in model.named_parameters()
        if not any(name.startswith(f"{norm}.") for norm in norms)
        and not _UNDECAYED.search(name.lower())
    )


class _Layout:
    """Where each parameter lies in a flat vector: first those with decay, then the others."""

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        decay = decayed(model)
        self.names = sorted(parameters, key=lambda name: name not in decay)
        self.shapes = [parameters[name].shape for name in self.names]
        sizes = [shape.numel() for shape in self.shapes]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.size = sum(sizes)
        self.with_decay = sum(
            size for name, size in zip(self.names, sizes, strict=True) if name in decay
        )
        # By identity, since tied parameters have several names and one place.
        self.where = {id(parameters[name]): i for i, name in enumerate(self.names)}

    def view(self, flat: Tensor, parameter: nn.Parameter) -> Tensor:
        """The (K, *shape) of one parameter in a (K, size) buffer."""
        i = self.where[id(parameter)]
        start, shape = self.starts[i], self.shapes[i]
        return flat[:, start : start + shape.numel()].view(len(flat), *shape)

    def flatten(self, model: nn.Module, out: Tensor) -> None:
        """Write a model's parameters into a row."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, start in zip(self.names, self.starts, strict=True):
                values = parameters[name].reshape(-1)
                out[start : start + len(values)] = values


class _Trained:
    """The parameters and gradients of K models as two buffers, (K, size) each."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        first = models[0]
        kinds = {(p.dtype, p.device) for p in first.parameters()}
        if len(kinds) > 1:
            raise NotStackable("its parameters have several types")
        self.layout = _Layout(first)
        dtype, device = kinds.pop()
        self.flat = torch.empty(len(models), self.layout.size, dtype=dtype, device=device)
        self.gradient = torch.zeros_like(self.flat)
        for row, model in zip(self.flat, models, strict=True):
            self.layout.flatten(model, row)

    @property
    def with_decay(self) -> int:
        """How many leading entries of a row have weight decay."""
        return self.layout.with_decay

    def bad_tensor(self, row: int) -> str | None:
        """The name of the first tensor of one model that holds NaN or infinity."""
        for name, start, shape in zip(
            self.layout.names, self.layout.starts, self.layout.shapes, strict=True
        ):
            if not torch.isfinite(self.flat[row, start : start + shape.numel()]).all():
                return name
        return None


class Single(_Trained):
    """One model, run as it is: what cannot be stacked, or is alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__([model])
        self.model = copy.deepcopy(model)
        layout = _Layout(self.model)
        for parameter in self.model.parameters():
            parameter.data = layout.view(self.flat, parameter)[0]
            parameter.grad = layout.view(self.gradient, parameter)[0]
        _first_token_only(self.model)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The model's raw outputs."""
        raw: Tensor = self.model(**inputs).logits
        return raw


class Stack(_Trained):
    """K models run as one. Raises `NotStackable` for an architecture that has other parameters
    than those of linear, normalising and embedding layers."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        if changed_dropout(models[0]):
            raise NotStackable("its dropout is Gaussian noise, or inserted")
        super().__init__(models)
        self.model = copy.deepcopy(models[0])
        self._layout = _Layout(self.model)
        self._models = len(models)
        for name, module in list(self.model.named_modules()):
            if any(p is not None for p in module._parameters.values()):
                self.model.set_submodule(name, self._stacked(name, module))
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise NotStackable(f"{name} is a {type(module).__name__}")
        _first_token_only(self.model)

    def _stacked(self, name: str, module: nn.Module) -> nn.Module:
        maker = _STACKED.get(_kind(module))
        if maker is None or (isinstance(module, nn.Embedding) and _odd(module)):
            raise NotStackable(f"{name} is a {type(module).__name__}")
        views = {
            key: (self._layout.view(self.flat, p), self._layout.view(self.gradient, p))
            for key, p in module._parameters.items()
            if p is not None
        }
        made: nn.Module = maker(module, views, self._rows)
        return made

    def _rows(self) -> int:
        return self._batch // self._models

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Raw outputs of a batch that holds the same number of rows of every model, in order."""
        self._batch = len(inputs["input_ids"])
        raw: Tensor = self.model(**inputs).logits
        return raw


def _kind(module: nn.Module) -> str:
    """The layer a module is; subclasses may compute something else and are known by name only."""
    kind = type(module)
    if kind in (nn.Linear, nn.LayerNorm, nn.Embedding):
        return kind.__name__
    return "Conv1D" if kind.__module__ == "transformers.pytorch_utils" else ""


def _odd(module: nn.Embedding) -> bool:
    return module.max_norm is not None or module.scale_grad_by_freq or module.sparse


# --- layers with the weights of many models -----------------------------------------------------

_Views = Mapping[str, tuple[Tensor, Tensor]]


class _Linear(nn.Module):
    """y = x W' + b, W (K, out, in); transposed (K, in, out) for GPT-2's Conv1D."""

    def __init__(self, module: nn.Module, views: _Views, _: Any) -> None:
        super().__init__()
        self.views, self.transposed = views, not isinstance(module, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        weight, gradient = self.views["weight"]
        if self.transposed:
            weight, gradient = weight.mT, gradient.mT
        bias, bias_gradient = self.views.get("bias", (None, None))
        apply: Any = _LinearFunction.apply
        y: Tensor = apply(x, weight, bias, gradient, bias_gradient)
        return y


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient: Tensor,
        bias_gradient: Tensor | None,
    ) -> Tensor:
        rows = x.reshape(len(weight), -1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        ctx.gradients, ctx.shape = (gradient, bias_gradient), x.shape
        if bias is None:
            y = torch.bmm(rows, weight.mT)
        else:
            y = torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
        return y.view(*x.shape[:-1], weight.shape[1])

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        gradient, bias_gradient = ctx.gradients
        g = outputs[0].reshape(len(weight), -1, weight.shape[1])
        gradient.baddbmm_(g.mT, rows)
        if bias_gradient is not None:
            bias_gradient.add_(g.sum(1))
        below = torch.bmm(g, weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return below, None, None, None, None


class _LayerNorm(nn.Module):
    """Rows are normalised as ever; scale and shift (K, H) are each model's own."""

    def __init__(self, module: nn.Module, views: _Views, _: Any) -> None:
        super().__init__()
        if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) != 1:
            raise NotStackable("a layer norm spans several dimensions")
        self.views, self.eps = views, module.eps

    def forward(self, x: Tensor) -> Tensor:
        weight, gradient = self.views["weight"]
        bias, bias_gradient = self.views.get("bias", (None, None))
        apply: Any = _LayerNormFunction.apply
        y: Tensor = apply(x, weight, bias, gradient, bias_gradient, self.eps)
        return y


class _LayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient: Tensor,
        bias_gradient: Tensor | None,
        eps: float,
    ) -> Tensor:
        models, width = weight.shape
        unit, mean, scale = torch.native_layer_norm(x, (width,), None, None, eps)
        ctx.save_for_backward(x, mean, scale, unit, weight)
        ctx.gradients = gradient, bias_gradient
        rows = unit.view(models, -1, width)
        if bias is None:
            return (rows * weight.unsqueeze(1)).view(x.shape)
        return torch.addcmul(bias.unsqueeze(1), rows, weight.unsqueeze(1)).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        x, mean, scale, unit, weight = ctx.saved_tensors
        models, width = weight.shape
        gradient, bias_gradient = ctx.gradients
        g = outputs[0].reshape(models, -1, width)
        gradient.add_((g * unit.view(models, -1, width)).sum(1))
        if bias_gradient is not None:
            bias_gradient.add_(g.sum(1))
        below = torch.ops.aten.native_layer_norm_backward(
            (g * weight.unsqueeze(1)).view(x.shape),
            x,
            (width,),
            mean,
            scale,
            None,
            None,
            [True, False, False],
        )[0]
        return below, None, None, None, None, None


class _Embedding(nn.Module):
    """Rows of the table of each model, (K, V, H)."""

    def __init__(self, module: nn.Module, views: _Views, rows: Any) -> None:
        super().__init__()
        self.views, self.rows = views, rows
        self.padding = getattr(module, "padding_idx", None)
        weight = views["weight"][0]
        # Autograd needs an input that asks for a gradient; the true ones go to the buffer.
        self.register_buffer("trigger", weight.new_zeros((), requires_grad=True), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        weight, gradient = self.views["weight"]
        models, shared = len(weight), ids.shape[0] == 1
        if shared:  # one row of positions for the whole batch
            ids = ids.expand(models, *ids.shape[1:])
        apply: Any = _EmbeddingFunction.apply
        y: Tensor = apply(self.trigger, ids, weight, gradient, self.padding)
        if not shared:
            return y
        wide = y.unsqueeze(1).expand(models, self.rows(), *y.shape[1:])
        return wide.reshape(models * self.rows(), *y.shape[1:])


class _EmbeddingFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        trigger: Tensor,
        ids: Tensor,
        weight: Tensor,
        gradient: Tensor,
        padding: int | None,
    ) -> Tensor:
        models, _, width = weight.shape
        flat = ids.reshape(models, -1)
        ctx.ids, ctx.gradient, ctx.padding = flat, gradient, padding
        y = weight.new_empty(*flat.shape, width)
        for table, chosen, out in zip(weight, flat, y, strict=True):
            torch.index_select(table, 0, chosen, out=out)
        return y.view(*ids.shape, width)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        models, _, width = ctx.gradient.shape
        g = outputs[0].reshape(models, -1, width)
        if ctx.padding is not None:
            g = g.masked_fill((ctx.ids == ctx.padding).unsqueeze(-1), 0.0)
        for table, chosen, values in zip(ctx.gradient, ctx.ids, g, strict=True):
            table.index_add_(0, chosen, values)
        return g.new_zeros(()), None, None, None, None


_STACKED: dict[str, Any] = {
    "Linear": _Linear,
    "Conv1D": _Linear,
    "LayerNorm": _LayerNorm,
    "Embedding": _Embedding,
}


# --- the last layer -----------------------------------------------------------------------------

_FIRST_TOKEN = re.compile(r"(Bert|Roberta|XLMRoberta)ForSequenceClassification")


def _first_token_only(model: nn.Module) -> None:
    """Classifiers of the BERT family read the first token: the last layer then computes no other.

    Exact, and a good part of a small model's arithmetic (28 % where there are three layers).
    """
    if not _FIRST_TOKEN.fullmatch(type(model).__name__) or changed_dropout(model):
        return
    config: Any = model.config
    if config.is_decoder or config.add_cross_attention or config.output_hidden_states:
        return
    body: Any = getattr(model, str(model.base_model_prefix))
    last = body.encoder.layer[-1]
    last.attention = _FirstTokenAttention(last.attention)


class _FirstTokenAttention(nn.Module):
    """Attention of the first token to all; the rest of the layer then sees one token a row."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.inner, self.output = attention.self, attention.output

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        inner: Any = self.inner
        first = hidden[:, :1]
        query, key, value = (
            layer(x).view(*x.shape[:2], -1, inner.attention_head_size).transpose(1, 2)
            for layer, x in ((inner.query, first), (inner.key, hidden), (inner.value, hidden))
        )
        mask = None if attention_mask is None else attention_mask[..., :1, :]
        rate = inner.dropout.p if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, mask, rate, scale=inner.scaling)
        merged = read.transpose(1, 2).reshape(first.shape)
        return self.output(merged, first), None


# --- the proof ----------------------------------------------------------------------------------


def check_stack(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Raise `NotStackable` unless a stack of two disturbed copies of `model` has their outputs and
    gradients. `inputs`: a batch of two rows or more, cut to both halves."""
    half = len(inputs["input_ids"]) // 2
    copies = [copy.deepcopy(model).eval() for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for other in copies:
        with torch.no_grad():
            for p in other.parameters():
                noise = torch.randn(p.shape, generator=generator).to(p)
                p.add_(noise, alpha=0.1 * float(p.std(unbiased=False)) + 1e-3)
    stack = Stack(copies)
    stack.model.eval()
    parts = [{n: v[i * half : (i + 1) * half] for n, v in inputs.items()} for i in range(2)]
    together = {name: torch.cat([part[name] for part in parts]) for name in inputs}
    found = stack.logits(together)
    weights = torch.randn(found.shape, generator=generator).to(found)
    torch.autograd.backward((found * weights).sum())
    for i, (other, part) in enumerate(zip(copies, parts, strict=True)):
        raw = other(**part).logits
        torch.autograd.backward((raw * weights[i * half : (i + 1) * half]).sum())
        _compare("outputs", found[i * half : (i + 1) * half], raw)
        where = _Layout(other)
        for p in other.parameters():
            if p.grad is not None:
                row = where.view(stack.gradient, p)[i]
                _compare("gradients", row, p.grad)


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    scale = float(expected.detach().abs().max())
    if float((found - expected).detach().abs().max()) > 1e-3 * scale + 1e-6:
        raise NotStackable(f"its {what} would not be those of the models one by one")
