"""Basins: groups of checkpoints between which the loss has no ridge, by spectral clustering.

The convexity gaps of all pairs become affinities S = exp(-D^2 / 2 s^2). The normalised Laplacian
I - W^{-1/2} S W^{-1/2}, W = diag(row sums of S), has k small eigenvalues where there are k groups
(von Luxburg 2007, A Tutorial on Spectral Clustering). Juneja et al. 2023 (arXiv 2205.12411) fix
s = 1 nat and k = 2; here the data choose both, and one basin, or a basin for every checkpoint,
are possible answers. How:

1. *Groups that stand apart.* For 24 scales between the floor and the largest gap, k is the number
   between 2 and N - 1 with the largest eigengap lambda_{k+1} - lambda_k of the normalised
   Laplacian, and the division into k that of k-means on its first k eigenvectors over the square
   roots of W. Taken is the division with the highest confidence, the smaller of eigengap and mean
   silhouette, if its silhouette reaches 0.6. The silhouette is (b - a) / max(a, b, 2 floors): b is
   a checkpoint's mean gap to the nearest other basin, a to its own (alone in its basin: the mean
   gap within all basins); splitting noise earns nothing.
2. *The size of the gaps.* Where 1 finds nothing: with s = 2 floors, k from 1 to N has the largest
   eigengap (lambda_{N+1} = 1). Gaps within the noise give one basin; gaps that all stand well above
   it (about four floors) give N basins. A division of 1 with a confidence under 0.5 gives way to
   this one if this is finer and more confident.

Self-affinities S_ii = 1 are part of W, unlike in scikit-learn: without them a checkpoint far from
all others has next to no weight, and its basin of one is invisible at small scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from landform.errors import ConfigError, DataError

__all__ = ["Clustering", "checked_gaps", "cluster", "renumbered"]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]

DEFAULT_FLOOR = 0.01
"""Gap in nats that counts as zero where no noise floor is given."""

SEPARATED = 0.6
"""Mean silhouette from which groups count as standing apart. Kaufman and Rousseeuw (1990) read 0.5
to 0.7 as a reasonable structure and more as a strong one; three gaps drawn at random between 0.14
and 0.34 nats reach 0.55, gaps like those of the published MNLI fine-tunes 0.9 and more."""

CLEAR = 0.5
"""Confidence below which the note warns."""

SCALES = 24
"""Candidates for the affinity scale."""

COMPAT_SCALE = 1.0
COMPAT_SEED = 42


@dataclass(frozen=True)
class Clustering:
    """Which checkpoint is in which basin, how that was decided, and how clear it is."""

    names: tuple[str, ...]
    basins: pd.Series
    """name -> basin; basin 0 is the largest, equal sizes in the order of their first members"""
    n_basins: int
    scale: float
    """scale s of the affinity exp(-D^2 / 2 s^2), in the unit of the gaps (nats)"""
    eigenvalues: tuple[float, ...]
    """of the normalised Laplacian, ascending"""
    eigengap: float
    """lambda_{k+1} - lambda_k at k = n_basins, counting at most up to 1: 1 is a perfect division"""
    silhouette: float | None
    """mean silhouette (b - a) / max(a, b, 2 noise floors), None for a single basin"""
    confidence: float
    """the smaller of eigengap and silhouette (one basin: the eigengap), 0 to 1: under 0.5 the gaps
    show no clear division"""
    noise_floor: float
    """gap that was counted as zero, nats"""
    method: Literal["eigengap", "given", "compat"]
    """who chose the number of basins: the data, the caller, or the original's fixed choice"""
    embedding: pd.DataFrame
    """spectral embedding, name x component_0.. (component_0 is constant)"""
    centroid_distances: pd.DataFrame
    """distance in the embedding to the centroid of each basin, name x basin_0.."""
    centroid_difference: pd.Series | None
    """distance to the centroid of basin 1 minus distance to that of basin 0: positive nearer to the
    largest basin. None for a single basin"""
    note: str
    """one sentence: what was chosen, and why"""


