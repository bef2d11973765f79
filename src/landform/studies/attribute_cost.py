"""What fitting factors will cost, from passes over a few rows and one small eigendecomposition."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from landform.curvature.factors import Factors
from landform.curvature.fitting import ROTATED, FactorsWork, FactorsWorker
from landform.curvature.session import Session
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.plan import Forecast, ForecastRow, Job

__all__ = ["FitCost"]

SAMPLE = 48  # rows of the measured passes
PROBE = 384  # size of the measured eigendecomposition


@dataclass(frozen=True)
class FitCost:
    """Seconds of a row in every phase, and a stand-in for the factors to plan scores with."""

    work: FactorsWork
    factors: Factors
    """of the right shapes and fingerprint, without numbers"""
    seconds: Mapping[str, float]
    """of one row (covariance, squares), and of all eigendecompositions (eigenbasis)"""

    @classmethod
    def of(cls, work: FactorsWork) -> FitCost:
        """Open the checkpoint and measure."""
        session = Session.open(work.checkpoint, work.data, work.config)
        seconds = {"covariance": _row_seconds(work, session, "covariance")}
        if work.config.strategy in ROTATED:
            work = replace(work, basis=_straight_basis(session))
            seconds["eigenbasis"] = _eigen_seconds(work, session)
        if work.config.strategy in ("diagonal", "ekfac"):
            seconds["squares"] = _row_seconds(work, session, "squares")
        return cls(replace(work, basis=None), _stand_in(work, session), seconds)

    def forecast(self, store: ArtifactStore | None) -> Forecast:
        """The phases that remain; the unit is rows."""
        work, there = self.work, store if store is not None else ()
        phases = []
        if work.config.strategy in ROTATED:
            phases.append((work.eigen_job(), work.covariance_jobs()))
        if work.config.strategy in ("diagonal", "ekfac"):
            phases.append((work.squares_job(), work.square_jobs()))
        rows, seconds = [], 0.0
        for total, jobs in phases:
            done = total.key in there
            missing = [job for job in jobs if not done and job.key not in there]
            cost = sum(job.cost for job in missing)
            kind = jobs[0].kind
            rows.append(ForecastRow(kind, len(jobs), len(jobs) - len(missing), cost))
            seconds += cost * self.seconds[kind]
            if total.kind == "eigenbasis" and not done:
                seconds += self.seconds["eigenbasis"]
        return Forecast(tuple(rows), seconds, self._bytes(), unit="rows")

    def rows_forecast(self, kind: str, rows: int, passes: float) -> Forecast:
        """That of something that goes over rows, each costing so many passes."""
        seconds = rows * passes * self.seconds["covariance"]
        return Forecast(
            (ForecastRow(kind, 1, 0, float(rows)),), seconds, self._bytes(), unit="rows"
        )

    def _bytes(self) -> float:
        """Bytes of the model, its sums and bases at the peak of the fit."""
        session = self.factors.session()
        model = sum(p.numel() * p.element_size() for p in session.model.parameters())
        sums = sum(layer.parameters for layer in session.layers) * session.wide.itemsize
        bases = [
            value.nbytes for value in {id(v): v for v in self.factors.vectors.values()}.values()
        ]
        # Covariances and bases exist together while the last are decomposed, in float64.
        return float(model + sums + 2 * sum(bases) + 6 * max(bases, default=0))


def _row_seconds(work: FactorsWork, session: Session, kind: str) -> float:
    """Seconds of one row of a phase: the second pass over a few rows, the first one warms up."""
    rows = min(SAMPLE, len(work.examples))
    job = Job(kind, {"rows": (0, rows)})
    spent = 0.0
    for _ in range(2):
        session.kept = {}  # nothing that an earlier phase left makes this one cheaper
        start = time.perf_counter()
        FactorsWorker(work, session).run(job)
        spent = time.perf_counter() - start
    session.kept = {}
    return spent / rows


def _sizes(session: Session) -> dict[str, int]:
    """The size of every matrix to be decomposed."""
    leaders = sorted(set(session.groups))
    sizes = {f"A/{session.layers[i].name}": session.layers[i].columns for i in leaders}
    return sizes | {f"S/{layer.name}": layer.outputs for layer in session.layers}


def _straight_basis(session: Session) -> Contents:
    """A basis of the right shapes, which costs as much to rotate into as any other."""
    tensors: dict[str, np.ndarray] = {}
    for name, size in _sizes(session).items():
        tensors[f"{name[0]}.vectors/{name[2:]}"] = np.eye(size, dtype=np.float32)
        tensors[f"{name[0]}.values/{name[2:]}"] = np.ones(size, dtype=np.float32)
    return Contents(tensors)


def _eigen_seconds(work: FactorsWork, session: Session) -> float:
    """Seconds of all eigendecompositions: that of a small one, scaled by the cube of the size."""
    dtype = getattr(torch, work.config.eigen_dtype)
    random = torch.Generator().manual_seed(0)
    probe = torch.randn(PROBE, PROBE, dtype=dtype, generator=random).to(session.device)
    probe = probe @ probe.t()
    torch.linalg.eigh(probe)
    start = time.perf_counter()
    torch.linalg.eigh(probe)[0].sum().item()
    spent = time.perf_counter() - start
    return sum(spent * (size / PROBE) ** 3 for size in _sizes(session).values())


def _stand_in(work: FactorsWork, session: Session) -> Factors:
    names = [layer.name for layer in session.layers]
    vectors: dict[str, torch.Tensor] = {}
    if work.config.strategy in ROTATED:
        empty = {
            name: torch.empty(size, size, dtype=session.dtype, device="meta")
            for name, size in _sizes(session).items()
        }
        for number, name in enumerate(names):
            vectors[f"A/{name}"] = empty[f"A/{names[session.groups[number]]}"]
            vectors[f"S/{name}"] = empty[f"S/{name}"]
    return Factors(
        checkpoint=work.checkpoint,
        task=work.data.task,
        split=work.data.split,
        config=work.config,
        fingerprint=work.key(),
        labels=work.config.labels,
        layers=tuple(names),
        groups=session.groups,
        coverage=session.coverage,
        vectors=vectors,
        values={},
        squares={},
        timings={},
        _session=[session],
    )
