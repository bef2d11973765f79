from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from landform.errors import StoreError
from landform.store import atomic
from landform.store.atomic import (
    atomic_directory,
    atomic_path,
    read_json,
    read_table,
    read_tensors,
    remove_leftovers,
    write_json,
    write_table,
    write_tensors,
)
from landform.store.locks import held

TABLE = pd.DataFrame({"t": [0.0, 0.5, 1.0], "data": ["a", "b", None], "n": [1, 2, 3]})
TENSORS: dict[str, Any] = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.float64(2.5)}


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, durable: bool) -> None:
    write_json(tmp_path / "deep" / "r.json", {"a": (1, float("inf"))}, durable=durable)
    write_table(tmp_path / "t.parquet", TABLE.set_index("n"), durable=durable)
    write_tensors(tmp_path / "x.safetensors", TENSORS, durable=durable)
    assert read_json(tmp_path / "deep" / "r.json") == {"a": [1, float("inf")]}
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), TABLE.set_index("n"))
    back = read_tensors(tmp_path / "x.safetensors")
    assert back["x"].tolist() == TENSORS["x"].tolist() and back["x"].dtype == np.float32
    assert back["s"].shape == () and back["s"] == 2.5
    assert sorted(os.listdir(tmp_path)) == ["deep", "t.parquet", "x.safetensors"]


def test_tensors_keep_their_layout(tmp_path: Path) -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)
    write_tensors(tmp_path / "x", {"t": array.T, "s": array[:, ::2], "e": array[:0]})
    back = read_tensors(tmp_path / "x")
    assert back["t"].tolist() == array.T.tolist()
    assert back["s"].tolist() == array[:, ::2].tolist()
    assert back["e"].shape == (0, 4)


@pytest.mark.parametrize("kind", [atomic_path, atomic_directory])
def test_a_failure_leaves_the_old_and_no_temporary(tmp_path: Path, kind: Any) -> None:
    target = tmp_path / "target"
    if kind is atomic_path:
        target.write_text("old")
    else:
        target.mkdir()
        (target / "old").touch()
    with pytest.raises(KeyboardInterrupt), kind(target) as temporary:
        (temporary if kind is atomic_path else temporary / "new").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["target"]
    assert target.read_text() == "old" if kind is atomic_path else os.listdir(target) == ["old"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors makes files of mode 0600: nobody else could read a study on a shared disk."""
    from safetensors.numpy import save_file

    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "x.safetensors", TENSORS)
        write_json(tmp_path / "r.json", {})
        with atomic_directory(tmp_path / "run") as temporary:
            (temporary / "checkpoint-3").mkdir()
            save_file({"x": TENSORS["x"]}, temporary / "checkpoint-3" / "model.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == dict.fromkeys(
        ("x.safetensors", "r.json", "model.safetensors"), mode
    )


def test_a_directory_is_replaced_or_kept(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for text in ("1", "2"):
        with atomic_directory(target) as temporary:
            (temporary / "f").write_text(text)
            (temporary / text).touch()
    assert sorted(os.listdir(target)) == ["2", "f"]
    with atomic_directory(target, keep=lambda path: (path / "2").exists()) as temporary:
        (temporary / "f").write_text("3")
    assert (target / "f").read_text() == "2"
    assert os.listdir(tmp_path) == ["target"]


def test_a_file_in_the_way_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    with (
        pytest.raises(StoreError, match="target"),
        atomic_directory(tmp_path / "target") as temporary,
    ):
        (temporary / "f").touch()
    assert (tmp_path / "target").read_text() == "mine"
    assert os.listdir(tmp_path) == ["target"]
    with pytest.raises(StoreError, match="a file is in the way"):
        write_json(tmp_path / "target" / "x.json", 1)


@pytest.mark.parametrize(
    ("patch", "write"),
    [
        ("os.replace", lambda p: write_json(p, 1)),
        ("os.replace", lambda p: write_tensors(p, TENSORS)),
        ("pathlib.Path.write_bytes", lambda p: write_json(p, 1)),
        ("pathlib.Path.write_bytes", lambda p: write_table(p, TABLE)),
        ("os.fsync", lambda p: write_json(p, 1, durable=True)),
    ],
)
def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: str, write: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(patch, full_disk)
    with pytest.raises(StoreError, match=r"(?s)out\.x.*No space left.*free some disk space"):
        write(tmp_path / "out.x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_write_cut_short_by_the_system_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files cuts real writes short, inside safetensors too.
    code = """
        import resource, sys
        from pathlib import Path
        import numpy as np, pandas as pd
        from landform.errors import StoreError
        from landform.store.atomic import write_json, write_table, write_tensors
        folder, big = Path(sys.argv[1]), np.random.default_rng(0).random(40_000)
        write_table(folder / "warm", pd.DataFrame({"b": [1.0]})); (folder / "warm").unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for write, value in (
            (write_tensors, {"big": big}), (write_table, pd.DataFrame({"b": big})),
            (write_json, big.tolist()),
        ):
            try:
                write(folder / "out", value)
            except StoreError as error:
                assert "ulimit" in str(error), error
            else:
                raise SystemExit(f"{write} said nothing")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
@pytest.mark.parametrize(
    ("read", "write"),
    [
        (read_json, lambda p: write_json(p, {"a": [1, 2]})),
        (read_table, lambda p: write_table(p, TABLE)),
        (read_tensors, lambda p: write_tensors(p, TENSORS)),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, read: Any, write: Any, damage: str) -> None:
    path = tmp_path / "file.x"
    write(path)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "truncated": data[: len(data) - 5], "text": b"not this\xff"}[damage]
        )
    with pytest.raises(StoreError, match=r"file\.x"):
        read(path)


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="'x' is object"):
        write_tensors(tmp_path / "t", {"x": np.array(["a", None])})
    with pytest.raises(StoreError, match=r"out.*mixed"):
        write_table(tmp_path / "out", pd.DataFrame({"mixed": [1, "a"]}))
    with pytest.raises(StoreError, match=r"out\['a'\] is a builtins.object"):
        write_json(tmp_path / "out", {"a": object()})
    assert os.listdir(tmp_path) == []


