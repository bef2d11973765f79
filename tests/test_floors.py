"""The house has floors, and imports only go down: every import of the package is walked.

Imports inside functions, under TYPE_CHECKING, relative ones, and literal names given to
`importlib.import_module` count like any other: what is hidden is still a dependency.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "landform"
SOURCE = Path(__file__).resolve().parents[1] / "src" / PACKAGE

# From the ground up. Wings on one floor do not see each other; modules of one wing do.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("ground",),
    ("store",),
    ("embedded",),
    ("tasks", "weights"),
    ("evaluation",),
    ("curvature",),
    ("attribution", "geometry", "training"),
    ("studies",),
    # Reads and writes the results of studies and analyses in other programs' formats; draws none.
    ("exchange",),
    ("report",),
    ("cli",),
)
GROUND = ("errors", "config", "results")
HEIGHT = {wing: height for height, floor in enumerate(FLOORS) for wing in floor}
FRONT_DOOR = "the package's front door"

# The one dependency that goes up: a result draws itself (`Result.plot`) by looking the figures up
# by name when it is called. Named here so that it stays the only one.
ALLOWED = {("results", "report")}


@dataclass(frozen=True)
class Imported:
    """One import: the dotted name of what is imported, and the line that does it."""

    target: str
    line: int


def unit_of(dotted: str) -> str:
    """`landform.geometry.curves` -> `geometry`; the package itself -> ``."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def wing_of(unit: str) -> str | None:
    """The wing that a first-level module or folder belongs to; None when it has no floor."""
    if unit == "__main__":
        return "cli"
    if unit in GROUND:
        return "ground"
    return unit if unit in HEIGHT else None


