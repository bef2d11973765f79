#!/usr/bin/env python
"""Pre-train the small encoder that ships with landform (src/landform/embedded/encoder).

The text is the unlabelled corpus of landform's own grammar (`landform.tasks.grammar.corpus`):
single sentences, and pairs of which the second follows, nearly follows (one word exchanged), or
has nothing to do with the first. The objective is BERT's: masked
language modelling (of the chosen positions 80 % become [MASK], 10 % a random word, 10 % stay),
plus, unless `--next-sentence 0`, whether the second sentence follows, which also trains the
pooler; the misleading pairs that make the study interesting are not part of it. The tokenizer has
one token per word.

The shipped files were made on one CPU core with

    python scripts/pretrain_encoder.py --out src/landform/embedded/encoder

One thread and fixed seeds: the same versions on the same kind of CPU give the same weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast
from transformers.utils import logging

from landform.tasks.grammar import Passage, corpus, vocabulary

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IGNORED = -100


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token per word: "[CLS] a [SEP]" or "[CLS] a [SEP] b [SEP]" with token types 0 and 1."""
    ids = {token: i for i, token in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def mask_tokens(
    ids: torch.Tensor,
    special: torch.Tensor,
    mask_id: int,
    words: tuple[int, int],
    probability: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked inputs and labels (B, T): chosen positions become mask / random word / stay, 80/10/10.

    `special` (B, T) marks positions never chosen; `words` is the half-open range of word ids that
    a random word is drawn from; labels are -100 where nothing was chosen.
    """
    chosen = (torch.rand(ids.shape, generator=generator) < probability) & ~special
    labels = torch.where(chosen, ids, IGNORED)
    how = torch.rand(ids.shape, generator=generator)
    random_words = torch.randint(*words, ids.shape, generator=generator)
    masked = torch.where(chosen & (how < 0.8), mask_id, ids)
    masked = torch.where(chosen & (how >= 0.8) & (how < 0.9), random_words, masked)
    return masked, labels


def batches(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
    """Encoded batches, their special-token masks, and 0/1/-100 for follows / does not / single.

    Neighbours in a window of 16 batches are sorted by length, so that little is padding.
    """
    window = 16 * batch_size
    for start in range(0, len(passages), window):
        part = sorted(
            passages[start : start + window],
            key=lambda p: len(p.first.split()) + len((p.second or "").split()),
        )
        for begin in range(0, len(part), batch_size):
            rows = part[begin : begin + batch_size]
            encoded = tokenizer(
                [(p.first, p.second) if p.second is not None else p.first for p in rows],
                padding=True,
                return_tensors="pt",
                return_special_tokens_mask=True,
            )
            special = encoded.pop("special_tokens_mask").bool()
            follows = [IGNORED if p.second is None else int(not p.follows) for p in rows]
            yield dict(encoded), special, torch.tensor(follows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; its defaults are those of the shipped encoder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory to write; replaced when it exists")
    add("--passages", type=int, default=400_000, help="passages of the corpus, each seen once")
    add("--batch-size", type=int, default=64)
    add("--learning-rate", type=float, default=1e-3)
    add("--warmup", type=float, default=0.06, help="share of the steps with rising learning rate")
    add("--weight-decay", type=float, default=0.01)
    add("--mask-probability", type=float, default=0.15)
    add("--next-sentence", type=float, default=1.0, help="weight of the second objective")
    add("--layers", type=int, default=3)
    add("--width", type=int, default=128)
    add("--heads", type=int, default=4)
    add("--dropout", type=float, default=0.0, help="during pre-training; 0.1 is written down")
    add("--max-length", type=int, default=64)
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def build_model(options: argparse.Namespace, vocabulary_size: int) -> BertForPreTraining:
    """The untrained model."""
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.width,
        max_position_embeddings=options.max_length,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        pad_token_id=0,
    )
    return BertForPreTraining(config)


def optimiser(
    model: BertForPreTraining, options: argparse.Namespace, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW without decay on vectors; the rate rises linearly, then falls linearly to zero."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    adamw = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
    )
    rising = max(1, int(options.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    return adamw, schedule


def train(options: argparse.Namespace) -> tuple[BertForPreTraining, PreTrainedTokenizerFast, float]:
    """The trained model, its tokenizer, and the mean masked-word loss (nats) of the last 5 %."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)
    tokenizer = build_tokenizer(options.max_length)
    model = build_model(options, len(tokenizer))
    passages = list(corpus(options.passages, options.seed))
    steps = -(-len(passages) // options.batch_size)
    adamw, schedule = optimiser(model, options, steps)
    words = (len(SPECIAL), len(tokenizer))
    losses: list[float] = []
    pair_losses: list[float] = [0.0]
    began = time.monotonic()
    model.train()
    for step, (inputs, special, follows) in enumerate(
        batches(passages, tokenizer, options.batch_size), start=1
    ):
        ids, labels = mask_tokens(
            inputs.pop("input_ids"),
            special,
            int(tokenizer.mask_token_id),
            words,
            options.mask_probability,
            generator,
        )
        output = model(input_ids=ids, **inputs)
        scores, pair = output.prediction_logits, output.seq_relationship_logits
        masked_loss = torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        loss = masked_loss
        if options.next_sentence and bool((follows != IGNORED).any()):
            pair_loss = torch.nn.functional.cross_entropy(pair, follows, ignore_index=IGNORED)
            loss = loss + options.next_sentence * pair_loss
            pair_losses.append(pair_loss.item())
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        schedule.step()
        losses.append(masked_loss.item())
        if step % 200 == 0 or step == steps:
            recent, paired = (sum(x[-200:]) / len(x[-200:]) for x in (losses, pair_losses))
            print(
                f"step {step}/{steps}  masked-word loss {recent:.4f}  pair loss {paired:.4f}  "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
    tail = losses[-max(1, steps // 20) :]
    return model, tokenizer, sum(tail) / len(tail)


def save(model: BertForPreTraining, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write model and tokenizer to a temporary directory beside `out`, then put it in place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    os.chmod(temporary, 0o755)
    # What a fine-tune finds when it asks for nothing else: BERT's usual dropout.
    model.config.hidden_dropout_prob = 0.1
    model.config.attention_probs_dropout_prob = 0.1
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in temporary.iterdir():
        os.chmod(file, 0o644)
    if out.exists():
        shutil.rmtree(out)
    os.rename(temporary, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save, say what was reached."""
    options = parse(arguments)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    model, tokenizer, loss = train(options)
    save(model, tokenizer, options.out)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"wrote {options.out} ({size / 2**20:.2f} MiB); final masked-word loss {loss:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
