"""Progress of a running sweep: a console line, status.json and live metrics."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.util.metrics import Gauge

from icre.errors import IcreError, StorageError, TrainingError
from pipelines.experiments.outcomes import Outcome
from pipelines.experiments.sweep import STATUS
from pipelines.experiments.trial import Sweep
from pipelines.runs.provenance import now
from pipelines.runs.run import Run
from pipelines.runtime.console import say, warned_of
from pipelines.runtime.progress import clock, shown
from pipelines.storage import Storage
from pipelines.training.execution import in_a_line

INTERVAL_S = 5.0
STARTING = "tune: starting the first trainings"
STATES = ("pending", "running", "finished", "stopped", "failed")
_OF_TUNE = {
    "PENDING": "pending",
    "RUNNING": "running",
    "PAUSED": "running",
    "TERMINATED": "finished",
    "ERROR": "failed",
}


class SweepCallback(Callback):
    """Follows Tune's trials from the process that runs the sweep.

    Tune pickles its callbacks and recreates them when a sweep resumes, so state is initialised in :meth:`setup`. The
    console line is a class attribute, because its display has no instance; a process runs one sweep at a time.
    """

    _line: ClassVar = STARTING

    def __init__(self, sweep: Sweep, trainings: int, others: Sequence[Outcome]) -> None:
        """trainings: number in the whole sweep; others: those of them not trained in this invocation."""
        self._sweep, self._trainings, self._others = sweep, trainings, others

    def setup(self, *_: Any, **__: Any) -> None:
        """Called once before the first trial."""
        self._epochs: dict[str, int] = {}
        self._runs: dict[str, str] = {}
        self._ended: dict[str, str] = {}
        self._reported = time.time()
        self._shown_at, SweepCallback._line = 0.0, STARTING
        self._metric = self._sweep.base.checkpoints.best
        reached = [(other.reached[self._metric], other.run) for other in self._others if other.reached]
        self._best = max(reached, default=None, key=lambda pair: pair[0])
        self._gauges = {
            name: Gauge(name, description=text, tag_keys=("sweep", *tags))
            for name, text, tags in (
                ("icre_sweep_trials", "Trainings of the sweep, by state.", ("state",)),
                ("icre_sweep_best_ratio", "Highest validation metric of a training so far, 0 to 1.", ()),
                ("icre_sweep_last_report_timestamp_seconds", "Unix time of the newest validation.", ()),
            )
        }

    @classmethod
    def shown(cls) -> AbstractContextManager[None]:
        """Show the sweep's progress and elapsed time until the body is done."""
        began = time.monotonic()
        return shown(lambda: f"{cls._line}; {clock(time.monotonic() - began)} so far")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any
    ) -> None:
        """Called after each validation."""
        if "run" not in result:
            return  # end of a training that failed before its first validation
        self._reported = time.time()
        self._runs[trial.trial_id], self._epochs[trial.trial_id] = str(result["run"]), int(result["epoch"])
        reached = float(result[f"best_{self._metric}"])
        if self._best is None or reached > self._best[0]:
            self._best = (reached, str(result["run"]))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        """Called when a training ends or Tune stops it."""
        run = self._run_of(trial)
        with warned_of(StorageError):
            state = run.state
            if state == "running":
                state = "stopped"
                epoch = self._epochs.get(trial.trial_id, 0)
                run.write_status(state, error=f"stopped by the sweep {self._sweep.name} after epoch {epoch}")
            elif state == "failed":
                say(f"tune: {run.name} failed: {_first_line(run)}")
            if state is not None:
                self._ended[trial.trial_id] = state

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        """Called when a training's process is repeatedly lost or raises; it could not record that itself."""
        run = self._run_of(trial)
        with warned_of(StorageError):
            if run.state in (None, "running"):
                run.write_failure(_why(trial))
            say(f"tune: {run.name} failed: {_first_line(run)}")

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        """Called on every iteration of Tune's loop; updates are rate-limited."""
        if time.monotonic() - self._shown_at >= INTERVAL_S:
            self._show(trials, "running")

    def on_experiment_end(self, trials: list[TuneTrial], **_: Any) -> None:
        """Record the final state. Tune does not report which trainings it stopped at the sweep's time limit."""
        for trial in trials:
            if trial.status == "TERMINATED" and trial.trial_id not in self._ended:
                self._cut_off(trial)
        self._show(trials, "over")

    def _cut_off(self, trial: TuneTrial) -> None:
        run = self._run_of(trial)
        with warned_of(StorageError):
            state = run.state or "pending"
            if state == "running":  # any other state was set before the time limit
                state = "pending"
                epoch = self._epochs.get(trial.trial_id, 0)
                run.write_status(
                    state, error=f"tune.hours of the sweep {self._sweep.name} were over after epoch {epoch}"
                )
            self._ended[trial.trial_id] = state

    def _run_of(self, trial: TuneTrial) -> Run:
        return self._sweep.run_of(trial.config, trial.trial_id)

    def _show(self, trials: Sequence[TuneTrial], state: str) -> None:
        self._shown_at = time.monotonic()
        counts = Counter([*(self._state(trial) for trial in trials), *(other.state for other in self._others)])
        counts["pending"] += max(0, self._trainings - counts.total())  # Tune creates trials on demand
        sweep = {"sweep": self._sweep.name}
        for name in STATES:
            self._gauges["icre_sweep_trials"].set(counts[name], sweep | {"state": name})
        self._gauges["icre_sweep_last_report_timestamp_seconds"].set(self._reported, sweep)
        if self._best is not None:
            self._gauges["icre_sweep_best_ratio"].set(self._best[0], sweep)
        line = self._describe(counts)
        if line != self._line:
            SweepCallback._line = line
            say(line)
        with warned_of(StorageError):
            status = {"state": state, "updated": now(), "counts": {name: counts[name] for name in STATES}}
            (Storage(self._sweep.location) / STATUS).write_json(status)

    def _state(self, trial: TuneTrial) -> str:
        return self._ended.get(trial.trial_id, _OF_TUNE.get(trial.status, "pending"))

    def _describe(self, counts: Mapping[str, int]) -> str:
        parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
        best = "" if self._best is None else f"; best {self._metric} {100 * self._best[0]:.1f} % ({self._best[1]})"
        return f"tune: {', '.join(parts)}{best}"


def _why(trial: TuneTrial) -> IcreError:
    """The error that ended the process starting a training, after ``train.max_failures`` retries."""
    # Tune's own reader uses the storage, which does not have the newest error yet.
    file = Path(trial.pickled_error_file or os.devnull)
    raised = cloudpickle.loads(file.read_bytes()) if file.is_file() else None
    hint = "tracebacks are in the sweep's logs/; `--retry-failed` trains it on"
    if isinstance(raised, RayTaskError):
        return TrainingError(in_a_line(raised.cause), hint=hint)
    cause = "no error recorded" if raised is None else in_a_line(raised)
    return TrainingError(f"the process that started it was lost again and again: {cause}", hint=hint)


def _first_line(run: Run) -> str:
    return str((run.location / STATUS).read_json().get("error", "no error recorded")).split("\n")[0]
