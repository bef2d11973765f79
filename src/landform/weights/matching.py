"""Weight matching: the permutation of one model's units that brings its weights next to another's.

Git Re-Basin (Ainsworth, Hayase, Srinivasa 2023, section 3.2, algorithm 1): since permutations keep
the norm of the weights, the nearest point || a - pi(b) || is the largest inner product <a, pi(b)>.
With all other permutations fixed, that of one block is a linear assignment problem; blocks are
solved in random order until none of them gains.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landform.weights.permutations import Attention, Block, Slot, Symmetries, identity, permute

__all__ = ["Matching", "assign", "match_weights"]

Array = np.ndarray[Any, np.dtype[np.int64]]
Scores = np.ndarray[Any, np.dtype[np.float64]]

# A gain smaller than this share of || a || || b || is rounding.
_TOLERANCE = 1e-9
_ALTERNATIONS = 10


@dataclass(frozen=True)
class Matching:
    """Where a start ended: permutations by symmetry, the inner product, what it took."""

    permutations: Mapping[str, Array]
    inner_product: float
    rounds: int
    start: str


def assign(scores: Scores) -> Array:
    """The permutation p with the largest sum_i scores[i, p[i]]; among equals, one that stays.

    `scores` (n, n). Hungarian method (`scipy.optimize.linear_sum_assignment`).
    """
    from scipy.optimize import linear_sum_assignment

    best: Array = scores.argmax(axis=1)
    if len(set(best.tolist())) == len(best):
        return best  # everyone's first choice: no sum can be larger, and no search is needed
    scale = float(np.abs(scores).max(initial=0.0)) or 1.0
    stay = 1e-9 * scale * np.eye(len(scores))
    found: Array = linear_sum_assignment(scores + stay, maximize=True)[1].astype(np.int64)
    return found


def match_weights(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    symmetries: Symmetries,
    *,
    restarts: int = 3,
    seed: int = 0,
    max_iterations: int = 50,
) -> Matching:
    """Permutations of `b` with the largest inner product with `a` that was found.

    The first start is *anchored*: each block is matched by the tensors that nothing unmatched
    moves (the embeddings: a token is the same one in both models), the residual stream first. The
    others go from b as it is, in random orders of the blocks. The best end is kept, and b as it is
    where none is nearer.
    """
    generator = np.random.default_rng(seed)
    origin = _State.of(a, b, symmetries.blocks)
    best = Matching(origin.permutations, origin.total, 0, "as it is")
    ends: list[Matching] = []
    for number in range(restarts):
        state = origin.start()
        if number == 0:
            state.anchor()
        if any(state.at(end.permutations) for end in ends):
            continue  # an earlier start ended here: nothing improves it, in whatever order
        title = "as it is" if number else "anchored"
        ends.append(state.descend(generator, max_iterations, title))
        if ends[-1].inner_product > best.inner_product + origin.tolerance:
            best = ends[-1]
        if best.inner_product >= origin.bound - origin.tolerance:
            break  # || a || || b ||: the same point
    return best


@dataclass
class _State:
    """`b` as permuted so far, and the permutations that made it."""

    a: Mapping[str, Tensor]
    now: dict[str, Tensor]
    blocks: Sequence[Block]
    permutations: dict[str, Array]
    products: dict[str, float]
    """<a, b> of every tensor that a block moves"""
    bound: float
    """|| a || || b || over these tensors"""

    @classmethod
    def of(
        cls, a: Mapping[str, Tensor], b: Mapping[str, Tensor], blocks: Sequence[Block]
    ) -> _State:
        """Nothing permuted yet."""
        touched = sorted({name for block in blocks for name in block.tensors})
        norms = [math.fsum(_dot(x[name], x[name]) for name in touched) for x in (a, b)]
        return cls(
            a,
            dict(b),
            blocks,
            {s.name: identity(s) for block in blocks for s in block.symmetries},
            {name: _dot(a[name], b[name]) for name in touched},
            math.sqrt(norms[0]) * math.sqrt(norms[1]),
        )

    def start(self) -> _State:
        """A copy that moves on its own."""
        return replace(
            self,
            now=dict(self.now),
            permutations=dict(self.permutations),
            products=dict(self.products),
        )

    @property
    def total(self) -> float:
        """<a, pi(b)> over the tensors that the blocks move."""
        return math.fsum(self.products.values())

    def at(self, permutations: Mapping[str, Array]) -> bool:
        """Whether these are the permutations so far."""
        return all((order == permutations[name]).all() for name, order in self.permutations.items())

    @property
    def tolerance(self) -> float:
        """A smaller gain is rounding."""
        return _TOLERANCE * self.bound

    def descend(self, generator: np.random.Generator, max_iterations: int, start: str) -> Matching:
        """Blocks in random order, until a whole round brings nothing."""
        waiting = set(range(len(self.blocks)))
        rounds = 0
        while waiting and rounds < max_iterations:
            rounds += 1
            for number in generator.permutation(len(self.blocks)).tolist():
                if number not in waiting:
                    continue
                waiting.discard(number)
                if self.improve(self.blocks[number]):
                    waiting |= self._neighbours(number)
        return Matching(dict(self.permutations), self.total, rounds, start)

    def _neighbours(self, number: int) -> set[int]:
        """Blocks whose scores a move of this one changes (its own, where it reads itself)."""
        block = self.blocks[number]
        near = {
            k
            for k, other in enumerate(self.blocks)
            if k != number and other.tensors & block.tensors
        }
        return near | ({number} if _twice(block) else set())

    def improve(self, block: Block) -> bool:
        """Permute one block in the best way, given the others; whether that gained anything."""
        order = propose(block, self.a, self.now)
        if all((order[s.name] == identity(s)).all() for s in block.symmetries):
            return False
        moved = permute(self.now, block.symmetries, order)
        products = {name: _dot(self.a[name], tensor) for name, tensor in moved.items()}
        gain = math.fsum(products.values()) - math.fsum(self.products[name] for name in products)
        # The scores of a block that acts on two axes of a tensor hold one of them still: only
        # the inner product itself tells whether it gained.
        if gain <= self.tolerance:
            return False
        self._move(block, order, moved, products)
        return True

    def anchor(self) -> None:
        """Match every block by the tensors whose other axes are in place already."""
        movers: dict[str, list[int]] = {}
        for number, block in enumerate(self.blocks):
            for symmetry in block.symmetries[:1]:
                for slot in symmetry.slots:
                    movers.setdefault(slot.name, []).append(number)
        placed: set[int] = set()
        outer = sorted(range(len(self.blocks)), key=lambda n: self.blocks[n].part != "residual")
        # Of two residual streams, the one that the tokens' embeddings lie in comes first.
        outer.sort(key=lambda n: self.blocks[n].layer != "embeddings")
        for number in outer:
            block = self.blocks[number]
            # A stream that a tensor both reads and writes is not in place on either side. (A
            # fused projection holds the queries, keys and values of one block: that is one side.)
            known = {
                name
                for name in block.tensors
                if set(movers[name]) - placed == {number}
                and (block.attention or movers[name].count(number) == 1)
            }
            order = propose(block, self.a, self.now, known)
            moved = permute(self.now, block.symmetries, order)
            products = {name: _dot(self.a[name], tensor) for name, tensor in moved.items()}
            self._move(block, order, moved, products)
            placed.add(number)

    def _move(
        self,
        block: Block,
        order: Mapping[str, Array],
        moved: Mapping[str, Tensor],
        products: Mapping[str, float],
    ) -> None:
        outer, *inner = block.symmetries
        first = order[outer.name][0]
        self.permutations[outer.name] = self.permutations[outer.name][:, first]
        for symmetry in inner:
            rows = self.permutations[symmetry.name][first]
            self.permutations[symmetry.name] = np.take_along_axis(
                rows, order[symmetry.name], axis=1
            )
        self.now.update(moved)
        self.products.update(products)


def _twice(block: Block) -> bool:
    names = [slot.name for slot in block.symmetries[0].slots]
    return not block.attention and len(set(names)) < len(names)


def _dot(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum(dtype=torch.float64))


# --- the best permutation of one block ------------------------------------------------------------


def propose(
    block: Block,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    known: Collection[str] | None = None,
) -> dict[str, Array]:
    """The permutations of one block with the largest inner product, all others held.

    known: the tensors to go by (default: all that the block moves).
    """
    if block.attention:
        return _propose_heads(block, a, b, known)
    (symmetry,) = block.symmetries
    scores = _scores(symmetry.slots, symmetry.size, a, b, known)
    return {symmetry.name: assign(scores)[None]}


def _scores(
    slots: Sequence[Slot],
    size: int,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    known: Collection[str] | None,
) -> Scores:
    """scores[i, j] = <unit i of a, unit j of b>, summed over the slots, shape (size, size).

    A unit is one place of the third axis of the slots' positions, whose first axis must be 1.
    """
    total: Tensor | None = None
    for slot in slots:
        if known is not None and slot.name not in known:
            continue
        x, y = (_units(tensors[slot.name], slot) for tensors in (a, b))
        total = x @ y.T if total is None else total.addmm_(x, y.T)
    if total is None:
        return np.zeros((size, size))
    scores: Scores = total.double().numpy()
    return scores


def _units(tensor: Tensor, slot: Slot) -> Tensor:
    """The units of a slot as rows: (size, repeat * inner * everything else)."""
    _, repeat, size, inner = slot.positions.shape
    rows = tensor.movedim(slot.axis, 0).reshape(tensor.shape[slot.axis], -1)
    if size == len(rows) and inner == 1 and repeat == 1:
        return rows  # all of the axis in its order: a view
    rows = rows[torch.from_numpy(slot.positions.reshape(-1))]
    return rows.reshape(repeat, size, -1).transpose(0, 1).reshape(size, -1)


def _propose_heads(
    block: Block,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    known: Collection[str] | None,
) -> dict[str, Array]:
    """Heads and everything inside them at once.

    The score of putting head j of b in the place of head i of a is that of the best order inside;
    so the inner problems are solved for every pair, then the order of the heads.
    """
    groups = block.attention[0].groups
    score = np.zeros((groups, groups))
    inner: list[list[list[dict[str, Array]]]] = []
    for attention in block.attention:
        scores = _head_scores(attention, a, b, known)
        if "h" in attention.places:
            score += scores["h"][:, 0, 0, :, 0, 0]
        table: list[list[dict[str, Array]]] = []
        for i in range(groups):
            table.append([])
            for j in range(groups):
                value, orders = _match_inside(attention, scores, i, j)
                score[i, j] += value
                table[i].append(orders)
        inner.append(table)
    first = assign(score)
    result = {block.symmetries[0].name: first[None]}
    for attention, table in zip(block.attention, inner, strict=True):
        for kind, symmetry in attention.inside.items():
            result[symmetry.name] = np.stack([table[i][j][kind] for i, j in enumerate(first)])
    return result


def _head_scores(
    attention: Attention,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    known: Collection[str] | None,
) -> dict[str, Scores]:
    """Inner products of single dimensions, by role: (groups, queries, width) twice."""
    found = {}
    for role, slots in attention.places.items():
        shape = slots[0].positions.shape
        flat = [Slot(s.name, s.axis, s.positions.reshape(1, 1, -1, 1)) for s in slots]
        found[role] = _scores(flat, math.prod(shape), a, b, known).reshape(*shape, *shape)
    return found


def _match_inside(
    attention: Attention, scores: Mapping[str, Scores], i: int, j: int
) -> tuple[float, dict[str, Array]]:
    """(score, orders) of the best order inside group j of b, put in the place of group i of a.

    Query heads of a group and dimensions inside them depend on each other where a group has
    several: they are solved alternately, from the order as it is and from the best guesses of
    each; alone, the dimensions are solved exactly.
    """
    q, k, v, o = (scores[role][i, :, :, j, :, :] for role in "qkvo")  # (queries, w, queries, w)
    pair = _Pair(q, k[0, :, 0, :], v[0, :, 0, :], o, "keys" in attention.inside)
    orders = pair.identity()
    if attention.queries == 1:
        best = pair.dimensions(orders)
    else:
        starts = [orders, pair.queries(orders), pair.dimensions(orders)]
        starts.append({**orders, "values": assign(pair.v)})
        best = max((pair.alternate(start) for start in starts), key=pair.value)
    return pair.value(best), {kind: best[kind] for kind in attention.inside}


@dataclass(frozen=True)
class _Pair:
    """Inner products of the dimensions of two groups of heads."""

    q: Scores
    k: Scores
    v: Scores
    o: Scores
    free: bool
    """Whether the dimensions of queries and keys may change places"""

    def identity(self) -> dict[str, Array]:
        return {
            "queries": np.arange(self.q.shape[0]),
            "keys": np.arange(self.k.shape[0]),
            "values": np.arange(self.v.shape[0]),
        }

    def value(self, orders: Mapping[str, Array]) -> float:
        keys, values = orders["keys"], orders["values"]
        among = self._among_queries(orders)
        total = among[np.arange(len(among)), orders["queries"]].sum()
        total += self.k[np.arange(len(keys)), keys].sum()
        return float(total + self.v[np.arange(len(values)), values].sum())

    def _among_queries(self, orders: Mapping[str, Array]) -> Scores:
        """Scores of query heads, dimensions held: (queries, queries)."""
        keys, values = orders["keys"], orders["values"]
        q = self.q[:, np.arange(len(keys)), :, keys].sum(axis=0)
        o = self.o[:, np.arange(len(values)), :, values].sum(axis=0)
        among: Scores = q + o
        return among

    def queries(self, orders: Mapping[str, Array]) -> dict[str, Array]:
        return {**orders, "queries": assign(self._among_queries(orders))}

    def dimensions(self, orders: Mapping[str, Array]) -> dict[str, Array]:
        heads = orders["queries"]
        places = np.arange(len(heads))
        result = dict(orders)
        if self.free:
            result["keys"] = assign(self.q[places, :, heads, :].sum(axis=0) + self.k)
        result["values"] = assign(self.o[places, :, heads, :].sum(axis=0) + self.v)
        return result

    def alternate(self, orders: dict[str, Array]) -> dict[str, Array]:
        value = self.value(orders)
        for _ in range(_ALTERNATIONS):
            orders = self.dimensions(self.queries(orders))
            gained = self.value(orders)
            if gained <= value:
                break
            value = gained
        return orders
