"""The vocabulary and the constructions of the HANS generator (`landform.tasks.hans`).

A template has a premise, which is drawn as a tree together with its named parts, and a hypothesis,
which is made of those parts: "b v a" is the clause in which part b does v to part a, "a p" the
clause of part a and the predicate p. The tags temp1 ... temp68 are those of the published data, in
which the eight that belong to no sub-case (temp34, 55 to 57, 64 to 67) do not occur either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from landform.tasks.grammar import Draw

__all__ = ["SUBCASES", "HansDraw", "Subcase", "Template", "Tree", "lemma"]

Tree = tuple[Any, ...]
"""A label and its children; the child of a part of speech is a word: ("NN", "nurse")."""

Parts = Mapping[str, Any]
Premise = Callable[["HansDraw"], tuple[Tree, Parts]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# --- vocabulary: sizes and kinds as published -------------------------------------------------

SINGULAR = _words(
    "nurse teacher farmer pilot baker soldier painter writer singer driver lawyer dancer hunter "
    "sailor barber guard"
)
PLURAL = tuple(noun + "s" for noun in SINGULAR)
NOUNS = (*SINGULAR, *PLURAL)
# None of them is symmetric and none implies another: "a V b" must neither give "b V a" nor "a W b".
PASSIVE = _words(
    "visited followed trusted warned praised invited questioned defended thanked surprised "
    "ignored blamed greeted copied"
)
TRANSITIVE = (*PASSIVE, "chose", "forgot")  # these two have another participle
INTRANSITIVE = _words("sang laughed smiled slept coughed waved cried worked")
VERBS = (*TRANSITIVE, *INTRANSITIVE)
PREPOSITIONS = (("near",), ("behind",), ("beside",), ("next", "to"), ("in", "front", "of"))
RELATIVES = ("who", "that")
# Take a noun phrase or a clause, and the clause does not imply the noun phrase.
NOUN_OR_CLAUSE = _words("suspected believed understood")
# Their participle looks like their past tense, which needs no object.
PARTICIPLES = _words("painted trained filmed attacked taught")
ROOMS = _words("studio school library office workshop")
# With or without an object; the last of them, alone, with a plural subject only.
OPTIONAL_OBJECT = _words("hunted obeyed attacked led resisted moved")
OPTIONAL_OBJECT_PLURAL = ("fought",)
PLACES = _words("village region country town valley forest garden museum desert island")
FOOD = _words("fruit soup bread cheese rice cake honey")
PRIZES = _words("race contest war prize game election battle award tournament")
TEXTS = _words("book column report poem letter novel story play speech")
UNDERSTOOD: Mapping[str, Sequence[str]] = {
    "obeyed": NOUNS,
    "entered": PLACES,
    "left": PLACES,
    "won": PRIZES,
    "wrote": TEXTS,
    "read": TEXTS,
    "ate": FOOD,
}
ADJECTIVES = _words("tall young quiet tired clever friendly rich nervous")
CONJUNCTIONS = _words("while after before when although because since")
FACTIVE_CONJUNCTIONS = _words("after because although though since while as")
CONDITIONS = _words("if unless")
FACTIVE_VERBS = _words("remembered learned knew discovered")
OTHER_VERBS = _words("guessed claimed believed said hoped suspected")
FACTIVE_ADVERBS = _words("clearly certainly obviously luckily sadly")
OTHER_ADVERBS = _words("perhaps maybe supposedly allegedly")

_LEMMAS = dict(zip(PLURAL, SINGULAR, strict=True))


def lemma(word: str) -> str:
    """The singular of the plural nouns, every other word itself."""
    return _LEMMAS.get(word, word)


# --- drawing phrases ------------------------------------------------------------------------------


class HansDraw(Draw):
    """Random phrases as trees; nouns and verbs are drawn independently of one another."""

    def template(self, case: Subcase) -> Template:
        """One of the sub-case's templates, by their shares."""
        ticket = self._rng.random() * sum(t.share for t in case.templates)
        for template in case.templates:
            ticket -= template.share
            if ticket < 0:
                return template
        return case.templates[-1]

    def noun(self, nouns: Sequence[str] = NOUNS) -> Tree:
        """A noun phrase with its article."""
        return _the(self.pick(nouns))

    def verb(self) -> str:
        """A transitive verb."""
        return self.pick(TRANSITIVE)

    def predicate(self) -> Tree:
        """A verb phrase; the verb is any of the 24, and the transitive ones get an object."""
        verb = self.pick(VERBS)
        return _verb_phrase(verb, None if verb in INTRANSITIVE else self.noun())

    def clause(self) -> tuple[Tree, Tree]:
        """Subject and predicate of a clause."""
        return self.noun(), self.predicate()

    def beside(self) -> Tree:
        """A prepositional phrase: "behind the nurse"."""
        words = self.pick(PREPOSITIONS)
        noun = self.noun()
        if words[0] == "next":
            return ("ADVP", ("JJ", "next"), ("PP", ("TO", "to"), noun))
        if words[0] == "in":
            inner = ("PP", ("IN", "of"), noun)
            return ("PP", ("IN", "in"), ("NP", ("NP", ("NN", "front")), inner))
        return ("PP", ("IN", words[0]), noun)

    def relative(self, subject: Tree | None, verb: str, obj: Tree | None) -> Tree:
        """A relative clause without the part that it relates to (None)."""
        word = self.pick(RELATIVES)
        mark = ("WHNP", ("WP" if word == "who" else "WDT", word))
        phrase = _verb_phrase(verb, obj)
        return ("SBAR", mark, ("S", phrase) if subject is None else ("S", subject, phrase))

    def any_relative(self) -> Tree:
        """A relative clause of any of the three kinds."""
        verb = self.pick(VERBS)
        if verb in INTRANSITIVE:
            return self.relative(None, verb, None)
        if self.chance(0.5):
            return self.relative(self.noun(), verb, None)
        return self.relative(None, verb, self.noun())


