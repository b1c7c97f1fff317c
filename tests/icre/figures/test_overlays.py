"""The three figures of images under maps: heat, masks, attention."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from icre.figures import AttentionSample, GradCamSample, MaskSample, attention_map, encode, heat_rows, mask_overlays
from icre.figures.overlays import VEIL, blend

Pixels = NDArray[np.uint8]
INFERNO = colormaps["inferno"]


def noise(seed: int, height: int = 8, width: int = 4) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiles(figure: Figure) -> list[tuple[float, float, Pixels]]:
    """(left, top, pixels) of every picture, row by row; the colour scale comes last."""
    placed = [(*image.get_extent(), np.asarray(image.get_array())) for image in figure.axes[0].get_images()]
    return sorted(((left, top, pixels) for left, _, _, top, pixels in placed), key=lambda tile: (tile[1], tile[0]))


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def value_of(overlay: Pixels, image: Pixels) -> NDArray[np.float64]:
    """The map that was laid over an image, read back from the colours."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    colours = (overlay - (1 - VEIL) * grey[..., None]) / (VEIL * 255)
    known = INFERNO(np.linspace(0, 1, 256))[:, :3]
    return np.asarray(np.abs(colours[..., None, :] - known).sum(-1).argmin(-1) / 255)


def test_an_overlay_is_the_maps_colour_over_the_image_in_grey() -> None:
    image = np.array([[[10, 200, 90], [0, 0, 0]]], np.uint8)
    got = blend(image, np.array([[1.0, 0.0]]))
    luma = 0.299 * 10 + 0.587 * 200 + 0.114 * 90
    for place, grey, value in ((0, luma, 1.0), (1, 0.0, 0.0)):
        expected = 0.6 * 255 * np.array(INFERNO(value)[:3]) + 0.4 * grey
        np.testing.assert_allclose(got[0, place], expected, atol=0.51)


def test_a_coarse_map_becomes_blocks_of_the_image() -> None:
    image = np.zeros((6, 4, 3), np.uint8)
    coarse = np.array([[0.0, 1.0], [0.5, 0.2], [0.8, 0.4]])
    np.testing.assert_array_equal(blend(image, coarse), blend(image, np.kron(coarse, np.ones((2, 2)))))


def heated(seed: int) -> GradCamSample:
    rng = np.random.default_rng(100 + seed)
    return GradCamSample(noise(seed), f"person {seed}", {"base": rng.random((8, 4)), "full": rng.random((8, 4))})


def test_each_heat_lies_under_its_image_in_the_row_of_its_model() -> None:
    visible, infrared = [heated(0), heated(1)], [heated(2)]
    found = tiles(heat_rows(visible, infrared))[:-1]
    assert len(found) == 3 * 3
    for column, shown in enumerate((*visible, *infrared)):
        stack = found[column::3]
        assert len({left for left, _, _ in stack}) == 1
        np.testing.assert_array_equal(stack[0][2], shown.image)
        for (_, _, overlay), heat in zip(stack[1:], shown.heat.values(), strict=True):
            np.testing.assert_allclose(value_of(overlay, shown.image), heat, atol=0.02)
    assert {"base", "full", "visible", "infrared", "person 0", "person 1", "person 2"} <= set(
        texts(heat_rows(visible, infrared).axes[0])
    )


def test_nothing_overlaps_or_leaves_the_page() -> None:
    figure = heat_rows([heated(i) for i in range(4)], [heated(i) for i in range(5)])
    axes, bounds = figure.axes[0], figure.bbox
    boxes = [image.get_window_extent() for image in axes.get_images()]
    boxes += [text.get_window_extent() for text in axes.texts if text.get_text()]
    for number, one in enumerate(boxes):
        assert bounds.x0 <= one.x0 and one.x1 <= bounds.x1 and bounds.y0 <= one.y0 and one.y1 <= bounds.y1
        assert not any(one.shrunk(0.98, 0.98).overlaps(two) for two in boxes[number + 1 :])


def test_images_keep_their_shape() -> None:
    axes = heat_rows([heated(0)], []).axes[0]
    box = axes.get_images()[0].get_window_extent()
    assert box.height / box.width == pytest.approx(2.0)


def test_a_map_without_heat_is_marked() -> None:
    cold = GradCamSample(noise(0), "a", {"one": np.zeros((8, 4)), "two": np.ones((8, 4))})
    assert texts(heat_rows([heated(1)], []).axes[0]).count("nowhere") == 0
    assert texts(heat_rows([cold], [cold]).axes[0]).count("nowhere") == 2


def test_masks_are_stretched_over_what_a_row_holds_and_the_row_says_so() -> None:
    masks = np.stack([np.full((8, 4), 0.4), np.full((8, 4), 0.25)])
    masks[0, 0, 0], masks[1, 0, 0] = 0.6, 0.75
    other = np.full((2, 8, 4), 0.5)
    figure = mask_overlays([MaskSample(noise(0), "a", masks)], [MaskSample(noise(1), "b", other)], stages=(2, 3))
    found = tiles(figure)
    first, second = (value_of(found[2 * row][2], noise(0)) for row in (1, 2))
    assert (first[0, 0], second[0, 0]) == (1.0, 1.0)
    assert (first[1, 1], second[1, 1]) == (0.0, 0.0)
    np.testing.assert_allclose(value_of(found[3][2], noise(1)), 0.5, atol=0.01)
    labels = " ".join(texts(figure.axes[0])).replace("\n", " ")
    assert "stage 2 0.400–0.600" in labels and "stage 3 0.250–0.750" in labels


def test_masks_that_are_the_same_everywhere_are_drawn() -> None:
    assert encode(mask_overlays([MaskSample(noise(0), "a", np.full((1, 8, 4), 0.5))], [], stages=(1,)), "webp")


def test_attention_has_the_token_framed_and_its_peak_as_a_multiple() -> None:
    cross = np.full((4, 2), 0.1)
    cross[3, 1] = 0.3
    even = np.full((4, 2), 0.125)
    shown = AttentionSample(noise(0), "a", (2, 1), [cross, even])
    figure = attention_map([shown], [], stages=["cross", "self"])
    axes, found = figure.axes[0], tiles(figure)
    assert "2.4 × even" in texts(axes) and "1 × even" in texts(axes)
    np.testing.assert_allclose(value_of(found[1][2], noise(0))[[0, 7], [0, 3]], [1 / 3, 1.0], atol=0.01)
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    left, top, _ = found[0]
    right, bottom = axes.get_images()[0].get_extent()[1:3]
    assert frames[0].get_x() == pytest.approx(left + (right - left) / 2)
    assert frames[0].get_y() == pytest.approx(top + (bottom - top) * 2 / 4)
    assert len({round(frame.get_y(), 6) for frame in frames}) == 3


def test_no_images_are_said() -> None:
    for figure in (heat_rows([], []), mask_overlays([], [], stages=(1, 2)), attention_map([], [], stages=["cross"])):
        assert len(figure.axes[0].texts) == 1


def test_a_dollar_sign_is_no_formula() -> None:
    assert encode(heat_rows([GradCamSample(noise(0), "$_$", {"$_$": np.ones((8, 4))})], []), "svg")
