"""`dynamics`: basins of the same runs at several training steps, and who changes between them.

Every step is a `connect` of its own. The labels of a clustering mean nothing beyond it, so those of
a step are matched with those of the step before (the assignment that keeps most runs where they
are: Kuhn 1955, the Hungarian method) before anything is compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from landform.errors import ConfigError
from landform.evaluation.points import Data
from landform.geometry.statistics import centroid_predictor
from landform.results import Result
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Forecast, ForecastRow
from landform.store.study import open_store, publish
from landform.studies.connect import ConnectConfig, Connection, ConnectionStudy
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, expand, select, short_names

__all__ = [
    "Dynamics",
    "DynamicsConfig",
    "DynamicsStudy",
    "adjusted_rand_index",
    "align_labels",
    "dynamics",
]

Labels = npt.NDArray[np.intp]
Named = str | os.PathLike[str] | Checkpoint


class DynamicsConfig(ConnectConfig):
    """Options of `dynamics`."""

    steps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The training steps to look at: each is RUN/checkpoint-STEP of every run."""
    metric: str | None = None
    """The column of the endpoint table to follow (default: the first out-of-distribution one, or
    the first data set's headline metric)."""
    permutations: int = Field(1999, ge=99)
    """Permutations for the p values of the adjusted Rand index."""
    keep_as: str = Field("dynamics", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the result in the study; the connection of a step is kept as NAME-STEP."""


@dataclass(frozen=True)
class Dynamics(Result):
    """Basins of N runs at several training steps."""

    steps: tuple[int, ...]
    names: tuple[str, ...]
    basins: pd.DataFrame
    """index name, one column per step: basins with labels aligned over time; a basin that has no
    counterpart at the step before gets a new number"""
    positions: pd.DataFrame
    """name, step, basin, x, performance, switched. x: distance to the centroid of basin 1 minus
    that to basin 0 in the step's own spectral embedding (0 where there is one basin);
    performance: `metric` at that step; switched: the basin is another than at the step before"""
    agreement: pd.DataFrame
    """one row per pair of steps: step_a, step_b, adjusted_rand, p_value (permutation), switched:
    the number of runs in another basin"""
    summary: pd.DataFrame
    """one row per step: step, n_basins, confidence, largest_gap, above_noise (share of the lines),
    performance (mean), pearson_r and p_value of x and performance, note"""
    metric: str
    """column of the endpoint table"""
    data: tuple[str, ...]
    kind: str
    evaluations: int
    """of all steps together"""
    provenance: dict[str, Any]

    @property
    def switchers(self) -> tuple[str, ...]:
        """Runs that change their basin between two steps that follow one another."""
        moved = set(self.positions["name"][self.positions["switched"]])
        return tuple(name for name in self.names if name in moved)

    @property
    def reading(self) -> str:
        """One line for a person."""
        counts = ", ".join(
            f"{row['n_basins']} at step {row['step']}" for row in self.summary.to_dict("records")
        )
        first, last = self.steps[0], self.steps[-1]
        rows = self.agreement
        row = rows[(rows["step_a"] == first) & (rows["step_b"] == last)].iloc[0]
        return (
            f"{len(self.names)} runs, basins: {counts}; {len(self.switchers)} runs change basin; "
            f"steps {first} and {last} agree with an adjusted Rand index of "
            f"{row['adjusted_rand']:.2f} (p = {row['p_value']:.2g})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        table = {str(step): self.basins[step].to_dict() for step in self.steps}
        return {
            "steps": list(self.steps),
            "names": list(self.names),
            "metric": self.metric,
            "data": list(self.data),
            "evaluations": self.evaluations,
            "switchers": list(self.switchers),
            "basins": table,
            "positions": self.positions.to_dict("records"),
            "agreement": self.agreement.to_dict("records"),
            "summary": self.summary.to_dict("records"),
            "provenance": self.provenance,
        }


def dynamics(
    checkpoints: Mapping[int, Iterable[Named]] | Iterable[Named] | str,
    task: Task,
    *,
    split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Dynamics:
    """Basins at several steps of the same runs: who is where, who changes, what it does.

    `checkpoints`: runs or patterns (`runs/seed*`) together with `steps=(100, 200)`, or a mapping
    from step to the checkpoints of that step, matched by their names. Each step is connected as by
    `connect`, whose options these are, and evaluated at that step. With a `store` every line is
    kept, and the connection of step S as `keep_as`-S.

    Labels are aligned with those of the step before by the assignment with the largest overlap. The
    agreement of two steps is the adjusted Rand index (Hubert and Arabie 1985), which needs no
    alignment, with p = (1 + #{permuted labels agree as well}) / (1 + permutations). Where a basin
    splits, the larger part keeps the label and the runs of the smaller one count as switched.
    """
    study = DynamicsStudy.of(checkpoints, task, split=split, also=also, **options)
    return study.run(None if store is None else open_store(store), progress=progress)


@dataclass(frozen=True)
class DynamicsStudy:
    """The plan of a `dynamics`: one `connect` for every step."""

    studies: dict[int, ConnectionStudy]
    config: DynamicsConfig
    metric: str

    @classmethod
    def of(
        cls,
        checkpoints: Mapping[int, Iterable[Named]] | Iterable[Named] | str,
        task: Task,
        *,
        split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        **options: Any,
    ) -> DynamicsStudy:
        """Resolve runs, steps, data and options; raises for anything that is not there."""
        config = DynamicsConfig.parse(options, where="dynamics")
        by_step = _by_step(checkpoints, config.steps)
        names = {step: _run_names(chosen) for step, chosen in by_step.items()}
        order = names[next(iter(names))]
        for step, there in names.items():
            differ = sorted(set(order) ^ set(there))
            if differ:
                raise ConfigError(
                    f"step {step} and step {next(iter(names))} are not of the same runs: "
                    f"{', '.join(differ[:4])} is at one of them only",
                    remedy="name the checkpoints of a run alike at all steps",
                )
        shared = config.options_of(ConnectConfig)
        studies = {}
        for step, chosen in by_step.items():
            ordered = [chosen[names[step].index(name)] for name in order]
            own = dict(zip(order, short_names(ordered), strict=True))
            landmarks = tuple(own.get(name, name) for name in config.landmark_names)
            changes = {"keep_as": f"{config.keep_as}-{step}", "landmark_names": landmarks}
            study = ConnectionStudy.of(ordered, task, split=split, also=also, **shared | changes)
            studies[step] = replace(study, names=order)
        return cls(studies, config, _metric(next(iter(studies.values())), config.metric))

    def forecast(self, store: ArtifactStore) -> Forecast:
        """What is left to do at all steps."""
        parts = [study.forecast(store) for study in self.studies.values()]
        rows: dict[str, ForecastRow] = {}
        for row in (row for part in parts for row in part.rows):
            old = rows.get(row.kind, ForecastRow(row.kind, 0, 0, 0.0))
            rows[row.kind] = ForecastRow(
                row.kind,
                old.jobs + row.jobs,
                old.done + row.done,
                old.evaluations + row.evaluations,
            )
        return Forecast(
            tuple(rows.values()),
            seconds=sum(part.seconds or 0.0 for part in parts),
            memory=max(part.memory or 0.0 for part in parts),
            workers=self.config.workers,
        )

    def run(self, store: ArtifactStore | None, *, progress: bool = False) -> Dynamics:
        """Connect every step, align, and keep the result under its name."""
        found = {step: study.run(store, progress=progress) for step, study in self.studies.items()}
        result = assemble(found, self.metric, self.config)
        if store is not None:
            publish(store, self.config.keep_as, result)
        return result

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.config.keep_as,)


# --- what to look at -----------------------------------------------------------------------------


def _by_step(
    checkpoints: Mapping[int, Iterable[Named]] | Iterable[Named] | str, steps: tuple[int, ...]
) -> dict[int, list[Checkpoint]]:
    """step -> checkpoints, steps rising."""
    if isinstance(checkpoints, Mapping):
        if steps:
            raise ConfigError(
                "the checkpoints are given for each step already", remedy="leave option steps out"
            )
        chosen = {int(step): expand(items) for step, items in checkpoints.items()}
    else:
        runs = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
        for run in runs:
            if isinstance(run, Checkpoint) or re.search(r"@\d+$", os.fspath(run)):
                name = run.spec if isinstance(run, Checkpoint) else os.fspath(run)
                raise ConfigError(
                    f"{name} is one step of a run",
                    remedy="name the run and give its steps, or map each step to its checkpoints",
                )
        if len(set(steps)) < len(steps):
            raise ConfigError(f"option steps: {steps} names a step twice")
        chosen = {step: select([f"{os.fspath(run)}@{step}" for run in runs]) for step in steps}  # type: ignore[arg-type]
    if len(chosen) < 2:
        raise ConfigError(
            f"dynamics needs at least two steps, got {len(chosen)}",
            remedy="--steps 100 200, of runs trained with --save-steps 100 200",
        )
    return dict(sorted(chosen.items()))


def _run_names(chosen: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Short names of the runs that the checkpoints are steps of."""
    runs = [replace(c, spec=re.sub(r"@\d+$|/checkpoint-\d+/?$", "", c.spec)) for c in chosen]
    return short_names(runs)


def _metric(study: ConnectionStudy, asked: str | None) -> str:
    if asked is None:
        ood, in_domain = study.compared_columns()
        return ood[0] if ood else in_domain
    study.endpoints.check([asked], "metric")
    return asked


# --- from connections to the result --------------------------------------------------------------


def assemble(found: Mapping[int, Connection], metric: str, config: DynamicsConfig) -> Dynamics:
    """The result of connections that have been computed, steps rising."""
    steps = tuple(found)
    names = found[steps[0]].names
    basins = _aligned({step: found[step].basins.reindex(list(names)) for step in steps})
    positions = _positions(found, basins, metric)
    last = found[steps[-1]]
    return Dynamics(
        steps=steps,
        names=names,
        basins=basins,
        positions=positions,
        agreement=_agreement(basins, config),
        summary=_summary(found, positions, config),
        metric=metric,
        data=last.data,
        kind=last.kind,
        evaluations=sum(connection.evaluations for connection in found.values()),
        provenance={
            "steps": {str(step): c.provenance.get("checkpoints") for step, c in found.items()},
            "data": last.provenance.get("data"),
            "config": config.model_dump(mode="json"),
        },
    )


def align_labels(before: npt.ArrayLike, now: npt.ArrayLike, fresh: int | None = None) -> Labels:
    """`now` (N,) renamed to agree with `before` (N,) as far as possible.

    Groups are matched one to one so that the number of members they share is largest (the linear
    assignment problem). A group that shares nobody with its partner, or has none, gets a new
    number, from `fresh` on (default: one more than the largest of `before`).
    """
    from scipy.optimize import linear_sum_assignment

    old, new = np.asarray(before), np.asarray(now)
    if old.shape != new.shape or old.ndim != 1 or not len(old):
        raise ConfigError(f"labels have shapes {old.shape} and {new.shape}, expected one (N,)")
    rows, row_of = np.unique(old, return_inverse=True)
    columns, column_of = np.unique(new, return_inverse=True)
    shared = np.zeros((len(rows), len(columns)), dtype=np.intp)
    np.add.at(shared, (row_of, column_of), 1)
    partner = {
        int(c): int(rows[r])
        for r, c in zip(*linear_sum_assignment(-shared), strict=True)
        if shared[r, c]
    }
    free = int(old.max()) + 1 if fresh is None else fresh
    for c in range(len(columns)):
        if c not in partner:
            partner[c], free = free, free + 1
    return np.array([partner[int(c)] for c in column_of], dtype=np.intp)


def _aligned(labels: Mapping[int, pd.Series]) -> pd.DataFrame:
    """Labels of every step in those of the first, as far as the basins go on."""
    columns: dict[int, Labels] = {}
    fresh = 0
    for step, series in labels.items():
        own = series.to_numpy(dtype=np.intp)
        previous = next(reversed(columns.values()), None)
        columns[step] = own if previous is None else align_labels(previous, own, fresh)
        fresh = max(fresh, int(columns[step].max()) + 1)
    table = pd.DataFrame(columns, index=next(iter(labels.values())).index)
    table.index.name = "name"
    return table


def _positions(found: Mapping[int, Connection], basins: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per run and step."""
    parts: list[pd.DataFrame] = []
    before: np.ndarray | None = None
    names = list(basins.index)
    earlier: pd.Series | None = None
    for step, connection in found.items():
        now = basins[step]
        x = _predictor(connection, now, before)
        before = x if x.any() else before
        moved = np.zeros(len(now), dtype=bool) if earlier is None else (now != earlier).to_numpy()
        earlier = now
        part = {
            "name": names,
            "step": step,
            "basin": now.to_numpy(),
            "x": x,
            "performance": connection.endpoints[metric].reindex(names).to_numpy(dtype=np.float64),
            "switched": moved,
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _predictor(
    connection: Connection, basins: pd.Series, before: np.ndarray | None
) -> npt.NDArray[np.float64]:
    """Distance to the centroid of aligned basin 1 minus that to basin 0, in one direction.

    Where one of the two does not exist at this step, the largest of the others takes its place;
    where neither does, the step's own two largest stand in, turned so that they agree with the step
    before. With one basin there is no direction, and all are at 0.
    """
    clustering = connection.clustering
    names = list(basins.index)
    if clustering is None or clustering.n_basins < 2:
        return np.zeros(len(names))
    own = clustering.basins.reindex(names)
    # Aligned labels, the largest basin first, and the columns of their distances.
    aligned = {int(basins[own == k].iloc[0]): f"basin_{k}" for k in range(clustering.n_basins)}
    others = [label for label in aligned if label not in (0, 1)]
    near = 0 if 0 in aligned else others[0]
    far = 1 if 1 in aligned else next(label for label in others if label != near)
    distances = clustering.centroid_distances.reindex(names)
    x: npt.NDArray[np.float64] = (distances[aligned[far]] - distances[aligned[near]]).to_numpy()
    if {0, 1} & set(aligned) or before is None:
        return x
    return -x if (x - x.mean()) @ (before - before.mean()) < 0 else x


def _agreement(basins: pd.DataFrame, config: DynamicsConfig) -> pd.DataFrame:
    """Every pair of steps."""
    rows = []
    for a, b in combinations(basins.columns, 2):
        x, y = basins[a].to_numpy(), basins[b].to_numpy()
        random = np.random.default_rng(config.seed)
        shuffled = random.permuted(np.tile(y, (config.permutations, 1)), axis=1)
        value = float(adjusted_rand_index(x, y))
        as_well = int((adjusted_rand_index(x, shuffled) >= value - 1e-12).sum())
        rows.append(
            {
                "step_a": int(a),
                "step_b": int(b),
                "adjusted_rand": value,
                "p_value": (1 + as_well) / (1 + config.permutations),
                "switched": int((x != y).sum()),
            }
        )
    return pd.DataFrame(rows)


def adjusted_rand_index(a: npt.ArrayLike, b: npt.ArrayLike) -> Any:
    """Adjusted Rand index of labels `a` (N,) with labels `b` (N,) or many of them (..., N).

    With n_ij members of both group i of a and group j of b, and C(n) = n (n - 1) / 2,
    (sum_ij C(n_ij) - E) / ((A + B) / 2 - E), A = sum_i C(n_i.), B = sum_j C(n_.j),
    E = A B / C(N): 1 for the same division, 0 on average for a random one. Two divisions that are
    both one group, or both single members, agree: 1 (as in scikit-learn).
    """
    first, second = np.asarray(a), np.asarray(b)
    one = (first[:, None] == np.unique(first)).astype(np.float64)
    many = (second[..., None] == np.unique(second)).astype(np.float64)
    table = np.einsum("ni,...nj->...ij", one, many)

    def pairs(counts: Any) -> Any:
        return counts * (counts - 1) / 2

    together = pairs(table).sum(axis=(-2, -1))
    left, right = pairs(one.sum(axis=0)).sum(), pairs(table.sum(axis=-2)).sum(axis=-1)
    expected = left * right / max(pairs(len(first)), 1)
    span = (left + right) / 2 - expected
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(np.abs(span) < 1e-12, 1.0, (together - expected) / span)
    return float(found) if second.ndim == 1 else found


def _summary(
    found: Mapping[int, Connection], positions: pd.DataFrame, config: DynamicsConfig
) -> pd.DataFrame:
    """One row per step."""
    rows = []
    for step, connection in found.items():
        part = positions[positions["step"] == step]
        lines = connection.pairs[connection.pairs.data == connection.data[0]]
        clustering = connection.clustering
        r, p = float("nan"), float("nan")
        performance = part["performance"].to_numpy()
        if len(part) > 2 and np.isfinite(performance).all():
            predictor = centroid_predictor(part["x"].to_numpy(), performance, seed=config.seed)
            r, p = predictor.pearson_r, predictor.p_value
        rows.append(
            {
                "step": step,
                "n_basins": 1 if clustering is None else clustering.n_basins,
                "confidence": float("nan") if clustering is None else clustering.confidence,
                "largest_gap": float(lines.convexity_gap.max()),
                "above_noise": float((lines.convexity_gap > lines.noise_floor).mean()),
                "performance": float(np.mean(performance)),
                "pearson_r": r,
                "p_value": p,
                "note": "" if clustering is None else clustering.note,
            }
        )
    return pd.DataFrame(rows)
