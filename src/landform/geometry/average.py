"""Averages of checkpoints: of equal weight everywhere, or weighted by Fisher information.

    plain      theta_j = sum_m w_m theta_mj / sum_m w_m
    Fisher     theta_j = sum_m w_m F_mj theta_mj / sum_m w_m F_mj

(Matena & Raffel 2022, arXiv 2111.09832, section 3: the mode of the product of Gaussians with means
theta_m and precisions w_m F_m.) An entry whose F is 0 in every model has the plain mean.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, Self

import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor

from landform.curvature.fisher import Fisher, load_fisher
from landform.errors import ConfigError, CurvatureError
from landform.evaluation.data import data_sets
from landform.evaluation.points import Data, PointsConfig, PointsWork, PointsWorker, unpack
from landform.geometry.compared import metric_row, paired_differences
from landform.geometry.fitted import check_target, save_point
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.fingerprint import fingerprint
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store, slug
from landform.tasks.metrics import Predictions, best_of, mean_loss
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import Checkpoint, CheckpointLike, load_model, resolve, short_names
from landform.weights.points import Grafted, Member, ReadPoint, head_tensors
from landform.weights.space import ParameterSpace

__all__ = ["Average", "AverageConfig", "AverageStudy", "Averaged", "average", "fisher_shares"]

NamedFisher = Fisher | str | os.PathLike[str]
LARGEST = 1 << 16
"""Entries of a tensor that are averaged at once, in float64: what a core's cache holds. Blocks of
2^22 take ten times as long."""


class AverageConfig(PointsConfig):
    """How checkpoints are averaged and compared."""

    weights: tuple[float, ...] | None = None
    """Weight of every checkpoint, in their order (default: the same for all)."""
    floor: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Least value of every F (Matena & Raffel use 1e-6): where all lie below it, the plain mean."""
    normalise: bool = False
    """Divide every Fisher by its length first, so that none counts more for its scale alone."""
    heads: Literal["average", "first"] = "average"
    """average: heads are averaged like everything else; first: all stand under the head of the
    first checkpoint, which need not have the labels of the others."""
    points: int = Field(11, ge=2)
    """Points of the line that the average of two checkpoints is compared with."""

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not all(0 < weight < math.inf for weight in value):
            raise ValueError("weights are positive; leave out a checkpoint that should not count")
        return value


# --- the formula --------------------------------------------------------------------------------


def fisher_shares(
    weights: Sequence[float], fishers: Sequence[Tensor], floor: float = 0.0
) -> list[Tensor]:
    """w_m F_mj / max_k F_kj of every model, float64: unnormalised shares of its entries.

    Divided by the largest F of an entry, equal F become exactly 1 (the plain mean, to the last
    bit), and the squares of small gradients cannot underflow. Where all F are 0 they are w_m.
    """
    raised = [squares.double().clamp(min=floor) for squares in fishers]
    top = torch.stack(raised).amax(0)
    seen = top > 0
    safe = torch.where(seen, top, 1.0)
    return [
        weight * torch.where(seen, squares / safe, 1.0)
        for weight, squares in zip(weights, raised, strict=True)
    ]


def _mean(values: Sequence[Tensor], shares: Sequence[Tensor | float]) -> Tensor:
    """sum_m s_m theta_m / sum_m s_m, float64."""
    above: Any = sum(s * v.double() for s, v in zip(shares, values, strict=True))
    below: Any = sum(shares)
    mean: Tensor = above / below
    return mean


