"""The catalogue: published folder layouts, label orders, splits that are pieces of others."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from landform.errors import ConfigError, DataError, LabelError
from landform.tasks import catalogue
from landform.tasks.catalogue import CATALOGUE, Entry, Generator, Layout, register
from landform.tasks.labels import reconcile
from landform.tasks.metrics import METRICS
from landform.tasks.task import Task, load_task

GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")


def write(path: Path, rows: list[list[str]], *, bom: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join("\t".join(row) + "\n" for row in rows)
    path.write_text(("\ufeff" if bom else "") + text, encoding="utf-8")


MNLI_HEADER = [
    "index",
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
]
HANS_HEADER = [
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
]


def mnli_row(index: int, gold: str, annotators: int) -> list[str]:
    front = [str(index), "31193", "31193n", "fiction", "( p )", "( h )", "(ROOT p)", "(ROOT h)"]
    return [*front, f'"Premise {index}', "hypothesis", *[gold] * annotators, gold]


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """Every GLUE folder in its published layout, with a few rows each."""
    root = tmp_path / "GLUE"
    for name in ("train", "dev"):
        rows = [["gj04", "1", "", f"Sentence {i}."] for i in range(530)]
        rows[0][1] = "0"
        write(root / "CoLA" / f"{name}.tsv", rows)
        write(
            root / "SST-2" / f"{name}.tsv",
            [["sentence", "label"], ['a "quoted film ', "0"], ["null", "1"]],
        )
        write(
            root / "MRPC" / f"{name}.tsv",
            [
                ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
                ["1", "702876", "702977", 'Amrozi said "so', "He said so."],
                ["0", "2108705", "2108831", "Yucaipa", "Dominick's"],
            ],
            bom=True,
        )
        header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
        write(root / "QQP" / f"{name}.tsv", [header, ["1", "2", "3", "Why?", "How?", "0"]])
        sts = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
        write(
            root / "STS-B" / f"{name}.tsv",
            [
                sts.split(),
                [*["0", "news", "MSRvid", "2012test", "1", "none", "none"], "A.", "B.", "4.750"],
            ],
        )
        write(
            root / "QNLI" / f"{name}.tsv",
            [
                ["index", "question", "sentence", "label"],
                ["0", "When?", "Now.", "entailment"],
                ["1", "Who?", "Now.", "not_entailment"],
            ],
        )
        write(
            root / "RTE" / f"{name}.tsv",
            [["index", "sentence1", "sentence2", "label"], ["0", "A.", "B.", "not_entailment"]],
        )
        write(
            root / "WNLI" / f"{name}.tsv",
            [["index", "sentence1", "sentence2", "label"], ["0", "A.", "B.", "1"]],
        )
    labels = ["label1", "label2", "label3", "label4", "label5", "gold_label"]
    write(
        root / "MNLI" / "train.tsv",
        [[*MNLI_HEADER, "label1", "gold_label"], mnli_row(0, "neutral", 1)],
    )
    for name, gold in (("matched", "entailment"), ("mismatched", "contradiction")):
        write(root / "MNLI" / f"dev_{name}.tsv", [[*MNLI_HEADER, *labels], mnli_row(0, gold, 5)])
    return root


@pytest.mark.parametrize(
    ("name", "texts", "label", "split"),
    [
        ("cola", ("Sentence 0.",), 0, "train"),
        ("sst2", ('a "quoted film ',), 0, "dev"),
        ("mrpc", ('Amrozi said "so', "He said so."), 1, "validation"),
        ("qqp", ("Why?", "How?"), 0, "train"),
        ("stsb", ("A.", "B."), 4.75, "validation"),
        ("mnli", ('"Premise 0', "hypothesis"), 1, "train"),
        ("mnli", ('"Premise 0', "hypothesis"), 0, "validation"),
        ("mnli", ('"Premise 0', "hypothesis"), 2, "validation_mismatched"),
        ("qnli", ("When?", "Now."), 0, "train"),
        ("rte", ("A.", "B."), 1, "train"),
        ("wnli", ("A.", "B."), 1, "train"),
    ],
)
def test_glue_in_its_own_layout(
    glue: Path, name: str, texts: tuple[str, ...], label: float, split: str
) -> None:
    folder = CATALOGUE[name].folder
    assert folder is not None
    for data_dir in (glue, glue / folder.names[0]):  # the task's folder, or the one above
        found = load_task(name, data_dir=data_dir).examples(split)
        assert found.texts[0] == texts
        assert found.labels[0] == label
        assert found.ids[0].endswith("-0")


def test_the_entries() -> None:
    assert {*GLUE, "hans", "paws_qqp"} <= set(CATALOGUE)
    for name, entry in CATALOGUE.items():
        assert set(entry.metrics) <= set(METRICS), name
        assert entry.summary, name
        assert (entry.kind == "regression") == (entry.label_names == ()), name
    order = {
        "cola": ("unacceptable", "acceptable"),
        "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"),
        "qqp": ("not_duplicate", "duplicate"),
        "mnli": ("entailment", "neutral", "contradiction"),
        "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"),
        "wnli": ("not_entailment", "entailment"),
        "hans": ("entailment", "non-entailment"),
        "paws_qqp": ("not_duplicate", "duplicate"),
    }
    assert {name: CATALOGUE[name].label_names for name in order} == order
    headline = {name: CATALOGUE[name].metrics[0] for name in GLUE}
    assert headline == {
        **dict.fromkeys(GLUE, "accuracy"), "cola": "matthews", "stsb": "pearson",
    }  # fmt: skip


def test_cola_halves(glue: Path) -> None:
    task = load_task("cola", data_dir=glue)
    inside = task.examples("validation_in_domain")
    outside = task.examples("out_domain_dev")
    assert (len(inside), len(outside)) == (527, 3)
    # Rows keep the ids that they have in the whole set.
    assert inside.ids + outside.ids == task.examples("validation").ids
    assert outside.texts[0] == ("Sentence 527.",)


def test_cola_cut_short_is_noticed(glue: Path) -> None:
    path = glue / "CoLA" / "dev.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:100]))
    with pytest.raises(DataError, match="100 rows"):
        load_task("cola", data_dir=glue).examples("validation_out_of_domain")


def test_qqp_rows_of_the_wrong_width(glue: Path) -> None:
    path = glue / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "4\t5\t6\tbroken\n" + "7\t8\t9\tWho?\tWhat?\t1\n")
    with pytest.raises(DataError, match=r"train.tsv, line 3.*skip_bad_rows"):
        _one_line(lambda: load_task("qqp", data_dir=glue).examples("train"))
    with pytest.warns(UserWarning, match="1 rows left out"):
        found = load_task("qqp", data_dir=glue, skip_bad_rows=True).examples("train")
    assert found.texts[1] == ("Who?", "What?") and found.labels.tolist() == [0, 1]


def _one_line(call: Any) -> None:
    try:
        call()
    except DataError as error:
        raise DataError(str(error).replace("\n", " ")) from None


def test_the_paraphrase_corpus_as_microsoft_publishes_it(tmp_path: Path) -> None:
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    for part in ("train", "test"):
        write(tmp_path / f"msr_paraphrase_{part}.txt", [header, ["1", "1", "2", '"a', part]])
    task = load_task("mrpc", data_dir=tmp_path)
    assert task.splits == ("train", "test")
    assert task.examples("test").texts == (('"a', "test"),)


def test_names_are_found_whatever_their_spelling(glue: Path) -> None:
    for name in ("SST-2", "sst_2", "sst2", "STS-B", "MNLI", "PAWS-QQP"):
        assert catalogue.find(name) is not None, name
    assert load_task("SST-2", data_dir=glue).name == "sst2"


@pytest.mark.parametrize(("name", "guess"), [("sst3", "sst2"), ("MNLX", "mnli"), ("hanns", "hans")])
def test_an_unknown_task_is_named_with_the_nearest(name: str, guess: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{guess}'"):
        load_task(name)


def test_faulty_folders(glue: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_task("sst2", data_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"dev\.tsv"):
        load_task("sst2", data_dir=tmp_path / "empty")
    (glue / "SST-2" / "train.tsv").unlink()
    with pytest.raises(DataError, match="no split 'train'"):
        load_task("sst2", data_dir=glue).examples("train")
    write(glue / "SST-2" / "dev.tsv", [["sentence", "lab"], ["a", "0"]])
    with pytest.raises(DataError, match=r"dev.tsv.*'label'"):
        load_task("sst2", data_dir=glue)
    with pytest.raises(ConfigError, match="option text is fixed"):
        load_task("sst2", data_dir=glue, text="sentence")
    with pytest.raises(ConfigError, match="not on the hub"):
        load_task("paws_qqp")


# ------------------------------------------------------------------------------------------ HANS


@pytest.fixture
def hans(tmp_path: Path) -> Path:
    rows = [HANS_HEADER]
    for index, (heuristic, gold) in enumerate(
        (heuristic, gold)
        for heuristic in catalogue.HANS_HEURISTICS
        for gold in ("entailment", "non-entailment")
    ):
        for case in range(5):
            mark = "l" if gold == "entailment" else "n"
            name = f"{mark}{heuristic[0]}_case{case}"
            rows.append(
                [gold, "b1", "b2", "p1", "p2", f"The {index} .", f"H {case} .",
                 f"ex{index * 5 + case}", heuristic, name, f"temp{case}"]
            )  # fmt: skip
    for part in ("train", "evaluation"):
        write(tmp_path / f"heuristics_{part}_set.txt", rows)
    return tmp_path


def test_hans_keeps_heuristics_and_subcases(hans: Path) -> None:
    task = load_task("hans", data_dir=hans)
    assert task.subsets == (("heuristic", "label"), ("subcase",), ("template",))
    found = task.examples("validation")
    assert len(found) == 30 and found.ids[1] == "ex1"
    assert list(found.columns.columns) == ["heuristic", "subcase", "template"]
    assert found.columns["heuristic"].nunique() == 3 and found.columns["subcase"].nunique() == 30
    assert found.labels.sum() == 15


def test_hans_filters(hans: Path) -> None:
    chosen = {"heuristic": "lexical_overlap", "label": "non-entailment"}
    found = load_task("hans", data_dir=hans, filters=chosen).examples("validation")
    assert len(found) == 5 and set(found.labels.tolist()) == {1}
    assert found.ids == ("ex5", "ex6", "ex7", "ex8", "ex9")
    with pytest.raises(DataError, match="did you mean 'lexical_overlap'"):
        load_task("hans", data_dir=hans, filters={"heuristic": "lexical"}).examples("validation")


def test_hans_has_a_split_per_heuristic_and_label(hans: Path) -> None:
    task = load_task("hans", data_dir=hans)
    whole = task.examples("validation")
    lo = task.examples("lo")
    assert lo.ids == ("ex5", "ex6", "ex7", "ex8", "ex9") and set(lo.labels.tolist()) == {1}
    assert task.resolve("lexical_overlap_non_entailment") == task.resolve("lo")
    assert task.resolve("lo") == "validation_lexical_overlap_non_entailment"
    assert len(task.examples("train_lo")) == 5
    parts = [
        task.examples(f"validation_{heuristic}_{label}").ids
        for heuristic in catalogue.HANS_HEURISTICS
        for label in ("entailment", "non_entailment")
    ]
    assert sum(parts, ()) == whole.ids
    # A filter of the user's own applies within the split.
    chosen = load_task("hans", data_dir=hans, filters={"subcase": "nl_case2"})
    assert chosen.examples("lo").ids == ("ex7",)


def test_a_catalogue_task_takes_files_of_its_columns(hans: Path, glue: Path) -> None:
    path = hans / "heuristics_evaluation_set.txt"
    other = hans / "mine.tsv"
    other.write_text(path.read_text())
    task = load_task("hans", files={"validation": other})
    assert task.splits[0] == "validation" and "train" not in task.splits
    found = load_task("hans", data_dir=hans).fingerprint("validation")
    assert task.fingerprint("validation") == found
    assert Task.from_config(task.config).fingerprint("lo") == task.fingerprint("lo")
    cola = load_task("cola", files={"dev": str(glue / "CoLA" / "dev.tsv")})
    assert len(cola.examples("in_domain_dev")) == 527
    mnli = load_task("mnli", files={"dev_mismatched": str(glue / "MNLI" / "dev_mismatched.tsv")})
    assert mnli.splits == ("validation_mismatched",)
    with pytest.raises(ConfigError, match=r"files.test: task 'hans' has no split"):
        load_task("hans", files={"test": other})
    with pytest.raises(ConfigError, match="files does not go with data_dir"):
        load_task("hans", files={"validation": other}, data_dir=hans)
    with pytest.raises(ConfigError, match="no published files; files= was given"):
        load_task("embedded", files={"validation": other})
    with pytest.raises(DataError, match=r"mine.tsv.*'premise'|no column"):
        other.write_text("premise\thypothesis\nx\ty\n")
        load_task("hans", files={"validation": other})


@pytest.mark.parametrize("merge", [None, "logsumexp"])
def test_hans_on_three_way_and_two_way_models(hans: Path, merge: Any) -> None:
    task = load_task("hans", data_dir=hans, **({} if merge is None else {"merge": merge}))
    assert task.merge == (merge or "max")

    def found(*labels: str) -> torch.Tensor:
        model = reconcile(task.label_names, labels, groups=task.label_groups, merge=task.merge)
        return model(torch.tensor([1.0, 2.0, 4.0])[: len(labels)])

    both = 4.0 if merge is None else torch.tensor([1.0, 4.0]).logsumexp(0).item()
    # Google's order: contradiction, entailment, neutral.
    google = found("contradiction", "entailment", "neutral")
    assert google.tolist() == pytest.approx([2.0, both])
    assert found("entailment", "not_entailment").tolist() == [1.0, 2.0]
    assert found("not_entailment", "entailment").tolist() == [2.0, 1.0]
    with pytest.raises(LabelError, match="order cannot be known"):
        found("LABEL_0", "LABEL_1", "LABEL_2")


def test_the_merge_belongs_to_the_fingerprint(hans: Path) -> None:
    prints = {
        load_task("hans", data_dir=hans, merge=merge).fingerprint("dev")
        for merge in ("max", "sum", "logsumexp")
    }
    assert len(prints) == 3


# ------------------------------------------------------------------------------ PAWS, hub, others


def test_paws_qqp(tmp_path: Path) -> None:
    header = ["id", "sentence1", "sentence2", "label"]
    write(tmp_path / "train.tsv", [header, ["1", "a b", "b a", "0"]])
    write(tmp_path / "dev_and_test.tsv", [header, ["1", "c d", "d c", "1"]])
    task = load_task("paws_qqp", data_dir=tmp_path)
    assert task.splits == ("train", "dev_and_test")
    assert task.examples("validation").texts == (("c d", "d c"),)
    assert task.examples("validation").labels.tolist() == [1]


def test_hub_entries_ask_only_when_rows_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(name: str, subset: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, subset, split, revision))
        return datasets.Dataset.from_dict(
            {"premise": ["p"], "hypothesis": ["h"], "label": [2], "idx": [0]}
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = load_task("mnli")
    assert task.splits == ("train", "validation_matched", "validation_mismatched")
    assert asked == []
    found = task.examples("dev")
    assert asked == [("nyu-mll/glue", "mnli", "validation_matched", None)]
    assert found.texts == (("p", "h"),) and found.labels.tolist() == [2]
    assert list(found.columns.columns) == []
    with pytest.raises(ConfigError, match="subset is fixed"):
        load_task("mnli", subset="x")


def test_withheld_labels_are_named(monkeypatch: pytest.MonkeyPatch, glue: Path) -> None:
    write(glue / "SST-2" / "dev.tsv", [["sentence", "label"], ["a", "-1"]])
    with pytest.raises(LabelError, match="withheld"):
        load_task("sst2", data_dir=glue).examples("dev")


def made_rows(split: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"text": [f"{split} a", f"{split} b"], "label": ["no", "yes"], "group": ["x", "z"]}
    )


def test_a_generated_task_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_CATALOGUE", dict(CATALOGUE))
    entry = Entry(
        kind="classification",
        label_names=("no", "yes"),
        metrics=("accuracy",),
        generator=Generator(made_rows, ("train", "other"), Layout(("text",), "label")),
        subsets=(("group",),),
    )
    register("made", entry)
    register("made", entry)  # again, unchanged: allowed
    task = load_task("made")
    assert task.splits == ("train", "other")
    found = task.examples("other")
    assert found.texts == (("other a",), ("other b",)) and found.labels.tolist() == [0, 1]
    assert found.columns["group"].tolist() == ["x", "z"]
    assert Task.from_config(task.config).fingerprint("other") == task.fingerprint("other")
    with pytest.raises(ConfigError, match="already in the catalogue"):
        register("Made", entry)
    with pytest.raises(ConfigError, match="where its rows come from"):
        register("nothing", Entry("classification", ("a", "b"), ("accuracy",)))
    with pytest.raises(ConfigError, match="no published files"):
        load_task("made", data_dir=".")


def test_generated_tasks_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    from landform.tasks.sources import FunctionSource

    source = pickle.loads(pickle.dumps(FunctionSource(len, ("train",), "x")))
    assert source.splits == ("train",)
