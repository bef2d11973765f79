"""What a model knows along a path: the score of every example at every point."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from landform.errors import ConfigError, DataError
from landform.evaluation.cartography import cartography as summary_of
from landform.evaluation.cartography import read_dynamics
from landform.evaluation.data import as_data_or_only
from landform.evaluation.evaluate import example_log
from landform.evaluation.points import Data, PointsConfig
from landform.evaluation.scores import example_scores
from landform.geometry.fitting import FittedPath, WalkWork
from landform.geometry.forgetting import (
    POOLED,
    STATISTICS,
    Rows,
    along_path,
    compare_changes,
    forgotten_and_relearned,
    score_lists,
    step_summary,
)
from landform.geometry.line import LineConfig, forecast_line, line_work, walk_line
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Forecast, Plan
from landform.store.study import open_store
from landform.tasks.metrics import METRICS, Predictions, get_metric
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, CheckpointLike, resolve

__all__ = [
    "Knowledge",
    "KnowledgeConfig",
    "align_known",
    "forecast_knowledge",
    "knowledge_along_path",
    "knowledge_of",
    "known_of",
]

Floats = npt.NDArray[np.float64]

NOT_TRAINED = "what is forgotten there need not have been learned from it"
SCORE = "score_"
"""Before the number of a point, the name of a column of `Knowledge.table`."""


class KnowledgeConfig(LineConfig):
    """Options of `knowledge_along_path`."""

    points: int = Field(6, ge=2)
    """Points of the path, both ends included, equally spaced."""
    controls: int = Field(1000, ge=20)
    """Random sets of examples that the ones that change are compared with."""
    partial: bool = False
    """Take a cartography that has no row for some of the examples: compare among the others."""


@dataclass(frozen=True)
class Knowledge(Result):
    """Scores of single examples along a path from `a` to `b`, and which of them change."""

    a: str
    b: str
    data: str
    kind: str
    """kind of the task"""
    metric: str
    """what the score of an example is: accuracy for classes (0 or 1)"""
    path: str
    """line, or the kind of the fitted curve: bezier, polyline"""
    ts: tuple[float, ...]
    """positions; of a curve, shares of its arc length"""
    table: pd.DataFrame
    """one row per example: text_id, text, text_pair, label where there are any; score_0, score_1,
    ... at the points in order; and what the cartography says of it"""
    along: pd.DataFrame
    """one row per point: t, score with its interval, sizes of the lists, see `along_path`"""
    summary: pd.DataFrame
    """one row per point: what changed on the way to it, see `step_summary`"""
    between: pd.DataFrame
    """columns change, of, examples, share, low, high: of the examples right at both ends those not
    right somewhere between (forgotten), of those not right at both ends those right between
    (learned); right is a score of 1, and an example without a score somewhere counts nowhere"""
    provenance: dict[str, Any]
    comparison: pd.DataFrame | None = None
    """every change against all examples and against random ones, see `compare_changes`; None
    without a cartography"""

    @property
    def scores(self) -> Floats:
        """(points, examples) from 0 to 1."""
        columns = [f"{SCORE}{k}" for k in range(len(self.ts))]
        return self.table[columns].to_numpy(np.float64).T

    @property
    def forgotten(self) -> tuple[Rows, ...]:
        """Rows newly at score 0, point by point; at the first point all that are at 0."""
        return forgotten_and_relearned(self.scores)[0]

    @property
    def relearned(self) -> tuple[Rows, ...]:
        """Rows that leave score 0, point by point; none at the first."""
        return forgotten_and_relearned(self.scores)[1]

    @property
    def lists(self) -> tuple[dict[str, Rows], ...]:
        """Rows of the lists zero, one, up, down, up_to_one, down_to_zero, point by point."""
        return score_lists(self.scores)

    @property
    def changing(self) -> pd.DataFrame:
        """The rows of `table` that are newly forgotten after the first point, with three columns:
        course (a sign per point: + right, - wrong, ~ between), wrong (points of score 0), both
        (right at both ends). Those right at both ends first, of these the most often wrong."""
        scores = self.scores
        rows = np.unique(np.concatenate([*self.forgotten[1:], np.array([], dtype=np.int64)]))
        found = self.table.iloc[rows].copy()
        signs = np.select([scores == 0, scores == 1], ["-", "+"], default="~")
        found["course"] = ["".join(column) for column in signs[:, rows].T]
        found["wrong"] = (scores[:, rows] == 0).sum(axis=0)
        found["both"] = (scores[0, rows] == 1) & (scores[-1, rows] == 1)
        return found.sort_values(["both", "wrong"], ascending=False, kind="stable")

    @property
    def reading(self) -> str:
        """One line for a person."""
        along, between = self.along, self.between.iloc[0]
        where = f"on {self.data}"
        if along.score.notna().all():
            lowest = along.iloc[int(along.score.argmin())]
            interval = f"[{lowest.score_low:.3g}, {lowest.score_high:.3g}]"
            where += f", {self.metric} {along.score.iloc[0]:.3g} at one end and "
            where += f"{along.score.iloc[-1]:.3g} at the other, lowest {lowest.score:.3g} "
            where += f"{interval} at {lowest.t:.3g}"
        if between["of"]:
            share = (
                f"{100 * between.share:.3g} % [{100 * between.low:.3g}, {100 * between.high:.3g}]"
            )
            where += f"; of {between['of']} examples right at both ends {between.examples} "
            where += f"({share}) are not right somewhere between"
        said = self._say_comparison()
        return f"{where}; {said}" if said else where

    def _say_comparison(self) -> str:
        """What tells the forgotten examples from random ones of those that could be forgotten."""
        if self.comparison is None:
            return ""
        rows = self.comparison[
            (self.comparison.step == POOLED) & (self.comparison.change == "forgotten")
        ]
        n = int(rows.n.max())
        if not n:
            return "nothing is newly forgotten on the way"
        unlike = rows[rows.p_holm <= 1 - float(self.provenance["config"]["level"])]
        if not len(unlike):
            return (
                f"{n} newly forgotten on the way: not told from as many random examples that were "
                f"right before by {', '.join(rows.statistic)} (smallest corrected p "
                f"{rows.p_holm.min():.2g})"
            )
        parts = [
            f"{row.statistic} {row['mean']:.3g} against {row.control:.3g} (all {row.base:.3g})"
            for _, row in unlike.iterrows()
        ]
        same = [name for name in rows.statistic if name not in set(unlike.statistic)]
        return (
            f"{n} newly forgotten on the way, against random examples that were right before: "
            f"{', '.join(parts)}, corrected p at most {unlike.p_holm.max():.2g}"
        ) + (f"; not told apart by {', '.join(same)}" if same else "")

    def to_json(self) -> dict[str, Any]:
        """Plain values; the score matrix as one list of scores per point."""
        names = ("a", "b", "data", "kind", "metric", "path", "ts", "provenance")
        tables = ("along", "summary", "between")
        return {
            **{name: getattr(self, name) for name in names},
            "examples": len(self.table),
            **{name: getattr(self, name).to_dict("records") for name in tables},
            "comparison": [] if self.comparison is None else self.comparison.to_dict("records"),
            "forgotten": [rows.tolist() for rows in self.forgotten],
            "relearned": [rows.tolist() for rows in self.relearned],
            "scores": self.scores.tolist(),
        }


def knowledge_along_path(
    a: CheckpointLike,
    b: CheckpointLike,
    task: Task | Data | tuple[Task, str],
    split: str = "train",
    points: int = 6,
    cartography: CheckpointLike | pd.DataFrame | None = None,
    path: FittedPath | None = None,
    *,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Knowledge:
    """Which examples are forgotten and relearned on the way from `a` to `b`.

    Walks the line theta(t) = (1 - t) a + t b, or the fitted `path` between the same checkpoints,
    and keeps the score of every example at every point: 1 for right and 0 for wrong in
    classification, else the example's own value of the task's headline metric. With Z_k the
    examples of score 0 at point k, the newly forgotten are Z_k \\ Z_{k-1} and the relearned
    Z_{k-1} \\ Z_k (Qin et al. 2022, section "knowledge"; Z_{-1} is empty).

    `cartography` says what training said of each example: a run that was trained with it, its
    cartography.parquet, or the table of `landform.cartography`; then what changes is compared with
    all examples and with random ones that could have changed (see `compare_changes`). Options are
    the fields of `KnowledgeConfig`. With a `store`, points that `interpolate` has evaluated are
    reused, and a run that was stopped goes on. A task with one split and no `train` is read from
    that one, with a warning.

    Raises `DataError` that names the first id where the cartography is of other data, and
    `ConfigError` for a path between other checkpoints.
    """
    config = KnowledgeConfig.parse({**options, "points": points}, where="knowledge_along_path")
    data = as_data_or_only(task, split, NOT_TRAINED)
    metric = _metric(data)
    known = _known(cartography, data, config)
    ends, ts, predictions = _predictions(a, b, path, data, config, open_store(store), progress)
    scores = np.stack([example_scores(data.task, point, metric) for point in predictions])
    examples = data.examples(config.rows)
    log = example_log(data.task, examples, predictions[0])
    return knowledge_of(
        scores,
        ts,
        log[[name for name in ("text_id", "text", "text_pair", "label") if name in log]],
        known,
        config,
        a=ends[0].spec,
        b=ends[1].spec,
        data=data.name,
        kind=data.task.kind,
        metric=metric,
        path="line" if path is None else path.fit.kind,
        provenance={
            "weights": [c.fingerprint for c in ends],
            "examples": examples.fingerprint,
        },
    )


def _known(
    cartography: CheckpointLike | pd.DataFrame | None, data: Data, config: KnowledgeConfig
) -> pd.DataFrame | None:
    """What training said of the examples; without it, options about it are refused."""
    if cartography is not None:
        return known_of(cartography, data, config)
    unread = config.options_given(["controls", "partial"])
    if unread:
        raise ConfigError(
            f"option {unread[0]} has no effect without a cartography",
            remedy="leave it out, or name a run that was trained with cartography",
        )
    return None


def _predictions(
    a: CheckpointLike,
    b: CheckpointLike,
    path: FittedPath | None,
    data: Data,
    config: KnowledgeConfig,
    store: ArtifactStore,
    progress: bool,
) -> tuple[Sequence[Checkpoint], tuple[float, ...], Sequence[Predictions]]:
    """The ends, and positions and predictions of the points: of the line, or of a fitted curve
    (whose positions are shares of its arc length)."""
    if path is None:
        work = line_work(a, b, data.task, data.split, (), config)
        walk = walk_line(work, config, store, progress=progress)
        return work.checkpoints, walk.ts, walk.points[0]
    ends = _check_ends(a, b, path)
    curve = _walk_work(path, data, config)
    found = curve.predictions(store, progress=progress)[0]
    return ends, tuple(float(t) for t in curve.places[1]), found


def forecast_knowledge(
    a: CheckpointLike,
    b: CheckpointLike,
    task: Task | Data | tuple[Task, str],
    split: str,
    path: FittedPath | None,
    store: ArtifactStore,
    **options: Any,
) -> Forecast:
    """What `knowledge_along_path` has left to evaluate."""
    config = KnowledgeConfig.parse(options, where="knowledge_along_path")
    data = as_data_or_only(task, split, NOT_TRAINED)
    if path is None:
        return forecast_line(line_work(a, b, data.task, data.split, (), config), config, store)
    _check_ends(a, b, path)
    work = _walk_work(path, data, config)
    return work.work.forecast(Plan(dict.fromkeys(work.jobs)), store)


def _check_ends(
    a: CheckpointLike, b: CheckpointLike, path: FittedPath
) -> tuple[Checkpoint, Checkpoint]:
    """The checkpoints of a path, which must be those that were named."""
    for named, own in zip((a, b), path.checkpoints, strict=True):
        if resolve(named).fingerprint != own.fingerprint:
            raise ConfigError(
                f"the path runs from {path.fit.a} to {path.fit.b}; {resolve(named).spec} has other "
                f"weights than {own.spec}",
                remedy="name the two checkpoints that the path was fitted between, in its order",
            )
    return path.checkpoints


def _walk_work(path: FittedPath, data: Data, config: KnowledgeConfig) -> WalkWork:
    """The evaluation of a fitted curve, before it is run."""
    if config.positions is not None:
        raise ConfigError(
            "option positions is for lines: points of a curve lie at equal arc length",
            remedy="use points",
        )
    return path.walked((data,), **{**config.options_written(PointsConfig), "points": config.points})


def _metric(data: Data) -> str:
    """What the score of an example is; `ConfigError` where examples have none."""
    name = score_name(data.task)
    if name is None and data.task.kind == "seq2seq":
        works = [m.name for m in METRICS.values() if m.reads_texts and m.unit_interval]
        raise ConfigError(
            f"{data.name}: none of its metrics ({', '.join(data.task.metrics)}) has values of "
            "single examples from 0 (wrong) to 1 (right)",
            remedy=f"use a metric that has: {', '.join(works)}",
        )
    if name is None:
        raise ConfigError(
            f"{data.name} is a task whose examples are neither right nor wrong",
            remedy="knowledge along a path is that of classes, tokens or answers; for other tasks "
            "landform ridge tells whose loss rises",
        )
    return name


def score_name(task: Task) -> str | None:
    """The metric whose values of single examples, from 0 to 1, say what is known; None where there
    is none."""
    if task.kind == "classification":
        return "accuracy"
    if task.kind in ("token-classification", "masked-lm", "causal-lm"):
        return "token_accuracy"
    if task.kind == "regression":
        return None
    return next((name for name in task.metrics if get_metric(name).unit_interval), None)


def knowledge_of(
    scores: Floats,
    ts: Sequence[float],
    texts: pd.DataFrame,
    known: pd.DataFrame | None,
    config: KnowledgeConfig,
    *,
    provenance: Mapping[str, Any],
    **about: str,
) -> Knowledge:
    """The result of scores (points, examples) that have been measured.

    `texts` and `known` have a row per example: text_id and texts; the numbers of the cartography.
    `about` are fields of `Knowledge` that say what was measured: a, b, data, kind, metric, path.
    """
    drawing: dict[str, Any] = {"replicates": config.replicates, "seed": config.seed}
    drawing["level"] = config.level
    along = along_path(scores, ts, **drawing)
    comparison = None
    if known is not None:
        there = known.notna().all(axis=1).to_numpy()
        numbers = {str(name): known[name].to_numpy(np.float64)[there] for name in known}
        comparison = compare_changes(
            scores[:, there], numbers, ts, controls=config.controls, **drawing
        )
    columns = pd.DataFrame({f"{SCORE}{k}": row for k, row in enumerate(scores)})
    parts = [texts, columns, *([] if known is None else [known])]
    return Knowledge(
        ts=tuple(float(t) for t in ts),
        table=pd.concat(parts, axis=1),
        along=along,
        summary=step_summary(along, comparison),
        between=between_ends(scores, config.level),
        provenance={**provenance, "config": config.model_dump(mode="json")},
        comparison=comparison,
        **about,
    )


def between_ends(scores: Floats, level: float) -> pd.DataFrame:
    """What changes between ends that agree: see `Knowledge.between`.

    share = examples / of, with the exact binomial interval (Clopper and Pearson 1934), which a
    bootstrap does not give where no example changes; NaN where none is right (not right) at both
    ends.
    """
    from scipy.stats import binomtest

    right = scores[:, np.isfinite(scores).all(axis=0)] == 1
    inside = right[1:-1] if len(scores) > 2 else right[:1]  # two points have nothing between
    kept, lost = right[0] & right[-1], ~right[0] & ~right[-1]
    rows = []
    for change, group, changed in (
        ("forgotten", kept, kept & ~inside.all(axis=0)),
        ("learned", lost, lost & inside.any(axis=0)),
    ):
        n, k = int(group.sum()), int(changed.sum())
        row: dict[str, Any] = {"change": change, "of": n, "examples": k}
        row |= {"share": np.nan, "low": np.nan, "high": np.nan}
        if n:
            ends = binomtest(k, n).proportion_ci(level, method="exact")
            row |= {"share": k / n, "low": float(ends.low), "high": float(ends.high)}
        rows.append(row)
    return pd.DataFrame(rows)


# --- what training said --------------------------------------------------------------------------


def known_of(
    cartography: CheckpointLike | pd.DataFrame, data: Data, config: KnowledgeConfig
) -> pd.DataFrame:
    """Correctness, confidence, variability and turns in the order of the examples of `data`.

    With `partial`, NaN for an example without a row. `DataError` names the first id that does not
    fit: one that the data do not have, one that occurs twice, an example without a row.
    """
    if isinstance(cartography, pd.DataFrame):
        table, where = cartography, "the cartography"
    else:
        dynamics = read_dynamics(cartography)
        where = f"the cartography of {getattr(cartography, 'spec', cartography)}"
        dynamics.check_task(data.task.examples(data.split), where, part=True)
        table = summary_of(cartography)
    ids = data.examples(config.rows).ids
    every = data.task.examples(data.split).ids
    return align_known(table, ids, where, data.name, every=every, partial=config.partial)


def align_known(
    table: pd.DataFrame,
    ids: Sequence[str],
    where: str,
    data: str,
    *,
    every: Sequence[str] | None = None,
    partial: bool = False,
) -> pd.DataFrame:
    """The numbers of a cartography in the order of `ids`; see `known_of`.

    `every` are the ids that may occur (default: `ids`), `where` and `data` are for errors.
    """
    names = [name for name in STATISTICS if name in table]
    if "text_id" not in table or not names:
        raise DataError(
            f"{where} has the columns {', '.join(map(str, table.columns)) or 'none'}: there must "
            f"be text_id and one of {', '.join(STATISTICS)}",
            remedy="pass a run trained with cartography, or the table of landform.cartography",
        )
    own = table["text_id"].astype(str)
    if own.duplicated().any():
        raise DataError(
            f"{where} has two rows for {own[own.duplicated()].iloc[0]!r}",
            remedy="give each example one row, as landform.cartography does",
        )
    there = set(ids if every is None else every)
    remedy = f"name the run that was trained on {data}"
    strange = next((text_id for text_id in own if text_id not in there), None)
    if strange is not None:
        raise DataError(
            f"{where} is of other data: {data} has no example {strange!r}", remedy=remedy
        )
    order = pd.Index(ids)
    missing = order.difference(pd.Index(own), sort=False)
    if len(missing) == len(order) or (len(missing) and not partial):
        raise DataError(
            f"{where} has no row for {len(missing)} of {len(order)} examples of {data}, the "
            f"first of them {missing[0]!r}",
            remedy=f"{remedy}, or compare among the others: partial (--partial)",
        )
    numbers = table.set_index(own)[names].astype(np.float64)
    holes = np.argwhere(~np.isfinite(numbers.to_numpy()))
    if len(holes):
        row, column = holes[0]
        raise DataError(
            f"{where}: the {names[column]} of {own.iloc[row]!r} is {numbers.iloc[row, column]}",
            remedy="leave the example out, or make the table again",
        )
    return numbers.reindex(order).reset_index(drop=True)
