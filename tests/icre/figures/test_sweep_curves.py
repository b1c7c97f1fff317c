from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle

from icre.figures import Sweep, sweep_curves

POINTS: dict[float, dict[str, list[float]]] = {
    2.0: {"rank1": [0.5, 0.7], "mAP": [0.4, 0.4]},
    0.1: {"rank1": [0.2, 0.3, 0.7], "mAP": [0.1, 0.2, 0.3]},
    1.0: {"rank1": [0.6], "mAP": [0.35]},
    5.0: {"rank1": [], "mAP": []},
}


def series(axes: Axes) -> dict[str, Any]:
    """Line and bars, (x, y) and one (low, high) or None for each point."""
    found = {}
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container.lines
        assert line is not None
        # matplotlib drops what is not finite from a segment.
        ends = [np.asarray(segment).reshape(-1, 2)[:, 1] for segment in bars.get_segments()]
        spans = [end if len(end) == 2 else None for end in ends]
        found[str(container.get_label())] = (np.column_stack(line.get_data()), spans)
    return found


def test_means_and_bars_are_those_of_the_seeds_in_percent() -> None:
    drawn = series(sweep_curves([Sweep("λ", POINTS)]).axes[0])
    for metric, label in (("rank1", "rank-1"), ("mAP", "mAP")):
        points, bars = drawn[label]
        for place, value in enumerate((0.1, 1.0, 2.0)):
            seeds = 100 * np.array(POINTS[value][metric])
            np.testing.assert_allclose(points[place][1], seeds.mean())
            assert abs(points[place][0] - place) < 0.2
            if len(seeds) > 1:
                half = np.sqrt(((seeds - seeds.mean()) ** 2).sum() / (len(seeds) - 1))
                np.testing.assert_allclose(bars[place], [seeds.mean() - half, seeds.mean() + half])
            else:
                assert bars[place] is None


def test_values_ascend_and_those_without_results_are_left_out() -> None:
    axes = sweep_curves([Sweep("λ", POINTS)]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1", "2"]


def test_the_chosen_value_is_marked() -> None:
    axes = sweep_curves([Sweep("λ", POINTS, chosen=2.0)]).axes[0]
    (band,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert band.get_x() < 2 < band.get_x() + band.get_width() < 3
    assert [label.get_fontweight() == "bold" for label in axes.get_xticklabels()] == [False, False, True]
    assert not sweep_curves([Sweep("λ", POINTS, chosen=5.0)]).axes[0].patches


def test_bars_of_the_two_metrics_do_not_hide_each_other() -> None:
    drawn = series(sweep_curves([Sweep("λ", POINTS)]).axes[0])
    assert (np.abs(drawn["rank-1"][0][:, 0] - drawn["mAP"][0][:, 0]) > 0.05).all()


def test_each_parameter_has_its_panel_and_one_without_results_says_so() -> None:
    first, second = sweep_curves([Sweep("λ", {0.1: {"rank1": [], "mAP": []}}), Sweep("$ρ_1", POINTS)]).axes
    assert not first.containers and len(first.texts) == 1
    assert [axes.get_xlabel() for axes in (first, second)] == ["λ", "$ρ_1"]
    assert len(sweep_curves([]).axes[0].texts) == 1
