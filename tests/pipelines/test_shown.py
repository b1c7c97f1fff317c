"""What people see of work that takes long, with a terminal and without."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.data.fan_out import fan_out
from pipelines.runtime import progress
from pipelines.runtime.console import say


class Screen(io.StringIO):
    """Standard error, and a test that waits for what a thread writes there."""

    def __init__(self) -> None:
        super().__init__()
        self._written = threading.Condition()

    def write(self, text: str) -> int:
        with self._written:
            self._written.notify_all()
            return super().write(text)

    def comes_to_hold(self, text: str, times: int = 1) -> bool:
        with self._written:
            return self._written.wait_for(lambda: self.getvalue().count(text) >= times, timeout=20)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    monkeypatch.setattr(progress, "_silent_since", clock.now)
    monkeypatch.setattr(progress, "POLL_INTERVAL_S", 0.01)
    return clock


def test_without_a_terminal_a_line_every_half_minute_says_how_far_it_is(clock: Clock, capsys: Any) -> None:
    with redirect_stderr(Screen()) as screen, progress.progress("prepare", 1400, "images") as advance:
        clock.now = 10.0  # processes start
        advance(100)
        clock.now = 20.0
        advance(300)
        clock.now = 30.0
        assert screen.comes_to_hold("\n")
        clock.now = 59.0
        advance(1000)
        clock.now = 60.0
        assert screen.comes_to_hold("\n", times=2)
    first, second = screen.getvalue().splitlines()
    assert first.startswith("prepare: 400/1,400 images") and "30 images/s" in first and "0:00:33 left" in first
    assert "1,400/1,400" in second
    assert capsys.readouterr().out == ""


def test_one_task_alone_tells_a_rate_and_none_tells_the_time(clock: Clock) -> None:
    with redirect_stderr(Screen()) as screen, progress.progress("prepare", 4, "shards") as advance:
        clock.now = 30.0
        assert screen.comes_to_hold("0/4 shards  0:00:30 so far\n")
        advance(1)
        clock.now = 60.0
        assert screen.comes_to_hold("1/4 shards  0.017 shards/s  0:03:00 left\n")


def test_short_pieces_of_work_in_a_row_are_not_silent_either(clock: Clock) -> None:
    with redirect_stderr(Screen()) as screen:
        for number in range(3):
            with progress.progress(f"piece {number}"):
                clock.now += 15.0
                assert number != 1 or screen.comes_to_hold("\n")
    assert screen.getvalue() == "piece 1: 0:00:15 so far\n"


def test_a_terminal_shows_the_same_and_keeps_the_verbs_own_lines_alone(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "Console", partial(Console, force_terminal=True, width=100))
    with (
        redirect_stderr(Screen()) as screen,
        pytest.raises(ZeroDivisionError),
        progress.progress("evaluate", 400, "images") as advance,
    ):
        clock.now = 10.0
        advance(100)
        assert screen.comes_to_hold("100/400 images  10 images/s  0:00:30 left")
        say("the checkpoint is the best one")
        print("a result")
        advance(100)
        assert screen.comes_to_hold("200/400 images")
        assert left_on(screen)[-1].startswith("evaluate ")
        raise ZeroDivisionError
    assert left_on(screen) == ["the checkpoint is the best one"]
    assert capsys.readouterr().out == "a result\n"


def left_on(screen: Screen) -> list[str]:
    """The lines of a terminal that was sent this, as far as these programs use one."""
    lines, row = [""], 0
    for code, rows, end in re.findall(r"(\x1b\[\??(\d*)[\d;]*[A-Za-z])|([^\x1b]+)", screen.getvalue()):
        if code.endswith("A"):
            row -= int(rows)
        elif code.endswith("K"):
            lines[row] = ""
        for part in re.findall(r"\n|\r|[^\r\n]+", end):
            if part == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif part != "\r":
                lines[row] += part
    return [line for line in lines if line]


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_are_counted_as_each_ends_and_results_keep_their_order(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ended: list[str] = []

    def done(item: str) -> None:
        ended.append(item)
        if item == "short":
            pipe.write_text("go on")  # or the other one never ends

    assert fan_out(waiting_for(pipe), ["long", "short"], done=done) == ["long", "short"]
    assert ended == ["short", "long"]


def waiting_for(pipe: Path) -> Callable[[str], str]:
    def work(item: str) -> str:
        if item == "long":
            pipe.read_text()
        return item

    return work
