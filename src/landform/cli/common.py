"""What the commands share: options of output, data sets on the command line, printing."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from landform.config import Config, read_yaml
from landform.errors import ConfigError
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Store
from landform.store.atomic import atomic_path, check_place
from landform.store.plan import Forecast
from landform.store.study import kept_names, open_store, publish
from landform.tasks.task import Task, TaskConfig

if TYPE_CHECKING:
    import pandas as pd

    from landform.studies.kept import Study

__all__ = [
    "DataFlags",
    "OptionFlags",
    "OutputConfig",
    "OutputFlags",
    "also_tasks",
    "check_figure_place",
    "check_k",
    "check_unread",
    "emit",
    "emit_forecast",
    "keep_result",
    "make_task",
    "one_query_set",
    "open_existing",
    "open_study",
    "print_table",
    "query_sets",
    "read_pairs",
    "run_study",
    "save_csv",
    "save_figure",
    "say_forecasts",
    "say_next",
    "task_or_none",
]

DataFlags = Parameter(name="*", group=Group("Data", sort_key=1))
OptionFlags = Parameter(name="*", group=Group("Options", sort_key=2))
OutputFlags = Parameter(name="*", group=Group("Output", sort_key=3))
"""The fields of a config as flags of the command itself, under a heading of the help page."""


class OutputConfig(Config):
    """How a command speaks."""

    json_: Annotated[bool, Parameter(name="--json", negative=())] = False
    """Print the result as JSON on standard output, and nothing else there."""
    quiet: Annotated[bool, Parameter(negative=())] = False
    """No progress display."""


def emit(
    result: Result | dict[str, Any], output: OutputConfig, wrote: Sequence[Path | str] = ()
) -> None:
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
    """NaN and the infinities are not JSON: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def emit_forecast(forecast: Forecast, output: OutputConfig) -> None:
    """Print what a plan would take."""
    if output.json_:
        emit(forecast, output)
        return
    from rich.console import Console

    Console().print(forecast.table())


def say_forecasts(
    names: Sequence[str], forecasts: Sequence[Forecast], output: OutputConfig
) -> None:
    """Print what every step takes, and all of them."""
    seconds = sum(forecast.seconds or 0.0 for forecast in forecasts)
    memory = max(forecast.memory or 0.0 for forecast in forecasts)
    if output.json_:
        steps = [{"step": n, **f.to_json()} for n, f in zip(names, forecasts, strict=True)]
        emit({"seconds": seconds, "memory_bytes": memory, "steps": steps}, output)
        return
    for name, forecast in zip(names, forecasts, strict=True):
        print(f"{name}: {forecast.reading}")
    rows = tuple(row for forecast in forecasts for row in forecast.rows)
    whole = Forecast(rows, seconds, memory).reading
    print(f"in all: {whole[whole.index('about') :]}")


def check_figure_place(figure: Path | None) -> None:
    """Raise for a figure that could not be written, before the data are read."""
    if figure is not None:
        from landform.report.style import check_figure

        check_figure(figure)


def save_figure(result: Result, figure: Path | None) -> list[Path]:
    """Draw `result` where a figure was asked for; the files written."""
    if figure is None:
        return []
    from landform.report.figures import save

    return [save(result.plot(), figure)]


def save_csv(table: pd.DataFrame, csv: Path | None) -> list[Path]:
    """Write a table where a file was asked for, whole or not at all; the files written."""
    if csv is None:
        return []
    with atomic_path(csv) as place:
        table.to_csv(place, index=False)
    return [csv]


def keep_result(
    result: Result, kept: ArtifactStore | None, store: Path | None, title: str
) -> list[Path]:
    """Keep `result` under `title` where --store names a study; the directories written."""
    if store is None or kept is None:
        return []
    return [store / "results" / publish(kept, title, result)]


def print_table(table: pd.DataFrame) -> None:
    """Print a table for a person."""
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def make_task(config: TaskConfig) -> Task:
    """The task that the flags describe."""
    if config.task is None and config.files is None:
        raise ConfigError(
            "no data: which task?",
            remedy="--task NAME (sst2, mnli, ..., a hub data set, a file), or "
            "--files.validation FILE --text COLUMN --label COLUMN",
        )
    return Task.from_config(config)


def also_tasks(specs: Sequence[str]) -> list[Task | tuple[Task, str]]:
    """Further data sets: `NAME`, `NAME:SPLIT`, `FILE.yaml`, `FILE.yaml:SPLIT`."""
    chosen: list[Task | tuple[Task, str]] = []
    for spec in specs:
        name, colon, split = spec.rpartition(":")
        if not colon or "/" in split:
            name, split = spec, ""
        is_file = name.endswith((".yaml", ".yml"))
        task = Task.from_config(read_task(name) if is_file else TaskConfig(task=name))
        chosen.append((task, split) if split else task)
    return chosen


def query_sets(specs: Sequence[str]) -> list[str | tuple[Task, str]]:
    """Splits of the task itself, or of others as for `also_tasks` where they have a colon or are
    files."""
    chosen: list[str | tuple[Task, str]] = []
    for spec in specs:
        if ":" not in spec and not spec.endswith((".yaml", ".yml")):
            chosen.append(spec)
            continue
        (other,) = also_tasks([spec])
        chosen.append(other if isinstance(other, tuple) else (other, "validation"))
    return chosen


