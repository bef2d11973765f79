"""Engines: they run the jobs of a plan that a store does not hold yet, and keep each result.

`local` runs them in this process, one after the other; `ray` hands them to the workers of a Ray
cluster. Both write every result as soon as it is there, so a run that is killed at any point
loses only the jobs in flight and the next run goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from landform.config import nearest
from landform.errors import ConfigError, EngineError, LandformError
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.plan import Job, Plan
from landform.store.progress import track

__all__ = ["ENGINES", "Executed", "Factory", "Worker", "run_plan"]

ENGINES = ("local", "ray")


class Worker(Protocol):
    """Does jobs. One is made per process, so it may keep models and data open between jobs."""

    def run(self, job: Job) -> Contents:
        """What `job` computes; the same job gives the same contents in every process."""


# Makes a worker; runs once in each process that does jobs, so Ray must be able to pickle it.
Factory = Callable[[], Worker]
OnResult = Callable[[Job, Contents], None]


@dataclass(frozen=True)
class Executed:
    """What a run did: jobs run and reused, the evaluations of those run, wall-clock seconds."""

    jobs_run: int
    jobs_reused: int
    evaluations: float
    seconds: float


def run_plan(
    plan: Plan,
    factory: Factory,
    store: ArtifactStore,
    *,
    engine: str = "local",
    workers: int = 1,
    progress: bool = True,
    on_result: OnResult | None = None,
    description: str = "running",
    unit: str = "evaluations",
    address: str | None = None,
) -> Executed:
    """Runs the jobs of `plan` whose artifacts `store` lacks, and stores what they compute.

    factory: makes the worker; not called when nothing is missing. on_result: called in this
    process with each new result after it is stored. description, unit: for the progress display.
    address: the Ray cluster to use; without it RAY_ADDRESS, and without that a cluster of
    `workers` processes on this machine, which is stopped in the end.

    A job that fails stops the run; everything finished before is stored. A `LandformError` comes
    through as itself with the job's label in front, any other exception as an `EngineError`.
    """
    _check(engine, workers)
    started = time.perf_counter()
    missing = plan.missing(store)
    with track(sum(job.cost for job in missing), description, unit, enabled=progress) as report:

        def finish(job: Job, contents: Contents) -> None:
            store.write(job.key, contents, provenance=job.provenance())
            if on_result is not None:
                on_result(job, contents)
            report.advance(job.cost, note=job.label)

        if missing and engine == "ray":
            from landform.store.ray_engine import run_on_ray

            run_on_ray(missing, factory, finish, workers=workers, address=address)
        elif missing:
            _run_here(missing, factory, finish)
    return Executed(
        jobs_run=len(missing),
        jobs_reused=len(plan) - len(missing),
        evaluations=sum(job.cost for job in missing),
        seconds=time.perf_counter() - started,
    )


def _check(engine: str, workers: int) -> None:
    if engine not in ENGINES:
        guess = nearest(engine, ENGINES)
        raise ConfigError(
            f"unknown engine {engine!r}",
            remedy=(f"did you mean {guess!r}? " if guess else "") + f"Known: {', '.join(ENGINES)}",
        )
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected 1 or more")
    if engine == "local" and workers > 1:
        raise ConfigError(
            f"workers is {workers}, but the local engine runs in one process",
            remedy="use the engine 'ray' (pip install 'landform[ray]'), or leave workers at 1",
        )


def _run_here(jobs: tuple[Job, ...], factory: Factory, finish: OnResult) -> None:
    with worker_errors():
        worker = factory()
    for job in jobs:
        with job_errors(job):
            contents = checked(worker.run(job))
        finish(job, contents)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turns what goes wrong while a worker is made into an `EngineError`."""
    try:
        yield
    except LandformError:
        raise
    except Exception as error:
        raise EngineError(f"cannot prepare the work: {_summary(error)}") from error


@contextmanager
def job_errors(job: Job) -> Iterator[None]:
    """Puts the job's label in front of a `LandformError`; others become an `EngineError`."""
    try:
        yield
    except LandformError as error:
        # In place: the type, attributes of subclasses and the traceback all stay.
        known = error.what.startswith(job.name)
        what = error.what if known else f"{job.name}: {error.what}"
        LandformError.__init__(error, what, remedy=error.remedy)
        raise
    except Exception as error:
        raise EngineError(
            f"{job.name}: {_summary(error)}",
            remedy="everything finished before is kept; run the same command again to go on",
        ) from error


def checked(contents: Any) -> Contents:
    """`contents`, if it is what a worker must return."""
    if not isinstance(contents, Contents):
        raise TypeError(f"the worker returned a {type(contents).__name__}, expected Contents")
    return contents


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
