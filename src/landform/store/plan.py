"""Plans: the jobs of a study, named by what they are given before any of them runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from landform.errors import ConfigError
from landform.results import Result
from landform.store.artifacts import package_version
from landform.store.fingerprint import fingerprint, to_plain

if TYPE_CHECKING:
    from collections.abc import Container

    from rich.table import Table

__all__ = ["PACKAGE_VERSION", "Forecast", "ForecastRow", "Job", "Plan"]

PACKAGE_VERSION = package_version()  # enters every key: another version computes anew

_KIND = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work: what to do (`kind`) with what (`spec`).

    The spec holds everything that decides the result, as values that `fingerprint` accepts:
    fingerprints of weights and data rather than their paths alone, options, seeds. `cost` counts
    model evaluations (passes over the data), for forecasts and progress; `label` is for people.
    Neither is part of the key. Two jobs are equal when their keys are.
    """

    kind: str
    spec: Mapping[str, Any]
    cost: float = 1.0
    label: str = ""

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise ConfigError(
                f"the kind of a job is {self.kind!r}",
                remedy="use lower-case letters, digits, - and _",
            )
        object.__setattr__(self, "spec", dict(self.spec))

    @cached_property
    def key(self) -> str:
        """ "<kind>/<fingerprint of kind, spec and package version>"."""
        return f"{self.kind}/{fingerprint((self.kind, self.spec, PACKAGE_VERSION))}"

    @property
    def name(self) -> str:
        """The label, or the beginning of the key where there is none."""
        return self.label or self.key[: len(self.kind) + 9]

    def provenance(self) -> dict[str, Any]:
        """Kind and spec as plain values, for the manifest of what the job computes."""
        where = f"the spec of {self.name}"
        return {"kind": self.kind, "label": self.label, "spec": to_plain(self.spec, where=where)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class Plan:
    """Jobs in the order in which they should run; of equal ones only the first is kept."""

    jobs: tuple[Job, ...]

    def __init__(self, jobs: Iterable[Job]) -> None:
        object.__setattr__(self, "jobs", tuple(dict.fromkeys(jobs)))

    def __len__(self) -> int:
        return len(self.jobs)

    def missing(self, store: Container[object] | None) -> tuple[Job, ...]:
        """The jobs whose artifact `store` does not hold; all of them without a store."""
        if store is None:
            return self.jobs
        return tuple(job for job in self.jobs if job.key not in store)

    def forecast(
        self,
        store: Container[object] | None = None,
        *,
        seconds_per_unit: float | None = None,
        memory: float | None = None,
        workers: int = 1,
        unit: str = "evaluations",
    ) -> Forecast:
        """What running this plan will take.

        `seconds_per_unit`: seconds of one evaluation, measured by the caller; `memory`: bytes one
        worker needs at its peak. What is not given stays unknown (None) in the forecast.
        """
        missing = set(self.missing(store))
        rows: dict[str, list[float]] = {}
        for job in self.jobs:
            row = rows.setdefault(job.kind, [0, 0, 0.0])
            row[0] += 1
            row[1] += job not in missing
            row[2] += job.cost if job in missing else 0.0
        kinds = tuple(
            ForecastRow(kind, int(jobs), int(done), cost)
            for kind, (jobs, done, cost) in rows.items()
        )
        units = sum(row.evaluations for row in kinds)
        seconds = None if seconds_per_unit is None else units * seconds_per_unit / max(workers, 1)
        total = None if memory is None else memory * max(workers, 1)
        return Forecast(kinds, seconds, total, workers, unit)


@dataclass(frozen=True)
class ForecastRow:
    """The jobs of one kind: how many, how many are done, the evaluations the others need."""

    kind: str
    jobs: int
    done: int
    evaluations: float


@dataclass(frozen=True)
class Forecast(Result):
    """What a plan will take: jobs, evaluations, seconds and bytes (None where unknown)."""

    rows: tuple[ForecastRow, ...]
    seconds: float | None = None
    memory: float | None = None
    workers: int = field(default=1)
    unit: str = "evaluations"
    """what the cost of a job counts: evaluations, or the steps of a training"""

    @property
    def jobs(self) -> int:
        """The number of jobs in the plan."""
        return sum(row.jobs for row in self.rows)

    @property
    def done(self) -> int:
        """How many of them the store already holds."""
        return sum(row.done for row in self.rows)

    @property
    def evaluations(self) -> float:
        """The model evaluations that remain to be done."""
        return sum(row.evaluations for row in self.rows)

    @property
    def reading(self) -> str:
        """For example "190 jobs, 20 of them done: 1520 evaluations to do, about 3.5 min"."""
        text = (
            f"{self.jobs} jobs, {self.done} of them done: "
            f"{self.evaluations:,.10g} {self.unit} to do"
        )
        if self.seconds is not None:
            text += f", about {_duration(self.seconds)}"
        if self.workers > 1:
            text += f" with {self.workers} workers"
        if self.memory is not None:
            text += f", about {_size(self.memory)} of memory"
        return text

    def table(self) -> Table:
        """The forecast as a table for the terminal (rich)."""
        from rich.table import Table

        table = Table(title="forecast", caption=self.reading, caption_justify="left")
        table.add_column("job")
        for name in ("jobs", "done", f"{self.unit} to do"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(row.kind, str(row.jobs), str(row.done), f"{row.evaluations:,.10g}")
        return table

    def to_json(self) -> dict[str, Any]:
        """The forecast as plain values."""
        return {
            "jobs": self.jobs,
            "done": self.done,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "memory_bytes": self.memory,
            "workers": self.workers,
            "kinds": to_plain(self.rows),
        }


def _duration(seconds: float) -> str:
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}"
    return f"{seconds / 86400:.3g} days"


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
