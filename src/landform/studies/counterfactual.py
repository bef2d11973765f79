"""`counterfactual`: remove the rows that a method calls most helpful, train again, look again.

For a target (a query that every base model gets right) and a method, the k training rows of the
highest scores are left out and the model is trained anew on the others, once per retraining seed.
The target flips at k when most of these models get it wrong (mean accuracy below 1/2). A method
that knows what a prediction rests on flips more targets than random rows of the target's own
label do; the comparison is paired, because some targets flip whatever is removed.

Two readings: at each size by itself, and carried forward, where a target that flipped once counts
as flipped for all larger sizes. The second needs fewer trainings and is an optimistic reading: it
grows by construction, as the best of several attempts does. Every removal is trained once, however
many methods, targets or sizes ask for it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, field_validator, model_validator

from landform.attribution.influence import DampingConfig
from landform.attribution.scoring import CURVATURE_OPTIONS
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.intervals import difference_interval
from landform.evaluation.points import Data
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Store
from landform.store.engines import run_plan
from landform.store.plan import Forecast, ForecastRow, Plan
from landform.store.study import open_store, publish
from landform.studies.scores import ScoreSource, check_training_options
from landform.tasks.task import Task
from landform.training.ensemble import EnsembleWork, plan_retraining
from landform.training.loop import count_steps
from landform.training.options import Seed, TrainConfig
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = [
    "METHODS",
    "Counterfactual",
    "CounterfactualConfig",
    "CounterfactualStudy",
    "Retrain",
    "Scores",
    "counterfactual",
]

Method = Literal["random", "identity", "diagonal", "kfac", "ekfac"]

METHODS: tuple[Method, ...] = ("random", "identity", "diagonal", "kfac", "ekfac")
"""Whose rows are removed: random ones of the target's label, or those of the highest influence."""

Retrain = Callable[[Sequence[np.ndarray], Sequence[int], Sequence[int]], np.ndarray]
"""(subsets of training rows, seeds, query rows) -> logits (subsets, seeds, queries, classes)"""

Scores = Callable[[str], npt.NDArray[Any]]
"""method -> (queries, training rows); the higher, the more the row helps the query"""

Pair = tuple[str, int]
"""A method and the position of a target among the queries."""


class CounterfactualConfig(DampingConfig):
    """Options of `counterfactual`."""

    methods: tuple[Method, ...] = METHODS
    """Whose rows are removed: random (rows of the target's own label), identity, diagonal, kfac,
    ekfac."""
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = (20, 40, 60, 80, 100, 120)
    """Numbers of rows to remove."""
    base_seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    """Seeds of the models on all rows: what all of them get right can be a target."""
    retrain_seeds: tuple[Seed, ...] = (100, 101, 102)
    """Seeds of the models after a removal: most of them must get the target wrong."""
    rows: int | None = Field(None, ge=2)
    """Train on the first ROWS rows of the training split (default: all)."""
    query_rows: int | None = Field(100, ge=1)
    """Look for targets among the first QUERY_ROWS queries (none: among all)."""
    targets: int | None = Field(None, ge=1)
    """Use at most so many targets, the first ones (default: all that are found)."""
    carry_forward: bool = False
    """Stop at the first size that flips a target: fewer trainings, and only the reading that
    carries flips forward."""
    measurement: Literal["loss", "margin"] = "margin"
    """What the scores are about: the loss or the margin of the target."""
    labels: Literal["true", "empirical", "sampled"] = "true"
    """Whose labels the curvature is of: the model's own, the data's, or one draw from the model."""
    seed: int = Field(0, ge=0)
    """Seed of the random rows and of the resampling."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals over targets."""
    replicates: int = Field(1000, ge=20)
    """Bootstrap replicates of the differences to random rows."""
    train: TrainConfig = TrainConfig()
    """How every model is trained: the options of `train`."""
    together: int | None = Field(None, ge=1)
    """Models trained side by side in one pass (default: what is fastest on the device)."""
    engine: Literal["local", "ray"] = "local"
    """Where models are trained: in this process, or on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """Worker processes of the Ray engine."""
    keep_as: str = Field("counterfactual", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the result in the study."""

    @field_validator("methods", "sizes", "base_seeds", "retrain_seeds", mode="before")
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        single = isinstance(value, int | str) and not isinstance(value, bool)
        return (value,) if single else value

    @field_validator("methods", "sizes", "base_seeds", "retrain_seeds")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("at least one is needed")
        if len(set(value)) < len(value):
            raise ValueError("a value occurs twice")
        return value

    @field_validator("sizes")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _of_curvature(self) -> Self:
        curved = set(self.methods) - {"random", "identity"}
        self.check_read(curved, CURVATURE_OPTIONS, "on methods without curvature")
        return self


