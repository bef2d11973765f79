"""The spectrum of a curvature matrix at a checkpoint: eigenvalues, trace, density, each with error.

What is estimated, of a symmetric matrix A (D, D) from `curvature.operators`:

    eigenvalues     Lanczos; residual r = ||A v - lambda v||: an eigenvalue of A lies within r of
                    lambda (Parlett 1998, theorem 4.5.1)
    trace           Hutch++ or Hutchinson, with the standard error over random vectors
    density         stochastic Lanczos quadrature: 1/D sum_k delta(x - lambda_k), smoothed

A is itself a mean over examples. To first order a change dA of it moves lambda by v^T dA v, so the
standard error of the mean of v^T A_i v over examples is what another sample of the data would move
lambda by (`data_error`). The largest eigenvalue of a sample's matrix is on average above that of
the population's: with few rows it is an upper end.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm, t

from landform.curvature.lanczos import density
from landform.curvature.spectrum_jobs import SpectrumConfig, SpectrumWork, state_keys
from landform.errors import ConfigError
from landform.evaluation.data import as_data_or_only
from landform.evaluation.points import Data, PointsWork, data_fingerprint, unpack
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store, publish, slug
from landform.tasks.metrics import Predictions, mean_loss
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, resolve, short_names

__all__ = [
    "Spectrum",
    "SpectrumConfig",
    "SpectrumStudy",
    "collect_point",
    "data_of",
    "point_predictions",
    "run_jobs",
    "spectrum",
]

NAMES = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "empirical-fisher": "empirical Fisher matrix",
}


@dataclass(frozen=True)
class Spectrum(Result):
    """What is known of the eigenvalues of a curvature matrix at a checkpoint."""

    checkpoint: str
    data: str
    """data set, `task:split`"""
    kind: str
    """kind of the task: the loss is in nats, for regression in squared units"""
    operator: str
    """hessian, ggn, fisher (another name of ggn) or empirical-fisher"""
    reduction: str
    """of the empirical Fisher what one gradient is of; mean for the others"""
    loss: float
    """loss at the checkpoint"""
    examples: int
    """examples with a scored position"""
    parameters: int
    """rows and columns of the matrix"""
    table: pd.DataFrame
    """one row per eigenvalue: end (top, bottom), rank (0 for the outermost), eigenvalue, residual
    (||A v - lambda v||), data_error (standard error over examples), low, high (residual and data
    error together, at `level`), example and share: the example that adds most to the eigenvalue,
    and how much of it. Where second differences did not agree with the product, or there is one
    example only, data_error, low and high are NaN, and without differences there is no example"""
    trace: float
    """sum of all eigenvalues; NaN where it was not asked for"""
    trace_error: float
    """standard error over the random vectors, for the data as they are"""
    trace_low: float
    trace_high: float
    """the interval of the trace over random vectors at `level`: Student's t, as these are few"""
    trace_vectors: int
    """random vectors that the error is made of"""
    trace_method: str
    trace_products: int
    """products that the trace took"""
    density: pd.DataFrame
    """eigenvalue, density, low, high: the mean over probes, the lowest and the highest of them.
    density times the spacing of the eigenvalues sums to 1"""
    quadrature: pd.DataFrame
    """probe, eigenvalue, weight: what the density is smoothed from; weights of a probe sum to 1"""
    sigma: float
    """standard deviation of the Gaussians of the density"""
    steps: int
    """Lanczos steps taken"""
    converged: bool
    """whether all residuals of the Lanczos run are below the tolerance"""
    level: float
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def eigenvalues(self) -> npt.NDArray[np.float64]:
        """The largest eigenvalues, descending."""
        return self._end("top")

    @property
    def smallest(self) -> npt.NDArray[np.float64]:
        """The smallest eigenvalues that were asked for, ascending."""
        return self._end("bottom")

    def _end(self, end: str) -> npt.NDArray[np.float64]:
        rows = self.table[self.table["end"] == end].sort_values("rank")
        return rows["eigenvalue"].to_numpy(dtype=np.float64)

    @property
    def reading(self) -> str:
        """One line for a person."""
        parts = []
        if len(self.eigenvalues):
            row = self.table[self.table["end"] == "top"].iloc[0]
            known = math.isfinite(row.data_error)
            span = f"[{row.low:.4g}, {row.high:.4g}]" if known else "(error over examples unknown)"
            parts.append(f"largest eigenvalue {row.eigenvalue:.4g} {span}")
        if len(self.smallest):
            parts.append(f"smallest {self.smallest[0]:.4g}")
        if math.isfinite(self.trace):
            parts.append(
                f"trace {self.trace:.4g} [{self.trace_low:.4g}, {self.trace_high:.4g}] "
                f"({self.trace_vectors} random vectors)"
            )
            if len(self.eigenvalues) and self.trace > 0 and self.operator != "hessian":
                share = 100 * float(self.eigenvalues.sum()) / self.trace
                parts.append(f"{share:.3g} % of it in the top {len(self.eigenvalues)}")
        if len(self.quadrature) and self.operator == "hessian":
            lowest = float(self.quadrature["eigenvalue"].min())
            parts.append(f"most negative seen {min(lowest, 0.0):.3g}")
        if not self.converged:
            worst = float(self.table["residual"].max())
            parts.append(f"NOT converged after {self.steps} steps (residual {worst:.2g})")
        return (
            f"{NAMES[self.operator]} of {self.checkpoint} on {self.data} "
            f"({self.examples} examples, {self.parameters:,} parameters): {', '.join(parts)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; density and quadrature stay tables."""
        left = ("table", "density", "quadrature", "provenance")
        plain = {n: getattr(self, n) for n in self.__dataclass_fields__ if n not in left}
        return {
            **plain,
            "eigenvalues": self.eigenvalues.tolist(),
            "table": self.table.to_dict("records"),
            "provenance": self.provenance,
        }


def spectrum(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    task: Task | Data | tuple[Task, str],
    *,
    split: str = "validation",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Spectrum:
    """Largest eigenvalues, trace and density of a curvature matrix of a checkpoint's loss.

    Options are the fields of `SpectrumConfig` (operator, top, bottom, trace, density_probes, rows,
    parameters, exclude, ...). With a `store`, finished parts are kept, and a run that was killed
    goes on within a minute of where it was. Of a tuned model (LoRA, an adapter) only the tuned
    tensors are looked at. Raises `ConfigError` for an unknown operator or more eigenvalues than
    there are parameters, `NonFiniteError` for weights or outputs that are not finite.
    """
    study = SpectrumStudy.of(checkpoint, task, split=split, **options)
    return study.run(open_store(store), progress=progress, keep=store is not None)


def data_of(task: Task | Data | tuple[Task, str], split: str) -> Data:
    """The data set meant; of a task without that split the only one it has, with a warning.

    Its metrics are left out: those of a text-to-text task would have answers generated.
    """
    data = as_data_or_only(task, split, "the spectrum is of those rows")
    return replace(data, task=replace(data.task, metrics=()))


@dataclass(frozen=True)
class SpectrumStudy:
    """The plan of a spectrum, before anything is loaded."""

    checkpoint: Checkpoint
    data: Data
    config: SpectrumConfig

    @classmethod
    def of(
        cls,
        checkpoint: str | os.PathLike[str] | Checkpoint,
        task: Task | Data | tuple[Task, str],
        *,
        split: str = "validation",
        **options: Any,
    ) -> Self:
        """Resolve checkpoint, data and options; raises for what is not there."""
        config = SpectrumConfig.parse(options, where="spectrum")
        if config.replicates != SpectrumConfig().replicates:
            raise ConfigError(
                "replicates belongs to a path: at one checkpoint nothing is resampled",
                remedy="leave it out, or name two checkpoints",
            )
        chosen, data = resolve(checkpoint), data_of(task, split)
        data.task.resolve(data.split)
        check_dimension(chosen, config)
        return cls(chosen, data, config)

    @cached_property
    def _work(self) -> SpectrumWork:
        points = PointsWork((self.checkpoint,), (self.data,), self.config)
        return SpectrumWork(points, self.config)

    @cached_property
    def _jobs(self) -> dict[str, Job]:
        return self._work.jobs([0], [1.0], self.checkpoint.spec)

    @property
    def result_name(self) -> str:
        """The name of the result in a study."""
        (name,) = short_names([self.checkpoint])
        task = self.data.task
        return slug("spectrum", name, task.name, self.data.split, self.config.operator)

    @property
    def plan(self) -> Plan:
        """All jobs."""
        return Plan(self._jobs.values())

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.result_name,)

    def forecast(self, store: ArtifactStore) -> Forecast:
        """Products that remain at most, their time and memory."""
        return self._work.forecast(self.plan, store)

    def run(
        self, store: ArtifactStore | None, *, progress: bool = False, keep: bool = True
    ) -> Spectrum:
        """Run what is missing; with `keep` the result is kept under its name."""
        kept = open_store(store)
        run_jobs(self._work, self.plan, kept, progress=progress)
        found = self.collect(kept)
        if keep:
            publish(kept, self.result_name, found)
        return found

    def collect(self, store: ArtifactStore) -> Spectrum:
        """The result, from the outputs in `store`."""
        config = self.config
        found = collect_point(self._work, self._jobs, store)
        return Spectrum(
            checkpoint=self.checkpoint.spec,
            data=self.data.name,
            kind=self.data.task.kind,
            operator=config.operator,
            reduction=config.reduction,
            trace_method=config.trace,
            level=config.level,
            provenance={
                "weights": self.checkpoint.fingerprint,
                "data": data_fingerprint(self._work.points),
                "truncated": found.pop("truncated"),
                "config": config.model_dump(mode="json"),
            },
            **found,
        )


def check_dimension(checkpoint: Checkpoint, config: SpectrumConfig) -> None:
    """Refuse more eigenvalues than the weight files have entries, before anything is loaded."""
    entries = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    asked = config.top + config.bottom
    if entries and asked > entries and checkpoint.tuning is None:
        raise ConfigError(
            f"options top and bottom ask for {asked:,} eigenvalues, but {checkpoint.spec} has "
            f"{entries:,} parameters",
            remedy=f"use at most {entries:,}",
        )


def run_jobs(
    work: SpectrumWork, plan: Plan, store: ArtifactStore, *, progress: bool = False
) -> None:
    """Run what is missing of a plan, and remove what was kept only to go on from."""
    made = SpectrumWork(work.points, work.config, store, progress)
    # Every job has a display of its own: how many products Lanczos needs is known in the end.
    run_plan(plan, made, store, progress=False)
    for job in plan.jobs:
        for key in state_keys(job):
            if key in store:
                store.remove(key)


def point_predictions(work: PointsWork, contents: Any) -> Predictions:
    """What the one point of a mix job says of the examples."""
    data = work.data[0]
    return unpack(contents, 0, data.examples(work.config.rows), data.task.kind)[0]


def collect_point(
    work: SpectrumWork, jobs: Mapping[str, Job], store: ArtifactStore
) -> dict[str, Any]:
    """What the jobs of one point found, as fields of a `Spectrum`."""
    config = work.config
    read = {name: store.read(job.key) for name, job in jobs.items()}
    sizes = [c.records["size"] for c in read.values() if "size" in c.records]
    size = sizes[0] if sizes else {"parameters": 0, "examples": 0, "truncated": 0}
    found: dict[str, Any] = {
        "loss": mean_loss(point_predictions(work.points, read["loss"])),
        "examples": int(size["examples"]),
        "parameters": int(size["parameters"]),
        "truncated": int(size["truncated"]),
    }
    eigen = read.get("eigenpairs")
    lanczos = {"steps": 0, "converged": True} if eigen is None else eigen.records["lanczos"]
    pairs = _pairs(None if eigen is None else eigen.tables["eigenpairs"], config.level)
    if config.operator != "hessian":  # the others have no negative eigenvalue
        pairs["low"] = pairs["low"].clip(lower=0.0)
    found["table"] = pairs
    found |= {"steps": int(lanczos["steps"]), "converged": bool(lanczos["converged"])}
    found |= _trace(read.get("trace"), config.level)
    found |= _density(read.get("density"), config.width)
    return found


def _pairs(table: pd.DataFrame | None, level: float) -> pd.DataFrame:
    """Eigenvalues with their intervals, from the outermost on."""
    names = ["end", "rank", "eigenvalue", "residual", "data_error", "low", "high", "example"]
    names.append("share")
    if table is None:
        words = ("end", "example")
        kinds = {name: "object" if name in words else "float64" for name in names}
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
    made = []
    for end in ("top", "bottom"):
        part = table[table["end"] == end].sort_values("eigenvalue", ascending=end == "bottom")
        made.append(part.assign(rank=range(len(part))))
    whole = pd.concat(made, ignore_index=True)
    # NaN where the error over examples is not known: an interval without it would look exact.
    reach = whole["residual"] + norm.ppf(0.5 + level / 2) * whole["data_error"]
    whole["low"], whole["high"] = whole["eigenvalue"] - reach, whole["eigenvalue"] + reach
    whole["example"] = whole["example"].astype("object").where(whole["share"].notna(), None)
    return whole[names]


def _trace(contents: Any, level: float) -> dict[str, Any]:
    values = (
        np.zeros(0) if contents is None else np.asarray(contents.tensors["values"], dtype=float)
    )
    count = len(values)
    mean = math.nan
    if contents is not None:
        mean = float(contents.records["exact"]) + (float(values.mean()) if count else 0.0)
    error = float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    reach = float(t.ppf(0.5 + level / 2, count - 1)) * error if count > 1 else math.nan
    return {
        "trace": mean,
        "trace_error": error,
        "trace_low": mean - reach,
        "trace_high": mean + reach,
        "trace_vectors": count,
        "trace_products": 0 if contents is None else int(contents.records["products"]),
    }


def _density(contents: Any, width: float) -> dict[str, Any]:
    columns = ("eigenvalue", "density", "low", "high")
    if contents is None:
        empty = pd.DataFrame({name: pd.Series(dtype="float64") for name in columns})
        nodes = pd.DataFrame(
            {name: pd.Series(dtype="float64") for name in ("probe", "eigenvalue", "weight")}
        )
        return {"density": empty, "quadrature": nodes, "sigma": math.nan}
    nodes = contents.tables["nodes"]
    parts: Sequence[Any] = [
        (part["eigenvalue"].to_numpy(), part["weight"].to_numpy())
        for _, part in nodes.groupby("probe", sort=True)
    ]
    grid, curves, sigma = density(parts, width=width)
    values = (grid, curves.mean(0), curves.min(0), curves.max(0))
    table = pd.DataFrame(dict(zip(columns, values, strict=True)))
    return {"density": table, "quadrature": nodes, "sigma": sigma}
