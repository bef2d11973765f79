"""The formulas that `scripts/mutations.py` breaks are still where it looks for them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load() -> Any:
    path = ROOT / "scripts" / "mutations.py"
    spec = importlib.util.spec_from_file_location("landform_mutations", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MUTATIONS = load().MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_broken_formula_is_there_once(mutation: Any) -> None:
    text = mutation.source.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file}: {mutation.old!r}"
    assert mutation.old != mutation.new
    for name in mutation.tests.split():
        assert (ROOT / "tests" / name).exists(), f"tests/{name} does not exist"


def test_every_mutation_is_on_the_page() -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    missing = [m.name for m in MUTATIONS if f"| {m.name} |" not in page]
    assert not missing, f"run python scripts/mutations.py --write: {missing}"
    assert len(MUTATIONS) >= 12
