from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import StepPatch

from icre.figures import Distances, distance_histograms

EDGES = [0.0, 0.5, 1.0, 1.5, 2.0]
BEFORE = Distances("untrained", EDGES, [0, 30, 10, 0], [0, 100, 300, 0], 0.81, 1.17)
AFTER = Distances("best", EDGES, [20, 20, 0, 0], [0, 0, 100, 0], 0.42, 1.25)


def outlines(axes: Axes) -> list[Any]:
    """Steps of the same person, then of different people."""
    return [patch for patch in axes.patches if isinstance(patch, StepPatch) and not patch.get_fill()]


def test_heights_are_shares_of_the_pairs_of_a_kind() -> None:
    for axes, model in zip(distance_histograms([BEFORE, AFTER]).axes, (BEFORE, AFTER), strict=True):
        intra, inter = outlines(axes)
        np.testing.assert_allclose(intra.get_data().edges, np.array(EDGES))
        np.testing.assert_allclose(intra.get_data().values, 100 * np.array(model.intra) / sum(model.intra))
        np.testing.assert_allclose(inter.get_data().values, 100 * np.array(model.inter) / sum(model.inter))


def test_same_person_is_blue_and_different_people_green_with_their_means() -> None:
    axes = distance_histograms([BEFORE]).axes[0]
    for patch, line, mean, channel in zip(outlines(axes), axes.get_lines(), (0.81, 1.17), (2, 1), strict=True):
        assert list(np.atleast_1d(line.get_xdata())) == [mean, mean]
        for colour in (patch.get_edgecolor(), line.get_color()):
            assert int(np.argmax(to_rgb(colour))) == channel


def test_panels_share_the_distances_and_each_holds_its_own_shares() -> None:
    first, second = distance_histograms([BEFORE, AFTER]).axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_xlim()[0] <= 0.0 and first.get_xlim()[1] >= 1.5
    for axes in (first, second):
        highest = max(patch.get_data().values.max() for patch in outlines(axes))
        assert highest < axes.get_ylim()[1] < 1.2 * highest


def test_a_kind_without_pairs_is_flat() -> None:
    axes = distance_histograms([("empty", EDGES, [0, 0, 0, 0], [0, 0, 0, 0], 0.0, 0.0)]).axes[0]
    assert all((patch.get_data().values == 0).all() for patch in outlines(axes))


def test_three_models_stand_in_a_row_of_a_page_without_touching() -> None:
    figure = distance_histograms([BEFORE._replace(label="M" * 40), BEFORE, AFTER._replace(label="i" * 90)])
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] <= 7
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 1
    assert all(box is not None for box in boxes)
    for left, right in itertools.pairwise(boxes):
        assert left is not None and right is not None and left.x1 <= right.x0
