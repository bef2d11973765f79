"""What the commands share: options of output, data sets on the command line, printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from landform.config import Config
from landform.results import Result
from landform.tasks.task import Task, TaskConfig

__all__ = ["Flat", "OutputConfig", "also_tasks", "emit", "flat"]


def flat() -> Parameter:
    """The fields of a config as flags of the command itself."""
    return Parameter(name="*")


Flat = flat()


class OutputConfig(Config):
    """How a command speaks."""

    json_: Annotated[bool, Parameter(name="--json", negative=())] = False
    """Print the result as JSON on standard output, and nothing else there."""
    quiet: Annotated[bool, Parameter(negative=())] = False
    """No progress display."""


def emit(result: Result | dict[str, Any], output: OutputConfig, wrote: Sequence[Path | str] = ()) -> None:
    """Print a result: its reading and what was written, or JSON."""
    if output.json_:
        value = result if isinstance(result, dict) else result.to_json()
        value = {**value, "wrote": [str(path) for path in wrote]} if wrote else value
        json.dump(_finite(value), sys.stdout, indent=1, default=_plain)
        print()
        return
    if isinstance(result, Result):
        print(result.reading)
    for path in wrote:
        print(f"wrote {path}")


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return _finite(value.item())
    return str(value)


def _finite(value: Any) -> Any:
    """NaN is not JSON: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    return value


def also_tasks(specs: Sequence[str]) -> list[Task | tuple[Task, str]]:
    """Further data sets: `NAME`, `NAME:SPLIT`, `FILE.yaml`, `FILE.yaml:SPLIT`."""
    chosen: list[Task | tuple[Task, str]] = []
    for spec in specs:
        name, colon, split = spec.rpartition(":")
        if not colon:
            name, split = spec, ""
        task = TaskConfig.read(name).task() if name.endswith((".yaml", ".yml")) else TaskConfig(task=name).task()
        chosen.append((task, split) if split else task)
    return chosen
