"""Fitting points of parameter space by the loss of their mixtures: curves and simplexes.

Free points w_k are fitted so that random mixtures of them and of fixed points have a low loss:

    min over w of  E_c [ L(sum_k c_k w_k) ] - lambda log(V(w) + 1e-4)

with weights c drawn from the shape (a curve, a complex) and V its volume. The mixture is linear, so
the gradient of w_k is c_k times the gradient of the loss at the mixture: the model is moved, and no
graph runs through the mixing.

Everything random in a step comes from (seed, step), so that a fit that was stopped goes on to the
same result: its state is kept in the store every `save_every` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field as Option
from torch import Tensor

from landform.errors import ConfigError, NonFiniteError
from landform.evaluation.field import Field
from landform.evaluation.points import (
    Data,
    Evaluator,
    PointsConfig,
    PointsWork,
    PointsWorker,
    data_fingerprint,
)
from landform.geometry.paths import squared_distances
from landform.geometry.volumes import Cliques, log_volume
from landform.store.artifacts import ArtifactStore, Contents, MemoryStore
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.progress import Track, track
from landform.weights.checkpoint import Checkpoint
from landform.weights.space import ParameterSpace

__all__ = ["Descent", "FitConfig", "FitWork", "Landscape", "Shape", "run_fit"]

Floats = npt.NDArray[np.float64]


class FitConfig(PointsConfig):
    """How points are fitted."""

    steps: int = Option(200, ge=1)
    """Optimizer steps (of a complex: for each connector)."""
    batch_size: int = Option(32, ge=1)
    """Rows of one batch."""
    accumulation: int = Option(1, ge=1)
    """Batches of one optimizer step."""
    samples_per_step: int = Option(1, ge=1)
    """Points drawn for each batch; their losses and gradients are averaged."""
    learning_rate: float = Option(1e-4, gt=0, allow_inf_nan=False)
    """Highest learning rate, reached after the warm-up."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """adam, adamw (decoupled weight decay), or sgd with momentum."""
    momentum: float = Option(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Option(0.0, ge=0, allow_inf_nan=False)
    """Weight decay of the fitted points."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """What the learning rate does after the warm-up: stay, or fall to 0 as a cosine or a line."""
    warmup_ratio: float = Option(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    dropout: bool = False
    """Run the model with its dropout, as in training."""
    noise: float = Option(0.0, ge=0, allow_inf_nan=False)
    """Length of a random step added to every point at its start, in units of the largest distance
    between the checkpoints (of a single one: of its norm)."""
    volume_weight: float | None = Option(None, ge=0, allow_inf_nan=False)
    """Weight of the log-volume, which keeps the points apart (default: 0 for curves)."""
    parameters: tuple[str, ...] = ("*",)
    """Patterns of the tensors that are fitted; all others stay where the start put them."""
    compat: Literal["connectivity"] | None = None
    """connectivity: as the code of Juneja et al. 2023 does it. Volumes enter squared, with a weight
    of 1e-4 unless volume_weight says otherwise, and bends start in reverse order."""
    save_every: int = Option(50, ge=1)
    """Keep the state every so many steps, to go on from after a kill (needs a store)."""

    @property
    def lam(self) -> float:
        """The weight of the log-volume that applies."""
        if self.volume_weight is not None:
            return self.volume_weight
        return 1e-4 if self.compat == "connectivity" else 0.0

    def rate(self, step: int) -> float:
        """The learning rate of a step, 0 <= step < steps."""
        warm = math.ceil(self.warmup_ratio * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(self.steps - warm, 1)
        factor = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        }[self.schedule]
        return self.learning_rate * factor


WHERE_ONLY = frozenset({"replicates", "level", "memory", "device", "allow_pickle", "save_every"})
"""Options that say where and how, and decide no number of a fit."""


class Shape(Protocol):
    """What is fitted. Vertices are numbered: the fixed ones first, then the free ones."""

    @property
    def fixed(self) -> int:
        """Number of fixed vertices."""

    @property
    def stages(self) -> int:
        """How often free vertices are added; each stage has an optimizer and a schedule anew."""

    def count(self, stage: int) -> int:
        """Free vertices that exist in a stage."""

    def start(self, stage: int) -> Floats:
        """Weights (new vertices, vertices so far) of the places where a stage's vertices start."""

    def draw(self, random: np.random.Generator, stage: int) -> Floats:
        """Weights (vertices,) of a random point."""

    def cliques(self, stage: int) -> Cliques:
        """The simplexes whose volumes are added up."""

    def checks(self) -> Floats:
        """Weights (points, vertices) of points whose mean loss chooses the best state; or none."""


