"""Dataset cartography: what the training of a model says about each of its training examples.

After every epoch e the model is asked about every training example i, with dropout off:
p_i^e is the probability of the gold answer, c_i^e whether the model is right. Over E epochs

    confidence    mu_i    = mean_e p_i^e
    variability   sigma_i = sqrt( mean_e (p_i^e - mu_i)^2 )              (divided by E, not E - 1)
    correctness           = mean_e c_i^e
    forgetting            = number of e with c_i^e = 1 and c_i^{e+1} = 0
    turns                 = number of e with c_i^e != c_i^{e+1}
    learned at            = the first e with c_i^e = 1

The first three are the coordinates of a data map (Swayamdipta et al. 2020, arXiv 2009.10795,
section 2), forgetting events those of Toneva et al. 2019 (arXiv 1812.05159, section 3) seen once
an epoch; the turns of Qin et al. 2022 count learning as well. Easy examples lie at a high
confidence, hard ones at a low one, ambiguous ones at a high variability.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from landform.config import Config
from landform.errors import ConfigError, DataError, StoreError
from landform.evaluation.intervals import percentile_interval
from landform.evaluation.points import Data, Evaluator, PreparedData
from landform.results import Result
from landform.store.atomic import read_table, write_table
from landform.store.fingerprint import fingerprint
from landform.tasks.metrics import softmax
from landform.tasks.rows import ROW_FILE
from landform.tasks.task import Examples, Task

if TYPE_CHECKING:
    from landform.weights.checkpoint import Checkpoint

__all__ = [
    "FILE",
    "DataMap",
    "DataMapConfig",
    "Measured",
    "Probe",
    "TrainingDynamics",
    "cartography",
    "closed_answers",
    "data_map",
    "from_table",
    "map_of",
    "read_dynamics",
    "summarise",
]

FILE = "cartography.parquet"
"""The record of a run, in its directory."""
COLUMNS = ("text_id", "row", "epoch", "confidence", "correct", "margin")
MOST_ANSWERS = 64
"""Text-to-text tasks with more distinct answers than this are not a choice between them."""
FORMAT = 1

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


# --- the record ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TrainingDynamics:
    """What a model said of N training examples after each of E epochs."""

    ids: tuple[str, ...]
    """(N,) text ids"""
    rows: npt.NDArray[np.int64]
    """(N,) positions of the examples in the split they are from"""
    epochs: Floats
    """(E,) passes over the data made by then: 1, 2, ...; the last may be a part of one"""
    confidence: Floats
    """(E, N) probability of the gold answer"""
    correct: Flags
    """(E, N) whether the most probable answer is the gold one"""
    margin: Floats
    """(E, N) log odds of the gold answer, in nats; NaN where they are not known"""
    about: dict[str, Any]
    """what the record says of itself: measure, and fingerprint of the texts and labels"""

    def table(self) -> pd.DataFrame:
        """The record as it is kept: text_id, row, epoch, confidence, correct, margin, long."""
        count, size = self.confidence.shape
        frame = pd.DataFrame(
            {
                "text_id": np.tile(np.array(self.ids, dtype=object), count),
                "row": np.tile(self.rows, count),
                "epoch": np.repeat(self.epochs, size),
                "confidence": self.confidence.reshape(-1),
                "correct": self.correct.reshape(-1),
                "margin": self.margin.reshape(-1),
            }
        )
        frame.attrs = {"landform": {"format": FORMAT, **self.about}}
        return frame

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the record, whole or not at all."""
        write_table(path, self.table())

    def check_task(self, examples: Examples, where: str, *, part: bool = False) -> None:
        """Raise `DataError` where these are not the dynamics of `examples`.

        With `part`, of some of their rows. Ids must stand at the recorded positions; where the
        record knows its texts and labels, they must be the same.
        """
        remedy = "name the task, and the split, that the run was trained on"
        if len(self.ids) > len(examples) or (not part and len(self.ids) != len(examples)):
            raise DataError(
                f"{where} holds {len(self.ids)} rows, and the data have {len(examples)}",
                remedy=remedy,
            )
        for row, text_id in zip(self.rows.tolist(), self.ids, strict=True):
            if row >= len(examples) or examples.ids[row] != text_id:
                there = repr(examples.ids[row]) if row < len(examples) else "no row"
                raise DataError(
                    f"{where} is of other data: its row {row} is {text_id!r}, that of the data is "
                    f"{there}",
                    remedy=remedy,
                )
        known = self.about.get("texts")
        if known is not None and known != texts_fingerprint(examples.take(self.rows)):
            raise DataError(
                f"{where} is of other data: the ids are those of the data, but texts or labels "
                "differ",
                remedy=remedy,
            )


