"""Points of a search space: combinations of recipe keys and values that a sweep tries.

Points are deterministic: the same recipe gives the same points in the same order, so a killed sweep resumes with them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from icre import config
from icre.config.reading import short
from icre.config.tuning import Interval, Values
from icre.errors import ConfigError

FIXED = ("name", "storage", "seed", "data", "evaluation", "telemetry", "tune", "retrain", "checkpoints")
"""Keys and sections that are fixed across a sweep, as the basis for comparison."""


@dataclass(frozen=True)
class Point:
    """Recipe keys with new values. Empty ``values`` stand for the unchanged recipe."""

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        """Overrides for :func:`icre.config.override`."""
        return overrides_of(self.values)

    def describe(self) -> str:
        """ "loss.icg.rho1=0.1, loss.icg.weight=2"."""
        return ", ".join(f"{key}={short(value)}" for key, value in self.values.items()) or "the recipe as it is"


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """``key=value`` pairs with values as JSON, which is valid YAML; floats keep full precision."""
    return [f"{key}={_yaml(value)}" for key, value in values.items()]


def check_space(recipe: config.Recipe) -> None:
    """Raises ConfigError listing every key and value of ``tune.space`` that the recipe rejects."""
    space = recipe.tune.space
    if not space:
        raise ConfigError(
            "tune.space is empty: there is nothing to search",
            hint="list values, such as 'tune.space={loss.icg.weight: [0.5, 1, 2]}', or write them in the recipe's file",
        )
    problems = []
    for key, values in space.items():
        section = key.partition(".")[0]
        if section in FIXED:
            problems.append(f"tune.space: {key} is the same in all trainings of a sweep, or they could not be compared")
        else:
            problems += _refused(recipe, key, values)
    if problems:
        lines = [f"  - {problem}" for problem in dict.fromkeys(problems)]
        raise ConfigError(
            "\n".join([f"{len(lines)} problem(s) in the search space:", *lines]),
            hint="`icre config schema` lists every key with its meaning, type and default",
        )


def points(recipe: config.Recipe) -> list[Point]:
    """All points of a sweep whose points do not depend on results: each, grid, random, asha. No duplicates."""
    method, space = recipe.tune.method, recipe.tune.space
    assert method != "tpe"
    if method == "each":
        found: list[dict[str, Any]] = [{}, *({key: value} for key in space for value in _others(recipe, key))]
    elif method == "grid":
        listed = [values for values in space.values() if not isinstance(values, Interval)]
        found = [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*listed)]
    else:
        found = draw(space, recipe.tune.trials, seed=recipe.seed)
    unique = {json.dumps(values, sort_keys=True): values for values in found}
    return [Point(number, values) for number, values in enumerate(unique.values())]


def draw(space: Mapping[str, Values | Interval], count: int, *, seed: int) -> list[dict[str, Any]]:
    """``count`` independent draws, with every key uniform over its list or interval."""
    generator = np.random.default_rng([seed, 7])
    return [{key: _drawn(values, generator) for key, values in space.items()} for _ in range(count)]


def value_of(recipe: config.Recipe, key: str) -> Any:
    """The recipe's own value of a dotted key."""
    node: Any = recipe.to_dict()
    for part in key.split("."):
        node = node[part]
    return node


def _others(recipe: config.Recipe, key: str) -> list[Any]:
    own, values = value_of(recipe, key), recipe.tune.space[key]
    assert not isinstance(values, Interval)
    return [value for value in values if value != own]


def _refused(recipe: config.Recipe, key: str, values: Values | Interval) -> list[str]:
    tried = values if not isinstance(values, Interval) else [_typed(values, values.low), _typed(values, values.high)]
    problems = []
    for value in tried:
        problems += config.problems_of_value(recipe, key, value)
    if isinstance(values, Interval) and not problems and isinstance(value_of(recipe, key), bool):
        problems.append(f"{key} is true or false, and no number: list its values")
    return [f"tune.space: {problem.removeprefix('tune.space: ')}" for problem in problems]


def _drawn(values: Values | Interval, generator: np.random.Generator) -> Any:
    if not isinstance(values, Interval):
        return values[int(generator.integers(len(values)))]
    if values.integer and not values.log:
        return int(generator.integers(int(values.low), int(values.high), endpoint=True))
    low, high = (math.log(values.low), math.log(values.high)) if values.log else (values.low, values.high)
    drawn = float(generator.uniform(low, high))
    # Rounding may put exp(log(high)) above high.
    return _typed(values, min(max(math.exp(drawn), values.low), values.high) if values.log else drawn)


def _typed(values: Interval, number: float) -> float | int:
    return round(number) if values.integer else number


def _yaml(value: Any) -> str:
    text = json.dumps(value)
    # YAML 1.1 parses 1e-05 as a string: a float needs a decimal point.
    if isinstance(value, float) and "e" in text and "." not in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}.0e{exponent}"
    return text