def imports_of(tree: ast.Module, package: str, units: set[str]) -> Iterator[Imported]:
    """Every import of something in PACKAGE, wherever in the module it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield Imported(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            if base == PACKAGE:
                # `from landform import tasks` is the folder; other names come by the front door.
                for alias in node.names:
                    inside = alias.name in units
                    yield Imported(f"{base}.{alias.name}" if inside else base, node.lineno)
            elif base.split(".")[0] == PACKAGE:
                yield Imported(base, node.lineno)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            argument = node.args[0]
            if (
                name in ("import_module", "__import__")
                and isinstance(argument, ast.Constant)
                and isinstance(argument.value, str)
                and argument.value.split(".")[0] == PACKAGE
            ):
                yield Imported(argument.value, node.lineno)


def judge(importer: str, imported: str) -> str | None:
    """Why `importer` (a unit) may not import `imported` (a unit), or None when it may."""
    here = wing_of(importer)
    if here is None:
        return f"{importer!r} stands on no floor: give it one in tests/test_floors.py"
    if not imported:
        if here == "cli":
            return None
        return f"{here} (floor {HEIGHT[here]}) imports {FRONT_DOOR}: import the module that has it"
    there = wing_of(imported)
    if there is None:
        return f"imports {imported!r}, which stands on no floor"
    if here == there or HEIGHT[there] < HEIGHT[here] or (importer, imported) in ALLOWED:
        return None
    way = "upward" if HEIGHT[there] > HEIGHT[here] else "sideways"
    return f"{way} import: {here} (floor {HEIGHT[here]}) imports {there} (floor {HEIGHT[there]})"


def violations(source: Path) -> list[str]:
    """`file:line: why` for each import in the package at `source` that does not go down."""
    units = {p.stem if p.is_file() else p.name for p in source.iterdir() if is_module(p)}
    found = []
    for path in sorted(source.rglob("*.py")):
        inside = path.relative_to(source).with_suffix("").parts
        if inside == ("__init__",):  # the front door itself shows what every floor offers
            continue
        package = ".".join([PACKAGE, *inside[:-1]])
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for imported in imports_of(tree, package, units):
            why = judge(inside[0], unit_of(imported.target))
            if why:
                found.append(f"{path}:{imported.line}: {why}")
    return found


def is_module(path: Path) -> bool:
    """A Python file, or a folder that holds one."""
    if path.is_file():
        return path.suffix == ".py"
    return any(path.rglob("*.py"))


def test_imports_only_go_down() -> None:
    assert any(SOURCE.rglob("*.py"))
    found = violations(SOURCE)
    assert not found, "\n" + "\n".join(found)


def test_every_module_stands_on_a_floor() -> None:
    units = {p.stem if p.is_file() else p.name for p in SOURCE.iterdir() if is_module(p)}
    homeless = sorted(u for u in units - {"__init__"} if wing_of(u) is None)
    assert not homeless, f"no floor for {homeless}: give them one in tests/test_floors.py"


# --- the walker itself: a check that cannot fail checks nothing ---


def tree_at(root: Path, files: dict[str, str]) -> Path:
    """A package of the given files under `root`, with a module in every wing beside them."""
    source = root / PACKAGE
    wings = {f"{wing}/__init__.py": "" for wing in HEIGHT if wing != "ground"}
    for name, text in {**wings, **{f"{unit}.py": "" for unit in GROUND}, **files}.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return source


BAD = {
    "upward": ("store/a.py", "import landform.tasks.task\n", 1, "upward", "store", "tasks"),
    "upward, from": (
        "evaluation/a.py",
        "import os\nfrom landform.geometry.curves import barrier_height\n",
        2,
        "upward",
        "evaluation",
        "geometry",
    ),
    "sideways": (
        "tasks/a.py",
        "from landform.weights import space\n",
        1,
        "sideways",
        "tasks",
        "weights",
    ),
    "sideways, analyses": (
        "geometry/a.py",
        "from landform.training.finetune import train\n",
        1,
        "sideways",
        "geometry",
        "training",
    ),
    "in a function": (
        "weights/a.py",
        "def f():\n    from landform.evaluation import points\n    return points\n",
        2,
        "upward",
        "weights",
        "evaluation",
    ),
    "under TYPE_CHECKING": (
        "studies/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from landform import report\n",
        3,
        "upward",
        "studies",
        "report",
    ),
    "relative": ("tasks/a.py", "from ..studies import connect\n", 1, "upward", "tasks", "studies"),
    "relative, the package": ("tasks/a.py", "from .. import cli\n", 1, "upward", "tasks", "cli"),
    "relative, from a subfolder": (
        "tasks/deep/a.py",
        "from ...weights.space import ParameterSpace\n",
        1,
        "sideways",
        "tasks",
        "weights",
    ),
    "relative, from an __init__": (
        "tasks/__init__.py",
        "from ..report import atlas\n",
        1,
        "upward",
        "tasks",
        "report",
    ),
    "by name": (
        "store/a.py",
        "import importlib\n\nx = importlib.import_module('landform.cli.main')\n",
        3,
        "upward",
        "store",
        "cli",
    ),
    "folder from the package": (
        "store/a.py",
        "from landform import studies\n",
        1,
        "upward",
        "store",
        "studies",
    ),
    "ground": ("errors.py", "from landform.store import engines\n", 1, "upward", "ground", "store"),
    "embedded": ("embedded/a.py", "import landform.tasks\n", 1, "upward", "embedded", "tasks"),
    "front door": (
        "studies/a.py",
        "from landform import connect\n",
        1,
        "front door",
        "studies",
        "",
    ),
    "front door, whole": ("report/a.py", "import landform as lf\n", 1, "front door", "report", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_the_walker_sees(case: str, tmp_path: Path) -> None:
    file, text, line, way, here, there = BAD[case]
    source = tree_at(tmp_path, {file: text})
    (found,) = violations(source)
    assert found.startswith(f"{source / file}:{line}: ")
    assert way in found
    assert f"{here} (floor {HEIGHT[here]})" in found
    if there:
        assert f"{there} (floor {HEIGHT[there]})" in found


def test_the_walker_names_what_has_no_floor(tmp_path: Path) -> None:
    source = tree_at(tmp_path, {"utils.py": "import landform.errors\n"})
    (found,) = violations(source)
    assert "'utils' stands on no floor" in found


def test_the_walker_lets_pass_what_goes_down(tmp_path: Path) -> None:
    good = {
        "__init__.py": "from landform.studies.connect import connect\n",
        "__main__.py": "from landform.cli import main\n",
        "cli/a.py": "import landform as lf\nfrom landform import report, connect\n",
        "report/a.py": "from landform.studies import connect\nfrom .b import style\n",
        "studies/a.py": "from landform.geometry import line\nfrom landform.training import x\n",
        "geometry/a.py": "from landform.geometry.curves import x\nfrom . import b\nimport os\n",
        "curvature/a.py": "from landform.evaluation.points import y\nfrom ..store import engines\n",
        "tasks/a.py": "from landform import embedded, errors\nfrom landform.config import Config\n",
        "results.py": "import importlib\nf = importlib.import_module('landform.report.figures')\n",
        "config.py": "from landform.errors import ConfigError\nimport landformer\n",
    }
    assert violations(tree_at(tmp_path, good)) == []
