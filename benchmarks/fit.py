"""Claim: fitting an image to the stored size takes a fraction of Pillow's CPU time, to the same pixels up to rounding.

    python -m benchmarks.fit [--images 16] [--rounds 20] [--height 288 --width 144]

On one thread, two pairs take turns in one run, in an order drawn each round: the resize alone, torch's against
Pillow's; and all that :func:`icre.data.images.fit_image` does to a JPEG of twice the size, against Pillow's chain of
decoding, resizing (bicubic) and encoding. CPU time of the process, medians of the rounds. Then the resize is compared
with Pillow's, one pass at a time, over random sizes of noise. Images are synthetic people at quality 95. Prints
Markdown, then JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from icre.data import images
from icre.data.synthetic import MODALITIES, SyntheticSpec, render_image

QUALITY = 95
FILTER = Image.Resampling.BICUBIC


def main() -> None:
    """Time the pairs, compare the pixels, print."""
    options = _options()
    torch.set_num_threads(1)
    height, width = options.height, options.width
    pictures = _pictures(options)
    files = [_jpeg(Image.fromarray(picture)) for picture in pictures]
    fit = partial(images.fit_image, height=height, width=width, jpeg_quality=QUALITY)
    work: dict[str, Callable[[], object]] = {
        "resize": lambda: [images._resized_fast(picture, height=height, width=width) for picture in pictures],
        "resize, Pillow": lambda: [Image.fromarray(picture).resize((width, height), FILTER) for picture in pictures],
        "fit": lambda: [fit(file) for file in files],
        "fit, Pillow": lambda: [_fit_by_pillow(file, (width, height)) for file in files],
    }
    seconds = _median_seconds(work, options.rounds)
    ms = {name: round(1e3 * spent / len(files), 2) for name, spent in seconds.items()}
    ratios = {name: round(seconds[f"{name}, Pillow"] / seconds[name], 2) for name in ("resize", "fit")}
    pixels = _differences(options.sizes)
    for name, ratio in ratios.items():
        sides = f"{ms[name]} ms | Pillow {ms[f'{name}, Pillow']} ms | x{ratio}"
        print(f"| {name}, {2 * height}x{2 * width} to {height}x{width} | {sides} |")
    print(
        f"| values of {options.sizes} random sizes | {100 * pixels['equal']:.2f} % the same as Pillow's "
        f"| at most {pixels['largest']} of 255 off | at most {100 * pixels['most']:.1f} % of an image |"
    )
    print(json.dumps({"benchmark": "fit", "ms": ms, "ratios": ratios, "pixels": pixels}))


def _fit_by_pillow(data: bytes, size: tuple[int, int]) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return _jpeg(image.convert("RGB").resize(size, FILTER))


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def _median_seconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in work}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(list(work), len(work)):
            start = time.process_time()
            work[name]()
            if turn:  # the first warms up
                times[name].append(time.process_time() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def _differences(sizes: int) -> dict[str, float]:
    """Of the resize to four usual sizes: the share of equal values, the largest difference, the most in an image."""
    drawn = np.random.default_rng(0)
    shares, largest = [], 0
    for number in range(sizes):
        height, width = ((288, 144), (384, 128), (256, 128), (64, 32))[number % 4]
        source = (int(drawn.integers(16, 700)), int(drawn.integers(16, 500)))
        noise = drawn.integers(0, 256, (*source, 3), dtype=np.uint8)
        ours = images._resized_fast(noise, height=height, width=width).astype(int)
        # x, then y: from version 13 on, Pillow itself takes the cheaper order.
        passes = Image.fromarray(noise).resize((width, source[0]), FILTER).resize((width, height), FILTER)
        off = np.abs(ours - np.asarray(passes))
        shares.append(float((off > 0).mean()))
        largest = max(largest, int(off.max()))
    return {"equal": round(1 - statistics.mean(shares), 4), "largest": largest, "most": round(max(shares), 4)}


def _pictures(options: argparse.Namespace) -> list[np.ndarray]:
    """Synthetic people of twice the size, visible and infrared in turn."""
    count, height, width = options.images, 2 * options.height, 2 * options.width
    spec = SyntheticSpec(identities=max(3, count), images_per_modality=1, height=height, width=width)
    shown = [(index + 1, MODALITIES[index % 2]) for index in range(count)]
    return [np.array(render_image(spec, pid, m, spec.cameras(m)[0], 0)) for pid, m in shown]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each side; the median counts")
    parser.add_argument("--height", type=int, default=288, help="stored height; the files are twice as high")
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--sizes", type=int, default=400, help="random sizes whose pixels are compared")
    return parser.parse_args()


if __name__ == "__main__":
    main()
