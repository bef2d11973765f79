"""Reading local files: what is written is what comes out, and faults are named with their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landform.errors import DataError
from landform.tasks.sources import FileFormat, HubSource, read_columns, read_file, table_of
from landform.tasks.tables import read_document


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault(path: Path, form: FileFormat | None = None, columns: list[str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_file(path, form, columns)
    assert caught.value.remedy
    return str(caught.value)


STRANGE = ["NA", "null", "None", "nan", "007", "1.50", "-", " padded ", "#", "TRUE", "1e5"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".txt"])
def test_text_is_never_interpreted(tmp_path: Path, suffix: str) -> None:
    mark = "," if suffix == ".csv" else "\t"
    body = "".join(f"{value}{mark}1\n" for value in STRANGE)
    table = read_file(write(tmp_path / f"a{suffix}", f"text{mark}label\n{body}"))
    assert table.values("text") == STRANGE
    assert table.values("label") == ["1"] * len(STRANGE)


def test_tsv_quotes_are_ordinary_characters_by_default(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"Hi," he said\t0\na "b\t1\n"c\td"\n')
    assert read_file(path).values("text") == ['"Hi," he said', 'a "b', '"c']
    quoted = write(tmp_path / "b.tsv", 'text\tlabel\n"a\tb ""c"""\t0\n')
    assert read_file(quoted, FileFormat(quoting=True)).values("text") == ['a\tb "c"']


def test_csv_quoting_line_breaks_and_the_lines_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one, two",0\n"first\nsecond",1\nlast,0\n')
    table = read_file(path)
    assert table.values("text") == ["one, two", "first\nsecond", "last"]
    assert table.lines is not None and table.lines.tolist() == [2, 3, 5]
    assert table.place(2) == f"{path}, line 5"
    plain = write(tmp_path / "b.csv", 'text,label\n"a,0\n')
    assert read_file(plain, FileFormat(quoting=False)).values("text") == ['"a']


def test_byte_order_mark_crlf_and_trailing_blank_lines(tmp_path: Path) -> None:
    for name in ("a.tsv", "a.csv"):
        mark = "\t" if name.endswith("tsv") else ","
        content = f"text{mark}label\r\nä b{mark}0\r\nc{mark}1\r\n\r\n\r\n"
        path = write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
        assert read_columns(path) == ("text", "label")
        table = read_file(path)
        assert table.values("text") == ["ä b", "c"]
        assert table.values("label") == ["0", "1"]


def test_unicode_line_separators_inside_text_do_not_end_a_row(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0cd"
    path = write(tmp_path / "a.tsv", f"text\tlabel\n{text}\t0\n")
    assert read_file(path).values("text") == [text]
    rows = write(tmp_path / "a.jsonl", json.dumps({"text": text}, ensure_ascii=False))
    assert read_file(rows).values("text") == [text]


def test_header_option_delimiter_and_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "gj04\t1\t\tA sentence.\n")
    form = FileFormat(header=("source", "label", "mark", "sentence"))
    table = read_file(path, form, ["sentence", "label"])
    assert list(table.frame.columns) == ["sentence", "label"]
    assert table.place(0).endswith("line 1")
    assert read_columns(path, form) == form.header
    other = write(tmp_path / "b.csv", "text;label\na,b;1\n")
    assert read_file(other, FileFormat(delimiter=";")).values("text") == ["a,b"]
    assert "delimiter" in fault(other, None, ["text"])


