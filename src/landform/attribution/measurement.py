"""What is asked about a query: its loss, its margin, or any function of the model's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from landform.config import nearest
from landform.errors import ConfigError, StoreError
from landform.store.fingerprint import fingerprint
from landform.tasks.objective import Objective

__all__ = ["MEASUREMENTS", "Measurement"]

MEASUREMENTS = ("loss", "margin")

Function = Callable[[Tensor, Tensor], Tensor]
"""(logits, targets) -> one number per example, of which more is better for the query."""


@dataclass(frozen=True)
class Measurement:
    """A quantity m_q of a query; `better` is +1 where more of it is better, -1 for the loss.

    Helpful rows raise better * m. "loss" is the sum of the losses of the query's positions,
    "margin" the log odds of its gold label (see `Objective.margins`).
    """

    name: str
    function: Function | None = None

    @classmethod
    def of(cls, wanted: str | Function) -> Measurement:
        """The measurement with this name, or of this function."""
        if callable(wanted):
            name = getattr(wanted, "__qualname__", type(wanted).__qualname__)
            return cls(name.rpartition(".")[2].strip("<>"), wanted)
        if wanted not in MEASUREMENTS:
            guess = nearest(str(wanted), MEASUREMENTS)
            raise ConfigError(
                f"unknown measurement {wanted!r}",
                remedy=(f"did you mean {guess!r}? " if guess else "")
                + "use 'loss', 'margin', or a function of (logits, targets)",
            )
        return cls(wanted)

    @property
    def better(self) -> int:
        """The direction in which the query is served better."""
        return -1 if self.name == "loss" and self.function is None else 1

    def values(self, objective: Objective, logits: Tensor, targets: Tensor) -> Tensor:
        """(B,) the quantity of every example."""
        if self.function is not None:
            values = self.function(logits, targets)
            if not isinstance(values, Tensor) or values.shape != targets.shape[:1]:
                raise ConfigError(
                    f"measurement {self.name}: it must return one number per example, shape "
                    f"{tuple(targets.shape[:1])}, got {getattr(values, 'shape', type(values))}",
                    remedy="return a tensor of shape (B,) computed from the logits",
                )
            return values
        if self.name == "margin":
            return objective.margins(logits, targets)
        return objective.losses(logits, targets).sums

    def gradient(
        self, objective: Objective, logits: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(values (B,), gradient of -better * m by the logits): what falls when things improve."""
        leaf = logits.detach().double().requires_grad_()
        with torch.enable_grad():
            values = self.values(objective, leaf, targets)
            if not values.requires_grad:
                raise ConfigError(
                    f"measurement {self.name}: it does not depend on the logits",
                    remedy="compute it from the logits with differentiable operations",
                )
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), -self.better * gradient

    def key(self) -> Any:
        """What identifies it in a store: the name, or the code of the function and all it uses."""
        if self.function is None:
            return self.name
        code = getattr(self.function, "__code__", None)
        if code is None:
            raise self._unkept("it is no plain function")
        cells = getattr(self.function, "__closure__", None) or ()
        outside: dict[str, Any] = getattr(self.function, "__globals__", {})
        used = {name: _identity(outside[name]) for name in code.co_names if name in outside}
        defaults = list(getattr(self.function, "__defaults__", None) or ())
        try:
            inside = fingerprint([[cell.cell_contents for cell in cells], used, defaults])
        except StoreError as error:
            raise self._unkept("it uses values from outside that have no fingerprint") from error
        constants = [repr(constant) for constant in code.co_consts]
        return [self.name, code.co_code.hex(), list(code.co_names), constants, inside]

    def _unkept(self, why: str) -> ConfigError:
        return ConfigError(
            f"measurement {self.name} cannot be kept in a store: {why}",
            remedy="leave the store out, or pass a function of its arguments alone",
        )


def _identity(value: Any) -> Any:
    """A module or function by its name; anything else by its value."""
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return value
