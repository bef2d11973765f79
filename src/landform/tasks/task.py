"""A task: named splits of labelled text, and how a model's answers to it are judged.

`load_task` makes one from a catalogue name, a hub data set, local files or Python values. A task
reads a split when it is first asked for; files, columns and options are checked at once. It can
be pickled, and its `config` describes it for another process or a study file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, field_validator

from landform.config import Config, nearest
from landform.errors import ConfigError, DataError, LabelError
from landform.tasks import catalogue, columns
from landform.tasks.answers import TextForm
from landform.tasks.catalogue import Entry, Layout, Part
from landform.tasks.corruption import Noise, Variant
from landform.tasks.metrics import get_metric
from landform.tasks.rows import Resplit, share, shuffled
from landform.tasks.sources import (
    PLAIN_TEXT,
    SUFFIXES,
    FileFormat,
    FileSource,
    FunctionSource,
    HubSource,
    MemorySource,
    Source,
    Table,
    is_plain_text,
    is_text_table,
    missing_column,
    table_of,
)
from landform.tasks.text_to_text import metric_of, source_of_files, source_of_folder

__all__ = [
    "Examples",
    "Kind",
    "Merge",
    "Task",
    "TaskConfig",
    "TaskKind",
    "load_task",
    "loss_unit",
]

Kind = Literal[
    "classification", "regression", "token-classification", "masked-lm", "causal-lm", "seq2seq"
]
TaskKind = Kind | Literal["text-to-text", "denoising"]
"""What a task may be asked to be. Two more names of seq2seq tasks: text-to-text is read from files
of answers, denoising asks for what was hidden of a text (see `tasks.corruption`)."""
CORPUS_KINDS = ("masked-lm", "causal-lm", "denoising")
"""The losses of pre-training, which need text and no labels."""
Merge = Literal["max", "sum", "logsumexp"]

SPLIT_ALIASES: Mapping[str, str] = {
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "development": "validation",
    "training": "train",
}
"""Other names that people use for the usual splits."""

DEFAULT_METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "token-classification": ("token_accuracy",),
    "masked-lm": ("loss", "token_accuracy"),
    "causal-lm": ("loss", "perplexity", "token_accuracy"),
    "seq2seq": ("loss", "token_accuracy"),
}
"""The metrics of a task that names none, headline first."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_filters(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: (wanted,) if _is_single(wanted) else wanted for name, wanted in value.items()}


def _as_paths(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        split: os.fspath(path) if isinstance(path, os.PathLike) else path
        for split, path in value.items()
    }


def _as_subsets(value: Any) -> Any:
    if isinstance(value, str):
        return ((value,),)
    if isinstance(value, Sequence):
        return tuple(_as_tuple(group) for group in value)
    return value


def _as_percent(value: Any) -> Any:
    return value.strip().removesuffix("%") if isinstance(value, str) else value


def _is_single(value: Any) -> bool:
    return isinstance(value, str | int | float)


_Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
_Percent = Annotated[float, BeforeValidator(_as_percent)]


def _shard(text: str) -> tuple[int, int]:
    """The number of a shard, from 1, and of how many: "2/8" is (2, 8)."""
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError("expected NUMBER/SHARDS, counted from 1, such as 2/8")
    return int(found[1]), int(found[2])


