"""Per-example gradients of layers, formed in blocks that stay in the cache and never as a whole.

The gradient of example b in one layer, in the coordinates that a curvature asks for, is

    G_b = sum_t g_bt a_bt^T        (d_out x (d_in + 1)),   g = Q_S^T dL/dy,   a = Q_A^T [x; 1]

with Q_S = Q_A = 1 where the curvature has no basis of its own. What is kept of an example are its
tokens, T (d_in + d_out) numbers, not its d_out (d_in + 1) gradient entries; and they are rotated
before the product, at the price of T (d_in^2 + d_out^2) in place of d_in d_out (d_in + d_out). The
entries exist only as blocks of some rows for all examples at a time: large enough for a matrix
product at full speed, small enough not to travel to the main memory and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from landform.curvature.capture import Use
from landform.curvature.layers import Layer

__all__ = [
    "Basis",
    "GradientStore",
    "LayerGradients",
    "LowRank",
    "Piece",
    "Workspace",
    "make_piece",
    "sum_of_own_products",
    "sum_of_products",
    "sum_of_squares",
]

BLOCK = 1 << 22
"""Entries of a block of gradients: 16 MiB in float32, which a processor's cache can hold."""


@dataclass(frozen=True, eq=False)
class Basis:
    """The coordinates of one layer's gradients: Q_A (d_in + 1, c) and Q_S (d_out, o), or none."""

    layer: Layer
    inputs: Tensor | None = None
    gradients: Tensor | None = None
    raw: bool = False
    """leave the tokens as they are captured, without the 1: to be rotated later"""

    def of_inputs(self, a: Tensor) -> Tensor:
        """(n, d_in) -> (n, c): [a; 1] Q_A."""
        if self.raw:
            return a
        if self.inputs is None:
            return torch.cat([a, a.new_ones(len(a), 1)], 1) if self.layer.bias else a
        if not self.layer.bias:
            return a @ self.inputs
        # The appended 1 picks the last row of Q_A: an addition instead of an odd-sized product.
        return torch.addmm(self.inputs[-1], a, self.inputs[:-1])

    def of_gradients(self, g: Tensor) -> Tensor:
        """(n, d_out) -> (n, o): g Q_S."""
        return g if self.gradients is None else g @ self.gradients


@dataclass(frozen=True, eq=False)
class Piece:
    """The tokens of neighbouring examples in one layer; missing tokens are rows of zeros."""

    inputs: Tensor
    """(n, T, c)"""
    gradients: Tensor
    """(n, T, o)"""

    def __len__(self) -> int:
        return len(self.inputs)

    def flipped(self) -> Piece:
        """The same for the transposed gradient."""
        return Piece(self.gradients, self.inputs)


def make_piece(
    uses: Sequence[Use],
    basis: Basis,
    size: int,
    cache: dict[tuple[int, int, bool], Tensor],
    *,
    drop: bool = True,
) -> Piece:
    """The tokens of the `size` examples of a batch in one layer, rotated.

    Tokens without any gradient (all but the first in the last block of a classifier) are left out:
    they add nothing to G, unless `drop` is off and token t must stay token t: a module that is used
    several times then has the tokens of each use after those of the one before, use after use.
    `cache` holds rotated inputs for the layers that share them; it is made anew for each batch.

    The rows of missing tokens are rotated with the others, as `GradientStore.rotate` does later
    with tokens that were kept raw: a product over fewer rows may round otherwise, and a run that
    goes on in a new process would not get the very numbers of one that was never stopped.
    """
    if not drop and len(uses) > 1:
        each = [make_piece([use], basis, size, cache, drop=False) for use in uses]
        return Piece(
            torch.cat([piece.inputs for piece in each], 1),
            torch.cat([piece.gradients for piece in each], 1),
        )
    gradients = [use.gradients() for use in uses]
    kept = [g.ne(0).any(-1) if drop else g.new_ones(len(g), dtype=torch.bool) for g in gradients]
    owners = torch.cat([u.positions.examples[k] for u, k in zip(uses, kept, strict=True)])
    whole = len(uses) == 1 and len(owners) == len(gradients[0])
    if whole:
        key = (id(uses[0].input), id(basis.inputs), basis.layer.bias)
        if key not in cache:
            cache[key] = _flat(_by_example(uses[0].inputs(), owners, size), basis.of_inputs)
        inputs = cache[key]
        rows = gradients[0]
    else:
        chosen = torch.cat([u.inputs()[k] for u, k in zip(uses, kept, strict=True)])
        rows = torch.cat([g[k] for g, k in zip(gradients, kept, strict=True)])
        order = owners.argsort(stable=True)
        owners, rows = owners[order], rows[order]
        inputs = _flat(_by_example(chosen[order], owners, size), basis.of_inputs)
    return Piece(inputs, _flat(_by_example(rows, owners, size), basis.of_gradients))


