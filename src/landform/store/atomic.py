"""Files and directories that are whole or absent, and the formats the store speaks.

Everything is written under a temporary name in the directory where it will live and renamed when
it is complete. A rename is atomic: readers, and the next run after a kill, see all of it or none.

About `fsync`: a process that dies (SIGKILL, out of memory, an exception) leaves its finished
writes in the operating system's cache, so renaming alone is safe against that. Only a power cut
or a kernel crash can leave a renamed file empty, and the store notices such a file by its size
and computes it again. Hence `durable=False` is the default for the thousands of small artifacts
of a study, where waiting for the disk would cost more than the work; what is written once and
kept (a trained checkpoint, a final result) should pass `durable=True`.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landform.errors import LandformError, StoreError
from landform.store.fingerprint import to_plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "atomic_directory",
    "atomic_path",
    "check_place",
    "file_errors",
    "json_bytes",
    "moved_aside",
    "parse_json",
    "parse_table",
    "parse_tensors",
    "read_json",
    "read_table",
    "read_tensors",
    "remove_leftovers",
    "save_tensors",
    "table_bytes",
    "tensor_bytes",
    "write_json",
    "write_table",
    "write_tensors",
]

Keep = Callable[[Path], bool]

PREFIX = ".tmp-"
FOREIGN_AGE = 7 * 24 * 3600.0  # seconds after which another machine's left-over counts as dead

_NAME = re.compile(
    r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<token>[0-9a-f]{8})-(?P<role>new|old)-\d+-(?P<name>.+)"
)
_TOKEN = secrets.token_hex(4)  # tells this process from an earlier one with the same number
_COUNTER = itertools.count()

_REMEDIES = {
    errno.ENOSPC: "free some disk space and run the same command again: finished work is kept",
    errno.EDQUOT: "free some of your disk quota and run the same command again",
    errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "check the permissions, or choose a folder that you own",
    errno.EPERM: "check the permissions, or choose a folder that you own",
    errno.ENOTDIR: "a part of the path is a file: choose another path, or move that file away",
    errno.EEXIST: "a file is in the way: choose another path, or move that file away",
    errno.EISDIR: "a folder is in the way: choose another path, or move that folder away",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOENT: "check the spelling of the path",
    errno.EIO: "the disk reports an error: check it before you go on",
}


# What torch.save says when a write came up short, which is a full disk with hardly an exception.
_TORCH_WRITES = ("PytorchStreamWriter failed writing", "unexpected pos", "iostream error")


@contextmanager
def file_errors(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an `OSError` into a `StoreError`: "cannot <action> <path>: reason", with a remedy."""
    try:
        yield
    except LandformError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _number_in(error)
        if number is None and not isinstance(error, OSError):
            raise
        reason = os.strerror(number) if number else str(error)
        remedy = _REMEDIES.get(number or 0, "check the path and the disk")
        raise StoreError(f"cannot {action} {os.fspath(path)}: {reason}", remedy=remedy) from error


