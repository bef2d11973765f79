"""`train`: many fine-tunes of one model that differ in what chance decided, and in nothing else."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from landform.errors import ConfigError, StoreError
from landform.results import Result
from landform.store.artifacts import Contents, MemoryStore, environment
from landform.store.atomic import file_errors, remove_leftovers
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.tasks.task import Task
from landform.training.options import ROW_OPTIONS, TrainConfig
from landform.training.work import TrainWork, TrainWorker
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = [
    "TrainConfig",
    "TrainStudy",
    "TrainWork",
    "TrainWorker",
    "Training",
    "train",
    "train_all",
]


@dataclass(frozen=True)
class Training(Result):
    """What came of fine-tuning one model under several seeds."""

    model: str
    task: str
    runs: pd.DataFrame
    """one row per run: name, path, seed, head_seed, data_seed, dropout_seed, perturb_seed, rows,
    steps, train_loss (nats, mean over the last row of its history), SPLIT/METRIC, seconds, reused;
    SPLIT/METRIC is the last evaluation. Where a best one was looked for: best_step, best_value"""
    history: pd.DataFrame
    """run, step, epoch, loss (mean since the row before), learning_rate, grad_norm, seconds, and
    SPLIT/METRIC at the steps that were evaluated"""
    provenance: dict[str, Any]

    @property
    def paths(self) -> tuple[str, ...]:
        """The run directories: what `connect` and `evaluate` take."""
        return tuple(self.runs.path)

    @property
    def subject(self) -> tuple[str, ...]:
        """The directory of the runs."""
        return tuple(dict.fromkeys(str(Path(path).parent) for path in self.paths))

    @property
    def subject_weights(self) -> None:
        """Those of its provenance are of the model from which many runs may start."""
        return

    @property
    def reading(self) -> str:
        """One line for a person."""
        metrics = [str(name) for name in self.runs if "/" in str(name)]
        parts = [f"training loss {_span(self.runs.train_loss)}"]
        parts += [f"{name} {_span(self.runs[name])}" for name in metrics]
        count = len(self.runs)
        return (
            f"{count} {'run' if count == 1 else 'runs'} of {self.model} on {self.task}: "
            + ", ".join(parts)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the history stays a table in each run directory."""
        return {
            "model": self.model,
            "task": self.task,
            "runs": self.runs.to_dict("records"),
            "provenance": self.provenance,
        }


def _span(values: pd.Series) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def train(
    model: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    out: str | os.PathLike[str],
    split: str = "train",
    eval_split: str | None = "validation",
    progress: bool = False,
    **options: Any,
) -> Training:
    """Fine-tune `model` on a split of `task`, once for each of `seeds`.

    Each run becomes a directory `out/seed0`, `out/seed1`, ... with model, tokenizer, a record of
    what made it (landform.json) and its history; it appears when it is finished. A finished run of
    the same weights, rows and options is reused; one of other options is an error, unless
    `overwrite`. A killed command goes on from the last state it kept (`resume_steps`), and gives
    the same weights as if it had not been killed (on a CPU, with the same number of threads).

    `eval_split` None leaves evaluation out. Further options are the fields of `TrainConfig`.
    """
    study = TrainStudy.of(model, task, out=out, split=split, eval_split=eval_split, **options)
    return study.run(progress=progress)


