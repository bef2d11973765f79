"""The linear datamodelling score: do scores predict what retraining on part of the data gives?

Train again on M random parts of the N training rows (masks, each keeping half of them, say) and
measure every query in every retrained model. If influence were additive, the measurement under
mask m would be a constant plus the sum of the scores of the rows that m keeps. The score of a
query is the rank correlation between the two over masks,

    LDS_q = Spearman_m( sum_i mask_mi score_qi , truth_mq )

and a method's is the mean over queries (Park et al. 2023, section 4). The truth is oriented so that
larger is better (a margin, minus a loss), as scores are: positive is helpful.

Masks and queries are both samples, and another draw of either would give another number, so the
interval is a bootstrap over both: each replicate resamples the masks, ranks again within them, and
averages over resampled queries. The same resamples serve all methods, which pairs them. The truth
is itself noisy, since a retrained model also depends on its seed: with several retrainings of each
mask, `reliability` says how well one half of them predicts the other half, and no method can be
expected to do better than `ceiling`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.intervals import percentile_interval, resample_counts
from landform.results import Result

__all__ = [
    "LinearDatamodelling",
    "linear_datamodelling",
    "linear_datamodelling_score",
    "read_margins",
    "read_masks",
    "reliability",
]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LinearDatamodelling(Result):
    """Linear datamodelling scores of some methods, against the same retrained models."""

    task: str
    measurement: str
    table: pd.DataFrame
    """method, lds (mean over queries), low, high: in the order the methods were given"""
    differences: pd.DataFrame
    """method, other, difference (of their lds), low, high: paired, for every pair of methods"""
    per_query: pd.DataFrame
    """query, text_id, method, lds (NaN where the truth or the prediction never changes)"""
    masks: int
    retrainings: int
    """models averaged for each mask; 0 where the file does not tell"""
    fraction: float
    """mean share of the rows that a mask keeps"""
    level: float
    """coverage of the intervals"""
    reliability: float
    """mean Spearman over masks between the truths of two halves of the retrainings; NaN where
    each mask was trained once"""
    timings: dict[str, float]
    """seconds of each phase"""
    provenance: dict[str, Any]

    @property
    def ceiling(self) -> float:
        """The correlation that the noiseless truth itself would be expected to have with this one.

        sqrt(2 r / (1 + r)) with r the reliability of half the retrainings (Spearman-Brown and the
        correction for attenuation; exact for Pearson and equal halves).
        """
        r = max(self.reliability, 0.0)
        return math.sqrt(2 * r / (1 + r))

    @property
    def reading(self) -> str:
        """One line for a person."""
        parts = [
            f"{row.method} {row.lds:.3f} [{row.low:.3f}, {row.high:.3f}]"
            for row in self.table.itertuples()
        ]
        text = (
            f"linear datamodelling score on {self.per_query['query'].nunique()} queries of "
            f"{self.task} over {self.masks} masks: " + ", ".join(parts)
        )
        if math.isfinite(self.reliability):
            text += f"; at best about {self.ceiling:.2f} can be expected with this truth"
        return text

    def to_json(self) -> dict[str, Any]:
        """Plain values; the scores of single queries stay a table."""
        return {
            "task": self.task,
            "measurement": self.measurement,
            "methods": self.table.to_dict("records"),
            "differences": self.differences.to_dict("records"),
            "masks": self.masks,
            "retrainings": self.retrainings,
            "fraction": self.fraction,
            "level": self.level,
            "reliability": self.reliability if math.isfinite(self.reliability) else None,
            "ceiling": self.ceiling if math.isfinite(self.reliability) else None,
            "timings": self.timings,
            "provenance": self.provenance,
        }


# --- the statistic ------------------------------------------------------------------------------


def linear_datamodelling_score(
    values: npt.ArrayLike, masks: npt.ArrayLike, targets: npt.ArrayLike
) -> Floats:
    """(Q,) rank correlation over masks of masks @ values.T with targets.

    values: (Q, N) scores, positive = helpful. masks: (M, N), 1 where a row was kept. targets:
    (M, Q) what the retrained models say, larger = better, or (M, R, Q) for R retrainings, which
    are averaged. Equal values share their mean rank. NaN for a query whose targets or predictions
    never change.
    """
    scores, kept, truth = _aligned(values, masks, targets)
    return _correlations(kept @ scores.T, truth.mean(1), np.ones((1, len(kept))))[:, 0]


def linear_datamodelling(
    methods: Mapping[str, npt.ArrayLike],
    masks: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    task: str = "",
    measurement: str = "margin",
    text_ids: Sequence[str] | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    retrainings: int | None = None,
    timings: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> LinearDatamodelling:
    """The scores of several methods with intervals (see the module's docstring).

    methods: name -> (Q, N) scores. Further arguments as for `linear_datamodelling_score`;
    `retrainings` says how many were averaged where `targets` is (M, Q).
    """
    if not methods:
        raise ConfigError("there are no methods to compare", remedy="give the scores of one")
    aligned = {name: _aligned(values, masks, targets, name) for name, values in methods.items()}
    kept, truth = next(iter(aligned.values()))[1:]
    queries = truth.shape[2]
    once = np.ones((1, len(kept)))
    counts = resample_counts(len(kept), replicates, seed)
    shares = resample_counts(queries, replicates, seed + 1).T  # (Q, R)
    means, single = {}, {}
    for name, (scores, _, _) in aligned.items():
        both = _correlations(kept @ scores.T, truth.mean(1), np.concatenate([once, counts]))
        single[name] = both[:, 0]
        if not np.isfinite(single[name]).any():
            raise DataError(
                f"{name}: no query has both a truth and a prediction that change between masks",
                remedy="use more masks, or queries that the models do not all answer alike",
            )
        means[name] = _mean_over_queries(both[:, 1:], shares)
    return LinearDatamodelling(
        task=task,
        measurement=measurement,
        table=_table({name: (np.nanmean(single[name]), means[name]) for name in aligned}, level),
        differences=_differences(single, means, level),
        per_query=_per_query(single, text_ids),
        masks=len(kept),
        retrainings=_count(truth, np.asarray(targets), retrainings),
        fraction=float(kept.mean()),
        level=level,
        reliability=reliability(truth),
        timings=dict(timings or {}),
        provenance=dict(provenance or {}),
    )


def _count(truth: Floats, given: np.ndarray, told: int | None) -> int:
    if told is not None:
        return told
    return truth.shape[1] if given.ndim == 3 else 0


def reliability(targets: npt.ArrayLike) -> float:
    """How well half of the retrainings predicts the other half: (M, R, Q) -> mean Spearman.

    The mean over queries and over all ways to part R retrainings into halves (of R // 2 and the
    rest). NaN for R = 1. It is about half of them: all of them together are more reliable.
    """
    truth = np.asarray(targets, dtype=np.float64)
    if truth.ndim != 3 or truth.shape[1] < 2:
        return math.nan
    runs = range(truth.shape[1])
    once, found = np.ones((1, len(truth))), []
    for half in combinations(runs, len(runs) // 2):
        rest = [run for run in runs if run not in half]
        if len(rest) == len(half) and 0 in rest:
            continue  # the same two halves, the other way round
        found.append(_correlations(truth[:, list(half)].mean(1), truth[:, rest].mean(1), once))
    values = np.concatenate(found)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _correlations(a: Floats, b: Floats, counts: Floats) -> Floats:
    """(Q, R): Spearman of the columns of a and b (M, Q), mask m occurring counts[r, m] times."""
    found = np.empty((a.shape[1], len(counts)))
    middle = (counts.sum(1, keepdims=True) + 1) / 2
    for query in range(a.shape[1]):
        x = _ranks(a[:, query], counts) - middle
        y = _ranks(b[:, query], counts) - middle
        weighted = counts * x
        with np.errstate(invalid="ignore", divide="ignore"):
            found[query] = (weighted * y).sum(1) / np.sqrt(
                (weighted * x).sum(1) * (counts * y * y).sum(1)
            )
    return found


def _ranks(values: Floats, counts: Floats) -> Floats:
    """(R, M) ranks from 1 of M values of which number m occurs counts[r, m] times; equal values
    share their mean rank."""
    order = np.argsort(values, kind="stable")
    risen = np.diff(values[order]) > 0
    group = np.concatenate([[0], np.cumsum(risen)])
    starts = np.concatenate([[0], np.flatnonzero(risen) + 1])
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    middles = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    ranks = np.empty_like(counts)
    ranks[:, order] = middles[:, group]
    return ranks


def _mean_over_queries(values: Floats, shares: Floats) -> Floats:
    """(R,) means of (Q, R), each replicate over its own resample of the queries that have a value
    in it; NaN where none has. Replicate r is the same resample for every method."""
    there = np.isfinite(values)
    weights = shares * there
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (weights * np.where(there, values, 0.0)).sum(0) / weights.sum(0)
    return means


def _interval(replicates: Floats, level: float) -> tuple[float, float]:
    """Percentiles of the replicates that have a value."""
    low, high = percentile_interval(replicates[np.isfinite(replicates)], level)
    return float(low), float(high)


def _table(found: Mapping[str, tuple[Any, Floats]], level: float) -> pd.DataFrame:
    rows = []
    for name, (estimate, replicates) in found.items():
        rows.append((name, float(estimate), *_interval(replicates, level)))
    return pd.DataFrame(rows, columns=["method", "lds", "low", "high"])


def _differences(
    single: Mapping[str, Floats], means: Mapping[str, Floats], level: float
) -> pd.DataFrame:
    rows = []
    for one, other in combinations(single, 2):
        difference = float(np.nanmean(single[one]) - np.nanmean(single[other]))
        rows.append((one, other, difference, *_interval(means[one] - means[other], level)))
    return pd.DataFrame(rows, columns=["method", "other", "difference", "low", "high"])


def _per_query(single: Mapping[str, Floats], text_ids: Sequence[str] | None) -> pd.DataFrame:
    tables = []
    for name, values in single.items():
        ids = [str(i) for i in range(len(values))] if text_ids is None else list(text_ids)
        if len(ids) != len(values):
            raise ConfigError(f"{len(ids)} text ids for {len(values)} queries")
        columns = {"query": range(len(values)), "text_id": ids, "method": name, "lds": values}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _aligned(
    values: npt.ArrayLike, masks: npt.ArrayLike, targets: npt.ArrayLike, name: str = "the scores"
) -> tuple[Floats, Floats, Floats]:
    """Scores (Q, N), masks (M, N), targets (M, R, Q) in float64; an error names what misfits."""
    scores, kept = np.asarray(values, dtype=np.float64), np.asarray(masks, dtype=np.float64)
    truth = np.asarray(targets, dtype=np.float64)
    truth = truth[:, None] if truth.ndim == 2 else truth
    for what, array, axes in (("scores", scores, 2), ("masks", kept, 2), ("targets", truth, 3)):
        if array.ndim != axes or not array.size:
            raise DataError(f"{what} have the shape {array.shape}, expected {axes} axes, not empty")
    if scores.shape[1] != kept.shape[1]:
        raise DataError(
            f"{name} are of {scores.shape[1]} training rows, the masks of {kept.shape[1]}",
            remedy="score exactly the rows that the masks are made for",
        )
    if len(kept) != len(truth):
        raise DataError(f"there are {len(kept)} masks, but targets of {len(truth)}")
    if scores.shape[0] != truth.shape[2]:
        raise DataError(
            f"{name} are of {scores.shape[0]} queries, the targets of {truth.shape[2]}",
            remedy="score exactly the queries that were measured, in their order",
        )
    if len(kept) < 3:
        raise DataError(f"{len(kept)} masks are too few for a rank correlation", remedy="use 20")
    if not np.isin(kept, (0, 1)).all():
        raise DataError("masks hold other numbers than 0 and 1", remedy="1 means a row was kept")
    for what, array in ((name, scores), ("the targets", truth)):
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise NonFiniteError(f"{what} hold {array[where]} at {where}")
    return scores, kept, truth


# --- published files ----------------------------------------------------------------------------


def read_masks(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> np.ndarray:
    """(M, N) masks as booleans, from any of the formats of `read_margins`."""
    masks = _read(Path(path).expanduser(), "masks", allow_pickle)
    if masks.ndim != 2 or not np.isin(masks, (0, 1)).all():
        raise DataError(
            f"{path} is not a table of masks: shape {masks.shape}, values from {masks.min()} to "
            f"{masks.max()}",
            remedy="one line per mask and one column per training row, 1 where it was kept",
        )
    return masks.astype(bool)


def read_margins(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> Floats:
    """(M, Q) or (M, R, Q) margins of retrained models, float64.

    .npy, .npz and .safetensors hold one array, or one of this name; .csv has no header line. .pt
    holds a tensor, or a pickled numpy array, as published files do: a pickle can run code when
    read, so that needs `allow_pickle`.
    """
    margins = _read(Path(path).expanduser(), "margins", allow_pickle).astype(np.float64)
    if margins.ndim not in (2, 3):
        raise DataError(f"{path}: margins of shape {margins.shape}, expected (masks, queries)")
    return margins


def _read(path: Path, name: str, allow_pickle: bool) -> np.ndarray:
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".csv": _csv}
    if path.suffix not in (*readers, ".pt"):
        raise DataError(
            f"{path}: files ending in {path.suffix or 'nothing'} are not read here",
            remedy=f"use one of {', '.join((*readers, '.pt'))}",
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file", remedy="check the path")
    try:
        found = _pt(path, allow_pickle) if path.suffix == ".pt" else readers[path.suffix](path)
    except (DataError, ConfigError):
        raise
    except Exception as error:  # each format has its own
        raise DataError(
            f"{path} cannot be read: {' '.join(str(error).split())[:300]}",
            remedy="the file may be truncated: copy or download it again",
        ) from None
    if isinstance(found, Mapping):
        if name not in found and len(found) != 1:
            raise DataError(f"{path} holds {', '.join(found)}", remedy=f"name one of them {name}")
        found = found[name] if name in found else next(iter(found.values()))
    array = np.asarray(found)
    if array.dtype == object or not array.size:
        raise DataError(f"{path} holds no table of numbers", remedy="one row per mask")
    return array


def _npy(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


def _npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _safetensors(path: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(path)


def _csv(path: Path) -> Any:
    return np.loadtxt(path, delimiter=",", ndmin=2)


def _pt(path: Path, allow_pickle: bool) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        if not allow_pickle:
            raise ConfigError(
                f"{path} is a pickle, which can run code when read",
                remedy="pass allow_pickle (--allow-pickle) if you trust whoever made it",
            ) from None
    return torch.load(path, map_location="cpu", weights_only=False)
