"""The labels of a task and the outputs of a model, reconciled by name.

Models order their labels as they please: entailment, neutral, contradiction in Hugging Face's
GLUE, contradiction, entailment, neutral in Google's BERT. The order is read from the model's own
label names and never assumed; where these say nothing, the caller must.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landform.errors import ConfigError, LabelError
from landform.tasks.columns import normalised
from landform.tasks.options import Merge

__all__ = ["SYNONYMS", "LabelMap", "reconcile"]

ModelLabels = Sequence[str] | Mapping[int, str] | Mapping[str, str]

SYNONYMS: Mapping[str, str] = {
    "nonentailment": "notentailment",
    "notentailed": "notentailment",
    "nonentailed": "notentailment",
    "entailed": "entailment",
    "entails": "entailment",
    "contradictory": "contradiction",
    "contradicts": "contradiction",
    "neg": "negative",
    "pos": "positive",
    "nonduplicate": "notduplicate",
    "nonequivalent": "notequivalent",
    "notacceptable": "unacceptable",
}
"""Spellings of the same label, without case and separators: spelling -> the one used here."""

_GENERIC = re.compile(r"(?:label)?(\d+)\Z")


@dataclass(frozen=True)
class LabelMap:
    """From the logits of a model's M labels to those of a task's K labels.

    `columns[j]` lists the model's outputs that make up label j of the task; every output occurs
    once. Gathered logits z become one by `merge`:

    * max: max z. Its argmax is the model's own argmax, then collapsed, as in the published HANS
      accuracies. Also when the sum of the others' probabilities exceeds that of the winner.
    * sum: the plain sum of the logits (an option of the connectivity scripts).
    * logsumexp: log sum exp z, after which the softmax adds the probabilities.

    `source` records how the order was found: by "names", by "indices" (both sides use bare
    numbers), or "given" by the caller.
    """

    columns: tuple[tuple[int, ...], ...]
    merge: Merge = "max"
    source: Literal["names", "indices", "given"] = "names"

    def __post_init__(self) -> None:
        if self.merge not in ("max", "sum", "logsumexp"):
            raise ConfigError(
                f"unknown merge {self.merge!r}", remedy="choose max, sum or logsumexp"
            )
        if sorted(self.order) != list(range(self.n_outputs)) or not all(self.columns):
            raise LabelError(
                f"columns {self.columns} do not use every output of the model once",
                remedy="assign each output of the model to one label of the task",
            )

    @property
    def order(self) -> tuple[int, ...]:
        """The model's outputs in the order of the task's labels."""
        return tuple(column for group in self.columns for column in group)

    @property
    def n_outputs(self) -> int:
        """How many outputs the model has (M)."""
        return len(self.order)

    @property
    def is_identity(self) -> bool:
        """Whether the model's outputs already are the task's labels, in order."""
        return self.columns == tuple((index,) for index in range(len(self.columns)))

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (..., M) of the model's labels as logits (..., K) of the task's labels."""
        if logits.ndim == 0 or logits.shape[-1] != self.n_outputs:
            raise LabelError(
                f"logits of shape {tuple(logits.shape)}; the last dimension must be"
                f" {self.n_outputs}, the labels of the model",
                remedy="use the map with the model that it was made for",
            )
        if self.is_identity:
            return logits
        if all(len(group) == 1 for group in self.columns):
            return logits[..., list(self.order)]
        return torch.stack([self._merged(logits, group) for group in self.columns], dim=-1)

    def _merged(self, logits: Tensor, group: tuple[int, ...]) -> Tensor:
        gathered = logits[..., list(group)]
        if len(group) == 1:
            return gathered[..., 0]
        if self.merge == "max":
            return gathered.max(dim=-1).values
        if self.merge == "sum":
            return gathered.sum(dim=-1)
        return gathered.logsumexp(dim=-1)


def reconcile(
    task_labels: Sequence[str],
    model_labels: ModelLabels,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    merge: Merge = "max",
    given: Sequence[str] | None = None,
) -> LabelMap:
    """Which outputs of a model stand for which label of a task.

    `task_labels`: the task's class names, in the order of its codes. `model_labels`: the model's
    names in the order of its outputs, or its `id2label`. Names are compared without case,
    spaces, hyphens and underscores, and through `SYNONYMS`. `groups` lists, per label of the
    task, the labels of a finer model that make it up; they are used when the model does not have
    the task's own labels. `given`: the model's names in the order of its outputs, where its
    config does not say (as `LABEL_0`).

    Where both sides are bare numbers 0..K-1, output k stands for code k. Bare numbers on one
    side only say nothing about the order and are refused.

    Raises `LabelError`, listing both sides.
    """
    task = tuple(map(str, task_labels))
    model = _in_order(model_labels)
    if not task or not model:
        raise LabelError(
            f"labels of the {'task' if not task else 'model'}: (none)",
            remedy="only tasks and models with classes can be reconciled",
        )
    if given is not None:
        model = _given(tuple(map(str, given)), model)
    _check_distinct(task, "task")
    _check_distinct(model, "model")
    source: Literal["names", "indices", "given"] = "names" if given is None else "given"
    numbers = _numbers(model)
    if given is None and numbers is not None:
        finer = sum(len(members) for members in (groups or {}).values())
        if _numbers(task, bare=True) is None and len(model) in (len(task), finer):
            raise _unnamed(task, model, groups)
        if len(task) == len(model):
            codes = [int(label) for label in task]
            return LabelMap(tuple((numbers.index(code),) for code in codes), merge, "indices")
    elif _numbers(task, bare=True) is not None and _numbers(model, bare=True) is None:
        raise _codes_only(task, model)
    return LabelMap(_by_name(task, model, groups), merge, source)


