"""Plain text as data: what is a text, what is left out, and which kinds read it."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError, DataError
from landform.tasks.sources import FileFormat, read_file
from landform.tasks.task import CORPUS_KINDS, Task, TaskConfig

TEXT = 'first line\n\nsecond\tline\n  \nthird, it has "quotes\n  and a space before\n\n\nlast\n'
LINES = ("first line", "second\tline", 'third, it has "quotes', "  and a space before", "last")
BLOCKS = ("first line", "second\tline", 'third, it has "quotes\n  and a space before', "last")


def write(path: Path, content: str | bytes = TEXT) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def loaded(path: Any, kind: str = "masked-lm", **options: Any) -> tuple[str, ...]:
    examples = lf.load_task(path, kind=kind, **options).examples("validation")
    assert all(len(text) == 1 for text in examples.texts) and examples.labels is None
    return tuple(text for (text,) in examples.texts)


@pytest.mark.filterwarnings("ignore:.*lines are empty")
@pytest.mark.parametrize("kind", CORPUS_KINDS)
def test_a_line_or_a_block_is_a_text(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "corpus.txt")
    assert loaded(path, kind) == LINES
    assert loaded(path, kind, blocks=True) == BLOCKS
    assert loaded({"validation": path}, kind) == LINES


def test_empty_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.txt")
    with pytest.warns(UserWarning, match=r"corpus\.txt: 4 of 9 lines are empty and were left out"):
        loaded(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loaded(path, blocks=True) == BLOCKS
        assert loaded(write(tmp_path / "full.txt", "a\nb\n\n\n")) == ("a", "b")


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8")), min_size=1))
def test_lines_are_what_was_written(tmp_path_factory: Any, lines: list[str]) -> None:
    path = write(tmp_path_factory.getbasetemp() / "lines.txt", "\n".join(lines))
    if lines[0].startswith("\ufeff"):  # a byte-order mark is no text
        lines = [lines[0][1:], *lines[1:]]
    kept = [line for line in lines if line.strip()]
    if not kept:
        with pytest.raises(DataError, match=r"lines\.txt"):
            read_file(path, FileFormat(plain="lines"))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = read_file(path, FileFormat(plain="lines"))
    assert table.lines is not None
    assert [lines[number - 1] for number in table.lines] == table.values("text") == kept
    blocks = read_file(path, FileFormat(plain="blocks")).values("text")
    assert [line for block in blocks for line in block.split("\n")] == table.values("text")


@pytest.mark.parametrize("blocks", [False, True], ids=["lines", "blocks"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "corpus.txt is empty"),
        (b"\n \n\t\n", "corpus.txt: all 3 lines are empty"),
        (b"\r\n\r\n", "corpus.txt: all 2 lines are empty"),
        (b"good\nba\0d\n", "corpus.txt, line 2, byte 3 of the line: NUL character"),
        (b"good\n\nb\xe4d\n", "corpus.txt, line 3, byte 2 of the line: byte 0xe4 is not valid"),
        (b"\xff\xfea\0", "corpus.txt is UTF-16"),
    ],
    ids=["nothing", "blank-lines", "line-ends", "nul", "latin-1", "utf-16"],
)
def test_faults_name_the_file(tmp_path: Path, content: bytes, said: str, blocks: bool) -> None:
    task = lf.load_task(write(tmp_path / "corpus.txt", content), kind="causal-lm", blocks=blocks)
    with pytest.raises(DataError) as caught:
        task.examples("validation")
    assert said in str(caught.value) and caught.value.remedy


def test_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo \xe2\x80\xa8same\r\n\r\nthree\r\n")
    assert loaded(path, blocks=True) == ("one\ntwo \u2028same", "three")


def test_a_missing_file_has_a_near_name(tmp_path: Path) -> None:
    write(tmp_path / "corpus.txt")
    with pytest.raises(DataError, match="does not exist") as caught:
        lf.load_task(tmp_path / "corpsu.txt", kind="masked-lm")
    assert "corpus.txt" in (caught.value.remedy or "")


@pytest.mark.filterwarnings("ignore:.*lines are empty")
def test_folders_splits_and_other_names(tmp_path: Path) -> None:
    for name in ("train.txt", "dev.txt"):
        write(tmp_path / name)
    task = lf.load_task(tmp_path, kind="denoising", blocks=True)
    assert task.splits == ("train", "validation") and task.name == tmp_path.name
    assert task.examples("train").ids[1] == "train-1"
    assert loaded(write(tmp_path / "wiki.valid.raw")) == LINES
    assert lf.load_task(tmp_path / "train.txt", kind="masked-lm").splits == ("train",)
    alone = lf.load_task(tmp_path / "wiki.valid.raw", kind="masked-lm")
    with pytest.raises(DataError, match="no split 'train'") as caught:
        alone.examples("train")
    assert "{'train': path}" in (caught.value.remedy or "")


def test_txt_with_a_text_column_stays_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text\tlabel\na fine film\t1\na dull one\t0\n")
    assert loaded(path, text="text") == ("a fine film", "a dull one")
    assert lf.load_task(path, text="text", label="label").n_labels == 2
    assert loaded(path) == ("text\tlabel", "a fine film\t1", "a dull one\t0")
    with pytest.raises(ConfigError, match="which column holds the text"):
        lf.load_task(path)


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "parquet"])
@pytest.mark.parametrize("kind", CORPUS_KINDS)
def test_a_text_column_without_labels(tmp_path: Path, suffix: str, kind: str) -> None:
    frame = pd.DataFrame({"sentence": ["a fine film", "a dull one"], "label": [1, 0]})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
    else:
        frame.to_csv(path, sep="\t" if suffix == "tsv" else ",", index=False)
    assert loaded(path, kind, text="sentence") == ("a fine film", "a dull one")
    with pytest.raises(ConfigError, match="which column holds the text"):
        lf.load_task(path, kind=kind)
    with pytest.raises(ConfigError, match="blocks is for plain text files"):
        lf.load_task(path, kind=kind, text="sentence", blocks=True)
    with pytest.raises(ConfigError, match="blocks is for plain text"):
        lf.load_task(path, text="sentence", label="label", blocks=True)


@pytest.mark.parametrize("option", [{"id": "n"}, {"delimiter": ";"}, {"quoting": True}], ids=str)
def test_plain_text_has_no_columns(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not go with plain text"):
        lf.load_task(write(tmp_path / "a.txt"), kind="masked-lm", **option)


def test_a_known_task_as_a_corpus(tmp_path: Path) -> None:
    """The texts of a catalogue task, without its labels."""
    write(tmp_path / "dev.tsv", "sentence\tlabel\na fine film\t1\na dull one\t0\n")
    assert loaded("sst2", data_dir=tmp_path) == ("a fine film", "a dull one")
    task = lf.load_task("sst2", kind="causal-lm", data_dir=tmp_path)
    assert (task.kind, task.label_names, task.metrics[0]) == ("causal-lm", (), "loss")
    pair = lf.load_task("embedded", kind="masked-lm")
    assert len(pair.examples("validation", rows=3).texts[0]) == 2
    with pytest.raises(ConfigError, match="one text per row"):
        lf.load_task("embedded", kind="denoising")
    with pytest.raises(ConfigError, match="kind is fixed"):
        lf.load_task("sst2", kind="regression", data_dir=tmp_path)


def test_a_hub_data_set_as_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"title": ["a", "b"], "text": ["one text", "another"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **kwargs: ["train"])
    task = lf.load_task("org/wiki", subset="simple", text="text", kind="denoising")
    assert task.examples("train").texts == (("one text",), ("another",))


@pytest.mark.filterwarnings("ignore:.*lines are empty")
def test_tasks_travel_and_are_written_down(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.txt")
    task = lf.load_task(path, kind="denoising", noise_density=0.3, denoising="guided-dropout")
    prints = {
        task.fingerprint("validation"),
        pickle.loads(pickle.dumps(task)).fingerprint("validation"),
        Task.from_config(task.config).fingerprint("validation"),
        Task.from_config(TaskConfig.parse(json.loads(task.config.model_dump_json()))).fingerprint(
            "validation"
        ),
    }
    assert len(prints) == 1
    for other in ({}, {"noise_density": 0.3}, {"blocks": True}, {"mean_span": 2}):
        assert lf.load_task(path, kind="denoising", **other).fingerprint("validation") not in prints


@pytest.mark.filterwarnings("ignore:.*lines are empty")
def test_the_command_line_reads_plain_text(
    tmp_path: Path, save_checkpoint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from landform.cli.app import run

    save_checkpoint(tmp_path / "bert", kind="masked-lm")
    write(tmp_path / "corpus.txt", "w1 w2 w3\nw4 w5\n\nw6 w7 w8 w9\n")
    command = ["evaluate", str(tmp_path / "bert"), "--task", str(tmp_path / "corpus.txt")]
    command += ["--kind", "masked-lm", "--mask-rate", "0.5", "--blocks", "--json"]
    assert run(command) == 0
    (found,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert found["metrics"]["loss"] > 0 and found["examples"] == 2
    write(tmp_path / "corpus.txt", "\n\n")
    assert run(command) != 0
    assert "all 2 lines are empty" in capsys.readouterr().err
