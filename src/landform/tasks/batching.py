"""From text to batches: tokenise once, sort by length, cut by a token budget.

Padding is where evaluation time goes to waste, so a batch is padded to its own longest row and
rows of like length share a batch. Which rows share a batch is decided by lengths alone, so the
same examples always give the same batches.
"""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landform.errors import DataError
from landform.tasks.answers import TARGET_LENGTH, TextForm, encode_targets, references
from landform.tasks.columns import IGNORED
from landform.tasks.corruption import Denoising

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from landform.tasks.examples import Examples

__all__ = [
    "IGNORED",
    "Batch",
    "Encoded",
    "Masking",
    "collate",
    "cut_batches",
    "encode",
    "fit_to_model",
    "longest_input",
    "position_limit",
    "set_padding",
]

LONGEST = 1 << 16
"""Tokens at which inputs are cut, and the most that a target may have, where neither tokenizer nor
model has a limit (T5 numbers positions relative to one another)."""


@dataclass(frozen=True)
class Masking:
    """What is needed to hide other tokens of the same examples: see `Encoded.drawn`."""

    originals: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """per example: its token ids before any was hidden, and the positions that may be hidden"""
    mask_id: int
    vocabulary: int
    """random tokens are drawn from the ids below this one"""
    rate: float

    def hide(self, row: int, seed: object) -> dict[str, list[int]]:
        """`input_ids` and `labels` of an example, its masks drawn from `seed` and its ids alone."""
        ids, candidates = list(self.originals[row][0]), self.originals[row][1]
        digest = hashlib.sha256(f"{seed}:{ids}".encode()).digest()
        generator = random.Random(int.from_bytes(digest[:8], "big"))
        # At least one token, or a short example would say nothing.
        count = min(len(candidates), max(1, round(self.rate * len(candidates))))
        labels = [IGNORED] * len(ids)
        for i in generator.sample(candidates, count):
            labels[i] = ids[i]
            draw = generator.random()
            if draw < 0.8:
                ids[i] = self.mask_id
            elif draw < 0.9:
                ids[i] = generator.randrange(self.vocabulary)
        return {"input_ids": ids, "labels": labels}


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of every example, unpadded, in the order of the examples."""

    rows: tuple[dict[str, Any], ...]
    """per example: the tokenizer's inputs (lists of int) and `labels` (int, float or ints)"""
    kind: str
    pad_id: int
    truncated: int
    """number of examples that were cut at the maximum length (a text or its target)"""
    masking: Masking | Denoising | None = None
    """masked language modelling and denoising only"""
    answers: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    """targets with several references: the token ids of each; `labels` is the first"""
    form: TextForm | None = None
    """text-to-text only: how targets are written"""

    def drawn(self, row: int, seed: object) -> dict[str, Any]:
        """Example `row` as training sees it in the epoch of this seed.

        Masks, hidden spans, or one of several references (each as likely as the others), are drawn
        from the seed and the example's own tokens; an example without such a choice is as it is.
        """
        example = self.rows[row]
        if self.masking is not None:
            return {**example, **self.masking.hide(row, seed)}
        if self.answers is None or len(self.answers[row]) == 1:
            return example
        answers = self.answers[row]
        text = f"{seed}:{example['input_ids']}:{answers}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return {**example, "labels": list(answers[number % len(answers)])}

    def take(self, rows: Sequence[int] | np.ndarray) -> Encoded:
        """The given examples, in the given order."""
        chosen = [int(row) for row in rows]
        answers = None if self.answers is None else tuple(self.answers[row] for row in chosen)
        kept = tuple(self.rows[row] for row in chosen)
        return replace(self, rows=kept, truncated=0, masking=None, answers=answers)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example."""
        return np.array([len(row["input_ids"]) for row in self.rows], dtype=np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens that each example takes up in a batch: those of all its targets, if more."""
        if self.answers is None:
            return self.lengths
        targets = [len(answers) * max(map(len, answers)) for answers in self.answers]
        sizes: np.ndarray = np.maximum(self.lengths, np.array(targets, dtype=np.int64))
        return sizes