def one_query_set(spec: str) -> str | tuple[Task, str]:
    """`query_sets` of one."""
    return query_sets([spec])[0]


def read_task(path: str) -> TaskConfig:
    """A task described in a YAML file: the fields of `TaskConfig`; paths start from the file."""
    return TaskConfig.parse(read_yaml(Path(path)), where=path).placed(Path(path).parent)


def open_study(store: Path | None) -> ArtifactStore:
    """The study directory of --store, or memory."""
    new = store is not None and not store.expanduser().exists()
    opened = open_store(store)
    if new and isinstance(opened, Store):
        _NEW_STUDIES.append(opened.path)
    return opened


_NEW_STUDIES: list[Path] = []
"""Study directories that the present command made."""


def forget_studies(*, failed: bool) -> None:
    """At the end of a command: where it failed, studies that it made and that hold nothing go."""
    while _NEW_STUDIES:
        path = _NEW_STUDIES.pop()
        with suppress(OSError):  # a study that is gone, or not ours to remove, is no further fault
            held = {entry.name for entry in path.iterdir() if not _is_empty(entry)}
            if failed and held == {"study.json"}:
                shutil.rmtree(path)


def _is_empty(entry: Path) -> bool:
    return entry.is_dir() and not any(inner.is_file() for inner in entry.rglob("*"))


def open_existing(store: Path | None) -> ArtifactStore:
    """The study directory of --store where there is one, for a dry run, which makes none."""
    return open_store(store if store is not None and store.exists() else None)


def read_pairs(text: str | None) -> list[tuple[str, str]] | None:
    """Pairs as `a,b c,d`, or from a text file with one pair a line."""
    if text is None:
        return None
    remedy = "write pairs as name,name with spaces between them, or name a file, one pair a line"
    words = _lines(text, remedy) if _is_file(text) else text.split()
    pairs = [tuple(part.strip() for part in word.split(",")) for word in words if word.strip()]
    for pair in pairs:
        if len(pair) != 2:
            raise ConfigError(f"--pairs: {','.join(pair)!r} is not a pair", remedy=remedy)
    return [(pair[0], pair[1]) for pair in pairs]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a long list of pairs is no path at all
        return False


def _lines(path: str, remedy: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--pairs: {path} cannot be read: {error}", remedy=remedy) from None


def task_or_none(config: TaskConfig) -> Task | None:
    """The task that the flags describe, where a command can do without; None where none is."""
    return make_task(config) if config.options_given() else None


def check_unread(given: Mapping[str, object], where: str, remedy: str) -> None:
    """Raise for an option of the command itself that is given where nothing reads it.

    `given` has the values under the names of the options; those that are None, False or empty were
    not given. `where` ends the sentence "option NAME has no effect ...".
    """
    for name, value in given.items():
        if value not in (None, False, "", (), []):
            raise ConfigError(f"option {name} has no effect {where}", remedy=remedy)


def check_k(k: int) -> None:
    """Raise for a number of rows to print that is none."""
    if k < 1:
        raise ConfigError(f"option k is {k}, expected 1 or more")


def _nothing(*_: Any) -> list[Path]:
    return []


def run_study(
    make: Callable[[], Study],
    output: OutputConfig,
    *,
    store: Path | None,
    dry_run: bool,
    figure: Path | None = None,
    csv: Path | None = None,
    parts: Callable[[Any], Sequence[str]] = lambda study: (),
    result_of: Callable[[Any], Result] = lambda done: done,
    json_of: Callable[[Any], dict[str, Any]] | None = None,
    table: Callable[[Any], pd.DataFrame] = lambda done: done.table,
    say: Callable[[Any], object] = _nothing,
    write: Callable[[Any, Any], Sequence[Path]] = _nothing,
) -> None:
    """What a command does: make a study, then forecast it, or run it and hand out what came of it.

    Nothing is computed before it is known that the figure and the CSV file can be written. `parts`
    name what the study forecasts one by one. Of what `run` returns `result_of` is the result to be
    printed and drawn, unless `json_of` makes what --json prints and `say` says everything; `table`
    goes to the CSV file; `write(study, done)` writes the command's own files.
    """
    check_figure_place(figure)
    if csv is not None:
        check_place(csv)
    study = make()
    if dry_run:
        found = study.forecast(open_existing(store))
        if isinstance(found, Forecast):
            emit_forecast(found, output)
        else:
            say_forecasts(parts(study)[: len(found)], found, output)
        return
    kept = None if store is None else open_study(store)
    done = study.run(kept, progress=not output.quiet)
    names = () if kept is None else kept_names(kept, study.kept(done), done)
    wrote = [] if store is None else [store / "results" / name for name in names]
    wrote += write(study, done)
    if csv is not None:
        wrote += save_csv(table(done), csv)
    if figure is not None:
        wrote += save_figure(result_of(done), figure)
    if not output.json_:
        say(done)
    if json_of is None:
        emit(result_of(done), output, wrote)
    else:
        emit(json_of(done) if output.json_ else {}, output, wrote)
    say_next(store, output)


def say_next(store: Path | None, output: OutputConfig) -> None:
    """What to do with what is kept now."""
    if store is not None and not output.json_:
        print(f"next: landform report {store}")
