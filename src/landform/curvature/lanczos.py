"""What products with a symmetric matrix tell of it: eigenpairs, trace, density of eigenvalues.

Nothing here knows where a matrix comes from: it is given as a function that multiplies several
vectors, `multiply([v, ...]) -> [A v, ...]`, all of one length D.

    eigenpairs      Lanczos with full reorthogonalisation and thick restarts (Wu and Simon 2000)
    trace           Hutchinson 1990; Hutch++ (Meyer et al. 2021, algorithm 1)
    density         stochastic Lanczos quadrature (Ubaru et al. 2017; Ghorbani et al. 2019)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "TOGETHER",
    "Lanczos",
    "Multiply",
    "Quadrature",
    "deflated_trace",
    "density",
    "random_vector",
    "signs",
]

Floats = npt.NDArray[np.float64]
Multiply = Callable[[Sequence[Tensor]], list[Tensor]]

SPENT = 1e-6
"""A Krylov space is exhausted where what is new of A v is smaller than this share of the largest
eigenvalue: rounding in float32 leaves about a tenth of it."""

COLUMNS = 1 << 16
"""Columns that are widened to float64 at once."""

BLOCK = 1 << 18
"""Terms of an inner product that are widened to float64 at once."""

TOGETHER = 4
"""Probes that are multiplied at once: they share the forward pass of every batch."""


def random_vector(size: int, seed: int, like: Tensor) -> Tensor:
    """A random unit vector, the same on every device; dtype and device of `like`."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(size, generator=generator).to(like)
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit


