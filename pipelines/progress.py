"""One live line while workers train, wherever they run.

Worker 0 posts to a small actor; the driver reads it twice a second. A terminal gets one line that is redrawn,
anything else gets a plain line every half minute.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.live import Live
from rich.text import Text

from icre.errors import TrainingError

PLAIN_INTERVAL_S = 30.0
POLL_INTERVAL_S = 0.5


@ray.remote(num_cpus=0)
class Board:
    """Holds the newest state; a reader never waits for the worker, nor the worker for a reader."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.error: TrainingError | None = None

    def post(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        self.state = state

    def read(self) -> dict[str, Any]:
        """The state that was posted last; empty before the first."""
        return self.state

    def fail(self, error: TrainingError) -> None:
        """Say why training ended early."""
        self.error = error

    def failure(self) -> TrainingError | None:
        """Why training ended early, or None."""
        return self.error


class Rate:
    """Steps a second, without the first steps after a start, and the time left."""

    def __init__(self, *, step: int, total: int, warm_up: int = 3) -> None:
        self.total, self.first = total, step + warm_up
        self.since: float | None = None

    def eta_s(self, step: int) -> float | None:
        """Seconds left after ``step`` steps, or None while it cannot be known."""
        if step < self.first:
            return None
        if self.since is None or step == self.first:
            self.since = time.monotonic()
            return None
        return (self.total - step) * (time.monotonic() - self.since) / (step - self.first)


@contextlib.contextmanager
def follow(board: ActorHandle[Any], label: str) -> Iterator[None]:
    """Show the board's state until the body is done."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(board, label, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def format_line(label: str, state: dict[str, Any]) -> str:
    """The line for a state of :func:`pipelines.train`'s worker 0."""
    if not state:
        return f"{label}: starting workers"
    eta = state["eta_s"]
    # What matters most comes first: a narrow terminal cuts the end off.
    parts = [
        f"{label}: epoch {state['epoch'] + 1}/{state['epochs']}  step {state['step']}/{state['steps']}",
        f"ETA {int(eta) // 60}:{int(eta) % 60:02d}" if eta is not None else "ETA …",
        *(f"{name} {value:.3f}" for name, value in state["terms"].items()),
        f"{state['images_per_s']:.0f} images/s",
        f"data wait {100 * state['data_wait_share']:.0f} %",
    ]
    if state["val_mAP"] is not None:
        parts.append(f"val mAP {100 * state['val_mAP']:.1f} %")
    return "  ".join(parts)


def _show(board: ActorHandle[Any], label: str, done: threading.Event) -> None:
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(Text(f"{label}: starting"), console=console, transient=True, auto_refresh=False) as live:
            while not done.wait(POLL_INTERVAL_S):
                live.update(Text(_line(board, label), overflow="ellipsis", no_wrap=True), refresh=True)
        return
    while not done.wait(PLAIN_INTERVAL_S):
        print(_line(board, label), file=sys.stderr, flush=True)


def _line(board: ActorHandle[Any], label: str) -> str:
    try:
        state: Any = ray.get(board.read.remote(), timeout=5)
    except ray.exceptions.RayError:
        # The line is a courtesy: whatever happened to the cluster is reported by the training itself.
        return f"{label}: no news from the workers"
    return format_line(label, state)
