"""Batched training augmentation and its random numbers (docs/method.md section 3).

Every number drawn for a sample is a hash of (seed, epoch, slot, stream). No generator state
is involved, so a sample is independent of the number of workers, the cut of the batch and the device.

Shape letters: B images, H height, W width in pixels; N = B * 3 * (H + 2 pad) * (W + 2 pad) bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from icre.errors import DataError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MEAN_BYTES = (124, 116, 104)
"""MEAN as a pixel; after normalisation its channels are within 0.009 of zero."""

LUMA = (19595, 38470, 7471)
"""ITU-R 601 weights of R, G and B in 1/65536, the integers that Pillow's mode ``L`` uses."""

ERASE_ATTEMPTS = 10
"""Maximum rectangles tried until one fits. At 288x144 one in 18 does not fit: all fail once in 10^12 images."""


@dataclass(frozen=True)
class AugmentationSpec:
    """Strength of augmentation; defaults are CAJ's (ICCV 2021). Probabilities are per image."""

    pad: int = 10
    """Black pixels added on each side before a crop of the original size."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    channel_exchange: float = 0.5
    """Probability that one channel of a visible image, R, G or B at even odds, replaces all three. CAJ loads
    every visible image twice, once unchanged and once exchanged: one half. [R]"""
    grayscale: float = 0.1
    """Probability that a visible image turns grey; exchanged images are already grey. 0.1 is the value in the
    field's code, often commented out. [R]"""
    erase: float = 0.5
    """Probability of erasing one rectangle, in either modality."""
    erase_area: tuple[float, float] = (0.02, 0.4)
    """Minimum and maximum area of the rectangle, as a fraction of the image."""
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Minimum and maximum height / width of the rectangle."""

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ValueError("augmentation: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.pad < 0:
            yield f"pad is {self.pad}, it must be 0 or more pixels"
        for name in ("flip", "channel_exchange", "grayscale", "erase"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                yield f"{name} is {value}, a probability lies in [0, 1]"
        if not 0 < self.erase_area[0] <= self.erase_area[1] <= 1:
            yield f"erase_area is {self.erase_area}, it must be 0 < least <= greatest <= 1"
        if not 0 < self.erase_aspect[0] <= self.erase_aspect[1] < float("inf"):
            yield f"erase_aspect is {self.erase_aspect}, it must be 0 < least <= greatest"


class AugmentationParameters(NamedTuple):
    """Augmentation of each of B images."""

    top: Tensor
    """(B,) int64: first row of the crop in the padded image, 0 to 2 pad."""
    left: Tensor
    """(B,) int64: first column of the crop in the padded image, 0 to 2 pad."""
    flip: Tensor
    """(B,) bool: mirror the crop."""
    channels: Tensor
    """(B, 3) int64: input channel of each output channel; (0, 1, 2) keeps the colours."""
    grayscale: Tensor
    """(B,) bool: all three channels show the luma."""
    erase_top: Tensor
    """(B,) int64: first row of the erased rectangle."""
    erase_left: Tensor
    """(B,) int64: first column of the erased rectangle."""
    erase_height: Tensor
    """(B,) int64: rows of the erased rectangle; 0 erases nothing."""
    erase_width: Tensor
    """(B,) int64: columns of the erased rectangle; 0 erases nothing."""

    def to(self, device: torch.device) -> AugmentationParameters:
        """The same parameters on ``device``, copied without a sync."""
        return AugmentationParameters(*(tensor.to(device, non_blocking=True) for tensor in self))


def augment(
    images: Tensor,
    infrared: Tensor,
    spec: AugmentationSpec,
    *,
    seed: int,
    epoch: int,
    slots: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Augments and normalises ``images`` (B, 3, H, W) uint8 RGB to float32 (B, 3, H, W) on the same device.

    ``infrared`` (B,) bool marks the infrared images; ``slots`` (B,) int64 are the samples' positions in the
    whole epoch. Keep both on the CPU, even with images on a GPU, to avoid GPU syncs.

    Order: pad and crop, flip, channel exchange, grayscale, erase, normalise. CAJ's code pads with black,
    crops, flips, normalises, erases, and exchanges channels last. Three choices differ from it [R]:

    - Colours change before normalisation: an exchanged image is normalised like an infrared image, whose three
      channels are also equal.
    - Erasing follows the colour changes: the rectangle looks the same in all images of both modalities.
    - The rectangle has ImageNet's mean pixel, as in the CAJ paper, rounded to bytes because augmentation works on
      bytes. CAJ's code writes (0.49, 0.48, 0.45) over normalised values, a slightly lighter grey.

    Raises DataError if the images are not uint8 (B, 3, H, W) or the other two do not match them.
    """
    _check(images, infrared, slots)
    height, width = images.shape[-2:]
    parameters = draw_parameters(
        spec, seed=seed, epoch=epoch, slots=slots, height=height, width=width, infrared=infrared
    )
    augmented = apply_parameters(images, parameters, pad=spec.pad)
    return normalise(augmented.contiguous(memory_format=memory_format))