@dataclass(frozen=True)
class Counterfactual(Result):
    """How many predictions flip without the rows that a method names."""

    model: str
    task: str
    methods: tuple[str, ...]
    curve: pd.DataFrame
    """method, size, flipped, targets, share, low, high (Wilson), flipped_carried, share_carried,
    low_carried, high_carried; with `carry_forward`, what was not trained is NaN"""
    flips: pd.DataFrame
    """method, query (row of the split), text_id, label, size, accuracy (over the retraining
    seeds), flipped; one row per target, method and size that was trained"""
    comparison: pd.DataFrame | None
    """every method against random rows, on the same targets: method, size, carried, only_method
    and only_random (targets that flip with one of them), difference of the shares with its paired
    bootstrap ends low and high, p_value (exact McNemar, two-sided, not corrected for the number
    of comparisons); None without random"""
    queries: int
    """queries among which targets were sought"""
    retrainings: int
    """models that were trained after a removal"""
    level: float
    provenance: dict[str, Any]

    @property
    def targets(self) -> int:
        """How many targets there are."""
        return int(self.curve["targets"].max())

    @property
    def reading(self) -> str:
        """One line for a person."""
        size = int(self.curve["size"].max())
        rows = self.curve[self.curve["size"] == size]
        carried = bool(rows["share"].isna().any())
        end = "_carried" if carried else ""
        ordered = rows.sort_values(f"share{end}", ascending=False, kind="stable")
        parts = [
            f"{row['method']} {row[f'share{end}']:.0%} "
            f"[{row[f'low{end}']:.0%}, {row[f'high{end}']:.0%}]"
            for row in ordered.to_dict("records")
        ]
        what = "flipped at it or at a smaller size" if carried else "flip"
        return (
            f"of {self.targets} targets of {self.task}, {what} without the {size} rows of each "
            f"method: {', '.join(parts)}{self._honesty(carried)}"
        )

    def _honesty(self, carried: bool) -> str:
        if self.comparison is None:
            return "; no comparison with random rows was asked for"
        table = self.comparison[self.comparison["carried"] == carried]
        # The best of several sizes counts only when it would pass for all of them (Bonferroni).
        limit = (1 - self.level) / table["size"].nunique()
        better = set(table[(table["p_value"] < limit) & (table["difference"] > 0)]["method"])
        same = [method for method in dict.fromkeys(table["method"]) if method not in better]
        if not same:
            return ""
        return f"; at no size better than random rows of the target's label: {', '.join(same)}"

    def to_json(self) -> dict[str, Any]:
        """The curve and the comparison; the flips of every target stay a table."""
        return {
            "model": self.model,
            "task": self.task,
            "methods": list(self.methods),
            "targets": self.targets,
            "queries": self.queries,
            "retrainings": self.retrainings,
            "level": self.level,
            "curve": _records(self.curve),
            "comparison": None if self.comparison is None else _records(self.comparison),
            "provenance": self.provenance,
        }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def counterfactual(
    model: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    split: str = "train",
    queries: str | tuple[Task, str] = "validation",
    scored: str | os.PathLike[str] | Checkpoint | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> Counterfactual:
    """Test scores by removal: which predictions flip without the rows that are said to help most?

    `model` is what every training starts from. `scored` is the fine-tuned model whose gradients
    make the scores; without it, one is trained on the same rows with the first base seed. With a
    `store`, finished trainings, factors and scores are kept and reused, and the result is kept
    under the name `keep_as`. Options are the fields of `CounterfactualConfig`.
    """
    study = CounterfactualStudy.of(
        model, task, split=split, queries=queries, scored=scored, **options
    )
    return study.run(None if store is None else open_store(store), progress=progress)


@dataclass(frozen=True)
class CounterfactualStudy:
    """The plan of a `counterfactual`, before anything is trained."""

    checkpoint: Checkpoint
    task: Task
    split: str
    queries: Data
    scored: Checkpoint | None
    config: CounterfactualConfig

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str] | Checkpoint,
        task: Task,
        *,
        split: str = "train",
        queries: str | tuple[Task, str] = "validation",
        scored: str | os.PathLike[str] | Checkpoint | None = None,
        **options: Any,
    ) -> CounterfactualStudy:
        """Resolve models, rows and options; raises for anything that cannot be done."""
        config = CounterfactualConfig.parse(options, where="counterfactual")
        data = Data(task, queries) if isinstance(queries, str) else Data(*queries)
        check_training_options(config.train, "counterfactual")
        study = cls(
            resolve(model), task, task.resolve(split), data,
            None if scored is None else resolve(scored), config,
        )  # fmt: skip
        study._check()
        return study

    def _check(self) -> None:
        for task in (self.task, self.queries.task):
            if task.kind != "classification":
                raise ConfigError(
                    f"counterfactual needs predictions that are right or wrong; {task.name} is "
                    f"{task.kind}",
                    remedy="use a classification task",
                )
        if self.queries.task.label_names != self.task.label_names:
            raise ConfigError(
                f"the labels of {self.queries.name} are {', '.join(self.queries.task.label_names)},"
                f" those of {self.task.name} {', '.join(self.task.label_names)}",
                remedy="ask about queries of the same labels, in the same order",
            )
        rows, largest = len(self.train_labels), self.config.sizes[-1]
        if largest >= rows:
            raise ConfigError(
                f"option sizes: {largest} rows cannot be removed from {rows} training rows",
                remedy=f"use sizes below {rows}",
            )
        if "random" not in self.config.methods:
            return
        for label in sorted(set(self.query_labels.tolist())):
            count = int((self.train_labels == label).sum())
            if count < largest:
                raise ConfigError(
                    f"option sizes: {largest} random rows of the label "
                    f"{self.task.label_names[label]!r} were asked for, the training rows have "
                    f"{count}",
                    remedy=f"use sizes up to {count}, more rows, or leave the method random out",
                )

    @cached_property
    def train_labels(self) -> np.ndarray:
        """(N,) the label of every training row."""
        return np.asarray(self.task.examples(self.split, rows=self.config.rows).labels)

    @cached_property
    def query_labels(self) -> np.ndarray:
        """(Q,) the label of every query."""
        return np.asarray(self.queries.examples(self.config.query_rows).labels)

    # --- what it takes -----------------------------------------------------------------------

    def forecast(self, store: ArtifactStore | None = None) -> Forecast:
        """What it takes at most, in optimizer steps: which queries are targets, which removals are
        alike and which flips are carried forward is known only on the way. Time and memory are
        those of a few real steps; the base models that `store` holds are not counted again."""
        config, size = self.config, len(self.train_labels)
        work, plan = self._plan([np.arange(size)], config.base_seeds, range(len(self.query_labels)))
        base = plan.forecast(store, unit="steps").rows
        steps = [
            count_steps(size - removed, config.train) * len(config.retrain_seeds)
            for removed in config.sizes
        ]
        queries = len(self.query_labels)
        targets = queries if config.targets is None else min(config.targets, queries)
        each = targets * len(config.methods)
        models = each * len(config.sizes) * len(config.retrain_seeds)
        rows = (
            *(ForecastRow("base models", row.jobs, row.done, row.evaluations) for row in base),
            ForecastRow("retraining (at most)", models, 0, float(each * sum(steps))),
        )
        per_step, memory = work().sample()
        seconds = per_step * sum(row.evaluations for row in rows) / config.workers
        return Forecast(rows, seconds, memory * config.workers, config.workers, "steps")

    def _plan(
        self, subsets: Sequence[np.ndarray], seeds: Sequence[int], queries: Sequence[int]
    ) -> tuple[EnsembleWork, Plan]:
        return plan_retraining(
            self.checkpoint,
            self.task,
            subsets,
            seeds=seeds,
            queries=self.queries,
            config=self.config.train,
            split=self.split,
            query_rows=tuple(queries),
            rows=self.config.rows,
            together=self.config.together,
        )

    def run(
        self,
        store: ArtifactStore | None = None,
        *,
        progress: bool = False,
        retrain: Retrain | None = None,
        scores_of: Scores | None = None,
    ) -> Counterfactual:
        """Train what is missing, assemble the result and keep it under its name.

        `retrain` and `scores_of` replace the library's own trainings and scores.
        """
        if store is None:
            with tempfile.TemporaryDirectory(prefix="landform-") as scratch:
                return self.run(
                    Store.open(scratch), progress=progress, retrain=retrain, scores_of=scores_of
                )
        with tempfile.TemporaryDirectory(prefix="landform-") as scratch:
            place = store.path / "models" if isinstance(store, Store) else Path(scratch)
            trainer = retrain or self._retrain(store, progress)
            scorer = scores_of or self._scores(store, place, progress)
            result = self._assemble(trainer, scorer)
        publish(store, self.config.keep_as, result)
        return result

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.config.keep_as,)

    def _scores(self, store: ArtifactStore, place: Path, progress: bool) -> Scores:
        return ScoreSource(
            model=self.checkpoint,
            task=self.task,
            split=self.split,
            rows=len(self.train_labels),
            queries=self.queries,
            query_rows=tuple(range(len(self.query_labels))),
            train=self.config.train,
            seed=self.config.base_seeds[0],
            place=place,
            measurement=self.config.measurement,
            labels=self.config.labels,
            damping=self.config.damping,
            relative_damping=self.config.relative_damping,
            scored=self.scored,
            store=store,
            progress=progress,
        )

    # --- targets, removals, flips ------------------------------------------------------------

    def _assemble(self, retrain: Retrain, scores_of: Scores) -> Counterfactual:
        targets, base = self._targets(retrain)
        orders = self._orders(targets, scores_of)
        trials = _Trials(self, retrain, targets, orders)
        for sizes in self._rounds():
            trials.run(sizes)
        curve = _curve(trials, self.config)
        return Counterfactual(
            model=self.checkpoint.spec,
            task=self.task.name,
            methods=self.config.methods,
            curve=curve,
            flips=trials.table(),
            comparison=_comparison(trials, self.config),
            queries=len(self.query_labels),
            retrainings=trials.trained * len(self.config.retrain_seeds),
            level=self.config.level,
            provenance={
                "weights": self.checkpoint.fingerprint,
                "scored": None if self.scored is None else self.scored.fingerprint,
                "train": self.task.fingerprint(self.split, rows=self.config.rows),
                "queries": self.queries.task.fingerprint(
                    self.queries.split, rows=self.config.query_rows
                ),
                "base_accuracy": base,
                "config": self.config.model_dump(mode="json"),
            },
        )

    def _rounds(self) -> Iterator[tuple[int, ...]]:
        """Sizes that are trained in one go: all, or one after the other to carry flips forward."""
        if not self.config.carry_forward:
            yield self.config.sizes
            return
        for size in self.config.sizes:
            yield (size,)

    def _targets(self, retrain: Retrain) -> tuple[tuple[int, ...], dict[str, float]]:
        """Queries that all base models get right, and each base model's accuracy."""
        config = self.config
        everything = np.arange(len(self.train_labels))
        queries = range(len(self.query_labels))
        right = self._right(retrain, [everything], config.base_seeds, queries)[0]
        accuracy = {
            str(seed): float(share)
            for seed, share in zip(config.base_seeds, right.mean(axis=1), strict=True)
        }
        found = np.flatnonzero(right.all(axis=0))[: config.targets]
        if not len(found):
            shown = ", ".join(f"{share:.0%} (seed {seed})" for seed, share in accuracy.items())
            raise DataError(
                f"no query of {self.queries.name} is answered right by all "
                f"{len(config.base_seeds)} base models; their accuracies on "
                f"{len(self.query_labels)} queries: {shown}",
                remedy="train longer (options train.epochs, train.learning_rate), or give more "
                "query_rows or fewer base_seeds",
            )
        return tuple(found.tolist()), accuracy

    def _right(
        self,
        retrain: Retrain,
        subsets: Sequence[np.ndarray],
        seeds: Sequence[int],
        queries: Sequence[int],
    ) -> np.ndarray:
        """(subsets, seeds, queries) whether each model answers each query right."""
        logits = np.asarray(retrain(subsets, seeds, queries))
        expected = (len(subsets), len(seeds), len(queries), len(self.task.label_names))
        if logits.shape != expected:
            raise DataError(
                f"the retrained models gave logits of shape {logits.shape}, expected {expected}",
                remedy="(subsets, seeds, queries, classes), in the task's label order",
            )
        if not np.isfinite(logits).all():
            subset, seed, query, _ = np.argwhere(~np.isfinite(logits))[0]
            raise NonFiniteError(
                f"the model on subset {subset} with seed {seeds[seed]} gives query "
                f"{queries[query]} a logit that is not a number",
                remedy="use a lower train.learning_rate",
            )
        right: np.ndarray = logits.argmax(axis=-1) == self.query_labels[list(queries)]
        return right

    def _orders(self, targets: Sequence[int], scores_of: Scores) -> dict[Pair, np.ndarray]:
        """Per method and target: the rows to remove, first to last."""
        largest = self.config.sizes[-1]
        orders: dict[Pair, np.ndarray] = {}
        for method in self.config.methods:
            if method == "random":
                for target in targets:
                    orders[method, target] = self._random_rows(target)[:largest]
                continue
            scores = self._checked_scores(method, scores_of)
            for target in targets:
                # Stable: equal scores go by position, the same on every machine.
                orders[method, target] = np.argsort(-scores[target], kind="stable")[:largest]
        return orders

    def _random_rows(self, target: int) -> np.ndarray:
        """All training rows of the target's label in an order of the target's own: which other
        targets there are makes no difference, and a smaller removal is part of a larger one."""
        same = np.flatnonzero(self.train_labels == self.query_labels[target])
        return np.random.default_rng([self.config.seed, target]).permutation(same)

    def _checked_scores(self, method: str, scores_of: Scores) -> np.ndarray:
        scores = np.asarray(scores_of(method), dtype=np.float64)
        expected = (len(self.query_labels), len(self.train_labels))
        if scores.shape != expected:
            raise DataError(
                f"the scores of {method} have shape {scores.shape}, expected {expected}",
                remedy="one row per query, one column per training row",
            )
        bad = np.argwhere(~np.isfinite(scores))
        if len(bad):
            raise NonFiniteError(
                f"the {method} score of training row {bad[0][1]} for query {bad[0][0]} is "
                f"{scores[tuple(bad[0])]}",
                remedy="raise the damping, or look at the model's weights",
            )
        return scores

    def _retrain(self, store: ArtifactStore, progress: bool) -> Retrain:
        def call(
            subsets: Sequence[np.ndarray], seeds: Sequence[int], queries: Sequence[int]
        ) -> np.ndarray:
            work, plan = self._plan(subsets, seeds, queries)
            run_plan(
                plan,
                work,
                store,
                engine=self.config.engine,
                workers=self.config.workers,
                progress=progress,
                description="base models" if seeds == self.config.base_seeds else "retraining",
                unit="steps",
            )
            return work.collect(store)

        return call


