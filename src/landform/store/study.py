"""Opening studies, and the results kept in them by name for people and for `landform report`."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from landform.errors import StoreError
from landform.results import Result, from_parts, to_parts
from landform.store.artifacts import ArtifactStore, Contents, MemoryStore, Store

__all__ = ["load_results", "open_store", "publish", "slug"]


def open_store(store: str | os.PathLike[str] | ArtifactStore | None) -> ArtifactStore:
    """The store meant: itself, the study directory at a path (made if need be), or memory."""
    if store is None:
        return MemoryStore()
    if isinstance(store, str | os.PathLike):
        return Store.open(store)
    return store


def slug(*parts: str) -> str:
    """A file name made of the words of `parts`; parts that differ give names that differ.

    Parts are joined by `-`, and a `-` inside a part is doubled: `("a-b", "c")` is `a--b-c` and
    `("a", "b-c")` is `a-b--c`. A part that a file name cannot hold (spaces, slashes, letters with
    accents, great length) is written with `_` in their place, and `+` and a few digits of its hash
    keep it apart from others that would look the same: `runs/seed0` is `runs_seed0+bbc6ac`.
    """
    return "-".join(map(_slug, parts))


def _slug(part: str) -> str:
    if len(part) <= 36 and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<!-)", part):
        return part.replace("-", "--")
    plain = re.sub(r"[^A-Za-z0-9.]+", "_", part)[:24].strip("_.")
    digits = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{plain or 'x'}+{digits}"


def publish(store: ArtifactStore, name: str, result: Result) -> None:
    """Keep `result` under `results/<name>/`: its tables as Parquet, the rest as JSON."""
    tables, record = to_parts(result)
    provenance: dict[str, Any] = getattr(result, "provenance", {})
    store.publish(name, Contents(tables=tables, records={"result": record}), provenance=provenance)


def load_results(store: ArtifactStore) -> dict[str, Any]:
    """Every result kept in a study, by name; `StoreError` names the first that cannot be read."""
    results = {}
    for name in store.results():
        contents = store.published(name)
        if "result" not in contents.records:
            raise StoreError(
                f"results/{name} holds no result of landform",
                remedy=f"remove results/{name}, or run the command that made it again",
            )
        results[name] = from_parts(contents.tables, contents.records["result"])
    return results
