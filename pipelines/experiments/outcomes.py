"""What a sweep's trainings have reached, read from their run folders, and which of them is the best."""

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
    """One training: how far it is, and the validation of its best epoch."""

    run: str
    seed: int
    labels: Mapping[str, Any]
    state: str
    """pending, or the run's own."""
    epochs: int = 0
    """Validated last."""
    best: Mapping[str, float] | None = None
    """mAP, rank1 and mINP in [0, 1] of the epoch that ``checkpoints.best`` chose; None before the first validation."""
    seconds: float = 0.0
    """Of its steps alone: no start, no validation."""
    error: str | None = None
    hint: str = ""
    exit_code: int = 1
    """Exit code of a training that failed: 2 if its user can mend the reason."""

    @property
    def reached(self) -> Mapping[str, float] | None:
        """``best`` as a result to compare by: None for a training that failed, whatever it had reached until then."""
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
        """In [0, 1]; of the seeds that have one."""
        return [float(outcome.reached[metric]) for outcome in self.outcomes if outcome.reached is not None]

    def spread(self, metric: str) -> Spread | None:
        """Mean and standard deviation over the seeds; None when none of them has a result."""
        values = self.values(metric)
        return Spread.of(values) if values else None


def is_settled(outcome: Outcome, recipe: config.Recipe, *, retry_failed: bool = False) -> bool:
    """Whether a sweep that goes on leaves this training as it is. What ASHA has stopped stays stopped."""
    if outcome.state == "failed":
        return not retry_failed
    return outcome.state == "finished" or (outcome.state == "stopped" and recipe.tune.method == "asha")


def outcomes_of(sweep: Sweep) -> list[Outcome]:
    """Every training of ``sweep``: those that were planned, in their order, then those that were chosen on the way."""
    folder = runs_of(Storage(sweep.base.storage))
    names = [trial.run for trial in sweep.trials]
    prefix = f"{sweep.name}-"
    begun = set(folder.list())
    names += sorted(name for name in begun.difference(names) if name.startswith(prefix))
    found = []
    by_name = {trial.run: trial for trial in sweep.trials}
    for name in names:
        run, trial = Run(folder / name), by_name.get(name)
        if trial is not None and name not in begun:  # one listing says so; asking for each takes minutes in S3
            found.append(Outcome(name, trial.recipe.seed, trial.labels, "pending"))
        elif (run.location / "manifest.json").exists():
            manifest = run.manifest
            if manifest.get("sweep", {}).get("name") == sweep.name or trial is not None:
                found.append(outcome_of(run, manifest, sweep.base.checkpoints.best))
        elif trial is not None or _status(run).get("sweep") == sweep.name:  # not even begun
            recipe, labels = (trial.recipe, trial.labels) if trial is not None else (sweep.base, {})
            found.append(Outcome(name, recipe.seed, labels, **_how_it_is(run)))
    return found


def failure_of(outcomes: Sequence[Outcome]) -> IcreError | None:
    """The error that a command ends with when trainings failed: one that a user can act on, if there is one."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return None
    shown = max(failed, key=lambda outcome: outcome.exit_code)  # the first of them
    kind = UserError if shown.exit_code == UserError.exit_code else TrainingError
    return kind(
        f"{len(failed)} of {len(outcomes)} trainings failed; {shown.run}: {shown.error or 'no error recorded'}",
        hint=shown.hint,
    )


def outcome_of(run: Run, manifest: Mapping[str, Any], best_by: str) -> Outcome:
    """Of a run that has begun."""
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
    """State and, with one, the error: fields of an :class:`Outcome`."""
    return {key: value for key, value in _status(run).items() if key in ("state", "error", "hint", "exit_code")}


def _status(run: Run) -> dict[str, Any]:
    status: dict[str, Any] = (run.location / "status.json").read_json(default={"state": "pending"})
    return status


def grouped(outcomes: Sequence[Outcome]) -> list[Group]:
    """One group for each combination of values, in the order of their first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(json.dumps(outcome.labels, sort_keys=True), []).append(outcome)
    return [Group(own[0].labels, tuple(own)) for own in groups.values()]


def chosen(groups: Sequence[Group], recipe: config.Recipe) -> Group | None:
    """The best by ``checkpoints.best``, mean over the seeds; of equal ones the first.

    Only groups with a result of every seed take part, or a lucky seed could win, or a recipe that ends in a failure;
    None when there is none.
    """
    metric = recipe.checkpoints.best
    whole = [group for group in groups if all(outcome.reached is not None for outcome in group.outcomes)]
    return max(whole, key=lambda group: sum(group.values(metric)) / len(group.outcomes), default=None)
