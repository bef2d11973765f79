"""Building PAWS-QQP from Quora's question pairs and the released index files.

Quora's licence does not let PAWS-QQP be distributed. What its authors distribute (Zhang, Baldridge
and He, "PAWS", NAACL 2019) says of every word of every sentence where it stands in Quora's file:

    id <tab> qid1 <tab> sentence1 <tab> qid2 <tab> sentence2 <tab> label

with a sentence such as `0/1/(17, 4):(17, 5)/6`: words divided by `/`, each the number of a token of
the question `qid`, or several (question, token) pairs divided by `:` that are written together.

The numbers count the tokens that nltk 3.2.5 makes: Punkt's English sentences, then the word rules
of the Penn Treebank. Later releases divide words differently (quotation marks before a word, "*",
runs of periods), so those rules stand here, as `treebank_words`; sentences come from the installed
nltk and its English Punkt model, an extra: pip install 'landform[paws]'.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landform.errors import ConfigError, DataError, MissingExtraError
from landform.results import Result
from landform.tasks.tables import any_field_size, read_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PawsBuild", "build_paws_qqp", "treebank_words", "word_tokenizer"]

SPLITS = ("train", "dev_and_test")
ROWS: Mapping[str, int] = {"train": 11988, "dev_and_test": 677}
"""Rows of the published build."""
MD5: Mapping[str, str] = {
    "train": "bc9322717e2bb1b9bf35ef273c5473c3",
    "dev_and_test": "4534c5099cea3501c7be1497838d5d9b",
}
"""MD5 of the build that the connectivity project distributes, with LF line ends."""

Tokenize = Callable[[str], Sequence[str]]
_QUORA = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
_INDEX = ("id", "qid1", "sentence1", "qid2", "sentence2", "label")
_NUMBER = re.compile(r"[0-9]{1,18}")
_ELSEWHERE = re.compile(r"\(\s*([0-9]{1,18})\s*,\s*([0-9]{1,18})\s*\)")


# --- words --------------------------------------------------------------------------------------

# The rules of Robert MacIntyre's tokenizer for the Penn Treebank with the typographic quotes that
# nltk 3.2.5 adds, in their order; each is applied everywhere in the sentence. The second group
# finds a space at both ends of the sentence.
_RULES = (
    (r"([«“‘])", r" \1 "),
    (r'^"', r"``"),
    (r"(``)", r" \1 "),
    (r'([ ([{<])"', r"\1 `` "),
    (r"""([^.])(\.)([])}>"'»”’ ]*)\s*$""", r"\1 \2 \3 "),  # the period at the end
    (r"([:,])(\D)", r" \1 \2"),
    (r"([:,])$", r" \1 "),
    (r"\.\.\.", r" ... "),
    (r"([;@#$%&])", r" \1 "),
    (r"""([^.])(\.)([])}>"']*)\s*$""", r"\1 \2\3 "),
    (r"([?!])", r" \1 "),
    (r"([^'])' ", r"\1 ' "),
    (r"([][(){}<>])", r" \1 "),
    (r"--", r" -- "),
)
_PADDED_RULES = (
    (r"([»”’])", r" \1 "),
    (r'"', r" '' "),
    (r"(\S)('')", r"\1 \2 "),
    (r"([^' ])('[sSmMdD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    *(
        (rf"(?i)\b({first})({second}){end}", r" \1 \2 ")
        for first, second, end in (
            ("can", "not", r"\b"),
            ("d", "'ye", r"\b"),
            ("gim", "me", r"\b"),
            ("gon", "na", r"\b"),
            ("got", "ta", r"\b"),
            ("lem", "me", r"\b"),
            ("mor", "'n", r"\b"),
            ("wan", "na", r"\s"),
        )
    ),
    (r"(?i) ('t)(is)\b", r" \1 \2 "),
    (r"(?i) ('t)(was)\b", r" \1 \2 "),
)


def treebank_words(sentence: str) -> list[str]:
    """The words of one sentence by the rules of the Penn Treebank, as nltk 3.2.5 applies them."""
    for pattern, new in _RULES:
        sentence = re.sub(pattern, new, sentence)
    sentence = f" {sentence} "
    for pattern, new in _PADDED_RULES:
        sentence = re.sub(pattern, new, sentence)
    return sentence.split()


