"""Landscapes: random surfaces around one model under several masks, several pairs of directions.

One plane is 2 of a million dimensions, so its surface says little of the next one. For K pairs of
directions and every mask the losses are summed up by distance from the model:

    profile   mean loss of the cells at radius r = sqrt(x^2 + y^2), per pair; over pairs the mean,
              the lowest and the highest. Only rings that lie whole on the grid, r <= extent
    axes      the loss along the axes: 2 K straight lines through the model

The two are in units of the directions, which differ in length between masks unless `match_norm`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from landform.errors import ConfigError
from landform.evaluation.data import data_sets
from landform.evaluation.points import Data, PointsWork
from landform.geometry.masks import FisherLike, check_masks, masks_of
from landform.geometry.surface import Surface, SurfaceConfig, SurfaceStudy, around_one
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Forecast, Plan
from landform.store.study import open_store
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import CheckpointLike

__all__ = [
    "Landscape",
    "LandscapeStudy",
    "landscape",
    "landscape_statistics",
    "ring_means",
    "surface_study",
]


@dataclass(frozen=True)
class Landscape(Result):
    """Random surfaces around one model: of every mask, and of every pair of directions."""

    checkpoint: str
    data: tuple[str, ...]
    kind: str
    """kind of the task: the loss is in nats, for regression in squared units"""
    masks: tuple[str, ...]
    """`none`, or as `fisher-top by tensor`"""
    pairs: int
    surfaces: tuple[Surface, ...]
    """all pairs of the first mask, then of the second, ..."""
    directions: pd.DataFrame
    """mask, pair, and what each direction perturbs (see `geometry.masks.measure`)"""
    profile: pd.DataFrame
    """mask, data, radius, cells (of one pair), loss (mean over the pairs of the ring's mean), low,
    high (lowest and highest pair), cell_low, cell_high (lowest and highest single cell)"""
    axes: pd.DataFrame
    """mask, data, t, loss (mean over 2 `pairs` lines), low, high"""
    evaluations: int
    provenance: dict[str, Any]

    def surface(self, mask: str, pair: int = 0) -> Surface:
        """One of the surfaces; `ConfigError` for a mask or pair that is not there."""
        named = [m for m in self.masks if mask in (m, m.split(" ")[0])]
        if not named or not 0 <= pair < self.pairs:
            raise ConfigError(
                f"no surface of mask {mask!r}, pair {pair}",
                remedy=f"masks: {', '.join(self.masks)}; pairs 0 to {self.pairs - 1}",
            )
        return self.surfaces[self.masks.index(named[0]) * self.pairs + pair]

    @property
    def summary(self) -> pd.DataFrame:
        """One row per mask, on the first data set: mask, entries that move (mean over pairs), their
        share of the model, mean length of the directions, of a random mask of as many entries, and
        mean losses at r nearest to 0, a quarter, a half and the whole of the extent, with the
        lowest and the highest pair there."""
        rows = []
        for mask in self.masks:
            moved = self.directions[self.directions["mask"] == mask]
            ring = self._rings(mask)
            row: dict[str, Any] = {
                "mask": mask,
                "entries": round(float(moved["entries"].mean())),
                "share": float((moved["entries"] / moved["of"]).mean()),
                "length": float(moved["norm"].mean()),
                "control": float(moved["control_norm"].mean()),
            }
            for part in (0.0, 0.25, 0.5, 1.0):
                at = ring.iloc[int((ring.radius - part * ring.radius.max()).abs().argmin())]
                row[f"r={at.radius:.3g}"] = at.loss
            rows.append({**row, "low": at.low, "high": at.high})
        return pd.DataFrame(rows)

    def _rings(self, mask: str) -> pd.DataFrame:
        profile = self.profile
        return profile[(profile["mask"] == mask) & (profile["data"] == self.data[0])]

    @property
    def notes(self) -> tuple[str, ...]:
        """What each mask leaves of the directions of the first pair."""
        said = [note for mask in self.masks for note in self.surface(mask).notes]
        return tuple(note for note in said if not note.startswith("control"))

    @property
    def reading(self) -> str:
        """One line for a person."""
        unit = loss_unit(self.kind)
        first = self._rings(self.masks[0]).iloc[0]
        parts = []
        for mask in self.masks:
            last = self._rings(mask).iloc[-1]
            band = f" [{last.low:.3g}, {last.high:.3g}]" if self.pairs > 1 else ""
            parts.append(f"{mask} {last.loss:.3g}{band}")
        pairs = f"{self.pairs} pair{'s' if self.pairs > 1 else ''} of random directions"
        return (
            f"{pairs} around {self.checkpoint} on {self.data[0]}, {self.evaluations} evaluations: "
            f"loss {first.loss:.4g} {unit} at r = {first.radius:.3g}; mean at r = "
            f"{last.radius:.3g}: {', '.join(parts)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the surfaces without their provenance, which is the landscape's."""
        tables = ("directions", "profile", "axes")
        return {
            "checkpoint": self.checkpoint,
            "data": list(self.data),
            "masks": list(self.masks),
            "pairs": self.pairs,
            "evaluations": self.evaluations,
            "summary": self.summary.to_dict("records"),
            "notes": list(self.notes),
            **{name: getattr(self, name).to_dict("records") for name in tables},
            "surfaces": [
                {k: v for k, v in surface.to_json().items() if k != "provenance"}
                for surface in self.surfaces
            ],
            "provenance": self.provenance,
        }


def landscape(
    task: Task,
    *,
    around: CheckpointLike,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    fisher: FisherLike | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Landscape:
    """Random surfaces around one model, for several masks and pairs of directions at once.

    Options are the fields of `SurfaceConfig` (mask, mask_by, pairs, size, extent, ...): `mask` may
    be several, as `mask=("none", "fisher-top", "fisher-bottom", "random")`. Pair k has the same
    directions under every mask. With a `store` every cell is kept as soon as it is known. Raises a
    `ConfigError` for a grid that misses the model, a `CurvatureError` for a Fisher of another one.
    """
    study = LandscapeStudy.of(
        task, around=around, split=split, also=also, fisher=fisher, options=options
    )
    return study.run(store, progress=progress)


def surface_study(
    task: Task,
    *,
    through: Sequence[CheckpointLike] | None = None,
    around: CheckpointLike | None = None,
    options: Mapping[str, Any],
    **data: Any,
) -> SurfaceStudy | LandscapeStudy:
    """The plan of one surface, or of several where `options` name several masks or pairs."""
    config = SurfaceConfig.parse(options, where="surface")
    if around is None or through is not None or (len(config.mask) < 2 and config.pairs < 2):
        return SurfaceStudy.of(task, through=through, around=around, options=options, **data)
    return LandscapeStudy.of(task, around=around, options=options, **data)


@dataclass(frozen=True)
class LandscapeStudy:
    """What would be evaluated: a surface for every mask and pair, by one worker."""

    studies: tuple[SurfaceStudy, ...]
    config: SurfaceConfig

    @classmethod
    def of(
        cls,
        task: Task,
        *,
        around: CheckpointLike,
        split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        fisher: FisherLike | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> LandscapeStudy:
        """Resolve the model, data and masks; raises for what can be seen to be wrong."""
        config = SurfaceConfig.parse(options or {}, where="landscape")
        centre = around_one(around, config)
        data = data_sets(task, split, also)
        check_masks(config, fisher)
        masks = masks_of(centre, config, fisher, config.seed)
        studies = [
            SurfaceStudy.around(centre, data, config.replace(mask=(kind,), pairs=1), masks, pair)
            for kind in config.mask
            for pair in range(config.pairs)
        ]
        return cls(tuple(studies), config)

    @property
    def title(self) -> tuple[str, ...]:
        """Words that name it among the results of a study."""
        masked = () if self.config.mask == ("none",) else (self.config.mask_by,)
        more = [name for name in ("match_norm", "one_axis") if getattr(self.config, name)]
        return ("landscape", *self.studies[0].names, *masked, *more)

    @property
    def work(self) -> PointsWork:
        """One worker's work for all surfaces: the model and the data are loaded once."""
        first = self.studies[0].work
        made = {member.fingerprint: member for study in self.studies for member in study.work.made}
        return PointsWork(first.checkpoints, first.data, self.config, tuple(made.values()))

    def forecast(self, store: ArtifactStore) -> Forecast:
        """What is left to do at most: with `refine`, as if nothing could be interpolated."""
        scratch = open_store(None)
        execute = self._shared.executor(scratch, progress=False)
        jobs = [job for study in self.studies for job in study.plan(scratch, execute).jobs]
        return self.work.forecast(Plan(jobs), store, workers=self.config.workers)

    @property
    def _shared(self) -> SurfaceStudy:
        first = self.studies[0]
        return SurfaceStudy("random", first.names, self.work, self.config)

    def run(
        self, store: str | os.PathLike[str] | ArtifactStore | None = None, *, progress: bool = False
    ) -> Landscape:
        """Evaluate the cells that are missing and put all of them together."""
        kept = open_store(store)
        execute = self._shared.executor(kept, progress)
        found = [study.run(kept, execute=execute, forget=store is None) for study in self.studies]
        first, pairs = found[0], self.config.pairs
        masks = tuple(surface.mask for surface in found[::pairs])
        groups = {mask: found[k * pairs : (k + 1) * pairs] for k, mask in enumerate(masks)}
        directions = [
            surface.directions.assign(mask=mask, pair=pair)
            for mask, group in groups.items()
            for pair, surface in enumerate(group)
            if surface.directions is not None
        ]
        return Landscape(
            checkpoint=first.names[0],
            data=first.data,
            kind=first.kind,
            masks=masks,
            pairs=pairs,
            surfaces=tuple(found),
            directions=pd.concat(directions, ignore_index=True),
            profile=_over(groups, first.data, _profile),
            axes=_over(groups, first.data, _axes),
            evaluations=sum(surface.evaluations for surface in found),
            provenance={
                **first.provenance,
                "config": self.config.model_dump(mode="json"),
                "span": [surface.provenance["span"] for surface in found],
                "fisher": next((s.told for s in self.studies if s.told), None),
            },
        )


# --- numbers of surfaces ------------------------------------------------------------------------


def ring_means(
    surface: Surface, metric: str = "loss", data: str | None = None, *, whole: bool = True
) -> pd.DataFrame:
    """radius, cells, mean, low, high of the cells at the same distance from (0, 0).

    On a square grid every radius has 4, 8 or more cells (the centre 1). `whole`: only radii up to
    the nearest edge, whose rings are whole.
    """
    x, y = np.meshgrid(surface.x, surface.y)
    radius = np.hypot(x, y).round(9).ravel()
    values = pd.Series(surface.grid(metric, data).ravel()).groupby(radius)
    table = values.agg(cells="size", mean="mean", low="min", high="max")
    found = table.rename_axis("radius").reset_index()
    edge = min(abs(end) for axis in (surface.x, surface.y) for end in (axis[0], axis[-1]))
    rings: pd.DataFrame = found[found.radius <= edge + 1e-9] if whole else found
    return rings


def _over(
    groups: Mapping[str, Sequence[Surface]],
    data: Sequence[str],
    table: Callable[[Sequence[Surface], str], pd.DataFrame],
) -> pd.DataFrame:
    """A table of every mask and data set, one below the other."""
    parts = []
    for mask, surfaces in groups.items():
        for name in data:
            made = table(surfaces, name)
            made.insert(0, "mask", mask)
            made.insert(1, "data", name)
            parts.append(made)
    return pd.concat(parts, ignore_index=True)


def _profile(surfaces: Sequence[Surface], data: str) -> pd.DataFrame:
    rings = pd.concat([ring_means(surface, data=data) for surface in surfaces])
    summed: pd.DataFrame = rings.groupby("radius").agg(
        cells=("cells", "first"),
        loss=("mean", "mean"),
        low=("mean", "min"),
        high=("mean", "max"),
        cell_low=("low", "min"),
        cell_high=("high", "max"),
    )
    return summed.reset_index()


def _axes(surfaces: Sequence[Surface], data: str) -> pd.DataFrame:
    lines = []
    for surface in surfaces:
        values = surface.grid("loss", data)
        for axis, other, grid in (
            (surface.x, surface.y, values),
            (surface.y, surface.x, values.T),
        ):
            if 0.0 in other:  # the grid of the original has no axis
                lines.append(pd.DataFrame({"t": axis, "loss": grid[other.index(0.0)]}))
    if not lines:
        return pd.DataFrame({name: pd.Series(dtype=float) for name in ("t", "loss", "low", "high")})
    along = pd.concat(lines).groupby("t")["loss"].agg(loss="mean", low="min", high="max")
    table: pd.DataFrame = along.reset_index()
    return table


def landscape_statistics(
    surfaces: Surface | Landscape | Mapping[str, Surface],
    *,
    radii: Sequence[float] = (0.45, 0.8, 1.2),
    levels: Sequence[float] = (3.0, 5.0, 8.0),
    above: float = 5.0,
    metric: str = "loss",
    data: str | None = None,
) -> pd.DataFrame:
    """How deep and wide surfaces around one model are: one row per surface.

    name, lowest, highest, mean; centre (mean of the cells nearest to (0, 0)) and how many these
    are; `r<R` (mean of the cells with r = sqrt(x^2 + y^2) < R); `reaches L` (the radius at which
    the mean of the cells at one radius first reaches L, linear between radii; NaN where it does
    not); `share>L`; curvature_low and curvature_high, the eigenvalues of the second derivatives of
    a quadratic fitted to the cells with r < the first of `radii`: rough, a well is not quadratic.

    The R are `radii`, the L of `reaches` are `levels`, that of `share` is `above`; all of one
    `metric` on one data set (`data`, default: the first).
    """
    if isinstance(surfaces, Landscape):
        named = {
            f"{mask}, pair {pair}" if surfaces.pairs > 1 else mask: surfaces.surface(mask, pair)
            for mask in surfaces.masks
            for pair in range(surfaces.pairs)
        }
    elif isinstance(surfaces, Surface):
        named = {surfaces.names[0]: surfaces}
    else:
        named = dict(surfaces)
    row = partial(_statistics, radii=radii, levels=levels, above=above, metric=metric, data=data)
    return pd.DataFrame([{"name": name, **row(surface)} for name, surface in named.items()])


def _statistics(
    surface: Surface,
    *,
    radii: Sequence[float],
    levels: Sequence[float],
    above: float,
    metric: str,
    data: str | None,
) -> dict[str, float]:
    x, y = np.meshgrid(surface.x, surface.y)
    radius, values = np.hypot(x, y), surface.grid(metric, data)
    nearest = np.isclose(radius, radius.min())
    rings = ring_means(surface, metric, data, whole=False)
    low, high = _curvature(x, y, values, radius < radii[0] if radii else np.ones_like(x, bool))
    return {
        "lowest": float(values.min()),
        "highest": float(values.max()),
        "mean": float(values.mean()),
        "centre": float(values[nearest].mean()),
        "cells": int(nearest.sum()),
        **{f"r<{r:g}": _mean(values[radius < r]) for r in radii},
        **{f"reaches {level:g}": _reaches(rings, level) for level in levels},
        f"share>{above:g}": float((values > above).mean()),
        "curvature_low": low,
        "curvature_high": high,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _reaches(rings: pd.DataFrame, level: float) -> float:
    """Where the ring means first reach a level; NaN where they start above it or never do."""
    radius, means = rings["radius"].to_numpy(), rings["mean"].to_numpy()
    over = np.flatnonzero(means >= level)
    if not over.size or over[0] == 0:
        return math.nan
    k = int(over[0])
    return float(np.interp(level, means[k - 1 : k + 1], radius[k - 1 : k + 1]))


def _curvature(
    x: np.ndarray, y: np.ndarray, values: np.ndarray, inside: np.ndarray
) -> tuple[float, float]:
    """Eigenvalues of H in the least-squares fit c + g z + z H z / 2 over cells z = (x, y)."""
    p, q, f = x[inside], y[inside], values[inside]
    columns = np.stack([np.ones_like(p), p, q, p * p / 2, p * q, q * q / 2], axis=1)
    if len(p) < 6 or np.linalg.matrix_rank(columns) < 6:
        return math.nan, math.nan
    _, _, _, xx, xy, yy = np.linalg.lstsq(columns, f, rcond=None)[0]
    low, high = np.linalg.eigvalsh([[xx, xy], [xy, yy]])
    return float(low), float(high)
