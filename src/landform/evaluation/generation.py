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
from landform.weights.checkpoint import Checkpoint

__all__ = ["Generation", "generates", "generation_of", "token_settings"]


def generates(task: Task) -> bool:
    """Whether one of the metrics of a task judges generated text."""
    judged = any(get_metric(name).reads_texts for name in task.metrics)
    return task.kind == "seq2seq" and task.noise is None and judged


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
        """Greedy decoding of `model`, between the tokens that its config says.

        Its start, end and pad tokens are those of generation_config.json, else of config.json.
        Nothing else there is applied: no forced tokens (forced_bos_token_id), no suppressed ones
        (suppress_tokens), no lengths (min_length), penalties, beams or sampling.

        Raises `DataError` for a length that is more than the model's positions, `CheckpointError`
        for a model that does not say how its targets begin or end.
        """
        limit = position_limit(model, max_new_tokens, "max_new_tokens")
        configs = getattr(model, "generation_config", None), model.config
        start, end, pad = (_setting(configs, name) for name in _TOKENS)
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


_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


def token_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The ids of the start, end and pad token that `Generation.of` finds in the checkpoint's model,
    read from its files without loading it; None where they do not say."""
    from transformers import AutoConfig, GenerationConfig

    path, configs = checkpoint.base.path, list[Any]()
    kinds: tuple[tuple[Any, dict[str, Any]], ...] = (
        (GenerationConfig, {}),
        (AutoConfig, {"trust_remote_code": False}),
    )
    for kind, options in kinds:
        try:
            configs.append(kind.from_pretrained(path, local_files_only=True, **options))
        except (OSError, ValueError):  # there is no such file; loading refuses a damaged one
            configs.append(None)
    return {name: _setting(configs, name) for name in _TOKENS}


def _setting(configs: Sequence[Any], name: str) -> Any:
    for config in configs:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def generation_of(
    task: Task, model: Any, tokenizer: Any, max_new_tokens: int | None
) -> Generation | None:
    """How answers are generated for a task whose metrics judge them; None for other tasks."""
    if not generates(task):
        return None
    return Generation.of(model, tokenizer, task.form, max_new_tokens)
