"""Sharpness of many checkpoints, by several methods, beside what the checkpoints do elsewhere.

The question is whether sharpness ranks models by their accuracy out of distribution. So there is
one table with both, rank correlations with intervals over models, and two guards: the same
correlation with the in-domain metric, and the partial one with that metric held fixed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from landform.errors import ConfigError
from landform.evaluation.data import data_sets
from landform.evaluation.points import Data, PointsWork
from landform.geometry.ranks import holm, rank_correlation
from landform.geometry.regions import AVERAGES, Method
from landform.geometry.sharpness import Sharpness, SharpnessComparison, SharpnessPlan
from landform.geometry.sharpness_options import SharpnessConfig, SharpnessOptions
from landform.store.artifacts import ArtifactStore, Store
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Plan
from landform.store.study import open_store, publish, slug
from landform.studies.endpoints import Endpoints, select_checkpoints
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, short_names

__all__ = ["CompareSharpnessConfig", "SharpnessStudy", "compare_sharpness"]

CORRELATION_COLUMNS = {
    "method": str, "metric": str, "spearman": float, "low": float, "high": float,
    "p_value": float, "p_holm": float, "partial": float, "n": int, "in_domain": bool,
}  # fmt: skip
"""Columns of `SharpnessComparison.correlations`."""


_OF_CLIMBS = ("steps", "restarts", "optimizer", "step_size", "batch_rows")
"""Options that averages, which draw perturbations, do not read."""


class CompareSharpnessConfig(SharpnessOptions):
    """Options of `landform sharpness`."""

    method: tuple[Method, ...] = ("box",)
    """box: |v_i| <= epsilon (|w_i| + 1). sam: ||v||_2 <= epsilon. adaptive: ||v / |w| ||_2 <=
    epsilon. adaptive-box: |v_i| <= epsilon |w_i|. average, adaptive-average: the mean over Gaussian
    v of deviation epsilon, epsilon |w_i|. Several are compared."""
    epsilon: tuple[float, ...] = ()
    """Radius: one for all methods, or one for each (default: 1e-3 for box, adaptive-box and
    average, 0.05 for sam, 0.5 for adaptive, 0.01 for adaptive-average)."""
    ood: tuple[str, ...] = ()
    """Columns of the endpoint table to correlate with (default: the headline metric of every
    further data set and of its first group of subsets)."""
    in_domain: str | None = None
    """The column beside them as the confound (default: the first data set's headline metric)."""
    engine: Literal["local", "ray"] = "local"
    """Where jobs run: in this process, or on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """Worker processes of the Ray engine."""
    keep_as: str = Field("sharpness", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of a comparison in the study, for a study that has several."""

    @field_validator("method", "epsilon", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | float | int) else value

    @field_validator("method")
    @classmethod
    def _some(cls, value: tuple[Method, ...]) -> tuple[Method, ...]:
        if not value:
            raise ValueError("name at least one method")
        return value

    @model_validator(mode="after")
    def _read_options(self) -> Self:
        methods = ", ".join(self.method)
        climbing = set(self.method) - set(AVERAGES)
        self.check_read(climbing, _OF_CLIMBS, f"on method {methods}, which climbs nowhere")
        averaging = len(climbing) < len(self.method)
        self.check_read(averaging, ["draws"], f"on method {methods}, which takes no average")
        adaptive = any(method.startswith("adaptive") for method in self.method)
        self.check_read(adaptive, ["eta"], f"on method {methods}, which is not adaptive")
        return self

    def each(self) -> list[dict[str, Any]]:
        """The options of every single method."""
        count = len(self.method)
        if len(self.epsilon) not in (0, 1, count):
            raise ConfigError(
                f"option epsilon: {len(self.epsilon)} radii for {count} methods",
                remedy="give one radius for all, or one for each method",
            )
        radii: Sequence[float | None] = self.epsilon or (None,)
        if len(radii) == 1:
            radii = tuple(radii) * count
        shared = self.options_of(SharpnessOptions)
        cases = [
            {**shared, "method": method, "epsilon": radius}
            for method, radius in zip(self.method, radii, strict=True)
        ]
        for i, case in enumerate(cases):
            if case in cases[:i]:
                raise ConfigError(
                    f"option method: {case['method']} is there twice with one radius",
                    remedy="name it once, or with different radii: --epsilon 1e-3 1e-2",
                )
        return cases


def compare_sharpness(
    checkpoints: Iterable[str | os.PathLike[str] | Checkpoint],
    task: Task,
    *,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> SharpnessComparison:
    """Sharpness of many checkpoints by one or several methods, and what it goes along with.

    Sharpness is measured on `task`; `also` names further data sets, say out-of-distribution ones,
    whose metrics it is correlated with. With a `store`, finished climbs are kept and reused, and
    the result is kept under the name `keep_as`. Options are the fields of `CompareSharpnessConfig`.
    """
    study = SharpnessStudy.of(checkpoints, task, split=split, also=also, **options)
    return study.compare(None if store is None else open_store(store), progress=progress)


@dataclass(frozen=True)
class SharpnessStudy:
    """The plan of all climbs and evaluations."""

    names: tuple[str, ...]
    climbs: SharpnessPlan
    endpoints: Endpoints
    config: CompareSharpnessConfig
    columns: tuple[tuple[str, ...], str]
    """out-of-distribution columns, and the one in domain"""

    @classmethod
    def of(
        cls,
        checkpoints: Iterable[str | os.PathLike[str] | Checkpoint],
        task: Task,
        *,
        split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        **options: Any,
    ) -> Self:
        """Resolve checkpoints, data and options; raises for anything that is not there."""
        config = CompareSharpnessConfig.parse(options, where="sharpness")
        chosen = select_checkpoints(checkpoints)
        if not chosen:
            raise ConfigError(
                "no checkpoint was named", remedy="name one, or a pattern: 'runs/seed*'"
            )
        data = data_sets(task, split, also)
        climbs = SharpnessPlan.of(chosen, data[0], split, config.each())
        names = short_names(chosen)
        endpoints = Endpoints(names, PointsWork(tuple(chosen), data, config))
        columns = endpoints.choose(config.ood, config.in_domain)
        study = cls(names, climbs, endpoints, config, columns)
        unread = config.options_given(["ood", "in_domain", "keep_as"]) if study.single else []
        if unread:
            raise ConfigError(
                f"option {unread[0]} has no effect on one checkpoint, one method and one data set: "
                "nothing is compared",
                remedy="leave it out, or name more of them",
            )
        return study

    @cached_property
    def plan(self) -> Plan:
        """Endpoints first: they are the cheapest way to learn that something is wrong."""
        return Plan((*self.endpoints.plan.jobs, *self.climbs.plan.jobs))

    @property
    def single(self) -> bool:
        """One checkpoint, one method, one data set: a `Sharpness`, nothing to compare."""
        cases = len(self.names) * len(self.climbs.configs)
        return cases == 1 and len(self.endpoints.work.data) == 1

    def forecast(self, store: ArtifactStore) -> Forecast:
        """What is left to do, how long it takes here and how much memory."""
        return self.endpoints.work.forecast(self.plan, store, workers=self.config.workers)

    def run(
        self, store: ArtifactStore | None, *, progress: bool = False
    ) -> Sharpness | SharpnessComparison:
        """The `Sharpness` of one checkpoint, or the comparison of several cases, kept by name."""
        if not self.single:
            return self.compare(store, progress=progress)
        kept = open_store(store)
        self._run(kept, progress)
        found = self.climbs.collect(kept, 0, 0)
        publish(kept, self.result_name, found)
        return found

    @property
    def result_name(self) -> str:
        """The name of the result in the study."""
        if not self.single:
            return self.config.keep_as
        data = self.endpoints.work.data[0]
        return slug("sharpness", self.names[0], data.task.name, data.split, self.config.method[0])

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.result_name,)

    def compare(
        self, store: ArtifactStore | None, *, progress: bool = False
    ) -> SharpnessComparison:
        """Run what is missing, assemble the comparison and keep it under its name."""
        if store is None:
            # The points that climbs keep are whole models: they belong on a disk.
            with tempfile.TemporaryDirectory(prefix="landform-") as scratch:
                return self.compare(Store.open(scratch), progress=progress)
        self._run(store, progress)
        found = self.collect(store)
        publish(store, self.config.keep_as, found)
        return found

    def _run(self, store: ArtifactStore, progress: bool) -> None:
        engine, workers = self.config.engine, self.config.workers
        if len(self.endpoints.work.data) > 1:  # one data set: the climbs' own evaluations
            run_plan(
                self.endpoints.plan,
                self.endpoints.work,
                store,
                engine=engine,
                workers=workers,
                progress=progress,
                description="evaluating",
            )
        self.climbs.run(store, engine=engine, workers=workers, progress=progress)

    # --- from kept outputs to the result -----------------------------------------------------

    def collect(self, store: ArtifactStore) -> SharpnessComparison:
        """Assemble the comparison from the outputs in `store`."""
        endpoints = self.endpoints.collect(store)
        values = endpoints.to_numpy(dtype=np.float64)
        labels = _labels(self.climbs.configs)
        rows, climbs = [], []
        for m, name in enumerate(self.names):
            for c, label in enumerate(labels):
                found = self.climbs.collect(store, m, c)
                head = {"checkpoint": name, "method": label}
                metrics = dict(zip(endpoints.columns, values[m].tolist(), strict=True))
                rows.append({**head, **_numbers(found), **metrics})
                climbs.append(found.table.assign(**head)[[*head, *found.table.columns]])
        table = pd.DataFrame(rows)
        return SharpnessComparison(
            data=tuple(data.name for data in self.endpoints.work.data),
            kind=self.endpoints.work.data[0].task.kind,
            table=table,
            correlations=self._correlate(table, labels),
            climbs=pd.concat(climbs, ignore_index=True),
            provenance=self.endpoints.provenance(self.config),
        )

    def _correlate(self, table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
        """Every method with every column; nothing where there are fewer than three checkpoints."""
        ood, beside = self.columns
        rows: list[dict[str, Any]] = []
        for label in labels if len(self.names) > 2 else ():
            part = table[table["method"] == label]
            control = part[beside].to_numpy(dtype=np.float64)
            for metric in dict.fromkeys((*ood, beside)):
                values = part[metric].to_numpy(dtype=np.float64)
                inside = metric == beside
                if not np.isfinite(values).all():
                    continue
                found = rank_correlation(
                    part["value"],
                    values,
                    control if not inside and np.isfinite(control).all() else None,
                    replicates=self.config.replicates,
                    seed=self.config.seed,
                    level=self.config.level,
                )
                rows.append(
                    {"method": label, "metric": metric, **found._asdict(), "in_domain": inside}
                )
        result = pd.DataFrame(rows, columns=list(CORRELATION_COLUMNS))
        outside = ~result["in_domain"].astype(bool) & result["spearman"].notna()
        # One claim is made for all rows out of distribution: the best of many is not news.
        result.loc[outside, "p_holm"] = holm(result.loc[outside, "p_value"].to_numpy(dtype=float))
        return result.astype(CORRELATION_COLUMNS)


def _labels(configs: Sequence[SharpnessConfig]) -> list[str]:
    """Names of the methods, with the radius where one method is there with several."""
    methods = [config.method for config in configs]
    return [
        f"{config.method} {config.radius:g}" if methods.count(config.method) > 1 else config.method
        for config in configs
    ]


def _numbers(found: Sharpness) -> dict[str, float]:
    names = (
        "epsilon", "loss", "maximum", "value", "value_low", "value_high", "radius", "spread",
        "distance", "reach", "first_order",
    )  # fmt: skip
    return {name: float(getattr(found, name)) for name in names}
