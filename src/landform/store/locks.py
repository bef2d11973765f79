"""A directory held by one process at a time: two on one piece of work would harm one another."""

from __future__ import annotations

import os
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

    Whoever holds it may remove it. Raises `StoreError(busy)` where another process holds it. On
    Windows nothing is locked.
    """
    place = Path(directory)
    with file_errors("write", place):
        lock = _lock(place, busy)
    try:
        yield place
    finally:
        os.close(lock)


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
        raise StoreError(busy, remedy="wait for it, or write to another place") from None
