"""Span corruption: the denoising loss that T5 is pre-trained with.

Some tokens of a text are hidden behind sentinels; the target lists what was hidden (Raffel et al.
2020, section 3.1.4 and figure 2):

    text      Thank you for inviting me to your party last week
    input     Thank you <extra_id_0> me to your party <extra_id_1> week
    target    <extra_id_0> for inviting <extra_id_1> last <extra_id_2>

Of L tokens n = round(density L) are hidden, at least 1 and, of several, not all; in
s = round(n / mean_span) spans that do not touch. Every such choice is equally likely. (The released
T5 code always hides the last token and never the first: its targets need no last sentinel.)
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from landform.errors import DataError
from landform.tasks.columns import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Denoising", "Noise", "Variant", "sentinels_of"]

Variant = Literal["spans", "guided-dropout"]


@dataclass(frozen=True)
class Noise:
    """How much of a text is hidden from the model, and how: a part of the examples' fingerprint."""

    rate: float
    """the share of tokens that are hidden"""
    mean_span: float = 1.0
    """the mean length of a hidden span (denoising)"""
    variant: Variant | None = None
    """denoising: spans, or every hidden token on its own; None: masked language modelling"""

    def spec(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def spans(self, length: int, generator: random.Random) -> list[tuple[int, int]]:
        """The hidden spans [start, stop) of a text of `length` tokens, ascending."""
        if self.variant == "guided-dropout":
            places = sorted(generator.sample(range(length), self._hidden(length)))
            return [(at, at + 1) for at in places]
        hidden, count = self._hidden(length), self.count(length)
        lengths = _composition(hidden, count, generator)
        # Between spans at least one token; before the first and after the last perhaps none.
        gaps = _composition(length - hidden + 2, count + 1, generator)
        found, start = [], gaps[0] - 1
        for size, gap in zip(lengths, gaps[1:], strict=True):
            found.append((start, start + size))
            start += size + gap
        return found

    def count(self, length: int) -> int:
        """How many spans a text of `length` tokens has."""
        hidden = self._hidden(length)
        if self.variant == "guided-dropout":
            return hidden
        return min(max(round(hidden / self.mean_span), 1), hidden, length - hidden + 1)

    def _hidden(self, length: int) -> int:
        # At least one token, or a short text would say nothing; one that stays, or it is no text.
        return max(min(round(self.rate * length), length - 1), 1)


def _composition(total: int, parts: int, generator: random.Random) -> list[int]:
    """`parts` whole numbers from 1 on that add up to `total`, every choice equally likely."""
    cuts = sorted(generator.sample(range(1, total), parts - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


@dataclass(frozen=True)
class Denoising:
    """What is needed to hide other spans of the same examples: see `Encoded.drawn`."""

    originals: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]
    """per example: its token ids, and the special ones that the tokenizer puts before and after"""
    sentinels: tuple[int, ...]
    noise: Noise
    lead: tuple[int, ...]
    """what the tokenizer puts before every target"""
    tail: tuple[int, ...]
    """what the tokenizer puts after every target"""

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        noise: Noise,
        ids: Sequence[str],
    ) -> Denoising:
        """For tokenised rows with a `special_tokens_mask`; `ids` name them in errors.

        Raises `DataError` for a tokenizer without sentinels, and for a text that needs more of
        them than there are.
        """
        sentinels = sentinels_of(tokenizer)
        originals = tuple(map(_cut_specials, rows))
        final = 0 if noise.variant == "guided-dropout" else 1
        for row, (tokens, _, _) in enumerate(originals):
            needed = noise.count(len(tokens)) + final if tokens else 0
            if needed > len(sentinels):
                raise DataError(
                    f"example {ids[row]}: {len(tokens)} tokens with {noise.count(len(tokens))} "
                    f"hidden spans need {needed} sentinels; the tokenizer has {len(sentinels)}",
                    remedy="use a smaller max_length or noise_density, or a larger mean_span",
                )
        around = tokenizer(text_target=_sentinel(0), padding=False)["input_ids"]
        at = list(around).index(sentinels[0])
        return cls(originals, sentinels, noise, tuple(around[:at]), tuple(around[at + 1 :]))

    def hide(self, row: int, seed: object) -> dict[str, list[int]]:
        """`input_ids` and `labels` of an example, spans drawn from `seed` and its ids alone."""
        tokens, before, after = self.originals[row]
        if not tokens:  # nothing but special tokens: nothing to ask for
            return {"input_ids": [*before, *after], "labels": [IGNORED]}
        digest = hashlib.sha256(f"{seed}:{list(tokens)}".encode()).digest()
        spans = self.noise.spans(len(tokens), random.Random(int.from_bytes(digest[:8], "big")))
        inputs, labels, end = list(before), list(self.lead), 0
        for sentinel, (start, stop) in zip(self.sentinels, spans, strict=False):
            inputs += [*tokens[end:start], sentinel]
            labels += [sentinel, *tokens[start:stop]]
            end = stop
        if self.noise.variant != "guided-dropout":
            labels.append(self.sentinels[len(spans)])
        return {
            "input_ids": [*inputs, *tokens[end:], *after],
            "labels": [*labels, *self.tail],
        }


def _cut_specials(
    row: Mapping[str, Any],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    ids, special = row["input_ids"], row["special_tokens_mask"]
    text = [i for i, flag in enumerate(special) if not flag]
    if not text:
        return (), (), tuple(ids)
    start, stop = text[0], text[-1] + 1
    return tuple(ids[start:stop]), tuple(ids[:start]), tuple(ids[stop:])


def _sentinel(number: int) -> str:
    return f"<extra_id_{number}>"


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of <extra_id_0>, <extra_id_1>, ...; `DataError` where there are none."""
    found: list[int] = []
    while True:
        index = tokenizer.convert_tokens_to_ids(_sentinel(len(found)))
        if not isinstance(index, int) or index == tokenizer.unk_token_id:
            break
        found.append(index)
    if not found:
        raise DataError(
            f"the tokenizer has no sentinels ({_sentinel(0)}, ...): denoising is not possible",
            remedy="use a model that was pre-trained like T5, kind='masked-lm' for an encoder, or"
            " kind='causal-lm' for a decoder",
        )
    return tuple(found)
