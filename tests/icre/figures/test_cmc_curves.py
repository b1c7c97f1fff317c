from __future__ import annotations

from typing import Any

import numpy as np

from icre.figures import cmc_curves, encode


def test_each_curve_is_drawn_in_percent_from_rank_1() -> None:
    given: dict[str, Any] = {"untrained": [0.1, 0.2, 0.3], "best": np.array([0.6, 0.8, 0.9])}
    lines = cmc_curves(given).axes[0].get_lines()
    for line, cmc in zip(lines, given.values(), strict=True):
        np.testing.assert_allclose(np.asarray(line.get_xdata()), [1.0, 2.0, 3.0])
        np.testing.assert_allclose(np.asarray(line.get_ydata()), 100 * np.asarray(cmc))


def test_curves_differ_without_colour() -> None:
    lines = cmc_curves({name: [0.1, 0.2] for name in "abcdef"}).axes[0].get_lines()
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in lines}) == 6  # type: ignore[attr-defined]


def test_the_legend_lists_the_best_curve_first_with_its_own_line() -> None:
    figure = cmc_curves({"worse": [0.111], "better": [0.999], "middle": [0.555]})
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.split(",")[0] for text in texts] == ["better", "middle", "worse"]
    assert ["99.9" in texts[0], "55.5" in texts[1], "11.1" in texts[2]] == [True] * 3
    colours = [line.get_color() for line in figure.legends[0].get_lines()]
    drawn = {str(line.get_label()).split(",")[0]: line.get_color() for line in figure.axes[0].get_lines()}
    assert colours == [drawn["better"], drawn["middle"], drawn["worse"]]


def test_a_dollar_sign_in_a_label_is_no_formula() -> None:
    assert encode(cmc_curves({r"$\frac$": [0.5]}), "svg")


def test_nothing_to_draw_is_said() -> None:
    axes = cmc_curves({}).axes[0]
    assert len(axes.get_lines()) == 0
    assert len(axes.texts) == 1


def test_many_curves_differ_fit_and_leave_the_axes_their_height() -> None:
    heights = []
    for count in (2, 20):
        figure = cmc_curves({f"a model with a long name, number {i}": [i / 20, 0.9] for i in range(count)})
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
    lines = figure.axes[0].get_lines()
    assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 20  # type: ignore[attr-defined]
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0
    assert abs(heights[1] - heights[0]) < 0.15 * heights[0]
