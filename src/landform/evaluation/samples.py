"""The per-sample JSON of the connectivity project (Juneja et al. 2023), written and read.

One file holds what one model did on one data set:

    {"label_dict": {"entailment": 0, "non-entailment": 1},
     "samples": [{"probabilities": [p0, p1], "logits": [z0, z1], "label": 1,
                  "sentence": "[CLS] a premise [SEP] a hypothesis [SEP]"}, ...]}

`label` and the positions in the two lists are the numbers of `label_dict`; `sentence` is the input
as the tokenizer decodes it, with its markers. The project's function-space measures read another
form, in which `samples` is an object keyed by sentence; both are read here.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from landform.errors import DataError, LabelError, NonFiniteError
from landform.store.atomic import atomic_path
from landform.tasks.metrics import softmax

__all__ = ["read_samples", "write_samples"]

Array = NDArray[Any]

# Files come from float32 or float16 models and may have been rounded; a list in another order or
# of other logits is off by far more.
PROBABILITY_TOLERANCE = 0.01


# --- writing ----------------------------------------------------------------------------------


def write_samples(
    path: str | os.PathLike[str], log: pd.DataFrame, label_names: Sequence[str]
) -> None:
    """Write a per-example log (`Evaluation.log`) of a classification task as per-sample JSON.

    `label_names` are the task's classes in the order of the columns logit_0, logit_1, ...; the
    column `label` holds their names or their indices. The file is whole or absent. The format has
    no place for ids and further columns; a text that itself contains "[SEP]" is read back
    cut at that place, as the original files are. Raises `DataError` for a missing column,
    `LabelError` for a label that `label_names` does not have, `NonFiniteError` for a logit that
    JSON cannot hold, `StoreError` where the file cannot be written.
    """
    names = _unique_names(label_names)
    columns = ["text", "label", *(f"logit_{j}" for j in range(len(names)))]
    _require_columns(log, columns, names)
    logits = log[columns[2:]].to_numpy(dtype=np.float64)
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise NonFiniteError(
            f"row {row} of the log has the logits {logits[row].tolist()}",
            remedy="look for NaN or infinite weights in the checkpoint, or evaluate in float32",
        )
    labels = [_label_index(value, names, row) for row, value in enumerate(log["label"])]
    pairs = log["text_pair"] if "text_pair" in log else [None] * len(log)
    samples = [
        {
            "probabilities": p.tolist(),
            "logits": z.tolist(),
            "label": label,
            "sentence": _join(text, pair),
        }
        for p, z, label, text, pair in zip(
            softmax(logits), logits, labels, log["text"], pairs, strict=True
        )
    ]
    document = {"label_dict": {name: j for j, name in enumerate(names)}, "samples": samples}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def _unique_names(label_names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(map(str, label_names))
    if len(names) < 2 or len(set(names)) < len(names):
        raise LabelError(
            f"label names {list(names)}: expected at least two, all different",
            remedy="per-sample files are for classification tasks; name each class once",
        )
    return names


def _require_columns(log: pd.DataFrame, columns: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in columns if name not in log]
    if missing:
        raise DataError(
            f"the log has no column {missing[0]!r}, needed for the {len(names)} classes "
            f"{', '.join(names)}",
            remedy="pass the per-example log of a classification task and its label names",
        )
    if f"logit_{len(names)}" in log:
        raise LabelError(
            f"the log has more logit columns than the {len(names)} label names {', '.join(names)}",
            remedy="name every class of the log, in the order of its logit columns",
        )
    if len(log) == 0:
        raise DataError("the log has no rows", remedy="evaluate at least one example")


def _label_index(value: Any, names: tuple[str, ...], row: int) -> int:
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, (int, np.integer)) and 0 <= value < len(names):
        return int(value)
    raise LabelError(
        f"row {row} of the log has the label {value!r}, the label names are {', '.join(names)}",
        remedy="labels are names or indices of the label names",
    )


def _join(text: Any, pair: Any) -> str:
    # A column of strings with holes holds None or NaN there.
    return f"[CLS] {text} [SEP]" + (f" {pair} [SEP]" if isinstance(pair, str) else "")


# --- reading ----------------------------------------------------------------------------------


def read_samples(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read per-sample JSON as a per-example log, one row per sample in the order of the file.

    Columns: text_id ("sample-<index>"; the format has no ids), text, text_pair (only where some
    sentence has a second part), label and prediction (class names), correct, loss
    (-log softmax(logits)[label], nats), tokens (1), logit_0, logit_1, ... in the order of the
    numbers of `label_dict`. `DataFrame.attrs["label_names"]` holds the class names in that order.

    Every sample is checked, and a `DataError` names the file and the first sample that is wrong:
    a missing key, a list of the wrong length, NaN, a label that `label_dict` does not have,
    probabilities that are not the softmax of the logits, a sentence given twice as a key.
    """
    file = Path(path)
    document = _load(file)
    names = _label_names(document, file)
    samples = list(_samples(document, file))
    if not samples:
        raise DataError(f"{file}: 'samples' is empty", remedy="write the file again")
    for where, sample in samples:
        _check_sample(sample, names, where)
    logits = np.array([sample["logits"] for _, sample in samples], dtype=np.float64)
    _check_probabilities(samples, logits)
    labels = np.array([sample["label"] for _, sample in samples], dtype=np.int64)
    return _log([sample["sentence"] for _, sample in samples], labels, logits, names)


