"""Training loop of a worker, from the first batch to the last checkpoint."""

from __future__ import annotations

import faulthandler
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, TypedDict, cast

import ray
import ray.train
import ray.train.torch
import ray.util
import torch

from icre import config
from icre.errors import DataError, StoppedError, TrainingError
from icre.training import distributed
from pipelines.data.caches import EncodedCache
from pipelines.data.feed import Feed
from pipelines.data.prepared import PreparedData
from pipelines.runs.run import Run
from pipelines.runtime.console import print_warning
from pipelines.storage import Storage
from pipelines.telemetry.telemetry import Telemetry
from pipelines.training.checkpointer import AsyncCheckpointer, Saved
from pipelines.training.progress import ProgressReporter, Rate
from pipelines.training.trainer import Trainer

PREEMPTION_CHECK_INTERVAL_S = 5.0
"""Seconds between preemption checks."""


class Job(TypedDict):
    """Plain values that the driver passes to every worker."""

    recipe: dict[str, Any]
    run: str
    data: str
    steps_per_epoch: int
    progress_actor: Any


def train_worker(settings: dict[Any, Any]) -> None:
    """Train from the run's last checkpoint, or from scratch, to the last epoch. settings: a :class:`Job`.

    Errors that all workers hit at the same step, and would hit again, are passed to the driver instead of raised,
    because Ray Train retries after an exception.
    """
    job = cast(Job, settings)
    recipe = config.parse_recipe(job["recipe"], where="the driver")
    place = _here(recipe) if recipe.train.workers == 0 else _of_ray_train()
    try:
        _train(job, recipe, place)
    except (TrainingError, StoppedError) as error:
        if place.rank == 0:
            ray.get(job["progress_actor"].end.remote(error))
    finally:
        faulthandler.cancel_dump_traceback_later()


class Place(NamedTuple):
    """Rank and environment of one training process."""

    rank: int
    world_size: int
    device: torch.device
    preemption: Callable[[], Any]
    """Returns the cluster's pending preemption of a node, or None."""


def _of_ray_train() -> Place:
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    return Place(context.get_world_rank(), context.get_world_size(), device, ray.train.get_preemption_info)


def _here(recipe: config.Recipe) -> Place:
    """The command's own process. Not Ray Train's local mode, whose context Tune does not give to its trials."""
    return Place(0, 1, torch.device("cuda" if recipe.train.gpus_per_worker else "cpu"), lambda: None)


def _train(job: Job, recipe: config.Recipe, place: Place) -> None:
    data = PreparedData.open(Storage(job["data"]))
    rank, world_size, device, _ = place
    group = ray.util.get_current_placement_group()
    if rank == 0 and recipe.train.workers != 0:
        ray.get(job["progress_actor"].placed.remote(group))
    torch.set_num_threads(max(1, int(recipe.train.cpus_per_worker)))
    _reset_watchdog(recipe)
    _check_images(data, job, device)
    trainer = Trainer.start(
        recipe,
        Run(Storage(job["run"])),
        data,
        steps_per_epoch=job["steps_per_epoch"],
        device=device,
        warn=job["progress_actor"].note.remote if rank == 0 else print_warning,
    )
    feed = Feed(data, recipe, job["steps_per_epoch"], rank, world_size)
    with ExitStack() as stack:
        lead: _RankZero | None = None
        if rank == 0:
            telemetry = stack.enter_context(Telemetry.open(recipe, trainer.run, history=trainer.metrics))
            lead = _RankZero(trainer, job, telemetry)
            stack.callback(lead.saver.wait)
        asked = time.monotonic()
        for batch in feed.batches(start=trainer.progress.step, stop=trainer.total_steps, device=device):
            received = time.monotonic()
            row = trainer.step(batch)
            trainer.record(row, seconds=time.monotonic() - asked, waited=received - asked)
            improved = trainer.end_epoch() if trainer.is_epoch_over else None
            if lead is not None:
                lead.after_step(improved=improved)
            _heed_notices(lead, place)
            _reset_watchdog(recipe)
            asked = time.monotonic()
        if lead is not None:
            lead.finish()


