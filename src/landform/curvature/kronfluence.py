"""Factors that kronfluence computed, read from its folder.

kronfluence (1.0.1) keeps, in `<output_dir>/<analysis_name>/factors_<name>/`, one safetensors file
per quantity, each a flat mapping from module names to tensors:

    activation_covariance, gradient_covariance      sums over tokens of a a^T and g g^T
    num_activation_covariance_processed, num_gradient_...      how many tokens
    activation_eigenvectors, activation_eigenvalues, gradient_...      of sum / count
    lambda_matrix, num_lambda_processed             sum over examples of squared gradient entries
                                                    (in the eigenbasis for ekfac), and how many

with a = [x; 1], rows of matrices being outputs, as in landform. Covariances and Lambda may be there
in parts (`..._data_partition0_module_partition1`), which are added up and put together here. The
folder does not say which weights it is of: that the checkpoint is the right one is the caller's
word, and only shapes are compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landform.curvature.factors import Factors, FactorsConfig, Strategy
from landform.curvature.fitting import ROTATED
from landform.curvature.layers import Layer
from landform.curvature.session import Session
from landform.errors import ConfigError, CurvatureError
from landform.evaluation.points import Data
from landform.store.fingerprint import fingerprint, fingerprint_file
from landform.tasks.task import Task
from landform.weights.checkpoint import Checkpoint, resolve

__all__ = ["Names", "import_kronfluence"]

Names = Mapping[str, str] | Callable[[str], str] | None
"""From kronfluence's module names to the checkpoint's: a function, or a mapping of whole names or
of beginnings ({"model.": ""} where the model was an attribute of a wrapper)."""

Tensors = dict[str, Tensor]


def import_kronfluence(
    folder: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    strategy: Strategy = "ekfac",
    split: str = "train",
    names: Names = None,
    **options: Any,
) -> Factors:
    """The factors in a kronfluence folder, for `influence` and `self_influence`.

    checkpoint, task, split: what they were fitted on. strategy: what is made of them. names: see
    `Names`. Options are the fields of
    `FactorsConfig` that matter when scores are computed (dtype, device, rows, max_length, ...);
    `rows` is how many of the split's first rows kronfluence went through, where the folder does not
    say or the split has others. kfac is also made from covariances that were never decomposed.

    For identity factors the folder holds no tensors: all layers that landform sees are taken.

    Raises `CurvatureError` naming the file for whatever is missing, damaged, of another shape than
    the layer, or of a layer that the checkpoint does not have.
    """
    source = _Folder(Path(folder).expanduser())
    if "labels" in options:
        raise ConfigError(
            "option labels: the folder decides whose labels were used", remedy="leave labels out"
        )
    parts = source.parts(strategy)
    chosen = {theirs: _translate(theirs, names) for theirs in _layer_names(source, parts)}
    labels = "empirical" if source.arguments.get("use_empirical_fisher") else "sampled"
    options.setdefault("rows", source.rows(strategy, parts))
    patterns = tuple(sorted(ours.replace("[", "[[]") for ours in chosen.values()))
    config = FactorsConfig.parse(
        {**options, "strategy": strategy, "labels": labels, "include": patterns},
        where="import_kronfluence",
    )
    data = Data(task, split)
    _check_rows(data, config.rows, source)
    opened = resolve(checkpoint)
    found = _opened(opened, data, config, source)
    theirs = _matched(found, chosen, source)
    vectors, values = _eigen(found, theirs, parts, config, source)
    return Factors(
        checkpoint=opened,
        task=task,
        split=split,
        config=config,
        fingerprint=f"kronfluence/{fingerprint([source.hashes, opened.fingerprint, config])}",
        labels=labels,
        layers=tuple(layer.name for layer in found.layers),
        groups=found.groups,
        coverage=found.coverage,
        vectors=vectors,
        values=values,
        squares=_squares(found, theirs, parts, source),
        timings={},
        _session=[found],
    )


def _opened(checkpoint: Checkpoint, data: Data, config: FactorsConfig, source: _Folder) -> Session:
    """The checkpoint with the folder's layers; raises where it has not all of them."""
    try:
        return Session.open(checkpoint, data, config)
    except ConfigError as error:
        if not error.what.startswith("no module fits"):
            raise
        raise CurvatureError(
            f"{source.path}: {checkpoint.spec} has not the layers of this folder: {error.what}",
            remedy="name the checkpoint that kronfluence was given; where its modules were called "
            'otherwise, say how: names={"model.": ""}',
        ) from error