class TaskConfig(Config):
    """Everything that defines a task, in a form that can be written down and used again."""

    task: str | None = None
    """A catalogue name (`sst2`), a hub data set (`owner/name`), or one local file or folder."""
    files: Annotated[dict[str, str], BeforeValidator(_as_paths)] | None = None
    """One local file per split: CSV, TSV, JSONL, JSON or Parquet (--files.train a.tsv
    --files.validation b.tsv on the command line). With a catalogue task: files of its columns."""
    text: _Names | None = None
    """The column that holds the text; two columns for pairs such as premise and hypothesis."""
    label: str | None = None
    """The column that holds the label (the target text of text-to-text tasks)."""
    id: str | None = None
    """The column that holds a unique text id. Default: rows are numbered."""
    label_names: _Names | None = None
    """The class names, in the order of the integer codes 0, 1, ... of the label column."""
    kind: TaskKind | None = None
    """What is predicted. Default: found from the labels (classes, or scores when some label is
    not a whole number, or tags when labels are lists). text-to-text reads files without a header:
    input, then one or more accepted answers, separated by tabs. masked-lm, causal-lm and denoising
    need no labels, and read plain text files."""
    metrics: _Names | None = None
    """Metrics to report, the headline metric first."""
    name: str | None = None
    """The name to show. Default: the catalogue name, or that of the file or folder."""
    data_dir: str | None = None
    """A local folder with the published files of a catalogue task, instead of the hub."""
    subset: str | None = None
    """The subset (configuration) of a hub data set."""
    revision: str | None = None
    """The revision of a hub data set."""
    quoting: bool | None = None
    """Whether double quotes enclose fields. Default: in .csv yes, in .tsv and .txt no."""
    delimiter: str | None = None
    """The character between the fields of a text table. Default: a comma in .csv, else a tab."""
    skip_bad_rows: bool = False
    """Leave out rows with the wrong number of columns, with a warning, instead of failing."""
    empty_text: bool = False
    """Accept texts that are empty."""
    filters: Annotated[dict[str, tuple[str | int | float, ...]], BeforeValidator(_as_filters)] = (
        Field(default_factory=dict)
    )
    """Keep only rows whose column has one of these values (--filters.COLUMN VALUE on the command
    line); the column `label` takes label names."""
    shard: str | None = None
    """Keep one shard of the rows, after filters: 2/8 is the second of eight, made of the rows 2,
    10, 18, ... Together the shards are the whole."""
    shuffle_seed: int | None = Field(None, ge=0)
    """Put the rows of every split in a random order (after filters and shard), the same one
    for the same seed, so that the first rows are a sample. Default: the order of the file."""
    percent: _Percent | None = Field(None, gt=0, le=100)
    """Keep this percentage of the training rows (at least one), drawn under `shuffle_seed` (or 0)
    after everything else. A smaller percentage is part of a larger one."""
    percent_of: _Names | None = None
    """The splits that `percent` shortens. Default: train and its parts; where there is no train,
    all."""
    resplit: _Percent | None = Field(None, gt=0, lt=100)
    """Merge train and validation, shuffle them, and cut them anew before everything else: this
    percentage is the new validation, the rest the new train (20: the 80/20 splits of the guided
    dropout paper)."""
    resplit_seed: int | None = Field(None, ge=0)
    """Seed of `resplit` (default: `shuffle_seed`, or 0)."""
    resplit_of: _Names | None = None
    """The splits that `resplit` merges; the last becomes its percentage, the first the rest.
    Default: train and validation."""
    subsets: Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_as_subsets)] | None = None
    """Groups of columns (or `label`) by which metrics are broken down."""
    label_groups: dict[str, tuple[str, ...]] | None = None
    """For a model with finer labels: which of its labels make up each label of the task
    (--label-groups.LABEL MODEL-LABEL ... on the command line)."""
    merge: Merge | None = None
    """How the logits of gathered labels become one: max (as published HANS accuracies), sum, or
    logsumexp (adds the probabilities)."""

    blocks: bool = False
    """Plain text: one text per block of lines with blank lines between blocks, not per line."""
    mask_rate: float = Field(0.15, gt=0, le=1)
    """masked-lm: the share of tokens that are hidden, at least one of every text."""
    noise_density: float = Field(0.15, gt=0, lt=1)
    """denoising: the share of tokens that are hidden, at least one of every text."""
    mean_span: float = Field(3.0, ge=1, allow_inf_nan=False)
    """denoising: the mean length of the hidden spans, in tokens."""
    denoising: Variant = "spans"
    """denoising: spans, each behind a sentinel, as T5 is pre-trained; or guided-dropout: single
    tokens, each behind its own, no last sentinel, as in that paper's Fisher information of T5."""

    file_prefix: str | None = None
    """text-to-text: of a folder with several tasks, the one whose files are PREFIX_train.tsv,
    PREFIX_dev.tsv, ..."""
    one_prefix: bool = False
    """text-to-text: of a folder with several tasks, the first (by name)."""
    task_prefix: bool = True
    """text-to-text: put the task's name in brackets before every input."""
    sentinel: str | None = "auto"
    """text-to-text: the token that targets begin with, or none. auto: <extra_id_0> where the
    tokenizer has it, else none."""
    lowercase: bool = False
    """text-to-text: lower-case inputs and answers."""
    bos: str = ""
    """text-to-text: text before every input and target (the original offers "<s> ")."""
    max_target_length: int | None = Field(None, ge=1)
    """text-to-text: cut targets at this many tokens (default: 64, or what the model can take)."""
    references: Literal["mean", "first"] = "mean"
    """text-to-text: the loss of an example with several answers is that of all of them, on
    average (training draws one in every epoch), or that of the first."""

    @field_validator("shard")
    @classmethod
    def _check_shard(cls, shard: str | None) -> str | None:
        if shard is not None:
            _shard(shard)
        return shard

    def placed(self, base: Path) -> TaskConfig:
        """The same task with its relative paths starting from `base`, where the file lies that
        describes it."""
        changes: dict[str, Any] = {}
        if self.files is not None:
            changes["files"] = {split: str(base / path) for split, path in self.files.items()}
        if self.data_dir is not None:
            changes["data_dir"] = str(base / self.data_dir)
        # A folder that happens to be called hans is not meant by the name of the task.
        named = self.task is None or catalogue.find(self.task) is not None
        if self.task is not None and not named and (base / self.task).exists():
            changes["task"] = str(base / self.task)
        return self.replace(**changes) if changes else self


