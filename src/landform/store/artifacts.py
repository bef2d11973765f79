"""Study directories: artifacts found by their fingerprint, final results found by their name.

A study on disk:

    study.json                        format version, landform version, when it was created
    artifacts/<kind>/<fingerprint>/   what one job computed, named by what the job was given
    results/<name>/                   what a study concluded, named for people

Artifacts and results have the same inside: `manifest.json` (what made it, with which versions,
and every file's size and SHA-256), `tensors.safetensors`, `<table>.parquet`, `<record>.json`.
Each is written beside its place and renamed, so it is whole or absent; manifests hold no time
stamps, so the same work gives the same bytes. Nothing here reads or writes a pickle.
"""

from __future__ import annotations

import datetime
import errno
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from landform.errors import LandformError, StoreError
from landform.store.atomic import (
    PREFIX,
    atomic_directory,
    file_errors,
    json_bytes,
    moved_aside,
    parse_json,
    parse_table,
    parse_tensors,
    read_json,
    read_tensors,
    remove_leftovers,
    save_tensors,
    table_bytes,
    tensor_bytes,
    write_json,
)
from landform.store.fingerprint import fingerprint_file, to_plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FORMAT",
    "ArtifactStore",
    "Contents",
    "MemoryStore",
    "Store",
    "environment",
    "package_version",
]

FORMAT = 1  # of study directories; a reader refuses a higher one

_MANIFEST = "manifest.json"
_TENSORS = "tensors.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,127}")
T = TypeVar("T")
_VERSIONED = ("torch", "transformers", "numpy")