def _noun_tag(noun: str) -> str:
    return "NNS" if noun in _LEMMAS else "NN"


def _the(noun: str) -> Tree:
    return ("NP", ("DT", "the"), (_noun_tag(noun), noun))


def _verb_phrase(verb: str, obj: Tree | None = None) -> Tree:
    return ("VP", ("VBD", verb)) if obj is None else ("VP", ("VBD", verb), obj)


def _modified(noun: Tree, modifier: Tree) -> Tree:
    return ("NP", noun, modifier)


def _joined(first: Tree, second: Tree) -> Tree:
    return ("NP", first, ("CC", "and"), second)


def _sentence(*parts: Tree) -> Tree:
    return ("ROOT", ("S", *parts, (".", ".")))


def _noun_of(phrase: Tree) -> Tree:
    """The noun phrase at the end of "next to the nurse"."""
    return phrase if phrase[0] == "NP" and phrase[1] == ("DT", "the") else _noun_of(phrase[-1])


# --- templates ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """A premise, and the parts of it that make the hypothesis."""

    tag: str
    share: float
    premise: Premise
    hypothesis: str

    def pair(self, draw: HansDraw) -> tuple[Tree, Tree]:
        """A premise and its hypothesis as trees."""
        premise, parts = self.premise(draw)
        subject, verb, *rest = self.hypothesis.split()
        phrase = _verb_phrase(parts[verb], parts[rest[0]]) if rest else parts[verb]
        return premise, _sentence(parts[subject], phrase)


@dataclass(frozen=True)
class Subcase:
    """One construction: the shortcut that it fits, and whether that shortcut is right."""

    name: str
    heuristic: str
    label: str
    templates: tuple[Template, ...]


def _plain(d: HansDraw) -> tuple[Tree, Parts]:
    a, v, b = d.noun(), d.verb(), d.noun()
    return _sentence(a, _verb_phrase(v, b)), {"a": a, "v": v, "b": b}


