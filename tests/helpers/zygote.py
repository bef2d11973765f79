"""A process that has imported everything and runs commands in forks of itself.

A drill needs hundreds of processes that may be killed; importing torch and transformers in each
would take minutes. The zygote imports them once, runs nothing and starts no thread, so its forks
are as good as fresh processes. In a fork an audit hook sees what is about to happen on the disk
(opening for writing, making a directory, renaming) and a module hook the forward passes; both are
the same in every run of a command, so a moment among them can be hit again. A script is run in
a fork as well, by tests that aim at a moment within landform's own code.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-\d+-[0-9a-f]{8}-(new|old)-\d+-")
NOBODY = 65534


@dataclass(frozen=True)
class Moment:
    """Just before a change of the disk, or so many forward passes after it."""

    what: str  # "rename study/artifacts/mix/abc"; empty for the start of the command
    passes: int = 0  # of single modules

    def __str__(self) -> str:
        return f"{self.what or 'the start'}" + (f" + {self.passes} passes" if self.passes else "")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (-9: killed), what it printed, what it did."""

    status: int
    out: str
    err: str
    events: list[str]
    """changes of the disk, in order"""
    passes: list[int]
    """forward passes of modules before each of them"""
    all_passes: int
    memory: int
    """bytes held at most"""

    def done(self, kind: str) -> list[str]:
        return [e.partition(" ")[2] for e in self.events if e.startswith(kind + " ")]


class Started:
    """A command under way."""

    def __init__(self, zygote: Zygote, pid: int, files: Path) -> None:
        self.zygote, self.pid, self.files = zygote, pid, files

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        status = self.zygote.ask({"wait": self.pid})["status"]
        lines = (self.files / "log").read_text().splitlines()
        pairs = [line.split(" ", 1) for line in lines]
        total, memory = -1, -1
        if pairs and pairs[-1][1].startswith("end "):
            count, end = pairs.pop()
            total, memory = int(count), int(end.split()[1])
        return Ended(
            status,
            (self.files / "out").read_text(),
            (self.files / "err").read_text(),
            [what for _, what in pairs],
            [int(n) for n, _ in pairs],
            total,
            memory,
        )


class Zygote:
    """Starts the process; `run` and `start` fork a command off it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                "OMP_NUM_THREADS": "1",
                "LANDFORM_PROGRESS": "0",
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONWARNINGS": "ignore",
            },
        )
        ready = self._read()
        # pyarrow's allocator has a thread of its own, which minds being forked.
        assert ready["threads"] <= 2, f"a fork of several threads may hang: {ready}"

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the zygote is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(
        self,
        words: Sequence[object],
        cwd: Path,
        *,
        kill: Moment | None = None,
        full: str | None = None,
        nobody: bool = False,
        script: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Started:
        """Starts `landform WORDS` in `cwd`.

        kill: the moment of SIGKILL. full: from this change of the disk on the disk is full.
        nobody: as a user who owns nothing. script: this source of Python is run instead of
        landform, with WORDS as its arguments and nobody watching. environment: variables to set.
        """
        self.count += 1
        files = self.folder / str(self.count)
        files.mkdir()
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "files": str(files),
            "kill": None if kill is None else [kill.what, kill.passes],
            "full": full,
            "nobody": nobody,
            "script": script,
            "environment": dict(environment or {}),
        }
        return Started(self, self.ask(request)["pid"], files)

    def run(self, words: Sequence[object], cwd: Path, **options: Any) -> Ended:
        return self.start(words, cwd, **options).wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# --- in the zygote --------------------------------------------------------------------------------


def serve() -> None:
    gc.set_threshold(50_000)  # as in tests/conftest.py
    import importlib
    import pkgutil

    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import h5py  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch
    import transformers as hf

    import landform

    for module in pkgutil.walk_packages(landform.__path__, "landform."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("BertForSequenceClassification", "BertForMaskedLM", "Trainer", "AutoTokenizer"):
        getattr(hf, name)
    for coding in ("unicode-escape", "utf-16", "latin-1", "ascii", "idna"):
        codecs.lookup(coding)  # a fork of another user may be shut out of Python's own folder
    torch.set_num_threads(1)
    # Made at the first loading of a model, out of a thousand patterns; then kept.
    with contextlib.suppress(ImportError):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("bert")
    gc.collect()
    gc.freeze()  # a fork need not walk over what was imported here
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    answers = os.fdopen(os.dup(1), "w")

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer({"threads": threads})
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer({"status": os.waitstatus_to_exitcode(status)})
            continue
        pid = os.fork()
        if pid == 0:
            answers.close()
            os._exit(child(request))
        answer({"pid": pid})


def child(request: dict[str, Any]) -> int:
    import traceback

    files = Path(request["files"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(files / name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    log = os.open(files / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if request["nobody"]:
        os.environ["HOME"] = "/nonexistent"
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    watch = None if request["script"] else _Watch(request, log)
    try:
        if watch is None:
            sys.argv = ["-c", *request["words"]]
            exec(compile(request["script"], "script", "exec"), {"__name__": "__main__"})
            status = 0
        else:
            from landform.cli.app import run

            status = run(request["words"])
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    if watch is None:
        return status
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    os.write(log, f"{watch.passes} end {memory}\n".encode())
    return status


class _Watch:
    def __init__(self, request: dict[str, Any], log: int) -> None:
        self.root = os.path.realpath(request["cwd"]) + os.sep
        self.kill, self.full_at, self.log = request["kill"], request["full"], log
        self.passes, self.full, self.busy = 0, False, False
        self.left = None if self.kill is None or self.kill[0] else self.kill[1]
        sys.addaudithook(self.see)
        from torch.nn.modules.module import register_module_forward_pre_hook

        register_module_forward_pre_hook(self.forward)

    def forward(self, *_: Any) -> None:
        self.passes += 1
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            what = "write"
        elif event == "os.mkdir":
            path, what = arguments[0], "mkdir"
        elif event == "os.rename":
            path, what = arguments[1], "rename"
        else:
            return
        if self.busy or not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith(self.root):
            return
        name = f"{what} {TEMPORARY.sub('', place[len(self.root) :])}"
        kill_now = self.kill is not None and name == self.kill[0]
        if kill_now and not self.kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        self.busy = True
        self.full = self.full or name == self.full_at
        refused = self.full and what != "rename"
        os.write(self.log, f"{self.passes} {'refused ' * refused}{name}\n".encode())
        self.busy = False
        if kill_now:
            self.left = self.kill[1]
        if refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)


if __name__ == "__main__":
    serve()