class _Trials:
    """What came of each removal, and which trainings that took."""

    def __init__(
        self,
        study: CounterfactualStudy,
        retrain: Retrain,
        targets: Sequence[int],
        orders: Mapping[Pair, np.ndarray],
    ) -> None:
        self.study, self.retrain = study, retrain
        self.targets, self.orders = tuple(targets), orders
        self.accuracy: dict[tuple[str, int, int], float] = {}
        """(method, target, size) -> share of the retrained models that are right"""
        self._done: dict[bytes, np.ndarray] = {}
        """removed rows -> accuracy on every target"""

    @property
    def trained(self) -> int:
        """Different removals that were trained."""
        return len(self._done)

    def flipped(self, method: str, target: int, size: int) -> bool | None:
        """Whether most models were wrong; None where that was not trained."""
        accuracy = self.accuracy.get((method, target, size))
        return None if accuracy is None else accuracy < 0.5

    def carried(self, method: str, target: int, size: int) -> bool:
        """Whether the target flipped at this size or at a smaller one."""
        sizes = self.study.config.sizes
        return any(self.flipped(method, target, k) for k in sizes if k <= size)

    def run(self, sizes: Sequence[int]) -> None:
        """Train every removal of these sizes whose target has not flipped in an earlier round."""
        config = self.study.config
        wanted: dict[tuple[str, int, int], bytes] = {}
        new: dict[bytes, np.ndarray] = {}
        for (method, target), order in self.orders.items():
            if self.carried(method, target, config.sizes[-1]):
                continue  # in an earlier round: there is one round unless flips are carried forward
            for size in sizes:
                removed = np.sort(order[:size]).astype(np.int64)
                key = wanted[method, target, size] = removed.tobytes()
                new.setdefault(key, removed)
        if new:
            self._train(new)
        for trial, key in wanted.items():
            self.accuracy[trial] = float(self._done[key][self.targets.index(trial[1])])

    def _train(self, removals: Mapping[bytes, np.ndarray]) -> None:
        everything = np.arange(len(self.study.train_labels))
        subsets = [np.delete(everything, removed) for removed in removals.values()]
        seeds = self.study.config.retrain_seeds
        right = self.study._right(self.retrain, subsets, seeds, self.targets)
        for key, accuracy in zip(removals, right.mean(axis=1), strict=True):
            self._done[key] = accuracy

    def table(self) -> pd.DataFrame:
        """Every trained (method, target, size), by method, then target, then size."""
        study = self.study
        examples = study.queries.examples(study.config.query_rows)
        rows = [
            {
                "method": method,
                "query": target,
                "text_id": examples.ids[target],
                "label": study.task.label_names[int(examples.labels[target])],
                "size": size,
                "accuracy": self.accuracy[method, target, size],
                "flipped": bool(self.flipped(method, target, size)),
            }
            for method, target in self.orders
            for size in study.config.sizes
            if (method, target, size) in self.accuracy
        ]
        return pd.DataFrame(rows)

    def column(self, method: str, size: int, *, carried: bool) -> list[bool] | None:
        """Per target whether it flipped; None where not all targets were trained at this size."""
        if carried:
            return [self.carried(method, target, size) for target in self.targets]
        values = [self.flipped(method, target, size) for target in self.targets]
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) else None


