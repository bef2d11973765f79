"""Sides of a comparison: each in a process of its own, taking turns, timed from within.

A side is a function of a module that prepares (imports, models, batches: not timed) and returns
the work: a callable that is run once a turn and returns named arrays, which are compared. Turns go
A B A B. What is told is the processor time of the median turn (each side has one thread, so it is
the time that the work takes on a quiet machine, and other work on this one hardly changes it), and
the peak memory of the process (VmHWM), with what its libraries and inputs took before the work.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
THREADS = 1
"""of every side, and of the rates that floors are reckoned with"""


@dataclass
class Measured:
    """What is known of one side."""

    seconds: float
    """of processor time, of the median turn"""
    turns: list[float]
    """processor time of each"""
    wall: list[float]
    """seconds that went by"""
    peak: float
    """GiB that the process held at most"""
    before: float
    """GiB of it that were there before the first turn: libraries, model, inputs"""
    numbers: dict[str, np.ndarray] = field(repr=False)
    error: str = ""
    """why there are no numbers, where the side failed"""

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        kept = {name: value for name, value in vars(self).items() if name != "numbers"}
        return {**kept, "seconds": self.seconds if np.isfinite(self.seconds) else None}


def peak_memory() -> float:
    """GiB that this process has held at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


class _Side:
    """The parent's end of one side."""

    def __init__(self, name: str, arguments: Mapping[str, Any], folder: Path) -> None:
        self.result, self.log = folder / f"{len(list(folder.iterdir()))}.npz", None
        self.said = self.result.with_suffix(".log")
        self.log = self.said.open("wb")
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONWARNINGS": "ignore",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, __file__, name, json.dumps(arguments, default=str), str(self.result)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment,
        )  # fmt: skip
        self.turns: list[list[float]] = []
        self.memory: list[float] = []

    def ask(self, word: str) -> list[float] | None:
        """Send a word, wait for the numbers that answer it; None where the side has died."""
        try:
            if word:
                self.process.stdin.write(word + "\n")  # type: ignore[union-attr]
                self.process.stdin.flush()  # type: ignore[union-attr]
            line = self.process.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            line = ""
        return [float(number) for number in line.split()] if line else None

    def finish(self) -> Measured:
        """Close the side and read what it left."""
        peak = self.ask("end")
        self.process.communicate()
        self.log.close()  # type: ignore[union-attr]
        if peak is None or not self.turns:
            tail = self.said.read_text(errors="replace").strip().splitlines()
            error = tail[-1] if tail else "it died"
            return Measured(np.nan, [], [], np.nan, np.nan, {}, error)
        with np.load(self.result) as kept:
            numbers = {name: kept[name] for name in kept.files}
        wall, processor = (list(column) for column in zip(*self.turns, strict=True))
        median = statistics.median(processor)
        return Measured(median, processor, wall, peak[0], self.memory[0], numbers)


def in_turns(
    sides: Mapping[str, str], arguments: Mapping[str, Any], rounds: int
) -> dict[str, Measured]:
    """Run sides {label: "module.function"} with the same arguments; one that fails says why.

    Where there is more than one turn, one before them is not counted: it imports and warms up.
    """
    with tempfile.TemporaryDirectory() as name:
        running = {label: _Side(way, arguments, Path(name)) for label, way in sides.items()}
        for side in running.values():
            ready = side.ask("")
            side.memory = ready or []
        for turn in range(rounds + (rounds > 1)):
            for side in running.values():
                spent = side.ask("go") if side.memory else None
                if spent is not None and (turn or rounds == 1):
                    side.turns.append(spent)
        return {label: side.finish() for label, side in running.items()}


def rates() -> tuple[float, float]:
    """(multiply-adds x 2 of a float32 matrix product, bytes read and written by a copy) per second
    of processor time, here and now: the units of floors."""
    import torch

    a, b, product = torch.randn(1024, 1536), torch.randn(1536, 1536), torch.empty(1024, 1536)
    source, target = torch.randn(1 << 24), torch.empty(1 << 24)
    jobs = [
        (2 * 1024 * 1536 * 1536, lambda: torch.mm(a, b, out=product)),
        (2 * 4 * source.numel(), lambda: target.copy_(source)),
    ]
    found = []
    for amount, job in jobs:
        job()
        spent = []
        for _ in range(9):
            start = time.process_time()
            job()
            spent.append(time.process_time() - start)
        found.append(amount / statistics.median(spent))
    return found[0], found[1]


def relative(a: Any, b: Any) -> float:
    """max |a - b| / max |b|: the largest difference as a share of the largest number."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def markdown(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in lines)


def _child(way: str, arguments: str, result: str) -> None:
    # What libraries print must not reach the parent: only numbers go through the pipe.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path.insert(0, str(HERE))
    module, function = way.split(".")
    work = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(peak_memory(), file=pipe, flush=True)
    found: dict[str, Any] = {}
    peak = peak_memory()
    for line in sys.stdin:
        if line.strip() == "end":
            np.savez(result, **{name: np.asarray(value) for name, value in found.items()})
            print(peak, file=pipe, flush=True)
            return
        start = (time.perf_counter(), time.process_time())
        found = work()
        spent = (time.perf_counter() - start[0], time.process_time() - start[1])
        peak = peak_memory()
        print(*spent, file=pipe, flush=True)


if __name__ == "__main__":
    _child(*sys.argv[1:4])
