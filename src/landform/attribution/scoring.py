"""Scores in blocks: some queries against some training rows, jobs of a plan.

A block holds the tokens of its queries and of its training rows in all layers, rotated into the
basis of the factors, and goes through the layers once: every per-example gradient exists only
while the piece of it that is in the cache is multiplied (`landform.curvature.gradients`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from landform.attribution.measurement import Measurement
from landform.attribution.rows import Side
from landform.config import Config
from landform.curvature.captured import Captured
from landform.curvature.factors import Factors
from landform.curvature.gradients import (
    Basis,
    LayerGradients,
    LowRank,
    Workspace,
    sum_of_own_products,
    sum_of_products,
)
from landform.curvature.ranks import current_ranks
from landform.curvature.session import Session
from landform.errors import ConfigError, NonFiniteError
from landform.store.artifacts import Contents
from landform.store.plan import Job
from landform.tasks.task import Examples

__all__ = [
    "DampingConfig",
    "InfluenceConfig",
    "InfluenceWork",
    "InfluenceWorker",
    "check_rank",
    "pairs_per_second",
]


CURVATURE_OPTIONS = ("damping", "relative_damping", "labels", "eigen_dtype")
"""Options of factors and scores that strategy identity, which has no curvature, does not read."""


class DampingConfig(Config):
    """How the eigenvalues are damped before they are inverted."""

    damping: float | None = Field(1e-8, ge=0, allow_inf_nan=False)
    """Added to every eigenvalue. None: `relative_damping` decides."""
    relative_damping: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Add this times the mean eigenvalue of each layer instead (kronfluence's None is 0.1)."""

    @model_validator(mode="after")
    def _one_damping(self) -> Self:
        # None leaves it to the other; any number beside a relative one would be passed over.
        if self.relative_damping is not None and self.damping is not None:
            self.check_read(False, ["damping"], "beside relative_damping")
        return self

    @property
    def words(self) -> str:
        """The damping, for people."""
        if self.relative is None:
            return f"{self.damping:g}"
        return f"{self.relative:g} x the mean eigenvalue of each layer"

    @property
    def relative(self) -> float | None:
        """The share of the mean eigenvalue, or None where the damping is absolute."""
        if self.relative_damping is None and self.damping is None:
            return 0.1
        return self.relative_damping


class InfluenceConfig(DampingConfig):
    """What is scored, and how."""

    per_module: bool = False
    """Also keep the part of every layer."""
    per_token: bool = False
    """Also keep the part of every training token."""
    aggregate: Literal["queries", "train", "both"] | None = None
    """Sum the gradients of all queries, of all training rows, or of both, before the product."""
    query_rank: int | None = Field(None, ge=1)
    """Replace each query's preconditioned gradient by its best approximation of this rank."""
    top: int | None = Field(None, ge=1)
    """Keep only so many of the most helpful and most harmful rows of each query, not the matrix."""
    memory: float | None = Field(None, gt=0, allow_inf_nan=False)
    """GiB for the gradients of both sides at once (default: a quarter of what the machine has)."""

    @model_validator(mode="after")
    def _fits(self) -> InfluenceConfig:
        if self.top is not None and (self.per_module or self.per_token or self.aggregate):
            raise ValueError("top keeps whole scores only: leave per_module, per_token, aggregate")
        if self.per_token and (self.query_rank is not None or self.aggregate in ("train", "both")):
            raise ValueError("per_token needs every training token: no query_rank, no sum of rows")
        if self.query_rank is not None and self.aggregate is not None:
            raise ValueError("query_rank is for single queries: leave aggregate out")
        return self


def check_rank(factors: Factors, config: InfluenceConfig) -> None:
    """Raise for a rank of the queries that is larger than any layer has."""
    if config.query_rank is None:
        return
    layers = factors.session().layers
    widest = max(layers, key=lambda layer: min(layer.outputs, layer.columns))
    most = min(widest.outputs, widest.columns)
    if config.query_rank > most:
        raise ConfigError(
            f"option query_rank is {config.query_rank}, but no layer has gradients of a rank above "
            f"{most} ({widest.name})",
            remedy=f"use a rank well below {most}, or leave it out",
        )


