"""An index of training gradients: small sketches of them, made once, for many sets of queries.

The score of a query q and a training row b (`landform.attribution.influence`) is a scalar product
<x_q, x_b> of whitened gradients x = W^(1/2) o G with as many entries as the layers have parameters.
A count sketch (Charikar, Chen and Farach-Colton 2002) replaces x by `size` numbers: every entry is
given a random sign sigma_i and added to the bucket h(i),

    s_k = sum over i with h(i) = k of sigma_i x_i

so that, over the signs, <s_q, s_b> has the mean <x_q, x_b> and the variance

    sum over i != j with h(i) = h(j) of  x_q,i^2 x_b,j^2 + x_q,i x_b,i x_q,j x_b,j
        ~  (|x_q|^2 |x_b|^2 + <x_q, x_b>^2) / size

where the energy of the gradients is spread evenly over the buckets. Its error is thus about
|x_q| |x_b| / sqrt(size): the sketch finds rows whose whitened gradient has a cosine with the
query's of a few times 1 / sqrt(size) or more. What it finds is scored exactly afterwards.

Whitened gradients are long: every direction has as much energy in the training rows as any other,
and the many with small eigenvalues have far more of it in queries, while they say little of the
order of scores. So the sketch takes a `share` of the directions only, those of largest eigenvalue
in each layer; its mean is their part of the score, and with share 1 the score. Of the 10.6 million
directions of MiniLM on SST-2 (EK-FAC, damping 1e-8), the part of the first 0.03 % has a correlation
of 0.65 with the score, that of 1 % 0.74 and of 10 % 0.90; with 4096 buckets 0.65, 0.65 and 0.46 are
left of that, and of the whole 0.17.

Few directions are picked one by one, sum_t g_tr a_tj for the chosen (r, j). Where all are wanted,
the hash has a structure that never asks for a gradient as a whole. In a layer with gradients of
o rows and c columns, the rows are dealt out to g = ceil(size / c) groups, and entry (r, j) goes to
bucket (group(r) c + j + offset) mod size. With M = sigma o W^(1/2), the part of one group is

    sum over its rows r of M_rj G_rj = sum over tokens t of a_tj (g_t[group] M[group])_j

two products with tokens, o c multiplications a token in all, as for the gradient itself, but
in large matrix products and without its o c entries. In both, all layers share all buckets: that
gives each layer the part of the sketch that its energy asks for, as the best division would.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from landform.attribution.influence import Influence, InfluenceStudy
from landform.attribution.measurement import Function, Measurement
from landform.attribution.rows import Rows, Side
from landform.attribution.scoring import (
    DampingConfig,
    InfluenceConfig,
    InfluenceWork,
    InfluenceWorker,
)
from landform.curvature.capture import Use
from landform.curvature.factors import Factors
from landform.curvature.gradients import Basis, Piece, Workspace, make_piece
from landform.curvature.ranks import current_ranks, shared
from landform.curvature.session import Session
from landform.errors import ConfigError, NonFiniteError
from landform.evaluation.points import PreparedData
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store
from landform.tasks.task import Task

__all__ = ["GradientIndex", "IndexConfig", "IndexStudy", "build_index"]


class IndexConfig(DampingConfig):
    """How training gradients are compressed."""

    size: int = Field(4096, ge=1)
    """Buckets: numbers kept of every training row."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of each layer's directions that are compressed, those of largest eigenvalue (default:
    8 x size of all; identity factors know no order and take all). With 1 nothing is left out, and
    estimates are right in the mean over seeds."""
    seed: int = Field(0, ge=0)
    """Seed of the signs; indices of different seeds have independent errors."""
    number: Literal["float16", "float32"] = "float16"
    """Number format of what is kept (every row has a scale of its own)."""
    chunk_rows: int = Field(1024, ge=1)
    """Rows after which an index that is kept in a store writes what it has."""


def build_index(
    factors: Factors,
    *,
    train: str | None = None,
    train_rows: Rows = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> GradientIndex:
    """Compress the gradients of training rows, for `GradientIndex.search`.

    train, train_rows: as for `influence`; options: the fields of `IndexConfig` (damping,
    relative_damping, size, seed, ...). The damping belongs to the index: searches use the same.
    With a `store` the index is kept there and found again by what made it (weights, rows, factors,
    damping, size, seed), chunk by chunk, so that a killed run goes on.

    It takes one pass over the rows, size x 2 bytes a row, and no queries. What was measured for the
    ten most helpful and ten most harmful of 2048 training rows of SST-2, for 128 queries (MiniLM,
    EK-FAC, margin, damping 1e-8): the correlation of estimated with exact scores, and the share of
    the twenty found among so many candidates a side (100 a side are a tenth of these rows).

        size    share      KiB a row   correlation   recall with 10    50     100    200
        1024    default        2           0.54              0.34    0.65   0.75   0.86
        4096    default        8           0.62              0.40    0.70   0.80   0.94
        16384   default       32           0.70              0.47    0.75   0.92   0.98
        65536   default      128           0.79              0.55    0.91   0.97   0.99
        4096    1              8           0.17              0.08    0.27   0.45
        16384   1             32           0.30              0.14    0.38   0.55

    Without candidates to spare the estimates are too rough to stand for the scores: only about half
    of a query's true top is in the estimated top of that length. `benchmarks/index_recall.py`
    measures it for another model.
    """
    study = IndexStudy.of(factors, train=train, train_rows=train_rows, **options)
    return study.run(store=store, progress=progress)


@dataclass(frozen=True)
class IndexStudy:
    """The plan of an index, before anything is computed."""

    work: IndexWork

    @classmethod
    def of(
        cls,
        factors: Factors,
        *,
        train: str | None = None,
        train_rows: Rows = None,
        **options: Any,
    ) -> IndexStudy:
        """Choose rows and options."""
        config = IndexConfig.parse(options, where="build_index")
        return cls(IndexWork(factors, Side.of(factors, train, train_rows, "training rows"), config))

    def forecast(self, store: ArtifactStore | None = None) -> Forecast:
        """The rows that remain, and the bytes of the finished index."""
        rows, config = len(self.work.train.rows), self.work.config
        size = rows * (4 + config.size * np.dtype(config.number).itemsize)
        return Plan(self.work.jobs()).forecast(store, memory=float(size), unit="rows")

    def run(
        self,
        *,
        store: str | os.PathLike[str] | ArtifactStore | None = None,
        progress: bool = False,
    ) -> GradientIndex:
        """Compress what is missing."""
        start, work, ranks = time.perf_counter(), self.work, current_ranks()
        kept, jobs = shared(open_store(store), ranks), work.jobs()
        shown = progress and ranks.rank == 0
        run_plan(Plan(jobs), work, kept, progress=shown, description="indexing", unit="rows")
        parts = [kept.read(job.key) for job in jobs]
        return GradientIndex(
            work.factors,
            work.train,
            work.config,
            np.concatenate([part.tensors["sketch"] for part in parts]),
            np.concatenate([part.tensors["scale"] for part in parts]),
            {**work.factors.timings, "index": time.perf_counter() - start},
            work,
        )


@dataclass(frozen=True)
class IndexWork:
    """What a worker needs: the picklable factory."""

    factors: Factors
    train: Side
    config: IndexConfig
    _opened: list[Sketcher] = field(default_factory=list, repr=False, compare=False)

    def __call__(self) -> IndexWorker:
        """Open a worker on the factors' model."""
        return IndexWorker(self)

    def sketcher(self) -> Sketcher:
        """The signs and weights of all layers; made once."""
        if not self._opened:
            self._opened.append(Sketcher(self))
        return self._opened[0]

    def jobs(self) -> list[Job]:
        """Some training rows each."""
        config, size, step = self.config, len(self.train.rows), self.config.chunk_rows
        spec = {
            "factors": self.factors.fingerprint,
            "damping": [config.damping, config.relative],
            "size": config.size,
            "share": config.share,
            "seed": config.seed,
            "number": config.number,
        }
        return [
            Job(
                "gradient-index",
                {**spec, "examples": self.train.examples.take(range(*rows)).fingerprint},
                cost=float(rows[1] - rows[0]),
                label=f"training rows {rows[0]} to {rows[1] - 1}",
            )
            for rows in self.chunks(size, step)
        ]

    @staticmethod
    def chunks(size: int, step: int) -> list[tuple[int, int]]:
        """Row ranges."""
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    @cached_property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """The rows of every job, by its key."""
        chunks = self.chunks(len(self.train.rows), self.config.chunk_rows)
        return {job.key: rows for job, rows in zip(self.jobs(), chunks, strict=True)}


