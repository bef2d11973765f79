"""One run: the Hugging Face Trainer on landform's objective, batches and seeds."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from landform.errors import NonFiniteError
from landform.store.atomic import atomic_directory, file_errors
from landform.store.progress import Track
from landform.tasks.batching import IGNORED, Batch, Encoded, collate
from landform.tasks.metrics import best_of
from landform.tasks.objective import Objective
from landform.training.options import TrainConfig
from landform.training.seeds import DataOrder, Seeds

__all__ = [
    "BestRule",
    "Loop",
    "check_weights",
    "count_steps",
    "cpu_threads",
    "has_state",
    "length_parts",
    "run_loop",
]

STATE = "state-"
BEST = "checkpoint-best"


def count_steps(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a run on this many rows."""
    if config.max_steps is not None:
        return config.max_steps
    batches = math.ceil(rows / config.batch_size)
    return math.ceil(config.epochs * math.ceil(batches / config.accumulation))


@dataclass(frozen=True)
class BestRule:
    """Which of the evaluations of a run is the best one."""

    column: str
    """SPLIT/METRIC, as the history calls it"""
    higher: bool
    """whether a higher value is better"""

    def best(self, history: Sequence[Mapping[str, float]]) -> tuple[Mapping[str, float], int]:
        """The best evaluation so far, of equal ones the earliest, and how many came after it.

        (The code of Qin et al. 2022 keeps the latest of equal ones.) NaN is never the best, but
        where there is nothing else.
        """
        rows = [row for row in history if self.column in row]
        place = best_of([row[self.column] for row in rows], higher=self.higher)
        return rows[place], len(rows) - 1 - place


@dataclass(frozen=True)
class Loop:
    """Everything one run needs, made outside."""

    name: str
    model: Any
    objective: Objective
    encoded: Encoded
    config: TrainConfig
    seeds: Seeds
    steps: int
    device: torch.device
    directory: Path
    """the partial directory: states to resume from and chosen checkpoints go here"""
    save: Callable[[Path], None]
    """writes model and tokenizer as they are at the moment"""
    evaluate: Callable[[str], dict[str, float]] | None
    """metrics of the model as it is at the moment"""
    progress: Track
    callbacks: tuple[TrainerCallback, ...] = ()
    """what else looks at the model while it is trained"""
    best: BestRule | None = None
    """by which evaluations the best model is kept, and training stopped early"""


def run_loop(loop: Loop) -> list[dict[str, float]]:
    """Train; returns the history: one dict per row, with step, loss, learning_rate, ...

    Goes on from the newest state in `loop.directory`. Raises `NonFiniteError` naming run and step
    as soon as the loss is seen to be NaN or infinite.
    """
    staging = loop.directory / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    state = _newest_state(loop.directory)
    trainer = _LandformTrainer(loop, _arguments(loop, staging))
    if state is None:
        _keep_step(loop, 0)
    else:
        loop.progress.advance(int(state.name.removeprefix(STATE)), note="resumed")
    trainer.train(resume_from_checkpoint=None if state is None else str(state))
    check_weights(loop.model, f"{loop.name} after step {trainer.state.global_step}")
    history = list(trainer.state.log_history)
    shutil.rmtree(staging, ignore_errors=True)
    return history