# --- the folder -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Folder:
    """A kronfluence factor folder."""

    path: Path

    def __post_init__(self) -> None:
        if (self.path / "factor_arguments.json").is_file():
            return
        if not self.path.is_dir():
            raise CurvatureError(
                f"{self.path}: there is no such directory",
                remedy="name kronfluence's <output_dir>/<analysis_name>/factors_<name>",
            )
        inside = sorted(str(p.relative_to(self.path)) for p in self.path.glob("**/factors_*"))
        raise CurvatureError(
            f"{self.path} is no factor folder of kronfluence: it has no factor_arguments.json",
            remedy=f"name one of the folders in it: {', '.join(inside)}"
            if inside
            else "name kronfluence's <output_dir>/<analysis_name>/factors_<name>",
        )

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that was read, by name."""
        return {"factor_arguments.json": fingerprint_file(self.path / "factor_arguments.json")}

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What the factors were fitted with."""
        return self._json("factor_arguments.json")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise CurvatureError(f"{self.path / name} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise CurvatureError(f"{self.path / name} is not a JSON object")
        return value

    def parts(self, strategy: str) -> dict[str, Tensors]:
        """The quantities that a strategy needs, by kronfluence's names."""
        fitted = self.arguments.get("strategy", strategy)
        needs_basis = {"ekfac": "ekfac", "diagonal": "diagonal"}.get(strategy)
        if needs_basis is not None and fitted != needs_basis:
            raise CurvatureError(
                f"{self.path}: these factors are {fitted}, whose Lambda is not that of {strategy}",
                remedy=f"ask for strategy {fitted!r}, or fit {strategy} factors",
            )
        wanted: dict[str, Tensors] = {}
        if strategy in ROTATED and (strategy == "ekfac" or self.has("activation_eigenvectors")):
            for side in ("activation", "gradient"):
                for what in ("eigenvectors", "eigenvalues"):
                    wanted[f"{side}_{what}"] = self.read(f"{side}_{what}")
        elif strategy == "kfac":
            for side in ("activation", "gradient"):
                for what in (f"{side}_covariance", f"num_{side}_covariance_processed"):
                    wanted[what] = self.merged(what, "covariance")
        if strategy in ("diagonal", "ekfac"):
            for what in ("lambda_matrix", "num_lambda_processed"):
                wanted[what] = self.merged(what, "lambda")
        return wanted

    def has(self, name: str) -> bool:
        """Whether a quantity is there as one file."""
        return (self.path / f"{name}.safetensors").is_file()

    def read(self, name: str) -> Tensors:
        """One file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path / f"{name}.safetensors"
        if not path.is_file():
            raise CurvatureError(
                f"{path} is missing", remedy="fit these factors with kronfluence to the end"
            )
        try:
            tensors: Tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CurvatureError(
                f"{path} is damaged: {error}", remedy="copy it again, or fit the factors again"
            ) from error
        self.hashes[path.name] = fingerprint_file(path)
        for layer, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise CurvatureError(
                    f"{path}: the values of {layer} are not finite",
                    remedy="fit the factors in float32",
                )
        return tensors

    def merged(self, name: str, kind: str) -> Tensors:
        """A quantity that may be in parts: sums over data parts, all modules together."""
        if self.has(name):
            return self.read(name)
        options = (f"{kind}_data_partitions", f"{kind}_module_partitions")
        datas, modules = (int(self.arguments.get(option, 1)) for option in options)
        if datas == modules == 1:
            return self.read(name)
        total: Tensors = {}
        for data in range(datas):
            for module in range(modules):
                part = self.read(f"{name}_data_partition{data}_module_partition{module}")
                for layer, value in part.items():
                    wide = value if value.dtype == torch.int64 else _wide(value)
                    total[layer] = total[layer] + wide if layer in total else wide
        return total

    def rows(self, strategy: str, parts: Mapping[str, Tensors]) -> int | None:
        """Rows that the factors were fitted on, as far as the folder knows."""
        counts = parts.get("num_lambda_processed")
        if counts:
            return max(int(count.sum()) for count in counts.values())
        about = self._json("covariance_dataset_metadata.json")
        size, most = about.get("dataset_size"), self.arguments.get("covariance_max_examples")
        return size if size is None or most is None else min(int(size), int(most))


def _wide(value: Tensor) -> Tensor:
    """float64 as it is, everything shorter as float32."""
    return value if value.dtype == torch.float64 else value.float()


# --- names and rows -------------------------------------------------------------------------


def _layer_names(source: _Folder, parts: Mapping[str, Tensors]) -> list[str]:
    """The modules of the folder; every file must have all of them."""
    if not parts:  # identity: the layers are those of any file there is, or all of the model
        return []
    first, *others = parts
    for other in others:
        if set(parts[other]) != set(parts[first]):
            odd = sorted(set(parts[other]) ^ set(parts[first]))[0]
            raise CurvatureError(
                f"{source.path}: module {odd} is in only one of {first} and {other}",
                remedy="fit the factors again: files of different runs are mixed here",
            )
    return list(parts[first])


def _translate(name: str, names: Names) -> str:
    if names is None:
        return name
    if callable(names):
        return names(name)
    if name in names:
        return names[name]
    fitting = [start for start in names if name.startswith(start)]
    longest = max(fitting, key=len, default=None)
    return name if longest is None else names[longest] + name[len(longest) :]


def _check_rows(data: Data, rows: int | None, source: _Folder) -> None:
    size = len(data.task.examples(data.split))
    if rows is not None and rows > size:
        raise CurvatureError(
            f"{source.path}: the factors were fitted on {rows} rows, {data.name} has {size}",
            remedy="name the task and split that kronfluence was given, or say how many of its "
            "first rows: rows=...",
        )


def _matched(found: Session, chosen: Mapping[str, str], source: _Folder) -> dict[str, str]:
    """kronfluence's name of every layer; raises for one that the model has not, or does not use."""
    theirs = {ours: name for name, ours in chosen.items()}
    if len(theirs) < len(chosen):
        raise ConfigError("option names gives two modules the same name")
    known = {layer.name for layer in found.layers}
    for ours, name in theirs.items():
        if ours in known:
            continue
        why = found.coverage.status[found.coverage.name == ours].iloc[0]
        raise CurvatureError(
            f"{source.path}: layer {name} cannot be looked at: {why}",
            remedy="fit the factors with kronfluence without this module",
        )
    return theirs or {layer.name: layer.name for layer in found.layers}


# --- tensors --------------------------------------------------------------------------------


def _checked(
    parts: Mapping[str, Tensors], what: str, name: str, shape: Sequence[int], source: _Folder
) -> Tensor:
    value = parts[what][name]
    if tuple(value.shape) != tuple(shape):
        raise CurvatureError(
            f"{source.path / what}.safetensors: {name} has the shape {tuple(value.shape)}, the "
            f"layer asks for {tuple(shape)}",
            remedy="name the checkpoint that the factors were fitted on",
        )
    return _wide(value)


def _count(parts: Mapping[str, Tensors], what: str, name: str, source: _Folder) -> int:
    count = int(parts[what][name].sum())
    if count < 1:
        raise CurvatureError(f"{source.path / what}.safetensors: {name} was fitted on no rows")
    return count


def _eigen(
    found: Session,
    theirs: Mapping[str, str],
    parts: Mapping[str, Tensors],
    config: FactorsConfig,
    source: _Folder,
) -> tuple[Tensors, Tensors]:
    """Eigenvectors and eigenvalues by layer; layers that share an input share equal tensors."""
    vectors: Tensors = {}
    values: Tensors = {}
    if config.strategy not in ROTATED:
        return vectors, values
    for number, layer in enumerate(found.layers):
        for side, word, size in (
            ("A", "activation", layer.columns),
            ("S", "gradient", layer.outputs),
        ):
            key = f"{side}/{layer.name}"
            if f"{word}_eigenvectors" in parts:
                name = theirs[layer.name]
                vectors[key] = _checked(parts, f"{word}_eigenvectors", name, (size, size), source)
                lambdas = _checked(parts, f"{word}_eigenvalues", name, (size,), source)
            else:
                lambdas, vectors[key] = _decompose(layer, word, size, theirs, parts, config, source)
            values[key] = lambdas.clamp(min=0)  # what rounding makes of a zero
        leader = f"A/{found.layers[found.groups[number]].name}"
        mine = f"A/{layer.name}"
        if leader != mine and torch.equal(vectors[leader], vectors[mine]):
            vectors[mine] = vectors[leader]
    return vectors, values


def _decompose(
    layer: Layer,
    word: str,
    size: int,
    theirs: Mapping[str, str],
    parts: Mapping[str, Tensors],
    config: FactorsConfig,
    source: _Folder,
) -> tuple[Tensor, Tensor]:
    name, what = theirs[layer.name], f"{word}_covariance"
    total = _checked(parts, what, name, (size, size), source)
    mean = total.to(getattr(torch, config.eigen_dtype)) / _count(
        parts, f"num_{what}_processed", name, source
    )
    lambdas, vectors = torch.linalg.eigh((mean + mean.t()) / 2)
    return lambdas.to(total.dtype), vectors.to(total.dtype)


def _squares(
    found: Session, theirs: Mapping[str, str], parts: Mapping[str, Tensors], source: _Folder
) -> Tensors:
    """Mean squares of gradient entries by layer."""
    if "lambda_matrix" not in parts:
        return {}
    squares: Tensors = {}
    for layer in found.layers:
        name, shape = theirs[layer.name], (layer.outputs, layer.columns)
        total = _checked(parts, "lambda_matrix", name, shape, source)
        if bool((total < 0).any()):
            raise CurvatureError(
                f"{source.path}/lambda_matrix.safetensors: {name} has negative sums of squares",
                remedy="the file is no Lambda of kronfluence: fit the factors again",
            )
        squares[layer.name] = total / _count(parts, "num_lambda_processed", name, source)
    return squares
