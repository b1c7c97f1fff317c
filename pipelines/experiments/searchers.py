"""Who chooses the next values of a sweep, and who stops its trainings early.

Both are told, when a sweep goes on, what its trainings have reached before: from the run folders, which are written by
the training and are durable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from icre import config
from icre.config import Interval
from icre.errors import ConfigError
from pipelines.experiments.outcomes import Outcome, is_settled
from pipelines.experiments.trial import Sweep, chosen_trial
from pipelines.runs.run import Run

ATTEMPTS = 100
"""Choices in a row that break a rule between keys before the space is given up."""


def scheduler_of(sweep: Sweep, settled: Sequence[Run] = ()) -> TrialScheduler | None:
    """Who stops trainings early; None: nobody.

    settled: runs of the sweep that are not trained any more, and that the others are compared with.
    """
    base = sweep.base
    settings, by = base.tune, base.checkpoints.best
    if settings.method == "asha":
        return Asha(
            sweep,
            settled,
            # Epochs, as Tune's own count of reports starts again where a training goes on.
            time_attr="epoch",
            metric=f"best_{by}",
            mode="max",
            max_t=base.train.epochs,
            grace_period=min(settings.grace_epochs, base.train.epochs),
            reduction_factor=settings.reduction,
        )
    return None


class Asha(ASHAScheduler):
    """ASHA that knows, when a sweep goes on, what its trainings had reached before: Tune does not keep its rungs."""

    def __init__(self, sweep: Sweep, settled: Sequence[Run], **settings: Any) -> None:
        super().__init__(**settings)
        self._sweep = sweep
        for run in settled:
            past = SimpleNamespace(trial_id=run.name)
            super().on_trial_add(None, past)  # type: ignore[arg-type]  # its id is all that is asked for
            self._fill(None, past, run)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A training that begins or goes on: its rungs are filled from its run's validations."""
        super().on_trial_add(tune_controller, trial)
        self._fill(tune_controller, trial, self._sweep.run_of(trial.config, trial.trial_id))

    def _fill(self, tune_controller: Any, trial: Any, run: Run) -> None:
        by, best = self._sweep.base.checkpoints.best, 0.0
        for row in run.validations():
            best = max(best, row[by])
            # What it would decide now is void: that was decided then.
            self.on_trial_result(tune_controller, trial, {"epoch": row["epoch"] + 1, f"best_{by}": best})


def searcher_of(sweep: Sweep, before: Sequence[Outcome] = (), *, retry_failed: bool = False) -> Searcher | None:
    """Who chooses the next values from the results so far; None: they are listed.

    before: trainings of the sweep. Those that are settled are its memory; those that are not are what it begins with.
    """
    base = sweep.base
    settings, by = base.tune, base.checkpoints.best
    if settings.method != "tpe":
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settled = [outcome for outcome in before if is_settled(outcome, base, retry_failed=retry_failed)]
    begun = [outcome for outcome in before if outcome not in settled]
    searcher = OptunaSearch(
        space={f"values/{key}": _distribution(values) for key, values in settings.space.items()},
        metric=f"best_{by}",
        mode="max",
        points_to_evaluate=[_point(outcome.labels, base) for outcome in [*settled, *begun]] or None,
        # Its random numbers begin anew: with the same seed it would draw again what is trained already.
        seed=int(np.random.SeedSequence([base.seed, len(before)]).generate_state(1)[0]),
    )
    for outcome in settled:
        searcher.suggest(outcome.run)
        searcher.on_trial_complete(outcome.run, _result(outcome))
    return Continued(searcher, sweep, [outcome.run for outcome in begun])


class Continued(Searcher):
    """A searcher that gives every choice its run: first those that were begun before, then new ones.

    A choice that breaks a rule between keys is none: the searcher hears that it came to nothing, and is asked again.
    """

    def __init__(self, searcher: Searcher, sweep: Sweep, begun: Sequence[str]) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self._searcher, self._sweep, self._begun = searcher, sweep, list(begun)
        self._choices: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """``{"values": …, "run": …}``. Raises ConfigError when nothing that is chosen makes a recipe."""
        run = self._begun.pop(0) if self._begun else f"{self._sweep.name}-{trial_id}"
        for attempt in range(ATTEMPTS):
            choice = f"{trial_id}/{attempt}"
            settings = {**(self._searcher.suggest(choice) or {}), "run": run}
            try:
                chosen_trial(settings["values"], self._sweep, run)
            except ConfigError as error:
                self._searcher.on_trial_complete(choice)
                refused = error
                continue
            self._choices[trial_id] = choice
            return settings
        raise ConfigError(
            f"{ATTEMPTS} choices in a row out of tune.space break a rule between keys; the last one: {refused.message}",
            hint="narrow tune.space to values that go together",
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A validation."""
        self._searcher.on_trial_result(self._choices[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a training; one that failed came to nothing, whatever it had reached before."""
        failed = result is not None and "run" in result and self._sweep.run_called(result["run"]).state == "failed"
        self._searcher.on_trial_complete(self._choices[trial_id], None if failed else result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what it remembers is in the run folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for :meth:`save`."""


def _result(outcome: Outcome) -> dict[str, Any] | None:
    """What the searcher was told, or would have been, at the end of a training."""
    return {f"best_{name}": value for name, value in outcome.reached.items()} if outcome.reached else None


def _point(values: Mapping[str, Any], base: config.Recipe) -> dict[str, Any]:
    """Values in the words of :func:`_distribution`."""
    listed = {key for key, choices in base.tune.space.items() if not isinstance(choices, Interval)}
    return {f"values/{key}": json.dumps(value) if key in listed else value for key, value in values.items()}


def _distribution(values: list[Any] | Interval) -> Any:
    """The values of one key in Optuna's words, which has words and numbers only for the items of a list."""
    from optuna import distributions

    if not isinstance(values, Interval):
        return distributions.CategoricalDistribution([json.dumps(value) for value in values])
    if values.integer:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)
