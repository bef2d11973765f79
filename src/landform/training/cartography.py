"""Recording training dynamics: after every epoch, what the model says of its training examples.

`EpochRecorder` does it for `train` (option `cartography`), `CartographyCallback` for a Trainer of
the user's own. Both leave the record that `landform.evaluation.cartography` reads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from landform.errors import ConfigError, LabelError
from landform.evaluation.cartography import (
    FILE,
    Measured,
    Probe,
    TrainingDynamics,
    closed_answers,
    read_dynamics,
    refuse_regression,
)
from landform.evaluation.data import Data
from landform.evaluation.prepared import PreparedData, check_padding, tokenise
from landform.store.atomic import check_place, read_tensors, write_tensors
from landform.tasks.batching import Encoded
from landform.tasks.objective import Objective
from landform.tasks.task import Task

__all__ = ["CartographyCallback", "EpochRecorder", "steps_per_epoch"]

KEPT = "epoch-"


def steps_per_epoch(rows: int, batch_size: int, accumulation: int) -> int:
    """Optimizer steps of one pass over the rows; the last one may see fewer batches."""
    return math.ceil(math.ceil(rows / batch_size) / accumulation)


class EpochRecorder(TrainerCallback):
    """Measures after every whole epoch and at the end, and keeps each in the directory of the run
    under way.

    What was measured outlives a kill: a run goes on from a state that is never younger than the
    epochs kept, and those it passes again are measured again, to the same numbers.
    """

    def __init__(self, probe: Probe, directory: Path, steps: int, name: str) -> None:
        self.probe, self.directory, self.steps, self.name = probe, directory, steps, name
        self.last = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """At the end of an epoch, before the state of this step is kept."""
        if state.global_step % self.steps == 0:
            self.record(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Where training ended within an epoch."""
        if state.global_step != self.last:
            self.record(state.global_step)

    def record(self, step: int) -> None:
        """Measure the model as it is now."""
        measured = self.probe.measure(f"{self.name} at step {step}")
        self.last = step
        arrays: dict[str, np.ndarray] = {
            "confidence": measured.confidence,
            "correct": measured.correct.astype(np.uint8),
            "margin": measured.margin,
        }
        write_tensors(self.directory / f"{KEPT}{step:09d}.safetensors", arrays)

    def dynamics(self, rows: Sequence[int]) -> TrainingDynamics:
        """All that was kept up to the last step; `rows` are positions in the split."""
        found = {}
        for path in sorted(self.directory.glob(f"{KEPT}*.safetensors")):
            step = int(path.stem.removeprefix(KEPT))
            if step <= self.last:
                found[step / self.steps] = read_tensors(path)
        return TrainingDynamics(
            ids=self.probe.examples.ids,
            rows=np.asarray(rows, dtype=np.int64),
            epochs=np.array(list(found)),
            confidence=np.stack([kept["confidence"] for kept in found.values()]),
            correct=np.stack([kept["correct"] for kept in found.values()]).astype(bool),
            margin=np.stack([kept["margin"] for kept in found.values()]),
            about=self.probe.about,
        )


