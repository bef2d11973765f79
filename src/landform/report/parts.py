"""What pages are made of: figures as images, data frames as tables, data blocks for the script.

Every function returns plain values for the templates, which escape them.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from landform.errors import ConfigError
from landform.report.style import MINUS, Figure, is_known, styled
from landform.store.fingerprint import to_plain

__all__ = [
    "NO_PICTURE",
    "TEXTS",
    "Kind",
    "Row",
    "Together",
    "all_rounded",
    "as_text",
    "cut",
    "data_table",
    "fact",
    "packed",
    "picture",
    "pretty",
    "rounded",
    "table_cell",
    "texts_of",
    "with_interval",
    "with_texts",
]

Row = dict[str, Any]

TEXTS = ("text", "text_pair")  # the columns of a table of examples that hold sentences
COMPRESS_FROM = 200_000  # characters of JSON from which gzip is worth a page source one cannot read


@dataclass(frozen=True)
class Together:
    """What a section shows above its results: a table, and figures of several of them."""

    table: Row | None = None
    figures: Sequence[Row] = ()


@dataclass(frozen=True)
class Kind:
    """How one kind of result is shown.

    `context` gives what the template needs for a result, with its anchor on the page and whether
    the section has few enough results for figures; `name` gives a result's heading. `together` is
    called with the (name, result) pairs of one kind in a section; `guide` is the template that
    explains the words used.
    """

    title: str
    template: str
    context: Callable[[Any, str, bool], Row]
    name: Callable[[Any], str]
    guide: str = "reading.html.j2"
    together: Callable[[Sequence[tuple[str, Any]]], Together] | None = None


def fact(label: str, value: Any, note: str = "") -> Row:
    """A key number of a result: what it is, the number as it is shown, and what to know of it."""
    return {"label": label, "value": value, "note": note}


# --- figures as images ------------------------------------------------------------------------


NO_PICTURE: Row = {"source": "", "caption": ""}
"""What a template shows nothing of."""


def picture(
    draw: Callable[..., Figure], *arguments: Any, alt: str, caption: str = "", **options: Any
) -> Row:
    """A figure as an SVG image; where there is no such figure, the reason as a note."""
    try:
        figure = draw(*arguments, **options)
    except ConfigError as error:
        return {"source": "", "caption": error.what[:1].upper() + error.what[1:] + "."}
    source, size = _svg(figure)
    # Drawn for 3.5 inches of paper; on a screen 1.35 times that is comfortable to read.
    width, height = (round(inches * 96 * 1.35) for inches in size)
    return {
        "source": source,
        "alt": alt,
        "caption": caption,
        "width": width,
        "height": height,
        "kind": "wide" if size[0] > 5 else "column",
    }


@styled
def _svg(figure: Figure) -> tuple[str, tuple[float, float]]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=200)
    # An image rather than inline SVG: its ids cannot clash, and nothing in it can run.
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = figure.get_size_inches()
    return f"data:image/svg+xml;base64,{encoded}", (float(width), float(height))


# --- tables -----------------------------------------------------------------------------------


def as_text(value: Any, digits: int = 4) -> str:
    """A number for a table cell; nothing for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return f"{float(value):.{digits}g}".replace("-", MINUS)
    return str(value)


def table_cell(value: Any, *, text: str | None = None, colour: str | None = None) -> Row:
    """A cell: what it shows (`text`, by default the value) and what it sorts by."""
    missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    numeric = isinstance(value, int | float | np.integer | np.floating)
    key = "" if missing else float(value) if numeric else value
    return {
        "text": as_text(value) if text is None else text,
        "value": key,
        "numeric": numeric or missing,
        "colour": colour,
        "prose": False,
    }


def data_table(
    frame: pd.DataFrame,
    label: str,
    *,
    titles: Mapping[str, str] | None = None,
    caption: str = "",
    mark: Callable[[Row], str] | None = None,
    colours: Mapping[str, str] | None = None,
    prose: Sequence[str] = (),
) -> Row:
    """A data frame for the template; the first column heads the rows.

    Columns named in `prose` hold sentences, which may run over several lines.
    """
    columns = [str(column) for column in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
    rows = []
    for record in frame.to_dict("records"):
        cells = [table_cell(value) for value in record.values()]
        if colours:
            cells[0]["colour"] = colours.get(str(next(iter(record.values()))))
        for name in prose:
            if name in columns:
                cells[columns.index(name)]["prose"] = True
        named = {str(key): value for key, value in record.items()}
        rows.append({"cells": cells, "mark": mark(named) if mark else ""})
    titles = titles or {}
    return {
        "label": label,
        "caption": caption,
        "sortable": len(rows) > 1,
        "columns": [
            {"title": titles.get(c, c.replace("_", " ")), "numeric": n}
            for c, n in zip(columns, numeric, strict=True)
        ],
        "rows": rows,
    }


def with_interval(value: float, low: float, high: float) -> str:
    """`value [low, high]`."""
    return f"{as_text(value, 3)} [{as_text(low, 3)}, {as_text(high, 3)}]"


# --- texts of examples ------------------------------------------------------------------------


def cut(text: object, letters: int) -> str:
    """A text of at most `letters` characters, which says how long it was where it is cut."""
    words = str(text).strip()
    if len(words) <= letters:
        return words
    return f"{words[:letters].rstrip()} \N{HORIZONTAL ELLIPSIS} ({len(words):,} characters)"


def texts_of(record: Mapping[Any, Any], letters: int) -> list[str]:
    """The texts of an example, each cut to `letters`: one, or two for a pair."""
    pieces = (record.get(name) for name in TEXTS)
    return [cut(text, letters) for text in pieces if is_known(text)]


def with_texts(table: pd.DataFrame, letters: int) -> pd.DataFrame:
    """The table with its texts cut to `letters`, empty where there is none."""
    return table.assign(
        **{
            name: [cut(text, letters) if is_known(text) else "" for text in table[name]]
            for name in TEXTS
            if name in table
        }
    )


# --- data for the script ----------------------------------------------------------------------


def rounded(value: Any) -> float | None:
    """Four digits, which is all that a screen shows; None for what is no number."""
    number = float(value)
    return float(f"{number:.4g}") if math.isfinite(number) else None


def all_rounded(values: np.ndarray) -> list[float | None]:
    """`rounded` of every value."""
    return [rounded(value) for value in values]


def packed(data: Row) -> tuple[str, str]:
    """(encoding, text) of a data block for the page: JSON, or gzip in base64 when it is long."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    if len(text) >= COMPRESS_FROM:
        packed = gzip.compress(text.encode("ascii"), 9, mtime=0)
        return "gzip+base64", base64.b64encode(packed).decode("ascii")
    # Within a script element only these could end it or start a comment.
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return "json", text


def pretty(value: Any) -> str:
    """A value as indented JSON, nothing for an empty one."""
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False) if value else ""
