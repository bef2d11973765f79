"""Opening studies, and the results kept in them by name for people and for `landform report`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from landform.errors import StoreError
from landform.results import Result, from_parts, to_parts
from landform.store.artifacts import ArtifactStore, Contents, MemoryStore, Store

__all__ = ["kept_name", "kept_names", "load_results", "open_store", "publish", "slug"]


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


def publish(store: ArtifactStore, name: str, result: Result) -> str:
    """Keep `result` under `results/<name>/`: its tables as Parquet, the rest as JSON.

    Returns the name, which is `name` unless a result about something else stands there
    (`kept_name`): evaluations of a/seed0 and b/seed0 do not replace one another.
    """
    name = kept_name(store, name, result)
    tables, record = to_parts(result)
    provenance: dict[str, Any] = getattr(result, "provenance", {})
    store.publish(name, Contents(tables=tables, records={"result": record}), provenance=provenance)
    return name


def kept_name(store: ArtifactStore, name: str, result: Result) -> str:
    """The name under which a store keeps `result`, before and after it does.

    That is `name` where nothing stands there, or a result about the same checkpoints; else `name`
    with `+` and a few digits of the hash of those of `result`.
    """
    if not result.subject or name not in store.results():
        return name
    try:
        contents = store.published(name)
        other = from_parts(contents.tables, contents.records["result"])
    except (StoreError, KeyError):  # of another version, or damaged: it may go
        return name
    if _same_subject(result, other):
        return name
    digits = hashlib.sha256("\n".join(result.subject).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[:121]}+{digits[:6]}"


def kept_names(store: ArtifactStore, names: Sequence[str], found: Any) -> tuple[str, ...]:
    """`kept_name` of one result under several names, or of as many results as names.

    Of what is found beside results (a fitted path, say) nothing is asked.
    """
    items = found if isinstance(found, tuple) else (found,)
    results = [item for item in items if isinstance(item, Result)]
    if not results:
        return tuple(names)
    if len(results) != len(names):
        results = results[:1] * len(names)
    return tuple(kept_name(store, n, result) for n, result in zip(names, results, strict=True))


def _same_subject(one: Result, other: Any) -> bool:
    """Whether two results are about the same checkpoints, however those were named.

    A name may begin at another directory (runs/seed0, or its whole path), the same weights may
    have moved, and what was named by a whole path that is gone has moved as well.
    """
    mine, theirs = one.subject, getattr(other, "subject", ())
    if not theirs:  # of a version that did not say
        return True
    if one.subject_weights is not None and one.subject_weights == other.subject_weights:
        return True
    return len(mine) == len(theirs) and all(map(_same_place, mine, theirs))


def _same_place(mine: str, theirs: str) -> bool:
    parts = [PurePath(os.path.normpath(name)).parts for name in (mine, theirs)]
    depth = min(map(len, parts))
    if parts[0][-depth:] == parts[1][-depth:]:
        return True
    before = Path(theirs if Path(theirs).exists() else theirs.rpartition("@")[0] or theirs)
    return before.is_absolute() and not before.exists()


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
