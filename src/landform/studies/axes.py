"""One axis of an experiment: pairs of models that differ in one thing, and the lines between them.

An axis is what two runs differ in: the seed, the order of the data, the spread of the first
weights, the training step, the half of the data, ... Each of its pairs has a *value* (a spread of
0.02, step 300); for every pair and data set the table says how far apart the two models are, and
what their line does: barrier, drop of the metric, points better than both ends, with intervals.
The axes are those of Qin et al. 2022 and some more; `EXPERIMENTS` has the original's names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from landform.config import Config
from landform.errors import ConfigError, StoreError
from landform.evaluation.data import data_sets
from landform.evaluation.evaluate import headline
from landform.evaluation.points import Data
from landform.geometry.drop import DROP_FIELDS
from landform.geometry.line import InterpolateConfig, interpolate
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Store
from landform.store.study import load_results, open_store, publish, slug
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import Checkpoint, resolve, short_names

__all__ = [
    "COLLECTED",
    "EXPERIMENTS",
    "Axes",
    "AxesConfig",
    "AxisPair",
    "axis_lines",
    "collect_axes",
]

Named = str | os.PathLike[str] | Checkpoint

EXPERIMENTS: Mapping[str, str] = {
    "seed": "itp_diff_seed",
    "order": "SGD_noise",
    "init": "diff_seed, initialisation alone",
    "init-std": "adapter_curve_find (r_std)",
    "perturb": "finetune_curve_find (perturbed)",
    "step": "itp_diff_step",
    "rate-batch": "learning_rate_list x bsz_list",
    "split": "itp_split_data",
    "domain": "itp_same_domain",
    "boundary": "itp_task_boundary",
    "pretraining": "itp_pretrain",
    "tuning": "delta_type",
}
"""The axes, and the scripts or options of the code of Qin et al. 2022 that are about them."""

COLLECTED = "axes"
"""The name under which a study keeps the table of all axes."""

LINE_FIELDS = (
    *("barrier_height", "barrier_low", "barrier_high", "noise_floor"),
    *(*DROP_FIELDS, "better", "clearly_better"),
)
"""What is taken over from the summary of a line."""


class AxisPair(Config):
    """Two models to be connected."""

    value: str
    """The value of the axis: what the pair stands for."""
    a: str
    """The checkpoint at t = 0."""
    b: str
    """The checkpoint at t = 1."""


class AxesConfig(InterpolateConfig):
    """How the pairs of an axis are walked."""

    points: int = Field(26, ge=2)
    """Points on each line, both ends included, equally spaced."""


@dataclass(frozen=True)
class Axes(Result):
    """The lines of one or several axes, one row per pair and data set."""

    kind: str
    """kind of the task: losses are in nats, for regression in squared units"""
    table: pd.DataFrame
    """columns axis, experiment (the original's name), value, pair, a, b, data, distance, metric
    (its name), metric_a, metric_b (at the two ends), barrier_height, metric_drop, chord_area (each
    with its interval), noise_floor, better, clearly_better, points"""
    provenance: dict[str, Any]

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, in their order."""
        return tuple(dict.fromkeys(self.table["axis"]))

    @property
    def reading(self) -> str:
        """One line for a person."""
        first = self.table["data"].iloc[0]
        rows = self.table[self.table["data"] == first]
        above = rows["barrier_low"] > 0
        low, high = rows["barrier_height"].idxmin(), rows["barrier_height"].idxmax()
        said = (
            f"{_count(len(rows), 'pair')} on {first} ({', '.join(self.axes)}), "
            f"{int(above.sum())} with a barrier clear of zero: "
        )
        highest = f"highest {_barrier(rows.loc[high], loss_unit(self.kind))}"
        if low == high:
            return f"{said}{highest}"
        return f"{said}{highest}; lowest {_barrier(rows.loc[low], loss_unit(self.kind))}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "axes": list(self.axes),
            "table": self.table.to_dict("records"),
            "provenance": self.provenance,
        }


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _barrier(row: pd.Series, unit: str) -> str:
    return (
        f"{row['barrier_height']:.3g} [{row['barrier_low']:.3g}, {row['barrier_high']:.3g}] {unit} "
        f"({row['axis']}: {row['value']})"
    )


