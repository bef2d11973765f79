"""Distances between two points of parameter space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landform.errors import ConfigError
from landform.results import Result
from landform.weights.checkpoint import (
    Checkpoint,
    LoadConfig,
    check_same_architecture,
    head_kind,
    load_model,
    resolve,
)
from landform.weights.space import GroupKind, ParameterSpace, Region

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Distance", "DistanceConfig", "distance", "euclidean", "gram", "off_line"]


class DistanceConfig(LoadConfig):
    """Options of `distance`."""

    by: GroupKind = "layer"
    """How the table divides the parameters: tensor, sublayer, layer, block or (attention) head."""
    origin: str | None = None
    """A third checkpoint, say the pre-trained one: the cosine is then that of a - origin and
    b - origin."""


@dataclass(frozen=True)
class Distance(Result):
    """Distances between checkpoints `a` and `b`; `table` has one row per group."""

    a: str
    b: str
    l2: float
    """|| a - b ||"""
    rms: float
    """|| a - b || / sqrt(number of parameters)"""
    cosine: float
    """<a, b> / (||a|| ||b||), of a - origin and b - origin when an origin is given"""
    parameters: int
    table: pd.DataFrame
    """columns group, parameters, l2, rms, cosine"""

    @property
    def reading(self) -> str:
        """One line for a person."""
        return (
            f"L2 distance {self.l2:.4g}, RMS {self.rms:.3g} per parameter "
            f"({self.parameters:,} parameters), cosine {self.cosine:.6f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{k: v for k, v in asdict(self).items() if k != "table"},
            "table": self.table.to_dict("records"),
        }


def euclidean(a: Tensor, b: Tensor) -> float:
    """|| a - b || with float64 accumulation, in blocks that stay in cache."""
    total = 0.0
    for start in range(0, a.numel(), _BLOCK):
        piece = a[start : start + _BLOCK] - b[start : start + _BLOCK]
        total += float(torch.linalg.vector_norm(piece.double())) ** 2
    return math.sqrt(total)


def gram(points: Sequence[Tensor], origin: Tensor | None = None) -> np.ndarray:
    """Inner products <p_i - o, p_j - o> (o = 0 without an origin), (k, k), summed in float64."""
    total = np.zeros((len(points), len(points)))
    for piece in _pieces(points[0]):
        rows = torch.stack([point[piece].double() for point in points])
        if origin is not None:
            rows = rows - origin[piece].double()
        total += (rows @ rows.T).cpu().numpy()
    return total


def off_line(a: Tensor, b: Tensor, point: Tensor, t: float) -> float:
    """|| point - ((1 - t) a + t b) || in float64: from the vectors themselves, because a small one
    is lost in differences of inner products."""
    total = 0.0
    for piece in _pieces(a):
        start = a[piece].double()
        rest = (point[piece].double() - start) - t * (b[piece].double() - start)
        total += float(rest.square().sum())
    return math.sqrt(total)


def _pieces(point: Tensor) -> Iterator[slice]:
    for start in range(0, point.numel(), _BLOCK):
        yield slice(start, start + _BLOCK)


_BLOCK = 1 << 18


def _sums(a: Tensor, b: Tensor, origin: Tensor | None) -> tuple[float, float, float, float]:
    x, y = a.double(), b.double()
    if origin is not None:
        x, y = x - origin.double(), y - origin.double()
    return (
        float((x - y).square().sum()),
        float((x * y).sum()),
        float(x.square().sum()),
        float(y.square().sum()),
    )


def _finish(
    difference: float, dot: float, aa: float, bb: float, n: int
) -> tuple[float, float, float]:
    l2 = math.sqrt(difference)
    cosine = dot / math.sqrt(aa * bb) if aa > 0 and bb > 0 else math.nan
    return l2, l2 / math.sqrt(n), cosine


def distance(
    a: str | Checkpoint, b: str | Checkpoint, *, kind: str | None = None, **options: Any
) -> Distance:
    """Distances between two checkpoints: L2, RMS per parameter and cosine, overall and per group.

    `kind` is the kind of head to load (default: the architecture the checkpoint names).
    Options are the fields of `DistanceConfig`.
    """
    import pandas as pd

    config = DistanceConfig.parse(options, where="distance")
    ends = [resolve(a), resolve(b)]
    check_same_architecture(*ends)
    models = [load_model(end, kind, config) for end in ends]
    spaces = [ParameterSpace.of(model) for model in models]
    spaces[0].check_same(spaces[1], ends[0].spec, ends[1].spec)
    space = spaces[0]
    points = [space.flatten(model) for model in models]
    for end, point in zip(ends, points, strict=True):
        space.check_finite(point, end.spec)
    origin = _origin(config, space, resolve(a), kind)
    rows: list[dict[str, Any]] = []
    total = [0.0, 0.0, 0.0, 0.0]
    count = 0
    for group, regions in space.groups(config.by, config=models[0].config).items():
        sums, n = _group_sums(space, points, origin, regions)
        total = [x + y for x, y in zip(total, sums, strict=True)]
        count += n
        l2, rms, cosine = _finish(sums[0], sums[1], sums[2], sums[3], n)
        rows.append({"group": group, "parameters": n, "l2": l2, "rms": rms, "cosine": cosine})
    if count != space.numel:
        raise ConfigError(f"groups by {config.by} cover {count} of {space.numel} parameters")
    l2, rms, cosine = _finish(total[0], total[1], total[2], total[3], count)
    return Distance(ends[0].spec, ends[1].spec, l2, rms, cosine, count, pd.DataFrame(rows))


def _origin(
    config: DistanceConfig, space: ParameterSpace, a: Checkpoint, kind: str | None
) -> Tensor | None:
    """The origin as a point: tensors it lacks (the new head of `a`) count from zero."""
    if config.origin is None:
        return None
    model = load_model(
        resolve(config.origin),
        kind or head_kind(a),
        config,
        new_head=True,
        num_labels=len(a.label_names()),
    )
    fresh: frozenset[str] = getattr(model, "landform_new_tensors", frozenset())
    tensors = {
        name: torch.zeros_like(p) if name in fresh else p for name, p in model.named_parameters()
    }
    point = space.flatten(tensors)
    space.check_finite(point, config.origin)
    return point


def _group_sums(
    space: ParameterSpace, points: list[Tensor], origin: Tensor | None, regions: tuple[Region, ...]
) -> tuple[tuple[float, float, float, float], int]:
    views = [space.views(p, regions) for p in points]
    origins = space.views(origin, regions) if origin is not None else [None] * len(regions)
    parts = [_sums(x, y, o) for x, y, o in zip(views[0], views[1], origins, strict=True)]
    sums = tuple(math.fsum(part[i] for part in parts) for i in range(4))
    return (sums[0], sums[1], sums[2], sums[3]), sum(x.numel() for x in views[0])
