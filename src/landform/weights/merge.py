"""Merging: what was tuned folded into the weights of the pre-trained model.

LoRA and its relatives change a weight matrix, W' = W + (alpha / r) B A, so that the whole model
with W' in place of W computes the same, and loads anywhere; trained biases are weights already.
Adapters, prefixes and prompts add computation that no weight of the model can take over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from landform.errors import ConfigError, StoreError
from landform.results import Result
from landform.store.atomic import atomic_directory
from landform.weights.checkpoint import (
    CheckpointLike,
    LoadConfig,
    _load_base,
    _tokenizer_files,
    load_model,
    load_tokenizer,
    quiet_transformers,
    resolve,
    torch_random_kept,
)
from landform.weights.space import ParameterSpace
from landform.weights.tuning import method_name

__all__ = ["Merge", "merge"]


@dataclass(frozen=True)
class Merge(Result):
    """A tuned model that was made a whole one."""

    checkpoint: str
    method: str
    destination: str
    tuned: int
    """parameters that were tuned"""
    changed: tuple[str, ...]
    """tensors of the whole model that are not those of the pre-trained one, or are new (a head)"""
    parameters: int
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        return (
            f"{self.checkpoint} ({self.method}, {self.tuned:,} tuned parameters) as a whole model "
            f"of {self.parameters:,}; {len(self.changed)} tensors are not those of the pre-trained "
            "one"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "checkpoint": self.checkpoint,
            "method": self.method,
            "destination": self.destination,
            "tuned": self.tuned,
            "changed": list(self.changed),
            "parameters": self.parameters,
            "provenance": self.provenance,
        }


def merge(checkpoint: CheckpointLike, out: str | os.PathLike[str], **options: Any) -> Merge:
    """Write a tuned model as a whole checkpoint directory with the same outputs.

    For LoRA and the other methods of PEFT that change weights, and for bitfit. The sums are taken
    in `dtype`, so outputs agree within its rounding. Options are the fields of `LoadConfig`.

    Raises `ConfigError` for whole models and for methods that cannot be folded into weights
    (adapter, prefix, prompt), `StoreError` where `out` is not empty. Writes nothing then.
    """
    config = LoadConfig.parse(options, where="merge")
    source, target = resolve(checkpoint), Path(out)
    method = method_name(source.tuning)
    if method == "full":
        raise ConfigError(f"{source.spec} is a whole model", remedy="use it as it is")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(
            f"{target} is there already", remedy="choose a folder that does not exist yet"
        )
    model: Any = load_model(source, config=config)
    tuned = ParameterSpace.of(model).numel
    model = _folded(model, source.spec, method)
    with torch_random_kept():  # a new head, say, which is not the one that was trained
        before = _load_base(source, None, config, {}).state_dict()
    after = model.state_dict()
    changed = tuple(
        name
        for name, values in after.items()
        if name not in before
        or values.shape != before[name].shape
        or not torch.equal(values, before[name])
    )
    with atomic_directory(target, durable=True) as folder, quiet_transformers():
        model.save_pretrained(folder)
        if _tokenizer_files(source.tokenizer_path):
            load_tokenizer(source).save_pretrained(folder)
    return Merge(
        checkpoint=source.spec,
        method=method,
        destination=str(target),
        tuned=tuned,
        changed=changed,
        parameters=sum(p.numel() for p in model.parameters()),
        provenance={
            "checkpoint": source.fingerprint,
            "base": source.base.fingerprint,
            "config": config.model_dump(mode="json"),
        },
    )


def _folded(model: Any, spec: str, method: str) -> Any:
    """The plain model of transformers with the tuned weights in it."""
    wrapped = model.landform_tuning.peft
    if wrapped is None and method != "bitfit":
        raise ConfigError(
            f"{spec}: {method} adds computation that no weight of the model can take over",
            remedy="use the tuned checkpoint as it is: every command takes it; lora and bitfit can "
            "be merged",
        )
    if wrapped is not None:
        tuner = wrapped.base_model
        if not hasattr(tuner, "merge_and_unload"):
            raise ConfigError(f"{spec}: PEFT cannot fold {method} into weights")
        try:
            with torch.no_grad():
                model = tuner.merge_and_unload()
        except (NotImplementedError, ValueError) as error:
            raise ConfigError(
                f"{spec}: PEFT cannot fold this {method}: {' '.join(str(error).split())}",
                remedy="use the tuned checkpoint as it is",
            ) from None
    for name in ("landform_tuned", "landform_tuning"):
        if hasattr(model, name):
            delattr(model, name)
    return model.requires_grad_(True).eval()
