"""`train`: many fine-tunes of one model that differ in what chance decided, and in nothing else."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from landform.config import nearest
from landform.curvature.fisher import Fisher, load_fisher
from landform.errors import (
    ConfigError,
    CurvatureError,
    DataError,
    LandformError,
    NonFiniteError,
    StoreError,
)
from landform.evaluation.cartography import FILE, Probe, closed_answers, refuse_regression
from landform.evaluation.data import Data, task_identity, torch_device
from landform.evaluation.evaluate import metric_names
from landform.evaluation.evaluator import Evaluator, RawOutputs, check_metrics
from landform.evaluation.generation import Generation, generation_of
from landform.evaluation.prepared import PreparedData, tokenise, unpadded
from landform.results import Result
from landform.store.artifacts import Contents, MemoryStore, environment
from landform.store.atomic import file_errors, remove_leftovers
from landform.store.engines import run_plan
from landform.store.fingerprint import to_plain
from landform.store.plan import Forecast, Job, Plan
from landform.store.progress import track
from landform.tasks.batching import Encoded, set_padding
from landform.tasks.metrics import get_metric
from landform.tasks.objective import Objective
from landform.tasks.rows import ROW_FILE, write_row_file
from landform.tasks.task import Examples, Task
from landform.training.cartography import EpochRecorder, steps_per_epoch
from landform.training.consolidation import ConsolidationCallback, common_tensors
from landform.training.loop import (
    BestRule,
    Loop,
    check_weights,
    count_steps,
    cpu_threads,
    has_state,
    run_loop,
)
from landform.training.models import label_order, refuse_tuned, starting_model
from landform.training.options import ROW_OPTIONS, TrainConfig, identity
from landform.training.runs import RunDirectory
from landform.training.seeds import Seeds, isolated_randomness
from landform.training.subsets import choose_rows
from landform.weights.checkpoint import Checkpoint, load_tokenizer, quiet_transformers, resolve
from landform.weights.tuning import save_model

__all__ = [
    "TrainConfig",
    "TrainStudy",
    "TrainWork",
    "TrainWorker",
    "Training",
    "train",
    "train_all",
]


EVALUATED_TOKENS = 4096
"""Padded tokens of one batch of an evaluation: enough for a matrix product, few enough for a
cache."""


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


@dataclass(frozen=True)
class TrainWork:
    """What a worker needs, in this process or another: the picklable factory."""

    checkpoint: Checkpoint
    task: Task
    out: Path
    split: str
    eval_split: str | None
    config: TrainConfig
    progress: bool = False
    also: tuple[str, ...] = ()
    """further splits to evaluate"""
    title: str = ""
    """what the runs are called before their own names where there are those of other studies"""
    forgets: bool = False
    """whether a worker reads a copy of the task, so that its rows go when the worker goes"""

    def elsewhere(self, *, progress: bool) -> TrainWork:
        """The same for a worker, whose working directory may be another."""
        fisher = self.config.ewc
        return replace(
            self,
            config=self.config
            if fisher is None
            else self.config.replace(ewc=fisher.expanduser().absolute()),
            checkpoint=replace(self.checkpoint, path=self.checkpoint.path.absolute()),
            out=self.out.absolute(),
            progress=progress and self.config.engine == "local",
        )

    def __call__(self) -> TrainWorker:
        """Open a worker: tokenise the data once for all runs."""
        return TrainWorker(self)

    def check(self) -> None:
        """Raise for whatever can be seen to be wrong before a model is loaded."""
        refuse_tuned(self.checkpoint)
        for split in self.eval_splits:
            try:
                evaluated = self.task.examples(split)
            except DataError as error:
                raise DataError(
                    error.what, remedy=f"{error.remedy}; or eval_split=None to leave evaluation out"
                ) from None
            _check_labels(evaluated, self.task, split)
            check_metrics(self.task, self.metrics)
        _check_labels(self.rows, self.task, self.split)
        if self.config.cartography and self.task.kind == "regression":
            raise refuse_regression(f"{self.task.name}:{self.split}")
        beyond = [step for step in self.config.save_steps if step > self.steps]
        if beyond:
            raise ConfigError(
                f"option save_steps: step {beyond[0]} lies beyond the last step, {self.steps} "
                f"({len(self.rows)} rows, batches of {self.config.batch_size})",
                remedy=f"use steps up to {self.steps}, or raise epochs or max_steps",
            )
        _ = self.labels, self.device, self.best
        if self.fisher is not None and self.fisher.weights not in (
            None,
            self.checkpoint.fingerprint,
        ):
            raise CurvatureError(
                f"option ewc: the Fisher is that of {self.fisher.summary.checkpoint}, at other "
                f"weights than those of {self.checkpoint.spec}, from which training starts",
                remedy=f"compute it there: landform fisher {self.checkpoint.spec}",
            )

    @cached_property
    def fisher(self) -> Fisher | None:
        """What holds the weights near their start."""
        return None if self.config.ewc is None else load_fisher(self.config.ewc)

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """The splits that are evaluated."""
        return (() if self.eval_split is None else (self.eval_split,)) + self.also

    @cached_property
    def chosen(self) -> tuple[int, ...] | None:
        """Positions of the rows to train on in the split, or None for all."""
        examples = self.task.examples(self.split)
        return choose_rows(examples, self.config, classes=self.task.kind == "classification")

    @cached_property
    def rows(self) -> Examples:
        """The rows to train on."""
        examples = self.task.examples(self.split)
        return examples if self.chosen is None else examples.take(self.chosen)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of each run."""
        return count_steps(len(self.rows), self.config)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The label of each output of the head."""
        return label_order(self.checkpoint, self.task, new_head=self.config.new_head)

    @cached_property
    def objective(self) -> Objective:
        """What is minimised."""
        return Objective.of(self.task, self.labels)

    @cached_property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return torch_device(self.config.device)

    @cached_property
    def _shared_spec(self) -> dict[str, Any]:
        return {
            "weights": self.checkpoint.fingerprint,
            "tokenizer": self.checkpoint.tokenizer_fingerprint,
            "task": {
                "name": self.task.name,
                "labels": self.labels,
                **task_identity(self.task),
            },
            "metrics": self.metrics,
            "train": self.rows.fingerprint,
            "eval": None
            if self.eval_split is None
            else {
                "split": self.eval_split,
                "examples": self.task.examples(self.eval_split).fingerprint,
            },
            **(
                {"also": {s: self.task.examples(s).fingerprint for s in self.also}}
                if self.also
                else {}
            ),
            "options": identity(self.config),
            **self._penalty,
        }

    @property
    def _penalty(self) -> dict[str, Any]:
        if self.fisher is None:
            return {}
        return {"ewc": {"fisher": self.fisher.fingerprint, "strength": self.config.ewc_strength}}

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of the evaluations; of generated text only where it is wanted."""
        names = metric_names(self.task)
        if self.config.max_new_tokens == 0:
            names = tuple(name for name in names if not get_metric(name).reads_texts)
        return names

    @cached_property
    def best(self) -> BestRule | None:
        """By which evaluations the best model is kept, and training stopped early."""
        config = self.config
        if config.keep_best is None and config.early_stop is None:
            return None
        option = "keep_best" if config.keep_best is not None else "early_stop"
        if self.eval_split is None:
            raise ConfigError(
                f"option {option} needs evaluations, but there is no eval_split",
                remedy="name the split to choose on, such as eval_split='validation'",
            )
        known = self.metrics
        name = config.keep_best or next((m for m in self.task.metrics if m in known), "loss")
        if name not in known:
            guess = nearest(name, known)
            raise ConfigError(
                f"option keep_best: {name!r} is no metric of the evaluations of {self.task.name}",
                remedy=(f"did you mean {guess!r}? " if guess else "")
                + f"Known: {', '.join(known)}",
            )
        return BestRule(f"{self.eval_split}/{name}", get_metric(name).higher_is_better)

    def job(self, seed: int) -> Job:
        """The run of one seed."""
        seeds = Seeds.of(seed, self.config).columns()
        if not self.config.perturb:
            del seeds["perturb_seed"]
        spec = {**self._shared_spec, "seeds": seeds}
        label = f"{self.title}{self.config.prefix}{seed}"
        return Job("train", spec, cost=float(self.steps), label=label)

    def place(self, job: Job) -> RunDirectory:
        """Where a run goes."""
        return RunDirectory(self.out / f"{self.config.prefix}{job.spec['seeds']['seed']}")

    def holds(self, job: Job) -> bool:
        """Whether the finished run is there, with its model and the record of its dynamics where
        they are wanted."""
        place, needs = self.place(job), (FILE,) if self.config.cartography else ()
        return place.holds(job.key, needs) and (not self.config.keep_model or place.has_model())


