"""Tiny random models of many architectures, for tests of where dropout acts."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

__all__ = ["MODELS", "SDPA", "few_tokens", "make_model"]

_WORDS = {"vocab_size": 45, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_BODY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
_ROTARY = {**_BODY, "num_key_value_heads": 1}
_SEQ2SEQ = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
_BART = _SEQ2SEQ | {
    f"{stack}_{what}": value
    for stack in ("encoder", "decoder")
    for what, value in (("attention_heads", 2), ("ffn_dim", 24))
}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
_DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-mlm": ("BertForMaskedLM", "BertConfig", _BODY),
    "bert": ("BertForSequenceClassification", "BertConfig", _BODY),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _BODY),
    "electra": (
        "ElectraForSequenceClassification", "ElectraConfig", {**_BODY, "embedding_size": 8}
    ),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", _DISTIL),
    "deberta": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {**_BODY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "gpt2-classifier": ("GPT2ForSequenceClassification", "GPT2Config", _GPT2),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "t5-classifier": ("T5ForSequenceClassification", "T5Config", _T5),
    "bart": ("BartForConditionalGeneration", "BartConfig", _BART),
    "bart-classifier": ("BartForSequenceClassification", "BartConfig", _BART),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _BODY),
    "llama-classifier": ("LlamaForSequenceClassification", "LlamaConfig", _BODY),
    "mistral": ("MistralForCausalLM", "MistralConfig", _ROTARY),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _ROTARY),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_ROTARY, "head_dim": 8}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _BODY),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**_BODY, "ffn_dim": 24, "word_embed_proj_dim": 16},
    ),
}  # fmt: skip
SDPA = tuple(name for name in MODELS if name != "deberta")
"""Those whose attention can be fused."""


def make_model(name: str, *, attention: str | None = None, **changes: Any) -> Any:
    """A model of `MODELS` in evaluation mode; the same weights every time."""
    kind, config, options = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(hf, kind)(getattr(hf, config)(**{**_WORDS, **options, **changes}))
    if attention is not None:
        made.set_attn_implementation(attention)
    return made.eval()


def few_tokens(model: Any, rows: int = 1) -> dict[str, torch.Tensor]:
    """Inputs that every one of them takes."""
    ids = torch.tensor([[7, 8, 9, 10, 11, 12, 3]] * rows)
    return {"input_ids": ids} | (
        {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    )