# -------------------------------------------------------------------------------------- examples


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of one split, in the order of the file.

    `texts[i]` holds the text of row i, or premise and hypothesis; for token classification it is
    the tuple of words. `labels`: classification int64 (N,), indices into `Task.label_names`;
    regression float64 (N,); token classification a tuple of tuples of int (-100: left out);
    seq2seq a tuple of target texts, or (text-to-text) of tuples of accepted answers; language
    modelling and denoising None. `columns` holds the other columns. `form`: how text-to-text
    examples are written for a model. `noise`: how much of a text denoising hides (and masked
    language modelling, where that is not 15 %).
    """

    ids: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    labels: Any
    columns: pd.DataFrame
    form: TextForm | None = None
    noise: Noise | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> Examples:
        """The given rows (0-based), in the given order."""
        index = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(index) and not (index.min() >= 0 and index.max() < len(self)):
            bad = next(int(row) for row in index if not 0 <= row < len(self))
            raise DataError(
                f"row {bad} was asked for; the rows are 0 to {len(self) - 1}",
                remedy="choose rows that exist",
            )
        order = index.tolist()
        labels = self.labels
        if isinstance(labels, np.ndarray):
            labels = labels[index]
        elif labels is not None:
            labels = tuple(labels[row] for row in order)
        return Examples(
            tuple(self.ids[row] for row in order),
            tuple(self.texts[row] for row in order),
            labels,
            self.columns.iloc[index].reset_index(drop=True),
            self.form,
            self.noise,
        )

    def filter(self, **equals: Any) -> Examples:
        """Rows whose columns have the given value, or one of several given values.

        `label=` takes the class index (of classification tasks). `DataError` when a column is not
        there or nothing is left.
        """
        keep = np.ones(len(self), dtype=bool)
        for name, wanted in equals.items():
            accepted = (wanted,) if _is_single(wanted) else tuple(wanted)
            keep &= np.fromiter(
                (value in accepted for value in self.column(name)), dtype=bool, count=len(self)
            )
        if not keep.any():
            shown = ", ".join(f"{name} = {value!r}" for name, value in equals.items())
            raise DataError(
                f"all {len(self)} examples were filtered out by {shown}",
                remedy="; ".join(
                    f"values of {name}: {_values(self.column(name))}" for name in equals
                ),
            )
        return self.take(np.flatnonzero(keep))

    def column(self, name: str) -> list[Any]:
        """The values of one of `columns`, or of `label`."""
        if name in self.columns.columns:
            return list(self.columns[name].tolist())
        if name == "label" and isinstance(self.labels, np.ndarray):
            return list(self.labels.tolist())
        raise missing_column(name, (*map(str, self.columns.columns), "label"), "these examples")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids, texts, labels and columns: changes when any of them does."""
        digest = hashlib.sha256()
        _feed(digest, "ids", self.ids)
        _feed(digest, "texts", (text for row in self.texts for text in (str(len(row)), *row)))
        labels = self.labels
        if isinstance(labels, np.ndarray):
            digest.update(f"{labels.dtype.str}{labels.shape}".encode())
            digest.update(np.ascontiguousarray(labels).tobytes())
        elif labels is not None:
            _feed(digest, "labels", map(_label_text, labels))
        for name in self.columns.columns:
            cells = (f"{type(cell).__name__}:{cell}" for cell in self.columns[name].tolist())
            _feed(digest, f"column {name}", cells)
        if self.form is not None:
            _feed(digest, "form", (f"{name}={value!r}" for name, value in self.form.spec().items()))
        if self.noise is not None:
            noise = self.noise.spec().items()
            _feed(digest, "noise", (f"{name}={value!r}" for name, value in noise))
        return digest.hexdigest()


def _plain(label: Any) -> str:
    return label if isinstance(label, str) else ",".join(map(str, label))


def _label_text(label: Any) -> str:
    if not isinstance(label, str) and label and isinstance(label[0], str):
        return "".join(f"{len(answer)}:{answer}" for answer in label)  # answers may hold commas
    return _plain(label)


def _feed(digest: Any, title: str, texts: Iterable[str]) -> None:
    # Lengths before texts: no two different sequences give the same bytes.
    parts = [f"{len(text)}:{text}" for text in texts]
    digest.update(f"{title} {len(parts)}\n".encode())
    digest.update("".join(parts).encode("utf-8", "surrogatepass"))


def _values(values: Iterable[Any], most: int = 12) -> str:
    distinct = sorted({str(value) for value in values})
    return ", ".join(distinct[:most]) + (", ..." if len(distinct) > most else "")


# ------------------------------------------------------------------------------------------ task


