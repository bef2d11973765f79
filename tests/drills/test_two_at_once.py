"""Two processes with one command, one place and one moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from drill_place import COMMANDS, changed, snapshot, without_times
from zygote import Zygote


@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_once(name: str, zygote: Zygote, place: Path, whole: Any, tmp_path: Path) -> None:
    """Both end well and say the same; what they leave is what one alone leaves."""
    expected, files = whole(name)
    path = tmp_path / "place"
    shutil.copytree(place, path)
    both = [zygote.start(COMMANDS[name], path) for _ in range(2)]
    for process in both:
        ended = process.wait()
        assert ended.status == 0, ended.err
        assert without_times(json.loads(ended.out)) == without_times(json.loads(expected.out))
    found = snapshot(path)
    assert found.keys() == files.keys()
    assert not changed(found, files)