def _by_example(rows: Tensor, owners: Tensor, size: int) -> Tensor:
    """(n, d) rows, sorted by example, as (size, T, d): zeros where an example has fewer rows."""
    counts = torch.bincount(owners, minlength=size)
    width = max(int(counts.max()), 1)
    if len(rows) == size * width:
        return rows.view(size, width, rows.shape[-1])
    table = rows.new_zeros(size, width, rows.shape[-1])
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[owners]
    table[owners, place] = rows
    return table


class Workspace:
    """Buffers made once and used for every block: fresh memory costs as much as arithmetic."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised tensor of this shape, of the dtype and on the device of `like`."""
        count = 1
        for length in shape:
            count *= length
        key = (name, like.dtype)
        flat = self._buffers.get(key)
        if flat is None or flat.numel() < count:
            flat = self._buffers[key] = torch.empty(count, dtype=like.dtype, device=like.device)
        return flat[:count].view(*shape)


@dataclass(eq=False)
class LayerGradients:
    """The gradients of N examples in one layer, as tokens."""

    pieces: list[Piece] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def shape(self) -> tuple[int, int]:
        """(o, c) of every gradient."""
        first = self.pieces[0]
        return first.gradients.shape[-1], first.inputs.shape[-1]

    def flipped(self) -> LayerGradients:
        """The same, transposed."""
        return LayerGradients([piece.flipped() for piece in self.pieces])

    def per_token(self) -> LayerGradients:
        """Every token as an example of its own (missing tokens included, as zeros)."""
        return LayerGradients(
            [
                Piece(
                    p.inputs.reshape(-1, 1, p.inputs.shape[-1]),
                    p.gradients.reshape(-1, 1, p.gradients.shape[-1]),
                )
                for p in self.pieces
            ]
        )

    def block(self, start: int, stop: int, out: Tensor) -> Tensor:
        """Rows start:stop of all gradients, written to `out` (N, stop - start, c)."""
        first = 0
        for piece in self.pieces:
            last = first + len(piece)
            rows = piece.gradients[:, :, start:stop].transpose(1, 2)
            torch.bmm(rows, piece.inputs, out=out[first:last])
            first = last
        return out

    @property
    def nbytes(self) -> int:
        """Bytes held (inputs shared between layers count in each)."""
        return sum(p.inputs.nbytes + p.gradients.nbytes for p in self.pieces)


