"""Two processes give the results of one, each with its share of the work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import all_results
import landform
from small_cases import small_case
from zygote import Ended, Zygote

CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def together(zygote: Zygote) -> Callable[..., list[Ended]]:
    """The same in forks, which are told of each other what a launcher tells."""

    def run(words: list[Any], cwd: Path, processes: int = 2, **options: Any) -> list[Ended]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        started = [
            zygote.start(
                words, cwd,
                environment={**CPU, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options,
            )
            for rank in range(processes)
        ]  # fmt: skip
        return [one.wait() for one in started]

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any, save_checkpoint: Any) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    return small_case("classification", "bert", path, save_checkpoint)[0]


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: Any, together: Any) -> list[dict[str, np.ndarray]]:
    place, out = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("out")
    script = Path(all_results.__file__).read_text("utf-8")
    for ended in together([checkpoint, place, out], out, script=script):
        assert ended.status == 0, ended.err
    return [dict(np.load(out / f"{rank}.npz")) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> dict[str, np.ndarray]:
    return all_results.results(checkpoint)


def test_both_have_the_result_of_one(
    both: list[dict[str, np.ndarray]], alone: dict[str, np.ndarray]
) -> None:
    for found in both:
        for name, expected in alone.items():
            error = np.abs(found[name] - expected).max() / np.abs(expected).max()
            assert error < 1e-10, name


def test_one_decides_and_writes(
    both: list[dict[str, np.ndarray]], alone: dict[str, np.ndarray]
) -> None:
    for found in both:
        np.testing.assert_allclose(found["stored"], alone["1024/ekfac/scores"], rtol=1e-8)
    # Three chunks each of covariances and squares, the bases, the eigenvalues, the scores; nothing
    # when all of it is there already.
    assert both[0]["counts"][:2].tolist() == [9, 9]
    assert both[1]["counts"][:2].tolist() == [0, 0]


def test_decompositions_are_divided(both: list[dict[str, np.ndarray]]) -> None:
    # BERT with two blocks: 12 + 2 layers, of which query, key and value share what they see.
    counts = [int(found["counts"][2]) for found in both]
    assert sum(counts) == 14 + (14 - 4)
    assert max(counts) - min(counts) <= 1


def test_what_one_raises_all_raise(both: list[dict[str, np.ndarray]]) -> None:
    for found in both:
        assert "had enough" in str(found["error"][0])


def test_one_command_speaks_once(
    checkpoint: Path, write_rows: Any, tmp_path: Path, together: Any
) -> None:
    rows = write_rows(tmp_path / "rows.tsv", 12, classes=3)
    command = ["evaluate", str(checkpoint), "--files.validation", str(rows)]
    command += ["--text", "sentence", "--label", "label", "--label-names", "a", "b", "c"]
    done = together(command, tmp_path)
    assert [ended.status for ended in done] == [0, 0], done
    said = "".join(ended.out for ended in done)
    assert said.count("accuracy") == 1, said
    wrong = together([*command, "--rows", "0"], tmp_path)
    assert all(ended.status not in (0, 99) for ended in wrong)
    said = "".join(ended.err for ended in wrong)
    assert said.count("option rows") == 1, said


def test_a_launcher_is_understood(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from landform.curvature.ranks import current_ranks\n"
        "ranks = current_ranks()\n"
        # One write: both processes have one pipe, and what print writes in pieces gets mixed.
        "os.write(1, f'process {ranks.rank} of {ranks.world}\\n'.encode())\n",
        encoding="utf-8",
    )
    source = str(Path(landform.__file__).parents[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", str(script)],
        env={**os.environ, "PYTHONPATH": source, **CPU},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    assert sorted(lines) == ["process 0 of 2", "process 1 of 2"]
