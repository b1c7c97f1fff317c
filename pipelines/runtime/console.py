"""Messages to the user on standard error; standard output is for results only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from icre.errors import IcreError


def say(message: str) -> None:
    """Print a message on standard error."""
    print(message, file=sys.stderr, flush=True)


def print_warning(message: str) -> None:
    """Print a warning on standard error, which for a worker is its log."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def warned_of(kind: type[IcreError]) -> Iterator[None]:
    """Downgrade errors of ``kind`` in the body to warnings, for best-effort side effects."""
    try:
        yield
    except kind as error:
        print_warning(str(error))
