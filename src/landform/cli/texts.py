"""How commands show texts with their scores, phases with their seconds, and what was not seen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from landform.curvature.factors import FactorSummary
from landform.curvature.layers import FROZEN, SEEN

__all__ = ["coverage_line", "print_text", "print_texts", "print_timings", "shorten_text", "text_of"]

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
LINES = 2  # that one text may take in a table
NARROW = 36  # cells beside the columns, below which texts stand under them
WIDEST = 24  # cells of a column


def text_of(record: Mapping[Any, Any]) -> list[str]:
    """The text of a row, and the second one of a pair; white space of any sort is a space."""
    pieces = [record.get(name) for name in ("text", "text_pair")]
    return [" ".join(str(piece).split()) for piece in pieces if isinstance(piece, str)]


def shorten_text(text: str, cells: int) -> str:
    """A text in at most so many cells of the terminal (some letters take two)."""
    if cell_len(text) <= cells:
        return text
    kept = set_cell_size(text, max(cells - 1, 1)).rstrip()
    # A word is left whole where that costs little.
    head = kept.rpartition(" ")[0]
    return f"{head if cell_len(head) > 0.8 * cells else kept}{ELLIPSIS}"


def print_text(record: Mapping[Any, Any]) -> None:
    """The texts of a row in full width, each shortened to a few lines."""
    width = Console().width
    for piece in text_of(record):
        text = shorten_text(piece, 3 * (width - 2) - 10)
        print(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  "))


def print_texts(
    sections: Iterable[tuple[str, Sequence[Mapping[Any, Any]]]],
    columns: Sequence[str],
    *,
    empty: str = "none",
) -> None:
    """A table of texts in sections, each with a heading over its texts.

    The records have the keys of `columns` (values that are shown as they are), text and text_pair.
    A column that is empty everywhere is left out. Where little room is left beside the columns,
    the texts stand below them.
    """
    console = Console(highlight=False)
    parts = [(title, list(records)) for title, records in sections]
    every = [record for _, records in parts for record in records]
    cells = {name: [str(record.get(name, "")) for record in every] for name in columns}
    layout = [_Column.of(name, values) for name, values in cells.items() if any(values)]
    used = sum(column.width + 2 for column in layout)
    beside = console.width - used >= NARROW
    indent = used if beside else 4
    for title, records in parts:
        head = "".join(column.place(column.name) for column in layout)
        _print_line(console, Text.assemble((head, "dim"), (title, "bold")))
        for record in records:
            first = "".join(column.place(str(record.get(column.name, ""))) for column in layout)
            lines = _text_lines(console, record, console.width - indent)
            if not beside:
                _print_line(console, Text(first))
                first = " " * indent
            for line in lines:
                _print_line(console, Text(first) + line)
                first = " " * indent
        if not records:
            _print_line(console, Text(" " * used + empty, "dim"))


@dataclass(frozen=True)
class _Column:
    """A column of a table of texts: numbers to the right, words to the left."""

    name: str
    width: int
    right: bool

    @classmethod
    def of(cls, name: str, values: Sequence[str]) -> _Column:
        numbers = all(value.lstrip("+-")[:1].isdigit() for value in values if value)
        return cls(name, min(max(map(cell_len, [name, *values])), WIDEST), numbers)

    def place(self, value: str) -> str:
        """The value in its column, and two blanks."""
        value = shorten_text(value, self.width)
        blanks = " " * (self.width - cell_len(value))
        return f"{blanks}{value}  " if self.right else f"{value}{blanks}  "


def _text_lines(console: Console, record: Mapping[Any, Any], room: int) -> list[Text]:
    """The texts of a record in at most LINES lines each."""
    lines: list[Text] = []
    for piece in text_of(record):
        wrapped = list(Text(piece).wrap(console, room))
        if len(wrapped) > LINES:
            rest = " ".join(line.plain.rstrip() for line in wrapped[LINES - 1 :])
            wrapped = [*wrapped[: LINES - 1], Text(shorten_text(rest, room))]
        lines += wrapped
    return lines or [Text("")]


def _print_line(console: Console, line: Text) -> None:
    line.rstrip()
    console.print(line, no_wrap=True, overflow="ignore", crop=False)


def print_timings(timings: Mapping[str, float]) -> None:
    """Seconds of every phase, and their share."""
    phases = {name: value for name, value in timings.items() if name != "total"}
    total = sum(phases.values())
    rows = [(name, value, f"{value / (total or 1):.0%}") for name, value in phases.items()]
    width = max(len(name) for name in ["phase", *phases])
    print(f"{'phase':<{width}}  {'seconds':>9}  share")
    for name, value, share in [*rows, ("total", total, "")]:
        print(f"{name:<{width}}  {value:9.2f}  {share:>5}".rstrip())


def coverage_line(factors: FactorSummary) -> str:
    """What the factors see of the model, and why they do not see the rest."""
    by_status = factors.coverage.groupby("status", sort=False).parameters.sum()
    total = int(factors.coverage.parameters[factors.coverage.status != FROZEN].sum())
    seen = int((factors.coverage.status == SEEN).sum())
    rest = [
        f"{str(status).removeprefix('no curvature for ')} ({_count(count)})"
        for status, count in by_status.sort_values(ascending=False).items()
        if status != SEEN and count
    ]
    text = (
        f"coverage: {seen} layers, {_count(int(by_status.get(SEEN, 0)))} of {_count(total)} "
        f"{'trained ' if FROZEN in by_status else ''}parameters ({100 * factors.share:.1f} %)"
    )
    return f"{text}; not seen: {', '.join(rest)}" if rest else text


def _count(number: int) -> str:
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return str(number)
