"""Augmentation against a loop over the images with Pillow, and its draws against plain Python integers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from icre.data.augmentation import (
    AugmentationParameters,
    AugmentationSpec,
    apply_parameters,
    augment,
    draw_parameters,
    normalise,
)
from icre.errors import DataError

SPEC = AugmentationSpec()
NOTHING = AugmentationSpec(pad=0, flip=0, channel_exchange=0, grayscale=0, erase=0)
MANY = 20_000


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def draw(
    spec: AugmentationSpec = SPEC,
    *,
    count: int = MANY,
    seed: int = 7,
    epoch: int = 3,
    first: int = 0,
    infrared: Tensor | None = None,
    height: int = 288,
    width: int = 144,
) -> AugmentationParameters:
    if infrared is None:
        infrared = torch.zeros(count, dtype=torch.bool)
    return draw_parameters(
        spec,
        seed=seed,
        epoch=epoch,
        slots=torch.arange(first, first + count),
        height=height,
        width=width,
        infrared=infrared,
    )


def random_images(count: int, height: int = 40, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def half_infrared(count: int) -> Tensor:
    return torch.arange(count) % 2 == 1


# --- independent references ------------------------------------------------------------------------


def reference_image(image: Tensor, parameters: AugmentationParameters, index: int, pad: int) -> Tensor:
    step = AugmentationParameters(*(tensor[index] for tensor in parameters))
    height, width = image.shape[-2:]
    top, left = int(step.top), int(step.left)
    picture = ImageOps.expand(Image.fromarray(image.permute(1, 2, 0).numpy()), pad, fill=0)
    picture = picture.crop((left, top, left + width, top + height))
    if step.flip:
        picture = ImageOps.mirror(picture)
    picture = Image.merge("RGB", [picture.getchannel(int(source)) for source in step.channels])
    if step.grayscale:
        picture = picture.convert("L").convert("RGB")
    pixels = np.array(picture)
    y, x = int(step.erase_top), int(step.erase_left)
    pixels[y : y + int(step.erase_height), x : x + int(step.erase_width)] = (124, 116, 104)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def reference_normalised(images: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]
    return ((images.double() / 255 - mean) / std).float()


def splitmix64(state: int) -> int:
    """One output of the published generator whose state was ``state`` before the call."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def reference_uniform(seed: int, epoch: int, slot: int, stream: int) -> float:
    key = splitmix64((splitmix64(seed) + epoch) % 2**64)
    return (splitmix64((splitmix64((key + slot) % 2**64) + stream) % 2**64) >> 11) * 2.0**-53


def reference_draw(slot: int, *, seed: int, epoch: int, infrared: bool, height: int, width: int) -> list[object]:
    """The default spec's draws for one sample, in the order of the fields of AugmentationParameters."""
    u = [reference_uniform(seed, epoch, slot, stream) for stream in range(29)]
    exchanged = not infrared and u[3] < 0.5
    erase_height = erase_width = 0
    for area, aspect in zip(u[9:19], u[19:], strict=True):
        pixels = (0.02 + area * (0.4 - 0.02)) * (height * width)
        ratio = 0.3 + aspect * (1 / 0.3 - 0.3)
        tall, wide = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if tall < height and wide < width:
            erase_height, erase_width = (tall, wide) if u[6] < 0.5 else (0, 0)
            break
    return [
        int(u[0] * 21),
        int(u[1] * 21),
        u[2] < 0.5,
        [int(u[4] * 3)] * 3 if exchanged else [0, 1, 2],
        not infrared and u[5] < 0.1,
        int(u[7] * (height - erase_height + 1)),
        int(u[8] * (width - erase_width + 1)),
        erase_height,
        erase_width,
    ]


# --- the operations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        replace(NOTHING, pad=10),
        replace(NOTHING, flip=0.5),
        replace(NOTHING, pad=3, flip=0.5),
        replace(NOTHING, channel_exchange=0.5),
        replace(NOTHING, grayscale=0.5),
        replace(NOTHING, erase=0.5),
        replace(SPEC, grayscale=0.5),
    ],
    ids=["crop", "flip", "crop and flip", "exchange", "grayscale", "erase", "all"],
)
def test_each_operation_agrees_with_a_loop_in_pillow(spec: AugmentationSpec) -> None:
    images, infrared = random_images(32), half_infrared(32)
    before = images.clone()
    parameters = draw(spec, count=32, infrared=infrared, height=40, width=24)
    expected = torch.stack([reference_image(image, parameters, i, spec.pad) for i, image in enumerate(images)])
    assert not torch.equal(expected, images)  # the case does exercise something

    assert torch.equal(apply_parameters(images, parameters, pad=spec.pad), expected)
    assert torch.equal(images, before)  # the caller's bytes stay as they were
    whole = augment(images, infrared, spec, seed=7, epoch=3, slots=torch.arange(32))
    torch.testing.assert_close(whole, reference_normalised(expected), rtol=0, atol=2e-6)