def _arguments(loop: Loop, staging: Path) -> TrainingArguments:
    config = loop.config
    # All reporting, saving and evaluating is landform's own: what the Trainer would do by itself
    # (files in the working directory, a synchronisation per step) is switched off.
    arguments = TrainingArguments(
        output_dir=str(staging),
        max_steps=loop.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup"
        if config.schedule == "constant"
        else config.schedule,
        warmup_steps=math.ceil(loop.steps * config.warmup_ratio),
        weight_decay=config.weight_decay,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.clip,
        bf16=config.bf16,
        use_cpu=loop.device.type == "cpu",
        seed=loop.seeds.dropout,
        data_seed=loop.seeds.data,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        log_level="error",
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=["labels"],
    )
    if config.optimizer == "adafactor":
        arguments.optim = "adafactor"
    # One run uses one device; several are used by several runs (engine ray), never DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class _LandformTrainer(Trainer):
    """The Trainer with landform's loss, data order and places to write to."""

    loss_is_scaled_for_ga = True

    def __init__(self, loop: Loop, arguments: TrainingArguments) -> None:
        self.loop = loop
        self.staging = Path(str(arguments.output_dir))
        self.recent: list[tuple[int, Tensor]] = []
        self.before = 0.0
        self.order = DataOrder(len(loop.encoded), loop.seeds.data)
        self.began = time.perf_counter()
        super().__init__(
            model=loop.model,
            args=arguments,
            train_dataset=range(len(loop.encoded)),
            data_collator=self._collate,
            callbacks=[_Companion(self), *loop.callbacks],
        )
        self.remove_callback(PrinterCallback)

    def _collate(self, positions: Sequence[int]) -> dict[str, Any]:
        """The rows of one batch, as one or several parts to be computed one after the other."""
        encoded = self.loop.encoded
        parts = [list(positions)]
        if self.loop.device.type == "cpu":
            lengths = [len(encoded.rows[i]["input_ids"]) for i in positions]
            parts = [[positions[i] for i in part] for part in length_parts(lengths)]
        return {"parts": [self._part(part) for part in parts]}

    def _part(self, positions: Sequence[int]) -> dict[str, Tensor]:
        encoded = self.loop.encoded
        # Other masks (Liu et al. 2019), another reference in every epoch: of text and seed alone.
        seed = f"{self.loop.seeds.data} {self.order.epoch}"
        rows = [encoded.drawn(i, seed) for i in positions]
        batch = collate(rows, positions, pad_id=encoded.pad_id)
        return {**batch.inputs, "labels": batch.labels, "rows": batch.rows}

    def _get_train_sampler(self, train_dataset: Any = None) -> DataOrder:
        return self.order

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Valid positions in all forward passes of one step, so that sums are divided once."""
        valid = 0
        for part in (part for inputs in batch_samples for part in inputs["parts"]):
            targets = self.loop.objective.targets(_batch(part))
            valid += (
                len(targets) if targets.is_floating_point() else int((targets != IGNORED).sum())
            )
        return max(valid, 1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum of the objective's losses over this batch, by the number of positions of the step."""
        objective, sums = self.loop.objective, []
        for part in inputs["parts"]:
            batch = _batch(part)
            logits = objective.logits(model, batch)
            sums.append(objective.losses(logits, objective.targets(batch)).sums.sum())
        loss = torch.stack(sums).sum() / num_items_in_batch
        self.recent.append((self.state.global_step + 1, loss.detach()))
        return (loss, None) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep a row of history; here, once per interval, losses are looked at."""
        if "loss" not in logs:
            return
        self.check_losses()
        self.loop.progress.advance(0, note=f"loss {logs['loss']:.4f}")
        self.state.log_history.append(
            {
                "step": self.state.global_step,
                "epoch": self.state.epoch or 0.0,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs.get("grad_norm", math.nan),
                "seconds": self.seconds(),
            }
        )
        # What callbacks know of these steps (a penalty) they add to the row.
        self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def seconds(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.before + time.perf_counter() - self.began

    def check_losses(self) -> None:
        """Raise for a NaN or infinite loss since the last look (the only wait for the device)."""
        if not self.recent:
            return
        losses = torch.stack([loss for _, loss in self.recent])
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            first = int(bad[0])
            raise NonFiniteError(
                f"{self.loop.name}: the training loss is {losses[first].item()} "
                f"at step {self.recent[first][0]}",
                remedy="lower learning_rate, lengthen the warm-up, or switch bf16 off",
            )
        self.recent.clear()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The state to resume from: written aside, then renamed; the one before it is removed."""
        older = _states(self.loop.directory)
        with file_errors("keep the state of the run in", self.staging):
            super()._save_checkpoint(model, trial)
        written = self.staging / f"checkpoint-{self.state.global_step}"
        os.replace(written, self.loop.directory / f"{STATE}{self.state.global_step}")
        for path in older:
            shutil.rmtree(path, ignore_errors=True)


