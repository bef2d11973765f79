"""`compare_dropout`: arms x tasks x shares of the training rows x seeds, paired by seed.

An arm says how dropout acts: by a schedule from Fisher scores (or one of its controls), as one
number, as Gaussian noise. For one seed all arms start from the same first weights, see the same
rows in the same order, and are evaluated on the same examples; so arms are compared by their
differences from a reference arm, seed by seed (see `studies.paired`), with p values corrected
(Holm) over the arms. Every run is a run of `train`: it is kept, resumed and reused like one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from landform.config import nearest
from landform.curvature.fisher import Fisher, load_fisher
from landform.curvature.fisher_fit import FisherConfig, fisher
from landform.errors import ConfigError, CurvatureError, LandformError
from landform.evaluation.evaluate import metric_names
from landform.results import Result
from landform.store.artifacts import ArtifactStore, environment
from landform.store.plan import Forecast, ForecastRow
from landform.store.study import open_store, publish, slug
from landform.studies.comparison_options import ARMS, ArmConfig, ComparisonConfig
from landform.studies.comparison_tables import (
    difference_table,
    overall_table,
    reading_of,
    summary_table,
)
from landform.tasks.metrics import get_metric
from landform.tasks.task import Task
from landform.training.finetune import Training, TrainStudy, train_all
from landform.training.models import starting_model
from landform.training.options import TrainConfig
from landform.training.schedules import (
    DropoutSchedule,
    dropout_schedule,
    read_schedule,
)
from landform.training.seeds import Seeds, isolated_randomness
from landform.weights.checkpoint import Checkpoint, quiet_transformers, resolve

__all__ = [
    "ARMS",
    "ArmConfig",
    "ComparisonConfig",
    "ComparisonStudy",
    "DropoutComparison",
    "FisherFit",
    "compare_dropout",
]

MERGED = 20.0
"""Per cent of the merged rows that are the test set, as in the code of Sharma et al. 2024."""

# --- the result ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DropoutComparison(Result):
    """What came of every arm, and how sure it is that arms differ.

    Where it says headline, a metric is the one that the task's arms are ranked by.
    """

    model: str
    reference: str
    """the arm that the others are compared with"""
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: pd.DataFrame
    """one row per task and metric: task, metric, headline, higher_is_better, split, test
    (official, or merged), test_rows"""
    runs: pd.DataFrame
    """one row per run and metric: task, fraction (percent of the rows), arm, seed, metric, value,
    dropout (mean probability over the sites of the body), rows, steps, seconds, path, reused"""
    summary: pd.DataFrame
    """one row per task, fraction, metric and arm: headline, dropout, n (seeds), mean, sd, low, high
    (t interval over seeds), rank (1: best mean; ties share)"""
    differences: pd.DataFrame
    """every other arm minus the reference, paired by seed, per task, fraction and metric: headline,
    arm, n, difference, sd, low, high, p_t (paired t), p_flip (exact sign flips), p_t_holm,
    p_flip_holm (corrected over the arms of the task, fraction and metric), detectable (see
    `studies.paired`, at the level that the correction begins with)"""
    overall: pd.DataFrame
    """one row per arm, over all tasks and fractions, by headline metrics: arm, dropout, rank (mean
    of the ranks), n (pairs of a task and a seed, each the mean over fractions), gain (mean
    difference from the reference, positive: better), sd, low, high, p_t, p_flip, p_t_holm,
    p_flip_holm, detectable; the reference itself has NaN there"""
    schedules: pd.DataFrame
    """one row per arm and site, where an arm has a schedule: arm, site, p"""
    fisher: str | None
    """what the scores are the Fisher information of"""
    level: float
    power: float
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        return reading_of(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values; schedules stay a table."""
        return {
            "model": self.model,
            "reference": self.reference,
            "arms": list(self.arms),
            "seeds": list(self.seeds),
            "fisher": self.fisher,
            "level": self.level,
            "power": self.power,
            "reading": self.reading,
            **{
                name: getattr(self, name).to_dict("records")
                for name in ("metrics", "summary", "differences", "overall", "runs")
            },
            "provenance": self.provenance,
        }


