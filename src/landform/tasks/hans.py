"""HANS-like data of our own: thirty sub-cases with the published distribution.

HANS (McCoy, Pavlick and Linzen, "Right for the Wrong Reasons", ACL 2019) asks whether a model of
inference uses syntax or one of three shortcuts: *lexical overlap* (all words of the hypothesis
occur in the premise), *subsequence* (it is a contiguous run of the premise's words), *constituent*
(it is a whole clause of the premise). Each shortcut has five sub-cases where it is right and five
where it is wrong, each sub-case one to twelve templates.

Sub-cases, constructions, template tags, their shares, the sizes and kinds of the vocabulary and the
two rejection rules (no premise repeats a lemma, no pair repeats) are those of the data set.
Words and code are this project's own. Two things differ on purpose: the template `temp15`, which
the original writes with a doubled article, is written without; the clause introduced by "before"
is left out of the entailed sub-cases, because what it says need not have happened.

A pair is made as two trees, and the sentences are read off their leaves: sentence and parse cannot
disagree. All chance comes from `random.Random.random`, one sequence per sub-case: a seed gives the
same rows everywhere, and fewer rows per sub-case are the first rows of more.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from landform.errors import ConfigError
from landform.tasks.hans_templates import SUBCASES, HansDraw, Subcase, Template, Tree, lemma

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "FILES", "HansSplit", "generate_hans", "write_hans"]

HansSplit = Literal["validation", "train"]

COLUMNS = (
    "gold_label",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
    "pairID",
    "heuristic",
    "subcase",
    "template",
)
"""The columns of the published files, in their order."""

FILES = {"validation": "heuristics_evaluation_set.txt", "train": "heuristics_train_set.txt"}
"""What the published files are called."""

SMALLEST = 2688
"""How many different pairs the smallest sub-case has."""


def generate_hans(
    rows_per_subcase: int = 1000, seed: int = 0, split: HansSplit = "validation"
) -> pd.DataFrame:
    """`rows_per_subcase` pairs of each of the thirty sub-cases, with the columns of HANS.

    Columns: gold_label (entailment, non-entailment), two binary parses, two parses, sentence1
    (premise), sentence2 (hypothesis), pairID (ex0, ex1, ...), heuristic, subcase, template. Rows
    are ordered by sub-case. No pair occurs twice, and none of the split `train` occurs in
    `validation` of the same seed and size. Raises `ConfigError` for an option out of range, or for
    more rows than the smallest sub-case has (2,688 pairs, half of them for `train`).
    """
    import pandas as pd

    _check(rows_per_subcase, seed, split)
    seen: set[str] = set()
    if split == "train":
        for _, texts, _ in _pairs(rows_per_subcase, seed, "validation", seen):
            seen.add("\t".join(texts))
    rows = []
    for number, (case, texts, made) in enumerate(_pairs(rows_per_subcase, seed, split, seen)):
        template, premise, hypothesis = made
        rows.append(
            (
                case.label,
                binary_parse(premise),
                binary_parse(hypothesis),
                parse(premise),
                parse(hypothesis),
                *texts,
                f"ex{number}",
                case.heuristic,
                case.name,
                template.tag,
            )
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_hans(
    out: str | os.PathLike[str],
    rows_per_subcase: int = 1000,
    seed: int = 0,
    split: HansSplit = "validation",
) -> list[Path]:
    """Write generated pairs as tab-separated text: one split to a file, or both to a folder.

    `out` with an ending (hans.tsv) becomes a file with `split`; without one it becomes a folder
    with both splits under the published names, which the task `hans` reads as its `data_dir`.
    Files are whole or absent. Returns the paths. Raises as `generate_hans`, and `StoreError`
    where a file cannot be written.
    """
    from landform.store.atomic import atomic_path, check_place

    place = Path(out)
    wanted: dict[HansSplit, Path] = {split: place}
    if not place.suffix:
        wanted = {"validation": place / FILES["validation"], "train": place / FILES["train"]}
    for one, path in wanted.items():
        _check(rows_per_subcase, seed, one)
        check_place(path)
    tables = {one: generate_hans(rows_per_subcase, seed, one) for one in wanted}
    for one, path in wanted.items():
        with atomic_path(path) as temporary:
            tables[one].to_csv(temporary, sep="\t", index=False, quoting=3, lineterminator="\n")
    return list(wanted.values())


def _check(rows_per_subcase: int, seed: int, split: str) -> None:
    most = SMALLEST if split == "validation" else SMALLEST // 2
    if rows_per_subcase > most:
        raise ConfigError(
            f"rows_per_subcase is {rows_per_subcase}; the smallest sub-case,"
            f" se_understood_object, has {SMALLEST} different pairs for both splits together",
            remedy=f"ask for at most {most}",
        )
    if rows_per_subcase < 1:
        raise ConfigError(
            f"rows_per_subcase is {rows_per_subcase}", remedy="ask for at least one row"
        )
    if seed < 0:
        raise ConfigError(f"seed is {seed}", remedy="give a seed of 0 or more")
    if split not in get_args(HansSplit):
        raise ConfigError(
            f"split {split!r} of HANS is unknown",
            remedy=f"choose one of {', '.join(get_args(HansSplit))}",
        )


_Made = tuple[Template, Tree, Tree]


def _pairs(
    rows: int, seed: int, split: str, taken: set[str]
) -> Iterator[tuple[Subcase, tuple[str, str], _Made]]:
    """The accepted pairs in order; `taken` holds pairs that must not occur."""
    for case in SUBCASES:
        draw = HansDraw(random.Random(f"landform hans {split} {seed} {case.name}"))
        found: set[str] = set()
        while len(found) < rows:
            template = draw.template(case)
            premise, hypothesis = template.pair(draw)
            words = list(leaves(premise))
            texts = sentence(words), sentence(list(leaves(hypothesis)))
            key = "\t".join(texts)
            if repeats(words) or key in found or key in taken:
                continue
            found.add(key)
            yield case, texts, (template, premise, hypothesis)


def repeats(words: list[str]) -> bool:
    """Whether a lemma other than "the" occurs twice (singular and plural are one)."""
    lemmas = [lemma(word) for word in words if word != "the"]
    return len(set(lemmas)) < len(lemmas)


# --- trees as text ------------------------------------------------------------------------------


def leaves(tree: Tree) -> Iterator[str]:
    """The words of a tree, from left to right."""
    for child in tree[1:]:
        if isinstance(child, str):
            yield child
        else:
            yield from leaves(child)


def sentence(words: list[str]) -> str:
    """Words with a space between any two, the first with a capital: "The nurse slept ."."""
    text = " ".join(words)
    return text[0].upper() + text[1:]


def parse(tree: Tree) -> str:
    """A tree in brackets with its labels: "(ROOT (S (NP (DT The) (NN nurse)) ...))"."""
    return _capital(_labelled(tree), 1 + _labelled_start(tree))


def binary_parse(tree: Tree) -> str:
    """A tree in brackets without labels, every node with two children: single children are
    lifted, more than two are joined from the right."""
    text = _binary(tree)
    return _capital(text, len(text) - len(text.lstrip("( ")))


def _capital(text: str, at: int) -> str:
    return text[:at] + text[at].upper() + text[at + 1 :]


def _labelled(tree: Tree) -> str:
    inside = " ".join(part if isinstance(part, str) else _labelled(part) for part in tree)
    return f"({inside})"


def _labelled_start(tree: Tree) -> int:
    """Where the last character before the first word stands in `_labelled(tree)`."""
    at = len(tree[0]) + 1
    return at if isinstance(tree[1], str) else at + 1 + _labelled_start(tree[1])


def _binary(tree: Tree) -> str:
    parts: list[Any] = list(tree[1:])
    texts = [part if isinstance(part, str) else _binary(part) for part in parts]
    while len(texts) > 1:
        last = texts.pop()
        texts[-1] = f"( {texts[-1]} {last} )"
    return texts[0]
