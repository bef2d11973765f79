"""From text to batches: tokenise once, sort by length, cut by a token budget.

Padding is where evaluation time goes to waste, so a batch is padded to its own longest row and
rows of like length share a batch. Which rows share a batch is decided by lengths alone, so the
same examples always give the same batches.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landform.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from landform.tasks.task import Examples

__all__ = ["IGNORED", "Batch", "Encoded", "collate", "cut_batches", "encode", "longest_input"]

IGNORED = -100
"""Label of a position that carries no loss (the convention of torch and transformers)."""


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of every example, unpadded, in the order of the examples."""

    rows: tuple[dict[str, Any], ...]
    """per example: the tokenizer's inputs (lists of int) and `labels` (int, float or ints)"""
    kind: str
    pad_id: int
    truncated: int
    """number of examples that were cut at the maximum length"""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example."""
        return np.array([len(row["input_ids"]) for row in self.rows], dtype=np.int64)


@dataclass(frozen=True)
class Batch:
    """Some examples, padded to the longest of them, as tensors."""

    inputs: dict[str, Tensor]
    """what the model is called with: input_ids, attention_mask, token_type_ids, ..., each (B, T)"""
    labels: Tensor
    """(B,) int64 or float for sequence tasks; (B, T) int64 for token tasks, -100 = no loss"""
    rows: Tensor
    """(B,) positions of the examples in the data set"""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(moved, self.labels.to(device), self.rows.to(device))


def longest_input(tokenizer: PreTrainedTokenizerBase, config: Any, asked: int | None) -> int:
    """The length at which inputs are cut: `asked`, or all that tokenizer and model can take."""
    limits = [tokenizer.model_max_length]
    positions = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    if isinstance(positions, int) and positions > 0:
        # RoBERTa-style models number positions from pad_token_id + 1, so two rows of the
        # position table are never reached by tokens.
        offset = 2 if getattr(config, "model_type", "") in _OFFSET_POSITIONS else 0
        limits.append(positions - offset)
    most = int(min(limits))
    if asked is not None and asked > most:
        raise DataError(
            f"max_length {asked} is more than the model can take ({most} tokens)",
            remedy=f"use max_length <= {most}",
        )
    return asked or min(most, 1 << 16)


_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "longformer", "bart", "mpnet", "esm"}


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    *,
    max_length: int,
    mask_seed: int = 0,
    mask_rate: float = 0.15,
) -> Encoded:
    """Tokenise `examples` for a task of this kind.

    Masked language modelling hides `mask_rate` of the non-special tokens (80 % mask, 10 % random,
    10 % kept; Devlin et al. 2019), chosen per example from `mask_seed` and the text alone, so that
    the masks do not depend on order or batch. Causal models are asked for every next token.
    """
    if not len(examples):
        raise DataError("there are no examples to encode", remedy="choose a split with rows")
    if kind == "token-classification":
        rows, truncated = _encode_words(examples, tokenizer, max_length)
    else:
        rows, truncated = _encode_texts(examples, tokenizer, max_length)
        if kind in ("classification", "regression"):
            cast = float if kind == "regression" else int
            for row, label in zip(rows, examples.labels, strict=True):
                row["labels"] = cast(label)
        elif kind == "causal-lm":
            for row in rows:
                row["labels"] = list(row["input_ids"])
        elif kind == "masked-lm":
            for row in rows:
                _mask(row, tokenizer, mask_seed, mask_rate)
        elif kind == "seq2seq":
            _add_targets(rows, examples, tokenizer, max_length)
    for row in rows:
        row.pop("special_tokens_mask", None)
    return Encoded(tuple(rows), kind, _pad_id(tokenizer), truncated)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    # GPT-2 and LLaMA ship without a padding token. Padded positions are masked out of attention
    # and carry no label, so any valid id serves; the end token is what their users expect.
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0


def _encode_texts(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[dict[str, Any]], int]:
    columns = list(zip(*examples.texts, strict=True))
    if len(columns) > 2:
        raise DataError(
            f"{len(columns)} text columns; models take one text or a pair",
            remedy="name one column, or two for pairs such as premise and hypothesis",
        )
    _check_room(tokenizer, max_length, pair=len(columns) == 2)
    encoded = tokenizer(
        *[list(column) for column in columns],
        truncation=True,
        max_length=max_length,
        padding=False,
        return_special_tokens_mask=True,
    )
    names = list(encoded.keys())
    rows = [{name: encoded[name][i] for name in names} for i in range(len(examples))]
    for position, row in enumerate(rows):
        row.pop("attention_mask", None)  # rebuilt from lengths when rows are padded
        if not row["input_ids"]:
            raise DataError(
                f"example {examples.ids[position]}: the text has no tokens",
                remedy="remove the row, or use the tokenizer that the model was trained with",
            )
    # A row that exactly fits cannot be told from one that was cut without tokenising twice;
    # only those at the limit are looked at again.
    full = [i for i, row in enumerate(rows) if len(row["input_ids"]) >= max_length]
    if not full:
        return rows, 0
    again = tokenizer(
        *[[column[i] for i in full] for column in columns],
        truncation=False,
        padding=False,
        verbose=False,
    )
    return rows, sum(len(ids) > max_length for ids in again["input_ids"])


def _check_room(tokenizer: PreTrainedTokenizerBase, max_length: int, *, pair: bool) -> None:
    """Refuse a maximum length that leaves nothing of the texts but the special tokens."""
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    least = special + (2 if pair else 1)
    if max_length < least:
        raise DataError(
            f"max_length {max_length} leaves no room for text: {special} tokens are special ones",
            remedy=f"use max_length >= {least}, or leave it out",
        )


def _encode_words(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[dict[str, Any]], int]:
    """Words to tokens; the label of a word sits on its first token, its other tokens carry none."""
    _check_room(tokenizer, max_length, pair=False)
    encoded = tokenizer(
        [list(words) for words in examples.texts],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        padding=False,
    )
    rows, truncated = [], 0
    names = [name for name in encoded if name != "attention_mask"]
    for i, tags in enumerate(examples.labels):
        row = {name: encoded[name][i] for name in names}
        labels, previous = [], None
        words = encoded.word_ids(i)
        for word in words:
            labels.append(IGNORED if word is None or word == previous else int(tags[word]))
            previous = word
        truncated += max((w for w in words if w is not None), default=-1) + 1 < len(tags)
        rows.append({**row, "labels": labels})
    return rows, truncated


def _mask(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int, rate: float) -> None:
    if tokenizer.mask_token_id is None:
        raise DataError(
            "the tokenizer has no mask token: masked language modelling is not possible",
            remedy="use kind='causal-lm' for this model",
        )
    ids = list(row["input_ids"])
    digest = hashlib.sha256(f"{seed}:{ids}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    special = row["special_tokens_mask"]
    candidates = [i for i, is_special in enumerate(special) if not is_special]
    # At least one token, or a short example would say nothing.
    count = min(len(candidates), max(1, round(rate * len(candidates))))
    labels = [IGNORED] * len(ids)
    for i in generator.sample(candidates, count):
        labels[i] = ids[i]
        draw = generator.random()
        if draw < 0.8:
            ids[i] = tokenizer.mask_token_id
        elif draw < 0.9:
            ids[i] = generator.randrange(len(tokenizer))
    row["input_ids"], row["labels"] = ids, labels


def _add_targets(
    rows: list[dict[str, Any]],
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    targets = tokenizer(
        text_target=list(examples.labels), truncation=True, max_length=max_length, padding=False
    )
    for row, ids in zip(rows, targets["input_ids"], strict=True):
        row["labels"] = list(ids)


# --- batches --------------------------------------------------------------------------------


def collate(
    rows: Sequence[dict[str, Any]],
    positions: Sequence[int],
    *,
    pad_id: int,
    length: int | None = None,
) -> Batch:
    """Pad some encoded rows on the right to the longest of them (or to `length`)."""
    longest = max(len(row["input_ids"]) for row in rows)
    width = longest if length is None else length
    if width < longest:
        raise DataError(f"a row of {longest} tokens does not fit a batch of length {width}")
    inputs: dict[str, Tensor] = {}
    for name in rows[0]:
        if name == "labels":
            continue
        fill = pad_id if name == "input_ids" else 0
        inputs[name] = _stack([row[name] for row in rows], width, fill)
    inputs["attention_mask"] = _stack([[1] * len(row["input_ids"]) for row in rows], width, 0)
    return Batch(inputs, _stack_labels(rows, width), torch.tensor(list(positions)))


def _stack(lists: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    table = np.full((len(lists), width), fill, dtype=np.int64)
    for i, values in enumerate(lists):
        table[i, : len(values)] = values
    return torch.from_numpy(table)


def _stack_labels(rows: Sequence[dict[str, Any]], width: int) -> Tensor:
    first = rows[0]["labels"]
    if isinstance(first, float):
        return torch.tensor([row["labels"] for row in rows], dtype=torch.float64)
    if isinstance(first, int):
        return torch.tensor([row["labels"] for row in rows])
    # Targets of a seq2seq model have lengths of their own, longer than the input perhaps.
    longest = max(len(row["labels"]) for row in rows)
    same = all(len(row["labels"]) == len(row["input_ids"]) for row in rows)
    return _stack([row["labels"] for row in rows], width if same else longest, IGNORED)


def cut_batches(encoded: Encoded, token_budget: int) -> list[Batch]:
    """Batches of like length with at most `token_budget` padded tokens each (at least one row)."""
    order = np.argsort(encoded.lengths, kind="stable")
    lengths = encoded.lengths[order]
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        stop = start + 1
        # Rows ascend in length, so the row that would be added decides the padded size.
        while stop < len(order) and (stop + 1 - start) * lengths[stop] <= token_budget:
            stop += 1
        chosen = order[start:stop].tolist()
        batches.append(collate([encoded.rows[i] for i in chosen], chosen, pad_id=encoded.pad_id))
        start = stop
    return batches
