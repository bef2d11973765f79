"""A place that may be read and not written, as a user who owns nothing there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drill_place import COMMANDS, DATA, snapshot
from zygote import Zygote


@pytest.fixture(scope="module")
def closed(zygote: Zygote, place: Path) -> Iterator[Path]:
    """The place with a finished study, closed to everybody; beside it `open`, open to all."""
    # Not below pytest's folder, which other users may not enter.
    root = Path(tempfile.mkdtemp(prefix="landform-drill-"))
    shutil.copytree(place, root / "place")
    for name in ("connect", "evaluate"):
        assert zygote.run(COMMANDS[name], root / "place").status == 0
    (root / "open").mkdir()
    root.chmod(0o755)
    (root / "open").chmod(0o777)
    for folder, _, names in os.walk(root / "place"):
        for name in names:
            Path(folder, name).chmod(0o444)
        Path(folder).chmod(0o555)
    yield root
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o755)
    shutil.rmtree(root)


READ = {
    "report elsewhere": "report study --out ../open/atlas.html",
    "figure": "figure study connect --which heatmap --out ../open/heatmap.png",
    "figures": "figure study",
    "evaluate": f"evaluate runs/seed0 {DATA} --replicates 20",
    "line": f"interpolate runs/seed0 runs/seed1 {DATA} --replicates 20 --points 3",
    "distance": "distance runs/seed0 runs/seed1",
    "dry run": f"connect runs/seed* {DATA} --replicates 20 --points 4 --store study --dry-run",
    "train elsewhere": f"train pretrained {DATA} --max-steps 1 --out ../open/new --threads 1",
    "cartography": f"cartography runs/seed0 {DATA}",
    "export": "export samples study --out ../open/samples",
}
WRITE = {
    "report": "report study",
    "kept": f"connect runs/seed* {DATA} --replicates 20 --points 4 --store study",
    "new line": f"interpolate runs/seed0 runs/seed1 {DATA} --points 3 --store study",
    "new study": f"connect runs/seed* {DATA} --replicates 20 --points 4 --store new",
    "train": f"train pretrained {DATA} --max-steps 1 --out new",
    "train again": f"train pretrained {DATA} --max-steps 6 --out runs --overwrite --threads 1",
    "fisher": f"fisher runs/seed0 {DATA} --rows 6 --out f.safetensors",
    "align": "align runs/seed0 runs/seed1 --out aligned",
    "samples": f"evaluate runs/seed0 {DATA} --samples samples",
    "csv": f"ridge runs/seed0 runs/seed1 {DATA} --points 3 --csv rises.csv",
    "figure here": "figure study connect --which heatmap --out heatmap.png",
    "study file": "run study.yaml",
}


def as_nobody() -> bool:
    return os.name == "posix" and os.geteuid() == 0


def reachable(name: str) -> None:
    """A page is made with modules of Python itself that are imported late."""
    shut = [str(p) for p in Path(os.__file__).resolve().parents if not p.stat().st_mode & 0o001]
    if shut and as_nobody() and name.startswith("report"):
        pytest.skip(f"the user nobody cannot read Python's own modules: {shut[-1]} is shut to him")


@pytest.mark.parametrize("name", READ)
def test_what_only_reads_works(name: str, zygote: Zygote, closed: Path) -> None:
    reachable(name)
    before = snapshot(closed / "place")
    ended = zygote.run(READ[name].split(), closed / "place", nobody=as_nobody())
    assert ended.status == 0, ended.err
    assert ended.out and snapshot(closed / "place") == before


@pytest.mark.parametrize("name", WRITE)
def test_what_writes_says_so(name: str, zygote: Zygote, closed: Path, capfd: Any) -> None:
    reachable(name)
    before = snapshot(closed / "place")
    ended = zygote.run(WRITE[name].split(), closed / "place", nobody=as_nobody())
    assert ended.status == 1, (ended.out, ended.err)
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "Permission denied" in line and "check the permissions" in ended.err
    assert "Traceback" not in ended.err
    assert snapshot(closed / "place") == before
