"""Weights of a BERT model in other frameworks' files, written for tests without the frameworks.

The layouts are written down here a second time, from their descriptions: what is read must not be
the mirror of what the reader believes.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

State = dict[str, Any]


def google_variables(state: State) -> dict[str, np.ndarray]:
    """A PyTorch BERT state dict under the names and in the layout of Google's original."""
    found = {}
    for name, tensor in state.items():
        value = tensor.detach().numpy()
        parts = re.sub(r"\.layer\.(\d+)", r".layer_\1", name).split(".")
        *scope, last = parts
        if scope == ["classifier"]:
            found["output_weights" if last == "weight" else "output_bias"] = value
        elif scope[-1].endswith("_embeddings"):
            found["/".join(scope)] = value
        elif scope[-1] == "LayerNorm":
            found["/".join([*scope, "gamma" if last == "weight" else "beta"])] = value
        elif last == "weight":
            found["/".join([*scope, "kernel"])] = np.ascontiguousarray(value.T)
        else:
            found["/".join(parts)] = value
    return found


def flax_tree(state: State) -> dict[str, Any]:
    """A PyTorch BERT state dict as Flax's nested parameters."""
    tree: dict[str, Any] = {}
    for name, tensor in state.items():
        value = tensor.detach().numpy()
        *scope, last = name.split(".")
        if last == "weight" and scope[-1].endswith("_embeddings"):
            last = "embedding"
        elif last == "weight" and scope[-1] == "LayerNorm":
            last = "scale"
        elif last == "weight":
            last, value = "kernel", np.ascontiguousarray(value.T)
        here = tree
        for part in scope:
            here = here.setdefault(part, {})
        here[last] = value
    return tree


def write_flax(path: Path, tree: dict[str, Any]) -> Path:
    import msgpack

    def pack(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            content = (value.shape, value.dtype.name, value.tobytes("C"))
            return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))
        raise TypeError(type(value))

    path.write_bytes(msgpack.packb(tree, default=pack, strict_types=True))
    return path


# --- TensorFlow's bundles ------------------------------------------------------------------------

CODES = {"float32": 1, "int32": 3, "int64": 9, "float16": 19}


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def crc32c(data: bytes) -> int:
    """Bit by bit: polynomial 0x1EDC6F41, reflected."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def snappy(data: bytes) -> bytes:
    """Literals, and a copy where the four bytes at hand stand a little before."""
    out, at, pending = bytearray(varint(len(data))), 0, bytearray()

    def flush() -> None:
        while pending:
            piece = bytes(pending[:256])
            del pending[:256]
            size = len(piece) - 1
            out.extend([size << 2] if size < 60 else [60 << 2, size])
            out.extend(piece)

    while at < len(data):
        back = data.rfind(data[at : at + 4], max(0, at - 1000), at) if at + 4 <= len(data) else -1
        if back < 0:
            pending.append(data[at])
            at += 1
            continue
        flush()
        offset = at - back
        out.extend([(4 - 4) << 2 | 1 | offset >> 8 << 5, offset & 255])
        at += 4
    flush()
    return bytes(out)


class Table:
    """A LevelDB table: sorted entries in blocks, an index of the blocks, a footer."""

    def __init__(self, compress: bool) -> None:
        self.data = bytearray()
        self.compress = compress

    def block(self, entries: list[tuple[bytes, bytes]], interval: int = 4) -> bytes:
        """Write a block; its handle."""
        body, restarts, last = bytearray(), [], b""
        for k, (key, value) in enumerate(entries):
            shared = 0
            if k % interval == 0:
                restarts.append(len(body))
            else:
                while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                    shared += 1
            body += varint(shared) + varint(len(key) - shared) + varint(len(value))
            body += key[shared:] + value
            last = key
        restarts = restarts or [0]
        body += b"".join(struct.pack("<I", r) for r in restarts) + struct.pack("<I", len(restarts))
        content = (snappy(bytes(body)) if self.compress else bytes(body)) + bytes([self.compress])
        size, offset = len(content) - 1, len(self.data)
        checksum = crc32c(content)
        masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
        self.data += content + struct.pack("<I", masked)
        return varint(offset) + varint(size)

    def finish(self, entries: list[tuple[bytes, bytes]], per_block: int) -> bytes:
        index = []
        for start in range(0, len(entries), per_block):
            chunk = entries[start : start + per_block]
            index.append((chunk[-1][0], self.block(chunk)))
        handles = self.block([]) + self.block(index)
        return bytes(self.data) + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_bundle(
    prefix: Path,
    variables: dict[str, np.ndarray],
    *,
    shards: int = 1,
    compress: bool = False,
    per_block: int = 7,
    extra: bytes = b"",
) -> Path:
    """`prefix`.index and its shards; the path of the index."""
    contents = [bytearray() for _ in range(shards)]
    entries = [(b"", field(1, shards) + field(3, field(1, 1)))]
    for k, name in enumerate(sorted(variables)):
        value, shard = variables[name], k % shards
        shape = b"".join(field(2, field(1, n) if n else b"") for n in value.shape)
        message = field(1, CODES[value.dtype.name]) + field(2, shape)
        message += field(3, shard) + field(4, len(contents[shard])) + field(5, value.nbytes)
        message += varint(6 << 3 | 5) + struct.pack("<I", 0) + extra
        contents[shard] += value.tobytes()
        entries.append((name.encode(), message))
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(Table(compress).finish(entries, per_block))
    for k, content in enumerate(contents):
        path = prefix.with_name(f"{prefix.name}.data-{k:05d}-of-{shards:05d}")
        path.write_bytes(bytes(content))
    return index
