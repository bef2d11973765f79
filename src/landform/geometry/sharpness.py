"""Sharpness: how far the loss can rise in a small neighbourhood of a checkpoint.

    phi = 100 (max_{w' in C} L(w') - L(w)) / (1 + L(w))          (Keskar et al. 2017, eq. 4)

for every neighbourhood C of `landform.geometry.regions`; the averages of Andriushchenko et al. 2023
have the mean over draws in place of the maximum. Each climb is a job whose best point is kept; the
losses at that point come from the evaluator, per example, which gives the interval.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from landform.errors import ConfigError
from landform.evaluation.data import as_data
from landform.evaluation.intervals import known_interval, resample_counts
from landform.evaluation.points import Data, PointsWork, data_fingerprint, unpack
from landform.geometry.regions import AVERAGES, Perturbation
from landform.geometry.sharpness_jobs import KeptPoint, SharpnessWork
from landform.geometry.sharpness_options import SharpnessConfig
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store
from landform.tasks.metrics import best_of
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import Checkpoint, resolve
from landform.weights.points import Member

__all__ = [
    "Sharpness",
    "SharpnessComparison",
    "SharpnessConfig",
    "SharpnessPlan",
    "sharpness",
]


@dataclass(frozen=True)
class Sharpness(Result):
    """How far the loss of a checkpoint rises in a neighbourhood."""

    checkpoint: str
    data: str
    """data set that was measured on"""
    kind: str
    """kind of the task: losses are in nats, for regression in squared units"""
    method: str
    epsilon: float
    """radius as it was asked for"""
    loss: float
    """L(w)"""
    maximum: float
    """the largest loss found; for the averages the mean over draws"""
    value: float
    """100 (maximum - loss) / (1 + loss)"""
    value_low: float
    value_high: float
    """bootstrap over examples at the point found (for averages over examples and draws)"""
    table: pd.DataFrame
    """restart, step, loss: the climbs, on the rows climbed on; of an average the draws (restart)
    in both directions (step 0: v, step 1: -v)"""
    normalisation: str
    """what epsilon means, in words"""
    radius: float
    """radius in the method's own unit"""
    spread: float
    """root mean square length of a perturbation of full size over ||w||: the one unit in which
    all methods can be compared"""
    distance: float
    """||w' - w|| / ||w|| of the point found (for averages: of the draws, root mean square)"""
    reach: float
    """share of the region that the point found uses: mean |u_i| / radius in a box, ||u|| / radius
    in a ball; NaN for averages"""
    first_order: float
    """rise of the loss that the gradient at w predicts, in the unit of the loss; 0 for averages"""
    dimension: int
    """coordinates that moved"""
    climbed: str
    """data set that was climbed on; for averages the one measured"""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def rise(self) -> float:
        """maximum - loss."""
        return self.maximum - self.loss

    @property
    def reading(self) -> str:
        """One line for a person."""
        unit = loss_unit(self.kind)
        what = "mean" if self.method in AVERAGES else "maximum"
        text = (
            f"{self.checkpoint} on {self.data}: {self.method} sharpness {self.value:.4g} "
            f"[{self.value_low:.4g}, {self.value_high:.4g}]: loss {self.loss:.4g}, {what} "
            f"{self.maximum:.4g} {unit} where {self.normalisation}"
        )
        if self.method not in AVERAGES:
            text += (
                f"; first order predicts {self.loss + self.first_order:.4g}, "
                f"{100 * self.reach:.3g} % of the region used"
            )
        if self.climbed != self.data:
            text += f"; climbed on {self.climbed}"
        return text

    def to_json(self) -> dict[str, Any]:
        """Plain values; the climbs stay a table."""
        names = [n for n in self.__dataclass_fields__ if n not in ("table", "provenance")]
        return {**{name: getattr(self, name) for name in names}, "provenance": self.provenance}