@dataclass(frozen=True, eq=False)
class Task:
    """Named splits of labelled text, and how answers are judged. Made by `load_task`.

    `label_names`: the classes, () when there are none. `metrics`: names of
    `landform.tasks.metrics`, the headline metric first. `subsets`: groups of columns by which
    metrics are broken down. `label_groups`: per label of the task the labels of a finer model
    that make it up, whose logits are merged by `merge`. `layout` says which columns of `source`
    hold what; `parts` which rows of it make up each split; `resplit` which of its splits are merged
    and cut anew before that. `form`: how text-to-text examples are written for a model; `noise`:
    see `Examples`.
    """

    name: str
    kind: Kind
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    source: Source
    layout: Layout
    parts: Mapping[str, Part]
    config: TaskConfig
    subsets: tuple[tuple[str, ...], ...] = ()
    label_groups: Mapping[str, tuple[str, ...]] | None = None
    merge: Merge = "max"
    aliases: Mapping[str, str] = field(default_factory=dict)
    empty_text: bool = False
    form: TextForm | None = None
    noise: Noise | None = None
    resplit: Resplit | None = None
    _read: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # What was read is read again elsewhere: a pickled task stays small.
        return {**self.__dict__, "_read": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @classmethod
    def from_config(cls, config: TaskConfig) -> Task:
        """The task that `config` describes."""
        return _build(config, None)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.parts)

    @property
    def n_labels(self) -> int:
        """How many outputs a head for this task has: its classes, or 1 for regression."""
        return 1 if self.kind == "regression" else len(self.label_names)

    @property
    def is_drawn(self) -> bool:
        """Whether a seed decides what a model sees of a text, and is asked for."""
        return self.kind == "masked-lm" or self.noise is not None

    def resolve(self, split: str) -> str:
        """The split's own name for `split`, which may be an alias such as "dev"."""
        known = {**SPLIT_ALIASES, **self.aliases}
        name = split
        for _ in range(2):  # "dev" -> "validation" -> "validation_matched"
            if name not in self.parts:
                name = known.get(name, name)
        if name in self.parts:
            return name
        guess = nearest(split, [*self.parts, *self.aliases])
        raise DataError(
            f"task {self.name!r} has no split {split!r}",
            remedy=(f"did you mean {guess!r}? " if guess else "")
            + f"Splits: {', '.join(self.parts)}"
            + self._single_file_hint(),
        )

    def _single_file_hint(self) -> str:
        if self.config.files is not None or len(self.parts) > 1:
            return ""
        file = isinstance(self.source, FileSource)
        return "; to name the split of a single file: {'train': path}" if file else ""

    def examples(self, split: str, *, rows: int | None = None) -> Examples:
        """The examples of `split`, all or the first `rows` of them (after filters)."""
        if rows is not None and rows < 1:
            raise ConfigError(f"rows={rows}: at least 1 row is needed", remedy="give rows >= 1")
        split = self.resolve(split)
        key = f"examples {split}"
        if key not in self._read:
            self._read[key] = self._examples(split)
        found: Examples = self._read[key]
        return found if rows is None or rows >= len(found) else found.take(range(rows))

    def fingerprint(self, split: str, *, rows: int | None = None) -> str:
        """SHA-256 (hex) of what an evaluation on `split` depends on: rows, kind and labels."""
        groups = self.label_groups or {}
        digest = hashlib.sha256(self.examples(split, rows=rows).fingerprint.encode())
        _feed(digest, "kind", (self.kind, self.merge))
        _feed(digest, "labels", self.label_names)
        _feed(digest, "groups", (f"{name}={_plain(groups[name])}" for name in sorted(groups)))
        return digest.hexdigest()

    def _table(self, split: str) -> Table:
        """All needed columns of a split of the source; read once."""
        key = f"table {split}"
        if key not in self._read:
            layout, needed = self.layout, None
            if layout.keep is not None:
                roles = (*layout.text, layout.label, layout.id, *self._named_columns())
                needed = [name for name in roles if name is not None]
            self._read[key] = self.source.read(split, needed, layout.keep or ())
        table: Table = self._read[key]
        return table

    def _named_columns(self) -> tuple[str, ...]:
        """Columns besides text, label and id that options refer to."""
        named = [*self.config.filters, *(name for group in self.subsets for name in group)]
        named += [name for part in self.parts.values() for name in part.where]
        return tuple(dict.fromkeys(name for name in named if name != "label"))

    def _examples(self, split: str) -> Examples:
        part = self.parts[split]
        if self.resplit is not None and part.split in self.resplit.made:
            examples = self._cut_anew()[part.split]
        else:
            examples = self._rows_of(part)
        examples = self._filtered(examples, part.where)
        return self._ordered(self._filtered(examples, self.config.filters), split)

    def _cut_anew(self) -> dict[str, Examples]:
        """The splits that `resplit` makes; made once."""
        if "resplit" not in self._read and self.resplit is not None:
            pieces = [self._rows_of(Part(split)) for split in self.resplit.splits]
            self._read["resplit"] = self.resplit.cut(pieces)
        found: dict[str, Examples] = self._read["resplit"]
        return found

    def _rows_of(self, part: Part) -> Examples:
        """The rows of a part as they stand in the source."""
        layout = self.layout
        table = self._table(part.split).slice(part.start, part.stop)
        if self.kind == "token-classification":
            texts = columns.read_words(table, layout.text[0])
        else:
            texts = columns.read_texts(table, layout.text, allow_empty=self.empty_text)
        ids = columns.read_ids(table, layout.id, part.split, part.start)
        used = {*layout.text, layout.label, layout.id}
        extra = [name for name in table.frame.columns if name not in used]
        for name in self._named_columns():
            if name not in extra:
                raise missing_column(name, [*extra, "label"], table.origin)
        labels = self._labels(table, texts)
        frame = table.frame[extra].infer_objects()
        return Examples(ids, texts, labels, frame, self.form, self.noise)

    def _ordered(self, examples: Examples, split: str) -> Examples:
        """The rows of the config's shard, in the order of its shuffle, as far as its percentage."""
        rows = list(range(len(examples)))
        if self.config.shard is not None:
            number, shards = _shard(self.config.shard)
            # Every n-th row: the shards of a file that is sorted by class look alike.
            rows = rows[number - 1 :: shards]
            if not rows:
                raise DataError(
                    f"shard {self.config.shard} of task {self.name!r}, split {split!r}, has no"
                    f" rows: the split has {len(examples)}",
                    remedy="cut the data into fewer shards",
                )
        seed = self.config.shuffle_seed
        if seed is not None:
            rows = [rows[i] for i in shuffled(len(rows), seed)]
        if self.config.percent is not None and self._is_shortened(split):
            rows = share(rows, self.config.percent, seed)
        return examples if rows == list(range(len(examples))) else examples.take(rows)

    def _is_shortened(self, split: str) -> bool:
        """Whether the config's percentage is meant for this split."""
        chosen = self.config.percent_of or (("train",) if "train" in self.parts else self.parts)
        names = {self.resolve(name) for name in chosen}
        return split in names or self.parts[split].split in names

    def _labels(self, table: Table, texts: tuple[tuple[str, ...], ...]) -> Any:
        label = self.layout.label
        if label is None:
            return None
        if self.kind == "classification":
            return columns.class_codes(table, label, self.label_names)
        if self.kind == "regression":
            return columns.read_scores(table, label)
        if self.kind == "token-classification":
            return columns.tag_codes(table, texts, label, self.label_names)
        if self.form is not None:
            return tuple(table.values(label))
        return columns.read_targets(table, label)

    def _filtered(self, examples: Examples, filters: Mapping[str, tuple[Any, ...]]) -> Examples:
        wanted: dict[str, tuple[Any, ...]] = dict(filters)
        if "label" in wanted and self.kind == "classification":
            wanted["label"] = tuple(map(self._label_index, wanted["label"]))
        for name, values in wanted.items():
            if name != "label":
                wanted[name] = self._found(examples, name, values)
        return examples.filter(**wanted) if wanted else examples

    def _found(self, examples: Examples, name: str, values: Sequence[Any]) -> tuple[Any, ...]:
        """The values of a column that are written like those wanted: 3 of a JSON file is "3" on a
        command line."""
        known: dict[str, list[Any]] = {}
        for cell in dict.fromkeys(examples.column(name)):
            known.setdefault(str(cell), []).append(cell)
        for value in values:
            if str(value) not in known:
                guess = nearest(str(value), known)
                raise DataError(
                    f"filter {name} = {value!r}: no row of task {self.name!r} has this value",
                    remedy=(f"did you mean {guess!r}? " if guess else "")
                    + f"Values: {_values(known)}",
                )
        return tuple(cell for value in values for cell in known[str(value)])

    def _label_index(self, value: str | int | float) -> int:
        index = columns.class_finder(self.label_names)(value)
        if index is None:
            raise ConfigError(
                f"filter label = {value!r}: not a label of task {self.name!r}",
                remedy=f"labels: {', '.join(self.label_names)}",
            )
        return index


