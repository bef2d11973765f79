"""Weights of other frameworks as checkpoints of landform: safetensors, config, tokenizer.

transformers 5 has no TensorFlow and no Flax classes any more, so the files are read here. What is
known of the names of each format is a rule on names and shapes; the model that config.json
describes then decides: every tensor it has must come from the file, in its shape.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landform.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    StoreError,
)
from landform.results import Result
from landform.store.atomic import atomic_directory, file_errors
from landform.weights.checkpoint import (
    _ARCHITECTURE_KINDS,
    _AUTO_CLASSES,
    _TOKENIZER_FILES,
    quiet_transformers,
)
from landform.weights.foreign import FORMATS, read_foreign

__all__ = ["Conversion", "convert"]

Tensors = dict[str, Tensor]

# Architectures whose dense layers are all plain matrices, kept (in, out) by TensorFlow and Flax.
_TRANSPOSED = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class Conversion(Result):
    """What was converted, and what was left behind."""

    source: str
    format: str
    destination: str
    kind: str
    """kind of the head"""
    tensors: int
    parameters: int
    unused: tuple[str, ...]
    """tensors of the source that the model does not have (a head of pre-training, say)"""
    provenance: dict[str, Any]

    @property
    def reading(self) -> str:
        """One line for a person."""
        left = f"; not used: {', '.join(self.unused[:4])}" if self.unused else ""
        more = f" and {len(self.unused) - 4} more" if len(self.unused) > 4 else ""
        return (
            f"{self.format} -> safetensors: {self.tensors} tensors, {self.parameters:,} "
            f"parameters, {self.kind}{left}{more}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "source": self.source,
            "format": self.format,
            "destination": self.destination,
            "kind": self.kind,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "unused": list(self.unused),
            "provenance": self.provenance,
        }


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    kind: str | None = None,
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    labels: tuple[str, ...] = (),
) -> Conversion:
    """Write the weights in `source` as a checkpoint directory that landform and transformers load.

    `source` is the weights file (`model.ckpt-34110.index`, or without `.index`), or a folder
    that holds one. `config` is config.json or bert_config.json (default: the one next to it);
    `tokenizer` a folder with the tokenizer's files (default: the same folder). `kind` is the head:
    classification, masked-lm, ... (default: by the architectures in the config, then by the
    tensors). `labels` names the classes, where the config does not. `destination` is the directory
    to write, which must not hold other things.

    Raises `CheckpointError` naming file and tensor where the model would have weights that the file
    does not hold, or of another shape, and for architectures whose names are not known;
    `MissingExtraError` where a package is needed to read the format. Writes nothing then.
    """
    file = _weights_file(Path(source))
    target = Path(destination)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(
            f"{target} is there already", remedy="choose a folder that does not exist yet"
        )
    format_ = FORMATS[file.suffix]
    described = _config(file, config)
    model_type = str(described.get("model_type"))
    if format_ != "PyTorch state dict" and model_type not in _TRANSPOSED:
        raise CheckpointError(
            f"{file}: landform does not know how {format_} names the weights of {model_type!r}",
            remedy=f"known: {', '.join(_TRANSPOSED)}. Convert it with transformers 4 and the "
            "framework itself: from_pretrained(..., from_tf=True) or from_flax=True",
        )
    tensors = read_foreign(file)
    _check_finite(file, tensors)
    chosen = kind or _kind_of(described, tensors)
    model = _model(file, described, chosen, tensors, labels)
    unused = _fill(file, model, tensors)
    with atomic_directory(target, durable=True) as folder:
        with quiet_transformers():
            model.save_pretrained(folder)
        _copy_tokenizer(Path(tokenizer) if tokenizer else file.parent, folder)
    return Conversion(
        source=str(file),
        format=format_,
        destination=str(target),
        kind=chosen,
        tensors=len(model.state_dict()),
        parameters=sum(p.numel() for p in model.parameters()),
        unused=unused,
        provenance={"source": str(file), "format": format_, "config": described},
    )


# --- what there is -------------------------------------------------------------------------------


def _weights_file(source: Path) -> Path:
    """The one file of weights that `source` names."""
    index = source.with_name(f"{source.name}.index")
    if index.is_file():
        return index
    if source.is_file():
        if source.suffix in FORMATS:
            return source
        if source.suffix == ".safetensors":
            raise ConfigError(
                f"{source} is safetensors already", remedy="use its folder as the checkpoint"
            )
        raise CheckpointError(
            f"{source}: the format {source.suffix or 'without an ending'} is not known",
            remedy=f"known: {', '.join(FORMATS)}",
        )
    if not source.is_dir():
        raise CheckpointError(
            f"{source}: there is no such file or folder",
            remedy="name the weights (model.ckpt-1000, flax_model.msgpack, tf_model.h5)",
        )
    found = sorted(path for path in source.iterdir() if path.suffix in FORMATS)
    found = [
        path for path in found if not re.match(r"optimizer|scheduler|training_args", path.name)
    ]
    if len(found) == 1:
        return found[0]
    raise CheckpointError(
        f"{source} holds {len(found)} files of weights to convert"
        + (f": {', '.join(path.name for path in found[:6])}" if found else ""),
        remedy="name the file itself" if found else f"known: {', '.join(FORMATS)}",
    )


def _config(file: Path, given: str | Path | None) -> dict[str, Any]:
    names = ("config.json", "bert_config.json")
    places = [Path(given)] if given else [file.parent / name for name in names]
    for place in places:
        if place.is_file():
            try:
                value = json.loads(place.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise CheckpointError(f"cannot read {place}: {error}") from error
            if not isinstance(value, dict):
                raise CheckpointError(f"{place} is not a JSON object")
            if place.name == "bert_config.json":  # Google's own says no more than the sizes
                value = {"model_type": "bert", **value}
            if "model_type" not in value:
                raise CheckpointError(
                    f"{place} names no model_type", remedy='add it, say "model_type": "bert"'
                )
            return value
    raise CheckpointError(
        f"{file}: there is no {' or '.join(map(str, places))}, which says what model this is",
        remedy="put the config next to the weights, or name it (--config)",
    )


def _kind_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The kind of the head: as the config says, or as the tensors tell."""
    for ending, kind in _ARCHITECTURE_KINDS.items():
        if str((config.get("architectures") or [""])[0]).endswith(ending):
            return kind
    if any(name.startswith("classifier.") for name in tensors):
        return "classification"
    if any(name.startswith(("cls.predictions.", "lm_head.")) for name in tensors):
        return "masked-lm"
    raise ConfigError(
        "neither the config nor the tensors tell what kind of head this is",
        remedy=f"say it: --kind ({', '.join(_AUTO_CLASSES)})",
    )