@dataclass(frozen=True)
class SharpnessComparison(Result):
    """Sharpness of several checkpoints or by several methods, beside what the checkpoints do."""

    data: tuple[str, ...]
    """data sets; sharpness is measured on the first one"""
    kind: str
    """kind of the task: losses are in nats, for regression in squared units"""
    table: pd.DataFrame
    """checkpoint, method, epsilon, loss, maximum, value, value_low, value_high, radius, spread,
    distance, reach, first_order (see `Sharpness`), and the endpoint columns `data/metric` and
    `data/subset/metric`"""
    correlations: pd.DataFrame
    """method, metric, spearman, low, high, p_value, p_holm, partial, n, in_domain: sharpness with
    every metric over checkpoints; `partial` holds the in-domain metric fixed, `p_holm` counts
    all rows out of distribution as one question. Empty for fewer than three checkpoints"""
    climbs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """checkpoint, method, restart, step, loss: see `Sharpness.table`"""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def reading(self) -> str:
        """One line for a person."""
        count = self.table["checkpoint"].nunique()
        parts = []
        for method, part in self.table.groupby("method", sort=False):
            low, high = part["value"].min(), part["value"].max()
            text = f"{method} sharpness {low:.4g} to {high:.4g}"
            parts.append(text + self._correlation(str(method)))
        noun = "checkpoint" if count == 1 else "checkpoints"
        return f"{count} {noun} on {self.data[0]}: {'; '.join(parts)}"

    def _correlation(self, method: str) -> str:
        """What a method goes along with: the first metric out of distribution, and in domain."""
        rows = self.correlations[self.correlations["method"] == method]
        said = []
        for inside in (False, True):
            for row in rows[rows["in_domain"] == inside].head(1).itertuples():
                said.append(
                    f"Spearman {row.spearman:+.2f} [{row.low:+.2f}, {row.high:+.2f}] with "
                    f"{row.metric} (p = {row.p_value:.2g})"
                )
        return f", {', '.join(said)}" if said else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; the climbs stay a table."""
        return {
            "data": list(self.data),
            "table": self.table.to_dict("records"),
            "correlations": self.correlations.to_dict("records"),
            "provenance": self.provenance,
        }


def sharpness(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    task: Task | Data | tuple[Task, str],
    *,
    split: str = "validation",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Sharpness:
    """How far the loss rises in a neighbourhood of a checkpoint (`landform.geometry.regions`).

    The neighbourhood is climbed by projected ascent (`landform.geometry.ascent`), or sampled by the
    averages. Options are the fields of `SharpnessConfig` (method, epsilon, steps, restarts, rows,
    ...). With a `store`, finished climbs are kept there, each restart by itself. Raises
    `ConfigError` for options that do not agree or more coordinates than there are parameters.
    """
    plan = SharpnessPlan.of([checkpoint], task, split, [options])
    kept = open_store(store)
    plan.run(kept, progress=progress)
    return plan.collect(kept, 0, 0)


# --- the plan -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharpnessPlan:
    """Several methods on several checkpoints: all jobs, before any of them runs."""

    checkpoints: tuple[Checkpoint, ...]
    data: Data
    climb_data: Data
    configs: tuple[SharpnessConfig, ...]
    """one method and radius each; their other options are the same"""

    @classmethod
    def of(
        cls,
        checkpoints: Iterable[str | os.PathLike[str] | Checkpoint],
        task: Task | Data | tuple[Task, str],
        split: str,
        options: Sequence[Mapping[str, Any]],
    ) -> Self:
        """Resolve checkpoints, data and options; raises for what is not there."""
        configs = tuple(SharpnessConfig.parse(given, where="sharpness") for given in options)
        chosen = tuple(resolve(checkpoint) for checkpoint in checkpoints)
        data = as_data(task, split)
        data.task.resolve(data.split)
        climb_split = configs[0].climb_split
        climb_data = data if climb_split is None else Data(data.task, climb_split)
        climb_data.task.resolve(climb_data.split)
        for checkpoint in chosen:
            _check_dimension(checkpoint, configs[0])
        return cls(chosen, data, climb_data, configs)

    @cached_property
    def _climbing(self) -> PointsWork:
        config = self.configs[0]
        rows = config.climb_rows or config.rows
        return PointsWork(
            self.checkpoints, (self.climb_data,), config.replace(rows=rows, climb_rows=None)
        )

    @cached_property
    def climb_size(self) -> int:
        """Number of rows climbed on."""
        return len(self.climb_data.examples(self._climbing.config.rows))

    @cached_property
    def _same_rows(self) -> bool:
        return data_fingerprint(self._planned) == data_fingerprint(self._climbing)

    @cached_property
    def _planned(self) -> PointsWork:
        return self._points(None)

    def _points(self, store: ArtifactStore | None) -> PointsWork:
        made: list[Member] = []
        for checkpoint in range(len(self.checkpoints)):
            for config in range(len(self.configs)):
                made += self._members(checkpoint, config, store)
        return PointsWork(self.checkpoints, (self.data,), self.configs[0], tuple(made))

    def _members(self, checkpoint: int, config: int, store: ArtifactStore | None) -> list[Member]:
        """The points that a checkpoint and a method add to the mixes."""
        options, around = self.configs[config], self.checkpoints[checkpoint]
        if options.averages:
            region = options.region()
            return [Perturbation(around, region, i, options.memory) for i in range(options.draws)]
        return [KeptPoint(around, job, store) for job in self._climbs(checkpoint, config)]

    def _climbs(self, checkpoint: int, config: int) -> list[Job]:
        """One climb for each restart; of an average the sizes of its region."""
        options, around = self.configs[config], self.checkpoints[checkpoint]
        spec = {
            "data": data_fingerprint(self._climbing),
            "weights": around.fingerprint,
            "region": options.region(),
        }
        if options.averages:
            return [Job("region", spec, 0.0, f"{options.method} region of {around.spec}")]
        ascent = options.ascent(self.climb_size)
        each = 3.0
        if ascent.batch_rows is not None:
            each = 1 + 3 * min(1.0, ascent.batch_rows / self.climb_size)
        return [
            Job(
                "climb",
                {**spec, "ascent": ascent, "restart": restart},
                ascent.steps * each + 1,
                f"{options.method} climb {restart} from {around.spec}",
            )
            for restart in range(options.restarts)
        ]

    def _mixes(self, points: PointsWork, checkpoint: int, config: int) -> list[Job]:
        """The evaluations of the points found, or of the draws in both directions."""
        options, around = self.configs[config], points.checkpoints[checkpoint]
        per = options.draws if options.averages else options.restarts
        before = sum(c.draws if c.averages else c.restarts for c in self.configs[:config])
        block = sum(c.draws if c.averages else c.restarts for c in self.configs)
        first = len(self.checkpoints) + checkpoint * block + before
        members = range(first, first + per)
        if not options.averages:
            return [points.point_job(member) for member in members]
        label = f"{options.method} draws around {around.spec}"
        both = [[1.0, 1.0], [1.0, -1.0]]
        return [points.mix_job([checkpoint, member], both, label) for member in members]

    @cached_property
    def _stages(self) -> tuple[Plan, Plan]:
        """What needs nothing else, and the evaluations of what climbs have found."""
        points = self._planned
        first, second = [], []
        for m in range(len(self.checkpoints)):
            first.append(points.point_job(m))
            for c in range(len(self.configs)):
                first += self._climbs(m, c)
                second += self._mixes(points, m, c)
        return Plan(first), Plan(second)

    @property
    def plan(self) -> Plan:
        """All jobs."""
        return Plan((*self._stages[0].jobs, *self._stages[1].jobs))

    def forecast(self, store: ArtifactStore, *, workers: int = 1) -> Forecast:
        """Evaluations that remain (a gradient counts as three), their time and memory."""
        return self._planned.forecast(self.plan, store, workers=workers)

    def run(
        self,
        store: ArtifactStore,
        *,
        engine: str = "local",
        workers: int = 1,
        progress: bool = False,
    ) -> None:
        """Run what is missing."""
        work = SharpnessWork(self._points(store), self._climbing)
        # In one process a climb is kept before the job that reads it begins; elsewhere only the
        # end of a plan says so.
        for stage in (self.plan,) if engine == "local" else self._stages:
            run_plan(
                stage,
                work,
                store,
                engine=engine,
                workers=workers,
                progress=progress,
                description="climbing",
            )

    # --- from kept outputs to the result ---------------------------------------------------------

    def collect(self, store: ArtifactStore, checkpoint: int, config: int) -> Sharpness:
        """The result of one checkpoint and one method, from the outputs in `store`."""
        options, points = self.configs[config], self._planned
        base = self._losses(store, points.point_job(checkpoint))
        losses, weights = base[0][0], base[1]
        mixes = [self._losses(store, job)[0] for job in self._mixes(points, checkpoint, config)]
        kept = [store.read(job.key) for job in self._climbs(checkpoint, config)]
        sizes = kept[0].records["region"]
        if options.averages:
            draws = np.stack([(pair[0] + pair[1]) / 2 for pair in mixes])
            chosen = {"reach": math.nan, "distance": sizes["spread"], "first_order": 0.0}
            table = _draw_table(mixes, weights)
        else:
            best = self._best([k.records["region"] for k in kept], mixes, weights, losses)
            draws = losses[None] if best is None else mixes[best]
            here = {"reach": 0.0, "distance": 0.0}
            chosen = here if best is None else dict(kept[best].records["region"])
            chosen["first_order"] = sizes["first_order"]
            table = pd.concat(
                [k.tables["climb"].assign(restart=i) for i, k in enumerate(kept)],
                ignore_index=True,
            )[["restart", "step", "loss"]]
        loss, maximum = _mean(losses, weights), _mean(draws.mean(0), weights)
        low, high = _interval(losses, draws, weights, options)
        return Sharpness(
            checkpoint=self.checkpoints[checkpoint].spec,
            data=self.data.name,
            kind=self.data.task.kind,
            method=options.method,
            epsilon=options.radius,
            loss=loss,
            maximum=maximum,
            value=100 * (maximum - loss) / (1 + loss),
            value_low=low,
            value_high=high,
            table=table,
            normalisation=_meaning(options),
            radius=float(sizes["radius"]),
            spread=float(sizes["spread"]),
            distance=float(chosen["distance"]),
            reach=float(chosen["reach"]),
            first_order=float(chosen["first_order"]),
            dimension=int(sizes["dimension"]),
            climbed=self._climbed_name(options),
            provenance={
                "weights": self.checkpoints[checkpoint].fingerprint,
                "data": data_fingerprint(points),
                "climbed": data_fingerprint(self._climbing),
                "climb_rows": self.climb_size,
                "config": options.model_dump(mode="json"),
            },
        )

    def _climbed_name(self, options: SharpnessConfig) -> str:
        if options.averages or self._same_rows:
            return self.data.name
        return f"{self.climb_data.name}, {self.climb_size} rows"

    def _losses(self, store: ArtifactStore, job: Job) -> tuple[np.ndarray, np.ndarray]:
        """Per-example losses (points, N) of a mix, and the weights (N,) of the examples."""
        examples = self.data.examples(self.configs[0].rows)
        found = unpack(store.read(job.key), 0, examples, self.data.task.kind)
        return np.stack([p.losses for p in found]), np.asarray(found[0].tokens, dtype=np.float64)

    def _best(
        self,
        records: list[Any],
        mixes: list[np.ndarray],
        weights: np.ndarray,
        losses: np.ndarray,
    ) -> int | None:
        """The restart whose point counts; None for the checkpoint itself."""
        if self.configs[0].compat is not None:
            return 0  # the originals take where the climb ended, higher or lower
        if not self._same_rows:
            # What was climbed on decides: a choice by the rows measured would not be held out.
            best = best_of([record["loss"] for record in records], higher=True)
            return best if records[best]["moved"] else None
        means = [_mean(mix[0], weights) for mix in mixes]
        best = best_of(means, higher=True)
        # Rounding between the climb's loss and the evaluator's must not end below the start.
        return best if means[best] > _mean(losses, weights) else None


def _check_dimension(checkpoint: Checkpoint, config: SharpnessConfig) -> None:
    """Refuse more coordinates than the weight files have entries, before anything is loaded.

    How many of those may move is known when the model is: `open_region` looks again.
    """
    entries = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    for name in ("coordinates", "subspace"):
        asked = getattr(config, name)
        if entries and asked is not None and asked > entries:
            raise ConfigError(
                f"option {name} is {asked:,}, but only {entries:,} parameters of "
                f"{checkpoint.spec} may move",
                remedy=f"use at most {entries:,}, or leave it out: all of them move",
            )


def _mean(losses: np.ndarray, weights: np.ndarray) -> float:
    return float((weights * losses).sum() / weights.sum())


def _interval(
    losses: np.ndarray, draws: np.ndarray, weights: np.ndarray, config: SharpnessConfig
) -> tuple[float, float]:
    """Percentile bootstrap of the value: the examples, paired; of several draws those as well."""
    counts = resample_counts(len(losses), config.replicates, config.seed) * weights
    if len(draws) > 1:
        picks = resample_counts(len(draws), config.replicates, config.seed + 1) / len(draws)
        high = ((picks @ draws) * counts).sum(1)
    else:
        high = counts @ draws[0]
    total = counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        here, there = (counts @ losses) / total, high / total
        values = 100 * (there - here) / (1 + here)
    return known_interval(values, config.level)


def _draw_table(mixes: list[np.ndarray], weights: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"restart": i, "step": side, "loss": _mean(pair[side], weights)}
            for i, pair in enumerate(mixes)
            for side in (0, 1)
        ]
    )


def _meaning(config: SharpnessConfig) -> str:
    """What epsilon means."""
    if config.scale == "relative":
        return f"the root mean square length of v is {config.radius:g} ||w|| ({config.method})"
    name = "z" if config.subspace is not None else "w"
    scale = f"(|w_i| + {config.eta:g})" if config.eta else "|w_i|"
    e = f"{config.radius:g}"
    return {
        "box": f"|v_i| <= {e} |{name}_i + 1|"
        if config.compat
        else f"|v_i| <= {e} (|{name}_i| + 1)",
        "sam": f"||v|| <= {e}",
        "adaptive": f"sum_i (v_i / {scale})^2 <= {e}^2",
        "adaptive-box": f"|v_i| <= {e} {scale}",
        "average": f"v_i ~ N(0, {e}^2)",
        "adaptive-average": f"v_i ~ N(0, ({e} {scale})^2)",
    }[config.method]