# --- the study -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FisherFit:
    """A Fisher diagonal that is computed for the comparison: of the starting model, on a task."""

    task: Task
    split: str = "train"
    options: Mapping[str, Any] = field(default_factory=dict)
    """those of `fisher`: rows, estimator, reduction, ..."""


Source = Fisher | FisherFit | str | os.PathLike[str] | None


def compare_dropout(
    model: str | os.PathLike[str] | Checkpoint,
    tasks: Task | Sequence[Task],
    *,
    out: str | os.PathLike[str],
    fisher: Source = None,
    split: str = "train",
    eval_split: str = "validation",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> DropoutComparison:
    """Fine-tune `model` under every arm, on every task and share of its rows, with every seed.

    Runs go to OUT/TASK/PERCENT/ARM/seed0, schedules to OUT/schedules/ARM.json. `fisher`: a Fisher
    diagonal of `model`, its file, or a `FisherFit` to compute; arms without a schedule need none.
    With a `store` the result is kept there under the name `keep_as`. Options are the fields of
    `ComparisonConfig`: arms, reference, fractions, seeds, test, metric, level, power, and those of
    `TrainConfig`.
    """
    study = ComparisonStudy.of(
        model, tasks, out=out, fisher=fisher, split=split, eval_split=eval_split, **options
    )
    return study.run(None if store is None else open_store(store), progress=progress)


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    task: int
    """position of the task"""
    fraction: float
    arm: str
    seed: int


@dataclass(frozen=True)
class ComparisonStudy:
    """The plan of a `compare_dropout`, before anything is trained."""

    checkpoint: Checkpoint
    tasks: tuple[Task, ...]
    out: Path
    source: Source
    split: str
    eval_split: str
    config: ComparisonConfig
    _latest: dict[str, Any] = field(default_factory=dict, repr=False)
    """the rows, and the merged task, that were asked for last"""

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str] | Checkpoint,
        tasks: Task | Sequence[Task],
        *,
        out: str | os.PathLike[str],
        fisher: Source = None,
        split: str = "train",
        eval_split: str = "validation",
        **options: Any,
    ) -> ComparisonStudy:
        """Resolve model, tasks and options; raises for anything that cannot be compared."""
        config = ComparisonConfig.parse(options, where="comparison")
        several = (tasks,) if isinstance(tasks, Task) else tuple(tasks)
        study = cls(
            resolve(model), several, Path(out).expanduser(), fisher, split, eval_split, config
        )
        study._check()
        return study

    def _check(self) -> None:
        names = [task.name for task in self.tasks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or not names:
            raise ConfigError(
                f"the task {twice} occurs twice" if names else "a comparison needs a task",
                remedy="give every task once (option name renames one)",
            )
        wanting = [name for name, arm in self.config.arms.items() if arm.needs_fisher]
        if wanting and self.source is None:
            raise ConfigError(
                f"the arm {wanting[0]} is a schedule from Fisher scores, and there is no fisher",
                remedy="give fisher: a file of landform fisher, or in a study file {task: NAME, "
                "rows: 256} to compute it; or leave such arms out",
            )
        if not wanting and self.source is not None:
            raise ConfigError(
                f"fisher has no effect: none of the arms {', '.join(self.config.arms)} is a "
                "schedule from Fisher scores",
                remedy="leave it out, or add such an arm (guided)",
            )
        if isinstance(self.source, FisherFit):
            FisherConfig.parse(self.source.options, where="fisher")
            self.source.task.resolve(self.source.split)
        for name, arm in self.config.arms.items():
            TrainConfig.parse({"dropout": arm.dropout}, where=f"arm {name}")
        for task in range(len(self.tasks)):
            self.headline(task)
            for fraction in self.config.fractions:
                self._rows_of(task, fraction, self.config.seeds[0])

    # --- what is trained -----------------------------------------------------------------------

    def cells(self) -> Iterator[Cell]:
        """All runs; arms vary fastest, so that a study that is stopped has whole pairs."""
        for task in range(len(self.tasks)):
            for fraction in self.config.fractions:
                for seed in self.config.seeds:
                    for arm in self.config.arms:
                        yield Cell(task, fraction, arm, seed)

    def place(self, cell: Cell) -> Path:
        """The directory that the run lies in."""
        task = slug(self.tasks[cell.task].name)
        return self.out / task / f"{cell.fraction:g}" / slug(cell.arm)

    def training(self, cell: Cell, dropout: Mapping[str, Any]) -> TrainStudy:
        """The run of a cell, with the options of its arm."""
        rows = self._rows_of(cell.task, cell.fraction, cell.seed)
        title = f"{self.tasks[cell.task].name} {cell.fraction:g} % {cell.arm} "
        return rows.beside(self.place(cell), title=title, **dropout)

    def trainings(self, schedules: Mapping[str, Mapping[str, float]]) -> dict[Cell, TrainStudy]:
        """The runs of all cells, without their rows: those of one seed are read at a time."""
        cells = list(self.cells())
        found: dict[Cell, TrainStudy] = {}
        unread: dict[tuple[int, int], Task] = {}
        for cell in sorted(cells, key=lambda cell: (cell.task, cell.seed)):
            study = self.training(cell, self.dropout(cell.arm, schedules))
            task = study.work.task
            if self.is_merged(self.tasks[cell.task]):
                # A copy of a task has read nothing.
                task = unread.setdefault((cell.task, cell.seed), copy(task))
            found[cell] = study.without_rows(task)
        self._latest.clear()
        return {cell: found[cell] for cell in cells}

    def _rows_of(self, task: int, fraction: float, seed: int) -> TrainStudy:
        """What the runs of all arms share: the rows, the seed, the data to evaluate on."""
        key = (task, fraction, seed)
        if self._latest.get("key") != key:
            chosen = self.task_of(task, seed)
            whole = fraction == 100
            options = {**self.config.training(), "seeds": (seed,), "subset_seed": seed}
            if whole:
                options.pop("stratified", None)
            self._latest.update(key=None, rows=None)
            rows = TrainStudy.of(
                self.checkpoint,
                chosen,
                out=self.out,
                split=self.split,
                eval_split=self.eval_split,
                also=self._also(chosen),
                percent=None if whole else fraction,
                **options,
            )
            self._latest.update(key=key, rows=rows)
        found: TrainStudy = self._latest["rows"]
        return found

    def task_of(self, position: int, seed: int) -> Task:
        """The task as one seed sees it: under test merged every seed has splits of its own."""
        task = self.tasks[position]
        if not self.is_merged(task):
            return task
        if self._latest.get("merged") != (position, seed):
            config = task.config.replace(resplit=MERGED, resplit_seed=seed)
            self._latest["task"] = Task.from_config(config)
            self._latest["merged"] = (position, seed)
        made: Task = self._latest["task"]
        return made

    def is_merged(self, task: Task) -> bool:
        """Whether its splits are cut anew: not those of a task with two validation splits."""
        return self.config.test == "merged" and not self._also(task)

    def _also(self, task: Task) -> tuple[str, ...]:
        """The mismatched half of MNLI's validation data, beside the matched one."""
        main = task.resolve(self.eval_split)
        other = main.replace("_matched", "_mismatched")
        return (other,) if other != main and other in task.splits else ()

    def headline(self, position: int) -> str:
        """The metric that the arms are ranked by on this task."""
        task, wanted = self.tasks[position], self.config.metric
        if wanted is None:
            return "combined" if "combined" in task.metrics else task.metrics[0]
        known = metric_names(task)
        if wanted not in known:
            guess = nearest(wanted, known)
            raise ConfigError(
                f"option metric: {wanted!r} is no metric of {task.name}",
                remedy=(f"did you mean {guess!r}? " if guess else "")
                + f"it has: {', '.join(known)}",
            )
        return wanted

    # --- dropout -------------------------------------------------------------------------------

    def scores(self, store: ArtifactStore | None, progress: bool) -> Fisher | None:
        """The Fisher diagonal, where an arm needs it; raises where it is another model's."""
        if not any(arm.needs_fisher for arm in self.config.arms.values()):
            return None
        if isinstance(self.source, FisherFit):
            fit = self.source
            return fisher(
                self.checkpoint,
                fit.task,
                split=fit.split,
                store=store,
                progress=progress,
                **fit.options,
            )
        assert self.source is not None  # checked when the study was made
        found = load_fisher(self.source)
        here = (None, self.checkpoint.fingerprint)
        if found.weights not in here and not self.config.fisher_elsewhere:
            raise CurvatureError(
                f"the Fisher is of {found.summary.checkpoint}, whose weights are not those of "
                f"{self.checkpoint.spec}",
                remedy=f"compute it for this model (landform fisher {self.checkpoint.spec} ...), "
                "or say that it is meant: fisher_elsewhere",
            )
        return found

    def schedules(self, scores: Fisher | None) -> dict[str, DropoutSchedule]:
        """The schedules of the arms that are made from Fisher scores."""
        if scores is None:
            return {}
        arms = self.config.arms.items()
        return {name: arm.schedule(scores) for name, arm in arms if arm.needs_fisher}

    def dropout(self, name: str, schedules: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """The options of `train` that an arm comes to."""
        arm = self.config.arms[name]
        options: dict[str, Any] = {"dropout": schedules.get(name, arm.dropout)}
        if arm.noise != "bernoulli":
            options |= {"dropout_noise": arm.noise, "dropout_compat": arm.compat}
        if arm.insert or self.config.insert_dropout:
            options["insert_dropout"] = True
        return options

    def schedule_file(self, arm: str) -> Path:
        """Where the schedule of an arm is kept."""
        return self.out / "schedules" / f"{slug(arm)}.json"

    # --- doing it ------------------------------------------------------------------------------

    def forecast(self, store: ArtifactStore | None = None) -> Forecast:
        """What remains to be trained, in optimizer steps; the time is that of the runs of the same
        rows that are done, where there are any."""
        kept = {
            name: read_schedule(self.schedule_file(name))
            for name, arm in self.config.arms.items()
            if arm.needs_fisher and self.schedule_file(name).exists()
        }
        rows: list[ForecastRow] = []
        seconds, known = 0.0, True
        for position, task in enumerate(self.tasks):
            cells = [cell for cell in self.cells() if cell.task == position]
            done, steps, spent, left = 0, 0.0, 0.0, 0.0
            for cell in cells:
                cost, taken = self._state(cell, kept)
                if taken is None:
                    left += cost
                else:
                    done, steps, spent = done + 1, steps + cost, spent + taken
            rows.append(ForecastRow(f"train on {task.name}", len(cells), done, left))
            known = known and (not left or steps > 0)
            seconds += left * spent / steps if steps else 0.0
        return Forecast(tuple(rows), seconds if known else None, None, self.config.workers, "steps")

    def _state(
        self, cell: Cell, schedules: Mapping[str, Mapping[str, float]]
    ) -> tuple[float, float | None]:
        """The steps of a cell, and the seconds that it took where it is done."""
        known = cell.arm in schedules or not self.config.arms[cell.arm].needs_fisher
        if not known:
            return float(self._rows_of(cell.task, cell.fraction, cell.seed).work.steps), None
        study = self.training(cell, self.dropout(cell.arm, schedules))
        (job,) = study.plan.jobs
        if not study.work.holds(job):
            return job.cost, None
        record = study.work.place(job).record()
        return job.cost, float(record["summary"]["seconds"]) if record else None

    def run(
        self, store: ArtifactStore | None = None, *, progress: bool = False
    ) -> DropoutComparison:
        """Train what is missing, and compare."""
        scores = self.scores(store, progress)
        schedules = self.schedules(scores)
        values = {name: schedule.probabilities for name, schedule in schedules.items()}
        runs = self.trainings(values)
        cells, studies = list(runs), list(runs.values())
        given = {cell.arm: study.work.config.dropout for cell, study in runs.items()}
        means = {arm: _mean_dropout(dropout) for arm, dropout in given.items()}
        if any(not _is_done(study) for study in studies):
            self._try_arms(values)
        for name, schedule in schedules.items():
            schedule.save(self.schedule_file(name))
        trainings = train_all(studies, progress=progress)
        result = self._assemble(cells, trainings, schedules, scores, means)
        if store is not None:
            publish(store, self.config.keep_as, result)
        return result

    def _try_arms(self, schedules: Mapping[str, Mapping[str, float]]) -> None:
        """Make the starting model of every arm: one whose dropout does not fit is found before the
        first one is trained."""
        fraction, seed = self.config.fractions[0], self.config.seeds[0]
        with isolated_randomness(), quiet_transformers():
            for name in self.config.arms:
                cell = Cell(0, fraction, name, seed)
                work = self.training(cell, self.dropout(name, schedules)).work
                seeds = Seeds.of(seed, work.config)
                try:
                    starting_model(work.checkpoint, work.task, work.labels, work.config, seeds)
                except LandformError as error:
                    LandformError.__init__(error, f"arm {name}: {error.what}", remedy=error.remedy)
                    raise

    def _assemble(
        self,
        cells: Sequence[Cell],
        trainings: Sequence[Training],
        schedules: Mapping[str, DropoutSchedule],
        scores: Fisher | None,
        means: Mapping[str, float],
    ) -> DropoutComparison:
        config = self.config
        metrics = self._metrics()
        rows = [
            {**row, "dropout": means[cell.arm]}
            for cell, training in zip(cells, trainings, strict=True)
            for row in self._values(cell, training)
        ]
        runs = pd.DataFrame(rows)
        summary = summary_table(runs, metrics, list(config.arms), config.level)
        alike = {"level": config.level, "power": config.power}
        sites = [
            pd.DataFrame({"arm": name, "site": s.table.site, "p": s.table.p})
            for name, s in schedules.items()
        ]
        return DropoutComparison(
            model=self.checkpoint.spec,
            reference=config.against,
            arms=tuple(config.arms),
            seeds=config.seeds,
            metrics=metrics,
            runs=runs,
            summary=summary,
            differences=difference_table(runs, metrics, config.against, **alike),
            overall=overall_table(runs, metrics, summary, config.against, **alike),
            schedules=pd.concat(sites, ignore_index=True)
            if sites
            else pd.DataFrame(columns=["arm", "site", "p"]),
            fisher=None if scores is None else _about(scores),
            level=config.level,
            power=config.power,
            provenance={
                "weights": self.checkpoint.fingerprint,
                "fisher": None if scores is None else scores.summary.provenance,
                "config": config.model_dump(mode="json"),
                "environment": environment(),
            },
        )

    def _metrics(self) -> pd.DataFrame:
        rows = []
        for position, task in enumerate(self.tasks):
            seen = self.task_of(position, self.config.seeds[0])
            main, headline = seen.resolve(self.eval_split), self.headline(position)
            names = dict.fromkeys((headline, *task.metrics))
            for end, split in (("", main), *(("_mm", split) for split in self._also(task))):
                for name in names:
                    rows.append(
                        {
                            "task": task.name,
                            "metric": name + end,
                            "headline": name == headline and not end,
                            "higher_is_better": get_metric(name).higher_is_better,
                            "split": split,
                            "test": "merged" if self.is_merged(task) else "official",
                            "test_rows": len(seen.examples(split)),
                        }
                    )
        return pd.DataFrame(rows)

    def _values(self, cell: Cell, training: Training) -> Iterator[dict[str, Any]]:
        """The rows of the table that one run gives."""
        task = self.tasks[cell.task]
        (run,) = training.runs.to_dict("records")
        ends = {self.eval_split: "", **dict.fromkeys(self._also(task), "_mm")}
        names = dict.fromkeys((self.headline(cell.task), *task.metrics))
        for split, end in ends.items():
            for name in names:
                yield {
                    "task": task.name,
                    "fraction": cell.fraction,
                    "arm": cell.arm,
                    "seed": cell.seed,
                    "metric": name + end,
                    "value": float(run[f"{split}/{name}"]),
                    **{key: run[key] for key in ("rows", "steps", "seconds", "path", "reused")},
                }


def _is_done(study: TrainStudy) -> bool:
    return all(study.work.holds(job) for job in study.plan.jobs)


def _mean_dropout(dropout: Any) -> float:
    """Mean probability over the sites that a schedule names; that of an arm of one number is it."""
    if isinstance(dropout, float):
        return dropout
    values = dropout_schedule(dropout) if isinstance(dropout, str) else dropout
    return sum(values.values()) / len(values)


def _about(scores: Fisher) -> str:
    found = scores.summary
    return (
        f"{found.checkpoint} on {found.examples} examples of {found.task}:{found.split} "
        f"({found.estimator}, {found.reduction})"
    )