def _number_in(error: Exception) -> int | None:
    """The error number that libraries written in Rust or C++ (safetensors, tokenizers, torch) tell
    in their text only."""
    match = re.search(r"os error (\d+)", str(error))
    if match:
        return int(match[1])
    return errno.ENOSPC if any(mark in str(error) for mark in _TORCH_WRITES) else None


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise the `StoreError` that writing a file to `path` would end in, without touching the disk.

    For commands that write at the end of long work: what can be seen now need not be found then.
    """
    target = Path(path).absolute()
    with file_errors("write", path):
        if target.is_dir():
            raise _os_error(errno.EISDIR)
        folder = next(parent for parent in target.parents if parent.exists())
        if not folder.is_dir():
            raise _os_error(errno.ENOTDIR)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _os_error(errno.EACCES)


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@functools.cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _temporary(path: Path, role: str) -> Path:
    name = f"{PREFIX}{_host()}-{os.getpid()}-{_TOKEN}-{role}-{next(_COUNTER)}-{path.name}"
    return path.with_name(name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory; the files themselves were synced.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            _sync(Path(folder, name))
        _sync_directory(Path(folder))


def _sync_directory(path: Path) -> None:
    if os.name == "posix":  # Windows cannot open a directory
        _sync(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _share(path: Path) -> None:
    """Gives a new file the mode that the umask says.

    safetensors makes files that nobody but their owner may read, whatever the umask: a study or a
    checkpoint on a shared disk would be of no use to colleagues.
    """
    if os.name != "posix" or path.is_symlink() or stat.S_IMODE(path.stat().st_mode) != 0o600:
        return
    probe = _temporary(path, "new")
    try:
        # The umask can be read only by changing it, for all threads: a new file tells it as well.
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        os.close(descriptor)
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        _remove(probe)


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """A temporary file name to write to; on leaving, it takes the place of `path`.

    On any exception the temporary is removed and `path` stays as it was. An `OSError` raised in
    the body (a full disk, say) becomes a `StoreError`. The parent directory is created.
    """
    target = Path(path)
    temporary = _temporary(target, "new")
    with file_errors("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_once(target.parent.absolute())
        try:
            yield temporary
            _share(temporary)
            if durable:
                _sync(temporary)
            os.replace(temporary, target)
        except BaseException:
            _remove(temporary)
            raise
        if durable:
            _sync_directory(target.parent)


@contextmanager
def atomic_directory(
    path: str | os.PathLike[str], *, durable: bool = False, keep: Keep | None = None
) -> Iterator[Path]:
    """A temporary directory to fill; on leaving, it takes the place of the directory `path`.

    If `path` exists by then, `keep(path)` decides: true leaves it and discards the new one
    (somebody else was first), false or no `keep` replaces it. Errors as in `atomic_path`.
    """
    target = Path(path)
    temporary = _temporary(target, "new")
    with file_errors("write", target):
        try:
            temporary.mkdir(parents=True)
            _clear_once(target.parent.absolute())
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _share(Path(folder, name))
            if durable:
                _sync_tree(temporary)
            _install(temporary, target, keep)
        except BaseException:
            _remove(temporary)
            raise
        if durable:
            _sync_directory(target.parent)


def _install(temporary: Path, target: Path, keep: Keep | None) -> None:
    for _ in range(100):
        try:
            os.rename(temporary, target)
            return
        except OSError as error:
            if not _occupied(error, target):
                raise
        if keep is not None and keep(target):
            _remove(temporary)
            return
        # Two full directories cannot be exchanged in one step. Should the process die between
        # the renames, `remove_leftovers` puts the old one back.
        aside = _temporary(target, "old")
        with suppress(FileNotFoundError):
            os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except OSError as error:
            if not _occupied(error, target):
                with suppress(FileNotFoundError):
                    os.rename(aside, target)
                raise
            _remove(aside)  # somebody else's new one took the place: the old one is obsolete
            continue
        _remove(aside)
        return
    raise StoreError(
        f"cannot write {target}: other processes keep writing it",
        remedy="let only one of them write to this study",
    )


def _occupied(error: OSError, target: Path) -> bool:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        # Another writer may have moved the directory aside since: then its place is free again.
        return not target.is_file()
    # Windows says "access denied" when the target of a rename is a directory.
    return error.errno == errno.EACCES and target.is_dir()


def remove_leftovers(directory: Path) -> list[Path]:
    """Removes the temporaries in `directory` whose process is gone; returns their paths.

    A directory that was moved aside by a process which died before it could put the new one in
    place is moved back. Temporaries of living processes stay; those of other machines (a shared
    disk) count as dead after a week.
    """
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
    except OSError:
        return []
    removed = []
    for name in names:
        match = _NAME.fullmatch(name)
        path = directory / name
        if match is None or _alive(path, match):
            continue
        target = directory / match["name"]
        if match["role"] == "old" and not target.exists():
            with suppress(OSError):
                os.rename(path, target)
        else:
            _remove(path)
        removed.append(path)
    return removed


def moved_aside(name: str) -> str | None:
    """Of which directory `name` is the old one, aside until the new one is in its place."""
    match = _NAME.fullmatch(name)
    return match["name"] if match and match["role"] == "old" else None


@functools.cache
def _clear_once(directory: Path) -> None:
    """`remove_leftovers`, at the first writing of this process to a directory.

    A study clears its own folders when it is opened; this is for files and checkpoints beside it,
    whose writer was killed.
    """
    remove_leftovers(directory)


def _alive(path: Path, match: re.Match[str]) -> bool:
    if match["host"] != _host() or os.name != "posix":
        try:
            return time.time() - path.stat().st_mtime < FOREIGN_AGE
        except OSError:
            return False
    pid = int(match["pid"])
    if pid == os.getpid():
        return match["token"] == _TOKEN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


# --- JSON -----------------------------------------------------------------------------------


def json_bytes(value: Any, *, where: str = "value") -> bytes:
    """`value` (see `to_plain`) as indented UTF-8 JSON, in the order given, with a final newline."""
    return (json.dumps(to_plain(value, where=where), indent=1) + "\n").encode()


def parse_json(data: bytes, path: str | os.PathLike[str]) -> Any:
    """The value in `data`; a `StoreError` names `path` when it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "JSON", error) from error


