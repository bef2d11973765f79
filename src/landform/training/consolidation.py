"""Elastic weight consolidation: training that stays near its start where that mattered.

    L(theta) + lambda / 2 sum_j F_j (theta_j - theta*_j)^2

(Kirkpatrick et al. 2017, PNAS 114, equation 3) with theta* the weights that training starts from
and F the diagonal of their Fisher matrix on what is not to be forgotten. The penalty covers every
tensor that the Fisher and the model have in common; a head is no part of it, since the head of a
new task has nothing to stay near to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from landform.curvature.fisher import Fisher, load_fisher
from landform.errors import ConfigError, CurvatureError
from landform.weights.points import head_tensors
from landform.weights.space import ParameterSpace

__all__ = ["ConsolidationCallback"]


@dataclass(frozen=True, eq=False)
class _Term:
    """The penalty of one tensor."""

    parameter: nn.Parameter
    importance: Tensor
    anchor: Tensor


class ConsolidationCallback(TrainerCallback):
    """Adds the penalty of elastic weight consolidation to a Hugging Face Trainer.

        trainer = Trainer(model, args, train_dataset=..., callbacks=[
            landform.ConsolidationCallback("fisher.safetensors", strength=1e4)
        ])

    Once per optimizer step, after the backward passes of all its batches and after the gradient was
    clipped, lambda F_j (theta_j - theta*_j) is added to the gradient: exactly that of the penalty,
    whatever the number of batches. `max_grad_norm` so limits the gradient of the data, and
    `grad_norm` of the logs is that of the data; the penalty is never shortened. `penalty` of the
    logs is the mean of lambda / 2 sum_j F_j (theta_j - theta*_j)^2 over the steps since the row
    before, as `loss` is that of the data.

    `strength` is lambda: the loss in nats that is paid for one unit of F times squared distance. 0
    trains as without the callback, bit for bit. `anchor` is theta*, a model or tensors by name; by
    default the weights when training begins, which are not known in a training that is resumed:
    give it there. Memory: the Fisher (float32 beside weights in half precision, whose smallest
    numbers would lose most of it) and the anchor, about two copies of the weights.

    Raises `CurvatureError` where Fisher and model have no tensor in common, or one of two shapes;
    `ConfigError` under fp16 without clipping, where gradients are still scaled.
    """

    def __init__(
        self,
        fisher: Fisher | str | os.PathLike[str],
        strength: float,
        *,
        anchor: nn.Module | Mapping[str, Tensor] | None = None,
    ) -> None:
        if not 0 <= strength < float("inf"):
            raise ConfigError(
                f"a penalty of strength {strength}", remedy="use a number of at least 0"
            )
        self.fisher, self.strength = load_fisher(fisher), float(strength)
        tensors = dict(anchor.named_parameters()) if isinstance(anchor, nn.Module) else anchor
        self.anchor = None if tensors is None else {
            n: _copy(v) for n, v in tensors.items() if n in self.fisher.diagonal
        }  # fmt: skip
        self.terms: dict[str, _Term] = {}
        self._sum: Tensor | None = None
        self._steps = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Take the start as the anchor, on the device of the model."""
        self._sum, self._steps = None, 0
        if not self.strength:
            return
        if self.anchor is None and state.global_step:
            raise ConfigError(
                "a training that is resumed does not know the weights it once started from",
                remedy="pass them: ConsolidationCallback(..., anchor=the model before training)",
            )
        if getattr(args, "fp16", False) and not args.max_grad_norm:
            raise ConfigError(
                "under fp16 gradients are scaled until they are clipped, and this training clips "
                "none: the penalty would be too weak by that scale",
                remedy="train in bf16, or with max_grad_norm (1e9 shortens nothing)",
            )
        parameters = dict(model.named_parameters())
        self.terms = {
            name: self._term(name, parameters[name]) for name in common_tensors(self.fisher, model)
        }

    def _term(self, name: str, parameter: nn.Parameter) -> _Term:
        anchor = parameter if self.anchor is None else self.anchor.get(name)
        if anchor is None or anchor.shape != parameter.shape:
            raise ConfigError(
                f"the anchor has no tensor {name} of shape {tuple(parameter.shape)}",
                remedy="pass the model as it was before training",
            )
        if anchor is parameter:
            anchor = _copy(parameter)
        # Fisher information of 1e-8 is none in half precision.
        precise = torch.promote_types(parameter.dtype, torch.float32)
        return _Term(
            parameter,
            self.fisher.diagonal[name].to(parameter.device, precise),
            anchor.to(parameter.device, parameter.dtype),
        )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add the gradient of the penalty to that of the data."""
        if not self.terms:
            return
        values = []
        with torch.no_grad():
            for term in self.terms.values():
                away = term.parameter.to(term.importance.dtype) - term.anchor
                pull = away * term.importance
                values.append(torch.linalg.vecdot(pull.flatten(), away.flatten()))
                if term.parameter.grad is None:
                    term.parameter.grad = torch.zeros_like(term.parameter)
                term.parameter.grad.add_(pull, alpha=self.strength)
            penalty = self.strength / 2 * torch.stack([v.to(values[0]) for v in values]).sum()
        self._sum = penalty if self._sum is None else self._sum + penalty
        self._steps += 1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Say the penalty in the row of the loss."""
        if logs is None or "loss" not in logs or self._sum is None:
            return
        logs["penalty"] = float(self._sum) / self._steps
        if state.log_history and "loss" in state.log_history[-1]:
            state.log_history[-1]["penalty"] = logs["penalty"]
        self._sum, self._steps = None, 0


def common_tensors(fisher: Fisher, model: nn.Module) -> tuple[str, ...]:
    """Tensors of `model` that are trained, that a Fisher has too, and that are no part of a head.

    Raises `CurvatureError` where there is none, or where one has another shape in the Fisher.
    """
    space = ParameterSpace.of(model, trainable=True)
    try:
        head = set(head_tensors(model, space.names))
    except ConfigError:  # all that the model has was there before: a language model
        head = set()
    shared = [name for name in space.names if name in fisher.diagonal and name not in head]
    if not shared:
        raise CurvatureError(
            f"the Fisher of {fisher.summary.checkpoint} has no tensor in common with the model "
            f"(its first is {next(iter(fisher.diagonal))}, the model's {space.names[0]})",
            remedy="compute it at the checkpoint that training starts from (landform fisher)",
        )
    fisher.check(space, "the model", only=shared)
    return tuple(shared)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
