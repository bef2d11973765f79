"""The diagonal of the Fisher matrix: what is kept of it, its scores by group, its file.

With l_i the loss of example i (its mean or sum over the scored tokens; or every token for itself)

    F_j = 1/N sum_i E_y [ (d l_i(y) / d theta_j)^2 ]

with y the data's label (empirical) or the model's own (true); see `curvature.fisher_fit`, which
computes it. A tied tensor counts once: its gradients are summed before they are squared.

Scores of groups of tensors (Sharma et al. 2024, arXiv 2406.14005, section 3):

    entries    sum_j in group F_j / number of entries in the group
    tensors    mean over the group's tensors of their own means (what the paper's code computes: a
               vector of 768 entries then weighs as much as a matrix of 23 million)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from landform.errors import ConfigError, CurvatureError, StoreError
from landform.results import Result, from_parts, to_parts
from landform.store.atomic import atomic_path, file_errors, parse_table, table_bytes
from landform.store.fingerprint import fingerprint
from landform.weights.checkpoint import Checkpoint
from landform.weights.sites import dropout_sites
from landform.weights.space import ParameterSpace

__all__ = [
    "Fisher",
    "FisherScores",
    "GroupBy",
    "Weighting",
    "distribution_of",
    "load_fisher",
    "sublayers_of",
    "tensor_table",
]

GroupBy = Literal["tensor", "sublayer", "layer"]
Weighting = Literal["entries", "tensors"]

FORMAT = 1
METADATA = "landform"

CAPTURED = "captured"
"""How a tensor's gradients were found: of a batch at once, from what its modules saw (but for
batches that reach these in another way)."""
ALONE = "one example at a time"
"""By autograd."""
CHUNK = 1 << 22
FRACTION = 18
"""Bits of a float32 that do not tell the bin of its size."""


@dataclass(frozen=True)
class FisherScores(Result):
    """What a Fisher diagonal says of every tensor and example, without the diagonal itself."""

    checkpoint: str
    task: str
    split: str
    estimator: str
    """whose labels: empirical, true (exact), true (sampled)"""
    reduction: str
    """what one gradient is of: mean or sum of an example's token losses, or a single token"""
    examples: int
    """number of examples"""
    terms: int
    """N, the number of squared gradients averaged: examples, or scored tokens"""
    tensors: pd.DataFrame
    """one row per tensor, in the model's order: name, dims (axes of its shape), entries, total (the
    sum of F over its entries), largest (the largest entry), layer, sublayer (the dropout whose
    input it makes, or None); where it was computed here also way (`CAPTURED` or `ALONE`)"""
    covariance: pd.DataFrame
    """covariance of the estimates `total` of the tensors, (T, T) with a column per tensor: what a
    standard error is made of"""
    traces: pd.DataFrame
    """one row per example: text_id, tokens (scored), trace (sum over all entries of its squared
    gradient; its mean is sum_j F_j where a term is an example)"""
    stability: pd.DataFrame
    """groups, examples, correlation, low, high: Spearman's correlation of the scores from two
    random halves of the first so many examples, over random divisions (median and 90 % range)"""
    provenance: dict[str, Any]
    distribution: pd.DataFrame | None = None
    """entries of the diagonal by size, see `distribution_of`; a `Fisher` fills it in"""

    def groups(
        self,
        kind: GroupBy = "sublayer",
        *,
        weighting: Weighting = "entries",
        matrices_only: bool = False,
    ) -> pd.DataFrame:
        """One row per group, in the model's order: name, tensors, entries, score, error, rank.

        `error` is the standard error of the score over examples, `rank` 0 for the lowest score.
        `matrices_only` leaves out tensors of one axis (biases, norms). Raises `ConfigError` for a
        kind that is not known, or of which this model has no group.
        """
        if kind not in ("tensor", "sublayer", "layer"):
            raise ConfigError(
                f"unknown kind of group {kind!r}", remedy="use tensor, sublayer or layer"
            )
        if weighting not in ("entries", "tensors"):
            raise ConfigError(f"unknown weighting {weighting!r}", remedy="use entries or tensors")
        table = self.tensors.assign(group=self.tensors["name" if kind == "tensor" else kind])
        table = table[table.group.notna() & ((table.dims > 1) | (not matrices_only))]
        if table.empty:
            raise ConfigError(
                f"the Fisher of {self.checkpoint} has no {kind} to score"
                + (" among its matrices" if matrices_only else ""),
                remedy="use tensor",
            )
        rows = []
        covariance = self.covariance.to_numpy()
        for name, part in table.groupby("group", sort=False):
            places = part.index.to_numpy()
            entries = part.entries.to_numpy(dtype=float)
            weights = (
                np.full(len(part), 1 / entries.sum())
                if weighting == "entries"
                else 1 / (len(part) * entries)
            )
            score = float(weights @ part.total.to_numpy())
            variance = float(weights @ covariance[np.ix_(places, places)] @ weights)
            error = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
            rows.append((name, len(part), int(entries.sum()), score, error))
        made = pd.DataFrame(rows, columns=["name", "tensors", "entries", "score", "error"])
        # Equal scores keep the model's order: no group is lost, none jumps from run to run.
        made["rank"] = made.score.rank(method="first").astype(int) - 1
        return made

    def by(
        self,
        kind: GroupBy = "sublayer",
        *,
        weighting: Weighting = "entries",
        matrices_only: bool = False,
    ) -> pd.Series:
        """The scores of `groups`, by name."""
        table = self.groups(kind, weighting=weighting, matrices_only=matrices_only)
        return pd.Series(table.score.to_numpy(), index=table.name.to_numpy(), name="fisher")

    @property
    def trace(self) -> float:
        """sum_j F_j."""
        return float(self.tensors.total.sum())

    @property
    def reading(self) -> str:
        """One line for a person."""
        means = self.by("tensor")
        line = (
            f"Fisher diagonal ({self.estimator}, {self.reduction}) of {self.checkpoint} on "
            f"{self.examples} examples of {self.task}:{self.split}: trace {self.trace:.4g}, "
            f"highest mean {means.max():.3g} in {means.idxmax()}"
        )
        last = self.stability[self.stability.groups == "tensor"]
        if len(last):
            line += f"; order of tensors in two halves: Spearman {last.correlation.iloc[-1]:.3f}"
        if "way" in self.tensors and (alone := int((self.tensors.way == ALONE).sum())):
            line += f"; {alone} tensors one example at a time"
        return line

    def to_json(self) -> dict[str, Any]:
        """Plain values; the traces and the covariance stay tables."""
        return {
            "checkpoint": self.checkpoint,
            "task": self.task,
            "split": self.split,
            "estimator": self.estimator,
            "reduction": self.reduction,
            "examples": self.examples,
            "terms": self.terms,
            "trace": self.trace,
            "tensors": self.tensors.to_dict("records"),
            "stability": self.stability.to_dict("records"),
            "provenance": self.provenance,
        }


