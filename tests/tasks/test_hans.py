"""The HANS generator: counts, labels, the three shortcuts, rejection rules, determinism."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError, StoreError
from landform.tasks.grammar import generate
from landform.tasks.hans import COLUMNS, FILES, SMALLEST, generate_hans, leaves, repeats, write_hans
from landform.tasks.hans_templates import (
    INTRANSITIVE,
    NOUNS,
    PLURAL,
    PREPOSITIONS,
    SINGULAR,
    SUBCASES,
    TRANSITIVE,
    UNDERSTOOD,
    lemma,
)

PINNED = "75121e2b723955b8"
EMBEDDED = "6606bc450ad30d94"
REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "hans"


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return generate_hans(200, seed=1)


# --- the trees, read back from the file's own text ----------------------------------------------


def tree_of(text: str) -> Any:
    """Nested lists from brackets; words and labels are strings."""
    tokens = iter(re.findall(r"[()]|[^\s()]+", text))

    def read() -> Any:
        parts: list[Any] = []
        for token in tokens:
            if token == "(":
                parts.append(read())
            elif token == ")":
                return parts
            else:
                parts.append(token)
        return parts[0]

    return read()


def words_of(tree: Any, labelled: bool) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    children = tree[1:] if labelled else tree
    return [word for child in children for word in words_of(child, labelled)]


def clauses(tree: Any) -> list[list[str]]:
    """The words under every S of a labelled tree."""
    if isinstance(tree, str):
        return []
    here = [words_of(tree, True)] if tree[0] == "s" else []
    return [*here, *itertools.chain.from_iterable(map(clauses, tree[1:]))]


def plain(text: str) -> list[str]:
    """Words in lower case, without the period at the end."""
    return text.lower().split()[:-1]


# --- what was asked for ---------------------------------------------------------------------------


def test_thirty_subcases_of_the_published_names() -> None:
    assert len(SUBCASES) == 30
    for heuristic, label in itertools.product(
        ("lexical_overlap", "subsequence", "constituent"), ("entailment", "non-entailment")
    ):
        assert sum((c.heuristic, c.label) == (heuristic, label) for c in SUBCASES) == 5
    tags = [int(t.tag.removeprefix("temp")) for case in SUBCASES for t in case.templates]
    assert tags == sorted(tags) or set(tags) == set(range(1, 69)) - {34, 55, 56, 57, 64, 65, 66, 67}
    assert len(set(tags)) == 60
    for case in SUBCASES:
        assert sum(t.share for t in case.templates) == pytest.approx(1)
    csv = REFERENCE / "berts_of_a_feather_accuracies_by_run.csv"
    if not csv.exists():
        pytest.skip("the published table of accuracies is not on this machine")
    published = pd.read_csv(csv, encoding="utf-8-sig").columns[9:]
    assert list(published) == [case.name for case in SUBCASES]


def test_vocabulary_of_the_published_sizes() -> None:
    assert (len(SINGULAR), len(PLURAL), len(TRANSITIVE), len(INTRANSITIVE)) == (16, 16, 16, 8)
    assert len(PREPOSITIONS) == 5 and len(set(NOUNS)) == 32


def test_counts_columns_and_ids(data: pd.DataFrame) -> None:
    assert tuple(data.columns) == COLUMNS
    assert data.groupby("subcase").size().tolist() == [200] * 30
    assert list(data.pairID) == [f"ex{i}" for i in range(6000)]
    assert data.groupby(["heuristic", "gold_label"]).size().tolist() == [1000] * 6
    assert not data.duplicated(["sentence1", "sentence2"]).any()
    assert list(dict.fromkeys(data.subcase)) == [case.name for case in SUBCASES]


def test_the_whole_set() -> None:
    made = generate_hans()
    assert made.groupby("subcase").size().tolist() == [1000] * 30
    assert not made.duplicated(["sentence1", "sentence2"]).any()
    assert made.template.nunique() == 60
    # Shares of the templates, with the tolerance of a thousand draws.
    for case in SUBCASES:
        drawn = made[made.subcase == case.name].template.value_counts(normalize=True)
        for tag, group in itertools.groupby(case.templates, lambda t: t.tag):
            assert drawn[tag] == pytest.approx(sum(t.share for t in group), abs=0.06), tag


def test_lexical_overlap(data: pd.DataFrame) -> None:
    for row in data.itertuples():  # subsequences and constituents overlap as well
        assert set(plain(row.sentence2)) <= set(plain(row.sentence1)), row


def test_subsequence(data: pd.DataFrame) -> None:
    for row in data[data.heuristic != "lexical_overlap"].itertuples():
        premise, hypothesis = plain(row.sentence1), plain(row.sentence2)
        n = len(hypothesis)
        starts = range(len(premise) - n + 1)
        assert any(premise[i : i + n] == hypothesis for i in starts), row


def test_constituent(data: pd.DataFrame) -> None:
    for row in data.itertuples():
        found = plain(row.sentence2) in clauses(tree_of(row.sentence1_parse.lower()))
        if row.heuristic == "constituent":
            assert found, row
        if row.subcase in ("sn_NP/S", "sn_PP_on_subject", "sn_past_participle", "sn_NP/Z"):
            assert not found, row  # what makes them subsequences only


def test_parses_spell_the_sentences(data: pd.DataFrame) -> None:
    for row in data.itertuples():
        for sentence, binary, labelled in (
            (row.sentence1, row.sentence1_binary_parse, row.sentence1_parse),
            (row.sentence2, row.sentence2_binary_parse, row.sentence2_parse),
        ):
            assert words_of(tree_of(labelled), True) == sentence.split()
            assert words_of(tree_of(binary), False) == sentence.split()
            assert binary.count("(") == binary.count(")") == len(sentence.split()) - 1


def test_a_tree_by_hand() -> None:
    from landform.tasks.hans import binary_parse, parse

    noun = ("NP", ("DT", "the"), ("NN", "nurse"))
    first = ("SBAR", ("IN", "if"), ("S", noun, ("VP", ("VBD", "sang"))))
    tree = ("ROOT", ("S", first, (",", ","), ("S", noun, ("VP", ("VBD", "left"))), (".", ".")))
    assert parse(tree) == (
        "(ROOT (S (SBAR (IN If) (S (NP (DT the) (NN nurse)) (VP (VBD sang)))) (, ,) "
        "(S (NP (DT the) (NN nurse)) (VP (VBD left))) (. .)))"
    )
    assert binary_parse(tree) == (
        "( ( If ( ( the nurse ) sang ) ) ( , ( ( ( the nurse ) left ) . ) ) )"
    )
    assert repeats(list(leaves(tree))) and not repeats(["the", "nurse", "saw", "the", "pilot"])


def test_no_premise_repeats_a_lemma(data: pd.DataFrame) -> None:
    for sentence in data.sentence1:
        lemmas = [lemma(word) for word in sentence.lower().split() if word != "the"]
        assert len(set(lemmas)) == len(lemmas), sentence


# --- labels, derived from the sentences alone --------------------------------------------------


def facts(premise: str) -> set[tuple[str, str, str]]:
    """Who did what to whom, for premises without subordinate clauses: an independent reading."""
    near = "near|behind|beside|next to|in front of"
    text = premise.lower().removesuffix(" .")
    text = re.sub(rf" (?:{near}) the \w+", "", text)
    passive = re.fullmatch(r"the (\w+) (?:was|were) (\w+) by the (\w+)", text)
    if passive:
        return {(passive[3], passive[2], passive[1])}
    found = re.fullmatch(r"the (\w+)(?: and the (\w+))? (\w+) the (\w+)(?: and the (\w+))?", text)
    assert found, premise
    subjects = [noun for noun in (found[1], found[2]) if noun]
    objects = [noun for noun in (found[4], found[5]) if noun]
    return {(s, found[3], o) for s in subjects for o in objects}


SIMPLE = (
    "ln_subject/object_swap", "ln_preposition", "ln_passive", "ln_conjunction",
    "le_around_prepositional_phrase", "le_conjunction", "le_passive", "se_PP_on_obj",
)  # fmt: skip


def test_labels_of_simple_clauses_follow_from_the_premise(data: pd.DataFrame) -> None:
    for row in data[data.subcase.isin(SIMPLE)].itertuples():
        (claim,) = facts(row.sentence2)
        assert (claim in facts(row.sentence1)) == (row.gold_label == "entailment"), row


def relative_facts(premise: str) -> set[tuple[str, str, str]]:
    """The same for one relative clause, on the subject or on the object."""
    text = premise.lower().removesuffix(" .")
    for pattern, who in (
        (r"the (\w+) (?:who|that) the (\w+) (\w+) (\w+) the (\w+)", ((2, 3, 1), (1, 4, 5))),
        (r"the (\w+) (?:who|that) (\w+) the (\w+) (\w+) the (\w+)", ((1, 2, 3), (1, 4, 5))),
        (r"the (\w+) (\w+) the (\w+) (?:who|that) the (\w+) (\w+)", ((1, 2, 3), (4, 5, 3))),
        (r"the (\w+) (\w+) the (\w+) (?:who|that) (\w+) the (\w+)", ((1, 2, 3), (3, 4, 5))),
    ):
        found = re.fullmatch(pattern, text)
        if found:
            return {(found[a], found[v], found[b]) for a, v, b in who}
    raise AssertionError(premise)


def test_labels_of_relative_clauses_follow_from_the_premise(data: pd.DataFrame) -> None:
    for row in data[data.subcase.isin(("ln_relative_clause", "le_relative_clause"))].itertuples():
        (claim,) = facts(row.sentence2)
        known = relative_facts(row.sentence1)
        assert (claim in known) == (row.gold_label == "entailment"), row


VERIDICAL = re.compile(
    r"^(after|because|although|though|since|while|as|clearly|certainly|obviously|luckily|sadly|"
    r"without a doubt|of course) |, and | (remembered|learned|knew|discovered) that ",
    re.I,
)


def test_labels_of_clauses_follow_from_the_word_that_governs_them(data: pd.DataFrame) -> None:
    for row in data[data.heuristic == "constituent"].itertuples():
        open_clause = re.match(r"(whether or not|in case) ", row.sentence1, re.I)
        outer = not row.sentence1.lower().startswith(
            f"{open_clause[1].lower() if open_clause else '-'} {' '.join(plain(row.sentence2))}"
        )
        follows = bool(VERIDICAL.search(row.sentence1)) or bool(open_clause and outer)
        assert follows == (row.gold_label == "entailment"), row


# --- seeds, splits, files ------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_a_seed_gives_the_same_rows_and_fewer_are_the_first(seed: int, rows: int) -> None:
    short, long = generate_hans(rows, seed), generate_hans(rows + 1, seed)
    pd.testing.assert_frame_equal(short, generate_hans(rows, seed))
    kept = long[long.groupby("subcase").cumcount() < rows].reset_index(drop=True)
    pd.testing.assert_frame_equal(short.drop(columns="pairID"), kept.drop(columns="pairID"))


def test_rows_stay_what_they_are() -> None:
    # Published numbers may rest on these rows: they change with a new version of the data only.
    text = generate_hans(20, seed=0).to_csv(index=False)
    assert hashlib.sha256(text.encode()).hexdigest().startswith(PINNED), "the generator has changed"


def test_the_embedded_study_keeps_its_rows() -> None:
    # The generator shares its dice with the grammar of the embedded study.
    text = generate("heuristics", 90, seed=0).to_csv(index=False)
    assert hashlib.sha256(text.encode()).hexdigest().startswith(EMBEDDED)


def test_the_smallest_subcase_has_as_many_pairs_as_is_said() -> None:
    pairs = sum(
        len(objects) * len(NOUNS) if objects is not NOUNS else len(NOUNS) * (len(NOUNS) - 2)
        for objects in UNDERSTOOD.values()
    )
    assert pairs == SMALLEST


def test_train_and_validation_share_no_pair(data: pd.DataFrame) -> None:
    train = generate_hans(200, seed=1, split="train")
    assert len(train) == 6000 and not train.equals(data)
    keys = ["sentence1", "sentence2"]
    assert train.merge(data, on=keys).empty
    assert train.groupby("subcase").size().tolist() == [200] * 30


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rows_per_subcase": 0}, "rows_per_subcase is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "test"}, "split 'test' of HANS"),
        ({"rows_per_subcase": 2689}, "se_understood_object, has 2688 different pairs"),
        ({"rows_per_subcase": 1345, "split": "train"}, "ask for at most 1344"),
    ],
)
def test_impossible_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        generate_hans(**options)


def test_files_are_read_by_the_task(tmp_path: Path) -> None:
    (one,) = write_hans(tmp_path / "hans.tsv", 3)
    both = write_hans(tmp_path / "HANS", 3)
    assert [path.name for path in both] == list(FILES.values())
    task = lf.load_task("hans", data_dir=tmp_path / "HANS")
    alone = lf.load_task("hans", files={"validation": one})
    found = task.examples("validation")
    assert found.fingerprint == alone.examples("dev").fingerprint
    made = generate_hans(3)
    assert found.texts == tuple(zip(made.sentence1, made.sentence2, strict=True))
    assert found.columns["template"].tolist() == made.template.tolist()
    assert set(found.ids).isdisjoint({""}) and len(task.examples("train")) == 90
    own = lf.load_task(one, text=("sentence1", "sentence2"), label="gold_label", id="pairID")
    assert own.label_names == ("entailment", "non-entailment") and len(own.examples("dev")) == 90


def test_nothing_half_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_hans(tmp_path / "HANS", 1400)  # twice as many pairs are not there
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        write_hans(tmp_path / "file" / "hans.tsv", 1)