@dataclass(frozen=True)
class Batch:
    """Some examples, padded to the longest of them, as tensors."""

    inputs: dict[str, Tensor]
    """what the model is called with: input_ids, attention_mask, token_type_ids, ..., each (B, T)"""
    labels: Tensor
    """(B,) int64 or float for sequence tasks; (B, T) int64 for token tasks, -100 = no loss;
    (R, U) for B examples with R targets, see `owners`"""
    rows: Tensor
    """(B,) positions of the examples in the data set"""
    owners: Tensor | None = None
    """(R,) the example (0 to B - 1) of each target, ascending, where examples have several"""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        owners = None if self.owners is None else self.owners.to(device)
        return Batch(moved, self.labels.to(device), self.rows.to(device), owners)

    def per_example(self, values: Tensor) -> Tensor:
        """(R,) values of targets as (B,) values of examples: the mean over each one's targets.

        Weights 1/k on the sums and on the counts of k references are what training expects, which
        draws one of them at random.
        """
        if self.owners is None:
            return values
        if not values.is_floating_point():
            values = values.double()
        total = values.new_zeros(len(self.rows)).index_add(0, self.owners, values)
        return total / torch.bincount(self.owners, minlength=len(self.rows))


def position_limit(model: Any, asked: int | None, option: str, default: int = TARGET_LENGTH) -> int:
    """The length `asked` of a target or a generated text, or the default, as far as the model has
    positions (`LONGEST` where it does not count them); more than that, asked for, is a `DataError`
    that names the option."""
    most = int(min(_position_limits(model), default=LONGEST))
    if asked is not None and asked > most:
        raise DataError(
            f"{option} {asked} is more than the model can take ({most} tokens)",
            remedy=f"use {option} <= {most}",
        )
    return min(default, most) if asked is None else asked


def longest_input(tokenizer: PreTrainedTokenizerBase, model: Any, asked: int | None) -> int:
    """The length at which inputs are cut: `asked`, or all that tokenizer and model can take."""
    most = int(min([tokenizer.model_max_length, *_position_limits(model)]))
    if asked is not None and asked > most:
        raise DataError(
            f"max_length {asked} is more than the model can take ({most} tokens)",
            remedy=f"use max_length <= {most}",
        )
    return asked or min(most, LONGEST)


def _position_limits(model: Any) -> Iterator[int]:
    config = model.config
    positions = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    if isinstance(positions, int) and positions > 0:
        yield positions
    # A soft prompt takes some of them.
    if (left := getattr(model, "landform_text_positions", None)) is not None:
        yield int(left)
    # The RoBERTa family numbers tokens from the padding index + 1 and counts the rows before it in
    # its config. A table with a padding index is one of that family, whatever the model is called;
    # BART's table has extra rows too, but not counted in the config.
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        table = getattr(module, "weight", None)
        if "position" in name.rpartition(".")[2] and padding is not None and table is not None:
            yield len(table) - padding - 1


# --- what the model takes ---------------------------------------------------------------------


