"""Checkpoints of a run, written in the background by worker 0.

A checkpoint becomes durable in this order: its files, its ``checkpoint.json``, the metrics of its steps, the pointers
``best`` and ``last``. A run interrupted in between resumes from the previous checkpoint and repeats the same writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from icre import config
from icre.errors import IcreError, TrainingError
from icre.training.checkpoint import Snapshot
from pipelines.runs.checkpoints import folder_name
from pipelines.runs.run import Run

ATTEMPTS = 2
"""Consecutive checkpoint failures before training stops; a full disk may be cleared in between."""


@dataclass(frozen=True)
class Saved:
    """A durable checkpoint."""

    step: int
    seconds: float
    """Time spent writing, in the background of training."""


class AsyncCheckpointer:
    """Writes one checkpoint at a time: :meth:`save` waits for the previous one."""

    def __init__(
        self,
        run: Run,
        settings: config.Checkpoints,
        *,
        steps_per_epoch: int,
        done: Callable[[Saved], None],
        warn: Callable[[str], None],
    ):
        """done, warn: called in the writer thread when a checkpoint is durable, or could not be written."""
        self._run, self._settings, self._steps_per_epoch = run, settings, steps_per_epoch
        self._done, self._warn = done, warn
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="icre-saver")
        self._pending: Future[None] | None = None
        self._failures: list[str] = []
        self._last_good = run.checkpoints.pointed("last")
        self._asked = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint within an epoch is due and none is being written."""
        minutes = self._settings.minutes
        idle = self._pending is None or self._pending.done()
        return minutes is not None and idle and time.monotonic() - self._asked >= 60 * minutes

    @property
    def error(self) -> TrainingError | None:
        """Error that should stop training: several consecutive checkpoints could not be written."""
        if len(self._failures) < ATTEMPTS:
            return None
        return TrainingError(
            f"{len(self._failures)} checkpoints in a row could not be written: {self._failures[-1]}",
            hint=f"the last good one is {self._last_good or 'none'}; make room or mend the storage, then go on with "
            f"`icre train --resume {self._run.name}`",
        )

    @property
    def failed(self) -> bool:
        """Whether the newest checkpoint could not be written; valid once nothing is being written."""
        return bool(self._failures)

    def save(self, snapshot: Snapshot, metrics: list[dict[str, Any]], *, improved: bool) -> None:
        """Write ``snapshot`` in the background; ``best`` will point to it if it ``improved``."""
        self.wait()
        self._asked = time.monotonic()
        self._pending = self._pool.submit(self._save, snapshot, list(metrics), improved)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises unexpected exceptions; write errors are reported by ``error``."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _save(self, snapshot: Snapshot, metrics: list[dict[str, Any]], improved: bool) -> None:
        started = time.monotonic()
        try:
            self._write(snapshot, metrics, improved)
        except (IcreError, OSError) as error:
            self._failures.append(str(error).partition("\n")[0])
            self._warn(f"the checkpoint of step {snapshot.progress.step} could not be written: {error}")
            return
        self._failures.clear()
        self._done(Saved(snapshot.progress.step, time.monotonic() - started))

    def _write(self, snapshot: Snapshot, metrics: list[dict[str, Any]], improved: bool) -> None:
        run = self._run
        name = run.checkpoints.write(snapshot)
        # Metrics of steps that no checkpoint covers would be duplicated after a restart, so both are written together.
        run.write_metrics(metrics)
        if improved:
            run.checkpoints.point("best", name)
        # Written last: training resumes from it, and would not repeat any write after it.
        run.checkpoints.point("last", name)
        self._last_good = name
        run.checkpoints.remove(but=self._kept(snapshot.progress.step))

    def _kept(self, step: int) -> set[str | None]:
        upto = [name for name in self._run.checkpoints.list() if name <= folder_name(step)]
        return {*upto[-self._settings.keep :], *filter(self._is_permanent, upto), self._run.checkpoints.pointed("best")}

    def _is_permanent(self, name: str) -> bool:
        every = self._settings.keep_every
        return every is not None and int(name.removeprefix("step-")) % (every * self._steps_per_epoch) == 0
