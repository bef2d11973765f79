"""Scores of training rows for directions of parameter space, in place of queries.

A query enters influence by its gradient alone, so anything that has a gradient can be asked about:
a mean loss, a difference of losses at two models, a distance. For a direction v (one matrix V for
every layer, outputs as rows and the bias as the last column) training row b has

    score(v, b) = sum over layers of <W o (Q_S^T V Q_A), Q_S^T G_b Q_A>,  W_ij = 1 / (Lambda_ij + d)

with the damping d: v^T H^-1 grad L_b, which is minus what up-weighting the row adds to a quantity
whose gradient is v (`landform.attribution.influence`; Koh and Liang 2017, eq. 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landform.attribution.measurement import Measurement
from landform.attribution.rows import Rows, Side
from landform.attribution.scoring import (
    DampingConfig,
    InfluenceConfig,
    InfluenceWork,
    InfluenceWorker,
)
from landform.curvature.captured import Captured
from landform.curvature.factors import Factors
from landform.curvature.gradients import Basis, GradientStore, Piece
from landform.curvature.layers import Layer, layer_matrix
from landform.errors import ConfigError
from landform.store.artifacts import ArtifactStore
from landform.store.engines import run_plan
from landform.store.plan import Job, Plan
from landform.store.study import open_store

__all__ = ["Directions", "direction_scores", "layer_share"]

Named = Mapping[str, Tensor]
"""A direction: the entries of every tensor of the model, by its name"""


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions, made when they are first needed."""

    key: Any
    """what they are made of: scores that are kept in a store are found again by it"""
    make: Callable[[], Sequence[Named]]
    count: int

    @cached_property
    def values(self) -> Sequence[Named]:
        """The directions."""
        return self.make()


def direction_scores(
    factors: Factors,
    directions: Directions,
    *,
    train: str | None = None,
    train_rows: Rows = None,
    store: ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> np.ndarray:
    """(training rows, directions): see the module's docstring.

    train, train_rows: as for `influence`. Options are the fields of `DampingConfig`. Scores are
    sums over the tokens of a row; nothing is divided by the number of rows. Raises `ConfigError`
    naming a tensor that a direction lacks.
    """
    damping = DampingConfig.parse(options, where="direction_scores")
    rows = Side.of(factors, train, train_rows, "training rows")
    work = _Work(
        factors,
        rows,
        rows,
        Measurement.of("loss"),
        InfluenceConfig.parse(dict(damping)),
        kept=store is not None,
        directions=directions,
    )
    kept, plan = open_store(store), Plan(work.jobs())
    run_plan(plan, work, kept, progress=progress, description="scoring", unit="rows")
    return np.concatenate([kept.read(job.key).tensors["scores"] for job in plan.jobs])


@dataclass(frozen=True)
class _Work(InfluenceWork):
    """The blocks of training rows; every block is scored for all directions."""

    directions: Directions | None = None

    def __call__(self) -> _Worker:
        return _Worker(self)

    def jobs(self) -> list[Job]:
        """A block of training rows each."""
        assert self.directions is not None
        spec = {
            **self._spec,
            "directions": self.directions.key,
            "train": self.train.examples.fingerprint,
            "query_rows": (0, self.directions.count),
        }
        return [
            Job(
                "direction-scores",
                {**spec, "train_rows": rows},
                cost=float(rows[1] - rows[0]),
                label=f"training rows {rows[0]} to {rows[1] - 1}",
            )
            for rows in self._chunks(self.train, self.budget / 2)
        ]


class _Given(Captured):
    """Gradients that were not captured but given: they say nothing of any row."""

    def facts(self, prefix: str = "") -> dict[str, np.ndarray]:
        return {}


class _Worker(InfluenceWorker):
    """Scores rows for the directions of its work."""

    work: _Work

    def _queries(self, rows: tuple[int, int]) -> Captured:
        if self._asked is None:
            assert self.work.directions is not None
            given = _Given(GradientStore(self.bases))
            values = self.work.directions.values
            owners = _owners(self.session.model)
            for basis, kept in zip(self.bases, given.store.layers, strict=True):
                matrices = [_matrix(value, basis.layer, owners) for value in values]
                kept.pieces.append(_piece(torch.stack(matrices), basis))
            given.store.rows.append(torch.arange(len(values), device=self.session.device))
            self._asked = ((0, len(values)), given)
        return self._asked[1]


def _owners(model: torch.nn.Module) -> dict[int, str]:
    """The name of every parameter, by its identity: that under which a tied one is known."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _matrix(direction: Named, layer: Layer, owners: Mapping[int, str]) -> Tensor:
    """The part of a layer, (d_out, columns)."""

    def entries(parameter: Tensor) -> Tensor:
        name = owners[id(parameter)]
        if name not in direction:
            raise ConfigError(
                f"a direction has no tensor {name}, which the factors see",
                remedy="give all tensors of the layers, or exclude the layer from the factors",
            )
        return direction[name].to(parameter.device, parameter.dtype)

    return layer_matrix(layer, entries)


def _piece(matrices: Tensor, basis: Basis) -> Piece:
    """Matrices (n, d_out, columns) in the coordinates of a basis, as sums over "tokens".

    V = sum_i e_i v_i^T over the rows v_i, or over the columns where these are fewer: then the
    products with training rows need nothing of their own.
    """
    if basis.gradients is not None:
        matrices = basis.gradients.t() @ matrices
    if basis.inputs is not None:
        matrices = matrices @ basis.inputs
    count, rows, columns = matrices.shape
    units = torch.eye(min(rows, columns), dtype=matrices.dtype, device=matrices.device)
    units = units.expand(count, -1, -1)
    if rows <= columns:
        return Piece(matrices.contiguous(), units)
    return Piece(units, matrices.transpose(1, 2).contiguous())


def layer_share(factors: Factors, direction: Named) -> float:
    """The share of a direction's squared length that lies in the layers of the factors."""
    model = factors.session().model
    owners = _owners(model)
    seen = sum(
        float(_matrix(direction, layer, owners).double().square().sum())
        for layer in factors.session().layers
    )
    whole = sum(float(value.double().square().sum()) for value in direction.values())
    return seen / whole if whole else 1.0
