"""Influence: which training examples made the model answer that.

With L_b the loss of training example b and m_q the measurement of query q (its loss, its margin),
in a model at theta, up-weighting b a little moves theta by -H^-1 grad L_b, and so the query by

    score(q, b) = sum over layers of <W o G_q, G_b>,    W_ij = 1 / (Lambda_ij + damping)

(Koh and Liang 2017; Grosse et al. 2023, eq. 5 and 21), where G_b is the gradient of L_b and G_q
that of what should fall (the loss, or minus the margin), both in the coordinates of the factors,
and Lambda their eigenvalues (`landform.curvature.factors`). Positive scores belong to helpful
examples: more weight on them makes the query better. Losses and scores are sums, not means, over
tokens and training rows, as in kronfluence: removing a row changes a mean loss by 1/N of this.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor

from landform.attribution.measurement import Function, Measurement
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
from landform.curvature.ranks import current_ranks, shared
from landform.curvature.session import Session
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.points import Data
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store
from landform.tasks.task import Examples, Task

__all__ = [
    "Influence",
    "InfluenceConfig",
    "InfluenceStudy",
    "SelfInfluence",
    "influence",
    "self_influence",
]

Rows = int | Sequence[int] | None


class DampingConfig(Config):
    """How the eigenvalues are damped before they are inverted."""

    damping: float | None = Field(1e-8, ge=0, allow_inf_nan=False)
    """Added to every eigenvalue. None: `relative_damping` decides."""
    relative_damping: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Add this times the mean eigenvalue of each layer instead (kronfluence's None is 0.1)."""

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
    """GiB for the gradients of both sides at once (default: a quarter of what is free)."""

    @model_validator(mode="after")
    def _fits(self) -> InfluenceConfig:
        if self.top is not None and (self.per_module or self.per_token or self.aggregate):
            raise ValueError("top keeps whole scores only: leave per_module, per_token, aggregate")
        if self.per_token and (self.query_rank is not None or self.aggregate in ("train", "both")):
            raise ValueError("per_token needs every training token: no query_rank, no sum of rows")
        if self.query_rank is not None and self.aggregate is not None:
            raise ValueError("query_rank is for single queries: leave aggregate out")
        return self