@dataclass(frozen=True)
class InfluenceWork:
    """What a worker needs: the picklable factory."""

    factors: Factors
    queries: Side
    train: Side
    measurement: Measurement
    config: InfluenceConfig
    kept: bool = True
    """whether blocks of scores go to a store, where they are found again by what made them"""

    def __call__(self) -> InfluenceWorker:
        """Open a worker on the factors' model."""
        return InfluenceWorker(self)

    @cached_property
    def _spec(self) -> dict[str, Any]:
        return {
            "factors": self.factors.fingerprint,
            "measurement": self.measurement.key() if self.kept else self.measurement.name,
            "damping": [self.config.damping, self.config.relative],
        }

    def _chunks(self, side: Side, budget: float) -> list[tuple[int, int]]:
        """Row ranges whose tokens fit into a number of bytes, by a cheap upper bound of lengths."""
        lengths = self.lengths(side)
        most = max(1.0, budget / self.factors.session().token_bytes)
        chunks, start, held = [], 0, 0.0
        for row, length in enumerate(lengths):
            if row > start and held + length > most:
                chunks.append((start, row))
                start, held = row, 0.0
            held += length
        return [*chunks, (start, len(lengths))]

    def lengths(self, side: Side) -> np.ndarray:
        """(rows,) tokens of every row; of a text and its targets together, at most so many."""
        key = (side.data.name, side.rows)
        if key not in self._length_cache:
            prepared = self.factors.session().prepare(side.data, side.examples)
            lengths = np.zeros(len(side.rows))
            for batch in prepared.batches:
                sizes = batch.inputs["attention_mask"].sum(-1)
                if prepared.objective.kind == "seq2seq":
                    sizes = sizes + batch.labels.shape[1]
                lengths[batch.rows.cpu().numpy()] = sizes.cpu().numpy()
            self._length_cache[key] = lengths
        return self._length_cache[key]

    @cached_property
    def _length_cache(self) -> dict[Any, np.ndarray]:
        return {}

    @cached_property
    def budget(self) -> float:
        """Bytes for the gradients of both sides at once."""
        return self.factors.session().budget(self.config.memory)

    def jobs(self) -> list[Job]:
        """A block of scores each: some queries, some training rows. Queries change slowest."""
        keep = {
            name: getattr(self.config, name)
            for name in ("per_module", "per_token", "aggregate", "query_rank", "top")
        }
        asked = self._chunks(self.queries, self.budget / 2)
        given = self._chunks(self.train, self.budget / 2)
        spec = {
            **self._spec,
            **keep,
            "queries": self.queries.examples.fingerprint,
            "train": self.train.examples.fingerprint,
        }
        return [
            Job(
                "scores",
                {**spec, "query_rows": q, "train_rows": t},
                cost=float((q[1] - q[0]) * (t[1] - t[0])),
                label=f"queries {q[0]} to {q[1] - 1}, training rows {t[0]} to {t[1] - 1}",
            )
            for q in asked
            for t in given
        ]

    def self_jobs(self) -> list[Job]:
        """Self-influence of some rows each."""
        both = 1 if self.measurement.name == "loss" else 2
        spec = {**self._spec, "examples": self.train.examples.fingerprint}
        return [
            Job(
                "self-influence",
                {**spec, "rows": rows},
                cost=float(rows[1] - rows[0]),
                label=f"rows {rows[0]} to {rows[1] - 1}",
            )
            for rows in self._chunks(self.train, self.budget / both)
        ]

    def bytes_at_once(self) -> float:
        """Bytes of factors, model and gradients at the peak."""
        tokens = sum(float(self.lengths(side).sum()) for side in (self.queries, self.train))
        session = self.factors.session()
        held = sum(layer.parameters for layer in session.layers) * session.dtype.itemsize
        basis = sum(
            value.nbytes for value in {id(v): v for v in self.factors.vectors.values()}.values()
        )
        return min(self.budget, tokens * self.factors.session().token_bytes) + 3 * held + 2 * basis

    def provenance(self) -> dict[str, Any]:
        """What made the scores."""
        return {
            "factors": self.factors.fingerprint,
            "weights": self.factors.checkpoint.fingerprint,
            "queries": self.queries.examples.fingerprint,
            "train": self.train.examples.fingerprint,
            "config": self.config.model_dump(mode="json"),
            "factors_config": self.factors.config.model_dump(mode="json"),
        }


