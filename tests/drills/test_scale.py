"""Large work within a stated memory: 100,000 rows, 200 checkpoints.

Bytes are those that a process holds beyond what it holds when everything is imported.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zygote import Zygote

MIB = 2**20
ROWS, CHECKPOINTS = 100_000, 200


@pytest.fixture(scope="module")
def idle(zygote: Zygote, place: Path) -> int:
    """What a command holds that does next to nothing with a model."""
    ended = zygote.run(["distance", "runs/seed0", "runs/seed1"], place)
    assert ended.status == 0
    return ended.memory


@pytest.mark.slow
def test_a_hundred_thousand_rows(
    zygote: Zygote, place: Path, idle: int, tmp_path: Path, write_rows: object
) -> None:
    write_rows(tmp_path / "big.tsv", ROWS)  # type: ignore[operator]
    words = f"evaluate {place}/runs/seed0 --task big.tsv --text sentence --label label --json"
    few = f"{words} --replicates 20 --token-budget 16384"
    ended = zygote.run(few.split(), tmp_path)
    assert ended.status == 0, ended.err
    (found,) = json.loads(ended.out)["evaluations"]
    assert found["examples"] == ROWS
    print(f"{(ended.memory - idle) / MIB:.0f} MiB for {ROWS} rows")
    assert ended.memory - idle < 600 * MIB


@pytest.mark.slow
def test_two_hundred_checkpoints(zygote: Zygote, place: Path, idle: int, tmp_path: Path) -> None:
    whole = load_file(place / "runs/seed0/model.safetensors")
    generator = np.random.default_rng(0)
    for i in range(CHECKPOINTS):
        folder = tmp_path / "many" / f"seed{i}"
        folder.mkdir(parents=True)
        for entry in (place / "runs/seed0").iterdir():
            if entry.is_file() and entry.suffix == ".json" and entry.name != "landform.json":
                (folder / entry.name).symlink_to(entry)
        moved = {
            n: (v + 0.1 * generator.standard_normal(v.shape)).astype(v.dtype)
            for n, v in whole.items()
        }
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    data = f"--task {place}/dev.tsv --text sentence --label label"
    words = f"connect many/seed* {data} --points 3 --landmarks 2 --replicates 20 --store study"
    ended = zygote.run([*words.split(), "--json"], tmp_path)
    assert ended.status == 0, ended.err
    assert len(json.loads(ended.out)["names"]) == CHECKPOINTS
    print(f"{(ended.memory - idle) / MIB:.0f} MiB for {CHECKPOINTS} checkpoints")
    assert ended.memory - idle < 200 * MIB
