"""What was fitted between checkpoints, as a directory: its points and how it was made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from landform.errors import ConfigError, StoreError
from landform.evaluation.points import DataConfig
from landform.results import Result, from_parts, to_parts
from landform.store.atomic import (
    atomic_directory,
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
)
from landform.weights.checkpoint import (
    Checkpoint,
    CheckpointLike,
    LoadConfig,
    load_model,
    load_tokenizer,
    quiet_transformers,
    resolve,
)
from landform.weights.points import Vertex
from landform.weights.space import ParameterSpace
from landform.weights.tuning import save_model

__all__ = ["as_fitted", "check_target", "load_fitted", "save_fitted", "save_point", "space_of"]


def space_of(checkpoint: Checkpoint, kind: str, config: LoadConfig) -> ParameterSpace:
    """The space of a checkpoint's parameters, with this kind of head."""
    return ParameterSpace.of(load_model(checkpoint, kind, config))


def as_fitted(fit: Any) -> dict[str, Any]:
    """How the model was run in the fit, for evaluations of it; its rows and seed are its own."""
    kept = fit.provenance["config"]
    return {n: kept[n] for n in DataConfig.model_fields if n not in ("rows", "seed")}


def save_point(model: Any, like: Checkpoint, target: Path) -> Checkpoint:
    """Write a model that stands somewhere between checkpoints, with the tokenizer of one."""
    tokenizer = load_tokenizer(like)
    with atomic_directory(target) as fresh, quiet_transformers():
        save_model(model, fresh, like.base.path, like.base.fingerprint)
        tokenizer.save_pretrained(fresh)
    return resolve(target)


def save_fitted(
    directory: str | os.PathLike[str],
    own: str,
    checkpoints: Sequence[Checkpoint],
    vertices: Sequence[Vertex],
    fit: Result,
    name: str,
) -> Path:
    """Keep `fit` and its vertices `<name><k>.safetensors` in a directory, with the file `own`."""
    target = check_target(directory, own)
    tables, record = to_parts(fit)
    with atomic_directory(target) as fresh:
        ends = _save_points(fresh, target, checkpoints, vertices, name)
        for title, table in tables.items():
            write_table(fresh / f"{title}.parquet", table)
        write_json(fresh / own, {"ends": ends, "tables": list(tables), "fit": record})
    return target


def load_fitted(
    directory: str | os.PathLike[str], own: str, named: Sequence[CheckpointLike] | None, name: str
) -> tuple[tuple[Checkpoint, ...], tuple[Vertex, ...], Any]:
    """What `save_fitted` kept: checkpoints, vertices, fit. `named` are checkpoints that moved.

    Raises `StoreError` where something is missing, damaged, or of other weights.
    """
    source = Path(directory)
    record: Any = read_json(source / own)
    lacking = [key for key in ("ends", "tables", "fit") if key not in record]
    if lacking:
        raise StoreError(
            f"{source / own} has no {lacking[0]!r}", remedy="it was not made by landform; fit again"
        )
    tables = {title: read_table(source / f"{title}.parquet") for title in record["tables"]}
    fit = from_parts(tables, record["fit"])
    checkpoints = _load_checkpoints(source, record["ends"], named)
    config = LoadConfig.parse({n: fit.provenance["config"][n] for n in LoadConfig.model_fields})
    space = space_of(checkpoints[0], fit.task_kind, config)
    # As many as were fitted, whatever files lie there: a path with a bend fewer is another path.
    numbers = range(1, len(fit.distances) - len(checkpoints) + 1)
    vertices = [_load_vertex(source / f"{name}{k}.safetensors", space, k, name) for k in numbers]
    return checkpoints, tuple(vertices), fit


def check_target(directory: str | os.PathLike[str], own: str) -> Path:
    """A place to write a directory to: not there, empty, or with the file `own` in it."""
    target = Path(directory)
    taken = target.is_dir() and any(target.iterdir()) and not (target / own).exists()
    if target.is_file() or taken:
        raise ConfigError(
            f"{target} holds other things and would be replaced", remedy="choose a new directory"
        )
    return target


def _save_points(
    fresh: Path,
    target: Path,
    checkpoints: Sequence[Checkpoint],
    vertices: Sequence[Vertex],
    name: str,
) -> list[dict[str, str]]:
    """Write vertices as `<name><k>.safetensors`; how the checkpoints are found again."""
    for k, vertex in enumerate(vertices, start=1):
        space = vertex.space
        views = ParameterSpace(space.names, space.shapes, vertex.values.dtype).unflatten(
            vertex.values
        )
        tensors = {key: value.numpy() for key, value in views.items()}
        write_tensors(fresh / f"{name}{k}.safetensors", tensors)
    return [
        {
            "spec": checkpoint.spec,
            "path": Path(os.path.relpath(checkpoint.path, target.absolute())).as_posix(),
            "fingerprint": checkpoint.fingerprint,
        }
        for checkpoint in checkpoints
    ]


def _load_checkpoints(
    source: Path, kept: Sequence[Mapping[str, str]], named: Sequence[CheckpointLike] | None
) -> tuple[Checkpoint, ...]:
    """The checkpoints that `_save_points` noted, where they are now."""
    if named is not None and len(named) != len(kept):
        raise ConfigError(f"{len(named)} checkpoints for {len(kept)} that were kept")
    checkpoints = []
    for i, item in enumerate(kept):
        beside = source.absolute() / item["path"]
        found = resolve(named[i] if named else beside if beside.is_dir() else item["spec"])
        if found.fingerprint != item["fingerprint"]:
            raise StoreError(
                f"{found.spec} has other weights than {item['spec']} had when {source} was made",
                remedy="name the checkpoints it belongs to, or fit it again",
            )
        spec = str(named[i]) if named else item["spec"]
        checkpoints.append(Checkpoint(spec, found.path))
    return tuple(checkpoints)


def _load_vertex(path: Path, space: ParameterSpace, number: int, name: str) -> Vertex:
    """One point, with the tensors of `space`."""
    tensors = read_tensors(path)
    for key, shape in zip(space.names, space.shapes, strict=True):
        if key not in tensors or tensors[key].shape != tuple(shape):
            found = f"has {tensors[key].shape} for" if key in tensors else "lacks"
            raise StoreError(
                f"{path} {found} the tensor {key}, of shape {tuple(shape)}",
                remedy="it belongs to another model; fit it again",
            )
    values = torch.cat([torch.from_numpy(tensors[key]).reshape(-1) for key in space.names])
    return Vertex(f"{name} {number} of {path.parent.name}", space, values)
