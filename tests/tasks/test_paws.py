"""PAWS-QQP: words as nltk 3.2.5 cuts them, the index format, the files that the task reads."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.cli.app import run
from landform.errors import ConfigError, DataError, MissingExtraError
from landform.tasks import paws
from landform.tasks.paws import build_paws_qqp, treebank_words, word_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "paws_qqp"

QUESTIONS = {
    1: "Who can beat Ali at chess?",
    2: 'Why does "Tom" not  answer?',
    5: "I'm here. Can't he come?",
    9: 'A "quoted\ttab", and\na line?',
}


def question(text: str) -> str:
    """As Quora writes a field: quoted where it needs to be."""
    return '"' + text.replace('"', '""') + '"' if set(text) & set('"\t\n') else text


@pytest.fixture
def place(tmp_path: Path) -> Path:
    q = {number: question(text) for number, text in QUESTIONS.items()}
    lines = [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        f"0\t1\t2\t{q[1]}\t{q[2]}\t0",
        f"1\t5\t9\t{q[5]}\t{q[9]}\t1",
        f"2\t1\t9\tAnother text under a number that is known\t{q[9]}\t0",
    ]
    (tmp_path / "quora.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    index = tmp_path / "index"
    index.mkdir()
    head = "id\tqid1\tsentence1\tqid2\tsentence2\tlabel"
    train = [
        head,
        "1\t1\t0/1/2/3/4/5/6\t1\t3/1/2/0/4/5/6\t0",
        "2\t2\t0/1/2/3/4/5/6/7\t1\t(5, 0):(5, 1)/(2, 5)/6\t1",
    ]
    (index / "train.tsv").write_text("\n".join(train) + "\n", encoding="utf-8")
    (index / "dev_and_test.tsv").write_text(f"{head}\n1\t9\t0/2/4/5\t9\t5/4\t1\n", encoding="utf-8")
    return tmp_path


def test_a_build_by_hand(place: Path) -> None:
    made = build_paws_qqp(
        place / "quora.tsv", place / "index", place / "out", tokenize=treebank_words
    )
    assert (place / "out" / "train.tsv").read_bytes().decode() == (
        "id\tsentence1\tsentence2\tlabel\n"
        "1\tWho can beat Ali at chess ?\tAli can beat Who at chess ?\t0\n"
        "2\tWhy does `` Tom '' not answer ?\tI'm not ?\t1\n"
    )
    text = (place / "out" / "dev_and_test.tsv").read_text()
    assert text.splitlines()[1] == "1\tA quoted '' ,\t, ''\t1"
    assert made.files.rows.tolist() == [2, 1] and made.files.duplicates.tolist() == [1, 1]
    assert not made.files.published.any() and "which has 11988 rows" in made.reading
    json.dumps(made.to_json(), default=str)
    task = lf.load_task("paws_qqp", data_dir=place / "out")
    assert task.examples("train").labels.tolist() == [0, 1]
    assert len(task.examples("validation")) == 1


def test_the_published_build_is_recognised(place: Path, monkeypatch: Any) -> None:
    paths = (place / "quora.tsv", place / "index", place / "out")
    first = build_paws_qqp(*paths, tokenize=treebank_words)
    monkeypatch.setattr(paws, "MD5", dict(zip(first.files.split, first.files.md5, strict=True)))
    assert build_paws_qqp(*paths, tokenize=treebank_words).files.published.all()


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("They'll can't; won't (really)!", "They 'll ca n't ; wo n't ( really ) !"),
        ('"Yes," he said.', "`` Yes , '' he said ."),
        ("Is it 'Royal' or not?", "Is it 'Royal ' or not ?"),  # later nltk: ' Royal '
        ("Rate 5* hotels....", "Rate 5* hotels ... ."),  # later nltk: 5 * hotels ....
        ("“Hi” costs $3.88 at 10:30--wow", "“ Hi ” costs $ 3.88 at 10:30 -- wow"),
        ("Gimme what I cannot, 'tis gonna be", "Gim me what I can not , 't is gon na be"),
        ("C++ & C# in U.S.", "C++ & C # in U.S ."),
    ],
)
def test_words_as_nltk_3_2_5_cuts_them(sentence: str, words: str) -> None:
    assert " ".join(treebank_words(sentence)) == words


@given(st.text(max_size=30))
def test_words_lose_nothing_but_spaces_and_the_shape_of_quotes(text: str) -> None:
    def bare(value: str) -> str:
        return "".join(value.split()).replace('"', "''").replace("``", "''")

    assert bare("".join(treebank_words(text))) == bare(text)


def test_most_sentences_are_cut_as_by_the_installed_nltk() -> None:
    tokenize = pytest.importorskip("nltk.tokenize.treebank").TreebankWordTokenizer().tokenize
    generator = random.Random(0)
    pieces = ["What", "is", "(a)", "can't", "I'll", "3,000", "x:", "10:30", "e.g.", '"so"', "A&B"]
    for _ in range(300):
        text = " ".join(generator.choice(pieces) for _ in range(6)) + generator.choice("?!.")
        assert treebank_words(text) == tokenize(text), text


def test_what_is_missing_is_named(place: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(MissingExtraError, match=r"landform\[paws\]"):
        word_tokenizer()
    with pytest.raises(MissingExtraError):
        build_paws_qqp(place / "quora.tsv", place / "index", place / "out")
    assert not (place / "out").exists()


def test_the_sentence_model_is_asked_for(monkeypatch: Any, tmp_path: Path) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"nltk\.downloader punkt_tab"):
        word_tokenizer()


def test_sentences_come_before_words(monkeypatch: Any) -> None:
    tokenize = pytest.importorskip("nltk.tokenize")
    monkeypatch.setattr(tokenize, "sent_tokenize", lambda text: text.split("|"))
    assert word_tokenizer()("I left.|Why?") == ["I", "left", ".", "Why", "?"]
    assert treebank_words("I left. Why?") == ["I", "left.", "Why", "?"]


CASES = [
    ("index/train.tsv", "3/1/2", "3/1/99", "question 1 has 7 tokens, and number 99"),
    ("index/train.tsv", "(5, 0)", "(6, 0)", "question 6 is not in Quora's file"),
    ("index/train.tsv", "(5, 0)", "Who can", "neither the number of a token"),
    ("index/train.tsv", "\t0\n", "\t7\n", "line 2, column label: '7'"),
    ("index/train.tsv", "2\t2\t0", "1\t2\t0", "line 3: the id '1' occurs twice"),
    ("index/train.tsv", "1\t1\t0", "1\tx\t0", "column qid1: 'x' is not a number"),
    ("index/train.tsv", "1\t1\t0", "1\t²\t0", "column qid1: '²' is not a number"),
    ("index/train.tsv", "3/1/2", "3/1/²", "'²' is neither the number of a token"),
    ("index/train.tsv", "id\tqid1\tsentence1\tqid2\tsentence2\tlabel\n", "", "a row of data where"),
    ("quora.tsv", "1\t5\t9\t", "1\t5\t", "line 3: 5 columns where 6 were expected"),
    ("quora.tsv", "Who", "Who\0", "NUL"),
]


@pytest.mark.parametrize(("name", "old", "new", "says"), CASES, ids=[case[3] for case in CASES])
def test_faults_are_named_and_nothing_is_written(
    place: Path, name: str, old: str, new: str, says: str
) -> None:
    path = place / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=says.replace("(", r"\(")):
        build_paws_qqp(place / "quora.tsv", place / "index", place / "out", tokenize=treebank_words)
    assert not (place / "out").exists()


def test_rows_that_cannot_be_built_can_be_left_out(place: Path) -> None:
    path = place / "index" / "train.tsv"
    path.write_text(path.read_text().replace("(5, 0)", "(6, 0)"))
    options: dict[str, Any] = {"tokenize": treebank_words, "skip_missing": True}
    made = build_paws_qqp(place / "quora.tsv", place / "index", place / "out", **options)
    assert made.files.skipped.tolist() == [1, 0] and "1 left out" in made.reading
    with pytest.raises(ConfigError, match="is the index folder"):
        build_paws_qqp(place / "quora.tsv", place / "index", place / "index", **options)
    with pytest.raises(DataError, match="holds neither"):
        build_paws_qqp(place / "quora.tsv", place, place / "out", **options)


def test_the_command(place: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(paws, "word_tokenizer", lambda: treebank_words)
    words = ["paws", "--quora", place / "quora.tsv", "--index", place / "index"]
    assert run([*map(str, words), "--out", str(place / "out")]) == 0
    said = capsys.readouterr().out
    assert "train 2 pairs (1 duplicates" in said and "wrote" in said
    assert run([*map(str, words), "--out", str(place / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["rows"] == 2


# --- the files that the connectivity project distributes -----------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the PAWS-QQP files are not on this machine")
def test_the_published_files_load() -> None:
    import hashlib

    task = lf.load_task("paws_qqp", data_dir=SHARED)
    train, rest = task.examples("train"), task.examples("dev_and_test")
    assert (len(train), int(train.labels.sum())) == (11988, 3776)
    assert (len(rest), int(rest.labels.sum())) == (677, 191)
    for split in paws.SPLITS:
        raw = (SHARED / f"{split}.tsv").read_bytes().replace(b"\r\n", b"\n")
        assert hashlib.md5(raw, usedforsecurity=False).hexdigest() == paws.MD5[split]
    # The words are nltk 3.2.5's: cutting them again changes few sentences.
    kept = [text for row in rest.texts for text in row if "`" not in text and "'" not in text]
    same = sum(treebank_words(text) == text.split(" ") for text in kept)
    assert same > 0.97 * len(kept)
