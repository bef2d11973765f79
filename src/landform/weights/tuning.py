"""Tuning methods: which tensors of a model are trained, and where further ones are put.

full      every tensor of the model
adapter   bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021); see `weights.adapters`
compacter adapters of Kronecker products (Karimi Mahabadi et al. 2021); see `weights.compacter`
low-rank-adapter   adapters of two low-rank matrices (as well)
lora      low-rank updates (Hu et al. 2022), through PEFT
prefix    trained keys and values before those of the text (Li & Liang 2021); see `weights.prefix`
prompt    trained embeddings before those of the text (Lester et al. 2021); see `weights.prompt`
bitfit    the biases (Ben Zaken et al. 2022)

A tuned model is the pre-trained one, changed in place: what is trained requires a gradient, all
else is frozen. Its parameter space is what was trained, so everything that moves models (lines,
surfaces, curves, sharpness) moves adapters as it moves whole models. On disk it is a directory
with adapter_config.json and adapter_model.safetensors, for LoRA those of PEFT itself.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from landform.config import Config
from landform.errors import CheckpointError, ConfigError, MissingExtraError
from landform.store.atomic import read_json, write_json
from landform.weights import adapters, compacter, prefix, prompt

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "Tuning",
    "TuningConfig",
    "apply_tuning",
    "check_first_weights",
    "draw_tuning",
    "head_modules",
    "method_name",
    "own_options",
    "read_base",
    "save_model",
    "tune",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_RECORD = "landform_base.json"

Method = Literal[
    "full", "adapter", "compacter", "low-rank-adapter", "lora", "prefix", "prompt", "bitfit"
]

_ADAPTERS = ("adapter", "compacter", "low-rank-adapter")

_USED_BY: Mapping[str, tuple[str, ...]] = {
    "train_also": (*_ADAPTERS, "lora", "prefix", "prompt", "bitfit"),
    "adapter_size": _ADAPTERS,
    "adapter_placement": _ADAPTERS,
    "adapter_activation": _ADAPTERS,
    "adapter_rank": ("compacter", "low-rank-adapter"),
    "phm_division": ("compacter",),
    "phm_shared": ("compacter",),
    "init_mean": ("adapter", "compacter", "prefix", "prompt"),
    "init_std": ("adapter", "compacter", "prefix", "prompt"),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "lora_dropout": ("lora",),
    "lora_modules": ("lora",),
    "prefix_length": ("prefix",),
    "prefix_hidden": ("prefix",),
    "prompt_length": ("prompt",),
}
"""The methods that read an option."""


class TuningConfig(Config):
    """What of a model is trained."""

    tuning: Method = "full"
    """What is trained: full (every tensor), adapter, compacter, low-rank-adapter, lora, prefix,
    prompt or bitfit; for classifiers the head besides."""
    train_also: tuple[str, ...] = ()
    """Patterns of further tensors of the model that are trained besides ('*LayerNorm*')."""
    adapter_size: int = Field(64, ge=1)
    """Width of a bottleneck adapter."""
    adapter_placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    """Adapters after every attention and feed-forward block (houlsby), or after the feed-forward
    blocks alone (pfeiffer)."""
    adapter_activation: Literal["silu", "relu", "gelu", "gelu_new"] | None = None
    """Activation inside an adapter (default: silu for houlsby, relu for pfeiffer, and gelu_new for
    compacter and low-rank-adapter)."""
    adapter_rank: int = Field(1, ge=1)
    """Rank of the matrices of a low-rank adapter, and of the factors of a compacter."""
    phm_division: int = Field(4, ge=1)
    """Kronecker products in a matrix of a compacter, n: a divisor of the model's width and of
    ADAPTER_SIZE."""
    phm_shared: bool = True
    """All compacters of a model have the first factors (n x n) of their products in common."""
    init_mean: float = Field(0.0, allow_inf_nan=False)
    """Mean of the first weights of adapters, of the n x n factors of compacters, of prefixes and
    prompts."""
    init_std: float = Field(0.02, ge=0, allow_inf_nan=False)
    """Standard deviation of the first weights of adapters, of the n x n factors of compacters, of
    prefixes and prompts."""
    lora_rank: int = Field(8, ge=1)
    """Rank of the LoRA updates."""
    lora_alpha: float = Field(16.0, gt=0, allow_inf_nan=False)
    """LoRA updates are scaled by LORA_ALPHA / LORA_RANK."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the input of the LoRA updates."""
    lora_modules: tuple[str, ...] | None = None
    """Names of the layers that LoRA updates (default: queries and values)."""
    prefix_length: int = Field(100, ge=1)
    """Trained keys and values in every attention layer."""
    prefix_hidden: int | None = Field(512, ge=1)
    """Keys and values are made from an embedding of PREFIX_LENGTH rows by two layers with so many
    hidden units ('none': they are trained themselves)."""
    prompt_length: int = Field(100, ge=1)
    """Trained embeddings before those of the text."""

    @field_validator("train_also", "lora_modules", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _used_options(self) -> Self:
        for name, methods in _USED_BY.items():
            default = TuningConfig.model_fields[name].default
            if self.tuning not in methods and getattr(self, name) != default:
                *most, last = methods
                listed = f"{', '.join(most)} or {last}" if most else last
                raise ValueError(f"{name} is an option of tuning {listed}, not of {self.tuning}")
        if self.tuning == "compacter" and self.adapter_size % self.phm_division:
            raise ValueError(
                f"phm_division {self.phm_division} does not divide adapter_size {self.adapter_size}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The method and the options it reads; {} for full fine-tuning."""
        if self.tuning == "full":
            return {}
        used = [name for name, methods in _USED_BY.items() if self.tuning in methods]
        values = self.model_dump(mode="json", include={"tuning", *used})
        return {name: values[name] for name in ("tuning", *used)}

    @property
    def activation(self) -> str:
        """The activation of adapters that applies."""
        if self.adapter_activation is not None:
            return self.adapter_activation
        if self.tuning != "adapter":
            return "gelu_new"
        return "silu" if self.adapter_placement == "houlsby" else "relu"


TUNING_OPTIONS = frozenset(TuningConfig.model_fields)


@dataclass(frozen=True)
class Tuning:
    """How a model in memory was tuned (its attribute `landform_tuning`)."""

    options: dict[str, Any]
    """adapter_config.json"""
    peft: Any = None
    """the PeftModel around it, for methods of PEFT"""


# --- making a tuned model -----------------------------------------------------------------------


def head_modules(model: Any) -> tuple[str, ...]:
    """Names of the modules that are no part of the pre-trained body: `classifier`, `score`.

    Raises `ConfigError` where the class does not tell its head from its body.
    """
    body = model.base_model_prefix
    if not isinstance(getattr(model, body, None), nn.Module):
        raise ConfigError(
            f"{type(model).__name__} does not tell its head from its body",
            remedy="use tuning full, or start from the pre-trained model without a head",
        )
    return tuple(
        name
        for name, module in model.named_children()
        if name != body and any(True for _ in module.parameters())
    )


def tune(model: Any, config: TuningConfig, *, head: bool) -> Any:
    """Make `model` ready to be tuned by a method, in place; returns it.

    New tensors are drawn from torch's global generator. `head`: whether the model's head is
    trained besides; whatever else was drawn when the model was loaded (a pooler that an encoder was
    saved without) is trained with it. The names of what is trained are in `model.landform_tuned`.
    """
    if config.tuning == "full":
        return model
    heads = head_modules(model) if head else ()
    drawn = set(getattr(model, "landform_new_tensors", ())) if head else set()
    if config.tuning == "lora":
        return _wrap(model, _lora(model, config, heads, drawn))
    new = _insert(model, config)
    trained = new | {
        name
        for name, _ in model.named_parameters()
        if name.split(".")[0] in heads
        or name in drawn
        or any(fnmatchcase(name, pattern) for pattern in config.train_also)
        or (config.tuning == "bitfit" and name.endswith("bias"))
    }
    options = {"peft_type": f"LANDFORM_{config.tuning.upper()}", "landform": config.identity()}
    return _freeze(model, frozenset(trained), Tuning(options))


def _insert(model: Any, config: TuningConfig) -> set[str]:
    """Add the tensors of one of landform's own methods; their names."""
    if config.tuning == "adapter":
        return adapters.insert(
            model,
            size=config.adapter_size,
            placement=config.adapter_placement,
            activation=config.activation,
            mean=config.init_mean,
            std=config.init_std,
        )
    if config.tuning == "compacter":
        return compacter.insert(
            model,
            size=config.adapter_size,
            placement=config.adapter_placement,
            activation=config.activation,
            division=config.phm_division,
            rank=config.adapter_rank,
            shared=config.phm_shared,
            mean=config.init_mean,
            std=config.init_std,
        )
    if config.tuning == "low-rank-adapter":
        return compacter.insert_low_rank(
            model,
            size=config.adapter_size,
            placement=config.adapter_placement,
            activation=config.activation,
            rank=config.adapter_rank,
        )
    if config.tuning == "prefix":
        return prefix.insert(
            model,
            length=config.prefix_length,
            hidden=config.prefix_hidden,
            mean=config.init_mean,
            std=config.init_std,
        )
    if config.tuning == "prompt":
        return prompt.insert(
            model, length=config.prompt_length, mean=config.init_mean, std=config.init_std
        )
    return set()


def _freeze(model: Any, trained: frozenset[str], tuning: Tuning) -> Any:
    if not trained:
        raise ConfigError(
            f"{type(model).__name__} has no tensor that this tuning method trains",
            remedy="choose another method (biases are missing in T5, say)",
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    model.landform_tuned, model.landform_tuning = trained, tuning
    return model


# --- PEFT ---------------------------------------------------------------------------------------

_TASK_TYPES = (
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtraError.of("peft", "peft", "tuning lora") from None
    return peft


def _lora(model: Any, config: TuningConfig, heads: Sequence[str], drawn: Set[str]) -> Any:
    """PEFT's config of the LoRA updates, queries and values unless others are named."""
    peft = _peft()
    known = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    modules = config.lora_modules or known.get(model.config.model_type) or _queries_values(model)
    if not modules:
        raise ConfigError(
            f"lora: which layers of a {model.config.model_type} are to be updated?",
            remedy="name them: lora_modules=('query', 'value')",
        )
    also = {
        name.rpartition(".")[0]
        for name, _ in model.named_parameters()
        if any(fnmatchcase(name, pattern) for pattern in config.train_also)
        or (name in drawn and name.split(".")[0] not in heads)
    }
    kind = next((t for end, t in _TASK_TYPES if type(model).__name__.endswith(end)), None)
    turned = any(  # GPT-2's layers keep their weights (in, out)
        type(layer).__name__ == "Conv1D" and name.endswith(tuple(modules))
        for name, layer in model.named_modules()
    )
    return peft.LoraConfig(
        task_type=kind,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(modules),
        fan_in_fan_out=turned,
        modules_to_save=[*heads, *sorted(also)] or None,
        base_model_name_or_path=getattr(model.config, "_name_or_path", None),
    )


def _queries_values(model: Any) -> list[str]:
    """The layers of queries and values in models that PEFT has no list for (DistilBERT)."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    pairs = (("q_lin", "v_lin"), ("q_proj", "v_proj"), ("query", "value"), ("q", "v"))
    return next((list(pair) for pair in pairs if names.issuperset(pair)), [])


def _wrap(model: Any, config: Any) -> Any:
    """Inject PEFT's layers; the model itself, whose forward pass now runs through them."""
    peft = _peft()
    # Generic: the classes for kinds of tasks would only add heads that `config` names already.
    kind, config.task_type = config.task_type, None
    try:
        with warnings.catch_warnings():
            # PEFT reads an attribute that transformers has renamed.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            wrapped = peft.PeftModel(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(
            f"lora: {str(error).splitlines()[0]}", remedy="name layers of this model: lora_modules="
        ) from None
    finally:
        config.task_type = kind
    inner = wrapped.get_base_model()
    trained = frozenset(name for name, p in inner.named_parameters() if p.requires_grad)
    return _freeze(inner, trained, Tuning(config.to_dict(), wrapped))


# --- on disk ------------------------------------------------------------------------------------


def save_model(
    model: Any, directory: Path, base: Path | None = None, fingerprint: str | None = None
) -> None:
    """Write a model as a checkpoint: whole, or, where it was tuned, what was tuned.

    `base` is the directory of the pre-trained model that a tuned one needs, `fingerprint` that
    of its weights: both are kept, so that the model is found and recognised.
    """
    tuning: Tuning | None = getattr(model, "landform_tuning", None)
    if tuning is None:
        model.save_pretrained(directory)
        return
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in _state(model)}
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    hub = _hub_place(base) if base is not None else {}
    path = str(base) if base is not None else getattr(model.config, "_name_or_path", None)
    options = {**_plain(tuning.options), "base_model_name_or_path": path, "inference_mode": True}
    write_json(directory / ADAPTER_CONFIG, options | hub)
    # What PEFT does not keep: the names of the labels, and which head it is.
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    if base is not None:
        relative = None if hub else os.path.relpath(base, directory)
        write_json(directory / BASE_RECORD, {"relative": relative, "fingerprint": fingerprint})


def _hub_place(base: Path) -> dict[str, Any]:
    """Name and revision of a model in the cache of the hub, which are the same on all machines."""
    folder = base.parent.parent.name
    if base.parent.name != "snapshots" or not folder.startswith("models--"):
        return {}
    name = folder.removeprefix("models--").replace("--", "/")
    return {"base_model_name_or_path": name, "revision": base.name}


def _state(model: Any) -> list[tuple[str, Tensor]]:
    tuning: Tuning = model.landform_tuning
    if tuning.peft is not None:
        state = _peft().get_peft_model_state_dict(tuning.peft, save_embedding_layers=False)
        return sorted(state.items())
    return [(name, p) for name, p in model.named_parameters() if name in model.landform_tuned]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configs hold sets and enumerations."""

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))

    made: dict[str, Any] = json.loads(json.dumps(dict(options), default=plain))
    return made


def apply_tuning(model: Any, options: dict[str, Any], weights: Path, spec: str) -> Any:
    """Turn the pre-trained `model` into the tuned one, whose tensors are in `weights`, in place.

    `options` is adapter_config.json. Raises `CheckpointError` for tensors that are missing, of
    other shapes, or in excess.
    """
    tensors = _read(weights)
    if "landform" not in options:
        return _apply_peft(model, options, tensors, spec)
    config = own_options(options, spec)
    with torch.random.fork_rng(devices=[]):
        new = _insert(model, config)
    lacking = sorted(new - set(tensors))
    if lacking:
        raise CheckpointError(
            f"{spec}: {weights.name} lacks {lacking[0]}",
            remedy="adapter_config.json and the weights do not belong together",
        )
    _fill(dict(model.named_parameters()), tensors, spec)
    return _freeze(model, frozenset(tensors), Tuning(options))


def draw_tuning(
    model: Any, options: dict[str, Any], weights: Path, spec: str, **changes: float
) -> Any:
    """`apply_tuning` with the first weights of the method in place of the trained ones.

    They are drawn from torch's global generator; tensors of the pre-trained model that were tuned
    stay as they are there. `changes` are options of landform's own methods that read them.
    """
    if "landform" not in options:
        config = _peft_config(options, spec)
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True  # others look at data, or change the model itself
        return _wrap(model, config)
    kept = own_options(options, spec).identity()
    used = {name: value for name, value in changes.items() if name in kept}
    _insert(model, TuningConfig.parse({**kept, **used}, where=f"{spec}: {ADAPTER_CONFIG}"))
    return _freeze(model, frozenset(_read(weights)), Tuning(options))


def _read(weights: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if weights.suffix != ".bin":
        return load_file(weights)
    # The user allowed a pickle (see `checkpoint.check_loadable`); it still runs no code.
    try:
        tensors: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:  # a damaged archive
        raise pickle.UnpicklingError(str(error)) from error
    return tensors


def own_options(options: Mapping[str, Any], spec: str) -> TuningConfig:
    """The options in an adapter_config.json that landform wrote."""
    if not isinstance(options["landform"], dict):
        raise CheckpointError(
            f"{spec}: {ADAPTER_CONFIG}: landform is {options['landform']!r}, not a set of options",
            remedy="copy the file again, or train the model again",
        )
    config = TuningConfig.parse(options["landform"], where=f"{spec}: {ADAPTER_CONFIG}")
    if options.get("peft_type") != f"LANDFORM_{config.tuning.upper()}":
        raise CheckpointError(
            f"{spec}: {ADAPTER_CONFIG} says {options.get('peft_type')} and tuning {config.tuning}",
            remedy="copy the file again, or train the model again",
        )
    return config


def method_name(options: Mapping[str, Any] | None) -> str:
    """The method in an adapter_config.json as users know it; `full` of a whole model."""
    if options is None:
        return "full"
    return str(options.get("peft_type")).removeprefix("LANDFORM_").lower()


_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def check_first_weights(options: Mapping[str, Any], spec: str) -> None:
    """Raise `CheckpointError` for a LoRA whose first weights were taken out of the frozen ones.

    PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA begin by changing the pre-trained weights; the adapter is
    an update of these changed ones, which nobody kept.
    """
    start = options.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{spec}: {ADAPTER_CONFIG}: init_lora_weights is {start!r}, which may change the "
            "pre-trained weights themselves: with those on disk it is another model",
            remedy="save it with PEFT as plain LoRA: save_pretrained(DIR, "
            "path_initial_model_for_weight_conversion=...); or whole, after merge_and_unload()",
        )


def _peft_config(options: Mapping[str, Any], spec: str) -> Any:
    """PEFT's config object. What this version does not know may only say that it is not used."""
    check_first_weights(options, spec)
    peft = _peft()
    kinds = {getattr(k, "value", k): v for k, v in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = kinds.get(options.get("peft_type"))
    if kind is None:
        raise CheckpointError(
            f"{spec}: PEFT {peft.__version__} does not know the method "
            f"{options.get('peft_type')!r}",
            remedy="update peft, or use a method that it ships",
        )
    known = {field.name for field in fields(kind)}
    further = [k for k, v in options.items() if k not in known and v not in (None, False, {}, [])]
    if further:
        written = f" ({options['peft_version']})" if options.get("peft_version") else ""
        raise CheckpointError(
            f"{spec}: {ADAPTER_CONFIG} has {', '.join(sorted(further)[:4])}, which PEFT "
            f"{peft.__version__} does not know",
            remedy=f"update peft: the adapter was made with another version{written}",
        )
    try:
        config = kind(**{name: value for name, value in options.items() if name in known})
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{spec}: {ADAPTER_CONFIG}: {' '.join(str(error).split())}", remedy="repair the file"
        ) from None
    if config.is_prompt_learning:
        raise CheckpointError(
            f"{spec}: prompts and prefixes of PEFT ({config.peft_type.value}) change how a model "
            "is called and cannot be moved in place",
            remedy="train them with landform train --tuning prefix (or prompt)",
        )
    config.inference_mode = False
    return config


def _apply_peft(model: Any, options: dict[str, Any], tensors: dict[str, Tensor], spec: str) -> Any:
    peft, config = _peft(), _peft_config(options, spec)
    try:
        with torch.random.fork_rng(devices=[]):
            tuned = _wrap(model, config)
    except ConfigError as error:
        raise CheckpointError(
            f"{spec}: {error.what}",
            remedy=f"repair {ADAPTER_CONFIG}; or the adapter was trained on another model",
        ) from error
    wrapped = tuned.landform_tuning.peft
    with torch.no_grad():
        try:
            found = peft.set_peft_model_state_dict(wrapped, dict(tensors))
        except RuntimeError as error:
            raise CheckpointError(
                f"{spec}: {ADAPTER_WEIGHTS}: {' '.join(str(error).split())[:300]}",
                remedy="the adapter was trained on another model",
            ) from None
    trained = {f"base_model.model.{name}" for name in tuned.landform_tuned}
    missing = sorted(_unfilled(wrapped, trained & set(found.missing_keys), found.missing_keys))
    # Where biases are trained, PEFT keeps those of a trained head twice.
    odd = sorted(key for key in found.unexpected_keys if ".modules_to_save." not in key)
    if missing or odd:
        raise CheckpointError(
            f"{spec}: {ADAPTER_WEIGHTS} "
            + (f"lacks {missing[0]}" if missing else f"has {odd[0]}, which the model has not"),
            remedy="adapter_config.json and the weights do not belong together, or the adapter "
            "was trained on another model",
        )
    return tuned


def _unfilled(wrapped: nn.Module, names: set[str], missing: Sequence[str]) -> set[str]:
    """Those of `names` that the file holds under none of their names: layers may share a tensor."""
    every = dict(wrapped.named_parameters(remove_duplicate=False))
    filled = {id(values) for name, values in every.items() if name not in set(missing)}
    return {name for name in names if id(every[name]) not in filled}


def _fill(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], spec: str) -> None:
    for name, values in tensors.items():
        if name not in parameters:
            fault = f"tensor {name} of {ADAPTER_WEIGHTS} is none of the model's"
        elif parameters[name].shape != values.shape:
            here, there = tuple(parameters[name].shape), tuple(values.shape)
            fault = f"tensor {name} is {there} in {ADAPTER_WEIGHTS} and {here} in the model"
        else:
            with torch.no_grad():
                parameters[name].copy_(values)
            continue
        raise CheckpointError(f"{spec}: {fault}", remedy="the adapter was trained on another model")


def read_base(path: Path) -> dict[str, Any] | None:
    """What landform noted of the pre-trained model of a tuned one: `relative`, `fingerprint`."""
    if not (path / BASE_RECORD).is_file():
        return None
    value = read_json(path / BASE_RECORD)
    return value if isinstance(value, dict) else None
