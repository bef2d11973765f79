"""Which modules of a model a curvature sees, and what share of the parameters that is.

A *layer* is a linear map y = W x + b: `nn.Linear` and its subclasses, GPT-2's `Conv1D` (the same
map with W stored transposed), and so the matrices A and B of a LoRA layer. Its gradient is written
with outputs as rows and inputs as columns, the bias as a last column: d_out x (d_in + 1). Where
only the bias of a map is trained (BitFit) the layer is that column: it has 0 inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from landform.config import nearest
from landform.errors import ConfigError, CurvatureError

__all__ = ["FROZEN", "SEEN", "Layer", "coverage_share", "find_layers", "layer_matrix"]

SEEN = "seen"
"""Status of a module in a coverage table whose parameters the curvature sees."""

FROZEN = "frozen"
"""Status of a module that is not trained while others are."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear map of a model."""

    name: str
    module: nn.Module
    inputs: int
    """columns of the matrix that are looked at: all, or none where only the bias is trained"""
    outputs: int
    bias: bool
    rows: ClassVar[Literal["positions", "examples", "whole"]] = "positions"
    """what a row of its input is: a position of the batch (an example or a token); something of an
    example, whatever (the heads of a token); or nothing, its output is an example's as a whole"""

    @property
    def columns(self) -> int:
        """Columns of its gradient: the inputs, and one for the bias where there is one."""
        return self.inputs + self.bias

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.outputs * self.columns

    def attach(self, hook: Callable[..., Any]) -> Any:
        """Have `hook(module, inputs, named, output)` called in every forward pass; it may put
        another output in place. `remove()` of what is returned ends that."""
        return self.module.register_forward_hook(hook, with_kwargs=True)

    def seen(self, x: Tensor, output: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
        """(input, output) of a call with `size` examples, as rows that belong to examples; None
        where the call is not what is known of such layers."""
        return x, output


def layer_matrix(layer: Layer, entries: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """(d_out, columns): what `entries` gives for a layer's matrix and bias, put together."""
    module: Any = layer.module
    parts = []
    if layer.inputs:
        matrix = entries(module.weight)
        parts.append(matrix.t() if isinstance(module, Conv1D) else matrix)
    if layer.bias:
        parts.append(entries(module.bias)[:, None])
    return torch.cat(parts, 1)


def find_layers(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[tuple[Layer, ...], pd.DataFrame]:
    """(layers in the model's order, coverage of every module that owns parameters).

    `include` and `exclude` are patterns of module names (`*.attention.*`); without `include` all
    layers are taken but those that are frozen while others are not (the base of a LoRA layer), and
    a head that shares its matrix with the embeddings: its gradient is only a part of that matrix's.
    Naming one of these in `include` takes it all the same. Of a layer of which one of matrix and
    bias is frozen, the other one is the layer.

    The coverage has the columns name, kind, parameters (a tied tensor counts once; where a part of
    a module is frozen, those of the rest) and status: "seen", or why not. Raises `ConfigError` for
    a pattern that fits no module with parameters, and `CurvatureError` where nothing is left.
    """
    owners = [(name, module) for name, module in model.named_modules() if _own(module)]
    _check_patterns([*include, *exclude], [name for name, _ in owners])
    tied = {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    some_frozen = any(p.requires_grad for p in model.parameters())
    layers, rows, counted = [], [], set[int]()
    for name, module in owners:
        frozen = some_frozen and not _trainable(module)
        partly = some_frozen and not frozen
        layer = _layer(name, module, trained_only=partly)
        wanted = _fits(name, include)
        status = SEEN
        if frozen and not (wanted and layer is not None):
            status = FROZEN
        elif layer is None:
            status = f"no curvature for {type(module).__name__}"
        elif _fits(name, exclude) or (include and not wanted):
            status = "excluded"
        elif not wanted and id(module.weight) in tied:
            status = "tied to the embeddings"
        else:
            layers.append(layer)
        fresh = [
            p
            for p in module.parameters(recurse=False)
            if id(p) not in counted and (p.requires_grad or not partly)
        ]
        counted |= {id(p) for p in fresh}
        rows.append((name, type(module).__name__, sum(p.numel() for p in fresh), status))
    coverage = pd.DataFrame(rows, columns=["name", "kind", "parameters", "status"])
    if not layers:
        kinds = ", ".join(sorted(set(coverage.kind))) or "no parameters at all"
        raise CurvatureError(
            f"{type(model).__name__} has no layer to look at (of its modules: {kinds})",
            remedy="a curvature sees nn.Linear and Conv1D that are trained (a prompt is neither); "
            "widen include, or narrow exclude",
        )
    return tuple(layers), coverage


def coverage_share(coverage: pd.DataFrame) -> float:
    """Share of the trained parameters that is in modules whose status is "seen"."""
    seen = coverage.parameters[coverage.status == SEEN].sum()
    trained = coverage.parameters[coverage.status != FROZEN].sum()
    return float(seen / max(int(trained), 1))


def _own(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _layer(name: str, module: nn.Module, *, trained_only: bool) -> Layer | None:
    if isinstance(module, nn.Linear):
        outputs, inputs = module.weight.shape
    elif isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
    else:
        return None
    bias = module.bias is not None and (module.bias.requires_grad or not trained_only)
    matrix = module.weight.requires_grad or not trained_only
    return Layer(name, module, int(inputs) if matrix else 0, int(outputs), bias)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        guess = nearest(pattern, names)
        raise ConfigError(
            f"no module fits the pattern {pattern!r}",
            remedy=(f"did you mean {guess!r}? " if guess else "")
            + f"names look like {next(_examples(names), 'none')}; * stands for anything",
        )


def _examples(names: Sequence[str]) -> Iterator[str]:
    yield ", ".join(names[:: max(1, len(names) // 3)][:3])
