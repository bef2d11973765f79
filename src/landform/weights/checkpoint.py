"""Checkpoints: where they are, which step they are, and how they become models.

A checkpoint is named by a local directory (`runs/seed0`), a step of a run (`runs/seed0@300`) or its
best evaluation (`runs/seed0@best`), a hub model (`org/name`), or a hub model at a revision or step
(`org/name@main`, `org/name@300`).
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from landform.config import Config, nearest
from landform.errors import CheckpointError, ConfigError, SpaceMismatchError
from landform.store.fingerprint import fingerprint, fingerprint_file
from landform.weights.tuning import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    apply_tuning,
    check_first_weights,
    draw_tuning,
    method_name,
    own_options,
    read_base,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Checkpoint",
    "CheckpointLike",
    "LoadConfig",
    "check_loadable",
    "check_same_architecture",
    "expand",
    "head_kind",
    "load_model",
    "load_tokenizer",
    "resolve",
    "select",
    "short_names",
    "unique_tails",
]

_AUTO_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
_ARCHITECTURE_KINDS = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForConditionalGeneration": "seq2seq",
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *("vocab.txt", "vocab.json", "vocab.bpe", "merges.txt", "bpe.codes", "dict.txt"),
    *("vocab-src.json", "vocab-tgt.json", "entity_vocab.json", "tekken.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model"),
    *("spm.model", "source.spm", "target.spm"),
)


class LoadConfig(Config):
    """How weights are read."""

    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Number format the weights are held and run in."""
    allow_pickle: bool = False
    """Read pickled weights (pytorch_model.bin) when there is no safetensors file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine's disk."""

    spec: str
    """As the user named it."""
    path: Path
    """The directory that holds config.json and the weights."""

    @cached_property
    def tuning(self) -> dict[str, Any] | None:
        """adapter_config.json of a tuned model (an adapter, LoRA, ...); None for a whole one."""
        if not (self.path / ADAPTER_CONFIG).exists():
            return None
        return _read_json(self.path / ADAPTER_CONFIG, self.spec)

    @cached_property
    def base(self) -> Checkpoint:
        """The pre-trained model of a tuned one; a whole model is its own.

        Raises `CheckpointError` where it is not found, or is not the one that was tuned.
        """
        return self if self.tuning is None else _base_of(self, self.tuning)

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """safetensors files of the model, or the pickled ones where there are none."""
        patterns = (*_SAFETENSORS, "pytorch_model*.bin")
        if self.tuning is not None:
            patterns = (ADAPTER_WEIGHTS, "adapter_model*.bin")
        for pattern in patterns:
            found = sorted(self.path.glob(pattern))
            if found:
                return tuple(found)
        remedy = "name the directory that save_pretrained wrote, or a step of a run: RUN@STEP"
        foreign = sorted(p.name for e in _FOREIGN for p in self.path.glob(f"*{e}"))
        if foreign:
            remedy = (
                f"{foreign[0]} is in the format of another framework: convert it to safetensors "
                "(landform convert), or get the PyTorch weights of this model"
            )
        raise CheckpointError(
            f"{self.spec}: no weights in {self.path} ({patterns[0].replace('*', '')} is missing)",
            remedy=remedy,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and the config: what a result made from it depends on."""
        files = [*self.weight_files, *([self.path / "config.json"] if self._has_config else [])]
        parts: dict[str, Any] = {path.name: fingerprint_file(path) for path in files}
        if self.tuning is not None:
            told = _tuning_function(self.tuning, self.spec)
            parts |= {ADAPTER_CONFIG: told, "base": self.base.fingerprint}
        return fingerprint(parts)

    @property
    def _has_config(self) -> bool:
        return (self.path / "config.json").exists()

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """Files of the tokenizer beside the weights (of a tuned model's: else of its base)."""
        return _tokenizer_files(self.tokenizer_path)

    @property
    def tokenizer_path(self) -> Path:
        """The directory of the tokenizer."""
        if self.tuning is None or _tokenizer_files(self.path):
            return self.path
        return self.base.path

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hash of the tokenizer's files."""
        return fingerprint({path.name: fingerprint_file(path) for path in self.tokenizer_files})

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as it stands; of PEFT's directories, which have none, that of the base
        with as many labels as the trained head has outputs."""
        if self.tuning is None or self._has_config:
            return _read_json(self.path / "config.json", self.spec)
        return {**self.base.config, **_head_of_adapter(self)}

    @cached_property
    def function(self) -> dict[str, Any]:
        """What the config says about the function that the weights parametrise.

        Every key but those that cannot change it (see `_HARMLESS`), as the config class of
        transformers reads the file: a key that the file lacks has its default, and an old
        spelling (`rope_theta`) its present one (`rope_parameters`). A file that the class cannot
        read counts as it stands; loading it says what is wrong.
        """
        from transformers import AutoConfig

        path = self.path if self._has_config else self.base.path
        with quiet_transformers():
            try:
                read: dict[str, Any] = AutoConfig.from_pretrained(
                    path, trust_remote_code=False, local_files_only=True
                ).to_dict()
            except Exception:  # which types, depends on the architecture's own checks
                read = self.config
        if self.tuning is None:
            return _telling(read)
        told = _tuning_function(self.tuning, self.spec)
        tuning = {f"tuning {name}": value for name, value in told.items()}
        return {**_telling(read), **tuning, "pre-trained model": self.base.fingerprint}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor, from the headers of safetensors files; {} for pickles."""
        from safetensors import safe_open

        shapes: dict[str, tuple[int, ...]] = {}
        for path in self.weight_files:
            if path.suffix != ".safetensors":
                return {}
            try:
                with safe_open(path, "numpy") as file:
                    names = list(file.keys())
                    shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
            except (SafetensorError, OSError) as error:
                raise _load_error(self, error) from error
        return shapes

    def label_names(self) -> tuple[str, ...]:
        """The model's own label order, from id2label in its config."""
        named = self.config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        try:
            numbers = {int(key): str(named[key]) for key in named}
            return tuple(numbers[index] for index in range(len(numbers)))
        except (ValueError, TypeError, KeyError):
            raise CheckpointError(
                f"{self.spec}: id2label in config.json must map 0, 1, ... to names, got {named!r}",
                remedy="repair config.json: one name for each output of the head",
            ) from None


_SAFETENSORS = ("model*.safetensors",)
_FOREIGN = (".h5", ".msgpack", ".ckpt.index", ".onnx", ".gguf")

# --- tuned models -------------------------------------------------------------------------------

# Keys that say where the base is, how training started and ran, which version wrote them, or which
# tensors are stored, as the tensors themselves do (MiSS's init_weights "bat" has other shapes).
_NOT_TUNING = frozenset(
    (
        *("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "task_type"),
        *("peft_version", "peft_type", "megatron_core", "runtime_config", "tuning"),
        *("init_mean", "init_std", "init_weights", "init_lora_weights", "lora_dropout"),
        *("eva_config", "corda_config", "loftq_config", "lora_ga_config"),
        *("modules_to_save", "train_also"),
    )
)
_PEFT_KINDS = {
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "token-classification",
    "SEQ_2_SEQ_LM": "seq2seq",
    "CAUSAL_LM": "causal-lm",
}


def _tuning_function(options: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """What adapter_config.json says of the function that the weights parametrise, flat."""
    read = dict(options)
    check_first_weights(options, spec)
    if "landform" in options:
        config = own_options(options, spec)
        read = config.identity()
        if "adapter_activation" in read:
            read["adapter_activation"] = config.activation
    told: dict[str, Any] = {"method": method_name(options)}
    for name, value in read.items():
        if name not in _NOT_TUNING and value not in _OFF:
            told[name] = sorted(value) if _are_names(value) else value
    return told


def _are_names(value: Any) -> bool:
    """Names of layers, which PEFT writes from a set; the order of other lists tells something."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _base_of(checkpoint: Checkpoint, options: Mapping[str, Any]) -> Checkpoint:
    """The pre-trained model that a tuned one names, looked for where either may have moved to."""
    named, noted = options.get("base_model_name_or_path"), read_base(checkpoint.path) or {}
    places: list[Path] = []
    if noted.get("relative"):
        places.append((checkpoint.path / str(noted["relative"])).resolve())
    if isinstance(named, str) and named:
        places += [Path(named).expanduser().absolute(), (checkpoint.path / named).resolve()]
    found = [_local(str(p), p, None, None) for p in dict.fromkeys(places) if _is_model(p)]
    remedy = "put the pre-trained model back, or name its place in adapter_config.json"
    if not found and isinstance(named, str) and _HUB_NAME.match(named):
        try:
            found = [resolve(named, revision=options.get("revision"))]
        except CheckpointError as error:
            raise CheckpointError(
                f"{checkpoint.spec}: the pre-trained model that it tunes: {error.what}",
                remedy=f"{remedy} (base_model_name_or_path)",
            ) from error
    if not found:
        raise CheckpointError(
            f"{checkpoint.spec}: the pre-trained model that it tunes ({named}) is not there",
            remedy=f"{remedy} (base_model_name_or_path)",
        )
    whole = [base for base in found if base.tuning is None]
    if not whole:
        raise CheckpointError(
            f"{checkpoint.spec}: its base {found[0].spec} is a tuned model itself",
            remedy="make the base a whole model first (landform merge), and tune that",
        )
    # What lies in a place now may be another model, where only the adapter was moved.
    wanted = noted.get("fingerprint")
    fitting = [base for base in whole if wanted is None or base.fingerprint == wanted]
    if not fitting:
        raise CheckpointError(
            f"{checkpoint.spec}: the pre-trained model in {whole[0].path} is not the one it tunes: "
            "weights or config.json are others now",
            remedy=remedy,
        )
    return fitting[0]


def _is_model(path: Path) -> bool:
    try:
        return any((path / name).is_file() for name in _CONFIGS)
    except OSError:  # no path at all: a name of a thousand letters
        return False


def _head_of_adapter(checkpoint: Checkpoint) -> dict[str, Any]:
    """The labels of a classifier in a directory of PEFT, which says only how many there are."""
    kind = (checkpoint.tuning or {}).get("task_type")
    if kind not in ("SEQ_CLS", "TOKEN_CLS"):
        return {}
    sizes = [
        shape[0]
        for name, shape in checkpoint.shapes.items()
        if len(shape) == 2 and re.search(r"\.(classifier|score)(\.out_proj)?\.weight$", name)
    ]
    if len(sizes) != 1:
        return {}
    base = checkpoint.base
    names = base.label_names() if head_kind(base) == _PEFT_KINDS[kind] else ()
    if len(names) != sizes[0]:
        names = tuple(f"LABEL_{i}" for i in range(sizes[0]))
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _tokenizer_files(path: Path) -> tuple[Path, ...]:
    return tuple(path / name for name in _TOKENIZER_FILES if (path / name).exists())


def _read_json(path: Path, spec: str) -> dict[str, Any]:
    remedy = "copy or download the checkpoint again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{spec}: {path} is missing", remedy=remedy) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{spec}: cannot read {path}: {error}", remedy=remedy) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{spec}: {path} is not a JSON object", remedy=remedy)
    return value


# Keys of a config that may differ between two points of one space. Everything else must agree:
# a key that nobody thought of is compared, never passed over.
_HARMLESS = frozenset(
    (
        # names, versions and storage; underscores in front (`_name_or_path`) count as these
        *("name_or_path", "transformers_version", "auto_map", "tokenizer_class", "prefix"),
        *("dtype", "torch_dtype", "attn_implementation", "experts_implementation"),
        # the kind of head is compared by `head_kind`, the labels' names where logits are read
        *("architectures", "id2label", "label2id", "num_labels"),
        *("problem_type", "finetuning_task", "task_specific_params"),
        # how a forward pass is run, not what it computes
        *("use_cache", "gradient_checkpointing", "return_dict", "torchscript", "use_bfloat16"),
        *("output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
        *("pretraining_tp", "reference_compile", "use_flash_attn", "tf_legacy_loss"),
        # the tensors of the spaces tell whether weights are tied
        "tie_word_embeddings",
        # the tokens' numbers come from the tokenizers, which are compared
        *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"),
        *("mask_token_id", "unk_token_id"),
        # generation
        *("max_length", "min_length", "max_new_tokens", "do_sample", "num_beams", "temperature"),
        *("top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "early_stopping"),
        *("bad_words_ids", "num_return_sequences", "num_beam_groups", "diversity_penalty"),
        *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "output_scores"),
        *("begin_suppress_tokens", "return_dict_in_generate", "remove_invalid_values"),
        "exponential_decay_length_penalty",
    )
)
# Dropout is off where a point is evaluated, and the initial values are gone by then.
_HARMLESS_WORDS = re.compile(r"^_|drop|^init(ializer)?_|^unsloth")
# What a key that one of the two configs lacks is taken to have said: the feature is not used.
_OFF: tuple[Any, ...] = (None, False, 0, -1, "", "none", "absolute", [], {})


def _telling(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config, and of the configs inside it, that its function depends on."""
    return {
        name: _telling(value) if isinstance(value, dict) else value
        for name, value in sorted(config.items(), key=lambda item: str(item[0]))
        if name not in _HARMLESS and not _HARMLESS_WORDS.search(str(name))
    }


def check_same_architecture(a: Checkpoint, b: Checkpoint) -> None:
    """Raise `SpaceMismatchError` where the configs of two checkpoints name different functions.

    Two models can have tensors of the same shapes and still compute different things with them:
    the number of attention heads, or the base of rotary positions, leaves no trace in any shape.
    """
    faults = []
    mine, theirs = a.function, b.function
    _check_same_method(a, b, mine, theirs)
    names = sorted({*mine, *theirs})
    if mine.get("model_type") != theirs.get("model_type"):
        names = ["model_type"]  # every other difference follows from it
    for name in names:
        both = name in mine and name in theirs
        value, other = mine.get(name), theirs.get(name)
        if value == other or (not both and value in _OFF and other in _OFF):
            continue
        faults.append(f"{name} is {value!r} in {a.spec} and {other!r} in {b.spec}")
    heads = head_kind(a), head_kind(b)
    if None not in heads and heads[0] != heads[1]:
        faults.insert(0, f"the head is for {heads[0]} in {a.spec} and for {heads[1]} in {b.spec}")
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise SpaceMismatchError(
            f"two architectures (config.json): {'; '.join(faults[:4])}{more}",
            remedy="compare checkpoints fine-tuned from one pre-trained model",
        )


def _check_same_method(
    a: Checkpoint, b: Checkpoint, mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> None:
    """Raise where two checkpoints were tuned by different methods, or from different models."""
    methods = [str(read.get("tuning method", "full")) for read in (mine, theirs)]
    if methods[0] != methods[1]:
        raise SpaceMismatchError(
            f"two tuning methods: {a.spec} is {methods[0]}, {b.spec} is {methods[1]}; what was "
            "tuned are different tensors",
            remedy="compare checkpoints tuned by one method; landform merge makes whole models of "
            "lora and bitfit",
        )
    if mine.get("pre-trained model") != theirs.get("pre-trained model"):
        raise SpaceMismatchError(
            f"{a.spec} and {b.spec} tune two different pre-trained models ({a.base.path} and "
            f"{b.base.path})",
            remedy="compare models tuned from one pre-trained model",
        )
    faults = [
        f"{name.removeprefix('tuning ')} is {mine.get(name)!r} in {a.spec} and "
        f"{theirs.get(name)!r} in {b.spec}"
        for name in sorted({*mine, *theirs})
        if name.startswith("tuning ") and mine.get(name) != theirs.get(name)
    ]
    if faults:
        raise SpaceMismatchError(
            f"two kinds of {methods[0]}: {'; '.join(faults[:4])}",
            remedy="compare checkpoints tuned with the same options",
        )


# --- naming ---------------------------------------------------------------------------------


CheckpointLike = str | os.PathLike[str] | Checkpoint


def resolve(
    spec: str | os.PathLike[str] | Checkpoint,
    *,
    step: int | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """The checkpoint that `spec` names: `DIR`, `DIR@STEP`, `org/name`, `org/name@REVISION|STEP`.

    A step is matched exactly: in a run directory it is the folder `checkpoint-STEP` (or
    `checkpoint-best`, which training keeps with `keep_best`); on the hub,
    the branch, tag or commit whose name or message says `step STEP` (a number is never matched
    as a part of a longer one). Raises `CheckpointError` when nothing, or nothing usable, is there.
    """
    if isinstance(spec, Checkpoint):
        return spec
    if not isinstance(spec, str | os.PathLike):
        raise CheckpointError(
            f"a checkpoint is named by a path or a hub name, not by a {type(spec).__name__}",
            remedy="name one directory that save_pretrained wrote, or one hub model",
        )
    text = os.fspath(spec)
    name, at, suffix = text.rpartition("@")
    if at and not Path(text).exists() and step is None and revision is None:
        step, revision = (int(suffix), None) if suffix.isdigit() else (None, suffix)
    else:
        name = text
    path = Path(name).expanduser()
    try:
        there = path.exists()
    except OSError as error:  # longer than a path may be, say
        raise CheckpointError(
            f"{text}: {error.strerror}", remedy="check the name of the directory"
        ) from None
    if there:
        return _local(text, path, step, revision)
    if (
        path.is_absolute()
        or name.startswith(".")
        or name.count("/") > 1
        or not _HUB_NAME.match(name)
    ):
        raise CheckpointError(f"{text}: there is no such directory", remedy=_name_help(path))
    return _from_hub(text, name, step, revision)


_CONFIGS = ("config.json", ADAPTER_CONFIG)
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def _name_help(path: Path) -> str:
    siblings = (
        sorted(p.name for p in path.parent.glob("*") if p.is_dir()) if path.parent.is_dir() else []
    )
    if siblings:
        return f"in {path.parent} there are: {', '.join(siblings[:8])}"
    return "name a directory written by save_pretrained, or a hub model as org/name"


def _local(spec: str, path: Path, step: int | None, revision: str | None) -> Checkpoint:
    if revision not in (None, "best"):
        raise CheckpointError(
            f"{spec}: {path} is a local directory and has no revision {revision!r}",
            remedy="a local run is asked for a step: DIR@300, or DIR@best",
        )
    if path.is_file():
        raise CheckpointError(
            f"{spec} is a file, and a checkpoint is a directory",
            remedy="name the directory that holds config.json and model.safetensors",
        )
    kept = revision if step is None else step
    if kept is not None:
        target = path / f"checkpoint-{kept}"
        if not target.is_dir():
            there = [p.name.removeprefix("checkpoint-") for p in path.glob("checkpoint-*")]
            raise CheckpointError(
                f"{spec}: {path} has no {'best model' if step is None else f'step {step}'}",
                remedy=f"its steps are: {', '.join(sorted(there, key=_natural)) or 'none'}",
            )
        path = target
    return _complete(spec, path)


def _complete(spec: str, path: Path) -> Checkpoint:
    """The checkpoint in a directory; raises when its config or its weights are not there."""
    if not any((path / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
        inner = sorted({p.parent.name for n in _CONFIGS for p in path.glob(f"*/{n}")})
        remedy = f"did you mean one of {', '.join(inner[:6])} inside it?" if inner else None
        raise CheckpointError(f"{spec}: {path} has no config.json", remedy=remedy)
    # Absolute: the checkpoint stays the same one when the process moves to another directory.
    checkpoint = Checkpoint(spec, path.absolute())
    _ = checkpoint.weight_files
    return checkpoint


def _from_hub(spec: str, name: str, step: int | None, revision: str | None) -> Checkpoint:
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi()
    try:
        if step is not None:
            revision = _revision_of_step(api, name, step)
        path = snapshot_download(
            name, revision=revision, ignore_patterns=_not_needed(api, name, revision)
        )
    except CheckpointError:
        raise
    except Exception as error:
        summary = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{spec}: no local directory of that name, and the hub did not give it ({summary})",
            remedy=_nearby(name) + "check the name, the network, or pass a local directory "
            "(without a network HF_HUB_OFFLINE=1 spares the hub's retries)",
        ) from error
    return _complete(spec, Path(path))


def _nearby(name: str) -> str:
    """The begin of a remedy: the local directory whose name is nearly the one given."""
    given = Path(name).expanduser()
    there = [p.name for p in given.parent.iterdir() if p.is_dir()] if given.parent.is_dir() else []
    guess = nearest(given.name, there)
    return f"did you mean {str(given.parent / guess)!r}? " if guess else ""


def _not_needed(api: Any, name: str, revision: str | None) -> list[str]:
    """Patterns of the files of a hub model that would be downloaded for nothing."""
    others = [f"*{ending}" for ending in _FOREIGN]
    others += ["*.ot", "*.tflite", "onnx/*", "openvino/*", "coreml/*", "original/*"]
    try:
        files = api.list_repo_files(name, revision=revision)
    except Exception:  # no network: what was downloaded before may do, and the download decides
        return others
    top = [file for file in files if "/" not in file]
    if any(fnmatchcase(file, pattern) for file in top for pattern in _SAFETENSORS):
        others += ["*.bin", "*.pt", "*.pth", "*.ckpt"]
    return others


def _revision_of_step(api: Any, name: str, step: int) -> str:
    """The one revision of a hub model that is `step`: a branch or tag, else a commit message."""
    exact = re.compile(
        rf"(?:^|[^0-9a-z])(?:steps?|checkpoint)[ _=:-]*0*{step}(?![0-9])"
        rf"|(?<![0-9]){step} ?steps?\b",
        re.I,
    )
    refs = api.list_repo_refs(name)
    named = [ref.name for ref in [*refs.branches, *refs.tags] if exact.search(ref.name)]
    if len(named) == 1:
        return str(named[0])
    commits = [
        c.commit_id for c in api.list_repo_commits(name) if exact.search(f"{c.title}\n{c.message}")
    ]
    if len(named) > 1 or len(commits) > 1:
        raise CheckpointError(
            f"{name}: {len(named) or len(commits)} revisions say step {step}: "
            f"{', '.join((named or commits)[:4])}",
            remedy=f"name the revision itself: {name}@REVISION",
        )
    if not commits:
        raise CheckpointError(
            f"{name}: no branch, tag or commit message says step {step}",
            remedy=f"name the revision itself: {name}@REVISION",
        )
    return str(commits[0])


def select(patterns: CheckpointLike | Iterable[CheckpointLike]) -> list[Checkpoint]:
    """Checkpoints by name or pattern (`patterns`: one, or several), in natural order, each once.

    `runs/seed*` expands to directories that hold a checkpoint (`runs/seed*@300`: their step 300);
    `org/name_*` to the hub's models of that form. Raises `CheckpointError` when a pattern matches
    nothing.
    """
    chosen: dict[Path, Checkpoint] = {}
    for checkpoint in expand(patterns):
        chosen.setdefault(checkpoint.path.resolve(), checkpoint)
    return list(chosen.values())


def expand(patterns: CheckpointLike | Iterable[CheckpointLike]) -> list[Checkpoint]:
    """What `select` finds, as often as it is named: for paths that come back, and for checks."""
    # A name alone is one name, not the letters it is made of.
    alone = isinstance(patterns, str | os.PathLike | Checkpoint)
    # What is neither (a loaded model) goes on to `resolve`, which refuses it and says why.
    items: Any = patterns if not alone and isinstance(patterns, Iterable) else [patterns]
    found: list[Checkpoint] = []
    for item in items:
        specs = _expand(os.fspath(item)) if isinstance(item, str | os.PathLike) else [item]
        found += map(resolve, specs)
    return found


def _expand(pattern: str) -> list[str]:
    if not any(mark in pattern for mark in "*?["):
        return [pattern]
    stem, at, suffix = pattern.rpartition("@")
    if not at:
        stem, suffix = pattern, ""
    found = [
        path + (f"@{suffix}" if at else "")
        for path in glob.glob(os.path.expanduser(stem))
        if any((Path(path) / name).exists() for name in _CONFIGS)
        or (at and (Path(path) / f"checkpoint-{suffix}").is_dir())
    ]
    if not found and stem.count("/") == 1 and not Path(stem.split("/")[0]).is_dir():
        found = [name + (f"@{suffix}" if at else "") for name in _hub_names(stem)]
    if not found:
        inner = sorted(glob.glob(f"{os.path.expanduser(stem)}/checkpoint-*"), key=_natural)
        remedy = "a checkpoint is a directory with config.json and model.safetensors"
        if inner:
            remedy += f"; did you mean '{stem}/{Path(inner[-1]).name}'?"
        raise CheckpointError(f"no checkpoint matches {pattern!r}", remedy=remedy)
    return sorted(found, key=_natural)


def _hub_names(pattern: str) -> list[str]:
    from huggingface_hub import HfApi

    author, _, rest = pattern.partition("/")
    try:
        models = HfApi().list_models(author=author, search=re.split(r"[*?\[]", rest)[0] or None)
        return [m.id for m in models if fnmatchcase(m.id, pattern)]
    except Exception as error:
        raise CheckpointError(
            f"{pattern}: no local directory matches, and the hub did not answer ({error})",
            remedy="check the pattern and the network; local ones are written DIR/NAME*",
        ) from error


def _natural(text: str) -> list[tuple[int, int | str]]:
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", text) if p]


def short_names(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Unique short names: the shortest tails of the specs that tell all of them apart."""
    return unique_tails([checkpoint.spec for checkpoint in checkpoints])


def unique_tails(specs: Sequence[str]) -> tuple[str, ...]:
    """The shortest tails of paths or hub names that tell all of them apart: a/seed0, b/seed0.

    Raises `ConfigError` where one of them occurs twice.
    """
    parts = [Path(spec).parts or (spec,) for spec in specs]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    raise ConfigError("the same checkpoint is named twice", remedy="list each checkpoint once")


# --- loading --------------------------------------------------------------------------------


def load_model(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    kind: str | None = None,
    config: LoadConfig | None = None,
    *,
    new_head: bool = False,
    **changes: Any,
) -> PreTrainedModel:
    """The checkpoint as a transformers model in evaluation mode on the CPU.

    `kind` chooses the head (default: the one the checkpoint's architecture names). Every weight
    must come from the file: a checkpoint without the head is refused unless `new_head`, in which
    case the head is drawn from torch's global generator and the names of the new tensors are kept
    in `model.landform_new_tensors`. `changes` override config.json (num_labels, dropout, ...).
    Code from the checkpoint is never run, and pickles are read only with `allow_pickle`.

    A tuned model (adapter_config.json) is its pre-trained one with what was tuned put in: the
    names of these tensors are in `model.landform_tuned`, and only they require a gradient.
    """
    checkpoint = resolve(checkpoint)
    if checkpoint.tuning is not None:
        return _load_tuned(checkpoint, checkpoint.tuning, kind, config or LoadConfig(), changes)
    return _load_whole(checkpoint, kind, config, new_head=new_head, changes=changes)


def _load_tuned(
    checkpoint: Checkpoint,
    tuning: dict[str, Any],
    kind: str | None,
    options: LoadConfig,
    changes: dict[str, Any],
) -> PreTrainedModel:
    with torch_random_kept():  # a head drawn here is overwritten by the one that was trained
        model = _load_base(checkpoint, kind, options, changes)
    drawn = model.landform_new_tensors
    try:
        model = apply_tuning(model, tuning, checkpoint.weight_files[0], checkpoint.spec)
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise _load_error(checkpoint, error) from error
    trained = {_without_wrappers(name) for name in model.landform_tuned}
    lacking = sorted(set(drawn) - trained)
    if lacking:
        raise CheckpointError(
            f"{checkpoint.spec}: no weights for {', '.join(lacking[:4])}: they would be random "
            "numbers",
            remedy="the head was not saved with the adapter: name it in modules_to_save",
        )
    model.landform_new_tensors = frozenset()
    model.eval()
    return model  # type: ignore[no-any-return]


def _load_base(
    checkpoint: Checkpoint, kind: str | None, options: LoadConfig, changes: dict[str, Any]
) -> Any:
    """The pre-trained model of a tuned one, under a head that fits what was tuned."""
    check_loadable(checkpoint, options)
    kind = kind or head_kind(checkpoint)
    headed = kind in ("classification", "regression", "token-classification")
    if headed:
        named = dict(enumerate(checkpoint.label_names()))
        labels = {"id2label": named, "label2id": {name: i for i, name in named.items()}}
        changes = {"num_labels": len(named), **labels, **changes}
        if kind == "regression":
            changes["problem_type"] = "regression"
    return _load_whole(
        checkpoint.base, kind, options, new_head=headed, changes=changes, other_head=headed
    )


def draw_tuned(
    checkpoint: Checkpoint,
    kind: str | None = None,
    config: LoadConfig | None = None,
    *,
    seed: int,
    **changes: float,
) -> PreTrainedModel:
    """The tuned model as its training began, drawn anew under `seed`.

    What the tuning method adds and the head have first weights of their own; other tensors that
    were tuned are those of the pre-trained model. `changes` are options of the method (`init_std`).
    Raises `ConfigError` for a whole model: its training began at the pre-trained one.
    """
    import torch

    if checkpoint.tuning is None:
        raise ConfigError(
            f"{checkpoint.spec} is a whole model, whose training began at the pre-trained one",
            remedy="start there: name the pre-trained model, or use chord or midpoint with noise",
        )
    with torch_random_kept():
        torch.manual_seed(seed)
        model = _load_base(checkpoint, kind, config or LoadConfig(), {})
        model = draw_tuning(
            model, checkpoint.tuning, checkpoint.weight_files[0], checkpoint.spec, **changes
        )
    model.eval()
    return model  # type: ignore[no-any-return]


def _without_wrappers(name: str) -> str:
    """The name of a tensor in the plain model: PEFT keeps trained heads in a wrapper."""
    return re.sub(r"\.modules_to_save\.[^.]+", "", name)


def _load_whole(
    checkpoint: Checkpoint,
    kind: str | None,
    config: LoadConfig | None,
    *,
    new_head: bool,
    changes: dict[str, Any],
    other_head: bool = False,
) -> PreTrainedModel:
    """`load_model` of a whole model; with `other_head` a head of other sizes is drawn anew."""
    import transformers

    options = config or LoadConfig()
    if kind is not None and kind not in _AUTO_CLASSES:
        raise ConfigError(f"unknown kind {kind!r}", remedy=f"known: {', '.join(_AUTO_CLASSES)}")
    pickled = check_loadable(checkpoint, options)
    _ = checkpoint.label_names()
    kind = kind or head_kind(checkpoint)
    auto = getattr(transformers, _AUTO_CLASSES[kind] if kind else "AutoModel")
    with quiet_transformers():
        try:
            model, info = auto.from_pretrained(
                checkpoint.path,
                output_loading_info=True,
                dtype=options.dtype,
                use_safetensors=not pickled,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **changes,
            )
        except CheckpointError:
            raise
        except Exception as error:
            raise _load_error(checkpoint, error) from error
    redrawn = {name for name, _, _ in info["mismatched_keys"]} if other_head else set()
    _check_complete(checkpoint, info, new_head=new_head, redrawn=redrawn)
    model.landform_new_tensors = frozenset(info["missing_keys"]) | redrawn
    model.eval()
    return model  # type: ignore[no-any-return]


def _check_complete(
    checkpoint: Checkpoint, info: dict[str, Any], *, new_head: bool, redrawn: Set[str]
) -> None:
    """Raise where weights do not fit config.json, or would be random numbers."""
    missing = sorted(info["missing_keys"])
    faults = [
        f"{name} is {tuple(there)} in the file and {tuple(here)} by config.json"
        for name, there, here in sorted(info["mismatched_keys"])
        if name not in redrawn
    ]
    if faults:
        raise CheckpointError(
            f"{checkpoint.spec}: {'; '.join(faults[:3])}"
            + (f" and {len(faults) - 3} more" if len(faults) > 3 else ""),
            remedy="config.json and the weights do not belong together (a head has one output for "
            "each name of id2label)",
        )
    if missing and not new_head:
        raise CheckpointError(
            f"{checkpoint.spec}: no weights for {', '.join(missing[:4])}"
            f"{' ...' if len(missing) > 4 else ''}: they would be random numbers",
            remedy="this looks like a pre-trained model without a head; fine-tune it first "
            "(landform train), or name the fine-tuned checkpoint",
        )


def check_loadable(checkpoint: Checkpoint, options: LoadConfig) -> bool:
    """Whether the weights are pickled; raises when that, or remote code, would be needed, and
    where they are quantised."""
    quantised = checkpoint.config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{checkpoint.spec}: its weights are quantised ({method}): they cannot be averaged, "
            "moved or differentiated",
            remedy="name the model before it was quantised, or one made float again "
            "(model.dequantize() of transformers, then save_pretrained)",
        )
    if "auto_map" in checkpoint.config:
        import transformers

        known = checkpoint.config.get("model_type") in transformers.CONFIG_MAPPING
        if not known:
            raise CheckpointError(
                f"{checkpoint.spec}: config.json asks to run code that comes with the checkpoint "
                f"({checkpoint.config['auto_map']})",
                remedy="landform never runs such code; use an architecture that transformers ships",
            )
    pickled = checkpoint.weight_files[0].suffix == ".bin"
    if pickled and not options.allow_pickle:
        raise CheckpointError(
            f"{checkpoint.spec}: {checkpoint.weight_files[0].name} is a pickle, which can run code "
            "when read",
            remedy="convert it to safetensors (load, then save_pretrained), or pass allow_pickle "
            "(--allow-pickle)",
        )
    return pickled


def head_kind(checkpoint: Checkpoint) -> str | None:
    """The kind of head that the checkpoint's architecture names; None for a bare encoder."""
    tuned_for = (checkpoint.tuning or {}).get("task_type")
    if tuned_for in _PEFT_KINDS:
        return _PEFT_KINDS[tuned_for]
    names = checkpoint.config.get("architectures") or [""]
    for ending, kind in _ARCHITECTURE_KINDS.items():
        if str(names[0]).endswith(ending):
            return kind
    return None


def _load_error(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    text = " ".join(str(error).split())
    remedy = "check that the files are complete: copy or download them again"
    if "incomplete" in text or "HeaderTooLarge" in text or "header" in text.lower():
        text = f"{checkpoint.weight_files[0].name} is truncated or not a safetensors file ({text})"
    elif "Unrecognized configuration class" in text:
        remedy = "this architecture has no head of the kind the task needs"
    elif "does not recognize this architecture" in text:
        text = f"transformers does not know model_type {checkpoint.config.get('model_type')!r}"
        remedy = "update transformers, or use an architecture that it ships"
    return CheckpointError(f"{checkpoint.spec}: cannot load the model: {text[:400]}", remedy=remedy)


def load_tokenizer(checkpoint: str | os.PathLike[str] | Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer. Raises `CheckpointError` where it has none: guessing one
    would silently change every number."""
    from transformers import AutoTokenizer

    checkpoint = resolve(checkpoint)
    path = checkpoint.tokenizer_path
    if not _tokenizer_files(path):
        raise CheckpointError(
            f"{checkpoint.spec}: no tokenizer files in {path}",
            remedy="save the tokenizer next to the model: tokenizer.save_pretrained(DIR)",
        )
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                path, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:
            raise CheckpointError(
                f"{checkpoint.spec}: cannot load the tokenizer: {' '.join(str(error).split())}",
                remedy="save it next to the model again: tokenizer.save_pretrained(DIR)",
            ) from error
    return tokenizer


@contextlib.contextmanager
def torch_random_kept() -> Iterator[None]:
    """torch's global generators inside leave no trace outside."""
    import torch

    with torch.random.fork_rng():
        yield


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load reports and no progress bars inside: landform says itself what went wrong."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions carry no types

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
