"""A small grammar of English-like inference pairs whose training data leaves the strategy open.

A pair is a premise and a hypothesis; the label says whether the hypothesis follows. Three
shortcuts are known to fool models on such data: *lexical overlap* (every word of the hypothesis
occurs in the premise), *subsequence* (the hypothesis is a contiguous run of words of the
premise) and *constituent* (it is a whole clause of the premise); see McCoy, Pavlick and Linzen,
"Right for the Wrong Reasons", ACL 2019. Here as there each shortcut has five sub-cases in which
it is right (entailment) and five in which it is wrong (non-entailment). Vocabulary, templates
and sentences are this project's own.

In the splits `train` and `validation` a shortcut is right whenever it applies: pairs that do not
follow differ in a word as well. Word matching and syntax therefore explain the training labels
equally well, and what a fine-tuned model does on the split `heuristics`, where the shortcut is
wrong in half the rows, is its own choice. `disambiguating` moves a share of the rows to the
non-entailed sub-cases and so tells the two apart.

Everything is drawn from `random.Random.random`, whose sequence Python guarantees, so a seed gives
the same rows on every platform and version. A row belongs to a split by a hash of its text:
splits are disjoint whatever their seeds and sizes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import pandas as pd

from landform.errors import ConfigError

__all__ = [
    "HEURISTICS",
    "LABELS",
    "SUBCASES",
    "Draw",
    "Passage",
    "Split",
    "Subcase",
    "corpus",
    "generate",
    "vocabulary",
]

Split = Literal["train", "validation", "heuristics"]
Item = TypeVar("Item")

LABELS = ("entailment", "non-entailment")
HEURISTICS = ("lexical_overlap", "subsequence", "constituent")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "gardener pilot baker sailor weaver miner singer potter ranger barber farmer dancer poet "
    "blacksmith fisher nurse cook guard clown monk teacher painter plumber hunter"
)
PLURALS = tuple(person + "s" for person in PEOPLE)
TRANSITIVE = _words(
    "greeted chased warned visited praised teased blamed trusted watched passed hired pushed "
    "tricked scolded comforted hugged"
)
INTRANSITIVE = _words(
    "sang laughed coughed stumbled whistled wept smiled left sneezed knelt yawned argued"
)
# Also complete without an object, and their participle looks like their past tense.
OPTIONAL_OBJECT = _words("followed obeyed hunted attacked led resisted")
# Take a noun phrase or a whole clause, and the clause does not imply the noun phrase.
NOUN_OR_CLAUSE = _words("suspected doubted understood expected imagined accepted")
FACTIVE_VERBS = _words("knew remembered regretted noticed discovered saw")
OTHER_VERBS = _words("claimed hoped dreamed guessed believed said")
FACTIVE_ADVERBS = _words("luckily clearly sadly naturally surprisingly")
OTHER_ADVERBS = _words("supposedly maybe hopefully allegedly perhaps")
FACTIVE_CONNECTIVES = _words("because although since")
OTHER_CONNECTIVES = _words("if unless whenever")
PREPOSITIONS = _words("near behind beside below opposite")
PLACES = _words("harbor orchard chapel stable tower market cellar bridge")
ADJECTIVES = _words("tall young quiet tired clumsy cheerful")
FUNCTION_WORDS = _words("the who and or that while was were by never someone ,")

_VERBS = (*TRANSITIVE, *INTRANSITIVE, *OPTIONAL_OBJECT, *NOUN_OR_CLAUSE)
# A word of the hypothesis is exchanged for another of its own class.
_EXCHANGE: Mapping[str, Sequence[str]] = {
    word: words
    for words in (
        (*PEOPLE,),
        (*PLURALS,),
        TRANSITIVE,
        INTRANSITIVE,
        OPTIONAL_OBJECT,
        NOUN_OR_CLAUSE,
        PLACES,
    )
    for word in words
}


def vocabulary() -> tuple[str, ...]:
    """Every word the grammar can write, sorted."""
    return tuple(
        sorted(
            {
                *PEOPLE,
                *PLURALS,
                *_VERBS,
                *FACTIVE_VERBS,
                *OTHER_VERBS,
                *FACTIVE_ADVERBS,
                *OTHER_ADVERBS,
                *FACTIVE_CONNECTIVES,
                *OTHER_CONNECTIVES,
                *PREPOSITIONS,
                *PLACES,
                *ADJECTIVES,
                *FUNCTION_WORDS,
            }
        )
    )


class Draw:
    """Random choices from `random.Random.random` alone, whose sequence Python guarantees."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._rng.random() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, each as likely as the others."""
        return items[int(self._rng.random() * len(items))]