@dataclass(frozen=True, eq=False)
class Contents:
    """What one artifact holds, each part by name.

    tensors: numeric arrays of any shape; tables: data frames with string column names;
    records: values that `to_plain` accepts (they come back as plain JSON values: tuples as lists).
    """

    tensors: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    records: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class ArtifactStore(Protocol):
    """What studies and engines need of a store; `Store` keeps it on disk, `MemoryStore` not."""

    def __contains__(self, key: object) -> bool:
        """Whether the artifact `key` can be read (sizes are compared, hashes are not)."""

    def read(self, key: str, *, verify: bool = True) -> Contents:
        """The artifact `key`, newly read; `StoreError` when it is missing or damaged."""

    def write(
        self, key: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Stores `contents` under `key`; where `key` is whole already, that one stays."""

    def remove(self, key: str) -> None:
        """Removes the artifact `key` if it is there."""

    def manifest(self, key: str) -> dict[str, Any]:
        """What made the artifact `key`: provenance, versions, files."""

    def publish(
        self, name: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Stores the final result `name`, in place of an earlier one."""

    def published(self, name: str) -> Contents:
        """The final result `name`; `StoreError` naming the known ones when there is none."""

    def published_manifest(self, name: str) -> dict[str, Any]:
        """What made the final result `name`: provenance, versions, files."""

    def results(self) -> tuple[str, ...]:
        """The names of the final results, sorted."""


@functools.cache
def package_version() -> str:
    """The installed version of landform, or "0+unknown" when run from a source tree."""
    try:
        return importlib.metadata.version("landform")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


@functools.cache
def environment() -> dict[str, str]:
    """Versions of landform, Python and the libraries that decide numbers, for provenance."""
    versions = {"landform": package_version(), "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


class Store:
    """A study directory. Use `Store.open`."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path = path
        self.durable = durable

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, create: bool = True, durable: bool = False
    ) -> Store:
        """Opens the study at `path`; creates it where nothing or an empty directory is.

        `durable` also waits for the disk at every artifact, which protects against power cuts
        (see `landform.store.atomic`); final results always do. Left-overs of killed runs are
        removed. `StoreError` when `path` is a file, cannot be read or written, holds other
        things than a study, or was written by a newer version.
        """
        root = Path(path).expanduser()
        with file_errors("open the study", root):
            # Absolute: the study stays the same one when the process moves to another directory.
            place = root.absolute()
            exists = root.exists()
            if exists and not root.is_dir():
                raise StoreError(
                    f"{root} is a file, expected a study directory",
                    remedy="choose another path for the study"
                    if create
                    else "name the directory that was given as --store",
                )
            names = sorted(os.listdir(root)) if exists else []
        if "study.json" in names:
            _check_study(root / "study.json")
        elif any(not name.startswith(PREFIX) for name in names):
            raise StoreError(
                f"{root} is not a study directory: it has no study.json but holds {names[0]!r}",
                remedy="choose a new or empty directory, so that your files stay apart"
                if create
                else "name the directory that was given as --store",
            )
        elif create:
            _create_study(root)
        else:
            raise StoreError(
                f"there is no study at {root}", remedy="check the path, or run the study first"
            )
        _clean(root)
        return cls(place, durable=durable)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def __contains__(self, key: object) -> bool:
        """Whether the artifact `key` is there with all its files in their full size.

        An artifact that lost a file or a part of one counts as absent, so that it is computed
        again; flipped bits are found by `read`.
        """
        return isinstance(key, str) and _is_whole(self._artifact(key))

    def read(self, key: str, *, verify: bool = True) -> Contents:
        """The artifact `key`.

        Sizes are always compared with the manifest, hashes unless `verify` is false. A
        `StoreError` names the file that is missing or damaged.
        """
        directory = self._artifact(key)
        if not directory.is_dir():
            raise StoreError(
                f"the study {self.path} holds no artifact {key}",
                remedy="run the study again: what is missing is computed",
            )
        return _read_directory(directory, verify=verify)

    def write(
        self, key: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Stores `contents` under `key`, whole or not at all.

        `provenance` is what made it, in a form that can be run again. Where a whole artifact of
        that key exists (another process was faster) it stays; a damaged one is replaced.
        """
        directory = self._artifact(key)
        with atomic_directory(directory, durable=self.durable, keep=_is_sound) as temporary:
            _write_directory(temporary, contents, _header(key, provenance))

    def remove(self, key: str) -> None:
        """Removes the artifact `key` if it is there, so that it is computed again."""
        _remove_directory(self._artifact(key))

    def manifest(self, key: str) -> dict[str, Any]:
        """The manifest of the artifact `key`: key, kind, provenance, environment, files."""
        return _read_manifest(self._artifact(key))

    def publish(
        self, name: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Stores the final result `name` under results/<name>/, in place of an earlier one."""
        directory = self._result(name)
        with atomic_directory(directory, durable=True) as temporary:
            _write_directory(temporary, contents, _header(f"results/{name}", provenance))

    def published(self, name: str) -> Contents:
        """The final result `name`; a `StoreError` lists the known ones when there is none."""
        return self._settled(name, lambda place: _read_directory(place, verify=True))

    def published_manifest(self, name: str) -> dict[str, Any]:
        """The manifest of the final result `name`: provenance, environment, files."""
        return self._settled(name, _read_manifest)

    def results(self) -> tuple[str, ...]:
        """The names of the final results, sorted."""
        folder = self.path / "results"
        with file_errors("read", folder):
            names = os.listdir(folder) if folder.is_dir() else []
        whole = (name for name in names if (folder / name / _MANIFEST).is_file())
        # Another process may be publishing. The new one has no name yet; the old one still counts.
        own = {moved_aside(name) if name.startswith(PREFIX) else name for name in whole}
        return tuple(sorted(name for name in own if name is not None))

    def _artifact(self, key: str) -> Path:
        kind, name = _split(key)
        return self.path / "artifacts" / kind / name

    def _result(self, name: str) -> Path:
        return self.path / "results" / _checked(name, "the name of a result")

    def _settled(self, name: str, read: Callable[[Path], T]) -> T:
        """`read` of a result: again where another process put a new one in its place meanwhile.

        Reading is a manifest, then files, and replacing is two renames: in between, a reader
        finds no directory, or files that are not those of the manifest it read.
        """
        directory = self._result(name)
        for _ in range(100):
            before = _identity(directory)
            try:
                if before is not None:
                    return read(directory)
            except StoreError:
                if _identity(directory) == before:
                    raise
            if before is None and name not in self.results():
                break
            time.sleep(0.01)
            remove_leftovers(directory.parent)  # who was replacing it may have been killed
        raise _no_result(name, self.results(), str(self.path))


class MemoryStore:
    """A store that lives as long as the object, for work whose parts nobody wants to keep.

    Everything goes through the same formats as on disk, so values come back exactly as `Store`
    would give them, and what one refuses the other refuses.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._artifacts: dict[str, dict[str, bytes]] = {}
        self._results: dict[str, dict[str, bytes]] = {}

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._artifacts)} artifacts)"

    def __contains__(self, key: object) -> bool:
        """Whether the artifact `key` was written."""
        return key in self._artifacts

    def read(self, key: str, *, verify: bool = True) -> Contents:
        """A fresh copy of the artifact `key`; `StoreError` when there is none."""
        return _decode(self._files(key))

    def write(
        self, key: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Stores `contents` under `key`, unless it is there already."""
        files = _encode(contents, _header(key, provenance))
        with self._lock:
            self._artifacts.setdefault(key, files)

    def remove(self, key: str) -> None:
        """Removes the artifact `key` if it is there."""
        with self._lock:
            self._artifacts.pop(key, None)

    def manifest(self, key: str) -> dict[str, Any]:
        """The manifest of the artifact `key`: key, kind, provenance, environment, files."""
        manifest: dict[str, Any] = parse_json(self._files(key)[_MANIFEST], key)
        return manifest

    def publish(
        self, name: str, contents: Contents, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Stores the final result `name`, in place of an earlier one."""
        _checked(name, "the name of a result")
        files = _encode(contents, _header(f"results/{name}", provenance))
        with self._lock:
            self._results[name] = files

    def published(self, name: str) -> Contents:
        """A fresh copy of the final result `name`; `StoreError` when there is none."""
        return _decode(self._result(name))

    def published_manifest(self, name: str) -> dict[str, Any]:
        """The manifest of the final result `name`: provenance, environment, files."""
        manifest: dict[str, Any] = parse_json(self._result(name)[_MANIFEST], name)
        return manifest

    def results(self) -> tuple[str, ...]:
        """The names of the final results, sorted."""
        return tuple(sorted(self._results))

    def _files(self, key: str) -> dict[str, bytes]:
        try:
            return self._artifacts[key]
        except KeyError:
            raise StoreError(f"this memory store holds no artifact {key}") from None

    def _result(self, name: str) -> dict[str, bytes]:
        try:
            return self._results[name]
        except KeyError:
            raise _no_result(name, self.results(), "this memory store") from None


# --- study.json -----------------------------------------------------------------------------


def _create_study(root: Path) -> None:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    about = {
        "what": "landform study",
        "format": FORMAT,
        "landform": package_version(),
        "created": now,
    }
    write_json(root / "study.json", about, durable=True)


def _check_study(path: Path) -> None:
    try:
        about = read_json(path)
    except StoreError as error:
        # Without study.json the rest would look like somebody else's files.
        raise StoreError(
            error.what, remedy="put back study.json from a backup, or choose another directory"
        ) from error
    version = about.get("format") if isinstance(about, dict) else None
    if not isinstance(version, int) or about.get("what") != "landform study":
        raise StoreError(
            f"{path} does not describe a landform study", remedy="choose another directory"
        )
    if version > FORMAT:
        raise StoreError(
            f"{path.parent} was written by landform {about.get('landform')} in study format "
            f"{version}; this is landform {package_version()}, which knows formats up to {FORMAT}",
            remedy="install that version of landform or a newer one, or choose another directory",
        )


def _clean(root: Path) -> None:
    folders = [root, root / "results"]
    artifacts = root / "artifacts"
    if artifacts.is_dir():
        folders += sorted(path for path in artifacts.iterdir() if path.is_dir())
    for folder in folders:
        remove_leftovers(folder)


# --- names ----------------------------------------------------------------------------------


def _checked(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{what} is {name!r}", remedy="use letters, digits and . _ + = -, not a path"
        )
    return name


def _split(key: str) -> tuple[str, str]:
    kind, slash, name = key.partition("/")
    if not (slash and _NAME.fullmatch(kind) and _NAME.fullmatch(name)):
        raise StoreError(f"{key!r} is not an artifact key, expected <kind>/<fingerprint>")
    return kind, name


def _no_result(name: str, known: tuple[str, ...], where: str) -> StoreError:
    return StoreError(
        f"{where} holds no result {name!r}",
        remedy=f"known results: {', '.join(known)}" if known else "run the study first",
    )


def _header(key: str, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    kind, _ = _split(key)
    return {
        "format": FORMAT,
        "key": key,
        "kind": kind,
        "provenance": to_plain(dict(provenance or {}), where=f"the provenance of {key}"),
        "environment": environment(),
    }


# --- the files of one artifact --------------------------------------------------------------


def _encode_small(contents: Contents, key: str) -> dict[str, bytes]:
    files = {}
    for name, table in contents.tables.items():
        file = f"{_checked(name, f'the name of a table of {key}')}.parquet"
        files[file] = table_bytes(table, where=f"table {name!r} of {key}")
    for name, record in contents.records.items():
        file = f"{_checked(name, f'the name of a record of {key}')}.json"
        if file == _MANIFEST:
            raise StoreError(f"{key}: a record cannot be called 'manifest'")
        files[file] = json_bytes(record, where=f"record {name!r} of {key}")
    return files


def _encode(contents: Contents, header: dict[str, Any]) -> dict[str, bytes]:
    files = _encode_small(contents, header["key"])
    if contents.tensors:
        files[_TENSORS] = tensor_bytes(contents.tensors, where=header["key"])
    files[_MANIFEST] = json_bytes({**header, "files": {n: _entry(d) for n, d in files.items()}})
    return files


def _entry(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_directory(directory: Path, contents: Contents, header: dict[str, Any]) -> None:
    files = _encode_small(contents, header["key"])
    entries = {}
    for name, data in files.items():
        (directory / name).write_bytes(data)
        entries[name] = _entry(data)
    if contents.tensors:  # may be large: goes to the disk without a second copy in memory
        path = directory / _TENSORS
        save_tensors(path, contents.tensors)
        entries[_TENSORS] = {"size": path.stat().st_size, "sha256": fingerprint_file(path)}
    (directory / _MANIFEST).write_bytes(json_bytes({**header, "files": entries}))


class _Parts:
    """The parts of an artifact while its files are read."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray[Any, Any]] = {}
        self.tables: dict[str, pd.DataFrame] = {}
        self.records: dict[str, Any] = {}

    def add(self, name: str, data: bytes, path: str | Path) -> None:
        """What is in the file `name`; `path` is how an error calls it."""
        stem, _, ending = name.rpartition(".")
        if ending == "safetensors":
            self.tensors |= parse_tensors(data, path)
        elif ending == "parquet":
            self.tables[stem] = parse_table(data, path)
        else:
            self.records[stem] = parse_json(data, path)

    def contents(self) -> Contents:
        return Contents(self.tensors, self.tables, self.records)


def _decode(files: Mapping[str, bytes]) -> Contents:
    parts = _Parts()
    for name, data in files.items():
        if name != _MANIFEST:
            parts.add(name, data, name)
    return parts.contents()


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / _MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise _damaged(path, "it does not list the files")
    for name, entry in manifest["files"].items():
        if not _NAME.fullmatch(name):
            raise _damaged(path, "it lists a file outside of its directory")
        if not (isinstance(entry, dict) and {"size", "sha256"} <= set(entry)):
            raise _damaged(path, f"it does not say the size and the SHA-256 of {name}")
    return manifest


def _read_directory(directory: Path, *, verify: bool) -> Contents:
    parts = _Parts()
    for name, entry in _read_manifest(directory)["files"].items():
        path = directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        if size != entry["size"]:
            raise _damaged(path, f"it has {size} bytes, expected {entry['size']}")
        if name == _TENSORS:
            if verify and fingerprint_file(path) != entry["sha256"]:
                raise _damaged(path, "its SHA-256 is not the one in the manifest")
            parts.tensors |= read_tensors(path)
            continue
        with file_errors("read", path):
            data = path.read_bytes()
        if verify and hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise _damaged(path, "its SHA-256 is not the one in the manifest")
        parts.add(name, data, path)
    return parts.contents()


def _is_whole(directory: Path) -> bool:
    try:
        files = _read_manifest(directory)["files"]
        return all((directory / n).stat().st_size == e["size"] for n, e in files.items())
    except (LandformError, OSError):
        return False


def _is_sound(directory: Path) -> bool:
    """Whole, and every byte as it was written."""
    try:
        files = _read_manifest(directory)["files"]
        return all(fingerprint_file(directory / n) == e["sha256"] for n, e in files.items())
    except LandformError:
        return False


def _identity(directory: Path) -> tuple[int, int] | None:
    """Which directory it is, whatever its name; None where there is none."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _remove_directory(directory: Path) -> None:
    with file_errors("remove", directory):
        try:
            # The manifest first: without it the rest counts as absent, should this be cut short.
            (directory / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{path} is damaged: {why}",
        remedy=f"delete the directory {path.parent} and run the same command again: "
        "what is missing is computed again",
    )
