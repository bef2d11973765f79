"""Reading TensorFlow 1 checkpoints (`NAME.index`, `NAME.data-00000-of-0000N`) without TensorFlow.

The index is a sorted table in the format of LevelDB: blocks of entries whose keys share prefixes,
an index block of handles (offset, size), and a footer of 48 bytes. Its keys are the names of the
variables, its values protocol buffers (BundleEntryProto) that say type, shape, shard, offset
and size; the empty key holds the number of shards (BundleHeaderProto). The shards are raw bytes.
Sources: tensorflow/core/protobuf/tensor_bundle.proto and the LevelDB table format.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from landform.errors import CheckpointError

__all__ = ["Variable", "read_bundle", "read_variable"]

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5  # one byte of compression, four of checksum

_TYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}


@dataclass(frozen=True)
class Variable:
    """Where a variable lies in the shards of a checkpoint."""

    name: str
    dtype: torch.dtype | None
    """None for a type that is not numbers (strings, say)"""
    shape: tuple[int, ...]
    shard: Path
    offset: int
    size: int
    sliced: bool
    """whether it is kept in several pieces"""


class _Field(NamedTuple):
    number: int
    value: int | bytes


def read_bundle(index: str | Path) -> dict[str, Variable]:
    """The variables that a `.index` file lists, by name. Raises `CheckpointError` naming it."""
    path = Path(index)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror}", remedy="check the path of the checkpoint"
        ) from error
    try:
        return dict(_variables(path, data))
    except (IndexError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated or not the index of a TensorFlow checkpoint ({error})",
            remedy="copy or download NAME.index and NAME.data-* again",
        ) from error


def read_variable(variable: Variable) -> torch.Tensor:
    """The numbers of a variable as a tensor of its shape. Raises `CheckpointError` naming it."""
    if variable.dtype is None or variable.sliced:
        what = "is kept in slices" if variable.sliced else "does not hold numbers"
        raise CheckpointError(
            f"{variable.shard}: variable {variable.name} {what}",
            remedy="save it again with TensorFlow (tf.train.Saver) in one piece",
        )
    expected = math.prod(variable.shape) * variable.dtype.itemsize
    try:
        with variable.shard.open("rb") as file:
            file.seek(variable.offset)
            data = bytearray(file.read(variable.size))
    except OSError as error:
        raise CheckpointError(
            f"cannot read {variable.shard}: {error.strerror}",
            remedy="the shards (NAME.data-*) belong next to NAME.index",
        ) from error
    if len(data) != expected:
        raise CheckpointError(
            f"{variable.shard} is truncated: variable {variable.name} has {len(data)} bytes, "
            f"expected {expected}",
            remedy="copy or download the checkpoint again",
        )
    if not data:
        return torch.empty(variable.shape, dtype=variable.dtype)
    return torch.frombuffer(data, dtype=variable.dtype).reshape(variable.shape)


def _variables(path: Path, data: bytes) -> Iterator[tuple[str, Variable]]:
    shards = 1
    for key, value in _table(data):
        if key == b"":
            header = _fields(value)
            shards = next((int(f.value) for f in header if f.number == 1), 1)
            if any(f.number == 2 and f.value for f in header):
                raise ValueError("its numbers are big-endian")
            continue
        yield key.decode(), _variable(path, key.decode(), value, shards)


def _variable(path: Path, name: str, value: bytes, shards: int) -> Variable:
    code = shard = offset = size = 0
    shape: tuple[int, ...] = ()
    sliced = False
    for number, content in _fields(value):
        if isinstance(content, bytes):
            if number == 2:
                shape = tuple(_dimension(f.value) for f in _fields(content) if f.number == 2)
            sliced = sliced or number == 7
        else:
            code = content if number == 1 else code
            shard = content if number == 3 else shard
            offset = content if number == 4 else offset
            size = content if number == 5 else size
    file = path.with_name(f"{path.stem}.data-{shard:05d}-of-{shards:05d}")
    return Variable(name, _TYPES.get(code), shape, file, offset, size, sliced)


def _dimension(message: int | bytes) -> int:
    if not isinstance(message, bytes):
        raise ValueError("a dimension is damaged")
    return next((int(f.value) for f in _fields(message) if f.number == 1), 0)


# --- the table -----------------------------------------------------------------------------------


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every entry, in order."""
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("the footer is missing")
    footer = data[-FOOTER:]
    _, at = _handle(footer, 0)  # of the meta index, which has nothing that is needed
    index, _ = _handle(footer, at)
    for _, value in _block(data, *index):
        yield from _block(data, *_handle(value, 0)[0])


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Entries of a block. Each key is given as the part it does not share with the one before."""
    whole = data[offset : offset + size + TRAILER]
    if len(whole) != size + TRAILER:
        raise ValueError("a block is missing")
    (checksum,) = struct.unpack("<I", whole[-4:])
    if checksum != _masked(_crc32c(whole[:-4])):
        raise ValueError("a block has another checksum than it was written with")
    kind = whole[size]
    if kind > 1:
        raise ValueError(f"a block is compressed in the unknown way {kind}")
    block = _unsnap(whole[:size]) if kind else whole[:size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise ValueError("an entry reaches beyond its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(message: bytes) -> list[_Field]:
    """The fields of a protocol buffer: integers as such, everything with a length as bytes."""
    found, at = [], 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(message[at : at + width], "little"), at + width
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if at > len(message):
            raise ValueError("a field is cut short")
        found.append(_Field(tag >> 3, value))
    return found


def _unsnap(data: bytes) -> bytes:
    """Undo Snappy: runs of literal bytes, and copies of what was written before."""
    length, at = _varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            size = tag >> 2
            if size >= 60:
                width = size - 59
                size, at = int.from_bytes(data[at : at + width], "little"), at + width
            out += data[at : at + size + 1]
            at += size + 1
            continue
        width = {1: 1, 2: 2, 3: 4}[tag & 3]
        back = int.from_bytes(data[at : at + width], "little")
        size = (tag >> 2) + 1
        if tag & 3 == 1:
            back, size = back | (tag >> 5) << 8, (tag >> 2 & 7) + 4
        at += width
        if not 0 < back <= len(out):
            raise ValueError("a compressed block is damaged")
        for _ in range(size):  # a copy may overlap what it writes
            out.append(out[-back])
    if len(out) != length:
        raise ValueError("a compressed block is cut short")
    return bytes(out)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def _masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
