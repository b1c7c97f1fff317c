"""One training of a sweep, in a process of its own on the cluster: Ray Tune calls it, it calls Ray Train."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import tune

from icre import config
from icre.errors import ConfigError, DataError, IcreError, UserError, WeightsError
from icre.search import overrides_of
from pipelines.data.prepared import open_data
from pipelines.runs import Run, create_run, runs
from pipelines.storage import Storage
from pipelines.training import execution, launch
from pipelines.training.fork import fork

METRICS = ("mAP", "rank1", "mINP")
"""What a validation says that trainings are compared by."""
POINTER = "pointer.json"
"""What Tune keeps of a training that others may take over: which run and which step, not the weights themselves."""


@dataclass(frozen=True)
class Trial:
    """One training: a recipe under a run's name that never changes. Plain, as it travels to other processes."""

    run: str
    settings: Mapping[str, Any]
    """The recipe as plain values."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """What tables call it by: the values of the search space, or a variant's name."""

    @classmethod
    def of(cls, base: config.Recipe, run: str, *, overrides: Sequence[str] = (), labels: Mapping[str, Any]) -> Trial:
        """``base`` with single keys changed. Raises ConfigError for values that it does not take."""
        return cls(run, config.override(base, overrides, where=f"trial {run}").to_dict(), labels)

    @property
    def recipe(self) -> config.Recipe:
        """The recipe of its run."""
        return config.parse_recipe(self.settings, where=f"trial {self.run}")


@dataclass(frozen=True)
class Sweep:
    """What all trainings of a sweep share; plain, too."""

    name: str
    location: str
    recipe: dict[str, Any]
    argv: tuple[str, ...]
    trials: tuple[Trial, ...]
    """All trainings, in an order that never changes; empty where a searcher chooses them on the way."""

    @property
    def base(self) -> config.Recipe:
        """The recipe whose keys the trials change."""
        return config.parse_recipe(self.recipe, where=f"sweep {self.name}")

    def run_called(self, name: str) -> Run:
        """One of its runs, begun or not."""
        return Run(runs(Storage(self.base.storage)) / name)

    def run_of(self, settings: Mapping[str, Any], trial_id: str) -> Run:
        """The run in which Tune's trial with these settings began."""
        if "trial" in settings:
            return self.run_called(self.trials[settings["trial"]].run)
        return self.run_called(settings.get("run", f"{self.name}-{trial_id}"))


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


def chosen_trial(values: Mapping[str, Any], sweep: Sweep, run: str) -> Trial:
    """The training that a searcher chose. Raises ConfigError for values that break a rule between keys."""
    space, method = sweep.base.tune.space, sweep.base.tune.method
    # Optuna takes words and numbers for the items of a list, so it is given JSON.
    as_json = {key for key in values if method == "tpe" and isinstance(space[key], list)}
    plain = {key: json.loads(value) if key in as_json else value for key, value in values.items()}
    return Trial.of(sweep.base, run, overrides=overrides_of(plain), labels=plain)


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


def lineage(trial: Trial, sweep: Sweep) -> dict[str, Any]:
    """What a trial's manifest says of the sweep that it is a part of."""
    return {
        "argv": list(sweep.argv),
        "sweep": {"name": sweep.name, "labels": dict(trial.labels)},
        "parents": [sweep.location],
    }


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
