from __future__ import annotations

import io

import pytest

from landform.store import progress
from landform.store.progress import Track, track


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.delenv("LANDFORM_PROGRESS", raising=False)
    return clock


def test_a_line_every_few_seconds_with_an_estimate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with track(30, "connecting", "evaluations", done=10) as report:
        for i in range(20):
            clock.now += 2.0
            report.advance(1, note=f"pair {i}")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "connecting: 13 of 30 evaluations, about 0:34 left (pair 2)"
    assert len(lines) == 7
    assert lines[-1] == "connecting: 30 of 30 evaluations, done after 0:40 (pair 19)"


def test_short_work_is_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track(3, "connecting") as report:
        report.advance(3)
        clock.now += progress.INTERVAL / 2
    assert capsys.readouterr() == ("", "")


def test_a_failure_is_not_called_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), track(3, "connecting"):
        clock.now += 3700
        raise ValueError
    assert capsys.readouterr().err == "connecting: 0 of 3 evaluations, stopped after 1:01:40\n"


def test_progress_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(track(3, "x", enabled=False)) is Track
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    assert type(track(3, "x")) is Track
    monkeypatch.setenv("LANDFORM_PROGRESS", "1")
    assert type(track(3, "x")) is not Track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_rows_for_work_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("LANDFORM_PROGRESS", raising=False)
    with track(4, "outer [a]", "pairs") as outer:
        outer.advance(2, note="seed [0]")
        with track(10, "inner", "steps", done=3) as inner:
            inner.advance(4)
            assert progress._shared is not None and len(progress._shared.tasks) == 2
            progress._shared.refresh()
        assert len(progress._shared.tasks) == 1
    assert progress._shared is None
    text = screen.getvalue()
    assert "outer [a]" in text and "2/4 pairs" in text and "seed [0]" in text
    assert "7/10 steps" in text