def normalise(images: Tensor) -> Tensor:
    """(x / 255 - mean) / std with ImageNet's mean and std: (B, 3, H, W) uint8 RGB to float32, same layout.

    Raises DataError if ``images`` is anything else.
    """
    _check_images(images)
    result = images.float()
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        plane = result[:, channel]
        # offset + scale * x in one pass, as memory traffic dominates.
        torch.add(torch.tensor(-mean / std), plane, alpha=1 / (255 * std), out=plane)
    return result


def draw_parameters(
    spec: AugmentationSpec,
    *,
    seed: int,
    epoch: int,
    slots: Tensor,
    height: int,
    width: int,
    infrared: Tensor,
) -> AugmentationParameters:
    """Draws the parameters of B samples; a pure function of (seed, epoch, slot) and the sample's modality.

    ``slots`` (B,) int64 and ``infrared`` (B,) bool on one device; ``height`` and ``width`` in pixels.
    """
    draws = _uniforms(seed, epoch, slots, 9 + 2 * ERASE_ATTEMPTS)
    top, left, flip, exchange, channel, grayscale, erase, erase_top, erase_left = draws[:, :9].unbind(1)
    area, aspect = draws[:, 9:].chunk(2, 1)
    visible = ~infrared
    erase_height, erase_width = _rectangle(spec, area, aspect, height, width) * (erase < spec.erase)
    exchanged = (visible & (exchange < spec.channel_exchange))[:, None]
    return AugmentationParameters(
        top=_below(top, 2 * spec.pad + 1),
        left=_below(left, 2 * spec.pad + 1),
        flip=flip < spec.flip,
        channels=torch.where(exchanged, _below(channel, 3)[:, None], torch.arange(3, device=slots.device)),
        grayscale=visible & (grayscale < spec.grayscale),
        erase_top=_below(erase_top, height - erase_height + 1),
        erase_left=_below(erase_left, width - erase_width + 1),
        erase_height=erase_height,
        erase_width=erase_width,
    )


def apply_parameters(images: Tensor, parameters: AugmentationParameters, *, pad: int) -> Tensor:
    """Applies ``parameters`` to ``images`` (B, 3, H, W) uint8: (B, 3, H, W) uint8, contiguous."""
    # Compute on the CPU first: counting on the GPU would force a sync.
    grey = parameters.grayscale.nonzero().squeeze(1).to(images.device, non_blocking=True)
    parameters = parameters.to(images.device)
    augmented = _crop_flip_exchange(images, parameters, pad)
    augmented.index_copy_(0, grey, _luma(augmented.index_select(0, grey)))
    return _erase_(augmented, parameters)


def _crop_flip_exchange(images: Tensor, parameters: AugmentationParameters, pad: int) -> Tensor:
    """Crop, flip and exchange in one gather: each output row is a run of W bytes in the padded or mirrored images.

    Copying runs is ten times faster than indexing every byte.
    """
    batch, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, (pad,) * 4)
    both = torch.cat((padded, padded.flip(-1)))
    plane_height, plane_width = both.shape[-2:]
    image = parameters.flip * batch + torch.arange(batch, device=device)
    plane = 3 * image[:, None] + parameters.channels
    row = (plane * plane_height + parameters.top[:, None])[..., None] + torch.arange(height, device=device)
    left = torch.where(parameters.flip, 2 * pad - parameters.left, parameters.left)
    start = row * plane_width + left[:, None, None]
    runs = both.flatten().unfold(0, width, 1)  # a view (2N - W + 1, W): the run that starts at each byte
    return runs.index_select(0, start.flatten()).view(images.shape)


