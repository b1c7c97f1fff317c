"""A renewable lease: at most one holder per model; it expires if the holder dies.

Taking the lease appends to a log, so exactly one of any number of takers wins, even if all of them saw it expire. The
holder periodically overwrites its own entry; an entry older than its term is void. Terms are compared with this
machine's clock: clocks should agree to a few seconds, and the term should be minutes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from icre.errors import IcreError, StorageError
from pipelines.runtime.console import print_warning
from pipelines.storage.log import Log

RENEWALS = 4
"""Renewals per term; the holder may miss some."""
KEPT = 100
"""Entries of former holders that are kept; no taker can be that far behind."""


class LeaseLostError(IcreError):
    """Another holder took over while this one was still working."""


@dataclass
class Lease:
    """A lease held by this process, from :func:`hold`."""

    log: Log
    number: int
    term_s: float
    over: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises LeaseLostError if another holder took over the lease, as can happen after a long outage."""
        newest = self.log.newest()
        if newest != self.number:
            raise LeaseLostError(
                f"the lease {self.log.path(self.number).url} was taken over by {_owner(self.log.read(newest))}",
                hint="this command was cut off from the storage for longer than retrain.lease_s; the other one goes on",
            )

    def renew_until_over(self) -> None:
        """Body of the renewal thread."""
        while not self.over.wait(self.term_s / RENEWALS):
            try:
                self._write(expires=time.time() + self.term_s)
            except StorageError as error:
                print_warning(f"the lease could not be renewed: {error.message}")

    def release(self) -> None:
        """Expire the lease immediately."""
        self._write(expires=0.0)

    def _write(self, *, expires: float) -> None:
        self.log.path(self.number).write_json(_entry(expires))


@contextlib.contextmanager
def hold(log: Log, *, term_s: float) -> Iterator[Lease | None]:
    """The lease while the body runs, or None if it is already held."""
    newest = log.newest()
    free = newest == 0 or log.read(newest)["expires"] <= time.time()
    if not free or not log.append(_entry(time.time() + term_s), after=newest):
        yield None
        return
    if newest > KEPT:
        log.path(newest - KEPT).delete()
    lease = Lease(log, newest + 1, term_s)
    renewing = threading.Thread(target=lease.renew_until_over, name="icre-lease", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        lease.over.set()
        renewing.join()
        try:
            lease.release()
        except StorageError as error:  # it expires anyway; an error of the body matters more
            print_warning(f"the lease could not be released: {error.message}")


def holder(log: Log) -> str | None:
    """The current holder as text; None if there is none."""
    newest = log.newest()
    entry = log.read(newest) if newest else {"expires": 0.0}
    return _owner(entry) if entry["expires"] > time.time() else None


def who() -> str:
    """User, host and process id of this process, as text."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"


def _entry(expires: float) -> dict[str, Any]:
    return {"owner": who(), "expires": expires}


def _owner(entry: dict[str, Any]) -> str:
    return str(entry["owner"])
