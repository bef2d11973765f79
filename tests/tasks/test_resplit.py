"""Percentages and merged splits: which rows, how many, the same ones every time."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError, DataError
from landform.tasks.rows import part_of, share, shuffled
from landform.tasks.task import Task, TaskConfig

OPTIONS: dict[str, Any] = {"text": "t", "label": "y"}


def rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"t": f"text {i}", "y": i % 2, "n": i, "odd": str(i % 3)} for i in range(start, start + n)
    ]


def task_of(train: int = 60, validation: int = 20, **options: Any) -> Task:
    data = {"train": rows(train), "validation": rows(validation, 1000)}
    return lf.load_task(data, **OPTIONS, **options)


def numbers(task: Task, split: str) -> list[int]:
    examples = task.examples(split)
    # Labels, texts and columns stay together whatever is done to the rows.
    for (text,), label, n in zip(
        examples.texts, examples.labels, examples.column("n"), strict=True
    ):
        assert text == f"text {n}" and label == n % 2
    assert len(set(examples.ids)) == len(examples)
    return list(examples.column("n"))


def brute_shuffle(items: Sequence[Any], seed: int, what: str = "shuffle") -> list[Any]:
    """The order by its definition: one number per row from Python's own generator, sorted."""
    draw = random.Random(f"landform {what} {seed}")
    return [
        item for _, item in sorted((draw.random(), i, item)[0::2] for i, item in enumerate(items))
    ]


# --- a percentage --------------------------------------------------------------------------------


@given(st.integers(1, 10**9), st.decimals("0.001", "100", places=3))
def test_the_count_is_exact(size: int, percent: Decimal) -> None:
    exact = (percent * size / 100).to_integral_value(ROUND_FLOOR)
    assert part_of(size, float(percent)) == int(exact)


def test_counts_that_binary_fractions_get_wrong() -> None:
    assert int(0.29 * 100) == 28 and part_of(100, 29) == 29
    assert part_of(205_328, 1) == 2053  # the corpus of the guided dropout paper
    assert part_of(1000, 0.7) == 7 and part_of(1000, 100) == 1000


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_a_percentage_is_the_first_of_the_shuffle(seed: int | None) -> None:
    found = numbers(task_of(percent=15, shuffle_seed=seed), "train")
    expected = brute_shuffle(range(60), seed or 0)[:9]
    assert found == (sorted(expected) if seed is None else expected)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.sampled_from([None, 0, 3]))
def test_smaller_percentages_are_parts_of_larger_ones(a: float, b: float, seed: int | None) -> None:
    order = shuffled(40, seed) if seed is not None else list(range(40))
    small, large = (share(order, percent, seed) for percent in sorted((a, b)))
    assert set(small) <= set(large) and 1 <= len(small) <= len(large) <= 40


def test_which_splits_a_percentage_shortens() -> None:
    def sizes(task: Task) -> list[int]:
        return [len(task.examples(split)) for split in task.splits]

    assert sizes(task_of(percent=10)) == [6, 20]
    assert sizes(task_of(percent=10, percent_of="validation")) == [60, 2]
    assert sizes(task_of(percent=10, percent_of=("train", "dev"))) == [6, 2]
    assert sizes(task_of(percent=100)) == [60, 20]
    assert sizes(task_of(percent=0.001)) == [1, 20]
    alone = lf.load_task(rows(50), **OPTIONS, percent=10)  # one split, and it is not train
    assert sizes(alone) == [5]
    with pytest.raises(DataError, match="no split 'trian'"):
        task_of(percent=10, percent_of="trian")
    with pytest.raises(ConfigError, match="percent_of needs percent"):
        task_of(percent_of="train")


def test_filters_shard_shuffle_percent_in_this_order() -> None:
    found = task_of(filters={"odd": "1"}, shard="2/2", shuffle_seed=5, percent=30)
    kept = [i for i in range(60) if i % 3 == 1][1::2]
    expected = brute_shuffle(kept, 5)[: int(len(kept) * 0.3)]
    assert numbers(found, "train") == expected
    held = [i for i in range(1000, 1020) if i % 3 == 1][1::2]
    assert numbers(found, "validation") == brute_shuffle(held, 5)


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan"), "101%", "many"], ids=str)
@pytest.mark.parametrize("option", ["percent", "resplit"])
def test_percentages_outside_are_refused(option: str, percent: Any) -> None:
    with pytest.raises(ConfigError, match=option) as caught:
        task_of(**{option: percent})
    assert caught.value.remedy


