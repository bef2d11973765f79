"""Tables: what a data file, or a value given in Python, holds, row by row.

Every reader returns a `Table`: named columns, plus the file line of every row, so that a later
complaint about a value can say where it stands. Text is never interpreted: "NA", "null", "None"
and "007" in a text file stay exactly as written.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from warnings import warn

import numpy as np
import pandas as pd

from landform.config import nearest
from landform.errors import ConfigError, DataError

__all__ = [
    "PLAIN_TEXT",
    "SUFFIXES",
    "FileFormat",
    "Table",
    "any_field_size",
    "chosen_columns",
    "delimiter_hint",
    "frame_of",
    "is_plain_text",
    "is_text_table",
    "missing_column",
    "read_columns",
    "read_document",
    "read_file",
    "read_text",
    "select",
    "table_of",
]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
SUFFIXES = (*_DELIMITERS, *_JSON_LINES, ".json", *_PARQUET)
PLAIN_TEXT = "text"
"""The one column of a plain text file."""


def is_plain_text(path: Path) -> bool:
    """Whether a file's name leaves open that it holds text and no table: .txt, .raw, ..."""
    return path.suffix.lower() not in SUFFIXES or path.suffix.lower() == ".txt"


def is_text_table(path: Path) -> bool:
    """Whether a file's name says that it is a table of delimited text: .csv, .tsv, .txt."""
    return path.suffix.lower() in _DELIMITERS


@dataclass(frozen=True)
class FileFormat:
    """How a text table is written. The defaults follow the file's suffix."""

    quoting: bool | None = None
    """Whether double quotes enclose fields. None: yes in .csv, no in .tsv and .txt (GLUE's TSV
    files use the quote as an ordinary character)."""
    delimiter: str | None = None
    """The character between fields. None: a comma in .csv, a tab in .tsv and .txt."""
    header: tuple[str, ...] | None = None
    """Column names of a file that has no header line."""
    skip_bad_rows: bool = False
    """Leave out rows with the wrong number of columns, with a warning, instead of failing."""
    plain: Literal["lines", "blocks"] | None = None
    """The file is no table but plain text: one text per line, or per block of lines between blank
    ones, in the column `PLAIN_TEXT`."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one split with named columns.

    `lines` holds the 1-based line of the file at which each row starts; None where rows have no
    line (Parquet, JSON arrays, hub data sets, Python values). `label_names` holds the class names
    that a hub data set declares, per column.
    """

    frame: pd.DataFrame
    origin: str
    lines: np.ndarray | None = None
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    def place(self, row: int) -> str:
        """Where row `row` (0-based) stands, for an error message."""
        if self.lines is None:
            return f"{self.origin}, row {row + 1}"
        return f"{self.origin}, line {self.lines[row]}"

    def values(self, column: str) -> list[Any]:
        """The values of one column as Python objects; `DataError` when it is not there."""
        if column not in self.frame.columns:
            raise missing_column(column, tuple(self.frame.columns), self.origin)
        return list(self.frame[column].tolist())

    def slice(self, start: int, stop: int | None) -> Table:
        """Rows `start` to `stop`; an error when the source does not reach that far."""
        if (start >= len(self) and start > 0) or (stop is not None and stop > len(self)):
            rows = f"from {start + 1} on" if stop is None else f"{start + 1} to {stop}"
            raise DataError(
                f"{self.origin} has {len(self)} rows; rows {rows} were expected",
                remedy="check that the file is complete",
            )
        lines = None if self.lines is None else self.lines[start:stop]
        frame = self.frame.iloc[start:stop].reset_index(drop=True)
        return Table(frame, self.origin, lines, self.label_names)


def missing_column(column: str, known: Sequence[str], origin: str) -> DataError:
    """The error for a column that is not there, with the nearest name."""
    guess = nearest(column, known)
    remedy = f"did you mean {guess!r}? " if guess else ""
    remedy += f"Columns: {', '.join(map(repr, known)) or '(none)'}"
    remedy += delimiter_hint(known)
    return DataError(f"{origin}: there is no column {column!r}", remedy=remedy)