class CartographyCallback(TrainerCallback):
    """Records training dynamics in a Hugging Face Trainer of your own.

    After every epoch, all rows of a split of `task` are evaluated with dropout off, and
    `out/cartography.parquet` is written anew, whole or not at all. The rows are tokenised once,
    when training begins, with `tokenizer`. The Trainer may train on any form of the same data.

        trainer = Trainer(model, args, train_dataset=..., callbacks=[
            landform.CartographyCallback(task, tokenizer, out="runs/mine")
        ])

    `out` is a directory (or a file that ends in .parquet), `max_length` where inputs are cut (by
    default all that model and tokenizer take), `token_budget` the padded tokens of a batch,
    `model_labels` the labels of the model's outputs in their order, where its config does not tell
    them (LABEL_0, LABEL_1). A training that is resumed from a checkpoint goes on with the record in
    `out`. Several processes on one training write one record.

    Raises `ConfigError` for a regression, `LabelError` where the labels of the model are not those
    of the task, and `CheckpointError` where padding changes what the model says of a row (with
    `token_budget=1` there is none).
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        *,
        out: str | os.PathLike[str],
        split: str = "train",
        max_length: int | None = None,
        token_budget: int = 4096,
        model_labels: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(task, Task):
            raise ConfigError(
                f"{task!r} is not a task", remedy="make one with landform.load_task(...)"
            )
        self.data = Data(task, split)
        if task.kind == "regression":
            raise refuse_regression(self.data.name)
        self.tokenizer = tokenizer
        out = Path(out).expanduser()
        self.path = out if out.suffix == ".parquet" else out / FILE
        check_place(self.path)
        self.examples = self.data.examples(None)
        self.max_length, self.token_budget = max_length, token_budget
        self.model_labels = model_labels
        self.probe: Probe | None = None
        self.kept: list[tuple[float, Measured]] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Tokenise the rows; read the epochs before, where a training is resumed."""
        self.kept = self._before(float(state.epoch or 0.0)) if state.global_step else []
        if not state.is_world_process_zero:
            return
        task, answers = self.data.task, None
        if task.kind == "seq2seq":
            answers = closed_answers(self.examples)
        with _padded_for(model):
            prepared = self._prepare(model)
            self.probe = Probe(
                model, prepared, self.examples, tokenizer=self.tokenizer, answers=answers
            )

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Measure and write."""
        if self.probe is None:
            return
        epoch, training = float(state.epoch or 0.0), model.training
        with _padded_for(model, self.probe.prepared.encoded):
            measured = self.probe.measure(f"the model after epoch {epoch:g}")
        model.train(training)
        self.kept.append((epoch, measured))
        self._write(self.probe)

    def _write(self, probe: Probe) -> None:
        TrainingDynamics(
            ids=self.examples.ids,
            rows=np.arange(len(self.examples)),
            epochs=np.array([epoch for epoch, _ in self.kept]),
            confidence=np.stack([measured.confidence for _, measured in self.kept]),
            correct=np.stack([measured.correct for _, measured in self.kept]),
            margin=np.stack([measured.margin for _, measured in self.kept]),
            about=probe.about,
        ).write(self.path)

    def _before(self, epoch: float) -> list[tuple[float, Measured]]:
        """The epochs up to `epoch` in the record that is there."""
        if not self.path.is_file():
            return []
        there = read_dynamics(self.path)
        there.check_task(self.examples, str(self.path))
        parts = zip(there.epochs, there.confidence, there.correct, there.margin, strict=True)
        return [(float(e), Measured(p, c, m)) for e, p, c, m in parts if e <= epoch + 1e-9]

    def _prepare(self, model: Any) -> PreparedData:
        examples, name = self.examples, self.data.name
        encoded = tokenise(
            name, self.data.task, examples, model, self.tokenizer, max_length=self.max_length
        )
        prepared = PreparedData.of(
            name,
            self._objective(model),
            encoded,
            examples.ids,
            token_budget=self.token_budget,
            device=model.device,
        )
        check_padding(model, prepared, "the model")
        return prepared

    def _objective(self, model: Any) -> Objective:
        names = getattr(model.config, "id2label", None) or {}
        labels = tuple(str(names[key]) for key in sorted(names))
        try:
            return Objective.of(self.data.task, labels, given=self.model_labels)
        except LabelError as error:
            raise LabelError(
                f"the model and {self.data.name}: {error.what}",
                remedy="give model_labels, the labels in the order of the model's outputs: often "
                "model_labels=task.label_names",
            ) from None


@contextmanager
def _padded_for(model: Any, encoded: Encoded | None = None) -> Iterator[None]:
    """What is written into the model's config about padding inside is undone: it is not ours.

    With `encoded`, the config names inside the token that these rows are padded with.
    """
    configs = [model.config]
    text = model.config.get_text_config()
    if text is not model.config:
        configs.append(text)
    before = [getattr(config, "pad_token_id", None) for config in configs]
    try:
        if encoded is not None:
            for config in configs:
                config.pad_token_id = encoded.pad_id
        yield
    finally:
        for config, token in zip(configs, before, strict=True):
            config.pad_token_id = token
