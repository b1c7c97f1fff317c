from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from icre.figures.contact_sheet import ContactRow, Tile, contact_sheet

Pixels = NDArray[np.uint8]


def noise(seed: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drawn(rows: list[ContactRow], title: str = "people") -> Pixels:
    sink = io.BytesIO()
    contact_sheet(rows, title=title).savefig(sink, format="png", dpi="figure")
    return np.asarray(Image.open(sink).convert("RGB"))


def find(sheet: Pixels, image: Pixels) -> tuple[int, int]:
    """Upper left corner (y, x) of the one place where ``image`` is, pixel for pixel."""
    first_row = sliding_window_view(sheet[..., 0], image.shape[1], axis=1)
    ys, xs = np.nonzero((first_row == image[0, :, 0]).all(axis=2))
    height, width = image.shape[:2]
    places = [
        (y, x) for y, x in zip(ys, xs, strict=True) if np.array_equal(sheet[y : y + height, x : x + width], image)
    ]
    assert len(places) == 1
    return places[0]


def texts(rows: list[ContactRow], title: str = "people") -> dict[str, tuple[float, float]]:
    """Every text and its place (y, x)."""
    return {t.get_text(): t.get_position()[::-1] for t in contact_sheet(rows, title=title).axes[0].texts}


def enlarged(image: Pixels, times: int) -> Pixels:
    return image.repeat(times, axis=0).repeat(times, axis=1)


@pytest.mark.parametrize(("height", "width", "times"), [(96, 80, 1), (64, 32, 3), (50, 41, 2), (288, 144, 1)])
def test_every_image_is_there_pixel_for_pixel_and_in_its_place(height: int, width: int, times: int) -> None:
    a, b, c, d, e = (noise(seed, height, width) for seed in range(5))
    rows = [
        ContactRow("0001", "train", [Tile(a, "1")], [Tile(b, "3"), Tile(c, "6")]),
        # A name as wide as this must not be written over the image beside it.
        ContactRow("W" * 30, "test", [Tile(d, "2")], [Tile(e, "W" * 30)]),
    ]
    sheet = drawn(rows)
    at = {name: find(sheet, enlarged(image, times)) for name, image in zip("abcde", (a, b, c, d, e), strict=True)}
    assert at["a"][0] == at["b"][0] == at["c"][0] < at["d"][0] == at["e"][0]
    assert at["a"][1] == at["d"][1] < at["b"][1] == at["e"][1] < at["c"][1]
    written = texts(rows)
    y, x = written["cam 3"]
    assert at["b"][0] + height * times <= y < at["d"][0]
    assert x == at["b"][1] + width * times / 2
    assert written["visible"][1] == at["a"][1] and written["infrared"][1] == at["b"][1]
    assert at["a"][0] <= written["train"][0] < at["d"][0] <= written["test"][0]


def test_modalities_stay_apart_when_rows_are_uneven() -> None:
    images = [noise(seed, 60, 80) for seed in range(6)]
    rows = [
        ContactRow("1", "train", [Tile(image, "1") for image in images[:3]], [Tile(images[3], "2")]),
        ContactRow("2", "train", [Tile(images[4], "1")], [Tile(images[5], "2")]),
    ]
    sheet = drawn(rows)
    assert find(sheet, images[3])[1] == find(sheet, images[5])[1] > find(sheet, images[2])[1] + 80


def test_dollar_signs_are_no_formulas() -> None:
    tile = Tile(noise(0, 60, 80), "$_$")
    assert drawn([ContactRow("$_$", "$_$", [tile], [tile])], "$_$").std() > 0


def test_names_are_there_and_long_ones_cut() -> None:
    tile = Tile(noise(0, 60, 80), "$x_1$")
    written = texts([ContactRow("$a$_$b$", "val", [tile], [Tile(tile.image, "the camera above the door")])], "$t$")
    assert {"$a$_$b$", "cam $x_1$", "val", "$t$"} <= written.keys()
    assert any(text.startswith("cam the") and text.endswith("…") for text in written)
