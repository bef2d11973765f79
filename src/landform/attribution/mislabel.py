"""Wrong labels: training rows ranked by self-influence, and how well the ranking finds them.

A row whose label is wrong has no others that explain it, so the model must learn it by heart: its
self-influence is high. Where the wrong labels are known (`corrupt_labels` makes such data), the
ranking is measured against inspecting the rows in random order.

Let K of N rows be known to be mislabelled. After inspecting n rows, recall is the share of the K
that were met. A random order meets h of them, h hypergeometric (n draws from N with K marked).
Average precision is the mean over the K of the precision at their own rank; a random order
expects r + (1 - r) H_N / N with r = (K - 1) / (N - 1) and H_N the harmonic number. AUC is the
probability that a mislabelled row is ranked before another one, ties counting half. Rows of equal
score are in no order: recall grows linearly through them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from landform.config import Config
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.intervals import percentile_interval
from landform.results import Result
from landform.tasks.rows import read_row_file
from landform.tasks.task import Examples, Task

if TYPE_CHECKING:
    from landform.attribution.influence import SelfInfluence

__all__ = ["Known", "Mislabel", "MislabelConfig", "corrupt_labels", "known_rows", "mislabel"]

Known = npt.ArrayLike | Iterable[int] | str | os.PathLike[str]
"""Which rows are mislabelled: True or False for every row of the split, positions in the split, or
a text file with one text id a line."""

Floats = npt.NDArray[np.float64]

POINTS = 1000
"""The recall curve has at most so many steps: a point per row up to here, then equal shares."""


class MislabelConfig(Config):
    """How sure the numbers of a ranking are."""

    replicates: int = Field(1000, ge=20)
    """Bootstrap replicates of recall, average precision and AUC."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals and of the band of a random order."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""


