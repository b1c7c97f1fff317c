from __future__ import annotations

import statistics
from typing import get_args

import pytest

from icre import config
from icre.statistics import Spread, paired_differences, paired_p_value
from pipelines.experiments.tables import TABLES

RECIPES = {
    table: [config.load_recipe(None, variant.overrides) for variant in variants] for table, variants in TABLES.items()
}


def used(*path: str) -> set[object]:
    """Values that a key has in any row of any table."""
    found: set[object] = set()
    for recipe in (recipe for recipes in RECIPES.values() for recipe in recipes):
        value: object = recipe
        for name in path:
            value = getattr(value, name)
        found.add(value)
    return found


def options(section: type[config.Section], field: str) -> set[object]:
    return set(get_args(section.model_fields[field].annotation))


def test_every_option_of_the_network_and_the_loss_is_a_row_of_a_table() -> None:
    assert used("model", "mpfr_mask") == options(config.Model, "mpfr_mask")
    assert used("model", "mpfr_fusion") == options(config.Model, "mpfr_fusion")
    assert used("model", "mpfr_stages") == {(1, 2, 3), (2, 3, 4)}
    assert used("model", "sdce_order") == options(config.Model, "sdce_order")
    assert {0.0, 1.0} < used("model", "output_gain")
    assert used("loss", "icg", "centers") == options(config.Icg, "centers")
    assert used("loss", "icg", "normalize") == {True, False}
    (kinds, _) = get_args(config.Loss.model_fields["triplet"].annotation)
    assert used("loss", "triplet") == {None, *get_args(kinds)}
    assert used("loss", "triplet_normalize") == {True, False}


def test_the_component_table_holds_every_subset_once_from_the_baseline_to_the_full_network() -> None:
    sets = [frozenset(recipe.components) for recipe in RECIPES["components"]]
    assert sets[0] == frozenset() and sets[-1] == {"mpfr", "sdce", "icg"}
    assert len(sets) == len(set(sets)) == 8


def test_rows_of_a_table_differ_in_name_and_in_what_they_change() -> None:
    for table, variants in TABLES.items():
        assert len({variant.name for variant in variants}) == len(variants)
        assert len({recipe.to_yaml() for recipe in RECIPES[table]}) == len(variants)


def test_spread_is_the_sample_standard_deviation() -> None:
    values = [0.25, 0.5, 0.375]
    assert Spread.of(values) == Spread(statistics.mean(values), pytest.approx(statistics.stdev(values)))
    assert Spread.of([0.5]) == Spread(0.5, None)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_p_value_is_that_of_the_t_distribution() -> None:
    # mean 2, standard deviation 1, n = 3: t = 2 * sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2).
    t = 2 * 3**0.5
    assert paired_p_value([1.0, 2.0, 3.0]) == pytest.approx(1 - t / (t**2 + 2) ** 0.5)
    assert paired_p_value([0.5]) is None and paired_p_value([0.5, 0.5]) is None


def test_differences_pair_equal_seeds_and_leave_out_the_others() -> None:
    assert paired_differences({2: 0.75, 0: 0.5, 7: 1.0}, {0: 0.25, 1: 0.9, 2: 0.5}) == [0.25, 0.25]
