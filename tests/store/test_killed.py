"""A run that is killed, at any point, leaves whole artifacts and goes on where it stopped."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from landform.store.artifacts import Store

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

JOBS = 12  # as many as RUN makes
RUN = """
    import os, signal, sys, time
    from pathlib import Path
    import numpy as np, pandas as pd
    from landform.store import atomic, artifacts
    from landform.store.artifacts import Contents, Store
    from landform.store.engines import run_plan
    from landform.store.plan import Job, Plan

    # A shell's background jobs ignore it, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    study, log, die_at = sys.argv[1:]
    point, _, number = die_at.partition(":")

    def die(at, i):
        if at == point and i == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    class Worker:
        def run(self, job):
            i = job.spec["i"]
            with open(log, "a") as file:
                file.write(f"{i}\\n")
            die("work", i)
            if point == "slow":
                # Time for the signal, and after the job of that number all that it needs.
                time.sleep(0.05 if i <= int(number) else 300)
            generator = np.random.default_rng(i)
            return Contents({"x": generator.random((50, 40))},
                            {"t": pd.DataFrame({"y": generator.random(9)})}, {"r": {"i": i}})

    writes = -1
    save, install = artifacts.save_tensors, atomic._install

    def save_and_die(path, tensors):
        global writes
        writes += 1
        die("before tensors", writes)
        save(path, tensors)
        if point == "half tensors" and writes == int(number):
            os.truncate(path, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        die("after tensors", writes)

    def install_and_die(*arguments):
        die("before rename", writes)
        install(*arguments)
        die("after rename", writes)

    artifacts.save_tensors, atomic._install = save_and_die, install_and_die
    store = Store.open(study)
    plan = Plan(Job("work", {"i": i}, label=f"job {i}") for i in range(12))
    run_plan(plan, Worker, store, progress=False)
    total = sum(float(store.read(job.key).tensors["x"].sum()) for job in plan.jobs)
    store.publish("total", Contents(records={"total": total}))
"""


@pytest.fixture(scope="module")
def start(zygote: Any) -> Any:
    """`start(folder)`: the jobs, in a process of their own."""

    def begin(folder: Path, die_at: str = "never:0") -> Any:
        words = folder / "study", folder / "log", die_at
        return zygote.start(words, folder, script=textwrap.dedent(RUN))

    return begin


def snapshot(folder: Path) -> dict[str, bytes]:
    root = folder / "study"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "study.json"  # holds the date
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, start: Any) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder).wait().status == 0
    return snapshot(folder)


def finish_and_compare(start: Any, folder: Path, expected: dict[str, bytes]) -> list[int]:
    """Runs to the end; returns how often each job was run over all the runs."""
    assert start(folder).wait().status == 0
    assert snapshot(folder) == expected
    assert not list((folder / "study").rglob(".tmp-*"))
    calls = [int(line) for line in (folder / "log").read_text().split()]
    return [calls.count(i) for i in range(JOBS)]


def whole_artifacts(folder: Path, expected: dict[str, bytes]) -> int:
    """The number of finished artifacts after a kill; each must be as in an uninterrupted run."""
    found = {n: d for n, d in snapshot(folder).items() if ".tmp-" not in n}
    assert found.items() <= expected.items()
    assert len(found) % 4 == 0
    return len(found) // 4


def test_killed_at_chosen_points(
    start: Any, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    # What happens in a run, at which write of that run or in which job; artifacts finished then.
    repeated = []
    for die_at, finished in (
        ("work:0", 0),
        ("before tensors:1", 1),
        ("half tensors:1", 2),
        ("work:5", 5),
        ("after tensors:2", 7),
        ("before rename:1", 8),
        ("after rename:1", 10),
        ("before rename:1", 11),
        ("after rename:0", 12),
        ("before rename:-1", 12),  # of the final result
    ):
        assert start(tmp_path, die_at).wait().status == -signal.SIGKILL
        assert whole_artifacts(tmp_path, uninterrupted) == finished, die_at
        # Only the job in flight is run again; after the renaming there is none.
        repeated += [] if die_at.startswith("after rename") else [finished]
    counts = finish_and_compare(start, tmp_path, uninterrupted)
    assert counts == [1 + repeated.count(i) for i in range(JOBS)]


def test_killed_from_outside(start: Any, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    study = tmp_path / "study" / "artifacts" / "work"
    for number, wanted in ((signal.SIGTERM, 2), (signal.SIGINT, 5), (signal.SIGKILL, 8)):
        run = start(tmp_path, f"slow:{wanted}")
        deadline = time.monotonic() + 60
        while not (study.is_dir() and len(os.listdir(study)) > wanted):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        run.send(number)
        assert run.wait().status != 0
        assert whole_artifacts(tmp_path, uninterrupted) >= wanted
    counts = finish_and_compare(start, tmp_path, uninterrupted)
    assert all(counts) and sum(counts) <= JOBS + 3


def test_a_damaged_artifact_alone_is_computed_again(
    start: Any, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    assert start(tmp_path).wait().status == 0
    store = Store.open(tmp_path / "study")
    damaged = sorted((store.path / "artifacts" / "work").iterdir())[4]
    os.truncate(damaged / "tensors.safetensors", 100)
    counts = finish_and_compare(start, tmp_path, uninterrupted)
    assert sorted(counts) == [1] * (JOBS - 1) + [2]
