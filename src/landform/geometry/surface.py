"""Surfaces: the loss on a plane through three checkpoints, or on random directions around one.

Plane. With v1 = b1 - a, v2 = b2 - a, Gram-Schmidt without normalisation:

    u1 = v1,   r = <v2, v1> / ||v1||^2,   u2 = v2 - r v1,   s = ||u2|| / ||u1||
    theta(g, h) = a + g u1 + h u2,        x = g,   y = s h

so that both axes have the unit ||u1||. The models stand at (0, 0), (1, 0) and (r, s). Where r >= 1,
b1 and b2 change places (Juneja et al. 2023, "Linear Connectivity Reveals Generalization
Strategies", the code of their figure 4).

Random directions. theta(x, y) = a + x d1 + y d2, d1 and d2 Gaussian and given the filter norms of a
(Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", section 4); or of M d1 and M d2,
with a mask M (see `geometry.masks`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from landform.errors import ConfigError
from landform.evaluation.data import data_sets
from landform.evaluation.evaluate import metric_names, metric_table
from landform.evaluation.points import Data, PointsConfig, PointsWork, unpack
from landform.geometry.grid import Cell, Grid, evaluate_cells, hits, regular, with_coordinate
from landform.geometry.masks import (
    FisherLike,
    Mask,
    MaskConfig,
    MaskKind,
    check_masks,
    mask_notes,
    masks_of,
)
from landform.geometry.plane import Mode, Span, SurfaceWork, SurfaceWorker
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store
from landform.tasks.task import Examples, Task, loss_unit
from landform.weights.checkpoint import Checkpoint, CheckpointLike, expand, short_names
from landform.weights.points import Direction, MaskedDirection, Member, Normalise

__all__ = [
    "Surface",
    "SurfaceConfig",
    "SurfaceStudy",
    "around_one",
    "surface",
]

# Options about directions around one model, which a plane through three has not.
_OF_DIRECTIONS = (
    "directions", "normalise", "mask", "mask_by", "mask_share", "match_norm", "one_axis",
    "fisher_elsewhere", "pairs", "compat",
)  # fmt: skip
# What the code of Sharma et al. 2024 does.
_GUIDED_DROPOUT_SIZE, _GUIDED_DROPOUT_EXTENT = 16, (-1.5, 1.5)
_GUIDED_DROPOUT_ONLY = {
    "normalise": (None, "filter"), "mask_by": ("tensor",), "mask_share": (0.5,),
    "match_norm": (False,), "one_axis": (False,),
}  # fmt: skip


class SurfaceConfig(MaskConfig, PointsConfig):
    """Options of `surface`."""

    size: int | None = Field(None, ge=3)
    """Points along each axis (default 13). The models must be among them: an odd number, where
    the extent is symmetric about 0."""
    extent: tuple[float, float] | None = None
    """Where both axes begin and end, as coefficients of the two directions (default: -0.5 1.5 for
    a plane through three models, -1 1 around one)."""
    range: float | None = Field(None, gt=0, allow_inf_nan=False)
    """RANGE means the extent -RANGE RANGE."""
    density: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Points per unit, in place of a size."""
    refine: int = Field(0, ge=0, le=6)
    """Levels from coarse to fine: first every 2^REFINE-th coordinate, then what lies between where
    it cannot be interpolated."""
    tolerance: float = Field(0.1, gt=0, allow_inf_nan=False)
    """With refine: the error of interpolation that is allowed, as a share of the height above the
    lowest point found."""
    directions: Literal["random"] | None = None
    """How the directions around one model are found."""
    normalise: Normalise | None = None
    """Scale of random directions: that of every filter of the model (default), of every tensor,
    or none."""
    compat: Literal["guided-dropout"] | None = None
    """guided-dropout: the grid of the code of Sharma et al. 2024, 16 by 16 over -1.5 to 1.5, which
    has no cell at the model; masks by tensor, biases and norms where they are."""
    engine: Literal["local", "ray"] = "local"
    """Where jobs run: in this process, or on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """Worker processes of the Ray engine."""

    @field_validator("extent")
    @classmethod
    def _rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not (all(map(math.isfinite, value)) and value[0] < value[1]):
            raise ValueError("an extent is two finite numbers, the smaller one first")
        return value

    @model_validator(mode="after")
    def _is_theirs(self) -> SurfaceConfig:
        for name, known in _GUIDED_DROPOUT_ONLY.items():
            if self.compat and getattr(self, name) not in known:
                raise ValueError(
                    f"compat {self.compat} means {name} {known[-1]}, not {getattr(self, name)}"
                )
        return self

    @model_validator(mode="after")
    def _refined(self) -> SurfaceConfig:
        self.check_read(self.refine, ["tolerance"], "without refine")
        return self

    @model_validator(mode="after")
    def _says_it_once(self) -> SurfaceConfig:
        for one, other in (("extent", "range"), ("size", "density")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} say the same: give one of them")
        return self

    def extent_of(self, mode: Mode) -> tuple[float, float]:
        """The extent, given or by default."""
        if self.range is not None:
            return -self.range, self.range
        if self.extent is None and self.compat:
            return _GUIDED_DROPOUT_EXTENT
        return self.extent or ((-0.5, 1.5) if mode == "plane" else (-1.0, 1.0))

    def size_of(self, mode: Mode) -> int:
        """Points along an axis."""
        if self.density is None:
            return self.size or (_GUIDED_DROPOUT_SIZE if self.compat else 13)
        low, high = self.extent_of(mode)
        return max(3, round((high - low) * self.density) + 1)

    def needed(self, mode: Mode) -> tuple[float, ...]:
        """Coordinates of models, which the grid must have."""
        if mode == "plane":
            return 0.0, 1.0
        if self.compat and not hits(self.size_of(mode), self.extent_of(mode), 0.0):
            return ()
        return (0.0,)


@dataclass(frozen=True)
class Surface(Result):
    """Losses and metrics on a grid over a plane of parameter space."""

    names: tuple[str, ...]
    """the models, in the order in which they were given"""
    data: tuple[str, ...]
    kind: str
    """kind of the task: the loss is in nats, for regression in squared units"""
    mode: Literal["plane", "random"]
    x: tuple[float, ...]
    """coordinates of the columns, in units of `unit`"""
    y: tuple[float, ...]
    """coordinates of the rows, in units of `unit`"""
    unit: float
    """|| u1 ||: the length of one unit of x and y in parameter space"""
    table: pd.DataFrame
    """data, x, y, loss, loss_low, loss_high, the same three for every metric, and `evaluated`:
    False where a cell was interpolated"""
    points: pd.DataFrame
    """name, x, y of the models"""
    evaluations: int
    """model evaluations that this result is made of"""
    provenance: dict[str, Any]
    directions: pd.DataFrame | None = None
    """what each of two random directions perturbs: see `geometry.masks.measure`"""

    @property
    def values(self) -> dict[str, np.ndarray]:
        """{metric: array (len(y), len(x))} on the first data set."""
        rows = self.table[self.table.data == self.data[0]]
        return {name: self.grid(name) for name in _metric_columns(rows)}

    @property
    def models(self) -> dict[str, tuple[float, float]]:
        """{name: (x, y)}."""
        rows = self.points[["name", "x", "y"]].itertuples(index=False)
        return {name: (float(x), float(y)) for name, x, y in rows}

    def grid(self, metric: str, data: str | None = None) -> np.ndarray:
        """A column of the table as an array (len(y), len(x)), on the first data set by default."""
        name = data or self.data[0]
        rows = self.table[self.table.data == name]
        known = [c for c in rows.columns[3:] if rows[c].notna().any()]
        if name not in self.data or metric not in known:
            there = self.data if name not in self.data else known
            raise ConfigError(
                f"no {metric} of {name} on this surface", remedy=f"there are: {', '.join(there)}"
            )
        values: np.ndarray = rows[metric].to_numpy().reshape(len(self.y), len(self.x))
        return values

    @property
    def saved(self) -> int:
        """Evaluations that interpolation saved."""
        return len(self.x) * len(self.y) - self.evaluations

    @property
    def reading(self) -> str:
        """One line for a person."""
        plane = self.mode == "plane"
        rows = self.table[(self.table.data == self.data[0]) & self.table.evaluated]
        cells = [_nearest(rows, place) for place in self.models.values()]
        losses = ", ".join(f"{cell.loss:.4g}" for cell in cells)
        # Every grid of landform's has the models on it; those of other programs need not.
        on_grid = all(
            math.isclose(cell[c], value, abs_tol=1e-9)
            for cell, place in zip(cells, self.models.values(), strict=True)
            for c, value in zip("xy", place, strict=True)
        )
        where, between = ("the models", "between them") if plane else ("the centre", "of all")
        where = f"at {where}" if on_grid else f"in the cells nearest to {where}"
        count = f"{self.evaluations} evaluations"
        if self.saved:
            count += f" in place of {self.evaluations + self.saved}"
        inside = rows[self._inside(rows)] if self._inside(rows).any() else rows
        return (
            f"{self._title} on {self.data[0]}, {count}: "
            f"loss {losses} {loss_unit(self.kind)} {where}; "
            f"lowest {_cell(rows.iloc[int(rows.loss.argmin())])}; "
            f"highest {between} {_cell(inside.iloc[int(inside.loss.argmax())])}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a mask leaves of the directions, and the random mask to compare with."""
        if self.directions is None:
            return ()
        return mask_notes(self.directions)

    @property
    def mask(self) -> str:
        """The mask of its directions: `none`, or as `fisher-top by tensor`."""
        if self.directions is None or self.directions["mask"][0] == "none":
            return "none"
        return f"{self.directions['mask'][0]} by {self.directions['by'][0]}"

    @property
    def _title(self) -> str:
        if self.mode == "plane":
            return f"plane through {', '.join(self.names)}"
        masked = "" if self.mask == "none" else f" ({self.mask})"
        return f"random directions around {self.names[0]}{masked}"

    def _inside(self, rows: pd.DataFrame) -> np.ndarray:
        """Which cells lie in the triangle of the models; all of them around a single one."""
        if self.mode == "random":
            return np.ones(len(rows), dtype=bool)
        corners = np.vstack([np.array(list(self.models.values())).T, np.ones(3)])
        targets = np.vstack([rows.x, rows.y, np.ones(len(rows))])
        inside = np.linalg.solve(corners, targets) > -1e-9
        return np.asarray(inside.all(0))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "names": list(self.names),
            "data": list(self.data),
            "mode": self.mode,
            "x": list(self.x),
            "y": list(self.y),
            "unit": self.unit,
            "models": {name: list(place) for name, place in self.models.items()},
            "evaluations": self.evaluations,
            "saved": self.saved,
            "table": self.table.to_dict("records"),
            "directions": None if self.directions is None else self.directions.to_dict("records"),
            "notes": list(self.notes),
            "provenance": self.provenance,
        }


