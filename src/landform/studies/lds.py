"""`lds`: do influence scores predict what training on half of the rows gives?

The rows are scored once, on a model fine-tuned on all of them. Then the model is fine-tuned again
on many random parts of the rows, several times each, and what the scores of the kept rows add up
to is compared with what the retrained models say (`landform.attribution.lds`). The truth is the
expensive part and the same for all methods; with masks and margins of an earlier study, or
published ones, nothing is retrained.

A method is a strategy, and may name whose labels its curvature is of: "ekfac", "ekfac:true",
"ekfac:empirical", "ekfac:sampled".
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator, model_validator

from landform.attribution.influence import DampingConfig
from landform.attribution.lds import (
    LinearDatamodelling,
    linear_datamodelling,
    read_margins,
    read_masks,
)
from landform.attribution.scoring import CURVATURE_OPTIONS
from landform.config import nearest
from landform.curvature.factors import STRATEGIES, Strategy
from landform.curvature.labels import Labels
from landform.errors import ConfigError, DataError
from landform.evaluation.points import Data
from landform.store.artifacts import ArtifactStore, Store
from landform.store.engines import run_plan
from landform.store.fingerprint import fingerprint_array
from landform.store.plan import Forecast, Plan
from landform.store.study import open_store, publish
from landform.studies.scores import ScoreSource, check_training_options
from landform.tasks.objective import Objective
from landform.tasks.task import Task
from landform.training.ensemble import EnsembleWork, plan_retraining
from landform.training.options import Seed, TrainConfig
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = ["LdsConfig", "LdsStudy", "lds", "make_masks", "split_method"]

Scores = Callable[[str], npt.NDArray[Any]]
"""method -> (queries, training rows); the higher, the more the row helps the query"""


class LdsConfig(DampingConfig):
    """Options of `lds`."""

    methods: tuple[str, ...] = STRATEGIES
    """What is compared: identity, diagonal, kfac, ekfac; after a colon whose labels the curvature
    is of, such as ekfac:empirical (default: those of `labels`)."""
    labels: Labels = "true"
    """Whose labels, where a method does not say: true, empirical or sampled."""
    masks: int = Field(100, ge=3)
    """Random parts of the training rows to train on."""
    retrainings: int = Field(5, ge=1)
    """Models of each part, whose measurements are averaged."""
    fraction: float = Field(0.5, gt=0, lt=1)
    """Share of the rows that a part keeps, the same number in each."""
    mask_file: Path | None = None
    """Use the parts of this file (.npy, .npz, .safetensors, .csv, .pt) instead of random ones."""
    margin_file: Path | None = None
    """Use what this file says of models trained on the parts of `mask_file`, larger = better,
    instead of training any."""
    allow_pickle: bool = False
    """Read files that are pickles: only if you trust whoever made them."""
    rows: int | None = Field(None, ge=2)
    """Use the first ROWS training rows (default: all)."""
    query_rows: int | None = Field(None, ge=1)
    """Use the first QUERY_ROWS queries (default: all)."""
    measurement: Literal["margin", "loss"] = "margin"
    """What the scores are about and the retrained models are asked for."""
    base_seeds: tuple[Seed, ...] = (0,)
    """Seeds of the models on all rows whose scores are averaged."""
    retrain_seed: Seed = 100
    """Seed of the first retraining of every part; the others have the seeds after it."""
    seed: int = Field(0, ge=0)
    """Seed of the parts and of the resampling."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals over parts and queries."""
    replicates: int = Field(1000, ge=20)
    """Bootstrap replicates."""
    train: TrainConfig = TrainConfig()
    """How every model is trained: the options of `train`."""
    together: int | None = Field(None, ge=1)
    """Models trained side by side in one pass (default: what is fastest on the device)."""
    engine: Literal["local", "ray"] = "local"
    """Where models are trained: in this process, or on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """Worker processes of the Ray engine."""
    keep_as: str = Field("lds", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the result in the study."""

    @field_validator("methods", "base_seeds", mode="before")
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        single = isinstance(value, int | str) and not isinstance(value, bool)
        return (value,) if single else value

    @field_validator("methods", "base_seeds")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("at least one is needed")
        if len(set(value)) < len(value):
            raise ValueError("a value occurs twice")
        return value

    @model_validator(mode="after")
    def _margins_of_masks(self) -> LdsConfig:
        if self.margin_file is not None and self.mask_file is None:
            raise ValueError("margin_file needs the mask_file that its models were trained on")
        for method in self.methods:
            split_method(method, self.labels)
        return self

    @model_validator(mode="after")
    def _read_options(self) -> LdsConfig:
        self.check_read(self.mask_file is None, ["masks", "fraction"], "beside mask_file")
        retraining = ["retrainings", "retrain_seed", "together", "engine", "workers"]
        self.check_read(self.margin_file is None, retraining, "beside margin_file")
        chosen = {split_method(method, self.labels)[0] for method in self.methods}
        self.check_read(chosen != {"identity"}, CURVATURE_OPTIONS, "on method identity alone")
        self.check_read(
            not all(":" in method or method == "identity" for method in self.methods),
            ["labels"],
            "where every method names its own",
        )
        return self

    @property
    def retrain_seeds(self) -> tuple[int, ...]:
        """The seeds of the retrainings of every part."""
        return tuple(range(self.retrain_seed, self.retrain_seed + self.retrainings))


