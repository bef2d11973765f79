"""A tiny BERT with attention, a word-level tokenizer and a learnable task, all made here."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

NEUTRAL = ["the", "a", "dog", "cat", "bird", "sees", "likes", "very", "big", "small", "old", "new"]
WORDS = [*NEUTRAL, "good", "bad"]


def write_tsv(path: Path, rows: int, seed: int) -> Path:
    """Sentences of 2 to 8 words; the label says whether "good" occurs (positive) or "bad"."""
    draw = random.Random(seed)
    lines = ["sentence\tlabel"]
    for _ in range(rows):
        words = [draw.choice(NEUTRAL) for _ in range(draw.randint(1, 7))]
        label = draw.choice(["negative", "positive"])
        words.insert(draw.randint(0, len(words)), "good" if label == "positive" else "bad")
        lines.append(f"{' '.join(words)}\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    ).save_pretrained(path)


def save_bert(path: Path, **changes: object) -> None:
    from transformers import BertConfig, BertForMaskedLM

    options = dict(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        BertForMaskedLM(BertConfig(**{**options, **changes})).save_pretrained(path)
    save_tokenizer(path)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained encoder (random weights), without a classifier."""
    path = tmp_path_factory.mktemp("pretrained") / "bert"
    save_bert(path)
    return path


@pytest.fixture(scope="session")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model (random weights) whose tokenizer has no padding token."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    path = tmp_path_factory.mktemp("pretrained") / "gpt"
    save_tokenizer(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=2
        )
        GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of train (50 rows) and validation (20 rows) as TSV."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": str(write_tsv(folder / "train.tsv", 50, 1)),
        "validation": str(write_tsv(folder / "validation.tsv", 20, 2)),
    }


@pytest.fixture
def task(files: dict[str, str]):
    from landform.tasks.task import load_task

    return load_task(files, text="sentence", label="label")