def axis_lines(
    axis: str,
    pairs: Iterable[AxisPair | tuple[str, Named, Named]],
    task: Task | Data | tuple[Task, str],
    *,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Axes:
    """Walk the lines of all pairs of an axis, (value, a, b), and compare them.

    Every line is kept in the study as `interpolate` keeps it. Options are the fields of
    `AxesConfig` (those of `interpolate`, with 26 points).
    """
    config = AxesConfig.parse(options, where="axes")
    data = data_sets(task, split, also)
    chosen = [(p.value, p.a, p.b) if isinstance(p, AxisPair) else p for p in pairs]
    if not chosen:
        raise ConfigError(f"axis {axis}: no pairs", remedy="give pairs as (value, a, b)")
    kept = open_store(store)
    ends = [(str(value), resolve(a), resolve(b)) for value, a, b in chosen]
    names = _names([checkpoint for _, a, b in ends for checkpoint in (a, b)])
    rows: list[dict[str, Any]] = []
    weights: list[str] = []
    for value, a, b in ends:
        line = interpolate(
            a,
            b,
            data[0].task,
            split=data[0].split,
            also=data[1:],
            store=kept,
            progress=progress,
            **dict(config),
        )
        # One study may hold lines of several axes, between runs of one name in several folders.
        ends_of = (names[a.path], names[b.path])
        publish(kept, slug("interpolate", axis, *ends_of, data[0].task.name, data[0].split), line)
        pair = f"{names[a.path]} - {names[b.path]}"
        begin = {"axis": axis, "experiment": EXPERIMENTS.get(axis, ""), "value": value}
        begin |= {"pair": pair, "a": a.spec, "b": b.spec}
        rows += [{**begin, **_row(line, item)} for item in data]
        weights.append(f"{a.fingerprint} {b.fingerprint}")
    return Axes(
        kind=data[0].task.kind,
        table=pd.DataFrame(rows),
        provenance={"weights": weights, "config": config.model_dump(mode="json")},
    )


def _names(checkpoints: Sequence[Checkpoint]) -> dict[Any, str]:
    """Short names that tell all of them apart."""
    once = list({checkpoint.path: checkpoint for checkpoint in checkpoints}.values())
    return dict(zip((c.path for c in once), short_names(once), strict=True))


def _row(line: Any, data: Data) -> dict[str, Any]:
    """What the table says of a line on a data set."""
    metric = headline(data.task)
    summary = line.summary[line.summary["data"] == data.name].iloc[0]
    table = line.table[line.table["data"] == data.name].sort_values("t")
    values = table[metric].to_numpy(float)
    return {
        "data": data.name,
        "distance": line.distance,
        "metric": metric,
        "metric_a": float(values[0]),
        "metric_b": float(values[-1]),
        **{name: summary[name] for name in LINE_FIELDS},
        "points": len(np.unique(table["t"])),
    }


def _studies_in(place: str | os.PathLike[str] | ArtifactStore) -> list[Any]:
    """The study at a place, or the studies in the directory there."""
    if not isinstance(place, str | os.PathLike):
        return [place]
    inner = sorted(path.parent for path in Path(place).glob("*/study.json"))
    return inner if inner and not (Path(place) / "study.json").exists() else [place]


def collect_axes(studies: Iterable[str | os.PathLike[str] | ArtifactStore]) -> Axes:
    """All axes that studies keep, in one table: those of a later study replace equal ones.

    A directory that is no study itself stands for the studies in it. Raises `StoreError` where
    there is no study, or none of them keeps an axis.
    """
    found: list[Axes] = []
    places = [place for item in studies for place in _studies_in(item)]
    for place in places:
        store: str | os.PathLike[str] | ArtifactStore = place
        if isinstance(place, str | os.PathLike):
            store = Store.open(place, create=False)
        kept = load_results(open_store(store))
        found += [r for name, r in kept.items() if isinstance(r, Axes) and name != COLLECTED]
    if not found:
        raise StoreError(
            f"no axis is kept in {', '.join(map(str, places)) or 'no study'}",
            remedy="run the study files that landform grid writes: landform run FILE",
        )
    kinds = {result.kind for result in found}
    if len(kinds) > 1:
        raise ConfigError(
            f"axes of tasks of several kinds ({', '.join(sorted(kinds))}) have losses in several "
            "units",
            remedy="collect the studies of one kind of task at a time",
        )
    table = pd.concat([result.table for result in found], ignore_index=True)
    table = table.drop_duplicates(["axis", "value", "a", "b", "data"], keep="last")
    order = {axis: k for k, axis in enumerate(EXPERIMENTS)}
    places_of = table["axis"].map(lambda axis: order.get(axis, len(order)))
    table = table.assign(_place=places_of).sort_values("_place", kind="stable")
    return Axes(
        kind=found[0].kind,
        table=table.drop(columns="_place").reset_index(drop=True),
        provenance={"collected": [result.provenance for result in found]},
    )
