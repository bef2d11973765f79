"""The API reference can be made, and holds every public name with its options."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import landform

pytest.importorskip("pdoc", reason="pdoc is not installed (it comes with the extra dev)")
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "reference.py"


@pytest.fixture(scope="module")
def reference() -> Any:
    spec = importlib.util.spec_from_file_location("landform_reference", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_reference_holds_every_public_name(reference: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        # What pdoc could not read.
        warnings.filterwarnings("error", category=UserWarning, module="pdoc")
        reference.write_reference(tmp_path, ["landform", "landform.config"])
    text = (tmp_path / "landform.html").read_text(encoding="utf-8")
    for name in set(landform.__all__) - {"__version__"}:
        assert f'id="{name}"' in text, f"landform.{name} is not in the reference"
    pages = set(reference.config_pages().values())
    linked = set(re.findall(r'<a href="(landform/[^"]+Config)"><code>', text))
    assert "landform/geometry/line.html#InterpolateConfig" in linked
    assert linked <= pages
    assert (tmp_path / "landform" / "config.html").is_file()


def test_links_climb_from_the_page_they_stand_on(reference: Any) -> None:
    pages = {"LineConfig": "landform/a.html#LineConfig"}
    linked = reference.link_configs("see <code>LineConfig</code>, <code>loss</code>", pages, 2)
    assert linked == (
        'see <a href="../../landform/a.html#LineConfig"><code>LineConfig</code></a>, '
        "<code>loss</code>"
    )
    already = '<a href="x"><code>LineConfig</code></a>'
    assert reference.link_configs(already, pages, 0) == already


def test_the_command_line_is_left_to_its_own_help(reference: Any) -> None:
    parts = reference.parts()
    assert parts[0] == "landform" and "landform.geometry" in parts
    assert not [name for name in parts if "cli" in name or "__main__" in name]