class _Companion(TrainerCallback):
    """At the steps that ask for it: evaluate, keep the model, keep the state, tell the progress."""

    def __init__(self, trainer: _LandformTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take up the clock and the dropout stream of this run."""
        trainer = self.trainer
        torch.manual_seed(trainer.loop.seeds.dropout)
        rows = [entry for entry in state.log_history if "seconds" in entry]
        trainer.before = float(rows[-1]["seconds"]) if rows else 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Runs after every optimizer step, before the Trainer logs and saves."""
        loop, step = self.trainer.loop, state.global_step
        last = step >= loop.steps
        every = loop.config.resume_steps
        control.should_save = bool(every) and step % every == 0 and not last
        # The sum of losses since the last row is no part of the state, so a row is closed before
        # it is kept: a resumed run has the same history as one that was never killed.
        control.should_log = control.should_log or last or control.should_save
        if step in loop.config.save_steps:
            _keep_step(loop, step)
        if loop.evaluate is not None and (
            last or (loop.config.eval_steps and step % loop.config.eval_steps == 0)
        ):
            self.trainer.check_losses()
            check_weights(loop.model, f"{loop.name} after step {step}")
            metrics = loop.evaluate(f"{loop.name} at step {step}")
            state.log_history.append({"step": step, **metrics})
            self._judge(state, control)
        loop.progress.advance(1)

    def _judge(self, state: TrainerState, control: TrainerControl) -> None:
        """Keep the model if it is the best so far; stop where none was for too long.

        All is read from the history, which is a part of the kept state: a resumed run judges as one
        that was never killed.
        """
        loop, rule = self.trainer.loop, self.trainer.loop.best
        if rule is None:
            return
        best, since = rule.best(state.log_history)
        if since == 0 and loop.config.keep_best is not None:
            with atomic_directory(loop.directory / BEST) as fresh:
                loop.save(fresh)
        patience = loop.config.early_stop
        if patience is not None and since >= patience:
            control.should_training_stop = control.should_log = True
            loop.progress.advance(0, note=f"stopped: best at step {best['step']:.0f}")


PASS_TOKENS = 128
"""What starting another forward and backward pass on a CPU costs, in tokens of a small encoder."""


def length_parts(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of the rows of a batch, divided into parts of like length.

    Minimises (padded tokens) + PASS_TOKENS x (parts): a CPU pays for every padded token, and since
    losses are summed and divided once, parts give the gradient of the whole. The rows of a part
    are neighbours in the order of length, so a dynamic programme over that order finds the best.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    sizes = np.asarray(lengths)[order]
    count = len(sizes)
    best = np.zeros(count + 1)
    cut = np.zeros(count + 1, dtype=int)
    for stop in range(1, count + 1):
        starts = np.arange(stop)
        costs = best[:stop] + (stop - starts) * sizes[stop - 1] + PASS_TOKENS
        cut[stop] = int(costs.argmin())
        best[stop] = costs[cut[stop]]
    parts, stop = [], count
    while stop:
        parts.append(order[cut[stop] : stop].tolist())
        stop = int(cut[stop])
    return parts[::-1]


def _batch(inputs: dict[str, Tensor]) -> Batch:
    arguments = {name: value for name, value in inputs.items() if name not in ("labels", "rows")}
    return Batch(arguments, inputs["labels"], inputs["rows"])


def _keep_step(loop: Loop, step: int) -> None:
    if step not in loop.config.save_steps:
        return
    with atomic_directory(loop.directory / f"checkpoint-{step}") as fresh:
        loop.save(fresh)


def _states(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{STATE}*"), key=lambda p: int(p.name.removeprefix(STATE)))


def _newest_state(directory: Path) -> Path | None:
    states = _states(directory)
    return states[-1] if states else None


def has_state(directory: Path) -> bool:
    """Whether a run that was stopped could go on from something."""
    return bool(_states(directory))


def check_weights(
    model: nn.Module,
    where: str,
    remedy: str = "lower learning_rate, lengthen the warm-up, or switch bf16 off",
) -> None:
    """Raise `NonFiniteError` naming the first tensor of `model` that has NaN or infinity."""
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            raise NonFiniteError(
                f"{where}: {bad} of {parameter.numel()} entries of tensor {name} are NaN or "
                "infinite",
                remedy=remedy,
            )


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """torch's CPU threads set to `count` inside."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
