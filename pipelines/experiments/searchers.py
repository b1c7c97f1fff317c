"""Ray Tune searchers and schedulers of a sweep.

On resume, both are initialised from the validations in the run folders, which are durable.
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
"""Consecutive choices that break a rule between keys before the search is abandoned."""


def scheduler_of(sweep: Sweep, settled: Sequence[Run] = ()) -> TrialScheduler | None:
    """The scheduler that stops trainings early, or None.

    settled: runs that are not trained any further, against which the others are compared.
    """
    base = sweep.base
    settings, by = base.tune, base.checkpoints.best
    if settings.method == "asha":
        return Asha(
            sweep,
            settled,
            # Epochs, because Tune's count of reports restarts when a training resumes.
            time_attr="epoch",
            metric=f"best_{by}",
            mode="max",
            max_t=base.train.epochs,
            grace_period=min(settings.grace_epochs, base.train.epochs),
            reduction_factor=settings.reduction,
        )
    return None


class Asha(ASHAScheduler):
    """ASHA that restores its rungs from the run folders on resume: Tune does not keep them."""

    def __init__(self, sweep: Sweep, settled: Sequence[Run], **settings: Any) -> None:
        super().__init__(**settings)
        self._sweep = sweep
        for run in settled:
            past = SimpleNamespace(trial_id=run.name)
            super().on_trial_add(None, past)  # type: ignore[arg-type]  # only the id is used
            self._fill(None, past, run)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Called when a training starts or resumes: fills its rungs from its run's validations."""
        super().on_trial_add(tune_controller, trial)
        self._fill(tune_controller, trial, self._sweep.run_of(trial.config, trial.trial_id))

    def _fill(self, tune_controller: Any, trial: Any, run: Run) -> None:
        by, best = self._sweep.base.checkpoints.best, 0.0
        for row in run.validations():
            best = max(best, row[by])
            # Decisions are ignored here: they were made when the validation first happened.
            self.on_trial_result(tune_controller, trial, {"epoch": row["epoch"] + 1, f"best_{by}": best})


def searcher_of(sweep: Sweep, before: Sequence[Outcome] = (), *, retry_failed: bool = False) -> Searcher | None:
    """The searcher that chooses the next values from results so far; None if they are listed in advance.

    before: trainings of the sweep. Settled ones initialise the searcher; the others are resumed first.
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
        # Random numbers restart on resume: the same seed would draw values that are already trained.
        seed=int(np.random.SeedSequence([base.seed, len(before)]).generate_state(1)[0]),
    )
    for outcome in settled:
        searcher.suggest(outcome.run)
        searcher.on_trial_complete(outcome.run, _result(outcome))
    return Continued(searcher, sweep, [outcome.run for outcome in begun])


class Continued(Searcher):
    """A searcher that assigns each choice a run: first those already started, then new ones.

    A choice that breaks a rule between keys is reported as failed to the wrapped searcher, and another one is drawn.
    """

    def __init__(self, searcher: Searcher, sweep: Sweep, begun: Sequence[str]) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self._searcher, self._sweep, self._begun = searcher, sweep, list(begun)
        self._choices: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """``{"values": …, "run": …}``. Raises ConfigError when too many choices in a row do not form a valid recipe."""
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
        """Forward a validation."""
        self._searcher.on_trial_result(self._choices[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Forward the end of a training; a failed one has no result, regardless of its earlier validations."""
        failed = result is not None and "run" in result and self._sweep.run_called(result["run"]).state == "failed"
        self._searcher.on_trial_complete(self._choices[trial_id], None if failed else result, error)

    def save(self, checkpoint_path: str) -> None:
        """No-op: all state is in the run folders."""

    def restore(self, checkpoint_path: str) -> None:
        """No-op, as for :meth:`save`."""


def _result(outcome: Outcome) -> dict[str, Any] | None:
    """The result that is reported to the searcher at the end of a training."""
    return {f"best_{name}": value for name, value in outcome.reached.items()} if outcome.reached else None


def _point(values: Mapping[str, Any], base: config.Recipe) -> dict[str, Any]:
    """Values in the representation of :func:`_distribution`."""
    listed = {key for key, choices in base.tune.space.items() if not isinstance(choices, Interval)}
    return {f"values/{key}": json.dumps(value) if key in listed else value for key, value in values.items()}


def _distribution(values: list[Any] | Interval) -> Any:
    """Optuna distribution of one key. List items are JSON-encoded, because Optuna takes only strings and numbers."""
    from optuna import distributions

    if not isinstance(values, Interval):
        return distributions.CategoricalDistribution([json.dumps(value) for value in values])
    if values.integer:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)