@dataclass(frozen=True, eq=False)
class Averaged:
    """An average as a member of mixes: computed from its own members when it is needed."""

    spec: str
    members: tuple[Checkpoint | Member, ...]
    weights: tuple[float, ...]
    fishers: tuple[Fisher, ...] = ()
    """one for every member, or none for the plain average"""
    floor: float = 0.0
    normalise: bool = False
    plain: tuple[str, ...] = ()
    """tensors that have the plain mean whatever the Fishers say: a head that all share"""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the members, their weights, and the Fishers."""
        members = [member.fingerprint for member in self.members]
        how = (self.floor, self.normalise, self.plain) if self.fishers else ()
        fishers = [fisher.fingerprint for fisher in self.fishers]
        return fingerprint(("average", members, self.weights, fishers, how))

    @cached_property
    def scales(self) -> list[float]:
        """What each Fisher is divided by."""
        if not self.normalise:
            return [1.0] * len(self.fishers)
        lengths = [
            math.sqrt(
                sum(float(v.double().square().sum()) for n, v in f.diagonal.items() if self.uses(n))
            )
            for f in self.fishers
        ]
        return [length or 1.0 for length in lengths]

    def uses(self, name: str) -> bool:
        """Whether Fishers weigh this tensor."""
        return bool(self.fishers) and name not in self.plain

    def shares(self, name: str, where: slice = slice(None)) -> list[Tensor]:
        """`fisher_shares` of the entries of one tensor, flat."""
        parts = []
        for fisher, scale in zip(self.fishers, self.scales, strict=True):
            part = fisher.diagonal[name].reshape(-1)[where].double() / scale
            if not bool(torch.isfinite(part).all()) or bool((part < 0).any()):
                raise CurvatureError(
                    f"the Fisher of {fisher.summary.checkpoint} has entries of {name} that are "
                    "negative, NaN or infinite",
                    remedy="compute it again (landform fisher)",
                )
            parts.append(part)
        return fisher_shares(self.weights, parts, self.floor)

    def check(self, space: ParameterSpace) -> None:
        """Raise `CurvatureError` for a Fisher that has not the tensors of the space."""
        names = [name for name in space.names if self.uses(name)]
        for fisher, member in zip(self.fishers, self.members, strict=False):
            fisher.check(space, member.spec, only=names)

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """Its vector, shape (space.numel,), summed in float64."""
        self.check(space)
        points = [read(member.fingerprint) for member in self.members]
        out = torch.empty_like(points[0])
        for name, start, size in zip(space.names, space.offsets, space.sizes, strict=True):
            for first in range(0, size, LARGEST):
                part = slice(first, min(first + LARGEST, size))
                place = slice(start + part.start, start + part.stop)
                values = [point[place] for point in points]
                shares: Sequence[Tensor | float] = self.weights
                if self.uses(name):
                    shares = [share.to(out.device) for share in self.shares(name, part)]
                out[place] = _mean(values, shares).to(out.dtype)
        return out


# --- the result ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Average(Result):
    """Averages of checkpoints beside the checkpoints and the line between them."""

    checkpoints: tuple[str, ...]
    weights: tuple[float, ...]
    """adding up to 1"""
    task_kind: str
    evaluation: pd.DataFrame
    """one row per data set and model: data, model, kind (average, end, line), t (on the line), and
    every metric with _low and _high. Models: fisher (where there are Fishers), plain, the
    checkpoints, line (of two checkpoints: the point with the lowest loss, chosen on these rows)"""
    comparison: pd.DataFrame
    """data, quantity (loss, or the task's first metric), model minus against: difference, low, high
    (paired bootstrap over examples)"""
    shares: pd.DataFrame
    """name (a tensor), layer, entries, checkpoint, share (mean over the entries of
    w_m F_mj / sum_k w_k F_kj), unseen (entries where all F are 0); no rows without Fishers"""
    distances: pd.DataFrame
    """a, b, distance (L2): the two ends, and the plain and the Fisher average"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        table = self.evaluation[self.evaluation["data"] == self.evaluation["data"].iloc[0]]
        rows = {str(row["model"]): row for row in table.to_dict("records")}
        main = "fisher" if "fisher" in rows else "plain"
        shown = rows[main]
        title = "Fisher-weighted" if main == "fisher" else "plain"
        weights = ", ".join(f"{weight:.3g}" for weight in self.weights)
        text = (
            f"{title} average of {' and '.join(self.checkpoints)} (weights {weights}): loss "
            f"{_span(shown)} {loss_unit(self.task_kind)} on {shown['data']}"
        )
        if main == "fisher":
            plain = f"{rows['plain']['loss']:.4g}, difference {self._difference(main, 'plain')}"
            text += f", {self._verdict(main, 'plain')} the plain average ({plain})"
        if "line" in rows:
            text += f", {self._verdict(main, 'line')} the best point of the line (t = "
            text += f"{rows['line']['t']:.3g}: {rows['line']['loss']:.4g})"
        ends = [f"{row['loss']:.4g}" for row in rows.values() if row["kind"] == "end"]
        text += f"; the checkpoints {', '.join(ends)}"
        if len(self.shares):
            text += f"; {self.unseen:.0%} of the entries have no Fisher and the plain mean"
        return text

    @property
    def unseen(self) -> float:
        """Share of the entries in which every F is 0."""
        first = self.shares[self.shares["checkpoint"] == self.shares["checkpoint"].iloc[0]]
        return float(first["unseen"].sum() / first["entries"].sum())

    def _row(self, model: str, against: str) -> Any:
        table = self.comparison
        found = table[
            (table["data"] == table["data"].iloc[0])
            & (table["quantity"] == "loss")
            & (table["model"] == model)
            & (table["against"] == against)
        ]
        return found.iloc[0]

    def _difference(self, model: str, against: str) -> str:
        row = self._row(model, against)
        return f"{row.difference:.4g} [{row.low:.4g}, {row.high:.4g}]"

    def _verdict(self, model: str, against: str) -> str:
        row = self._row(model, against)
        if row.high < 0:
            return "lower than"
        return "higher than" if row.low > 0 else "not told from"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("checkpoints", "weights", "task_kind", "provenance")
        tables = ("evaluation", "comparison", "shares", "distances")
        return {
            **{name: getattr(self, name) for name in names},
            **{name: getattr(self, name).to_dict("records") for name in tables},
        }


def _span(row: Mapping[str, Any]) -> str:
    return f"{row['loss']:.4g} [{row['loss_low']:.4g}, {row['loss_high']:.4g}]"


def average(
    checkpoints: Sequence[CheckpointLike],
    task: Task | Data | tuple[Task, str],
    *,
    fisher: Sequence[NamedFisher] = (),
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    out: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Average:
    """Average checkpoints and evaluate the averages beside them.

    The plain average theta_j = sum_m w_m theta_mj / sum_m w_m and, with a `fisher` for every
    checkpoint in their order, sum_m w_m F_mj theta_mj / sum_m w_m F_mj (Matena & Raffel 2022).
    `out` is a directory to write the Fisher-weighted one to as a checkpoint, or without Fishers the
    plain one. Options are the fields of `AverageConfig`.

    Raises `CurvatureError` for a Fisher of another model, `ConfigError` for more or fewer Fishers
    or weights than checkpoints, `SpaceMismatchError` for models that cannot be averaged.
    """
    study = AverageStudy.of(
        checkpoints, task, fisher=fisher, split=split, also=also, options=options
    )
    if out is not None:
        check_target(out, "config.json")
    result = study.run(store, progress=progress)
    if out is not None:
        study.save(out)
    return result


# --- the study ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AverageStudy:
    """Averages of checkpoints, before anything is loaded but the Fishers."""

    checkpoints: tuple[Checkpoint, ...]
    fishers: tuple[Fisher, ...]
    data: tuple[Data, ...]
    config: AverageConfig

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[CheckpointLike],
        task: Task | Data | tuple[Task, str],
        *,
        fisher: Sequence[NamedFisher] = (),
        split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        options: Mapping[str, Any],
    ) -> Self:
        """Raises for options, checkpoints, Fishers and splits that do not go together."""
        config = AverageConfig.parse(options, where="average")
        chosen = tuple(map(resolve, checkpoints))
        if len(chosen) < 2:
            raise ConfigError(
                f"an average of {len(chosen)} checkpoints", remedy="name two or more checkpoints"
            )
        unread = [] if fisher else config.options_given(["floor", "normalise"])
        unread += [] if len(chosen) == 2 else config.options_given(["points"])
        if unread:
            raise ConfigError(
                f"option {unread[0]} has no effect "
                + ("on more than two checkpoints" if unread[0] == "points" else "without a fisher"),
                remedy="leave it out"
                + ("" if unread[0] == "points" else ", or give a Fisher of every checkpoint"),
            )
        for what, number in (("weights", len(config.weights or ())), ("Fishers", len(fisher))):
            if number not in (0, len(chosen)):
                raise ConfigError(
                    f"{number} {what} for {len(chosen)} checkpoints",
                    remedy="give one for every checkpoint, in their order",
                )
        fishers = tuple(map(load_fisher, fisher))
        _check_owners(chosen, fishers)
        return cls(chosen, fishers, data_sets(task, split, also), config)

    @property
    def name(self) -> str:
        """What its result is called in a study."""
        how = "fisher" if self.fishers else "plain"
        first = self.data[0]
        return slug("average", how, *self.names[:4], first.task.name, first.split)

    @cached_property
    def names(self) -> list[str]:
        """The checkpoints as tables call them."""
        found = short_names(self.checkpoints)
        return [f"{n} (end)" if n in ("plain", "fisher", "line") else n for n in found]

    @property
    def weights(self) -> tuple[float, ...]:
        """Adding up to 1."""
        given = self.config.weights or (1.0,) * len(self.checkpoints)
        return tuple(weight / sum(given) for weight in given)

    @cached_property
    def ends(self) -> tuple[Checkpoint | Member, ...]:
        """The checkpoints, under one head where that was asked for."""
        if self.config.heads == "average":
            return self.checkpoints
        first, *others = self.checkpoints
        pickles = self.config.allow_pickle
        return (first, *(Grafted(other, first, "all", pickles) for other in others))

    @cached_property
    def averages(self) -> dict[str, Averaged]:
        """`fisher` and `plain`, or `plain` alone."""
        found = {}
        names = " and ".join(self.names)
        if self.fishers:
            head: tuple[str, ...] = ()
            if self.config.heads == "first":
                kind = self.data[0].task.kind
                model: Any = load_model(self.checkpoints[0], kind, self.config)
                head = head_tensors(model, ParameterSpace.of(model).names)
            config = self.config
            found["fisher"] = Averaged(
                f"the Fisher-weighted average of {names}",
                self.ends,
                self.weights,
                self.fishers,
                config.floor,
                config.normalise,
                head,
            )
        found["plain"] = Averaged(f"the plain average of {names}", self.ends, self.weights)
        return found

    @cached_property
    def work(self) -> PointsWork:
        """Members: the ends, then the averages."""
        whole = tuple(end for end in self.ends if isinstance(end, Checkpoint))
        grafts: Any = self.ends[len(whole) :]
        return PointsWork(whole, self.data, self.config, (*grafts, *self.averages.values()))

    @cached_property
    def _worker(self) -> Callable[[], PointsWorker]:
        return cache(self.work)  # one loaded model for evaluating and writing

    @property
    def ts(self) -> list[float]:
        """Inner points of the line of two checkpoints."""
        count = self.config.points - 1
        return [k / count for k in range(1, count)] if len(self.ends) == 2 else []

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """Averages first: what is wrong with a Fisher is found before anything is evaluated."""
        work, count = self.work, len(self.ends)
        jobs = {n: work.point_job(count + k) for k, n in enumerate(self.averages)}
        jobs |= {name: work.point_job(k) for k, name in enumerate(self.names)}
        if count == 2:
            jobs["line"] = work.line_job(0, 1, self.ts)
        if self.fishers:  # no point between them is evaluated, only their distance taken
            jobs["apart"] = work.line_job(count, count + 1, ())
        return jobs

    def forecast(self, store: ArtifactStore) -> Forecast:
        """Evaluations that remain."""
        return self.work.forecast(Plan(self.jobs.values()), store)

    def run(
        self, store: str | os.PathLike[str] | ArtifactStore | None, *, progress: bool = False
    ) -> Average:
        """Evaluate what is missing."""
        kept = open_store(store)
        plan = Plan(self.jobs.values())
        run_plan(plan, self._worker, kept, progress=progress, description="averages")
        contents = {name: kept.read(job.key) for name, job in self.jobs.items()}
        tables: list[dict[str, Any]] = []
        differences: list[dict[str, Any]] = []
        for d, data in enumerate(self.data):
            models, ts = self._models(contents, d, data)
            for name, found in models.items():
                row = metric_row(ts.get(name, math.nan), found, data, self.config)
                about = {"data": data.name, "model": name, "kind": self._kind(name)}
                tables.append({**about, **row})
            differences += paired_differences(data, models, self._pairs(models), self.config)
        return Average(
            checkpoints=tuple(self.names),
            weights=self.weights,
            task_kind=self.data[0].task.kind,
            evaluation=pd.DataFrame(tables),
            comparison=pd.DataFrame(differences),
            shares=self._shares(),
            distances=self._distances(contents),
            provenance={
                "checkpoints": [c.spec for c in self.checkpoints],
                "weights": [c.fingerprint for c in self.checkpoints],
                "fishers": [fisher.fingerprint for fisher in self.fishers],
                "config": self.config.model_dump(mode="json"),
            },
        )

    def _models(
        self, contents: Mapping[str, Any], d: int, data: Data
    ) -> tuple[dict[str, Predictions], dict[str, float]]:
        """Predictions of everything that is compared; places on the line."""
        examples, kind = data.examples(self.config.rows), data.task.kind
        models = {
            name: unpack(contents[name], d, examples, kind)[0]
            for name in (*self.averages, *self.names)
        }
        if "line" not in contents:
            return models, {}
        a, b = (models[name] for name in self.names)
        inner = unpack(contents["line"], d, examples, kind) if self.ts else []
        line, ts = [a, *inner, b], [0.0, *self.ts, 1.0]
        best = best_of([mean_loss(point) for point in line], higher=False)
        models["line"] = line[best]
        return models, {self.names[0]: 0.0, self.names[1]: 1.0, "line": ts[best]}

    def _kind(self, name: str) -> str:
        return "average" if name in self.averages else "line" if name == "line" else "end"

    def _pairs(self, models: Mapping[str, Predictions]) -> list[tuple[str, str]]:
        """Every average against all that is listed after it."""
        names = list(models)
        return [(name, other) for k, name in enumerate(self.averages) for other in names[k + 1 :]]

    def _shares(self) -> pd.DataFrame:
        columns = ["name", "layer", "entries", "checkpoint", "share", "unseen"]
        if not self.fishers:
            return pd.DataFrame(columns=columns)
        averaged, rows = self.averages["fisher"], []
        table = self.fishers[0].summary.tensors
        for name, layer in zip(table["name"], table["layer"], strict=True):
            if not averaged.uses(name) or any(name not in f.diagonal for f in self.fishers):
                continue
            parts = averaged.shares(name)
            total = torch.stack(parts).sum(0)
            seen = torch.stack([f.diagonal[name] != 0 for f in self.fishers]).any(0)
            unseen = seen.numel() - int(seen.sum())
            for label, part in zip(self.names, parts, strict=True):
                share = float((part / total).mean())
                rows.append((name, layer, part.numel(), label, share, unseen))
        return pd.DataFrame(rows, columns=columns)

    def _distances(self, contents: Mapping[str, Any]) -> pd.DataFrame:
        rows = []
        for job, a, b in (("line", *self.names[:2]), ("apart", "fisher", "plain")):
            if job in contents:
                rows.append((a, b, float(contents[job].records["points"]["distance"])))
        return pd.DataFrame(rows, columns=["a", "b", "distance"])

    def save(self, directory: str | os.PathLike[str], which: str | None = None) -> Checkpoint:
        """Write an average (`fisher` where there are Fishers, or `plain`) as a checkpoint.

        Config and tokenizer are those of the first checkpoint. Raises `ConfigError` for a directory
        that holds other things.
        """
        name = which or next(iter(self.averages))
        if name not in self.averages:
            raise ConfigError(
                f"no average {name!r} here", remedy=f"choose of: {', '.join(self.averages)}"
            )
        target = check_target(directory, "config.json")
        worker = self._worker()
        worker.bound.move_to(worker.point(self.averages[name].fingerprint))
        return save_point(worker.bound.model, self.checkpoints[0], target)


def _check_owners(checkpoints: Sequence[Checkpoint], fishers: Sequence[Fisher]) -> None:
    """Raise for a Fisher that was computed at other weights than those of its checkpoint."""
    known = {checkpoint.fingerprint for checkpoint in checkpoints}
    order = "give the Fishers in the order of the checkpoints"
    for checkpoint, fisher in zip(checkpoints, fishers, strict=False):
        fisher.check_weights(checkpoint, remedy=order if fisher.weights in known else None)
