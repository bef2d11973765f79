"""Fingerprints: one hexadecimal name for a value, an array or the bytes of files.

An artifact is found again by the fingerprint of what made it, so two rules hold everywhere here:
equal inputs give equal fingerprints in every process and on every machine, and a value whose
identity cannot be told from its data is refused (`repr` of an unknown object would contain its
address, or hide what changed).
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Set
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pydantic import BaseModel

from landform.errors import StoreError

__all__ = [
    "fingerprint",
    "fingerprint_array",
    "fingerprint_file",
    "fingerprint_files",
    "to_plain",
]


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of the canonical JSON of `value`.

    The rules: keys of mappings are strings and their order does not matter; tuples equal lists;
    sets are sorted; a path is its POSIX spelling, a date its ISO spelling, an enum its value, a
    numpy scalar the Python number it holds. Floats are written by `repr`, the shortest text that
    reads back as the same number; -0.0 equals 0.0 and every NaN equals every other. 1, 1.0, True
    and "1" all differ. Arrays enter through `fingerprint_array`. Options (`Config`) and
    dataclasses enter as their class name and fields: two methods with fields of the same names
    and values are not the same method.

    A `StoreError` names the place of a value of any other type.
    """
    try:
        plain = _plain(value, "value", identity=True)
    except RecursionError:
        raise StoreError("cannot fingerprint a value that contains itself") from None
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def to_plain(value: Any, *, where: str = "value") -> Any:
    """`value` as string-keyed dicts, lists, strings, numbers, booleans and None: ready for JSON.

    The same types as in `fingerprint`, for people and programs to read: options and dataclasses
    become their fields, arrays nested lists. NaN and infinities stay floats (Python's JSON writes
    them as NaN and Infinity). `where` is how an error calls the value.
    """
    return _plain(value, where, identity=False)


def _plain(value: Any, where: str, *, identity: bool) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value, where, identity=identity)
    if value is None or isinstance(value, (str, bool, int, float, np.generic)):
        return _scalar(value, where)
    if isinstance(value, Mapping):
        return _mapping(value, where, identity=identity)
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]", identity=identity) for i, v in enumerate(value)]
    if isinstance(value, Set):
        items = (_plain(v, f"{where} (an element)", identity=identity) for v in value)
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, np.ndarray):
        if identity:
            return {"ndarray": fingerprint_array(value)}
        return _plain(value.tolist(), where, identity=False)
    return _fields(value, where, identity=identity)


def _scalar(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
        if not isinstance(value, (str, bool, int, float)):
            raise _unknown(value, where)
    if isinstance(value, float):
        # float() drops subclasses; adding 0.0 turns -0.0 into 0.0 and leaves the rest alone.
        return float(value) + 0.0
    if isinstance(value, str):
        return str(value)
    return value if value is None or isinstance(value, bool) else int(value)


def _mapping(value: Mapping[Any, Any], where: str, *, identity: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = key.value if isinstance(key, Enum) else key
        if not isinstance(name, str):
            raise StoreError(
                f"{where} has the key {key!r} of type {type(key).__name__}, expected a string",
                remedy="use strings as keys (JSON would silently turn 1 into '1')",
            )
        plain[str(name)] = _plain(item, f"{where}[{name!r}]", identity=identity)
    return plain


def _fields(value: Any, where: str, *, identity: bool) -> Any:
    if isinstance(value, BaseModel):
        names: Iterable[str] = type(value).model_fields
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
    else:
        raise _unknown(value, where)
    fields = {
        name: _plain(getattr(value, name), f"{where}.{name}", identity=identity) for name in names
    }
    return {"class": type(value).__qualname__, "fields": fields} if identity else fields


def _unknown(value: Any, where: str) -> StoreError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return StoreError(
        f"{where} is a {kind}, which has no canonical JSON form",
        remedy="describe it with strings, numbers, lists, mappings, paths, dates, arrays, "
        "enums, dataclasses or options",
    )


def fingerprint_array(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 of an array's dtype, shape and elements (C order, little endian).

    Elements are compared by their bytes: 0.0 and -0.0 differ here, as two sets of weights do.
    A `StoreError` refuses arrays of Python objects.
    """
    if array.dtype.hasobject:
        raise StoreError(
            f"an array of dtype {array.dtype} holds Python objects, which have no bytes to compare",
            remedy="convert it to a numeric or fixed-width string dtype",
        )
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    digest = hashlib.sha256(f"{little.dtype.str}{little.shape}".encode())
    digest.update(little.reshape(-1).view(np.uint8).data if little.size else b"")
    return digest.hexdigest()


def fingerprint_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, read in pieces; `StoreError` names one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(
            f"cannot read {os.fspath(path)}: {error.strerror or error}",
            remedy="check that the file exists and that you may read it",
        ) from error


def fingerprint_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """One fingerprint for several files: their names and bytes.

    Neither the folder they lie in nor the order in which they are given matters, so a checkpoint
    that was moved or copied keeps its fingerprint.
    """
    return fingerprint(sorted((Path(path).name, fingerprint_file(path)) for path in paths))
