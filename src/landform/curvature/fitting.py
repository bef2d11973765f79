"""The passes of a fit: jobs that add up covariances and squares, and decompose the former.

What they compute is written in `landform.curvature.factors`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from landform.curvature.capture import Capture, Use, Visitor, check_finite
from landform.curvature.captured import Captured
from landform.curvature.gradients import (
    Basis,
    GradientStore,
    Piece,
    Workspace,
    make_piece,
    sum_of_squares,
)
from landform.curvature.labels import Labels, is_exact, output_columns
from landform.curvature.layers import Layer
from landform.curvature.ranks import Ranks, current_ranks
from landform.curvature.session import LayersConfig, Session
from landform.errors import CurvatureError
from landform.evaluation.points import Data, PreparedData, rows_identity
from landform.store.artifacts import Contents
from landform.store.plan import Job
from landform.tasks.batching import Batch
from landform.tasks.objective import Objective
from landform.tasks.task import Examples
from landform.weights.checkpoint import Checkpoint

__all__ = [
    "ROTATED",
    "STRATEGIES",
    "FactorsConfig",
    "FactorsWork",
    "FactorsWorker",
    "Strategy",
    "eigen_tensors",
]

Strategy = Literal["identity", "diagonal", "kfac", "ekfac"]
STRATEGIES: tuple[Strategy, ...] = ("identity", "diagonal", "kfac", "ekfac")

ROTATED = ("kfac", "ekfac")
"""Strategies with a basis of their own."""


class FactorsConfig(LayersConfig):
    """How factors are fitted."""

    strategy: Strategy = "ekfac"
    """identity: no curvature (plain gradient products); diagonal: the diagonal of the Fisher
    matrix; kfac: Kronecker factors; ekfac: their basis with refitted eigenvalues."""
    labels: Labels = "true"
    """Whose labels: true (the model's own; exact for few classes, sampled otherwise), empirical
    (the data's), sampled (one draw from the model)."""
    eigen_dtype: Literal["float32", "float64"] = "float64"
    """Number format of the eigendecompositions."""
    chunk_rows: int = Field(16384, ge=1)
    """Rows after which a fit that is kept in a store writes what it has, to go on from there."""
    engine: Literal["local", "ray"] = "local"
    """Where chunks are computed: in this process, or side by side on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """Worker processes of the Ray engine."""


@dataclass(frozen=True)
class FactorsWork:
    """What a worker needs, in this process or another: the picklable factory."""

    checkpoint: Checkpoint
    data: Data
    config: FactorsConfig
    basis: Contents | None = None
    """the merged covariances (to be decomposed), or the basis (for squares in it)"""

    def __call__(self) -> FactorsWorker:
        """Open a worker: load the model."""
        return FactorsWorker(self, Session.open(self.checkpoint, self.data, self.config))

    @cached_property
    def examples(self) -> Examples:
        """The rows to fit on."""
        return self.data.examples(self.config.rows)

    @cached_property
    def _shared_spec(self) -> dict[str, Any]:
        config, task = self.config, self.data.task
        return {
            **rows_identity(self.checkpoint, task, self.examples, config),
            "labels": config.labels,
            "include": config.include,
            "exclude": config.exclude,
            "seed": config.seed if config.labels != "empirical" or task.is_drawn else None,
        }

    def _chunks(self) -> list[tuple[int, int]]:
        size, step = len(self.examples), self.config.chunk_rows
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def covariance_jobs(self) -> list[Job]:
        """Sums of a a^T and g g^T, chunk by chunk."""
        if self.config.strategy not in ROTATED:
            return []
        return [
            Job(
                "covariance",
                {**self._shared_spec, "rows": rows},
                cost=float(rows[1] - rows[0]),
                label=f"covariances of rows {rows[0]} to {rows[1] - 1}",
            )
            for rows in self._chunks()
        ]

    def eigen_job(self) -> Job:
        """The eigendecompositions."""
        spec = {
            **self._shared_spec,
            "eigen_dtype": self.config.eigen_dtype,
            "chunk_rows": min(self.config.chunk_rows, len(self.examples)),
        }
        return Job("eigenbasis", spec, cost=0.0, label="eigendecompositions")

    def square_jobs(self) -> list[Job]:
        """Sums of squared gradient entries, chunk by chunk, in the basis of the strategy."""
        if self.config.strategy not in ("diagonal", "ekfac"):
            return []
        return [
            Job(
                "squares",
                {**self.squares_spec(), "rows": rows},
                cost=float(rows[1] - rows[0]),
                label=f"eigenvalues from rows {rows[0]} to {rows[1] - 1}",
            )
            for rows in self._chunks()
        ]

    def squares_spec(self) -> dict[str, Any]:
        """What the squares depend on."""
        rotated = self.config.strategy in ROTATED
        return {**self._shared_spec, "basis": self.eigen_job().key if rotated else None}

    def squares_job(self) -> Job:
        """The sums over all chunks."""
        chunk = min(self.config.chunk_rows, len(self.examples))
        return Job("lambda", {**self.squares_spec(), "chunk_rows": chunk})

    def key(self) -> str:
        """Fingerprint of everything that decides the factors."""
        name = self.config.strategy
        if name == "identity":
            return Job("identity", self._shared_spec).key
        return (self.eigen_job() if name == "kfac" else self.squares_job()).key


class FactorsWorker:
    """Runs the jobs of a fit on one opened model."""

    def __init__(self, work: FactorsWork, session: Session) -> None:
        self.work, self.session = work, session
        self.ranks: Ranks = current_ranks()
        self.space = Workspace()

    def run(self, job: Job) -> Contents:
        """What a job computes."""
        start = time.perf_counter()
        if job.kind == "eigenbasis":
            assert self.work.basis is not None
            done = _decompose(self.work.basis, self.session, self.work.config, self.ranks)
            name = "eigendecomposition"
            before = dict(self.work.basis.records["seconds"])
        else:
            sums = _Covariances(self) if job.kind == "covariance" else _Squares(self)
            first, last = job.spec["rows"]
            self._pass(self.work.examples.take(range(first, last)), sums)
            done, name, before = sums.contents(), job.kind, {}
        name = {"squares": "lambda"}.get(name, name)
        seconds = {**before, name: time.perf_counter() - start}
        about = {
            "layers": [layer.name for layer in self.session.layers],
            "groups": list(self.session.groups),
            "exact": self._exact(),
            "seconds": seconds,
        }
        tables = {"coverage": self.session.coverage}
        return Contents(done.tensors, tables, {**done.records, **about})

    def _exact(self) -> bool:
        task = self.work.data.task
        labels = self.work.checkpoint.label_names()
        objective = Objective.of(task, labels, given=self.work.config.model_labels)
        return is_exact(objective, len(task.label_names))

    def _pass(self, examples: Examples, sums: _Covariances | _Squares) -> None:
        """One forward and backward pass over the examples, or over what an earlier one kept."""
        session, config = self.session, self.work.config
        kept = session.kept.get((examples.fingerprint, config.labels))
        if kept is not None and isinstance(sums, _Squares):
            sums.add_kept(kept)
            if config.labels != "empirical":
                session.kept = {}
            sums.finish()
            return
        data: PreparedData = session.prepare(self.work.data, examples)
        session.check_padding(data)
        keeping = self._keeping(data)
        with self.ranks.together(), session.capture(data.objective) as capture:
            for batch in self.ranks.share(data.batches):
                self._batch(capture, batch, data, sums, keeping)
        sums.finish()
        if keeping is not None:
            session.kept = {(examples.fingerprint, config.labels): keeping}

    def _batch(
        self,
        capture: Capture,
        batch: Batch,
        data: PreparedData,
        sums: _Covariances | _Squares,
        keeping: Captured | None,
    ) -> None:
        session, config, objective = self.session, self.work.config, data.objective
        logits = session.logits(capture, batch, data.ids, data.name)
        columns = output_columns(objective, logits, batch, config.labels, config.seed)
        sums.begin(len(batch), [capture.uses(i) for i in range(len(session.layers))])
        visitors: list[Visitor] = [sums.visit]
        if keeping is not None:
            keeping.note(objective, logits.detach().double(), objective.targets(batch))
            visitors.append(keeping.store.visitor(batch.rows))

        def visit(layer: int, uses: list[Use]) -> None:
            for visitor in visitors:
                visitor(layer, uses)

        capture.backward(logits, columns, visit)

    def _keeping(self, data: PreparedData) -> Captured | None:
        """Where the gradients go that a later phase needs again, if they fit into memory."""
        config, session = self.work.config, self.session
        if config.labels != "empirical" and config.strategy != "ekfac":
            return None  # scores are made of gradients of the data's labels
        columns = 1
        if config.labels == "true" and is_exact(
            data.objective, len(self.work.data.task.label_names)
        ):
            columns = max(len(self.work.data.task.label_names) - 1, 1)
        tokens = sum(int(batch.inputs["attention_mask"].sum()) for batch in data.batches)
        tokens += sum(batch.labels.numel() for batch in data.batches if batch.labels.dim() > 1)
        needed = columns * tokens * session.token_bytes / self.ranks.world
        if needed > session.budget(config.memory):
            return None
        return Captured(GradientStore([Basis(layer, raw=True) for layer in session.layers]))


class _Covariances:
    """Sums of a a^T and g g^T over real tokens, and how many there were."""

    def __init__(self, worker: FactorsWorker) -> None:
        session = worker.session
        self.session, self.ranks = session, worker.ranks
        options: dict[str, Any] = {"dtype": session.wide, "device": session.device}
        self.leaders = sorted(set(session.groups))
        sizes = {i: session.layers[i].columns for i in self.leaders}
        self.a = {i: torch.zeros(n, n, **options) for i, n in sizes.items()}
        self.s = [torch.zeros(x.outputs, x.outputs, **options) for x in session.layers]
        count: dict[str, Any] = {"dtype": torch.int64, "device": session.device}
        self.tokens = torch.zeros(len(session.layers), **count)
        self.examples = torch.zeros(1, **count)

    def begin(self, size: int, uses: list[list[Use]]) -> None:
        """The inputs of a batch: once, however many backward passes follow."""
        self.examples += size
        for number, layer_uses in enumerate(uses):
            for use in layer_uses:
                self.tokens[number] += len(use.positions.examples)
                if number in self.a:
                    self._add_inputs(number, use.inputs())

    def _add_inputs(self, number: int, a: Tensor) -> None:
        layer, total = self.session.layers[number], self.a[number]
        a = a.to(total.dtype)
        size = layer.inputs
        total[:size, :size].addmm_(a.t(), a)
        if layer.bias:
            sums = a.sum(0)
            total[size, :size] += sums
            total[:size, size] += sums
            total[size, size] += len(a)

    def visit(self, number: int, uses: list[Use]) -> None:
        """The output gradients of one layer in one backward pass."""
        for use in uses:
            g = use.gradients()
            some = g.ne(0).any(-1)
            if 2 * int(some.sum()) < len(g):  # zeros add nothing and cost a product
                g = g[some]
            g = g.to(self.s[number].dtype)
            self.s[number].addmm_(g.t(), g)

    def finish(self) -> None:
        """Add up the processes; name the layer whose sums are not finite."""
        self.ranks.add_up([*self.a.values(), *self.s, self.tokens, self.examples])
        layers = self.session.layers
        for number in self.leaders:
            check_finite(self.a[number], "inputs", layers[number])
        for layer, total in zip(layers, self.s, strict=True):
            check_finite(total, "output gradients", layer)

    def contents(self) -> Contents:
        """The sums by name."""
        layers = self.session.layers
        tensors = {f"A/{layers[i].name}": total for i, total in self.a.items()}
        tensors |= {f"S/{x.name}": total for x, total in zip(layers, self.s, strict=True)}
        counts = {x.name: int(n) for x, n in zip(layers, self.tokens, strict=True)}
        return Contents(
            {name: value.cpu().numpy() for name, value in tensors.items()},
            {},
            {"counts": {**counts, "examples": int(self.examples)}},
        )


class _Squares:
    """Sums of squared gradient entries in the basis of the strategy, and how many examples."""

    def __init__(self, worker: FactorsWorker) -> None:
        session, work = worker.session, worker.work
        self.session, self.ranks, self.space = session, worker.ranks, worker.space
        names = [layer.name for layer in session.layers]
        vectors, _ = eigen_tensors(work.basis, names, list(session.groups))
        cast = {
            key: value.to(session.device, session.dtype)
            for key, value in {id(v): v for v in vectors.values()}.items()
        }
        self.bases = [
            Basis(
                layer,
                cast[id(vectors[f"A/{layer.name}"])] if vectors else None,
                cast[id(vectors[f"S/{layer.name}"])] if vectors else None,
            )
            for layer in session.layers
        ]
        self.totals = [
            torch.zeros(x.outputs, x.columns, dtype=session.wide, device=session.device)
            for x in session.layers
        ]
        self.examples = torch.zeros(1, dtype=torch.int64, device=session.device)
        self.size = 0
        self.cache: dict[tuple[int, int, bool], Tensor] = {}

    def begin(self, size: int, uses: list[list[Use]]) -> None:
        """A new batch."""
        self.size, self.cache = size, {}
        self.examples += size

    def visit(self, number: int, uses: list[Use]) -> None:
        """The gradients of one layer in one backward pass."""
        piece = make_piece(uses, self.bases[number], self.size, self.cache)
        sum_of_squares(piece, self.totals[number], self.space)

    def add_kept(self, kept: Captured) -> None:
        """The gradients that an earlier phase kept; rotated, they are kept for the next."""

        def add(number: int, piece: Piece) -> None:
            sum_of_squares(piece, self.totals[number], self.space)

        kept.store.rotate(self.bases, add)
        self.examples += len(kept)

    def finish(self) -> None:
        """Add up the processes; name the layer whose sums are not finite."""
        self.ranks.add_up([*self.totals, self.examples])
        for layer, total in zip(self.session.layers, self.totals, strict=True):
            check_finite(total, "gradients", layer)

    def contents(self) -> Contents:
        """The sums by name."""
        named = zip(self.session.layers, self.totals, strict=True)
        tensors = {f"squares/{layer.name}": total.cpu().numpy() for layer, total in named}
        return Contents(tensors, {}, {"counts": {"examples": int(self.examples)}})


# --- eigendecompositions --------------------------------------------------------------------


def _decompose(sums: Contents, session: Session, config: FactorsConfig, ranks: Ranks) -> Contents:
    """Eigenvectors and eigenvalues of every covariance; each process takes its share of them."""
    by_name = {layer.name: layer for layer in session.layers}
    largest_first = sorted(sums.tensors, key=lambda name: -len(sums.tensors[name]))
    dtype = getattr(torch, config.eigen_dtype)
    with ranks.together():
        mine = [
            (name, _eigh(sums, name, by_name[name[2:]], dtype, session))
            for name in ranks.share(largest_first)
        ]
    tensors: dict[str, np.ndarray] = {}
    keep = np.float64 if session.dtype == torch.float64 else np.float32
    for name, (values, vectors) in ranks.collect(mine):
        side, layer = name[0], name[2:]
        # Rows first, as a file keeps them: a product over columns first is rounded otherwise.
        tensors[f"{side}.vectors/{layer}"] = vectors.astype(keep, order="C")
        tensors[f"{side}.values/{layer}"] = values.astype(keep)
    return Contents(tensors, {}, {"counts": sums.records["counts"]})


def _eigh(
    sums: Contents, name: str, layer: Layer, dtype: torch.dtype, session: Session
) -> tuple[np.ndarray, np.ndarray]:
    """(eigenvalues rising and none below 0, eigenvectors as columns) of sum / count."""
    count = max(int(sums.records["counts"][layer.name]), 1)
    matrix = torch.from_numpy(sums.tensors[name]).to(session.device, dtype) / count
    matrix = (matrix + matrix.t()) / 2
    what = {"A": "input covariances", "S": "output gradient covariances"}[name[0]]
    check_finite(matrix, what, layer)
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        raise CurvatureError(
            f"the {what} of layer {layer.name} cannot be decomposed: {error}",
            remedy="use eigen_dtype float64, or leave the layer out (exclude)",
        ) from error
    # A covariance has no negative eigenvalues; what rounding makes of a zero is a zero.
    return values.clamp(min=0).cpu().numpy(), vectors.cpu().numpy()


def eigen_tensors(
    part: Contents | None, layers: list[str], groups: list[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Eigenvectors and eigenvalues by layer; layers with one input share the tensors."""
    vectors: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    if part is None:
        return vectors, values
    # Copied: where a file put an array decides how a product over it is rounded.
    read = {name: torch.from_numpy(value).clone() for name, value in part.tensors.items()}
    for number, name in enumerate(layers):
        leader = layers[groups[number]]
        vectors[f"A/{name}"] = read[f"A.vectors/{leader}"]
        values[f"A/{name}"] = read[f"A.values/{leader}"]
        vectors[f"S/{name}"] = read[f"S.vectors/{name}"]
        values[f"S/{name}"] = read[f"S.values/{name}"]
    return vectors, values
