"""How basins relate to behaviour: effect sizes, permutation tests, and the in-domain confound.

Basins are labels without an order, and few checkpoints make few data: so differences are given as
an AUC (a rank measure with a meaning at any sample size), p values come from permutations, and the
in-domain metric stands beside every out-of-distribution claim, as a row of its own and as the
control of a partial correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from landform.config import nearest
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.intervals import percentile_interval, resample_counts

__all__ = [
    "BasinStatistics",
    "GroupPair",
    "PredictorStatistics",
    "basin_statistics",
    "basin_summary",
    "basin_table",
    "centroid_predictor",
    "finite_values",
    "partial_correlation",
    "pearson",
]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

EXACT = 50_000
"""Up to this many divisions of the checkpoints are enumerated; beyond, they are sampled."""

BLOCK = 1 << 20
"""Numbers in one block of sampled permutations."""


class GroupPair(NamedTuple):
    """A number for the checkpoints in the basin and one for the rest."""

    in_basin: float
    rest: float


@dataclass(frozen=True)
class BasinStatistics:
    """How a metric differs between the checkpoints of a basin and the rest."""

    auc: float
    """P(a checkpoint of the larger group has the higher value) + 1/2 P(equal)"""
    auc_low: float
    auc_high: float
    """ends of the bootstrap interval of the AUC"""
    rank_biserial: float
    """2 AUC - 1: 1 if the larger group is always higher, -1 if always lower"""
    p_value: float
    """of |AUC - 1/2| under permutations of the labels, two-sided"""
    exact: bool
    """whether all divisions were enumerated"""
    means: GroupPair
    deviations: GroupPair
    """standard deviations with n - 1; NaN for a group of one"""
    sizes: GroupPair

    @property
    def reading(self) -> str:
        """One line for a person."""
        inside, rest = self.means
        return (
            f"mean {inside:.4g} in the basin ({self.sizes.in_basin:.0f}), {rest:.4g} in the rest "
            f"({self.sizes.rest:.0f}): "
            f"AUC {self.auc:.3f} [{self.auc_low:.3f}, {self.auc_high:.3f}], "
            f"rank-biserial {self.rank_biserial:+.3f}, p = {self.p_value:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("means", "deviations", "sizes"):
            pair = plain[name]._asdict()
            plain[name] = {key: None if np.isnan(value) else value for key, value in pair.items()}
        return plain


@dataclass(frozen=True)
class PredictorStatistics:
    """How well a continuous predictor goes with a metric over checkpoints."""

    pearson_r: float
    spearman_rho: float
    p_value: float
    """of |Pearson r| under permutations of the metric, two-sided"""
    n: int


# --- input ---------------------------------------------------------------------------------------


def finite_values(values: npt.ArrayLike, what: str) -> Floats:
    """Values (N,), N >= 1, as float64: a Series, or anything that numpy reads as numbers.

    Raises `DataError` for another shape and `NonFiniteError` that names the checkpoint; `what` is
    what they are called.
    """
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are not numbers: {error}") from error
    if found.ndim != 1 or not len(found):
        raise DataError(f"{what} have shape {found.shape}, expected one number per checkpoint")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        name = values.index[bad[0]] if isinstance(values, pd.Series) else bad[0]
        raise NonFiniteError(
            f"{what}: checkpoint {name!s} has {found[bad[0]]}", remedy="leave that checkpoint out"
        )
    return found


def _mask(in_basin: npt.ArrayLike, n: int) -> Mask:
    """The membership as Booleans (n,), both groups filled."""
    given = np.asarray(in_basin)
    if given.shape != (n,):
        raise DataError(f"in_basin has shape {given.shape}, expected ({n},): one entry per value")
    if given.dtype != bool:
        if not np.isin(given, (0, 1)).all():
            raise DataError(
                "in_basin must be True or False for every checkpoint",
                remedy="compare the basins first, for example study.basins == 0",
            )
        given = given.astype(bool)
    if given.all() or not given.any():
        empty = "rest" if given.all() else "basin"
        raise DataError(f"the {empty} is empty: two groups are needed to compare")
    return given


def _aligned(values: npt.ArrayLike, other: npt.ArrayLike, what: str) -> npt.ArrayLike:
    """`other` in the order of `values`, by name where both carry names."""
    if isinstance(values, pd.Series) and isinstance(other, pd.Series):
        missing = values.index.symmetric_difference(other.index)
        if len(missing):
            raise DataError(f"{what}: {missing[0]!r} is in one of the two Series only")
        ordered: npt.ArrayLike = other.reindex(values.index).to_numpy()
        return ordered
    return other


# --- two groups ----------------------------------------------------------------------------------


def basin_statistics(
    values: npt.ArrayLike,
    in_basin: npt.ArrayLike,
    *,
    permutations: int = 9999,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> BasinStatistics:
    """Compare a metric between the checkpoints of a basin and all others.

    `values` (N,): the metric of each checkpoint; `in_basin` (N,): whether it is in the basin. Two
    Series are aligned by name.

    AUC = P(value from the larger group > value from the smaller group) + 1/2 P(tie), over all pairs
    of checkpoints (the Mann-Whitney U over its maximum). A basin and its complement are the same
    division, so the mask and its complement give the same AUC; of groups of equal size
    the first is `in_basin`. rank_biserial = 2 AUC - 1. `means` and `deviations` (n - 1 form) are
    those of `in_basin` and of the rest, in this order.

    p is the share of divisions into groups of these sizes whose |AUC - 1/2| is at least the
    observed one: enumerated up to 50,000 divisions, else (b + 1) / (m + 1) from m seeded
    `permutations`.
    The interval resamples checkpoints within each group; a group of one contributes no
    variation, so the interval is then too narrow.

    Raises DataError on shapes and empty groups, NonFiniteError naming the checkpoint.
    """
    numbers = finite_values(values, "values")
    member = _mask(_aligned(values, in_basin, "in_basin"), len(numbers))
    first = member if 2 * member.sum() >= len(member) else ~member
    return _compare(numbers, member, first, permutations, replicates, seed, level)


def _compare(
    values: Floats,
    member: Mask,
    first: Mask,
    permutations: int,
    replicates: int,
    seed: int,
    level: float,
) -> BasinStatistics:
    """Statistics of `member` against the rest, the AUC being that of `first` over the others."""
    wins = _wins(values[first], values[~first])
    auc = float(wins.mean())
    low, high = _auc_interval(wins, replicates, seed, level)
    p_value, exact = _permutation_p(values, int(first.sum()), auc, permutations, seed)
    groups = values[member], values[~member]
    return BasinStatistics(
        auc=auc,
        auc_low=low,
        auc_high=high,
        rank_biserial=2.0 * auc - 1.0,
        p_value=p_value,
        exact=exact,
        means=GroupPair(*(float(group.mean()) for group in groups)),
        deviations=GroupPair(*(_deviation(group) for group in groups)),
        sizes=GroupPair(*(len(group) for group in groups)),
    )


def _deviation(values: Floats) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _wins(first: Floats, second: Floats) -> Floats:
    """1 where the first group's value is higher, 1/2 at ties (n_first, n_second)."""
    difference = first[:, None] - second
    return 0.5 * (1.0 + np.sign(difference))