@dataclass(frozen=True)
class TrainStudy:
    """The plan of a `train`: what would be trained, before anything is."""

    work: TrainWork
    plan: Plan

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str] | Checkpoint,
        task: Task,
        *,
        out: str | os.PathLike[str],
        split: str = "train",
        eval_split: str | None = "validation",
        also: Sequence[str] = (),
        **options: Any,
    ) -> TrainStudy:
        """Resolve model, rows and options; raises for anything that cannot be trained.

        `also`: further splits of the task that are evaluated with `eval_split`.
        """
        config = TrainConfig.parse(options, where="train")
        if not isinstance(task, Task):
            raise ConfigError(
                f"{task!r} is not a task", remedy="make one with landform.load_task(...)"
            )
        place = Path(out).expanduser()
        work = TrainWork(resolve(model), task, place, split, eval_split, config, also=tuple(also))
        work.check()
        return cls(work, Plan(work.job(seed) for seed in config.seeds))

    def beside(self, out: Path, *, title: str = "", **options: Any) -> TrainStudy:
        """The same rows under other options, in another place; the rows are not read again."""
        config = self.work.config.replace(**options)
        if any(getattr(config, n) != getattr(self.work.config, n) for n in ROW_OPTIONS):
            raise ConfigError("beside: the rows stay the same", remedy="make a study of its own")
        work = replace(self.work, out=out, config=config, title=title)
        for name in ("chosen", "rows", "labels"):
            work.__dict__[name] = getattr(self.work, name)
        if config.ewc == self.work.config.ewc:
            work.__dict__["fisher"] = self.work.fisher
        work.check()
        return TrainStudy(work, Plan(work.job(seed) for seed in config.seeds))

    def without_rows(self, task: Task) -> TrainStudy:
        """The same runs with their rows forgotten, for a study of many: the jobs know the rows by
        fingerprint, and a worker chooses them again. `task`: the same one, or a copy of it that has
        read nothing, which then stays so."""
        work = replace(self.work, task=task, forgets=task is not self.work.task)
        for name in ("_shared_spec", "steps", "labels", "metrics", "best", "device"):
            work.__dict__[name] = getattr(self.work, name)
        return TrainStudy(work, self.plan)

    def forecast(self, seconds_per_step: float | None = None) -> Forecast:
        """What remains to be trained; the unit is optimizer steps."""
        return self.plan.forecast(
            _Runs(self.work),
            seconds_per_unit=seconds_per_step,
            workers=self.work.config.workers,
            unit="steps",
        )

    def run(self, *, progress: bool = False) -> Training:
        """Train what is missing."""
        return train_all([self], progress=progress)[0]

    def check_places(self) -> None:
        """Raise where something else lies in the place of a run."""
        work = self.work
        for job in self.plan.jobs:
            place = work.place(job)
            place.check(job.key, job.spec, overwrite=work.config.overwrite)
            if place.holds(job.key) and not work.holds(job):
                lacks = "its model" if work.config.keep_model and not place.has_model() else ""
                warnings.warn(
                    f"{place.path} was trained without {lacks or 'cartography'}: it is trained "
                    "again, to the same weights",
                    stacklevel=4,
                )

    def collect(self, reused: Container[str] = ()) -> Training:
        """What came of the runs; `reused`: the keys of those that were there before."""
        rows, histories = [], []
        for job in self.plan.jobs:
            place = self.work.place(job)
            record = place.record()
            if record is None:
                raise StoreError(
                    f"{place.path} disappeared while it was trained",
                    remedy="run the same command again",
                )
            rows.append({**record["summary"], "path": str(place.path), "reused": job.key in reused})
            histories.append(place.history().assign(run=record["summary"]["name"]))
        history = pd.concat(histories, ignore_index=True)
        first = ["name", "path"]
        runs = pd.DataFrame(rows)
        return Training(
            model=self.work.checkpoint.spec,
            task=self.work.task.name,
            runs=runs[[*first, *(c for c in runs if c not in first)]],
            history=history[["run", *(c for c in history if c != "run")]],
            provenance={
                "weights": self.work.checkpoint.fingerprint,
                "examples": self.plan.jobs[0].spec["train"],
                "config": self.work.config.model_dump(mode="json"),
                "environment": environment(),
            },
        )


def _tell(job: Job, contents: Contents) -> None:
    """The line of a finished run."""
    summary = contents.records["summary"]
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in summary.items() if "/" in name)
    print(
        f"{job.label}: {summary['steps']} steps in {summary['seconds']:.1f} s, "
        f"training loss {summary['train_loss']:.4g}" + (f", {metrics}" if metrics else ""),
        file=sys.stderr,
        flush=True,
    )


