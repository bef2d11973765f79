"""Tiny checkpoints with data of every kind of task: what curvature and influence are tried on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import landform as lf
from landform.tasks.task import Task

__all__ = ["CASES", "small_case", "small_task"]

CASES = [
    ("classification", "bert"),
    ("classification", "gpt2"),
    ("regression", "bert"),
    ("token-classification", "bert"),
    ("masked-lm", "bert"),
    ("causal-lm", "gpt2"),
    ("seq2seq", "t5"),
]


def small_task(
    kind: str, *, train: int = 9, validation: int = 5, seed: int = 0, copies: int = 1
) -> Task:
    """Random texts of 2 to 9 words with labels of this kind (three classes where there are any).

    copies: how often all the rows to train on occur.
    """
    generator = np.random.default_rng(seed)
    splits = {
        name: _table(kind, size, generator)
        for name, size in (("train", train), ("validation", validation))
    }
    splits["train"] = pd.concat([splits["train"]] * copies, ignore_index=True)
    options: dict[str, Any] = {"kind": kind, "name": "small", "text": "text"}
    if kind not in ("masked-lm", "causal-lm"):
        options["label"] = "label"
    if kind in ("classification", "token-classification"):
        options["label_names"] = ("a", "b", "c")
    return lf.load_task(splits, **options)


def _table(kind: str, size: int, generator: np.random.Generator) -> pd.DataFrame:
    texts = [
        [f"w{word}" for word in generator.integers(0, 40, generator.integers(2, 10))]
        for _ in range(size)
    ]
    table = pd.DataFrame({"text": [" ".join(words) for words in texts]})
    if kind == "classification":
        table["label"] = [i % 3 for i in range(size)]
    elif kind == "regression":
        table["label"] = generator.normal(size=size).round(3)
    elif kind == "token-classification":
        table["text"] = pd.Series(texts)
        table["label"] = pd.Series(
            [generator.integers(0, 3, len(words)).tolist() for words in texts]
        )
    elif kind == "seq2seq":
        table["label"] = [
            " ".join(f"w{word}" for word in generator.integers(0, 40, generator.integers(1, 7)))
            for _ in range(size)
        ]
    return table


def small_case(
    kind: str, architecture: str, path: Path, save: Callable[..., Path], **changes: Any
) -> tuple[Path, Task]:
    """(checkpoint directory, task) whose labels fit each other."""
    options: dict[str, Any] = dict(changes)
    if kind in ("classification", "token-classification"):
        options |= {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    elif kind == "regression":
        options |= {"num_labels": 1, "problem_type": "regression"}
    return save(path, kind=kind, architecture=architecture, **options), small_task(kind)