def word_tokenizer() -> Tokenize:
    """Text to words: English sentences of the installed nltk, then `treebank_words` of each.

    Raises `MissingExtraError` without nltk and `ConfigError` without its Punkt model.
    """
    try:
        from nltk.tokenize import sent_tokenize
    except ImportError:
        raise MissingExtraError.of("nltk", "paws", "building PAWS-QQP") from None
    try:
        sent_tokenize("One. Two.")
    except LookupError:
        raise ConfigError(
            "nltk's English Punkt model, which divides text into sentences, is not on this machine",
            remedy="python -m nltk.downloader punkt_tab",
        ) from None
    return lambda text: [word for part in sent_tokenize(text) for word in treebank_words(part)]


# --- building -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PawsBuild(Result):
    """What was built."""

    files: pd.DataFrame
    """columns split, path, rows, duplicates, skipped, md5, published (whether the text is that of
    the published build, byte for byte)"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        parts = []
        for row in self.files.to_dict("records"):
            split, rows = str(row["split"]), int(row["rows"])
            same = "the published build" if row["published"] else "not the published build"
            if rows != ROWS[split]:
                same += f", which has {ROWS[split]} rows"
            lost = f", {row['skipped']} left out" if row["skipped"] else ""
            parts.append(f"{split} {rows} pairs ({row['duplicates']} duplicates{lost}; {same})")
        return "PAWS-QQP: " + "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The files with their counts and checksums."""
        return {"files": self.files.to_dict("records"), "provenance": self.provenance}


def build_paws_qqp(
    quora: str | os.PathLike[str],
    index: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    skip_missing: bool = False,
    tokenize: Tokenize | None = None,
) -> PawsBuild:
    """Write `out`/train.tsv and `out`/dev_and_test.tsv, which the task `paws_qqp` reads.

    `quora`: Quora's file (id, qid1, qid2, question1, question2, is_duplicate). `index`: the folder
    of the released index files, train.tsv and dev_and_test.tsv; one of them is enough. `tokenize`
    replaces `word_tokenizer()`. A row whose question or token is not there is an error that names
    it, or left out with `skip_missing` (Quora has changed its file over the years). The files are
    written together, after all checks. Raises `DataError`, `MissingExtraError`, `ConfigError`,
    `StoreError`.
    """
    from landform.store.atomic import check_place

    folder = Path(index)
    found = {split: folder / f"{split}.tsv" for split in SPLITS}
    found = {split: path for split, path in found.items() if path.is_file()}
    if not found:
        raise DataError(
            f"index folder {folder} holds neither train.tsv nor dev_and_test.tsv",
            remedy="unpack paws_qqp.tar.gz of the PAWS release and name its folder",
        )
    places = {split: Path(out) / f"{split}.tsv" for split in found}
    for split, place in places.items():
        check_place(place)
        if place.exists() and place.samefile(found[split]):
            raise ConfigError(f"out {out} is the index folder", remedy="choose another folder")
    rows = {split: list(_index_rows(path)) for split, path in found.items()}
    wanted = {qid for made in rows.values() for row in made for qid in row.questions}
    texts = _questions(Path(quora), wanted)
    cut = tokenize or word_tokenizer()
    tokens = {qid: list(cut(text)) for qid, text in texts.items()}
    built = {split: _build(made, tokens, skip_missing) for split, made in rows.items()}
    return _written(built, places, {"quora": os.fspath(quora), "index": os.fspath(index)})


@dataclass(frozen=True)
class _IndexRow:
    """One pair: per sentence its words, each a list of (question, token)."""

    place: str
    id: str
    label: str
    sentences: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]

    @property
    def questions(self) -> set[int]:
        return {qid for words in self.sentences for word in words for qid, _ in word}


