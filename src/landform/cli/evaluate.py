"""`landform evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    emit,
    emit_forecast,
    keep_result,
    make_task,
    open_existing,
    open_study,
    print_table,
)
from landform.errors import ConfigError
from landform.evaluation.evaluate import EvaluateConfig, Evaluation, plan_evaluation
from landform.evaluation.evaluate import evaluate as evaluate_checkpoint
from landform.evaluation.samples import write_samples
from landform.store.atomic import check_place
from landform.store.plan import Plan
from landform.store.study import slug
from landform.tasks.task import Task, TaskConfig
from landform.weights.checkpoint import select, short_names

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
    chosen = select(checkpoints)
    if dry_run:
        planned = [plan_evaluation(checkpoint, task, split, dict(options)) for checkpoint in chosen]
        whole = Plan(job for _, plan in planned for job in plan.jobs)
        emit_forecast(planned[0][0].forecast(whole, open_existing(store)), output)
        return
    names = short_names(chosen)
    kept = open_study(store)
    results: list[Evaluation] = []
    wrote: list[Path] = []
    for name, checkpoint in zip(names, chosen, strict=True):
        result = evaluate_checkpoint(
            checkpoint, task, split=split, store=kept, progress=not output.quiet, **dict(options)
        )
        results.append(result)
        wrote += keep_result(result, kept, store, slug("evaluate", name, task.name, split))
        if samples is not None:
            path = samples / f"{slug(name)}.json"
            write_samples(path, result.log, result.label_names)
            wrote.append(path)
    if output.json_:
        emit({"evaluations": [result.to_json() for result in results]}, output, wrote)
        return
    for shown in results:
        print(shown.reading)
        if breakdown:
            print_subsets(shown, task)
    emit({}, output, wrote)


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
