"""Sources of chance, each under its own seed, and none of them shared with the caller.

torch's global generator is the only source that dropout reads, so nothing else may draw from it
between two steps: data order and noise have generators of their own, and the head is drawn before
the dropout seed is set.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler

from landform.training.options import TrainConfig

__all__ = ["DataOrder", "Seeds", "add_noise", "isolated_randomness"]


@dataclass(frozen=True)
class Seeds:
    """The seeds of one run."""

    run: int
    head: int
    data: int
    dropout: int
    perturb: int

    @classmethod
    def of(cls, run: int, config: TrainConfig) -> Seeds:
        """The run's own seed wherever the config does not fix another."""

        def choose(fixed: int | None) -> int:
            return run if fixed is None else fixed

        return cls(
            run,
            choose(config.head_seed),
            choose(config.data_seed),
            choose(config.dropout_seed),
            choose(config.perturb_seed),
        )

    def columns(self) -> dict[str, int]:
        """As columns of a table: seed, head_seed, data_seed, dropout_seed, perturb_seed."""
        values = asdict(self)
        return {"seed": values.pop("run"), **{f"{name}_seed": v for name, v in values.items()}}


class DataOrder(Sampler[int]):
    """A new permutation of the rows in every epoch, from (seed, epoch) alone.

    accelerate seeds epoch e of seed s with s + e, so that neighbouring seeds would see the same
    orders one epoch apart; here the two numbers are hashed.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = _generator(f"data order {self.seed} {self.epoch}")
        yield from torch.randperm(self.size, generator=generator).tolist()

    def __len__(self) -> int:
        return self.size


@contextmanager
def isolated_randomness() -> Iterator[None]:
    """Whatever is seeded or drawn inside leaves the caller's generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def add_noise(model: nn.Module, scale: float, seed: int, *, skip: frozenset[str]) -> None:
    """w += scale * std(w) * N(0, 1) for every parameter tensor w that is not in `skip`.

    std is that of the tensor's own entries (population form, so one entry has 0): a constant
    tensor, such as the weights of a fresh layer norm, stays as it is.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in skip or not parameter.is_floating_point():
                continue
            # Seeded by name: the noise on a tensor must not depend on which others there are.
            noise = torch.randn(parameter.shape, generator=_generator(f"noise {seed} {name}"))
            deviation = parameter.double().std(unbiased=False).item()
            parameter.add_(noise.to(parameter), alpha=scale * deviation)


def _generator(name: str) -> torch.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
