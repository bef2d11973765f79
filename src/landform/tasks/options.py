"""What a task may be asked to be: `TaskConfig`, its kinds, and other names of splits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from landform.config import Config
from landform.tasks import catalogue
from landform.tasks.corruption import Variant

__all__ = [
    "CORPUS_KINDS",
    "SPLIT_ALIASES",
    "Kind",
    "Merge",
    "TaskConfig",
    "TaskKind",
    "is_single",
    "shard_of",
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


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_filters(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: (wanted,) if is_single(wanted) else wanted for name, wanted in value.items()}


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


def is_single(value: Any) -> bool:
    """Whether a filter is one value, not several."""
    return isinstance(value, str | int | float)


_Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
_Percent = Annotated[float, BeforeValidator(_as_percent)]


def shard_of(text: str) -> tuple[int, int]:
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
            shard_of(shard)
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
