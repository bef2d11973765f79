"""A worker of a Ray cluster is killed in the middle of a job of a real command."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from drill_place import COMMANDS, changed, snapshot
from zygote import Zygote

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]


def descendants(pid: int) -> list[tuple[int, str]]:
    """Number and title of every process below `pid`."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
                parents[int(entry.name)] = int(after_name[1])
            except (OSError, KeyError):
                continue  # it ended meanwhile

    def below(child: int | None) -> bool:
        while child is not None and child != pid:
            child = parents.get(child)
        return child == pid

    return [(child, titles[child]) for child in parents if child != pid and below(child)]


def test_a_worker_killed_in_the_middle_of_a_job(
    zygote: Zygote, place: Path, whole: Any, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    _, files = whole("connect")
    path = tmp_path / "place"
    shutil.copytree(place, path)
    process = zygote.start([*COMMANDS["connect"], "--engine", "ray", "--workers", "2"], path)
    deadline, killed = time.monotonic() + 120, None
    while killed is None and time.monotonic() < deadline:
        for pid, title in descendants(process.pid):
            if title.startswith("ray::_Actor."):  # a method is running
                os.kill(pid, signal.SIGKILL)
                killed = pid
                break
        time.sleep(0.002)
    ended = process.wait()
    assert killed is not None, "no worker was ever at work"
    assert ended.status == 0, ended.err
    found = {n: d for n, d in snapshot(path).items() if n.startswith("study/artifacts/")}
    assert found.keys() == {n for n in files if n.startswith("study/artifacts/")}
    assert not changed(found, files)
