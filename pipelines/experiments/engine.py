"""Run many trainings on one cluster with Ray Tune: concurrency, order and early stopping.

Results are stored in the run folders. A resumed sweep starts a new Tune experiment for its unfinished trainings.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import ray
from ray import tune

from icre import config
from icre.errors import ConfigError, TrainingError
from pipelines.experiments.outcomes import Outcome, is_settled, outcomes_of
from pipelines.experiments.searchers import scheduler_of, searcher_of
from pipelines.experiments.trial import Sweep
from pipelines.experiments.trial_process import train_trial
from pipelines.experiments.watch import SweepCallback
from pipelines.runtime.session import Demand
from pipelines.storage import Storage

WAITING = {"memory": float(2**20)}
"""Reservation of the process that starts a training and waits for it. Tune requires one. It includes no CPU: on fully
used nodes, trainings would otherwise wait forever for the CPUs these processes hold."""

_ENVIRONMENT = {
    # The sweep writes its own table; Tune's loggers would write three more files per trial.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the command at once: resuming needs only the run folders and the newest snapshot.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Ray's banner and errors would otherwise go to standard output, which is reserved for results.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A training that fails in its first epoch reports nothing.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Seconds between snapshots.
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
}


def run_trials(sweep: Sweep, numbers: Sequence[int], *, concurrent: int, retry_failed: bool = False) -> None:
    """Train the given trials of ``sweep``, or those its searcher chooses, inside an open Ray session.

    A failed training is recorded and does not stop the others; ``retry_failed`` trains recorded failures again.
    Raises TrainingError when Tune itself fails.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    base = sweep.base
    others = _others(sweep, numbers, retry_failed=retry_failed)
    # Trials need few resources: Ray Train reserves those of its workers. Without workers, the trial itself trains.
    train = base.train
    reserved = WAITING if train.workers else {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker}
    trainable = tune.with_resources(tune.with_parameters(train_trial, sweep=sweep, retry_failed=retry_failed), reserved)
    filesystem, path = (Storage(sweep.location) / "tune").arrow()
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(numbers))} if sweep.trials else {},
        tune_config=_tune_config(sweep, others, concurrent=concurrent, retry_failed=retry_failed),
        run_config=tune.RunConfig(
            name=f"{base.tune.method}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
            storage_path=path,
            storage_filesystem=filesystem,
            # For the process that starts a training and its node; errors of the training are not retried.
            failure_config=tune.FailureConfig(max_failures=base.train.max_failures),
            callbacks=[SweepCallback(sweep, len(sweep.trials) or base.tune.trials, others)],
            verbose=0,
        ),
    )
    try:
        # Tune prints even with verbose=0, and standard output is reserved for results.
        with SweepCallback.shown(), contextlib.redirect_stdout(io.StringIO()):
            tuner.fit()
    except tune.TuneError as error:
        raise TrainingError(
            f"the sweep {sweep.name} stopped: {error}",
            hint="the same command goes on; its logs are in the sweep's logs/",
        ) from error


def _others(sweep: Sweep, numbers: Sequence[int], *, retry_failed: bool) -> list[Outcome]:
    """Trainings of the sweep that are not part of this invocation."""
    now = {sweep.trials[number].run for number in numbers}
    outcomes = outcomes_of(sweep)
    if sweep.trials:
        return [outcome for outcome in outcomes if outcome.run not in now]
    return [outcome for outcome in outcomes if is_settled(outcome, sweep.base, retry_failed=retry_failed)]


def concurrency(recipe: config.Recipe, *, cpus: Sequence[float], gpus: Sequence[float]) -> int:
    """Number of trainings that fit at once. cpus, gpus: logical CPUs and GPUs of each node.

    Raises ConfigError when not even one fits.
    """
    train = recipe.train
    workers, _ = train.worker_range
    loaders = train.loaders * train.loader_cpus if train.cache == "encoded" else 0.0
    each = train.cpus_per_worker + loaders
    places = 0
    for node_cpus, node_gpus in zip(cpus, gpus, strict=True):
        by_cpu = math.floor(node_cpus / each + 1e-9)
        places += min(by_cpu, math.floor(node_gpus)) if train.gpus_per_worker else by_cpu
    if places < workers:
        raise ConfigError(
            f"a training needs {workers} worker(s) with {each:g} CPUs (decode tasks included) and "
            f"{train.gpus_per_worker} GPU each; the cluster has room for {places}: CPUs of its nodes {list(cpus)}, "
            f"GPUs {list(gpus)}",
            hint="lower train.workers, train.cpus_per_worker or train.loaders, or start more nodes",
        )
    return places // workers


def room(recipe: config.Recipe) -> int:
    """Concurrent trainings in the open session's cluster: the recipe's setting, or as many as fit."""
    if recipe.tune.concurrent is not None or not os.environ.get("RAY_ADDRESS"):
        return local_room(recipe)
    alive: Any = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in alive if node["Alive"]]
    return concurrency(
        recipe, cpus=[node.get("CPU", 0.0) for node in nodes], gpus=[node.get("GPU", 0.0) for node in nodes]
    )


def local_room(recipe: config.Recipe) -> int:
    """The same for the command's own Ray, which may be configured with more CPUs than this machine has."""
    if recipe.tune.concurrent is not None:
        return recipe.tune.concurrent
    return max(1, int((os.cpu_count() or 1) // Demand.of_training(recipe.train).cpus))


def _tune_config(
    sweep: Sweep, others: Sequence[Outcome], *, concurrent: int, retry_failed: bool = False
) -> tune.TuneConfig:
    settings = sweep.base.tune
    chosen = 0 if sweep.trials else settings.trials - len(others)
    return tune.TuneConfig(
        search_alg=searcher_of(sweep, outcomes_of(sweep), retry_failed=retry_failed),
        scheduler=scheduler_of(sweep, [sweep.run_called(outcome.run) for outcome in others]),
        num_samples=chosen or 1,
        max_concurrent_trials=concurrent,
        time_budget_s=None if settings.hours is None else settings.hours * 3600,
        trial_name_creator=lambda trial: str(trial.trial_id),
        trial_dirname_creator=lambda trial: str(trial.trial_id),
    )
