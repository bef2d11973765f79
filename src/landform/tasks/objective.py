"""The objective: what turns a batch into losses, in one place, for every kind of task.

The field that landform studies is

    L(theta) = sum_i w_i sum_t m_it l_it(theta) / sum_i w_i sum_t m_it

over examples i and (for token tasks) positions t, with mask m (0 where the label is -100) and
explicit weights w. Everything returns sums and counts; nothing is averaged before the end, so a
result cannot depend on padding, on the batch split, on the order of examples or on masked labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landform.errors import ConfigError, LabelError
from landform.tasks.batching import IGNORED, Batch
from landform.tasks.labels import LabelMap, reconcile

if TYPE_CHECKING:
    from landform.tasks.task import Kind, Task

__all__ = ["Losses", "Objective"]


@dataclass(frozen=True)
class Losses:
    """Losses of the examples of a batch, not yet averaged."""

    sums: Tensor
    """(B,) sum over the example's valid positions of the loss, in nats (squared error: units^2)"""
    counts: Tensor
    """(B,) number of valid positions (1 for sequence tasks)"""
    correct: Tensor | None
    """(B,) number of valid positions where the most probable label is the gold one"""

    def per_example(self, batch: Batch) -> Losses:
        """Of the examples of `batch`, where these are of its targets: see `Batch.per_example`."""
        if batch.owners is None:
            return self
        correct = None if self.correct is None else batch.per_example(self.correct)
        return Losses(batch.per_example(self.sums), batch.per_example(self.counts), correct)

    def mean(self, weights: Tensor | None = None) -> Tensor:
        """The weighted mean over all valid positions: sums and counts divided once."""
        if weights is None:
            return self.sums.sum() / self.counts.sum()
        return (weights * self.sums).sum() / (weights * self.counts).sum()


