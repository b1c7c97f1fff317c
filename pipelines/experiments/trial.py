"""A sweep and its trainings as plain values, shared by the command, Ray Tune and the training processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from icre import config
from pipelines.experiments.search_space import overrides_of
from pipelines.runs.run import Run

METRICS = ("mAP", "rank1", "mINP")
"""Validation metrics by which trainings are compared."""


@dataclass(frozen=True)
class Trial:
    """One training: a recipe and a fixed run name. Plain values, since it is sent to other processes."""

    run: str
    settings: Mapping[str, Any]
    """The recipe as plain values."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Identification in tables: values of the search space, or a variant's name."""

    @classmethod
    def of(cls, base: config.Recipe, run: str, *, overrides: Sequence[str] = (), labels: Mapping[str, Any]) -> Trial:
        """``base`` with some keys changed. Raises ConfigError for invalid values."""
        return cls(run, config.override(base, overrides, where=f"trial {run}").to_dict(), labels)

    @property
    def recipe(self) -> config.Recipe:
        """The recipe of the trial's run."""
        return config.parse_recipe(self.settings, where=f"trial {self.run}")


@dataclass(frozen=True)
class Sweep:
    """Common data of all trainings of a sweep, as plain values."""

    name: str
    location: str
    recipe: dict[str, Any]
    argv: tuple[str, ...]
    trials: tuple[Trial, ...]
    """All trainings in a fixed order; empty when a searcher chooses them during the sweep."""

    @property
    def base(self) -> config.Recipe:
        """The recipe whose keys the trials change."""
        return config.parse_recipe(self.recipe, where=f"sweep {self.name}")

    def run_called(self, name: str) -> Run:
        """One of the sweep's runs, started or not."""
        return Run.named(self.base.storage, name)

    def run_of(self, settings: Mapping[str, Any], trial_id: str) -> Run:
        """The run of the Tune trial with these settings."""
        if "trial" in settings:
            return self.run_called(self.trials[settings["trial"]].run)
        return self.run_called(settings.get("run", f"{self.name}-{trial_id}"))


def chosen_trial(values: Mapping[str, Any], sweep: Sweep, run: str) -> Trial:
    """The training a searcher chose. Raises ConfigError for values that break a rule between keys."""
    space, method = sweep.base.tune.space, sweep.base.tune.method
    # Optuna takes only strings and numbers as list items, so these values are JSON-encoded.
    as_json = {key for key in values if method == "tpe" and isinstance(space[key], list)}
    plain = {key: json.loads(value) if key in as_json else value for key, value in values.items()}
    return Trial.of(sweep.base, run, overrides=overrides_of(plain), labels=plain)


def lineage(trial: Trial, sweep: Sweep) -> dict[str, Any]:
    """Manifest entries of a trial about its sweep."""
    return {
        "argv": list(sweep.argv),
        "sweep": {"name": sweep.name, "labels": dict(trial.labels)},
        "parents": [sweep.location],
    }