def _preposition_on_subject(d: HansDraw) -> tuple[Tree, Parts]:
    a, where, v, c = d.noun(), d.beside(), d.verb(), d.noun()
    tree = _sentence(_modified(a, where), _verb_phrase(v, c))
    return tree, {"a": a, "b": _noun_of(where), "c": c, "v": v}


def _preposition_on_object(d: HansDraw) -> tuple[Tree, Parts]:
    a, v, b, where = d.noun(), d.verb(), d.noun(), d.beside()
    tree = _sentence(a, _verb_phrase(v, _modified(b, where)))
    return tree, {"a": a, "b": b, "c": _noun_of(where), "v": v}


def _object_relative_on_subject(d: HansDraw) -> tuple[Tree, Parts]:
    # the a who the b w v the c
    a, b, w, v, c = d.noun(), d.noun(), d.verb(), d.verb(), d.noun()
    tree = _sentence(_modified(a, d.relative(b, w, None)), _verb_phrase(v, c))
    return tree, {"a": a, "b": b, "c": c, "v": v, "w": w}


def _subject_relative_on_subject(d: HansDraw) -> tuple[Tree, Parts]:
    # the a who w the b v the c
    a, w, b, v, c = d.noun(), d.verb(), d.noun(), d.verb(), d.noun()
    tree = _sentence(_modified(a, d.relative(None, w, b)), _verb_phrase(v, c))
    return tree, {"a": a, "b": b, "c": c, "v": v, "w": w}


def _subject_relative_on_object(d: HansDraw) -> tuple[Tree, Parts]:
    # the a v the b who w the c
    a, v, b, w, c = d.noun(), d.verb(), d.noun(), d.verb(), d.noun()
    tree = _sentence(a, _verb_phrase(v, _modified(b, d.relative(None, w, c))))
    return tree, {"a": a, "b": b, "c": c, "v": v, "w": w}


def _object_relative_on_object(d: HansDraw) -> tuple[Tree, Parts]:
    # the a v the b who the c w
    a, v, b, c, w = d.noun(), d.verb(), d.noun(), d.noun(), d.verb()
    tree = _sentence(a, _verb_phrase(v, _modified(b, d.relative(c, w, None))))
    return tree, {"a": a, "b": b, "c": c, "v": v, "w": w}


def _passive(was: str, nouns: Sequence[str]) -> Premise:
    def premise(d: HansDraw) -> tuple[Tree, Parts]:
        a, v, b = d.noun(nouns), d.pick(PASSIVE), d.noun()
        by = ("VP", ("VBN", v), ("PP", ("IN", "by"), b))
        return _sentence(a, ("VP", ("VBD", was), by)), {"a": a, "v": v, "b": b}

    return premise


def _subjects(d: HansDraw) -> tuple[Tree, Parts]:
    a, b, v, c = d.noun(), d.noun(), d.verb(), d.noun()
    tree = _sentence(_joined(a, b), _verb_phrase(v, c))
    return tree, {"a": a, "b": b, "c": c, "v": v}


def _objects(d: HansDraw) -> tuple[Tree, Parts]:
    a, v, b, c = d.noun(), d.verb(), d.noun(), d.noun()
    tree = _sentence(a, _verb_phrase(v, _joined(b, c)))
    return tree, {"a": a, "b": b, "c": c, "v": v}


def _any_relative_on_subject(d: HansDraw) -> tuple[Tree, Parts]:
    a, clause, v, b = d.noun(), d.any_relative(), d.verb(), d.noun()
    tree = _sentence(_modified(a, clause), _verb_phrase(v, b))
    return tree, {"a": a, "v": v, "b": b}


def _any_relative_on_object(d: HansDraw) -> tuple[Tree, Parts]:
    a, v, b, clause = d.noun(), d.verb(), d.noun(), d.any_relative()
    return _sentence(a, _verb_phrase(v, _modified(b, clause))), {"a": a, "v": v, "b": b}


