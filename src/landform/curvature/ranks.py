"""Several processes on one computation (`torchrun`): each takes its share, sums are added up.

Every process makes the same calls in the same order and gets the full result. What one of them
raises, all raise. A study directory that they share is written by the first one only.
"""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from landform.errors import EngineError, LandformError
from landform.store.artifacts import ArtifactStore, Contents, MemoryStore

__all__ = ["Ranks", "current_ranks", "shared"]

T = TypeVar("T")

PATIENCE = datetime.timedelta(hours=6)
"""How long a process waits for the others: the largest eigendecomposition takes one alone."""


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

    def gather(self, item: T) -> list[T]:
        """What every process has, in the order of the processes."""
        if self.world == 1:
            return [item]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, item)
        return found

    def collect(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in the order in which `share` dealt them out."""
        dealt = self.gather(list(items))
        longest = max(map(len, dealt))
        return [part[i] for i in range(longest) for part in dealt if i < len(part)]

    def first(self, value: T) -> T:
        """What the first process has: where all must agree, it decides."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one process raises in the block, all raise after it; nobody waits for the dead.

        The block must not wait for other processes itself.
        """
        if self.world == 1:
            yield
            return
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        for rank, found in enumerate(self.gather(_sendable(mine))):
            if found is not None:
                # The process's own error, with its traceback, where it is the one to be raised.
                raise (mine if mine is not None and rank == self.rank else found)


def _sendable(error: Exception | None) -> LandformError | None:
    """An error that another process can read: not every exception can be pickled."""
    if error is None or isinstance(error, LandformError):
        return error
    return EngineError(f"another process failed: {type(error).__name__}: {error}")


def current_ranks() -> Ranks:
    """The processes of this run; joins them where a launcher started several.

    A launcher (`torchrun`, `accelerate launch`) says so in the environment; tensors on a CPU
    travel by gloo, on GPUs by nccl.
    """
    from torch import distributed

    if not distributed.is_available():
        return Ranks()
    if not distributed.is_initialized():
        if not _launched():
            return Ranks()
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
        atexit.register(distributed.destroy_process_group)
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def _launched() -> bool:
    """Whether a launcher started several processes and said how they find each other."""
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    several = os.environ.get("WORLD_SIZE", "1").strip() not in ("", "0", "1")
    return several and all(os.environ.get(name) for name in names)


def shared(store: ArtifactStore, ranks: Ranks) -> ArtifactStore:
    """The store as several processes use it; memory stays everybody's own."""
    if ranks.world == 1 or isinstance(store, MemoryStore | _SharedStore):
        return store
    return _SharedStore(store, ranks)


class _SharedStore:
    """A store on disk for several processes: the first one looks what is there, and writes."""

    def __init__(self, store: ArtifactStore, ranks: Ranks) -> None:
        self.store, self.ranks = store, ranks

    def __contains__(self, key: object) -> bool:
        return self.ranks.first(self.ranks.rank == 0 and key in self.store)

    def read(self, key: str, *, verify: bool = True) -> Contents:
        """Every process reads for itself."""
        return self.store.read(key, verify=verify)

    def write(
        self, key: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """The first process writes; when this returns, all can read."""
        with self.ranks.together():
            if self.ranks.rank == 0:
                self.store.write(key, contents, provenance)

    def remove(self, key: str) -> None:
        """The first process removes, once nobody reads any more."""
        with self.ranks.together():
            pass
        with self.ranks.together():
            if self.ranks.rank == 0:
                self.store.remove(key)

    def manifest(self, key: str) -> dict[str, Any]:
        """As the store's own."""
        return self.store.manifest(key)

    def publish(
        self, name: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """The first process publishes."""
        with self.ranks.together():
            if self.ranks.rank == 0:
                self.store.publish(name, contents, provenance)

    def published(self, name: str) -> Contents:
        """As the store's own."""
        return self.store.published(name)

    def published_manifest(self, name: str) -> dict[str, Any]:
        """As the store's own."""
        return self.store.published_manifest(name)

    def results(self) -> tuple[str, ...]:
        """As the store's own."""
        return self.store.results()
