"""Docstrings exist where people look for them, and the names they quote exist."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import keyword
import pkgutil
import re
from functools import cache
from typing import Any

import pytest

import landform
from landform.config import Config

MODULES = sorted(
    found.name for found in pkgutil.walk_packages(landform.__path__, prefix="landform.")
)


def public(module: str) -> list[tuple[str, Any]]:
    """The functions and classes of `__all__` that the module itself defines."""
    loaded = importlib.import_module(module)
    found = [(name, getattr(loaded, name)) for name in getattr(loaded, "__all__", ())]
    return [
        (name, value)
        for name, value in found
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module
    ]


def documented(module: str) -> list[tuple[str, Any]]:
    """Those, and the public methods and properties that classes define themselves."""
    found = public(module)
    for name, value in list(found):
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                inner = getattr(member, "__func__", getattr(member, "fget", member))
                if not attribute.startswith("_") and inspect.isfunction(inner):
                    found.append((f"{name}.{attribute}", inner))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_public_names_have_docstrings(module: str):
    assert importlib.import_module(module).__doc__, f"{module} has no docstring"
    for name, value in public(module):
        # A dataclass without a docstring of its own gets its signature as one.
        said = (value.__doc__ or "").strip()
        assert said and not said.startswith(f"{name}("), f"{module}.{name} has no docstring"


def configs() -> list[type[Config]]:
    for module in MODULES:
        importlib.import_module(module)
    found, waiting = [], [Config]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("landform."):
            found.append(kind)
    return sorted(set(found), key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", configs(), ids=lambda kind: kind.__qualname__)
def test_options_are_described(kind: type[Config]):
    assert kind.__doc__, f"{kind.__qualname__} has no docstring"
    for name, field in kind.model_fields.items():
        said = (field.description or "").strip()
        assert said, f"option {kind.__qualname__}.{name} has no description"
        assert said.endswith((".", ")")), f"{kind.__qualname__}.{name}: not a sentence: {said!r}"


# --- names in backticks ---------------------------------------------------------------------------


@cache
def known_names() -> frozenset[str]:
    """Every name that occurs in the package's code: functions, parameters, attributes, words of
    its strings (column names, options), and what the language itself brings."""
    names = {*dir(builtins), *keyword.kwlist, *keyword.softkwlist}
    for module in MODULES:
        source = inspect.getsource(importlib.import_module(module))
        tree = ast.parse(source)
        docs = {id(node) for node in map(doc_node, ast.walk(tree)) if node is not None}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.alias):
                names |= set((node.asname or node.name).split("."))
            elif isinstance(node, ast.keyword) and node.arg:
                names.add(node.arg)
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docs
            ):
                names |= set(re.findall(r"\w+", node.value))
    return frozenset(names)


def doc_node(node: ast.AST) -> ast.AST | None:
    """The constant that is the docstring of a module, class or function."""
    body = getattr(node, "body", None)
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or not body:
        return None
    first = body[0]
    return first.value if isinstance(first, ast.Expr) else None


def strings(module: str) -> list[str]:
    """The strings in a module's code."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


# What docstrings may quote beside names of the package: commands and words of other formats.
FOREIGN = frozenset({"landform"})


@pytest.mark.parametrize("module", MODULES)
def test_quoted_names_exist(module: str):
    for name, value in documented(module):
        for quoted in re.findall(r"`([a-z_][a-z0-9_]*)=?`", inspect.getdoc(value) or ""):
            assert quoted in known_names() | FOREIGN, (
                f"{module}.{name}: the docstring speaks of `{quoted}`, which does not exist"
            )


@pytest.mark.parametrize("module", MODULES)
def test_explained_parameters_exist(module: str):
    """What a function's docstring explains (`losses` (..., P): the loss ...) is a parameter of its
    own, or one of the choices that its module spells out."""
    choices = set(strings(module))
    for name, value in documented(module):
        if not inspect.isfunction(value) or not inspect.getdoc(value):
            continue
        parameters = set(inspect.signature(value).parameters)
        text = " ".join(str(inspect.getdoc(value)).split())
        for explained in re.findall(r"(?:^|[.;] )`(\w+)`(?: \([^`]*?\))?: ", text):
            assert explained in parameters | choices, (
                f"{module}.{name} explains `{explained}`; it has {', '.join(sorted(parameters))}"
            )


# Explained once, in the docstring of the package.
EVERYWHERE = {
    *(
        "checkpoint",
        "checkpoints",
        "a",
        "b",
        "model",
        "task",
        "tasks",
        "split",
        "also",
        "eval_split",
    ),
    *("store", "progress", "out", "replicates", "seed", "level", "queries", "train", "options"),
}


@pytest.mark.parametrize("name", sorted(set(landform.__all__) - {"__version__"}))
def test_public_functions_speak_of_their_parameters(name: str):
    """Every parameter is spoken of, and where there are `**options` it is said which."""
    value = getattr(landform, name)
    if not inspect.isfunction(value):
        return
    said, parameters = inspect.getdoc(value) or "", inspect.signature(value).parameters
    silent = [p for p in parameters if p not in EVERYWHERE and not re.search(rf"\b{p}\b", said)]
    assert not silent, f"landform.{name} does not speak of {', '.join(silent)}"
    if "options" in parameters:
        configs = re.findall(r"`(\w+Config)`", said)
        assert configs or "options" in said.lower(), f"landform.{name}: which options?"


COMMANDS = [m for m in MODULES if m.startswith("landform.cli.") and m.split(".")[-1] not in
            ("app", "common", "texts")]  # fmt: skip


@pytest.mark.parametrize("module", COMMANDS)
def test_commands_explain_their_parameters(module: str):
    """The Parameters section names every parameter but the option groups, and nothing else."""
    command = getattr(importlib.import_module(module), module.rpartition(".")[2])
    section = str(inspect.getdoc(command)).partition("Parameters\n----------\n")[2]
    explained = re.findall(r"^(\w+)$", section, re.M)
    groups = {"data", "options", "output"}
    own = [p for p in inspect.signature(command).parameters if p not in groups]
    assert explained == own
