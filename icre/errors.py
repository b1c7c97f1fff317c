"""Errors that a user can act on.

Every message says what is wrong, where, and the value; then the rule; the hint says how to fix it.
The command line prints them as ``error:`` / ``hint:`` and exits with ``exit_code``; anything that is not
an :class:`IcreError` is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class IcreError(Exception):
    """Base of the tree. ``hint`` is one sentence that tells the reader what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # The keyword argument has to survive the trip from a Ray worker to the driver.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[IcreError], message: str, hint: str) -> IcreError:
    return kind(message, hint=hint)


class UserError(IcreError):
    """The input is wrong and the user can correct it: exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe, or a command-line override, breaks a rule."""


class DataError(UserError):
    """Images, labels, a split, or a prepared data set cannot be used."""


class WeightsError(UserError):
    """A weights or checkpoint file is missing, damaged, or does not fit the network."""


class StorageError(UserError):
    """A local path or an ``s3://`` location cannot be read or written."""


class ProtocolError(UserError):
    """An evaluation protocol cannot be applied to the given queries and gallery."""


class TrainingError(IcreError):
    """Training stopped: a loss that is not finite, a worker lost for good, a count that does not add up."""


class NotFiniteError(TrainingError):
    """A step's loss or gradient is not finite; the step changed no weight."""


class StoppedError(IcreError):
    """Asked to stop (SIGTERM) and stopped in order; the same work can go on later. Exit code 143, as shells have it."""

    exit_code = 143