def _table(path: Path, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Place and fields of every row after the header; double quotes may enclose a field."""
    text = read_text(path)
    with any_field_size(len(text) + 1):
        # Not strict: Quora's file has fields that go on after a closing quote.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        start = 1
        for number, row in enumerate(reader):
            place, start = f"{path}, line {start}", reader.line_num + 1
            if len(row) != len(names):
                raise DataError(
                    f"{place}: {len(row)} columns where {len(names)} were expected",
                    remedy=f"the columns are {', '.join(names)}, divided by tabs",
                )
            if number:
                yield place, row
            elif _NUMBER.fullmatch(row[1].strip()):
                raise DataError(
                    f"{place}: a row of data where the header was expected",
                    remedy=f"the first line names the columns: {', '.join(names)}",
                )


def _number(text: str, place: str, name: str) -> int:
    if not _NUMBER.fullmatch(text.strip()):
        raise DataError(
            f"{place}, column {name}: {text[:40]!r} is not a number",
            remedy="check that the file is the one that was released",
        )
    return int(text)


def _index_rows(path: Path) -> Iterator[_IndexRow]:
    seen: set[str] = set()
    for place, (name, qid1, first, qid2, second, label) in _table(path, _INDEX):
        if label not in ("0", "1"):
            raise DataError(f"{place}, column label: {label[:40]!r}", remedy="labels are 0 and 1")
        if name in seen:
            raise DataError(f"{place}: the id {name!r} occurs twice", remedy="keep one of them")
        seen.add(name)
        sentences = tuple(
            tuple(_word(word, _number(qid, place, column), place) for word in text.split("/"))
            for column, qid, text in (("qid1", qid1, first), ("qid2", qid2, second))
        )
        yield _IndexRow(place, name, label, sentences)


def _word(text: str, qid: int, place: str) -> tuple[tuple[int, int], ...]:
    """`4`: token 4 of the sentence's own question. `(17, 4):(9, 0)`: two tokens as one word."""
    if _NUMBER.fullmatch(text):
        return ((qid, int(text)),)
    parts = [_ELSEWHERE.fullmatch(part) for part in text.split(":")]
    if not all(parts):
        raise DataError(
            f"{place}: {text[:40]!r} is neither the number of a token nor (question, token) pairs",
            remedy="use the index files of the PAWS-QQP release, not the finished data",
        )
    return tuple((int(part[1]), int(part[2])) for part in parts if part is not None)


def _questions(path: Path, wanted: set[int]) -> dict[int, str]:
    """The texts of the wanted questions; of several texts under one number the first counts."""
    texts: dict[int, str] = {}
    for place, row in _table(path, _QUORA):
        for name, qid, text in (("qid1", row[1], row[3]), ("qid2", row[2], row[4])):
            number = _number(qid, place, name)
            if number in wanted:
                texts.setdefault(number, text)
    return texts


@dataclass(frozen=True)
class _Built:
    lines: list[str]
    duplicates: int
    skipped: int


def _build(
    rows: Sequence[_IndexRow], tokens: Mapping[int, Sequence[str]], skip_missing: bool
) -> _Built:
    lines, faults, duplicates = ["\t".join(("id", "sentence1", "sentence2", "label"))], [], 0
    for row in rows:
        fault = _fault(row, tokens)
        if fault is not None:
            faults.append(fault)
            continue
        made = (
            " ".join("".join(tokens[qid][token] for qid, token in word) for word in words)
            for words in row.sentences
        )
        lines.append("\t".join((row.id, *made, row.label)))
        duplicates += row.label == "1"
    if faults and (not skip_missing or len(faults) == len(rows)):
        raise DataError(
            f"{faults[0]} ({len(faults)} such rows of {len(rows)})",
            remedy="use quora_duplicate_questions.tsv of the first release, or leave such rows"
            " out with skip_missing"
            if len(faults) < len(rows)
            else "name Quora's file of question pairs and the index files that belong to it",
        )
    return _Built(lines, duplicates, len(faults))


def _fault(row: _IndexRow, tokens: Mapping[int, Sequence[str]]) -> str | None:
    for qid, token in (pair for words in row.sentences for word in words for pair in word):
        if qid not in tokens:
            return f"{row.place}: question {qid} is not in Quora's file"
        if token >= len(tokens[qid]):
            count = len(tokens[qid])
            return (
                f"{row.place}: question {qid} has {count} tokens, and number {token} is asked for"
            )
    return None


def _written(
    built: Mapping[str, _Built], places: Mapping[str, Path], provenance: dict[str, Any]
) -> PawsBuild:
    import pandas as pd

    from landform.store.atomic import atomic_path

    records = []
    with ExitStack() as together:
        for split, made in built.items():
            data = ("\n".join(made.lines) + "\n").encode()
            together.enter_context(atomic_path(places[split])).write_bytes(data)
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            records.append(
                {
                    "split": split,
                    "path": str(places[split]),
                    "rows": len(made.lines) - 1,
                    "duplicates": made.duplicates,
                    "skipped": made.skipped,
                    "md5": md5,
                    "published": md5 == MD5[split],
                }
            )
    return PawsBuild(pd.DataFrame(records), provenance)