# --------------------------------------------------------------------------------------- loading


def loss_unit(kind: str) -> str:
    """The unit of a task's loss: nats, or squared units of the target for regression."""
    return "squared units" if kind == "regression" else "nats"


def load_task(
    source: Any,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    kind: TaskKind | None = None,
    name: str | None = None,
    label_names: Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    id: str | None = None,
    data_dir: str | Path | None = None,
    **options: Any,
) -> Task:
    """A task from a catalogue name, a hub data set, local files, or values given in Python.

    `source` is one of: a catalogue name (`"sst2"`; with `data_dir=` from its published files,
    with `files=` from files of its columns); a hub data set `"owner/name"`; a mapping from split
    to file (`{"train": "a.tsv", "validation": "b.tsv"}`); a folder of files that are named after
    their splits; a single file, which becomes the split its name says (`train.csv`, `dev.tsv`) and
    `validation` otherwise (the kinds without labels also take plain text); a DataFrame or a list
    of mappings (`validation`), or a mapping from split to those; a `TaskConfig`; a `Task`. With
    kind="text-to-text" the folder holds `<task>_train.tsv`, `<task>_dev.tsv`, `<task>_test.tsv`:
    see `tasks.text_to_text`.

    Integer labels must be the codes 0..K-1 over all splits together; other labels are class
    names, sorted unless `label_names` gives their order. For the other `options` see `TaskConfig`.

    Raises `ConfigError` for an option, `DataError` for a file, column or row, `LabelError` for a
    label; each names the culprit and the remedy.
    """
    given = {
        "text": text, "label": label, "kind": kind, "name": name, "label_names": label_names,
        "metrics": metrics, "id": id, "data_dir": None if data_dir is None else str(data_dir),
    }  # fmt: skip
    chosen = {**{key: value for key, value in given.items() if value is not None}, **options}
    if isinstance(source, Task | TaskConfig):
        if chosen and isinstance(source, Task):
            raise ConfigError(
                f"options {', '.join(chosen)} were given with a task that is already loaded",
                remedy="give the options when the task is loaded first",
            )
        return source if isinstance(source, Task) else _build(source.replace(**chosen), None)
    values, place = _place(source)
    return _build(TaskConfig.parse({**place, **chosen}, where="load_task"), values)


def _place(source: Any) -> tuple[dict[str, Table] | None, dict[str, Any]]:
    """In-memory tables, and the options that describe where rows come from."""
    if isinstance(source, str | os.PathLike):
        return None, {"task": os.fspath(source)}
    if isinstance(source, Mapping):
        if not source:
            raise ConfigError("no split was given", remedy="give {'validation': 'file.tsv'}")
        if all(isinstance(value, str | os.PathLike) for value in source.values()):
            return None, {"files": {str(key): os.fspath(path) for key, path in source.items()}}
        splits = {str(key): value for key, value in source.items()}
    else:
        splits = {"validation": source}
    return {split: table_of(value, f"given data {split!r}") for split, value in splits.items()}, {}


def _build(config: TaskConfig, values: dict[str, Table] | None) -> Task:
    _check_places(config, values)
    for metric in config.metrics or ():
        get_metric(metric)
    _check_kind_options(config)
    return _with_rows(_made(config, values), config)


def _made(config: TaskConfig, values: dict[str, Table] | None) -> Task:
    if config.kind == "text-to-text":
        return _text_task(config, values)
    if values is not None:
        return _own_task(config, MemorySource(_by_split(values)), config.name or "task")
    if config.files is not None and config.task is None:
        return _file_task(config, _named_files(config.files))
    return _from_name(config, config.task or "")


def _from_name(config: TaskConfig, source: str) -> Task:
    """A catalogue name, a folder, a file or a hub data set, tried in this order."""
    known = catalogue.find(source)
    if known is not None:
        return _catalogue_task(config, *known)
    path = _path(source)
    if path.is_dir():
        return _file_task(config, _files_of(path))
    if path.suffix.lower() in SUFFIXES or path.is_file():
        split = SPLIT_ALIASES.get(path.stem.lower(), path.stem.lower())
        known_split = split in ("train", "validation", "test")
        return _file_task(config, {split if known_split else "validation": path})
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        hub = HubSource(source, config.subset, config.revision)
        return _own_task(config, hub, config.name or source.split("/")[-1])
    if "/" in source:
        raise DataError(f"{source} does not exist", remedy="check the path")
    raise catalogue.unknown_task(source)


def _check_places(config: TaskConfig, values: dict[str, Table] | None) -> None:
    named = config.task is not None and catalogue.find(config.task) is not None
    # A catalogue task may come with files: they then hold its columns.
    places = [config.task is not None, config.files is not None and not named, values is not None]
    if sum(places) != 1:
        raise ConfigError(
            "a task needs exactly one of task= (or the first argument of load_task) and files="
            + (" (this one was made from values in memory)" if not any(places) else ""),
            remedy="name a catalogue task, a hub data set or local files; write data that only"
            " exists in memory to a file to use it in another process",
        )