class IndexWorker:
    """Compresses some training rows at a time."""

    def __init__(self, work: IndexWork) -> None:
        self.work, self.sketcher, self.ranks = work, work.sketcher(), current_ranks()

    def run(self, job: Job) -> Contents:
        """The sketches of a chunk of rows."""
        first, last = self.work.ranges[job.key]
        with self.ranks.together():
            examples = self.work.train.examples.take(range(first, last))
            session = self.sketcher.session
            data = session.prepare(self.work.train.data, examples)
            session.check_padding(data)
            mine = replace(data, batches=tuple(self.ranks.share(data.batches)))
            found = self.sketcher.capture(mine, None)
        parts = self.ranks.gather((found.rows, found.sketches))
        order = np.concatenate([rows for rows, _ in parts]).argsort()
        sketches = np.concatenate([values for _, values in parts])[order]
        scale = np.sqrt(np.square(sketches).mean(1))
        scale[scale == 0] = 1
        narrow = (sketches / scale[:, None]).astype(self.work.config.number)
        return Contents({"sketch": narrow, "scale": scale.astype(np.float32)})


# --- sketches -------------------------------------------------------------------------------


@dataclass(eq=False)
class Sketches:
    """The sketches of some examples, and what the model said of them."""

    rows: np.ndarray
    """(n,) the row of each"""
    sketches: np.ndarray
    """(n, size)"""
    facts: dict[str, np.ndarray]
    """loss, value and prediction (classes only) of each"""