def _noun_or_clause(d: HansDraw) -> tuple[Tree, Parts]:
    a, v = d.noun(), d.pick(NOUN_OR_CLAUSE)
    b, p = d.clause()
    tree = _sentence(a, ("VP", ("VBD", v), ("SBAR", ("S", b, p))))
    return tree, {"a": a, "v": v, "b": b}


def _preposition_before_predicate(d: HansDraw) -> tuple[Tree, Parts]:
    a, where, p = d.noun(), d.beside(), d.predicate()
    return _sentence(_modified(a, where), p), {"b": _noun_of(where), "p": p}


def _relative_before_predicate(d: HansDraw) -> tuple[Tree, Parts]:
    a, v, b, p = d.noun(), d.verb(), d.noun(), d.predicate()
    return _sentence(_modified(a, d.relative(None, v, b)), p), {"b": b, "p": p}


def _in_room(d: HansDraw, verb: str) -> tuple[Tree, Tree]:
    """A participle at a place, and the same words as a predicate."""
    place = ("PP", ("IN", "in"), _the(d.pick(ROOMS)))
    return ("VP", ("VBN", verb), place), ("VP", ("VBD", verb), place)


def _participle_on_subject(d: HansDraw) -> tuple[Tree, Parts]:
    a, (reduced, misread), p = d.noun(), _in_room(d, d.pick(PARTICIPLES)), d.predicate()
    return _sentence(_modified(a, reduced), p), {"a": a, "p": misread}


def _participle_on_object(d: HansDraw) -> tuple[Tree, Parts]:
    a, v, b = d.noun(), d.verb(), d.noun()
    reduced, misread = _in_room(d, d.pick(PARTICIPLES))
    return _sentence(a, _verb_phrase(v, _modified(b, reduced))), {"b": b, "p": misread}


def _without_comma(verbs: Sequence[str], nouns: Sequence[str]) -> Premise:
    def premise(d: HansDraw) -> tuple[Tree, Parts]:
        word, a, v = d.pick(CONJUNCTIONS), d.noun(nouns), d.pick(verbs)
        b, p = d.clause()
        first = ("SBAR", ("IN", word), ("S", a, _verb_phrase(v)))
        return _sentence(first, b, p), {"a": a, "v": v, "b": b}

    return premise


def _subjects_of_predicate(d: HansDraw) -> tuple[Tree, Parts]:
    a, b, p = d.noun(), d.noun(), d.predicate()
    return _sentence(_joined(a, b), p), {"b": b, "p": p}


def _adjective(d: HansDraw) -> tuple[Tree, Parts]:
    adjective, noun, p = d.pick(ADJECTIVES), ("NNS", d.pick(PLURAL)), d.predicate()
    return _sentence(("NP", ("JJ", adjective), noun), p), {"a": ("NP", noun), "p": p}


def _understood_object(d: HansDraw) -> tuple[Tree, Parts]:
    a, v = d.noun(), d.pick(tuple(UNDERSTOOD))
    obj = d.noun(UNDERSTOOD[v])
    return _sentence(a, _verb_phrase(v, obj)), {"a": a, "p": _verb_phrase(v)}


def _word(tag: str, words: Sequence[str]) -> Callable[[HansDraw], tuple[Tree, ...]]:
    return lambda d: ((tag, d.pick(words)),)


def _fixed(*trees: Tree) -> Callable[[HansDraw], tuple[Tree, ...]]:
    return lambda d: trees


_IN_CASE = _fixed(("PP", ("IN", "in"), ("NP", ("NN", "case"))))
_WHETHER = _fixed(("IN", "whether"), ("CC", "or"), ("RB", "not"))


def _two_clauses(opening: Callable[[HansDraw], tuple[Tree, ...]]) -> Premise:
    # if the a p , the b q
    def premise(d: HansDraw) -> tuple[Tree, Parts]:
        words = opening(d)
        a, p = d.clause()
        b, q = d.clause()
        tree = _sentence(("SBAR", *words, ("S", a, p)), (",", ","), ("S", b, q))
        return tree, {"a": a, "p": p, "b": b, "q": q}

    return premise


