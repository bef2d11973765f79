"""How likely a seq2seq model finds given answers: label probabilities of text-to-text tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landform.errors import ConfigError
from landform.evaluation.points import PreparedData
from landform.tasks.answers import answer_start, encode_targets
from landform.tasks.batching import IGNORED, LONGEST, Batch, position_limit

__all__ = ["answer_log_likelihoods"]

_ROWS = 512
"""Answers that the decoder reads at once, of all examples of a batch together."""


def answer_log_likelihoods(
    model: Any, prepared: PreparedData, answers: Sequence[str], tokenizer: Any
) -> np.ndarray:
    """(N, K) float64: log P(answer_k | input_i), each answer teacher-forced.

    The sum over the tokens of the answer and of the end token, which says that nothing follows (so
    that an answer that begins like another one is told from it), of log softmax(z_t)[y_t]. What
    stands before every answer, the sentinel, is read by the decoder and not counted. In nats, in
    the order of the examples, with the model in the mode it is in.

    Raises `ConfigError` for data that are not those of a seq2seq task, or no answers.
    """
    objective = prepared.objective
    if objective.kind != "seq2seq" or not answers:
        raise ConfigError(
            f"{prepared.name}: no answers to choose from"
            if not answers
            else f"{prepared.name} is {objective.kind}: answers have likelihoods in seq2seq tasks",
            remedy="use a text-to-text task, and give its answers",
        )
    targets, counted = _targets(model, answers, tokenizer, prepared)
    found = np.empty((prepared.size, len(answers)))
    with torch.inference_mode():
        for batch in prepared.batches:
            memory = objective.encode(model, batch)
            step = max(1, _ROWS // len(batch))
            for start in range(0, len(answers), step):
                chosen = slice(start, start + step)
                labels = targets[chosen].to(memory.device)
                every = _every_answer(batch, labels)
                logits = objective.logits(model, every, memory)
                losses = objective.position_losses(logits, every.labels).double()
                losses = losses * counted[chosen].to(memory.device).repeat(len(batch), 1)
                table = -losses.sum(-1).view(len(batch), len(labels))
                found[batch.rows.cpu().numpy(), chosen] = table.cpu().numpy()
    return found


def _targets(
    model: Any, answers: Sequence[str], tokenizer: Any, prepared: PreparedData
) -> tuple[Tensor, Tensor]:
    """(K, U) token ids of the answers, -100 behind them, and which of them count (0 or 1)."""
    form = prepared.encoded.form
    limit = position_limit(model, None, "max_target_length", LONGEST)
    rows = encode_targets(answers, tokenizer, form, limit)
    lead = answer_start(tokenizer, form)
    width = max(map(len, rows))
    targets = torch.full((len(rows), width), IGNORED)
    counted = torch.zeros(len(rows), width)
    for k, row in enumerate(rows):
        # A tokenizer may join the end of the lead with the answer: what both share is left out.
        skipped = 0
        while skipped < min(len(lead), len(row)) and lead[skipped] == row[skipped]:
            skipped += 1
        targets[k, : len(row)] = torch.tensor(row)
        counted[k, skipped : len(row)] = 1
    return targets, counted


def _every_answer(batch: Batch, labels: Tensor) -> Batch:
    """The batch with all answers as targets of each of its examples."""
    owners = torch.arange(len(batch), device=labels.device).repeat_interleave(len(labels))
    return replace(batch, labels=labels.repeat(len(batch), 1), owners=owners)