@dataclass(frozen=True)
class Objective:
    """The loss of one kind of task: cross-entropy over labels or tokens, or squared error.

    kind              loss of a position                            logits       targets
    classification    -log softmax(z)[y]                            (B, C)       (B,)
    regression        (z - y)^2                                     (B,)         (B,)
    token-class.      -log softmax(z_t)[y_t], -100 ignored          (B, T, C)    (B, T)
    masked-lm         the same, over masked tokens                  (B, T, V)    (B, T)
    causal-lm         -log softmax(z_t)[x_{t+1}]                    (B, T-1, V)  (B, T-1)
    seq2seq           -log softmax(z_t)[y_t], teacher forcing       (B, U, V)    (B, U)

    An example with k references is k rows of a seq2seq batch (see `Batch.owners`); its sums and
    counts are their means, `Losses.per_example`.

    `labels` maps the model's label columns to the task's (MNLI to HANS, Google to HF order).
    """

    kind: Kind
    labels: LabelMap | None = None

    @classmethod
    def of(
        cls, task: Task, model_labels: Sequence[str], *, given: Sequence[str] | None = None
    ) -> Objective:
        """The objective of `task` for a model whose label order is `model_labels`."""
        if task.kind not in ("classification", "token-classification"):
            if task.kind == "regression" and len(model_labels) != 1:
                raise LabelError(
                    f"task {task.name} is a regression; the model has {len(model_labels)} outputs",
                    remedy="use a model with num_labels=1",
                )
            return cls(task.kind)
        return cls(
            task.kind,
            reconcile(
                task.label_names,
                tuple(model_labels),
                groups=task.label_groups,
                merge=task.merge,
                given=given,
            ),
        )

    def logits(self, model: nn.Module, batch: Batch, memory: Tensor | None = None) -> Tensor:
        """Run `model` on a batch; logits in the task's label order, aligned with `targets`.

        `memory`: what `encode` returned for the batch, not to be computed again.
        """
        return self.read(model(**self.arguments(model, batch, memory)).logits)

    def encode(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, T, H) outputs of the encoder of a seq2seq model."""
        encoder: Any = getattr(model, "get_encoder", lambda: None)()
        if self.kind != "seq2seq" or encoder is None:
            raise ConfigError(f"{type(model).__name__} has no encoder: not a seq2seq model")
        states: Tensor = encoder(**batch.inputs, return_dict=True).last_hidden_state
        return states

    def arguments(
        self, model: nn.Module, batch: Batch, memory: Tensor | None = None
    ) -> dict[str, Any]:
        """Keyword arguments of the forward pass: the inputs, and a decoder's inputs for seq2seq.

        Where examples have several targets, the encoder reads each example once.
        """
        if self.kind != "seq2seq":
            return dict(batch.inputs)
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift is None:
            raise ConfigError(f"{type(model).__name__} has no decoder: not a seq2seq model")
        decoder = {"decoder_input_ids": shift(labels=batch.labels)}
        if memory is None and batch.owners is None:
            return {**batch.inputs, **decoder}
        memory = self.encode(model, batch) if memory is None else memory
        mask = batch.inputs["attention_mask"]
        if batch.owners is not None:
            memory, mask = memory[batch.owners], mask[batch.owners]
        from transformers.modeling_outputs import BaseModelOutput

        states = BaseModelOutput(last_hidden_state=memory)
        return {"encoder_outputs": states, "attention_mask": mask, **decoder}

    def read(self, raw: Tensor) -> Tensor:
        """The model's raw logits, aligned with `targets` and in the task's label order."""
        if self.kind == "regression":
            return raw.squeeze(-1)
        if self.kind == "causal-lm":
            return raw[:, :-1]
        return raw if self.labels is None else self.labels(raw)

    def targets(self, batch: Batch) -> Tensor:
        """The labels, aligned with `logits`."""
        return batch.labels[:, 1:] if self.kind == "causal-lm" else batch.labels

    def position_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of every position, 0 where it carries none: (B,) or (B, T)."""
        if self.kind == "regression":
            return (logits - targets.to(logits.dtype)).square()
        # Half precision has 3 digits: a loss is worth computing in float32 at least.
        values = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        losses: Tensor = F.cross_entropy(
            values.reshape(-1, values.shape[-1]),
            targets.reshape(-1),
            ignore_index=IGNORED,
            reduction="none",
        )
        return losses.view(targets.shape)

    def losses(self, logits: Tensor, targets: Tensor) -> Losses:
        """Per-example sums and counts (see `Losses`)."""
        positions = self.position_losses(logits, targets)
        if self.kind == "regression":
            return Losses(positions, torch.ones_like(positions), None)
        valid = targets != IGNORED
        right = (logits.argmax(-1) == targets) & valid
        if positions.dim() == 1:
            return Losses(positions, valid.to(positions.dtype), right)
        return Losses(positions.sum(-1), valid.sum(-1).to(positions.dtype), right.sum(-1))

    def output_gradient(
        self, logits: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """d/dz sum_i w_i sum_t m_it l_it: softmax(z) - onehot(y), or 2 (z - y); shape of `logits`.

        `weights` is (B,) or the shape of `targets`; masked positions have gradient 0.
        """
        if self.kind == "regression":
            gradient = 2 * (logits - targets.to(logits.dtype))
            return gradient if weights is None else weights * gradient
        valid = targets != IGNORED
        gold = F.one_hot(targets.clamp(min=0), logits.shape[-1]).to(logits.dtype)
        scale = valid.to(logits.dtype)
        if weights is not None:
            missing = scale.dim() - weights.dim()
            scale = scale * weights.reshape(*weights.shape, *[1] * missing)
        return (logits.softmax(-1) - gold) * scale.unsqueeze(-1)

    def margins(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B,) sum over valid positions of z_y - log sum_{c != y} exp z_c, float64.

        The log odds log(p_y / (1 - p_y)) of the gold label: the output function of TRAK (Park et
        al. 2023, eq. 11). Unlike the loss it does not level off where the model is sure.
        """
        if self.kind == "regression":
            raise ConfigError(
                "a regression has no margin: there are no classes",
                remedy="use the measurement 'loss'",
            )
        values = logits.double()
        valid = targets != IGNORED
        gold = targets.clamp(min=0).unsqueeze(-1)
        others = values.scatter(-1, gold, float("-inf")).logsumexp(-1)
        margins = (values.gather(-1, gold).squeeze(-1) - others).masked_fill(~valid, 0.0)
        return margins if margins.dim() == 1 else margins.sum(-1)

    def label_distribution(self, logits: Tensor) -> torch.distributions.Distribution:
        """The model's own distribution over labels, whose negative log-likelihood is the loss.

        Categorical(softmax(z)); for regression Normal(z, 1/sqrt 2), since (z - y)^2 is its
        negative log density up to a constant.
        """
        if self.kind == "regression":
            return torch.distributions.Normal(logits, torch.full_like(logits, math.sqrt(0.5)))
        return torch.distributions.Categorical(logits=logits)

    def sample_targets(self, logits: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Labels drawn from the model's distribution where `targets` has one; -100 elsewhere."""
        if self.kind == "regression":
            noise = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
            return logits + math.sqrt(0.5) * noise.to(logits.device)
        flat = logits.reshape(-1, logits.shape[-1]).softmax(-1)
        drawn = torch.multinomial(flat, 1, generator=generator).view(targets.shape)
        return torch.where(targets == IGNORED, targets, drawn)
