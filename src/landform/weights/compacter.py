"""Adapters whose two matrices are made of few numbers (Karimi Mahabadi et al. 2021).

Compacter (arXiv 2106.04647) and the low-rank adapter that its paper compares it with. Both stand
where bottleneck adapters stand, have biases, and differ from them in what `down` (d to r) and `up`
(r to d) are:

    a  <-  a + activation(a W_down + b_down) W_up + b_up

    compacter          W = sum_{i=1..n} A_i (x) (L_i R_i)
    low-rank adapter   W = L R

For a matrix of p rows and q columns A_i is (n, n), L_i (p / n, k) and R_i (k, q / n), in a low-rank
adapter L (p, k) and R (k, q). (x) is the Kronecker product: entry (u, v) of A_i times L_i R_i is
block (u, v) of n x n blocks. One adapter of either kind has (2 k + 1) (d + r) numbers of its own.
The n matrices A_i, n^3 numbers, are the same in all matrices of a model (the paper and its code),
or each matrix has its own (OpenDelta).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from landform.errors import ConfigError
from landform.weights import adapters
from landform.weights.adapters import Bottleneck

__all__ = ["KroneckerLinear", "Rule", "insert", "insert_low_rank"]

_GAIN = math.sqrt(2)
"""Of the uniform distribution of Glorot and Bengio, as the paper's code and OpenDelta have it."""


class Rule(nn.Module):
    """The matrices A_i of a sum of n Kronecker products: `weight` (n, n, n), i first."""

    def __init__(self, division: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(division, division, division))


class KroneckerLinear(nn.Module):
    """x -> x W + b, with W = sum_i A_i (x) (L_i R_i) of p rows and q columns.

    `left` (n, p / n, k) and `right` (n, k, q / n) hold L_i and R_i, `bias` (q,) b.
    """

    def __init__(self, rows: int, columns: int, rank: int, division: int, rule: Rule | None):
        super().__init__()
        self.left = nn.Parameter(torch.empty(division, rows // division, rank))
        self.right = nn.Parameter(torch.empty(division, rank, columns // division))
        self.bias = nn.Parameter(torch.zeros(columns))
        self.rule: Rule | None = Rule(division) if rule is None else None
        # In a tuple it is no child: a rule that the whole model shares has one name, one owner.
        self.shared: tuple[Rule, ...] = () if rule is None else (rule,)

    def draw(self, mean: float, std: float) -> None:
        """A from N(mean, std^2) where it is this layer's own, every L_i and R_i from Glorot's."""
        if self.rule is not None:
            nn.init.normal_(self.rule.weight, mean, std)
        for factors in (self.left, self.right):
            for factor in factors:
                nn.init.xavier_uniform_(factor, gain=_GAIN)

    def matrix(self) -> Tensor:
        """W (p, q)."""
        rule = self.rule or self.shared[0]
        blocks = torch.einsum("iuv,ijk,ikl->ujvl", rule.weight, self.left, self.right)
        return blocks.flatten(2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x W + b, (..., q) of (..., p)."""
        return nn.functional.linear(x, self.matrix().T, self.bias)


def insert(
    model: Any,
    *,
    size: int,
    placement: str,
    activation: str,
    division: int,
    rank: int,
    shared: bool,
    mean: float,
    std: float,
) -> set[str]:
    """Put compacters behind the blocks of `model`; the names of their tensors.

    `shared`: one set of matrices A for the model, which is then the child `phm_rule` of its body.
    The A_i are drawn from N(mean, std^2), their factors from Glorot's uniform distribution; biases
    are zero. Raises `ConfigError` as `adapters.place` does, and where `division` does not divide
    the width of a block or `size`.
    """
    first = next(model.parameters())
    rule = Rule(division).to(first) if shared else None
    if rule is not None:
        nn.init.normal_(rule.weight, mean, std)

    def make(width: int, like: Tensor) -> Bottleneck:
        for what, entries in (("the width of the model", width), ("adapter_size", size)):
            if entries % division:
                raise ConfigError(
                    f"compacter: phm_division {division} does not divide {what}, {entries}",
                    remedy=f"phm_division must divide the width ({width}) and adapter_size "
                    f"({size}): {math.gcd(width, size)} or a divisor of it",
                )
        down = KroneckerLinear(width, size, rank, division, rule)
        up = KroneckerLinear(size, width, rank, division, rule)
        adapter = Bottleneck(down, up, activation).to(like)
        for part in (down, up):
            part.draw(mean, std)
        return adapter

    names = adapters.place(model, placement, make)
    if rule is None:
        return names
    # On the body, for what stands beside the body is a head.
    body = model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
    model.get_submodule(body).add_module("phm_rule", rule)
    return names | {f"{body}.phm_rule.weight".lstrip(".")}


def insert_low_rank(
    model: Any, *, size: int, placement: str, activation: str, rank: int
) -> set[str]:
    """Put low-rank adapters behind the blocks of `model`; the names of their tensors.

    Factors are drawn from Glorot's uniform distribution; biases are zero. Raises `ConfigError` as
    `adapters.place` does.
    """

    def make(width: int, like: Tensor) -> Bottleneck:
        down, up = _low_rank(width, size, rank), _low_rank(size, width, rank)
        adapter = Bottleneck(down, up, activation).to(like)
        for part in (down, up):
            nn.init.xavier_uniform_(part.left.weight, gain=_GAIN)
            nn.init.xavier_uniform_(part.right.weight, gain=_GAIN)
            nn.init.zeros_(part.right.bias)
        return adapter

    return adapters.place(model, placement, make)


def _low_rank(rows: int, columns: int, rank: int) -> Any:
    """x -> x L R + b. Two linear layers, which whatever looks for layers (influence) sees."""
    left, right = nn.Linear(rows, rank, bias=False), nn.Linear(rank, columns)
    return nn.Sequential(OrderedDict(left=left, right=right))
