"""Many trainings on one cluster, by Ray Tune: how many at once, in which order, which ones stop early.

What a training has reached is in its run folder, and a sweep goes on with a new Tune experiment over what is not
finished.
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
"""Reserved for the process that starts a training and waits for it. Tune wants it to reserve something, and no CPU: on
nodes that are filled to the last one, a training would wait for ever for what those processes hold."""

_ENVIRONMENT = {
    # The sweep's own table is what is written; Tune's loggers would write three files for each trial.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the command at once: run folders and the newest snapshot are all that going on needs.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Its banner and its errors would go to standard output, which holds results only.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A training that fails in its first epoch reports nothing.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Seconds between snapshots.
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
}


def run_trials(sweep: Sweep, numbers: Sequence[int], *, concurrent: int, retry_failed: bool = False) -> None:
    """Train the trials of ``sweep`` with these numbers, or whatever its searcher chooses, inside an open Ray session.

    A training that fails is recorded as failed and stops no other; with ``retry_failed``, one that is recorded so is
    trained. Raises TrainingError when Tune itself fails.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    base = sweep.base
    others = _others(sweep, numbers, retry_failed=retry_failed)
    # A trial needs next to nothing itself: Ray Train reserves what its workers need. Without workers it trains itself.
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
            # Of the process that starts the training, with its node; what is wrong with a training is not retried.
            failure_config=tune.FailureConfig(max_failures=base.train.max_failures),
            callbacks=[SweepCallback(sweep, len(sweep.trials) or base.tune.trials, others)],
            verbose=0,
        ),
    )
    try:
        # Tune prints even where it was told not to, and standard output holds results only.
        with SweepCallback.shown(), contextlib.redirect_stdout(io.StringIO()):
            tuner.fit()
    except tune.TuneError as error:
        raise TrainingError(
            f"the sweep {sweep.name} stopped: {error}",
            hint="the same command goes on; its logs are in the sweep's logs/",
        ) from error


def _others(sweep: Sweep, numbers: Sequence[int], *, retry_failed: bool) -> list[Outcome]:
    """Trainings of the sweep that are not trained now."""
    now = {sweep.trials[number].run for number in numbers}
    outcomes = outcomes_of(sweep)
    if sweep.trials:
        return [outcome for outcome in outcomes if outcome.run not in now]
    return [outcome for outcome in outcomes if is_settled(outcome, sweep.base, retry_failed=retry_failed)]


def concurrency(recipe: config.Recipe, *, cpus: Sequence[float], gpus: Sequence[float]) -> int:
    """Trainings that fit side by side. cpus, gpus: logical ones of each node.

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
    """Trainings at the same time on the open session's cluster: the recipe's number, or as there is room for."""
    if recipe.tune.concurrent is not None or not os.environ.get("RAY_ADDRESS"):
        return local_room(recipe)
    alive: Any = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in alive if node["Alive"]]
    return concurrency(
        recipe, cpus=[node.get("CPU", 0.0) for node in nodes], gpus=[node.get("GPU", 0.0) for node in nodes]
    )


def local_room(recipe: config.Recipe) -> int:
    """The same for a Ray of the command's own, which may be told of more CPUs than this machine has."""
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
