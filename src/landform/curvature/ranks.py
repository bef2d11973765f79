"""Several processes on one computation (`torchrun`): each takes its share, sums are added up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Ranks", "current_ranks"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many."""

    rank: int = 0
    world: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Every `world`-th item, beginning with this process's number."""
        return list(items[self.rank :: self.world])

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over the processes."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def collect(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in the order in which `share` dealt them out."""
        if self.world == 1:
            return list(items)
        dealt: list[list[T]] = [[] for _ in range(self.world)]
        torch.distributed.all_gather_object(dealt, list(items))
        longest = max(map(len, dealt))
        return [part[i] for i in range(longest) for part in dealt if i < len(part)]

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            torch.distributed.barrier()


def current_ranks() -> Ranks:
    """The processes of this run; joins them where a launcher started several.

    A launcher (`torchrun`, `accelerate launch`) says so in WORLD_SIZE; the backend is gloo on a
    CPU, nccl on GPUs.
    """
    from torch import distributed

    if not distributed.is_available():
        return Ranks()
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Ranks()
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group(backend)
    return Ranks(distributed.get_rank(), distributed.get_world_size())