def _coordinated(word: str) -> Premise:
    def premise(d: HansDraw) -> tuple[Tree, Parts]:
        a, p = d.clause()
        b, q = d.clause()
        tree = _sentence(("S", a, p), (",", ","), ("CC", word), ("S", b, q))
        return tree, {"a": a, "p": p, "b": b, "q": q}

    return premise


def _reported(verbs: Sequence[str]) -> Premise:
    def premise(d: HansDraw) -> tuple[Tree, Parts]:
        a, v = d.noun(), d.pick(verbs)
        b, q = d.clause()
        tree = _sentence(a, ("VP", ("VBD", v), ("SBAR", ("IN", "that"), ("S", b, q))))
        return tree, {"b": b, "q": q}

    return premise


def _opened(opening: Callable[[HansDraw], tuple[Tree, ...]]) -> Premise:
    def premise(d: HansDraw) -> tuple[Tree, Parts]:
        words = opening(d)
        a, p = d.clause()
        return _sentence(*words, ("S", a, p)), {"a": a, "p": p}

    return premise


def _adverb(words: Sequence[str]) -> Callable[[HansDraw], tuple[Tree, ...]]:
    return lambda d: (("ADVP", ("RB", d.pick(words))),)


def _phrase(preposition: str, *noun: Tree) -> Callable[[HansDraw], tuple[Tree, ...]]:
    return _fixed(("PP", ("IN", preposition), ("NP", *noun)))


def _numbered(first: int, *made: tuple[Premise, str]) -> tuple[Template, ...]:
    """Templates of equal shares with consecutive tags."""
    return tuple(
        Template(f"temp{first + i}", 1 / len(made), premise, hypothesis)
        for i, (premise, hypothesis) in enumerate(made)
    )


def _shares(*made: tuple[int, float, Premise, str]) -> tuple[Template, ...]:
    return tuple(
        Template(f"temp{tag}", share, premise, hypothesis)
        for tag, share, premise, hypothesis in made
    )


# A predicate is transitive for 16 of 24 verbs, so the construction that needs a transitive verb
# gets 16 shares and the one that takes any verb 24.
_ANY, _WITH_OBJECT = 24 / 40, 16 / 40

