from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from landform.errors import ConfigError, DataError, EngineError, NonFiniteError, StoreError
from landform.store.artifacts import Contents, MemoryStore
from landform.store.engines import run_plan
from landform.store.plan import Job, Plan

PLAN = Plan(Job("square", {"i": i}, cost=2.0, label=f"job {i}") for i in range(5))


class Squares:
    def __init__(self, fail: Callable[[int], None] = lambda i: None) -> None:
        self.calls: list[int] = []
        self.fail = fail

    def run(self, job: Job) -> Contents:
        i = job.spec["i"]
        self.calls.append(i)
        self.fail(i)
        return Contents(tensors={"square": np.array([i * i])})


def test_what_is_missing_is_run_once_and_in_order() -> None:
    store, worker = MemoryStore(), Squares()
    store.write(PLAN.jobs[1].key, Contents(tensors={"square": np.array([1])}))
    seen: list[str] = []
    done = run_plan(PLAN, lambda: worker, store, on_result=lambda job, _: seen.append(job.label))
    assert worker.calls == [0, 2, 3, 4]
    assert seen == ["job 0", "job 2", "job 3", "job 4"]
    assert (done.jobs_run, done.jobs_reused, done.evaluations) == (4, 1, 8.0)
    assert [int(store.read(job.key).tensors["square"][0]) for job in PLAN.jobs] == [0, 1, 4, 9, 16]
    assert store.manifest(PLAN.jobs[3].key)["provenance"] == {
        "kind": "square",
        "label": "job 3",
        "spec": {"i": 3},
    }


def test_no_worker_is_made_when_nothing_is_missing() -> None:
    store = MemoryStore()
    run_plan(PLAN, Squares, store)

    def never() -> Squares:
        raise AssertionError

    done = run_plan(PLAN, never, store)
    assert (done.jobs_run, done.jobs_reused, done.evaluations) == (0, 5, 0.0)


def test_results_are_stored_before_the_next_job_starts() -> None:
    store = MemoryStore()

    def check(i: int) -> None:
        assert [job.key in store for job in PLAN.jobs] == [j < i for j in range(5)]

    run_plan(PLAN, lambda: Squares(check), store)


def fail_at(at: int, error: BaseException) -> Callable[[int], None]:
    def fail(i: int) -> None:
        if i == at:
            raise error

    return fail


def test_typed_errors_stay_themselves_and_name_the_job() -> None:
    error = NonFiniteError("NaN in tensor 'w'", remedy="train again")
    store = MemoryStore()
    with pytest.raises(NonFiniteError) as caught:
        run_plan(PLAN, lambda: Squares(fail_at(2, error)), store)
    assert caught.value is error
    assert str(error) == "job 2: NaN in tensor 'w'\n  what to do: train again"
    assert [job.key in store for job in PLAN.jobs] == [True, True, False, False, False]


def test_other_errors_become_engine_errors() -> None:
    cause = ZeroDivisionError("by zero")
    with pytest.raises(EngineError, match="job 2: ZeroDivisionError: by zero") as caught:
        run_plan(PLAN, lambda: Squares(fail_at(2, cause)), MemoryStore())
    assert caught.value.__cause__ is cause


def test_an_interrupt_is_not_caught_and_finished_work_stays() -> None:
    store = MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        run_plan(PLAN, lambda: Squares(fail_at(3, KeyboardInterrupt())), store)
    assert len(PLAN.missing(store)) == 2


def test_a_worker_that_cannot_be_made() -> None:
    def typed() -> Squares:
        raise DataError("no such file")

    def untyped() -> Squares:
        raise KeyError("x")

    with pytest.raises(DataError, match="no such file"):
        run_plan(PLAN, typed, MemoryStore())
    with pytest.raises(EngineError, match="cannot prepare the work: KeyError: 'x'"):
        run_plan(PLAN, untyped, MemoryStore())


def test_a_worker_must_return_contents() -> None:
    class Wrong:
        def run(self, job: Job) -> Contents:
            return {"a": 1}  # type: ignore[return-value]

    with pytest.raises(EngineError, match=r"job 0: .*returned a dict, expected Contents"):
        run_plan(PLAN, Wrong, MemoryStore())


def test_contents_that_cannot_be_stored() -> None:
    class Text:
        def run(self, job: Job) -> Contents:
            return Contents(tensors={"x": np.array(["text"])})

    store = MemoryStore()
    with pytest.raises(StoreError, match="'x'"):
        run_plan(PLAN, Text, store)
    assert len(PLAN.missing(store)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "rya"}, "did you mean 'ray'"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 2}, "one process"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_plan(PLAN, Squares, MemoryStore(), **options)  # type: ignore[arg-type]
