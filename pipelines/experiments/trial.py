"""A sweep and the trainings in it, as plain values: what the command, Ray Tune and the trainings' processes share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from icre import config
from pipelines.experiments.search_space import overrides_of
from pipelines.runs.run import Run

METRICS = ("mAP", "rank1", "mINP")
"""What a validation says that trainings are compared by."""


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
        return Run.named(self.base.storage, name)

    def run_of(self, settings: Mapping[str, Any], trial_id: str) -> Run:
        """The run in which Tune's trial with these settings began."""
        if "trial" in settings:
            return self.run_called(self.trials[settings["trial"]].run)
        return self.run_called(settings.get("run", f"{self.name}-{trial_id}"))


def chosen_trial(values: Mapping[str, Any], sweep: Sweep, run: str) -> Trial:
    """The training that a searcher chose. Raises ConfigError for values that break a rule between keys."""
    space, method = sweep.base.tune.space, sweep.base.tune.method
    # Optuna takes words and numbers for the items of a list, so it is given JSON.
    as_json = {key for key in values if method == "tpe" and isinstance(space[key], list)}
    plain = {key: json.loads(value) if key in as_json else value for key, value in values.items()}
    return Trial.of(sweep.base, run, overrides=overrides_of(plain), labels=plain)


def lineage(trial: Trial, sweep: Sweep) -> dict[str, Any]:
    """What a trial's manifest says of the sweep that it is a part of."""
    return {
        "argv": list(sweep.argv),
        "sweep": {"name": sweep.name, "labels": dict(trial.labels)},
        "parents": [sweep.location],
    }