def test_nothing_asked_nothing_changed() -> None:
    images = random_images(6)
    whole = augment(images, half_infrared(6), NOTHING, seed=0, epoch=0, slots=torch.arange(6))
    assert torch.equal(whole, normalise(images))


def test_padding_wider_than_the_image_is_black() -> None:
    images = torch.full((64, 3, 6, 5), 200, dtype=torch.uint8)
    spec = replace(NOTHING, pad=9)
    parameters = draw(spec, count=64, height=6, width=5)
    expected = torch.stack([reference_image(image, parameters, i, 9) for i, image in enumerate(images)])
    assert torch.equal(apply_parameters(images, parameters, pad=9), expected)


def test_normalise_every_byte_value() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    torch.testing.assert_close(normalise(images), reference_normalised(images), rtol=0, atol=1e-6)


def test_erased_pixels_are_the_mean_whatever_happened_to_the_colours() -> None:
    spec = AugmentationSpec(channel_exchange=0.5, grayscale=0.5, erase=1)
    parameters = draw(spec, count=32, infrared=half_infrared(32), height=40, width=24)
    whole = augment(random_images(32), half_infrared(32), spec, seed=7, epoch=3, slots=torch.arange(32))
    for image, *box in zip(whole, *parameters[5:], strict=True):
        top, left, height, width = (int(side) for side in box)
        assert image[:, top : top + height, left : left + width].abs().max() < 0.009


def test_memory_layout_changes_no_value() -> None:
    images = random_images(16)

    def augmented(source: Tensor, memory_format: torch.memory_format) -> Tensor:
        slots = torch.arange(16)
        return augment(source, half_infrared(16), SPEC, seed=1, epoch=2, slots=slots, memory_format=memory_format)

    plain = augmented(images, torch.contiguous_format)
    interleaved = images.contiguous(memory_format=torch.channels_last)
    result = augmented(interleaved, torch.channels_last)
    assert plain.is_contiguous()
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, result)
    assert torch.equal(normalise(images), normalise(interleaved))


# --- the draws: a pure function of seed, epoch and slot --------------------------------------------


def test_draws_agree_with_plain_integers() -> None:
    # The reference itself, against the generator's published first outputs for the seed 1234567.
    states = [1234567 + i * 0x9E3779B97F4A7C15 for i in range(3)]
    assert [splitmix64(state) for state in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    for seed, epoch, first in ((0, 0, 0), (7, 3, 1000), (2**63 - 1, 79, 10**12)):
        drawn = draw(count=50, seed=seed, epoch=epoch, first=first, infrared=half_infrared(50))
        rows = zip(*(tensor.tolist() for tensor in drawn), strict=True)
        for i, row in enumerate(rows):
            assert list(row) == reference_draw(
                first + i, seed=seed, epoch=epoch, infrared=i % 2 == 1, height=288, width=144
            )


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images, infrared, slots = random_images(64), half_infrared(64), torch.arange(64) + 640
    whole = augment(images, infrared, SPEC, seed=5, epoch=2, slots=slots)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    for part in (slice(0, 32), slice(32, 64), slice(17, 18), order):
        alone = augment(images[part], infrared[part], SPEC, seed=5, epoch=2, slots=slots[part])
        assert torch.equal(alone, whole[part])


@pytest.mark.parametrize(
    ("seed", "epoch", "first"),
    [(8, 3, 0), (7, 4, 0), (7, 3, 1), (8, 2, 0), (7, 4, -1)],
    ids=["seed", "epoch", "neighbour", "seed + 1, epoch - 1", "epoch + 1, slot - 1"],
)
def test_seeds_epochs_and_neighbours_are_unrelated(seed: int, epoch: int, first: int) -> None:
    spec = replace(SPEC, pad=1000)
    one, two = draw(spec), draw(spec, seed=seed, epoch=epoch, first=first)
    for a, b in ((one.top, two.top), (one.left, two.left), (one.flip, two.flip), (one.top, one.left)):
        correlation = torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1]
        assert abs(float(correlation)) < 5 / math.sqrt(MANY)  # five standard deviations
    assert (one.top == two.top).float().mean() < 0.01


def test_one_option_does_not_disturb_the_others() -> None:
    one, two = draw(SPEC), draw(replace(SPEC, flip=0.9, erase=0, grayscale=0))
    assert torch.equal(one.top, two.top)
    assert torch.equal(one.channels, two.channels)


# --- the draws: their distributions ----------------------------------------------------------------


def close(count: Tensor, probability: float, total: int) -> bool:
    """Within five standard deviations of a binomial."""
    return abs(int(count) - probability * total) <= 5 * math.sqrt(total * probability * (1 - probability))


def test_probabilities() -> None:
    spec = AugmentationSpec(flip=0.3, channel_exchange=0.6, grayscale=0.2, erase=0.45)
    drawn = draw(spec)
    exchanged = drawn.channels[:, 0] == drawn.channels[:, 2]
    assert close(drawn.flip.sum(), 0.3, MANY)
    assert close(exchanged.sum(), 0.6, MANY)
    assert close(drawn.grayscale.sum(), 0.2, MANY)
    assert close((drawn.erase_height > 0).sum(), 0.45, MANY)
    assert close((exchanged & drawn.grayscale).sum(), 0.12, MANY)  # independent of each other
    for channel in range(3):
        assert close((exchanged & (drawn.channels == channel).all(1)).sum(), 0.2, MANY)


