"""Simplexes and simplicial complexes of low loss through checkpoints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field as Option

from landform.errors import ConfigError
from landform.evaluation.data import as_data_or_only, data_sets
from landform.evaluation.evaluate import metric_names, metric_table
from landform.evaluation.points import Data, PointsConfig, PointsWork, unpack
from landform.geometry.descent import FitConfig, FitWork, history_table, run_fit
from landform.geometry.fitted import as_fitted, load_fitted, save_fitted, space_of
from landform.geometry.fitting import ONLY_ROWS, SAME_ROWS
from landform.geometry.volumes import maximal_cliques, total_volume
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Job, Plan
from landform.store.study import open_store
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import Checkpoint, CheckpointLike, expand, short_names
from landform.weights.points import Vertex

__all__ = [
    "ComplexConfig",
    "ComplexFit",
    "FittedComplex",
    "SampleConfig",
    "complex_work",
    "fit_complex",
    "plan_complex",
]

Floats = npt.NDArray[np.float64]
_RECORD = "complex.json"


class ComplexConfig(FitConfig):
    """How a complex is fitted."""

    connectors: int = Option(2, ge=1)
    """Vertices that are fitted, added one after another."""
    volume_weight: float | None = Option(1e-4, ge=0, allow_inf_nan=False)
    """Weight of the log-volume: larger complexes are worth a little loss."""
    compat: Literal["connectivity"] | None = None
    """connectivity: as the code of Juneja et al. 2023 does it; volumes enter squared."""


class SampleConfig(PointsConfig):
    """How a complex is evaluated."""

    samples: int = Option(10, ge=1)
    """Random points of each clique, Dirichlet(1, ..., 1), drawn under `seed`."""


@dataclass(frozen=True)
class ComplexShape:
    """Fixed base vertices and connectors, linked as `adjacency` says (see `Shape`)."""

    fixed: int
    connectors: int
    adjacency: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, bases: int, connectors: int, adjacency: npt.ArrayLike | None = None) -> Self:
        """Every connector linked to every vertex and no base to another, or as `adjacency` says."""
        n = bases + connectors
        linked = np.ones((n, n), dtype=int)
        linked[:bases, :bases] = np.eye(bases, dtype=int)
        if adjacency is not None:
            linked = np.asarray(adjacency)
            if linked.shape != (n, n) or not np.isin(linked, (0, 1)).all():
                raise ConfigError(
                    f"the adjacency of {bases} checkpoints and {connectors} connectors has shape "
                    f"{linked.shape}, expected {n} rows of {n} zeros and ones",
                    remedy="checkpoints first, then connectors; 1 where two vertices are linked",
                )
            maximal_cliques(linked)
        return cls(bases, connectors, tuple(tuple(int(x) for x in row) for row in linked))

    @property
    def stages(self) -> int:
        """One for each connector."""
        return self.connectors

    def count(self, stage: int) -> int:
        """Connectors that exist in a stage; all of them are fitted on."""
        return stage + 1

    def start(self, stage: int) -> Floats:
        """A connector starts at the mean of all vertices before it."""
        before = self.fixed + stage
        return np.full((1, before), 1.0 / before)

    def cliques(self, stage: int) -> tuple[tuple[int, ...], ...]:
        """The maximal cliques among the vertices that exist."""
        return self._cliques[stage]

    @cached_property
    def _cliques(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        matrix = np.array(self.adjacency)
        sizes = range(self.fixed + 1, self.fixed + self.connectors + 1)
        return tuple(maximal_cliques(matrix[:n, :n]) for n in sizes)

    def draw(self, random: np.random.Generator, stage: int) -> Floats:
        """A clique at random, and a uniform point of it."""
        cliques = self.cliques(stage)
        clique = list(cliques[int(random.integers(len(cliques)))])
        weights = np.zeros(self.fixed + stage + 1)
        weights[clique] = random.dirichlet(np.ones(len(clique)))
        return weights

    def checks(self) -> Floats:
        """None: the last state is kept."""
        return np.zeros((0, self.fixed + self.connectors))


@dataclass(frozen=True)
class ComplexFit(Result):
    """A complex: how it was fitted, and the losses of random points of it."""

    names: tuple[str, ...]
    """the vertices: checkpoints first, then connector1, connector2, ..."""
    base: tuple[bool, ...]
    """whether a vertex is a checkpoint"""
    cliques: tuple[tuple[int, ...], ...]
    """the maximal cliques, as numbers of vertices"""
    adjacency: tuple[tuple[int, ...], ...]
    task_kind: str
    history: pd.DataFrame
    """columns step, vertex (the newest), loss, volume, learning_rate"""
    samples: pd.DataFrame
    """columns data, clique, sample, loss, loss_low, loss_high, and the same for every metric; empty
    before `FittedComplex.evaluate`"""
    vertices: pd.DataFrame
    """the vertices themselves, columns data, name, base, loss, ...; empty before it as well"""
    control: pd.DataFrame
    """random points of the flat simplex of the checkpoints alone, columns as in `samples`"""
    volume_squared: float
    """sum over the largest cliques of V^2, what the original code calls the volume"""
    volume: float
    """sum over the largest cliques of V"""
    distances: pd.DataFrame
    """squared distances between the vertices"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        bases = sum(self.base)
        text = (
            f"complex of {bases} checkpoint{'' if bases == 1 else 's'} and "
            f"{len(self.base) - bases} connector{'' if len(self.base) - bases == 1 else 's'}, "
            f"{len(self.cliques)} clique{'' if len(self.cliques) == 1 else 's'}, volume "
            f"{self.volume:.4g} (squared {self.volume_squared:.4g})"
        )
        if not len(self.samples):
            return text
        data = self.samples.data.iloc[0]
        inside = self.samples[self.samples.data == data].loss
        ends = self.vertices[(self.vertices.data == data) & self.vertices.base].loss
        text += (
            f": loss of {len(inside)} random points on {data} {inside.mean():.4g} on average, "
            f"{inside.max():.4g} at worst; the checkpoints' own up to {ends.max():.4g}"
        )
        if len(self.control):
            flat = self.control[self.control.data == data].loss
            text += f", between them in a straight line up to {flat.max():.4g}"
        return f"{text} {loss_unit(self.task_kind)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("names", "base", "cliques", "adjacency", "task_kind", "volume", "volume_squared")
        tables = ("history", "samples", "vertices", "control")
        return {
            **{name: getattr(self, name) for name in names},
            **{name: getattr(self, name).to_dict("records") for name in tables},
            "provenance": self.provenance,
        }


