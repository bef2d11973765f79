"""Answers as text: how a text-to-text example is written for a model, and what counts as right.

A text-to-text task turns everything into text: the source is `" [task] input"`, the target a
sentinel followed by the answer, `"<extra_id_0>answer"` (Raffel et al. 2020 pre-train T5 on targets
that begin so). An example may have several accepted answers; `references` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from landform.errors import ConfigError

if TYPE_CHECKING:
    from landform.tasks.examples import Examples

__all__ = ["SENTINEL", "TARGET_LENGTH", "TextForm", "answer_start", "encode_targets", "references"]

SENTINEL = "<extra_id_0>"
"""What T5's targets begin with."""

TARGET_LENGTH = 64
"""Tokens of a target, and of a generated answer, where nothing else is asked for."""

AUTO = "auto"


@dataclass(frozen=True)
class TextForm:
    """How the examples of a text-to-text task are written: source and target around the data."""

    prefix: str | None = None
    """the task's name, put in brackets before every input; None: nothing"""
    sentinel: str | None = AUTO
    """the token that targets begin with; "auto": `<extra_id_0>` where the tokenizer has it as a
    token, else nothing; None: nothing"""
    bos: str = ""
    """text before every source and every target"""
    max_target_length: int | None = None
    """tokens at which targets are cut; None: 64, or what the model can take"""
    references: Literal["mean", "first"] = "mean"
    """whether losses are those of all answers of an example, or of its first"""

    def source(self, text: str) -> str:
        """What the encoder reads: `" [task] input"`."""
        return f"{self.bos} [{self.prefix}] {text}" if self.prefix else f"{self.bos}{text}"

    def lead(self, tokenizer: Any) -> str:
        """What stands before every answer: the sentinel, where there is one.

        Raises `ConfigError` for a sentinel that is no token of the tokenizer.
        """
        if self.sentinel is None or (self.sentinel == AUTO and not _is_token(SENTINEL, tokenizer)):
            return self.bos
        sentinel = SENTINEL if self.sentinel == AUTO else self.sentinel
        if not _is_token(sentinel, tokenizer):
            raise ConfigError(
                f"option sentinel: {sentinel!r} is not a token of this model's tokenizer",
                remedy="leave sentinel out (auto), or give 'none'",
            )
        return f"{self.bos}{sentinel}"

    def spec(self) -> dict[str, Any]:
        """Plain values: a part of the fingerprint of the examples."""
        return asdict(self)


def _is_token(text: str, tokenizer: Any) -> bool:
    found = tokenizer.convert_tokens_to_ids(text)
    return isinstance(found, int) and found != tokenizer.unk_token_id


def references(examples: Examples) -> tuple[tuple[str, ...], ...]:
    """The accepted answers of every example of a seq2seq task, at least one each."""
    return tuple((label,) if isinstance(label, str) else tuple(label) for label in examples.labels)


def encode_targets(
    answers: Sequence[str], tokenizer: Any, form: TextForm | None, max_length: int
) -> list[list[int]]:
    """Token ids of targets: lead and answer, with the tokenizer's own end token, cut."""
    lead = "" if form is None else form.lead(tokenizer)
    texts = [f"{lead}{answer}" for answer in answers]
    made = tokenizer(text_target=texts, truncation=True, max_length=max_length, padding=False)
    return [list(ids) for ids in made["input_ids"]]


def answer_start(tokenizer: Any, form: TextForm | None) -> list[int]:
    """The token ids that every target begins with: the lead, and what the tokenizer puts first."""
    lead = "" if form is None else form.lead(tokenizer)
    ids = list(tokenizer(text_target=[lead], padding=False)["input_ids"][0])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids
