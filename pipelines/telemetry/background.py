"""Background threads, one per telemetry sink, so that training waits for none of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from icre.errors import IcreError, StorageError

Row = Mapping[str, Any]
"""A line of metrics.jsonl, or ``{"kind": "checkpoint" | "restart", ...}``."""

MAX_ROWS = 100_000
"""Rows waiting for one sink; beyond this the oldest are dropped and counted."""


class TelemetryError(IcreError):
    """A telemetry sink does not answer or cannot be used; never a reason to stop training."""


class Sink(Protocol):
    """One telemetry sink. Its methods are called in one thread and may block.

    They raise TelemetryError, StorageError or OSError for external failures.
    """

    label: str

    def write(self, rows: Sequence[Row]) -> None:
        """Send ``rows``, oldest first, and any that an earlier call could not send."""

    def close(self, *, succeeded: bool) -> None:
        """Finish at the end of the run, or of this attempt at it."""


class Background:
    """Passes rows to a sink when woken, every ``interval_s`` (None: only when woken), and at the end.

    External failures give one warning, and the next call tries again. A bug ends the thread with its traceback in the
    worker's log; training continues.
    """

    def __init__(self, sink: Sink, *, interval_s: float | None, warn: Callable[[str], None]) -> None:
        self.dropped = 0
        self._sink, self._interval_s, self._warn = sink, interval_s, warn
        self._rows: deque[Row] = deque(maxlen=MAX_ROWS)
        self._wake = threading.Event()
        self._ending = self._succeeded = self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"telemetry-{sink.label}", daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        """Queue ``row`` for the sink; never blocks."""
        self.dropped += len(self._rows) == MAX_ROWS
        self._rows.append(row)

    def wake(self) -> None:
        """Pass the queued rows to the sink now."""
        self._wake.set()

    def end(self, *, succeeded: bool) -> None:
        """Pass the remaining rows to the sink and finish it; :meth:`join` waits for it."""
        self._succeeded = succeeded
        self._ending = True
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the sink to finish, and warn about rows that were not sent."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._warn(f"{self._sink.label}: still busy when the training ended; what it was not told yet is lost")
        if self.dropped:
            self._warn(f"{self._sink.label}: {self.dropped} rows dropped, it takes them too slowly")

    def _run(self) -> None:
        ending = False
        while not ending:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            ending = self._ending  # read before the rows are taken, to include all that were put before the end
            self._guarded(self._sink.write, [self._rows.popleft() for _ in range(len(self._rows))])
        self._guarded(self._sink.close, succeeded=self._succeeded)

    def _guarded(self, action: Callable[..., None], *arguments: Any, **options: Any) -> None:
        try:
            action(*arguments, **options)
        except (TelemetryError, StorageError, OSError) as error:
            if not self._warned:
                self._warned = True
                self._warn(f"{self._sink.label}: {error}; the training goes on, and this is tried again")