def _path(path: str) -> Path:
    # Absolute: another process that works on the task may stand in another folder.
    return Path(path).expanduser().absolute()


def _named_files(files: Mapping[str, str]) -> dict[str, Path]:
    return _by_split({split: _path(path) for split, path in files.items()})


def _by_split(given: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for split, value in given.items():
        own = SPLIT_ALIASES.get(split, split)
        if own in named:
            raise ConfigError(f"the split {own!r} was given twice", remedy="name each split once")
        named[own] = value
    return named


def _files_of(folder: Path) -> dict[str, Path]:
    names = {*SPLIT_ALIASES, "train", "validation", "test"}
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.stem.lower() in names
    ]
    if not files:
        raise DataError(
            f"folder {folder} holds no file named after a split",
            remedy="expected train.*, validation.* (or dev.*), test.* with one of the endings"
            f" {', '.join(SUFFIXES)}; or give {{'train': path, 'validation': path}}",
        )
    order = ("train", "validation", "test")
    found = _by_split_files(files)
    return {split: found[split] for split in order if split in found}


def _by_split_files(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        split = SPLIT_ALIASES.get(path.stem.lower(), path.stem.lower())
        if split in found:
            raise DataError(
                f"{found[split]} and {path} are both the split {split!r}",
                remedy="keep one of them, or give {'train': path, 'validation': path}",
            )
        found[split] = path
    return found


def _file_task(config: TaskConfig, files: dict[str, Path]) -> Task:
    paths = list(files.values())
    name = paths[0].stem if len(paths) == 1 else paths[0].parent.name
    form = FileFormat(config.quoting, config.delimiter, None, config.skip_bad_rows)
    if config.kind in CORPUS_KINDS and config.text is None and all(map(is_plain_text, paths)):
        _refuse(
            config, ("id", "quoting", "delimiter"), "does not go with plain text",
            f"{paths[0]} is read as plain text; where it is a table, name its column with text=",
        )  # fmt: skip
        form = FileFormat(plain="blocks" if config.blocks else "lines")
    return _own_task(config, FileSource(files, form), config.name or name or "task")


def _refuse(config: TaskConfig, names: Sequence[str], reason: str, remedy: str) -> None:
    given = [name for name in names if getattr(config, name) not in (None, False)]
    if given:
        raise ConfigError(f"option {given[0]} {reason}", remedy=remedy)


def _check_format(config: TaskConfig, source: Source) -> None:
    """Refuse options of text tables for rows that come from no text table."""
    tables = isinstance(source, FileSource) and any(map(is_text_table, source.files.values()))
    if not tables or (isinstance(source, FileSource) and source.form.plain is not None):
        given = [n for n in ("quoting", "delimiter") if getattr(config, n) is not None]
        given += ["skip_bad_rows"] if config.skip_bad_rows else []
        if given:
            raise ConfigError(
                f"option {given[0]} is for text tables (.csv, .tsv, .txt)", remedy="leave it out"
            )


_KIND_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "text-to-text": (
        *("file_prefix", "one_prefix", "task_prefix", "sentinel", "lowercase", "bos"),
        *("references", "max_target_length"),
    ),
    "masked-lm": ("mask_rate",),
    "denoising": ("noise_density", "mean_span", "denoising"),
}
"""Options that one kind of task has."""


def _check_kind_options(config: TaskConfig) -> None:
    def refuse(name: str, what: str, remedy: str) -> None:
        if getattr(config, name) != TaskConfig.model_fields[name].default:
            raise ConfigError(f"option {name} {what}", remedy=f"leave it out{remedy}")

    for kind, names in _KIND_OPTIONS.items():
        for name in names if kind != config.kind else ():
            refuse(name, f"goes with kind={kind!r} only", f", or pass kind={kind!r}")
    if config.kind not in CORPUS_KINDS:
        refuse("blocks", "is for plain text", f", or pass kind= ({', '.join(CORPUS_KINDS)})")
    if config.percent is None:
        refuse("percent_of", "needs percent", ", or give percent=")
    for name in ("resplit_seed", "resplit_of") if config.resplit is None else ():
        refuse(name, "needs resplit", ", or give resplit=20")
    if config.kind in CORPUS_KINDS:
        refuse("label_names", f"does not go with kind={config.kind!r}, which has no labels", "")
    if config.denoising == "guided-dropout":
        refuse("mean_span", "does not go with denoising='guided-dropout'", "")


def _noise(config: TaskConfig) -> Noise | None:
    if config.kind == "denoising":
        return Noise(config.noise_density, config.mean_span, config.denoising)
    # 15 % is what `encode` hides: naming it would change the fingerprints of what was made so far.
    default = TaskConfig.model_fields["mask_rate"].default
    if config.kind == "masked-lm" and config.mask_rate != default:
        return Noise(config.mask_rate)
    return None


def _with_rows(task: Task, config: TaskConfig) -> Task:
    """The task with its merged splits, where the config asks for them."""
    for name in config.percent_of or ():
        task.resolve(name)
    if config.resplit is None:
        return task
    try:
        names = tuple(map(task.resolve, config.resplit_of or ("train", "validation")))
    except DataError as error:
        raise DataError(f"resplit: {error.what}", remedy=error.remedy) from None
    others = [s for s in task.source.splits if s.startswith("validation") and s not in names]
    if len(set(names)) < 2 or (config.resplit_of is None and others):
        raise ConfigError(
            f"resplit merges train and validation; task {task.name!r} has the splits "
            + ", ".join(task.source.splits)
            if config.resplit_of is None
            else f"resplit_of names the splits {', '.join(names)}; two or more are merged",
            remedy="name those that should be merged, the one that becomes the percentage last:"
            " resplit_of=(...); or leave resplit out",
        )
    whole = [name for name in names if task.parts[name] != Part(name)]
    if whole:
        raise ConfigError(
            f"resplit_of: {whole[0]} is a part of the split {task.parts[whole[0]].split}",
            remedy=f"whole splits can be merged: {', '.join(task.source.splits)}",
        )
    seed = config.resplit_seed if config.resplit_seed is not None else config.shuffle_seed
    resplit = Resplit(names, config.resplit, seed or 0)
    # Rows so-and-so of an old split are nothing of the new one; rows with such a value are.
    parts = {
        name: part
        for name, part in task.parts.items()
        if part.split not in names
        or (part.split in resplit.made and (part.start, part.stop) == (0, None))
    }
    return replaced(task, parts=parts, resplit=resplit, _read=task._read)