# --- merged splits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "train", "validation", "first", "last"),
    [
        ("CoLA", 8_551, 1_043, 7_675, 1_919),
        ("MRPC", 3_668, 408, 3_260, 816),
        ("RTE", 2_490, 277, 2_213, 554),
        ("STS-B", 5_749, 1_500, 5_799, 1_450),
        ("WNLI", 635, 71, 564, 142),
        ("SST-2", 67_349, 872, 54_576, 13_645),
        ("QNLI", 104_743, 5_463, 88_164, 22_042),
        ("QQP", 363_846, 40_430, 323_420, 80_856),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_sizes_of_glue(task: str, train: int, validation: int, first: int, last: int) -> None:
    whole = train + validation
    assert (part_of(whole, 80), whole - part_of(whole, 80)) == (first, last), task
    if whole < 5000:
        found = task_of(train, validation, resplit=20)
        assert [len(found.examples(split)) for split in found.splits] == [first, last]


@pytest.mark.parametrize(
    ("options", "seed"),
    [({}, 0), ({"shuffle_seed": 3}, 3), ({"resplit_seed": 5, "shuffle_seed": 3}, 5)],
    ids=["default", "shuffle-seed", "own-seed"],
)
def test_merged_splits_by_their_definition(options: dict[str, int], seed: int) -> None:
    task = task_of(33, 14, resplit="20%", **options)
    order = brute_shuffle([*range(33), *range(1000, 1014)], seed, "resplit")
    train, validation = order[:37], order[37:]
    if "shuffle_seed" in options:  # afterwards, as for any other splits
        train, validation = (brute_shuffle(part, 3) for part in (train, validation))
    assert numbers(task, "train") == train
    assert numbers(task, "validation") == numbers(task, "dev") == validation


def test_what_follows_sees_only_the_new_splits() -> None:
    whole, part = (
        task_of(resplit=25, resplit_seed=1),
        task_of(resplit=25, resplit_seed=1, percent=10),
    )
    train, validation = (numbers(whole, split) for split in ("train", "validation"))
    assert sorted([*train, *validation]) == [*range(60), *range(1000, 1020)]
    assert len(validation) == 20 and numbers(part, "validation") == validation
    kept = brute_shuffle(range(60), 0)[:6]
    assert numbers(part, "train") == [train[i] for i in sorted(kept)]
    odd = task_of(resplit=25, resplit_seed=1, filters={"odd": "1"})
    assert numbers(odd, "train") == [n for n in train if n % 3 == 1]


def test_another_seed_is_another_cut() -> None:
    cuts = [set(numbers(task_of(resplit=20, resplit_seed=seed), "validation")) for seed in range(4)]
    assert len({frozenset(cut) for cut in cuts}) == 4


def test_ids_stay_unique_and_tell_where_a_row_comes_from() -> None:
    plain = task_of(3, 2, resplit=40, id="n")
    assert {*plain.examples("train").ids, *plain.examples("validation").ids} == {
        *("0", "1", "2", "1000", "1001")
    }
    data = {"train": rows(3), "validation": rows(2)}  # the same ids in both
    task = lf.load_task(data, **OPTIONS, id="n", resplit=40)
    ids = {*task.examples("train").ids, *task.examples("validation").ids}
    assert ids == {"train-0", "train-1", "train-2", "validation-0", "validation-1"}
    numbered = lf.load_task(data, **OPTIONS, resplit=40)
    assert ids == {*numbered.examples("train").ids, *numbered.examples("validation").ids}


def test_labels_are_those_of_all_splits() -> None:
    data = {
        "train": [{"t": "a", "y": "no"}, {"t": "b", "y": "yes"}] * 5,
        "validation": [{"t": "c", "y": "maybe"}] * 4,
    }
    task = lf.load_task(data, **OPTIONS, resplit=50)
    assert task.label_names == ("maybe", "no", "yes")
    for split in task.splits:
        examples = task.examples(split)
        for (text,), label in zip(examples.texts, examples.labels, strict=True):
            assert task.label_names[label] == {"a": "no", "b": "yes", "c": "maybe"}[text]


def test_columns_that_not_all_splits_have_are_left_out() -> None:
    data = {"train": rows(8), "validation": [{"t": "text 1", "y": 1, "n": 1}] * 4}
    examples = lf.load_task(data, **OPTIONS, resplit=50).examples("train")
    assert list(examples.columns) == ["n"]


def test_any_splits_can_be_merged() -> None:
    data = {"train": rows(10), "extra": rows(10, 100), "held": rows(5, 200), "test": rows(3, 300)}
    task = lf.load_task(data, **OPTIONS, resplit=20, resplit_of=("train", "extra", "held"))
    assert task.splits == ("train", "held", "test")
    train, held = numbers(task, "train"), numbers(task, "held")
    assert len(held) == 5
    assert sorted([*train, *held]) == [*range(10), *range(100, 110), *range(200, 205)]
    assert numbers(task, "test") == [300, 301, 302]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resplit_of": ("train", "test")}, "no split 'test'"),
        ({"resplit_of": ("train",)}, "two or more are merged"),
        ({"resplit_of": ("train", "training")}, "two or more are merged"),
    ],
    ids=["unknown", "one", "twice"],
)
def test_what_cannot_be_merged(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        task_of(resplit=20, **options)
    with pytest.raises(ConfigError, match="resplit_seed needs resplit"):
        task_of(resplit_seed=1)
    with pytest.raises(DataError, match="train has no rows of the 3"):
        task_of(2, 1, resplit=99).examples("train")


def glue(folder: Path, **files: int) -> Path:
    for name, count in files.items():
        body = "".join(
            f"a {i}\tb {i}\tg\t{('neutral', 'entailment')[i % 2]}\n" for i in range(count)
        )
        (folder / f"{name}.tsv").write_text(f"sentence1\tsentence2\tgenre\tgold_label\n{body}")
    return folder


def test_mnli_keeps_its_two_validation_sets(tmp_path: Path) -> None:
    place = glue(tmp_path, train=20, dev_matched=6, dev_mismatched=5)
    with pytest.raises(ConfigError, match="validation_matched, validation_mismatched") as caught:
        lf.load_task("mnli", data_dir=place, resplit=20)
    assert "resplit_of" in (caught.value.remedy or "")
    named = lf.load_task("mnli", data_dir=place, resplit=20, resplit_of=("train", "dev_matched"))
    sizes = {split: len(named.examples(split)) for split in named.splits}
    assert sizes == {"train": 20, "validation_matched": 6, "validation_mismatched": 5}
    assert "train-3" in {*named.examples("train").ids, *named.examples("validation").ids}


def test_parts_of_merged_splits(tmp_path: Path) -> None:
    """Rows 0 to 526 of an old split are nothing of the new one; rows with such a value are."""
    (tmp_path / "train.tsv").write_text("".join(f"s\t{i % 2}\t*\tt {i}\n" for i in range(700)))
    (tmp_path / "dev.tsv").write_text("".join(f"s\t{i % 2}\t*\tv {i}\n" for i in range(600)))
    cola = lf.load_task("cola", data_dir=tmp_path, resplit=20)
    assert cola.splits == ("train", "validation")
    assert len(cola.examples("validation")) == 260
    with pytest.raises(DataError, match="no split"):
        cola.examples("in_domain_dev")
    part = ("train", "validation_in_domain")
    with pytest.raises(ConfigError, match="is a part of the split validation"):
        lf.load_task("cola", data_dir=tmp_path, resplit=20, resplit_of=part)


def test_hans_keeps_its_parts(tmp_path: Path) -> None:
    head = "gold_label\tsentence1\tsentence2\tpairID\theuristic\tsubcase\ttemplate\n"
    names = ("lexical_overlap", "subsequence", "constituent")
    body = [
        f"{'' if i // 3 % 2 else 'non-'}entailment\ta {i}\tb {i}\tex{i}\t{names[i % 3]}\tc\tt\n"
        for i in range(60)
    ]
    for name in ("heuristics_train_set.txt", "heuristics_evaluation_set.txt"):
        (tmp_path / name).write_text(head + "".join(body))
    task = lf.load_task("hans", data_dir=tmp_path, resplit=50, percent=50)
    found = task.examples("lo")
    assert len(found) > 0 and set(found.column("heuristic")) == {"lexical_overlap"}
    assert set(found.ids) <= set(task.examples("validation").ids)
    # The parts of train are shortened with it.
    whole = lf.load_task("hans", data_dir=tmp_path, resplit=50)
    assert len(task.examples("train_lo")) == len(whole.examples("train_lo")) // 2


def test_tasks_travel_and_are_written_down(tmp_path: Path) -> None:
    lines = ["t\ty", *(f"text {i}\t{i % 2}" for i in range(40))]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    task = lf.load_task(tmp_path, **OPTIONS, resplit=20, percent=30, resplit_seed=2)
    copies = [pickle.loads(pickle.dumps(task)), Task.from_config(task.config)]
    copies.append(Task.from_config(TaskConfig.parse(json.loads(task.config.model_dump_json()))))
    for split in task.splits:
        assert len({other.fingerprint(split) for other in (task, *copies)}) == 1
    kept = pickle.loads(pickle.dumps(task_of(resplit=20)))  # given in Python
    assert numbers(kept, "validation") == numbers(task_of(resplit=20), "validation")


def test_text_to_text_and_corpora(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        body = "".join(f"{name} {i}\tyes\tno\n" for i in range(20))
        (tmp_path / f"toy_{name}.tsv").write_text(body)
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(20)))
    answers = lf.load_task(tmp_path, kind="text-to-text", metrics="loss", resplit=20, percent=50)
    corpus = lf.load_task(
        {name: tmp_path / f"{name}.txt" for name in ("train", "dev")},
        kind="denoising", resplit=20, percent=50,
    )  # fmt: skip
    for task in (answers, corpus):
        assert [len(task.examples(split)) for split in task.splits] == [16, 8]
    assert set(answers.examples("train").labels) == {("yes", "no")}
    assert answers.examples("train").form == answers.form
    assert corpus.examples("train").noise == corpus.noise
    assert corpus.examples("dev").texts == answers.examples("dev").texts


