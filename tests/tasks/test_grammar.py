"""The grammar: determinism, disjoint splits, the promises about shortcuts and labels."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pandas as pd
import pytest

from landform.errors import ConfigError
from landform.tasks import grammar
from landform.tasks.grammar import HEURISTICS, SUBCASES, corpus, generate, vocabulary

COLUMNS = ["id", "premise", "hypothesis", "label", "heuristic", "subcase"]


def overlap(row: pd.Series) -> bool:
    return set(row.hypothesis.split()) <= set(row.premise.split())


def subsequence(row: pd.Series) -> bool:
    premise, hypothesis = row.premise.split(), row.hypothesis.split()
    n = len(hypothesis)
    return any(premise[i : i + n] == hypothesis for i in range(len(premise) - n + 1))


def keys(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame.premise, frame.hypothesis, strict=True))


@pytest.fixture(scope="module")
def train() -> pd.DataFrame:
    return generate("train", 3000, seed=0)


@pytest.fixture(scope="module")
def heuristics() -> pd.DataFrame:
    return generate("heuristics", 3000, seed=0)


def test_same_seed_same_rows_other_seed_other_rows() -> None:
    first = generate("train", 200, seed=3, disambiguating=0.1)
    pd.testing.assert_frame_equal(first, generate("train", 200, seed=3, disambiguating=0.1))
    assert keys(first) != keys(generate("train", 200, seed=4, disambiguating=0.1))


def test_a_longer_split_starts_with_the_shorter_one() -> None:
    short, long = generate("heuristics", 60, seed=1), generate("heuristics", 90, seed=1)
    pd.testing.assert_frame_equal(short, long.iloc[:60])


def test_rows_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = (
        "import hashlib; from landform.tasks.grammar import generate;"
        "t = generate('train', 50, seed=7).to_csv(index=False);"
        "print(hashlib.sha256(t.encode()).hexdigest())"
    )
    expected = hashlib.sha256(generate("train", 50, seed=7).to_csv(index=False).encode())
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected.hexdigest()


def test_columns_and_values(train: pd.DataFrame, heuristics: pd.DataFrame) -> None:
    for frame in (train, heuristics):
        assert list(frame.columns) == COLUMNS
        assert frame.id.is_unique
        assert set(frame.label) == {"entailment", "non-entailment"}
    assert set(heuristics.heuristic) == set(HEURISTICS)
    assert set(train.heuristic) == {*HEURISTICS, "none"}


def test_no_duplicates_and_disjoint_splits(train: pd.DataFrame, heuristics: pd.DataFrame) -> None:
    validation = generate("validation", 1000, seed=99, disambiguating=0.2)
    assert len(keys(train)) == len(train)
    assert len(keys(heuristics)) == len(heuristics)
    assert not keys(train) & keys(validation)
    # Rows that tell the strategies apart come from the templates of the other split.
    told = generate("train", 3000, seed=5, disambiguating=1.0)
    assert not keys(told) & keys(heuristics)
    assert not keys(validation) & keys(heuristics)


def test_heuristics_are_balanced_and_apply(heuristics: pd.DataFrame) -> None:
    counts = heuristics.groupby(["heuristic", "label"]).size()
    assert set(counts) == {500}
    assert set(heuristics.groupby("subcase").size()) == {100}
    assert heuristics.apply(overlap, axis=1).all()
    contiguous = heuristics[heuristics.heuristic != "lexical_overlap"]
    assert contiguous.apply(subsequence, axis=1).all()


def test_training_data_leave_the_strategy_open(train: pd.DataFrame) -> None:
    follows = train[train.label == "entailment"]
    other = train[train.label != "entailment"]
    assert not other.apply(overlap, axis=1).any()
    assert follows[follows.heuristic != "none"].apply(overlap, axis=1).all()
    assert abs(len(follows) / len(train) - 0.5) < 0.05


def test_words_of_misleading_premises_give_nothing_away() -> None:
    frame = generate("train", 12000, seed=1)
    words = frame.premise.str.split().apply(set)
    follows = frame.label == "entailment"
    groups = (
        grammar.OTHER_CONNECTIVES,
        grammar.OTHER_VERBS,
        grammar.OTHER_ADVERBS,
        grammar.NOUN_OR_CLAUSE,
        ("or",),
        ("while",),
    )
    for group in groups:
        has = words.apply(lambda present, group=group: bool(present & set(group)))
        assert has.sum() > 60
        assert 0.3 < follows[has].mean() < 0.7, group


def test_the_form_of_a_premise_gives_nothing_away() -> None:
    """Misleading constructions stand alone in no training premise, so none is a sign by itself."""
    frame = generate("train", 8000, seed=1)
    for group in (grammar.OTHER_CONNECTIVES, grammar.OTHER_ADVERBS, ("while",)):
        starts = frame.premise.str.split().str[0].isin(group)
        assert not starts.any()
    beside = frame.premise.str.contains(" , and ")
    assert abs((frame.label[beside] == "entailment").mean() - 0.5) < 0.04


def test_disambiguating_is_the_share_of_misleading_rows() -> None:
    frame = generate("train", 4000, seed=0, disambiguating=0.05)
    misleading = {case.name for case in SUBCASES if case.label == "non-entailment"}
    rows = frame[frame.subcase.isin(misleading)]
    assert abs(len(rows) / len(frame) - 0.05) < 0.012
    assert set(rows.subcase) == misleading
    assert set(rows.label) == {"non-entailment"}
    assert rows.apply(overlap, axis=1).all()


def test_labels_of_known_sentences() -> None:
    """A reading of the rows by their words alone, independent of the templates."""
    frame = generate("heuristics", 3000, seed=2)
    for row in frame[frame.subcase == "subject_object_swap"].itertuples():
        _, a, verb, _, b, *_ = row.premise.split()
        assert row.hypothesis == f"the {b} {verb} the {a}"
        assert row.label == "non-entailment"
    for row in frame[frame.subcase.isin(["passive", "passive_misread"])].itertuples():
        _, a, be, verb, by, _, b, *_ = row.premise.split()
        assert by == "by"
        assert be == ("were" if a.endswith("s") else "was")
        active = f"the {b} {verb} the {a}"
        assert (row.hypothesis == active) == (row.label == "entailment")
    for row in frame[frame.subcase.isin(["under_because", "under_if"])].itertuples():
        first = row.premise.split()[0]
        assert (first in ("because", "although", "since")) == (row.label == "entailment")


def test_no_person_twice_in_a_premise(heuristics: pd.DataFrame) -> None:
    people = set(grammar.PEOPLE)
    for premise in heuristics.premise:
        lemmas = [w if w in people else w[:-1] for w in premise.split()]
        found = [lemma for lemma in lemmas if lemma in people]
        assert len(found) == len(set(found))


def test_thirty_subcases_with_unique_names() -> None:
    assert len({case.name for case in SUBCASES}) == 30
    for heuristic in HEURISTICS:
        for label in grammar.LABELS:
            cell = [c for c in SUBCASES if (c.heuristic, c.label) == (heuristic, label)]
            assert len(cell) == 5


def test_vocabulary_covers_everything(train: pd.DataFrame, heuristics: pd.DataFrame) -> None:
    known = set(vocabulary())
    for frame in (train, heuristics):
        for column in ("premise", "hypothesis"):
            assert set(" ".join(frame[column]).split()) <= known
    used = set(" ".join([*train.premise, *train.hypothesis]).split())
    assert used == known
    assert list(vocabulary()) == sorted(known)


def test_corpus() -> None:
    passages = list(corpus(3000, seed=0))
    assert passages == list(corpus(3000, seed=0))
    pairs = [p for p in passages if p.second is not None]
    assert abs(len(pairs) / 3000 - 0.75) < 0.05
    assert abs(sum(p.follows for p in pairs) / len(pairs) - 0.5) < 0.05
    # Whatever does not follow has a word of its own, so no pair shows a shortcut to be wrong.
    contrary = [p for p in pairs if not p.follows]
    told = [p for p in contrary if set(p.second.split()) <= set(p.first.split())]
    assert len(told) < 0.002 * len(pairs)
    words = {word for p in passages for word in f"{p.first} {p.second or ''}".split()}
    assert words <= set(vocabulary())


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"split": "test", "rows": 5, "seed": 0}, "test"),
        ({"split": "train", "rows": 0, "seed": 0}, "rows is 0"),
        ({"split": "train", "rows": 5, "seed": 0, "disambiguating": 1.5}, "1.5"),
        ({"split": "heuristics", "rows": 5, "seed": 0, "disambiguating": 0.1}, "heuristics"),
    ],
)
def test_bad_options(arguments: dict[str, object], culprit: str) -> None:
    with pytest.raises(ConfigError, match=culprit) as raised:
        generate(**arguments)  # type: ignore[arg-type]
    assert raised.value.remedy


def test_an_exhausted_grammar_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "_bucket", lambda premise, hypothesis: 0)
    with pytest.raises(ConfigError, match="no 10 different rows"):
        generate("heuristics", 10, seed=0)
