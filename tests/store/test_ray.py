"""The Ray engine on a real local cluster of two workers."""

from __future__ import annotations

import builtins
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landform.errors import DataError, EngineError, MissingExtraError, NonFiniteError
from landform.store.artifacts import Contents, MemoryStore, Store
from landform.store.engines import run_plan
from landform.store.plan import Job, Plan

OWN = """
    import sys
    import numpy as np
    import ray
    from landform.store.artifacts import Contents, Store
    from landform.store.engines import run_plan
    from landform.store.plan import Job, Plan

    class Worker:
        def run(self, job):
            records = {"where": ray.get_runtime_context().gcs_address}
            return Contents(tensors={"i": np.array(job.spec["i"])}, records=records)

    plan = Plan(Job("count", {"i": i}) for i in range(3))
    store = Store.open(sys.argv[1])
    run_plan(plan, Worker, store, engine="ray", workers=1, progress=False)
    assert not ray.is_initialized()
    contents = [store.read(job.key) for job in plan.jobs]
    print(contents[0].records["where"], sum(int(c.tensors["i"]) for c in contents))
"""


def make_plan(n: int = 12) -> Plan:
    return Plan(Job("square", {"i": i}, cost=2.0, label=f"job {i}") for i in range(n))


class Work:
    """Factory of a worker that does what `do(worker, i)` says before it squares i."""

    def __init__(self, log: Path, do: Any = None, broken: Any = None) -> None:
        self.log, self.do, self.broken = log, do, broken

    def __call__(self) -> Work:
        if self.broken is not None:
            self.broken()
        self.note("open")
        return self

    def note(self, what: object) -> None:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {what}\n")

    def run(self, job: Job) -> Contents:
        i = job.spec["i"]
        self.note(i)
        if self.do is not None:
            self.do(self, i)
        return Contents(
            tensors={"x": np.full(3, i * i)},
            records={"threads": os.environ["OMP_NUM_THREADS"] if i == -1 else None},
        )

    def lines(self) -> list[tuple[int, str]]:
        return [(int(a), b) for a, b in (s.split() for s in self.log.read_text().splitlines())]


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    # The workers cannot import this file, so what they need of it travels with the jobs.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    yield ray
    ray.shutdown()


def run(work: Work, store: Any, plan: Plan | None = None, **options: Any) -> Any:
    options = {"engine": "ray", "workers": 1, "progress": False} | options
    return run_plan(plan or make_plan(), work, store, **options)


def test_ray_gives_what_the_local_engine_gives(cluster: Any, tmp_path: Path) -> None:
    plan = make_plan()
    local, remote = Store.open(tmp_path / "local"), Store.open(tmp_path / "ray")

    def wait_for_both(work: Work, i: int) -> None:
        deadline = time.monotonic() + 60
        while work.log.read_text().count("open") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)

    work = Work(tmp_path / "log", wait_for_both)
    run_plan(plan, Work(tmp_path / "log-local"), local, progress=False)
    store_first = plan.jobs[4]
    remote.write(store_first.key, local.read(store_first.key), store_first.provenance())
    seen: list[str] = []
    done = run(work, remote, plan, workers=2, on_result=lambda job, _: seen.append(job.label))
    assert (done.jobs_run, done.jobs_reused, done.evaluations) == (11, 1, 22.0)
    assert sorted(seen) == sorted(job.label for job in plan.jobs if job != store_first)
    files = [
        {str(p.relative_to(s.path)): p.read_bytes() for p in s.path.rglob("*/*/*") if p.is_file()}
        for s in (local, remote)
    ]
    assert files[0] == files[1] and len(files[0]) == 3 * 12
    # Two processes, neither of them this one; no job twice; neighbours in one process.
    lines = work.lines()
    by_job = {int(what): pid for pid, what in lines if what != "open"}
    assert len(lines) == 2 + 11 and sorted(by_job) == [i for i in range(12) if i != 4]
    assert len({pid for pid, _ in lines}) == 2 and os.getpid() not in by_job.values()
    for neighbours in ((0, 1, 2), (3, 5), (6, 7)):
        assert len({by_job[i] for i in neighbours}) == 1


def test_a_cluster_of_its_own_is_stopped_in_the_end(tmp_path: Path) -> None:
    # In a process of its own, because this one is connected to the cluster of the tests.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OWN), str(tmp_path)],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" 3\n")


