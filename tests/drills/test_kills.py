"""Every long command, killed and killed again, ends where it would have ended.

Moments are drawn from what the uninterrupted command does: before a change of the disk, or after
some forward passes of modules. A command is killed at three moments, one in each run, later ones
in the runs that go on from the earlier; then it runs to the end. Artifacts, results, checkpoints
and what is printed must be those of the uninterrupted command, byte by byte, and nothing that was
finished is done again. Only times differ (`drill_place.TIMES`).
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drill_place import COMMANDS, changed, snapshot, without_times
from zygote import Ended, Moment, Zygote

KILLS = 3
KEPT = re.compile(r"study/artifacts/[^/]+/[^/]+|.*/seed\d+")  # what is done once and for all


def moments(ended: Ended, seed: str, number: int) -> list[Moment]:
    """`number` moments of a command, in their order."""
    generator = random.Random(seed)
    often = Counter(ended.events)
    ends = [*ended.passes[1:], ended.all_passes]
    candidates = []
    for i, event in enumerate(ended.events):
        if often[event] == 1:
            passes = ends[i] - ended.passes[i]
            candidates.append((i, event, 0))
            candidates += [(i, event, generator.randint(1, passes))] if passes else []
    chosen = sorted(generator.sample(candidates, min(number, len(candidates))))
    return [Moment(event, passes) for _, event, passes in chosen]


def printed(ended: Ended) -> Any:
    return without_times(json.loads(ended.out))


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_and_gone_on(
    name: str, zygote: Zygote, place: Path, whole: Any, tmp_path: Path
) -> None:
    expected, files = whole(name)
    path = tmp_path / "place"
    shutil.copytree(place, path)
    done: Counter[str] = Counter()
    for moment in moments(expected, name, KILLS):
        ended = zygote.run(COMMANDS[name], path, kill=moment)
        assert ended.status == -signal.SIGKILL, f"{moment} did not come: {ended.err}"
        done.update(ended.done("rename"))
        # What is not there in the end is a half sum, kept to go on from and then removed.
        kept = {n: d for n, d in snapshot(path).items() if KEPT.match(n) and n in files}
        assert not changed(kept, files), f"half of something after {moment}"
    ended = zygote.run(COMMANDS[name], path)
    assert ended.status == 0, ended.err
    done.update(ended.done("rename"))
    found = snapshot(path)
    assert found.keys() == files.keys()
    assert not changed(found, files)
    assert printed(ended) == printed(expected)
    once = {what: n for what, n in done.items() if KEPT.fullmatch(what)}
    assert once == {what: 1 for what in expected.done("rename") if KEPT.fullmatch(what)}
