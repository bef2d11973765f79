"""One table of training examples: how each was learned, what it weighs, what the path does to it.

For the training rows of two models a and b, side by side:

* training dynamics (Swayamdipta et al. 2020; `landform.evaluation.cartography`) of one of the runs;
* self-influence at a (`landform.attribution.influence`): how much a relies on the row itself;
* losses along the line theta(t) = (1 - t) a + t b: at both ends, their mean and maximum over its
  points, the rise l(t) - (1 - t) l(a) - t l(b) at the position t where the mean loss of all rows is
  highest above its chord, and whether the row is forgotten on the way (right at some point, wrong
  at the next).

Columns are compared by Spearman's rank correlation, with intervals from resampled examples. The
loss at a enters nearly all of them (a row of high loss has a large gradient, and low confidence),
so every correlation is also given with the ranks of the loss at a held fixed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import combinations
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, model_validator
from scipy.stats import rankdata

from landform.attribution.influence import self_influence
from landform.attribution.rows import Side
from landform.attribution.scoring import CURVATURE_OPTIONS, DampingConfig
from landform.curvature.factors import FactorsStudy
from landform.curvature.fitting import Strategy
from landform.curvature.labels import Labels
from landform.errors import DataError, StoreError
from landform.evaluation.cartography import cartography, find_record
from landform.evaluation.intervals import percentile_interval, resample_counts
from landform.evaluation.points import Data, PointsConfig, PointsWork
from landform.evaluation.scores import example_scores
from landform.geometry.knowledge import score_name
from landform.geometry.line import InterpolateConfig, forecast_line, line_work, walk_line
from landform.geometry.statistics import partial_correlation
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Forecast
from landform.store.study import open_store, publish, slug
from landform.tasks.metrics import Predictions
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, short_names

__all__ = [
    "COLUMNS",
    "ExampleTable",
    "ExampleTableConfig",
    "ExampleTableStudy",
    "example_table",
    "rank_correlations",
]

Floats = npt.NDArray[np.float64]
Named = str | os.PathLike[str] | Checkpoint

DYNAMICS = ("confidence", "variability", "correctness", "forgetting")
PATH = ("loss_a", "loss_b", "path_mean", "path_max", "rise", "forgotten")
COLUMNS = (*DYNAMICS, "self_influence", *PATH)
"""What is compared, in the order of the table."""

BLOCK = 1 << 22
"""Numbers in one block of resampled ranks."""


class ExampleTableConfig(DampingConfig, PointsConfig):
    """What goes into the table of examples, and how sure its correlations are."""

    rows: int | None = Field(None, ge=1)
    """The first ROWS rows of the training split (default: all)."""
    points: int = Field(11, ge=3)
    """Points of the line."""
    strategy: Strategy = "ekfac"
    """The curvature of self-influence: identity, diagonal, kfac or ekfac."""
    labels: Labels = "true"
    """Whose labels the curvature is of: true (the model's own), empirical or sampled."""

    @model_validator(mode="after")
    def _of_curvature(self) -> Self:
        self.check_read(self.strategy != "identity", CURVATURE_OPTIONS, "with strategy identity")
        return self


@dataclass(frozen=True)
class ExampleTable(Result):
    """Training examples with their dynamics, self-influence and losses along a path."""

    a: str
    b: str
    data: str
    """the training rows, TASK:SPLIT"""
    kind: str
    """kind of the task: losses are in nats, for regression in squared units"""
    dynamics: str | None
    """the run whose training dynamics are in the table; None where none keeps any"""
    t: float
    """where `rise` is taken: the mean loss of these rows is highest above its chord there"""
    table: pd.DataFrame
    """one row per example: row, text_id, text, text_pair, label, and those of `COLUMNS` that there
    are (dynamics with a record of them, `forgotten` where examples are right or wrong: where
    `score_name` is not None)"""
    correlations: pd.DataFrame
    """x, y, spearman, low, high (percentile bootstrap over examples), given_loss_a (with the ranks
    of loss_a held fixed; NaN for loss_a itself); NaN where a column does not vary"""
    level: float
    provenance: dict[str, Any]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are compared."""
        return tuple(name for name in COLUMNS if name in self.table)

    @property
    def compared(self) -> int:
        """How many examples have all columns: those of the correlations."""
        return len(_complete(self.table, self.columns))

    def correlation(self, x: str, y: str) -> pd.Series:
        """The row of `correlations` of two columns, in either order."""
        table = self.correlations
        pairs = table["x"].str.cat(table["y"], sep=" ")
        found = table[pairs.isin([f"{x} {y}", f"{y} {x}"])]
        if len(found):
            return found.iloc[0]
        raise DataError(
            f"there is no correlation of {x!r} and {y!r}",
            remedy=f"columns: {', '.join(self.columns)}",
        )

    @property
    def reading(self) -> str:
        """One line for a person."""
        asked = [name for name in ("self_influence", "variability", "confidence", "forgetting")
                 if name in self.columns]  # fmt: skip
        parts = []
        for name in asked:
            found = self.correlation(name, "rise")
            if np.isfinite(found["spearman"]):
                parts.append(
                    f"{name.replace('_', '-')} {found['spearman']:+.2f} [{found['low']:+.2f}, "
                    f"{found['high']:+.2f}] (given the loss at a {found['given_loss_a']:+.2f})"
                )
        forgotten = (
            f", {100 * self.table['forgotten'].mean():.3g} % forgotten on the way"
            if "forgotten" in self.table
            else ""
        )
        missing = "" if self.dynamics else "; no run keeps training dynamics"
        return (
            f"{len(self.table):,} examples of {self.data} between {self.a} and {self.b}{forgotten};"
            f" rank correlation with the rise at t = {self.t:.3g} over {self.compared:,} of them: "
            f"{', '.join(parts) or 'none'}"
            f"{missing}"
        )

    def to_json(self) -> dict[str, Any]:
        """The correlations, and the fifty rows that rise most; the whole table stays a table."""
        tables = ("table", "correlations")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tables}
        top = self.table.sort_values("rise", ascending=False, kind="stable").head(50)
        return {
            **plain,
            "examples": len(self.table),
            "compared": self.compared,
            "correlations": self.correlations.to_dict("records"),
            "highest_rise": top.to_dict("records"),
        }


def example_table(
    a: Named,
    b: Named,
    task: Task,
    *,
    split: str = "train",
    dynamics: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> ExampleTable:
    """Join training dynamics, self-influence and losses along the line from `a` to `b`.

    See the module's docstring. `dynamics` names the run whose record of training dynamics is taken
    (default: that of `a`, where it has one); rows without dynamics (of a run on a part of the
    split) have none in the table and are left out of correlations. Options are the fields of
    `ExampleTableConfig`. With a `store`, line, factors and scores are kept there and reused, and so
    is the result. Raises `DataError` for dynamics of other data.
    """
    study = ExampleTableStudy.of(a, b, task, split=split, dynamics=dynamics, **options)
    return study.run(None if store is None else open_store(store), progress=progress)


@dataclass(frozen=True)
class ExampleTableStudy:
    """The plan of an `example_table`, before any weights are loaded."""

    work: PointsWork
    line: InterpolateConfig
    config: ExampleTableConfig
    dynamics: str | None
    learned: pd.DataFrame | None

    @classmethod
    def of(
        cls,
        a: Named,
        b: Named,
        task: Task,
        *,
        split: str = "train",
        dynamics: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Resolve models, rows and options, and read the dynamics."""
        config = ExampleTableConfig.parse(options, where="example_table")
        wanted = {name: getattr(config, name) for name in (*PointsConfig.model_fields, "points")}
        line = InterpolateConfig.parse(wanted)
        work = line_work(a, b, task, task.resolve(split), (), line)
        source, learned = _dynamics(work.checkpoints[0], dynamics, work.data[0])
        return cls(work, line, config, source, learned)

    @cached_property
    def fit(self) -> FactorsStudy:
        """The fit of the factors at a."""
        names = ("strategy", "labels", "rows", "max_length", "token_budget", "device", "dtype",
                 "allow_pickle", "model_labels", "seed")  # fmt: skip
        data = self.work.data[0]
        options = {name: getattr(self.config, name) for name in names}
        return FactorsStudy.of(self.work.checkpoints[0], data.task, split=data.split, **options)

    def forecast(self, store: ArtifactStore) -> tuple[Forecast, Forecast]:
        """Evaluations of the line, rows of the factors."""
        return forecast_line(self.work, self.line, store), self.fit.forecast(store)

    @property
    def name(self) -> str:
        """What its result is called in a study."""
        data = self.work.data[0]
        return slug("examples", *short_names(self.work.checkpoints), data.task.name, data.split)

    def run(self, store: ArtifactStore | None, *, progress: bool = False) -> ExampleTable:
        """Do what is missing; the result is published in the store."""
        kept = open_store(store)
        walk = walk_line(self.work, self.line, kept, progress=progress)
        factors = self.fit.run(store=store, progress=progress)
        scores = self_influence(
            factors,
            store=store,
            progress=progress,
            damping=self.config.damping,
            relative_damping=self.config.relative_damping,
        )
        data = self.work.data[0]
        table = Side.of(factors, None, None, "training rows").table(data.task)
        if self.learned is not None:
            known = self.learned.set_index("text_id")[list(DYNAMICS)]
            table = table.join(known, on="text_id")
        table["self_influence"] = scores.values
        columns, t = _along(walk.ts, walk.points[0], data.task)
        table = table.assign(**columns)
        result = ExampleTable(
            a=self.work.checkpoints[0].spec,
            b=self.work.checkpoints[1].spec,
            data=data.name,
            kind=data.task.kind,
            dynamics=self.dynamics,
            t=t,
            table=table,
            correlations=_compared(table, self.config),
            level=self.config.level,
            provenance={
                "weights": [c.fingerprint for c in self.work.checkpoints],
                "factors": factors.fingerprint,
                "examples": factors.examples.fingerprint,
                "config": self.config.model_dump(mode="json"),
            },
        )
        if store is not None:
            publish(store, self.name, result)
        return result

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.name,)