def texts_fingerprint(examples: Examples) -> str:
    """Of texts and labels alone: further columns of a file change no dynamics."""
    labels = examples.labels
    plain = labels.tolist() if isinstance(labels, np.ndarray) else labels
    return fingerprint([examples.texts, plain])


def read_dynamics(run: str | os.PathLike[str] | Checkpoint) -> TrainingDynamics:
    """The record of a run: of its directory, or of the file itself.

    Raises `StoreError` where there is none or it is damaged, `DataError` where the file is
    another one or some rows of it are missing.
    """
    path = find_record(run)
    named = f"name a run that was trained with cartography, or its {FILE}"
    try:
        frame = read_table(path)
    except StoreError as error:
        # A file that the user named may be anything: it is not to be deleted.
        raise StoreError(error.what, remedy=named) from None
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise DataError(
            f"{path} is no record of training dynamics: it has no column {missing[0]!r}",
            remedy=named,
        )
    about = dict(frame.attrs.get("landform", {}))
    if about.pop("format", FORMAT) > FORMAT:
        raise StoreError(
            f"{path} was written by a newer landform", remedy="install that version or a newer one"
        )
    return from_table(frame, about, str(path))


def find_record(run: str | os.PathLike[str] | Checkpoint) -> Path:
    """The file of a run's record; `StoreError` where there is none."""
    path = _place(run)
    if path.is_file():
        return path
    if not path.is_dir():
        raise StoreError(
            f"there is no run at {path}", remedy="name the directory of a run: runs/seed0"
        )
    if not (path / FILE).is_file():
        raise StoreError(
            f"{path} has no record of its training dynamics ({FILE})",
            remedy="train with cartography: landform train ... --cartography",
        )
    return path / FILE


def _place(run: str | os.PathLike[str] | Checkpoint) -> Path:
    """The directory or file that is meant."""
    return Path(run if isinstance(run, str | os.PathLike) else run.path).expanduser()


def from_table(frame: pd.DataFrame, about: dict[str, Any], where: str) -> TrainingDynamics:
    """The dynamics in a table of `COLUMNS`, in any order of its rows; `where` is for errors."""
    remedy = "the file was changed or cut short: train the run again"
    try:
        numbers = {name: frame[name].to_numpy(np.float64) for name in COLUMNS[1:]}
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a column holds no numbers: {error}", remedy=remedy) from None
    order = np.lexsort((numbers["row"], numbers["epoch"]))
    epochs, sizes = np.unique(numbers["epoch"], return_counts=True)
    if not len(frame) or not np.isfinite(epochs).all():
        raise DataError(f"{where} holds no epochs", remedy=remedy)
    size = int(sizes[0])
    if (sizes != size).any():
        odd = int(np.flatnonzero(sizes != size)[0])
        raise DataError(
            f"{where}: {size} rows after epoch {epochs[0]:g}, but {sizes[odd]} after epoch "
            f"{epochs[odd]:g}",
            remedy=remedy,
        )
    shape = (len(epochs), size)
    values = {name: column[order].reshape(shape) for name, column in numbers.items()}
    ids = frame["text_id"].astype(str).to_numpy(object)[order].reshape(shape)
    if (ids != ids[0]).any() or (values["row"] != values["row"][0]).any():
        raise DataError(f"{where}: its epochs are of different rows", remedy=remedy)
    _check_values(values["confidence"], values["correct"], where)
    if len(set(ids[0])) < size:
        raise DataError(f"{where}: a text id occurs twice in an epoch", remedy=remedy)
    return TrainingDynamics(
        ids=tuple(ids[0]),
        rows=values["row"][0].astype(np.int64),
        epochs=epochs,
        confidence=values["confidence"],
        correct=values["correct"].astype(bool),
        margin=values["margin"],
        about=about,
    )


