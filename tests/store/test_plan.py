from __future__ import annotations

import json
import pickle
from io import StringIO

import pytest
from rich.console import Console

from landform.errors import ConfigError, StoreError
from landform.store import plan as plan_module
from landform.store.artifacts import Contents, MemoryStore
from landform.store.plan import Job, Plan


def test_the_key_depends_on_what_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"a": "x", "t": (0.0, 0.5)}
    job = Job("line", spec, cost=2, label="one")
    assert job.key.startswith("line/") and len(job.key) == 5 + 64
    same = Job("line", {"t": [0.0, 0.5], "a": "x"}, cost=3, label="two")
    assert job.key == same.key and job == same and hash(job) == hash(same)
    assert job != Job("line", {**spec, "a": "y"}) and job != Job("curve", spec) and job != "line"
    monkeypatch.setattr(plan_module, "PACKAGE_VERSION", "99")
    assert Job("line", spec).key != same.key


def test_the_key_does_not_follow_later_changes_of_the_mapping() -> None:
    spec = {"a": 1}
    job = Job("line", spec)
    spec["a"] = 2
    assert job == Job("line", {"a": 1})


def test_jobs_travel() -> None:
    job = Job("line", {"a": 1}, 2.0, "l")
    key = job.key
    back = pickle.loads(pickle.dumps(job))
    assert back == job and back.key == key and (back.cost, back.label) == (2.0, "l")


def test_bad_jobs() -> None:
    with pytest.raises(ConfigError, match="'Line/x'"):
        Job("Line/x", {})
    with pytest.raises(StoreError, match=r"builtins\.object"):
        _ = Job("line", {"a": object()}).key


def test_a_plan_keeps_order_and_drops_repeats() -> None:
    jobs = [Job("line", {"i": i % 3}, label=str(i)) for i in range(7)]
    assert [job.label for job in Plan(jobs).jobs] == ["0", "1", "2"]


def test_missing_and_forecast() -> None:
    plan = Plan(
        [Job("point", {"i": i}, 1.0) for i in range(3)]
        + [Job("line", {"i": i}, 8.0) for i in range(3)]
    )
    store = MemoryStore()
    for job in (plan.jobs[0], plan.jobs[4]):
        store.write(job.key, Contents())
    assert plan.missing(store) == tuple(plan.jobs[i] for i in (1, 2, 3, 5))
    assert plan.missing(None) == plan.jobs
    forecast = plan.forecast(store, seconds_per_unit=10.0, memory=2**30, workers=2)
    assert (forecast.jobs, forecast.done, forecast.evaluations) == (6, 2, 18.0)
    assert forecast.seconds == 90.0 and forecast.memory == 2**31
    assert forecast.reading == (
        "6 jobs, 2 of them done: 18 evaluations to do, about 1.5 min with 2 workers, "
        "about 2 GiB of memory"
    )
    plain = json.loads(json.dumps(forecast.to_json()))
    assert plain["evaluations"] == 18 and plain["seconds"] == 90
    assert plain["kinds"][1] == {"kind": "line", "jobs": 3, "done": 1, "evaluations": 16}
    page = Console(file=StringIO(), width=100)
    page.print(forecast.table())
    text = page.file.getvalue()  # type: ignore[attr-defined]
    assert "point" in text and "16" in text and "6 jobs, 2 of them done" in text


def test_an_unknown_time_is_not_made_up() -> None:
    forecast = Plan([Job("line", {}, 1234567.0)]).forecast()
    assert forecast.seconds is None and forecast.memory is None
    assert forecast.reading == "1 jobs, 0 of them done: 1,234,567 evaluations to do"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (89, "89 s"), (600, "10 min"), (7200, "2 h"), (9e5, "10.4 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert text in Plan([Job("a", {})]).forecast(seconds_per_unit=seconds).reading