def pairs_per_second(work: InfluenceWork) -> float:
    """(query, training row) products a second on this machine, from one matrix product."""
    session = work.factors.session()
    entries = sum(layer.parameters for layer in session.layers)
    size = 512
    a = torch.zeros(size, 4096, dtype=session.dtype, device=session.device)
    a @ a.t()
    start = time.perf_counter()
    (a @ a.t()).sum().item()
    rate = size * size * 4096 / (time.perf_counter() - start)
    return max(rate / entries, 1e-6)


class InfluenceWorker:
    """Runs blocks of scores on one opened model."""

    def __init__(self, work: InfluenceWork) -> None:
        self.work, self.factors = work, work.factors
        self.session: Session = self.factors.session()
        self.ranks = current_ranks()
        self.bases = self.factors.bases()
        self.space = Workspace()
        self.weights = [self._weight(name) for name in self.factors.layers]
        self._asked: tuple[tuple[int, int], Captured] | None = None
        self._low: list[LowRank | None] = []

    def _weight(self, layer: str) -> Tensor | None:
        """1 / (Lambda + damping), in float64 before it is rounded; None for identity."""
        lambdas = self.factors.eigenvalues(layer)
        if lambdas is None:
            return None
        wide = lambdas.double()
        config = self.work.config
        relative = config.relative
        damping = config.damping if relative is None else relative * float(wide.mean())
        assert damping is not None
        weight = 1 / (wide + damping)
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteError(
                f"layer {layer}: an eigenvalue of 0 cannot be inverted with damping {damping:g}",
                remedy="use a damping above 0",
            )
        return weight.to(self.session.device, self.session.dtype)

    def run(self, job: Job) -> Contents:
        """The scores of a block."""
        if job.kind == "self-influence":
            return self._own(job)
        start = time.perf_counter()
        first, last = job.spec["train_rows"]
        with self.ranks.together():
            asked = self._queries(tuple(job.spec["query_rows"]))
            between = time.perf_counter()
            rows = self._capture(self.work.train, first, last, None, share=True)
            mine = None if rows is None else (rows.sorted_rows(), self._score(asked, rows))
        tensors = self._join(mine, summed=self.work.config.aggregate in ("train", "both"))
        if self.work.config.top is not None:
            tensors = _top(tensors["scores"], self.work.config.top, first)
        about = {
            "seconds": {"queries": between - start, "scores": time.perf_counter() - between},
        }
        return Contents({**tensors, **asked.facts("query.")}, {}, {"about": about})

    def _queries(self, rows: tuple[int, int]) -> Captured:
        if self._asked is None or self._asked[0] != rows:
            self._asked, self._low = None, []  # frees the last ones before the next are made
            captured = self._capture(self.work.queries, *rows, self.work.measurement)
            assert captured is not None  # only training rows are shared out
            self._asked = (rows, captured)
            rank = self.work.config.query_rank
            if rank is not None:
                self._low = [
                    LowRank.of(gradients, weight, rank, self.space)
                    if min(gradients.shape) > rank
                    else None
                    for gradients, weight in zip(captured.layers, self.weights, strict=True)
                ]
        return self._asked[1]

    def _capture(
        self,
        side: Side,
        first: int,
        last: int,
        measurement: Measurement | None,
        *,
        share: bool = False,
    ) -> Captured | None:
        """The gradients of some rows: of their loss (None), or of a measurement.

        share: only of this process's batches; None where it has none.
        """
        examples = side.examples.take(range(first, last))
        keep_tokens = self.work.config.per_token and measurement is None
        if share and measurement is None and not keep_tokens:
            kept = self._kept(examples)
            if kept is not None:
                return kept
        data = self.session.prepare(side.data, examples)
        self.session.check_padding(data)
        if share:
            data = replace(data, batches=tuple(self.ranks.share(data.batches)))
            if not data.batches:
                return None
        measure = None if measurement is None else measurement.gradient
        return Captured.of(self.session, data, self.bases, measure, drop=not keep_tokens)

    def _kept(self, examples: Examples) -> Captured | None:
        """The gradients of these rows, where the fit of the factors left them in memory."""
        kept: Captured | None = self.session.kept.get((examples.fingerprint, "empirical"))
        if kept is None or not len(kept):
            return None
        if kept.store.bases[0].raw:
            kept.store.rotate(self.bases)
        return kept if _same_bases(kept.store.bases, self.bases) else None

    def _join(
        self, mine: tuple[np.ndarray, dict[str, np.ndarray]] | None, *, summed: bool = False
    ) -> dict[str, np.ndarray]:
        """What all processes have of their rows (None: no rows), in the order of the rows."""
        parts = [part for part in self.ranks.gather(mine) if part is not None]
        if len(parts) == 1:
            return parts[0][1]
        order = np.concatenate([rows for rows, _ in parts]).argsort()
        joined = {}
        for name in parts[0][1]:
            pieces = [tensors[name] for _, tensors in parts]
            joined[name] = sum(pieces[1:], pieces[0]) if summed else _stack(pieces)[order]
        return joined

    # --- pairs -----------------------------------------------------------------------------

    def _score(self, asked: Captured, rows: Captured) -> dict[str, np.ndarray]:
        config = self.work.config
        add_left = config.aggregate in ("queries", "both")
        add_right = config.aggregate in ("train", "both")
        shape = (1 if add_left else len(asked), 1 if add_right else len(rows))
        options: dict[str, Any] = {"dtype": self.session.wide, "device": self.session.device}
        total = torch.zeros(shape, **options)
        parts: dict[str, Tensor] = {}
        tokens = _TokenScores(self.session, asked, rows) if config.per_token else None
        for number, layer in enumerate(self.session.layers):
            part = torch.zeros(shape, **options) if config.per_module else total
            low = self._low[number] if self._low else None
            if low is not None:
                low.add_products(rows.layers[number], part)
            else:
                sum_of_products(
                    asked.layers[number],
                    rows.layers[number],
                    self.weights[number],
                    part,
                    self.space,
                    add_left=add_left,
                    add_right=add_right,
                )
            if tokens is not None:
                tokens.add(number, self.weights[number], self.space)
            if config.per_module:
                parts[layer.name] = part
                total += part
        self._check_finite(total)
        ordered = _ordered(total, asked, rows, add_left, add_right)
        tensors = {"scores": ordered}
        for name, part in parts.items():
            tensors[f"module/{name}"] = _ordered(part, asked, rows, add_left, add_right)
        return tensors | ({} if tokens is None else tokens.tensors(add_left))

    def _check_finite(self, scores: Tensor) -> None:
        if not bool(torch.isfinite(scores).all()):
            raise NonFiniteError(
                "the scores are not finite",
                remedy="use a larger damping, or dtype float32",
            )

    # --- every row with itself -------------------------------------------------------------

    def _own(self, job: Job) -> Contents:
        with self.ranks.together():
            mine = self._own_share(*job.spec["rows"])
        return Contents(self._join(mine))

    def _own_share(self, first: int, last: int) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        measurement = self.work.measurement
        rows = self._capture(self.work.train, first, last, None, share=True)
        if rows is None:
            return None
        other = rows
        if measurement.name != "loss" or measurement.function is not None:
            measured = self._capture(self.work.train, first, last, measurement, share=True)
            other = measured or rows
        total = torch.zeros(len(rows), dtype=self.session.wide, device=self.session.device)
        for number, weight in enumerate(self.weights):
            sum_of_own_products(
                other.layers[number], rows.layers[number], weight, total, self.space
            )
        self._check_finite(total)
        scores = total[rows.order.argsort()].cpu().numpy()
        return rows.sorted_rows(), {"score": scores, **other.facts("")}