def set_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id that batches for `model` are padded with, also written into its config.

    Decoder classifiers read their logits at the last token that is not `config.pad_token_id`, and
    the RoBERTa family numbers positions by it, so the model's own id comes first and batches must
    use no other; then the tokenizer's padding token, its end token (GPT-2 and LLaMA ship without a
    padding token), and 0. An id without a row in the vocabulary (old LLaMA configs say -1) is none.
    """
    vocabulary = _vocabulary(model)
    config = model.config.get_text_config()
    own = getattr(config, "pad_token_id", None)
    candidates = (own, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((c for c in candidates if isinstance(c, int) and 0 <= c < vocabulary), 0)
    config.pad_token_id = model.config.pad_token_id = pad
    return pad


def fit_to_model(
    encoded: Encoded, model: Any, tokenizer: PreTrainedTokenizerBase, where: str
) -> Encoded:
    """The same rows with the inputs and the padding that `model` takes.

    Inputs that its forward pass does not name are dropped. Segment ids (`token_type_ids`) stay
    only where the model has embeddings for all of them: RoBERTa has one for the two segments of a
    pair, and GPT-2 would add the embeddings of the *words* with these ids. Raises `DataError`,
    which begins with `where`, for a token outside the model's vocabulary.
    """
    vocabulary = _vocabulary(model)
    largest = max(max(row["input_ids"]) for row in encoded.rows)
    if encoded.kind in ("masked-lm", "seq2seq"):  # the hidden tokens of a text stand in its target
        largest = max(largest, *(max(row["labels"], default=0) for row in encoded.rows))
        targets = (target for answers in encoded.answers or () for target in answers)
        largest = max(largest, max(map(max, targets), default=0))
    if largest >= vocabulary:
        raise DataError(
            f"{where}: token id {largest} is outside the model's vocabulary of {vocabulary}",
            remedy="the tokenizer next to the checkpoint belongs to another model",
        )
    known = inspect.signature(model.forward).parameters
    names = {name for name in encoded.rows[0] if name in known} | {"input_ids", "labels"}
    if "token_type_ids" in names and not _has_segments(model, encoded):
        names.remove("token_type_ids")
    rows = tuple({name: row[name] for name in row if name in names} for row in encoded.rows)
    masking = encoded.masking
    if isinstance(masking, Masking):
        masking = replace(masking, vocabulary=min(masking.vocabulary, vocabulary))
    return replace(encoded, rows=rows, pad_id=set_padding(model, tokenizer), masking=masking)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _has_segments(model: Any, encoded: Encoded) -> bool:
    if any(name.endswith("seg_embed") for name, _ in model.named_parameters()):
        return True  # XLNet compares segments with each other: any ids will do
    segments = getattr(model.config, "type_vocab_size", None) or 0
    return bool(segments > max(max(row["token_type_ids"]) for row in encoded.rows))


# --- texts to rows ----------------------------------------------------------------------------


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    *,
    max_length: int,
    mask_seed: int = 0,
    mask_rate: float = 0.15,
    max_target_length: int | None = None,
) -> Encoded:
    """Tokenise `examples` for a task of this kind.

    Masked language modelling hides `mask_rate` of the non-special tokens (80 % mask, 10 % random,
    10 % kept; Devlin et al. 2019), chosen per example from `mask_seed` and the text alone, so that
    the masks do not depend on order or batch; `examples.noise` may say another rate. Causal models
    are asked for every next token, so that padding with the end token hides no real one. seq2seq
    with `examples.noise` is denoising (see `tasks.corruption`), drawn in the same way.
    Targets are cut at `max_target_length` (text-to-text tasks: 64) or `max_length`.
    The rows hold all that the tokenizer makes; `fit_to_model` makes them inputs of one model.
    """
    if not len(examples):
        raise DataError("there are no examples to encode", remedy="choose a split with rows")
    masking: Masking | Denoising | None = None
    answers = None
    if kind == "token-classification":
        rows, cut = _encode_words(examples, tokenizer, max_length)
    else:
        rows, cut = _encode_texts(examples, tokenizer, max_length)
    if kind in ("classification", "regression"):
        cast = float if kind == "regression" else int
        _add_labels(rows, [cast(label) for label in examples.labels])
    elif kind == "causal-lm":
        _add_labels(rows, [list(row["input_ids"]) for row in rows])
    elif kind == "masked-lm":
        rate = mask_rate if examples.noise is None else examples.noise.rate
        masking = _masking(rows, tokenizer, rate)
        rows = [{**row, **masking.hide(i, mask_seed)} for i, row in enumerate(rows)]
    elif kind == "seq2seq" and examples.noise is not None:
        masking = Denoising.of(rows, tokenizer, examples.noise, examples.ids)
        # The other inputs of the tokenizer belong to the text before it was corrupted.
        rows = [dict(masking.hide(i, mask_seed)) for i in range(len(rows))]
    elif kind == "seq2seq":
        if max_target_length is None and examples.form is not None:
            max_target_length = examples.form.max_target_length or TARGET_LENGTH
        answers, shortened = _targets(examples, tokenizer, max_target_length or max_length)
        cut |= shortened
        _add_labels(rows, [list(targets[0]) for targets in answers])
        if max(map(len, answers)) == 1:
            answers = None
    for row in rows:
        row.pop("special_tokens_mask", None)
    pad = tokenizer.pad_token_id
    pad_id = pad if isinstance(pad, int) else 0
    return Encoded(tuple(rows), kind, pad_id, len(cut), masking, answers, examples.form)


def _add_labels(rows: Sequence[dict[str, Any]], labels: Sequence[Any]) -> None:
    for row, label in zip(rows, labels, strict=True):
        row["labels"] = label


def _encode_texts(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[dict[str, Any]], set[int]]:
    """The rows, and the positions of those that were cut."""
    columns = list(zip(*examples.texts, strict=True))
    if examples.form is not None:
        columns = [tuple(map(examples.form.source, columns[0]))]
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
    full = [i for i, row in enumerate(rows) if len(row["input_ids"]) >= max_length]
    return rows, _longer(full, tokenizer, max_length, *columns)


def _longer(
    full: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *columns: Sequence[str],
    target: bool = False,
) -> set[int]:
    """Which of the rows that fill the maximum length were cut there.

    A row that exactly fits cannot be told from one that was cut without tokenising twice; only
    those at the limit are looked at again.
    """
    if not full:
        return set()
    texts = [[column[i] for i in full] for column in columns]
    options: dict[str, Any] = {"truncation": False, "padding": False, "verbose": False}
    again = tokenizer(text_target=texts[0], **options) if target else tokenizer(*texts, **options)
    lengths = map(len, again["input_ids"])
    return {i for i, length in zip(full, lengths, strict=True) if length > max_length}


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
) -> tuple[list[dict[str, Any]], set[int]]:
    """Words to tokens; the label of a word sits on its first token, its other tokens carry none."""
    _check_room(tokenizer, max_length, pair=False)
    encoded = tokenizer(
        [list(words) for words in examples.texts],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        padding=False,
    )
    rows, cut = [], set()
    names = [name for name in encoded if name != "attention_mask"]
    for i, tags in enumerate(examples.labels):
        row = {name: encoded[name][i] for name in names}
        labels, previous = [], None
        words = encoded.word_ids(i)
        for word in words:
            labels.append(IGNORED if word is None or word == previous else int(tags[word]))
            previous = word
        if max((w for w in words if w is not None), default=-1) + 1 < len(tags):
            cut.add(i)
        rows.append({**row, "labels": labels})
    return rows, cut


def _masking(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, rate: float
) -> Masking:
    if tokenizer.mask_token_id is None:
        raise DataError(
            "the tokenizer has no mask token: masked language modelling is not possible",
            remedy="use kind='causal-lm' for this model",
        )
    originals = tuple(
        (
            tuple(row["input_ids"]),
            tuple(i for i, special in enumerate(row["special_tokens_mask"]) if not special),
        )
        for row in rows
    )
    return Masking(originals, int(tokenizer.mask_token_id), len(tokenizer), rate)


_Answers = tuple[tuple[tuple[int, ...], ...], ...]


def _targets(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[_Answers, set[int]]:
    """The tokens of every example's targets, and the rows of which some target was cut.

    With `references` "first", and in tasks with one answer, there is one for each.
    """
    form = examples.form
    chosen = references(examples)
    if form is not None and form.references == "first":
        chosen = tuple(answers[:1] for answers in chosen)
    flat = [answer for answers in chosen for answer in answers]
    ids = encode_targets(flat, tokenizer, form, max_length)
    lead = "" if form is None else form.lead(tokenizer)
    full = [i for i, target in enumerate(ids) if len(target) >= max_length]
    long = _longer(full, tokenizer, max_length, [f"{lead}{text}" for text in flat], target=True)
    grouped, cut, start = [], set(), 0
    for row, answers in enumerate(chosen):
        stop = start + len(answers)
        grouped.append(tuple(tuple(target) for target in ids[start:stop]))
        if not long.isdisjoint(range(start, stop)):
            cut.add(row)
        start = stop
    return tuple(grouped), cut


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


def _with_answers(batch: Batch, answers: Sequence[Sequence[Sequence[int]]]) -> Batch:
    """The batch with all targets of its examples."""
    if all(len(targets) == 1 for targets in answers):
        return batch
    flat = [target for targets in answers for target in targets]
    owners = [row for row, targets in enumerate(answers) for _ in targets]
    labels = _stack(flat, max(map(len, flat)), IGNORED)
    return replace(batch, labels=labels, owners=torch.tensor(owners))


def cut_batches(encoded: Encoded, token_budget: int) -> list[Batch]:
    """Batches of like length with at most `token_budget` padded tokens each (at least one row).

    Examples with several references bring all their targets.
    """
    sizes = encoded.sizes
    order = np.argsort(sizes, kind="stable")
    lengths = sizes[order]
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        stop = start + 1
        # Rows ascend in size, so the row that would be added decides the padded size.
        while stop < len(order) and (stop + 1 - start) * lengths[stop] <= token_budget:
            stop += 1
        chosen = order[start:stop].tolist()
        batch = collate([encoded.rows[i] for i in chosen], chosen, pad_id=encoded.pad_id)
        if encoded.answers is not None:
            batch = _with_answers(batch, [encoded.answers[i] for i in chosen])
        batches.append(batch)
        start = stop
    return batches