def split_method(method: str, labels: Labels = "true") -> tuple[Strategy, Labels]:
    """Strategy and labels of "ekfac" or "ekfac:empirical"."""
    strategy, colon, named = method.partition(":")
    for value, known in ((strategy, STRATEGIES), (named or labels, get_args(Labels))):
        if value not in known:
            guess = nearest(value, known)
            raise ConfigError(
                f"method {method!r}: unknown {'labels' if value == named else 'strategy'} "
                f"{value!r}",
                remedy=(f"did you mean {guess!r}? " if guess else "")
                + f"Known: {', '.join(known)}",
            )
    if colon and not named:
        raise ConfigError(f"method {method!r} names no labels after the colon")
    return strategy, named or labels  # type: ignore[return-value]


def make_masks(rows: int, masks: int, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """(masks, rows), each with round(fraction * rows) entries True; more masks are the same first
    ones and others."""
    count = round(fraction * rows)
    if not 0 < count < rows:
        raise ConfigError(
            f"option fraction is {fraction:g}: {count} of {rows} rows", remedy="keep some, not all"
        )
    found = np.zeros((masks, rows), dtype=bool)
    for number, mask in enumerate(found):
        mask[np.random.default_rng((seed, number)).permutation(rows)[:count]] = True
    return found


def lds(
    model: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    split: str = "train",
    queries: str | tuple[Task, str] = "validation",
    scored: str | os.PathLike[str] | Checkpoint | None = None,
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> LinearDatamodelling:
    """Test scores by retraining on random parts of the rows (see the module's docstring).

    `model` is what every training starts from. `scored` is the fine-tuned model whose gradients
    make the scores; without it, one is trained on all rows for each of `base_seeds`. With a
    `store`, finished trainings, factors and scores are kept and reused, and the result is kept
    under the name `keep_as`. Options are the fields of `LdsConfig`.
    """
    study = LdsStudy.of(model, task, split=split, queries=queries, scored=scored, **options)
    return study.run(None if store is None else open_store(store), progress=progress)


@dataclass(frozen=True)
class LdsStudy:
    """The plan of an `lds`, before anything is trained."""

    checkpoint: Checkpoint
    task: Task
    split: str
    queries: Data
    scored: Checkpoint | None
    config: LdsConfig

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
    ) -> LdsStudy:
        """Resolve models, rows and options; raises for anything that cannot be done."""
        config = LdsConfig.parse(options, where="lds")
        check_training_options(config.train, "lds")
        data = Data(task, queries) if isinstance(queries, str) else Data(*queries)
        study = cls(
            resolve(model), task, task.resolve(split), data,
            None if scored is None else resolve(scored), config,
        )  # fmt: skip
        if config.measurement == "margin" and data.task.kind != "classification":
            raise ConfigError(
                f"{data.name} has no classes, so there are no margins",
                remedy="use measurement='loss'",
            )
        if study.scored is not None:
            unread = config.options_given(
                ["base_seeds", *(["train"] if study.given is not None else [])]
            )
            if unread:
                raise ConfigError(
                    f"option {unread[0]} has no effect beside scored: no model on all rows is "
                    "trained",
                    remedy="leave one of the two out",
                )
        if study.given is None:
            _ = study.plan
        return study

    @cached_property
    def size(self) -> int:
        """Training rows."""
        return len(self.task.examples(self.split, rows=self.config.rows))

    @cached_property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(masks, rows): the parts that models are trained on."""
        config = self.config
        if config.mask_file is None:
            return make_masks(self.size, config.masks, config.fraction, config.seed)
        masks = read_masks(config.mask_file, allow_pickle=config.allow_pickle)
        if masks.shape[1] != self.size:
            raise DataError(
                f"{config.mask_file} has masks of {masks.shape[1]} rows, but there are {self.size} "
                "training rows",
                remedy=f"set rows={masks.shape[1]} if they are of the first rows"
                if masks.shape[1] < len(self.task.examples(self.split))
                else "use the training rows that the masks were made for",
            )
        return masks

    @cached_property
    def given(self) -> npt.NDArray[np.float64] | None:
        """The truth of `margin_file`, (masks, queries) or (masks, retrainings, queries)."""
        config = self.config
        if config.margin_file is None:
            return None
        margins = read_margins(config.margin_file, allow_pickle=config.allow_pickle)
        wanted = len(self.masks), len(self.asked)
        if (margins.shape[0], margins.shape[-1]) != wanted:
            raise DataError(
                f"{config.margin_file} is of {margins.shape[0]} masks and {margins.shape[-1]} "
                f"queries, the study of {wanted[0]} and {wanted[1]}",
                remedy="use the mask file and the queries (query_rows) that it was made with",
            )
        return margins

    @cached_property
    def asked(self) -> Any:
        """The queries."""
        return self.queries.examples(self.config.query_rows)

    @cached_property
    def _retraining(self) -> tuple[EnsembleWork, Plan]:
        config = self.config
        return plan_retraining(
            self.checkpoint,
            self.task,
            list(self.masks),
            seeds=config.retrain_seeds,
            queries=self.queries,
            config=config.train,
            split=self.split,
            query_rows=config.query_rows,
            rows=config.rows,
            together=config.together,
        )

    @property
    def plan(self) -> Plan:
        """The retrainings, which are nearly all of the work; empty where margins are given."""
        return Plan(()) if self.given is not None else self._retraining[1]

    def forecast(self, store: ArtifactStore | None = None) -> Forecast:
        """Steps of the retrainings that remain, their time and memory."""
        if self.given is not None:
            return Plan(()).forecast(store, unit="steps")
        work, plan = self._retraining
        return work.forecast(plan, store, workers=self.config.workers)

    def run(
        self,
        store: ArtifactStore | None = None,
        *,
        progress: bool = False,
        scores_of: Scores | None = None,
    ) -> LinearDatamodelling:
        """Train and score what is missing, assemble the result and keep it under its name.

        `scores_of` replaces the library's own scores.
        """
        with tempfile.TemporaryDirectory(prefix="landform-") as scratch:
            kept = Store.open(scratch) if store is None else store
            place = kept.path / "models" if isinstance(kept, Store) else Path(scratch)
            start = time.perf_counter()
            targets = self.targets(kept, progress=progress)
            timings = {"retraining": time.perf_counter() - start}
            scorer, scores = scores_of or self._scores(kept, place, progress), {}
            for method in self.config.methods:
                start = time.perf_counter()
                scores[method] = scorer(method)
                timings[f"scores of {method}"] = time.perf_counter() - start
        result = self._result(scores, targets, timings)
        if store is not None:
            publish(store, self.config.keep_as, result)
        return result

    def kept(self, result: Any) -> tuple[str, ...]:
        """The name under which a study keeps the result."""
        return (self.config.keep_as,)

    def targets(self, store: ArtifactStore, *, progress: bool = False) -> npt.NDArray[np.float64]:
        """(masks, retrainings, queries) what the retrained models say, larger = better."""
        if self.given is not None:
            return self.given
        work, plan = self._retraining
        run_plan(
            plan,
            work,
            store,
            engine=self.config.engine,
            workers=self.config.workers,
            progress=progress,
            description="retraining",
            unit="steps",
        )
        return self._measure(work.collect(store))

    def _measure(self, logits: np.ndarray) -> npt.NDArray[np.float64]:
        """Margins, or minus losses, of (..., queries, outputs)."""
        kind = self.queries.task.kind
        labels = torch.as_tensor(np.asarray(self.asked.labels))
        objective = Objective(kind)  # the logits are in the task's own order already
        flat = torch.from_numpy(logits).double().reshape(-1, *logits.shape[-2:])
        flat = flat.squeeze(-1) if kind == "regression" else flat
        found = [
            objective.margins(z, labels)
            if self.config.measurement == "margin"
            else -objective.position_losses(z, labels)
            for z in flat
        ]
        return torch.stack(found).reshape(logits.shape[:-1]).numpy()

    def _scores(self, store: ArtifactStore, place: Path, progress: bool) -> Scores:
        config = self.config
        source = ScoreSource(
            model=self.checkpoint,
            task=self.task,
            split=self.split,
            rows=self.size,
            queries=self.queries,
            query_rows=tuple(range(len(self.asked))),
            train=config.train,
            seed=config.base_seeds[0],
            place=place,
            measurement=config.measurement,
            damping=config.damping,
            relative_damping=config.relative_damping,
            scored=self.scored,
            store=store,
            progress=progress,
        )
        seeds: Sequence[int] = config.base_seeds if self.scored is None else (0,)

        def scores_of(method: str) -> npt.NDArray[Any]:
            strategy, labels = split_method(method, config.labels)
            models = [replace(source, labels=labels, seed=seed)(strategy) for seed in seeds]
            return np.asarray(np.mean(models, axis=0))

        return scores_of

    def _result(
        self,
        scores: dict[str, npt.NDArray[Any]],
        targets: npt.NDArray[np.float64],
        timings: dict[str, float],
    ) -> LinearDatamodelling:
        config, given = self.config, self.given is not None
        return linear_datamodelling(
            scores,
            self.masks,
            targets,
            task=self.queries.name,
            measurement=config.measurement,
            text_ids=self.asked.ids,
            replicates=config.replicates,
            level=config.level,
            seed=config.seed,
            retrainings=0 if given and targets.ndim == 2 else None,
            timings=timings,
            provenance={
                "weights": self.checkpoint.fingerprint,
                "scored": None if self.scored is None else self.scored.fingerprint,
                "train": self.task.examples(self.split, rows=config.rows).fingerprint,
                "queries": self.asked.fingerprint,
                "masks": fingerprint_array(self.masks),
                "targets": fingerprint_array(targets),
                "config": config.model_dump(mode="json"),
            },
        )