def _luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 RGB to its luma, three times, as in Pillow's conversion to mode ``L`` and back."""
    red, green, blue = (plane * weight for plane, weight in zip(images.int().unbind(1), LUMA, strict=True))
    luma = (red + green + blue + 2**15) >> 16
    return luma.to(torch.uint8)[:, None].expand_as(images)


def _erase_(images: Tensor, parameters: AugmentationParameters) -> Tensor:
    """Fills each image's rectangle with the mean pixel, in place."""
    rows = _inside(parameters.erase_top, parameters.erase_height, images.shape[-2])
    columns = _inside(parameters.erase_left, parameters.erase_width, images.shape[-1])
    hole = rows[:, :, None] * columns[:, None, :]
    keep = 1 - hole
    for channel, byte in enumerate(MEAN_BYTES):
        # Byte arithmetic, as masked_fill and where are not vectorised and take three times as long.
        images[:, channel].mul_(keep).add_(hole, alpha=byte)
    return images


def _inside(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size) uint8: 1 in ``length`` positions from ``start``, 0 elsewhere."""
    place = torch.arange(size, device=start.device)
    return ((place >= start[:, None]) & (place < (start + length)[:, None])).to(torch.uint8)


def _rectangle(spec: AugmentationSpec, area: Tensor, aspect: Tensor, height: int, width: int) -> Tensor:
    """(2, B): height and width of the first attempt smaller than the image in both dimensions, else 0 and 0.

    ``area`` and ``aspect`` (B, attempts) uniform in [0, 1). Area and height / width are uniform in the
    ranges of ``spec``, as in the random erasing paper (arXiv 1708.04896, algorithm 1).
    """
    pixels = _between(area, *spec.erase_area) * (height * width)
    ratio = _between(aspect, *spec.erase_aspect)
    sides = torch.stack(((pixels * ratio).sqrt(), (pixels / ratio).sqrt())).round().long()
    fits = (sides[0] < height) & (sides[1] < width)
    first = fits.int().argmax(1, keepdim=True)
    return (sides * fits).gather(2, first.expand(2, -1, -1)).squeeze(2)


def _between(uniform: Tensor, least: float, greatest: float) -> Tensor:
    return least + uniform * (greatest - least)


def _below(uniform: Tensor, bound: int | Tensor) -> Tensor:
    """A whole number in [0, bound) from a uniform number in [0, 1)."""
    return (uniform * bound).long()


def _uniforms(seed: int, epoch: int, slots: Tensor, streams: int) -> Tensor:
    """(B, streams) float64 in [0, 1), 53 random bits each: a hash of seed, epoch, slot and stream."""
    key = _mix(_mix(torch.tensor(seed)) + epoch)
    bits = _mix(_mix(key + slots)[:, None] + torch.arange(streams, device=slots.device))
    return _shift_right(bits, 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's step (Steele, Lea and Flood 2014): a bijection of 64 bits with pseudo-random output.

    Integer products wrap on every device; the constants are the published ones, as signed numbers.
    """
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ _shift_right(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift_right(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64: shifts in zeros for either sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _check(images: Tensor, infrared: Tensor, slots: Tensor) -> None:
    _check_images(images)
    for name, tensor, dtype in (("infrared", infrared, torch.bool), ("slots", slots, torch.int64)):
        if tensor.shape != images.shape[:1] or tensor.dtype != dtype:
            raise DataError(
                f"augmentation: {name} is {tensor.dtype} {tuple(tensor.shape)}; "
                f"it must be {dtype} ({len(images)},), one for each image"
            )


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise DataError(
            f"augmentation: images are {images.dtype} {tuple(images.shape)}; they must be torch.uint8 (B, 3, H, W)",
            hint="pass the decoded RGB bytes; normalisation is done here, once.",
        )