class _Draw(Draw):
    """Random choices for one sentence pair; no person is drawn twice, so no word is ambiguous."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._used: set[str] = set()

    def _fresh(self, words: Sequence[str]) -> str:
        # Falls back to a repeated word once a small class is used up.
        unused = [word for word in words if word not in self._used] or list(words)
        word = self.pick(unused)
        self._used.add(word)
        return word

    def noun(self, *, plural: bool | None = None) -> str:
        person = self._fresh(PEOPLE)
        many = self.chance(0.5) if plural is None else plural
        return person + "s" if many else person

    def person(self) -> str:
        return f"the {self.noun()}"

    def people(self, count: int) -> list[str]:
        return [self.person() for _ in range(count)]

    def transitive(self) -> str:
        return self._fresh((*TRANSITIVE, *OPTIONAL_OBJECT) if self.chance(0.3) else TRANSITIVE)

    def intransitive(self) -> str:
        return self._fresh(INTRANSITIVE)

    def optional(self) -> str:
        return self._fresh(OPTIONAL_OBJECT)

    def preposition(self) -> str:
        return self._fresh(PREPOSITIONS)

    def place(self) -> str:
        return f"{self.preposition()} the {self._fresh(PLACES)}"

    def predicate(self) -> str:
        """A verb phrase: with an object, without one, or without one at a place."""
        if self.chance(0.5):
            return f"{self.transitive()} {self.person()}"
        return f"{self.intransitive()} {self.place()}" if self.chance(0.3) else self.intransitive()

    def clause(self) -> str:
        return f"{self.person()} {self.predicate()}"


Template = Callable[[_Draw], tuple[str, str]]


@dataclass(frozen=True)
class Subcase:
    """One construction: the shortcut it fits, its true label and how its pairs are written."""

    name: str
    heuristic: str
    label: str
    template: Template


# --- lexical overlap -------------------------------------------------------------------------


def _object_relative(d: _Draw) -> tuple[str, str]:
    a, b = d.people(2)
    verb = d.transitive()
    return f"{a} who {b} {verb} {d.predicate()}", f"{b} {verb} {a}"


def _around_preposition(d: _Draw) -> tuple[str, str]:
    a, b = d.people(2)
    rest = d.predicate()
    return f"{a} {d.preposition()} {b} {rest}", f"{a} {rest}"


def _around_relative(d: _Draw) -> tuple[str, str]:
    a, b = d.people(2)
    rest = d.predicate()
    return f"{a} who {d.transitive()} {b} {rest}", f"{a} {rest}"


def _subject_conjunction(d: _Draw) -> tuple[str, str]:
    a, b, c = d.people(3)
    verb = d.transitive()
    return f"{a} and {b} {verb} {c}", f"{a} {verb} {c}"


def _was(person: str) -> str:
    return "were" if person.endswith("s") else "was"


def _passive(d: _Draw) -> tuple[str, str]:
    a, b = d.people(2)
    verb = d.transitive()
    place = f" {d.place()}" if d.chance(0.3) else ""
    return f"{a} {_was(a)} {verb} by {b}{place}", f"{b} {verb} {a}"


def _swap(d: _Draw) -> tuple[str, str]:
    a, b = d.people(2)
    verb = d.transitive()
    place = f" {d.place()}" if d.chance(0.3) else ""
    return f"{a} {verb} {b}{place}", f"{b} {verb} {a}"


def _preposition(d: _Draw) -> tuple[str, str]:
    a, b, c = d.people(3)
    verb = d.transitive()
    premise = f"{a} {d.preposition()} {b} {verb} {c}"
    return premise, d.pick((f"{b} {verb} {a}", f"{c} {verb} {a}", f"{c} {verb} {b}"))


def _relative(d: _Draw) -> tuple[str, str]:
    a, b, c = d.people(3)
    inner, outer = d.transitive(), d.transitive()
    premise = f"{a} who {inner} {b} {outer} {c}"
    return premise, d.pick((f"{b} {inner} {a}", f"{b} {outer} {a}", f"{c} {outer} {a}"))


def _passive_misread(d: _Draw) -> tuple[str, str]:
    a, b = d.people(2)
    verb = d.transitive()
    place = f" {d.place()}" if d.chance(0.3) else ""
    return f"{a} {_was(a)} {verb} by {b}{place}", f"{a} {verb} {b}"


def _conjunction_misread(d: _Draw) -> tuple[str, str]:
    a, b, c = d.people(3)
    verb = d.transitive()
    if d.chance(0.5):
        return f"{a} and {b} {verb} {c}", f"{a} {verb} {b}"
    return f"{a} {verb} {b} and {c}", f"{b} {verb} {c}"


# --- subsequence -----------------------------------------------------------------------------


def _object_conjunction(d: _Draw) -> tuple[str, str]:
    a, b, c = d.people(3)
    start = f"{a} {d.transitive()} {b}"
    return f"{start} and {c}", start


def _adjective(d: _Draw) -> tuple[str, str]:
    rest = f"{d.noun(plural=True)} {d.predicate()}"
    return f"{d.pick(ADJECTIVES)} {rest}", rest


def _understood_object(d: _Draw) -> tuple[str, str]:
    start = f"{d.person()} {d.optional()}"
    place = f" {d.place()}" if d.chance(0.5) else ""
    return f"{start} {d.person()}{place}", start


def _relative_on_object(d: _Draw) -> tuple[str, str]:
    start = f"{d.person()} {d.transitive()} {d.person()}"
    return f"{start} who {d.predicate()}", start


def _preposition_on_object(d: _Draw) -> tuple[str, str]:
    start = f"{d.person()} {d.transitive()} {d.person()}"
    where = d.place() if d.chance(0.5) else f"{d.preposition()} {d.person()}"
    return f"{start} {where}", start


def _noun_or_clause(d: _Draw) -> tuple[str, str]:
    start = f"{d.person()} {d.pick(NOUN_OR_CLAUSE)} {d.person()}"
    return f"{start} {d.predicate()}", start


def _preposition_on_subject(d: _Draw) -> tuple[str, str]:
    end = f"{d.person()} {d.predicate()}"
    return f"{d.person()} {d.preposition()} {end}", end


def _relative_on_subject(d: _Draw) -> tuple[str, str]:
    end = f"{d.person()} {d.predicate()}"
    return f"{d.person()} who {d.transitive()} {end}", end


def _participle(d: _Draw) -> tuple[str, str]:
    start = f"{d.person()} {d.optional()} {d.place()}"
    return f"{start} {d.predicate()}", start


def _while_without_comma(d: _Draw) -> tuple[str, str]:
    middle = f"{d.person()} {d.optional()} {d.person()}"
    return f"while {middle} {d.predicate()}", middle


# --- constituent -----------------------------------------------------------------------------


def _under(connectives: Sequence[str]) -> Template:
    def template(d: _Draw) -> tuple[str, str]:
        inner = d.clause()
        return f"{d.pick(connectives)} {inner} , {d.clause()}", inner

    return template


def _after(connectives: Sequence[str]) -> Template:
    def template(d: _Draw) -> tuple[str, str]:
        outer = d.clause()
        return f"{d.pick(connectives)} {d.clause()} , {outer}", outer

    return template


def _joined(word: str) -> Template:
    def template(d: _Draw) -> tuple[str, str]:
        first, second = d.clause(), d.clause()
        return f"{first} , {word} {second}", d.pick((first, second))

    return template


def _adverb(adverbs: Sequence[str]) -> Template:
    def template(d: _Draw) -> tuple[str, str]:
        inner = d.clause()
        return f"{d.pick(adverbs)} {inner}", inner

    return template


def _reported(verbs: Sequence[str]) -> Template:
    def template(d: _Draw) -> tuple[str, str]:
        inner = d.clause()
        return f"{d.person()} {d.pick(verbs)} that {inner}", inner

    return template


_TEMPLATES: Mapping[tuple[str, str], Mapping[str, Template]] = {
    ("lexical_overlap", "entailment"): {
        "object_relative": _object_relative,
        "around_preposition": _around_preposition,
        "around_relative": _around_relative,
        "subject_conjunction": _subject_conjunction,
        "passive": _passive,
    },
    ("lexical_overlap", "non-entailment"): {
        "subject_object_swap": _swap,
        "preposition_misread": _preposition,
        "relative_misread": _relative,
        "passive_misread": _passive_misread,
        "conjunction_misread": _conjunction_misread,
    },
    ("subsequence", "entailment"): {
        "object_conjunction": _object_conjunction,
        "adjective": _adjective,
        "understood_object": _understood_object,
        "relative_on_object": _relative_on_object,
        "preposition_on_object": _preposition_on_object,
    },
    ("subsequence", "non-entailment"): {
        "noun_or_clause": _noun_or_clause,
        "preposition_on_subject": _preposition_on_subject,
        "relative_on_subject": _relative_on_subject,
        "participle": _participle,
        "while_without_comma": _while_without_comma,
    },
    ("constituent", "entailment"): {
        "under_because": _under(FACTIVE_CONNECTIVES),
        "after_because": _after(FACTIVE_CONNECTIVES),
        "conjunction": _joined("and"),
        "factive_adverb": _adverb(FACTIVE_ADVERBS),
        "factive_verb": _reported(FACTIVE_VERBS),
    },
    ("constituent", "non-entailment"): {
        "under_if": _under(OTHER_CONNECTIVES),
        "after_if": _after(OTHER_CONNECTIVES),
        "disjunction": _joined("or"),
        "non_factive_adverb": _adverb(OTHER_ADVERBS),
        "non_factive_verb": _reported(OTHER_VERBS),
    },
}

SUBCASES: tuple[Subcase, ...] = tuple(
    Subcase(name, heuristic, label, template)
    for (heuristic, label), templates in _TEMPLATES.items()
    for name, template in templates.items()
)
_FOLLOWS = tuple(case for case in SUBCASES if case.label == "entailment")
_MISLEADS = tuple(case for case in SUBCASES if case.label == "non-entailment")


# --- rows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    premise: str
    hypothesis: str
    label: str
    heuristic: str
    subcase: str


def _from_subcase(d: _Draw, case: Subcase) -> _Row:
    premise, hypothesis = case.template(d)
    return _Row(premise, hypothesis, case.label, case.heuristic, case.name)


def _beside(d: _Draw, *, misleading: bool) -> _Row:
    # A plain clause, then a premise of either kind; the hypothesis is about either part. The
    # words of misleading premises ("if", "or", "claimed") are met in training this way only, under
    # both labels alike, so that they say nothing about the label.
    clause = d.clause()
    case = d.pick(_MISLEADS if misleading else _FOLLOWS)
    second = _from_subcase(d, case)
    premise = f"{clause} , and {second.premise}"
    if d.chance(0.5):
        return _Row(premise, clause, "entailment", "constituent", "beside_clause")
    return _Row(premise, second.hypothesis, second.label, second.heuristic, case.name)


def _someone(hypothesis: str) -> str:
    words = hypothesis.split()
    return " ".join(["someone", *(words[2:] if words[0] == "the" else words[1:])])


def _plain(d: _Draw) -> _Row:
    # The premise of a row before the hypothesis is chosen or changed: same shares for both labels.
    if d.chance(0.6):
        return _from_subcase(d, d.pick(_FOLLOWS))
    return _beside(d, misleading=d.chance(0.5))


def _entailed(d: _Draw) -> _Row:
    row = _plain(d)
    if row.label != "entailment":
        # What follows from such a premise is the clause before it.
        clause = row.premise.split(" , and ")[0]
        row = _Row(row.premise, clause, "entailment", "constituent", "beside_clause")
    if d.chance(0.15):
        return _Row(row.premise, _someone(row.hypothesis), "entailment", "none", "existential")
    return row


def _other_word(d: _Draw, premise: str, hypothesis: str) -> str:
    # One content word exchanged for one that the premise does not contain (nor its plural).
    words = hypothesis.split()
    places = [i for i, word in enumerate(words) if word in _EXCHANGE]
    position = d.pick(places)
    present = {form for word in premise.split() for form in (word, word + "s", word.rstrip("s"))}
    options = [word for word in _EXCHANGE[words[position]] if word not in present]
    return " ".join([*words[:position], d.pick(options), *words[position + 1 :]])


def _never(hypothesis: str) -> str:
    words = hypothesis.split()
    position = next(i for i, word in enumerate(words) if word in _VERBS)
    return " ".join([*words[:position], "never", *words[position:]])


def _contradicted(d: _Draw) -> _Row:
    # Where the row was misleading, it is now wrong by its syntax and by a word: both strategies
    # explain the label.
    row = _plain(d)
    premise, hypothesis = row.premise, row.hypothesis
    if d.chance(0.15):
        hypothesis = _someone(hypothesis)
    how = d.pick(("other_word", "other_word", "negation", "unrelated"))
    if how == "other_word":
        hypothesis = _other_word(d, premise, hypothesis)
    elif how == "negation":
        hypothesis = _never(hypothesis)
    else:
        hypothesis = d.clause()
    return _Row(premise, hypothesis, "non-entailment", "none", how)


def _in_domain(d: _Draw, disambiguating: float) -> _Row:
    if d.chance(disambiguating):
        return _from_subcase(d, d.pick(_MISLEADS))
    return _entailed(d) if d.chance(0.5) else _contradicted(d)


# Ten buckets of the pair's hash: six for training, one and three for the other two splits.
_BUCKETS: Mapping[str, range] = {
    "train": range(0, 6),
    "validation": range(6, 7),
    "heuristics": range(7, 10),
}
_PATIENCE = 2000  # rejected draws in a row after which the grammar counts as exhausted


def _bucket(premise: str, hypothesis: str) -> int:
    digest = hashlib.sha256(f"{premise}\t{hypothesis}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10


def _check(split: str, rows: int, disambiguating: float) -> None:
    if split not in get_args(Split):
        raise ConfigError(
            f"split {split!r} of the grammar is unknown",
            remedy=f"choose one of {', '.join(get_args(Split))}",
        )
    if rows < 1:
        raise ConfigError(f"rows is {rows}", remedy="ask for at least one row")
    if not 0.0 <= disambiguating <= 1.0:
        raise ConfigError(
            f"disambiguating is {disambiguating}", remedy="give a share between 0 and 1"
        )
    if split == "heuristics" and disambiguating:
        raise ConfigError(
            "disambiguating does not apply to the split 'heuristics'",
            remedy="leave it out: half the rows of that split are misleading by construction",
        )


def generate(split: Split, rows: int, seed: int, disambiguating: float = 0.0) -> pd.DataFrame:
    """`rows` different pairs of a split, the same ones for the same arguments everywhere.

    Columns: id ("<split>-<row>"), premise, hypothesis, label (a name of `LABELS`), heuristic
    (one of `HEURISTICS`, or "none" where no shortcut applies), subcase. The split `heuristics`
    walks through the thirty sub-cases in turn, so that every prefix of it is balanced.
    Raises `ConfigError` for an impossible option or for more rows than the grammar has.
    """
    _check(split, rows, disambiguating)
    rng = random.Random(f"landform grammar {split} {seed}")
    seen: set[tuple[str, str]] = set()
    found: list[_Row] = []
    rejected = 0
    while len(found) < rows:
        draw = _Draw(rng)
        if split == "heuristics":
            row = _from_subcase(draw, SUBCASES[len(found) % len(SUBCASES)])
        else:
            row = _in_domain(draw, disambiguating)
        key = (row.premise, row.hypothesis)
        if key in seen or _bucket(*key) not in _BUCKETS[split]:
            rejected += 1
            if rejected > _PATIENCE:
                raise ConfigError(
                    f"the grammar has no {rows} different rows for the split {split!r}",
                    remedy=f"ask for fewer rows; {len(found)} were found",
                )
            continue
        rejected = 0
        seen.add(key)
        found.append(row)
    return pd.DataFrame(
        {
            "id": [f"{split}-{i}" for i in range(rows)],
            "premise": [row.premise for row in found],
            "hypothesis": [row.hypothesis for row in found],
            "label": [row.label for row in found],
            "heuristic": [row.heuristic for row in found],
            "subcase": [row.subcase for row in found],
        }
    )


@dataclass(frozen=True)
class Passage:
    """A piece of unlabelled text: one sentence, or two of which the second may follow."""

    first: str
    second: str | None
    follows: bool


def corpus(
    rows: int, seed: int, *, pairs: float = 0.75, follows: float = 0.5, changed: float = 0.3
) -> Iterator[Passage]:
    """`rows` passages for pre-training.

    A share `pairs` has two sentences. Of those, the second is in a share `follows` a consequence of
    the first, in a share `changed` such a consequence with one word exchanged, otherwise a
    sentence drawn on its own. No pair here shows a shortcut to be wrong.
    """
    rng = random.Random(f"landform grammar corpus {seed}")
    for _ in range(rows):
        draw = _Draw(rng)
        if not draw.chance(pairs):
            yield Passage(draw.pick(SUBCASES).template(draw)[0], None, False)
            continue
        row = _entailed(draw)
        kind = rng.random()
        if kind < follows:
            yield Passage(row.premise, row.hypothesis, True)
        elif kind < follows + changed:
            other = _other_word(draw, row.premise, row.hypothesis)
            yield Passage(row.premise, other, False)
        else:
            # A fresh draw: the two sentences may share words by accident.
            fresh = _Draw(rng)
            yield Passage(row.premise, fresh.pick(SUBCASES).template(fresh)[1], False)