class Choice(NamedTuple):
    """A candidate division."""

    labels: Labels
    scale: float
    eigengap: float
    silhouette: float | None
    reason: str

    @property
    def basins(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def confidence(self) -> float:
        if self.silhouette is None:
            return self.eigengap
        return max(0.0, min(self.eigengap, self.silhouette))


def cluster(
    gaps: pd.DataFrame | npt.ArrayLike,
    *,
    n_basins: int | None = None,
    scale: float | Literal["auto"] = "auto",
    noise_floor: float | npt.ArrayLike | None = None,
    compat: bool = False,
    seed: int = 0,
) -> Clustering:
    """Divide checkpoints into basins by their pairwise convexity gaps.

    `gaps`: a symmetric N x N table or array of gaps D >= 0 (nats), zero on the diagonal; names are
    the index of a table, or "0".."N-1". `noise_floor`: the gap that noise alone reaches (a number,
    or one per pair; see `curve_statistics`): gaps up to it count as zero, and it is the unit for
    "large". It is also the place to say which ridge is too low to matter. Default: 0.01 nats.

    How the division is chosen is in the module's docstring; `n_basins` or `scale` fix the number or
    the scale s of the affinities. `compat=True` is Juneja et al. 2023: s = 1 nat, two
    basins, scikit-learn's `SpectralClustering` with seed 42, no floor; with gaps of 0 to 0.1 nats
    all its affinities exceed 0.99. `seed` starts k-means.

    Raises DataError on a table that is not square, symmetric, finite and non-negative with a
    zero diagonal (naming the pair), ConfigError on options.
    """
    names, square = checked_gaps(gaps)
    floors = _floors(noise_floor, square)
    floor = float(np.median(floors[~np.eye(len(names), dtype=bool)])) if len(names) > 1 else 0.0
    _check_options(len(names), n_basins, scale)
    if compat:
        if n_basins not in (None, 2) or scale not in ("auto", COMPAT_SCALE):
            raise ConfigError(
                "compat fixes two basins and scale 1",
                remedy="leave out n_basins and scale, or compat",
            )
        return _compat(names, square)
    counted = np.where(square <= floors, 0.0, square)
    choice = _choose(counted, floor, n_basins, scale, seed)
    if noise_floor is None and len(names) > 1:
        choice = choice._replace(
            reason=f"{choice.reason} (no noise floor given: gaps up to {floor:g} nats count as 0)"
        )
    values, rows = _spectrum(counted, choice.scale)
    embedding = rows[:, : max(2, choice.basins)]
    return _clustering(
        names, choice, values, embedding, floor, "eigengap" if n_basins is None else "given"
    )


# --- input ---------------------------------------------------------------------------------------


def checked_gaps(gaps: pd.DataFrame | npt.ArrayLike) -> tuple[tuple[str, ...], Floats]:
    """Names and float64 values of a symmetric N x N table or array, 0 or more, 0 on the diagonal.

    Names are those of a table, or "0".."N-1". Raises DataError that names the pair at fault.
    """
    if isinstance(gaps, pd.DataFrame):
        names = tuple(str(name) for name in gaps.index)
        if [str(name) for name in gaps.columns] != list(names):
            raise DataError("the table of gaps needs the same names, in one order, on both sides")
    try:
        square = np.array(gaps, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the gaps are not numbers: {error}") from error
    if square.ndim != 2 or square.shape[0] != square.shape[1] or not len(square):
        raise DataError(f"the gaps have shape {square.shape}, expected (N, N) with N >= 1")
    if not isinstance(gaps, pd.DataFrame):
        names = tuple(str(i) for i in range(len(square)))
    if len(set(names)) < len(names):
        raise DataError("two rows of the table of gaps have the same name")
    tolerance = 1e-9 * max(1.0, float(np.nanmax(np.abs(square), initial=0.0)))
    for what, bad in (
        ("is not finite", ~np.isfinite(square)),
        ("is negative", square < 0),
        ("differs from its mirror image", np.abs(square - square.T) > tolerance),
        ("must be 0: it is on the diagonal", np.diag(np.diag(square)) != 0),
    ):
        if bad.any():
            i, j = (int(index) for index in np.argwhere(bad)[0])
            raise DataError(
                f"the gap of {names[i]!r} and {names[j]!r}, {square[i, j]}, {what}",
                remedy="the gaps of all pairs are needed, symmetric and each 0 or more",
            )
    return names, (square + square.T) / 2.0


def _floors(noise_floor: float | npt.ArrayLike | None, square: Floats) -> Floats:
    floors = np.asarray(DEFAULT_FLOOR if noise_floor is None else noise_floor, dtype=np.float64)
    if floors.shape not in ((), square.shape):
        raise ConfigError(f"noise_floor has shape {floors.shape}, expected one number or N x N")
    floors = np.broadcast_to(floors, square.shape)
    off = ~np.eye(len(square), dtype=bool)
    if not np.isfinite(floors[off]).all() or (floors[off] < 0).any():
        raise ConfigError("noise_floor must be finite and not negative")
    return floors


def _check_options(n: int, n_basins: int | None, scale: float | str) -> None:
    if n_basins is not None and (int(n_basins) != n_basins or not 1 <= n_basins <= n):
        raise ConfigError(f"n_basins={n_basins!r} must be between 1 and the {n} checkpoints")
    if isinstance(scale, str):
        if scale != "auto":
            raise ConfigError(f"scale={scale!r} must be 'auto' or a positive number of nats")
    elif not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"scale={scale!r} must be 'auto' or a positive number of nats")


# --- the choice ----------------------------------------------------------------------------------


def _choose(
    gaps: Floats, floor: float, n_basins: int | None, scale: float | Literal["auto"], seed: int
) -> Choice:
    n = len(gaps)
    unit = _unit(gaps, floor)
    largest = float(gaps.max())
    if n == 1:
        return Choice(np.zeros(1, dtype=np.intp), unit, 1.0, None, "there is one checkpoint")
    if scale != "auto":
        k = n_basins or _best_k(_spectrum(gaps, scale)[0], 1, n)[1]
        found = _divide(gaps, scale, k, unit, seed)
        chosen = "the largest eigengap" if n_basins is None else "as asked"
        return found._replace(reason=f"at the given scale, {_count(k)}: {chosen}")
    if n_basins is not None:
        return _given(gaps, unit, n_basins, seed)
    if largest == 0.0:
        zeros = np.zeros(n, dtype=np.intp)
        return Choice(zeros, unit, 1.0, None, "one basin: every gap is within the noise floor")
    grouped = _groups(gaps, unit, seed)
    apart = grouped is not None and (grouped.silhouette or 0.0) >= SEPARATED
    if grouped is not None and apart and grouped.confidence >= CLEAR:
        return grouped._replace(reason=f"{_count(grouped.basins)} that stand apart")
    _, k = _best_k(_spectrum(gaps, unit)[0], 1, n)
    by_size = _divide(gaps, unit, k, unit, seed)
    # Size alone may divide such groups further, but not join what stands apart.
    finer = grouped is None or by_size.basins > grouped.basins
    if grouped is not None and apart and not (finer and by_size.confidence > grouped.confidence):
        return grouped._replace(
            reason=f"{_count(grouped.basins)} that stand apart, though not clearly"
        )
    above = float((gaps[~np.eye(n, dtype=bool)] > 0).mean())
    return by_size._replace(reason=_unstructured(by_size, n, above))


def _unstructured(found: Choice, n: int, above: float) -> str:
    """The reason given where no division stands apart; `above`: share of gaps above the floor."""
    clear = found.confidence >= CLEAR
    if found.basins == n and clear:
        return "every checkpoint its own basin: no two are joined without a ridge above the noise"
    if found.basins == 1 and clear and above > 0.5:
        return "one basin: ridges above the noise, but low ones and alike everywhere: no groups"
    if found.basins == 1 and clear:
        return "one basin: no groups, and hardly a gap stands above the noise"
    return f"{_count(found.basins)}, with low confidence: the gaps spread without clear groups"


def _count(k: int) -> str:
    return "one basin" if k == 1 else f"{k} basins"


def _unit(gaps: Floats, floor: float) -> float:
    """The size from which a gap starts to count: two floors, or a trace of the largest gap."""
    largest = float(gaps.max(initial=0.0))
    return max(2.0 * floor, 1e-6 * largest) or 1.0


def _scales(gaps: Floats, unit: float) -> Floats:
    """Candidate scales, log-spaced from where small gaps differ to where the large ones do."""
    low, high = np.quantile(gaps[gaps > 0], [0.1, 1.0])
    # Half a gap separates (exp(-2) = 0.14); finer than half a unit is noise.
    first = max(low / 2.0, unit / 2.0)
    return np.geomspace(first, max(high, first), SCALES)


def _groups(gaps: Floats, unit: float, seed: int) -> Choice | None:
    """The clearest division into 2..N-1 groups; None where there is none to look at."""
    n = len(gaps)
    if n < 3:
        return None
    best: dict[int, tuple[float, float]] = {}
    for scale in _scales(gaps, unit):
        gap, k = _best_k(_spectrum(gaps, scale)[0], 2, n - 1)
        best[k] = max(best.get(k, (-1.0, 0.0)), (gap, float(scale)))
    divisions = [_divide(gaps, scale, k, unit, seed) for k, (_, scale) in sorted(best.items())]
    return max(divisions, key=lambda choice: (choice.confidence, choice.eigengap))


def _given(gaps: Floats, unit: float, k: int, seed: int) -> Choice:
    """Division into k at the scale where its eigengap is largest."""
    scales = _scales(gaps, unit) if gaps.any() else np.array([unit])
    values = [(_eigengap(_spectrum(gaps, scale)[0], k), float(scale)) for scale in scales]
    found = _divide(gaps, max(values)[1], k, unit, seed)
    return found._replace(reason=f"{_count(k)}, as asked; scale with the largest eigengap")


def _divide(gaps: Floats, scale: float, k: int, unit: float, seed: int) -> Choice:
    """Division into k at a scale, by k-means in the first k components of the embedding."""
    n = len(gaps)
    values, rows = _spectrum(gaps, scale)
    if k == 1:
        labels = np.zeros(n, dtype=np.intp)
    elif k == n:
        labels = np.arange(n, dtype=np.intp)
    else:
        labels = _means(rows[:, :k], k, seed)
    labels = renumbered(labels)
    return Choice(labels, scale, _eigengap(values, k), _silhouette(gaps, labels, unit), "")


def _spectrum(gaps: Floats, scale: float) -> tuple[Floats, Floats]:
    """Eigenvalues (ascending) of the normalised Laplacian, and its embedding (N, N).

    Column c of the embedding is eigenvector c over the square roots of the row sums of S: the first
    is constant, and members of one group are near each other (Shi and Malik 2000). Signs are fixed
    so that the entry of largest size is positive.
    """
    affinity = np.exp(-0.5 * (gaps / scale) ** 2)
    root = np.sqrt(affinity.sum(axis=1))
    values, vectors = np.linalg.eigh(np.eye(len(gaps)) - affinity / root[:, None] / root)
    rows: Floats = vectors / root[:, None]
    rows *= np.sign(rows[np.abs(rows).argmax(axis=0), np.arange(len(rows))])
    return np.maximum(values, 0.0), rows


def _eigengap(values: Floats, k: int) -> float:
    """lambda_{k+1} - lambda_k, both cut at 1, with lambda_{N+1} = 1."""
    capped = np.minimum(np.append(values, 1.0), 1.0)
    return float(capped[k] - capped[k - 1])


def _best_k(values: Floats, least: int, most: int) -> tuple[float, int]:
    """The largest eigengap among k = least..most and its k (the smallest k of equals)."""
    gap, k = max((_eigengap(values, k), -k) for k in range(least, most + 1))
    return gap, -k


def _means(rows: Floats, k: int, seed: int) -> Labels:
    """k-means labels of the rows of an embedding."""
    from sklearn.cluster import KMeans

    labels: Labels = KMeans(k, n_init=20, random_state=seed).fit_predict(rows).astype(np.intp)
    return labels


def renumbered(labels: Labels) -> Labels:
    """Renumber: the largest group is 0, equal sizes in the order of their first members."""
    found, first, size = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -size))
    rank = np.empty(len(found), dtype=np.intp)
    rank[order] = np.arange(len(found))
    return rank[np.searchsorted(found, labels)]


