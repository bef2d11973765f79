"""What checkpoints do by themselves, as one table: the metrics of every data set and subset.

Columns are `data/metric` and `data/subset/metric`; the first data set is the one in domain.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from landform.config import Config, nearest
from landform.errors import ConfigError
from landform.evaluation.evaluate import metric_names, subset_masks
from landform.evaluation.points import Data, PointsWork, data_fingerprint, unpack
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.plan import Plan
from landform.tasks.metrics import Predictions, get_metric
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, select

__all__ = ["Endpoints", "metric_values", "select_checkpoints"]


@dataclasses.dataclass(frozen=True)
class Endpoints:
    """The checkpoints of a work, evaluated as they are."""

    names: tuple[str, ...]
    work: PointsWork

    @property
    def plan(self) -> Plan:
        """One evaluation of each."""
        return Plan(self.work.point_job(m) for m in range(len(self.names)))

    def ends(self, store: ArtifactStore) -> list[Contents]:
        """The outputs of the checkpoints."""
        return [store.read(job.key) for job in self.plan.jobs]

    def collect(self, store: ArtifactStore) -> pd.DataFrame:
        """One row per checkpoint, from the outputs in `store`."""
        return self.table(self.ends(store))

    def table(self, ends: Sequence[Contents]) -> pd.DataFrame:
        """One row per checkpoint, from the outputs of all."""
        tables = []
        for d, data in enumerate(self.work.data):
            examples = data.examples(self.work.config.rows)
            masks = subset_masks(data.task, examples)
            rows = []
            for end in ends:
                predictions = unpack(end, d, examples, data.task.kind)[0]
                row = {"loss": float(get_metric("loss").aggregate(predictions))}
                row |= metric_values(predictions, data.task)
                for subset, mask in masks.items():
                    values = metric_values(predictions.take(mask), data.task)
                    row |= {f"{subset}/{name}": value for name, value in values.items()}
                rows.append({f"{data.name}/{name}": value for name, value in row.items()})
            tables.append(pd.DataFrame(rows, index=list(self.names)))
        return pd.concat(tables, axis=1)

    def columns(self) -> list[str]:
        """The columns that the table will have, before anything is evaluated."""
        known: list[str] = []
        for data in self.work.data:
            names = _names(data.task)
            masks = self._masks(data)
            parts = ["loss", *names, *(f"{mask}/{name}" for mask in masks for name in names)]
            known += [f"{data.name}/{part}" for part in parts]
        return known

    def check(self, asked: Sequence[str], option: str) -> None:
        """`ConfigError` for a column that the table will not have."""
        known = self.columns()
        for column in asked:
            if column not in known:
                guess = nearest(column, known)
                raise ConfigError(
                    f"option {option}: there is no endpoint metric {column!r}",
                    remedy=(f"did you mean {guess!r}? " if guess else "")
                    + f"Known: {', '.join(known[:12])}",
                )

    def choose(self, ood: Sequence[str], in_domain: str | None) -> tuple[tuple[str, ...], str]:
        """The out-of-distribution columns and the one in domain: as asked, or by default.

        By default the headline metric of every further data set and of its first group of subsets,
        beside that of the first data set. `ConfigError` names an unknown column.
        """
        self.check([*ood, *([in_domain] if in_domain else [])], "ood/in_domain")
        first = self.work.data[0]
        beside = in_domain or f"{first.name}/{first.task.metrics[0]}"
        if ood:
            return tuple(ood), beside
        default: list[str] = []
        for data in self.work.data[1:]:
            headline = data.task.metrics[0]
            default.append(f"{data.name}/{headline}")
            group = dataclasses.replace(data.task, subsets=data.task.subsets[:1])
            default += [f"{data.name}/{mask}/{headline}" for mask in self._masks(data, group)]
        return tuple(default), beside

    def provenance(self, config: Config) -> dict[str, Any]:
        """What a result of these checkpoints, data and options is made of."""
        return {
            "checkpoints": {
                name: {"spec": c.spec, "weights": c.fingerprint}
                for name, c in zip(self.names, self.work.checkpoints, strict=True)
            },
            "data": data_fingerprint(self.work),
            "config": config.model_dump(mode="json"),
        }

    def _masks(self, data: Data, task: Task | None = None) -> dict[str, np.ndarray]:
        return subset_masks(task or data.task, data.examples(self.work.config.rows))


def _names(task: Task) -> list[str]:
    return [name for name in metric_names(task) if name != "loss"]


def metric_values(predictions: Predictions, task: Task) -> dict[str, float]:
    """The task's metrics but the loss, without intervals."""
    return {name: float(get_metric(name).aggregate(predictions)) for name in _names(task)}


def select_checkpoints(
    checkpoints: Iterable[str | os.PathLike[str] | Checkpoint],
) -> list[Checkpoint]:
    """Names, patterns and checkpoints that are there already, each once."""
    if isinstance(checkpoints, str | os.PathLike) or not isinstance(checkpoints, Iterable):
        return select(checkpoints)
    chosen: list[Checkpoint] = []
    for item in checkpoints:
        found = [item] if isinstance(item, Checkpoint) else select(item)
        chosen += [c for c in found if c.path.resolve() not in {k.path.resolve() for k in chosen}]
    return chosen
