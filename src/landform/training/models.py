"""The model a run starts from: pre-trained weights, the head of the task, noise."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from landform.errors import ConfigError, LabelError
from landform.tasks.objective import Objective
from landform.tasks.task import Task
from landform.training.dropout import dropout_in_force, put_dropout
from landform.training.options import TrainConfig
from landform.training.seeds import Seeds, add_noise
from landform.weights.checkpoint import Checkpoint, load_model
from landform.weights.sites import ADAPTER, HEAD, dropout_sites
from landform.weights.tuning import method_name, tune

__all__ = ["label_order", "refuse_tuned", "starting_model"]

_HEADED = ("classification", "regression", "token-classification")
_HEAD_CLASS = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
}
_RATE = re.compile(r"drop(out|_?rate)?|pdrop")
_NOT_A_RATE = re.compile(r"layer_?drop|drop_path|stochastic")


def refuse_tuned(checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for a tuned model: what it adds would be trained as if it belonged to
    the pre-trained model, and a method on top of it could not be kept."""
    if checkpoint.tuning is not None:
        raise ConfigError(
            f"{checkpoint.spec} is a tuned model ({method_name(checkpoint.tuning)}): training "
            "starts from whole ones",
            remedy="make it whole first (landform merge, for lora and bitfit), or start from the "
            "model that it was tuned from",
        )


def has_head(checkpoint: Checkpoint, kind: str) -> bool:
    """Whether the checkpoint was saved with a head for tasks of this kind."""
    names = checkpoint.config.get("architectures") or [""]
    return str(names[0]).endswith(_HEAD_CLASS[kind])


def label_order(checkpoint: Checkpoint, task: Task, *, new_head: bool) -> tuple[str, ...]:
    """The labels of the head's outputs: the checkpoint's own head is kept where it has one.

    Raises `LabelError` when that head does not fit the task.
    """
    if task.kind not in _HEADED:
        return ()
    if new_head or not has_head(checkpoint, task.kind):
        return task.label_names if task.kind != "regression" else ("value",)
    labels = checkpoint.label_names()
    try:
        Objective.of(task, labels)
    except LabelError as error:
        raise LabelError(
            f"{checkpoint.spec}: its head does not fit the task {task.name}: {error.what}",
            remedy="pass new_head to draw a new head for this task, or set id2label in its "
            "config.json to the labels of its outputs",
        ) from error
    return labels


def starting_model(
    checkpoint: Checkpoint,
    task: Task,
    labels: tuple[str, ...],
    config: TrainConfig,
    seeds: Seeds,
) -> Any:
    """The model before its first step; what the checkpoint lacks is drawn under `seeds.head`."""
    rate = config.dropout if isinstance(config.dropout, float) else None
    changes = dropout_changes(checkpoint, rate, insert=config.insert_dropout)
    if task.kind in _HEADED and (config.new_head or not has_head(checkpoint, task.kind)):
        changes |= _head_changes(task, labels)
    # The head is drawn by transformers while it loads, from the global generator.
    torch.manual_seed(seeds.head)
    if config.new_head and task.kind in _HEADED and has_head(checkpoint, task.kind):
        model = _with_new_head(checkpoint, task, changes)
    else:
        model = load_model(checkpoint, task.kind, new_head=True, **changes)
    if config.perturb:
        add_noise(model, config.perturb, seeds.perturb, skip=model.landform_new_tensors)
    if config.tuning != "full":
        # The head draws first, from the same stream: what is drawn next does not repeat it.
        model = tune(model, config, head=task.kind in _HEADED)
    if rate and not config.insert_dropout:
        _warn_of_places_without(model, rate)
    if config.insert_dropout and all(site.how != "insert" for site in dropout_sites(model)):
        raise ConfigError(
            f"option insert_dropout: a {type(model).__name__} lacks dropout in no place where it "
            "could be inserted",
            remedy="leave it out: dropout alone reaches every place of this model",
        )
    model.landform_dropout = _put_dropout(model, config)
    return model


def _warn_of_places_without(model: Any, rate: float) -> None:
    """Warn where a rate for the whole model reaches a part of it only (LLaMA's attention)."""
    sites = [site for site in dropout_sites(model) if site.kind not in (HEAD, ADAPTER)]
    there, absent = (
        Counter(site.kind for site in sites if (site.how == "insert") == lacks)
        for lacks in (False, True)
    )
    if absent:
        reached, others = (
            ", ".join(f"{n} x {kind}" for kind, n in kinds.items()) or "none"
            for kinds in (there, absent)
        )
        warnings.warn(
            f"dropout {rate:g} reaches {there.total()} of the {len(sites)} places for it in this "
            f"{type(model).__name__} ({reached}); the others ({others}) have none unless it is "
            "inserted there: insert_dropout",
            stacklevel=2,
        )


def _put_dropout(model: Any, config: TrainConfig) -> dict[str, float] | None:
    """Dropout as the options ask for it; what is in force, or None where they do not."""
    rate: Any = config.dropout
    schedule = rate
    if rate is None or isinstance(rate, float):
        # A number is in the model's config already; it reaches what is inserted as well.
        inserted = [s.name for s in dropout_sites(model) if s.how == "insert"]
        schedule = dict.fromkeys(inserted, rate) if config.insert_dropout and rate else None
        if config.dropout_noise == "bernoulli" and schedule is None:
            with suppress(ConfigError):  # only the record asks for what acts: no reason to stop
                return None if rate is None else dropout_in_force(model)
            return None
    return put_dropout(
        model,
        schedule,
        noise=config.dropout_noise,
        insert=config.insert_dropout,
        compat=config.dropout_compat,
        all_sites=rate is None or isinstance(rate, float),
    ).in_force


def _head_changes(task: Task, labels: tuple[str, ...]) -> dict[str, Any]:
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def _with_new_head(checkpoint: Checkpoint, task: Task, changes: dict[str, Any]) -> Any:
    """The checkpoint's body under a newly drawn head of another size or meaning."""
    old = load_model(checkpoint, task.kind)
    config = old.config.__class__.from_dict({**old.config.to_dict(), **changes})
    model: Any = type(old)(config)
    prefix = model.base_model_prefix
    body = getattr(model, prefix, None)
    if not isinstance(body, nn.Module):
        raise ConfigError(
            f"{type(old).__name__} does not tell its head from its body",
            remedy="start from the pre-trained model without a head",
        )
    body.load_state_dict(getattr(old, prefix).state_dict())
    model.landform_new_tensors = frozenset(
        name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")
    )
    return model.eval()


def dropout_changes(
    checkpoint: Checkpoint, rate: float | None, *, insert: bool = False
) -> dict[str, Any]:
    """Changes of config.json that set every dropout rate the architecture has to `rate`.

    Raises `ConfigError` where it has none, unless dropout is inserted.
    """
    if rate is None:
        return {}
    from transformers import AutoConfig

    values = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True).to_dict()
    names = [
        name
        for name, value in values.items()
        if _RATE.search(name)
        and not _NOT_A_RATE.search(name)
        and ((isinstance(value, float | int) and not isinstance(value, bool)) or value is None)
    ]
    if not names and not insert:
        raise ConfigError(
            f"{checkpoint.spec}: its config.json has no dropout rate to set",
            remedy="leave the option dropout out",
        )
    return dict.fromkeys(names, rate)
