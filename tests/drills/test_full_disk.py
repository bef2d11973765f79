"""A disk that fills up: one line says so, nothing half is left, and with room it all goes on."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drill_place import COMMANDS, changed, snapshot
from zygote import Ended, Zygote


def refused(ended: Ended) -> None:
    assert ended.status == 1, (ended.status, ended.err)
    last = ended.err[ended.err.rindex("error: ") :]
    assert "No space left on device" in last and "what to do: free some disk space" in last
    assert "Traceback" not in ended.err and not ended.out


def nothing_half(path: Path, files: dict[str, bytes]) -> None:
    """What is there is whole, but for the folder of a training that will go on from it."""
    found = {n: d for n, d in snapshot(path).items() if ".partial/" not in n}
    # Sums of half the rows are kept to go on from; they are artifacts with a manifest.
    extra = {n for n in found if n not in files and "/artifacts/" not in n}
    assert not extra
    assert not changed({n: d for n, d in found.items() if n in files}, files)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_on_a_disk_that_fills_up(
    name: str, zygote: Zygote, place: Path, whole: Any, tmp_path: Path
) -> None:
    """From a moment on every opening for writing fails with ENOSPC (in Python; see below)."""
    expected, files = whole(name)
    path = tmp_path / "place"
    shutil.copytree(place, path)
    often = Counter(expected.events)
    events = [e for e in expected.events if often[e] == 1 and not e.startswith("rename")]
    for event in sorted(random.Random(name).sample(events, 2), key=events.index):
        refused(zygote.run(COMMANDS[name], path, full=event))
        nothing_half(path, files)
    ended = zygote.run(COMMANDS[name], path)
    assert ended.status == 0, ended.err
    found = snapshot(path)
    assert found.keys() == files.keys() and not changed(found, files)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux":
        pytest.skip("needs Linux's tmpfs")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"may not mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", ["train", "connect", "fisher", "align", "curve", "study-file"])
def test_a_real_disk_that_is_full(
    name: str, zygote: Zygote, place: Path, whole: Any, small_disk: Path
) -> None:
    """The kernel refuses, in the middle of files, and to libraries written in Rust as well."""
    _, files = whole(name)
    path = small_disk / "place"
    shutil.copytree(place, path)
    used = shutil.disk_usage(small_disk).used
    generator, seen = random.Random(name), 0
    new = sum(len(data) for n, data in files.items() if not (place / n).exists())
    for share in (0.0, generator.uniform(0.1, 0.5), generator.uniform(0.5, 0.9)):
        room = shutil.disk_usage(small_disk).free
        filler = small_disk / "filler"
        with open(filler, "wb") as stream:
            stream.write(b"x" * max(0, room - int(share * new)))
        ended = zygote.run(COMMANDS[name], path)
        if ended.status:
            refused(ended)
            seen += 1
        nothing_half(path, files)
        os.unlink(filler)
    assert seen, f"{name} never ran out of room: {used} bytes used before, {new} new"
    ended = zygote.run(COMMANDS[name], path)
    assert ended.status == 0, ended.err
    found = snapshot(path)
    assert found.keys() == files.keys() and not changed(found, files)
