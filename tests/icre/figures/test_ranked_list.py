from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from icre.figures import RankedImage, RankedList, encode, ranked_list


def shown(
    value: int | None, *, match: bool | None = None, distance: float | None = None, path: str = "a/b"
) -> RankedImage:
    image = None if value is None else np.full((8, 4, 3), value, dtype=np.uint8)
    return RankedImage(image=image, identity="0007", camera="3", path=path, distance=distance, match=match)


def entry(matches: list[bool], start: int) -> RankedList:
    gallery = [shown(start + i + 1, match=m, distance=0.125 * (i + 1)) for i, m in enumerate(matches)]
    return RankedList(query=shown(start), gallery=gallery)


def frames(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]


def captions(axes: Axes, mark: str) -> list[str]:
    return [text.get_text() for text in axes.texts if mark in text.get_text()]


def test_one_row_a_query_with_the_query_left_and_the_nearest_next_to_it() -> None:
    axes = ranked_list([entry([True, False], 10), entry([False, True], 50)]).axes[0]
    places = {int(np.asarray(image.get_array())[0, 0, 0]): image.get_extent() for image in axes.get_images()}
    assert set(places) == {10, 11, 12, 50, 51, 52}
    for first in (10, 50):
        lefts = [places[first + i][0] for i in range(3)]
        assert lefts == sorted(lefts)
        assert len({places[first + i][2] for i in range(3)}) == 1
    assert places[10][2] > places[50][3]


def test_frames_and_marks_tell_right_from_wrong_also_without_colour() -> None:
    axes = ranked_list([entry([True, False, True], 0)]).axes[0]
    _, *gallery = sorted(frames(axes), key=lambda frame: frame.get_x())
    for frame, right in zip(gallery, (True, False, True), strict=True):
        red, green, _ = to_rgb(frame.get_edgecolor())
        assert (green > red) == right
        assert (frame.get_linestyle() in ("solid", "-")) == right
    assert captions(axes, "✓") == ["✓ 0.125", "✓ 0.375"]
    assert captions(axes, "✗") == ["✗ 0.250"]
    assert len(captions(axes, "cam 3")) == 4


def test_images_keep_their_shape() -> None:
    figure = ranked_list([entry([True], 0)])
    axes = figure.axes[0]
    left, right, bottom, top = axes.get_images()[0].get_extent()
    corners = axes.transData.transform([(left, bottom), (right, top)])
    width, height = corners[1] - corners[0]
    assert height / width == pytest.approx(2.0, rel=1e-6)


def test_a_missing_image_is_a_field_with_its_path() -> None:
    missing = shown(None, match=False, distance=0.5, path="infrared/0001/3_$a$.jpg")
    figure = ranked_list([RankedList(query=shown(9), gallery=[missing])])
    axes = figure.axes[0]
    assert len(axes.get_images()) == 1
    assert any(text.get_text().replace("\n", "") == missing.path for text in axes.texts)
    assert encode(figure, "svg")
