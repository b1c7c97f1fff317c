from __future__ import annotations

from typing import Any

import numpy as np

from icre.figures import training_comparison
from icre.figures.training import running_mean


def rows(seed: int, steps: int = 100) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    logged: list[dict[str, Any]] = [{"kind": "step", "step": i + 1, "loss": float(rng.random())} for i in range(steps)]
    logged.append({"kind": "validation", "step": steps // 2, "rank1": 0.25, "mAP": 0.125 * (seed + 1)})
    return logged


def test_each_run_has_its_values_and_one_look_in_all_panels() -> None:
    runs = {f"run {seed}": rows(seed) for seed in range(8)}
    figure = training_comparison(runs)
    losses, rank1, mean_ap = figure.axes
    for number, (name, logged) in enumerate(runs.items()):
        lines = [axes.get_lines()[number] for axes in (losses, rank1, mean_ap)]
        assert {str(line.get_label()) for line in lines} == {name}
        assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 1  # type: ignore[attr-defined]
        values = np.array([row["loss"] for row in logged if row["kind"] == "step"])
        np.testing.assert_allclose(np.asarray(lines[0].get_ydata()), running_mean(values, 2))
        np.testing.assert_allclose(np.column_stack(lines[1].get_data()), [[50, 25]])
        np.testing.assert_allclose(np.column_stack(lines[2].get_data()), [[50, 12.5 * (number + 1)]])
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(runs)


def test_a_run_that_was_never_validated_is_in_the_legend_and_lends_its_look_to_nobody() -> None:
    figure = training_comparison({"a": rows(0), "$b": [{"kind": "step", "step": 1, "loss": 1.0}], "c": rows(2)})
    assert [len(axes.get_lines()) for axes in figure.axes] == [3, 2, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "$b", "c"]
    assert len({axes.get_lines()[-1].get_color() for axes in figure.axes}) == 1


def test_without_rows_every_panel_says_so() -> None:
    given: list[dict[str, list[dict[str, Any]]]] = [{}, {"a": []}]
    for runs in given:
        for axes in training_comparison(runs).axes:
            assert len(axes.get_lines()) == 0
            assert len(axes.texts) == 1
