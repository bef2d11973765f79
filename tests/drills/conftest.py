"""A place for all drills."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from drill_place import COMMANDS, make_place, snapshot
from zygote import Ended, Zygote


@pytest.fixture(scope="session")
def place(
    tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Any, write_rows: Any, zygote: Zygote
) -> Path:
    root = tmp_path_factory.mktemp("drills") / "place"
    return make_place(root, save_checkpoint, write_rows, zygote)


class Whole:
    """What a command does, prints and leaves when nothing goes wrong; each is run once."""

    def __init__(self, zygote: Zygote, place: Path, folder: Path) -> None:
        self.zygote, self.place, self.folder = zygote, place, folder
        self.known: dict[str, tuple[Ended, dict[str, bytes]]] = {}

    def __call__(self, name: str) -> tuple[Ended, dict[str, bytes]]:
        if name not in self.known:
            path = self.folder / name / "place"  # tasks are named by the folder
            shutil.rmtree(path, ignore_errors=True)  # of a test that failed
            shutil.copytree(self.place, path)
            ended = self.zygote.run(COMMANDS[name], path)
            assert ended.status == 0, ended.err
            self.known[name] = ended, snapshot(path)
        return self.known[name]


@pytest.fixture(scope="session")
def whole(zygote: Zygote, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(zygote, place, tmp_path_factory.mktemp("whole"))
