"""`cartography.json` of the code of Qin et al. 2022: training dynamics, one entry per example.

    {"0": {"acc": [0, 1, 1], "confidence": [0.2, 0.6, 0.9]}, "1": {...}, ...}

The keys are positions in the training file, the lists have one value per epoch. Confidence there
is the probability of the gold letter among three at the third step of a greedy generation.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from landform.errors import DataError
from landform.evaluation.cartography import DataMap, TrainingDynamics, from_table
from landform.store.atomic import atomic_path
from landform.tasks.tables import read_document
from landform.tasks.task import Examples

__all__ = ["dynamics_of", "read_cartography", "write_cartography"]

_EXPECTED = 'expected {"0": {"acc": [0, 1], "confidence": [0.2, 0.6]}, "1": ...}'


def read_cartography(
    path: str | os.PathLike[str], examples: Examples | None = None
) -> TrainingDynamics:
    """Read a cartography.json; with `examples`, of the training file, ids and texts are theirs.

    Every entry is checked, and a `DataError` names the file and the first that is wrong: a key
    that is no position, lists of different lengths, a value that is no probability, an accuracy
    other than 0 and 1, other examples than those given. Margins are log(p / (1 - p)), NaN where
    that is infinite.
    """
    file = Path(path)
    document = read_document(file, _EXPECTED)
    rows = sorted((_position(key, file), key) for key in document)
    first = _entry(document[rows[0][1]], f"{file}: example {rows[0][1]}")
    epochs = len(first[0])
    correct, confidence = np.empty((2, epochs, len(rows)))
    for place, (_, key) in enumerate(rows):
        where = f"{file}: example {key}"
        acc, probabilities = _entry(document[key], where)
        if len(acc) != epochs:
            raise DataError(
                f"{where} has {len(acc)} epochs, example {rows[0][1]} has {epochs}",
                remedy="the file was cut short while it was written: use a whole one",
            )
        correct[:, place], confidence[:, place] = acc, probabilities
    with np.errstate(divide="ignore"):
        margin = np.log(confidence) - np.log1p(-confidence)
    margin[~np.isfinite(margin)] = np.nan
    positions = np.array([row for row, _ in rows], dtype=np.int64)
    found = TrainingDynamics(
        ids=tuple(str(row) for row in positions),
        rows=positions,
        epochs=np.arange(1.0, epochs + 1),
        confidence=confidence,
        correct=correct.astype(bool),
        margin=margin,
        about={"measure": "probability of the gold answer, as cartography.json has it"},
    )
    return found if examples is None else _with_ids(found, examples, file)


def _with_ids(found: TrainingDynamics, examples: Examples, file: Path) -> TrainingDynamics:
    # The format has no ids: the number of rows is all there is to compare.
    if len(found.ids) != len(examples) or int(found.rows[-1]) >= len(examples):
        raise DataError(
            f"{file} holds {len(found.ids)} examples up to number {found.rows[-1]}, and the data "
            f"have {len(examples)}",
            remedy="name the task, and the split, that the file was made on",
        )
    values = {**found.__dict__, "ids": tuple(examples.ids[row] for row in found.rows)}
    return TrainingDynamics(**values)


def write_cartography(dynamics: TrainingDynamics, path: str | os.PathLike[str]) -> Path:
    """Write dynamics as a cartography.json, whole or not at all; keys are rows of the split.

    The format has no place for ids, margins, and epochs that are parts of one.
    """
    document = {
        str(int(row)): {
            "acc": [int(right) for right in dynamics.correct[:, place]],
            "confidence": dynamics.confidence[:, place].tolist(),
        }
        for place, row in enumerate(dynamics.rows)
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    return Path(path)


def dynamics_of(result: DataMap) -> TrainingDynamics:
    """The dynamics that a data map was made of."""
    about = {"measure": result.measure, "texts": result.provenance.get("texts")}
    return from_table(result.dynamics, about, result.run)


# --- checks --------------------------------------------------------------------------------------


def _position(key: str, file: Path) -> int:
    if not (key.isascii() and key.isdigit() and str(int(key)) == key):
        raise DataError(
            f"{file} is no cartography.json: the key {key[:40]!r} is no position", remedy=_EXPECTED
        )
    return int(key)


def _entry(value: Any, where: str) -> tuple[list[float], list[float]]:
    """The two lists of an example."""
    if not isinstance(value, dict) or not {"acc", "confidence"} <= set(value):
        raise DataError(f"{where} has no 'acc' and 'confidence'", remedy=_EXPECTED)
    acc, confidence = value["acc"], value["confidence"]
    for name, numbers in (("acc", acc), ("confidence", confidence)):
        if not isinstance(numbers, list) or not numbers or not all(map(_is_number, numbers)):
            raise DataError(f"{where}: {name!r} is no list of numbers", remedy=_EXPECTED)
    if len(acc) != len(confidence):
        raise DataError(
            f"{where} has {len(acc)} values of 'acc' and {len(confidence)} of 'confidence'",
            remedy="both have one value per epoch",
        )
    if wrong := [number for number in acc if number not in (0, 1)]:
        raise DataError(f"{where}: 'acc' holds {wrong[0]}, expected 0 or 1", remedy=_EXPECTED)
    if wrong := [number for number in confidence if not 0 <= number <= 1]:
        raise DataError(
            f"{where}: 'confidence' holds {wrong[0]}, which is no probability", remedy=_EXPECTED
        )
    return acc, confidence


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
