"""HDF5 files of random surfaces, as the guided-dropout code writes them (Sharma et al. 2024).

A surface file holds

    dir_file        text: the name of the file with the directions
    xcoordinates    (n,) coordinates of the columns
    ycoordinates    (m,) coordinates of the rows
    train_loss      (m n,) losses, x fastest: the one at (x_i, y_j) has the number j n + i

and the file with the directions two groups, `xdirection` and `ydirection`, of data sets named by
the number of the tensor in the order of the model's parameters. Older programs of this family
(Li et al. 2018) write `train_loss` as an (m, n) array: it is read as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from landform.errors import ConfigError, DataError, MissingExtraError, NonFiniteError, StoreError
from landform.geometry.masks import FisherLike, masks_of
from landform.geometry.surface import Surface, SurfaceConfig, SurfaceStudy
from landform.store.atomic import atomic_path, file_errors
from landform.weights.checkpoint import Checkpoint, CheckpointLike, load_model, resolve
from landform.weights.points import Member
from landform.weights.space import ParameterSpace

__all__ = ["is_hdf5", "read_landscape", "write_directions", "write_landscape"]

_SURFACE = ("xcoordinates", "ycoordinates", "train_loss")
_GROUPS = ("xdirection", "ydirection")
REMEDY = "a file with xcoordinates, ycoordinates and train_loss is expected"


def is_hdf5(path: str | Path) -> bool:
    """Whether a file is meant to be HDF5, by its name."""
    return Path(path).suffix.lower() in (".h5", ".hdf5")


@contextmanager
def _opened(file: Path, mode: str) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise MissingExtraError.of("h5py", "convert", f"HDF5 ({file})") from None
    if mode == "r":
        with file_errors("read", file):
            file.open("rb").close()
    try:
        with h5py.File(file, mode) as content:
            yield content
    except (OSError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        if mode != "r":
            raise StoreError(
                f"cannot write {file}: {reason}", remedy="check the path and the disk"
            ) from error
        raise DataError(
            f"{file} is truncated, damaged or not HDF5 ({reason})",
            remedy="copy or download the file again",
        ) from error


def read_landscape(
    path: str | Path, *, name: str | None = None, kind: str = "masked-lm"
) -> Surface:
    """The `Surface` in `path`, a file of the guided-dropout code.

    The model stands at (0, 0), which their grid has no cell at, under `name` (default: that of the
    file); `kind` of the task says the unit of the loss. Intervals and the length of the unit are
    NaN: the file does not tell them. Raises `DataError` for a file that is damaged, or holds
    something else, and `NonFiniteError` for a loss that is no number.
    """
    file = Path(path)
    with _opened(file, "r") as content:
        missing = [key for key in _SURFACE if key not in content]
        if missing:
            raise DataError(_not_a_surface(file, content, missing[0]), remedy=REMEDY)
        x, y, losses = (_numbers(file, content[key], key) for key in _SURFACE)
        directions = _text(content)
    _check_axes(file, x, y)
    if losses.size != len(x) * len(y) or losses.shape not in ((losses.size,), (len(y), len(x))):
        raise DataError(
            f"{file}: train_loss has shape {losses.shape}, expected ({len(x) * len(y)},), one for "
            f"each of {len(x)} by {len(y)} points",
            remedy="the surface is truncated, or of another program: compute it again",
        )
    losses = losses.reshape(-1)
    if not np.isfinite(losses).all():
        k = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise NonFiniteError(
            f"{file}: the loss at ({x[k % len(x)]:.4g}, {y[k // len(x)]:.4g}) is {losses[k]}"
        )
    title = name or file.stem
    across, along = np.meshgrid(x, y)
    columns = {"data": "train_loss", "x": across.ravel(), "y": along.ravel(), "loss": losses}
    table = pd.DataFrame({**columns, "loss_low": np.nan, "loss_high": np.nan, "evaluated": True})
    return Surface(
        names=(title,),
        data=("train_loss",),
        kind=kind,
        mode="random",
        x=tuple(map(float, x)),
        y=tuple(map(float, y)),
        unit=float("nan"),
        table=table,
        points=pd.DataFrame([{"name": title, "x": 0.0, "y": 0.0}]),
        evaluations=len(losses),
        provenance={"imported": [str(path)], "dir_file": directions},
    )


def _not_a_surface(file: Path, content: Any, missing: str) -> str:
    if set(_GROUPS) <= set(content):
        return f"{file} holds directions, no surface"
    held = ", ".join(list(content)[:5]) or "nothing"
    return f"{file} has no {missing}: it holds {held}"


def _numbers(file: Path, item: Any, key: str) -> np.ndarray:
    value = np.asarray(item[()]) if hasattr(item, "shape") else np.empty(0, dtype=object)
    if value.dtype.kind not in "iuf":
        raise DataError(f"{file}: {key} does not hold numbers", remedy=REMEDY)
    return value.astype(np.float64)


def _text(content: Any) -> str | None:
    item = content.get("dir_file")
    if item is None or not hasattr(item, "shape") or item.shape != ():
        return None
    value = item[()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _check_axes(file: Path, x: np.ndarray, y: np.ndarray) -> None:
    for key, axis in zip(_SURFACE, (x, y), strict=False):
        if axis.ndim != 1 or len(axis) < 2 or not np.isfinite(axis).all():
            raise DataError(f"{file}: {key} is no list of coordinates", remedy=REMEDY)
        if (np.diff(axis) <= 0).any():
            raise DataError(f"{file}: {key} does not rise", remedy=REMEDY)


# --- writing ------------------------------------------------------------------------------------


def write_landscape(
    surface: Surface,
    path: str | Path,
    *,
    data: str | None = None,
    dir_file: str | None = None,
) -> Path:
    """Write a random surface as such a file, in place of one of the same name.

    `data` is the data set whose loss is written (default: the first); `dir_file` the name of the
    file with the directions (default: that of `directions_name`). Raises `ConfigError` for a
    plane through three models.
    """
    target = Path(path)
    if surface.mode != "random":
        raise ConfigError(
            "the surface is a plane through models, and the format is one of directions around one",
            remedy="export it as pickles (landform export surface --as pickle)",
        )
    losses = surface.grid("loss", data).astype(np.float64).ravel()
    with atomic_path(target) as place, _opened(place, "w") as content:
        content["dir_file"] = dir_file or directions_name(target)
        content["xcoordinates"] = np.array(surface.x, dtype=np.float64)
        content["ycoordinates"] = np.array(surface.y, dtype=np.float64)
        content["train_loss"] = losses
    return target


def directions_name(path: Path) -> str:
    """`dir_seed0.h5` of `surf_seed0.h5`; `dir_` before any other name."""
    return f"dir_{path.name.removeprefix('surf_')}"


def write_directions(
    surface: Surface,
    path: str | Path,
    *,
    around: CheckpointLike,
    fisher: FisherLike | None = None,
) -> Path:
    """Write the two directions of a random surface, drawn again from their seeds.

    `around` is the model of the surface and `fisher` the Fisher of its mask, where it has one: both
    must be the same as then (`ConfigError` otherwise). Tensors are float32, in the order of the
    model's parameters, masked ones 0 where they are not moved.
    """
    centre = resolve(around)
    members = _members(surface, centre, fisher)
    model: Any = load_model(centre, surface.kind)
    space = ParameterSpace.of(model)
    point = space.flatten(model)
    # Drawn before the file is opened: what fails here is no fault of the disk.
    drawn = [space.unflatten(member.flat(space, lambda _: point)) for member in members]
    target = Path(path)
    with atomic_path(target) as place, _opened(place, "w") as content:
        for group, made in zip(_GROUPS, drawn, strict=True):
            held = content.create_group(group)
            for number, tensor in enumerate(made.values()):
                held[str(number)] = tensor.float().cpu().numpy()
    return target


def _members(surface: Surface, centre: Checkpoint, fisher: FisherLike | None) -> Sequence[Member]:
    """The directions of a surface, as its provenance tells them."""
    told: Mapping[str, Any] = surface.provenance
    if surface.mode != "random" or "pair" not in told:
        raise ConfigError(
            "only random surfaces that landform made tell how their directions were drawn",
            remedy="make one: landform surface --around CHECKPOINT --directions random",
        )
    if told["weights"] != [centre.fingerprint]:
        raise ConfigError(
            f"the surface is not around {centre.spec}, but around other weights "
            f"({told['weights'][0][:12]}, not {centre.fingerprint[:12]})",
            remedy=f"name the checkpoint {surface.names[0]} that it was made of",
        )
    options = {**told["config"], "mask": tuple(told["config"]["mask"])}
    config = SurfaceConfig.parse_kept(options, where="the surface's config")
    pair = int(told["pair"])
    masks = masks_of(centre, config.replace(pairs=pair + 1), fisher, config.seed)
    study = SurfaceStudy.around(centre, (), config, masks, pair)
    if (study.told or {}).get("values") != (told.get("fisher") or {}).get("values"):
        raise ConfigError(
            "the Fisher is not the one that the surface was masked by",
            remedy=f"name the one of {(told['fisher'] or {}).get('checkpoint')}",
        )
    return study.work.made
