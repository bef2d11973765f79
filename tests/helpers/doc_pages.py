"""The pages of the documentation as data: their code blocks, commands and images.

What happens to a block depends on its language and on the HTML comment above it:

    ```bash, ```console             the `landform` commands in it
    ```python                       executed; the blocks of a page share their names
    ```pycon                        a doctest, which also compares what is printed
    <!-- file: NAME -->             the block is written to NAME
    <!-- not run: REASON -->        left alone; the reason is required
    any other language              left alone

A page makes its own figures: `![what it shows](images/NAME.png)` wants a command on the same page
that writes NAME.png, by `--figure NAME.png` or `--out NAME.png` (`scripts/page_figures.py` runs
it). Of images made elsewhere a comment right above them says where: `<!-- image: REASON -->`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["COMMANDS", "PAGES", "ROOT", "Block", "Image", "blocks", "images", "prose", "runnable"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("bash", "console")

_BLOCK = re.compile(
    r"(?:^<!--\s*(?P<mark>[^\n]*?)\s*-->\s*\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```\s*$",
    re.M | re.S,
)
_WRITTEN = re.compile(r"--(?:figure|out)[ =](\S+\.png)\b")
_IMAGE = re.compile(r"^!\[(?P<alt>[^\]]*)\]\((?P<path>[^)\s]+)\)", re.M)
_REASON = re.compile(r"^<!--\s*image:\s*(?P<reason>.*?)\s*-->\s*\n(?=!\[)", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block, the line at which its text starts, and the comment above it."""

    language: str
    text: str
    line: int
    mark: str

    @property
    def file(self) -> str | None:
        return self.mark.removeprefix("file:").strip() if self.mark.startswith("file:") else None

    @property
    def runs(self) -> bool:
        runnable = (*COMMANDS, "python", "pycon")
        return self.language in runnable and not self.file and not self.mark.startswith("not run")

    def commands(self) -> list[list[str]]:
        """The words of every command; in a console block those of the lines after a `$`."""
        if self.language not in COMMANDS or self.file:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def writes(self) -> set[str]:
        """The names of the PNG files that its commands write."""
        return set(_WRITTEN.findall(self.text)) if self.language in COMMANDS else set()


@dataclass(frozen=True)
class Image:
    """An image on a page: its path as written, its line, and where it comes from if not here."""

    path: str
    line: int
    reason: str

    @property
    def name(self) -> str:
        return Path(self.path).name


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["text"],
            text.count("\n", 0, found.start("text")) + 1,
            found["mark"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def runnable(page: Path) -> list[Block]:
    """The blocks of a page that are run or written to a file, in order."""
    return [block for block in blocks(page) if block.runs or block.file]


def prose(page: Path) -> str:
    """The text of a page, its fenced blocks blanked out, line for line."""
    text = page.read_text(encoding="utf-8")
    return re.sub(
        r"^```.*?^```", lambda found: "\n" * found[0].count("\n"), text, flags=re.M | re.S
    )


def images(page: Path) -> list[Image]:
    """The images of a page; a reason counts for all images in the lines right below it."""
    text = prose(page)
    reasons = {found.end(): found["reason"] for found in _REASON.finditer(text)}
    result: list[Image] = []
    for found in _IMAGE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        below = bool(result) and result[-1].line == line - 1
        reason = reasons.get(found.start(), result[-1].reason if below else "")
        result.append(Image(found["path"], line, reason))
    return result