def blocks(shape: tuple[int, int], examples: int) -> Iterator[tuple[int, int]]:
    """Row ranges of (o, c) gradients such that a block of all examples has about BLOCK entries."""
    rows = max(1, min(shape[0], BLOCK // max(1, examples * shape[1])))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


def sum_of_squares(piece: Piece, total: Tensor, work: Workspace) -> None:
    """total (o, c) += sum_b G_b o G_b, elementwise, in float32 at least."""
    if piece.inputs.shape[1] == 1:  # (g a^T)^2 = g^2 (a^2)^T: one matrix product
        g, a = piece.gradients.squeeze(1), piece.inputs.squeeze(1)
        total += (g * g).to(total.dtype).t() @ (a * a).to(total.dtype)
        return
    flip = piece.inputs.shape[-1] > piece.gradients.shape[-1]
    gradients = LayerGradients([piece.flipped() if flip else piece])
    target = total.t() if flip else total
    for start, stop in blocks(gradients.shape, 2 * len(piece)):
        block = work.get("block", (len(piece), stop - start, gradients.shape[1]), piece.inputs)
        gradients.block(start, stop, block)
        wide = block if block.dtype in (torch.float32, torch.float64) else block.float()
        target[start:stop] += wide.square_().sum(0)


def sum_of_products(
    left: LayerGradients,
    right: LayerGradients,
    weight: Tensor | None,
    scores: Tensor,
    work: Workspace,
    *,
    add_left: bool = False,
    add_right: bool = False,
) -> None:
    """scores (Q, N) += sum_ij W_ij L_q,ij R_b,ij for all pairs of examples (W None: all 1).

    add_left, add_right: the gradients of that side are summed first; its axis of `scores` is 1.
    """
    if left.shape[1] > left.shape[0]:  # the longer side is the one that is cut into blocks
        left, right = left.flipped(), right.flipped()
        weight = None if weight is None else weight.t()
    queries, examples = len(left), len(right)
    like = left.pieces[0].inputs
    for start, stop in blocks(left.shape, max(queries, examples)):
        size = (stop - start) * left.shape[1]
        p = left.block(start, stop, work.get("left", (queries, stop - start, left.shape[1]), like))
        p = p.sum(0, keepdim=True) if add_left else p
        if weight is not None:
            p *= weight[start:stop]
        g = right.block(
            start, stop, work.get("right", (examples, stop - start, left.shape[1]), like)
        )
        g = g.sum(0, keepdim=True) if add_right else g
        _add_product(scores, p.view(-1, size), g.view(-1, size))


def sum_of_own_products(
    left: LayerGradients,
    right: LayerGradients,
    weight: Tensor | None,
    totals: Tensor,
    work: Workspace,
) -> None:
    """totals (N,) += sum_ij W_ij L_b,ij R_b,ij of every example with itself: the diagonal of
    `sum_of_products` in linear time. The pieces of both sides hold the same examples."""
    if left.shape[1] > left.shape[0]:
        left, right = left.flipped(), right.flipped()
        weight = None if weight is None else weight.t()
    first = 0
    for mine, other in zip(left.pieces, right.pieces, strict=True):
        part = totals[first : first + len(mine)]
        first += len(mine)
        for start, stop in blocks(left.shape, 2 * len(mine)):
            shape = (len(mine), stop - start, left.shape[1])
            a = LayerGradients([mine]).block(start, stop, work.get("left", shape, mine.inputs))
            if other is mine:
                a.square_()
            else:
                b = LayerGradients([other])
                a *= b.block(start, stop, work.get("right", shape, mine.inputs))
            flat = a.view(len(mine), -1)
            if weight is None:
                part += flat.sum(-1, dtype=totals.dtype)
            else:
                part += (flat @ weight[start:stop].reshape(-1)).to(totals.dtype)


@dataclass(frozen=True, eq=False)
class LowRank:
    """The left gradients of a layer, each as its best approximation L R^T of some rank."""

    left: Tensor
    """(Q, o, r)"""
    right: Tensor
    """(Q, c, r)"""

    @classmethod
    def of(
        cls, gradients: LayerGradients, weight: Tensor | None, rank: int, work: Workspace
    ) -> LowRank:
        """Truncated singular value decompositions of W o G_q, a few queries at a time.

        Randomised range finder with 8 extra directions and two power iterations (Halko et al.
        2011); without the extra directions it is 1 to 2 % worse on a slowly falling spectrum.
        """
        rows, columns = gradients.shape
        lefts, rights = [], []
        for piece in gradients.pieces:
            for first in range(0, len(piece), max(1, BLOCK // (rows * columns))):
                part = slice(first, first + max(1, BLOCK // (rows * columns)))
                few = LayerGradients([Piece(piece.inputs[part], piece.gradients[part])])
                shape = (len(few), rows, columns)
                dense = few.block(0, rows, work.get("left", shape, piece.inputs))
                if weight is not None:
                    dense *= weight
                u, v = _truncated(dense.float() if dense.itemsize < 4 else dense, rank)
                lefts.append(u.to(piece.inputs.dtype))
                rights.append(v.to(piece.inputs.dtype))
        return cls(torch.cat(lefts), torch.cat(rights))

    def add_products(self, right: LayerGradients, scores: Tensor) -> None:
        """scores (Q, N) += <L_q R_q^T, G_b>, from the tokens: G_b is never formed."""
        queries, _, rank = self.left.shape
        u = self.left.permute(1, 0, 2).reshape(self.left.shape[1], -1)
        v = self.right.permute(1, 0, 2).reshape(self.right.shape[1], -1)
        first = 0
        for piece in right.pieces:
            count, tokens, _ = piece.inputs.shape
            gu = piece.gradients.reshape(count * tokens, -1) @ u
            av = piece.inputs.reshape(count * tokens, -1) @ v
            products = (gu * av).view(count, tokens, queries, rank)
            scores[:, first : first + count] += products.sum((1, 3)).t().to(scores.dtype)
            first += count


def _truncated(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(B, o, r) and (B, c, r) with matrices ~ L R^T."""
    size = min(rank + 8, *matrices.shape[1:])
    generator = torch.Generator(device="cpu").manual_seed(0)
    probe = torch.randn(matrices.shape[2], size, generator=generator, dtype=matrices.dtype)
    basis, _ = torch.linalg.qr(matrices @ probe.to(matrices.device))
    for _ in range(2):
        other, _ = torch.linalg.qr(matrices.transpose(1, 2) @ basis)
        basis, _ = torch.linalg.qr(matrices @ other)
    u, s, vt = torch.linalg.svd(basis.transpose(1, 2) @ matrices, full_matrices=False)
    left = basis @ u[..., :rank] * s[:, None, :rank]
    return left, vt[:, :rank].transpose(1, 2)


def _add_product(scores: Tensor, left: Tensor, right: Tensor) -> None:
    if scores.dtype == left.dtype:
        scores.addmm_(left, right.t())
    else:  # half precision: sums over layers and blocks are kept in float32
        scores += (left @ right.t()).to(scores.dtype)


class GradientStore:
    """The tokens of some examples in all layers, gathered batch by batch."""

    def __init__(self, bases: Sequence[Basis], *, drop: bool = True) -> None:
        self.bases = tuple(bases)
        self.drop = drop
        self.layers = [LayerGradients() for _ in self.bases]
        self.axes: list[set[str]] = [set() for _ in self.bases]
        """what the tokens of each layer are: see `Positions.axis`"""
        self.uses: list[int] = [1 for _ in self.bases]
        """how often each layer is used in one forward pass"""
        self.rows: list[Tensor] = []

    def visitor(self, rows: Tensor) -> _Filler:
        """A visitor that keeps the gradients of a batch whose examples are `rows` of the data."""
        self.rows.append(rows)
        return _Filler(self, len(rows))

    @property
    def order(self) -> Tensor:
        """(N,) the row of the data of every example held."""
        return torch.cat(self.rows)

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def rotate(
        self, bases: Sequence[Basis], each: Callable[[int, Piece], None] | None = None
    ) -> None:
        """Turn raw tokens into those of `bases`, piece by piece in place of the raw ones.

        `each` is called with the number of the layer and every new piece.
        """
        done: dict[tuple[int, int, bool], tuple[Tensor, Tensor]] = {}
        for number, (layer, basis) in enumerate(zip(self.layers, bases, strict=True)):
            for place, piece in enumerate(layer.pieces):
                key = (id(piece.inputs), id(basis.inputs), basis.layer.bias)
                if key not in done:  # the raw tensor is kept too: its id must stay its own
                    done[key] = piece.inputs, _flat(piece.inputs, basis.of_inputs)
                fresh = Piece(done[key][1], _flat(piece.gradients, basis.of_gradients))
                layer.pieces[place] = fresh
                if each is not None:
                    each(number, fresh)
            if number + 1 == len(bases) or bases[number + 1].inputs is not basis.inputs:
                done.clear()
        self.bases = tuple(bases)


def _flat(tokens: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """function of the last axis of (n, T, d). What it makes of missing tokens does not matter:
    their gradients are zeros, and stay so."""
    count, width, size = tokens.shape
    made = function(tokens.reshape(count * width, size))
    return made.view(count, width, made.shape[-1])


class _Filler:
    def __init__(self, store: GradientStore, size: int) -> None:
        self.store, self.size = store, size
        self.cache: dict[tuple[int, int, bool], Tensor] = {}

    def __call__(self, layer: int, uses: list[Use]) -> None:
        store = self.store
        piece = make_piece(uses, store.bases[layer], self.size, self.cache, drop=store.drop)
        store.layers[layer].pieces.append(piece)
        store.axes[layer] |= {use.positions.axis for use in uses}
        store.uses[layer] = len(uses)
