"""Soft prompts (Lester et al. 2021, arXiv 2104.08691): trained embeddings before those of the text.

A stack of layers (the encoder of an encoder-decoder model, else the model's body) reads n positions
more than it is given; the embeddings there are the trained ones, all else (positions, types, norms)
is added to them as to those of tokens:

    [p_1 ... p_n, e(x_1) ... e(x_T)]            or, for masked language models,
    [e(x_1), p_1 ... p_n, e(x_2) ... e(x_T)]

The first token of a masked language model (BERT's [CLS], RoBERTa's <s>) stays the first: its
pooler reads it there. What such a stack returns is cut back to the T positions of the text, so
that heads, labels and generation never see the prompt; a decoder does see it, through
cross-attention. With a cache of keys the prompt is read once, before the first text.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from landform.errors import ConfigError, DataError

__all__ = ["Prompt", "insert"]


class Prompt(nn.Module):
    """The trained embeddings of one stack, and the hooks that put them in.

    Bound methods serve as hooks: a deep copy of the model has hooks of its own prompt.
    """

    def __init__(self, length: int, width: int, *, at: int, kept: bool, limit: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, width))
        self.at = at
        """how many tokens stand before the prompt: 0 or 1"""
        self.kept = kept
        """whether the outputs of these positions go on (to a decoder)"""
        self.limit = limit
        """rows of the table of positions, where there is one"""
        self.placeholder = 0
        """an ordinary token, which stands where the prompt will be"""
        self._reading = False
        self._lengthened = False

    # --- around the stack ---

    def lengthen(
        self, stack: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs of the stack with n positions more, or, behind a cache, shifted by n."""
        inputs = {**dict(zip(_parameters(stack), args, strict=False)), **given}
        n, at = len(self.weight), self.at
        cache = inputs.get("past_key_values")
        first = cache is None or int(cache.get_seq_length()) == 0
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        if getattr(cache, "is_compileable", False) or (mask is not None and mask.dim() != 2):
            raise ConfigError(
                "prompt: a static cache of keys, or a mask of every pair of positions, has no room "
                "for a prompt",
                remedy="generate with the default cache, and give masks of shape (batch, tokens)",
            )
        if mask is not None:
            inputs["attention_mask"] = _inserted(mask, n, at, 1)
        if positions is not None:
            start = positions[..., :at].max() + 1 if at else 0
            own = torch.arange(n, device=positions.device).expand(*positions.shape[:-1], n) + start
            parts = (positions[..., :at], own, positions[..., at:] + n)
            inputs["position_ids"] = torch.cat(parts, -1) if first else positions + n
        self._lengthened = first
        if first:
            self._lengthen_text(inputs, n)
        return (), inputs

    def _lengthen_text(self, inputs: dict[str, Any], n: int) -> None:
        ids, types, embeds = (
            inputs.get(name) for name in ("input_ids", "token_type_ids", "inputs_embeds")
        )
        text = ids if ids is not None else embeds
        if text is not None and self.limit is not None and text.shape[1] + n > self.limit:
            raise DataError(
                f"an input of {text.shape[1]} tokens and a prompt of {n} are more than the "
                f"model's {self.limit} positions",
                remedy=f"use max_length <= {self.limit - n}",
            )
        if types is not None:
            inputs["token_type_ids"] = _inserted(types, n, self.at, 0)
        if ids is not None:
            inputs["input_ids"] = _inserted(ids, n, self.at, self.placeholder)
            self._reading = True
        elif embeds is not None:
            inputs["inputs_embeds"] = self._with_prompt(embeds, self.at)

    def read(self, _: nn.Module, __: tuple[Any, ...], embeddings: Tensor) -> Tensor | None:
        """The embeddings of the lengthened text with the prompt where placeholders were."""
        # The table may serve a decoder too, which is not lengthened.
        if not self._reading:
            return None
        self._reading = False
        after = self.at + len(self.weight)
        text = torch.cat([embeddings[:, : self.at], embeddings[:, after:]], dim=1)
        return self._with_prompt(text, self.at)

    def _with_prompt(self, text: Tensor, at: int) -> Tensor:
        prompt = self.weight.to(text.dtype).expand(len(text), -1, -1)
        return torch.cat([text[:, :at], prompt, text[:, at:]], dim=1)

    def cut(self, _: nn.Module, __: tuple[Any, ...], outputs: Any) -> Any:
        """Outputs of the stack at the positions of the text, or all where a decoder reads."""
        self._reading = False  # also when the stack failed before it read its embeddings
        if outputs is None or self.kept or not self._lengthened:
            return outputs
        if isinstance(outputs, tuple):
            return (self._text(outputs[0]), *outputs[1:])
        outputs["last_hidden_state"] = self._text(outputs["last_hidden_state"])
        if outputs.get("hidden_states") is not None:
            outputs["hidden_states"] = tuple(map(self._text, outputs["hidden_states"]))
        return outputs

    def _text(self, states: Tensor) -> Tensor:
        after = self.at + len(self.weight)
        return torch.cat([states[:, : self.at], states[:, after:]], dim=1)

    # --- around the decoder ---

    def uncover(
        self, decoder: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The mask of the encoder's outputs, as long as those are with the prompt."""
        inputs = {**dict(zip(_parameters(decoder), args, strict=False)), **given}
        mask, states = inputs.get("encoder_attention_mask"), inputs.get("encoder_hidden_states")
        n = len(self.weight)
        if mask is not None and states is not None and mask.shape[-1] + n == states.shape[1]:
            inputs["encoder_attention_mask"] = _inserted(mask, n, self.at, 1)
        return (), inputs


def insert(model: Any, *, length: int, mean: float, std: float) -> set[str]:
    """Put a soft prompt before what `model` reads; the name of its tensor.

    Entries are drawn from N(mean, std^2). Raises `ConfigError` for a model that has a prompt.
    """
    stack, decoder = _stacks(model)
    if hasattr(stack, "prompt"):
        raise ConfigError("the model has a prompt already", remedy="start from the plain model")
    table = stack.get_input_embeddings()
    limit = _positions(stack)
    if limit is not None and length >= limit:
        raise ConfigError(
            f"prompt_length {length} leaves no room for text: the model has {limit} positions",
            remedy=f"use prompt_length <= {limit // 2}",
        )
    prompt = Prompt(
        length, _width(table), at=_tokens_before(model), kept=decoder is not None, limit=limit
    ).to(table.weight)
    if limit is not None:
        model.landform_text_positions = limit - length  # where inputs are cut
    prompt.placeholder = 1 if getattr(model.config, "pad_token_id", None) == 0 else 0
    nn.init.normal_(prompt.weight, mean, std)
    stack.add_module("prompt", prompt)
    stack.register_forward_pre_hook(prompt.lengthen, with_kwargs=True)
    stack.register_forward_hook(prompt.cut, always_call=True)
    table.register_forward_hook(prompt.read)
    if decoder is not None:
        decoder.register_forward_pre_hook(prompt.uncover, with_kwargs=True)
    names = {id(module): name for name, module in model.named_modules()}
    return {f"{names[id(prompt)]}.weight"}


def _stacks(model: Any) -> tuple[Any, Any]:
    """The stack that reads the prompt, and the decoder that reads its outputs (or None)."""
    from transformers import PreTrainedModel

    body = getattr(model, model.base_model_prefix, model)
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(body, "decoder"):
        return body.encoder, body.decoder
    # The innermost one: OPT's head calls the decoder inside the body, not the body.
    table = body.get_input_embeddings()
    stacks = [
        module
        for module in body.modules()
        if isinstance(module, PreTrainedModel) and any(m is table for m in module.modules())
    ]
    return stacks[-1], None


def _tokens_before(model: Any) -> int:
    """One, for masked language models that are all encoder: they learnt a first token for all."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    config = model.config
    seq2seq = getattr(config, "is_encoder_decoder", False)
    decoder = seq2seq or getattr(config, "is_decoder", False)
    return int(config.model_type in MASKED and not decoder)


def _width(table: Any) -> int:
    return int(table.weight.shape[1])


def _positions(stack: nn.Module) -> int | None:
    """How many positions a stack has embeddings for; None where positions are not embedded."""
    for name, module in stack.named_modules():
        last = name.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or not ("position" in last or last == "wpe"):
            continue
        # RoBERTa counts from its padding index + 1, BART and OPT from 2.
        padding = module.padding_idx
        first = getattr(module, "offset", 0 if padding is None else padding + 1)
        return int(module.num_embeddings - first)
    return None


def _inserted(values: Tensor, n: int, at: int, filling: int) -> Tensor:
    """(B, T) as (B, T + n): n times `filling` after the first `at` columns."""
    own = values.new_full((len(values), n), filling)
    return torch.cat([values[:, :at], own, values[:, at:]], dim=1)


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
