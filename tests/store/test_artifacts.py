from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landform.errors import StoreError
from landform.store import artifacts, atomic
from landform.store.artifacts import FORMAT, ArtifactStore, Contents, MemoryStore, Store
from landform.store.fingerprint import fingerprint

KEY = f"line/{fingerprint('a')}"


def contents(seed: int = 0) -> Contents:
    generator = np.random.default_rng(seed)
    return Contents(
        tensors={"losses": generator.random((4, 3)), "labels": np.arange(4)},
        tables={"curve": pd.DataFrame({"t": [0.0, 1.0], "data": ["a", "b"]})},
        records={"summary": {"gap": 0.25, "shape": (4, 3), "nan": float("nan")}},
    )


def same(one: Contents, other: Contents) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name in one.tensors:
        np.testing.assert_array_equal(one.tensors[name], other.tensors[name])
        assert one.tensors[name].dtype == other.tensors[name].dtype
    assert one.tables.keys() == other.tables.keys()
    for name in one.tables:
        pd.testing.assert_frame_equal(one.tables[name], other.tables[name])
    assert json.dumps(one.records) == json.dumps(other.records)


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(params=["disk", "disk-durable", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "memory":
        return MemoryStore()
    return Store.open(tmp_path / "study", durable=request.param == "disk-durable")


def test_both_stores_keep_the_same(store: ArtifactStore) -> None:
    assert isinstance(store, ArtifactStore)
    assert KEY not in store and 3 not in store
    store.write(KEY, contents(), provenance={"seed": 3, "path": Path("a/b")})
    assert KEY in store
    same(store.read(KEY), contents())
    manifest = store.manifest(KEY)
    assert manifest["kind"] == "line" and manifest["key"] == KEY
    assert manifest["provenance"] == {"seed": 3, "path": "a/b"}
    assert {"landform", "python", "torch", "transformers", "numpy"} <= manifest[
        "environment"
    ].keys()
    assert set(manifest["files"]) == {"tensors.safetensors", "curve.parquet", "summary.json"}
    store.remove(KEY)
    store.remove(KEY)
    assert KEY not in store


def test_the_first_of_two_writes_stays(store: ArtifactStore) -> None:
    store.write(KEY, contents(0))
    store.write(KEY, contents(1))
    same(store.read(KEY), contents(0))


def test_what_is_read_belongs_to_the_reader(store: ArtifactStore) -> None:
    given = contents()
    store.write(KEY, given)
    given.tensors["losses"][:] = 0
    read = store.read(KEY)
    read.tensors["losses"][:] = 0
    read.tables["curve"].loc[0, "t"] = 9
    read.records["summary"]["gap"] = 9
    same(store.read(KEY), contents())


def test_a_result_that_another_process_is_writing_has_no_name_yet(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Its folder is complete a moment before it is renamed: two studies at once met it."""
    store, seen = Store.open(tmp_path / "study"), []
    rename = os.rename

    def watched(source: Any, target: Any) -> None:
        folder = Path(source)
        if folder.parent.name == "results":
            assert (folder / "manifest.json").is_file()
            seen.append(store.results())
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    store.publish("connect", contents(0))
    assert seen == [()]
    store.publish("connect", contents(1))  # refused once; aside; in its place
    assert seen[1:] == [("connect",)] * 3


def test_a_result_is_read_while_another_takes_its_place(tmp_path: Path, monkeypatch: Any) -> None:
    """The manifest is the old one's, the files are the new one's: read again, not "damaged"."""
    store = Store.open(tmp_path / "study")
    store.publish("connect", contents(0))
    read, new = artifacts._read_manifest, [1]

    def overtaken(place: Path) -> Any:
        found = read(place)
        if new:
            store.publish("connect", contents(new.pop()))
        return found

    monkeypatch.setattr(artifacts, "_read_manifest", overtaken)
    same(store.published("connect"), contents(1))
    assert not new


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "killed"])
def test_a_result_is_read_between_the_two_renames(
    tmp_path: Path, monkeypatch: Any, finished: bool
) -> None:
    """The reader waits for the new one; of a process that was killed the old one comes back."""
    store = Store.open(tmp_path / "study")
    store.publish("connect", contents(0))
    folder = tmp_path / "study" / "results"
    aside = atomic._temporary(folder / "connect", "old")
    os.rename(folder / "connect", aside)
    assert store.results() == ("connect",)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if finished and len(slept) == 3:
            store.publish("connect", contents(1))
        if not finished and len(slept) == 3:
            monkeypatch.setattr(atomic, "_alive", lambda *_: False)

    monkeypatch.setattr(artifacts.time, "sleep", sleep)
    same(store.published("connect"), contents(int(finished)))
    assert len(slept) == 3


def test_results_are_replaced(store: ArtifactStore) -> None:
    assert store.results() == ()
    with pytest.raises(StoreError, match="holds no result 'connect'"):
        store.published("connect")
    store.publish("connect", contents(0), provenance={"seed": 1})
    store.publish("connect", Contents(records={"summary": 1}))
    store.publish("b", contents(2))
    assert store.results() == ("b", "connect")
    same(store.published("connect"), Contents(records={"summary": 1}))
    assert store.published_manifest("b")["key"] == "results/b"
    with pytest.raises(StoreError, match="known results: b, connect"):
        store.published("other")


def test_nothing_is_an_artifact_too(store: ArtifactStore) -> None:
    store.write(KEY, Contents())
    assert KEY in store
    same(store.read(KEY), Contents())


@pytest.mark.parametrize(
    "bad",
    [
        Contents(tables={"../x": pd.DataFrame({"a": [1]})}),
        Contents(records={"manifest": 1}),
        Contents(records={"x": object()}),
        Contents(tensors={"x": np.array(["a"])}),
        Contents(tables={"x": pd.DataFrame({"a": [1, "b"]})}),
    ],
)
def test_contents_that_cannot_be_kept_leave_nothing(store: ArtifactStore, bad: Contents) -> None:
    with pytest.raises(StoreError):
        store.write(KEY, bad)
    assert KEY not in store
    if isinstance(store, Store):
        assert os.listdir(store.path / "artifacts" / "line") == []


@pytest.mark.parametrize("key", ["line", "line/", "/x", "a/b/c", "../x", "line/..", "line/.tmp-x"])
def test_keys_cannot_leave_the_store(store: ArtifactStore, key: str) -> None:
    with pytest.raises(StoreError):
        store.write(key, contents())


def test_missing_artifact(store: ArtifactStore) -> None:
    with pytest.raises(StoreError, match="holds no artifact line/"):
        store.read(KEY)


# --- opening ------------------------------------------------------------------------------------


def test_a_study_is_opened_again(tmp_path: Path) -> None:
    Store.open(tmp_path / "deep" / "study").write(KEY, contents())
    before = snapshot(tmp_path)
    again = Store.open(tmp_path / "deep" / "study", create=False)
    same(again.read(KEY), contents())
    assert snapshot(tmp_path) == before
    about = json.loads((again.path / "study.json").read_text())
    assert about["format"] == FORMAT and about["created"].endswith("+00:00")


def test_an_empty_directory_becomes_a_study_a_full_one_does_not(tmp_path: Path) -> None:
    Store.open(tmp_path / "empty")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"not a study directory.*thesis\.tex"):
        Store.open(folder)
    assert os.listdir(folder) == ["thesis.tex"]


def test_no_study_where_none_may_be_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no study"):
        Store.open(tmp_path / "study", create=False)
    assert os.listdir(tmp_path) == []


def test_a_file_is_not_a_study(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        Store.open(tmp_path / "file")
    with pytest.raises(StoreError):
        Store.open(tmp_path / "file" / "study")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"what": "landform study", "format": FORMAT + 1, "landform": "9.9"}), "9.9"),
        ("{", "damaged"),
        ("", "damaged"),
        ("[]", "does not describe"),
        ('{"format": 1}', "does not describe"),
        ('{"what": "landform study"}', "does not describe"),
    ],
)
def test_other_study_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.json").write_text(text)
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match=message):
        Store.open(tmp_path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    # Permissions do not bind the superuser, so the refusal is played.
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    store = Store.open(tmp_path / "study")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(StoreError, match=r"(?s)cannot write.*what to do: .*choose a folder"):
            store.write(KEY, contents())
        with pytest.raises(StoreError, match="other"):
            Store.open(tmp_path / "other" / "study")
    assert KEY not in store
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(StoreError, match="cannot open the study"):
        Store.open(tmp_path / "study")


def test_a_file_in_the_way_of_artifacts(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "study")
    (store.path / "artifacts").write_text("in the way")
    with pytest.raises(StoreError, match="artifacts"):
        store.write(KEY, contents())
    assert KEY not in store


# --- damage -------------------------------------------------------------------------------------


def directory(store: Store) -> Path:
    return store.path / "artifacts" / KEY


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors", "curve.parquet"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_damaged_artifact_is_absent_named_and_repaired(
    tmp_path: Path, name: str, damage: str
) -> None:
    store = Store.open(tmp_path / "study")
    store.write(KEY, contents())
    file = directory(store) / name
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[:-7] if damage == "truncated" else b"")
    assert KEY not in store
    with pytest.raises(StoreError, match=name):
        store.read(KEY)
    store.write(KEY, contents())
    same(store.read(KEY), contents())
    assert os.listdir(store.path / "artifacts" / "line") == [KEY.partition("/")[2]]


@pytest.mark.parametrize("name", ["tensors.safetensors", "curve.parquet", "summary.json"])
def test_a_flipped_bit_is_found_by_reading(tmp_path: Path, name: str) -> None:
    store = Store.open(tmp_path / "study")
    store.write(KEY, contents())
    file = directory(store) / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    assert KEY in store
    with pytest.raises(StoreError, match=f"{name} is damaged.*SHA-256"):
        store.read(KEY)
    store.write(KEY, contents())
    same(store.read(KEY), contents())


def test_hashes_can_be_left_out(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "study")
    store.write(KEY, contents())
    file = directory(store) / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert store.read(KEY, verify=False).tensors["losses"].shape == (4, 3)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "study")
    store.write(KEY, contents())
    path = directory(store) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../../../secret.json"] = {"size": 1, "sha256": ""}
    path.write_text(json.dumps(manifest))
    assert KEY not in store
    with pytest.raises(StoreError, match="outside"):
        store.read(KEY)


@pytest.mark.parametrize("entry", [{}, {"size": 3}, 7, None])
def test_a_manifest_says_all_of_each_file(tmp_path: Path, entry: Any) -> None:
    """A flipped bit in "size" or "sha256" ended in a KeyError."""
    store = Store.open(tmp_path / "study")
    store.write(KEY, contents())
    path = store.path / "artifacts" / KEY / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["summary.json"] = entry
    path.write_text(json.dumps(manifest))
    assert KEY not in store
    with pytest.raises(StoreError, match=r"manifest\.json is damaged: .*summary\.json"):
        store.read(KEY)
    store.write(KEY, contents())
    same(store.read(KEY), contents())


def test_a_pickle_among_the_files_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    store = Store.open(tmp_path / "study")
    store.write(KEY, contents())
    for name in os.listdir(directory(store)):
        if name != "manifest.json":
            (directory(store) / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(StoreError):
        store.read(KEY)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("operation", ["write_bytes", "rename", "tensors"])
def test_a_full_disk_leaves_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    store = Store.open(tmp_path / "study")
    store.publish("final", contents(0))
    before = snapshot(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if operation == "tensors":
        monkeypatch.setattr(artifacts, "save_tensors", full)
    else:
        where: Any = os if operation == "rename" else Path
        monkeypatch.setattr(where, operation, full)
    for write in (
        lambda: store.write(KEY, contents(1)),
        lambda: store.publish("final", contents(1)),
    ):
        with pytest.raises(StoreError, match=r"(?s)No space left.*finished work is kept"):
            write()
    assert snapshot(tmp_path) == before
    assert KEY not in store
    same(store.published("final"), contents(0))


# --- company ------------------------------------------------------------------------------------


def test_many_writers_of_one_artifact_and_result(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "study")
    failures: list[BaseException] = []
    barrier = threading.Barrier(6)

    def write(seed: int) -> None:
        try:
            barrier.wait()
            for i in range(10):
                store.write(f"line/{i}", contents(0))
                store.publish("final", contents(seed))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for i in range(10):
        same(store.read(f"line/{i}"), contents(0))
    store.published("final")
    assert sorted(os.listdir(store.path / "artifacts" / "line")) == sorted(map(str, range(10)))
    assert os.listdir(store.path / "results") == ["final"]


def test_opening_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "study")
    store.write(KEY, contents())
    store.publish("final", contents())
    before = snapshot(tmp_path)
    ours = f".tmp-{atomic._host()}-{os.getpid()}-00000000-new-0-x"
    for folder in (store.path, store.path / "artifacts" / "line", store.path / "results"):
        shutil.copytree(directory(store), folder / ours)
    Store.open(tmp_path / "study")
    assert snapshot(tmp_path) == before


def test_the_same_work_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        store = Store.open(tmp_path / name)
        store.write(KEY, contents(), provenance={"b": 1, "a": 2})
        store.publish("final", contents())
        (store.path / "study.json").unlink()
        written.append(snapshot(store.path))
    assert written[0] == written[1]
