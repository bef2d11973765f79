"""Neighbourhoods of a checkpoint: what may move, how far, and in which coordinates.

Every neighbourhood here has one form. With w the checkpoint, A a matrix with p orthonormal columns
(which coordinates move), T > 0 a scale per coordinate and r a radius,

    w' = w + A (T * u),     ||u|| <= r        (u in R^p, * entry by entry)

    method             T                norm of u         what u says of v = w' - w
    box                |c| + 1          largest entry     |v_i| <= r (|c_i| + 1)
    sam                1                Euclidean         ||v||_2 <= r
    adaptive           |c| + eta        Euclidean         ||T^-1 v||_2 <= r
    adaptive-box       |c| + eta        largest entry     |v_i| <= r (|c_i| + eta)
    average            1                Gaussian          v_i ~ N(0, r^2)
    adaptive-average   |c| + eta        Gaussian          v_i ~ N(0, r^2 (|c_i| + eta)^2)

with c = A^+ w = A^T w. box: Keskar et al. 2017, eq. 3. sam: Foret et al. 2021. adaptive: Kwon et
al. 2021. adaptive-box and the averages: Andriushchenko et al. 2023, section 2.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from landform.errors import ConfigError
from landform.store.fingerprint import fingerprint
from landform.weights.checkpoint import Checkpoint
from landform.weights.points import ReadPoint
from landform.weights.space import ParameterSpace

__all__ = [
    "AVERAGES",
    "DEFAULT_EPSILON",
    "Basis",
    "Method",
    "Norm",
    "Perturbation",
    "Region",
    "RegionSpec",
    "Scale",
    "open_region",
]

Method = Literal["box", "sam", "adaptive", "adaptive-box", "average", "adaptive-average"]
Norm = Literal["linf", "l2", "gaussian"]
Scale = Literal["own", "relative"]
Basis = Literal["dense", "sparse"]

NORMS: dict[str, Norm] = {
    "box": "linf",
    "sam": "l2",
    "adaptive": "l2",
    "adaptive-box": "linf",
    "average": "gaussian",
    "adaptive-average": "gaussian",
}
"""The norm of u, or the distribution it is drawn from."""

AVERAGES = ("average", "adaptive-average")
"""Methods that draw perturbations in place of climbing."""

DEFAULT_EPSILON: dict[str, float] = {
    "box": 1e-3,
    "sam": 0.05,
    "adaptive": 0.5,
    "adaptive-box": 1e-3,
    "average": 1e-3,
    "adaptive-average": 1e-2,
}
"""Radii in each method's own unit. box, sam, adaptive: those of the papers; the others are ours."""


@dataclass(frozen=True)
class RegionSpec:
    """All that decides a region around a given checkpoint."""

    method: Method
    epsilon: float
    """r of the method; with scale "relative" the root mean square length of A (T u) over ||w||"""
    scale: Scale = "own"
    eta: float = 0.0
    """added to |c_i| by the adaptive methods"""
    coordinates: int | None = None
    """only this many random coordinates of w move"""
    subspace: int | None = None
    """w moves in a random subspace of this dimension"""
    basis: Basis = "dense"
    parameters: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    seed: int = 0
    """of the coordinates, the subspace, the starts and the draws"""
    compat: bool = False
    """box only: T = |c + 1|, which has no width at c = -1"""


# --- which coordinates move -----------------------------------------------------------------------


class Chart(Protocol):
    """A with orthonormal columns, so that A^+ = A^T."""

    dimension: int

    def pull(self, flat: Tensor) -> Tensor:
        """A^T flat: (n,) -> (p,), a copy."""

    def push(self, z: Tensor, onto: Tensor) -> None:
        """Add A z to `onto` (n,), in place."""


class _Slices:
    """All entries of some tensors, as ranges of the flat vector."""

    def __init__(self, space: ParameterSpace, chosen: ParameterSpace) -> None:
        self.ranges = space.spans(chosen.names)
        self.dimension = chosen.numel

    def pull(self, flat: Tensor) -> Tensor:
        return torch.cat([flat[start:stop] for start, stop in self.ranges])

    def push(self, z: Tensor, onto: Tensor) -> None:
        done = 0
        for start, stop in self.ranges:
            onto[start:stop] += z[done : done + stop - start]
            done += stop - start


class _Coordinates:
    """p single entries."""

    def __init__(self, inner: Chart, p: int, seed: int, like: Tensor) -> None:
        generator = _generator("coordinates", seed)
        chosen = torch.randperm(inner.dimension, generator=generator)[:p].sort().values
        self.inner, self.index, self.dimension = inner, chosen.to(like.device), p

    def pull(self, flat: Tensor) -> Tensor:
        return self.inner.pull(flat)[self.index]

    def push(self, z: Tensor, onto: Tensor) -> None:
        whole = z.new_zeros(self.inner.dimension)
        whole[self.index] = z
        self.inner.push(whole, onto)