def _metric_columns(rows: pd.DataFrame) -> list[str]:
    """The metrics that a data set has, without their intervals."""
    return [c for c in rows.columns if f"{c}_low" in rows and rows[c].notna().any()]


def _nearest(rows: pd.DataFrame, place: tuple[float, float]) -> Any:
    """The evaluated cell nearest to a place."""
    return rows.iloc[int(((rows.x - place[0]) ** 2 + (rows.y - place[1]) ** 2).argmin())]


def _cell(row: Any) -> str:
    low, high = row["loss_low"], row["loss_high"]
    interval = "" if math.isnan(low) else f" [{low:.4g}, {high:.4g}]"
    return f"{row['loss']:.4g}{interval} at ({row['x']:.3g}, {row['y']:.3g})"


def surface(
    task: Task,
    *,
    through: Iterable[CheckpointLike] | None = None,
    around: CheckpointLike | None = None,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    fisher: FisherLike | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Surface:
    """Evaluate the plane `through` three checkpoints, or random directions `around` one.

    `also` names further data sets: every mixed model is evaluated on all of them. With a `store`
    every cell is kept as soon as it is known. Options are the fields of `SurfaceConfig` (size,
    extent, refine, seed, mask, ...); masks by Fisher need one (`fisher`). Several masks or pairs
    of directions are a `landscape`. Raises a `ConfigError` for models that span no plane, and for a
    grid that would miss them, and a `CurvatureError` for a Fisher of another model.
    """
    study = SurfaceStudy.of(
        task,
        through=through,
        around=around,
        split=split,
        also=also,
        fisher=fisher,
        options=options,
    )
    return study.run(store, progress=progress)


# --- the plan, and running it -----------------------------------------------------------------


@dataclass(frozen=True)
class SurfaceStudy:
    """What would be evaluated, before anything is."""

    mode: Mode
    names: tuple[str, ...]
    work: PointsWork
    config: SurfaceConfig
    pair: int = 0
    """number of the pair of random directions"""
    told: Mapping[str, Any] | None = None
    """what the provenance says of the Fisher"""

    @classmethod
    def of(
        cls,
        task: Task,
        *,
        through: Iterable[CheckpointLike] | None = None,
        around: CheckpointLike | None = None,
        split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        fisher: FisherLike | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> SurfaceStudy:
        """Resolve models, data and options; raises for what can be seen to be wrong."""
        config = SurfaceConfig.parse(options or {}, where="surface")
        data = data_sets(task, split, also)
        if around is not None and through is None:
            if len(config.mask) > 1 or config.pairs > 1:
                raise ConfigError(
                    f"{len(config.mask)} masks and {config.pairs} pairs of directions are several "
                    "surfaces",
                    remedy="use landform.landscape, which compares them",
                )
            centre = around_one(around, config)
            check_masks(config, fisher)
            return cls.around(centre, data, config, masks_of(centre, config, fisher, config.seed))
        models = _plane_models(through, around, config, fisher)
        regular(config.size_of("plane"), config.extent_of("plane"), config.needed("plane"))
        work = PointsWork(tuple(models), data, config)
        return cls("plane", short_names(models), work, config)

    @classmethod
    def around(
        cls,
        centre: Checkpoint,
        data: tuple[Data, ...],
        config: SurfaceConfig,
        masks: Mapping[MaskKind, Sequence[Mask | None]],
        pair: int = 0,
    ) -> SurfaceStudy:
        """The surface of one pair of directions under the one mask that `config` names."""
        (kind,) = config.mask
        mask = masks[kind][pair]
        seeds = np.random.SeedSequence(config.seed).generate_state(2 * pair + 2)[-2:]
        made: list[Member] = []
        for seed in seeds:
            direction = Direction(centre, int(seed), config.normalise or "filter", config.one_axis)
            made.append(
                direction if mask is None else MaskedDirection(direction, mask, config.match_norm)
            )
        work = PointsWork((centre,), data, config, tuple(made))
        told = None if mask is None else mask.told
        return cls("random", short_names([centre]), work, config, pair, told)

    @property
    def title(self) -> tuple[str, ...]:
        """Words that name it among the results of a study."""
        if self.mode == "plane":
            return "surface", *self.names
        config = self.config
        masked = () if config.mask == ("none",) else (*config.mask, config.mask_by)
        more = [name for name in ("match_norm", "one_axis") if getattr(config, name)]
        return ("surface", *self.names, "random", *masked, *more)

    def run(
        self,
        store: str | os.PathLike[str] | ArtifactStore | None = None,
        *,
        progress: bool = False,
        execute: Callable[..., None] | None = None,
        forget: bool | None = None,
    ) -> Surface:
        """Evaluate the cells that are missing and put all of them together.

        `execute` runs plans for several surfaces (see `executor`); by default this one has its own.
        `forget`: drop the outputs of single examples once they are reduced (default: where there is
        no store).
        """
        kept = open_store(store)
        execute = execute or self.executor(kept, progress)
        span = self.span(kept, execute)
        grid = self.grid(span)
        forget = store is None if forget is None else forget
        cells = _Cells(self, span, grid, kept, execute, forget)
        values, evaluated = evaluate_cells(
            grid,
            cells.evaluate,
            levels=self.config.refine,
            tolerance=self.config.tolerance,
            judged=cells.losses,
        )
        return self._surface(span, grid, cells, values, evaluated)

    def forecast(self, store: ArtifactStore) -> Forecast:
        """What is left to do at most: with `refine`, as if nothing could be interpolated."""
        scratch = open_store(None)
        known = store if SurfaceWork(self.work).span_job(self.mode).key in store else scratch
        plan = self.plan(known, self.executor(known, progress=False))
        return self.work.forecast(plan, store, workers=self.config.workers)

    def plan(self, store: ArtifactStore, execute: Callable[..., None]) -> Plan:
        """The jobs of all cells."""
        span = self.span(store, execute)
        grid = self.grid(span)
        return Plan(self.job(span, grid, cell) for cell in grid.cells)

    def executor(self, store: ArtifactStore, progress: bool) -> Callable[..., None]:
        """What runs plans, with one worker for all of them."""
        opened: list[SurfaceWorker] = []
        work = SurfaceWork(self.work)

        def worker() -> SurfaceWorker:
            # Several plans run one after the other: their model and data are loaded once.
            if not opened:
                opened.append(work())
            return opened[0]

        def execute(plan: Plan, on_result: Callable[[Job, Contents], None] | None = None) -> None:
            run_plan(
                plan,
                worker if self.config.engine == "local" else work,
                store,
                engine=self.config.engine,
                workers=self.config.workers,
                progress=progress and len(plan) > 1,
                on_result=on_result,
                description="surface",
            )

        return execute

    def span(self, store: ArtifactStore, execute: Callable[..., None]) -> Span:
        """How the plane lies, measured once and kept."""
        job = SurfaceWork(self.work).span_job(self.mode)
        execute(Plan((job,)))
        record = store.read(job.key).records["span"]
        if self.mode == "random":
            return Span.of_directions(record)
        return Span.of_models(record, self.names)

    def grid(self, span: Span) -> Grid:
        """Coordinates (g, h) that hit the models."""
        extent, size = self.config.extent_of(self.mode), self.config.size_of(self.mode)
        needed = self.config.needed(self.mode)
        axis = columns = regular(size, extent, needed)
        if self.mode == "plane":
            third = self.names[span.order[2]]
            columns = with_coordinate(axis, span.r, needed, third)
        places = tuple((columns.index(g), axis.index(h)) for g, h in span.models if needed)
        return Grid(columns, axis, places)

    def job(self, span: Span, grid: Grid, cell: Cell) -> Job:
        """The evaluation of one cell; at a model it is that of the model itself."""
        if cell in grid.models:
            return self.work.point_job(grid.models.index(cell))
        g, h = grid.x[cell[0]], grid.y[cell[1]]
        label = f"{self.names[0]} and others at ({g:.3g}, {h * span.aspect:.3g})"
        return self.work.mix_job((0, 1, 2), [span.weights(g, h)], label)

    def _surface(
        self, span: Span, grid: Grid, cells: _Cells, values: np.ndarray, evaluated: np.ndarray
    ) -> Surface:
        y = tuple(h * span.aspect for h in grid.y)
        data = tuple(data.name for data in self.work.data)
        record = dict(span.record)
        directions = record.pop("directions", None)
        return Surface(
            names=self.names,
            data=data,
            kind=self.work.data[0].task.kind,
            mode=self.mode,
            x=grid.x,
            y=y,
            unit=span.unit,
            table=cells.table(grid.x, y, values, evaluated),
            points=pd.DataFrame(
                [
                    {"name": name, "x": g, "y": h * span.aspect}
                    for name, (g, h) in zip(self.names, span.models, strict=True)
                ]
            ),
            evaluations=int(evaluated.sum()),
            provenance={
                "checkpoints": [c.spec for c in self.work.checkpoints],
                "weights": [c.fingerprint for c in self.work.checkpoints],
                "config": self.config.model_dump(mode="json"),
                "span": record,
                "truncated": dict(zip(data, cells.truncated, strict=True)),
                **({} if self.mode == "plane" else {"pair": self.pair, "fisher": self.told}),
            },
            directions=None if directions is None else _direction_table(directions),
        )


def _direction_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    named = [{"axis": axis, **row} for axis, row in zip("xy", rows, strict=True)]
    return pd.DataFrame(named).astype({"unseen": "Int64"})


def around_one(around: CheckpointLike, config: SurfaceConfig) -> Checkpoint:
    """The one model that directions start at; `ConfigError` for several, and for a grid that would
    miss it."""
    chosen = expand(around)
    if len(chosen) != 1:
        raise ConfigError(
            f"option around names {len(chosen)} models", remedy="directions start at one model"
        )
    regular(config.size_of("random"), config.extent_of("random"), config.needed("random"))
    return chosen[0]


def _plane_models(
    through: Iterable[CheckpointLike] | None,
    around: CheckpointLike | None,
    config: SurfaceConfig,
    fisher: FisherLike | None,
) -> list[Checkpoint]:
    """The three models that were asked for."""
    if through is None and around is None:
        raise ConfigError(
            "a surface of what?",
            remedy="name three models (option through), or one (option around)",
        )
    if through is not None and around is not None:
        raise ConfigError(
            "options through and around exclude each other",
            remedy="a plane goes through three models, random directions start at one",
        )
    chosen = expand(through or ())
    if len(chosen) != 3:
        raise ConfigError(
            f"option through names {len(chosen)} model{'' if len(chosen) == 1 else 's'}: a plane "
            "is spanned by three",
            remedy="name three models; for two use landform interpolate, for one option around",
        )
    given = [
        n for n in _OF_DIRECTIONS if getattr(config, n) != SurfaceConfig.model_fields[n].default
    ]
    if given or fisher is not None:
        raise ConfigError(
            f"option {(*given, 'fisher')[0]} is about directions around one model, not a plane "
            "through three",
            remedy="leave it out, or give option around",
        )
    for i, j in ((0, 1), (0, 2), (1, 2)):
        if chosen[i].fingerprint == chosen[j].fingerprint:
            raise ConfigError(
                f"{chosen[i].spec} and {chosen[j].spec} are the same model: they and a third one "
                "span no plane",
                remedy="give three different models, or look around one (option around)",
            )
    return chosen


@dataclass
class _Cells:
    """Evaluates cells, and reduces what comes out to numbers as it comes."""

    study: SurfaceStudy
    span: Span
    grid: Grid
    store: ArtifactStore
    execute: Callable[..., None]
    forget: bool
    """drop the outputs of single examples once they are reduced"""
    truncated: list[int] = field(default_factory=list)

    @cached_property
    def columns(self) -> list[tuple[int, str]]:
        """(data set, column of the table) of each of the K numbers of a cell."""
        return [
            (d, f"{name}{end}")
            for d, data in enumerate(self.study.work.data)
            for name in metric_names(data.task)
            for end in ("", "_low", "_high")
        ]

    @property
    def losses(self) -> list[tuple[int, int]]:
        """Where the loss of each data set and the upper end of its interval are."""
        return [
            (self.columns.index((d, "loss")), self.columns.index((d, "loss_high")))
            for d in range(len(self.study.work.data))
        ]

    @cached_property
    def examples(self) -> list[Examples]:
        """Of every data set."""
        return [data.examples(self.study.config.rows) for data in self.study.work.data]

    def evaluate(self, cells: Sequence[Cell]) -> np.ndarray:
        """The numbers of cells, (cells, K); those that the store holds are not computed again."""
        jobs = [self.study.job(self.span, self.grid, cell) for cell in cells]
        numbers: dict[str, np.ndarray] = {}

        def reduce(job: Job, contents: Contents) -> None:
            numbers[job.key] = self._reduce(contents)
            if self.forget:
                self.store.remove(job.key)

        self.execute(Plan(jobs), reduce)
        for job in jobs:
            if job.key not in numbers:
                numbers[job.key] = self._reduce(self.store.read(job.key))
        return np.stack([numbers[job.key] for job in jobs])

    def _reduce(self, contents: Contents) -> np.ndarray:
        config = self.study.config
        row: list[float] = []
        self.truncated = [int(n) for n in contents.records["points"]["truncated"]]
        for d, data in enumerate(self.study.work.data):
            predictions = unpack(contents, d, self.examples[d], data.task.kind)[0]
            for triple in metric_table(predictions, metric_names(data.task), config).values():
                row += triple
        return np.array(row)

    def table(
        self, x: Sequence[float], y: Sequence[float], values: np.ndarray, evaluated: np.ndarray
    ) -> pd.DataFrame:
        """The table of the result, row by row of the grid."""
        tables = []
        for d, data in enumerate(self.study.work.data):
            across, along = np.meshgrid(x, y)
            columns = {"data": data.name, "x": across.ravel(), "y": along.ravel()}
            for k, (which, name) in enumerate(self.columns):
                if which == d:
                    columns[name] = values[..., k].ravel()
            tables.append(pd.DataFrame({**columns, "evaluated": evaluated.ravel()}))
        table = pd.concat(tables, ignore_index=True)
        return table[[*(c for c in table if c != "evaluated"), "evaluated"]]
