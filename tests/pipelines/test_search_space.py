"""What a sweep tries: points of each method, what a search space may not hold."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icre import config
from icre.errors import ConfigError
from pipelines.experiments.search_space import Point, check_space, overrides_of, points, value_of


def recipe(method: str, space: dict[str, Any], **settings: Any) -> config.Recipe:
    return config.parse_recipe({"tune": {"method": method, "space": space, **settings}}, where="the test")


def problems(method: str, space: dict[str, Any], **settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_space(recipe(method, space, **settings))
    return caught.value.message.split("\n")[1:]


def test_each_changes_one_key_at_a_time_and_has_the_recipe_itself_once() -> None:
    asked = recipe("each", {"loss.icg.weight": [0.5, 1.0, 2.0], "loss.icg.rho1": [0.1, 0.3], "model.heads": [8]})
    assert [dict(point.values) for point in points(asked)] == [
        {},
        {"loss.icg.weight": 0.5},
        {"loss.icg.weight": 2.0},
        {"loss.icg.rho1": 0.3},
    ]


def test_a_grid_is_every_combination_once() -> None:
    space = {
        "loss.icg.weight": [0.5, 1, 0.5],
        "model.sdce_order": ["cross", "self_cross"],
        "schedule.milestones": [[], [3]],
    }
    found = [tuple(map(str, point.values.values())) for point in points(recipe("grid", space))]
    assert sorted(found) == sorted(itertools.product(["0.5", "1"], ["cross", "self_cross"], ["[]", "[3]"]))
    assert [point.number for point in points(recipe("grid", space))] == list(range(8))


def test_draws_stay_inside_repeat_with_the_seed_and_follow_the_scale() -> None:
    space = {
        "optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True},
        "batch.identities": {"low": 4, "high": 6, "integer": True},
        "loss.icg.rho1": {"low": 0.0, "high": 0.5},
        "model.backbone": ["resnet18", "resnet50"],
    }
    drawn = [dict(point.values) for point in points(recipe("random", space, trials=400))]
    assert len(drawn) == 400
    assert drawn == [dict(point.values) for point in points(recipe("asha", space, trials=400))]
    other = config.parse_recipe({"seed": 1, "tune": {"method": "random", "space": space, "trials": 400}}, where="")
    assert drawn[0] != points(other)[0].values
    assert {values["batch.identities"] for values in drawn} == {4, 5, 6}
    assert {values["model.backbone"] for values in drawn} == {"resnet18", "resnet50"}
    rates = sorted(values["optimizer.lr"] for values in drawn)
    assert rates[0] >= 1e-5 and rates[-1] <= 1e-1
    # Uniform in the logarithm: a quarter in each of the four decades; six standard deviations of a count are 52.
    decades = [sum(10.0**k <= rate < 10.0 ** (k + 1) for rate in rates) for k in (-5, -4, -3, -2)]
    assert all(abs(count - 100) < 52 for count in decades)
    assert abs(sum(values["loss.icg.rho1"] for values in drawn) / 400 - 0.25) < 6 * 0.5 / math.sqrt(12 * 400)


@given(st.floats(min_value=1e-30, max_value=1e30))
def test_a_value_reaches_the_recipe_with_every_digit(value: float) -> None:
    point = Point(0, {"optimizer.lr": value})
    changed = config.override(config.Recipe(), point.overrides, where="the test")
    assert changed.optimizer.lr == value


def test_words_lists_and_truths_reach_the_recipe_as_they_are() -> None:
    values = {
        "model.sdce_order": "self_cross",
        "schedule.milestones": [1.5, 3],
        "loss.icg.normalize": False,
        "loss.triplet": None,
    }
    changed = config.override(config.Recipe(), overrides_of(values), where="the test")
    assert [value_of(changed, key) for key in values] == ["self_cross", [1.5, 3.0], False, None]


def test_every_mistake_of_a_space_is_named_at_once() -> None:
    space = {
        "loss.icg.wieght": [1],
        "loss.icg.rho1": [-1, 0.1],
        "loss.icg": [1],
        "data.name": ["x"],
        "seed": [1, 2],
        "optimizer.lr": [0.1, "fast"],
    }
    found = problems("grid", space)
    for part in (
        "did you mean 'weight'",
        "rho1=-1",
        "loss.icg=1",
        "data.name is the same",
        "seed is the same",
        "'fast'",
    ):
        assert sum(part in line for line in found) == 1, part
    assert len(found) == 6


@pytest.mark.parametrize(
    ("key", "interval"),
    [
        ("model.heads", {"low": 1.5, "high": 8}),
        ("model.backbone", {"low": 0, "high": 1}),
        ("compute.compile", {"low": 0, "high": 1}),
        ("augmentation.flip", {"low": 0.5, "high": 1.5}),
    ],
)
def test_intervals_of_what_is_no_such_number_are_refused(key: str, interval: dict[str, Any]) -> None:
    assert all(key in line for line in problems("random", {key: interval}))


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        check_space(recipe("grid", {}))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "grid", "space": {"optimizer.lr": {"low": 0.1, "high": 1}}},
        {"method": "asha", "seeds": 2},
        {"space": {"optimizer.lr": {"low": 1, "high": 0.1}}},
        {"space": {"optimizer.lr": {"low": 0, "high": 0.1, "log": True}}, "method": "random"},
        {"space": {"optimizer.lr": {"low": 0.1, "hihg": 1}}, "method": "random"},
        {"space": {"optimizer.lr": []}},
        {"space": {"optimizer.lr": 0.1}},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tune\."):
        config.parse_recipe({"tune": settings}, where="the test")