_TABLE: Mapping[tuple[str, str], Mapping[str, tuple[Template, ...]]] = {
    ("lexical_overlap", "non-entailment"): {
        "ln_subject/object_swap": _numbered(1, (_plain, "b v a")),
        "ln_preposition": _numbered(
            2,
            *((_preposition_on_subject, said) for said in ("b v a", "c v a", "c v b")),
            *((_preposition_on_object, said) for said in ("b v a", "b v c", "c v a")),
        ),
        "ln_relative_clause": _numbered(
            8,
            *((_object_relative_on_subject, said) for said in ("b v a", "c v a", "c v b")),
            *((_subject_relative_on_subject, said) for said in ("b v a", "c v a", "c v b")),
            *((_subject_relative_on_object, said) for said in ("b v a", "b v c", "c v a")),
            *((_object_relative_on_object, said) for said in ("b v a", "b v c", "c v a")),
        ),
        "ln_passive": _numbered(
            20, (_passive("was", SINGULAR), "a v b"), (_passive("were", PLURAL), "a v b")
        ),
        "ln_conjunction": _numbered(
            22, (_subjects, "a v b"), (_subjects, "b v a"), (_objects, "b v c"), (_objects, "c v b")
        ),
    },
    ("lexical_overlap", "entailment"): {
        "le_relative_clause": _numbered(
            26,
            (_object_relative_on_subject, "b w a"),
            (_subject_relative_on_subject, "a w b"),
            (_subject_relative_on_object, "b w c"),
            (_object_relative_on_object, "c w b"),
        ),
        "le_around_prepositional_phrase": _numbered(30, (_preposition_on_subject, "a v c")),
        "le_around_relative_clause": _numbered(31, (_any_relative_on_subject, "a v b")),
        "le_conjunction": _numbered(32, (_subjects, "a v c"), (_objects, "a v c")),
        "le_passive": _numbered(
            35, (_passive("was", SINGULAR), "b v a"), (_passive("were", PLURAL), "b v a")
        ),
    },
    ("subsequence", "non-entailment"): {
        "sn_NP/S": _numbered(37, (_noun_or_clause, "a v b")),
        "sn_PP_on_subject": _numbered(38, (_preposition_before_predicate, "b p")),
        "sn_relative_clause_on_subject": _numbered(39, (_relative_before_predicate, "b p")),
        "sn_past_participle": _shares(
            (40, _ANY, _participle_on_subject, "a p"),
            (41, _WITH_OBJECT, _participle_on_object, "b p"),
        ),
        "sn_NP/Z": _shares(
            (42, 6 / 7, _without_comma(OPTIONAL_OBJECT, NOUNS), "a v b"),
            (43, 1 / 7, _without_comma(OPTIONAL_OBJECT_PLURAL, PLURAL), "a v b"),
        ),
    },
    ("subsequence", "entailment"): {
        "se_conjunction": _shares(
            (44, _ANY, _subjects_of_predicate, "b p"), (45, _WITH_OBJECT, _objects, "a v b")
        ),
        "se_adjective": _numbered(46, (_adjective, "a p")),
        "se_understood_object": _numbered(47, (_understood_object, "a p")),
        "se_relative_clause_on_obj": _numbered(48, (_any_relative_on_object, "a v b")),
        "se_PP_on_obj": _numbered(49, (_preposition_on_object, "a v b")),
    },
    ("constituent", "non-entailment"): {
        "cn_embedded_under_if": _shares(
            (50, 0.5, _two_clauses(_word("IN", CONDITIONS)), "a p"),
            (50, 0.25, _two_clauses(_WHETHER), "a p"),
            (50, 0.25, _two_clauses(_IN_CASE), "a p"),
        ),
        "cn_after_if_clause": _numbered(51, (_two_clauses(_word("IN", CONDITIONS)), "b q")),
        "cn_embedded_under_verb": _numbered(52, (_reported(OTHER_VERBS), "b q")),
        "cn_disjunction": _numbered(53, (_coordinated("or"), "a p"), (_coordinated("or"), "b q")),
        "cn_adverb": _numbered(58, (_opened(_adverb(OTHER_ADVERBS)), "a p")),
    },
    ("constituent", "entailment"): {
        "ce_embedded_under_since": _numbered(
            59, (_two_clauses(_word("IN", FACTIVE_CONJUNCTIONS)), "a p")
        ),
        "ce_after_since_clause": _shares(
            (60, 7 / 9, _two_clauses(_word("IN", FACTIVE_CONJUNCTIONS)), "b q"),
            (60, 1 / 9, _two_clauses(_IN_CASE), "b q"),
            (60, 1 / 9, _two_clauses(_WHETHER), "b q"),
        ),
        "ce_embedded_under_verb": _numbered(61, (_reported(FACTIVE_VERBS), "b q")),
        "ce_conjunction": _numbered(62, (_coordinated("and"), "a p"), (_coordinated("and"), "b q")),
        "ce_adverb": _shares(
            (68, 5 / 7, _opened(_adverb(FACTIVE_ADVERBS)), "a p"),
            (68, 1 / 7, _opened(_phrase("without", ("DT", "a"), ("NN", "doubt"))), "a p"),
            (68, 1 / 7, _opened(_phrase("of", ("NN", "course"))), "a p"),
        ),
    },
}

SUBCASES: tuple[Subcase, ...] = tuple(
    Subcase(name, heuristic, label, templates)
    for (heuristic, label), cases in _TABLE.items()
    for name, templates in cases.items()
)
"""The thirty sub-cases, in the order of the published files."""
