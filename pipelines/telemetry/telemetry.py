"""Telemetry of a run during training: live metrics, TensorBoard event files and, if configured, MLflow.

Used by worker 0 of a training. Each sink has its own thread, and nothing here waits for one before the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from icre import config
from pipelines.runs.run import Run
from pipelines.runtime.console import print_warning
from pipelines.telemetry.background import Background, Row
from pipelines.telemetry.mlflow import MLflow
from pipelines.telemetry.prometheus import Live
from pipelines.telemetry.tensorboard import TensorBoard

LIVE_INTERVAL_S = 1.0
MLFLOW_INTERVAL_S = 10.0
END_S = 30.0
"""Longest time that the end of a training waits for its sinks."""


class Telemetry:
    """Telemetry of one attempt at a run, from :meth:`open` to the end of the ``with`` block."""

    def __init__(self, places: Sequence[Background]) -> None:
        self._places = places

    @classmethod
    def open(
        cls,
        recipe: config.Recipe,
        run: Run,
        *,
        history: Sequence[Row] = (),
        warn: Callable[[str], None] = print_warning,
    ) -> Self:
        """Start the threads; a failure in one of them gives one warning.

        history: lines of metrics.jsonl up to the checkpoint that this attempt resumes from.
        """
        history = list(history)
        tensorboard = TensorBoard(run.location / "tensorboard", history)
        live = Live(run.name, recipe.batch.size, skipped=sum(row["kind"] == "skipped" for row in history))
        places = [
            Background(live, interval_s=LIVE_INTERVAL_S, warn=warn),
            Background(tensorboard, interval_s=None, warn=warn),
        ]
        if recipe.telemetry.mlflow is not None:
            mlflow = MLflow(recipe.telemetry.mlflow, recipe, run, history)
            places.append(Background(mlflow, interval_s=MLFLOW_INTERVAL_S, warn=warn))
        return cls(places)

    def step(self, row: Row) -> None:
        """Send a line of metrics.jsonl of kind step or skipped, which must not be changed afterwards."""
        self._put(row)

    def validation(self, row: Row) -> None:
        """Send a line of metrics.jsonl of kind validation; rank1, mAP and mINP are shares, 0 to 1."""
        self._put(row)

    def checkpoint(self, *, step: int, seconds: float, stall_seconds: float) -> None:
        """Report that the checkpoint of ``step`` just became durable, ``seconds`` after it was started.

        stall_seconds: part of that time in which no step was trained.
        """
        row = {"kind": "checkpoint", "step": step, "seconds": seconds, "stall_seconds": stall_seconds}
        self._put(row | {"time": time.time()})
        for place in self._places:
            place.wake()

    def restarted(self, count: int) -> None:
        """Report, once per attempt, that training resumed from a checkpoint ``count`` times since the run's start."""
        self._put({"kind": "restart", "count": count})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in self._places:
            place.end(succeeded=kind is None)
        deadline = time.monotonic() + END_S
        for place in self._places:
            place.join(max(0.0, deadline - time.monotonic()))

    def _put(self, row: Row) -> None:
        for place in self._places:
            place.put(row)
