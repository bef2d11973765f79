"""Noise in place of dropout, and a watch that sees what acts when a model is trained.

Gaussian dropout (Srivastava et al. 2014, section 10) multiplies every entry by its own draw of

    1 + sqrt(p / (1 - p)) eps,    eps ~ N(0, 1)

which has dropout's mean (1) and variance (p / (1 - p)); in evaluation it does nothing.

A module's probability becomes a `GaussianRate`, a number that any code of transformers hands on
untouched to `torch.nn.functional.dropout` or to attention. The modules that make these calls carry
hooks that look out for it while they run. So nothing is replaced: state dict, saved files and the
module tree stay as they are, copies of the model keep their noise, and recomputation under gradient
checkpointing meets the hooks again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

__all__ = [
    "Call",
    "GaussianRate",
    "changed_dropout",
    "noise_of",
    "put_noise",
    "remove_noise",
    "watch",
]


class GaussianRate(float):
    """A dropout probability p that asks for Gaussian noise.

    `original`: as the code of Sharma et al. 2024 has it, with p / (1 - p) as the standard deviation
    (a variance of 0.012 for p = 0.1, where 0.111 was meant), and in evaluation too.
    """

    original: bool

    def __new__(cls, p: float, original: bool = False) -> GaussianRate:
        """See the class."""
        made = super().__new__(cls, p)
        made.original = original
        return made

    @property
    def deviation(self) -> float:
        """Standard deviation of the factor."""
        odds = float(self) / (1.0 - float(self))
        return odds if self.original else math.sqrt(odds)


def gaussian_noise(x: Tensor, rate: GaussianRate) -> Tensor:
    """x (1 + deviation eps), eps ~ N(0, 1) for every entry."""
    if has_torch_function_unary(x):  # a watch sees it
        seen: Tensor = handle_torch_function(gaussian_noise, (x,), x, rate)
        return seen
    return x * (1.0 + rate.deviation * torch.randn_like(x))


def _noisy_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    rate: GaussianRate,
) -> Tensor:
    """`scaled_dot_product_attention` written out, with noise on its probabilities: the fused
    kernels know no other than Bernoulli's."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask
    # A row that may look at nothing: zeros, as torch gives, not NaN.
    probabilities = (
        torch.nan_to_num(scores.softmax(-1)) if attn_mask is not None else scores.softmax(-1)
    )
    return gaussian_noise(probabilities, rate) @ value


# --- which calls are dropout --------------------------------------------------------------------

_DROPOUTS: dict[Any, str] = {
    F.dropout: "p",
    F.dropout1d: "p",
    F.dropout2d: "p",
    F.dropout3d: "p",
    F.alpha_dropout: "p",
    F.feature_alpha_dropout: "p",
    torch.dropout: "p",
    F.scaled_dot_product_attention: "dropout_p",
    F.multi_head_attention_forward: "dropout_p",
}
_PLACE = {
    F.scaled_dot_product_attention: (4, None),
    F.multi_head_attention_forward: (9, 13),
}
_DEFAULT = {F.dropout: 0.5, F.dropout1d: 0.5, F.dropout2d: 0.5, F.dropout3d: 0.5}


def _read(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool] | None:
    """(probability, whether it is told to act) of a call that is a dropout, else None."""
    name = _DROPOUTS.get(func)
    if name is None:
        return None
    at, training_at = _PLACE.get(func, (1, 2))
    p = kwargs.get(name, args[at] if len(args) > at else _DEFAULT.get(func, 0.0))
    told = kwargs.get("training", kwargs.get("train"))
    if told is None:
        given = training_at is not None and len(args) > training_at
        told = bool(args[training_at]) if given and training_at is not None else True
    return p, bool(told)


# --- noise --------------------------------------------------------------------------------------


class _NoiseMode(TorchFunctionMode):
    def __init__(self, module: nn.Module, always: GaussianRate | None) -> None:
        super().__init__()
        self.module, self.always = module, always

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = _read(func, args, kwargs)
        if found is None:
            return func(*args, **kwargs)
        p, told = found
        if not isinstance(p, GaussianRate):
            # Attention is told 0 in evaluation, where the original's noise goes on.
            if self.always is None or self.module.training or p != 0:
                return func(*args, **kwargs)
            p = self.always
        elif not told and not p.original:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _noisy_attention(*args, **kwargs, rate=p)
        return gaussian_noise(args[0] if args else kwargs["input"], p)


class _Enter:
    """Before a module runs: noise from here on."""

    def __init__(self, always: GaussianRate | None) -> None:
        self.always = always
        self.modes: list[Any] = []

    def __call__(self, module: nn.Module, _: Any) -> None:
        mode: Any = _NoiseMode(module, self.always)
        mode.__enter__()
        self.modes.append(mode)

    def __deepcopy__(self, memo: Any) -> _Enter:
        return _Enter(self.always)

    def __reduce__(self) -> Any:
        return _Enter, (self.always,)


class _Leave:
    """After it ran, or failed."""

    def __call__(self, module: nn.Module, *_: Any) -> None:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _Enter) and hook.modes:
                hook.modes.pop().__exit__(None, None, None)


def put_noise(module: nn.Module, *, always: GaussianRate | None = None) -> None:
    """Let the calls of dropout that `module` makes with a `GaussianRate` be Gaussian noise.

    `always`: the rate of its calls in evaluation, where it hands on 0.
    """
    remove_noise(module)
    module.register_forward_pre_hook(_Enter(always))
    module.register_forward_hook(_Leave(), always_call=True)


def noise_of(module: nn.Module) -> dict[str, Any] | None:
    """The options of the `put_noise` that is in force on a module, or None."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _Enter):
            return {"always": hook.always}
    return None


def remove_noise(module: nn.Module) -> None:
    """Take away what `put_noise` put."""
    for hooks, kind in ((module._forward_pre_hooks, _Enter), (module._forward_hooks, _Leave)):
        for key in [key for key, hook in hooks.items() if isinstance(hook, kind)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def changed_dropout(model: nn.Module) -> bool:
    """Whether dropout of the model hangs on hooks: noise, or dropout that was inserted."""
    from landform.weights.sites import INSERTED

    return any(
        hasattr(module, INSERTED) or noise_of(module) is not None for module in model.modules()
    )


# --- watching -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of dropout in a forward pass."""

    module: str
    """path of the module that was running"""
    number: int
    """which of the calls of that module it is, from 0"""
    p: float
    """the probability in force: 0 where it is not told to act"""
    gaussian: bool
    """whether it is Gaussian noise"""
    raw: Any
    """the probability as it was handed over"""


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.calls: list[Call] = []
        self.counts: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is gaussian_noise:
            self._add(args[1], True, gaussian=True)
        else:
            found = _read(func, args, kwargs)
            if found is not None:
                self._add(*found, gaussian=False)
        return func(*args, **kwargs)

    def _add(self, p: Any, told: bool, *, gaussian: bool) -> None:
        where = self.running[-1] if self.running else ""
        number = self.counts.get(where, 0)
        self.counts[where] = number + 1
        value = float(p) if isinstance(p, float | int) else math.nan
        self.calls.append(Call(where, number, value if told else 0.0, gaussian, p))


@contextmanager
def watch(model: nn.Module) -> Iterator[list[Call]]:
    """The calls of dropout that `model` makes inside, in their order."""
    seen = _Watch()
    handles: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: seen.running.append(name)

    def leave(*_: Any) -> None:
        seen.running.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with seen:
            yield seen.calls
    finally:
        for handle in handles:
            handle.remove()