def test_the_command_line_and_study_files(
    tmp_path: Path, save_checkpoint: Any, write_rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from landform.cli.app import run
    from landform.studies.study_file import read_study

    save_checkpoint(tmp_path / "bert")
    write_rows(tmp_path / "train.tsv", 30)
    write_rows(tmp_path / "dev.tsv", 10, seed=1)
    files = ["--files.train", str(tmp_path / "train.tsv")]
    files += ["--files.validation", str(tmp_path / "dev.tsv")]
    columns = ["--text", "sentence", "--label", "label"]
    chosen = ["--resplit", "20", "--resplit-seed", "1", "--json"]
    command = ["evaluate", str(tmp_path / "bert"), *files, *columns, *chosen]
    assert run([*command, "--percent", "25", "--split", "train"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert found["examples"] == 8
    assert run([*command, "--percent", "125"]) == 2
    assert "percent" in capsys.readouterr().err
    # In training the percentage is that of training: one flag, one meaning.
    train = ["train", str(tmp_path / "bert"), *files, *columns, *chosen, "--out"]
    train += [str(tmp_path / "runs"), "--percent", "25", "--epochs", "1", "--batch-size", "4"]
    assert run(train) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["rows"] == 8
    study = tmp_path / "study.yaml"
    study.write_text(
        "study: out\ntasks:\n  toy: {files: {train: train.tsv, dev: dev.tsv}, text: sentence, "
        "label: label, resplit: 20%, percent: 25, resplit_seed: 1}\n"
        "steps: [{evaluate: {checkpoints: bert, task: toy}}]\n"
    )
    task, _ = read_study(study).task("toy")
    assert [len(task.examples(split)) for split in task.splits] == [8, 8]