def signs(size: int, seed: int, like: Tensor) -> Tensor:
    """A vector of random signs (Rademacher), the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    # Bytes: the same draws as of the default int64, in a quarter of the time.
    drawn = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
    return drawn.to(like).mul_(2).sub_(1)


# --- eigenpairs -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Lanczos:
    """The largest and the smallest eigenvalues of a symmetric matrix (D, D), with vectors.

    An orthonormal basis V (held, D) grows by one product a step; the projected matrix T = V A V^T
    is kept whole, from the inner products of the full reorthogonalisation (Gram-Schmidt twice), and
    its eigenpairs (theta, s) give theta and V^T s, with

        || A V^T s - theta V^T s || = beta |s_last|.

    At `held` vectors only the best ones, and the newest, are kept (a thick restart), so memory is
    held x D entries. A Krylov space that is exhausted goes on from a random vector orthogonal to
    it, so eigenvalues that occur several times, and zeros, are found.
    """

    top: int
    bottom: int
    held: int
    seed: int
    basis: Tensor
    """(held + 1, D)"""
    projected: Floats
    """(held, held)"""
    count: int = 0
    """vectors whose product is known"""
    beta: float = 0.0
    """length of what is new of the last product"""
    steps: int = 0
    before: Floats | None = None
    """what was known when the Krylov space was last exhausted"""
    settled: bool = False
    """whether it was known already the time before"""

    @classmethod
    def start(
        cls, size: int, top: int, bottom: int, *, held: int, seed: int, like: Tensor
    ) -> Lanczos:
        """Before the first product; `like` gives dtype and device."""
        held = min(size, max(held, top + bottom + 2))
        basis = torch.zeros(held + 1, size, dtype=like.dtype, device=like.device)
        basis[0] = random_vector(size, seed, like)
        return cls(top, bottom, held, seed, basis, np.zeros((held, held)))

    @property
    def size(self) -> int:
        """D."""
        return self.basis.shape[1]

    def step(self, multiply: Multiply) -> None:
        """One product more."""
        if self.count == self.held:
            self._restart()
        j = self.count
        new = multiply([self.basis[j]])[0]
        length = float(torch.linalg.vector_norm(new))
        basis = self.basis[: j + 1]
        overlap = basis @ new
        new -= basis.t() @ overlap
        again = basis @ new  # twice is enough (Kahan; Parlett 1998, section 6.9)
        new -= basis.t() @ again
        column = (overlap + again).double().cpu().numpy()
        self.projected[: j + 1, j] = column
        self.projected[j, : j + 1] = column
        self.beta = float(torch.linalg.vector_norm(new))
        self.count, self.steps = j + 1, self.steps + 1
        scale = max(length, float(np.abs(self.projected).max()), 1e-300)
        if self.beta > SPENT * scale and self.count < self.size:
            self.basis[j + 1] = new / self.beta
            return
        self.beta = 0.0
        # The space of a random vector holds every eigenvalue of what is orthogonal to the basis, if
        # only once: where it changes nothing, neither will the next one.
        known = self.estimates()[0]
        if self.before is not None and len(known) == len(self.before) >= self.top + self.bottom:
            self.settled = bool((np.abs(known - self.before) <= SPENT * scale).all())
        self.before = known
        if self.count < self.size:
            self.basis[j + 1] = self._fresh()

    def _fresh(self) -> Tensor:
        """A random unit vector orthogonal to the basis."""
        new = random_vector(self.size, self.seed + 7919 * self.steps, self.basis)
        known = self.basis[: self.count]
        for _ in range(3):
            new = new - known.t() @ (known @ new)
            new = new / torch.linalg.vector_norm(new)
        return new

    def _restart(self) -> None:
        """Keep the best half of the basis, and the newest vector."""
        values, vectors = np.linalg.eigh(self.projected)
        spare = (self.held - self.top - self.bottom) // 2
        low = self.bottom + (spare // 2 if self.bottom else 0)
        high = self.top + (spare - spare // 2 if self.bottom else spare) if self.top else 0
        high = min(high, self.held - 1 - low)
        chosen = np.r_[0:low, self.held - high : self.held]
        turn = torch.from_numpy(vectors[:, chosen]).to(self.basis)
        kept = turn.t() @ self.basis[: self.held]
        self.basis[len(chosen)] = self.basis[self.held]
        self.basis[: len(chosen)] = kept
        self.projected[:] = 0.0
        self.projected[: len(chosen), : len(chosen)] = np.diag(values[chosen])
        self.count = len(chosen)

    def estimates(self) -> tuple[Floats, Floats]:
        """(eigenvalues, descending: the `top` largest, then the `bottom` smallest; their residual
        norms). Fewer where there are not as many yet."""
        values, vectors, chosen = self._ritz()
        return values[chosen], np.abs(self.beta * vectors[-1, chosen])

    def _ritz(self) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
        values, vectors = np.linalg.eigh(self.projected[: self.count, : self.count])
        order = np.arange(self.count)[::-1]
        if self.top + self.bottom < self.count:
            order = np.r_[order[: self.top], order[self.count - self.bottom :]]
        return values, vectors, order

    def done(self, tolerance: float) -> bool:
        """Whether all wanted residuals are below `tolerance` times the largest |eigenvalue|."""
        if self.count < min(self.top + self.bottom, self.size) or not self.count:
            return False
        if self.count == self.size:
            return True
        if self.before is not None:
            return self.settled
        values, errors = self.estimates()
        return bool((errors <= tolerance * float(np.abs(values).max())).all())

    def vectors(self) -> Tensor:
        """(k, D) unit vectors of `estimates`."""
        _, vectors, chosen = self._ritz()
        turn = torch.from_numpy(np.ascontiguousarray(vectors[:, chosen])).to(self.basis)
        return turn.t() @ self.basis[: self.count]


# --- density --------------------------------------------------------------------------------------


@dataclass(eq=False)
class Quadrature:
    """Lanczos recurrences from several random vectors of signs, all at once.

    After m steps from z / ||z|| the eigenvalues theta_k of the tridiagonal matrix of (alpha, beta)
    and the squares w_k of the first entries of its eigenvectors are a Gauss quadrature:

        z^T f(A) z / D ~ sum_k w_k f(theta_k),   sum_k w_k = 1,

    exact for polynomials up to degree 2 m - 1. Two vectors for each probe are held; without
    reorthogonalisation converged eigenvalues come as several copies that share one weight, and the
    quadrature stays right (Greenbaum 1989; Chen, Trogdon and Ubaru 2021).
    """

    current: list[Tensor]
    before: list[Tensor]
    alphas: list[list[float]] = field(default_factory=list)
    betas: list[list[float]] = field(default_factory=list)

    @classmethod
    def start(cls, size: int, seeds: Sequence[int], like: Tensor) -> Quadrature:
        """Before the first product, one probe for each seed."""
        current = [signs(size, seed, like) / math.sqrt(size) for seed in seeds]
        return cls(current, [torch.zeros_like(v) for v in current])

    def __post_init__(self) -> None:
        self.alphas = self.alphas or [[] for _ in self.current]
        self.betas = self.betas or [[] for _ in self.current]

    @property
    def steps(self) -> int:
        """Steps done."""
        return max(map(len, self.alphas), default=0)

    @property
    def open(self) -> list[int]:
        """Numbers of the probes whose Krylov space is not exhausted."""
        return [k for k, betas in enumerate(self.betas) if not betas or betas[-1] > 0]

    def step(self, multiply: Multiply) -> None:
        """One product more for every probe that is not exhausted."""
        chosen = self.open
        for k, new in zip(chosen, multiply([self.current[k] for k in chosen]), strict=True):
            here, length = self.current[k], float(torch.linalg.vector_norm(new))
            if self.betas[k]:
                new.sub_(self.before[k], alpha=self.betas[k][-1])
            alpha = float(here @ new)
            new.sub_(here, alpha=alpha)
            beta = float(torch.linalg.vector_norm(new))
            scale = max(length, *map(abs, self.alphas[k]), *self.betas[k], 1e-300)
            spent = beta <= SPENT * scale or len(self.alphas[k]) + 1 == len(new)
            self.alphas[k].append(alpha)
            self.betas[k].append(0.0 if spent else beta)
            self.before[k] = here
            self.current[k] = new if spent else new.div_(beta)

    def nodes(self) -> list[tuple[Floats, Floats]]:
        """(theta, w) of every probe."""
        found = []
        for alphas, betas in zip(self.alphas, self.betas, strict=True):
            off = np.array(betas[: len(alphas) - 1])
            matrix = np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1)
            values, vectors = np.linalg.eigh(matrix)
            found.append((values, vectors[0] ** 2))
        return found


def density(
    nodes: Sequence[tuple[Floats, Floats]], *, width: float, points: int = 400
) -> tuple[Floats, Floats, float]:
    """(eigenvalues (points,), densities (probes, points), sigma) of quadratures.

    Every node is spread to a Gaussian of standard deviation sigma, `width` times the range of all
    nodes. Each density sums, times the spacing of the grid, to 1.
    """
    everything = np.concatenate([values for values, _ in nodes])
    low, high = float(everything.min()), float(everything.max())
    span = (high - low) or max(abs(high), 1e-12)
    sigma = width * span
    # Three points to a sigma at least: on a coarser grid narrow peaks would fall between.
    count = max(points, math.ceil(3 * (span + 10 * sigma) / sigma))
    grid = np.linspace(low - 5 * sigma, high + 5 * sigma, count)
    curves = []
    for values, weights in nodes:
        bells = np.exp(-0.5 * ((grid[:, None] - values[None, :]) / sigma) ** 2)
        curve = bells @ weights
        curves.append(curve / (curve.sum() * (grid[1] - grid[0])))
    return grid, np.stack(curves), sigma


# --- trace ----------------------------------------------------------------------------------------


def deflated_trace(
    multiply: Multiply,
    size: int,
    *,
    sketch: int,
    probes: int,
    seed: int,
    like: Tensor,
) -> tuple[float, Floats]:
    """(the exact part, what every probe says of the rest (probes,)): with their mean, the trace.

    With Q an orthonormal basis of A S, S (D, sketch) of random signs,

        tr A = tr(Q^T A Q) + E[ x^T A x ],   x = (1 - Q Q^T) z,

    so what is left to chance is only what Q misses: nothing where the rank of A is at most
    `sketch` (Hutch++). Without a sketch this is Hutchinson's estimate, mean of z^T A z.
    """
    exact, basis = 0.0, like.new_zeros(0, size)
    if sketch:
        columns = like.new_zeros(sketch, size)
        for some in _few(sketch):
            images = multiply([signs(size, seed + k, like) for k in some])
            columns[some.start : some.stop] = torch.stack(images)
        basis = _orthonormal(columns)
        del columns
        for some in _few(len(basis)):
            chosen = [basis[k] for k in some]
            exact += sum(_dot(q, a) for q, a in zip(chosen, multiply(chosen), strict=True))
    values: list[float] = []
    for some in _few(probes):
        chosen = [signs(size, seed + sketch + k, like) for k in some]
        for _ in range(2 if len(basis) else 0):
            chosen = [x - basis.t() @ (basis @ x) for x in chosen]
        values += [_dot(x, a) for x, a in zip(chosen, multiply(chosen), strict=True)]
    return exact, np.array(values)


def _dot(a: Tensor, b: Tensor) -> float:
    """In float64, in blocks that stay in the cache: in float32 a million terms leave 5 digits."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for start in range(0, len(a), BLOCK):
        total += a[start : start + BLOCK].double() @ b[start : start + BLOCK].double()
    return float(total)


def _few(count: int) -> list[range]:
    """The numbers below `count`, a few at a time: their vectors are held together."""
    return [range(k, min(k + TOGETHER, count)) for k in range(0, count, TOGETHER)]


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, without directions that are only rounding."""
    q, r = torch.linalg.qr(rows.t(), mode="reduced")
    _, values, turn = torch.linalg.svd(r.t(), full_matrices=False)
    keep = values > SPENT * values.max().clamp(min=1e-300)
    # rows = (q r)^T = r^T q^T: right singular vectors of r^T, turned by q.
    basis: Tensor = (q @ turn[keep].t()).t().contiguous()
    if len(basis):
        # In float32 the QR of long columns is orthonormal to 4 or 5 digits only.
        gram = _gram(basis).cpu()
        basis = torch.linalg.inv(torch.linalg.cholesky(gram)).to(basis) @ basis
    return basis


def _gram(rows: Tensor) -> Tensor:
    """(k, k) inner products of the rows (k, D), summed in float64, some columns at a time."""
    gram = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for start in range(0, rows.shape[1], COLUMNS):
        wide = rows[:, start : start + COLUMNS].double()
        gram += wide @ wide.t()
    return gram