def write_json(path: str | os.PathLike[str], value: Any, *, durable: bool = False) -> None:
    """Writes `value` as JSON, whole or not at all."""
    _write_bytes(path, json_bytes(value, where=Path(path).name), durable)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file; a `StoreError` names it when it is missing or damaged."""
    return parse_json(_read_bytes(path), path)


# --- tables ---------------------------------------------------------------------------------


def table_bytes(table: pd.DataFrame, *, where: str = "table") -> bytes:
    """`table` as a Parquet file; a `StoreError` names `where` and the column that is refused."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.Table.from_pandas(table, nthreads=1), sink)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise StoreError(
            f"{where} cannot be stored as Parquet: {'; '.join(map(str, error.args))}",
            remedy="give each column one type and each column its own name",
        ) from error
    data: bytes = sink.getvalue().to_pybytes()
    return data


def parse_table(data: bytes, path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table in `data`; a `StoreError` names `path` when it is not Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            threads = len(data) > 1 << 20  # for small tables, threads cost more than they save
            table: pd.DataFrame = file.read(use_threads=threads).to_pandas(use_threads=threads)
            return table
    # Beside Arrow's own errors, those of pandas for a damaged description of its columns.
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise _damaged(path, "Parquet", error) from error


def write_table(
    path: str | os.PathLike[str], table: pd.DataFrame, *, durable: bool = False
) -> None:
    """Writes `table` as Parquet (its index too), whole or not at all."""
    _write_bytes(path, table_bytes(table, where=Path(path).name), durable)


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads a Parquet file; a `StoreError` names it when it is missing or damaged."""
    return parse_table(_read_bytes(path), path)


# --- tensors --------------------------------------------------------------------------------


def _storable(tensors: Mapping[str, np.ndarray[Any, Any]], where: str) -> dict[str, Any]:
    ready = {}
    for name, array in tensors.items():
        if not isinstance(array, (np.ndarray, np.generic)) or array.dtype.kind not in "biufc":
            kind = getattr(array, "dtype", type(array).__name__)
            raise StoreError(
                f"{where}: tensor {name!r} is {kind}, expected a numeric numpy array",
                remedy="store text in a table or a record, and numbers as numpy arrays",
            )
        ready[name] = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return ready


def tensor_bytes(tensors: Mapping[str, np.ndarray[Any, Any]], *, where: str = "tensors") -> bytes:
    """`tensors` as a safetensors file in memory."""
    from safetensors import SafetensorError
    from safetensors.numpy import save

    try:
        data: bytes = save(_storable(tensors, where))
    except (SafetensorError, KeyError) as error:
        raise StoreError(f"{where} cannot be stored as safetensors: {error}") from error
    return data


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes `tensors` straight to `path` (no temporary name, no second copy in memory)."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(_storable(tensors, path.name), path)
    except (SafetensorError, KeyError) as error:
        number = _number_in(error)
        if number is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise StoreError(f"{path.name} cannot be stored as safetensors: {error}") from error


def parse_tensors(data: bytes, path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors in `data`; a `StoreError` names `path` when it is not a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, np.ndarray[Any, Any]] = load(data)
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise _damaged(path, "safetensors", error) from error
    return tensors


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    *,
    durable: bool = False,
) -> None:
    """Writes `tensors` as safetensors, whole or not at all."""
    with atomic_path(path, durable=durable) as temporary:
        save_tensors(temporary, tensors)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Reads a safetensors file; a `StoreError` names it when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with file_errors("read", path):
        try:
            tensors: dict[str, np.ndarray[Any, Any]] = load_file(path)
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise _damaged(path, "safetensors", error) from error
    return tensors


# --- bytes ----------------------------------------------------------------------------------


def _write_bytes(path: str | os.PathLike[str], data: bytes, durable: bool) -> None:
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    with file_errors("read", path):
        return Path(path).read_bytes()


def _damaged(path: str | os.PathLike[str], kind: str, error: Exception) -> StoreError:
    return StoreError(
        f"{os.fspath(path)} is damaged or not a {kind} file: {error}",
        remedy="delete it and run the command that made it again",
    )