class Landscape(Protocol):
    """A loss with its gradient: `Field` for models, a formula for tests."""

    @property
    def flat(self) -> Tensor:
        """Where it stands, (numel,); written to move."""

    @property
    def size(self) -> int:
        """Number of examples."""

    def batches(self, rows: npt.NDArray[np.intp]) -> Any:
        """These examples, in the form that `gradient` takes."""

    def gradient(self, batches: Any) -> tuple[float, Tensor]:
        """Loss and gradient (numel,) of these examples here."""


# --- one fit ----------------------------------------------------------------------------------


class Descent:
    """Fits the free vertices of a shape, step by step.

    `free` holds them, (vertices, m), m the number of fitted entries; `chosen` names these where
    they are not all, and the others stay on the mixture of the fixed vertices that the start is.
    """

    def __init__(
        self,
        landscape: Landscape,
        fixed: Sequence[Tensor],
        shape: Shape,
        config: FitConfig,
        chosen: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.landscape, self.fixed, self.shape, self.config = landscape, fixed, shape, config
        numel = landscape.flat.numel()
        self.slices = list(chosen) if chosen is not None else [(0, numel)]
        self.partial = sum(stop - start for start, stop in self.slices) < numel
        self.own = [self.cut(point) for point in fixed]
        # Steps of bfloat16 points would be lost in rounding: they are fitted in float32 at least.
        self.free = torch.zeros(
            shape.count(shape.stages - 1),
            self.own[0].numel(),
            dtype=torch.promote_types(landscape.flat.dtype, torch.float32),
            device=landscape.flat.device,
        )
        self.anchor = np.zeros((len(self.free), len(fixed)))
        """weights of the fixed vertices at which the free ones started"""
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.parameter: torch.nn.Parameter | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    @property
    def total(self) -> int:
        """Steps of the whole fit."""
        return self.config.steps * self.shape.stages

    def cut(self, point: Tensor) -> Tensor:
        """The fitted entries of a flat vector (a view where they are all)."""
        if not self.partial:
            return point
        return torch.cat([point[start:stop] for start, stop in self.slices])

    def whole(self, k: int) -> Tensor:
        """Free vertex k as a flat vector of its own, (numel,)."""
        out = torch.empty(self.landscape.flat.numel(), dtype=self.free.dtype)
        out = out.to(self.free.device)
        self._write(out, np.append(np.zeros(len(self.fixed)), np.eye(len(self.free))[k]))
        return out

    def move(self, weights: Floats) -> None:
        """Go to the mixture sum_k weights[k] w_k."""
        self._write(self.landscape.flat, weights)

    def _write(self, out: Tensor, weights: Floats) -> None:
        with torch.no_grad():
            if self.partial:
                free = weights[len(self.fixed) :]
                rest = weights[: len(self.fixed)] + free @ self.anchor[: len(free)]
                _mix(out, list(zip(rest, self.fixed, strict=True)))
            vertices = [*self.own, *self.free]
            offset = 0
            for start, stop in self.slices:
                size = stop - start
                parts = [
                    (weight, vertex[offset : offset + size])
                    for weight, vertex in zip(weights, vertices, strict=False)
                ]
                _mix(out[start:stop], parts)
                offset += size

    # --- stages -----------------------------------------------------------------------------

    def begin(self, stage: int) -> None:
        """Place the new vertices of a stage, and make its optimizer."""
        if self.step % self.config.steps == 0:
            self._place(stage)
        self.parameter = torch.nn.Parameter(self.free[: self.shape.count(stage)])
        self.parameter.grad = torch.zeros_like(self.parameter)
        config = self.config
        common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimizer == "sgd":
            common["momentum"] = config.momentum
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        self.optimizer = kinds[config.optimizer]([self.parameter], **common)

    def _place(self, stage: int) -> None:
        before = self.shape.count(stage - 1) if stage else 0
        starts = self.shape.start(stage)
        existing = [*self.own, *self.free[:before]]
        for k, weights in enumerate(starts, start=before):
            split = len(self.fixed)
            self.anchor[k] = weights[:split] + weights[split:] @ self.anchor[:before]
            _mix(self.free[k], list(zip(weights, existing, strict=True)))
            if self.config.noise:
                self._shake(k)

    def _shake(self, k: int) -> None:
        """Add a random step; drawn on the CPU, so that every device starts in the same place."""
        generator = torch.Generator().manual_seed(_seed(self.config.seed, "noise", k))
        drawn = torch.randn(self.free.shape[1], generator=generator)
        unit = math.sqrt(float(squared_distances(self.own).max()))
        if not unit:
            unit = float(torch.linalg.vector_norm(self.own[0].double()))
        scale = self.config.noise * unit / float(torch.linalg.vector_norm(drawn.double()))
        self.free[k].add_(drawn.to(self.free), alpha=scale)

    # --- steps ------------------------------------------------------------------------------

    def advance(self) -> dict[str, float]:
        """One optimizer step; its row of the history."""
        stage, inner = divmod(self.step, self.config.steps)
        if self.optimizer is None or inner == 0:
            self.begin(stage)
        assert self.parameter is not None and self.optimizer is not None
        gradient = self.parameter.grad
        assert gradient is not None
        gradient.zero_()
        try:
            with _dropout(self.config, self.step):
                loss = self._collect(stage, gradient)
        except NonFiniteError as error:
            raise self._diverged(f"step {self.step + 1} of the fit: {error.what}") from None
        volume = self._regularise(stage, gradient)
        rate = self.config.rate(inner)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise self._diverged(f"step {self.step + 1} of the fit: {error}") from None
        self.step += 1
        row = {"step": self.step, "vertex": self.shape.count(stage) - 1, "loss": loss}
        row |= {"volume": volume, "learning_rate": rate}
        self.history.append(row)
        return row

    def _collect(self, stage: int, gradient: Tensor) -> float:
        """Mean loss of the drawn points on the batches of this step; adds up the gradients."""
        config, split = self.config, len(self.fixed)
        share = 1.0 / (config.samples_per_step * config.accumulation)
        total = 0.0
        for part in range(config.accumulation):
            number = self.step * config.accumulation + part
            batches = self.landscape.batches(self.rows(number))
            random = np.random.default_rng(_seed(config.seed, "points", number))
            for _ in range(config.samples_per_step):
                weights = self.shape.draw(random, stage)
                self.move(weights)
                loss, slope = self.landscape.gradient(batches)
                total += share * loss
                slope = self.cut(slope)
                for k, weight in enumerate(weights[split:]):
                    if weight:
                        gradient[k].add_(slope, alpha=share * float(weight))
        return total

    def rows(self, number: int) -> npt.NDArray[np.intp]:
        """The rows of batch `number`: shuffled passes over the data, one after the other."""
        count = self.landscape.size
        size = min(self.config.batch_size, count)
        wanted = np.arange(number * size, (number + 1) * size)
        rows = np.empty(size, dtype=np.intp)
        for epoch in range(int(wanted[0]) // count, int(wanted[-1]) // count + 1):
            random = np.random.default_rng(_seed(self.config.seed, "rows", epoch))
            here = wanted // count == epoch
            rows[here] = random.permutation(count)[wanted[here] % count]
        return rows

    def _regularise(self, stage: int, gradient: Tensor) -> float:
        """Add the gradient of -lambda log(V + 1e-4); the volume, NaN where nobody asked for it."""
        if not self.config.lam:
            return math.nan
        vertices = [*self.own, *self.free[: self.shape.count(stage)]]
        volume, _, coefficients = log_volume(
            squared_distances(vertices),
            self.shape.cliques(stage),
            squares=self.config.compat == "connectivity",
        )
        for k, row in enumerate(coefficients[len(self.fixed) :]):
            for c, vertex in zip(row, vertices, strict=True):
                gradient[k].add_(vertex, alpha=-self.config.lam * float(c))
        return volume

    def check_finite(self) -> None:
        """Raise `NonFiniteError` where a fitted point is not finite."""
        if not torch.isfinite(self.free).all():
            raise self._diverged(f"after step {self.step} a fitted point is NaN or infinite")

    def _diverged(self, what: str) -> NonFiniteError:
        remedy = f"lower learning_rate (it is {self.config.learning_rate:g})"
        return NonFiniteError(what, remedy=remedy)

    # --- state ------------------------------------------------------------------------------

    def state(self, *, final: bool = False) -> Contents:
        """Everything that the next step depends on; without the optimizer when `final`."""
        tensors = {"vertices": self.free.cpu().numpy()}
        if self.optimizer is not None and not final:
            for name, value in self.optimizer.state_dict()["state"].get(0, {}).items():
                if value is not None:
                    tensors[f"optimizer.{name}"] = torch.as_tensor(value).cpu().numpy()
        record = {"step": self.step, "anchor": self.anchor.tolist()}
        return Contents(tensors, {"history": pd.DataFrame(self.history)}, {"state": record})

    def restore(self, contents: Contents) -> None:
        """Go on from a `state`."""
        record = contents.records["state"]
        self.step, self.anchor = int(record["step"]), np.array(record["anchor"])
        self.free.copy_(torch.from_numpy(np.array(contents.tensors["vertices"])))
        rows = contents.tables["history"].to_dict("records")
        self.history = [{str(name): float(v) for name, v in row.items()} for row in rows]
        if self.step % self.config.steps == 0:
            return  # the next stage has an optimizer of its own
        self.begin(self.step // self.config.steps)
        assert self.optimizer is not None
        kept = {
            name.removeprefix("optimizer."): torch.from_numpy(np.array(value))
            for name, value in contents.tensors.items()
            if name.startswith("optimizer.")
        }
        full = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**full, "state": {0: kept} if kept else {}})


def _mix(out: Tensor, parts: Sequence[tuple[float, Tensor]]) -> None:
    """out <- sum of weight x vector, passing over weights of 0."""
    first = True
    for weight, vector in parts:
        if weight and first:
            torch.mul(vector, float(weight), out=out)
        elif weight:
            out.add_(vector, alpha=float(weight))
        first = first and not weight
    if first:
        out.zero_()


def _seed(*parts: int | str) -> int:
    """A seed from a seed, a word and a number."""
    numbers = [int.from_bytes(p.encode(), "little") if isinstance(p, str) else p for p in parts]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _dropout(config: FitConfig, step: int) -> Iterator[None]:
    """torch's generators seeded by the step inside, and as they were outside."""
    if not config.dropout:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(_seed(config.seed, "dropout", step))
        yield


# --- fits as jobs -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FitWork:
    """A fit before it runs: what decides it, and the jobs it is cut into."""

    checkpoints: tuple[Checkpoint, ...]
    """the fixed vertices"""
    data: Data
    """what is fitted on"""
    shape: Any
    """a `Shape` that can be fingerprinted: a frozen dataclass"""
    config: FitConfig
    label: str
    select: Data | None = None
    """what the points of `shape.checks()` are evaluated on"""

    @cached_property
    def points(self) -> PointsWork:
        """Opens the model and the data."""
        data = (self.data,) if self.select is None else (self.data, self.select)
        return PointsWork(self.checkpoints, data, self.config)

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.config.steps * int(self.shape.stages)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result."""
        # A third checkpoint is one of the members, whatever its path.
        options = self.config.model_dump(mode="json", exclude={*WHERE_ONLY, "start"})
        options |= {"lambda": self.config.lam}
        if self.select is not None:
            options["save_every"] = self.config.save_every
        return {
            "shape": self.shape,
            "members": [checkpoint.fingerprint for checkpoint in self.checkpoints],
            "data": data_fingerprint(self.points),
            "options": options,
        }

    def job(self, stop: int, since: int = 0) -> Job:
        """The job of fitting up to step `stop`, from `since` on."""
        return Job("descent", {**self.identity, "stop": stop}, cost=stop - since, label=self.label)

    @property
    def final(self) -> Job:
        """The job whose result is the fit."""
        return self.job(self.total)

    def done(self, store: ArtifactStore | None) -> int:
        """The last step whose state is kept."""
        marks = [*range(self.config.save_every, self.total, self.config.save_every), self.total]
        kept = (mark for mark in reversed(marks) if store and self.job(mark).key in store)
        return next(kept, 0)

    def plan(self, store: ArtifactStore | None) -> Plan:
        """The jobs that remain; the last one alone where there is nothing to keep states in."""
        done = self.done(store)
        every = self.total if isinstance(store, MemoryStore) else self.config.save_every
        marks = [m for m in range(every, self.total, every) if m > done]
        stops = [*marks, self.total]
        return Plan(self.job(b, a) for a, b in zip([done, *marks], stops, strict=True))

    def forecast(self, store: ArtifactStore) -> Forecast:
        """Steps that remain, their time (from one real step, after a warm-up), and memory."""
        if self.final.key in store:
            return Plan((self.final,)).forecast(store, unit="steps")
        worker = FitWorker(self, MemoryStore(), Track())
        worker.descent.advance()
        start = time.perf_counter()
        worker.descent.advance()
        seconds = time.perf_counter() - start
        held = self.points.forecast(Plan(()), store).memory or 0.0
        # The points, their gradient, and what Adam keeps of it.
        own = 4 * worker.descent.free.numel() * worker.descent.free.element_size()
        return self.plan(store).forecast(
            store, seconds_per_unit=seconds, memory=held + own, unit="steps"
        )


def run_fit(work: FitWork, store: ArtifactStore, *, progress: bool = False) -> Contents:
    """Fit what is missing; the final state. Earlier states are removed as later ones are kept."""
    final, done = work.final, work.done(store)
    if final.key not in store:
        kept = [work.job(done)] if done else []

        def forget(job: Job, _: Contents) -> None:
            for earlier in kept:
                store.remove(earlier.key)
            kept[:] = [] if job == final else [job]

        with track(work.total, work.label, "steps", done=done, enabled=progress) as report:
            run_plan(
                work.plan(store),
                lambda: FitWorker(work, store, report),
                store,
                progress=False,
                on_result=forget,
            )
    return store.read(final.key)


class FitWorker:
    """Runs the jobs of one fit, in order."""

    def __init__(self, work: FitWork, store: ArtifactStore, report: Track) -> None:
        self.work, self.report = work, report
        self.opened: PointsWorker = work.points()
        keys = [checkpoint.fingerprint for checkpoint in work.checkpoints]
        fixed = [self.opened.point(key) for key in keys]
        _check_apart(work, fixed)
        field = Field(self.opened, 0, dropout=work.config.dropout)
        space = self.opened.space
        chosen = space.subspace(work.config.parameters)
        parameters = dict(self.opened.bound.model.named_parameters())
        for name in set(space.names) - set(chosen.names):
            parameters[name].requires_grad_(False)
        self.descent = Descent(field, fixed, work.shape, work.config, slices(space, chosen))
        self.best: tuple[float, int, Tensor] | None = None
        done = work.done(store)
        if done:
            self._restore(store.read(work.job(done).key))

    def _restore(self, contents: Contents) -> None:
        self.descent.restore(contents)
        best = contents.records["best"]
        if best is not None:
            kept = torch.from_numpy(np.array(contents.tensors["best"]))
            self.best = (best["loss"], best["step"], kept)

    def run(self, job: Job) -> Contents:
        """Fit up to the step that the job names."""
        descent, every = self.descent, self.work.config.save_every
        if descent.step == 0:
            descent.begin(0)
            self._select()
        while descent.step < job.spec["stop"]:
            row = descent.advance()
            self.report.advance(1, note=f"loss {row['loss']:.4g}")
            if descent.step % every == 0 or descent.step == descent.total:
                descent.check_finite()
                self._select()
        final = descent.step == descent.total
        best = self.best
        if final and best is not None:
            descent.free.copy_(best[2])
        state = descent.state(final=final)
        tensors, records = dict(state.tensors), dict(state.records)
        records["best"] = None if best is None else {"loss": best[0], "step": best[1]}
        if best is not None and not final:
            tensors["best"] = best[2].numpy()
        if final:
            vertices = [*descent.fixed, *(descent.whole(k) for k in range(len(descent.free)))]
            records["distances"] = squared_distances(vertices).tolist()
            made = vertices[len(descent.fixed) :]
            tensors["vertices"] = np.stack([vertex.cpu().numpy() for vertex in made])
        return Contents(tensors, state.tables, records)

    def _select(self) -> None:
        """Remember the free vertices where the mean loss of the checked points is lowest."""
        rows = self.work.shape.checks()
        if self.work.select is None or not len(rows):
            return
        evaluator = Evaluator(self.opened.bound.model, self.opened.evaluator.data[1:])
        losses = []
        for weights in rows:
            self.descent.move(weights)
            (raw,) = evaluator.run(self.work.label)
            losses.append(float((raw.losses * raw.tokens).sum() / raw.tokens.sum()))
        mean = float(np.mean(losses))
        if self.best is None or mean < self.best[0]:
            self.best = (mean, self.descent.step, self.descent.free.cpu().clone())


def slices(space: ParameterSpace, chosen: ParameterSpace) -> list[tuple[int, int]] | None:
    """Where the tensors of a subspace lie in the flat vector, joined where they touch."""
    if chosen.names == space.names:
        return None
    found: list[tuple[int, int]] = []
    for name, start, size in zip(space.names, space.offsets, space.sizes, strict=True):
        if name not in chosen.names:
            continue
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], start + size)
        else:
            found.append((start, start + size))
    return found


def _check_apart(work: FitWork, fixed: Sequence[Tensor]) -> None:
    squared = squared_distances(fixed)
    for i in range(len(fixed)):
        for j in range(i):
            if not squared[i, j]:
                raise ConfigError(
                    f"{work.checkpoints[j].spec} and {work.checkpoints[i].spec} have the same "
                    "weights: there is nothing to join",
                    remedy="name different checkpoints",
                )


def history_table(contents: Contents, columns: Mapping[str, str]) -> pd.DataFrame:
    """The history of a fit with these columns, under their names in a result."""
    table = contents.tables["history"]
    return table[list(columns)].rename(columns=dict(columns)).astype({"step": int})
