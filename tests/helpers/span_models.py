"""Tiny models of the pre-training losses: T5 with its sentinels, and a LLaMA-class decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

WORDS = [f"w{i}" for i in range(40)]


def sentinel_tokenizer(count: int = 20, length: int = 64) -> Any:
    """Words w0 ... w39 and `count` sentinels; a text ends with </s>."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(count))]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word) for word in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
    )


def randomised(model: Any, seed: int) -> Any:
    """Weights large enough that a mistake with padding shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def save_t5(path: Path, count: int = 20, seed: int = 0) -> Path:
    """A tiny T5 that knows `count` sentinels."""
    config = hf.T5Config(
        vocab_size=3 + count + len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    randomised(hf.T5ForConditionalGeneration(config), seed).save_pretrained(path)
    sentinel_tokenizer(count).save_pretrained(path)
    return path


def save_llama(path: Path, tokenizer: Any, seed: int = 0) -> Path:
    """A tiny LLaMA-class decoder without a padding token, as they are published."""
    config = hf.LlamaConfig(
        vocab_size=45, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        bos_token_id=2, eos_token_id=3, pad_token_id=None,
    )  # fmt: skip
    randomised(hf.LlamaForCausalLM(config), seed).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