def delimiter_hint(known: Sequence[str]) -> str:
    """The end of a remedy where all columns of a file seem to have been read as one."""
    marks = max(";\t,|", key=known[0].count) if len(known) == 1 else ""
    if not marks or marks not in known[0]:
        return ""
    return f"; the header looks like several columns: give the right delimiter={marks!r}"


# ---------------------------------------------------------------------------------- local files


def read_file(
    path: str | Path,
    form: FileFormat | None = None,
    columns: Sequence[str] | None = None,
    optional: Sequence[str] = (),
) -> Table:
    """Read a CSV, TSV, TXT (tab-separated), JSONL, JSON or Parquet file, or plain text.

    `columns` limits what is kept: these columns, which must exist, and those of `optional` that
    do. None keeps all. Values of text tables are strings;
    JSON and Parquet keep their types. UTF-8 with or without a byte-order mark, LF or CRLF line
    ends. Raises `DataError` naming file, line and column.
    """
    path, form = Path(path), form or FileFormat()
    if form.plain is not None:
        return select(_read_plain(path, form.plain), columns, optional)
    suffix = _suffix(path)
    if suffix in _PARQUET:
        return _read_parquet(path, columns, optional)
    text = _decode(path, _bytes(path))
    if suffix in _DELIMITERS:
        return _read_delimited(path, text, form, columns, optional)
    return _read_json(path, text, columns, optional)


def chosen_columns(
    known: Sequence[str], columns: Sequence[str] | None, optional: Sequence[str], origin: str
) -> tuple[str, ...]:
    """The columns to keep; an error names the first one that is not there."""
    if columns is None:
        return tuple(known)
    for column in columns:
        if column not in known:
            raise missing_column(column, known, origin)
    return tuple(dict.fromkeys([*columns, *(name for name in optional if name in known)]))


def read_columns(path: str | Path, form: FileFormat | None = None) -> tuple[str, ...]:
    """The column names of a local file, read without its rows where the format allows it."""
    path, form = Path(path), form or FileFormat()
    if form.plain is not None:
        _check_file(path)
        return (PLAIN_TEXT,)
    suffix = _suffix(path)
    if suffix in _PARQUET:
        return tuple(_open_parquet(path).schema_arrow.names)
    if form.header is not None and suffix in _DELIMITERS:
        _check_file(path)
        return form.header
    with _opened(path) as stream:
        if suffix in _DELIMITERS and not _quoted(path, form):
            return tuple(_first_line(path, stream.readline()).split(_delimiter(path, form)))
        if suffix in _DELIMITERS:
            return _quoted_header(path, form, stream.readline())
    frame = read_file(path, form).frame
    return tuple(str(name) for name in frame.columns)


_ELSEWHERE = [
    ((".xlsx", ".xls", ".ods"), "save the sheet as CSV (UTF-8); "),
    ((".gz", ".zip", ".bz2", ".xz", ".zst"), "unpack it first; "),
]
"""Kinds of files that many a table lies in, and what to do with them."""


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        first = next((advice for ends, advice in _ELSEWHERE if suffix in ends), "")
        raise DataError(
            f"{path}: {suffix or 'no suffix'} is not a known kind of data file",
            remedy=f"{first}use one of {', '.join(SUFFIXES)}",
        )
    return suffix


def _check_file(path: Path) -> None:
    if not path.exists():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = nearest(path.name, names)
        raise DataError(
            f"data file {path} does not exist",
            remedy=f"did you mean {path.parent / guess}?" if guess else "check the path",
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder; a data file was expected", remedy="name the file")


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    _check_file(path)
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}", remedy="check its permissions"
        ) from None


