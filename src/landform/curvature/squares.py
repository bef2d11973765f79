"""Sums of squared per-example gradients, entry by entry, and their sums by example and tensor.

Of the examples b of a batch and a tensor theta with gradients G_b,

    total_j += sum_b G_bj^2          one sum in all, of the tensor's shape
    norms_b += sum_j G_bj^2          a number per example

G_b is never kept: of a matrix it is sum_t l_bt r_bt^T, formed for one example at a time in a slab
that stays in the processor's cache, or, for a few tokens, squared before it is summed:

    sum_b (sum_t l_t r_t^T)^2 = sum_b sum_{t <= t'} (2 - [t = t']) (l_t o l_t') (r_t o r_t')^T

which is one matrix product. Of a table it is a few rows; of a vector itself. Where a matrix is a
table as well (embeddings tied to the decoder), with L the matrix's part and E the rows:

    sum_b (L_b + E_b)^2 = sum_b L_b^2 + sum_b (2 E_b o L_b + E_b^2)       the latter at E's rows
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landform.curvature.capture import Use
from landform.curvature.layers import Layer
from landform.curvature.parts import Norm, RelativeBias, Table, Target, Term

__all__ = ["Rows", "Squares", "Tokens", "add_rows", "add_tokens", "supported"]

SLAB = 1 << 20
"""Entries of a gradient that are formed at a time on a CPU: 4 MiB in float32."""

BLOCK = 1 << 25
"""Entries of the gradients of several examples that are formed at a time on other devices, and of
the products of pairs of tokens."""

PER_EXAMPLE = 18
"""What it costs to square and add an entry of one example's gradient, in units of the additions and
multiplications of a matrix product (measured on a CPU; it decides between two exact ways)."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Gradients of a matrix, G_b = sum over the tokens t of example b of left_t right_t^T."""

    left: Tensor
    """(n, rows of the matrix)"""
    right: Tensor
    """(n, columns of the matrix)"""
    owners: Tensor
    """(n,) example of each token, ascending"""


