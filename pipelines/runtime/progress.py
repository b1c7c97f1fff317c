"""Progress of a piece of work, on standard error until it is done.

A terminal shows one line that is redrawn and finally removed; anything else gets a plain line every half minute.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from time import monotonic

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

PLAIN_INTERVAL_S = 30.0
POLL_INTERVAL_S = 0.5

_silent_since = monotonic()
"""Time of this process's last plain line, or of its start; short pieces of work in a row share one interval."""

Advance = Callable[[int], None]
"""Called with the additional amount done."""


@contextlib.contextmanager
def progress(label: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
    """Show how much of ``total`` is done, the rate and the time left; without a total, the elapsed time."""
    facts = _Facts(unit)
    bars = Progress(TextColumn("{task.description}"), BarColumn(20), facts, get_time=monotonic)
    task = bars.add_task(label, total=total)
    with shown(lambda: f"{label}: {facts.text(bars.tasks[0])}", drawn=bars):
        yield lambda count: bars.advance(task, count)


@contextlib.contextmanager
def shown(line: Callable[[], str], *, drawn: RenderableType | None = None) -> Iterator[None]:
    """Show ``line()`` until the body is done; a thread calls it twice a second and once at the end.

    drawn: shown instead on a terminal.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    # Standard output may be a file of results, so prints are not redirected.
    live = Live(console=console, transient=True, auto_refresh=False, redirect_stdout=False)

    def show(ended: bool) -> None:
        text = line()
        if ended:
            return
        if console.is_interactive:
            live.update(drawn or Text(text, overflow="ellipsis", no_wrap=True), refresh=True)
        elif _is_silent_for(PLAIN_INTERVAL_S):
            console.print(text, markup=False)

    with live if console.is_interactive else contextlib.nullcontext(), polling(show):
        yield


@contextlib.contextmanager
def polling(look: Callable[[bool], None]) -> Iterator[None]:
    """Call ``look(ended)`` twice a second from a thread while the body runs, and once more with True at its end."""
    done = threading.Event()

    def poll() -> None:
        while True:
            ended = done.wait(POLL_INTERVAL_S)
            look(ended)
            if ended:
                return

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_silent_for(seconds: float) -> bool:
    """Whether a plain line is due; if so, the interval starts again."""
    global _silent_since
    now = monotonic()
    if now - _silent_since < seconds:
        return False
    _silent_since = now
    return True


class _Facts(ProgressColumn):
    """Column with the amount done, total, rate and time left."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The text as a column of a terminal."""
        return Text(self.text(task))

    def text(self, task: Task) -> str:
        """The text; before anything is done, or without a total, it has the elapsed time instead of the time left."""
        elapsed, done = task.elapsed or 0.0, task.completed
        so_far = f"{clock(elapsed)} so far"
        if task.total is None:
            return f"{done:,.0f} {self._unit}  {so_far}" if self._unit else so_far
        counts = f"{done:,.0f}/{task.total:,.0f} {self._unit}"
        # The recent rate excludes the start of processes; it is known after two advances within half a minute.
        rate = task.speed or (done / elapsed if elapsed else 0.0)
        if not rate:
            return f"{counts}  {so_far}"
        said = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{counts}  {said} {self._unit}/s  {clock((task.total - done) / rate)} left"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=max(0, round(seconds))))