# --- the model -----------------------------------------------------------------------------------


def _check_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"{file}: the tensor {name} holds NaN or infinite numbers",
                remedy="the training that wrote it diverged: use an earlier step",
            )


def _model(
    file: Path,
    described: Mapping[str, Any],
    kind: str,
    tensors: Mapping[str, Tensor],
    labels: tuple[str, ...],
) -> Any:
    """A model as the config describes it, with a head of the size that the file has."""
    import transformers

    if kind not in _AUTO_CLASSES:
        raise ConfigError(f"unknown kind {kind!r}", remedy=f"known: {', '.join(_AUTO_CLASSES)}")
    settings = dict(described)
    head = tensors.get("classifier.weight", tensors.get("classifier.out_proj.weight"))
    if head is not None and kind in ("classification", "token-classification"):
        outputs = int(head.shape[0])
        if labels and len(labels) != outputs:
            raise ConfigError(
                f"{len(labels)} labels are given and the head of {file} has {outputs} outputs",
                remedy="name every class once, in the order of the model's outputs",
            )
        names = labels or _label_names(settings, outputs)
        settings["id2label"] = {str(k): name for k, name in enumerate(names)}
        settings["label2id"] = {name: k for k, name in enumerate(names)}
    settings.pop("num_labels", None)
    model_type = settings.pop("model_type")
    with quiet_transformers():
        try:
            config = transformers.AutoConfig.for_model(model_type, **settings)
            model: Any = getattr(transformers, _AUTO_CLASSES[kind]).from_config(config)
        except Exception as error:  # which types, depends on the architecture's own checks
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{file}: no {kind} model can be made of its config: {reason}",
                remedy="check the config, or name another kind (--kind)",
            ) from error
    return model.eval()


def _label_names(settings: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    named = settings.get("id2label") or {}
    if len(named) == outputs and all(str(k) in {str(n) for n in named} for k in range(outputs)):
        by_number = {str(key): str(value) for key, value in named.items()}
        return tuple(by_number[str(k)] for k in range(outputs))
    return tuple(f"LABEL_{k}" for k in range(outputs))


def _fill(file: Path, model: Any, tensors: Tensors) -> tuple[str, ...]:
    """Put the tensors into the model, all of its own or an error; names that it does not have."""
    own = model.state_dict(keep_vars=True)
    buffers = {name for name, _ in model.named_buffers()}
    # Parameters that are one tensor under two names (a tied decoder) may be given under either.
    groups: dict[int, list[str]] = {}
    for name, value in own.items():
        groups.setdefault(id(value), []).append(name)
    missing = [
        names[0]
        for names in groups.values()
        if not any(name in tensors for name in names) and names[0] not in buffers
    ]
    if missing:
        raise CheckpointError(
            f"{file} holds no weights for {', '.join(missing[:4])}"
            f"{' ...' if len(missing) > 4 else ''}: they would be random numbers",
            remedy="it holds "
            + (f"{', '.join(sorted(tensors)[:4])}, ... " if tensors else "nothing ")
            + "- another kind of head (--kind), or another architecture",
        )
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in own:
                continue
            if own[name].shape != value.shape:
                raise CheckpointError(
                    f"{file}: {name} is {tuple(value.shape)} in the file and "
                    f"{tuple(own[name].shape)} by the config",
                    remedy="the config does not belong to these weights",
                )
            own[name].copy_(value)
    return tuple(sorted(name for name in tensors if name not in own))


def _copy_tokenizer(source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise CheckpointError(f"{source}: there is no such folder of a tokenizer")
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            with file_errors("copy", source / name):
                shutil.copy(source / name, folder / name)
