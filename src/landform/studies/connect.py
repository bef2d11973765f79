"""`connect`: the lines between all pairs of many checkpoints, and the basins they reveal.

Every checkpoint is loaded once and evaluated once; every pair adds the interior points of its
line. For N checkpoints, P pairs and k points that is N + P (k - 2) evaluations per data set, and
each mixed model is evaluated on all data sets before it is moved on.

With K landmarks, P is not N (N - 1) / 2 but about N K: see `landform.geometry.landmarks`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from landform.errors import ConfigError
from landform.evaluation.data import data_sets
from landform.evaluation.points import Data, PointsWork, unpack
from landform.geometry.basins import Clustering, cluster
from landform.geometry.landmarks import Landmarks
from landform.geometry.line import SUMMARY_FIELDS, LineConfig, line_predictions, line_statistics
from landform.geometry.similarity import (
    SIMILARITIES,
    error_agreement,
    functional_similarity,
    js_distance,
)
from landform.geometry.statistics import basin_summary, basin_table
from landform.geometry.transitivity import Transitivity, transitivity
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Contents, Store
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Plan
from landform.store.study import open_store, publish
from landform.studies.endpoints import Endpoints, metric_values, select_checkpoints
from landform.studies.landmarks import (
    chosen_landmarks,
    divide_by_landmarks,
    expected_plan,
    landmark_choice,
    named_landmarks,
    star_study,
    uses_landmarks,
    verified_landmarks,
    verifying_study,
)
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import Checkpoint, short_names

if TYPE_CHECKING:
    from landform.tasks.task import Examples

__all__ = ["ConnectConfig", "Connection", "ConnectionStudy", "connect"]


class ConnectConfig(LineConfig):
    """Options of `connect`."""

    points: int = Field(10, ge=2)
    """Points on each line, both ends included, equally spaced."""
    basins: int | None = Field(None, ge=1)
    """Number of basins (default: chosen by the data)."""
    affinity_scale: float | None = Field(None, gt=0)
    """Scale s of the affinity exp(-gap^2 / 2 s^2), in nats (default: chosen by the data)."""
    compat: Literal["connectivity"] | None = None
    """'connectivity' repeats the fixed choices of Juneja et al. 2023: scale 1 nat, two basins."""
    landmarks: int | None = Field(None, ge=2)
    """Walk lines to this many landmarks only, chosen far apart in weight space, and find the basins
    from those (default: all pairs)."""
    landmark_names: tuple[str, ...] = ()
    """These checkpoints as the landmarks."""
    ood: tuple[str, ...] = ()
    """Columns of the endpoint table to compare between basins (default: the headline metric of
    every further data set and of its first group of subsets)."""
    in_domain: str | None = None
    """The column beside them as the confound (default: the first data set's headline metric)."""
    engine: Literal["local", "ray"] = "local"
    """Where jobs run: in this process, or on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """Worker processes of the Ray engine."""
    keep_as: str = Field("connect", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the result in the study, for a study that connects more than once."""


_OF_BASINS = ("basins", "affinity_scale", "compat", "ood", "in_domain")
"""Options that only the division into basins reads."""


@dataclass(frozen=True)
class Connection(Result):
    """What lies between N checkpoints."""

    names: tuple[str, ...]
    data: tuple[str, ...]
    """data sets; the first one makes the basins"""
    kind: str
    """kind of the task: the loss is in nats, for regression in squared units"""
    curves: pd.DataFrame
    """data, a, b, t, loss, loss_low, loss_high and the metrics at every point of every line"""
    pairs: pd.DataFrame
    """data, a, b, distance; barrier, gap, intervals, noise floor of every line; and of its two ends
    error_agreement, functional_similarity, js_distance (NaN unless the task has classes)"""
    clustering: Clustering | None
    """None when pairs were chosen: basins need the whole matrix, or landmarks"""
    endpoints: pd.DataFrame
    """one row per checkpoint; columns `data/metric` and `data/subset/metric`"""
    statistics: pd.DataFrame | None
    """the largest basin against the rest, per OOD metric and for the in-domain confound"""
    basin_metrics: pd.DataFrame | None
    """mean, deviation, extremes of every endpoint metric in every basin"""
    evaluations: int
    """model evaluations that this result is made of: N + pairs x (points - 2)"""
    provenance: dict[str, Any]
    landmarks: Landmarks | None = None
    """where basins were found by landmarks: which, and what other lines say of the basins"""

    def matrix(self, quantity: str = "convexity_gap", data: str | None = None) -> pd.DataFrame:
        """A column of `pairs` as a square, symmetric table (NaN: not walked).

        The diagonal is what a checkpoint is to itself: 1 for the two similarities, else 0.
        """
        name = data or self.data[0]
        if name not in self.data or quantity not in self.pairs:
            known = self.data if name not in self.data else self.pairs.columns[3:]
            raise ConfigError(
                f"no {quantity} of {name} in this study", remedy=f"there are: {', '.join(known)}"
            )
        table = pd.DataFrame(np.nan, index=list(self.names), columns=list(self.names))
        rows = self.pairs[self.pairs.data == name]
        for a, b, value in zip(rows.a, rows.b, rows[quantity], strict=True):
            table.loc[a, b] = table.loc[b, a] = value
        values = table.to_numpy(copy=True)
        np.fill_diagonal(values, SIMILARITIES.get(quantity, 0.0))
        return pd.DataFrame(values, index=table.index, columns=table.columns)

    @property
    def gaps(self) -> pd.DataFrame:
        """Convexity gaps on the first data set, nats."""
        return self.matrix("convexity_gap")

    @property
    def barriers(self) -> pd.DataFrame:
        """Barrier heights on the first data set, nats."""
        return self.matrix("barrier_height")

    @property
    def distances(self) -> pd.DataFrame:
        """Euclidean distances."""
        return self.matrix("distance")

    @cached_property
    def transitivity(self) -> Transitivity | None:
        """Triangle-inequality statistics of the gaps, at the noise floors and options of the study.

        None where not all pairs were walked.
        """
        gaps = self.gaps
        if gaps.isna().to_numpy().any():
            return None
        config = self.provenance.get("config", {})
        options = {k: config[k] for k in ("replicates", "seed", "level", "compat") if k in config}
        return transitivity(gaps, noise_floor=self.matrix("noise_floor").to_numpy(), **options)

    @property
    def basins(self) -> pd.Series:
        """name -> basin, numbered by size (0 is the largest)."""
        if self.clustering is None:
            return pd.Series(pd.NA, index=list(self.names), dtype="Int64", name="basin")
        return self.clustering.basins

    @property
    def reading(self) -> str:
        """One line for a person."""
        rows = self.pairs[self.pairs.data == self.data[0]]
        unit = loss_unit(self.kind)
        above = int((rows.convexity_gap > rows.noise_floor).sum())
        low, high = rows.convexity_gap.min(), rows.convexity_gap.max()
        sizes = f"gap {low:.3g}" if len(rows) == 1 else f"gaps {low:.3g} to {high:.3g}"
        gaps = f"{sizes} {unit}, {above} of {len(rows)} above the noise floor"
        if self.clustering is None:
            return f"{len(self.names)} checkpoints, {len(rows)} lines: {gaps}"
        text = f"{len(self.names)} checkpoints: {self._basins_sentence()}; {gaps}"
        return text if self.landmarks is None else f"{text}; {self.landmarks.reading}"

    def _basins_sentence(self) -> str:
        assert self.clustering is not None
        sizes = self.clustering.basins.value_counts().sort_index().tolist()
        if len(sizes) == 1:
            return "one basin"
        if max(sizes) == 1:
            return "every checkpoint is a basin of its own"
        return f"{len(sizes)} basins of {', '.join(map(str, sizes))}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; curves stay a table in the study."""
        return {
            "names": list(self.names),
            "data": list(self.data),
            "evaluations": self.evaluations,
            "pairs": self.pairs.to_dict("records"),
            "basins": {str(k): None if pd.isna(v) else int(v) for k, v in self.basins.items()},
            "clustering": None if self.clustering is None else self.clustering.note,
            "landmarks": None if self.landmarks is None else self.landmarks.to_json(),
            "transitivity": None if self.transitivity is None else self.transitivity.to_json(),
            "endpoints": self.endpoints.reset_index(names="name").to_dict("records"),
            "statistics": None if self.statistics is None else self.statistics.to_dict("records"),
            "provenance": self.provenance,
        }


def connect(
    checkpoints: Iterable[str | os.PathLike[str] | Checkpoint],
    task: Task,
    *,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    pairs: Iterable[tuple[str, str]] | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Connection:
    """Connect checkpoints by straight lines and divide them into basins.

    `checkpoints` may hold patterns (`runs/seed*`). `also` names further data sets, say an
    out-of-distribution one: every mixed model is evaluated on all of them. `pairs` limits the
    lines to pairs of checkpoint names. With a `store`, finished lines are kept and reused, and the
    result is kept under the name `keep_as`. Options are the fields of `ConnectConfig`.
    """
    study = ConnectionStudy.of(checkpoints, task, split=split, also=also, pairs=pairs, **options)
    return study.run(None if store is None else open_store(store), progress=progress)


@dataclass(frozen=True)
class ConnectionStudy:
    """The plan of a `connect`: what would be evaluated, before anything is."""

    names: tuple[str, ...]
    work: PointsWork
    pairs: tuple[tuple[int, int], ...]
    config: ConnectConfig
    landmarks: tuple[int, ...] = ()
    """the landmarks, once they are known"""

    @classmethod
    def of(
        cls,
        checkpoints: Iterable[str | os.PathLike[str] | Checkpoint],
        task: Task,
        *,
        split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        pairs: Iterable[tuple[str, str]] | None = None,
        **options: Any,
    ) -> ConnectionStudy:
        """Resolve checkpoints, data and options; raises for anything that is not there."""
        config = ConnectConfig.parse(options, where="connect")
        chosen = select_checkpoints(checkpoints)
        if len(chosen) < 2:
            raise ConfigError(
                f"connect needs at least two checkpoints, got {len(chosen)}",
                remedy="name several directories, or a pattern such as 'runs/seed*'",
            )
        data = data_sets(task, split, also)
        if config.basins is not None and config.basins > len(chosen):
            raise ConfigError(
                f"option basins is {config.basins}, but there are {len(chosen)} checkpoints",
                remedy=f"use at most {len(chosen)}, or leave it out: the data choose",
            )
        if config.compat is not None and len(chosen) < 3:
            raise ConfigError(
                f"compat divides at least three checkpoints in two, got {len(chosen)}",
                remedy="leave compat out",
            )
        names = short_names(chosen)
        landmarks = named_landmarks(config, names, pairs)
        wanted = (
            list(combinations(range(len(chosen)), 2))
            if pairs is None
            else _index_pairs(pairs, names)
        )
        unread = config.options_given(_OF_BASINS)
        if unread and pairs is not None and len(wanted) < len(chosen) * (len(chosen) - 1) // 2:
            raise ConfigError(
                f"option {unread[0]} has no effect beside pairs: basins need all lines",
                remedy="leave one of the two out",
            )
        work = PointsWork(tuple(chosen), data, config)
        study = cls(names, work, tuple(wanted), config, landmarks)
        if config.ood or config.in_domain:
            study.compared_columns()
        return study

    @property
    def endpoints(self) -> Endpoints:
        """The checkpoints by themselves."""
        return Endpoints(self.names, self.work)

    def compared_columns(self) -> tuple[tuple[str, ...], str]:
        """The OOD columns and the in-domain column of the endpoint table, before it is there."""
        return self.endpoints.choose(self.config.ood, self.config.in_domain)

    @property
    def ts(self) -> tuple[float, ...]:
        """Positions on every line."""
        return self.config.ts

    @cached_property
    def plan(self) -> Plan:
        """Points first (they are the cheapest way to learn that something is wrong), then lines."""
        ends = [self.work.point_job(m) for m in range(len(self.names))]
        lines = [self.work.line_job(a, b, self.ts[1:-1]) for a, b in self._ordered_pairs()]
        return Plan((*ends, *lines))

    def forecast(self, store: ArtifactStore) -> Forecast:
        """What is left to do, how long it takes here and how much memory.

        By landmarks, the lines depend on what was found before them: what is not known yet is
        counted at its most.
        """
        plan = self.plan if not uses_landmarks(self) else expected_plan(self, store)
        return self.work.forecast(plan, store, workers=self.config.workers)

    def run(self, store: ArtifactStore | None, *, progress: bool = False) -> Connection:
        """Run what is missing, assemble the result and keep it under its name."""
        if store is None:
            # Per-example outputs of thousands of lines belong on a disk, not in memory.
            with tempfile.TemporaryDirectory(prefix="landform-") as scratch:
                return self.run(Store.open(scratch), progress=progress)
        study = self
        # In this process one loaded model serves all plans; Ray's workers open their own.
        worker = cache(self.work) if self.config.engine == "local" else self.work
        if uses_landmarks(self):
            if not self.landmarks:
                work = landmark_choice(self)
                run_plan(Plan([work.job()]), work, store, progress=False)
            study = star_study(self, chosen_landmarks(self, store))
            study._walk(worker, store, progress)
            study = verifying_study(study, store)
        study._walk(worker, store, progress)
        connection = study.collect(store)
        publish(store, self.config.keep_as, connection)
        return connection

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.config.keep_as,)

    def _walk(self, worker: Any, store: ArtifactStore, progress: bool) -> None:
        run_plan(
            self.plan,
            worker,
            store,
            engine=self.config.engine,
            workers=self.config.workers,
            progress=progress,
            description="connecting",
        )

    def _ordered_pairs(self) -> list[tuple[int, int]]:
        """Pairs in tiles: a cache of k checkpoints then serves about k^2 / 4 lines per filling."""
        side = max(1, int(self.config.memory * 2**30 / self.work.point_bytes) // 2)
        return sorted(self.pairs, key=lambda pair: (pair[0] // side, pair[1] // side, pair))

    # --- from kept outputs to the result -----------------------------------------------------

    def collect(self, store: ArtifactStore) -> Connection:
        """Assemble the result from the outputs in `store`."""
        ends = self.endpoints.ends(store)
        curves, pairs = [], []
        for d, data in enumerate(self.work.data):
            examples = data.examples(self.config.rows)
            alike = _alike(ends, d, examples, data.task.kind)
            curve_rows, pair_rows = self._collect_lines(store, ends, d, data, examples, alike)
            curves.append(curve_rows)
            pairs.append(pair_rows)
        pair_table = pd.concat(pairs, ignore_index=True)
        endpoint_table = self.endpoints.table(ends)
        clustering = self._cluster(pair_table)
        statistics, summary = self._compare(clustering, endpoint_table)
        return Connection(
            names=self.names,
            data=tuple(data.name for data in self.work.data),
            kind=self.work.data[0].task.kind,
            curves=pd.concat(curves, ignore_index=True),
            pairs=pair_table,
            clustering=clustering,
            endpoints=endpoint_table,
            statistics=statistics,
            basin_metrics=summary,
            evaluations=int(sum(job.cost for job in self.plan.jobs)),
            provenance={
                **self.endpoints.provenance(self.config),
                "truncated": dict(
                    zip(
                        (data.name for data in self.work.data),
                        ends[0].records["points"]["truncated"],
                        strict=True,
                    )
                ),
            },
            landmarks=None
            if clustering is None
            else verified_landmarks(self, clustering, pair_table),
        )

    def first_pairs(self, store: ArtifactStore) -> pd.DataFrame:
        """The rows of `Connection.pairs` of the first data set, without the function-space ones."""
        data, ends = self.work.data[0], self.endpoints.ends(store)
        return self._collect_lines(store, ends, 0, data, data.examples(self.config.rows), {})[1]

    def _collect_lines(
        self,
        store: ArtifactStore,
        ends: Sequence[Any],
        d: int,
        data: Data,
        examples: Examples,
        alike: Mapping[str, np.ndarray],
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Curves and pairs of one data set. Lines are read and reduced one block at a time:
        per-example outputs of thousands of lines never sit in memory together."""
        curve_rows: list[dict[str, Any]] = []
        pair_rows: list[dict[str, Any]] = []
        block = 64
        for start in range(0, len(self.pairs), block):
            chosen = self.pairs[start : start + block]
            lines = [store.read(self.work.line_job(a, b, self.ts[1:-1]).key) for a, b in chosen]
            points = [
                line_predictions((ends[a], ends[b]), line, d, examples, data.task.kind)
                for (a, b), line in zip(chosen, lines, strict=True)
            ]
            distances = np.array([float(line.records["points"]["distance"]) for line in lines])
            statistics = line_statistics(points, self.config, distances)
            for c, (a, b) in enumerate(chosen):
                head = {"data": data.name, "a": self.names[a], "b": self.names[b]}
                pair_rows.append(
                    {**head, "distance": distances[c]}
                    | {name: float(getattr(statistics, name)[c]) for name in SUMMARY_FIELDS}
                    | {name: float(values[a, b]) for name, values in alike.items()}
                )
                curve_rows += [
                    {
                        **head,
                        "t": t,
                        "loss": float(statistics.loss[c, k]),
                        "loss_low": float(statistics.loss_low[c, k]),
                        "loss_high": float(statistics.loss_high[c, k]),
                        **metric_values(points[c][k], data.task),
                    }
                    for k, t in enumerate(self.ts)
                ]
        return pd.DataFrame(curve_rows), pd.DataFrame(pair_rows)

    def _cluster(self, pairs: pd.DataFrame) -> Clustering | None:
        if self.landmarks:
            return divide_by_landmarks(self, pairs)
        if len(self.pairs) < len(self.names) * (len(self.names) - 1) // 2:
            return None
        square, floors = self.squares(pairs)
        config = self.config
        return cluster(
            square,
            n_basins=config.basins,
            scale="auto" if config.affinity_scale is None else config.affinity_scale,
            noise_floor=floors.to_numpy(),
            compat=config.compat == "connectivity",
            seed=config.seed,
        )

    def squares(self, pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Gaps and noise floors on the first data set, N x N; NaN where no line was walked."""
        rows = pairs[pairs.data == self.work.data[0].name]
        position = {name: i for i, name in enumerate(self.names)}
        i, j = rows.a.map(position).to_numpy(), rows.b.map(position).to_numpy()
        tables = []
        for column in ("convexity_gap", "noise_floor"):
            values = np.full((len(self.names), len(self.names)), np.nan)
            np.fill_diagonal(values, 0.0)
            values[i, j] = values[j, i] = rows[column]
            tables.append(pd.DataFrame(values, list(self.names), list(self.names)))
        return tables[0], tables[1]

    def _compare(
        self, clustering: Clustering | None, endpoints: pd.DataFrame
    ) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
        """Statistics of the largest basin against the rest, and every basin's own."""
        ood, in_domain = self.compared_columns()
        if clustering is None:
            return None, None
        summary = basin_summary(clustering.basins, endpoints)
        if clustering.n_basins < 2:
            return None, summary
        table = basin_table(
            clustering.basins,
            endpoints,
            ood=ood,
            in_domain=in_domain,
            centroid_difference=clustering.centroid_difference,
            replicates=self.config.replicates,
            seed=self.config.seed,
            level=self.config.level,
        )
        return table, summary


def _alike(
    ends: Sequence[Contents], d: int, examples: Examples, kind: str
) -> dict[str, np.ndarray]:
    """The function-space measures of all pairs of checkpoints, (N, N) each; NaN without classes."""
    if kind != "classification":
        return {name: np.full((len(ends), len(ends)), np.nan) for name in SIMILARITIES}
    logits = np.stack([np.asarray(unpack(end, d, examples, kind)[0].logits) for end in ends])
    return {
        "error_agreement": error_agreement(logits, np.asarray(examples.labels)),
        "functional_similarity": functional_similarity(logits),
        "js_distance": js_distance(logits),
    }


def _index_pairs(pairs: Iterable[tuple[str, str]], names: Sequence[str]) -> list[tuple[int, int]]:
    wanted: dict[tuple[int, int], None] = {}
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ConfigError(
                f"a pair is two different checkpoints, got {pair!r}",
                remedy=f"names: {', '.join(names)}",
            )
        for name in pair:
            if name not in names:
                raise ConfigError(
                    f"pairs: no checkpoint is called {name!r}",
                    remedy=f"names: {', '.join(names)}",
                )
        i, j = sorted((names.index(pair[0]), names.index(pair[1])))
        wanted[i, j] = None
    if not wanted:
        raise ConfigError("the list of pairs is empty", remedy="leave it out for all pairs")
    return list(wanted)