def test_jsonl_json_and_parquet_keep_types(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"words": ["a", "b"], "tags": [0, 1], "n": 1, "text": "NA"},
        {"words": ["c"], "tags": [1], "n": None, "text": "007"},
    ]
    lines = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    array = write(tmp_path / "a.json", json.dumps(rows, indent=1))
    as_lines = write(tmp_path / "b.json", "\n".join(map(json.dumps, rows)))
    parquet = tmp_path / "a.parquet"
    pd.DataFrame(rows).to_parquet(parquet)
    for path in (lines, array, as_lines, parquet):
        table = read_file(path)
        assert table.values("words") == [["a", "b"], ["c"]], path
        assert table.values("text") == ["NA", "007"]
        assert table.values("n")[0] == 1
        assert read_columns(path) == ("words", "tags", "n", "text")
    assert read_file(lines).place(1).endswith("line 2")
    assert read_file(parquet).place(1).endswith("row 2")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", "", ["a.tsv", "empty"]),
        ("a.csv", "\n\n", ["a.csv", "empty"]),
        ("a.tsv", "text\tlabel\n", ["header and no rows"]),
        ("a.csv", "text,label\r\n\r\n", ["header and no rows"]),
        ("a.jsonl", "\n", ["empty"]),
        ("a.json", "[]", ["no rows"]),
        ("a.tsv", "text\tlabel\na\t0\nb\n", ["line 3", "1 columns", "2 were expected"]),
        ("a.tsv", "text\tlabel\na\t0\nb\t1\tc\n", ["line 3", "3 columns"]),
        ("a.tsv", "text\tlabel\na\t0\n\nb\t1\n", ["line 3", "blank line"]),
        ("a.csv", 'text,label\n"a\nb",0\nc\n', ["line 4", "1 columns"]),
        ("a.csv", 'text,label\na,0\n"b,1\nc,0\n', ["line 3", "quoting"]),
        ("a.csv", 'text,label\n"a"b,0\n', ["line 2", "quoting"]),
        ("a.tsv", "text\ttext\na\t0\n", ["'text' occurs twice"]),
        ("a.tsv", b"text\tlabel\na\t0\nb\0\t1\n", ["line 3", "byte 2", "NUL"]),
        ("a.csv", b"text,label\na,0\nb\xe9,1\n", ["line 3", "byte 2", "0xe9", "UTF-8"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ["line 2", "byte 11", "UTF-8"]),
        ("a.tsv", "text\tlabel\na\t0\n".encode("utf-16"), ["UTF-16"]),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', ["line 2", "broken JSON"]),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', ["line 2", "object was expected", "list"]),
        ("a.json", '[{"text": "a"},\n{"text" "b"}]', ["line 2", "broken JSON"]),
        ("a.json", '[{"text": "a"}, 3]', ["record 2", "object was expected"]),
        ("a.parquet", "PAR1 no", ["a.parquet", "Parquet"]),
        ("a.xlsx", "x", [".xlsx", "not a known kind"]),
    ],
)
def test_faults_name_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, expected: list[str]
) -> None:
    message = fault(write(tmp_path / name, content))
    assert name in message
    for part in expected:
        assert part in message


def test_missing_file_folder_and_truncated_parquet(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", "text\na\n")
    assert "train.tsv" in fault(tmp_path / "trian.tsv").split("what to do")[1]
    folder = tmp_path / "b.tsv"
    folder.mkdir()
    assert "folder" in fault(folder)
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["a"] * 1000}).to_parquet(path)
    write(path, path.read_bytes()[:-20])
    assert "Parquet" in fault(path)
    pd.DataFrame({"text": []}).to_parquet(path)
    assert "no rows" in fault(path)


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    frame = pd.DataFrame({"sentence": ["a"], "label": ["1"]})
    if suffix == ".tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    message = fault(path, None, ["sentense"])
    assert f"a{suffix}" in message and "'sentense'" in message
    assert "did you mean 'sentence'" in message and "'label'" in message


def test_bad_rows_can_be_left_out_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\na\t0\nb\nc\t1\nd\t1\t2\n")
    assert "2 such rows" in fault(path)
    with pytest.warns(UserWarning, match=r"2 rows left out.*line 3"):
        table = read_file(path, FileFormat(skip_bad_rows=True))
    assert table.values("text") == ["a", "c"]
    assert table.lines is not None and table.lines.tolist() == [2, 4]


def test_a_field_larger_than_the_csv_modules_limit(tmp_path: Path) -> None:
    long = "x" * 300_000
    path = write(tmp_path / "a.csv", f'text,label\n"{long}",0\n')
    assert read_file(path).values("text") == [long]


