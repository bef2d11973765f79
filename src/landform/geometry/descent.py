"""Fitting points of parameter space by the loss of their mixtures: curves and simplexes.

Free points w_k are fitted so that random mixtures of them and of fixed points have a low loss:

    min over w of  E_c [ L(sum_k c_k w_k) ] - lambda log(V(w) + 1e-4)

with weights c drawn from the shape (a curve, a complex) and V its volume. The mixture is linear, so
the gradient of w_k is c_k times the gradient of the loss at the mixture: the model is moved, and no
graph runs through the mixing. The loop itself, and what is random in it, is `geometry.loop`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field as Option
from torch import Tensor

from landform.errors import ConfigError
from landform.evaluation.evaluate import headline
from landform.evaluation.field import Field
from landform.evaluation.points import (
    Data,
    Evaluator,
    PointsWork,
    PointsWorker,
    data_fingerprint,
)
from landform.geometry.loop import WHERE_ONLY, Loop, LoopConfig, LossField, seed_of
from landform.geometry.paths import squared_distances
from landform.geometry.volumes import Cliques, log_volume
from landform.store.artifacts import ArtifactStore, Contents, MemoryStore
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.progress import Track, track
from landform.tasks.metrics import best_of, get_metric
from landform.weights.checkpoint import Checkpoint, draw_tuned
from landform.weights.space import ParameterSpace

__all__ = ["Descent", "FitConfig", "FitWork", "Shape", "run_fit"]

Floats = npt.NDArray[np.float64]


class FitConfig(LoopConfig):
    """How points are fitted."""

    samples_per_step: int = Option(1, ge=1)
    """Points drawn for each batch; their losses and gradients are averaged."""
    noise: float = Option(0.0, ge=0, allow_inf_nan=False)
    """Length of a random step added to every point at its start, in units of the largest distance
    between the checkpoints (of a single one: of its norm)."""
    volume_weight: float | None = Option(None, ge=0, allow_inf_nan=False)
    """Weight of the log-volume, which keeps the points apart (default: 0 for curves)."""
    parameters: tuple[str, ...] = ("*",)
    """Patterns of the tensors that are fitted; all others stay where the start put them."""
    compat: Literal["connectivity", "plm"] | None = None
    """connectivity: as the code of Juneja et al. 2023 does it. Volumes enter squared, with a weight
    of 1e-4 unless volume_weight says otherwise, and bends start in reverse order. plm: as the code
    of Qin et al. 2022 does it (curves only)."""

    @property
    def lam(self) -> float:
        """The weight of the log-volume that applies."""
        if self.volume_weight is not None:
            return self.volume_weight
        return 1e-4 if self.compat == "connectivity" else 0.0


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


# --- one fit ----------------------------------------------------------------------------------


class Descent(Loop):
    """Fits the free vertices of a shape, step by step.

    `free` holds them, (vertices, m), m the number of fitted entries; `chosen` names these where
    they are not all, and the others stay on the mixture of the fixed vertices that the start is.
    `shapes` are those of the tensors that the fitted entries make up, for an optimizer that looks
    at matrices. `fresh(k)` is a point (numel,) at which vertex k starts in place of a mixture.
    """

    config: FitConfig

    def __init__(
        self,
        landscape: LossField,
        fixed: Sequence[Tensor],
        shape: Shape,
        config: FitConfig,
        chosen: Sequence[tuple[int, int]] | None = None,
        *,
        shapes: Sequence[tuple[int, ...]] = (),
        fresh: Callable[[int], Tensor] | None = None,
    ) -> None:
        super().__init__(landscape, config)
        self.fixed, self.shape, self.shapes, self.fresh = fixed, shape, shapes, fresh
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

    @property
    def stages(self) -> int:
        """Those of the shape."""
        return self.shape.stages

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

    def place(self, stage: int) -> None:
        """Put the new vertices of a stage where they start."""
        before = self.shape.count(stage - 1) if stage else 0
        starts = self.shape.start(stage)
        existing = [*self.own, *self.free[:before]]
        for k, weights in enumerate(starts, start=before):
            split = len(self.fixed)
            self.anchor[k] = weights[:split] + weights[split:] @ self.anchor[:before]
            if self.fresh is not None:
                self.free[k].copy_(self.cut(self.fresh(k)))
            else:
                _mix(self.free[k], list(zip(weights, existing, strict=True)))
            if self.config.noise:
                self._shake(k)

    def _shake(self, k: int) -> None:
        """Add a random step; drawn on the CPU, so that every device starts in the same place."""
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, "noise", k))
        drawn = torch.randn(self.free.shape[1], generator=generator)
        unit = math.sqrt(float(squared_distances(self.own).max()))
        if not unit:
            unit = float(torch.linalg.vector_norm(self.own[0].double()))
        scale = self.config.noise * unit / float(torch.linalg.vector_norm(drawn.double()))
        self.free[k].add_(drawn.to(self.free), alpha=scale)

    def fitted(self, stage: int) -> Tensor:
        """The vertices that exist in a stage."""
        return self.free[: self.shape.count(stage)]

    def divided(self, values: Tensor) -> list[Tensor]:
        """The vertices at once; for Adafactor, which looks at matrices, tensor by tensor.

        Under compat plm they are the one matrix (vertices, m) that the original fits: with one
        bend its rows are one, and the second moments are not factored.
        """
        whole = self.config.optimizer != "adafactor" or self.config.compat == "plm"
        if whole or not self.shapes:
            return [values]
        sizes = [math.prod(shape) for shape in self.shapes]
        return [
            part.view(shape)
            for vertex in values
            for part, shape in zip(vertex.split(sizes), self.shapes, strict=True)
        ]

    # --- steps ------------------------------------------------------------------------------

    def collect(self, number: int, stage: int, gradient: Tensor) -> float:
        """Share of a batch in the mean loss of the drawn points; adds up the gradients."""
        config, split = self.config, len(self.fixed)
        share = 1.0 / (config.samples_per_step * config.accumulation)
        # The original adds the gradients of its points up.
        scale = 1.0 / config.accumulation if config.compat == "plm" else share
        batches = self.landscape.batches(self.rows(number))
        random = np.random.default_rng(seed_of(config.seed, "points", number))
        total = 0.0
        for _ in range(config.samples_per_step):
            weights = self.shape.draw(random, stage)
            self.move(weights)
            loss, slope = self.landscape.gradient(batches)
            total += share * loss
            slope = self.cut(slope)
            for k, weight in enumerate(weights[split:]):
                if weight:
                    gradient[k].add_(slope, alpha=scale * float(weight))
        return total

    def regularise(self, stage: int, gradient: Tensor) -> dict[str, float]:
        """Add the gradient of -lambda log(V + 1e-4); the volume, NaN where nobody asked for it."""
        row = {"vertex": float(self.shape.count(stage) - 1), "volume": math.nan}
        if not self.config.lam:
            return row
        vertices = [*self.own, *self.free[: self.shape.count(stage)]]
        volume, _, coefficients = log_volume(
            squared_distances(vertices),
            self.shape.cliques(stage),
            squares=self.config.compat == "connectivity",
        )
        for k, weights in enumerate(coefficients[len(self.fixed) :]):
            for c, vertex in zip(weights, vertices, strict=True):
                gradient[k].add_(vertex, alpha=-self.config.lam * float(c))
        return {**row, "volume": volume}

    def visit(self) -> Iterator[None]:
        """The points that the shape checks."""
        for weights in self.shape.checks():
            self.move(weights)
            yield

    # --- state ------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Where the vertices started."""
        return {"anchor": self.anchor.tolist()}

    def recall(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.anchor = np.array(record["anchor"])

    def result(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """The free vertices as whole points, and the squared distances of all."""
        made = [self.whole(k) for k in range(len(self.free))]
        distances = squared_distances([*self.fixed, *made]).tolist()
        vertices = np.stack([vertex.cpu().numpy() for vertex in made])
        return {"vertices": vertices}, {"distances": distances}


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
    config: Any
    """a `LoopConfig`"""
    label: str
    select: Data | None = None
    """what the points are evaluated on that choose the state to keep"""
    select_by: str = "loss"
    """"metric": the first metric of that task"""
    keep_last: bool = False
    """keep the last state whatever is best: what it is worth on `select` is only said"""
    fresh: bool = False
    """whether free vertices start as what was tuned starts: drawn anew"""

    @cached_property
    def points(self) -> PointsWork:
        """Opens the model and the data."""
        data = (self.data,) if self.select is None else (self.data, self.select)
        return PointsWork(self.checkpoints, data, self.config)

    @property
    def total(self) -> int:
        """Steps in all."""
        return int(self.config.steps) * int(self.shape.stages)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result."""
        options = self.config.model_dump(mode="json", exclude={*WHERE_ONLY, *self.unread})
        if self.select is not None:
            options["save_every"] = self.config.save_every
        return {
            "shape": self.shape,
            "members": [checkpoint.fingerprint for checkpoint in self.checkpoints],
            "data": data_fingerprint(self.points),
            "options": options,
            **({"keep": "last"} if self.keep_last else {}),
        }

    @property
    def unread(self) -> frozenset[str]:
        """Options that decide no number of the fit: a third checkpoint is one of the members,
        whatever its path."""
        return frozenset({"start"})

    def loop(self, opened: PointsWorker) -> Loop:
        """The fit, before its first step."""
        fixed = [opened.point(checkpoint.fingerprint) for checkpoint in self.checkpoints]
        check_apart(self.checkpoints, fixed)
        field = Field(opened, 0, dropout=self.config.dropout)
        space = opened.space
        chosen = space.subspace(self.config.parameters)
        parameters = dict(opened.bound.model.named_parameters())
        for name in set(space.names) - set(chosen.names):
            parameters[name].requires_grad_(False)
        return Descent(
            field,
            fixed,
            self.shape,
            self.config,
            space.spans(chosen.names),
            shapes=chosen.shapes,
            fresh=partial(self._fresh, opened) if self.fresh else None,
        )

    def _fresh(self, opened: PointsWorker, k: int) -> Tensor:
        """Where free vertex k starts, drawn under the seed of the fit."""
        seed = seed_of(self.config.seed, "start", k)
        changes = {"init_mean": 0.0, "init_std": 0.02} if self.config.compat == "plm" else {}
        model = draw_tuned(self.checkpoints[0], opened.kind, self.config, seed=seed, **changes)
        opened.space.check_same(ParameterSpace.of(model), self.checkpoints[0].spec, "a fresh start")
        return opened.space.flatten(model)

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
        seconds = 0.0
        for _ in range(min(2, self.total)):  # a fit of one step has none to warm up with
            start = time.perf_counter()
            worker.loop.advance()
            seconds = time.perf_counter() - start
        held = self.points.forecast(Plan(()), store).memory or 0.0
        # What is fitted, its gradient, and what Adam keeps of it.
        own = 4 * worker.loop.free.numel() * worker.loop.free.element_size()
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
        self.loop: Loop = work.loop(self.opened)
        self.best: tuple[float, int, Tensor] | None = None
        done = work.done(store)
        if done:
            self._restore(store.read(work.job(done).key))

    def _restore(self, contents: Contents) -> None:
        self.loop.restore(contents)
        best = contents.records["best"]
        if best is not None:
            kept = torch.from_numpy(np.array(contents.tensors["best"]))
            self.best = (best["value"], best["step"], kept)

    def run(self, job: Job) -> Contents:
        """Fit up to the step that the job names."""
        loop, every = self.loop, self.work.config.save_every
        if loop.step == 0:
            loop.begin(0)
            self._select()
        while loop.step < job.spec["stop"]:
            row = loop.advance()
            self.report.advance(1, note=f"loss {row['loss']:.4g}")
            if loop.step % every == 0 or loop.step == loop.total:
                loop.check_finite()
                self._select()
        final = loop.step == loop.total
        best = self.best
        if final and best is not None:
            loop.free.copy_(best[2])
        state = loop.state(final=final)
        tensors, records = dict(state.tensors), dict(state.records)
        records["best"] = None if best is None else {"value": best[0], "step": best[1]}
        if best is not None and not final:
            tensors["best"] = best[2].numpy()
        if final:
            made, said = loop.result()
            tensors, records = tensors | made, records | said
        return Contents(tensors, state.tables, records)

    def _select(self) -> None:
        """Remember what is fitted where the mean loss or metric of the visited points is best."""
        select = self.work.select
        if select is None or (self.work.keep_last and self.loop.step < self.loop.total):
            return
        by_loss = self.work.select_by == "loss"
        metric = get_metric("loss" if by_loss else headline(select.task))
        data = self.opened.evaluator.data[1]
        evaluator = Evaluator(
            self.opened.bound.model, [replace(data, generation=None) if by_loss else data]
        )
        examples, values = select.examples(self.work.config.rows), []
        for _ in self.loop.visit():
            (outputs,) = evaluator.run(self.work.label)
            predictions = outputs.predictions(examples, select.task.kind)
            values.append(float(metric.aggregate(predictions)))
        mean = float(np.mean(values))
        so_far = [] if self.best is None else [self.best[0]]
        if best_of([*so_far, mean], higher=metric.higher_is_better) == len(so_far):
            self.best = (mean, self.loop.step, self.loop.free.cpu().clone())


def check_apart(checkpoints: Sequence[Checkpoint], points: Sequence[Tensor]) -> None:
    """Raise `ConfigError` where two checkpoints have the same weights."""
    squared = squared_distances(points)
    for i in range(len(points)):
        for j in range(i):
            if not squared[i, j]:
                raise ConfigError(
                    f"{checkpoints[j].spec} and {checkpoints[i].spec} have the same weights: there "
                    "is nothing to join",
                    remedy="name different checkpoints",
                )


def history_table(contents: Contents, columns: Mapping[str, str]) -> pd.DataFrame:
    """The history of a fit with these columns, under their names in a result."""
    table = contents.tables["history"]
    return table[list(columns)].rename(columns=dict(columns)).astype({"step": int})