def _dynamics(
    a: Checkpoint, named: str | os.PathLike[str] | None, data: Data
) -> tuple[str | None, pd.DataFrame | None]:
    """The record that is named, which must be there, or that of `a`, which need not."""
    if named is not None:
        return os.fspath(named), cartography(named, data.task, split=data.split)
    try:
        find_record(a)
    except StoreError:
        return None, None
    return a.spec, cartography(a, data.task, split=data.split)  # a damaged one is no absent one


# --- the path ------------------------------------------------------------------------------------


def _along(
    ts: Sequence[float], points: Sequence[Predictions], task: Task
) -> tuple[dict[str, np.ndarray], float]:
    """Columns of the line, and the position of the rise."""
    t = np.array(ts)
    losses = np.stack([point.losses for point in points])
    weights = np.asarray(points[0].tokens, dtype=np.float64)
    above = losses - np.outer(1 - t, losses[0]) - np.outer(t, losses[-1])
    top = 1 + int(np.average(above, axis=1, weights=weights)[1:-1].argmax())
    columns = {
        "loss_a": losses[0],
        "loss_b": losses[-1],
        "path_mean": losses.mean(axis=0),
        "path_max": losses.max(axis=0),
        "rise": above[top],
    }
    metric = score_name(task)
    if metric is not None:  # a number, or a value that is not from 0 to 1: neither right nor wrong
        right = np.stack([example_scores(task, point, metric) == 1 for point in points])
        columns["forgotten"] = (right[:-1] & ~right[1:]).any(axis=0)
    return columns, float(t[top])


