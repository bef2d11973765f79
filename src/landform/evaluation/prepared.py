"""Data made ready for one model: tokenised once, cut into batches of like length, on the device.

The one way from examples to batches: evaluation, curvature, attribution and training go it, so that
they cut texts at the same length, warn alike and see the same rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from landform.errors import CheckpointError, LabelError
from landform.evaluation.data import Data, DataConfig, PointsConfig
from landform.evaluation.generation import Generation, generation_of
from landform.tasks.batching import (
    Batch,
    Encoded,
    cut_batches,
    encode,
    fit_to_model,
    longest_input,
    position_limit,
)
from landform.tasks.objective import Objective
from landform.tasks.task import Examples, Task
from landform.weights.checkpoint import Checkpoint

__all__ = [
    "PreparedData",
    "check_padding",
    "prepare",
    "target_length",
    "tokenise",
    "unpadded",
    "warn_if_cut",
]


@dataclass(frozen=True)
class PreparedData:
    """A data set as batches on the device."""

    name: str
    objective: Objective
    batches: tuple[Batch, ...]
    size: int
    ids: tuple[str, ...]
    truncated: int
    encoded: Encoded
    """the same examples unpadded, for whoever cuts other batches of them"""
    generation: Generation | None = None
    """how answers are generated, where a metric judges them"""

    @classmethod
    def of(
        cls,
        name: str,
        objective: Objective,
        encoded: Encoded,
        ids: tuple[str, ...],
        *,
        token_budget: int,
        device: torch.device | str = "cpu",
        generation: Generation | None = None,
    ) -> PreparedData:
        """Examples cut into batches of like length with at most `token_budget` padded tokens."""
        batches = tuple(batch.to(device) for batch in cut_batches(encoded, token_budget))
        return cls(name, objective, batches, len(ids), ids, encoded.truncated, encoded, generation)

    @cached_property
    def order(self) -> Tensor:
        """(N,) where in the batches, one after the other, each example stands: `values[order]` has
        the order of the examples."""
        return torch.cat([batch.rows for batch in self.batches]).argsort()

    @property
    def tokens(self) -> int:
        """Padded tokens of one pass over the data."""
        return sum(batch.inputs["input_ids"].numel() for batch in self.batches)


def tokenise(
    name: str,
    task: Task,
    examples: Examples,
    model: Any,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    mask_seed: int = 0,
    where: str = "",
) -> Encoded:
    """Examples as the inputs of one model, unpadded, in their order.

    Cut at `max_length` tokens (default: what model and tokenizer can take), with a warning that
    names the data set `name`. Sets the model's padding token (`tasks.batching.set_padding`).
    `where` (default: `name`) is for errors: `DataError` for no examples, a length that the model
    does not have, a tokenizer of another model.
    """
    length = longest_input(tokenizer, model, max_length)
    encoded = encode(
        examples,
        tokenizer,
        task.kind,
        max_length=length,
        mask_seed=mask_seed,
        max_target_length=target_length(task, model),
    )
    warn_if_cut(name, encoded, length)
    return fit_to_model(encoded, model, tokenizer, where or name)


def prepare(
    data: Data,
    checkpoint: Checkpoint,
    model: Any,
    tokenizer: Any,
    config: DataConfig,
    examples: Examples | None = None,
) -> PreparedData:
    """A data set (or the `examples` chosen of it) as batches for a checkpoint's model.

    Raises `LabelError` where the labels of the checkpoint are not those of the task, and what
    `tokenise` raises.
    """
    examples = data.examples(config.rows) if examples is None else examples
    where = f"{checkpoint.spec} and {data.name}"
    try:
        objective = Objective.of(data.task, checkpoint.label_names(), given=config.model_labels)
    except LabelError as error:
        raise LabelError(f"{where}: {error.what}", remedy=error.remedy) from None
    encoded = tokenise(
        data.name,
        data.task,
        examples,
        model,
        tokenizer,
        max_length=config.max_length,
        mask_seed=config.seed,
        where=where,
    )
    generation = None
    if isinstance(config, PointsConfig):
        generation = generation_of(data.task, model, tokenizer, config.max_new_tokens)
    return PreparedData.of(
        data.name,
        objective,
        encoded,
        examples.ids,
        token_budget=config.token_budget,
        device=config.torch_device(),
        generation=generation,
    )


def target_length(task: Task, model: Any) -> int | None:
    """Tokens at which the targets of a text-to-text task are cut; None: where inputs are."""
    if task.form is None:
        return None
    return position_limit(model, task.form.max_target_length, "max_target_length")


def warn_if_cut(name: str, encoded: Encoded, length: int) -> None:
    """Warn of examples that lost their ends: their numbers are those of shorter texts."""
    if encoded.truncated:
        warnings.warn(
            f"{name}: {encoded.truncated} of {len(encoded)} examples are longer than {length} "
            "tokens and were cut",
            stacklevel=2,
        )


_ALONE = "use token_budget 1: every row alone, without padding"


def check_padding(model: Any, data: PreparedData, spec: str, *, remedy: str = _ALONE) -> None:
    """Raise `CheckpointError` where padding changes what the model says of a row.

    XLNet's classifier reads the last position, FNet mixes all positions: their numbers would
    depend on which rows share a batch. A causal language model must not see what follows either.
    """
    with _as_evaluated(model):
        _check_causal(model, data, spec)
        fault = _padding_fault(model, data)
    if fault is not None:
        raise CheckpointError(
            f"{spec}: {fault}, so they would depend on which rows share a batch",
            remedy=remedy,
        )


def unpadded(model: Any, data: PreparedData, spec: str) -> PreparedData:
    """`data`, or every row of it in a batch of its own where padding changes the outputs.

    For training, which evaluates what it trains and has no other batches to offer: it warns where
    `check_padding` raises. A causal language model that sees what follows is refused all the same.
    """
    with _as_evaluated(model):
        _check_causal(model, data, spec)
        fault = _padding_fault(model, data)
    if fault is None:
        return data
    warnings.warn(
        f"{spec}: {fault}: it is evaluated row by row, but trained on padded batches, so what it "
        "learns depends on which rows share one (batch_size 1 has no padding)",
        stacklevel=2,
    )
    # A budget that no row keeps to: every batch has the one row that it must have.
    alone = tuple(batch.to(data.order.device) for batch in cut_batches(data.encoded, 1))
    return replace(data, batches=alone)


@contextmanager
def _as_evaluated(model: Any) -> Iterator[None]:
    """Without dropout and gradients inside; in its former mode behind."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _padding_fault(model: Any, data: PreparedData) -> str | None:
    """What padding does to an output, where it does anything.

    One row is run alone and with three padded positions, where some batch has padding at all.
    """
    for batch in data.batches:
        lengths = batch.inputs["attention_mask"].sum(-1)
        row, width = int(lengths.argmin()), batch.inputs["attention_mask"].shape[1]
        length = int(lengths[row])
        if length < width:
            break
    else:
        return None
    alone, padded = (
        data.objective.logits(model, _cut_row(batch, row, size, data.objective.kind))
        for size in (length, min(length + 3, width))
    )
    if not alone.numel():  # a text of one token has no next one
        return None
    if alone.dim() == 3:
        padded = padded[:, : alone.shape[1]]
    difference = float((padded - alone).abs().max())
    # Another width rounds otherwise, which is worth far less than half the digits; NaN is no
    # matter of padding and is reported where losses are.
    tolerance = math.sqrt(torch.finfo(alone.dtype).eps) * (1 + float(alone.abs().max()))
    if not difference > tolerance:
        return None
    return (
        f"its outputs depend on padding (a logit of one row of {data.name} changes by "
        f"{difference:.3g} with {min(3, width - length)} padded positions)"
    )


