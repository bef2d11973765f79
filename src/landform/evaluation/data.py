"""What is evaluated: a split of a task, and the options under which a model reads it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from landform.errors import ConfigError, DataError
from landform.tasks.task import Examples, Task
from landform.weights.checkpoint import Checkpoint, LoadConfig

__all__ = [
    "Data",
    "DataConfig",
    "PointsConfig",
    "as_data",
    "as_data_or_only",
    "data_sets",
    "find_split",
    "rows_identity",
    "task_identity",
    "torch_device",
]


class DataConfig(LoadConfig):
    """How a model is loaded and a data set is read for it."""

    rows: int | None = Field(None, ge=1)
    """Use only the first ROWS examples of each data set (default: all)."""
    max_length: int | None = Field(None, ge=2)
    """Cut inputs at this many tokens (default: what model and tokenizer can take)."""
    token_budget: int = Field(1024, ge=1)
    """Padded tokens in one batch. 1024 keeps activations in a CPU's cache; use 16384 on a GPU."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, or auto (a GPU when there is one)."""
    model_labels: tuple[str, ...] | None = None
    """The model's label names in its own order, where its config does not tell them."""
    seed: int = Field(0, ge=0)
    """Seed of whatever chance decides: resampling, masked tokens, sampled labels."""

    def torch_device(self) -> torch.device:
        """The device that `device` names."""
        return torch_device(self.device)


class PointsConfig(DataConfig):
    """How points are evaluated and how sure their numbers are."""

    replicates: int = Field(1000, ge=20)
    """Bootstrap replicates (resampled examples, the same for all that is compared)."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    memory: float = Field(2.0, gt=0, allow_inf_nan=False)
    """GiB for checkpoints held in memory at once; others are read again when needed."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Cut generated answers at this many tokens, where a metric judges them (default: 64, or what
    the model can take)."""


@dataclass(frozen=True)
class Data:
    """One split of a task, asked to be evaluated."""

    task: Task
    split: str

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise _no_task(self.task)

    @property
    def name(self) -> str:
        """`task:split`, as tables call it."""
        return f"{self.task.name}:{self.task.resolve(self.split)}"

    def examples(self, rows: int | None) -> Examples:
        """Its examples, at most the first `rows`; warns where those leave out a class."""
        chosen = self.task.examples(self.split, rows=rows)
        if rows is not None and self.task.kind == "classification":
            missing = set(self.task.examples(self.split).labels) - set(chosen.labels)
            if missing:
                names = ", ".join(self.task.label_names[label] for label in sorted(missing))
                warnings.warn(
                    f"{self.name}: the first {rows} rows have no example of {names}; the file "
                    "may be sorted, so take more rows or shuffle it: shuffle_seed=0",
                    stacklevel=2,
                )
        return chosen


def find_split(task: Task, split: str) -> str:
    """`split` where the task has it; for a missing train or validation, the only split there is."""
    try:
        task.resolve(split)
    except DataError:
        if split not in ("train", "validation") or len(task.parts) != 1:
            raise
        return next(iter(task.parts))
    return split


def as_data(task: Task | Data | tuple[Task, str], split: str = "validation") -> Data:
    """A data set to evaluate on: a task (its `split`), or a task with a split of its own."""
    if isinstance(task, Data):
        return task
    if isinstance(task, tuple):
        return Data(*task)
    if not isinstance(task, Task):
        raise _no_task(task)
    return Data(task, split)


def _no_task(given: object) -> ConfigError:
    # A table given as a task would fill the message with its rows.
    shown = repr(given) if given is None or isinstance(given, str) else f"a {type(given).__name__}"
    first = repr(given) if isinstance(given, str) else "..."
    return ConfigError(
        f"{shown} is not a task",
        remedy=f"make one with landform.load_task({first}): of a catalogue name, or of a file, a "
        "DataFrame or files by split with text= and label=",
    )


def data_sets(
    task: Task | Data | tuple[Task, str],
    split: str,
    also: Sequence[Task | Data | tuple[Task, str]],
) -> tuple[Data, ...]:
    """A data set and further ones, for tables that know them by their names: each is there once."""
    data = (as_data(task, split), *(as_data(item, split) for item in also))
    names = [item.name for item in data]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two data sets are called {name}", remedy="give a task another name="
            )
    return data


def as_data_or_only(task: Task | Data | tuple[Task, str], split: str, meaning: str) -> Data:
    """`as_data`, with `find_split`; warns of what it means that another split was taken."""
    if not isinstance(task, Task):
        return as_data(task, split)
    found = find_split(task, split)
    if found != split:
        warnings.warn(
            f"task {task.name!r} has the split {found!r} only, no {split!r}: {meaning}",
            stacklevel=4,
        )
    return Data(task, found)


def torch_device(name: str) -> torch.device:
    """The device that the option `device` names; auto is a GPU where there is one.

    Raises `ConfigError` for one that torch cannot use here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # the type depends on what torch was built without
        raise ConfigError(
            f"option device is {name!r}, which torch cannot use here: {str(error).splitlines()[0]}",
            remedy="use cpu or auto, or install a torch build for that device",
        ) from None
    return device


def task_identity(task: Task) -> dict[str, Any]:
    """What a task makes of its rows: the part of the key of a job that is no text and no label.

    The codes say what the labels in the data mean: the same rows under other names are another
    task.
    """
    return {
        "kind": task.kind,
        "codes": task.label_names,
        "groups": task.label_groups and dict(task.label_groups),
        "merge": task.merge,
    }


def rows_identity(
    checkpoint: Checkpoint, task: Task, examples: Examples, config: DataConfig
) -> dict[str, Any]:
    """What decides the outputs of one model on rows, but the seed: parts of the key of a job."""
    return {
        "weights": checkpoint.fingerprint,
        "tokenizer": checkpoint.tokenizer_fingerprint,
        "examples": examples.fingerprint,
        **task_identity(task),
        "model_labels": config.model_labels,
        "max_length": config.max_length,
        "token_budget": config.token_budget,
        "dtype": config.dtype,
        "device": config.torch_device().type,
    }