def leave(tmp_path: Path, pid: int, role: str, name: str, host: str | None = None) -> Path:
    path = tmp_path / f".tmp-{host or atomic._host()}-{pid}-00000000-{role}-0-{name}"
    path.mkdir()
    (path / "half").touch()
    return path


def test_left_overs_go_when_their_process_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = leave(tmp_path, gone.pid, "new", "a")
    earlier = leave(tmp_path, os.getpid(), "new", "a")  # an earlier process had our number
    living = leave(tmp_path, os.getppid(), "new", "a")
    foreign = leave(tmp_path, gone.pid, "new", "a", host="ffffffff")
    old_foreign = leave(tmp_path, gone.pid, "new", "b", host="ffffffff")
    os.utime(old_foreign, (0, 0))
    (tmp_path / ".tmp-of-somebody-else").touch()
    mine = atomic._temporary(tmp_path / "mine", "new")
    mine.mkdir()
    assert set(remove_leftovers(tmp_path)) == {dead, earlier, old_foreign}
    assert mine.exists()
    assert living.exists() and foreign.exists() and (tmp_path / ".tmp-of-somebody-else").exists()


@pytest.mark.parametrize("kind", [atomic_path, atomic_directory])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, kind: Any) -> None:
    """Beside a study nobody did: every kill of `fisher --out` left a file for good."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(tmp_path, gone.pid, "new", "result")
    with kind(tmp_path / "result") as temporary:
        (temporary if kind is atomic_path else temporary / "f").touch()
    assert os.listdir(tmp_path) == ["result"]


def test_a_directory_moved_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(tmp_path, gone.pid, "old", "result")
    (tmp_path / "other").mkdir()
    leave(tmp_path, gone.pid, "old", "other")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["other", "result"]
    assert os.listdir(tmp_path / "result") == ["half"] and os.listdir(tmp_path / "other") == []


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": '])
def test_json_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(StoreError, match=r"r\.json is damaged or not a JSON file"):
        read_json(tmp_path / "r.json")


def test_one_process_holds_a_directory(tmp_path: Path) -> None:
    """The lock goes with the process, and with the directory that is removed under it."""
    place = tmp_path / "a.partial"
    with held(place, "busy"):
        with pytest.raises(StoreError, match="busy"), held(place, "busy"):
            pass
        code = f"from landform.store.locks import held\nwith held({str(place)!r}, 'busy'): pass"
        other = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        assert other.stderr is not None and other.stderr.readline() == "waiting: busy\n"
        assert other.poll() is None
        shutil.rmtree(place)
    assert other.communicate()[1] == "" and other.returncode == 0
    with held(place, "busy"):
        assert place.is_dir()