def _check_labels(examples: Examples, task: Task, split: str) -> None:
    if task.kind != "classification":
        return
    labels = np.asarray(examples.labels)
    outside = np.flatnonzero((labels < 0) | (labels >= len(task.label_names)))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{task.name}:{split}, row {examples.ids[row]} has the label {labels[row]}, which is "
            f"none of the {len(task.label_names)} labels",
            remedy="this split may be unlabelled (GLUE's test splits are); choose another one",
        )


class TrainWorker:
    """Trains runs, one after another, on data that was read and tokenised once."""

    def __init__(self, work: TrainWork) -> None:
        self.work = work
        with quiet_transformers():
            self.tokenizer = load_tokenizer(work.checkpoint)
        self.encoded: Encoded | None = None
        self.evaluation: list[tuple[str, Examples, PreparedData]] = []
        self.mapped: PreparedData | None = None

    def under(self, work: TrainWork) -> TrainWorker:
        """A worker for runs of the same rows under other options of dropout, on the same data."""
        other = copy(self)
        other.work = replace(work, task=self.work.task)
        for name in ("chosen", "rows"):
            other.work.__dict__[name] = getattr(self.work, name)
        return other

    def run(self, job: Job) -> Contents:
        """Train one run, or find that another process just did."""
        work, place = self.work, self.work.place(job)
        # A run under way without the record of its first epochs cannot go on with one.
        key = f"{job.key} with cartography" if work.config.cartography else job.key
        with place.claimed(key) as directory:
            if not work.holds(job):
                with isolated_randomness(), cpu_threads(work.config.threads), quiet_transformers():
                    try:
                        self._train(job, place, directory)
                    except LandformError as error:
                        # From a state of a diverging run, going on would only diverge again.
                        if isinstance(error, NonFiniteError) or not has_state(directory):
                            place.discard()
                        raise
            else:
                place.discard()
        record = place.record()
        assert record is not None  # just written, or held
        return Contents(records={"summary": record["summary"]})

    def _train(self, job: Job, place: RunDirectory, directory: Path) -> None:
        work, config = self.work, self.work.config
        seeds = Seeds.of(job.spec["seeds"]["seed"], config)
        model = starting_model(work.checkpoint, work.task, work.labels, config, seeds)
        check_weights(
            model,
            work.checkpoint.spec,
            "the run diverged or the file is damaged; start from another checkpoint",
        )
        set_padding(model, self.tokenizer)  # of every run's model; the rows are prepared once
        encoded = self._prepare(model)

        def save(target: Path) -> None:
            save_model(model, target, work.checkpoint.path, work.checkpoint.fingerprint)
            self.tokenizer.save_pretrained(target)

        recorder = self._recorder(job.label, model, directory)
        recorders = () if recorder is None else (recorder,)
        with track(work.steps, job.label, "steps", enabled=work.progress) as progress:
            history = run_loop(
                Loop(
                    name=job.label,
                    model=model,
                    objective=work.objective,
                    encoded=encoded,
                    config=config,
                    seeds=seeds,
                    steps=work.steps,
                    device=work.device,
                    directory=directory,
                    save=save,
                    evaluate=self._evaluator(model),
                    progress=progress,
                    callbacks=(*self._consolidation(model), *recorders),
                    best=work.best,
                )
            )
        table = _history_table(history)
        record = {
            "key": job.key,
            "identity": to_plain(job.spec),
            "model": work.checkpoint.spec,
            "task": work.task.name,
            "split": work.split,
            "config": config.model_dump(mode="json"),
            "dropout": model.landform_dropout,
            "environment": environment(),
            "summary": self._summary(place.path.name, seeds, table),
        }
        place.finish(record, table, lambda target: self._save_all(target, save, recorder))

    def _save_all(self, target: Path, save: Any, recorder: EpochRecorder | None) -> None:
        if self.work.config.keep_model:
            save(target)
        if recorder is not None:
            chosen = self.work.chosen
            rows = range(len(self.work.rows)) if chosen is None else chosen
            recorder.dynamics(rows).write(target / FILE)
        if self.work.chosen is not None:
            write_row_file(self.work.rows.ids, target / ROW_FILE)

    def _summary(self, name: str, seeds: Seeds, history: pd.DataFrame) -> dict[str, Any]:
        trained = history.dropna(subset="loss")
        metrics = [str(column) for column in history if "/" in str(column)]
        return {
            "name": name,
            **seeds.columns(),
            "rows": len(self.work.rows),
            "steps": int(history.step.iloc[-1]),
            "train_loss": float(trained.loss.iloc[-1]),
            **{column: float(history[column].dropna().iloc[-1]) for column in metrics},
            **self._best(history),
            "seconds": float(trained.seconds.iloc[-1]),
        }

    def _best(self, history: pd.DataFrame) -> dict[str, Any]:
        """The step of RUN@best, or of the evaluation that none after it was better than."""
        rule = self.work.best
        if rule is None:
            return {}
        rows = history[history[f"{self.work.eval_split}/loss"].notna()]
        pairs = zip(rows["step"], rows[rule.column], strict=True)
        best, _ = rule.best([{"step": float(s), rule.column: float(v)} for s, v in pairs])
        return {"best_step": int(best["step"]), "best_value": best[rule.column]}

    # --- data ------------------------------------------------------------------------------

    def _prepare(self, model: Any) -> Encoded:
        """The training rows, and, at the first call, what is evaluated."""
        work = self.work
        if self.encoded is None:
            self.encoded = self._tokenise(work.rows, Data(work.task, work.split).name, model)
            for split in work.eval_splits:
                data = Data(work.task, split)
                examples = data.examples(None)
                encoded = self._tokenise(examples, data.name, model)
                prepared = self._batches(
                    data.name, encoded, examples.ids, model, self._generation(model)
                )
                self.evaluation.append((split, examples, prepared))
        return self.encoded

    def _tokenise(self, examples: Examples, name: str, model: Any) -> Encoded:
        task, most = self.work.task, self.work.config.max_length
        return tokenise(name, task, examples, model, self.tokenizer, max_length=most)

    def _batches(
        self,
        name: str,
        encoded: Encoded,
        ids: tuple[str, ...],
        model: Any,
        generation: Generation | None = None,
    ) -> PreparedData:
        """What is evaluated while a model is trained, as padded batches on its device."""
        work = self.work
        prepared = PreparedData.of(
            name,
            work.objective,
            encoded,
            ids,
            token_budget=EVALUATED_TOKENS,
            device=work.device,
            generation=generation,
        )
        if work.config.dropout_compat is not None:  # noise in evaluation too: nothing to compare
            return prepared
        return unpadded(model.to(work.device), prepared, work.checkpoint.spec)

    def _generation(self, model: Any) -> Generation | None:
        most = self.work.config.max_new_tokens
        if most == 0:
            return None
        return generation_of(self.work.task, model, self.tokenizer, most)

    def _consolidation(self, model: Any) -> tuple[ConsolidationCallback, ...]:
        """The penalty of leaving the start, where that is wanted; `model` stands there."""
        fisher, strength = self.work.fisher, self.work.config.ewc_strength
        if fisher is None or strength is None:
            return ()
        common_tensors(fisher, model)  # raises before the first step
        return (ConsolidationCallback(fisher, strength, anchor=model),)

    def _recorder(self, name: str, model: Any, directory: Path) -> EpochRecorder | None:
        """What records the dynamics of a run, where that is wanted."""
        work = self.work
        if not work.config.cartography:
            return None
        data = Data(work.task, work.split)
        encoded, rows = self._prepare(model), work.rows
        if self.mapped is None:
            self.mapped = self._batches(data.name, encoded, rows.ids, model)
        seq2seq = work.task.kind == "seq2seq"
        answers = closed_answers(data.examples(None)) if seq2seq else None
        probe = Probe(model, self.mapped, rows, tokenizer=self.tokenizer, answers=answers)
        steps = steps_per_epoch(len(rows), work.config.batch_size, work.config.accumulation)
        return EpochRecorder(probe, directory, steps, name)

    def _evaluator(self, model: Any) -> Any:
        if not self.evaluation:
            return None
        evaluator = Evaluator(model, [prepared for _, _, prepared in self.evaluation])

        def evaluate(where: str) -> dict[str, float]:
            found: dict[str, float] = {}
            pairs = zip(self.evaluation, evaluator.run(where), strict=True)
            for (split, examples, _), outputs in pairs:
                found |= self._metrics(split, examples, outputs)
            return found

        return evaluate

    def _metrics(self, split: str, examples: Examples, outputs: RawOutputs) -> dict[str, float]:
        predictions = outputs.predictions(examples, self.work.task.kind)
        return {
            f"{split}/{name}": float(get_metric(name).aggregate(predictions))
            for name in self.work.metrics
        }


def _history_table(history: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """One row per step that was logged or evaluated."""
    rows: dict[float, dict[str, float]] = {}
    for entry in history:
        rows.setdefault(entry["step"], {}).update(entry)
    table = pd.DataFrame([rows[step] for step in sorted(rows)])
    first = ["step", "epoch", "loss", "learning_rate", "grad_norm", "seconds"]
    return table[[*first, *(c for c in table if c not in first)]]
