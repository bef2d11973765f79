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
from typing import Any

import numpy as np
import pandas as pd

from landform.attribution.measurement import Function, Measurement
from landform.attribution.rows import Rows, Side
from landform.attribution.scoring import (
    DampingConfig,
    InfluenceConfig,
    InfluenceWork,
    check_rank,
    pairs_per_second,
)
from landform.curvature.factors import Factors
from landform.curvature.ranks import current_ranks, shared
from landform.errors import ConfigError
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Plan
from landform.store.study import open_store
from landform.tasks.task import Task

__all__ = [
    "DampingConfig",
    "Influence",
    "InfluenceConfig",
    "InfluenceStudy",
    "SelfInfluence",
    "influence",
    "self_influence",
]


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
    query_set: str = ""
    """the queries' data set, TASK:SPLIT"""

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
            "with little damping trust the order of the rows more than the size of the scores."
        )

    @property
    def reading(self) -> str:
        """One line for a person."""
        rows, queries = len(self.train), len(self.queries)
        text = (
            f"{self.strategy} influence ({self.labels} labels, damping {self.damping}) of {rows} "
            f"training rows on the {self.measurement} of {queries} queries"
            + (f" ({self.query_set})" if self.query_set else "")
            + f" of {self.checkpoint}"
        )
        if self.scores is not None and self.scores.shape == (rows, queries) != (1, 1):
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
    """The score of every row with itself, in linear time, under the curvature of `factors`.

    rows: how many of the first rows of the split, or which.

    measurement "loss": <W o G_b, G_b>. Another one: <W o G_m, G_b> with G_m the gradient of minus
    that measurement of the same row. Options are damping, relative_damping and memory.
    """
    config = _self_config(options)
    side = Side.of(factors, split, rows, "rows")
    measured = Measurement.of(measurement)
    work = InfluenceWork(factors, side, side, measured, config, kept=store is not None)
    plan, ranks = Plan(work.self_jobs()), current_ranks()
    kept, shown = shared(open_store(store), ranks), progress and ranks.rank == 0
    executed = run_plan(plan, work, kept, progress=shown, description="self-influence", unit="rows")
    parts = [kept.read(job.key) for job in plan.jobs]
    names = parts[0].tensors
    facts = {name: np.concatenate([part.tensors[name] for part in parts]) for name in names}
    return SelfInfluence(
        checkpoint=factors.checkpoint.spec,
        task=factors.task.name,
        split=factors.task.resolve(side.data.split),
        strategy=factors.config.strategy,
        labels=factors.labels,
        measurement=work.measurement.name,
        damping=config.words,
        table=side.described(facts),
        timings={**factors.timings, "scores": executed.seconds},
        provenance=work.provenance(),
    )


def _self_config(options: Mapping[str, Any]) -> InfluenceConfig:
    """The options of a self-influence; raises for those that are about pairs of rows."""
    config = InfluenceConfig.parse(dict(options), where="self_influence")
    given = config.model_dump(exclude={"damping", "relative_damping", "memory"})
    unread = [name for name, value in given.items() if value not in (None, False)]
    if unread:
        raise ConfigError(
            f"option {unread[0]} has no effect in self_influence, which has one score a row",
            remedy="leave it out, or call influence with the rows as queries",
        )
    return config


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
        asked = Side.of(factors, queries, query_rows, "queries")
        rows = Side.of(factors, train, train_rows, "training rows")
        work = InfluenceWork(factors, asked, rows, Measurement.of(measurement), config)
        check_rank(factors, config)
        return cls(work)

    def forecast(self, store: ArtifactStore | None = None) -> Forecast:
        """Blocks of scores that remain, their time and memory (from a measured matrix product)."""
        plan = Plan(self.work.jobs())
        seconds = 1 / pairs_per_second(self.work)
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


# --- putting blocks together ----------------------------------------------------------------


def _assemble(work: InfluenceWork, parts: Sequence[Contents], seconds: float) -> Influence:
    factors, config = work.factors, work.config
    jobs = work.jobs()
    grid: dict[tuple[int, int], dict[tuple[int, int], Contents]] = {}
    for job, part in zip(jobs, parts, strict=True):
        grid.setdefault(tuple(job.spec["query_rows"]), {})[tuple(job.spec["train_rows"])] = part
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
        queries=_query_table(work, grid),
        train=work.train.table(factors.task),
        scores=None if config.top else _frame(_join(grid, "scores", config)),
        best=_best(grid, config.top) if config.top else None,
        modules=modules,
        tokens=_token_frame(work, grid) if config.per_token else None,
        timings=timings,
        provenance=work.provenance(),
        query_set=work.queries.data.name,
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
    first = [next(iter(row.values())) for row in grid.values()]
    names = [name for name in first[0].tensors if name.startswith("query.")]
    return work.queries.described(
        {
            name.removeprefix("query."): np.concatenate([part.tensors[name] for part in first])
            for name in names
        }
    )


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
    lengths = work.lengths(work.train).astype(int)
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
