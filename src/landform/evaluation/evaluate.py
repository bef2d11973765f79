"""`evaluate`: the value of the field at one point, with everything computed per example."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from landform.errors import DataError
from landform.evaluation.intervals import known_interval, resample_counts
from landform.evaluation.points import Data, PointsConfig, PointsWork, unpack
from landform.evaluation.scores import example_scores
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Plan
from landform.store.study import open_store
from landform.tasks.metrics import Predictions, get_metric, reliability
from landform.tasks.task import Examples, Task
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "assemble",
    "evaluate",
    "headline",
    "metric_names",
    "metric_replicates",
    "metric_table",
    "plan_evaluation",
    "subset_masks",
]


class EvaluateConfig(PointsConfig):
    """Options of `evaluate`."""


@dataclass(frozen=True)
class Evaluation(Result):
    """What a checkpoint does on a data set, per example and in sum."""

    checkpoint: str
    task: str
    split: str
    kind: str
    log: pd.DataFrame
    """one row per example: text_id, text, text_pair, label, prediction, correct, loss (nats),
    tokens, logit_0 ..., and the data's further columns; of generated answers label (the accepted
    ones, joined by " | "), prediction and score (the headline metric of the example)"""
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """percentile bootstrap over examples, at the level of the config"""
    subsets: pd.DataFrame
    """columns subset, n, metric, value, low, high"""
    reliability: pd.DataFrame | None
    """columns bin, lower, upper, count, confidence, accuracy; None where there are no classes"""
    label_names: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        parts = [
            f"{name} {value:.4g} [{self.intervals[name][0]:.4g}, {self.intervals[name][1]:.4g}]"
            for name, value in self.metrics.items()
        ]
        count = f"{len(self.log)} example{'' if len(self.log) == 1 else 's'}"
        cut = self.provenance.get("truncated", 0)
        if cut:
            count += f", {cut} of them cut at the maximum length"
        cut = self.provenance.get("generations_cut", 0)
        if cut:
            count += f", {cut} generated answers cut at max_new_tokens"
        return f"{self.checkpoint} on {self.task}:{self.split} ({count}): {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Metrics, intervals and subsets; the per-example log stays a table."""
        return {
            "checkpoint": self.checkpoint,
            "task": self.task,
            "split": self.split,
            "examples": len(self.log),
            "metrics": self.metrics,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "subsets": self.subsets.to_dict("records"),
            "provenance": self.provenance,
        }