def _in_order(labels: ModelLabels) -> tuple[str, ...]:
    if not isinstance(labels, Mapping):
        return tuple(map(str, labels))
    try:
        by_index = {int(index): str(name) for index, name in labels.items()}
    except ValueError:
        by_index = {}
    if sorted(by_index) != list(range(len(labels))):
        raise LabelError(
            f"the model's id2label has the keys {', '.join(map(str, labels))};"
            f" 0 to {len(labels) - 1} were expected",
            remedy="repair id2label in the model's config.json",
        )
    return tuple(by_index[index] for index in range(len(by_index)))


def _given(given: tuple[str, ...], model: tuple[str, ...]) -> tuple[str, ...]:
    if len(given) != len(model):
        raise LabelError(
            f"{len(given)} model labels were given ({', '.join(given)}); the model has"
            f" {len(model)} outputs ({', '.join(model)})",
            remedy="give one name for each output of the model, in their order",
        )
    named = {_key(name) for name in model}
    if _numbers(model) is None and named == {_key(name) for name in given}:
        for index, (ours, theirs) in enumerate(zip(given, model, strict=True)):
            if _key(ours) != _key(theirs):
                raise LabelError(
                    f"output {index} of the model was given as {ours!r}; its config says"
                    f" {theirs!r} (given: {', '.join(given)}; config: {', '.join(model)})",
                    remedy="leave the given labels out to follow the config, or correct id2label"
                    " in the model's config.json when it is wrong",
                )
    return given


def _key(name: str) -> str:
    plain = normalised(name)
    return SYNONYMS.get(plain, plain)


def _check_distinct(labels: Sequence[str], owner: str) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(_key(label), label)
        if other is not label or labels.count(label) > 1:
            raise LabelError(
                f"the {owner} has the labels {other!r} and {label!r}, which are the same name",
                remedy=f"give the {owner}'s labels distinct names ({', '.join(labels)})",
            )


def _numbers(labels: Sequence[str], *, bare: bool = False) -> list[int] | None:
    """The numbers of labels such as LABEL_0 or 0 when they are 0..K-1 in some order."""
    found: list[int] = []
    for label in labels:
        match = _GENERIC.match(label if bare else normalised(label))
        if match is None:
            return None
        found.append(int(match.group(1)))
    return found if sorted(found) == list(range(len(labels))) else None


def _by_name(
    task: tuple[str, ...], model: tuple[str, ...], groups: Mapping[str, Sequence[str]] | None
) -> tuple[tuple[int, ...], ...]:
    at = {_key(name): index for index, name in enumerate(model)}
    direct = [at.get(_key(name)) for name in task]
    if len(task) == len(model) and all(index is not None for index in direct):
        return tuple((index,) for index in direct if index is not None)
    if groups is not None:
        wanted = {_key(name): members for name, members in groups.items()}
        gathered = [tuple(wanted.get(_key(name), (name,))) for name in task]
        members = [_key(member) for group in gathered for member in group]
        if sorted(members) == sorted(at):
            return tuple(tuple(at[_key(member)] for member in group) for group in gathered)
    raise _mismatch(task, model, groups)


def _listed(task: Sequence[str], model: Sequence[str]) -> str:
    return f"task labels: {_shown(task)}; model labels: {_shown(model)}"


def _shown(names: Sequence[str], most: int = 20) -> str:
    """The names with commas; of very many (a column of texts taken for labels) the first few."""
    first = ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:most])
    return first + (f" and {len(names) - most} more" if len(names) > most else "")


def _mismatch(
    task: tuple[str, ...], model: tuple[str, ...], groups: Mapping[str, Sequence[str]] | None
) -> LabelError:
    known, wanted = {_key(name) for name in model}, {_key(name) for name in task}
    absent = [name for name in task if _key(name) not in known]
    extra = [name for name in model if _key(name) not in wanted]
    faults = [f"{len(task)} labels in the task, {len(model)} in the model"]
    if absent:
        faults.append(f"the model does not know {_shown([*map(repr, absent)])}")
    if extra:
        faults.append(f"the task does not know {_shown([*map(repr, extra)])}")
    remedy = "use a model that was fine-tuned for these labels"
    if len(task) == len(model):
        remedy += "; where only the names differ, pass the model's labels in the task's words, in"
        remedy += " the order of the model's outputs: model_labels=(...)"
    elif len(model) > len(task):
        remedy += "; to gather finer labels pass label_groups={task label: (model labels), ...}"
    if groups is not None:
        shown = "; ".join(f"{name} = {' + '.join(members)}" for name, members in groups.items())
        remedy += f" (the task gathers {shown})"
    return LabelError(f"{'; '.join(faults)} ({_listed(task, model)})", remedy=remedy)


def _unnamed(
    task: tuple[str, ...], model: tuple[str, ...], groups: Mapping[str, Sequence[str]] | None
) -> LabelError:
    # The example only shows the form: which order is right is what nobody but the user knows.
    example = task
    if groups is not None and len(model) != len(task):
        example = tuple(member for name in task for member in groups.get(name, (name,)))
    return LabelError(
        "the model's config does not name its labels, so their order cannot be known"
        f" ({_listed(task, model)})",
        remedy="pass the names in the order of the model's outputs, of the form"
        f" model_labels=({', '.join(map(repr, example))}), or set id2label in its config.json",
    )


def _codes_only(task: tuple[str, ...], model: tuple[str, ...]) -> LabelError:
    return LabelError(
        "the task's labels are bare codes and the model's are names, so which code means what"
        f" cannot be known ({_listed(task, model)})",
        remedy="name the codes of the task in their order, of the form"
        f" label_names=({', '.join(map(repr, model))})",
    )
