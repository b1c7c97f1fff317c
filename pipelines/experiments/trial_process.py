"""One training of a sweep in its own process: started by Ray Tune, it runs Ray Train."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from icre.errors import ConfigError, DataError, IcreError, UserError, WeightsError
from pipelines.data.prepared import open_data
from pipelines.experiments.trial import METRICS, Sweep, Trial, chosen_trial, lineage
from pipelines.runs.run import Run, create_run
from pipelines.training import execution, launch


def train_trial(settings: dict[str, Any], *, sweep: Sweep, retry_failed: bool = False) -> None:
    """Train one trial from the current state of its run, and report every validation to Tune.

    settings: ``{"trial": its number}``, or a searcher's choice, ``{"values": {key: value}, "run": name}``.
    Permanent failures are recorded in the run's status.json and do not raise, because Tune retries after an exception.
    """
    run = sweep.run_of(settings, _trial_id())
    try:
        trial = _trial_of(settings, sweep, run.name)
        run = _run_of(trial, sweep)
    except UserError as error:  # storage missing on this node, invalid values, or unsuitable images
        run.write_failure(error, sweep=sweep.name)
        return
    tell = _teller(run)
    _tell_newest(run, tell)
    if run.state == "finished" or (run.state == "failed" and not retry_failed):
        return
    # The last epoch is reported after training finished: a scheduler that stops there would interrupt the shutdown.
    last = run.recipe.train.epochs - 1
    with contextlib.suppress(IcreError):  # recorded by execute
        execution.execute(run, listen=lambda row: tell(row) if row["epoch"] < last else None)
        _tell_newest(run, tell)


def _tell_newest(run: Run, tell: Callable[[Mapping[str, Any]], None]) -> None:
    for row in run.validations()[-1:]:
        tell(row)


def _trial_of(settings: Mapping[str, Any], sweep: Sweep, run: str) -> Trial:
    if "trial" in settings:
        listed: int = settings["trial"]
        return sweep.trials[listed]
    return chosen_trial(settings["values"], sweep, run)


def _trial_id() -> str:
    return str(tune.get_context().get_trial_id())


def _run_of(trial: Trial, sweep: Sweep) -> Run:
    """The trial's run. If it cannot be started with these images, it is created as failed, with the reason."""
    run = sweep.run_called(trial.run)
    if not (run.location / "manifest.json").exists():
        try:
            launch.start(trial.recipe, trial.run, lineage=lineage(trial, sweep))
        except (ConfigError, DataError, WeightsError) as error:
            recipe, data = launch.as_started(trial.recipe), open_data(sweep.base)
            made_from = lineage(trial, sweep)
            create_run(recipe, trial.run, data=data.manifest, data_url=data.location.url, lineage=made_from)
            run.write_failure(error)
    return run


def _teller(run: Run) -> Callable[[Mapping[str, Any]], None]:
    """Returns a function that reports a validation to Tune with the run's best so far, skipping repeated ones."""
    best_by = run.recipe.checkpoints.best
    told = 0

    def tell(row: Mapping[str, Any]) -> None:
        nonlocal told
        if row["epoch"] < told:
            return
        told = row["epoch"] + 1
        # Read from the run folder, which includes validations from before a restart.
        best = max((own for own in run.validations() if own["epoch"] < told), key=lambda own: float(own[best_by]))
        report = {
            "epoch": told,
            "step": row["step"],
            "run": run.name,
            **{name: row[name] for name in METRICS},
            **{f"best_{name}": best[name] for name in METRICS},
        }
        tune.report(report)

    return tell