class _Dense:
    """A random subspace: the orthonormal factor of a Gaussian n x p matrix."""

    def __init__(self, inner: Chart, p: int, seed: int, like: Tensor) -> None:
        generator = _generator("subspace", seed)
        drawn = torch.randn(inner.dimension, p, generator=generator).to(like)
        self.inner, self.columns, self.dimension = inner, torch.linalg.qr(drawn).Q, p

    def pull(self, flat: Tensor) -> Tensor:
        z: Tensor = self.columns.T @ self.inner.pull(flat)
        return z

    def push(self, z: Tensor, onto: Tensor) -> None:
        self.inner.push(self.columns @ z, onto)


class _Sparse:
    """A random subspace in the memory of two vectors: every coordinate of w belongs to one
    direction, at random, with a random sign. Directions have no coordinate in common, so they are
    orthogonal; each moves n/p coordinates by equal amounts."""

    def __init__(self, inner: Chart, p: int, seed: int, like: Tensor) -> None:
        generator = _generator("subspace", seed)
        n = inner.dimension
        # A permutation modulo p: no direction is left without coordinates.
        self.owner = (torch.randperm(n, generator=generator) % p).to(like.device)
        sign = torch.randint(0, 2, (n,), generator=generator).to(like) * 2 - 1
        counts = torch.bincount(self.owner, minlength=p).to(like)
        self.entry = sign / counts.sqrt()[self.owner]
        self.inner, self.dimension = inner, p

    def pull(self, flat: Tensor) -> Tensor:
        z = flat.new_zeros(self.dimension)
        return z.index_add_(0, self.owner, self.entry * self.inner.pull(flat))

    def push(self, z: Tensor, onto: Tensor) -> None:
        self.inner.push(self.entry * z[self.owner], onto)


def _generator(*parts: object) -> torch.Generator:
    """A generator on the CPU for this purpose and no other: draws are the same on any device."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _open_chart(space: ParameterSpace, spec: RegionSpec, like: Tensor, memory: float) -> Chart:
    inner: Chart = _Slices(space, space.subspace(spec.parameters, spec.exclude))
    name = "coordinates" if spec.coordinates is not None else "subspace"
    p = spec.coordinates if spec.coordinates is not None else spec.subspace
    if p is None:
        return inner
    if p > inner.dimension:
        raise ConfigError(
            f"option {name} is {p:,}, but only {inner.dimension:,} parameters may move",
            remedy=f"use at most {inner.dimension:,}, or leave it out: all of them move",
        )
    if name == "coordinates":
        return _Coordinates(inner, p, spec.seed, like)
    if spec.basis == "sparse":
        return _Sparse(inner, p, spec.seed, like)
    needed = 3 * inner.dimension * p * like.element_size()  # the draws, their copy, the factor
    if needed > memory * 2**30:
        raise ConfigError(
            f"a dense basis of {p:,} directions of {inner.dimension:,} parameters takes "
            f"{needed / 2**30:.3g} GiB while it is made; option memory allows {memory:g}",
            remedy="use the basis 'sparse' (the memory of two checkpoints), fewer directions, or "
            "more memory",
        )
    return _Dense(inner, p, spec.seed, like)


# --- regions --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Region:
    """A neighbourhood of `centre`, in coordinates u in which it is a cube, a ball or a Gaussian."""

    chart: Chart
    centre: Tensor
    """w, (n,)"""
    weights: Tensor
    """T, (p,)"""
    radius: float
    """r, in the method's own unit"""
    norm: Norm
    seed: int
    spread: float
    """root mean square length of A (T u) for u of the radius, over ||w|| of what may move"""
    length: float
    """||w|| of what may move"""

    @property
    def dimension(self) -> int:
        """p, the number of coordinates that move."""
        return self.chart.dimension

    def zero(self) -> Tensor:
        """u of the checkpoint itself."""
        return torch.zeros_like(self.weights)

    def place(self, u: Tensor, out: Tensor) -> None:
        """Write w + A (T u) into `out` (n,); exactly w at u = 0."""
        out.copy_(self.centre)
        self.chart.push(self.weights * u, out)

    def pull(self, slope: Tensor) -> Tensor:
        """dL/du = T * A^T dL/dw, (p,)."""
        return self.weights * self.chart.pull(slope)

    def project(self, u: Tensor) -> Tensor:
        """The point of the region nearest to `u`, in these coordinates."""
        if self.norm == "linf":
            return u.clamp(-self.radius, self.radius)
        norm = float(torch.linalg.vector_norm(u.double()))
        # A point that lies inside stays as it is, to the bit.
        return u if norm <= self.radius else u * (self.radius / norm)

    def start(self, restart: int) -> Tensor:
        """Where climb number `restart` begins: the centre for 0, else at random, a corner of a box
        or uniform in a ball."""
        if restart == 0:
            return self.zero()
        generator = _generator("start", self.seed, restart)
        if self.norm == "linf":
            # The gradient inside differs little from that of the centre, which leads to one corner.
            drawn = torch.randint(0, 2, (self.dimension,), generator=generator).to(self.weights)
            return (2 * drawn - 1) * self.radius
        drawn = torch.randn(self.dimension, generator=generator).to(self.weights)
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        length = float(torch.linalg.vector_norm(drawn.double()))
        factor = self.radius * share ** (1 / self.dimension) / max(length, 1e-300)
        start: Tensor = drawn * factor
        return start

    def draw(self, number: int) -> Tensor:
        """Gaussian u of draw `number`: N(0, r^2) in every coordinate."""
        generator = _generator("draw", self.seed, number)
        drawn = torch.randn(self.dimension, generator=generator).to(self.weights)
        return drawn * self.radius

    def gain(self, slope_u: Tensor) -> float:
        """Largest first-order rise of the loss, max over ||u|| <= r of <dL/du, u>.

        For the box that is epsilon ||(|w| + 1) * g||_1, for a ball rho ||T g||_2, for a Gaussian
        (whose mean is 0) nothing.
        """
        if self.norm == "gaussian":
            return 0.0
        order = 1 if self.norm == "linf" else 2
        return self.radius * float(torch.linalg.vector_norm(slope_u.double(), ord=order))

    def reach(self, u: Tensor) -> float:
        """How much of the region u uses: mean |u_i| / r of a box, ||u|| / r of a ball."""
        if self.norm == "linf":
            return float(u.double().abs().mean()) / self.radius
        return float(torch.linalg.vector_norm(u.double())) / self.radius

    def distance(self, u: Tensor) -> float:
        """||A (T u)|| / ||w||: how far from the checkpoint, in its own length."""
        return float(torch.linalg.vector_norm((self.weights * u).double())) / self.length


