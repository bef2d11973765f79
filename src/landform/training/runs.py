"""Run directories: whole or absent, recognised by what made them, trained by one process at a time.

OUT/seed0/                   a finished run: model, tokenizer, landform.json, history.parquet
OUT/seed0/checkpoint-300/    the model after a chosen step
OUT/.seed0.partial/          a run under way: checkpoints kept so far, the state to resume from
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from landform.errors import ConfigError, StoreError
from landform.store.atomic import (
    atomic_directory,
    file_errors,
    read_json,
    read_table,
    write_json,
    write_table,
)
from landform.store.fingerprint import to_plain
from landform.store.locks import LOCK, held

__all__ = ["RECORD", "RunDirectory"]

RECORD = "landform.json"
HISTORY = "history.parquet"
FORMAT = 1


@dataclass(frozen=True)
class RunDirectory:
    """The place of one run and what is there."""

    path: Path

    @property
    def partial(self) -> Path:
        """Where the run is made; removed when it is finished."""
        return self.path.with_name(f".{self.path.name}.partial")

    # --- what is there ---------------------------------------------------------------------

    def record(self) -> dict[str, Any] | None:
        """The run's landform.json, or None where no finished run is."""
        if not (self.path / RECORD).is_file():
            return None
        value = read_json(self.path / RECORD)
        if (
            not isinstance(value, dict)
            or value.get("what") != "landform run"
            or not isinstance(value.get("files"), dict)
            or "key" not in value
        ):
            raise StoreError(
                f"{self.path / RECORD} does not describe a run", remedy="choose another out"
            )
        if value.get("format", FORMAT + 1) > FORMAT:
            raise StoreError(
                f"{self.path} was written by a newer landform "
                f"({value.get('environment', {}).get('landform')})",
                remedy="install that version or a newer one, or choose another out",
            )
        return value

    def holds(self, key: str, needs: Sequence[str] = ()) -> bool:
        """Whether the finished run `key` is here with all its files in their full size, those that
        it `needs` among them."""
        record = self.record()
        return (
            record is not None
            and record["key"] == key
            and all(name in record["files"] for name in needs)
            and all(
                (self.path / name).is_file() and (self.path / name).stat().st_size == size
                for name, size in record["files"].items()
            )
        )

    def has_model(self) -> bool:
        """Whether the finished run that is here kept its model."""
        record = self.record()
        names = () if record is None else record["files"]
        return any("/" not in name and name.endswith(".safetensors") for name in names)

    def history(self) -> pd.DataFrame:
        """The finished run's history."""
        return read_table(self.path / HISTORY)

    def check(self, key: str, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Raise when something else than the run `key` occupies the place."""
        with file_errors("look at", self.path):
            if self.path.exists() and not self.path.is_dir():
                raise StoreError(f"{self.path} is a file", remedy="choose another out")
            occupied = self.path.is_dir() and any(self.path.iterdir())
        if not occupied:
            return
        record = self.record()
        if record is None:
            raise StoreError(
                f"{self.path} holds other things than a run ({RECORD} is missing)",
                remedy="choose another out, or move that directory away",
            )
        if record["key"] == key or overwrite:
            return
        raise ConfigError(
            f"{self.path} is a finished run of other options: {_difference(record, identity)}",
            remedy="choose another out (or prefix), or pass overwrite to replace it",
        )

    # --- making it -------------------------------------------------------------------------

    @contextmanager
    def claimed(self, key: str) -> Iterator[Path]:
        """The partial directory, held by this process alone; emptied if it was another run's."""
        with held(self.partial, f"another process is training {self.path}"):
            if _read_key(self.partial / "run.json") != key:
                for entry in self.partial.iterdir():
                    if entry.name != LOCK:
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                write_json(self.partial / "run.json", {"key": key})
            yield self.partial

    def finish(self, record: Mapping[str, Any], history: pd.DataFrame, save: Any) -> None:
        """Put the finished run in place: `save(directory)` writes its model files.

        Checkpoints are linked, not moved: a kill in between leaves them to be linked again.
        """
        with atomic_directory(self.path, durable=True) as fresh:
            save(fresh)
            for kept in sorted(self.partial.glob("checkpoint-*")):
                shutil.copytree(kept, fresh / kept.name, copy_function=_link)
            write_table(fresh / HISTORY, history)
            files = {
                path.relative_to(fresh).as_posix(): path.stat().st_size
                for path in sorted(fresh.rglob("*"))
                if path.is_file()
            }
            about = {"what": "landform run", "format": FORMAT, **record, "files": files}
            write_json(fresh / RECORD, about)
        self.discard()

    def discard(self) -> None:
        """Remove the partial directory."""
        shutil.rmtree(self.partial, ignore_errors=True)


def _read_key(path: Path) -> str | None:
    try:
        value = read_json(path)
    except StoreError:
        return None
    return value.get("key") if isinstance(value, dict) else None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _difference(record: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """What differs between the run that is there and the one asked for, by name."""
    there = dict(_flat(record.get("identity", {})))
    here = dict(_flat(to_plain(identity)))
    faults = [
        f"{name} was {_short(there.get(name))}, now {_short(here.get(name))}"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    ]
    if not faults:
        version = record.get("environment", {}).get("landform")
        return f"it was made by landform {version}"
    more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
    return "; ".join(faults[:6]) + more


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _short(value: Any) -> str:
    text = str(value)
    # Fingerprints are told apart by their beginnings.
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text[:60]
