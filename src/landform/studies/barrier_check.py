"""Removing rows and training both ends of a line again: does the barrier change as predicted?

Removals: the rows that are said to raise the ridge most (top), those that are said to lower it most
(bottom), as many random rows with the labels of the top ones (random 1, 2, ...), and none. For each
of several pairs of seeds both ends are trained anew on what is left, with the options of their own
records, and the barrier is measured at the same position t. Changes are against the same pair with
no row removed; the comparison that counts is with the random rows of the same pair. Leaving out
rows changes the order of all others, so a removal moves a model as another seed would, however few
rows it takes: one pair says nothing, and intervals are over pairs (Student's t).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from landform.config import Config
from landform.errors import CheckpointError, ConfigError
from landform.evaluation.points import Data
from landform.geometry.line import InterpolateConfig, line_work, walk_line
from landform.store.artifacts import ArtifactStore, Store
from landform.store.plan import Forecast, ForecastRow
from landform.store.progress import track
from landform.studies.paired import t_interval
from landform.studies.scores import fine_tune
from landform.tasks.rows import ROW_FILE, read_row_file
from landform.tasks.task import Examples
from landform.training.loop import count_steps
from landform.training.options import ROW_OPTIONS, WATCH_OPTIONS, TrainConfig
from landform.training.runs import RunDirectory
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = ["BarrierCheck", "BarrierCheckConfig", "summarise", "trained_examples", "verdict"]

OTHER_SEEDS = 1000
"""Distance between the seeds of one pair and the next."""


class BarrierCheckConfig(Config):
    """How a prediction about a barrier is checked."""

    retrain: bool = False
    """Remove rows and train both ends again, to see whether the barrier changes as predicted."""
    remove: int | None = Field(None, ge=1)
    """Rows of each removal (default: a tenth of those that are scored)."""
    pairs: int = Field(4, ge=2)
    """Pairs of seeds that are trained: those of the two models, and further ones."""
    random: int = Field(2, ge=1)
    """Random removals of each pair."""
    model: str | None = None
    """The checkpoint that both were trained from (default: what their records name)."""

    @model_validator(mode="after")
    def _of_retraining(self) -> Self:
        self.check_read(self.retrain, ["remove", "pairs", "random", "model"], "without retrain")
        return self


# --- what a run says of itself -------------------------------------------------------------------


def trained_examples(checkpoint: Checkpoint, train: Data) -> Examples:
    """The rows of the split that a model was trained on: those its run lists, else all."""
    examples = train.examples(None)
    folder = checkpoint.path
    # A step of a run (RUN@STEP, RUN@best) lies in its run, where the list is.
    run = folder.parent if folder.name.startswith("checkpoint-") else folder
    path = run / ROW_FILE
    if not path.is_file():
        return examples
    known = read_row_file(
        path,
        examples.ids,
        where=f"{checkpoint.spec} was trained on the rows of",
        missing=f"no row of {train.name}",
        remedy="name the task and the split that it was trained on",
    )
    return examples.take(known)


@dataclass(frozen=True)
class _End:
    """One end of the line, and how it was trained."""

    checkpoint: Checkpoint
    base: Checkpoint
    config: TrainConfig
    examples: Examples
    seed: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, train: Data, model: str | None) -> _End:
        """From the record of a finished run; `ConfigError` for anything else."""
        record = RunDirectory(checkpoint.path).record()
        if record is None:
            raise ConfigError(
                f"{checkpoint.spec} has no record of how it was trained (landform.json), so it "
                "cannot be trained again",
                remedy="name runs of `landform train`, not steps of them, or leave retrain out",
            )
        examples = trained_examples(checkpoint, train)
        if record["identity"]["train"] != examples.fingerprint:
            raise ConfigError(
                f"{checkpoint.spec} was trained on other rows than those of {train.name}",
                remedy="name the task and the split that it was trained on",
            )
        if record["config"].get("early_stop") is not None:
            raise ConfigError(
                f"{checkpoint.spec} was trained with early_stop, which ends a training by its "
                "evaluations: trained again on other rows it is not evaluated",
                remedy="compare runs of a fixed number of steps, or leave retrain out",
            )
        base = cls._base(checkpoint, record, model)
        return cls(
            checkpoint, base, _options(record["config"]), examples, record["summary"]["seed"]
        )

    @staticmethod
    def _base(checkpoint: Checkpoint, record: Mapping[str, Any], model: str | None) -> Checkpoint:
        try:
            base = resolve(model or record["model"])
        except CheckpointError as error:
            raise ConfigError(
                f"{checkpoint.spec} was trained from {record['model']}, which is not there: "
                f"{error.what}",
                remedy="name that checkpoint: model=",
            ) from None
        if base.fingerprint != record["identity"]["weights"]:
            raise ConfigError(
                f"{checkpoint.spec} was not trained from {base.spec}: the weights are others",
                remedy="name the checkpoint that it was trained from: model=",
            )
        return base

    def seeds(self, pair: int) -> int:
        """The seed of a pair; that of pair 0 is its own."""
        return self.seed + OTHER_SEEDS * pair


def _options(config: Mapping[str, Any]) -> TrainConfig:
    """The options of a run, without those that say which rows, where, and what is watched."""
    elsewhere = {"seeds", "prefix", "overwrite", "engine", "workers", "max_new_tokens"}
    left_out = ROW_OPTIONS | WATCH_OPTIONS | elsewhere
    known = {name: config[name] for name in TrainConfig.model_fields if name in config}
    options = {name: value for name, value in known.items() if name not in left_out}
    return TrainConfig.parse_kept(options, where="retrain")


# --- the removals --------------------------------------------------------------------------------


@dataclass(frozen=True)
class BarrierCheck:
    """The plan of the removals and retrainings."""

    a: Checkpoint
    b: Checkpoint
    train: Data
    data: Data
    line: InterpolateConfig
    config: Any
    """`BarrierCheckConfig` with the options of the study: rows, seed, level"""

    def prepare(self) -> None:
        """Raise for what cannot be trained again."""
        scored = len(self.train.examples(self.config.rows))
        if self.removed * 2 > scored:
            raise ConfigError(
                f"option remove: {self.removed} rows at the top and as many at the bottom are more "
                f"than the {scored} rows that are scored",
                remedy=f"use remove <= {scored // 2}",
            )
        for end in self.ends:
            if len(end.examples) <= self.removed:
                raise ConfigError(
                    f"option remove: {self.removed} rows cannot be removed from the "
                    f"{len(end.examples)} that {end.checkpoint.spec} was trained on"
                )
            if None not in (end.config.head_seed, end.config.data_seed):
                raise ConfigError(
                    f"{end.checkpoint.spec} was trained with fixed head_seed and data_seed: its "
                    "pairs of seeds would all be the same",
                    remedy="leave retrain out, or compare runs of free seeds",
                )

    @property
    def removed(self) -> int:
        """Rows of each removal."""
        if self.config.remove is not None:
            return int(self.config.remove)
        return max(1, len(self.train.examples(self.config.rows)) // 10)

    @cached_property
    def ends(self) -> tuple[_End, _End]:
        """Both models and how they were trained."""
        a, b = (_End.of(model, self.train, self.config.model) for model in (self.a, self.b))
        return a, b

    def forecast(self) -> Forecast:
        """Steps of training. Which models a store holds is known with the rows only."""
        runs = self.config.pairs * (3 + self.config.random)
        steps = 0.0
        for end in self.ends:
            left = len(end.examples) - self.removed
            steps += count_steps(left, end.config) * runs
        return Forecast((ForecastRow("retraining (at most)", 2 * runs, 0, steps),), unit="steps")

    def run(
        self, table: pd.DataFrame, t: float, store: ArtifactStore, progress: bool
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(every retrained pair, what the removals did): see `BarrierInfluence`."""
        removals = self._removals(table)
        changes = dict(zip(table["text_id"], table["change"], strict=True))
        total = self.config.pairs * len(removals)
        rows = []
        with _models(store) as place, track(total, "retraining", "pairs", enabled=progress) as bar:
            for pair in range(self.config.pairs):
                for name, ids in removals.items():
                    ends = [self._train(end, pair, ids, place) for end in self.ends]
                    predicted = float(sum(changes[i] for i in ids))
                    row: dict[str, Any] = {"pair": pair, "seed_a": self.ends[0].seeds(pair)}
                    row |= {"seed_b": self.ends[1].seeds(pair), "removal": name}
                    row |= {"removed": len(ids), "predicted": predicted}
                    rows.append({**row, **self._measure(ends, t, store)})
                    bar.advance(1)
        check = pd.DataFrame(rows)
        return check, summarise(check, self.config.level)

    def _removals(self, table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
        """Text ids by the name of the removal; `table` has the most lowering rows first."""
        size = self.removed
        removals: dict[str, tuple[str, ...]] = {
            "none": (),
            "top": tuple(table["text_id"].head(size)),
            "bottom": tuple(table["text_id"].tail(size)),
        }
        generator = np.random.default_rng(self.config.seed)
        classes = self.train.task.kind == "classification"
        labels = table["label"].to_numpy() if classes else np.zeros(len(table))
        for draw in range(1, self.config.random + 1):
            chosen: list[str] = []
            for label in dict.fromkeys(labels[:size].tolist()):
                same = table["text_id"][labels == label].to_numpy()
                count = int((labels[:size] == label).sum())
                chosen += generator.choice(np.sort(same), count, replace=False).tolist()
            removals[f"random {draw}"] = tuple(sorted(chosen))
        return removals

    def _train(self, end: _End, pair: int, removed: Sequence[str], place: Path) -> Checkpoint:
        """One end, without the rows; with nothing removed and its own seed it is there already."""
        if pair == 0 and not removed:
            return end.checkpoint
        gone = set(removed)
        kept = [row for row, text_id in enumerate(end.examples.ids) if text_id not in gone]
        return fine_tune(
            end.base,
            self.train.task,
            self.train.split,
            end.examples.take(kept),
            end.config,
            end.seeds(pair),
            place,
        )

    def _measure(
        self, ends: Sequence[Checkpoint], t: float, store: ArtifactStore
    ) -> dict[str, float]:
        """The barrier of two models at t, and that of the whole line."""
        first, second = ends
        work = line_work(first, second, self.data.task, self.data.split, (), self.line)
        walk = walk_line(work, self.line, store)
        above, at = walk.above_chord(), walk.ts.index(t)
        curve = walk.mean_losses()
        return {
            "barrier": float(above[at]),
            "height": float(above.max()),
            "loss_a": float(curve[0]),
            "loss_b": float(curve[-1]),
            "loss": float(curve[at]),
        }


@contextmanager
def _models(store: ArtifactStore) -> Iterator[Path]:
    """Where retrained models are kept: in the study, or for as long as the check lasts."""
    if isinstance(store, Store):
        yield store.path / "models"
        return
    with tempfile.TemporaryDirectory(prefix="landform-") as scratch:
        yield Path(scratch)


# --- what came of it -----------------------------------------------------------------------------


def summarise(check: pd.DataFrame, level: float) -> pd.DataFrame:
    """The change of the barrier of every removal, over pairs, and against random removals.

    Random draws of a pair are averaged: pairs are what varies. Intervals are Student's t over
    pairs, mean +- t s / sqrt(n).
    """
    kinds = check.assign(kind=check["removal"].str.replace(r" \d+$", "", regex=True))
    by_pair = kinds.pivot_table(index="pair", columns="kind", values="barrier", aggfunc="mean")
    predicted = kinds.groupby("kind")["predicted"].mean()
    removed = kinds.groupby("kind")["removed"].max()
    rows = []

    def add(name: str, values: pd.Series, size: int, expected: float) -> None:
        mean, low, high = t_interval(values.to_numpy(dtype=np.float64), level)
        row = {"removal": name, "removed": size, "predicted": expected, "change": mean}
        rows.append({**row, "low": low, "high": high, "pairs": len(values)})

    for name in ("top", "bottom", "random"):
        change = by_pair[name] - by_pair["none"]
        add(name, change, int(removed[name]), float(predicted[name]))
    for name in ("top", "bottom"):
        difference = by_pair[name] - by_pair["random"]
        expected = float(predicted[name] - predicted["random"])
        add(f"{name} - random", difference, int(removed[name]), expected)
    return pd.DataFrame(rows)


def verdict(summary: pd.DataFrame, unit: str) -> str:
    """Whether the prediction held, in words."""
    found = {row["removal"]: row for row in summary.to_dict("records")}
    top, bottom = found["top - random"], found["bottom - random"]
    parts = [
        f"without the {row['removed']} rows said to {what} it most, it changed by "
        f"{row['change']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}] {unit} against random rows "
        f"(predicted {row['predicted']:+.3g}): {_holds(row)}"
        for what, row in (("raise", top), ("lower", bottom))
    ]
    return f"trained again ({top['pairs']} pairs of seeds): " + "; ".join(parts)


def _holds(row: Mapping[Any, Any]) -> str:
    if row["low"] <= 0 <= row["high"] or not np.isfinite(row["low"]):
        return "not confirmed, within the noise of retraining"
    return "confirmed" if row["change"] * row["predicted"] > 0 else "contradicted"
