from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.axes import Axes

from icre.figures import training_curves
from icre.figures.training import running_mean


def step(number: int, **terms: Any) -> dict[str, Any]:
    book = {"epoch": 0, "lr": 1e-3 * number, "time": 1.8e9, "images_per_s": 50.0, "data_wait_s": 0.01}
    return {"kind": "step", "step": number, **book, **terms}


def curves(axes: Axes) -> dict[str, np.ndarray]:
    """Points of the labelled lines, by label."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): np.column_stack(line.get_data()) for line in lines}


def test_every_numeric_key_that_is_no_bookkeeping_is_a_loss_term() -> None:
    rows = [
        step(1, loss=3.0, id=2.0, note="text", flag=True),
        step(2, loss=2.5, id=1.5),
        step(5, triplet=7.0),
    ]
    losses = training_curves(rows).axes[0]
    assert curves(losses).keys() == {"loss", "id", "triplet"}
    np.testing.assert_allclose(curves(losses)["loss"], [[1, 3.0], [2, 2.5]])
    np.testing.assert_allclose(curves(losses)["triplet"], [[5, 7.0]])


def test_a_single_step_is_visible() -> None:
    line = training_curves([step(1, loss=3.0)]).axes[0].get_lines()[0]
    assert line.get_marker() not in ("None", "", None)


def test_thin_lines_are_the_logged_values_and_thick_ones_their_running_mean() -> None:
    values = np.random.default_rng(0).random(200)
    rows = [step(i + 1, loss=float(value)) for i, value in enumerate(values)]
    thin, thick = training_curves(rows).axes[0].get_lines()
    np.testing.assert_allclose(np.asarray(thin.get_ydata()), values)
    expected = [values[max(0, i - 4) : i + 1].mean() for i in range(200)]
    np.testing.assert_allclose(np.asarray(thick.get_ydata()), expected)
    assert thick.get_linewidth() > thin.get_linewidth()


@pytest.mark.parametrize("window", [1, 3, 50])
def test_running_mean_agrees_with_a_loop(window: int) -> None:
    values = np.random.default_rng(1).normal(size=20)
    expected = [values[max(0, i + 1 - window) : i + 1].mean() for i in range(20)]
    np.testing.assert_allclose(running_mean(values, window), expected)


def test_validation_is_drawn_in_percent_at_its_steps() -> None:
    rows = [
        step(1, loss=1.0),
        {"kind": "validation", "step": 10, "epoch": 0, "rank1": 0.25, "mAP": 0.2, "mINP": 0.1},
        {"kind": "validation", "step": 20, "epoch": 1, "rank1": 0.5, "mAP": 0.4, "mINP": 0.3},
    ]
    scores = curves(training_curves(rows).axes[1])
    np.testing.assert_allclose(scores["rank-1"], [[10, 25], [20, 50]])
    np.testing.assert_allclose(scores["mINP"], [[10, 10], [20, 30]])


@pytest.mark.parametrize(("rates", "scale"), [((0.1, 0.01, 0.001), "log"), ((0.1, 0.1, 0.1), "linear")])
def test_learning_rate_keeps_its_last_steps_visible(rates: tuple[float, ...], scale: str) -> None:
    axes = training_curves([step(i + 1, loss=1.0) | {"lr": rate} for i, rate in enumerate(rates)]).axes[2]
    assert axes.get_yscale() == scale
    np.testing.assert_allclose(np.asarray(axes.get_lines()[0].get_ydata()), np.asarray(rates))


def test_without_rows_every_panel_says_so() -> None:
    for axes in training_curves([]).axes:
        assert len(axes.get_lines()) == 0
        assert len(axes.texts) == 1


def test_matplotlibs_settings_are_left_as_they_were() -> None:
    before = dict(rcParams)
    training_curves([step(1, loss=1.0)])
    assert dict(rcParams) == before
