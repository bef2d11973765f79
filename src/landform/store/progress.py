"""Progress of long work: a bar with an estimate on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["INTERVAL", "Track", "track"]

INTERVAL = 5.0  # seconds between two plain lines

_shared: Progress | None = None  # the bar on the terminal, to which nested work adds its rows


def track(
    total: float,
    description: str,
    unit: str = "evaluations",
    *,
    done: float = 0.0,
    enabled: bool = True,
) -> Track:
    """A context in which `.advance(n, note=...)` reports that `n` of `total` units are done.

    On a terminal this draws a bar with an estimate of the time left (work inside other tracked
    work adds a row below it); elsewhere a plain line goes to standard error every `INTERVAL`
    seconds, and work shorter than that stays silent. `done` units count as finished from the
    start and do not enter the estimate. Off when `enabled` is false or LANDFORM_PROGRESS is 0.
    """
    if not enabled or os.environ.get("LANDFORM_PROGRESS", "1").strip() == "0":
        return Track()
    if sys.stderr.isatty():
        return _Bar(total, description, unit, done)
    return _Lines(total, description, unit, done)


class Track:
    """Reports nothing; what `track` returns when progress is off."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def advance(self, n: float = 1.0, note: str = "") -> None:
        """`n` more units are done; `note` says what is going on (a name, a loss)."""


class _Lines(Track):
    def __init__(self, total: float, description: str, unit: str, done: float) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = self.start_done = done
        self.started = self.printed = time.monotonic()
        self.note = ""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        elapsed = time.monotonic() - self.started
        if elapsed >= INTERVAL:
            state = "done" if kind is None else "stopped"
            self._print(f"{state} after {_clock(elapsed)}")

    def advance(self, n: float = 1.0, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        if now - self.printed < INTERVAL:
            return
        self.printed = now
        progressed = self.done - self.start_done
        left = (now - self.started) * (self.total - self.done) / progressed if progressed else 0.0
        self._print(f"about {_clock(max(left, 0.0))} left")

    def _print(self, state: str) -> None:
        note = f" ({self.note})" if self.note else ""
        counts = f"{self.done:.10g} of {self.total:.10g} {self.unit}"
        print(f"{self.description}: {counts}, {state}{note}", file=sys.stderr, flush=True)


class _Bar(Track):
    def __init__(self, total: float, description: str, unit: str, done: float) -> None:
        self.total, self.description, self.unit, self.done = total, description, unit, done
        self.task: TaskID | None = None
        self.progress: Progress | None = None
        self.owner = False

    def __enter__(self) -> Self:
        global _shared
        if _shared is None:
            _shared = _new_progress()
            _shared.start()
            self.owner = True
        self.progress = _shared
        self.task = self.progress.add_task(
            self.description, total=self.total, unit=self.unit, note=""
        )
        self.progress.update(self.task, completed=self.done)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _shared
        if self.progress is None or self.task is None:
            return
        if self.owner:
            self.progress.stop()
            _shared = None
        else:
            self.progress.remove_task(self.task)

    def advance(self, n: float = 1.0, note: str = "") -> None:
        if self.progress is None or self.task is None:
            return
        extra: dict[str, Any] = {"note": note} if note else {}
        self.progress.update(self.task, advance=n, **extra)


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.10g}/{task.total:.10g} {task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
