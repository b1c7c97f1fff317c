from __future__ import annotations

import io
import itertools
import re
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from icre.figures import cmc_curves, encode, style


def figure() -> Figure:
    return cmc_curves({"one $x_1$, ρ": [0.2, 0.5], "other": [0.3, 0.4]})


@pytest.mark.parametrize("kind", ["svg", "webp", "png", "pdf"])
def test_the_same_figure_gives_the_same_bytes(kind: style.Kind) -> None:
    assert encode(figure(), kind) == encode(figure(), kind)


def test_png_has_300_dots_an_inch() -> None:
    drawn = figure()
    with Image.open(io.BytesIO(encode(drawn, "png"))) as image:
        np.testing.assert_allclose(image.size, 300 * drawn.get_size_inches(), atol=1)
        np.testing.assert_allclose(image.info["dpi"], 300, rtol=1e-3)


def test_pdf_has_its_fonts_inside_and_no_date() -> None:
    content = encode(figure(), "pdf")
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    plain = content + b"".join(zlib.decompress(stream) for stream in streams if stream[:1] == b"x")
    assert b"/FontFile2" in plain
    assert b"/Type3" not in plain
    assert b"Date" not in plain
    page = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", plain)
    assert page is not None and float(page[1]) == pytest.approx(72 * style.COLUMN_IN, abs=0.1)


def test_36_curves_differ_and_the_first_six_in_colour_and_in_dashes() -> None:
    looks = [(str(look["color"]), str(look["linestyle"])) for look in map(style.curve, range(36))]
    assert len(set(looks)) == 36
    assert len({colour for colour, _ in looks[:6]}) == len({dashes for _, dashes in looks[:6]}) == 6


def test_panels_fill_rows_of_a_fixed_height() -> None:
    drawn, axes = style.panels(5, width_in=7, height_in=2, columns=3)
    assert drawn.get_size_inches().tolist() == [7, 4]
    places = [a.get_position() for a in axes]
    assert len({round(p.y0, 6) for p in places[:3]}) == len({round(p.y0, 6) for p in places[3:]}) == 1
    assert places[0].y0 > places[3].y1
    assert places[0].x1 < places[1].x0 < places[1].x1 < places[2].x0


@style.styled
def with_legend(names: Sequence[str]) -> Figure:
    drawn, _ = style.panels(1, width_in=style.PAGE_IN, height_in=2)
    style.figure_legend(drawn, [Line2D([], [], label=name) for name in names], handlelength=2.0)
    return drawn


@style.styled
def with_titles(beside: int) -> Figure:
    drawn, panels = style.panels(beside, width_in=style.PAGE_IN, height_in=2)
    for axes in panels:
        style.title(axes, "$n_ame$ of a model " * 9, beside=beside)
    return drawn


@pytest.mark.parametrize("count", [1, 5, 23])
def test_a_long_legend_reads_row_by_row_inside_the_page_and_leaves_the_panels_their_height(count: int) -> None:
    heights = []
    for number in (1, count):
        names = [f"a run with a name, number {i:02d}" for i in range(number)]
        drawn = with_legend(names)
        drawn.draw_without_rendering()
        heights.append(drawn.axes[0].get_window_extent().height)
    boxes = {text.get_text(): text.get_window_extent() for text in drawn.legends[0].get_texts()}
    read = sorted(boxes, key=lambda name: (-round(boxes[name].y0), boxes[name].x0))
    assert read == names
    for one, two in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(two)
    frame = drawn.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in boxes.values())
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


def test_a_title_is_cut_to_its_panel_and_no_formula() -> None:
    for beside in (1, 2, 3):
        drawn = with_titles(beside)
        drawn.draw_without_rendering()
        for axes in drawn.axes:
            title = axes._left_title  # type: ignore[attr-defined]
            assert title.get_text().startswith("$n_ame$") and title.get_text().endswith("…")
            # On a screen, letters are moved to whole pixels.
            assert title.get_window_extent().width <= 1.02 * axes.get_window_extent().width
