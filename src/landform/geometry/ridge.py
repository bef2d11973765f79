"""Which examples make the ridge: the losses of single examples where the line is highest.

The convexity gap is a mean over examples, so it is a sum of what each of them contributes. A few
examples that flip, or a small rise of all, give the same gap and mean different things.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from landform.errors import ConfigError
from landform.evaluation.evaluate import example_log
from landform.evaluation.intervals import known_interval, resample_counts
from landform.evaluation.points import Data, PointsWork
from landform.geometry.curves import convexity_gap_location
from landform.geometry.line import InterpolateConfig, Walk, line_work, walk_line
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.study import open_store
from landform.tasks.task import Examples, Task, loss_unit
from landform.weights.checkpoint import Checkpoint

__all__ = ["Ridge", "RidgeConfig", "ridge", "ridge_of"]

Floats = npt.NDArray[np.float64]
Place = tuple[int, int, int]

TOPS = (0.01, 0.05, 0.1)
"""Shares of the examples whose part of the rise is told."""

BLOCK = 1 << 22
"""Numbers in one block of bootstrap counts."""


class RidgeConfig(InterpolateConfig):
    """Options of `ridge`."""

    at: Literal["gap", "barrier"] = "gap"
    """The ridge: that of the convexity gap, or the highest point above the chord of the ends."""
    splits: int = Field(20, ge=1)
    """Random halvings of the examples for the cross-fitted rise."""


@dataclass(frozen=True)
class Ridge(Result):
    """What every example does on the highest ridge between two checkpoints."""

    a: str
    b: str
    data: str
    """the data set whose examples are listed"""
    kind: str
    """kind of the task: losses are in nats, for regression in squared units"""
    t: float
    """position of the ridge, chosen on the first data set"""
    left: float
    """the end of the sub-segment towards a"""
    right: float
    """the end towards b"""
    mean: float
    """mean rise: at a gap's ridge exactly the convexity gap of these examples"""
    mean_low: float
    mean_high: float
    """percentile bootstrap over examples, the ridge held where it is"""
    cross_fit: float
    """mean rise at ridges that were chosen on other examples: free of the choice's upward bias"""
    cross_fit_low: float
    cross_fit_high: float
    rising: float
    """share of examples whose loss rises at all"""
    low: float
    """lower end of the interval of `rising`"""
    high: float
    """upper end"""
    shares: pd.DataFrame
    """top, examples, share_of_rise with low and high: the part of all positive rises that the top
    1, 5, 10 % carry; share_of_mean: their sum over that of all rises, over 1 where others fall"""
    table: pd.DataFrame
    """one row per example, largest rise first: rank, id, text, label, loss_a, loss_b (at `left` and
    `right`), chord, loss (at `t`), rise = loss - chord, cross_fit (its mean rise at ridges chosen
    without it), weight, and for classes prediction_a, prediction_b, prediction"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        unit = loss_unit(self.kind)
        where = f"at t = {self.t:.3g} of {self.left:.3g} to {self.right:.3g} on {self.data}"
        if self.mean <= 0:
            return f"no ridge {where}: the mean loss lies {-self.mean:.3g} {unit} below its chord"
        top = self.shares.iloc[1]
        return (
            f"mean rise {self.mean:.3g} [{self.mean_low:.3g}, {self.mean_high:.3g}] {unit} {where} "
            f"(cross-fitted {self.cross_fit:.3g} [{self.cross_fit_low:.3g}, "
            f"{self.cross_fit_high:.3g}]); {100 * self.rising:.3g} % of the examples rise, "
            f"the top {100 * top.top:.0f} % carry {100 * top.share_of_rise:.3g} % of all rises"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; of the examples the 50 that rise most."""
        left_out = ("shares", "table", "provenance")
        plain = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in left_out}
        return {
            **plain,
            "shares": self.shares.to_dict("records"),
            "examples": len(self.table),
            "top": self.table.head(50).to_dict("records"),
            "provenance": self.provenance,
        }


