"""Results of a sweep's trainings, read from their run folders, and selection of the best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from icre import config
from icre.errors import IcreError, TrainingError, UserError
from icre.statistics import Spread
from pipelines.experiments.trial import METRICS, Sweep
from pipelines.runs.run import Run, runs_of
from pipelines.storage import Storage


@dataclass(frozen=True)
class Outcome:
    """One training: its progress and the validation of its best epoch."""

    run: str
    seed: int
    labels: Mapping[str, Any]
    state: str
    """pending, or the run's own state."""
    epochs: int = 0
    """Epochs up to the last validation."""
    best: Mapping[str, float] | None = None
    """mAP, rank1 and mINP in [0, 1] at the epoch chosen by ``checkpoints.best``; None before the first validation."""
    seconds: float = 0.0
    """Training steps only, without start-up and validation."""
    error: str | None = None
    hint: str = ""
    exit_code: int = 1
    """Exit code of a failed training: 2 if the user can fix the cause."""

    @property
    def reached(self) -> Mapping[str, float] | None:
        """``best`` for comparisons; None for a failed training, even one with earlier validations."""
        return None if self.state == "failed" else self.best

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Group:
    """All seeds of one combination of values."""

    labels: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    def values(self, metric: str) -> list[float]:
        """Values in [0, 1] of the seeds that have one."""
        return [float(outcome.reached[metric]) for outcome in self.outcomes if outcome.reached is not None]

    def spread(self, metric: str) -> Spread | None:
        """Mean and standard deviation over the seeds; None without any result."""
        values = self.values(metric)
        return Spread.of(values) if values else None


def is_settled(outcome: Outcome, recipe: config.Recipe, *, retry_failed: bool = False) -> bool:
    """Whether a resumed sweep leaves this training unchanged. Trainings stopped by ASHA are not resumed."""
    if outcome.state == "failed":
        return not retry_failed
    return outcome.state == "finished" or (outcome.state == "stopped" and recipe.tune.method == "asha")


def outcomes_of(sweep: Sweep) -> list[Outcome]:
    """All trainings of ``sweep``: the planned ones in order, then those chosen during the sweep."""
    folder = runs_of(Storage(sweep.base.storage))
    names = [trial.run for trial in sweep.trials]
    prefix = f"{sweep.name}-"
    begun = set(folder.list())
    names += sorted(name for name in begun.difference(names) if name.startswith(prefix))
    found = []
    by_name = {trial.run: trial for trial in sweep.trials}
    for name in names:
        run, trial = Run(folder / name), by_name.get(name)
        if trial is not None and name not in begun:  # one listing; a request per run takes minutes on S3
            found.append(Outcome(name, trial.recipe.seed, trial.labels, "pending"))
        elif (run.location / "manifest.json").exists():
            manifest = run.manifest
            if manifest.get("sweep", {}).get("name") == sweep.name or trial is not None:
                found.append(outcome_of(run, manifest, sweep.base.checkpoints.best))
        elif trial is not None or _status(run).get("sweep") == sweep.name:  # not even started
            recipe, labels = (trial.recipe, trial.labels) if trial is not None else (sweep.base, {})
            found.append(Outcome(name, recipe.seed, labels, **_how_it_is(run)))
    return found


def failure_of(outcomes: Sequence[Outcome]) -> IcreError | None:
    """The error a command exits with when trainings failed, preferably one the user can act on."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return None
    shown = max(failed, key=lambda outcome: outcome.exit_code)  # max returns the first of equal ones
    kind = UserError if shown.exit_code == UserError.exit_code else TrainingError
    return kind(
        f"{len(failed)} of {len(outcomes)} trainings failed; {shown.run}: {shown.error or 'no error recorded'}",
        hint=shown.hint,
    )


def outcome_of(run: Run, manifest: Mapping[str, Any], best_by: str) -> Outcome:
    """Outcome of a run that has started."""
    rows = run.metrics()
    validations = [row for row in rows if row["kind"] == "validation"]
    best = max(validations, key=lambda row: row[best_by], default=None)
    size = run.recipe.batch.size
    return Outcome(
        run=run.name,
        seed=manifest["seed"],
        labels=manifest.get("sweep", {}).get("labels", {}),
        epochs=validations[-1]["epoch"] + 1 if validations else 0,
        best=None if best is None else {metric: best[metric] for metric in METRICS},
        seconds=sum(size / row["images_per_s"] for row in rows if row["kind"] in ("step", "skipped")),
        **_how_it_is(run),
    )


def _how_it_is(run: Run) -> dict[str, Any]:
    """State and error, if any, as fields of :class:`Outcome`."""
    return {key: value for key, value in _status(run).items() if key in ("state", "error", "hint", "exit_code")}


def _status(run: Run) -> dict[str, Any]:
    status: dict[str, Any] = (run.location / "status.json").read_json(default={"state": "pending"})
    return status


def grouped(outcomes: Sequence[Outcome]) -> list[Group]:
    """One group per combination of values, in order of first appearance."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(json.dumps(outcome.labels, sort_keys=True), []).append(outcome)
    return [Group(own[0].labels, tuple(own)) for own in groups.values()]


def chosen(groups: Sequence[Group], recipe: config.Recipe) -> Group | None:
    """The best group by ``checkpoints.best``, averaged over the seeds; the first of equal ones, None without one.

    Only groups with a result for every seed are eligible. Otherwise a lucky seed, or a recipe that sometimes fails,
    could win.
    """
    metric = recipe.checkpoints.best
    whole = [group for group in groups if all(outcome.reached is not None for outcome in group.outcomes)]
    return max(whole, key=lambda group: sum(group.values(metric)) / len(group.outcomes), default=None)