def _text_task(config: TaskConfig, values: Mapping[str, Table] | None) -> Task:
    """A text-to-text task: files of inputs and answers (see `tasks.text_to_text`)."""
    fixed = ("text", "label", "id", "label_names", "label_groups", "merge", "data_dir")
    _refuse(
        config, (*fixed, "subset", "revision", "quoting", "delimiter"),
        "does not go with kind='text-to-text'",
        "its files have no header: column 1 is the input, the others are answers; for named columns"
        " pass kind='seq2seq'",
    )  # fmt: skip
    if values is not None:
        raise ConfigError(
            "kind='text-to-text' reads files",
            remedy="write the rows as <task>_train.tsv, ..., or pass kind='seq2seq' with text= and"
            " label=",
        )
    if config.files is not None:
        _refuse(config, ["task"], "was given beside files", "leave one of them out")
        source = source_of_files(_named_files(config.files), config)
    else:
        source = source_of_folder(_path(config.task or ""), config)
    name = config.name or source.prefix
    metrics = config.metrics or (metric_of(name, source),)
    form = TextForm(
        prefix=(name.lower() if config.lowercase else name) if config.task_prefix else None,
        sentinel=None if config.sentinel in ("", "none") else config.sentinel,
        bos=config.bos,
        max_target_length=config.max_target_length,
        references=config.references,
    )
    return Task(
        name=name,
        kind="seq2seq",
        label_names=(),
        metrics=metrics,
        source=source,
        layout=Layout(("input",), "answers"),
        parts={split: Part(split) for split in source.splits},
        config=config,
        subsets=config.subsets or (),
        empty_text=config.empty_text,
        form=form,
    )


def _own_task(config: TaskConfig, source: Source, name: str) -> Task:
    """A task whose columns the user names."""
    _refuse(config, ["data_dir"], "needs a catalogue task", "name the files themselves")
    if not isinstance(source, HubSource):
        _refuse(config, ["subset", "revision"], "needs a hub data set", "leave it out")
    _check_format(config, source)
    splits = source.splits
    plain = isinstance(source, FileSource) and source.form.plain is not None
    text = (PLAIN_TEXT,) if plain else config.text
    if text is None:
        known = ", ".join(map(repr, source.columns(splits[0])))
        raise ConfigError(
            f"task {name!r}: which column holds the text?",
            remedy=f"pass text=, or text=(first, second) for pairs. Columns: {known}",
        )
    layout = Layout(text, config.label, config.id)
    _check_layout(config, layout)
    if config.blocks and not plain:
        raise ConfigError(
            "option blocks is for plain text files", remedy="leave it out: a table has rows"
        )
    task = Task(
        name=name,
        kind=cast(Kind, _kind_of_head(config.kind) or "classification"),
        label_names=config.label_names or (),
        metrics=(),
        source=source,
        layout=layout,
        parts={split: Part(split) for split in splits},
        config=config,
        subsets=config.subsets or (),
        label_groups=config.label_groups,
        merge=config.merge or "max",
        empty_text=config.empty_text,
        noise=_noise(config),
    )
    _check_columns(task)
    return _with_labels(task, config)


def _kind_of_head(kind: TaskKind | None) -> TaskKind | None:
    return "seq2seq" if kind == "denoising" else kind