class _RankZero:
    """Worker 0's duties besides training: checkpoints, progress for the driver, telemetry."""

    def __init__(self, trainer: Trainer, job: Job, telemetry: Telemetry) -> None:
        self.trainer = trainer
        self.progress_actor = job["progress_actor"]
        self.reporter = ProgressReporter(self.progress_actor)
        self.rate = Rate(step=trainer.progress.step, total=trainer.total_steps)
        self.telemetry = telemetry
        telemetry.restarted(ray.get(job["progress_actor"].started.remote(trainer.progress.step)))
        self.stalled = 0.0
        self.unreported: list[dict[str, Any]] = []
        self.saver = AsyncCheckpointer(
            trainer.run,
            trainer.recipe.checkpoints,
            steps_per_epoch=job["steps_per_epoch"],
            done=self._saved,
            warn=self.progress_actor.note.remote,
        )
        self.warn = self.progress_actor.note.remote
        self.looked = time.monotonic()
        self.preemption: Any = None

    def after_step(self, *, improved: bool | None) -> None:
        """improved: whether the validation at an epoch's end was the best so far; None within an epoch."""
        trainer = self.trainer
        for row in trainer.new_rows():
            if row["kind"] in ("step", "skipped"):
                self.telemetry.step(row)
            elif row["kind"] == "validation":
                self.telemetry.validation(row)
                self.unreported.append(row)
        if improved is not None or self.saver.is_due:
            self.save(improved=bool(improved))
        self.reporter.post(lambda: trainer.state(self.rate.eta_s(trainer.progress.step)))

    def save(self, *, improved: bool = False) -> None:
        """Pass a snapshot to the checkpointer; training stalls until it is taken."""
        started = time.monotonic()
        self.saver.wait()
        snapshot = self.trainer.snapshot()
        self.stalled = time.monotonic() - started
        self.saver.save(snapshot, self.trainer.metrics, improved=improved)

    def notices(self) -> list[bool]:
        """Whether all workers should stop, and whether all should check for a preemption."""
        look = time.monotonic() - self.looked > PREEMPTION_CHECK_INTERVAL_S
        return [self.reporter.is_stop_asked or self.saver.error is not None, look]

    def stop(self) -> None:
        """Stop all workers at this step. Raises StoppedError, or TrainingError when checkpoints cannot be written."""
        step, run = self.trainer.progress.step, self.trainer.run
        if self.saver.error is None:
            self.save()
            self.saver.wait()
        if self.saver.error is not None:
            raise self.saver.error
        raise StoppedError(
            f"run {run.name} stopped after step {step} of {self.trainer.total_steps}, as it was asked to",
            hint=f"`icre train --resume {run.name}` goes on",
        )

    def finish(self) -> None:
        """Wait until the last checkpoint, which is the result, is durable; retry it once if it failed."""
        self.saver.wait()
        if self.saver.failed:
            self.save(improved=self.trainer.progress.best_step == self.trainer.progress.step)
            self.saver.wait()
        if self.saver.error is not None:
            raise self.saver.error

    def heed(self, preemption: Any) -> None:
        """Before a node is preempted, save a checkpoint of this step; training continues meanwhile."""
        self.looked = time.monotonic()
        if preemption is not None and preemption != self.preemption:
            self.save()
            step = self.trainer.progress.step
            self.warn(f"a node that trains will be taken away; a checkpoint of step {step} is being written")
        self.preemption = preemption

    def _saved(self, saved: Saved) -> None:
        self.telemetry.checkpoint(seconds=saved.seconds, stall_seconds=self.stalled, step=saved.step)
        # Listeners may stop this training or use its result, so validations are reported only once durable.
        for row in [row for row in self.unreported if row["step"] <= saved.step]:
            self.progress_actor.validated.remote(row)
            self.unreported.remove(row)


def _heed_notices(lead: _RankZero | None, place: Place) -> None:
    """Share what only worker 0 knows, so that all workers act at the same step."""
    stop, look = distributed.any_worker(lead.notices() if lead else [False, False], place.device)
    if look:
        preemption = place.preemption()
        if lead is not None:
            lead.heed(preemption)
    if stop:
        if lead is not None:
            lead.stop()
        raise StoppedError("asked to stop")


def _check_images(data: PreparedData, job: Job, device: torch.device) -> None:
    """Verify all shards while every node copies them. Raises on all workers when one finds a damaged shard."""
    problem: DataError | None = None
    try:
        EncodedCache(data)
    except DataError as error:
        problem = error
        ray.get(job["progress_actor"].end.remote(problem))  # before rank 0 reports the end of training
    if distributed.any_worker([problem is not None], device)[0]:
        raise StoppedError("images are damaged")


def _reset_watchdog(recipe: config.Recipe) -> None:
    """Restart the timer that dumps all stacks and exits when a step takes too long; a hung worker is then replaced."""
    faulthandler.dump_traceback_later(recipe.train.step_timeout_s, exit=True, file=sys.__stderr__ or 2)