def _log(
    sentences: Sequence[str], labels: Array, logits: Array, names: tuple[str, ...]
) -> pd.DataFrame:
    parts = [_split(sentence) for sentence in sentences]
    chosen = logits.argmax(axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted[np.arange(len(labels)), labels]
    columns: dict[str, Any] = {
        "text_id": [f"sample-{row}" for row in range(len(labels))],
        "text": [text for text, _ in parts],
    }
    if any(pair is not None for _, pair in parts):
        columns["text_pair"] = [pair for _, pair in parts]
    classes = np.array(names, dtype=object)
    columns |= {
        "label": classes[labels],
        "prediction": classes[chosen],
        "correct": chosen == labels,
        "loss": np.log(np.exp(shifted).sum(axis=1)) - log_likelihood,
        "tokens": np.ones(len(labels), dtype=np.int64),
    }
    columns |= {f"logit_{j}": logits[:, j] for j in range(len(names))}
    log = pd.DataFrame(columns)
    log.attrs["label_names"] = names
    return log


# --- the markers of the sentence --------------------------------------------------------------

_PADDING = re.compile(r"(?:\s*(?:\[PAD\]|<pad>))+\s*$")


def _split(sentence: str) -> tuple[str, str | None]:
    """(text, text_pair or None) of a decoded input; without markers it is a text as it stands.

    Knows [CLS] a [SEP] b [SEP] (BERT's family) and <s>a</s></s>b</s> (RoBERTa's). What follows a
    further separator stays with the second part.
    """
    body = _PADDING.sub("", sentence)
    for start, end, between in (("[CLS]", "[SEP]", "[SEP]"), ("<s>", "</s>", "</s></s>")):
        if body.startswith(start) and body.endswith(end):
            inner = body[len(start) : -len(end)]
            text, found, pair = inner.partition(between)
            return _unspaced(text), _unspaced(pair) if found else None
    return sentence, None


def _unspaced(part: str) -> str:
    """Without the one space that sets a part off from its markers; its own spaces stay."""
    return part.removeprefix(" ").removesuffix(" ")


# --- checks: each names the file and the sample -----------------------------------------------


class _RepeatedKeyError(ValueError):
    """A JSON object gives a key twice; the standard parser would keep the last in silence."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(_short(key))
            seen.add(key)
    return parsed


def _load(file: Path) -> Mapping[str, Any]:
    remedy = "check the path, or write the file again"
    try:
        text = file.read_bytes().decode("utf-8")
        document = json.loads(text, object_pairs_hook=_object)
    except OSError as error:
        reason = f"cannot read {file}: {error.strerror or error}"
        raise DataError(reason, remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}", remedy=remedy) from error
    except _RepeatedKeyError as error:
        raise DataError(f"{file}: the key {error} is given twice", remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON, or cut short: {error}", remedy=remedy) from error
    if not isinstance(document, dict):
        document = {}
    for key in ("label_dict", "samples"):
        if key not in document:
            raise DataError(
                f"{file}: no key {key!r}: not a per-sample file of the connectivity project",
                remedy="expected an object with the keys 'label_dict' and 'samples'",
            )
    return document


def _label_names(document: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """The class names in the order of their numbers, which must be 0, 1, 2, ..."""
    numbers = document["label_dict"]
    if (
        not isinstance(numbers, dict)
        or len(numbers) < 2
        or any(not _is_int(number) for number in numbers.values())
        or sorted(numbers.values()) != list(range(len(numbers)))
    ):
        raise DataError(
            f"{file}: 'label_dict' is {_short(numbers)}, "
            "expected two or more class names numbered 0, 1, 2, ...",
            remedy="give every class its own number, without gaps",
        )
    return tuple(sorted(numbers, key=lambda name: int(numbers[name])))


def _samples(document: Mapping[str, Any], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, sample) of each sample, whichever of the two forms the file has."""
    samples = document["samples"]
    if not isinstance(samples, (list, dict)):
        raise DataError(
            f"{file}: 'samples' is {_short(samples)}, "
            "expected a list, or an object keyed by sentence"
        )
    keys = samples if isinstance(samples, dict) else [None] * len(samples)
    values = samples.values() if isinstance(samples, dict) else samples
    for row, (key, sample) in enumerate(zip(keys, values, strict=True)):
        where = f"{file}: sample {row}"
        if not isinstance(sample, dict):
            raise DataError(f"{where} is {_short(sample)}, expected an object")
        yield where, sample if key is None else {**sample, "sentence": key}


def _check_sample(sample: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for key in ("probabilities", "logits", "label", "sentence"):
        if key not in sample:
            raise DataError(f"{where} has no key {key!r}", remedy="write the file again")
    for key in ("probabilities", "logits"):
        _check_numbers(sample[key], key, names, where)
    if not isinstance(sample["sentence"], str):
        raise DataError(f"{where}: 'sentence' is {_short(sample['sentence'])}, expected a text")
    label = sample["label"]
    if not _is_int(label) or not 0 <= label < len(names):
        raise LabelError(
            f"{where}: 'label' is {_short(label)}, expected one of "
            + ", ".join(f"{j} ({name})" for j, name in enumerate(names)),
            remedy="'label' is a number of 'label_dict'",
        )


def _check_numbers(values: Any, key: str, names: tuple[str, ...], where: str) -> None:
    if not isinstance(values, list) or len(values) != len(names):
        given = f"{len(values)} values" if isinstance(values, list) else _short(values)
        raise DataError(
            f"{where}: {key!r} is {given}, expected one number for each of "
            f"the {len(names)} classes {', '.join(names)}"
        )
    for position, value in enumerate(values):
        if not (_is_int(value) or isinstance(value, float)) or not _is_finite(value):
            raise DataError(
                f"{where}: {key!r}[{position}] is {_short(value)}, expected a finite number",
                remedy="the model that wrote the file may have diverged",
            )


def _check_probabilities(samples: Sequence[tuple[str, Mapping[str, Any]]], logits: Array) -> None:
    expected = softmax(logits)
    given = np.array([sample["probabilities"] for _, sample in samples], dtype=np.float64)
    wrong = np.abs(given - expected).max(axis=1) > PROBABILITY_TOLERANCE
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{samples[row][0]}: 'probabilities' are {given[row].tolist()}, but the softmax of "
            f"'logits' is {expected[row].round(4).tolist()}",
            remedy="both lists must be in the order of 'label_dict'",
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