def test_crops_are_uniform() -> None:
    drawn = draw(AugmentationSpec(pad=2))
    for counts in (torch.bincount(drawn.top), torch.bincount(drawn.left)):
        assert len(counts) == 5
        assert all(close(count, 0.2, MANY) for count in counts)


def test_erased_rectangles_keep_within_their_ranges() -> None:
    drawn = draw(AugmentationSpec(erase=1, erase_area=(0.1, 0.3), erase_aspect=(0.5, 2)))
    height, width = drawn.erase_height.double(), drawn.erase_width.double()
    slack = (height + width) / 2 + 1  # what rounding both sides can change
    area = height * width
    assert bool(((area >= 0.1 * 288 * 144 - slack) & (area <= 0.3 * 288 * 144 + slack)).all())
    assert bool(((height + 0.5) / (width - 0.5) >= 0.5).all())
    assert bool(((height - 0.5) / (width + 0.5) <= 2).all())
    assert bool((drawn.erase_top + drawn.erase_height <= 288).all())
    assert bool((drawn.erase_left + drawn.erase_width <= 144).all())
    # Every rectangle fits here, so that area is uniform: each tenth of the range holds a tenth.
    tenths = ((area / (288 * 144) - 0.1) / 0.2 * 10).long().clamp(0, 9)
    assert bool((torch.bincount(tenths, minlength=10) / MANY - 0.1).abs().max() < 0.015)
    # Both ends of the free room are reached.
    assert int(drawn.erase_top.min()) == 0
    assert int((drawn.erase_top + drawn.erase_height).max()) == 288


def test_a_rectangle_that_never_fits_erases_nothing() -> None:
    drawn = draw(AugmentationSpec(erase=1, erase_area=(1, 1)), count=100)
    assert int(drawn.erase_height.max()) == 0
    assert int(drawn.erase_width.max()) == 0


def test_infrared_keeps_its_channels() -> None:
    spec = AugmentationSpec(channel_exchange=1, grayscale=1)
    infrared = half_infrared(200)
    drawn = draw(spec, count=200, infrared=infrared)
    assert torch.equal(drawn.channels[infrared], torch.arange(3).expand(100, 3))
    assert not drawn.grayscale[infrared].any()
    assert bool((drawn.channels[~infrared] == drawn.channels[~infrared][:, :1]).all())
    assert drawn.grayscale[~infrared].all()


def test_probabilities_nought_and_one_are_exact() -> None:
    never, always = draw(NOTHING), draw(AugmentationSpec(flip=1, channel_exchange=1, grayscale=1, erase=1))
    assert not never.flip.any()
    assert not never.grayscale.any()
    assert int(never.erase_height.max()) == 0
    assert int(never.top.max()) == int(never.left.max()) == 0
    assert torch.equal(never.channels, torch.arange(3).expand(MANY, 3))
    assert always.flip.all()
    assert always.grayscale.all()
    assert int(always.erase_height.min()) > 0
    assert bool((always.channels == always.channels[:, :1]).all())


# --- refusals --------------------------------------------------------------------------------------


def test_all_faults_of_a_spec_are_named_at_once() -> None:
    with pytest.raises(ValueError) as refusal:
        AugmentationSpec(
            pad=-1,
            flip=1.5,
            erase=-0.1,
            grayscale=math.nan,
            channel_exchange=2,
            erase_area=(0.5, 0.1),
            erase_aspect=(0.0, 1.0),
        )
    for name in ("pad", "flip", "erase", "grayscale", "channel_exchange", "erase_area", "erase_aspect"):
        assert f"{name} is" in str(refusal.value)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 4),
        torch.zeros(2, 1, 8, 4, dtype=torch.uint8),
        torch.zeros(3, 8, 4, dtype=torch.uint8),
    ],
    ids=["float", "one channel", "one image"],
)
def test_only_batches_of_rgb_bytes_are_taken(images: Tensor) -> None:
    with pytest.raises(DataError):
        normalise(images)
    with pytest.raises(DataError):
        augment(images, half_infrared(2), SPEC, seed=0, epoch=0, slots=torch.arange(2))


@pytest.mark.parametrize(
    ("infrared", "slots"),
    [
        (half_infrared(3), torch.arange(2)),
        (half_infrared(2), torch.arange(3)),
        (torch.zeros(2, dtype=torch.int64), torch.arange(2)),
        (half_infrared(2), torch.arange(2, dtype=torch.int32)),
    ],
)
def test_modalities_and_slots_have_to_match_the_images(infrared: Tensor, slots: Tensor) -> None:
    with pytest.raises(DataError):
        augment(random_images(2), infrared, SPEC, seed=0, epoch=0, slots=slots)