def read_document(path: str | Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file, in which no key is given twice.

    Raises `DataError` that names the file for anything else; `expected` is its remedy.
    """
    file = Path(path)
    try:
        document = json.loads(read_text(file), object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON, or cut short: {error}", remedy=expected) from None
    if not isinstance(document, dict) or not document:
        raise DataError(f"{file} holds no JSON object, or an empty one", remedy=expected)
    return document


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return found


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, line ends as they are; `DataError` names the file and the byte
    that is not UTF-8, or is a NUL."""
    return _decode(Path(path), _bytes(Path(path)))


def _bytes(path: Path) -> bytes:
    with _opened(path) as stream:
        return stream.read()


def _decode(path: Path, raw: bytes) -> str:
    """UTF-8 text of a file; names line and byte of what is not UTF-8, or is a NUL."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16", remedy="save it as UTF-8")
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if (at := raw.find(b"\0")) >= 0:
        raise DataError(
            f"{path}, {_position(raw, at)}: NUL character",
            remedy="remove the NUL characters, e.g. tr -d '\\000' < file > clean",
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, {_position(raw, error.start)}: byte 0x{raw[error.start]:02x} is not valid"
            f" UTF-8 ({error.reason})",
            remedy="convert the file, e.g. iconv -f LATIN1 -t UTF-8 file > clean",
        ) from None


def _position(raw: bytes, at: int) -> str:
    line = raw.count(b"\n", 0, at) + 1
    byte = at - raw.rfind(b"\n", 0, at)
    return f"line {line}, byte {byte} of the line"


def _delimiter(path: Path, form: FileFormat) -> str:
    given = form.delimiter or _DELIMITERS[path.suffix.lower()]
    if given == "\\t":  # a shell hands the two characters on as they were typed
        return "\t"
    if len(given) != 1 or given in '"\r\n':
        raise ConfigError(
            f"option delimiter must be one character, not {given!r}",
            remedy="pass ';', ',', '|', or '\\t' for a tab; or leave it out",
        )
    return given


def _quoted(path: Path, form: FileFormat) -> bool:
    return path.suffix.lower() == ".csv" if form.quoting is None else form.quoting


def _first_line(path: Path, raw: bytes) -> str:
    line = _decode(path, raw).removesuffix("\n").removesuffix("\r")
    if not line:
        raise DataError(f"{path} is empty", remedy="a header line and data rows were expected")
    return line


def _quoted_header(path: Path, form: FileFormat, raw: bytes) -> tuple[str, ...]:
    line = _first_line(path, raw)
    try:
        (names,) = csv.reader([line], delimiter=_delimiter(path, form), strict=True)
    except (csv.Error, ValueError):
        # A name that holds a line break: only the whole file tells where the header ends.
        table = read_file(path, form)
        return tuple(str(name) for name in table.frame.columns)
    return tuple(names)


_Rows = tuple[list[list[str]], np.ndarray]


def _read_delimited(
    path: Path,
    text: str,
    form: FileFormat,
    columns: Sequence[str] | None,
    optional: Sequence[str],
) -> Table:
    if not text.strip("\r\n"):
        raise DataError(f"{path} is empty", remedy="a header line and data rows were expected")
    delimiter = _delimiter(path, form)
    split = _split_quoted if _quoted(path, form) else _split_plain
    rows, lines = split(path, text, delimiter)
    header: Sequence[str]
    if form.header is None:
        header, rows, lines = rows[0], rows[1:], lines[1:]
    else:
        header = form.header
    _check_header(path, header)
    rows, lines = _check_widths(path, rows, lines, len(header), form)
    if not rows:
        raise DataError(
            f"{path} has a header and no rows", remedy="empty data cannot be used: add rows"
        )
    wanted = chosen_columns(header, columns, optional, str(path))
    at = {name: index for index, name in enumerate(header)}
    values = {name: [row[at[name]] for row in rows] for name in wanted}
    return Table(frame_of(values, len(rows)), str(path), lines)


def _lines(text: str) -> list[str]:
    # Not str.splitlines: it also breaks at U+2028, U+0085 and others that occur inside text.
    lines = text.split("\n")
    if "\r" in text:
        lines = [line.removesuffix("\r") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _read_plain(path: Path, unit: Literal["lines", "blocks"]) -> Table:
    """The texts of a plain text file and the lines at which they begin; empty ones are left out."""
    text = read_text(path)
    lines = _lines(text)
    full = [bool(line.strip()) for line in lines]
    if not any(full):
        count = len(text.splitlines())
        raise DataError(
            f"{path}: all {count} lines are empty" if count else f"{path} is empty",
            remedy="plain text was expected, one text per line"
            + (", or several with a blank line between them" if unit == "blocks" else ""),
        )
    starts = [i for i, own in enumerate(full) if own]
    if unit == "blocks":
        starts = [i for i in starts if i == 0 or not full[i - 1]]
        ends = [next((j for j in range(i, len(lines)) if not full[j]), len(lines)) for i in starts]
        texts = ["\n".join(lines[i:j]) for i, j in zip(starts, ends, strict=True)]
    else:
        texts = [lines[i] for i in starts]
        if len(texts) < len(lines):
            warn(
                f"{path}: {len(lines) - len(texts)} of {len(lines)} lines are empty and were left"
                " out (blocks=True makes one text of the lines between them)",
                UserWarning,
                stacklevel=2,
            )
    numbers = np.asarray(starts, dtype=np.int64) + 1
    return Table(frame_of({PLAIN_TEXT: texts}, len(texts)), str(path), numbers)


def _split_plain(path: Path, text: str, delimiter: str) -> _Rows:
    lines = _lines(text)
    return [line.split(delimiter) for line in lines], np.arange(1, len(lines) + 1)


@contextmanager
def any_field_size(size: int) -> Iterator[None]:
    """Fields of up to `size` characters; the csv module refuses those above 128 KiB, which
    documents exceed."""
    before = csv.field_size_limit(max(size, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _split_quoted(path: Path, text: str, delimiter: str) -> _Rows:
    rows: list[list[str]] = []
    starts: list[int] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    with any_field_size(len(text) + 1):
        try:
            for row in reader:
                rows.append(row)
                starts.append(start)
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}, line {start}: broken quoting ({error})",
                remedy='close the quotes (a quote inside a quoted field is written ""), or pass'
                " quoting=False when quotes are ordinary characters in this file",
            ) from None
    while rows and not rows[-1]:
        rows.pop()
    return rows, np.asarray(starts[: len(rows)], dtype=np.int64)


def _check_header(path: Path, header: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in header:
        if name in seen:
            raise DataError(
                f"{path}: the column name {name!r} occurs twice in the header",
                remedy="give every column its own name",
            )
        seen.add(name)


def _check_widths(
    path: Path, rows: list[list[str]], lines: np.ndarray, width: int, form: FileFormat
) -> _Rows:
    bad = [index for index, row in enumerate(rows) if len(row) != width]
    if not bad:
        return rows, lines
    first = bad[0]
    count = len(rows[first]) if any(rows[first]) else 0
    fault = (
        f"{path}, line {lines[first]}: "
        + (f"{count} columns" if count else "blank line")
        + f" where {width} were expected"
    )
    if not form.skip_bad_rows:
        remedy = "repair the row, or pass skip_bad_rows=True to leave such rows out"
        if _quoted(path, form):
            remedy += "; quoting=False when quotes are ordinary characters in this file"
        raise DataError(f"{fault} ({len(bad)} such rows)", remedy=remedy)
    warn(f"{len(bad)} rows left out; the first: {fault}", UserWarning, stacklevel=2)
    good = np.ones(len(rows), dtype=bool)
    good[bad] = False
    return [row for row in rows if len(row) == width], lines[good]


def frame_of(values: Mapping[str, Sequence[Any]], rows: int) -> pd.DataFrame:
    """A data frame of columns whose values stay as they are."""
    # dtype object: pandas must not turn any text into a missing value or a number.
    series = {name: pd.Series(list(column), dtype=object) for name, column in values.items()}
    return pd.DataFrame(series, index=pd.RangeIndex(rows))


def _read_json(
    path: Path, text: str, columns: Sequence[str] | None, optional: Sequence[str]
) -> Table:
    body = text.lstrip()
    if not body:
        raise DataError(f"{path} is empty", remedy="one JSON object per row was expected")
    lines: np.ndarray | None = None
    if path.suffix.lower() == ".json" and body.startswith("["):
        try:
            records = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _broken_json(path, getattr(error, "lineno", 1), error) from None
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                raise _not_an_object(f"{path}, record {index + 1}", record)
    else:
        records, lines = _json_lines(path, text)
    if not records:
        raise DataError(f"{path} has no rows", remedy="empty data cannot be used: add rows")
    return _table_of_records(records, str(path), lines, columns, optional)


def _json_lines(path: Path, text: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _broken_json(path, number, error) from None
        if not isinstance(record, dict):
            raise _not_an_object(f"{path}, line {number}", record)
        records.append(record)
        numbers.append(number)
    return records, np.asarray(numbers, dtype=np.int64)


def _broken_json(path: Path, line: int, error: Exception) -> DataError:
    # Beside what is no JSON: a number of thousands of digits, a list in a list in a list in ...
    place = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    return DataError(
        f"{path}, line {line}: broken JSON{place} ({getattr(error, 'msg', error)})",
        remedy="write one JSON object per line (.jsonl), or one array of objects (.json)",
    )


def _not_an_object(place: str, value: Any) -> DataError:
    return DataError(
        f"{place}: a JSON object was expected, found {type(value).__name__} {str(value)[:40]!r}",
        remedy='write every row as {"column": value, ...}',
    )


def _table_of_records(
    records: Sequence[Mapping[str, Any]],
    origin: str,
    lines: np.ndarray | None,
    columns: Sequence[str] | None = None,
    optional: Sequence[str] = (),
) -> Table:
    names = tuple(dict.fromkeys(str(name) for record in records for name in record))
    broken = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
    if broken:
        raise DataError(
            f"{origin}: the name {broken[0]!r} holds half of a character",
            remedy="write the file again as UTF-8",
        )
    wanted = chosen_columns(names, columns, optional, origin)
    values = {name: [record.get(name) for record in records] for name in wanted}
    return Table(frame_of(values, len(records)), origin, lines)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: a text value is not valid UTF-8 ({error.reason})",
            remedy="write the file again with UTF-8 text",
        ) from None
    # Beside Arrow's own errors, those of values that Python cannot hold (a year 300000).
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}",
            remedy="the file may be truncated or of another format: write or download it again",
        ) from None


def _open_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    _check_file(path)
    with _parquet_errors(path):
        return pq.ParquetFile(path)


def _read_parquet(path: Path, columns: Sequence[str] | None, optional: Sequence[str]) -> Table:
    file = _open_parquet(path)
    wanted = list(chosen_columns(file.schema_arrow.names, columns, optional, str(path)))
    with _parquet_errors(path):
        data = file.read(columns=wanted)
        values = {name: data.column(name).to_pylist() for name in wanted}
    if data.num_rows == 0:
        raise DataError(f"{path} has no rows", remedy="empty data cannot be used: add rows")
    return Table(frame_of(values, data.num_rows), str(path))


# ---------------------------------------------------------------------------------------- values


def select(table: Table, columns: Sequence[str] | None, optional: Sequence[str]) -> Table:
    """The table with the columns asked for."""
    wanted = chosen_columns(tuple(table.frame.columns), columns, optional, table.origin)
    return Table(table.frame[list(wanted)], table.origin, table.lines, table.label_names)


def table_of(value: Any, origin: str) -> Table:
    """A table from a DataFrame or a sequence of mappings; `DataError` for anything else."""
    if isinstance(value, pd.DataFrame):
        frame = value.reset_index(drop=True)
        frame.columns = pd.Index([str(name) for name in frame.columns])
        _check_header(Path(origin), tuple(frame.columns))
        # Object cells: a missing value is None whatever the column's dtype was.
        cells = {
            name: [None if missing else cell for cell, missing in zip(values, gone, strict=True)]
            for name, values, gone in (
                (name, frame[name].tolist(), _missing(frame[name])) for name in frame.columns
            )
        }
        table = Table(frame_of(cells, len(frame)), origin)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, record in enumerate(value):
            if not isinstance(record, Mapping):
                raise _not_an_object(f"{origin}, row {index + 1}", record)
        table = _table_of_records(value, origin, None)
    else:
        raise DataError(
            f"{origin}: a DataFrame or a list of mappings was expected, found"
            f" {type(value).__name__}",
            remedy="give a path, a DataFrame, or a list of {column: value} mappings",
        )
    if len(table) == 0:
        raise DataError(f"{origin} has no rows", remedy="empty data cannot be used: add rows")
    return table


def _missing(series: pd.Series) -> list[bool]:
    return [bool(flag) for flag in series.isna().tolist()]