@dataclass(frozen=True, eq=False)
class Rows:
    """Gradients of a table: some rows of some examples; a row of an example may occur again."""

    owners: Tensor
    """(m,)"""
    ids: Tensor
    """(m,)"""
    values: Tensor
    """(m, width)"""

    def merged(self) -> Rows:
        """Every row of an example once, by example."""
        if not len(self.ids):
            return self
        height = int(self.ids.max()) + 1
        keys, places = torch.unique(self.owners * height + self.ids, return_inverse=True)
        values = self.values.new_zeros(len(keys), self.values.shape[1])
        values.index_add_(0, places, self.values)
        return Rows(keys // height, keys % height, values)


Gradient = Tokens | Rows | Tensor
"""What a part adds to the gradients of a tensor; a Tensor is dense, (B, *shape)"""


# --- squares of one tensor ------------------------------------------------------------------------


def add_tokens(total: Tensor, norms: Tensor, tokens: Tokens) -> None:
    """Squares of a matrix (see the module's docstring); `norms` is (B,)."""
    counts = torch.bincount(tokens.owners, minlength=len(norms))
    most = int(counts.max()) if len(counts) else 0
    if not len(tokens.owners):
        return
    if most == 1:  # (l r^T)^2 = l^2 (r^2)^T
        left, right = tokens.left.square(), tokens.right.square()
        total.addmm_(left.t(), right)
        norms.index_add_(0, tokens.owners, (left.sum(1) * right.sum(1)).to(norms.dtype))
        return
    sizes = counts.tolist()
    if sum(n * (n + 1) for n in sizes) <= sum(2 * n + PER_EXAMPLE for n in sizes if n):
        _add_pairs(total, norms, tokens, counts)
    elif total.device.type == "cpu":
        _add_slabs(total, norms, tokens, sizes)
    else:
        _add_blocks(total, norms, tokens, counts)


def _add_pairs(total: Tensor, norms: Tensor, tokens: Tokens, counts: Tensor) -> None:
    starts = counts.cumsum(0) - counts
    first, second = [], []
    for count in sorted(set(counts.tolist())):
        here = starts[counts == count]
        i, j = torch.triu_indices(count, count, device=total.device)
        first.append((here[:, None] + i).flatten())
        second.append((here[:, None] + j).flatten())
    a, b = torch.cat(first), torch.cat(second)
    weights = torch.where(a == b, 1.0, 2.0).to(total.dtype)
    size = max(1, BLOCK // max(total.shape))
    for start in range(0, len(a), size):
        part = slice(start, start + size)
        i, j, w = a[part], b[part], weights[part]
        left = tokens.left[i] * tokens.left[j]
        right = tokens.right[i] * tokens.right[j]
        norms.index_add_(0, tokens.owners[i], (w * left.sum(1) * right.sum(1)).to(norms.dtype))
        total.addmm_((left * w[:, None]).t(), right)


def _add_slabs(total: Tensor, norms: Tensor, tokens: Tokens, sizes: Sequence[int]) -> None:
    rows, columns = total.shape
    height = max(1, min(rows, SLAB // columns))
    buffer = total.new_empty(height * columns)
    parts = list(zip(_split(tokens.left, sizes), _split(tokens.right, sizes), strict=True))
    for start in range(0, rows, height):
        slab = total[start : start + height]
        flat = buffer[: slab.numel()]
        block = flat.view(slab.shape)
        for example, (left, right) in enumerate(parts):
            if len(left):
                torch.mm(left[:, start : start + height].t(), right, out=block)
                slab.addcmul_(block, block)
                norms[example] += torch.dot(flat, flat)


def _add_blocks(total: Tensor, norms: Tensor, tokens: Tokens, counts: Tensor) -> None:
    rows, columns = total.shape
    left, right = (_table(side, tokens.owners, counts) for side in (tokens.left, tokens.right))
    height = max(1, min(rows, BLOCK // (columns * len(counts))))
    for start in range(0, rows, height):
        part = left[:, :, start : start + height].transpose(1, 2)
        block = torch.bmm(part, right).square_()
        total[start : start + height] += block.sum(0)
        norms += block.sum((1, 2), dtype=norms.dtype)


def _split(rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    parts: Any = rows  # torch gives `split` no types
    return list(parts.split(list(sizes)))


def _table(rows: Tensor, owners: Tensor, counts: Tensor) -> Tensor:
    """(n, d) as (B, T, d), zeros where an example has fewer than T."""
    table = rows.new_zeros(len(counts), int(counts.max()), rows.shape[1])
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[owners]
    table[owners, place] = rows
    return table


def add_rows(total: Tensor, norms: Tensor, rows: Rows, tokens: Tokens | None = None) -> None:
    """Squares of a table's rows; with `tokens`, those of the sum of both without the squares of
    `tokens`, which `add_tokens` adds."""
    rows = rows.merged()
    if not len(rows.ids):
        return
    values = rows.values
    extra = values.square()
    if tokens is not None:
        extra += 2 * values * _rows_of(tokens, rows, len(norms))
    total.index_add_(0, rows.ids, extra)
    norms.index_add_(0, rows.owners, extra.sum(1, dtype=norms.dtype))


def _rows_of(tokens: Tokens, rows: Rows, size: int) -> Tensor:
    """(m, width): those rows of the examples' matrices that `rows` (by example) names."""
    tall = torch.bincount(rows.owners, minlength=size).tolist()
    many = torch.bincount(tokens.owners, minlength=size).tolist()
    parts = zip(
        _split(rows.ids, tall), _split(tokens.left, many), _split(tokens.right, many), strict=True
    )
    return torch.cat([left[:, ids].t() @ right for ids, left, right in parts])


# --- what the uses of a part say ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Seen:
    """The rows of a part that have a gradient in one backward pass, by example."""

    inputs: Tensor
    gradients: Tensor
    owners: Tensor
    size: int
    """number of examples"""

    @classmethod
    def of(cls, uses: Sequence[Use], size: int, dtype: torch.dtype, *, inputs: bool) -> Seen:
        """Of all uses of a part; their inputs only where they are asked for."""
        kept_inputs, gradients, owners = [], [], []
        for use in uses:
            g, owner = use.gradients(), use.positions.examples
            kept = g.ne(0).any(-1)
            whole = bool(kept.all())
            gradients.append(g if whole else g[kept])
            owners.append(owner if whole else owner[kept])
            if inputs:
                x = use.inputs()
                kept_inputs.append(x if whole else x[kept])
        g, owner = torch.cat(gradients).to(dtype), torch.cat(owners)
        x = torch.cat(kept_inputs) if inputs else g
        if len(uses) > 1:
            order = owner.argsort(stable=True)
            x, g, owner = x[order] if inputs else g, g[order], owner[order]
        return cls(x, g, owner, size)

    def summed(self, values: Tensor) -> Tensor:
        """(B, d): the sums over the rows of an example."""
        total = values.new_zeros(self.size, values.shape[1])
        return total.index_add_(0, self.owners, values)

    def gradient(self, part: Layer, term: Term) -> Gradient:
        """What they add to the gradient of a tensor."""
        g = self.gradients
        if term.form == "sum":
            return self.summed(g)
        if isinstance(part, Norm):
            return self.summed(g * part.normed(self.inputs).to(g.dtype))
        if isinstance(part, Table):
            ids, owners = self.inputs.squeeze(-1), self.owners
            padding = part.module.padding_idx
            if padding is not None:  # its row is never trained
                real = ids != padding
                ids, g, owners = ids[real], g[real], owners[real]
            return Rows(owners, ids, g if part.scale == 1 else part.scale * g)
        a = self.inputs.to(g.dtype)
        return Tokens(g, a, self.owners) if term.form == "matrix" else Tokens(a, g, self.owners)


def _of_biases(part: RelativeBias, uses: Sequence[Use], dtype: torch.dtype) -> Tensor:
    parts = [part.gradient(u.input, u.gradient.to(dtype)) for u in uses if u.gradient is not None]
    return torch.stack(parts).sum(0)


def supported(target: Target) -> bool:
    """Whether what its parts add to a tensor can be put together without forming it."""
    kinds = {_kind(term) for term in target.terms}
    return len(kinds) == 1 or kinds == {"tokens", "rows"}


def _kind(term: Term) -> str:
    return {"matrix": "tokens", "transposed": "tokens", "rows": "rows"}.get(term.form, "dense")


# --- all tensors ----------------------------------------------------------------------------------


class Squares:
    """The sums of all tensors that are captured, batch by batch.

    `totals` has one tensor for each name, of its shape; `norms` is (B, tensors) of the present
    batch, in the order of `names`, summed over its backward passes.
    """

    def __init__(
        self,
        parts: Sequence[Layer],
        targets: Sequence[Target],
        names: Sequence[str],
        totals: dict[str, Tensor],
        *,
        lenient: bool = False,
    ) -> None:
        self.lenient = lenient
        """pass over the tensors of a part that cannot be computed, and name them in `left`"""
        self.parts = tuple(parts)
        self.targets = tuple(targets)
        self.totals = totals
        self.columns = {name: i for i, name in enumerate(names)}
        self.by_part: list[list[tuple[Target, Term]]] = [[] for _ in parts]
        for target in targets:
            for term in target.terms:
                self.by_part[term.part].append((target, term))
        like = next(iter(totals.values()))
        self.options: dict[str, Any] = {"dtype": torch.float64, "device": like.device}
        self.dtype = like.dtype
        self.norms = torch.zeros(0, len(self.columns), **self.options)

    def begin(self, size: int, called: Sequence[bool], left: Collection[str] = ()) -> None:
        """A new batch; `called`: the parts that its forward pass used, `left`: names of tensors
        that are not added up in it."""
        self.left = set(left)
        self.norms = torch.zeros(size, len(self.columns), **self.options)
        self.called = tuple(called)
        self.held: dict[str, list[Gradient]] = {}

    def visit(self, number: int, uses: list[Use]) -> None:
        """The gradients of one part in one backward pass."""
        jobs = [job for job in self.by_part[number] if job[0].name not in self.left]
        if not jobs:
            return
        try:
            self._visit(self.parts[number], jobs, uses)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a module of anyone's: what it raises is not known
            if not self.lenient:
                raise
            for target, _ in jobs:
                self.left.add(target.name)
                self.held.pop(target.name, None)

    def _visit(self, part: Layer, jobs: Sequence[tuple[Target, Term]], uses: list[Use]) -> None:
        seen: Seen | None = None
        if not isinstance(part, RelativeBias):
            inputs = any(term.form != "sum" for _, term in jobs)
            seen = Seen.of(uses, len(self.norms), self.dtype, inputs=inputs)
        for target, term in jobs:
            held = self.held.setdefault(target.name, [])
            if seen is not None:
                held.append(seen.gradient(part, term))
            elif isinstance(part, RelativeBias):
                held.append(_of_biases(part, uses, self.dtype))
            if len(held) == sum(self.called[other.part] for other in target.terms):
                self._add(target.name, self.held.pop(target.name))

    def _add(self, name: str, gradients: list[Gradient]) -> None:
        """Sum the gradients of all parts, then square."""
        total, size = self.totals[name], len(self.norms)
        norms = torch.zeros(size, dtype=self.options["dtype"], device=total.device)
        dense = [g for g in gradients if isinstance(g, Tensor)]
        if dense:
            gradient = dense[0] if len(dense) == 1 else torch.stack(dense).sum(0)
            squares = gradient.square()
            total += squares.sum(0)
            norms += squares.flatten(1).sum(1, dtype=norms.dtype)
        tokens = _joined([g for g in gradients if isinstance(g, Tokens)])
        if tokens is not None:
            add_tokens(total, norms, tokens)
        rows = [g for g in gradients if isinstance(g, Rows)]
        if rows:
            parts = [torch.cat([getattr(r, k) for r in rows]) for k in ("owners", "ids", "values")]
            add_rows(total, norms, Rows(*parts), tokens)
        self.norms[:, self.columns[name]] += norms


def _joined(tokens: list[Tokens]) -> Tokens | None:
    if len(tokens) <= 1:
        return tokens[0] if tokens else None
    owners = torch.cat([t.owners for t in tokens])
    order = owners.argsort(stable=True)
    left, right = (torch.cat([getattr(t, k) for t in tokens])[order] for k in ("left", "right"))
    return Tokens(left, right, owners[order])
