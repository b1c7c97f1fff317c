"""Training processes of the tests' own Ray, really killed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.local.programs import kill_all, processes_with
from pipelines.runs.run import Run

WAIT_S = 300.0


def last_step(run: Run) -> int:
    last = run.checkpoints.pointed("last")
    return 0 if last is None else int(last.removeprefix("step-"))


def wait_until(happened: Callable[[], bool], alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert alive() and time.monotonic() < deadline
        time.sleep(0.2)


def workers_here(*names: str) -> list[int]:
    """Training processes of the tests' own Ray, or others by a part of their name: this machine may have others."""
    ours = processes_with("ICRE_CACHE", os.environ["ICRE_CACHE"])
    return [pid for pid in ours if any(name in command_line(pid) for name in names or ("RayTrainWorker",))]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # over
        return ""


@contextmanager
def killing_workers(run: Run, *names: str, after: Sequence[int], at_most: int | None = None) -> Iterator[list[int]]:
    """SIGKILL :func:`workers_here` when a checkpoint of ``run`` of each of these steps is durable; the killed ones."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        for step in after:
            wait_until(lambda step=step: over.is_set() or last_step(run) >= step, lambda: True)  # type: ignore[misc]
            found = workers_here(*names)[:at_most]
            kill_all(found)
            killed.extend(found)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join(timeout=10)