# --- results --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Influence(Result):
    """Scores of training rows for queries."""

    checkpoint: str
    task: str
    strategy: str
    labels: str
    measurement: str
    better: int
    damping: str
    queries: pd.DataFrame
    """one row per query: row, text_id, text, text_pair, label, prediction, loss, value"""
    train: pd.DataFrame
    """one row per training row: row, text_id, text, text_pair, label"""
    scores: pd.DataFrame | None
    """(training rows) x (a column "0", "1", ... per query); None where only the top was kept"""
    best: pd.DataFrame | None
    """query, row (of `train`), score: the kept top of both signs, where `top` was given"""
    modules: dict[str, pd.DataFrame] | None
    """the part of every layer, each like `scores`"""
    tokens: pd.DataFrame | None
    """example (of `train`), position, and a column per query; position -1 holds the part of layers
    that see no single tokens (a pooler, a classifier)"""
    timings: dict[str, float]
    """seconds of each phase, those of the factors included"""
    provenance: dict[str, Any]

    @property
    def values(self) -> np.ndarray:
        """(queries, training rows); positive = helpful. One row or column where one was summed."""
        if self.scores is None:
            raise ConfigError(
                "the scores were streamed: only the top of each query was kept",
                remedy="leave out `top` to keep the whole matrix",
            )
        return np.ascontiguousarray(self.scores.to_numpy().T)

    def top(self, query: int = 0, k: int = 5, *, harmful: bool = False) -> pd.DataFrame:
        """The k most helpful (or harmful) training rows: row, score, label, text(, text_pair)."""
        order, scores = self._ranked(query, harmful=harmful)
        if k < 1:
            raise ConfigError(f"k is {k}, expected 1 or more")
        chosen = self.train.iloc[order[:k]].reset_index(drop=True)
        chosen.insert(1, "score", scores[:k])
        names = ["row", "score", "label", "text", "text_pair"]
        return chosen[[name for name in names if name in chosen]]

    def _ranked(self, query: int, *, harmful: bool) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.queries) if self.scores is None else self.scores.shape[1]
        if not 0 <= query < count:
            raise ConfigError(
                f"query {query}: there are {count} queries", remedy=f"use 0 to {count - 1}"
            )
        sign = 1 if harmful else -1
        if self.scores is not None:
            if len(self.scores) != len(self.train):
                raise ConfigError(
                    "the training rows were summed: there is no order among them",
                    remedy="leave aggregate out, or aggregate the queries only",
                )
            values = self.scores[str(query)].to_numpy()
            order = np.argsort(sign * values, kind="stable")
            return order, values[order]
        assert self.best is not None
        mine = self.best[self.best["query"] == query]
        order = np.argsort(sign * mine.score.to_numpy(), kind="stable")
        kept = order[: len(order) // 2 + len(order) % 2] if len(mine) < len(self.train) else order
        return mine.row.to_numpy()[kept], mine.score.to_numpy()[kept]

    @property
    def explanation(self) -> str:
        """What the sign and the scale of a score mean, in one line."""
        gain = "lowers its loss" if self.better < 0 else f"raises its {self.measurement}"
        return (
            "A positive score is helpful: more weight on that training row "
            f"{gain}. To first order, leaving the row out of N changes the query by score / N; "
            "scores are sums over tokens."
        )

    @property
    def reading(self) -> str:
        """One line for a person."""
        rows, queries = len(self.train), len(self.queries)
        text = (
            f"{self.strategy} influence ({self.labels} labels, damping {self.damping}) of {rows} "
            f"training rows on the {self.measurement} of {queries} queries of {self.checkpoint}"
        )
        if self.scores is not None and self.scores.size > 1:
            helpful = float((self.scores.to_numpy() > 0).mean())
            text += f": {100 * helpful:.0f} % of the pairs are helpful"
        return text

    def to_json(self) -> dict[str, Any]:
        """The top five rows of every query on both sides; the matrix stays a table."""
        tops = []
        for query in range(len(self.queries) if self._can_rank() else 0):
            shown: dict[str, Any] = {"query": self.queries.iloc[query].to_dict()}
            for side, harmful in (("helpful", False), ("harmful", True)):
                shown[side] = self.top(query, 5, harmful=harmful).to_dict("records")
            tops.append(shown)
        return {
            "checkpoint": self.checkpoint,
            "task": self.task,
            "strategy": self.strategy,
            "labels": self.labels,
            "measurement": self.measurement,
            "damping": self.damping,
            "training_rows": len(self.train),
            "explanation": self.explanation,
            "queries": tops,
            "timings": self.timings,
            "provenance": self.provenance,
        }

    def _can_rank(self) -> bool:
        return self.scores is None or (
            self.scores.shape == (len(self.train), len(self.queries)) and len(self.train) > 0
        )


@dataclass(frozen=True)
class SelfInfluence(Result):
    """The influence of every row on itself."""

    checkpoint: str
    task: str
    split: str
    strategy: str
    labels: str
    measurement: str
    damping: str
    table: pd.DataFrame
    """row, text_id, text, text_pair, label, prediction, loss, value, score"""
    timings: dict[str, float]
    provenance: dict[str, Any]

    @property
    def values(self) -> np.ndarray:
        """(rows,) the scores."""
        return self.table["score"].to_numpy()

    @property
    def explanation(self) -> str:
        """What the scale of a score means, in one line."""
        return (
            "The larger the self-influence, the more the model relies on that very row to get it "
            "right: outliers and wrong labels are found at the top."
        )

    @property
    def reading(self) -> str:
        """One line for a person."""
        highest = self.table.iloc[int(self.values.argmax())]
        return (
            f"{self.strategy} self-influence of {len(self.table)} rows of {self.task}:{self.split} "
            f"({self.checkpoint}): median {np.median(self.values):.3g}, highest "
            f"{highest['score']:.3g} for {highest['text_id']}"
        )

    def to_json(self) -> dict[str, Any]:
        """The fifty highest rows; the whole table stays a table."""
        table = self.table.sort_values("score", ascending=False).head(50)
        return {
            "checkpoint": self.checkpoint,
            "task": self.task,
            "split": self.split,
            "strategy": self.strategy,
            "labels": self.labels,
            "measurement": self.measurement,
            "damping": self.damping,
            "rows": len(self.table),
            "highest": table.to_dict("records"),
            "timings": self.timings,
            "provenance": self.provenance,
        }


# --- calls ----------------------------------------------------------------------------------


def influence(
    factors: Factors,
    *,
    queries: str | tuple[Task, str] = "validation",
    query_rows: Rows = None,
    train: str | None = None,
    train_rows: Rows = None,
    measurement: str | Function = "loss",
    store: str | Any | None = None,
    progress: bool = False,
    **options: Any,
) -> Influence:
    """Score training rows for queries (see the module's docstring for the formula).

    queries: a split of the factors' task, or (task, split). query_rows, train_rows: how many of the
    first rows, or which. train: the split of the training rows; without it, and without
    `train_rows`, the rows that the factors were fitted on. measurement: "loss", "margin", or a
    function of (logits, targets) that returns one number per query, of which more is better.
    Further options are the fields of `InfluenceConfig` (damping, per_module, top, ...).

    With a `store`, blocks of scores are kept there, so that a killed run goes on where it stopped.
    """
    study = InfluenceStudy.of(
        factors,
        queries=queries,
        query_rows=query_rows,
        train=train,
        train_rows=train_rows,
        measurement=measurement,
        **options,
    )
    return study.run(store=store, progress=progress)


def self_influence(
    factors: Factors,
    *,
    split: str | None = None,
    rows: Rows = None,
    measurement: str | Function = "loss",
    store: str | Any | None = None,
    progress: bool = False,
    **options: Any,
) -> SelfInfluence:
    """The score of every row with itself, in linear time.

    measurement "loss": <W o G_b, G_b>. Another one: <W o G_m, G_b> with G_m the gradient of minus
    that measurement of the same row. Options are damping, relative_damping and memory.
    """
    config = InfluenceConfig.parse(options, where="self_influence")
    side = _Side.of(factors, split, rows, "rows")
    measured = Measurement.of(measurement)
    work = InfluenceWork(factors, side, side, measured, config, kept=store is not None)
    plan, ranks = Plan(work.self_jobs()), current_ranks()
    kept, shown = shared(open_store(store), ranks), progress and ranks.rank == 0
    executed = run_plan(plan, work, kept, progress=shown, description="self-influence", unit="rows")
    parts = [kept.read(job.key) for job in plan.jobs]
    table = side.table(factors.task)
    for name in ("prediction", "loss", "value", "score"):
        if name in parts[0].tensors:
            table[name] = np.concatenate([part.tensors[name] for part in parts])
    if "prediction" in table:
        table["prediction"] = _names(factors.task, table["prediction"].to_numpy())
    return SelfInfluence(
        checkpoint=factors.checkpoint.spec,
        task=factors.task.name,
        split=factors.task.resolve(side.data.split),
        strategy=factors.config.strategy,
        labels=factors.labels,
        measurement=work.measurement.name,
        damping=config.words,
        table=table,
        timings={**factors.timings, "scores": executed.seconds},
        provenance=work.provenance(),
    )


@dataclass(frozen=True)
class InfluenceStudy:
    """The plan of an `influence`, before anything is computed."""

    work: InfluenceWork

    @classmethod
    def of(
        cls,
        factors: Factors,
        *,
        queries: str | tuple[Task, str] = "validation",
        query_rows: Rows = None,
        train: str | None = None,
        train_rows: Rows = None,
        measurement: str | Function = "loss",
        **options: Any,
    ) -> InfluenceStudy:
        """Choose rows and options; raises for whatever cannot be scored."""
        config = InfluenceConfig.parse(options, where="influence")
        asked = _Side.of(factors, queries, query_rows, "queries")
        rows = _Side.of(factors, train, train_rows, "training rows")
        work = InfluenceWork(factors, asked, rows, Measurement.of(measurement), config)
        _check_rank(factors, config)
        return cls(work)

    def forecast(self, store: ArtifactStore | None = None) -> Forecast:
        """Blocks of scores that remain, their time and memory (from a measured matrix product)."""
        plan = Plan(self.work.jobs())
        seconds = 1 / _pairs_per_second(self.work)
        return plan.forecast(
            store, seconds_per_unit=seconds, memory=self.work.bytes_at_once(), unit="pairs"
        )

    def run(self, *, store: str | Any | None = None, progress: bool = False) -> Influence:
        """Score what is missing and put the blocks together."""
        start = time.perf_counter()
        work, ranks = replace(self.work, kept=store is not None), current_ranks()
        kept, shown = shared(open_store(store), ranks), progress and ranks.rank == 0
        plan = Plan(work.jobs())
        run_plan(plan, work, kept, progress=shown, description="scoring", unit="pairs")
        parts = [kept.read(job.key) for job in plan.jobs]
        return _assemble(work, parts, time.perf_counter() - start)


# --- rows -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """Some rows of a split: the queries, or the training rows."""

    data: Data
    rows: tuple[int, ...]

    @classmethod
    def of(
        cls, factors: Factors, split: str | tuple[Task, str] | None, rows: Rows, what: str
    ) -> _Side:
        if split is None:
            split, rows = factors.split, factors.rows if rows is None else rows
        task, name = (factors.task, split) if isinstance(split, str) else split
        if task.kind != factors.task.kind:
            raise ConfigError(
                f"{what}: task {task.name} is {task.kind}, the factors are of {factors.task.kind}",
                remedy="ask about examples of the same kind of task",
            )
        data = Data(task, name)
        size = len(task.examples(name))
        chosen: Sequence[int]
        if rows is None:
            chosen = range(size)
        elif isinstance(rows, int):
            if rows < 1:
                raise DataError(f"{what}: {rows} rows of {data.name} leave none")
            chosen = range(min(rows, size))
        else:
            chosen = [int(row) for row in rows]
            outside = [row for row in chosen if not 0 <= row < size]
            if outside:
                raise DataError(
                    f"{what}: {data.name} has no row {outside[0]}",
                    remedy=f"rows are 0 to {size - 1}",
                )
            if len(set(chosen)) < len(chosen):
                raise DataError(f"{what}: a row is named twice", remedy="name each row once")
        if not len(chosen):
            raise DataError(f"{what}: there are no rows", remedy="choose at least one row")
        return cls(data, tuple(chosen))

    @cached_property
    def examples(self) -> Examples:
        """The chosen examples."""
        return self.data.task.examples(self.data.split).take(self.rows)

    def table(self, task: Task) -> pd.DataFrame:
        """row, text_id, text, text_pair (pairs), label."""
        examples = self.examples
        columns: dict[str, Any] = {"row": list(self.rows), "text_id": list(examples.ids)}
        if task.kind == "token-classification":
            columns["text"] = [" ".join(words) for words in examples.texts]
        else:
            names = ("text", "text_pair")
            for name, texts in zip(names, zip(*examples.texts, strict=True), strict=False):
                columns[name] = list(texts)
        columns["label"] = _label_column(self.data.task, examples)
        return pd.DataFrame(columns)


def _label_column(task: Task, examples: Examples) -> list[Any]:
    if task.kind == "classification":
        return list(_names(task, np.asarray(examples.labels)))
    if task.kind == "regression":
        return [float(label) for label in examples.labels]
    if task.kind == "token-classification":
        named = task.label_names
        return [" ".join(named[t] if t >= 0 else "-" for t in tags) for tags in examples.labels]
    if task.kind == "seq2seq":
        return list(examples.labels)
    return [""] * len(examples)


def _names(task: Task, numbers: np.ndarray) -> np.ndarray:
    named: np.ndarray = np.array(task.label_names, dtype=object)[numbers.astype(int)]
    return named


def _check_rank(factors: Factors, config: InfluenceConfig) -> None:
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


# --- the work -------------------------------------------------------------------------------


@dataclass(frozen=True)
class InfluenceWork:
    """What a worker needs: the picklable factory."""

    factors: Factors
    queries: _Side
    train: _Side
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

    def _chunks(self, side: _Side, budget: float) -> list[tuple[int, int]]:
        """Row ranges whose tokens fit into a number of bytes, by a cheap upper bound of lengths."""
        lengths = self._lengths(side)
        most = max(1.0, budget / self.factors.session().token_bytes)
        chunks, start, held = [], 0, 0.0
        for row, length in enumerate(lengths):
            if row > start and held + length > most:
                chunks.append((start, row))
                start, held = row, 0.0
            held += length
        return [*chunks, (start, len(lengths))]

    def _lengths(self, side: _Side) -> np.ndarray:
        key = (side.data.name, side.rows)
        if key not in self._length_cache:
            tokenizer, session = self.factors.session().tokenizer, self.factors.session()
            prepared = session.prepare(side.data, side.examples)
            lengths = np.zeros(len(side.rows))
            for batch in prepared.batches:
                sizes = batch.inputs["attention_mask"].sum(-1)
                if prepared.objective.kind == "seq2seq":
                    sizes = sizes + (batch.labels.shape[1])
                lengths[batch.rows.cpu().numpy()] = sizes.cpu().numpy()
            del tokenizer
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
        tokens = sum(float(self._lengths(side).sum()) for side in (self.queries, self.train))
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


def _pairs_per_second(work: InfluenceWork) -> float:
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
        side: _Side,
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
                tokens.add(number, self.weights[number], self.space, add_left=add_left)
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
        self.width = max(piece.inputs.shape[1] for layer in rows.layers for piece in layer.pieces)
        queries = len(asked)
        options: dict[str, Any] = {"dtype": session.wide, "device": session.device}
        self.tokens = torch.zeros(queries, len(rows), self.width, **options)
        self.rest = torch.zeros(queries, len(rows), **options)

    def add(self, number: int, weight: Tensor | None, space: Workspace, *, add_left: bool) -> None:
        """Add the part of one layer."""
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
            self.tokens[:, first : first + count, :width] += part.view(-1, count, width)
            first += count

    def tensors(self, add_left: bool) -> dict[str, np.ndarray]:
        """token/scores (rows, 1 + T, queries); the first place is what belongs to no token."""
        both = torch.cat([self.rest.unsqueeze(-1), self.tokens], -1)
        both = both[self.asked.order.argsort()][:, self.rows.order.argsort()]
        if add_left:
            both = both.sum(0, keepdim=True)
        table: np.ndarray = both.permute(1, 2, 0).contiguous().cpu().numpy()
        return {"token/scores": table}


# --- putting blocks together ----------------------------------------------------------------


def _assemble(work: InfluenceWork, parts: Sequence[Contents], seconds: float) -> Influence:
    factors, config = work.factors, work.config
    jobs = work.jobs()
    grid: dict[tuple[int, int], dict[tuple[int, int], Contents]] = {}
    for job, part in zip(jobs, parts, strict=True):
        grid.setdefault(tuple(job.spec["query_rows"]), {})[tuple(job.spec["train_rows"])] = part
    queries = _query_table(work, grid)
    spent = {"queries": 0.0, "scores": 0.0}
    for part in parts:
        for name, value in part.records["about"]["seconds"].items():
            spent[name] += value
    timings = {**factors.timings, **spent}
    timings["total"] = sum(timings.values())
    modules = None
    if config.per_module:
        modules = {name: _frame(_join(grid, f"module/{name}", config)) for name in factors.layers}
    return Influence(
        checkpoint=factors.checkpoint.spec,
        task=factors.task.name,
        strategy=factors.config.strategy,
        labels=factors.labels,
        measurement=work.measurement.name,
        better=work.measurement.better,
        damping=config.words,
        queries=queries,
        train=work.train.table(factors.task),
        scores=None if config.top else _frame(_join(grid, "scores", config)),
        best=_best(grid, config.top) if config.top else None,
        modules=modules,
        tokens=_token_frame(work, grid) if config.per_token else None,
        timings=timings,
        provenance=work.provenance(),
    )


Grid = Mapping[tuple[int, int], Mapping[tuple[int, int], Contents]]


def _join(grid: Grid, name: str, config: InfluenceConfig) -> np.ndarray:
    """(rows, queries) from its blocks; sums of blocks along an axis that was summed."""
    columns = []
    for row in grid.values():
        blocks = [part.tensors[name] for part in row.values()]
        summed = config.aggregate in ("train", "both")
        columns.append(sum(blocks[1:], blocks[0]) if summed else np.concatenate(blocks))
    if config.aggregate in ("queries", "both"):
        return np.asarray(sum(columns[1:], columns[0]))
    return np.concatenate(columns, axis=1)


def _frame(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(values, columns=[str(q) for q in range(values.shape[1])])


def _query_table(work: InfluenceWork, grid: Grid) -> pd.DataFrame:
    table = work.queries.table(work.factors.task)
    first = [next(iter(row.values())) for row in grid.values()]
    for name in ("prediction", "loss", "value"):
        if f"query.{name}" in first[0].tensors:
            table[name] = np.concatenate([part.tensors[f"query.{name}"] for part in first])
    if "prediction" in table:
        table["prediction"] = _names(work.queries.data.task, table["prediction"].to_numpy())
    return table


def _best(grid: Grid, k: int) -> pd.DataFrame:
    """The k highest and the k lowest rows of every query, over all blocks."""
    tables = []
    for (start, _), blocks in grid.items():
        rows = np.concatenate([b.tensors["top.rows"] for b in blocks.values()], axis=1)
        scores = np.concatenate([b.tensors["top.scores"] for b in blocks.values()], axis=1)
        for query, (mine, values) in enumerate(zip(rows, scores, strict=True)):
            mine, first = np.unique(mine, return_index=True)  # a short block kept rows twice
            values = values[first]
            order = np.argsort(-values, kind="stable")
            count = min(k, len(order))
            kept = np.unique(np.concatenate([order[:count], order[len(order) - count :]]))
            kept = kept[np.argsort(-values[kept], kind="stable")]
            tables.append(
                pd.DataFrame({"query": start + query, "row": mine[kept], "score": values[kept]})
            )
    return pd.concat(tables, ignore_index=True)


def _token_frame(work: InfluenceWork, grid: Grid) -> pd.DataFrame:
    """example, position, and a column per query; only positions that the example has."""
    lengths = work._lengths(work.train).astype(int)
    columns: list[np.ndarray] = []
    index: list[tuple[int, int]] = []
    for number, row in enumerate(grid.values()):
        parts = []
        for (start, _), part in row.items():
            for offset, scores in enumerate(part.tensors["token/scores"]):
                length = lengths[start + offset]
                parts.append(scores[: 1 + length])
                if number == 0:
                    index += [(start + offset, t) for t in range(-1, len(parts[-1]) - 1)]
        columns.append(np.concatenate(parts))
    joined = np.concatenate(columns, axis=1)
    if work.config.aggregate == "queries":
        joined = joined.sum(1, keepdims=True)
    frame = _frame(joined)
    frame.insert(0, "example", [i for i, _ in index])
    frame.insert(1, "position", [t for _, t in index])
    return frame