class _Runs(MemoryStore):
    """The run directories as the store of the plan: what is trained is what lies there whole."""

    def __init__(self, *works: TrainWork) -> None:
        super().__init__()
        self._jobs = {
            job.key: (work, job) for work in works for job in map(work.job, work.config.seeds)
        }

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or key not in self._jobs:
            return False
        work, job = self._jobs[key]
        return work.holds(job)


def train_all(studies: Sequence[TrainStudy], *, progress: bool = False) -> list[Training]:
    """Train what is missing of several studies as one plan; where and with what engine is that of
    the first one. Raises `ConfigError` where two of them would train the same run twice."""
    owners: dict[str, TrainStudy] = {}
    for study in studies:
        study.check_places()
        for job in study.plan.jobs:
            first = owners.setdefault(job.key, study)
            if first is not study:
                raise ConfigError(
                    f"{study.work.place(job).path} and {first.work.place(job).path} would be the "
                    "same run: weights, rows, options and seeds agree",
                    remedy="leave one of them out",
                )
    outs = dict.fromkeys(study.work.out for study in studies)
    made = {folder for out in outs for folder in (out, *out.parents) if not folder.exists()}
    for path in outs:
        with file_errors("write", path):
            path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
    try:
        return _train_all(studies, progress)
    finally:
        for path in sorted(made, key=lambda folder: -len(folder.parts)):
            with suppress(OSError):  # not empty: something was finished
                path.rmdir()


def _train_all(studies: Sequence[TrainStudy], progress: bool) -> list[Training]:
    plan = Plan(job for study in studies for job in study.plan.jobs)
    store, config = _Runs(*(study.work for study in studies)), studies[0].work.config
    reused = {job.key for job in plan.jobs if job.key in store}
    missing = {
        job.key: study.work for study in studies for job in study.plan.jobs if job.key not in reused
    }
    run_plan(
        plan,
        _Trainers(missing, progress),
        store,
        engine=config.engine,
        workers=config.workers,
        progress=progress and len(plan) > 1,
        on_result=_tell if progress else None,
        description="training",
        unit="steps",
    )
    return [study.collect(reused) for study in studies]


class _Trainers:
    """The picklable factory of workers for the runs of several studies."""

    def __init__(self, works: Mapping[str, TrainWork], progress: bool) -> None:
        # Without the rows that they have chosen: a worker keeps those of one of them at a time.
        fresh = {id(w): w.elsewhere(progress=progress) for w in works.values()}
        self.works = {key: fresh[id(work)] for key, work in works.items()}

    def __call__(self) -> _AnyTrainer:
        return _AnyTrainer(self.works)


class _AnyTrainer:
    """Trains runs of several studies."""

    def __init__(self, works: Mapping[str, TrainWork]) -> None:
        self.works = works
        self.of: TrainWork | None = None
        self.data: tuple[Any, ...] = ()
        self.worker: TrainWorker | None = None

    def run(self, job: Job) -> Contents:
        """Train one run."""
        work = self.works[job.key]
        data = _data_of(work, job)
        if self.worker is not None and self.of is not work and self.data == data:
            self.worker = self.worker.under(work)
        elif self.worker is None or self.of is not work:
            self.worker = None  # before the rows of another one are read
            task = copy(work.task) if work.forgets else work.task
            self.worker = TrainWorker(replace(work, task=task))
        self.of, self.data = work, data
        return self.worker.run(job)


def _data_of(work: TrainWork, job: Job) -> tuple[Any, ...]:
    """What the rows as they are prepared for a model depend on: not on dropout."""
    spec = {name: value for name, value in job.spec.items() if name not in ("seeds", "ewc")}
    options = {n: v for n, v in spec["options"].items() if "dropout" not in n}
    places = (work.split, work.eval_splits, work.config.device)
    return {**spec, "options": options}, work.config.row_file, *places