def test_parquet_with_broken_text(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = pa.array([b"ok", b"\xff\xfe"], type=pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert "UTF-8" in fault(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_a_hundred_thousand_rows(tmp_path: Path, suffix: str) -> None:
    rows = 100_000
    if suffix == ".jsonl":
        body = "".join(
            f'{{"text": "sentence number {i}", "label": {i % 2}}}\n' for i in range(rows)
        )
    else:
        mark = "," if suffix == ".csv" else "\t"
        body = f"text{mark}label\n" + "".join(
            f"sentence number {i}{mark}{i % 2}\n" for i in range(rows)
        )
    path = write(tmp_path / f"a{suffix}", body)
    table = read_file(path)
    assert len(table) == rows
    assert table.values("text")[-1] == f"sentence number {rows - 1}"


def test_python_values(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", None], "n": [1, 2]}, index=[7, 7])
    table = table_of(frame, "given data")
    assert table.values("text") == ["a", None] and table.values("n") == [1, 2]
    assert table_of([{"text": "a"}, {"text": "b", "x": 1}], "d").values("x") == [None, 1]
    for value in (pd.DataFrame({"text": []}), [], 3, "text", [1]):
        with pytest.raises(DataError, match="given data"):
            table_of(value, "given data")


def _fake_hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *a, **k: ["train", "test"])


def test_hub_data_sets_with_declared_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "PER"])),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "idx": datasets.Value("int32"),
        }
    )
    data = datasets.Dataset.from_dict(
        {"tokens": [["a"], ["b", "c"]], "tags": [[0], [1, 0]], "label": [1, 0], "idx": [0, 1]},
        features=features,
    )
    asked: list[Any] = []

    def load(name: str, subset: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, subset, split, revision))
        return data

    _fake_hub(monkeypatch, load)
    source = HubSource("org/name", "en", "v2", {"validation": "dev"})
    table = source.read("validation", ["tokens", "tags", "label"])
    assert asked == [("org/name", "en", "dev", "v2")]
    assert table.values("tokens") == [["a"], ["b", "c"]]
    assert table.values("label") == [1, 0]
    assert table.label_names == {"tags": ("O", "PER"), "label": ("neg", "pos")}
    assert HubSource("org/name").splits == ("train", "test")
    with pytest.raises(DataError, match="org/name/en:validation"):
        source.read("validation", ["lable"])


def test_an_unreachable_hub_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nlong story")

    _fake_hub(monkeypatch, load)
    with pytest.raises(DataError) as caught:
        HubSource("org/name", "en").read("train")
    assert "org/name" in str(caught.value) and "Couldn't reach the Hub" in str(caught.value)
    assert "long story" not in str(caught.value)
    assert "data_dir" in str(caught.value.remedy)


def test_slices_keep_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\n" + "".join(f"t{i}\n" for i in range(6)))
    part = read_file(path).slice(4, None)
    assert part.values("text") == ["t4", "t5"]
    assert np.array_equal(part.lines, [6, 7])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="6 rows"):
        read_file(path).slice(6, None)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000], ids=["digits", "deep"])
def test_json_that_python_refuses(tmp_path: Path, name: str, value: str) -> None:
    """Both ended in a ValueError or RecursionError of the parser."""
    body = f'{{"text": {value}}}'
    file = write(tmp_path / name, f"[{body}]" if name.endswith(".json") else body)
    assert "line 1: broken JSON" in fault(file)


def test_parquet_with_a_value_that_python_cannot_hold(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dates = pa.array([2**40], pa.timestamp("s"))
    pq.write_table(pa.table({"text": dates}), tmp_path / "rows.parquet")
    assert "rows.parquet is not a readable Parquet file" in fault(tmp_path / "rows.parquet")


def test_damaged_parquet_files(tmp_path: Path) -> None:
    """Every byte of a small file, set to another value: rows, or an error that names the file."""
    frame = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    frame.to_parquet(tmp_path / "whole.parquet", index=False)
    whole = (tmp_path / "whole.parquet").read_bytes()
    faults = 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        file = write(tmp_path / "rows.parquet", bytes(damaged))
        try:
            read_file(file)
        except DataError as error:
            faults += 1
            assert "rows.parquet" in error.what
    assert faults > len(whole) // 12


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "no JSON object"),
        ("{}", "an empty one"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ('{"a": ', "not JSON, or cut short"),
        ("[" * 100_000, "not JSON"),
        (b"\xff", "line 1, byte 1"),
    ],
    ids=["list", "empty", "twice", "cut", "deep", "bytes"],
)
def test_documents(tmp_path: Path, content: str | bytes, says: str) -> None:
    file = write(tmp_path / "d.json", content)
    with pytest.raises(DataError, match=says) as caught:
        read_document(file, "expected {...}")
    assert "d.json" in caught.value.what
    write(file, '{"a": [1]}')
    assert read_document(file, "") == {"a": [1]}


@pytest.mark.parametrize(("start", "stop", "rows"), [(0, 3, "1 to 3"), (2, None, "from 3 on")])
def test_a_part_that_the_file_does_not_reach(start: int, stop: int | None, rows: str) -> None:
    """400 rows of CoLA passed for its 527 rows in domain."""
    table = table_of([{"text": "a"}, {"text": "b"}], "rows")
    assert len(table.slice(0, 2)) == 2
    with pytest.raises(DataError, match=f"has 2 rows; rows {rows} were expected"):
        table.slice(start, stop)
