"""Tiny models of the real classes, and the tokens they read: what tuning methods are tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCABULARY = 45
_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
_OPT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24}
_OPT |= {"word_embed_proj_dim": 16}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_T5 |= {"decoder_start_token_id": 0, "eos_token_id": 3}
_BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 40}
_BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24}
_BART |= {"decoder_ffn_dim": 24, "bos_token_id": 2, "eos_token_id": 3, "forced_eos_token_id": None}
_ENDS = {"bos_token_id": 2, "eos_token_id": 3}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", _BERT),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", {**_BERT, "pad_token_id": 1}),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    ),
    "electra": (
        "ElectraConfig",
        "ElectraForSequenceClassification",
        {**_BERT, "embedding_size": 8},
    ),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", {**_BERT, "embedding_size": 8}),
    "deberta": (
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        {
            **_BERT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**_GPT, **_ENDS}),
    "gpt2-classifier": ("GPT2Config", "GPT2ForSequenceClassification", {**_GPT, **_ENDS}),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {**_BERT, "num_attention_heads": 4, "num_key_value_heads": 2, **_ENDS},
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", {**_OPT, **_ENDS, "max_position_embeddings": 40}),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5-gated": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", _BART),
}
ENCODERS = ("bert", "roberta", "distilbert", "electra", "albert", "deberta")
CAUSAL = ("gpt2", "llama", "opt")
SEQ2SEQ = ("t5", "t5-gated", "bart")


def family(name: str, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model of a family, with weights large enough for attention to matter."""
    config_name, class_name, options = FAMILIES[name]
    config = getattr(hf, config_name)(
        **{"vocab_size": VOCABULARY, "pad_token_id": 0, **options, **changes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(hf, class_name)(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    """Token ids (rows, length), none of them a special one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (rows, length), generator=generator)


def call(model: Any, text: Tensor, mask: Tensor | None = None, **inputs: Any) -> Tensor:
    """Logits of a model for `text`; a seq2seq model answers three fixed tokens."""
    if model.config.is_encoder_decoder:
        inputs = {"decoder_input_ids": torch.tensor([[0, 7, 9]]).expand(len(text), -1), **inputs}
    logits: Tensor = model(input_ids=text, attention_mask=mask, **inputs).logits
    return logits


def padded(model: Any, text: Tensor, to: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """`text` padded to a width, and its mask."""
    filling = text.new_full((len(text), to - text.shape[1]), model.config.pad_token_id)
    parts = [text, filling] if side == "right" else [filling, text]
    ones = torch.ones_like(text)
    masks = [ones, filling * 0] if side == "right" else [filling * 0, ones]
    return torch.cat(parts, 1), torch.cat(masks, 1)


def greedy(model: Any, text: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """Greedy answers, every step from the whole text, without any cache (B, tokens)."""
    seq2seq = model.config.is_encoder_decoder
    said = text[:, :0] if not seq2seq else torch.full((len(text), 1), 0)
    if seq2seq:
        said += model.config.decoder_start_token_id
    with torch.no_grad():
        for _ in range(tokens):
            if seq2seq:
                logits = call(model, text, mask, decoder_input_ids=said, use_cache=False)
            else:
                whole = torch.cat([mask, torch.ones_like(said)], 1)
                # Positions of the text alone, wherever padding stands.
                positions = (whole.cumsum(1) - 1).clamp(min=0)
                options = {"use_cache": False, "position_ids": positions}
                logits = call(model, torch.cat([text, said], 1), whole, **options)
            said = torch.cat([said, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return said[:, 1:] if seq2seq else said


def generate(model: Any, text: Tensor, mask: Tensor, tokens: int, **options: Any) -> Tensor:
    """What generate() says, exactly `tokens` tokens of it."""
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, **options}
    said: Tensor = model.generate(input_ids=text, attention_mask=mask, **options)
    return said[:, 1:] if model.config.is_encoder_decoder else said[:, text.shape[1] :]


def each_family(*names: str) -> Callable[[Any], Any]:
    """Parametrize a test over families (all of them by default)."""
    import pytest

    return pytest.mark.parametrize("name", names or tuple(FAMILIES))