def _silhouette(gaps: Floats, labels: Labels, unit: float) -> float | None:
    """Mean of (b - a) / max(a, b, unit), see `cluster`; None for one group."""
    k = int(labels.max()) + 1
    if k == 1:
        return None
    member = np.eye(k)[labels]
    size = member.sum(axis=0)
    total = gaps @ member
    own = total[np.arange(len(gaps)), labels]
    others = size[labels] - 1
    pairs = (others).sum()
    alone = own.sum() / pairs if pairs else unit / 2.0
    a = np.where(others > 0, own / np.maximum(others, 1), alone)
    away = np.where(member > 0, np.inf, total / size)
    b = away.min(axis=1)
    return float(np.mean((b - a) / np.maximum(np.maximum(a, b), unit)))


# --- the result ----------------------------------------------------------------------------------


def _clustering(
    names: tuple[str, ...],
    choice: Choice,
    values: Floats,
    embedding: Floats,
    floor: float,
    method: Literal["eigengap", "given", "compat"],
) -> Clustering:
    """The result with centroids computed in the embedding."""
    index = pd.Index(names)
    k = choice.basins
    centroids = np.stack([embedding[choice.labels == b].mean(axis=0) for b in range(k)])
    distances = np.linalg.norm(embedding[:, None] - centroids, axis=2)
    silhouette = "" if choice.silhouette is None else f", silhouette {choice.silhouette:.2f}"
    difference = None
    if k > 1:
        difference = pd.Series(distances[:, 1] - distances[:, 0], index, name="centroid_difference")
    return Clustering(
        names=names,
        basins=pd.Series(choice.labels.astype(np.int64), index, name="basin"),
        n_basins=k,
        scale=float(choice.scale),
        eigenvalues=tuple(float(value) for value in values),
        eigengap=choice.eigengap,
        silhouette=choice.silhouette,
        confidence=choice.confidence,
        noise_floor=floor,
        method=method,
        embedding=pd.DataFrame(
            embedding, index, [f"component_{c}" for c in range(embedding.shape[1])]
        ),
        centroid_distances=pd.DataFrame(distances, index, [f"basin_{b}" for b in range(k)]),
        centroid_difference=difference,
        note=f"{choice.reason}; affinity scale {choice.scale:.3g} nats, "
        f"eigengap {choice.eigengap:.2f}{silhouette}, confidence {choice.confidence:.2f}",
    )


def _compat(names: tuple[str, ...], gaps: Floats) -> Clustering:
    """The original's fixed choice, through scikit-learn."""
    from sklearn.cluster import SpectralClustering
    from sklearn.manifold import spectral_embedding

    if len(names) < 3:
        raise ConfigError(f"compat divides at least three checkpoints in two, got {len(names)}")
    affinity = np.exp(-0.5 * (gaps / COMPAT_SCALE) ** 2)
    fitted = SpectralClustering(2, affinity="precomputed", random_state=COMPAT_SEED).fit(affinity)
    labels = renumbered(fitted.labels_.astype(np.intp))
    embedding = spectral_embedding(
        affinity, n_components=2, drop_first=False, random_state=COMPAT_SEED
    )
    values, _ = _spectrum(gaps, COMPAT_SCALE)
    silhouette = _silhouette(gaps, labels, _unit(gaps, 0.0))
    reason = "two basins at scale 1 nat whatever the gaps, as in Juneja et al. 2023"
    choice = Choice(labels, COMPAT_SCALE, _eigengap(values, 2), silhouette, reason)
    return _clustering(names, choice, values, np.asarray(embedding), 0.0, "compat")
