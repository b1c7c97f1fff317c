"""Errors that a user can act on.

A message contains the problem, its location, the value and the rule; the hint is the fix. The command line prints them
as ``error:`` / ``hint:`` and exits with ``exit_code``. Any exception that is not an :class:`IcreError` is a bug and
keeps its traceback.
"""

from __future__ import annotations


class IcreError(Exception):
    """Base of all errors. ``hint`` is one sentence with the next step for the user."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # The keyword argument must survive pickling from a Ray worker to the driver.
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
    """Training stopped: a loss that is not finite, a worker lost permanently, a count that does not add up."""


class NotFiniteError(TrainingError):
    """A step's loss or gradient is not finite; the step changed no weight."""


class StoppedError(IcreError):
    """Stopped cleanly on request (SIGTERM); the same work can resume later. Exit code 143, as in shells."""

    exit_code = 143
