"""Files of inputs and answers: read as written, refused with file and line, written for a model."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError, DataError
from landform.tasks.answers import TextForm, answer_start, references
from landform.tasks.batching import IGNORED, cut_batches, encode
from landform.tasks.text_to_text import TASK_METRICS
from text_models import ROWS, text_tokenizer, toy_folder, write_answers


@pytest.fixture
def folder(tmp_path):
    return toy_folder(tmp_path / "toy")


def load(source, **options):
    return lf.load_task(source, kind="text-to-text", **{"metrics": "exact_match", **options})


# --- reading ------------------------------------------------------------------------------------


def test_a_folder_becomes_a_seq2seq_task_with_several_references(folder):
    task = load(folder)
    assert (task.name, task.kind, task.splits) == (
        "toy",
        "seq2seq",
        ("train", "validation", "test"),
    )
    assert task.metrics == ("exact_match",)
    examples = task.examples("dev")
    assert examples.texts == tuple((row[0],) for row in ROWS)
    assert examples.labels == references(examples) == tuple(tuple(row[1:]) for row in ROWS)
    assert examples.ids[:2] == ("validation-0", "validation-1")


def test_named_files_and_one_split_do_too(folder, tmp_path):
    files = {"train": str(folder / "toy_train.tsv"), "validation": str(folder / "toy_dev.tsv")}
    task = load(files)
    assert (task.name, task.splits) == ("toy", ("train", "validation"))
    other = write_answers(tmp_path / "qa" / "some.tsv", ROWS)
    assert load({"validation": str(other)}).name == "qa"
    assert load({"validation": str(other)}, name="mine").name == "mine"
    (folder / "toy_train.tsv").unlink()
    assert load(folder).splits == ("validation", "test")


def test_text_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "toy_dev.tsv"
    path.write_bytes('say "hi\t"NA"\tnull\t\t\r\n  w1 w2 \t 007 \n\u2028 x\ty\n'.encode())
    examples = load({"dev": str(path)}).examples("dev")
    assert examples.texts == (('say "hi',), ("w1 w2",), ("x",))
    assert examples.labels == (('"NA"', "null"), ("007",), ("y",))


CELL = st.text(
    st.characters(exclude_characters="\t\n\r\0\ufeff", exclude_categories=("Cs",)), min_size=1
)
CELL = CELL.map(str.strip).filter(bool)


@given(st.lists(st.lists(CELL, min_size=2, max_size=4), min_size=1, max_size=6))
def test_any_cells_come_back(tmp_path_factory, rows):
    path = write_answers(tmp_path_factory.mktemp("rows") / "toy_dev.tsv", rows)
    examples = load({"dev": str(path)}).examples("dev")
    assert [(*x, *answers) for x, answers in zip(examples.texts, examples.labels, strict=True)] == [
        tuple(row) for row in rows
    ]


def test_several_tasks_of_a_folder_are_listed_and_chosen(folder):
    write_answers(folder / "anli_dev.tsv", [("a", "b")])
    with pytest.raises(ConfigError, match="2 tasks: anli, toy") as caught:
        load(folder)
    assert "file_prefix" in str(caught.value)
    assert load(folder, file_prefix="toy").name == "toy"
    assert load(folder, one_prefix=True).name == "anli"
    with pytest.raises(ConfigError, match="did you mean 'anli'"):
        load(folder, file_prefix="anil")


def test_the_first_rows_subsets_and_shards_work_as_for_other_tasks(folder):
    assert load(folder, shuffle_seed=1).examples("train", rows=2).labels != tuple(
        tuple(row[1:]) for row in ROWS[:2]
    )
    assert len(load(folder, shard="2/2").examples("train")) == 2


def test_lower_case_is_of_inputs_answers_and_the_name(tmp_path):
    path = write_answers(tmp_path / "Toy_dev.tsv", [("Some TEXT", "Yes", "NO")])
    task = load({"dev": str(path)}, lowercase=True)
    examples = task.examples("dev")
    assert examples.texts == (("some text",),)
    assert examples.labels == (("yes", "no"),)
    assert examples.form.source("x") == " [toy] x"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("only an input", "line 2: no tab, so no answer"),
        ("an input\t", "line 2: no answer"),
        ("an input\t \t ", "line 2: no answer"),
        ("\tanswer", r"line 2: the input \(column 1\) is empty"),
        ("an input\t\tanswer", "line 2: the answer in column 2 is empty"),
        ("", "line 2: blank line"),
    ],
    ids=["no-tab", "nothing-behind-it", "only-space", "no-input", "empty-answer", "blank"],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, line, fault):
    path = tmp_path / "toy_dev.tsv"
    path.write_text(f"w1\tyes\n{line}\nw2\tno\n", encoding="utf-8")
    with pytest.raises(DataError, match=fault) as caught:
        load({"dev": str(path)}).examples("dev")
    assert str(path) in caught.value.what
    with pytest.warns(UserWarning, match="1 rows left out"):
        kept = load({"dev": str(path)}, skip_bad_rows=True).examples("dev")
    assert kept.labels == (("yes",), ("no",))


def test_what_is_no_such_task_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "void_dev.tsv").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no file <task>_train"):
        load(tmp_path / "empty")
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="does not exist"):
        load({"dev": str(tmp_path / "x_dev.tsv")})
    with pytest.raises(DataError, match=r"void_dev\.tsv is empty"):
        load({"dev": str(tmp_path / "void_dev.tsv")}).examples("dev")
    with pytest.raises(ConfigError, match="option text does not go with"):
        load(folder, text="input")
    with pytest.raises(ConfigError, match="reads files"):
        load([{"input": "a", "answers": "b"}])
    with pytest.raises(ConfigError, match="option lowercase goes with kind='text-to-text' only"):
        lf.load_task("sst2", lowercase=True)


# --- which metric -------------------------------------------------------------------------------


def test_the_table_has_the_tasks_and_counts_of_the_original():
    counts = {
        "answer_accuracy": 68,
        "answer_f1": 52,
        "exact_match": 28,
        "rouge_l": 17,
        "token_f1": 9,
        "answer_pearson": 3,
        "answer_matthews": 1,
    }
    assert Counter(TASK_METRICS.values()) == counts
    assert len(TASK_METRICS) == 178
    assert sum("mnli_anli" in name for name in TASK_METRICS) == 17
    used = {"glue-mnli": "answer_accuracy", "anli": "answer_f1", "superglue-record": "token_f1"}
    assert {name: TASK_METRICS[name] for name in used} == used
    assert TASK_METRICS["glue-cola"] == "answer_matthews"


def test_the_metric_is_that_of_the_name_the_files_or_the_folder(tmp_path):
    assert lf.load_task(toy_folder(tmp_path / "a", name="anli"), kind="text-to-text").metrics == (
        "answer_f1",
    )
    shots = toy_folder(tmp_path / "glue-mnli", name="glue-mnli_16_13")
    assert lf.load_task(shots, kind="text-to-text").metrics == ("answer_accuracy",)
    named = toy_folder(tmp_path / "b", name="toy")
    assert lf.load_task(named, kind="text-to-text", name="glue-cola").metrics == (
        "answer_matthews",
    )


def test_a_task_without_a_metric_is_refused_with_the_remedy(folder):
    with pytest.raises(
        ConfigError, match="no metric is known for the text-to-text task 'toy'"
    ) as e:
        lf.load_task(folder, kind="text-to-text")
    assert "metrics=" in e.value.remedy
    assert "exact_match" in e.value.remedy


# --- written for a model ------------------------------------------------------------------------


def decoded(encoded, tokenizer, field):
    return [tokenizer.decode(row[field]) for row in encoded.rows]


def test_sources_begin_with_the_task_and_targets_with_the_sentinel(folder):
    tokenizer = text_tokenizer()
    encoded = encode(load(folder).examples("dev"), tokenizer, "seq2seq", max_length=32)
    assert decoded(encoded, tokenizer, "input_ids")[0] == "[toy] w1 w2 w3 </s>"
    assert decoded(encoded, tokenizer, "labels")[0] == "<extra_id_0> yes </s>"
    assert encoded.answers[1] == tuple(
        tuple(tokenizer(f"<extra_id_0>{answer}").input_ids) for answer in ("no", "w3 maybe")
    )
    assert TextForm("toy").source("x") == " [toy] x"


@pytest.mark.parametrize(
    ("options", "source", "target"),
    [
        ({"task_prefix": False}, "w1 w2 w3 </s>", "<extra_id_0> yes </s>"),
        ({"sentinel": ""}, "[toy] w1 w2 w3 </s>", "yes </s>"),
        ({"sentinel": None}, "[toy] w1 w2 w3 </s>", "yes </s>"),
        ({"sentinel": "maybe "}, None, None),
        ({"sentinel": "</s>"}, "[toy] w1 w2 w3 </s>", "</s> yes </s>"),
        ({"bos": "w9 "}, "w9 [toy] w1 w2 w3 </s>", "w9 <extra_id_0> yes </s>"),
        ({"name": "glue-mnli"}, "[glue-mnli] w1 w2 w3 </s>", "<extra_id_0> yes </s>"),
    ],
    ids=["no-prefix", "empty-sentinel", "no-sentinel", "no-token", "other", "bos", "named"],
)
def test_options_of_the_form(folder, options, source, target):
    tokenizer = text_tokenizer()
    examples = load(folder, **options).examples("dev")
    if source is None:
        with pytest.raises(ConfigError, match="option sentinel: 'maybe ' is not a token"):
            encode(examples, tokenizer, "seq2seq", max_length=32)
        return
    encoded = encode(examples, tokenizer, "seq2seq", max_length=32)
    assert decoded(encoded, tokenizer, "input_ids")[0] == source
    assert decoded(encoded, tokenizer, "labels")[0] == target
    start = tokenizer.decode(answer_start(tokenizer, examples.form))
    assert target.startswith(start)
    assert "yes" not in start


def test_a_tokenizer_without_the_sentinel_has_none(folder):
    tokenizer = text_tokenizer(sentinel=False)
    encoded = encode(load(folder).examples("dev"), tokenizer, "seq2seq", max_length=32)
    assert decoded(encoded, tokenizer, "labels")[0] == "yes </s>"
    assert answer_start(tokenizer, encoded.form) == []


def test_targets_have_a_length_of_their_own_and_cuts_are_counted(folder):
    tokenizer = text_tokenizer()
    examples = load(folder, max_target_length=4).examples("dev")
    encoded = encode(examples, tokenizer, "seq2seq", max_length=32)
    assert encoded.truncated == 1, "w1 w2 w3 with sentinel and end is five tokens"
    assert max(len(answer) for answers in encoded.answers for answer in answers) == 4
    exact = encode(
        load(folder, max_target_length=5).examples("dev"), tokenizer, "seq2seq", max_length=32
    )
    assert exact.truncated == 0


def test_batches_bring_all_references_padded_with_ignored(folder):
    encoded = encode(load(folder).examples("dev"), text_tokenizer(), "seq2seq", max_length=32)
    (batch,) = cut_batches(encoded, 4096)
    counts = [len(encoded.answers[row]) for row in batch.rows.tolist()]
    assert np.bincount(batch.owners.numpy()).tolist() == counts
    assert batch.labels.shape[0] == sum(counts)
    for labels, owner in zip(batch.labels, batch.owners, strict=True):
        kept = tuple(labels[labels != IGNORED].tolist())
        assert kept in encoded.answers[int(batch.rows[owner])]
    first = encode(
        load(folder, references="first").examples("dev"), text_tokenizer(), "seq2seq", max_length=32
    )
    assert first.answers is None
    assert all(b.owners is None for b in cut_batches(first, 4096))
    for budget in (1, 20, 40):
        rows = [r for b in cut_batches(encoded, budget) for r in b.rows.tolist()]
        assert sorted(rows) == list(range(len(ROWS)))


def test_training_draws_every_reference_alike_and_the_same_for_a_seed(folder):
    encoded = encode(load(folder).examples("dev"), text_tokenizer(), "seq2seq", max_length=32)
    drawn = [tuple(encoded.drawn(3, f"0 {epoch}")["labels"]) for epoch in range(3000)]
    counts = Counter(drawn)
    assert set(counts) == set(encoded.answers[3])
    # Each has the share 1/3; 5 deviations of a binomial count.
    assert max(abs(n - 1000) for n in counts.values()) < 5 * (3000 * 2 / 9) ** 0.5
    assert drawn[7] == tuple(encoded.drawn(3, "0 7")["labels"])
    assert encoded.drawn(0, "0 1") == encoded.rows[0], "one answer: no choice"
    part = encoded.take([3, 0])
    assert part.drawn(0, "0 7") == encoded.drawn(3, "0 7")
    assert len(part) == 2 == len(part.answers)


@pytest.mark.parametrize(
    "change",
    [
        {"task_prefix": False},
        {"sentinel": None},
        {"bos": "x"},
        {"references": "first"},
        {"max_target_length": 9},
        {"name": "other"},
    ],
    ids=["prefix", "sentinel", "bos", "references", "length", "name"],
)
def test_the_fingerprint_of_the_examples_knows_how_they_are_written(folder, change):
    plain = load(folder).examples("dev")
    assert plain.fingerprint == load(folder).examples("dev").fingerprint
    assert plain.fingerprint != load(folder, **change).examples("dev").fingerprint


def test_answers_with_commas_are_told_from_two_answers(tmp_path):
    one = write_answers(tmp_path / "a" / "toy_dev.tsv", [("x", "a,b")])
    two = write_answers(tmp_path / "b" / "toy_dev.tsv", [("x", "a", "b")])
    prints = [load({"dev": str(path)}).examples("dev").fingerprint for path in (one, two)]
    assert prints[0] != prints[1]


def test_the_config_describes_the_task_and_travels(folder):
    import pickle

    task = load(folder, sentinel="", references="first")
    again = lf.load_task(task.config)
    assert again.examples("dev").fingerprint == task.examples("dev").fingerprint
    sent = pickle.loads(pickle.dumps(task))
    assert sent.examples("dev").fingerprint == task.examples("dev").fingerprint
