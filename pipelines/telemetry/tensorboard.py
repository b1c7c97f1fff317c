"""TensorBoard event files of a run, in its folder under ``tensorboard/``.

One file holds the whole run, as object storage cannot append. An attempt that resumes from a checkpoint rewrites the
rows up to the checkpoint and removes earlier files, so that no reader finds a step twice. The new file's start event
makes a TensorBoard that has read the older file discard it.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from pipelines.storage import Storage
from pipelines.telemetry.background import Row

GROUPS = {"step": "train", "validation": "validation", "checkpoint": "checkpoint"}
NOT_A_SCALAR = {"kind", "step", "time"}


def scalars(row: Row) -> dict[str, float]:
    """Scalars of a row by name (``train/loss``, ``validation/mAP``, ...); empty for a restart."""
    group = GROUPS.get(row["kind"])
    return {f"{group}/{key}": float(row[key]) for key in row if key not in NOT_A_SCALAR} if group else {}


def wall_time(row: Row) -> float:
    """Unix time of a row; the current time if it has none."""
    return float(row.get("time", time.time()))


class TensorBoard:
    """Writes a local file and uploads it as a whole to ``target``. ``history``: rows up to the checkpoint."""

    label = "TensorBoard"

    def __init__(self, target: Storage, history: Sequence[Row]) -> None:
        self._target, self._history = target, history
        self._open = contextlib.ExitStack()
        self._writer: Any = None
        self._file: Path | None = None

    def write(self, rows: Sequence[Row]) -> None:
        """Append ``rows``, then upload. Raises StorageError; the next call then uploads them too."""
        if self._file is None:
            self._file = self._start()
        for row in rows:
            self._add(row)
        self._writer.flush()
        (self._target / self._file.name).upload(self._file)
        for name in self._target.list():
            if name != self._file.name:
                (self._target / name).delete()

    def close(self, *, succeeded: bool) -> None:
        """Remove the local file."""
        self._open.close()

    def _start(self) -> Path:
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="icre-tensorboard-")))
        # Not SummaryWriter: its flush() does not wait for events that are still queued for its thread.
        self._writer = EventsWriter(str(folder / "events"))
        self._open.callback(self._writer.close)
        self._writer.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        for row in self._history:
            self._add(row)
        self._history = ()
        return next(folder.iterdir())

    def _add(self, row: Row) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row).items()]
        if values:
            event = Event(wall_time=wall_time(row), step=row["step"], summary=Summary(value=values))
            self._writer.write_event(event)