def ridge(
    a: str | os.PathLike[str] | Checkpoint,
    b: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    of: str | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Ridge:
    """The examples that rise between two checkpoints, and by how much.

    The line is walked as by `interpolate`, and what a `store` keeps of it is reused. On the mean
    curve of the first data set the convexity gap names a ridge t_k and a sub-segment from t_i to
    t_j. Every example n of the data set `of` (a name as in `Interpolation`; default: the first)
    then has

        rise_n = l_n(t_k) - [(t_j - t_k) l_n(t_i) + (t_k - t_i) l_n(t_j)] / (t_j - t_i)

    and the weighted mean of the rises of the first data set *is* the gap. On a convex curve, which
    has no ridge, the point highest above the chord of the two ends stands in: its mean is not
    positive.

    **The control.** The ridge is where these examples happen to rise most, so their mean rise is
    too high. `cross_fit` chooses the place on one random half and measures the other half, both
    ways round, averaged over `splits` halvings (a half without a ridge contributes 0). Its interval
    resamples the examples' cross-fitted rises. Which examples are on top is chosen by their rise
    as well: expect less of them at the ridge of another pair.

    Options are the fields of `RidgeConfig`.
    """
    config = RidgeConfig.parse(options, where="ridge")
    if len(config.ts) < 3:
        raise ConfigError(
            "a line of two points has no inside to look for a ridge in", remedy="use more points"
        )
    work = line_work(a, b, task, split, also, config)
    if len({checkpoint.fingerprint for checkpoint in work.checkpoints}) == 1:
        raise ConfigError(
            f"{work.checkpoints[0].spec} and {work.checkpoints[1].spec} have the same weights: "
            "there is no line between them",
            remedy="name different checkpoints",
        )
    which = _data_set(work, of)
    walk = walk_line(work, config, open_store(store), progress=progress)
    return ridge_of(work, walk, config, which)


def _data_set(work: PointsWork, of: str | None) -> int:
    names = [data.name for data in work.data]
    if of is None:
        return 0
    matches = [i for i, name in enumerate(names) if of in (name, name.partition(":")[0])]
    if len(matches) != 1:
        raise ConfigError(
            f"option of: {'no' if not matches else 'more than one'} data set is called {of!r}",
            remedy=f"there are: {', '.join(names)}",
        )
    return matches[0]


def ridge_of(work: PointsWork, walk: Walk, config: RidgeConfig, which: int = 0) -> Ridge:
    """The table of a line that has been walked; `which` counts the data sets."""
    ts = np.array(walk.ts)
    first = np.stack([point.losses for point in walk.points[0]])
    place = _place(ts, first, walk.points[0][0].tokens, config.at)
    data, points = work.data[which], walk.points[which]
    examples = data.examples(config.rows)
    losses = np.stack([point.losses for point in points])
    weights = np.asarray(points[0].tokens, dtype=np.float64)
    rises = _rises(ts, losses, place)
    held_out = _cross_fitted(ts, first, walk.points[0][0].tokens, losses, config, which == 0)
    table = _table(data, examples, walk, which, place, rises, held_out)
    counts = resample_counts(len(rises), config.replicates, config.seed)
    mean = _mean_interval(rises, weights, counts, config.level)
    crossed = _mean_interval(held_out, weights, counts, config.level)
    up = _mean_interval((rises > 0).astype(np.float64), np.ones(len(rises)), counts, config.level)
    return Ridge(
        a=work.checkpoints[0].spec,
        b=work.checkpoints[1].spec,
        data=data.name,
        kind=data.task.kind,
        t=float(ts[place[1]]),
        left=float(ts[place[0]]),
        right=float(ts[place[2]]),
        **dict(zip(("mean", "mean_low", "mean_high"), mean, strict=True)),
        **dict(zip(("cross_fit", "cross_fit_low", "cross_fit_high"), crossed, strict=True)),
        **dict(zip(("rising", "low", "high"), up, strict=True)),
        shares=_shares(rises * weights, counts, config.level),
        table=table,
        provenance={
            "weights": [c.fingerprint for c in work.checkpoints],
            "located_on": work.data[0].name,
            "config": config.model_dump(mode="json"),
        },
    )


# --- where, and how much -------------------------------------------------------------------------


def _place(ts: Floats, losses: Floats, weights: Floats, at: str) -> Place:
    """Indices (i, k, j) of the ridge of the mean curve; losses (points, examples)."""
    curve = np.average(losses, axis=1, weights=weights)
    found = convexity_gap_location(curve, t=ts) if at == "gap" else None
    if found is not None:
        return int(found[0]), int(found[1]), int(found[2])
    share = (ts - ts[0]) / (ts[-1] - ts[0])
    above = curve - (1 - share) * curve[0] - share * curve[-1]
    return 0, 1 + int(above[1:-1].argmax()), len(ts) - 1


def _rises(ts: Floats, losses: Floats, place: Place) -> Floats:
    """Loss at the ridge minus the chord of the example's own losses, per example."""
    rises: Floats = losses[place[1]] - _chord(ts, losses, place)
    return rises


def _chord(ts: Floats, losses: Floats, place: Place) -> Floats:
    i, k, j = place
    share = (ts[k] - ts[i]) / (ts[j] - ts[i])
    chord: Floats = (1 - share) * losses[i] + share * losses[j]
    return chord


def _cross_fitted(
    ts: Floats, first: Floats, weights: Floats, losses: Floats, config: RidgeConfig, same: bool
) -> Floats:
    """Every example's rise at ridges chosen on halves of the first data set without it.

    Where the examples are not those of the first data set (`same` is False), a halving divides both
    data sets, so that the two kinds of tables are made in one way.
    """
    random = np.random.default_rng(config.seed)
    total = np.zeros(losses.shape[1])
    for _ in range(config.splits):
        chooses = _half(random, first.shape[1])
        measured = chooses if same else _half(random, losses.shape[1])
        for side in (True, False):
            chosen = chooses == side
            if not (weights[chosen] > 0).any():
                continue
            place = _ridge_only(ts, first[:, chosen], weights[chosen], config.at)
            if place is not None:
                others = measured != side
                total[others] += _rises(ts, losses[:, others], place)
    return total / config.splits


def _half(random: np.random.Generator, n: int) -> npt.NDArray[np.bool_]:
    half = np.zeros(n, dtype=bool)
    half[random.permutation(n)[: n // 2]] = True
    return half


def _ridge_only(ts: Floats, losses: Floats, weights: Floats, at: str) -> Place | None:
    """The place of a ridge, None where the mean curve has none."""
    place = _place(ts, losses, weights, at)
    rise = float(np.average(_rises(ts, losses, place), weights=weights))
    return place if rise > 0 else None


# --- tables and intervals ------------------------------------------------------------------------


def _mean_interval(
    values: Floats, weights: Floats, counts: Floats, level: float
) -> tuple[float, float, float]:
    """Weighted mean and its percentile bootstrap interval over examples."""
    with np.errstate(invalid="ignore"):
        drawn = (counts @ (weights * values)) / (counts @ weights)
    return float(np.average(values, weights=weights)), *known_interval(drawn, level)


def _shares(rises: Floats, counts: Floats, level: float) -> pd.DataFrame:
    """What the top examples carry, with intervals: a replicate has a top of its own."""
    order = np.argsort(-rises, kind="stable")
    ranked = rises[order]
    positive = np.maximum(ranked, 0.0)
    rows = []
    for top in TOPS:
        size = max(1, round(top * len(rises)))
        drawn = _drawn_shares(positive, counts[:, order], size)
        whole, part = positive.sum(), positive[:size].sum()
        low, high = known_interval(drawn, level)
        rows.append(
            {
                "top": top,
                "examples": size,
                "share_of_rise": float(part / whole) if whole > 0 else np.nan,
                "low": low,
                "high": high,
                "share_of_mean": float(ranked[:size].sum() / rises.sum())
                if rises.sum() > 0
                else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _drawn_shares(positive: Floats, counts: Floats, size: int) -> Floats:
    """Share of the `size` largest of every replicate in its sum; `positive` is falling."""
    parts = []
    for start in range(0, len(counts), max(1, BLOCK // counts.shape[1])):
        block = counts[start : start + max(1, BLOCK // counts.shape[1])]
        before = np.cumsum(block, axis=1) - block
        taken = np.clip(size - before, 0.0, block)
        whole = block @ positive
        parts.append((taken @ positive)[whole > 0] / whole[whole > 0])
    return np.concatenate(parts)


def _table(
    data: Data,
    examples: Examples,
    walk: Walk,
    which: int,
    place: Place,
    rises: Floats,
    held_out: Floats,
) -> pd.DataFrame:
    """One row per example, largest rise first."""
    i, k, j = place
    points = walk.points[which]
    ends, top = (points[i], points[j]), points[k]
    log = example_log(data.task, examples, top)
    texts = [column for column in ("text", "text_pair", "label") if column in log]
    losses = np.stack([point.losses for point in points])
    columns: dict[str, Any] = {"id": log["text_id"], **{name: log[name] for name in texts}}
    columns |= {
        "loss_a": ends[0].losses,
        "loss_b": ends[1].losses,
        "chord": _chord(np.array(walk.ts), losses, place),
        "loss": top.losses,
        "rise": rises,
        "cross_fit": held_out,
        "weight": np.asarray(top.tokens, dtype=np.float64),
    }
    if "prediction" in log:
        for name, point in (("prediction_a", ends[0]), ("prediction_b", ends[1])):
            columns[name] = example_log(data.task, examples, point)["prediction"]
        columns["prediction"] = log["prediction"]
    # By the contribution to the mean: for language models long texts weigh more.
    order = np.argsort(-rises * columns["weight"], kind="stable")
    table = pd.DataFrame(columns).iloc[order].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table