# --- fitting ------------------------------------------------------------------------------------


def complex_work(
    checkpoints: Sequence[CheckpointLike],
    task: Task | Data | tuple[Task, str],
    split: str,
    config: ComplexConfig,
    adjacency: npt.ArrayLike | None = None,
) -> FitWork:
    """The fit of a complex, before anything is loaded."""
    bases = tuple(expand(checkpoints))
    if not bases:
        raise ConfigError("a complex of no checkpoints", remedy="name one or more")
    short_names(bases)  # each once
    if len(bases) == 1 and not config.noise:
        raise ConfigError(
            "option noise: around one checkpoint all vertices would start in the same point",
            remedy="give noise, their first step in units of the norm of the weights (0.01)",
        )
    shape = ComplexShape.of(len(bases), config.connectors, adjacency)
    label = f"complex of {len(bases)} checkpoints"
    data = as_data_or_only(task, split, SAME_ROWS)
    return FitWork(bases, data, shape, config, label)


def fit_complex(
    checkpoints: Sequence[CheckpointLike],
    task: Task | Data | tuple[Task, str],
    *,
    split: str = "train",
    adjacency: npt.ArrayLike | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> FittedComplex:
    """Fit a simplicial complex of low loss through checkpoints (Benton et al. 2021, 2102.13042).

    Connectors are added one after another, each at the mean of all vertices before it and linked to
    all of them; the checkpoints are not linked to one another (`adjacency` says otherwise: a 0/1
    matrix over checkpoints and connectors). After each addition all connectors are fitted for
    `steps` steps with an optimizer and a schedule anew, on

        E_{clique, weights ~ Dirichlet(1, ..., 1)} [ L(sum_k c_k w_k) ] - lambda log(V + 1e-4)

    over the maximal cliques, V the sum of the volumes of the largest ones (squared under compat
    connectivity). With one checkpoint and `noise` this is a simplex around it. Options are the
    fields of `ComplexConfig`. A task with one split and no `train` is fitted on that one, with a
    warning. With a `store` a fit that was stopped goes on where it was.
    """
    config = ComplexConfig.parse(options, where="fit_complex")
    work = complex_work(checkpoints, task, split, config, adjacency)
    contents = run_fit(work, open_store(store), progress=progress)
    shape: ComplexShape = work.shape
    bases, added = len(work.checkpoints), range(1, shape.connectors + 1)
    names = (*short_names(work.checkpoints), *(f"connector{k}" for k in added))
    squared, cliques = np.array(contents.records["distances"]), shape.cliques(shape.stages - 1)
    columns = ("step", "vertex", "loss", "volume", "learning_rate")
    history = history_table(contents, {name: name for name in columns})
    newest = [names[bases + int(k)] for k in history.vertex]
    empty = pd.DataFrame({"data": pd.Series(dtype=str), "loss": pd.Series(dtype=float)})
    fit = ComplexFit(
        names=names,
        base=tuple(k < bases for k in range(len(names))),
        cliques=cliques,
        adjacency=shape.adjacency,
        task_kind=work.data.task.kind,
        history=history.assign(vertex=newest),
        samples=empty,
        vertices=empty,
        control=empty,
        volume_squared=total_volume(squared, cliques, squares=True),
        volume=total_volume(squared, cliques),
        distances=pd.DataFrame(squared, columns=list(names)),
        provenance={
            "checkpoints": [c.spec for c in work.checkpoints],
            "weights": [c.fingerprint for c in work.checkpoints],
            "data": work.data.name,
            "config": config.model_dump(mode="json"),
        },
    )
    space = space_of(work.checkpoints[0], work.data.task.kind, config)
    connectors = tuple(
        Vertex(f"connector {k} of {work.label}", space, torch.from_numpy(np.array(values)))
        for k, values in zip(added, contents.tensors["vertices"], strict=True)
    )
    return FittedComplex(work.checkpoints, connectors, fit)


def plan_complex(
    fit: FitWork,
    evaluation: Data,
    also: Sequence[Task | Data | tuple[Task, str]],
    config: SampleConfig,
) -> tuple[PointsWork, Plan]:
    """What evaluating a complex takes, before it is fitted: its own jobs are only stood for."""
    data = data_sets(evaluation, evaluation.split, also)
    work = PointsWork(fit.checkpoints, data, config)
    shape: ComplexShape = fit.shape
    cliques = len(shape.cliques(shape.stages - 1))
    points = float(cliques * config.samples + shape.connectors)
    inside = Job("mix", {"of": fit.final.key}, cost=points, label=fit.label)
    return work, Plan((*_control(work, shape.fixed, config), inside))


# --- evaluating ---------------------------------------------------------------------------------


def _control(work: PointsWork, bases: int, config: SampleConfig) -> list[Job]:
    """The checkpoints themselves, and random points of the flat simplex between them."""
    own = [work.point_job(k) for k in range(bases)]
    if bases == 1:
        return own
    return [*own, _sampled(work, range(bases), config, "between the checkpoints")]


def _sampled(work: PointsWork, members: Sequence[int], config: SampleConfig, label: str) -> Job:
    random = np.random.default_rng([config.seed, len(members), *members])
    weights = random.dirichlet(np.ones(len(members)), size=config.samples)
    return work.mix_job(members, weights.tolist(), label)


@dataclass(frozen=True, eq=False)
class FittedComplex:
    """A complex through checkpoints, with the connectors that were fitted."""

    checkpoints: tuple[Checkpoint, ...]
    vertices: tuple[Vertex, ...]
    """the connectors, members of mixes"""
    fit: ComplexFit

    @property
    def reading(self) -> str:
        """One line for a person."""
        return self.fit.reading

    def evaluate(
        self,
        task: Task | Data | tuple[Task, str],
        *,
        split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        store: str | os.PathLike[str] | ArtifactStore | None = None,
        progress: bool = False,
        **options: Any,
    ) -> ComplexFit:
        """The fit with the losses of its vertices, of random points of every clique, and of random
        points of the flat simplex of the checkpoints alone. Options are the fields of
        `SampleConfig`; how the model is run is as in the fit unless given. A task with one split
        and no `validation` is evaluated on that one, with a warning."""
        config = SampleConfig.parse({**as_fitted(self.fit), **options}, where="evaluate")
        first = as_data_or_only(task, split, ONLY_ROWS)
        work = PointsWork(self.checkpoints, data_sets(first, split, also), config, self.vertices)
        cliques = [
            _sampled(work, clique, config, f"clique {k + 1} of {len(self.fit.cliques)}")
            for k, clique in enumerate(self.fit.cliques)
        ]
        control = _control(work, len(self.checkpoints), config)
        made = [work.point_job(k) for k in range(len(self.checkpoints), len(self.fit.names))]
        kept_in = open_store(store)
        run_plan(
            Plan((*control, *made, *cliques)),
            work,
            kept_in,
            progress=progress,
            description="sampling",
        )

        def rows(job: Job, **about: Any) -> list[dict[str, Any]]:
            return _rows(work, kept_in, job, about)

        single = [*control[: len(self.checkpoints)], *made]
        return dataclasses.replace(
            self.fit,
            samples=pd.DataFrame([r for k, j in enumerate(cliques) for r in rows(j, clique=k)]),
            vertices=pd.DataFrame(
                [
                    row
                    for name, base, job in zip(self.fit.names, self.fit.base, single, strict=True)
                    for row in rows(job, name=name, base=base)
                ]
            ),
            control=pd.DataFrame(rows(control[-1], clique=-1))
            if len(self.checkpoints) > 1
            else self.fit.control,
            provenance={**self.fit.provenance, "evaluation": config.model_dump(mode="json")},
        )

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Keep the complex: a safetensors file for each connector, by tensor name, and
        complex.json with the adjacency. The checkpoints are not copied."""
        return save_fitted(
            directory, _RECORD, self.checkpoints, self.vertices, self.fit, "connector"
        )

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], checkpoints: Sequence[CheckpointLike] | None = None
    ) -> Self:
        """A complex that was saved. `checkpoints` names its bases where they have moved."""
        bases, vertices, fit = load_fitted(directory, _RECORD, checkpoints, "connector")
        return cls(bases, vertices, fit)


def _rows(
    work: PointsWork, store: ArtifactStore, job: Job, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The points of a job as rows of a table, data set by data set."""
    contents, found = store.read(job.key), []
    for d, data in enumerate(work.data):
        points = unpack(contents, d, data.examples(work.config.rows), data.task.kind)
        for p, predictions in enumerate(points):
            row: dict[str, Any] = {"data": data.name, **about}
            if "clique" in about:
                row["sample"] = p
            measured = metric_table(predictions, metric_names(data.task), work.config)
            for name, (value, low, high) in measured.items():
                row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            found.append(row)
    return found