def evaluate(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    split: str = "validation",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Evaluation:
    """Evaluate a checkpoint on a split of a task.

    Options are the fields of `EvaluateConfig` (rows, max_length, dtype, device, ...). With a
    `store`, the outputs are kept there and reused as long as weights, data and options stay the
    same. Raises a `LandformError` that names the culprit for anything that cannot be evaluated.
    """
    work, plan = plan_evaluation(checkpoint, task, split, options)
    config = work.config
    kept = open_store(store)
    run_plan(plan, work, kept, progress=progress)
    contents = kept.read(plan.jobs[0].key)
    examples = work.data[0].examples(config.rows)
    predictions = unpack(contents, 0, examples, task.kind)[0]
    truncated = int(contents.records["points"]["truncated"][0])
    cut = int(contents.records.get("generations_cut", {}).get("0", [0])[0])
    return assemble(
        work.checkpoints[0], work.data[0], examples, predictions, config, truncated, cut
    )


def plan_evaluation(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    task: Task,
    split: str,
    options: Mapping[str, Any],
) -> tuple[PointsWork, Plan]:
    """What evaluating a checkpoint would take, before anything is loaded."""
    config = EvaluateConfig.parse(options, where="evaluate")
    work = PointsWork((resolve(checkpoint),), (Data(task, split),), config)
    return work, Plan((work.point_job(0),))


def assemble(
    checkpoint: Checkpoint,
    data: Data,
    examples: Examples,
    predictions: Predictions,
    config: PointsConfig,
    truncated: int = 0,
    generations_cut: int = 0,
) -> Evaluation:
    """The `Evaluation` of predictions that have been computed."""
    names = metric_names(data.task)
    table = metric_table(predictions, names, config)
    metrics = {name: table[name][0] for name in names}
    intervals = {name: (table[name][1], table[name][2]) for name in names}
    classes = data.task.kind == "classification"
    return Evaluation(
        checkpoint=checkpoint.spec,
        task=data.task.name,
        split=data.task.resolve(data.split),
        kind=data.task.kind,
        log=example_log(data.task, examples, predictions),
        metrics=metrics,
        intervals=intervals,
        subsets=_subset_table(data.task, examples, predictions, names, config),
        reliability=reliability(predictions) if classes else None,
        label_names=data.task.label_names,
        provenance={
            "weights": checkpoint.fingerprint,
            "examples": examples.fingerprint,
            "truncated": truncated,
            "generations_cut": generations_cut,
            "config": config.model_dump(mode="json"),
        },
    )


def metric_names(task: Task) -> tuple[str, ...]:
    """The loss first, then the task's metrics."""
    return tuple(dict.fromkeys(("loss", *task.metrics)))


def headline(task: Task) -> str:
    """The metric that a task is judged by: its first one, the loss where it has none."""
    return next((name for name in metric_names(task) if name != "loss"), "loss")


def metric_replicates(
    name: str, points: Sequence[Predictions], config: PointsConfig, *, seed: int | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A metric at P points on the same examples, (P,), and its R bootstrap replicates, (R, P).

    Replicate r resamples the examples alike at all points (see `resample_counts`), so that a
    difference between points keeps what the examples share. `seed` is that of the config by
    default; another one is for other examples, which must not be resampled in step. NaN where the
    metric does not exist (a correlation of constants).
    """
    metric = get_metric(name)
    counts = resample_counts(
        len(points[0]), config.replicates, config.seed if seed is None else seed
    )
    values = np.array([float(metric.aggregate(point)) for point in points])
    drawn = [np.asarray(metric.aggregate(point, counts), dtype=np.float64) for point in points]
    return values, np.stack(drawn, axis=1)


def metric_table(
    predictions: Predictions, names: Iterable[str], config: PointsConfig
) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) of every metric: percentile bootstrap over examples (`known_interval`).

    The replicates depend on the number of examples and the seed alone, so that everything that is
    evaluated on the same examples is resampled alike (paired).
    """
    counts = resample_counts(len(predictions.losses), config.replicates, config.seed)
    table: dict[str, tuple[float, float, float]] = {}
    for name in names:
        metric = get_metric(name)
        value = metric.aggregate(predictions)
        drawn = np.asarray(metric.aggregate(predictions, counts))
        table[name] = (float(value), *known_interval(drawn, config.level))
    return table


# --- the per-example log ---------------------------------------------------------------------


def example_log(task: Task, examples: Examples, predictions: Predictions) -> pd.DataFrame:
    """One row per example, in the order of the data."""
    columns: dict[str, Any] = {"text_id": list(examples.ids)}
    if task.kind == "token-classification":
        columns["text"] = [" ".join(words) for words in examples.texts]
    else:
        for name, texts in zip(
            ("text", "text_pair"), zip(*examples.texts, strict=True), strict=False
        ):
            columns[name] = list(texts)
    columns |= _labels_and_predictions(task, examples, predictions)
    columns["loss"] = predictions.losses
    tokens = np.asarray(predictions.tokens)
    # Several references of an example have a mean number of tokens.
    columns["tokens"] = tokens if (tokens % 1).any() else tokens.astype(np.int64)
    if predictions.logits is not None:
        logits = predictions.logits.reshape(len(examples), -1)
        columns |= {f"logit_{j}": logits[:, j] for j in range(logits.shape[1])}
    log = pd.DataFrame(columns)
    extra = examples.columns[[c for c in examples.columns.columns if c not in log.columns]]
    return pd.concat([log, extra.reset_index(drop=True)], axis=1)


def _labels_and_predictions(task: Task, examples: Examples, p: Predictions) -> dict[str, Any]:
    if task.kind == "classification" and p.logits is not None and p.labels is not None:
        names = np.array(task.label_names, dtype=object)
        chosen = p.logits.argmax(-1)
        return {
            "label": names[p.labels],
            "prediction": names[chosen],
            "correct": chosen == p.labels,
        }
    if task.kind == "regression" and p.logits is not None:
        return {"label": p.labels, "prediction": p.logits.reshape(-1)}
    if p.texts is not None and p.references is not None and p.correct is not None:
        return {
            "label": [" | ".join(answers) for answers in p.references],
            "prediction": list(p.texts),
            "score": example_scores(task, p),
            "correct": p.correct / np.maximum(p.tokens, 1),
        }
    if p.correct is not None:
        # Share of the example's valid tokens predicted right.
        return {"correct": p.correct / np.maximum(p.tokens, 1)}
    return {}


# --- subsets ---------------------------------------------------------------------------------


def subset_masks(task: Task, examples: Examples) -> dict[str, np.ndarray]:
    """Boolean masks of the task's subsets, by name: `lexical_overlap/non-entailment`.

    A subset is a combination of values of one of the task's column groups that occurs in the data.
    """
    masks: dict[str, np.ndarray] = {}
    for group in task.subsets:
        columns = [_subset_column(task, examples, name) for name in group]
        values = [list(dict.fromkeys(column.tolist())) for column in columns]
        for combination in product(*values):
            mask = np.logical_and.reduce(
                [column == value for column, value in zip(columns, combination, strict=True)]
            )
            if not mask.any():
                continue
            name = "/".join(map(str, combination))
            if name in masks:  # two columns share a value: say which one is meant
                name = "/".join(f"{c}={v}" for c, v in zip(group, combination, strict=True))
            masks[name] = mask
    return masks


def _subset_column(task: Task, examples: Examples, name: str) -> np.ndarray:
    if name == "label" and task.label_names:
        names = np.array(task.label_names, dtype=object)
        return np.asarray(names[np.asarray(examples.labels)])
    if name not in examples.columns:
        raise DataError(
            f"task {task.name}: no column {name!r} to divide the data by",
            remedy=f"columns: {', '.join(map(str, examples.columns.columns)) or 'none'}",
        )
    values: np.ndarray = examples.columns[name].to_numpy(dtype=object)
    return values


def _subset_table(
    task: Task,
    examples: Examples,
    predictions: Predictions,
    names: Sequence[str],
    config: PointsConfig,
) -> pd.DataFrame:
    rows = []
    for subset, mask in subset_masks(task, examples).items():
        part = predictions.take(mask)
        for name, (value, low, high) in metric_table(part, names, config).items():
            rows.append(
                {
                    "subset": subset,
                    "n": int(mask.sum()),
                    "metric": name,
                    "value": value,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows, columns=["subset", "n", "metric", "value", "low", "high"])