def _check_values(confidence: Floats, correct: Floats, where: str) -> None:
    """Probabilities and 0 or 1, or a `DataError` that names the first that is not."""
    for values, fits, what in (
        (confidence, (confidence >= 0) & (confidence <= 1), "a probability"),
        (correct, np.isin(correct, (0, 1)), "right (1) or wrong (0)"),
    ):
        if not fits.all():
            epoch, row = map(int, np.argwhere(~fits)[0])
            raise DataError(
                f"{where}: example {row}, epoch number {epoch + 1}: {values[epoch, row]} is not "
                f"{what}",
                remedy="the record is damaged, or of something else",
            )


# --- measuring, while a model is trained ---------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a model says of N examples at one moment; see `TrainingDynamics`."""

    confidence: Floats
    correct: Flags
    margin: Floats


class Probe:
    """Confidence, correctness and margin of prepared examples, wherever the model stands.

    kind                  confidence                                  correct
    classification        softmax(z)[y]                               argmax_k z_k = y
    token tasks           exp( mean_t log p(y_t) )                    every gold token is the argmax
    closed text-to-text   sum_{a gold} P(a) / sum_a P(a), with        argmax_a P(a) is gold
                          P(a) = prod_t p(a_t | a_<t) (teacher forced)

    A text-to-text task is closed where its split has at most 64 distinct answers, fewer than rows.
    The margin is `Objective.margins`, in the last case log( confidence / (1 - confidence) ).
    Raises `ConfigError` for a regression, where no answer has a probability.
    """

    def __init__(
        self,
        model: Any,
        prepared: PreparedData,
        examples: Examples,
        *,
        tokenizer: Any = None,
        answers: Sequence[str] | None = None,
    ) -> None:
        kind = prepared.objective.kind
        if kind == "regression":
            raise refuse_regression(prepared.name)
        self.prepared, self.examples, self.tokenizer = prepared, examples, tokenizer
        self.answers = tuple(answers) if answers is not None and kind == "seq2seq" else None
        self.evaluator = Evaluator(model, [prepared], margins=True)

    @property
    def about(self) -> dict[str, Any]:
        """What a record made with it says of itself."""
        if self.answers is not None:
            measure = f"probability among {len(self.answers)} answers"
        elif self.prepared.objective.kind == "classification":
            measure = "probability of the gold class"
        else:
            measure = "mean probability of the gold tokens (geometric)"
        return {"measure": measure, "texts": texts_fingerprint(self.examples)}

    def measure(self, where: str) -> Measured:
        """Run the model over the examples; `where` names the moment in an error for a NaN."""
        if self.answers is not None:
            return self._among_answers()
        outputs = self.evaluator.run(where)[0]
        assert outputs.margins is not None
        if outputs.logits is not None:
            gold = np.asarray(self.examples.labels)
            confidence = softmax(outputs.logits)[np.arange(len(gold)), gold]
            correct = outputs.logits.argmax(-1) == gold
        else:
            assert outputs.correct is not None
            confidence = np.exp(-outputs.losses)
            correct = outputs.correct == outputs.tokens
        return Measured(confidence, correct, outputs.margins)

    def _among_answers(self) -> Measured:
        from landform.evaluation.verbalisers import answer_log_likelihoods
        from landform.tasks.answers import references

        assert self.answers is not None
        model = self.evaluator.model
        model.eval()
        scores = answer_log_likelihoods(model, self.prepared, self.answers, self.tokenizer)
        where = {answer: k for k, answer in enumerate(self.answers)}
        gold = np.zeros(scores.shape, dtype=bool)
        for row, accepted in enumerate(references(self.examples)):
            gold[row, [where[answer] for answer in accepted]] = True
        return answer_dynamics(scores, gold)


def answer_dynamics(scores: Floats, gold: Flags) -> Measured:
    """From log P(a), (N, K), and which answers are gold: see `Probe`.

    The margin is NaN where all answers are gold: there is nothing that they could lead.
    """
    right, wrong = (
        np.logaddexp.reduce(np.where(mask, scores, -np.inf), axis=1) for mask in (gold, ~gold)
    )
    confidence = np.exp(right - np.logaddexp(right, wrong))
    correct = gold[np.arange(len(gold)), scores.argmax(1)]
    return Measured(confidence, correct, np.where(gold.all(axis=1), np.nan, right - wrong))


def closed_answers(examples: Examples) -> tuple[str, ...] | None:
    """The distinct answers of a text-to-text split, sorted; None where it is no closed set."""
    from landform.tasks.answers import references

    if examples.labels is None:  # what denoising asks for is drawn
        return None
    answers = sorted({answer for accepted in references(examples) for answer in accepted})
    return tuple(answers) if 2 <= len(answers) <= min(MOST_ANSWERS, len(examples) - 1) else None