def _check_causal(model: Any, data: PreparedData, spec: str) -> None:
    """Raise `CheckpointError` where a model that is asked for next tokens sees them.

    An encoder such as BERT loads as a causal model and reads the answer off its input. Its longest
    row is run with and without its last token.
    """
    batch = data.batches[-1]
    length = int(batch.inputs["attention_mask"].sum(-1).max())
    if data.objective.kind != "causal-lm" or length < 3:
        return
    row = int(batch.inputs["attention_mask"].sum(-1).argmax())
    whole, shorter = (
        data.objective.logits(model, _cut_row(batch, row, size, data.objective.kind))
        for size in (length, length - 1)
    )
    difference = float((whole[:, : shorter.shape[1]] - shorter).abs().max())
    if difference > math.sqrt(torch.finfo(whole.dtype).eps) * (1 + float(whole.abs().max())):
        raise CheckpointError(
            f"{spec}: what it says of a token depends on the tokens after it (a logit of one row of"
            f" {data.name} changes by {difference:.3g} without the last token), so it is no causal"
            " language model",
            remedy="use kind='masked-lm' for an encoder, or a decoder such as GPT-2",
        )


def _cut_row(batch: Batch, row: int, width: int, kind: str) -> Batch:
    """One row of a batch at another width."""
    inputs = {name: values[row : row + 1, :width] for name, values in batch.inputs.items()}
    labels = batch.labels if batch.owners is None else batch.labels[batch.owners >= row]
    labels = labels[row : row + 1] if batch.owners is None else labels[:1]
    aligned = kind in ("token-classification", "masked-lm", "causal-lm")
    return Batch(inputs, labels[:, :width] if aligned else labels, batch.rows[row : row + 1])
