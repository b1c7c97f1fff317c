"""One training of a sweep, in a process of its own on the cluster: Ray Tune calls it, it calls Ray Train."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from icre import config
from icre.errors import ConfigError, DataError, IcreError, UserError, WeightsError
from pipelines.data.prepared import open_data
from pipelines.runs import Run, create_run, runs
from pipelines.storage import Storage
from pipelines.training import execution, launch
from pipelines.training.fork import fork
from pipelines.tuning.trial import METRICS, Sweep, Trial, chosen_trial, lineage

POINTER = "pointer.json"
"""What Tune keeps of a training that others may take over: which run and which step, not the weights themselves."""


def train_trial(settings: dict[str, Any], *, sweep: Sweep, retry_failed: bool = False) -> None:
    """Train one trial from wherever its run stands; every validation goes to Tune as it is made.

    settings: ``{"trial": its number}``, or what was chosen, ``{"values": {key: value}, "run": name}``.
    Returns, too, when it fails for a reason that would be there again, and which status.json of its run then says: Tune
    starts anew whatever raises.
    """
    base = sweep.base
    taken_over = base.tune.method == "pbt"
    run = sweep.run_of(settings, _trial_id())
    try:
        trial = _trial_of(settings, sweep, run.name)
        run = _run_of(trial, base, sweep) if not taken_over else _run_taken_over(trial, base, sweep)
    except UserError as error:  # a node without the storage, a value that breaks a rule, images that do not allow it
        run.write_failure(error, sweep=sweep.name)
        return
    tell = _teller(run, with_pointer=taken_over)
    _tell_newest(run, tell)
    if run.state == "finished" or (run.state == "failed" and not retry_failed):
        return
    # The last epoch is told of after the end, or a scheduler that stops there would cut the end off.
    last = run.recipe.train.epochs - 1
    with contextlib.suppress(IcreError):  # which execute writes down
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


def _run_of(trial: Trial, base: config.Recipe, sweep: Sweep) -> Run:
    """The trial's run. One that cannot be started, by these images, is there too: as failed, with the reason."""
    run = sweep.run_called(trial.run)
    if not (run.location / "manifest.json").exists():
        try:
            launch.start(trial.recipe, trial.run, lineage=lineage(trial, sweep))
        except (ConfigError, DataError, WeightsError) as error:
            create_run(launch.as_started(trial.recipe), trial.run, open_data(base), lineage=lineage(trial, sweep))
            run.write_failure(error)
    return run


def _run_taken_over(trial: Trial, base: config.Recipe, sweep: Sweep) -> Run:
    """The run that this trial is at. Another trial's checkpoint: a new run that goes on from it with other values."""
    kept = tune.get_checkpoint()
    if kept is None:
        return _run_of(trial, base, sweep)
    with kept.as_directory() as folder:
        pointer = json.loads((Path(folder) / POINTER).read_text())
    if pointer["trial"] == _trial_id():
        return Run(runs(Storage(base.storage)) / pointer["run"])
    # The name says whose weights it has, so that a second attempt at the same takeover finds the first one's run.
    source = Run(runs(Storage(base.storage)) / pointer["run"])
    _leave(trial.run, base)
    trial = replace(trial, run=f"{trial.run}-from-{pointer['trial']}-{pointer['step']}")
    return fork(source, trial.recipe, trial.run, step=pointer["step"], lineage=lineage(trial, sweep))


def _leave(name: str, base: config.Recipe) -> None:
    """What this trial was at so far is over: its place is taken by another's weights."""
    folder = runs(Storage(base.storage))
    for own in [Run(folder / found) for found in folder.list() if found == name or found.startswith(f"{name}-from-")]:
        if own.state == "running":
            own.write_status("stopped", error="the trial went on with the weights of a better one")


def _teller(run: Run, *, with_pointer: bool) -> Callable[[Mapping[str, Any]], None]:
    """Reports a validation to Tune, with the best of the run so far; those that were told before are left out."""
    best_by = run.recipe.checkpoints.best
    told = 0

    def tell(row: Mapping[str, Any]) -> None:
        nonlocal told
        if row["epoch"] < told:
            return
        told = row["epoch"] + 1
        # From the run: what was reached before a restart counts, too, and is told by nobody now.
        best = max((own for own in run.validations() if own["epoch"] < told), key=lambda own: float(own[best_by]))
        report = {
            "epoch": told,
            "step": row["step"],
            "run": run.name,
            **{name: row[name] for name in METRICS},
            **{f"best_{name}": best[name] for name in METRICS},
        }
        if not with_pointer:
            tune.report(report)
            return
        with tempfile.TemporaryDirectory() as folder:
            pointer = {"trial": _trial_id(), "run": run.name, "step": row["step"]}
            (Path(folder) / POINTER).write_text(json.dumps(pointer))
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))

    return tell
