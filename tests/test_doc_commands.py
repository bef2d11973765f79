"""Commands that the pages mention without running them exist, with the options they are given.

Blocks are run by `test_docs`. What stands in a table or a sentence, or in a block that is not run
(`landform connect 'runs/*' --also hans`), is checked here against the parsers of the commands: a
renamed option fails on the page that still has the old name.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from landform.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```.*?^```", re.M | re.S)
_COMMAND = re.compile(r"(?:^|`|\$ |\()landform ([a-z]+)\b((?:[^`\n\\]|\\\n)*)", re.M)
_INLINE = re.compile(r"`landform ([a-z]+)\b([^`]*)`")
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")


@cache
def options_of(command: str) -> frozenset[str]:
    """All long options of a command, without dashes; `--files.train` counts as `files`."""
    names = {name for a in app[command].assemble_argument_collection() for name in a.names}
    names |= {name for a in app[command].assemble_argument_collection() for name in a.negatives}
    return frozenset({name.removeprefix("--").split(".")[0] for name in names} | {"help"})


def mentioned(text: str) -> list[tuple[str, list[str]]]:
    """The commands in a text with their options."""
    found = _INLINE.findall(_BLOCK.sub("", text))
    found += [command for block in _BLOCK.findall(text) for command in _COMMAND.findall(block)]
    return [(name, _OPTION.findall(rest)) for name, rest in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mentioned_options_exist(page: Path) -> None:
    commands = set(app)
    wrong = []
    for name, options in mentioned(page.read_text(encoding="utf-8")):
        if name not in commands:
            wrong.append(f"landform {name}: no such command")
        else:
            unknown = sorted(set(options) - options_of(name))
            wrong += [f"landform {name}: no option --{option}" for option in unknown]
    assert not wrong, f"{page.name}:\n" + "\n".join(wrong)


def test_an_unknown_option_is_seen() -> None:
    text = "landform is `landform connect 'runs/*' --also a\n--pointz 3`\n"
    text += "```bash\n$ landform fly --high \\\n  --far\n```\n"
    assert mentioned(text) == [("connect", ["also", "pointz"]), ("fly", ["high", "far"])]
    assert "also" in options_of("connect") and "pointz" not in options_of("connect")
    assert {"files", "no-quoting"} <= options_of("connect")
