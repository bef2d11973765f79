"""Factors: the curvature of the loss, layer by layer, in the four forms of influence.

For a linear layer with inputs a (a 1 appended for the bias) and output gradients g, and G_b =
sum_t g_bt a_bt^T the gradient of example b (d_out x (d_in + 1)):

    A = mean over tokens of a a^T,    S = mean over tokens of g g^T        (Martens and Grosse 2015)
    A = Q_A diag(l_A) Q_A^T,          S = Q_S diag(l_S) Q_S^T
    diagonal    Lambda_ij = mean over examples of G_ij^2
    kfac        Lambda_ij = l_S,i l_A,j                       in the basis Q_S, Q_A
    ekfac       Lambda_ij = mean over examples of (Q_S^T G Q_A)_ij^2       (George et al. 2018)
    identity    Lambda = 1

kfac's Lambda is per token and ekfac's per example: they differ by about the mean number of tokens,
and one absolute damping means different things for the two. Tokens are counted where they are
real: padding never is. Sums are kept in float32 at least, with integer counts, and divided once.
The damping enters when a score is computed, so that it can be changed without fitting again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from landform.curvature.fitting import (
    ROTATED,
    STRATEGIES,
    FactorsConfig,
    FactorsWork,
    FactorsWorker,
    Strategy,
    eigen_tensors,
)
from landform.curvature.gradients import (
    Basis,
)
from landform.curvature.labels import Labels, is_exact
from landform.curvature.layers import FROZEN, coverage_share
from landform.curvature.ranks import current_ranks, shared
from landform.curvature.session import Session
from landform.errors import ConfigError, CurvatureError, StoreError
from landform.evaluation.points import Data
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Contents, MemoryStore
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store
from landform.tasks.objective import Objective
from landform.tasks.task import Examples, Task
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = [
    "STRATEGIES",
    "FactorSummary",
    "Factors",
    "FactorsConfig",
    "FactorsStudy",
    "Strategy",
    "fit_factors",
]


@dataclass(frozen=True)
class FactorSummary(Result):
    """What factors look like: coverage, spectra, times."""

    checkpoint: str
    task: str
    split: str
    strategy: str
    labels: str
    dtype: str
    rows: int
    coverage: pd.DataFrame
    """columns name, kind, parameters, status ("seen", or why not)"""
    share: float
    """share of the trained parameters that the factors see"""
    spectra: pd.DataFrame
    """columns module, factor (activation, gradient, lambda), quantile (0 = largest), eigenvalue"""
    timings: dict[str, float]
    """seconds of each phase"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        seen = int((self.coverage.status == "seen").sum())
        return (
            f"{self.strategy} factors ({self.labels} labels) of {self.checkpoint} on {self.rows} "
            f"rows of {self.task}:{self.split}: {seen} layers, {100 * self.share:.1f} % of the "
            f"{'trained ' if (self.coverage.status == FROZEN).any() else ''}parameters"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; spectra stay a table."""
        return {
            "checkpoint": self.checkpoint,
            "task": self.task,
            "split": self.split,
            "strategy": self.strategy,
            "labels": self.labels,
            "dtype": self.dtype,
            "rows": self.rows,
            "share": self.share,
            "coverage": self.coverage.to_dict("records"),
            "timings": self.timings,
            "provenance": self.provenance,
        }


@dataclass(frozen=True, eq=False)
class Factors:
    """Fitted factors; `influence` and `self_influence` take them."""

    checkpoint: Checkpoint
    task: Task
    split: str
    config: FactorsConfig
    fingerprint: str
    """of everything that decided them: weights, rows, options"""
    labels: str
    """whose labels, for people: "empirical", "true (exact)", "true (sampled)", "sampled" """
    layers: tuple[str, ...]
    groups: tuple[int, ...]
    coverage: pd.DataFrame
    vectors: Mapping[str, Tensor]
    """kfac, ekfac: "A/<layer>" and "S/<layer>", eigenvectors as columns"""
    values: Mapping[str, Tensor]
    """kfac, ekfac: "A/<layer>" and "S/<layer>", eigenvalues, rising, none below 0"""
    squares: Mapping[str, Tensor]
    """diagonal, ekfac: mean of squared gradient entries (d_out, d_in + 1) by layer"""
    timings: dict[str, float]
    _session: list[Session] = field(default_factory=list, repr=False)

    @property
    def rows(self) -> int:
        """Training rows that the factors were fitted on."""
        return len(self.examples)

    @cached_property
    def examples(self) -> Examples:
        """The training rows that the factors were fitted on."""
        return Data(self.task, self.split).examples(self.config.rows)

    def eigenvalues(self, layer: str) -> Tensor | None:
        """Lambda (d_out, d_in + 1) of a layer in its basis; None for identity."""
        if self.config.strategy == "identity":
            return None
        if self.config.strategy == "kfac":
            return torch.outer(self.values[f"S/{layer}"], self.values[f"A/{layer}"])
        return self.squares[layer]

    def activation_covariance(self, layer: str) -> Tensor:
        """A of a layer (kfac, ekfac), put together from its eigenvectors."""
        return self._covariance("A", layer)

    def gradient_covariance(self, layer: str) -> Tensor:
        """S of a layer (kfac, ekfac), put together from its eigenvectors."""
        return self._covariance("S", layer)

    def _covariance(self, side: str, layer: str) -> Tensor:
        if self.config.strategy not in ROTATED:
            raise CurvatureError(
                f"{self.config.strategy} factors have no covariances", remedy="fit kfac or ekfac"
            )
        vectors = self.vectors[f"{side}/{layer}"]
        return (vectors * self.values[f"{side}/{layer}"]) @ vectors.t()

    def session(self) -> Session:
        """The opened checkpoint; opened once."""
        if not self._session:
            data = Data(self.task, self.split)
            opened = Session.open(self.checkpoint, data, self.config)
            if tuple(layer.name for layer in opened.layers) != self.layers:
                raise CurvatureError(
                    f"{self.checkpoint.spec} has not the layers that the factors were fitted for",
                    remedy="fit the factors again",
                )
            self._session.append(opened)
        return self._session[0]

    def bases(self) -> list[Basis]:
        """The coordinates of every layer, in the dtype and on the device of the model."""
        session = self.session()
        cast: dict[int, Tensor] = {}  # what layers share stays shared

        def on_device(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            if id(tensor) not in cast:
                cast[id(tensor)] = tensor.to(session.device, session.dtype)
            return cast[id(tensor)]

        return [
            Basis(
                layer,
                on_device(self.vectors.get(f"A/{layer.name}")),
                on_device(self.vectors.get(f"S/{layer.name}")),
            )
            for layer in session.layers
        ]

    def __repr__(self) -> str:
        """The reading of its summary: the blocks themselves would fill pages."""
        return f"<{type(self).__name__}: {self.summary().reading}>"

    def summary(self) -> FactorSummary:
        """Coverage, spectra and times, for people and reports."""
        return FactorSummary(
            checkpoint=self.checkpoint.spec,
            task=self.task.name,
            split=self.task.resolve(self.split),
            strategy=self.config.strategy,
            labels=self.labels,
            dtype=self.config.dtype,
            rows=self.rows,
            coverage=self.coverage,
            share=coverage_share(self.coverage),
            spectra=self._spectra(),
            timings=dict(self.timings),
            provenance={
                "factors": self.fingerprint,
                "weights": self.checkpoint.fingerprint,
                "examples": self.examples.fingerprint,
                "config": self.config.model_dump(mode="json"),
            },
        )

    @property
    def reading(self) -> str:
        """One line for a person."""
        return self.summary().reading

    def _spectra(self) -> pd.DataFrame:
        tables = []
        for layer in self.layers:
            lambdas = self.eigenvalues(layer)
            curves = {
                "activation": self.values.get(f"A/{layer}"),
                "gradient": self.values.get(f"S/{layer}"),
                "lambda": None if lambdas is None else lambdas.flatten(),
            }
            tables += [_curve(layer, n, v) for n, v in curves.items() if v is not None]
        columns = ["module", "factor", "quantile", "eigenvalue"]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _curve(layer: str, factor: str, values: Tensor) -> pd.DataFrame:
    """At most 200 points of a spectrum, largest first: half of them evenly spaced, half of them
    by their rank's order of magnitude, since a few of the largest hold most of the sum."""
    ordered = np.sort(values.double().cpu().numpy())[::-1]
    even = np.linspace(0, len(ordered) - 1, 100)
    head = np.geomspace(1, len(ordered), 100) - 1
    places = np.unique(np.concatenate([even, head]).round().astype(int))
    return pd.DataFrame(
        {
            "module": layer,
            "factor": factor,
            "quantile": places / max(len(ordered) - 1, 1),
            "eigenvalue": ordered[places],
        }
    )


# --- fitting --------------------------------------------------------------------------------


def fit_factors(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    split: str = "train",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Factors:
    """Fit the curvature of a checkpoint's loss on a split of a task.

    Options are the fields of `FactorsConfig` (strategy, labels, rows, dtype, include, exclude...).
    With a `store`, covariances, bases and eigenvalues are kept there under the fingerprint of the
    weights, the rows and the options: asked again they are reused, changed in any way they are
    computed anew; a fit that was killed goes on after its last finished chunk. Raises a
    `LandformError` naming the layer, row or option for anything that cannot be fitted.
    """
    study = FactorsStudy.of(checkpoint, task, split=split, **options)
    return study.run(store=store, progress=progress)


@dataclass(frozen=True)
class FactorsStudy:
    """The plan of a fit, before anything is loaded."""

    work: FactorsWork

    @classmethod
    def of(
        cls,
        checkpoint: str | os.PathLike[str] | Checkpoint,
        task: Task,
        *,
        split: str = "train",
        **options: Any,
    ) -> FactorsStudy:
        """Resolve checkpoint, rows and options."""
        config = FactorsConfig.parse(options, where="fit_factors")
        return cls(FactorsWork(resolve(checkpoint), Data(task, split), config))

    def forecast(self, store: ArtifactStore | None = None) -> Forecast:
        """The phases that remain; the unit is rows (a pass over one training row)."""
        work, jobs = self.work, list[Job]()
        for total, chunks in (
            (work.eigen_job(), work.covariance_jobs()),
            (work.squares_job(), work.square_jobs()),
        ):
            jobs += chunks if store is None or total.key not in store else []
        return Plan(jobs).forecast(store, workers=work.config.workers, unit="rows")

    def run(
        self,
        *,
        store: str | os.PathLike[str] | ArtifactStore | None = None,
        progress: bool = False,
    ) -> Factors:
        """Fit what is missing; several processes (`torchrun`) all call this and share the rows."""
        ranks = current_ranks()
        if ranks.world > 1 and self.work.config.engine != "local":
            raise ConfigError(
                f"option engine is {self.work.config.engine!r} in one of {ranks.world} processes",
                remedy="use the local engine under torchrun, or start one process",
            )
        kept = _Held() if store is None else shared(open_store(store), ranks)
        return _Fit(self.work, kept, progress and ranks.rank == 0, in_store=store is not None).run()


class _Held(MemoryStore):
    """A store for one call, which holds what was written without encoding it."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, Contents] = {}

    def __contains__(self, key: object) -> bool:
        return key in self.held

    def read(self, key: str, *, verify: bool = True) -> Contents:
        return self.held[key]

    def write(
        self, key: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        self.held[key] = contents

    def remove(self, key: str) -> None:
        self.held.pop(key, None)


@dataclass(frozen=True)
class _Fit:
    """One fit: the phases in their order, each from the store where it is there."""

    work: FactorsWork
    store: ArtifactStore
    progress: bool
    in_store: bool

    def run(self) -> Factors:
        work = self.work
        opened: list[Session] = []
        parts: dict[str, Contents] = {}
        if work.config.strategy in ROTATED:
            parts["eigen"] = self._phase(
                work.eigen_job(), work.covariance_jobs(), opened, "fitting covariances"
            )
        if work.config.strategy in ("diagonal", "ekfac"):
            placed = replace(work, basis=parts.get("eigen"))
            parts["squares"] = self._phase(
                work.squares_job(), work.square_jobs(), opened, "fitting eigenvalues", placed
            )
        return _assemble(work, parts, opened)

    def _phase(
        self,
        total: Job,
        chunks: list[Job],
        opened: list[Session],
        title: str,
        work: FactorsWork | None = None,
    ) -> Contents:
        """The artifact `total`, made of its chunks where it is not there yet."""
        work = work or self.work
        if total.key in self.store:
            return self.store.read(total.key)
        run_plan(
            Plan(chunks),
            self._factory(work, opened),
            self.store,
            engine=work.config.engine,
            workers=work.config.workers,
            progress=self.progress,
            description=title,
            unit="rows",
        )
        try:
            merged = _merge(self.store.read(job.key) for job in chunks)
        except StoreError:
            # Another process may have made the total since, and cleared its chunks away.
            if total.key not in self.store:
                raise
            return self.store.read(total.key)
        if total.kind == "eigenbasis":
            worker = self._factory(replace(work, basis=merged), opened)()
            merged = worker.run(total)
        self.store.write(total.key, merged, provenance=total.provenance())
        for job in chunks:
            self.store.remove(job.key)
        return merged

    def _factory(self, work: FactorsWork, opened: list[Session]) -> Any:
        if work.config.engine != "local":
            return work

        def here() -> FactorsWorker:
            if not opened:
                opened.append(Session.open(work.checkpoint, work.data, work.config))
            return FactorsWorker(work, opened[0])

        return here


def _merge(parts: Iterable[Contents]) -> Contents:
    """Sums of chunks, added up in their order."""
    iterator = iter(parts)
    first = next(iterator)
    tensors, records = dict(first.tensors), dict(first.records)
    for part in iterator:
        for name, value in part.tensors.items():
            tensors[name] = tensors[name] + value
        records["counts"] = {
            name: count + part.records["counts"][name] for name, count in records["counts"].items()
        }
        records["seconds"] = {
            name: spent + part.records["seconds"][name]
            for name, spent in records["seconds"].items()
        }
    return Contents(tensors=tensors, tables=first.tables, records=records)


def _assemble(work: FactorsWork, parts: Mapping[str, Contents], opened: list[Session]) -> Factors:
    if not parts and not opened:
        opened.append(Session.open(work.checkpoint, work.data, work.config))
    if opened:
        session = opened[0]
        layers = [layer.name for layer in session.layers]
        groups, coverage = list(session.groups), session.coverage
        objective = Objective.of(
            work.data.task, work.checkpoint.label_names(), given=work.config.model_labels
        )
        exact = is_exact(objective, len(work.data.task.label_names))
    else:
        found = next(iter(parts.values()))
        layers, groups = found.records["layers"], found.records["groups"]
        coverage, exact = found.tables["coverage"], found.records["exact"]
    vectors, values = eigen_tensors(parts.get("eigen"), layers, groups)
    timings: dict[str, float] = {}
    for part in parts.values():
        timings |= part.records["seconds"]
    return Factors(
        checkpoint=work.checkpoint,
        task=work.data.task,
        split=work.data.split,
        config=work.config,
        fingerprint=work.key(),
        labels=_label_words(work.config.labels, exact),
        layers=tuple(layers),
        groups=tuple(groups),
        coverage=coverage,
        vectors=vectors,
        values=values,
        squares=_mean_squares(parts.get("squares"), layers),
        timings=timings,
        _session=opened,
    )


def _label_words(labels: Labels, exact: bool) -> str:
    if labels != "true":
        return labels
    return "true (exact)" if exact else "true (sampled)"


def _mean_squares(part: Contents | None, layers: list[str]) -> dict[str, Tensor]:
    if part is None:
        return {}
    count = int(part.records["counts"]["examples"])
    return {name: torch.from_numpy(part.tensors[f"squares/{name}"]) / count for name in layers}