def refuse_regression(name: str) -> ConfigError:
    """The error for a task without a gold answer that could have a probability."""
    return ConfigError(
        f"{name} is a regression: no answer has a probability, so there is no data map",
        remedy="leave cartography off for this task",
    )


# --- from epochs to examples ---------------------------------------------------------------------


def summarise(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    margin: npt.ArrayLike | None = None,
    ids: Sequence[str] | None = None,
    *,
    epochs: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """The training dynamics of N examples over E epochs, one row per example.

    `confidence`, `correct` and `margin` are (E, N); `epochs` (E,) counts passes over the data (by
    default 1, 2, ..., E). Columns: text_id (by default the position), confidence (mean),
    variability (standard deviation of the population), correctness (mean), forgetting (number of
    changes from right to wrong), turns (changes of either sort), learned_at (the first epoch with
    a right answer, NaN where there is none), margin (mean of the epochs that have one,
    nats), epochs (E). Raises `DataError` where shapes differ or a value is no probability, or
    neither right nor wrong.
    """
    p, c = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    m = np.full(p.shape, np.nan) if margin is None else np.asarray(margin, dtype=np.float64)
    if p.ndim != 2 or not p.size or p.shape != c.shape or p.shape != m.shape:
        raise DataError(
            f"training dynamics have one shape (epochs, examples); got {p.shape}, {c.shape} and "
            f"{m.shape}",
            remedy="give confidence, correct and margin of the same epochs and examples",
        )
    _check_values(p, c, "training dynamics")
    count, size = p.shape
    when = np.arange(1.0, count + 1) if epochs is None else np.asarray(epochs, dtype=np.float64)
    names = tuple(map(str, range(size))) if ids is None else tuple(ids)
    if when.shape != (count,) or len(names) != size:
        raise DataError(
            f"{len(names)} ids and {when.size} epochs for dynamics of shape {p.shape}",
            remedy="give one id per example and one number per epoch",
        )
    right = c.astype(bool)
    return pd.DataFrame(
        {
            "text_id": list(names),
            "confidence": p.mean(0),
            "variability": p.std(0),
            "correctness": c.mean(0),
            "forgetting": (right[:-1] & ~right[1:]).sum(0),
            "turns": (right[:-1] != right[1:]).sum(0),
            "learned_at": np.where(right.any(0), when[right.argmax(0)], np.nan),
            "margin": pd.DataFrame(m).mean(axis=0).to_numpy(),
            "epochs": np.full(size, count),
        }
    )


def cartography(
    run: str | os.PathLike[str] | Checkpoint, task: Task | None = None, *, split: str = "train"
) -> pd.DataFrame:
    """The training dynamics of a run, one row per training example (see `summarise`).

    `run` is the directory of a run that was trained with cartography (of `Training.paths`, say),
    or its cartography.parquet. With `task`, raises `DataError` where the record is not of that
    split of it. Raises `StoreError` where there is no record or it is damaged.
    """
    dynamics = read_dynamics(run)
    if task is not None:
        _check_data(dynamics, run, task, split)
    return _summary(dynamics)


def _summary(d: TrainingDynamics) -> pd.DataFrame:
    return summarise(d.confidence, d.correct, d.margin, d.ids, epochs=d.epochs)


def _check_data(
    dynamics: TrainingDynamics, run: str | os.PathLike[str] | Checkpoint, task: Task, split: str
) -> Examples:
    path = find_record(run)
    examples = Data(task, split).examples(None)
    # A run on a part of the rows has their list beside its record.
    part = (path.parent / ROW_FILE).is_file()
    dynamics.check_task(examples, str(path), part=part)
    return examples.take(dynamics.rows)


# --- the map as a result -------------------------------------------------------------------------


class DataMapConfig(Config):
    """How sure the numbers of a data map are."""

    replicates: int = Field(1000, ge=20)
    """Bootstrap replicates of shares and means (resampled examples)."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap, and of ties between the rows of a subset."""


REGIONS = {
    "easy": "right after every epoch",
    "ambiguous": "right after some epochs",
    "hard": "right after none",
    "forgotten": "right, then wrong, at least once",
}
"""What the regions are, the first three a partition. Subsets of a chosen size go by rank."""


@dataclass(frozen=True)
class DataMap(Result):
    """The training dynamics of a run: where each of its training examples lies on the data map."""

    run: str
    task: str | None
    split: str | None
    measure: str
    """what confidence is: a probability of the gold class, answer or tokens"""
    table: pd.DataFrame
    """one row per example: the columns of `summarise`, then row (position in the split) and, where
    the task is known, label, text and text_pair"""
    regions: pd.DataFrame
    """region (easy, ambiguous, hard, forgotten), rule, examples, share with low and high, and the
    means of confidence, variability and correctness"""
    by_epoch: pd.DataFrame
    """epoch, confidence (mean) and correct (share) with their low and high, confidence_10 and
    confidence_90 (deciles), learned and forgotten (examples, against the epoch before)"""
    by_label: pd.DataFrame | None
    """label, examples, confidence, variability, correctness, forgotten and hard (shares)"""
    dynamics: pd.DataFrame
    """the record itself: text_id, row, epoch, confidence, correct, margin"""
    level: float
    provenance: dict[str, Any]

    @property
    def forgotten(self) -> pd.DataFrame:
        """The examples that were forgotten at least once, most often forgotten first."""
        rows = self.table[self.table["forgetting"] > 0]
        order = ["forgetting", "confidence"]
        return rows.sort_values(order, ascending=[False, True], kind="stable", ignore_index=True)

    @property
    def reading(self) -> str:
        """One line for a person."""
        parts = {str(row["region"]): row for row in self.regions.to_dict("records")}
        count = len(self.table)
        epochs = len(self.by_epoch)

        def said(region: str) -> str:
            row = parts[region]
            return f"{row['examples']:,} ({100 * row['share']:.3g} %)"

        told = (
            f"{count:,} examples over {epochs} epoch{'' if epochs == 1 else 's'}: {said('easy')} "
            f"right after every epoch, {said('hard')} after none"
        )
        if epochs > 1:
            row = parts["forgotten"]
            told += (
                f", {said('ambiguous')} after some; {row['examples']:,} forgotten at least once "
                f"({100 * row['share']:.3g} % [{100 * row['low']:.3g}, {100 * row['high']:.3g}])"
            )
        means = self.provenance["means"]
        return (
            told
            + "; "
            + ", ".join(
                f"mean {name} {value:.3f} [{low:.3f}, {high:.3f}]"
                for name, (value, low, high) in means.items()
                if epochs > 1 or name == "confidence"
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Regions, epochs and labels; the examples stay a table."""
        return {
            "run": self.run,
            "task": self.task,
            "split": self.split,
            "measure": self.measure,
            "examples": len(self.table),
            "regions": self.regions.to_dict("records"),
            "by_epoch": self.by_epoch.to_dict("records"),
            "by_label": None if self.by_label is None else self.by_label.to_dict("records"),
            "level": self.level,
            "provenance": self.provenance,
        }


def data_map(
    run: str | os.PathLike[str] | Checkpoint,
    task: Task | None = None,
    *,
    split: str = "train",
    **options: Any,
) -> DataMap:
    """The data map of a run, with texts and labels where its `task` is given.

    Options are the fields of `DataMapConfig`. Raises what `cartography` raises.
    """
    config = DataMapConfig.parse(options, where="data_map")
    dynamics = read_dynamics(run)
    examples = None if task is None else _check_data(dynamics, run, task, split)
    return map_of(
        dynamics,
        run=str(_place(run)),
        task=task,
        split=split,
        examples=examples,
        config=config,
    )


def map_of(
    dynamics: TrainingDynamics,
    *,
    run: str,
    task: Task | None = None,
    split: str | None = None,
    examples: Examples | None = None,
    config: DataMapConfig | None = None,
) -> DataMap:
    """The data map of dynamics at hand; `examples` are theirs, in their order."""
    config = config or DataMapConfig()
    table = _summary(dynamics).assign(row=dynamics.rows)
    if task is not None and examples is not None:
        table = pd.concat([table, _texts(task, examples)], axis=1)
    statistics = table[["confidence", "variability", "correctness"]].to_numpy()
    means = _mean_intervals(statistics, config)
    return DataMap(
        run=run,
        task=None if task is None else task.name,
        split=None if task is None or split is None else task.resolve(split),
        measure=str(dynamics.about.get("measure", "probability of the gold answer")),
        table=table,
        regions=_regions(table, config),
        by_epoch=_by_epoch(dynamics, config),
        by_label=_by_label(table) if "label" in table else None,
        dynamics=dynamics.table(),
        level=config.level,
        provenance={
            "texts": dynamics.about.get("texts"),
            "means": dict(zip(("confidence", "variability", "correctness"), means, strict=True)),
            "config": config.model_dump(mode="json"),
        },
    )


def _texts(task: Task, examples: Examples) -> pd.DataFrame:
    """label (classes and answers), text and text_pair of every example."""
    columns: dict[str, Any] = {}
    if task.kind == "classification":
        columns["label"] = [task.label_names[label] for label in examples.labels]
    elif task.kind == "seq2seq" and examples.labels is not None:
        columns["label"] = [
            label if isinstance(label, str) else " | ".join(label) for label in examples.labels
        ]
    if task.kind == "token-classification":
        columns["text"] = [" ".join(words) for words in examples.texts]
    else:
        pieces = zip(("text", "text_pair"), zip(*examples.texts, strict=True), strict=False)
        columns |= {name: list(texts) for name, texts in pieces}
    return pd.DataFrame(columns)


def _region_masks(table: pd.DataFrame) -> dict[str, Flags]:
    right = table["correctness"].to_numpy()
    return {
        "easy": right == 1,
        "ambiguous": (right > 0) & (right < 1),
        "hard": right == 0,
        "forgotten": table["forgetting"].to_numpy() > 0,
    }


def _regions(table: pd.DataFrame, config: DataMapConfig) -> pd.DataFrame:
    masks = _region_masks(table)
    shares = _mean_intervals(np.column_stack(list(masks.values())).astype(np.float64), config)
    rows = []
    for (name, mask), (share, low, high) in zip(masks.items(), shares, strict=True):
        inside = table[mask]
        means = {n: inside[n].mean() for n in ("confidence", "variability", "correctness")}
        count = {"examples": int(mask.sum()), "share": share, "low": low, "high": high}
        rows.append({"region": name, "rule": REGIONS[name], **count, **means})
    return pd.DataFrame(rows)


def _by_epoch(dynamics: TrainingDynamics, config: DataMapConfig) -> pd.DataFrame:
    p, c = dynamics.confidence, dynamics.correct
    confident = _mean_intervals(p.T, config)
    right = _mean_intervals(c.T.astype(np.float64), config)
    tenths = np.quantile(p, [0.1, 0.9], axis=1)
    before = np.vstack([np.zeros_like(c[:1]), c[:-1]])
    rows = [
        {
            "epoch": float(dynamics.epochs[e]),
            "confidence": confident[e][0],
            "confidence_low": confident[e][1],
            "confidence_high": confident[e][2],
            "confidence_10": float(tenths[0, e]),
            "confidence_90": float(tenths[1, e]),
            "correct": right[e][0],
            "correct_low": right[e][1],
            "correct_high": right[e][2],
            "learned": int((c[e] & ~before[e]).sum()),
            "forgotten": int((before[e] & ~c[e]).sum()),
        }
        for e in range(len(p))
    ]
    return pd.DataFrame(rows)


MOST_LABELS = 64


def _by_label(table: pd.DataFrame) -> pd.DataFrame | None:
    """Means per label; None where there are too many for a table (free answers)."""
    if table["label"].nunique() > MOST_LABELS:
        return None
    frame = table.assign(
        forgotten=table["forgetting"] > 0, hard=table["correctness"] == 0, examples=1
    )
    means = ["confidence", "variability", "correctness", "forgotten", "hard"]
    groups = frame.groupby("label", sort=True)
    found = groups[means].mean()
    found.insert(0, "examples", groups["examples"].sum())
    return found.reset_index()


def _mean_intervals(values: Floats, config: DataMapConfig) -> list[tuple[float, float, float]]:
    """(mean, low, high) of every column of (N, Q), by bootstrap over the N examples.

    The counts of the replicates are those of `resample_counts`, made one replicate at a time: a
    hundred thousand examples would need gigabytes of them.
    """
    size = len(values)
    random = np.random.default_rng(config.seed)
    drawn = np.empty((values.shape[1], config.replicates))
    for replicate in range(config.replicates):
        counts = np.bincount(random.integers(0, size, size=size), minlength=size)
        drawn[:, replicate] = counts @ values / size
    low, high = percentile_interval(drawn, config.level)
    ends = zip(values.mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    return [(mean, a, b) for mean, a, b in ends]
