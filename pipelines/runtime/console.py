"""Lines for people on standard error; standard output holds results only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from icre.errors import IcreError


def say(message: str) -> None:
    """A line of progress: standard error, so that standard output holds results only."""
    print(message, file=sys.stderr, flush=True)


def print_warning(message: str) -> None:
    """On standard error, which for a worker is its log."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def warned_of(kind: type[IcreError]) -> Iterator[None]:
    """An error of ``kind`` in the body is a warning: for what must not hide, or stop, something more important."""
    try:
        yield
    except kind as error:
        print_warning(str(error))