def _auc_interval(wins: Floats, replicates: int, seed: int, level: float) -> tuple[float, float]:
    """Percentile interval; groups are resampled independently, each with a stream of its own."""
    rows, columns = wins.shape
    first = resample_counts(rows, replicates, seed)
    second = resample_counts(columns, replicates, seed + 1)
    drawn = ((first @ wins) * second).sum(axis=1) / wins.size
    low, high = percentile_interval(drawn, level)
    return float(low), float(high)


def _permutation_p(
    values: Floats, size: int, auc: float, permutations: int, seed: int
) -> tuple[float, bool]:
    """Two-sided p of |AUC - 1/2| over divisions into `size` and the rest; whether it is exact."""
    if permutations < 1:
        raise ConfigError(f"permutations={permutations} must be at least 1")
    n = len(values)
    few = min(size, n - size)
    ranks = rankdata(values)
    # |AUC - 1/2| is the distance of the rank sum of either group from its expectation, over n1 n2.
    observed = abs(auc - 0.5) * size * (n - size)
    expected = few * (n + 1) / 2.0
    tolerance = 1e-9 * n * n
    if comb(n, few) <= EXACT:
        chosen = np.array(list(combinations(range(n), few)))
        sums = ranks[chosen].sum(axis=1)
        return float(np.mean(np.abs(sums - expected) >= observed - tolerance)), True
    random = np.random.default_rng(seed)
    extreme, step = 0, max(1, BLOCK // n)
    for start in range(0, permutations, step):
        keys = random.random((min(step, permutations - start), n))
        chosen = np.argpartition(keys, few - 1, axis=1)[:, :few]
        sums = ranks[chosen].sum(axis=1)
        extreme += int((np.abs(sums - expected) >= observed - tolerance).sum())
    return (extreme + 1) / (permutations + 1), False


# --- correlations --------------------------------------------------------------------------------


def pearson(x: Floats, y: Floats) -> float:
    """Pearson's r of x and y (N,); NaN where one side does not vary."""
    a, b = x - x.mean(), y - y.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    # A constant column leaves only rounding errors after the mean is taken off.
    still = np.abs(a).max() <= 1e-12 * np.abs(x).max() or np.abs(b).max() <= 1e-12 * np.abs(y).max()
    return float("nan") if still or scale == 0 else float(np.clip(a @ b / scale, -1.0, 1.0))


def partial_correlation(x: npt.ArrayLike, y: npt.ArrayLike, control: npt.ArrayLike) -> float:
    """Pearson correlation of x and y (N,) with `control` (N,) held fixed.

    r = (r_xy - r_xc r_yc) / sqrt((1 - r_xc^2) (1 - r_yc^2)): the correlation of what a straight
    line in `control` leaves of x and of y. NaN where x or y is such a line or does not vary.
    Booleans count as 0 and 1. Raises DataError on lengths, NonFiniteError naming the entry.
    """
    names = ("x", "y", "control")
    first, second, third = (
        finite_values(_aligned(x, values, name), name)
        for values, name in zip((x, y, control), names, strict=True)
    )
    if not len(first) == len(second) == len(third) or len(first) < 3:
        raise DataError(
            f"x, y and control have lengths {len(first)}, {len(second)}, {len(third)}: "
            "three equal ones of at least 3 are needed"
        )
    if np.isnan(pearson(third, third)):
        return pearson(first, second)
    if np.isnan(pearson(first, first)) or np.isnan(pearson(second, second)):
        return float("nan")
    centred = third - third.mean()
    left, right = (
        values - values.mean() - centred * (centred @ values) / (centred @ centred)
        for values in (first, second)
    )
    for rest, values in ((left, first), (right, second)):
        if np.linalg.norm(rest) <= 1e-9 * np.linalg.norm(values - values.mean()):
            return float("nan")
    return pearson(left, right)


def centroid_predictor(
    difference: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    permutations: int = 9999,
    seed: int = 0,
) -> PredictorStatistics:
    """How the difference of centroid distances goes with a metric over checkpoints (N,).

    `difference` is `Clustering.centroid_difference`: distance to the centroid of basin 1 minus
    distance to that of basin 0, so a positive r means: the nearer to the largest basin, the higher.
    p is the share of seeded permutations of the metric with at least the observed |r|,
    (b + 1) / (m + 1). Where one side does not vary, r and rho are NaN and p is 1.
    """
    y = finite_values(values, "values")
    x = finite_values(_aligned(values, difference, "difference"), "difference")
    if len(x) != len(y) or len(x) < 3:
        raise DataError(f"{len(x)} differences and {len(y)} values: 3 or more pairs are needed")
    if permutations < 1:
        raise ConfigError(f"permutations={permutations} must be at least 1")
    r, rho = pearson(x, y), pearson(rankdata(x), rankdata(y))
    if np.isnan(r):
        return PredictorStatistics(r, rho, 1.0, len(x))
    a, b = x - x.mean(), y - y.mean()
    random = np.random.default_rng(seed)
    observed = abs(float(a @ b))
    drawn = np.abs(random.permuted(np.tile(b, (permutations, 1)), axis=1) @ a)
    extreme = int((drawn >= observed * (1 - 1e-9)).sum())
    return PredictorStatistics(r, rho, (extreme + 1) / (permutations + 1), len(x))


# --- tables --------------------------------------------------------------------------------------

TABLE_COLUMNS = (
    "metric", "role", "n_basin", "n_rest", "mean_basin", "sd_basin", "mean_rest", "sd_rest",
    "auc", "auc_low", "auc_high", "rank_biserial", "p_value",
    "pearson_r", "spearman_rho", "predictor_p", "partial_r",
)  # fmt: skip
"""Columns of `basin_table`."""


def basin_table(
    basins: pd.Series,
    endpoints: pd.DataFrame,
    ood: Sequence[str],
    in_domain: str | None = None,
    centroid_difference: pd.Series | None = None,
    *,
    permutations: int = 9999,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """The largest basin against all other checkpoints, one row per metric.

    `basins`: name -> basin (0 the largest); `endpoints`: name x metric. Rows are the `ood` columns
    and the `in_domain` column, the confound to compare them with (role "ood" or "in-domain").

    "basin" in the column names is basin 0. `auc` is that of basin 0 over the rest, which is
    `basin_statistics` whenever basin 0 holds at least half of the checkpoints. `pearson_r`,
    `spearman_rho` and `predictor_p` are `centroid_predictor`'s; `partial_r` is the correlation of
    membership and metric with the in-domain metric held fixed. What does not exist is NaN: all
    comparisons where there is one basin, `partial_r` in the row of the in-domain metric itself,
    and everything about a metric that some checkpoint does not have (NaN among its values).

    Raises ConfigError naming an unknown column and DataError where the names do not match.
    """
    wanted = [(name, "ood") for name in ood]
    if in_domain is not None:
        wanted.append((in_domain, "in-domain"))
    ordered = _match(basins, endpoints, [name for name, _ in wanted])
    member = (ordered == 0).to_numpy()
    rows = []
    for name, role in wanted:
        values = endpoints[name].astype(np.float64)
        numbers = np.asarray(values, dtype=np.float64)
        row: dict[str, Any] = {"metric": name, "role": role, **_group_columns(numbers, member)}
        rows.append(row)
        if not np.isfinite(numbers).all():
            continue
        if member.any() and not member.all():
            found = _compare(numbers, member, member, permutations, replicates, seed, level)
            row |= {key: getattr(found, key) for key in TABLE_COLUMNS[8:13]}
            if in_domain is not None and role == "ood" and name != in_domain and len(member) > 2:
                control = endpoints[in_domain].to_numpy(dtype=np.float64)
                if np.isfinite(control).all():
                    row["partial_r"] = partial_correlation(member, numbers, control)
        if centroid_difference is not None and len(numbers) > 2:
            predictor = centroid_predictor(
                centroid_difference, values, permutations=permutations, seed=seed
            )
            row["pearson_r"] = predictor.pearson_r
            row["spearman_rho"] = predictor.spearman_rho
            row["predictor_p"] = predictor.p_value
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    return table.astype({name: np.float64 for name in TABLE_COLUMNS[4:]})


def basin_summary(basins: pd.Series, endpoints: pd.DataFrame) -> pd.DataFrame:
    """Every basin's own numbers, long: columns basin, metric, n, mean, sd, min, max.

    `sd` has n - 1 in it and is NaN for a basin of one; a metric that is NaN for a checkpoint is NaN
    for its basin. Raises DataError where the names of `basins` and `endpoints` do not match.
    """
    ordered = _match(basins, endpoints, list(endpoints.columns))
    rows = []
    for basin in sorted(ordered.unique()):
        inside = (ordered == basin).to_numpy()
        for name in endpoints.columns:
            values = endpoints[name].to_numpy(dtype=np.float64)[inside]
            rows.append(
                {
                    "basin": int(basin),
                    "metric": name,
                    "n": len(values),
                    "mean": float(values.mean()),
                    "sd": _deviation(values),
                    "min": float(values.min()),
                    "max": float(values.max()),
                }
            )
    return pd.DataFrame(rows, columns=["basin", "metric", "n", "mean", "sd", "min", "max"])


def _group_columns(values: Floats, member: Mask) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for side, chosen in (("basin", member), ("rest", ~member)):
        group = values[chosen]
        row[f"n_{side}"] = len(group)
        row[f"mean_{side}"] = float(group.mean()) if len(group) else float("nan")
        row[f"sd_{side}"] = _deviation(group)
    return row


def _match(basins: pd.Series, endpoints: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The basins in the order of the endpoints, after a look at names and columns."""
    known = [str(name) for name in endpoints.columns]
    for name in columns:
        if name not in endpoints.columns:
            raise ConfigError(
                f"there is no endpoint metric {name!r}",
                remedy=f"did you mean {nearest(str(name), known)!r}?",
            )
    for index, what in ((basins.index, "basins"), (endpoints.index, "endpoints")):
        if not len(index):
            raise DataError(f"{what} hold no checkpoints")
        if index.has_duplicates:
            raise DataError(f"{what}: checkpoint {index[index.duplicated()][0]!r} is there twice")
    missing = endpoints.index.symmetric_difference(basins.index)
    if len(missing):
        raise DataError(f"checkpoint {missing[0]!r} is in one of basins and endpoints only")
    ordered = basins.reindex(endpoints.index)
    if ordered.isna().any():
        raise DataError(f"checkpoint {ordered.index[ordered.isna()][0]!r} has no basin")
    return ordered