def open_region(
    space: ParameterSpace, centre: Tensor, spec: RegionSpec, *, memory: float = 2.0
) -> Region:
    """The region that `spec` describes around the point `centre` (n,) of `space`.

    memory: GiB that a dense basis may take. Raises `ConfigError` for patterns that match no tensor,
    more coordinates than there are, or a region without any width.
    """
    chart = _open_chart(space, spec, centre, memory)
    norm = NORMS[spec.method]
    here = chart.pull(centre)
    weights = _weights(here, spec)
    whole = _Slices(space, space.subspace(spec.parameters, spec.exclude)).pull(centre)
    length = float(torch.linalg.vector_norm(whole.double()))
    width = float(torch.linalg.vector_norm(weights.double()))
    if norm == "l2":
        width /= math.sqrt(chart.dimension)  # the mean square entry of u on the unit sphere
    if width == 0 or length == 0:
        raise ConfigError(
            f"the region of method {spec.method!r} has no width: the parameters that may move are "
            "all zero",
            remedy="choose other parameters, or an eta above 0",
        )
    radius = spec.epsilon if spec.scale == "own" else spec.epsilon * length / width
    spread = radius * width / length
    return Region(chart, centre, weights, radius, norm, spec.seed, spread, length)


def _weights(here: Tensor, spec: RegionSpec) -> Tensor:
    """T at the coordinates c = `here` of the checkpoint."""
    if spec.method == "box":
        return (here + 1).abs() if spec.compat else here.abs() + 1
    if spec.method.startswith("adaptive"):
        return here.abs() + spec.eta
    return torch.ones_like(here)


@dataclass(frozen=True)
class Perturbation:
    """A Gaussian step out of a checkpoint, as a member of mixes: A (T u), drawn from its seed."""

    around: Checkpoint
    region: RegionSpec
    number: int
    memory: float = 2.0

    @property
    def spec(self) -> str:
        """As people are told of it."""
        return f"{self.region.method} draw {self.number} around {self.around.spec}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the checkpoint and the options: they decide the vector."""
        return fingerprint((self.around.fingerprint, self.region, self.number))

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """The step's vector, shape (space.numel,)."""
        centre = read(self.around.fingerprint)
        region = open_region(space, centre, self.region, memory=self.memory)
        step = torch.zeros_like(centre)
        region.chart.push(region.weights * region.draw(self.number), step)
        return step
