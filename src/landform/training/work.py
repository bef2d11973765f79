"""The work of `train`: what one run is, and the worker that trains runs one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
)
from landform.evaluation.cartography import FILE, Probe, closed_answers, refuse_regression
from landform.evaluation.data import Data, task_identity, torch_device
from landform.evaluation.evaluate import metric_names
from landform.evaluation.evaluator import Evaluator, RawOutputs, check_metrics
from landform.evaluation.generation import Generation, generation_of
from landform.evaluation.prepared import PreparedData, tokenise, unpadded
from landform.store.artifacts import Contents, environment
from landform.store.fingerprint import to_plain
from landform.store.plan import Job
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
from landform.training.options import TrainConfig, identity
from landform.training.runs import RunDirectory
from landform.training.seeds import Seeds, isolated_randomness
from landform.training.subsets import choose_rows
from landform.weights.checkpoint import Checkpoint, load_tokenizer, quiet_transformers
from landform.weights.tuning import save_model

__all__ = ["TrainWork", "TrainWorker"]


EVALUATED_TOKENS = 4096
"""Padded tokens of one batch of an evaluation: enough for a matrix product, few enough for a
cache."""


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
        if not self.eval_splits:
            self._check_unevaluated()
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

    def _check_unevaluated(self) -> None:
        """Raise for options of evaluations where there are none."""
        unread = self.config.options_given(["eval_steps", "max_new_tokens"])
        if unread and self.best is None:  # which says more of itself
            raise ConfigError(
                f"option {unread[0]} has no effect without evaluations: there is no eval_split",
                remedy="name the split to evaluate, or leave the option out",
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
    # Of a split the loss first, then by name: what a kept state holds has lost its order.
    metrics = sorted(
        (str(c) for c in table if c not in first),
        key=lambda name: (name.rpartition("/")[0], not name.endswith("/loss"), name),
    )
    return table[[*first, *metrics]]
