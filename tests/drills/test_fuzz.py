"""Every reader on thousands of damaged files: read, or refused in words; no crash, no hang.

Files start from a valid one (`specimens`) and are changed: bits turned, parts cut, doubled and
exchanged, hostile pieces put in, and, where they are JSON or YAML, values replaced, keys left
out and doubled. FUZZ_TIMES=20 in the environment makes it twenty times as many.
"""

from __future__ import annotations

import json
import os
import resource  # POSIX, as the rest of the drills
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from landform.errors import LandformError
from specimens import READERS, Specimen

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
EXAMPLES = 270
SLOW = {
    "weights",
    "tokenizer",
    "tokenizer config",
    "study yaml",
    "task yaml",
    "fisher list",
    "result",
    "peft config",
}
"""Readers that take more than a few milliseconds get fewer."""
SECONDS = 60  # a reader that takes longer hangs, on a busy machine too
MEMORY = 2 * 2**30  # one that asks for more than this on top has been told so by the file

TOKENS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n\n\n", b"\r", b"\t", b",", b'"', b"'", b"{", b"[",
    b"}", b"]", b":", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 400, b"1" * 5000,
    b"[" * 3000, b"{\"a\":" * 2000, b"null", b"true", b"\"\"", b"&a [*a, *a]",
    b"!!python/object:os",
    b"\\ud800", "\u2028ü\U0001f600".encode(), b"../../../etc/passwd", b"%s%n", b"-" * 100,
    b"\x80\x04\x95", b"<<: *a", b"2026-11-21", b"\xf0\x28\x8c\x28", b"w1" * 5000, b"0x1F", b"1_000",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, -(10**400), float("nan"), float("inf"), "", "NaN", "w1", "\x00",
    "../..", [], {}, [None], [[[]]], {"": {}}, ["w1", 1], {"a": [1, {"b": None}]}, "é" * 300,
]  # fmt: skip
OPERATIONS = 12


def examples(name: str) -> int:
    return TIMES * (60 if name in SLOW else EXAMPLES)


def mutate(data: bytes, steps: list[tuple[int, int, int, int]], text: bool) -> bytes:
    for operation, first, second, third in steps:
        size = len(data)
        if not size:
            return data
        # Headers and ends decide more than the middle: a third of the places each.
        a = (first % size, first % min(size, 64), size - 1 - first % min(size, 64))[third % 3]
        b = min(size, a + 1 + second % max(1, size // (1 + third % 7)))
        token = TOKENS[second % len(TOKENS)]
        match operation % OPERATIONS:
            case 0 | 1:
                data = data[:a] + bytes([data[a] ^ (1 << second % 8)]) + data[a + 1 :]
            case 2:
                data = data[:a] + data[b:]
            case 3:
                data = data[:a] + token + data[a:]
            case 4:
                data = data[:b] + data[a:b] * (1 + third % 3) + data[b:]
            case 5:
                c = min(size, b + (b - a))
                data = data[:a] + data[b:c] + data[a:b] + data[c:]
            case 6:
                data = data[:a]
            case 7:
                data = data[:a] + token + data[b:]
            case 8:
                data = data[:a] + bytes([second % 256]) * min(8, size - a) + data[a + 8 :]
            case 9:
                data = data.replace(b"\n", b"\r\n") if text else data + token
            case 10 | 11:
                data = restructure(data, first, second, third) if text else data[: a + 1] + data
    return data


def restructure(data: bytes, first: int, second: int, third: int) -> bytes:
    """JSON or YAML with one node another; other text with one field another."""
    for load, dump in ((json.loads, json.dumps), (yaml.safe_load, yaml.safe_dump)):
        try:
            value = load(data)
        except (ValueError, yaml.YAMLError, RecursionError):
            continue
        if isinstance(value, dict | list) and value:
            try:
                return str(dump(_changed(value, first, second, third))).encode(errors="replace")
            except (ValueError, TypeError, RecursionError, yaml.YAMLError):
                return data
    fields = data.split(b"\t") if b"\t" in data else data.split(b",")
    fields[first % len(fields)] = str(VALUES[second % len(VALUES)]).encode()
    return (b"\t" if b"\t" in data else b",").join(fields)


def _changed(value: Any, first: int, second: int, third: int) -> Any:
    paths: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            paths.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = paths[first % len(paths)]
    other_node, other_key = paths[second % len(paths)]
    match third % 4:
        case 0 | 1:
            node[key] = VALUES[second % len(VALUES)]
        case 2:
            del node[key]
        case 3:
            node[key] = json.loads(json.dumps(other_node[other_key]))
    return value


class Hang(BaseException):
    """Not an exception that a reader may catch."""


@contextmanager
def watched() -> Iterator[None]:
    def bark(*_: Any) -> None:
        raise Hang(f"still reading after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if Path("/proc/self/statm").exists():
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


steps = st.lists(st.tuples(*[st.integers(0, 2**16 - 1)] * 4), min_size=1, max_size=4)


def answer(specimen: Specimen) -> Any:
    """What the reader gives, or the error that it raises."""
    with watched(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "read", specimen.read()
        except LandformError as error:
            assert error.what and len(str(error)) < 20_000, "an error for people is not a dump"
            return "refused", error


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, place: Path, tmp_path: Path) -> None:
    specimen = READERS[name](tmp_path, place=place)
    whole = specimen.file.read_bytes()
    try:
        text = bool(whole.decode())
    except UnicodeDecodeError:
        text = False
    kind, sound = answer(specimen)
    assert kind == "read", sound
    assert answer(specimen) == ("read", sound), "read twice, read otherwise"
    seen = {"read": 0, "refused": 0}

    @settings(max_examples=examples(name))
    @given(steps)
    def fuzz(plan: list[tuple[int, int, int, int]]) -> None:
        data = mutate(whole, plan, text)
        specimen.file.write_bytes(data)
        kind, found = answer(specimen)
        seen[kind] += 1
        if kind == "read" and (data == whole or specimen.checked):
            assert found == sound, "another answer"

    fuzz()
    assert sum(seen.values()) >= examples(name)
    assert seen["refused"], "whatever is in the file, it is read"
    specimen.file.write_bytes(whole)
    assert answer(specimen) == ("read", sound), "what was refused leaves its mark"


def _longer_path(data: bytes) -> bytes:
    value = json.loads(data)
    places = [key for key, item in value.items() if isinstance(item, str) and "/" in item]
    return json.dumps({**value, **dict.fromkeys(places, "/x" * 20 + "1" * 400)}).encode()


FOUND = {
    "config": lambda data: b'{"a": ' * 3000,
    "peft config": lambda data: b'{"a": ' * 3000,
    "kronfluence arguments": lambda data: b'{"a": ' * 3000,
    "base of a tuned model": _longer_path,
    "tensorflow 2": lambda data: data.replace(b"SNOD", b"SNOE"),
    "schedule": lambda data: data.replace(b"0.1", b"9" * 400),
    "logs": lambda data: b"".join(data.splitlines(True)[:5]),  # killed before the first row
    "fisher": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}
"""What fuzzing found: these came through as other exceptions, or as another answer."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str, place: Path, tmp_path: Path) -> None:
    specimen = READERS[name](tmp_path, place=place)
    whole = specimen.file.read_bytes()
    damaged = FOUND[name](whole)
    assert damaged != whole
    specimen.file.write_bytes(damaged)
    said, _ = answer(specimen)
    # The model that was tuned lies elsewhere, too.
    assert said == ("read" if name == "base of a tuned model" else "refused")


def test_there_are_ten_thousand() -> None:
    assert sum(examples(name) for name in READERS) >= 10_000


LONG = 10 * 2**20
LONG_LINES = {
    "csv": b"sentence,label\n" + b"w1 " * (LONG // 3) + b",1\n",
    "tsv": b"sentence\tlabel\n" + b"w1 " * (LONG // 3) + b"\t1\n",
    "jsonl": b'{"sentence": "' + b"w" * LONG + b'", "label": 1}\n',
    "corpus": b"w" * LONG,
    "row file": b"r" * LONG,
    "study yaml": b"study: " + b"x" * (LONG // 10),
    "logs": b"x" * LONG,
    "schedule": b"[" * LONG,
    "study.json": b"{" * LONG,
    "predictions": b"pairID,gold_label\n" + b"x" * LONG,
    "samples": b"x" * LONG,
    "knowledge lists": b'{"0.0": ' + b"[" * LONG,
    "config": b'{"a": ' * (LONG // 6),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LONG_LINES)
def test_a_line_of_ten_megabytes(name: str, place: Path, tmp_path: Path) -> None:
    specimen = READERS[name](tmp_path, place=place)
    specimen.file.write_bytes(LONG_LINES[name])
    answer(specimen)
