"""The jobs behind a spectrum, and the worker that runs them: eigenpairs, trace, density."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor

from landform.curvature.lanczos import TOGETHER, Lanczos, Multiply, Quadrature, deflated_trace
from landform.curvature.operators import CurvatureOperator, OperatorKind, Reduction
from landform.curvature.session import memory_of
from landform.errors import ConfigError
from landform.evaluation.points import PointsConfig, PointsWork, PointsWorker, data_fingerprint
from landform.store.artifacts import ArtifactStore, Contents, MemoryStore
from landform.store.plan import Forecast, Job, Plan
from landform.store.progress import Track, track

__all__ = ["PRODUCTS", "SpectrumConfig", "SpectrumWork", "SpectrumWorker", "state_keys"]

PRODUCTS = "products"
"""What the cost of these jobs counts: products of the matrix with a vector, over all rows."""
LOSS = 0.2
"""What evaluating the loss costs, in products."""
KEEP_SECONDS = 60.0
"""Seconds of work after which a job writes what it has, to go on from there."""

TraceMethod = Literal["hutch++", "hutchinson", "none"]


class SpectrumConfig(PointsConfig):
    """How the spectrum of a curvature matrix is estimated."""

    operator: OperatorKind = "hessian"
    """hessian: second derivatives of the loss. ggn, fisher: the generalised Gauss-Newton matrix,
    which is the Fisher matrix of the model's own labels. empirical-fisher: squared gradients of the
    data's labels."""
    reduction: Reduction = "mean"
    """Of the empirical Fisher: what one gradient is of, mean or sum of an example's token losses,
    or a single token."""
    top: int = Field(5, ge=0)
    """How many of the largest eigenvalues."""
    bottom: int = Field(0, ge=0)
    """How many of the smallest ones; of a Hessian the most negative."""
    steps: int = Field(100, ge=1)
    """At most so many Lanczos steps, one product each."""
    tolerance: float = Field(1e-3, gt=0, lt=1)
    """Lanczos stops when all residuals are below TOLERANCE times the largest eigenvalue."""
    held: int = Field(40, ge=4)
    """Lanczos vectors in memory at once, each as large as the model."""
    trace: TraceMethod = "hutch++"
    """How the trace is estimated: hutch++ takes a third of its products for the directions that
    matter most, hutchinson takes random vectors alone."""
    probes: int = Field(24, ge=1)
    """Products for the trace."""
    density_probes: int = Field(2, ge=0)
    """Random vectors for the density of eigenvalues; 0 leaves it out."""
    density_steps: int = Field(30, ge=2)
    """Lanczos steps from each of them."""
    width: float = Field(0.01, gt=0, lt=1)
    """Standard deviation of the Gaussians of the density, in widths of the spectrum."""
    parameters: tuple[str, ...] = ("*",)
    """Only tensors whose names match one of these patterns."""
    exclude: tuple[str, ...] = ()
    """No tensors whose names match one of these, say '*embeddings*'."""
    graphs: float | None = Field(None, ge=0, allow_inf_nan=False)
    """GiB for graphs of batches that are kept from one product to the next (default: a quarter of
    what the machine has)."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.dtype in ("bfloat16", "float16"):
            raise ValueError(
                f"dtype {self.dtype} has too few digits for second derivatives; use float32 or "
                "float64"
            )
        self.check_read(self.trace != "none", ["probes"], "with trace none")
        self.check_read(self.density_probes, ["density_steps", "width"], "with density_probes 0")
        self.check_read(
            self.operator == "empirical-fisher",
            ["reduction"],
            "without operator empirical-fisher",
        )
        if not (self.top or self.bottom or self.density_probes) and self.trace == "none":
            raise ValueError(
                "top, bottom and density_probes are 0 and trace is none: there is nothing to "
                "compute; take one of them"
            )
        if self.probes < (4 if self.trace == "hutch++" else 2):
            raise ValueError(f"probes {self.probes} leave no error of the trace: take 4 or more")
        if self.held < self.top + self.bottom + 2:
            raise ValueError(
                f"held {self.held} is too few for {self.top + self.bottom} eigenvalues: take twice "
                "as many"
            )
        return self


@dataclass(frozen=True)
class SpectrumWork:
    """The picklable factory of workers, and the maker of their jobs."""

    points: PointsWork
    config: SpectrumConfig
    store: ArtifactStore | None = None
    progress: bool = False

    def __call__(self) -> SpectrumWorker:
        """Open a worker."""
        return SpectrumWorker(self)

    def jobs(self, members: Sequence[int], weights: Sequence[float], label: str) -> dict[str, Job]:
        """The jobs of one point, sum_m weights[m] self.points.members[members[m]], by kind."""
        config = self.config
        spec: dict[str, Any] = {
            "data": data_fingerprint(self.points),
            "members": [self.points.members[m].fingerprint for m in members],
            "weights": list(weights),
            # One matrix, whatever it is called.
            "operator": "ggn" if config.operator == "fisher" else config.operator,
            "parameters": config.parameters,
            "exclude": config.exclude,
            "seed": config.seed,
        }
        if config.operator == "empirical-fisher":
            spec["reduction"] = config.reduction
        loss = self.points.mix_job(members, [weights], label)
        made = {"loss": replace(loss, cost=LOSS)}
        wanted = config.top + config.bottom
        if wanted:
            names = ("top", "bottom", "steps", "tolerance", "held")
            own = {**spec, **{name: getattr(config, name) for name in names}}
            cost = float(config.steps + wanted)
            made["eigenpairs"] = Job("eigenpairs", own, cost, f"eigenvalues of {label}")
        if config.trace != "none":
            own = {**spec, "method": config.trace, "probes": config.probes}
            made["trace"] = Job("trace", own, float(config.probes), f"trace of {label}")
        if config.density_probes:
            own = {**spec, "probes": config.density_probes, "steps": config.density_steps}
            cost = float(config.density_probes * config.density_steps)
            made["density"] = Job("density", own, cost, f"density of {label}")
        return made

    def forecast(self, plan: Plan, store: ArtifactStore) -> Forecast:
        """Products that remain (Lanczos may stop earlier), their time from one real batch, and
        memory."""
        seconds = memory = None
        if plan.missing(store):
            worker = self()
            seconds, size = worker.sample()
            vectors = max(self.config.held + 3, 4 * self.config.density_probes)
            base = self.points.forecast(Plan(()), store).memory or 0.0
            memory = base + vectors * size * worker.points.space.dtype.itemsize + worker.budget
            if self.config.operator == "hessian" and self.config.top + self.config.bottom:
                # Second differences: the model in float64, and where it was and goes.
                memory += 8 * (worker.points.space.numel + 2 * size)
        return plan.forecast(store, seconds_per_unit=seconds, memory=memory, unit=PRODUCTS)


class SpectrumWorker:
    """Runs the jobs of a spectrum: one model, moved in place, and the operator at its point."""

    def __init__(self, work: SpectrumWork) -> None:
        self.work, self.config = work, work.config
        self.points: PointsWorker = work.points()
        self.space = self.points.space.subspace(self.config.parameters, self.config.exclude)
        wanted = self.config.top + self.config.bottom
        if wanted > self.space.numel:
            raise ConfigError(
                f"{wanted} eigenvalues are asked for, but the matrix has {self.space.numel:,} rows",
                remedy="lower top and bottom, or widen parameters",
            )
        device = self.points.bound.flat.device
        given = self.config.graphs
        self.budget = 0.25 * memory_of(device) if given is None else given * 2**30
        self.operator = CurvatureOperator(
            self.points.bound.model,
            self.space,
            self.points.evaluator.data[0],
            self.config.operator,
            reduction=self.config.reduction,
            memory=self.budget,
        )
        self.like = torch.empty(0, dtype=self.space.dtype, device=device)
        self.place: tuple[Any, ...] | None = None
        """where the graphs were made"""

    def sample(self) -> tuple[float, int]:
        """(seconds of one product, from one batch; rows of the matrix)."""
        data = self.points.evaluator.data[0]
        middle = data.batches[len(data.batches) // 2]
        part = replace(data, batches=(middle,))
        vector = torch.ones(self.space.numel, dtype=self.space.dtype, device=self.like.device)
        share = self.budget * part.tokens / max(data.tokens, 1)
        with CurvatureOperator(
            self.points.bound.model, self.space, part, self.config.operator, memory=share
        ) as one:  # where there is room for all graphs, the second product has one
            one.multiply(vector)
            start = time.perf_counter()
            one.multiply(vector)
            seconds = time.perf_counter() - start
        return seconds * data.tokens / max(part.tokens, 1), self.space.numel

    def run(self, job: Job) -> Contents:
        """Do one job."""
        if job.kind == "mix":
            self.place = None
            self.operator.forget()
            return self.points.run(job)
        place = (tuple(job.spec["members"]), tuple(job.spec["weights"]))
        if place != self.place:
            self.operator.forget()
            self.points.move(*place)
            self.points.space.check_finite(self.points.bound.flat, job.label)
            self.place = place
        do = {"eigenpairs": self._eigenpairs, "trace": self._trace, "density": self._density}
        with (
            self.operator.opened(),
            track(job.cost, job.label, PRODUCTS, enabled=self.work.progress) as report,
        ):
            return do[job.kind](job, report)

    def _multiply(self, report: Track) -> Multiply:
        def multiply(vectors: Sequence[Tensor]) -> list[Tensor]:
            products = self.operator.multiply_all(vectors)
            report.advance(len(vectors))
            return products

        return multiply

    def _eigenpairs(self, job: Job, report: Track) -> Contents:
        """Lanczos, then what the vectors found are worth: residuals, and forms of the examples."""
        spec, multiply, states = job.spec, self._multiply(report), _States(self.work.store, job)
        found = Lanczos.start(
            self.space.numel,
            spec["top"],
            spec["bottom"],
            held=spec["held"],
            seed=spec["seed"],
            like=self.like,
        )
        kept = states.read()
        if kept is not None:
            _restore_lanczos(found, kept)
            report.advance(found.steps)
        while found.steps < spec["steps"] and not found.done(spec["tolerance"]):
            found.step(multiply)
            states.write(lambda: _lanczos_state(found))
        vectors = found.vectors()
        rows: list[dict[str, Any]] = []
        quotients: list[float] = []
        for vector in vectors:
            image = multiply([vector])[0]
            quotients.append(float(vector.double() @ image.double()))
            residual = torch.linalg.vector_norm(image - quotients[-1] * vector)
            rows.append({"eigenvalue": quotients[-1], "residual": float(residual)})
        forms = self.operator.quadratic_forms(list(vectors), quotients)
        ids = self.points.evaluator.data[0].ids
        for row, form in zip(rows, forms, strict=True):
            row["data_error"] = self.operator.standard_error(form)
            first = int(form.abs().nan_to_num().argmax())
            known = bool(torch.isfinite(form).any())
            row["example"] = ids[first] if known else None
            row["share"] = float(form[first] / form.sum())
        table = pd.DataFrame(rows)
        ends = ["top"] * min(spec["top"], len(rows))
        table.insert(0, "end", [*ends, *["bottom"] * (len(rows) - len(ends))])
        records = {"steps": found.steps, "converged": found.done(spec["tolerance"])}
        return Contents(tables={"eigenpairs": table}, records={"lanczos": records, **self._size()})

    def _trace(self, job: Job, report: Track) -> Contents:
        """The exact part, and what every random vector says of the rest."""
        probes, sketch = job.spec["probes"], 0
        if job.spec["method"] == "hutch++":
            sketch = min(probes // 3, self.space.numel)
        exact, values = deflated_trace(
            self._multiply(report),
            self.space.numel,
            sketch=sketch,
            probes=probes - 2 * sketch,
            seed=_seed(job, 1),
            like=self.like,
        )
        records = {"exact": exact, "products": probes, **self._size()}
        return Contents({"values": values}, {}, records)

    def _density(self, job: Job, report: Track) -> Contents:
        """Nodes and weights of the quadrature of every probe; probes share the forward passes."""
        multiply, states = self._multiply(report), _States(self.work.store, job)
        probes = range(job.spec["probes"])
        size, steps = self.space.numel, job.spec["steps"]
        parts: list[Quadrature] = []
        kept = states.read()
        for first in range(0, len(probes), TOGETHER):
            seeds = [_seed(job, 2) + k for k in probes[first : first + TOGETHER]]
            part = Quadrature.start(size, seeds, self.like)
            if kept is not None:
                _restore_quadrature(part, kept, first)
                report.advance(sum(map(len, part.alphas)))
            parts.append(part)
            while part.open and part.steps < min(steps, size):
                part.step(multiply)
                states.write(lambda: _quadrature_state(parts))
        rows = [
            {"probe": k, "eigenvalue": value, "weight": weight}
            for k, nodes in enumerate(pair for part in parts for pair in part.nodes())
            for value, weight in zip(*nodes, strict=True)
        ]
        return Contents(tables={"nodes": pd.DataFrame(rows)}, records=self._size())

    def _size(self) -> dict[str, Any]:
        data = self.points.evaluator.data[0]
        used = int((self.operator.counts > 0).sum())
        positions = float(self.operator.counts.sum())
        return {
            "size": {
                "parameters": self.space.numel,
                "examples": used,
                "positions": positions,
                "truncated": data.truncated,
            }
        }


def _seed(job: Job, purpose: int) -> int:
    """Seeds of one purpose: far enough from those of another."""
    return int(job.spec["seed"]) * 1_000_003 + purpose * 100_003


# --- what is kept of a job that is not done -------------------------------------------------------


class _States:
    """The state of a job, written now and then to a study on disk, in two places by turns."""

    def __init__(self, store: ArtifactStore | None, job: Job) -> None:
        self.store = None if isinstance(store, MemoryStore) else store
        self.keys = state_keys(job)
        self.turn = 0
        self.written = time.monotonic()

    def read(self) -> Contents | None:
        """The later one of what an earlier run left."""
        if self.store is None:
            return None
        left = [self.store.read(key) if key in self.store else None for key in self.keys]
        marks = [-1 if kept is None else int(kept.records["turn"]) for kept in left]
        self.turn = max(marks) + 1
        return left[marks.index(max(marks))]

    def write(self, state: Callable[[], Contents]) -> None:
        """Keep `state()` where the last time is long ago."""
        if self.store is None or time.monotonic() - self.written < KEEP_SECONDS:
            return
        made, key = state(), self.keys[self.turn % 2]
        self.store.remove(key)  # the other one is whole, whatever happens here
        records = {**made.records, "turn": self.turn}
        self.store.write(key, Contents(made.tensors, made.tables, records))
        self.turn += 1
        self.written = time.monotonic()


def state_keys(job: Job) -> tuple[str, str]:
    """The names under which the state of a job is kept."""
    first, second = (Job(f"{job.kind}-state", {"of": job.key, "place": k}).key for k in (0, 1))
    return first, second


def _lanczos_state(found: Lanczos) -> Contents:
    tensors = {
        "basis": found.basis[: found.count + 1].cpu().numpy(),
        "projected": found.projected.copy(),
        "beta": np.array(found.beta),
    }
    if found.before is not None:
        tensors["before"] = found.before
    records = {name: getattr(found, name) for name in ("count", "steps", "settled")}
    return Contents(tensors, {}, {"state": records})


def _restore_lanczos(found: Lanczos, kept: Contents) -> None:
    state: Mapping[str, Any] = kept.records["state"]
    found.count, found.steps = state["count"], state["steps"]
    found.settled = state["settled"]
    if "before" in kept.tensors:
        found.before = np.array(kept.tensors["before"])
    found.beta = float(kept.tensors["beta"])
    found.projected[:] = kept.tensors["projected"]
    found.basis[: found.count + 1] = torch.from_numpy(np.array(kept.tensors["basis"]))


def _quadrature_state(parts: Sequence[Quadrature]) -> Contents:
    tensors: dict[str, np.ndarray] = {}
    probe = 0
    for number, part in enumerate(parts):
        done = number < len(parts) - 1
        for k in range(len(part.current)):
            tensors[f"{probe}.alphas"] = np.array(part.alphas[k])
            tensors[f"{probe}.betas"] = np.array(part.betas[k])
            if not done:
                tensors[f"{probe}.current"] = part.current[k].cpu().numpy()
                tensors[f"{probe}.before"] = part.before[k].cpu().numpy()
            probe += 1
    return Contents(tensors)


def _restore_quadrature(part: Quadrature, kept: Contents, first: int) -> None:
    for k in range(len(part.current)):
        if f"{first + k}.alphas" not in kept.tensors:
            continue
        part.alphas[k] = kept.tensors[f"{first + k}.alphas"].tolist()
        part.betas[k] = kept.tensors[f"{first + k}.betas"].tolist()
        for name, place in (("current", part.current), ("before", part.before)):
            if f"{first + k}.{name}" in kept.tensors:
                place[k].copy_(torch.from_numpy(np.array(kept.tensors[f"{first + k}.{name}"])))
