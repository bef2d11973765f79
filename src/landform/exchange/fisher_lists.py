"""The files of the guided-dropout scripts: a Fisher diagonal as a list, and traces as a list.

fisher_*.pkl               a list of float32 tensors, one per parameter in the order of
                           `model.parameters()`: F_j = 1/N sum_i (d l_i / d theta_j)^2, l_i the mean
                           loss of example i. No names, no number of examples.
individual_gradients.pkl   a list of numbers, one per example: its squared gradient averaged over
                           all P parameters, trace(F_i) / P

Names come from a checkpoint of the same architecture; the order of its parameters is that of the
installed version of transformers, and shapes are checked one by one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from landform.curvature.fisher import Fisher, FisherScores, sublayers_of, tensor_table
from landform.errors import DataError
from landform.exchange.pickles import read_pickle, write_pickle
from landform.store.atomic import atomic_path, file_errors
from landform.weights.checkpoint import Checkpoint, LoadConfig, load_model, resolve
from landform.weights.space import ParameterSpace

__all__ = ["read_fisher_list", "read_trace_list", "write_fisher_lists"]

Path_ = str | os.PathLike[str]


def read_trace_list(path: Path_, *, allow_pickle: bool) -> pd.DataFrame:
    """The mean squared gradient of every example: text_id (its position), mean_square."""
    file = Path(path)
    values = read_pickle(file, allow_pickle=allow_pickle)
    remedy = "a list of numbers is expected, one per example (individual_gradients.pkl)"
    if not isinstance(values, list) or not values:
        raise DataError(f"{file} holds no list of numbers", remedy=remedy)
    for place, value in enumerate(values):
        number = isinstance(value, int | float) or (
            isinstance(value, np.ndarray) and value.size == 1
        )
        if not number or not 0 <= float(value) < float("inf"):
            raise DataError(f"{file}: entry {place} is {value!r:.40}", remedy=remedy)
    return pd.DataFrame(
        {
            "text_id": [str(place) for place in range(len(values))],
            "mean_square": [float(value) for value in values],
        }
    )


def read_fisher_list(
    path: Path_,
    checkpoint: Path_ | Checkpoint,
    *,
    allow_pickle: bool,
    traces: Path_ | None = None,
    kind: str | None = None,
    task: str | None = None,
    split: str = "train",
    **options: Any,
) -> Fisher:
    """A Fisher diagonal from a list of tensors, with the names of a checkpoint's parameters.

    `kind` is the head that the list was computed with where it is not that of the checkpoint
    (masked-lm, causal-lm, ...). The number of examples is that of `traces`, or not known (0);
    there are no errors of the scores and no stability, which the file does not tell. Options are
    the fields of `LoadConfig`. Raises `DataError` naming the tensor that is missing, too many, of
    another shape, or no number; for two tensors of one shape the order cannot be checked.
    """
    file, found = Path(path), resolve(checkpoint)
    config = LoadConfig.parse(options, where="read_fisher_list")
    model: Any = load_model(found, kind, config)
    space = ParameterSpace.of(model)
    arrays = _arrays(file, space, found.spec, allow_pickle)
    rows = None if traces is None else read_trace_list(traces, allow_pickle=allow_pickle)
    diagonal = {
        name: torch.from_numpy(np.ascontiguousarray(array))
        for name, array in zip(space.names, arrays, strict=True)
    }
    count = 0 if rows is None else len(rows)
    summary = FisherScores(
        checkpoint=found.spec,
        task=task or file.name,
        split=split,
        estimator="empirical",
        reduction="mean",
        examples=count,
        terms=count,
        tensors=tensor_table(space, diagonal, sublayers_of(model, space)),
        covariance=pd.DataFrame(
            np.full((len(space.names), len(space.names)), np.nan), columns=list(space.names)
        ),
        traces=pd.DataFrame(
            {
                "text_id": [] if rows is None else rows["text_id"],
                "tokens": np.full(count, np.nan),
                "trace": [] if rows is None else rows["mean_square"] * space.numel,
            }
        ),
        stability=pd.DataFrame(columns=["groups", "examples", "correlation", "low", "high"]),
        provenance={
            "weights": None,  # at which it was computed the file does not tell
            "names_of": found.fingerprint,
            "file": str(file),
            "config": config.model_dump(mode="json"),
        },
    )
    return Fisher(summary, diagonal)


def _arrays(file: Path, space: ParameterSpace, spec: str, allow_pickle: bool) -> list[NDArray[Any]]:
    """The tensors of a list, checked against the model's one by one."""
    values = read_pickle(file, allow_pickle=allow_pickle)
    remedy = (
        "name a checkpoint of the architecture and the kind of head (--kind masked-lm, causal-lm, "
        "seq2seq) that the Fisher was computed with"
    )
    if not isinstance(values, list) or not all(isinstance(v, np.ndarray) for v in values):
        raise DataError(
            f"{file} holds no list of tensors", remedy="a fisher_*.pkl of the scripts is expected"
        )
    for place, (name, shape) in enumerate(zip(space.names, space.shapes, strict=True)):
        if place >= len(values):
            raise DataError(
                f"{file} holds {len(values)} tensors, {spec} has {len(space.names)} parameters: "
                f"{name} is missing",
                remedy=remedy,
            )
        value = values[place]
        if value.shape != shape:
            raise DataError(
                f"{file}: tensor {place} is {value.shape}, but parameter {place} of {spec}, {name},"
                f" is {shape}",
                remedy=remedy,
            )
        if value.dtype.kind != "f" or not np.isfinite(value).all() or (value < 0).any():
            raise DataError(
                f"{file}: tensor {place} ({name}) holds what is no mean of squares: negative, NaN "
                "or infinite entries",
                remedy="compute the Fisher again",
            )
    if len(values) > len(space.names):
        raise DataError(
            f"{file} holds {len(values)} tensors, {spec} has {len(space.names)} parameters only",
            remedy=remedy,
        )
    return values


def write_fisher_lists(fisher: Fisher, folder: Path_) -> list[Path]:
    """Write fisher.pkl and individual_gradients.pkl as the scripts do, and both as tables.

    Tensors are in the order of the model's parameters, float32; without traces their files are left
    out. tensors.csv has a row per tensor with its mean F, traces.csv one per example.
    """
    target = Path(folder)
    table = fisher.summary.tensors
    lists = [fisher.diagonal[name].detach().cpu().float().clone() for name in table["name"]]
    scores = table.assign(mean=table["total"] / table["entries"])
    with file_errors("write", target):
        target.mkdir(parents=True, exist_ok=True)
    write_pickle(target / "fisher.pkl", lists)
    wrote = [target / "fisher.pkl", _csv(scores, target / "tensors.csv")]
    traces = fisher.summary.traces
    if len(traces):
        mean_squares = traces["trace"] / table["entries"].sum()
        write_pickle(target / "individual_gradients.pkl", [float(v) for v in mean_squares])
        wrote.append(target / "individual_gradients.pkl")
        wrote.append(_csv(traces.assign(mean_square=mean_squares), target / "traces.csv"))
    return wrote


def _csv(table: pd.DataFrame, path: Path) -> Path:
    with atomic_path(path) as place:
        table.to_csv(place, index=False)
    return path
