"""Basins of many checkpoints from their lines to a few: N x K lines instead of N (N - 1) / 2.

K landmarks are chosen far apart in weight space (farthest-point traversal: Gonzalez 1985,
Clustering to minimize the maximum intercluster distance), divided into basins by their own K x K
gaps, and every other checkpoint joins the basin whose landmarks it reaches over the lowest ridges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from landform.errors import ConfigError
from landform.geometry.basins import Clustering, cluster, renumbered
from landform.store.artifacts import Contents
from landform.store.plan import Job
from landform.weights.checkpoint import Checkpoint, LoadConfig, load_model
from landform.weights.space import ParameterSpace

__all__ = [
    "LandmarkWork",
    "Landmarks",
    "cluster_by_landmarks",
    "farthest_points",
    "medoid_landmarks",
    "partners",
]

Floats = npt.NDArray[np.float64]

ENTRIES = 1 << 18
"""Entries of the weights that distances for the choice are measured on: a random sample of larger
models, so that each checkpoint is read once and a megabyte of it is held."""


@dataclass(frozen=True)
class Landmarks:
    """How basins were found by landmarks, and what lines that had no part in it say of them."""

    names: tuple[str, ...]
    """the landmarks in the order of their choice"""
    medoids: tuple[str, ...]
    """of every basin the landmark with the lowest gaps to its members"""
    lines: pd.DataFrame
    """a, b, kind ("medoid": a checkpoint and its basin's medoid; "member": and a random member of
    its basin; "across": and a landmark of another basin), gap, noise_floor, above"""
    evaluations_of_all_pairs: int
    """what walking every pair would have taken"""

    def share(self, kind: Literal["medoid", "member", "across"]) -> float:
        """Share of the lines of a kind whose gap is above its noise floor; NaN without lines."""
        rows = self.lines[self.lines["kind"] == kind]
        return float(rows["above"].mean()) if len(rows) else float("nan")

    @property
    def reading(self) -> str:
        """One line for a person."""
        kinds = (
            ("medoid", "lines to the basin's medoid"),
            ("member", "lines to a random member"),
            ("across", "lines to other basins"),
        )
        parts = []
        for kind, what in kinds:
            rows = self.lines[self.lines["kind"] == kind]
            if len(rows):
                parts.append(f"{int(rows['above'].sum())} of {len(rows)} {what}")
        return f"{len(self.names)} landmarks; above the noise floor are {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "names": list(self.names),
            "medoids": list(self.medoids),
            "above_noise": {kind: self.share(kind) for kind in ("medoid", "member", "across")},
            "lines": self.lines.to_dict("records"),
            "evaluations_of_all_pairs": self.evaluations_of_all_pairs,
        }


# --- choosing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LandmarkWork:
    """The choice of K landmarks as a job: it reads every checkpoint once and evaluates none."""

    checkpoints: tuple[Checkpoint, ...]
    kind: str
    config: LoadConfig
    number: int
    seed: int = 0

    def job(self) -> Job:
        """The one job; the landmarks are in its record."""
        spec = {
            "checkpoints": [checkpoint.fingerprint for checkpoint in self.checkpoints],
            "number": self.number,
            "entries": ENTRIES,
            "seed": self.seed,
            "dtype": self.config.dtype,
        }
        return Job("landmarks", spec, cost=0.0, label=f"{self.number} landmarks")

    def __call__(self) -> LandmarkWork:
        """The worker: itself."""
        return self

    def run(self, job: Job) -> Contents:
        """Choose; keeps the indices and the distances of all checkpoints to the chosen ones."""
        chosen, distances = farthest_points(self._sampled_weights(), self.number)
        return Contents(
            tables={"distances": pd.DataFrame(distances, columns=[str(i) for i in chosen])},
            records={"landmarks": {"chosen": chosen}},
        )

    def _sampled_weights(self) -> Floats:
        """(N, entries) of the weights, the same entries of every checkpoint."""
        rows: list[Floats] = []
        space: ParameterSpace | None = None
        for checkpoint in self.checkpoints:
            model = load_model(checkpoint, self.kind, self.config)
            own = ParameterSpace.of(model)
            space = space or own
            space.check_same(own, self.checkpoints[0].spec, checkpoint.spec)
            flat = space.flatten(model)
            space.check_finite(flat, checkpoint.spec)
            if flat.numel() > ENTRIES:
                random = np.random.default_rng(self.seed)
                picked = np.sort(random.choice(flat.numel(), ENTRIES, replace=False))
                flat = flat[torch.from_numpy(picked)]
            rows.append(flat.double().cpu().numpy())
        return np.stack(rows)


def farthest_points(points: npt.ArrayLike, number: int) -> tuple[list[int], Floats]:
    """Indices of `number` of the `points` (N, D), and the distances of all to them, (N, number).

    The first is nearest to the mean (the one with the least sum of squared distances to all); each
    next is the one farthest from all chosen before. Raises ConfigError for more than N.
    """
    x = np.asarray(points, dtype=np.float64)
    if not 1 <= number <= len(x):
        raise ConfigError(f"{number} landmarks of {len(x)} checkpoints cannot be chosen")
    chosen = [int(np.linalg.norm(x - x.mean(axis=0), axis=1).argmin())]
    columns = [np.linalg.norm(x - x[chosen[0]], axis=1)]
    nearest = columns[0].copy()
    while len(chosen) < number:
        nearest[chosen] = -1.0  # copies of a chosen one are at 0, and still another checkpoint
        chosen.append(int(nearest.argmax()))
        columns.append(np.linalg.norm(x - x[chosen[-1]], axis=1))
        nearest = np.minimum(nearest, columns[-1])
    return chosen, np.stack(columns, axis=1)


# --- dividing ------------------------------------------------------------------------------------


def cluster_by_landmarks(
    gaps: pd.DataFrame,
    noise_floor: pd.DataFrame,
    *,
    n_basins: int | None = None,
    scale: float | Literal["auto"] = "auto",
    seed: int = 0,
) -> Clustering:
    """Basins of N checkpoints by their gaps to K of them.

    `gaps` (N x K): names in the index, landmarks (some of these names) in the columns; 0 of a
    landmark to itself. `noise_floor` has the same form. `n_basins`, `scale` and `seed` are those of
    `cluster`, which divides the landmarks by their own K x K gaps. Every other checkpoint joins the
    basin with the least median gap to its landmarks (gaps within their noise floor count as 0; of
    equal medians the least mean).

    Scale, eigenvalues and confidence are those of the landmarks. The embedding is extended to all
    (Nystroem; Bengio et al. 2004): an eigenvector u of the random walk P = W^-1 S with value
    1 - lambda has u_i = 1 / (1 - lambda) sum_l S_il u_l / sum_l S_il, exactly for landmarks.
    Raises what `cluster` raises.
    """
    names, landmarks = [str(n) for n in gaps.index], [str(n) for n in gaps.columns]
    inner = gaps.loc[landmarks, landmarks]
    floors = noise_floor.loc[landmarks, landmarks]
    base = cluster(
        (inner + inner.T) / 2,
        n_basins=n_basins,
        scale=scale,
        noise_floor=((floors + floors.T) / 2).to_numpy(),
        seed=seed,
    )
    values = gaps.to_numpy(dtype=np.float64)
    counted = np.where(values <= noise_floor.to_numpy(dtype=np.float64), 0.0, values)
    of_landmark = base.basins.to_numpy()
    sides = range(base.n_basins)
    middle = np.stack([np.median(counted[:, of_landmark == b], axis=1) for b in sides])
    mean = np.stack([counted[:, of_landmark == b].mean(axis=1) for b in sides])
    labels = np.lexsort((mean, middle), axis=0)[0]
    labels[[names.index(name) for name in landmarks]] = of_landmark
    basins = renumbered(labels)
    embedding = _extended(counted, base)
    return _with_all(base, names, basins, embedding)


def _extended(counted: Floats, base: Clustering) -> pd.DataFrame:
    """Spectral coordinates of all checkpoints from those of the landmarks."""
    powers = -0.5 * (counted / base.scale) ** 2
    shares = np.exp(powers - powers.max(axis=1, keepdims=True))  # far from all: no 0 / 0
    shares /= shares.sum(axis=1, keepdims=True)
    kept = 1.0 - np.array(base.eigenvalues[: base.embedding.shape[1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = shares @ base.embedding.to_numpy() / kept
    return pd.DataFrame(np.where(kept > 1e-9, rows, 0.0), columns=base.embedding.columns)


def _with_all(
    base: Clustering, names: list[str], basins: npt.NDArray[np.intp], embedding: pd.DataFrame
) -> Clustering:
    """The landmarks' clustering, of all checkpoints."""
    index = pd.Index(names)
    x, k = embedding.to_numpy(), int(basins.max()) + 1
    centroids = np.stack([x[basins == b].mean(axis=0) for b in range(k)])
    distances = np.linalg.norm(x[:, None] - centroids, axis=2)
    difference = None
    if k > 1:
        difference = pd.Series(distances[:, 1] - distances[:, 0], index, name="centroid_difference")
    return dataclasses.replace(
        base,
        names=tuple(names),
        basins=pd.Series(basins.astype(np.int64), index, name="basin"),
        embedding=embedding.set_index(index),
        centroid_distances=pd.DataFrame(distances, index, [f"basin_{b}" for b in range(k)]),
        centroid_difference=difference,
        note=f"by {len(base.names)} landmarks, which the others joined: {base.note}",
    )