def _curve(trials: _Trials, config: CounterfactualConfig) -> pd.DataFrame:
    rows = []
    for method in config.methods:
        for size in config.sizes:
            row: dict[str, Any] = {"method": method, "size": size, "targets": len(trials.targets)}
            for carried, end in ((False, ""), (True, "_carried")):
                column = trials.column(method, size, carried=carried)
                values = (np.nan,) * 4 if column is None else _wilson(column, config.level)
                for name, value in zip(("flipped", "share", "low", "high"), values, strict=True):
                    row[f"{name}{end}"] = value
            rows.append(row)
    names = ("flipped", "targets", "share", "low", "high", "flipped_carried", "share_carried",
             "low_carried", "high_carried")  # fmt: skip
    return pd.DataFrame(rows)[["method", "size", *names]]


def _wilson(flipped: Sequence[bool], level: float) -> tuple[int, float, float, float]:
    """(count, share, Wilson's ends): right even where all or none flip."""
    from scipy import stats

    count, size = sum(flipped), len(flipped)
    interval = stats.binomtest(count, size).proportion_ci(level, method="wilson")
    return count, count / size, float(interval.low), float(interval.high)


def _comparison(trials: _Trials, config: CounterfactualConfig) -> pd.DataFrame | None:
    others = [method for method in config.methods if method != "random"]
    if "random" not in config.methods or not others:
        return None
    rows = []
    for carried in (False, True):
        for method in others:
            for size in config.sizes:
                mine = trials.column(method, size, carried=carried)
                chance = trials.column("random", size, carried=carried)
                if mine is not None and chance is not None:
                    pair = _paired(np.array(mine), np.array(chance), config)
                    rows.append({"method": method, "size": size, "carried": carried, **pair})
    return pd.DataFrame(rows)


def _paired(
    mine: np.ndarray, chance: np.ndarray, config: CounterfactualConfig
) -> dict[str, float | int]:
    """McNemar's exact test: of the targets that flip with one of the two only, how many are whose.

    Under no difference each of these is a fair coin: min(1, 2 P(X >= max)) of Binomial(n, 1/2).
    """
    from scipy import stats

    only_mine, only_chance = int((mine & ~chance).sum()), int((chance & ~mine).sum())
    differing = only_mine + only_chance
    p_value = 1.0 if not differing else float(stats.binomtest(only_mine, differing).pvalue)
    difference = difference_interval(
        mine, chance, replicates=config.replicates, seed=config.seed, level=config.level
    )
    return {
        "only_method": only_mine,
        "only_random": only_chance,
        "difference": difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "p_value": p_value,
    }
