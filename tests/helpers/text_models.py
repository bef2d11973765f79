"""Tiny seq2seq models of the real classes, a tokenizer with T5's sentinel, and files of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf

WORDS = [f"w{i}" for i in range(24)]
LABELS = ["yes", "no", "maybe", "1", "2"]
SPECIAL = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
VOCABULARY = [*SPECIAL, *LABELS, *WORDS, "[toy]", "[glue-mnli]"]


def text_tokenizer(*, sentinel: bool = True, length: int = 64) -> Any:
    """A word-level tokenizer; with T5's special tokens a target is <extra_id_0> word ... </s>."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    words = VOCABULARY if sentinel else [word for word in VOCABULARY if word != "<extra_id_0>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word) for word in words[: 4 if sentinel else 3]])
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


_T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_T5 |= {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BART: dict[str, Any] = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
_BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24}
_BART |= {"decoder_ffn_dim": 24, "max_position_embeddings": 40, "bos_token_id": 0}
_BART |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1}
_BART |= {"forced_eos_token_id": None, "forced_bos_token_id": None}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5-v1.1": ("T5Config", "T5ForConditionalGeneration", {**_T5, **_GATED}),
    "bart": ("BartConfig", "BartForConditionalGeneration", _BART),
}


def text_model(family: str = "t5", seed: int = 0, dtype: Any = torch.float64) -> Any:
    """A random model, with weights large enough that attention and padding matter."""
    config, kind, options = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(hf, kind)(getattr(hf, config)(vocab_size=len(VOCABULARY), **options))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    return model.to(dtype).eval()


def save_text_model(path: Path, family: str = "t5", seed: int = 0) -> Path:
    """A random model and its tokenizer, saved as float32."""
    text_model(family, seed, torch.float32).save_pretrained(path)
    text_tokenizer().save_pretrained(path)
    return Path(path)


def write_answers(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    """A file of inputs and answers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join("\t".join(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


ROWS = (
    ("w1 w2 w3", "yes"),
    ("w4 w5 w6 w7 w8 w9", "no", "w3 maybe"),
    ("w3", "maybe"),
    ("w10 w11 w12 w13 w1 w2 w3 w4", "w1 w2 w3", "yes", "no w1"),
    ("w20 w21", "no"),
)
"""Rows with one, two and three answers, of different lengths."""


def toy_folder(path: Path, rows: Sequence[Sequence[str]] = ROWS, name: str = "toy") -> Path:
    """A folder with the same rows as train, dev and test."""
    for split in ("train", "dev", "test"):
        write_answers(path / f"{name}_{split}.tsv", rows)
    return path