@dataclass(frozen=True, eq=False)
class _Picked:
    """The directions of largest eigenvalue in one layer, each with its bucket and its sign."""

    rows: Tensor
    columns: Tensor
    factors: Tensor
    """sigma W^(1/2) of each"""
    buckets: Tensor

    @classmethod
    def of(cls, weight: Tensor, count: int, size: int, random: np.random.Generator) -> _Picked:
        """The `count` directions of smallest weight."""
        lowest, place = weight.flatten().topk(count, largest=False)
        signs = torch.from_numpy(random.integers(0, 2, count) * 2 - 1).to(lowest)
        buckets = torch.from_numpy(random.integers(0, size, count)).to(place)
        columns = weight.shape[1]
        return cls(place // columns, place % columns, signs * lowest.sqrt(), buckets)

    def add(self, piece: Piece, total: Tensor) -> None:
        """total (n, size) += the sketches of the gradients in these directions."""
        count, tokens, _ = piece.inputs.shape
        product = piece.gradients.flatten(0, 1)[:, self.rows]
        product *= piece.inputs.flatten(0, 1)[:, self.columns]
        part = product.view(count, tokens, -1).sum(1) * self.factors
        total.index_add_(1, self.buckets, part.to(total.dtype))


class Sketcher:
    """Signs and weights of every layer: turns the tokens of examples into sketches."""

    def __init__(self, work: IndexWork) -> None:
        config = work.config
        damped = InfluenceConfig(damping=config.damping, relative_damping=config.relative_damping)
        side = work.train
        worker = InfluenceWorker(
            InfluenceWork(work.factors, side, side, Measurement.of("loss"), damped)
        )
        self.session: Session = worker.session
        self.bases: list[Basis] = worker.bases
        self.size, self.space = config.size, Workspace()
        share = config.share
        if share is None:
            share = 8 * config.size / sum(basis.layer.parameters for basis in self.bases)
        self.tables: list[Tensor | _Picked] = []
        self.offsets: list[int] = []
        for number, (basis, weight) in enumerate(zip(self.bases, worker.weights, strict=True)):
            random = np.random.default_rng([config.seed, number])
            self.offsets.append(int(random.integers(config.size)))
            count = math.ceil(share * basis.layer.parameters)
            if weight is None or count >= basis.layer.parameters:
                self.tables.append(self._table(basis, weight, random))
            else:
                self.tables.append(_Picked.of(weight, count, self.size, random))

    def _table(self, basis: Basis, weight: Tensor | None, random: np.random.Generator) -> Tensor:
        """(g, rows of a group, c): sigma o W^(1/2); row r of the gradient is in group r mod g.

        Neighbouring rows have like eigenvalues: dealt out in turn, every group has some of each.
        """
        rows, columns = basis.layer.outputs, basis.layer.columns
        groups = min(rows, math.ceil(self.size / columns))
        height = math.ceil(rows / groups)
        signs = torch.from_numpy(random.integers(0, 2, (rows, columns), dtype=np.int8))
        table = torch.zeros(
            height * groups, columns, dtype=self.session.dtype, device=self.session.device
        )
        table[:rows] = signs.to(table.device, table.dtype) * 2 - 1
        if weight is not None:
            table[:rows] *= weight.sqrt()
        return table.view(height, groups, columns).transpose(0, 1).contiguous()

    def capture(self, data: PreparedData, measurement: Measurement | None) -> Sketches:
        """One pass over prepared data: gradients of the loss (None), or of a measurement."""
        session, objective = self.session, data.objective
        options: dict[str, Any] = {"dtype": session.wide, "device": session.device}
        parts: list[Tensor] = [torch.zeros(0, self.size, **options)]
        rows: list[Tensor] = [torch.zeros(0, dtype=torch.int64, device=session.device)]
        facts: dict[str, list[Tensor]] = {"loss": [], "value": []}
        with session.capture(objective) as capture:
            for batch in data.batches:
                logits = session.logits(capture, batch, data.ids, data.name)
                targets, z = objective.targets(batch), logits.detach().double()
                losses = objective.losses(z, targets).sums
                if measurement is None:
                    value, gradient = losses, objective.output_gradient(z, targets)
                else:
                    value, gradient = measurement.gradient(objective, z, targets)
                facts["loss"].append(losses)
                facts["value"].append(value)
                if objective.kind == "classification":
                    facts.setdefault("prediction", []).append(z.argmax(-1))
                parts.append(torch.zeros(len(batch), self.size, **options))
                rows.append(batch.rows)
                capture.backward(logits, [gradient], _Adder(self, parts[-1]))
        sketches = torch.cat(parts)
        bad = (~torch.isfinite(sketches).all(1)).nonzero()
        if len(bad):
            row = data.ids[int(torch.cat(rows)[int(bad[0])])]
            raise NonFiniteError(
                f"the gradient of example {row} of {data.name} is not finite",
                remedy="use a larger damping, or dtype float32",
            )
        return Sketches(
            torch.cat(rows).cpu().numpy(),
            sketches.cpu().numpy(),
            {name: torch.cat(values).cpu().numpy() for name, values in facts.items() if values},
        )

    def add(self, number: int, piece: Piece, total: Tensor) -> None:
        """total (n, size) += the sketches of one layer's gradients, from their tokens."""
        table, start = self.tables[number], self.offsets[number]
        if isinstance(table, _Picked):
            table.add(piece, total)
            return
        groups, height, columns = table.shape
        count, tokens, rows = piece.gradients.shape
        dealt = piece.gradients.reshape(count * tokens, rows)
        if rows < groups * height:
            dealt = torch.nn.functional.pad(dealt, (0, groups * height - rows))
        dealt = dealt.view(-1, height, groups).permute(2, 0, 1)
        like = piece.inputs
        product = self.space.get("sketch", (groups, count * tokens, columns), like)
        torch.bmm(dealt, table, out=product)
        product *= like.reshape(1, count * tokens, columns)
        added = product.view(groups, count, tokens, columns).sum(2, dtype=total.dtype)
        flat = added.transpose(0, 1).reshape(count, -1)
        first = 0
        while first < flat.shape[1]:
            length = min(self.size - start, flat.shape[1] - first)
            total[:, start : start + length] += flat[:, first : first + length]
            first, start = first + length, 0


class _Adder:
    """A visitor that adds every layer of a batch to its sketches."""

    def __init__(self, sketcher: Sketcher, total: Tensor) -> None:
        self.sketcher, self.total = sketcher, total
        self.cache: dict[tuple[int, int, bool], Tensor] = {}

    def __call__(self, layer: int, uses: list[Use]) -> None:
        sketcher = self.sketcher
        piece = make_piece(uses, sketcher.bases[layer], len(self.total), self.cache)
        sketcher.add(layer, piece, self.total)


# --- search ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GradientIndex:
    """Compressed gradients of training rows; `search` asks it for the rows of highest score."""

    factors: Factors
    train: Side
    config: IndexConfig
    sketches: np.ndarray
    """(rows, size), each divided by its scale"""
    scale: np.ndarray
    """(rows,)"""
    timings: dict[str, float]
    _work: IndexWork = field(repr=False)

    def __len__(self) -> int:
        return len(self.sketches)

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        return self.sketches.nbytes + self.scale.nbytes

    @property
    def reading(self) -> str:
        """One line for a person."""
        return (
            f"index of {len(self)} training rows, {self.config.size} numbers each "
            f"({self.nbytes / 2**20:.3g} MiB), damping {self.config.words}"
        )

    def search(
        self,
        *,
        queries: str | tuple[Task, str] = "validation",
        query_rows: Rows = None,
        measurement: str | Function = "loss",
        k: int = 10,
        candidates: int | None = None,
        exact: bool = True,
        progress: bool = False,
    ) -> Influence:
        """The k most helpful and the k most harmful training rows of every query.

        The sketches choose `candidates` rows of either sign for each query (10 k where it is not
        said); all rows chosen for any query are then scored exactly, as `influence` does, and the
        best of these are kept: `Influence.best`, `Influence.top`. With `exact` off the scores are
        the sketches' own, with the error of the module's docstring.

        `provenance["search"]` tells how many rows were scored exactly and the correlation of the
        sketches' scores with the exact ones on them: where it is low, rows may have been missed,
        and more candidates or a larger index help.
        """
        start = time.perf_counter()
        side = Side.of(self.factors, queries, query_rows, "queries")
        measured = Measurement.of(measurement)
        count = self._candidates(k, candidates)
        estimates, facts = self._estimates(side, measured)
        between = time.perf_counter()
        about: dict[str, Any] = self.config.model_dump(include={"size", "share", "seed"})
        if exact:
            rows = _chosen(estimates, count)
            scores = self._exact(side, measured, rows, progress)
            about |= {"candidates": count, "rescored": len(rows)}
            about["correlation"] = _correlation(estimates[:, rows], scores)
        else:
            rows, scores = np.arange(len(self)), estimates
        work = self._influence_work(side, measured, self.train.rows)
        spent = {"queries": between - start, "scores": time.perf_counter() - between}
        return Influence(
            checkpoint=self.factors.checkpoint.spec,
            task=self.factors.task.name,
            strategy=self.factors.config.strategy,
            labels=self.factors.labels,
            measurement=measured.name,
            better=measured.better,
            damping=self.config.words,
            queries=side.described(facts),
            train=self.train.table(self.factors.task),
            scores=None,
            best=_best(scores, rows, k),
            modules=None,
            tokens=None,
            timings={
                **self.timings,
                **spent,
                "total": sum([*self.timings.values(), *spent.values()]),
            },
            provenance={**work.provenance(), "search": about},
            query_set=side.data.name,
        )

    def estimate(
        self,
        *,
        queries: str | tuple[Task, str] = "validation",
        query_rows: Rows = None,
        measurement: str | Function = "loss",
    ) -> np.ndarray:
        """(queries, training rows): the sketches' estimates of all scores, or of the part of them
        in the directions that the index takes (`IndexConfig.share`)."""
        side = Side.of(self.factors, queries, query_rows, "queries")
        return self._estimates(side, Measurement.of(measurement))[0]

    def _candidates(self, k: int, candidates: int | None) -> int:
        if k < 1:
            raise ConfigError(f"k is {k}, expected 1 or more")
        count = 10 * k if candidates is None else candidates
        if count < k:
            raise ConfigError(
                f"option candidates is {count}, fewer than the {k} rows asked for",
                remedy="use several times k, or leave it out",
            )
        return min(count, len(self))

    def _estimates(
        self, side: Side, measurement: Measurement
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        sketcher = self._work.sketcher()
        data = sketcher.session.prepare(side.data, side.examples)
        sketcher.session.check_padding(data)
        found = sketcher.capture(data, measurement)
        back = found.rows.argsort()
        asked = np.ascontiguousarray(found.sketches[back].T)
        scores = np.empty((len(side.rows), len(self)), asked.dtype)
        for first in range(0, len(self), 4096):  # a few rows at a time are widened for the product
            some = slice(first, first + 4096)
            wide = self.sketches[some].astype(asked.dtype) @ asked
            scores[:, some] = wide.T * self.scale[some]
        return scores, {name: values[back] for name, values in found.facts.items()}

    def _influence_work(
        self, side: Side, measurement: Measurement, rows: tuple[int, ...]
    ) -> InfluenceWork:
        config = InfluenceConfig(
            damping=self.config.damping, relative_damping=self.config.relative_damping
        )
        chosen = Side(self.train.data, rows)
        return InfluenceWork(self.factors, side, chosen, measurement, config)

    def _exact(
        self, side: Side, measurement: Measurement, rows: np.ndarray, progress: bool
    ) -> np.ndarray:
        named = tuple(self.train.rows[row] for row in rows)
        study = InfluenceStudy(self._influence_work(side, measurement, named))
        return study.run(progress=progress).values


def _chosen(scores: np.ndarray, count: int) -> np.ndarray:
    """The rows among the `count` highest or lowest of any query, ascending."""
    if 2 * count >= scores.shape[1]:
        return np.arange(scores.shape[1])
    ends = np.argpartition(scores, [count - 1, scores.shape[1] - count], axis=1)
    return np.unique(np.concatenate([ends[:, :count], ends[:, -count:]], axis=1))


def _correlation(estimates: np.ndarray, scores: np.ndarray) -> float | None:
    """The mean over queries of the correlation between estimated and exact scores."""
    a = estimates - estimates.mean(1, keepdims=True)
    b = scores - scores.mean(1, keepdims=True)
    norms = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    values = (a * b).sum(1)[norms > 0] / norms[norms > 0]
    return float(values.mean()) if len(values) else None


def _best(scores: np.ndarray, rows: np.ndarray, k: int) -> pd.DataFrame:
    """query, row, score of the k highest and k lowest of every query, highest first."""
    tables = []
    for query, values in enumerate(scores):
        order = np.argsort(-values, kind="stable")
        if len(order) > 2 * k:
            order = np.concatenate([order[:k], order[-k:]])
        tables.append(pd.DataFrame({"query": query, "row": rows[order], "score": values[order]}))
    return pd.concat(tables, ignore_index=True)