def test_a_given_cluster_is_joined(cluster: Any, tmp_path: Path) -> None:
    address = cluster.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OWN), str(tmp_path)],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{address} 3\n"


def test_a_worker_that_dies_is_replaced(cluster: Any, tmp_path: Path) -> None:
    flag = str(tmp_path / "died")

    def die_once(_: Work, i: int) -> None:
        if i == 5 and not os.path.exists(flag):
            open(flag, "w").close()
            os._exit(1)

    store = MemoryStore()
    work = Work(tmp_path / "log", die_once)
    assert run(work, store, workers=2).jobs_run == 12
    assert [int(store.read(j.key).tensors["x"][0]) for j in make_plan().jobs] == [
        i * i for i in range(12)
    ]
    calls = [what for _, what in work.lines()]
    assert calls.count("5") == 2 and calls.count("open") == 3


def test_a_job_that_always_kills_its_worker_is_named(cluster: Any, tmp_path: Path) -> None:
    def die(_: Work, i: int) -> None:
        if i == 2:
            os._exit(1)

    store = MemoryStore()
    with pytest.raises(EngineError, match=r"job 2: the worker process died 3 times"):
        run(Work(tmp_path / "log", die), store)
    assert [job.key in store for job in make_plan(4).jobs] == [True, True, False, False]


def test_errors_come_back_as_themselves(cluster: Any, tmp_path: Path) -> None:
    def nan(_: Work, i: int) -> None:
        if i == 3:
            raise NonFiniteError("NaN in tensor 'w'", remedy="train again")

    def zero(_: Work, i: int) -> None:
        if i == 3:
            error = ZeroDivisionError("by zero")
            error.lock = threading.Lock()  # type: ignore[attr-defined] # cannot be pickled
            raise error

    with pytest.raises(NonFiniteError) as caught:
        run(Work(tmp_path / "log", nan), MemoryStore())
    assert str(caught.value) == "job 3: NaN in tensor 'w'\n  what to do: train again"
    with pytest.raises(EngineError, match="job 3: ZeroDivisionError: by zero"):
        run(Work(tmp_path / "log", zero), MemoryStore())


def test_a_worker_that_cannot_be_made(cluster: Any, tmp_path: Path) -> None:
    def typed() -> None:
        raise DataError("no such file")

    def untyped() -> None:
        raise KeyError("x")

    with pytest.raises(DataError, match="no such file"):
        run(Work(tmp_path / "log", broken=typed), MemoryStore())
    with pytest.raises(EngineError, match="cannot prepare the work: KeyError: 'x'"):
        run(Work(tmp_path / "log", broken=untyped), MemoryStore())


def test_each_worker_gets_its_share_of_the_cores(cluster: Any, tmp_path: Path) -> None:
    store = MemoryStore()
    job = Job("square", {"i": -1})
    run(Work(tmp_path / "log"), store, Plan([job]), workers=8)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert store.read(job.key).records["threads"] == str(max(2, cores or 1))
    assert cluster.is_initialized()  # a connection that was there before stays


def test_training_gives_the_same_weights(
    cluster: Any, tmp_path: Path, save_checkpoint: Any, write_rows: Any
) -> None:
    """Work that is heavy, imports torch and writes files of its own."""
    import landform as lf

    model = save_checkpoint(tmp_path / "model", kind="masked-lm")
    rows = write_rows(tmp_path / "rows.tsv", 12)
    task = lf.load_task({"train": rows}, text="sentence", label="label")
    options: dict[str, Any] = {"max_steps": 4, "batch_size": 4, "threads": 1, "eval_split": None}
    here, there = (
        lf.train(model, task, out=tmp_path / engine, seeds=(0, 1), engine=engine, **options)
        for engine in ("local", "ray")
    )
    assert there.runs.reused.tolist() == [False, False]
    for a, b in zip(here.paths, there.paths, strict=True):
        weights = [(Path(path) / "model.safetensors").read_bytes() for path in (a, b)]
        assert weights[0] == weights[1]


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"cannot reach the Ray cluster at {address}"):
            run(Work(tmp_path / "log"), MemoryStore(), address=address)


def test_ray_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def without_ray(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(MissingExtraError, match=r"pip install 'landform\[ray\]'"):
        run(Work(tmp_path / "log"), MemoryStore())