# --- rank correlations ---------------------------------------------------------------------------


def _compared(table: pd.DataFrame, config: ExampleTableConfig) -> pd.DataFrame:
    """All pairs of columns, over the examples that have all of them."""
    names = [name for name in COLUMNS if name in table]
    values = _complete(table, names)
    if len(values) < 3:
        raise DataError(
            f"{len(values)} examples have all of {', '.join(names)}: there is nothing to compare",
            remedy="use more rows, or dynamics of a run on these rows",
        )
    found = rank_correlations(
        values, replicates=config.replicates, seed=config.seed, level=config.level
    )
    held = rankdata(values["loss_a"])
    ranks = {name: rankdata(values[name]) for name in names}
    found["given_loss_a"] = [
        np.nan if "loss_a" in (x, y) else partial_correlation(ranks[x], ranks[y], held)
        for x, y in zip(found["x"], found["y"], strict=True)
    ]
    return found


def _complete(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    values = table[list(names)].astype(np.float64)
    whole: pd.DataFrame = values.loc[np.isfinite(values.to_numpy()).all(axis=1)]
    return whole


def rank_correlations(
    values: pd.DataFrame, *, replicates: int = 1000, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """Spearman's rho of all pairs of columns: x, y, spearman, low, high.

    `values` is (N examples, K columns), finite. Ranks are mean ranks for ties. low and high are a
    percentile bootstrap over examples, the same resampled ones for all pairs, ranked anew in every
    replicate; replicates in which a column does not vary are left out. NaN where a column of the
    whole table does not vary.
    """
    names = [str(name) for name in values.columns]
    sorted_columns = [_Ranks.of(values[name].to_numpy(dtype=np.float64)) for name in values.columns]
    n = len(values)
    counts = resample_counts(n, replicates, seed)
    here = _spearman(sorted_columns, np.ones((1, n)))[0]
    size = max(1, BLOCK // (n * len(names)))
    drawn = np.concatenate(
        [
            _spearman(sorted_columns, counts[start : start + size])
            for start in range(0, replicates, size)
        ]
    )
    rows = []
    for i, j in combinations(range(len(names)), 2):
        mine = drawn[:, i, j][np.isfinite(drawn[:, i, j])]
        low, high = (np.nan, np.nan)
        if len(mine) and np.isfinite(here[i, j]):
            low, high = map(float, percentile_interval(mine, level))
        rows.append(
            {"x": names[i], "y": names[j], "spearman": float(here[i, j]), "low": low, "high": high}
        )
    return pd.DataFrame(rows, columns=["x", "y", "spearman", "low", "high"])


@dataclass(frozen=True)
class _Ranks:
    """A column in ascending order, its ties together."""

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    """where every run of equal values starts in the order"""
    run: npt.NDArray[np.int64]
    """the run of every place in the order"""

    @classmethod
    def of(cls, values: Floats) -> _Ranks:
        order = np.argsort(values, kind="stable")
        new = np.append(True, np.diff(values[order]) != 0)
        return cls(order, np.flatnonzero(new), np.cumsum(new) - 1)

    def resampled(self, counts: Floats) -> Floats:
        """Mean ranks (R, N) of examples that occur `counts` (R, N) times, less their mean."""
        sizes = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        ranks = np.cumsum(sizes, axis=1) - sizes + (sizes + 1) / 2
        found = np.empty_like(counts)
        found[:, self.order] = ranks[:, self.run]
        centred: Floats = found - (counts.sum(axis=1, keepdims=True) + 1) / 2
        return centred


def _spearman(columns: Sequence[_Ranks], counts: Floats) -> Floats:
    """(R, K, K) Pearson's r of the ranks in every replicate; NaN where a column does not vary."""
    ranks = np.stack([column.resampled(counts) for column in columns], axis=1)
    products = (ranks * counts[:, None, :]) @ ranks.transpose(0, 2, 1)
    scale = np.sqrt(np.einsum("rkk->rk", products))
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = products / (scale[:, :, None] * scale[:, None, :])
    found: Floats = np.clip(np.where(np.isfinite(rho), rho, np.nan), -1.0, 1.0)
    return found
