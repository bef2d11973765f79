"""Greedy decoding: the answer that a seq2seq model gives, for many examples at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landform.errors import CheckpointError
from landform.tasks.answers import TextForm
from landform.tasks.batching import Batch, position_limit
from landform.tasks.metrics import get_metric
from landform.tasks.task import Task

__all__ = ["Generation", "generation_of", "reads_texts"]


def reads_texts(metrics: Sequence[str]) -> bool:
    """Whether one of the metrics judges generated text."""
    return any(get_metric(name).reads_texts for name in metrics)


@dataclass(frozen=True)
class Generation:
    """How one model answers: y_t = argmax_y p(y | y_1 ... y_{t-1}, input), up to its end token."""

    tokenizer: Any
    limit: int
    """tokens at which an answer is cut"""
    start: int
    ends: tuple[int, ...]
    pad: int
    lead: str
    """what a target begins with, left out of the text where the tokenizer shows it"""

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, form: TextForm | None, max_new_tokens: int | None
    ) -> Generation:
        """The decoding of `model`, as its config says.

        Raises `DataError` for a length that is more than the model's positions, `CheckpointError`
        for a model that does not say how its targets begin or end.
        """
        limit = position_limit(model, max_new_tokens, "max_new_tokens")
        start, end = (_setting(model, name) for name in ("decoder_start_token_id", "eos_token_id"))
        ends = tuple(end) if isinstance(end, list | tuple) else (end,)
        if None in ends:
            ends = (tokenizer.eos_token_id,)
        if start is None or None in ends:
            missing = "decoder_start_token_id" if start is None else "eos_token_id"
            raise CheckpointError(
                f"{type(model).__name__}: its config has no {missing}, so how a generated text "
                f"{'begins' if start is None else 'ends'} is not known",
                remedy=f"set {missing} in the model's config.json",
            )
        pad = _setting(model, "pad_token_id")
        lead = "" if form is None else form.lead(tokenizer)
        return cls(tokenizer, limit, start, ends, ends[0] if pad is None else pad, lead)

    @torch.inference_mode()
    def run(self, model: Any, batch: Batch, memory: Tensor) -> tuple[list[str], int]:
        """The answers to a batch whose encoder outputs are `memory`, (B, T, H), without white
        space around them, and how many were cut."""
        tokens, finished = self.tokens(model, batch.inputs["attention_mask"], memory)
        return self.texts(tokens), int((~finished).sum())

    def tokens(self, model: Any, mask: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) generated ids, padded behind the end token, and (B,) whether each one ended.

        Every step runs the decoder on one position: keys and values of those before are kept.
        """
        from transformers.modeling_outputs import BaseModelOutput

        size, device = len(memory), memory.device
        states = BaseModelOutput(last_hidden_state=memory)
        ends = torch.tensor(self.ends, device=device)
        current = torch.full((size, 1), self.start, device=device)
        finished = torch.zeros(size, dtype=torch.bool, device=device)
        cache, steps = None, []
        for _ in range(self.limit):
            output = model(
                encoder_outputs=states,
                attention_mask=mask,
                decoder_input_ids=current,
                past_key_values=cache,
                use_cache=True,
            )
            chosen = output.logits[:, -1].argmax(-1).masked_fill(finished, self.pad)
            finished = finished | torch.isin(chosen, ends)
            steps.append(chosen)
            if bool(finished.all()):
                break
            current, cache = chosen[:, None], output.past_key_values
        return torch.stack(steps, dim=1), finished

    def texts(self, tokens: Tensor) -> list[str]:
        """Generated ids as texts, without special tokens and surrounding white space."""
        rows = []
        for ids in tokens.tolist():
            end = next((i for i, token in enumerate(ids) if token in self.ends), len(ids))
            rows.append(ids[:end])
        texts = self.tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        lead = self.lead.strip()
        return [text.strip().removeprefix(lead).strip() for text in texts]


def _setting(model: Any, name: str) -> Any:
    for config in (getattr(model, "generation_config", None), model.config):
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def generation_of(
    task: Task, model: Any, tokenizer: Any, max_new_tokens: int | None
) -> Generation | None:
    """How answers are generated for a task whose metrics judge them; None for other tasks."""
    if task.kind != "seq2seq" or not reads_texts(task.metrics):
        return None
    return Generation.of(model, tokenizer, task.form, max_new_tokens)
