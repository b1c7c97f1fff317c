"""Many trainings on one cluster, by Ray Tune: how many at once, in which order, which ones stop early.

What a training has reached is in its run folder. Tune's own snapshot, in ``tune/`` of the sweep's folder, matters only
where a searcher remembers something, or a scheduler has stopped some; elsewhere a sweep goes on with a new Tune
experiment over what is unfinished.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from icre import config
from icre.config import Interval
from icre.errors import ConfigError, TrainingError
from pipelines.session import Demand
from pipelines.storage import Storage
from pipelines.tuning.trial import Sweep, train_trial
from pipelines.tuning.watch import STATUS, Watch

REMEMBERING = ("asha", "tpe", "pbt")
"""Methods whose scheduler or searcher has a memory."""
TRIAL = {"memory": float(2**20)}
"""Of the process that starts a training and waits for it. Tune wants it to reserve something, and no CPU: on nodes that
are filled to the last one, a training would wait for ever for what those processes hold."""

_ENVIRONMENT = {
    # The sweep's own table is what is written; Tune's loggers would write three files for each trial.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the command at once: run folders and the newest snapshot are all that going on needs.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Its banner and its errors would go to standard output, which holds results only.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A training that fails in its first epoch reports nothing.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Seconds between snapshots of what schedulers and searchers remember.
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
}


def run_trials(sweep: Sweep, numbers: Sequence[int], *, concurrent: int) -> None:
    """Train the trials of ``sweep`` with these numbers, or whatever its searcher chooses, inside an open Ray session.

    A training that fails is recorded as failed and stops no other. Raises TrainingError when Tune itself fails.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    base = sweep.base
    # A trial needs next to nothing itself: Ray Train reserves what its workers need.
    trainable = tune.with_resources(tune.with_parameters(train_trial, sweep=sweep), TRIAL)
    filesystem, path = (Storage(sweep.location) / "tune").arrow()
    snapshot = f"{path}/state"
    remembers = base.tune.method in REMEMBERING
    if remembers and tune.Tuner.can_restore(snapshot, storage_filesystem=filesystem):
        tuner = tune.Tuner.restore(snapshot, trainable=trainable, resume_errored=True, storage_filesystem=filesystem)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=_param_space(base, numbers),
            tune_config=_tune_config(sweep, concurrent=concurrent),
            run_config=tune.RunConfig(
                name="state" if remembers else f"listed-{datetime.now(UTC):%Y%m%d-%H%M%S}",
                storage_path=path,
                storage_filesystem=filesystem,
                # Of the process that starts the training, with its node; what is wrong with a training is not retried.
                failure_config=tune.FailureConfig(max_failures=base.train.max_failures),
                callbacks=[Watch(sweep, len(numbers) or base.tune.trials)],
                verbose=0,
            ),
        )
    try:
        # Tune prints even where it was told not to, and standard output holds results only.
        with contextlib.redirect_stdout(io.StringIO()):
            tuner.fit()
    except tune.TuneError as error:
        raise TrainingError(
            f"the sweep {sweep.name} stopped: {error}",
            hint="the same command goes on; its logs are in the sweep's logs/",
        ) from error


def is_over(sweep: Sweep) -> bool:
    """Whether its scheduler or searcher has ended all that it began, and begins no more; what it stopped stays so."""
    status = Storage(sweep.location) / STATUS
    if sweep.base.tune.method not in REMEMBERING or not status.exists():
        return False
    last = status.read_json()
    return last["state"] == "over" and not last["counts"]["pending"] and not last["counts"]["running"]


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


def _param_space(base: config.Recipe, numbers: Sequence[int]) -> dict[str, Any]:
    if base.tune.method in ("tpe", "pbt"):
        return {}
    # Numbers, not trials: Tune gives back a placeholder for anything else when it goes on.
    return {"trial": tune.grid_search(list(numbers))}


def _tune_config(sweep: Sweep, *, concurrent: int) -> tune.TuneConfig:
    base, settings = sweep.base, sweep.base.tune
    searched = settings.method in ("tpe", "pbt")
    return tune.TuneConfig(
        search_alg=searcher_of(base),
        scheduler=scheduler_of(sweep),
        num_samples=settings.trials if searched else 1,
        # The whole population of pbt is alive at once, or those that wait would pause the others at every takeover.
        max_concurrent_trials=concurrent,
        time_budget_s=None if settings.hours is None else settings.hours * 3600,
        trial_name_creator=lambda trial: str(trial.trial_id),
        trial_dirname_creator=lambda trial: str(trial.trial_id),
    )


def scheduler_of(sweep: Sweep) -> TrialScheduler | None:
    """Who stops trainings early, or lets them take over from others; None: nobody."""
    base = sweep.base
    settings, by = base.tune, base.checkpoints.best
    if settings.method == "asha":
        return Asha(
            sweep,
            # Epochs, as Tune's own count of reports starts again where a training goes on.
            time_attr="epoch",
            metric=f"best_{by}",
            mode="max",
            max_t=base.train.epochs,
            grace_period=min(settings.grace_epochs, base.train.epochs),
            reduction_factor=settings.reduction,
        )
    if settings.method == "pbt":
        return PopulationBasedTraining(
            time_attr="epoch",
            metric=by,
            mode="max",
            perturbation_interval=settings.grace_epochs,
            hyperparam_mutations={"values": {key: _domain(values) for key, values in settings.space.items()}},
        )
    return None


class Asha(ASHAScheduler):
    """ASHA that knows, when a sweep goes on, what its trainings had reached before: Tune does not keep its rungs."""

    def __init__(self, sweep: Sweep, **settings: Any) -> None:
        super().__init__(**settings)
        self._sweep = sweep

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial of a new sweep, or one of a sweep that goes on: its rungs are filled from its run's validations."""
        super().on_trial_add(tune_controller, trial)
        by, best = self._sweep.base.checkpoints.best, 0.0
        for row in self._sweep.run_of(trial.config, trial.trial_id).metrics():
            if row["kind"] == "validation":
                best = max(best, row[by])
                # What it would decide now is void: that was decided then.
                self.on_trial_result(tune_controller, trial, {"epoch": row["epoch"] + 1, f"best_{by}": best})


def searcher_of(base: config.Recipe) -> Searcher | None:
    """Who chooses the next values from the results so far; None: they are listed, or drawn by the scheduler."""
    settings, by = base.tune, base.checkpoints.best
    if settings.method != "tpe":
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    metrics = [f"best_{name}" for name in settings.objectives] or [f"best_{by}"]
    return OptunaSearch(
        space={f"values/{key}": _distribution(values) for key, values in settings.space.items()},
        metric=metrics if len(metrics) > 1 else metrics[0],
        mode=["max"] * len(metrics) if len(metrics) > 1 else "max",
        seed=base.seed,
    )


def _domain(values: list[Any] | Interval) -> Any:
    """The values of one key in Tune's words."""
    if not isinstance(values, Interval):
        return list(values)
    if values.integer:
        drawn = tune.lograndint if values.log else tune.randint
        return drawn(int(values.low), int(values.high) + 1)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def _distribution(values: list[Any] | Interval) -> Any:
    """The values of one key in Optuna's words."""
    from optuna import distributions

    if not isinstance(values, Interval):
        return distributions.CategoricalDistribution([json.dumps(value) for value in values])
    if values.integer:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)
