"""Reading a pickle without running it: numbers, texts, containers and arrays, and nothing else.

A pickle is a program: it names functions, which the reader imports and calls. Here every name is
looked up in a short list of stand-ins of our own that build arrays from raw bytes; any other
name, `os.system` as much as a harmless class, is refused and said. So a file is data or an error.
Even so, a pickle is read only when the user asks for it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landform.errors import DataError
from landform.store.atomic import atomic_path, file_errors

__all__ = ["read_pickle", "write_pickle"]


def read_pickle(path: str | Path, *, allow_pickle: bool) -> Any:
    """The object in a pickle made of None, bool, int, float, str, bytes, list, tuple, dict and
    arrays of numbers (of numpy, or of torch, which become numpy's).

    Raises `DataError` where `allow_pickle` is false, for any other class or function (by its
    name), and for a file that is truncated or damaged.
    """
    file = Path(path)
    with file_errors("read", file), file.open("rb") as opened:
        start = opened.read(2)
    if not allow_pickle:
        # Protocols 2 and later begin so, and torch's zip archives; older ones with any letter.
        kind = (
            "is" if start.startswith((b"\x80", b"PK")) else "is of no kind read here, unless it is"
        )
        raise DataError(
            f"{file} {kind} a pickle, and pickles are read only when asked for",
            remedy="check that it is the file that is meant; then pass allow_pickle=True "
            "(--allow-pickle): landform admits only numbers, texts, containers and arrays in it",
        )
    with file_errors("read", file):
        content = file.read_bytes()
    try:
        _check_places(content)
        value = _plain(_Reader(io.BytesIO(content), file).load(), {})
    except DataError as error:
        if str(file) in error.what:
            raise
        raise DataError(f"{file}: {error.what}", remedy=error.remedy) from error
    except Exception as error:  # a damaged pickle can make any of them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{file} is truncated, damaged, or not a pickle ({reason[:120]})",
            remedy="copy or download the file again",
        ) from error
    return value


def _check_places(content: bytes) -> None:
    """Raise for a place to remember something at that is beyond any count of things in `content`.

    Python's reader makes a table as long as the highest place, whatever the file holds: five bytes
    would take 32 GiB of memory.
    """
    for operation, place, _ in pickletools.genops(content):
        puts = operation.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if puts and place is not None and place > len(content):
            raise DataError(f"the pickle numbers its parts up to {place}, which no file does")


class _Name(str):
    """Stands for a class that a pickle may name but not call."""

    def __call__(self, *_: Any) -> Any:
        raise DataError(f"the pickle calls {self!s}, which it may only name")


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, file: Path) -> None:
        super().__init__(stream)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        found = _ADMITTED.get((module, name))
        if found is None and module == "torch" and name in _STORAGES:
            return _Name(name)
        if found is None:
            raise DataError(
                f"{self.file}: the pickle asks for {module}.{name}, which is not a number, a text, "
                "a container or an array",
                remedy="do not read this file unless you know what it is; landform does not",
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"{self.file}: the pickle refers to something outside of it")


# --- the stand-ins -------------------------------------------------------------------------------


class _Type:
    """A type of numbers by its code, in the place of numpy's.

    numpy's own would take its whole state from the file, flags and sizes included.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code.lstrip("<>=|") not in _CODES:
            raise DataError(f"the pickle holds an array of {code!r}, expected numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array as the file tells it; numpy's is made of the bytes at the end (`_plain`)."""

    def __init__(self, *_: Any) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.value = _from_buffer(data, kind, shape, "F" if fortran else "C").value

    @classmethod
    def of(cls, value: NDArray[Any]) -> _Array:
        made = cls()
        made.value = value
        return made


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C") -> _Array:
    if not isinstance(data, bytes | bytearray):
        raise DataError("the pickle holds an array of objects, expected numbers")
    flat = np.frombuffer(data, dtype=kind.dtype)
    return _Array.of(flat.reshape(shape, order=order).copy())


def _scalar(kind: Any, data: Any) -> Any:
    return np.frombuffer(data, dtype=kind.dtype, count=1)[0].item()


def _encode(text: str, coding: str = "latin1") -> bytes:
    """How old protocols write bytes."""
    return text.encode("utf-8" if coding in ("utf-8", "utf8") else "latin1")


def _no_bytes() -> bytes:
    """How old protocols write bytes where there are none; called with anything it is an error."""
    return b""


def _storage(data: bytes) -> _Array:
    """The numbers of a torch storage, which its pickle holds as a file of torch's inside."""
    import torch

    held: Any = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    untyped = getattr(held, "_untyped_storage", held)  # the public way warns of itself
    flat = torch.tensor([], dtype=getattr(held, "dtype", torch.uint8)).set_(untyped)
    return _Array.of(flat.numpy().copy())


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> _Array:
    """An array of `size` whose entries lie `stride` apart from `offset` on."""
    held = storage.value
    if not isinstance(held, np.ndarray) or min((offset, *size, *stride), default=0) < 0:
        raise DataError("the pickle holds a tensor without its numbers")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 in size:
        return _Array.of(np.empty(size, held.dtype))
    if max(last + 1, math.prod(size)) > len(held):
        raise DataError(f"the pickle holds a tensor of {len(held)} numbers, expected {last + 1}")
    steps = [s * held.itemsize for s in stride]
    return _Array.of(np.lib.stride_tricks.as_strided(held[offset:], size, steps).copy())


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """The value with arrays in the place of their stand-ins, and nothing but plain types.

    `known`: what was made of the containers before, by identity. One that occurs twice is made
    once: lists of the same list twice, forty deep, would take for ever.
    """
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, dict | list | tuple):
        known[id(value)] = made = _container(value, known)
        return made
    if isinstance(value, _Array):
        if value.value is None:
            raise DataError("the pickle names an array without its numbers")
        return value.value
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return value
    raise DataError(f"the pickle holds {type(value).__name__.strip('_')} where a value belongs")


def _container(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, dict):
        return {_plain(key, known): _plain(item, known) for key, item in value.items()}
    items = [_plain(item, known) for item in value]
    return items if isinstance(value, list) else tuple(items)


_CODES = {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)} | {"b1"}
_STORAGES = {f"{kind}Storage" for kind in ("Float", "Double", "Half", "Long", "Int", "Untyped")}
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Name("numpy.ndarray"),
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer
for _kind in ("dict", "list", "tuple", "float", "int", "str", "bool", "complex"):
    _ADMITTED["builtins", _kind] = _Name(_kind)


# --- writing -------------------------------------------------------------------------------------


def write_pickle(path: str | Path, value: Any) -> None:
    """Write plain containers, numbers and arrays as a pickle that numpy 1 reads as well."""
    content = pickle.dumps(value, protocol=2)
    # numpy 2 renamed the module of its arrays; protocol 2 spells such names out, one a line.
    content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
