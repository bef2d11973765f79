"""`landform evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    make_task,
    print_table,
    run_study,
)
from landform.errors import ConfigError
from landform.evaluation.evaluate import EvaluateConfig, Evaluation
from landform.evaluation.samples import write_samples
from landform.store.atomic import check_place
from landform.store.study import slug
from landform.studies.kept import EvaluationStudy
from landform.tasks.task import Task, TaskConfig

__all__ = ["evaluate"]


def evaluate(
    checkpoints: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "validation",
    store: Path | None = None,
    samples: Path | None = None,
    breakdown: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[EvaluateConfig, OptionFlags] = EvaluateConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Evaluate checkpoints: metrics with intervals, per-example log, subsets.

    Example: landform evaluate runs/seed0 --task sst2 --data-dir GLUE/SST-2 --store study

    Parameters
    ----------
    checkpoints
        Directories, steps of runs (runs/seed0@300), hub models, or patterns ('runs/seed*').
    split
        The split to evaluate on.
    store
        Study directory: outputs are kept there and reused; the per-example log is written to
        results/evaluate-NAME-TASK-SPLIT/log.parquet.
    samples
        Directory for per-sample JSON files, NAME.json, in the connectivity project's format.
    breakdown
        Print the task's headline metric on every subset (--json and --store have all metrics).
    dry_run
        Say what would be evaluated, with time and memory; keep nothing.
    """
    task = make_task(data)
    if samples is not None:
        check_samples(samples, task)
    run_study(
        lambda: EvaluationStudy.of(checkpoints, task, split=split, **dict(options)),
        output,
        store=store,
        dry_run=dry_run,
        json_of=lambda found: {"evaluations": [result.to_json() for result in found]},
        say=lambda found: _say(found, task if breakdown else None),
        write=lambda study, found: _write(samples, study.names, found),
    )


def _write(samples: Path | None, names: Sequence[str], found: Sequence[Evaluation]) -> list[Path]:
    """The per-sample files."""
    if samples is None:
        return []
    places = [samples / f"{slug(name)}.json" for name in names]
    for place, result in zip(places, found, strict=True):
        write_samples(place, result.log, result.label_names)
    return places


def _say(found: Sequence[Evaluation], task: Task | None) -> None:
    for result in found:
        print(result.reading)
        if task is not None:
            print_subsets(result, task)


def print_subsets(result: Evaluation, task: Task) -> None:
    """The headline metric on every subset, as a table."""
    metric = task.metrics[0]
    rows = result.subsets[result.subsets.metric == metric].rename(columns={"value": metric})
    if len(rows):
        print_table(rows[["subset", "n", metric, "low", "high"]])
    else:
        print(f"task {task.name} has no subsets; --subsets COLUMN makes some")


def check_samples(folder: Path, task: Task) -> None:
    """Raise now what writing the per-sample files would raise at the end."""
    check_place(folder / "NAME.json")
    if task.kind != "classification":
        raise ConfigError(
            f"option samples: task {task.name!r} is {task.kind}, and the format knows classes only",
            remedy="use --store: it keeps the per-example log of every kind of task",
        )
