"""Claim: augmenting a batch as tensors is several times as fast as a chain of Pillow calls per image.

    python -m benchmarks.augmentation [--threads 2] [--batch 64] [--rounds 30]

Both sides apply the same parameters, alternate in one run, and must agree to float32 rounding. The batch's time
includes drawing the parameters; the chain gets them ready-made. Prints one Markdown row, then JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from icre.data.augmentation import (
    MEAN,
    MEAN_BYTES,
    STD,
    AugmentationParameters,
    AugmentationSpec,
    augment,
    draw_parameters,
)

HEIGHT, WIDTH = 288, 144
SEED, EPOCH = 0, 1
OFFSET = np.array(MEAN, np.float32)[:, None, None] * 255
SCALE = 1 / (np.array(STD, np.float32)[:, None, None] * 255)

Floats = npt.NDArray[np.float32]


def main() -> None:
    """Check that both sides agree, time them and print the result."""
    options = _options()
    torch.set_num_threads(options.threads)
    spec = AugmentationSpec()
    generator = torch.Generator().manual_seed(SEED)
    shape = (options.batch, 3, HEIGHT, WIDTH)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    slots = torch.arange(options.batch)
    infrared = slots % 2 == 1
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    parameters = draw_parameters(
        spec, seed=SEED, epoch=EPOCH, slots=slots, height=HEIGHT, width=WIDTH, infrared=infrared
    )
    steps = _steps(parameters)

    def batched() -> Tensor:
        return augment(images, infrared, spec, seed=SEED, epoch=EPOCH, slots=slots)

    def chained() -> Tensor:
        done = [_chain(image, step, spec.pad) for image, step in zip(pictures, steps, strict=True)]
        return torch.from_numpy(np.stack(done))

    torch.testing.assert_close(batched(), chained(), rtol=0, atol=1e-5)
    batched_s, chained_s = _median_seconds(batched, chained, rounds=options.rounds)
    _report(options, batched_s=batched_s, chained_s=chained_s)


def _steps(parameters: AugmentationParameters) -> list[AugmentationParameters]:
    """Parameters of each image as plain Python values."""
    columns = (tensor.tolist() for tensor in parameters)
    return [AugmentationParameters(*row) for row in zip(*columns, strict=True)]


def _chain(image: Image.Image, step: AugmentationParameters, pad: int) -> Floats:
    """Apply the parameters of one image with Pillow; ``step`` contains plain numbers."""
    left, top = int(step.left), int(step.top)
    image = ImageOps.expand(image, pad).crop((left, top, left + WIDTH, top + HEIGHT))
    if step.flip:
        image = ImageOps.mirror(image)
    if step.channels[0] == step.channels[1]:
        image = Image.merge("RGB", [image.getchannel(int(step.channels[0]))] * 3)
    if step.grayscale:
        image = Image.merge("RGB", [image.convert("L")] * 3)
    if step.erase_height:
        left, top = int(step.erase_left), int(step.erase_top)
        image.paste(MEAN_BYTES, (left, top, left + int(step.erase_width), top + int(step.erase_height)))
    pixels: Floats = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    pixels -= OFFSET
    pixels *= SCALE
    return pixels


def _median_seconds(*sides: Callable[[], Tensor], rounds: int) -> list[float]:
    """Median seconds per side. Sides alternate, so other load slows them alike."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, spent in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


def _report(options: argparse.Namespace, *, batched_s: float, chained_s: float) -> None:
    result = {
        "benchmark": "augmentation",
        "batch": options.batch,
        "height": HEIGHT,
        "width": WIDTH,
        "threads": options.threads,
        "batched_images_per_s": round(options.batch / batched_s, 1),
        "pillow_images_per_s": round(options.batch / chained_s, 1),
        "ratio": round(chained_s / batched_s, 2),
    }
    print(
        f"| augmentation, {options.batch} images of {HEIGHT}x{WIDTH}, {options.threads} threads "
        f"| batched: {result['batched_images_per_s']} images/s "
        f"| Pillow, one by one: {result['pillow_images_per_s']} images/s | x{result['ratio']} |"
    )
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch; Pillow uses one")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--rounds", type=int, default=30, help="rounds per side; the median is reported")
    return parser.parse_args()


if __name__ == "__main__":
    main()
