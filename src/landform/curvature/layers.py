"""Which modules of a model a curvature sees, and what share of the parameters that is.

A *layer* is a linear map y = W x + b: `nn.Linear` and its subclasses, GPT-2's `Conv1D` (the same
map with W stored transposed), and so the matrices A and B of a LoRA layer. Its gradient is written
with outputs as rows and inputs as columns, the bias as a last column: d_out x (d_in + 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pandas as pd
from torch import nn
from transformers.pytorch_utils import Conv1D

from landform.config import nearest
from landform.errors import ConfigError, CurvatureError

__all__ = ["SEEN", "Layer", "coverage_share", "find_layers"]

SEEN = "seen"
"""Status of a module in a coverage table whose parameters the curvature sees."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear map of a model."""

    name: str
    module: nn.Module
    inputs: int
    outputs: int
    bias: bool

    @property
    def columns(self) -> int:
        """Columns of its gradient: the inputs, and one for the bias where there is one."""
        return self.inputs + self.bias

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.outputs * self.columns


def find_layers(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[tuple[Layer, ...], pd.DataFrame]:
    """(layers in the model's order, coverage of every module that owns parameters).

    `include` and `exclude` are patterns of module names (`*.attention.*`); without `include` all
    layers are taken but those that are frozen while others are not (the base of a LoRA layer), and
    a head that shares its matrix with the embeddings: its gradient is only a part of that matrix's.
    Naming one of these in `include` takes it all the same.

    The coverage has the columns name, kind, parameters (a tied tensor counts once) and status:
    "seen", or why not. Raises `ConfigError` for a pattern that fits no module with parameters, and
    `CurvatureError` where nothing is left.
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
        layer = _layer(name, module)
        wanted = _fits(name, include)
        status = SEEN
        if layer is None:
            status = f"no curvature for {type(module).__name__}"
        elif _fits(name, exclude) or (include and not wanted):
            status = "excluded"
        elif not wanted and id(module.weight) in tied:
            status = "tied to the embeddings"
        elif not wanted and some_frozen and not _trainable(module):
            status = "frozen"
        elif layer is not None:
            layers.append(layer)
        fresh = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted |= {id(p) for p in fresh}
        rows.append((name, type(module).__name__, sum(p.numel() for p in fresh), status))
    coverage = pd.DataFrame(rows, columns=["name", "kind", "parameters", "status"])
    if not layers:
        kinds = ", ".join(sorted(set(coverage.kind))) or "no parameters at all"
        raise CurvatureError(
            f"{type(model).__name__} has no layer to look at (of its modules: {kinds})",
            remedy="a curvature sees nn.Linear and Conv1D; widen include, or narrow exclude",
        )
    return tuple(layers), coverage


def coverage_share(coverage: pd.DataFrame) -> float:
    """Share of the model's parameters in modules whose status is "seen"."""
    seen = coverage.parameters[coverage.status == SEEN].sum()
    return float(seen / max(int(coverage.parameters.sum()), 1))


def _own(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _layer(name: str, module: nn.Module) -> Layer | None:
    if isinstance(module, nn.Linear):
        return Layer(name, module, module.in_features, module.out_features, module.bias is not None)
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return Layer(name, module, int(inputs), int(outputs), True)
    return None


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
