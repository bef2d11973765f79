"""Files of a finished study, cut or with a bit turned: noticed, or without consequence.

After the damage the same command runs again. It may end well only with the very result of the
sound study, because what is damaged was made anew or is not looked at; or else it names the file.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from drill_place import COMMANDS, without_times
from zygote import Zygote

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
NAMES = ["evaluate", "connect", "influence", "spectrum", "fisher"]


def damages(path: Path, generator: random.Random, cut: bool) -> list[tuple[str, bytes]]:
    """What may become of a file: bits turned; an end cut off."""
    data = path.read_bytes()
    found = []
    for _ in range(TIMES):
        place, bit = generator.randrange(len(data)), generator.randrange(8)
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        found.append((f"bit {bit} of byte {place}", bytes(flipped)))
    if cut or TIMES > 1:
        end = generator.randrange(len(data))
        found.append((f"cut at {end}", data[:end]))
    return found


def manifest_of(path: Path) -> dict[str, str]:
    """The files beside `path` whose sizes are known, so that one of them cut is as another."""
    manifest = path.with_name("manifest.json")
    return json.loads(manifest.read_text())["files"] if manifest.exists() else {}


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_study(name: str, zygote: Zygote, whole: Any, tmp_path: Path) -> None:
    expected, _ = whole(name)
    sound = whole.folder / name / "place"
    result = without_times(json.loads(expected.out))
    generator = random.Random(name)
    files = sorted(p for p in (sound / "study").rglob("*") if p.is_file())
    if name == "fisher":
        files.append(sound / "f.safetensors")
    # All kinds of files, several of each; every one would take long for what they have in common.
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(f"{path.parent.parent.name}/{path.name}", []).append(path)
    noticed, folders = 0, set[Path]()
    for kind in sorted(kinds):
        target = generator.choice(kinds[kind])
        cut = target.name not in manifest_of(target) or target.parent.parent not in folders
        folders.add(target.parent.parent)
        for what, data in damages(target, generator, cut):
            path = tmp_path / "place"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(sound, path, copy_function=os.link)
            damaged = path / target.relative_to(sound)
            damaged.unlink()  # the link alone
            damaged.write_bytes(data)
            where = f"{target.relative_to(sound)}, {what}"
            ended = zygote.run(COMMANDS[name], path)
            if ended.status == 0:
                assert without_times(json.loads(ended.out)) == result, where
            else:
                noticed += 1
                said = f"{where}: {ended.err}"
                assert ended.status == 1 and "Traceback" not in ended.err, said
                assert (
                    re.search(r"what to do: \w+", ended.err) and target.parent.name in ended.err
                ), said
    assert noticed, "no damage was noticed"