@dataclass(frozen=True, eq=False)
class Fisher:
    """The diagonal itself, by tensor name, and its scores."""

    summary: FisherScores
    diagonal: Mapping[str, Tensor]
    """{parameter name: F, of the parameter's shape}, float32 or float64 on the CPU"""

    def __post_init__(self) -> None:
        if self.summary.distribution is None:
            counted = replace(self.summary, distribution=distribution_of(self.diagonal))
            object.__setattr__(self, "summary", counted)

    def groups(self, kind: GroupBy = "sublayer", **options: Any) -> pd.DataFrame:
        """See `FisherScores.groups`."""
        return self.summary.groups(kind, **options)

    def by(self, kind: GroupBy = "sublayer", **options: Any) -> pd.Series:
        """See `FisherScores.by`."""
        return self.summary.by(kind, **options)

    @property
    def reading(self) -> str:
        """One line for a person."""
        return self.summary.reading

    def plot(self, **options: Any) -> Any:
        """The figure of its scores."""
        return self.summary.plot(**options)

    @property
    def weights(self) -> str | None:
        """Fingerprint of the weights that it was computed at, where that is known."""
        return self.summary.provenance.get("weights")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names and the values of the diagonal."""
        return fingerprint(
            {name: value.detach().cpu().numpy() for name, value in self.diagonal.items()}
        )

    def check(
        self, space: ParameterSpace, where: str, *, only: Sequence[str] | None = None
    ) -> None:
        """Raise `CurvatureError` naming a tensor of `space` that it lacks or has another shape of.

        `only`: the tensors that are asked for (default: all of the space).
        """
        shapes = dict(zip(space.names, space.shapes, strict=True))
        for name in shapes if only is None else only:
            found = self.diagonal.get(name)
            if found is None:
                fault = f"has no tensor {name} of {where}"
            elif tuple(found.shape) != shapes.get(name):
                fault = f"has {name} as {tuple(found.shape)}, {where} as {shapes.get(name)}"
            else:
                continue
            raise CurvatureError(
                f"the Fisher of {self.summary.checkpoint} {fault}",
                remedy="it belongs to another model: compute it for this one (landform fisher)",
            )

    def check_weights(
        self, checkpoint: Checkpoint, *, elsewhere: bool = False, remedy: str | None = None
    ) -> None:
        """Raise `CurvatureError` for other weights than the checkpoint's.

        `elsewhere`: it is meant to be from elsewhere (the pre-trained model's, say). An imported
        Fisher does not tell its weights and passes; for names and shapes see `check`.
        """
        if elsewhere or self.weights is None or self.weights == checkpoint.fingerprint:
            return
        raise CurvatureError(
            f"the Fisher is that of {self.summary.checkpoint} (weights {self.weights[:12]}), not "
            f"of {checkpoint.spec} (weights {checkpoint.fingerprint[:12]}): computed at other "
            "weights",
            remedy=remedy
            or f"compute it there: landform fisher {checkpoint.spec} --out FILE.safetensors",
        )

    def flat(self, space: ParameterSpace, where: str = "the model") -> Tensor:
        """The diagonal as a vector of `space`, shape (space.numel,)."""
        self.check(space, where)
        return space.flatten({name: self.diagonal[name].to(space.dtype) for name in space.names})

    # --- its file ---------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file: the tensors by name; all else as JSON in its metadata."""
        from safetensors.torch import save_file

        target = Path(path)
        tables, record = to_parts(self.summary)
        about = {
            "format": FORMAT,
            "record": record,
            "tables": {
                # Parquet in text: JSON would round numbers and lose their types. Read once, as a
                # table is that was kept in a study: the same file whichever way it came.
                name: b64encode(table_bytes(parse_table(table_bytes(table), name))).decode()
                for name, table in tables.items()
            },
        }
        tensors = {name: value.contiguous() for name, value in self.diagonal.items()}
        plain = json.loads(json.dumps(about, default=_plain))
        text = json.dumps({**plain, "sha256": self._digest(plain)})
        with atomic_path(target) as place:
            save_file(tensors, place, metadata={METADATA: text})
        return target

    def _digest(self, about: Mapping[str, Any]) -> str:
        """Of the tensors and of what is said about them: a bit that turns is noticed."""
        return hashlib.sha256((json.dumps(about) + self.fingerprint).encode()).hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. Raises `StoreError` for a file that is damaged or no Fisher."""
        from safetensors import SafetensorError, safe_open

        place = Path(path)
        try:
            with file_errors("read", place), safe_open(place, framework="pt") as file:
                about = (file.metadata() or {}).get(METADATA)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise StoreError(
                f"{place} cannot be read: {error}",
                remedy="a file made by landform fisher is expected; if it is one, make it again",
            ) from None
        found = cls(_read_summary(about, place), tensors)
        value = json.loads(about or "")
        if value.pop("sha256", None) not in (None, found._digest(value)):
            raise StoreError(
                f"{place} is damaged: its content is not what was written",
                remedy="delete it and make it again (landform fisher)",
            )
        return found


def distribution_of(diagonal: Mapping[str, Tensor]) -> pd.DataFrame:
    """How many entries have which size: value, entries, in rising order of value.

    A bin holds the entries up to `value` that are larger than the value before; there are 32 in
    every doubling. Cumulated, they are the sorted curve of all entries at a thousand places.
    """
    counts = torch.zeros(1 << 13, dtype=torch.int64)
    for values in diagonal.values():
        flat = values.detach().reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            # The first bits of a positive float32 (sign, exponent, 5 of its fraction) count up with
            # its logarithm: no sorting, no range to be known before.
            part = flat[start : start + CHUNK].float().nan_to_num().clamp(min=0)
            bits = part.view(torch.int32) >> FRACTION
            counts += torch.bincount(bits, minlength=len(counts)).cpu()
    filled = counts.nonzero().flatten()
    tops = (((filled + 1) << FRACTION) - 1).to(torch.int32).view(torch.float32).double()
    tops[filled == 0] = 0.0
    return pd.DataFrame({"value": tops.numpy(), "entries": counts[filled].numpy()})


def tensor_table(
    space: ParameterSpace, diagonal: Mapping[str, Tensor], sublayers: Sequence[str | None]
) -> pd.DataFrame:
    """`FisherScores.tensors` of a diagonal."""
    layers = {r.name: layer for layer, regions in space.groups("layer").items() for r in regions}
    values = [diagonal[name] for name in space.names]
    return pd.DataFrame(
        {
            "name": space.names,
            "dims": [len(shape) for shape in space.shapes],
            "entries": space.sizes,
            "total": [float(f.sum(dtype=torch.float64)) for f in values],
            "largest": [float(f.max()) for f in values],
            "layer": [layers[name] for name in space.names],
            "sublayer": pd.Series(list(sublayers)),
        }
    )


def sublayers_of(model: Any, space: ParameterSpace) -> list[str | None]:
    """The dropout site whose input a tensor makes, by tensor."""
    of = {tensor: site.name for site in dropout_sites(model) for tensor in site.tensors}
    return [of.get(name) for name in space.names]


def load_fisher(source: Fisher | str | os.PathLike[str]) -> Fisher:
    """A Fisher diagonal: `source` itself, or from the file of `Fisher.save` that it names."""
    return source if isinstance(source, Fisher) else Fisher.load(source)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _read_summary(about: str | None, place: Path) -> FisherScores:
    remedy = "a file made by landform fisher is expected; if it is one, make it again"
    if about is None:
        raise StoreError(f"{place} holds tensors, but no Fisher of landform's", remedy=remedy)
    try:
        value = json.loads(about)
        if value["format"] > FORMAT:
            raise StoreError(
                f"{place} was written by a newer landform", remedy="install that version"
            )
        tables = {
            name: parse_table(b64decode(text), place) for name, text in value["tables"].items()
        }
        found = from_parts(tables, value["record"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{place}: its description is damaged: {error!r}", remedy=remedy) from None
    if not isinstance(found, FisherScores):
        raise StoreError(f"{place} holds no Fisher of landform's", remedy=remedy)
    return found
