"""A directory held by one process at a time: two on one piece of work would harm one another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from landform.errors import StoreError
from landform.store.atomic import PREFIX, file_errors

__all__ = ["LOCK", "held"]

LOCK = f"{PREFIX}lock"
"""The file in a held directory that is locked; a study passes over files named so."""


@contextmanager
def held(directory: str | os.PathLike[str], busy: str) -> Iterator[Path]:
    """The directory (made if need be), for this process alone; the lock ends with the process,
    however it ends.

    Where another process holds it, this one says `busy` on standard error and waits: then it finds
    what the other made. Whoever holds the directory may remove it. Raises `StoreError(busy)` where
    this process itself holds it. On Windows nothing is locked.
    """
    place = Path(directory)
    name = os.path.realpath(place)
    if name in _OURS:
        raise StoreError(busy, remedy="let one of them end, or write to another place")
    with file_errors("write", place):
        lock = _lock(place, busy)
    _OURS.add(name)
    try:
        yield place
    finally:
        _OURS.discard(name)
        os.close(lock)


_OURS: set[str] = set()  # to wait for oneself would be to wait for ever


def _lock(directory: Path, busy: str) -> int:
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # the other process finished and removed the directory
        try:
            _take(descriptor, busy)
            # Whoever finished meanwhile removed the file that this lock is on.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(descriptor: int, busy: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting: {busy}", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
