"""The scores that studies of retraining test: of one model, trained on the rows in question."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from landform.attribution.influence import influence
from landform.curvature.factors import fit_factors
from landform.errors import ConfigError
from landform.evaluation.points import Data
from landform.store.artifacts import ArtifactStore
from landform.store.fingerprint import fingerprint
from landform.tasks.rows import write_row_file
from landform.tasks.task import Examples, Task
from landform.training.finetune import train
from landform.training.options import ROW_OPTIONS, WATCH_OPTIONS, TrainConfig
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = ["ScoreSource", "check_training_options", "fine_tune"]


def check_training_options(config: TrainConfig, where: str) -> None:
    """Raise for training options that choose rows or places, which the study itself does."""
    if config.perturb and config.perturb_seed is None:
        # Each retraining would start from another model, and measure that instead of the rows.
        raise ConfigError(
            f"{where}: option train.perturb adds other noise under every seed",
            remedy="fix train.perturb_seed, or leave train.perturb out",
        )
    own = ROW_OPTIONS | WATCH_OPTIONS | {"overwrite", "engine", "workers", "seeds"}
    own |= {"max_new_tokens"}  # of evaluations, which these trainings have none of
    given = config.options_given(own)
    if given:
        raise ConfigError(
            f"{where}: option train.{given[0]} has no meaning here: the study chooses the rows, "
            "seeds and places of its trainings",
            remedy="leave it out; see the study's own options",
        )


def fine_tune(
    model: Checkpoint,
    task: Task,
    split: str,
    examples: Examples,
    config: TrainConfig,
    seed: int,
    place: Path,
    *,
    progress: bool = False,
) -> Checkpoint:
    """`model` trained on some rows of a split, as `train` does it, in a folder of `place` where it
    is found again."""
    options = config.model_dump(exclude={"seeds"})
    if len(examples) < len(task.examples(split)):
        listed = place / f"rows-{examples.fingerprint[:12]}.txt"
        write_row_file(examples.ids, listed)
        options["row_file"] = listed
    # One folder per model, rows and options: others of the same study stay beside it.
    made_of = (model.fingerprint, examples.fingerprint, config, seed)
    runs = train(
        model,
        task,
        out=place / fingerprint(made_of)[:12],
        split=split,
        eval_split=None,
        progress=progress,
        **{**options, "seeds": (seed,)},
    )
    return resolve(runs.paths[0])


@dataclass(frozen=True)
class ScoreSource:
    """Influence of the first `rows` rows of a split on queries, by any strategy.

    `scored` is the fine-tuned model whose gradients are taken; without one, `model` is fine-tuned
    on those rows with `seed`, as `train` does it, into a folder of `place` that is found again.
    """

    model: Checkpoint
    task: Task
    split: str
    rows: int
    queries: Data
    query_rows: tuple[int, ...]
    train: TrainConfig
    seed: int
    place: Path
    measurement: str = "margin"
    labels: str = "true"
    damping: float | None = 1e-8
    relative_damping: float | None = None
    scored: Checkpoint | None = None
    store: ArtifactStore | None = None
    progress: bool = False

    def __call__(self, strategy: str) -> np.ndarray:
        """(queries, rows) scores; the higher, the more the row helps the query."""
        factors = fit_factors(
            self.checkpoint,
            self.task,
            split=self.split,
            store=self.store,
            progress=self.progress,
            strategy=strategy,
            labels=self.labels,
            **self._reading(),
        )
        scores = influence(
            factors,
            queries=(self.queries.task, self.queries.split),
            query_rows=self.query_rows,
            train=self.split,
            train_rows=self.rows,
            measurement=self.measurement,
            store=self.store,
            progress=self.progress,
            damping=self.damping,
            relative_damping=self.relative_damping,
        )
        return np.asarray(scores.values)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model that is scored; trained when it is first asked for."""
        if self.scored is not None:
            return self.scored
        examples = self.task.examples(self.split, rows=self.rows)
        return fine_tune(
            self.model, self.task, self.split, examples, self.train, self.seed, self.place,
            progress=self.progress,
        )  # fmt: skip

    def _reading(self) -> dict[str, Any]:
        """How the model reads its rows: as it did in training."""
        return {
            "rows": self.rows,
            "max_length": self.train.max_length,
            "device": self.train.device,
        }
