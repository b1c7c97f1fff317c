"""Driver side of a training: start the workers, relay their messages, record the outcome."""

from __future__ import annotations

import contextlib
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from icre import config
from icre.errors import IcreError, StorageError, TrainingError
from pipelines.data.prepared import open_data
from pipelines.runs.run import Run
from pipelines.runtime.console import warned_of
from pipelines.telemetry.prometheus import write_summary
from pipelines.training.launch import steps_per_epoch
from pipelines.training.progress import follow, on_validation, start_progress_actor
from pipelines.training.worker_loop import Job, train_worker


def execute(run: Run, *, listen: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Train ``run`` inside an open Ray session. Raises TrainingError when the workers fail permanently.

    listen: called with the metrics row of each validation, from another thread.
    """
    recipe = run.recipe
    run.write_status("running")
    started = time.monotonic()
    restarts: list[dict[str, Any]] = []
    try:
        data = open_data(recipe)
        progress_actor = start_progress_actor()
        job = Job(
            recipe=recipe.to_dict(),
            run=run.location.url,
            data=data.location.url,
            steps_per_epoch=steps_per_epoch(recipe, data),
            progress_actor=progress_actor,
        )
        failure = _fit(recipe, run, job, listen)
        restarts = cast(Any, ray.get(progress_actor.history.remote()))
        if failure is not None:
            raise failure
    except IcreError as error:
        # The storage may be what failed: the original error matters more than failing to record it.
        with warned_of(StorageError):
            run.write_failure(error, restarts=restarts)
        write_summary(run, recipe, succeeded=False, seconds=time.monotonic() - started)
        raise
    except KeyboardInterrupt:
        run.write_status("failed", error="stopped by Ctrl-C")
        raise
    write_summary(run, recipe, succeeded=True, seconds=time.monotonic() - started)
    run.write_status("finished", restarts=restarts)


def _fit(
    recipe: config.Recipe, run: Run, job: Job, listen: Callable[[dict[str, Any]], None] | None
) -> IcreError | None:
    """Train until the workers end; return the error that ended training early, or None."""
    progress_actor = job["progress_actor"]
    try:
        with (
            follow(progress_actor, "train"),
            on_validation(progress_actor, listen),
            _stopping_on_sigterm(progress_actor),
        ):
            if recipe.train.workers == 0:
                train_worker(dict(job))
            else:
                _trainer(recipe, run, job).fit()
            return cast(IcreError | None, ray.get(progress_actor.ended.remote()))
    except TrainingFailedError as error:
        _give_back(progress_actor)
        return explain(error)
    except RayActorError:  # the controller of Ray Train died; a sweep retries such a training
        _give_back(progress_actor)
        raise


def _give_back(progress_actor: ActorHandle[Any]) -> None:
    """Remove the placement groups of the workers.

    Ray Train normally does this, but not when a node that ran out of memory killed both its controller and its cleanup.
    The resources would then stay reserved until the command ends.
    """
    for group in cast(list[PlacementGroup], ray.get(progress_actor.all_places.remote())):
        remove_placement_group(group)


@contextlib.contextmanager
def _stopping_on_sigterm(progress_actor: ActorHandle[Any]) -> Iterator[None]:
    """On SIGTERM, which clusters send before removing a machine, write a checkpoint and stop cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals only to the main thread
        return
    asked, over = threading.Event(), threading.Event()

    def pass_on() -> None:
        asked.wait()
        if not over.is_set():
            ray.get(progress_actor.stop.remote())

    # Ray must not be called inside the handler, which interrupts Ray's own wait for the training.
    threading.Thread(target=pass_on, daemon=True).start()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        over.set()
        asked.set()


def explain(error: TrainingFailedError) -> IcreError:
    """The first error of a worker that a user can act on; otherwise a TrainingError with a one-line cause."""
    failures = [_origin(failure) for failure in getattr(error, "worker_failures", {}).values()]
    for failure in failures:
        if isinstance(failure, IcreError):
            return failure
    said = in_a_line(failures[0] if failures else error)
    return TrainingError(f"training failed: {said}", hint="the workers' tracebacks are in the run folder under logs/")


def _origin(failure: Exception) -> BaseException:
    """The exception a worker raised, or Ray's error for a lost worker, without Ray Train's wrapping."""
    inner: BaseException = getattr(failure, "health_check_failure", failure)
    return getattr(inner, "cause", None) or inner


def in_a_line(failure: BaseException) -> str:
    """Type and message of an exception on one line, without the ids that Ray lists below it."""
    # Ray lists the ids of dead actors and nodes on separate lines, which start with a tab.
    lines = [line for line in str(failure).splitlines() if not line.startswith("\t")]
    return textwrap.shorten(f"{type(failure).__name__}: {' '.join(lines)}", 500, placeholder=" …")


def _trainer(recipe: config.Recipe, run: Run, job: Job) -> TorchTrainer:
    train = recipe.train
    filesystem, path = run.location.arrow()
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.gpus_per_worker else {})
    return TorchTrainer(
        train_worker,
        train_loop_config=dict(job),
        scaling_config=ScalingConfig(
            num_workers=train.workers,  # type: ignore[arg-type]  # Ray's annotation lacks the pair of elastic counts
            use_gpu=bool(train.gpus_per_worker),
            resources_per_worker=resources,
        ),
        # Ray Train requires a storage path, although nothing is reported to it that it would store there.
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
    )
