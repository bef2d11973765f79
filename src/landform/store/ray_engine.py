"""The Ray engine: the same jobs, done by the workers of a Ray cluster.

Ray does the scheduling, the placement and the retries. What is done here is the order of
submission: each worker gets runs of consecutive jobs, because neighbours in a plan share
checkpoints and a worker keeps those it loaded. The runs get shorter towards the end, so that all
workers finish at about the same time. Only this process writes to the store.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from landform.errors import EngineError, LandformError, MissingExtraError
from landform.store.artifacts import Contents
from landform.store.engines import Factory, OnResult, checked, job_errors, worker_errors
from landform.store.plan import Job

__all__ = ["RETRIES", "run_on_ray"]

RETRIES = 2  # how often a job is tried again after the process that ran it died


def run_on_ray(
    jobs: Sequence[Job],
    factory: Factory,
    finish: OnResult,
    *,
    workers: int,
    address: str | None = None,
) -> None:
    """Runs `jobs` on a Ray cluster and calls `finish(job, contents)` here for each, as they end.

    Uses the connection this process already has, else the cluster at `address` or RAY_ADDRESS,
    else starts one with `workers` processes on this machine. What was started or connected here
    is shut down in the end. `MissingExtraError` without Ray, `EngineError` when the cluster
    cannot be reached or a job's process died `RETRIES` + 1 times; errors of jobs come back typed.
    """
    ray = _import_ray()
    workers = min(workers, len(jobs))
    with _cluster(ray, workers, address or os.environ.get("RAY_ADDRESS") or None):
        crew = [_Member(handle) for handle in _start(ray, factory, workers)]
        try:
            _Dispatch(ray, jobs, crew, finish).run()
        finally:
            for member in crew:
                ray.kill(member.handle)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError.of("ray", "ray", "the engine 'ray'") from None
    return ray


@contextmanager
def _cluster(ray: Any, workers: int, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Starting a cluster on somebody's machine must not send usage reports from it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    doing = "start a Ray cluster on this machine"
    if address is None:
        # Without "local" Ray would join whatever cluster was started on this machine last.
        options |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
    else:
        options["address"] = address
        doing = f"reach the Ray cluster at {address}"
    try:
        _knock(address)
        ray.init(**options)
    except (RuntimeError, ValueError, OSError, OverflowError) as error:
        raise EngineError(
            f"cannot {doing}: {error}",
            remedy="check `ray status` and RAY_ADDRESS, or use the engine 'local'",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises `OSError` when nobody listens at a "host:port" address; Ray would wait minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _start(ray: Any, factory: Factory, workers: int) -> list[Any]:
    resources = ray.cluster_resources()
    # A cluster made for this run counts one CPU per worker, however many cores there are.
    cores = max(int(resources.get("CPU", workers)), _cores() if len(ray.nodes()) == 1 else 1)
    threads = max(1, cores // workers)
    gpus = min(1.0, int(resources.get("GPU", 0) * 100 / workers) / 100)
    if gpus > 0.5:  # Ray takes whole devices or fractions of one
        gpus = 1.0 if gpus == 1.0 else 0.5
    actor = ray.remote(_Actor).options(
        num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES
    )
    packed = ray.cloudpickle.dumps(factory)
    return [actor.remote(packed, threads) for _ in range(workers)]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1


class _Actor:
    """One process of the cluster, with its worker.

    Errors are returned, not raised: Ray would wrap them into an error of its own, and a failure
    to make the worker would look like a process that died.
    """

    def __init__(self, factory: bytes, threads: int) -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
        self.threads = threads
        self.worker: Any = None
        self.factory: bytes | None = factory

    def prepare(self) -> LandformError | None:
        """Makes the worker; returns what went wrong."""
        try:
            with worker_errors():
                if self.factory is not None:
                    self.worker = pickle.loads(self.factory)()
                    self.factory = None
                    _limit_threads(self.threads)
        except LandformError as error:
            return _portable(error)
        return None

    def run(self, job: Job) -> Contents | LandformError:
        """The contents of `job`, or what went wrong."""
        # A process that Ray started anew after its predecessor died has no worker yet.
        failed = self.prepare()
        if failed is not None:
            return failed
        try:
            with job_errors(job):
                return checked(self.worker.run(job))
        except LandformError as error:
            return _portable(error)


def _limit_threads(threads: int) -> None:
    # Where torch was imported before the variables were set, only this call still works. It is
    # looked up because this floor does not import torch.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _portable(error: LandformError) -> LandformError:
    # The original exception may hold what cannot be pickled (a model, a lock); its text is in
    # the message already. The traceback goes along as a note.
    import traceback

    if error.__cause__ is not None:
        error.add_note("".join(traceback.format_exception(error.__cause__)))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@dataclass
class _Member:
    """A worker of the cluster and the run of jobs it has before it."""

    handle: Any
    assigned: deque[Job] = field(default_factory=deque)


class _Dispatch:
    """Submits jobs to the crew, one at a time to each, and collects what they return.

    One at a time, because Ray counts a death against every job submitted to the dead process:
    with a queue there, innocent jobs would run out of retries together with the guilty one. A
    worker gets its next job before the result of the last is written, so it hardly waits.
    """

    def __init__(
        self, ray: Any, jobs: Sequence[Job], crew: Sequence[_Member], finish: OnResult
    ) -> None:
        self.ray = ray
        self.jobs = deque(jobs)
        self.crew = crew
        self.finish = finish
        self.unfinished = len(jobs)
        self.pending: dict[Any, tuple[_Member, Job | None]] = {}

    def run(self) -> None:
        """Until every job is finished; raises the first error."""
        # A worker gets jobs when it is ready: one that the cluster has no room for holds none.
        for member in self.crew:
            self.pending[member.handle.prepare.remote()] = (member, None)
        while self.unfinished:
            (reference, *_), _ = self.ray.wait(list(self.pending), num_returns=1)
            member, job = self.pending.pop(reference)
            outcome = self._outcome(reference, job)
            self._submit(member)
            if job is not None:
                self.finish(job, outcome)
                self.unfinished -= 1

    def _outcome(self, reference: Any, job: Job | None) -> Any:
        try:
            outcome = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            doing = "preparing the work" if job is None else job.name
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EngineError(
                f"{doing}: the worker process died {RETRIES + 1} times ({reason})",
                remedy="it may have run out of memory: use fewer workers or smaller batches; "
                "everything finished before is kept",
            ) from error
        if isinstance(outcome, LandformError):
            raise outcome
        return outcome

    def _submit(self, member: _Member) -> None:
        if not member.assigned:
            size = -(-len(self.jobs) // (2 * len(self.crew)))
            member.assigned.extend(self.jobs.popleft() for _ in range(size))
        if member.assigned:
            job = member.assigned.popleft()
            self.pending[member.handle.run.remote(job)] = (member, job)