def _check_layout(config: TaskConfig, layout: Layout) -> None:
    roles = [*layout.text, *(name for name in (layout.label, layout.id) if name is not None)]
    twice = next((name for name in roles if roles.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"the column {twice!r} has two roles among text=, label= and id=",
            remedy="name each column once",
        )
    if config.kind == "token-classification" and len(layout.text) > 1:
        raise ConfigError(
            "text= names two columns; token classification has one list of words per row",
            remedy="name the column that holds the words",
        )
    if config.kind == "denoising" and len(layout.text) > 1:
        raise ConfigError(
            "text= names two columns; denoising has one text per row",
            remedy="name one column",
        )
    language_model = config.kind in CORPUS_KINDS
    if language_model and layout.label is not None:
        raise ConfigError(
            f"kind={config.kind!r} has no labels; label={layout.label!r} was given",
            remedy="leave label= out, or choose another kind",
        )
    if layout.label is None and not language_model:
        raise ConfigError(
            "which column holds the label?" if config.kind is None
            else f"kind={config.kind!r} needs labels",
            remedy="pass label=, or kind='masked-lm', 'causal-lm' or 'denoising' for text without"
            " labels",
        )  # fmt: skip


def _check_columns(task: Task) -> None:
    """Every column that is named exists in every split, as far as that can be known now."""
    if isinstance(task.source, HubSource):
        return  # Asking would start a download; reading says the same.
    layout = task.layout
    named = [*layout.text, layout.label, layout.id, *task._named_columns()]
    for split in dict.fromkeys(part.split for part in task.parts.values()):
        known = task.source.columns(split)
        for name in named:
            if name is not None and name not in known:
                origin = (
                    str(task.source.files[split]) if isinstance(task.source, FileSource) else split
                )
                raise missing_column(name, known, origin)


def _with_labels(task: Task, config: TaskConfig) -> Task:
    """The task with kind, classes and metrics, found from the label column where not given."""
    label = task.layout.label
    kind, names = task.kind, task.label_names
    if label is not None:
        tables = [task._table(split) for split in task.source.splits] if _must_look(config) else []
        if config.kind is None:
            kind = cast(Kind, columns.infer_kind(tables, label))
            if config.label_names is not None and kind == "regression":
                kind = "classification"
        if kind in ("classification", "token-classification"):
            tags = kind == "token-classification"
            names = config.label_names or columns.infer_label_names(tables, label, tags=tags)
        elif config.label_names is not None:
            raise ConfigError(f"label_names= does not go with kind={kind!r}", remedy="leave it out")
    if len(set(map(columns.normalised, names))) < len(names):
        raise LabelError(
            f"the label names {', '.join(names)} are not distinct", remedy="give distinct names"
        )
    metrics = config.metrics or DEFAULT_METRICS[kind]
    return _checked_groups(
        replaced(task, kind=kind, label_names=names, metrics=metrics, _read=task._read)
    )


def _must_look(config: TaskConfig) -> bool:
    classes = config.kind in ("classification", "token-classification")
    return config.kind is None or (classes and config.label_names is None)


def _checked_groups(task: Task) -> Task:
    groups = task.label_groups
    if groups is None and task.config.merge is not None:
        raise ConfigError(
            "option merge says how the logits of gathered labels become one, and no labels are"
            " gathered",
            remedy="leave it out, or give label_groups",
        )
    if groups is not None and set(groups) != set(task.label_names):
        raise LabelError(
            f"label_groups names {', '.join(groups)}; the labels of task {task.name!r} are"
            f" {', '.join(task.label_names) or '(none)'}",
            remedy="give one group of model labels for each label of the task",
        )
    return task


def _catalogue_task(config: TaskConfig, name: str, entry: Entry) -> Task:
    fixed = ("text", "label", "id", "label_names", "subset", "quoting", "delimiter", "blocks")
    corpus = config.kind in CORPUS_KINDS
    _refuse(
        config, fixed if corpus else (*fixed, "kind"), f"is fixed for the catalogue task {name!r}",
        "leave it out; for other columns give the files as {'train': path, 'validation': path}",
    )  # fmt: skip
    source, layout = _catalogue_source(config, name, entry)
    _check_format(config, source)
    if corpus:
        entry, layout = (
            _without_labels(entry, cast(Kind, _kind_of_head(config.kind))),
            replaced(layout, label=None),
        )
        _check_layout(config, layout)
    splits = source.splits
    parts = {split: Part(split) for split in splits}
    parts.update({key: part for key, part in entry.parts.items() if part.split in splits})
    task = Task(
        name=config.name or name,
        kind=entry.kind,
        label_names=entry.label_names,
        metrics=config.metrics or entry.metrics,
        source=source,
        layout=layout,
        parts=parts,
        config=config,
        subsets=entry.subsets if config.subsets is None else config.subsets,
        label_groups=config.label_groups or entry.label_groups,
        merge=config.merge or entry.merge,
        aliases=entry.aliases,
        empty_text=entry.empty_text or config.empty_text,
        noise=_noise(config),
    )
    _check_columns(task)
    return _checked_groups(task)


def _without_labels(entry: Entry, kind: Kind) -> Entry:
    """The texts of a task as a corpus."""
    return replaced(
        entry,
        kind=kind,
        label_names=(),
        metrics=DEFAULT_METRICS[kind],
        parts={name: part for name, part in entry.parts.items() if "label" not in part.where},
        subsets=tuple(group for group in entry.subsets if "label" not in group),
        label_groups=None,
    )


def _catalogue_source(config: TaskConfig, name: str, entry: Entry) -> tuple[Source, Layout]:
    if config.data_dir is not None or config.files is not None:
        given = "data_dir" if config.files is None else "files"
        _refuse(config, ["revision"], f"does not go with {given}", "leave one of them out")
        if entry.folder is None:
            raise ConfigError(
                f"task {name!r} has no published files; {given}= was given", remedy="leave it out"
            )
        form = FileFormat(header=entry.folder.header, skip_bad_rows=config.skip_bad_rows)
        if config.data_dir is not None:
            _refuse(config, ["files"], "does not go with data_dir", "leave one of them out")
            path = _path(config.data_dir)
            return catalogue.folder_source(name, entry.folder, path, form), entry.folder.layout
        return FileSource(_splits_of(name, entry, config.files or {}), form), entry.folder.layout
    if entry.generator is not None:
        _refuse(config, ["revision"], "needs a hub data set", "leave it out")
        made = entry.generator
        return FunctionSource(made.function, made.splits, name), made.layout
    if entry.hub is None:
        raise ConfigError(
            f"task {name!r} is not on the hub", remedy="pass data_dir= with its published files"
        )
    hub = entry.hub
    revision = config.revision or hub.revision
    return HubSource(hub.name, hub.subset, revision, hub.splits), hub.layout


def _splits_of(name: str, entry: Entry, files: Mapping[str, str]) -> dict[str, Path]:
    """Files of a catalogue task by the task's own names of splits."""
    known = tuple(entry.folder.files) if entry.folder is not None else ()
    found: dict[str, Path] = {}
    for split, path in _named_files(files).items():
        own = entry.aliases.get(split, split)
        if own not in known:
            raise ConfigError(
                f"files.{split}: task {name!r} has no split of this name",
                remedy=f"splits with files: {', '.join(known)}",
            )
        found[own] = path
    return found