# --- verifying -----------------------------------------------------------------------------------


def medoid_landmarks(gaps: pd.DataFrame, basins: pd.Series) -> tuple[str, ...]:
    """Of every basin the landmark with the least sum of gaps to the basin's members.

    `gaps` (N x K) as for `cluster_by_landmarks`, `basins` name -> basin.
    """
    found = []
    for basin in sorted(basins.unique()):
        members = basins.index[basins == basin]
        inside = [name for name in gaps.columns if name in members]
        found.append(str(gaps.loc[members, inside].sum().idxmin()))
    return tuple(found)


def partners(basins: pd.Series, landmarks: Sequence[str], seed: int) -> tuple[tuple[str, str], ...]:
    """For every checkpoint but the landmarks, a random member of its basin to walk a line to.

    Landmarks are no partners, because those lines have made the basins; a checkpoint without any
    other in its basin has none. Every pair once.
    """
    random = np.random.default_rng(seed)
    pairs: dict[tuple[str, str], None] = {}
    others = [name for name in basins.index if name not in set(landmarks)]
    position = {name: i for i, name in enumerate(basins.index)}
    for name in others:
        choices = [o for o in others if o != name and basins[o] == basins[name]]
        if choices:
            other = choices[int(random.integers(len(choices)))]
            first, second = sorted((name, other), key=position.__getitem__)
            pairs[first, second] = None
    return tuple(pairs)
