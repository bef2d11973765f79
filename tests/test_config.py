"""YAML files of options: a `ConfigError` for every file that is not a mapping of plain values."""

from __future__ import annotations

from pathlib import Path

import pytest

from landform.config import read_yaml
from landform.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("? [a, b]\n: 1\n", "not YAML"),
        ("a: &x [*x]\n", "contains itself"),
        ("a: " + "[" * 2000 + "]" * 2000, "too deeply nested"),
        ("a: 2024-13-45\n", "month must be"),
        ("a: !!int x\n", "cannot be read"),
        ("a: 1\na: 2\n", "line 2: 'a' is written twice"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
    ],
    ids=["list-key", "itself", "deep", "date", "tag", "twice", "list", "empty"],
)
def test_a_file_that_holds_no_options(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_yaml(file)
    assert "study.yaml" in caught.value.what and caught.value.remedy


def test_what_a_file_says(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("a: 1\nb: {c: [x, 2.5], d: null}\n")
    assert read_yaml(file) == {"a": 1, "b": {"c": ["x", 2.5], "d": None}}