def _same_bases(ones: Sequence[Basis], others: Sequence[Basis]) -> bool:
    """Whether two lists of bases are the same coordinates: equal, not just of equal shape."""
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for one, other in zip(ones, others, strict=True)
        for a, b in ((one.inputs, other.inputs), (one.gradients, other.gradients))
    )


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Tables below each other; those with fewer tokens (axis 1) get zeros."""
    if parts[0].ndim == 3:
        width = max(part.shape[1] for part in parts)
        parts = [np.pad(p, [(0, 0), (0, width - p.shape[1]), (0, 0)]) for p in parts]
    return np.concatenate(parts)


def _ordered(
    scores: Tensor, asked: Captured, rows: Captured, add_left: bool, add_right: bool
) -> np.ndarray:
    """(rows, queries) in the order of the data, from (queries, rows) in that of the batches."""
    if not add_left:
        scores = scores[asked.order.argsort()]
    if not add_right:
        scores = scores[:, rows.order.argsort()]
    table: np.ndarray = scores.t().contiguous().cpu().numpy()
    return table


def _top(scores: np.ndarray, k: int, first: int) -> dict[str, np.ndarray]:
    """The k highest and k lowest rows of every column: scores and positions, (Q, 2 k)."""
    count = min(k, len(scores))
    order = np.argsort(-scores, axis=0, kind="stable")
    chosen = np.concatenate([order[:count], order[len(order) - count :]]).T
    return {
        "top.rows": (chosen + first).astype(np.int64),
        "top.scores": np.take_along_axis(scores.T, chosen, 1),
    }


class _TokenScores:
    """Scores of every training token: its own product with the query, <W o G_q, g_bt a_bt^T>."""

    def __init__(self, session: Session, asked: Captured, rows: Captured) -> None:
        self.session, self.asked, self.rows = session, asked, rows
        self.width = max(
            piece.inputs.shape[1] // uses
            for layer, uses in zip(rows.layers, rows.store.uses, strict=True)
            for piece in layer.pieces
        )
        queries = len(asked)
        options: dict[str, Any] = {"dtype": session.wide, "device": session.device}
        self.tokens = torch.zeros(queries, len(rows), self.width, **options)
        self.rest = torch.zeros(queries, len(rows), **options)

    def add(self, number: int, weight: Tensor | None, space: Workspace) -> None:
        """Add the part of one layer; a token's is the sum over the uses of the layer."""
        name, axes = self.session.layers[number].name, self.rows.store.axes[number]
        gradients, asked = self.rows.layers[number], self.asked.layers[number]
        if axes == {"example"}:
            sum_of_products(asked, gradients, weight, self.rest, space)
            return
        if axes != {"token"}:
            raise ConfigError(
                f"option per_token: layer {name} does not see the tokens of the text",
                remedy="exclude it when the factors are fitted, or leave per_token out",
            )
        first = 0
        for piece in gradients.pieces:
            count, width, _ = piece.inputs.shape
            each = LayerGradients([piece]).per_token()
            part = self.tokens.new_zeros(len(self.asked), count * width)
            sum_of_products(asked, each, weight, part, space)
            uses = self.rows.store.uses[number]
            folded = part.view(-1, count, uses, width // uses).sum(2)
            self.tokens[:, first : first + count, : width // uses] += folded
            first += count

    def tensors(self, add_left: bool) -> dict[str, np.ndarray]:
        """token/scores (rows, 1 + T, queries); the first place is what belongs to no token."""
        both = torch.cat([self.rest.unsqueeze(-1), self.tokens], -1)
        both = both[self.asked.order.argsort()][:, self.rows.order.argsort()]
        if add_left:
            both = both.sum(0, keepdim=True)
        table: np.ndarray = both.permute(1, 2, 0).contiguous().cpu().numpy()
        return {"token/scores": table}