@dataclass(frozen=True)
class Mislabel(Result):
    """Training rows, most suspicious first, and what the ranking is worth where that is known."""

    task: str
    split: str
    checkpoint: str
    strategy: str
    measurement: str
    table: pd.DataFrame
    """rank (from 1), row (position in the split), text_id, text, text_pair (pairs only), label,
    prediction, loss, score, and known (whether the label is known to be wrong) where given"""
    curve: pd.DataFrame | None
    """inspected (share of the rows), rows, recall, its bootstrap ends low and high, random (what a
    random order finds on average), random_low, random_high (hypergeometric); None: not known"""
    average_precision: float | None
    average_precision_low: float | None
    average_precision_high: float | None
    average_precision_random: float | None
    """what a random order expects"""
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    p_value: float | None
    """probability of an AUC at least this high in a random order (one-sided Mann-Whitney)"""
    level: float
    provenance: dict[str, Any]

    @property
    def better_than_chance(self) -> bool | None:
        """Whether a random order would hardly rank as well: p below 1 - level; None: not known."""
        return None if self.p_value is None else bool(self.p_value < 1 - self.level)

    def recall(self, share: float) -> float:
        """The share of the mislabelled rows among the first `share` of the rows."""
        if self.curve is None:
            raise ConfigError(
                "which rows are mislabelled is not known, so there is no recall",
                remedy="give known=: a mask, positions, or a file of text ids",
            )
        if not 0 <= share <= 1:
            raise ConfigError(f"share={share!r} must lie between 0 and 1", remedy="0.1 is a tenth")
        return float(np.interp(share, self.curve["inspected"], self.curve["recall"]))

    @property
    def reading(self) -> str:
        """One line for a person."""
        rows = f"{len(self.table):,} rows of {self.task}:{self.split}"
        if self.curve is None:
            first = self.table.iloc[0]
            said = f", predicted {first['prediction']}" if "prediction" in self.table else ""
            return (
                f"the most suspicious of {rows} is {first['text_id']} (labelled {first['label']}"
                f"{said}); which labels are wrong is not known, so the ranking is not tested"
            )
        found = (
            f"the first tenth of {rows} holds {self.recall(0.1):.0%} of the "
            f"{int(self.table['known'].sum()):,} mislabelled ones; average precision "
            f"{self.average_precision:.3g} [{self.average_precision_low:.3g}, "
            f"{self.average_precision_high:.3g}], where a random order has "
            f"{self.average_precision_random:.3g}; "
            f"AUC {self.auc:.3f} [{self.auc_low:.3f}, {self.auc_high:.3f}]"
        )
        if self.better_than_chance:
            return found
        return f"no better than a random order (p = {self.p_value:.2g}): {found}"

    def to_json(self) -> dict[str, Any]:
        """The measures and the fifty most suspicious rows; the whole ranking stays a table."""
        names = [
            field.name
            for field in fields(self)
            if field.name not in ("table", "curve", "provenance")
        ]
        return {
            **{name: getattr(self, name) for name in names},
            "rows": len(self.table),
            "known": int(self.table["known"].sum()) if "known" in self.table else None,
            "most_suspicious": self.table.head(50).to_dict("records"),
            "curve": None
            if self.curve is None
            else self.curve.iloc[:: max(1, len(self.curve) // 100)].to_dict("records"),
            "provenance": self.provenance,
        }


def mislabel(source: SelfInfluence, *, known: Known | None = None, **options: Any) -> Mislabel:
    """Rank rows by self-influence, most suspicious first; with `known`, say how well that works.

    source: the scores of `self_influence`.
    known: True or False for every row of the split (rows that were not scored are passed over), or
    positions in the split, or a text file of text ids. Options are the fields of `MislabelConfig`.
    Raises DataError where `known` does not fit the scored rows, or marks none or all of them, and
    NonFiniteError naming a row whose score is not a number.
    """
    config = MislabelConfig.parse(options, where="mislabel")
    scored = source.table.reset_index(drop=True)
    _check_scores(scored)
    if known is not None:
        marks = known_rows(known, scored)
        if marks.all() or not marks.any():
            raise DataError(
                f"{'all' if marks.all() else 'none'} of the {len(marks)} scored rows "
                f"{'are' if marks.all() else 'is'} known to be mislabelled: there is nothing to "
                "tell apart",
                remedy="score rows of both sorts, or leave known= out",
            )
        scored["known"] = marks
    table = scored.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    wanted = ("rank", "row", "text_id", "text", "text_pair", "label", "prediction", "loss", "score",
              "known")  # fmt: skip
    table = table[[name for name in wanted if name in table]]
    curve, measures = (None, _NOTHING) if known is None else _measure(table, config)
    return Mislabel(
        task=source.task,
        split=source.split,
        checkpoint=source.checkpoint,
        strategy=source.strategy,
        measurement=source.measurement,
        table=table,
        curve=curve,
        **measures,
        level=config.level,
        provenance={
            "self_influence": source.provenance,
            "config": config.model_dump(mode="json"),
        },
    )


# --- which rows are known ------------------------------------------------------------------------


def _check_scores(table: pd.DataFrame) -> None:
    if not len(table):
        raise DataError(
            "no rows were scored, so there is nothing to rank", remedy="score at least one row"
        )
    bad = np.flatnonzero(~np.isfinite(table["score"].to_numpy(dtype=np.float64)))
    if len(bad):
        first = table.iloc[int(bad[0])]
        raise NonFiniteError(
            f"the self-influence of row {first['text_id']} is {first['score']}",
            remedy="raise the damping, or fit the factors in float32 or float64",
        )


def known_rows(known: Known, table: pd.DataFrame) -> np.ndarray:
    """(rows of `table`,) whether each is known to be mislabelled; `table` has row and text_id."""
    rows = table["row"].to_numpy(dtype=np.int64)
    if isinstance(known, str | os.PathLike):
        listed = read_row_file(
            known,
            table["text_id"].tolist(),
            where="known:",
            missing="no scored row",
            remedy=f"ids look like {table['text_id'].iloc[0]!r}; score that row too, or leave it "
            "out",
        )
        return np.isin(np.arange(len(table)), listed)
    try:
        given = np.asarray(known if hasattr(known, "__array__") else [*known])  # type: ignore[misc]
    except (TypeError, ValueError):
        given = np.empty(())
    if given.ndim != 1:
        raise DataError(
            f"known is {known!r:.60}, expected a list with one dimension",
            remedy="give True or False for every row of the split, or positions of rows",
        )
    if given.dtype == bool:
        if len(given) <= rows.max():
            raise DataError(
                f"known has {len(given)} entries, but row {rows.max()} of the split was scored",
                remedy="give True or False for every row of the split, or positions of rows",
            )
        marks: np.ndarray = given[rows]
        return marks
    return _positions(given, rows)


def _positions(given: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if len(given) and not np.issubdtype(given.dtype, np.integer):
        raise DataError(
            f"known holds {given.dtype.name} values such as {given[0]!r}",
            remedy="give True or False for every row, whole numbers for positions, or the path of "
            "a file of text ids",
        )
    values, counts = np.unique(given.astype(np.int64), return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"known names row {values[counts > 1][0]} more than once", remedy="name each row once"
        )
    strange = np.setdiff1d(values, rows)
    if len(strange):
        raise DataError(
            f"known names row {strange[0]}, which was not scored "
            f"({len(rows)} rows from {rows.min()} to {rows.max()} were)",
            remedy="score that row too, or leave it out; a mask passes over rows that were not "
            "scored",
        )
    return np.isin(rows, values)


# --- how good the ranking is ---------------------------------------------------------------------

_NOTHING: dict[str, Any] = dict.fromkeys(
    ("average_precision", "average_precision_low", "average_precision_high",
     "average_precision_random", "auc", "auc_low", "auc_high", "p_value")
)  # fmt: skip


@dataclass(frozen=True)
class _Ranking:
    """Rows in ranked order: whether each is known, and where each run of equal scores ends."""

    known: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame) -> _Ranking:
        scores = table["score"].to_numpy(dtype=np.float64)
        ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
        return cls(table["known"].to_numpy(dtype=bool), ends)

    def cumulate(self, counts: np.ndarray) -> tuple[Floats, Floats]:
        """(rows inspected, mislabelled rows found) at the end of every run of equal scores, from
        (0, 0) on, where row i occurs `counts[i]` times."""
        inspected = np.cumsum(counts)[self.ends]
        found = np.cumsum(counts * self.known)[self.ends]
        return np.insert(inspected, 0, 0).astype(float), np.insert(found, 0, 0).astype(float)

    def resample(self, random: np.random.Generator) -> np.ndarray:
        """Counts of a bootstrap replicate: both sorts of rows keep their number, as they did when
        the wrong labels were made."""
        counts = np.zeros(len(self.known), dtype=np.int64)
        for rows in (np.flatnonzero(self.known), np.flatnonzero(~self.known)):
            drawn = random.integers(0, len(rows), size=len(rows))
            counts[rows] = np.bincount(drawn, minlength=len(rows))
        return counts


def _average_precision(inspected: Floats, found: Floats) -> float:
    """sum over runs of (found in the run) x (precision at its end) / K."""
    precision = found[1:] / np.maximum(inspected[1:], 1.0)
    return float(np.diff(found) @ precision / found[-1])


def _auc(inspected: Floats, found: Floats) -> float:
    """Area under recall against the share of the other rows met (trapezoids: ties count half)."""
    others = inspected - found
    area = 0.5 * np.diff(others) @ (found[1:] + found[:-1])
    return float(area / (found[-1] * others[-1]))


def _measure(table: pd.DataFrame, config: MislabelConfig) -> tuple[pd.DataFrame, dict[str, Any]]:
    ranking = _Ranking.of(table)
    size, marked = len(table), int(ranking.known.sum())
    steps = min(size, POINTS)
    grid = np.rint(np.arange(steps + 1) * (size / steps))

    def measures(counts: np.ndarray) -> Floats:
        inspected, found = ranking.cumulate(counts)
        recall = np.interp(grid, inspected, found) / marked
        return np.append(recall, [_average_precision(inspected, found), _auc(inspected, found)])

    random = np.random.default_rng(config.seed)
    estimate = measures(np.ones(size, dtype=np.int64))
    drawn = np.stack(
        [measures(ranking.resample(random)) for _ in range(config.replicates)], axis=-1
    )
    low, high = percentile_interval(drawn, config.level)
    band_low, band_high = _random_band(grid, size, marked, config.level)
    curve = pd.DataFrame(
        {
            "inspected": grid / size,
            "rows": grid.astype(np.int64),
            "recall": estimate[:-2],
            "low": low[:-2],
            "high": high[:-2],
            "random": grid / size,
            "random_low": band_low,
            "random_high": band_high,
        }
    )
    return curve, {
        "average_precision": float(estimate[-2]),
        "average_precision_low": float(low[-2]),
        "average_precision_high": float(high[-2]),
        "average_precision_random": _random_average_precision(size, marked),
        "auc": float(estimate[-1]),
        "auc_low": float(low[-1]),
        "auc_high": float(high[-1]),
        "p_value": _p_value(table),
    }


def _random_band(grid: Floats, size: int, marked: int, level: float) -> tuple[Floats, Floats]:
    """Recall that a random order stays between with probability `level`, at every point alone."""
    from scipy import stats

    law = stats.hypergeom(size, marked, grid.astype(np.int64))
    tail = (1 - level) / 2
    return law.ppf(tail) / marked, law.ppf(1 - tail) / marked


def _random_average_precision(size: int, marked: int) -> float:
    share = (marked - 1) / (size - 1)
    harmonic = float((1.0 / np.arange(1, size + 1)).sum())
    return share + (1 - share) * harmonic / size


def _p_value(table: pd.DataFrame) -> float:
    from scipy import stats

    known = table["known"].to_numpy(dtype=bool)
    scores = table["score"].to_numpy(dtype=np.float64)
    if np.ptp(scores) == 0:
        return 1.0  # one tie: every order is as good
    test = stats.mannwhitneyu(scores[known], scores[~known], alternative="greater")
    return float(test.pvalue)


# --- making wrong labels -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Relabelled(Task):
    """A task with other labels in one split. It reads its rows from `base`, elsewhere too."""

    base: Task | None = None
    relabelled: str = ""
    codes: tuple[int, ...] = ()

    def _examples(self, split: str) -> Examples:
        assert self.base is not None
        examples = self.base.examples(split)
        if split != self.relabelled:
            return examples
        if len(examples) != len(self.codes):
            raise DataError(
                f"{self.name}:{split} has {len(examples)} rows, {len(self.codes)} when its labels "
                "were changed",
                remedy="the file has changed since: corrupt the labels again",
            )
        labels = np.array(self.codes, dtype=np.int64)
        return Examples(examples.ids, examples.texts, labels, examples.columns)


def corrupt_labels(
    task: Task, share: float, *, seed: int = 0, split: str = "train"
) -> tuple[Task, np.ndarray]:
    """`task` with wrong labels in `share` of the rows of `split`, and which rows those are.

    The rows are drawn without replacement, round(share N) of them; each gets one of the other
    classes, all equally likely. Returns the task and a mask (N,): what `known` of `mislabel` takes.
    The other splits are as they were. The task can be pickled and reads its rows where `task` does;
    its `config` describes the data with their own labels.
    """
    if task.kind != "classification" or len(task.label_names) < 2:
        raise ConfigError(
            f"labels of task {task.name} cannot be flipped: it is {task.kind} with "
            f"{len(task.label_names)} classes",
            remedy="use a classification task of two or more classes",
        )
    if not 0 < share < 1:
        raise ConfigError(
            f"share={share!r} must lie between 0 and 1", remedy="0.1 makes every tenth label wrong"
        )
    split = task.resolve(split)
    labels = np.asarray(task.examples(split).labels)
    count = round(share * len(labels))
    if not 0 < count < len(labels):
        raise DataError(
            f"share: {share:g} of the {len(labels)} rows of {task.name}:{split} is {count} rows",
            remedy="choose a share that leaves some rows right and makes some wrong",
        )
    random = np.random.default_rng(seed)
    wrong = random.choice(len(labels), size=count, replace=False)
    classes = len(task.label_names)
    codes = labels.copy()
    codes[wrong] = (labels[wrong] + random.integers(1, classes, size=count)) % classes
    values = {field.name: getattr(task, field.name) for field in fields(Task)}
    values["_read"] = {}
    mask = np.zeros(len(labels), dtype=bool)
    mask[wrong] = True
    return _Relabelled(**values, base=task, relabelled=split, codes=tuple(codes.tolist())), mask
