"""Weights in the files of other frameworks, as tensors under PyTorch's names and layout.

    format                           names -> PyTorch's
    TensorFlow 1 (.ckpt.index)       bert/encoder/layer_0/.../kernel -> bert.encoder.layer.0...
                                     output_weights, output_bias -> classifier.weight, .bias
    Flax (.msgpack)                  kernel, scale, embedding -> weight
    TensorFlow 2 (.h5)               layer_._0/.../kernel:0, gamma:0, beta:0, embeddings:0
    PyTorch state dict (.pt, .bin)   as they are

Kernels of dense layers are (in, out) in the first three and are transposed. Optimiser states are
left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landform.errors import CheckpointError, LandformError, MissingExtraError
from landform.store.atomic import file_errors
from landform.weights.tensor_bundle import read_bundle, read_variable

__all__ = ["FORMATS", "read_foreign"]

Tensors = dict[str, Tensor]

FORMATS = {
    ".index": "TensorFlow 1",
    ".msgpack": "Flax",
    ".h5": "TensorFlow 2",
    ".pt": "PyTorch state dict",
    ".pth": "PyTorch state dict",
    ".bin": "PyTorch state dict",
}
"""What a file is, by its ending."""

_OPTIMISER = re.compile(
    r"(^|/)(adam_[mv]|Adam(_\d+)?|AdamWeightDecayOptimizer(_\d+)?|LAMB\w*|Momentum)($|/)"
    r"|(^|/)(global_step|good_steps|bad_steps|loss_scale|beta[12]_power)"
    r"|_CHECKPOINTABLE_OBJECT_GRAPH"
)


def read_foreign(file: Path) -> Tensors:
    """The tensors of a file of one of the `FORMATS`. Raises `CheckpointError` naming the file."""
    return _READERS[FORMATS[file.suffix]](file)


def _read_tensorflow1(file: Path) -> Tensors:
    variables = read_bundle(file)
    kept = [v for name, v in variables.items() if not _OPTIMISER.search(name)]
    if kept and all(v.dtype is None or "/.ATTRIBUTES/" in v.name for v in kept):
        raise CheckpointError(
            f"{file} is a checkpoint of TensorFlow 2's objects, whose names say little",
            remedy="save the model with save_pretrained (tf_model.h5) and convert that",
        )
    return dict(_tensorflow_name(v.name, read_variable(v)) for v in kept)


def _read_flax(file: Path) -> Tensors:
    tree = _unpack(file)
    tree = tree.get("params", tree)
    return dict(_flax_name(path, value) for path, value in _leaves(file, tree, ()))


def _read_tensorflow2(file: Path) -> Tensors:
    try:
        import h5py
    except ImportError:
        raise MissingExtraError.of("h5py", "convert", f"reading {file}") from None
    found: Tensors = {}

    def visit(path: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        parts = path.split("/")
        roots = [k for k, part in enumerate(parts) if re.match(r"tf_\w+$", part)]
        if roots:
            parts = parts[roots[-1] + 1 :]
        name, tensor = _tensorflow_name("/".join(parts), torch.from_numpy(item[()]))
        found[name] = tensor

    try:
        with h5py.File(file, "r") as content:
            content.visititems(visit)
    except LandformError:
        raise
    except Exception as error:  # which types, depends on where it is damaged
        raise CheckpointError(
            f"{file} is truncated or not HDF5 ({' '.join(str(error).split())[:120]})",
            remedy="copy or download the file again",
        ) from error
    return found


def _read_torch(file: Path) -> Tensors:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # which types, depends on where it is damaged
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{file}: not a state dict, or truncated ({reason})",
            remedy="landform reads tensors only, never other objects: save model.state_dict()",
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(torch.is_tensor(v) for v in content.values()):
        raise CheckpointError(f"{file} is not a state dict", remedy="save model.state_dict()")
    return {str(k).removeprefix("module."): value for k, value in content.items()}


_READERS: dict[str, Callable[[Path], Tensors]] = {
    "TensorFlow 1": _read_tensorflow1,
    "Flax": _read_flax,
    "TensorFlow 2": _read_tensorflow2,
    "PyTorch state dict": _read_torch,
}


def _tensorflow_name(name: str, value: Tensor) -> tuple[str, Tensor]:
    """PyTorch's name and layout of a variable of TensorFlow 1 or 2."""
    parts = name.removesuffix(":0").split("/")
    *scope, last = parts
    scope = [re.sub(r"^layer_(?:\._)?(\d+)$", r"layer.\1", part) for part in scope]
    if last in ("output_weights", "output_bias"):
        # Google's classifier stands at the top; the heads of pre-training keep their scope.
        last = "weight" if last == "output_weights" else "bias"
        scope = scope or ["classifier"]
    elif last.endswith("_embeddings"):
        scope, last = [*scope, last], "weight"
    elif last == "kernel":
        last, value = "weight", value.t().contiguous() if value.dim() == 2 else value
    last = {"gamma": "weight", "beta": "bias", "embeddings": "weight"}.get(last, last)
    return ".".join([*scope, last]), value


def _flax_name(path: tuple[str, ...], value: Tensor) -> tuple[str, Tensor]:
    """PyTorch's name and layout of a parameter of Flax."""
    *scope, last = path
    if last == "kernel" and value.dim() == 2:
        value = value.t().contiguous()
    last = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(last, last)
    return ".".join([*scope, last]), value


# --- Flax's msgpack ------------------------------------------------------------------------------


def _unpack(file: Path) -> dict[str, Any]:
    """The tree of a msgpack file, with tensors as leaves."""
    try:
        import msgpack
    except ImportError:
        raise MissingExtraError.of("msgpack", "convert", f"reading {file}") from None
    with file_errors("read", file):
        data = file.read_bytes()
    try:
        tree = msgpack.unpackb(data, ext_hook=_extension, raw=False, strict_map_key=False)
    except Exception as error:  # of msgpack, and of numbers that do not fit their shape
        raise CheckpointError(
            f"{file} is truncated or not Flax's msgpack ({type(error).__name__}: {error})",
            remedy="copy or download the file again",
        ) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file} holds no tree of parameters")
    return tree


def _extension(code: int, data: bytes) -> Any:
    """Flax's own types: 1 is an array (shape, type, bytes), 3 a single number as such an array."""
    import msgpack

    if code not in (1, 3):
        raise ValueError(f"a value of the unknown kind {code}")
    shape, name, content = msgpack.unpackb(data, raw=True)
    dtype = getattr(torch, {"bool": "bool"}.get(name.decode(), name.decode()), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"an array of {name!r}")
    if not content:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(tuple(shape))


def _leaves(file: Path, tree: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Tensor]]:
    if isinstance(tree, Tensor):
        return [(path, tree)]
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file}: {'/'.join(path)} is {type(tree).__name__}, not an array")
    if "__msgpack_chunked_array__" in tree:  # Flax cuts what is larger than a gigabyte
        chunks = [tree["chunks"][str(k)].reshape(-1) for k in range(len(tree["chunks"]))]
        shape = [int(tree["shape"][str(k)]) for k in range(len(tree["shape"]))]
        return [(path, torch.cat(chunks).reshape(shape))]
    return [leaf for key, item in tree.items() for leaf in _leaves(file, item, (*path, str(key)))]
