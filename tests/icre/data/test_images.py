from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from icre.data import images
from icre.data.images import UnreadableImageError, fit_image

HEIGHT, WIDTH = 64, 32
Prepare = Callable[[bytes], bytes]
RED, BLUE = (220, 30, 30), (20, 20, 230)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, height // 2, width, height))
    return image.convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def fit(data: bytes) -> bytes:
    return fit_image(data, height=HEIGHT, width=WIDTH, jpeg_quality=95)


def keep(data: bytes) -> bytes:
    """Fitted to no size."""
    return fit_image(data, height=None, width=None, jpeg_quality=95)


def decode(data: Any, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return images.decode(data, height=height, width=width)


def halves(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour of the upper and of the lower half, after checks of the size."""
    pixels = decode(data)
    assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8
    return pixels[: HEIGHT // 2 - 4].mean((0, 1)), pixels[HEIGHT // 2 + 4 :].mean((0, 1))


def near(found: np.ndarray, colour: tuple[int, int, int], within: float = 4) -> bool:
    return bool(np.abs(found - np.array(colour)).max() <= within)


def oriented(image: Image.Image, orientation: int) -> dict[str, Image.Exif]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return {"exif": exif}


# What fits


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_of_the_right_size_keeps_its_bytes(kind: str, mode: str) -> None:
    data = encode(picture(WIDTH, HEIGHT, mode), kind)
    assert fit(data) is data
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_upright_exif_keeps_the_bytes() -> None:
    image = picture(WIDTH, HEIGHT)
    data = encode(image, "JPEG", **oriented(image, 1))
    assert fit(data) is data


# What is made to fit


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("size", [(100, 300), (WIDTH, HEIGHT + 1), (16, 16), (HEIGHT, WIDTH)])
def test_another_size_becomes_a_jpeg_of_the_wanted_one(kind: str, size: tuple[int, int]) -> None:
    fitted = fit(encode(picture(*size), kind))
    assert Image.open(io.BytesIO(fitted)).format == "JPEG"
    upper, lower = halves(fitted)
    assert near(upper, RED, 8) and near(lower, BLUE, 8)


def test_colour_is_not_subsampled() -> None:
    # Columns of alternating colour survive only if chroma has the resolution of luma.
    stripes = np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = RED, BLUE
    data = encode(Image.fromarray(np.ascontiguousarray(stripes[:, :WIDTH]), "RGB").convert("RGBA"))
    pixels = decode(fit(data))
    assert near(pixels[:, ::2].mean((0, 1)), RED, 12) and near(pixels[:, 1::2].mean((0, 1)), BLUE, 12)


def test_quality_is_the_one_asked_for() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 50, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise))
    sizes = [len(fit_image(data, height=HEIGHT, width=WIDTH, jpeg_quality=quality)) for quality in (50, 75, 95)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("orientation", "transpose"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (90, 150)])
def test_exif_rotation_is_applied(orientation: int, transpose: Image.Transpose, size: tuple[int, int]) -> None:
    # The camera stored the transposed picture and noted how to turn it back.
    upright = picture(*size)
    upright.paste((0, 255, 0), (0, 0, size[0] // 2, size[1]))
    stored = upright.transpose(transpose)
    fitted = fit(encode(stored, "JPEG", quality=100, subsampling=0, **oriented(stored, orientation)))
    pixels = decode(fitted).astype(int)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    left, right = pixels[:, : WIDTH // 2 - 3], pixels[:, WIDTH // 2 + 3 :]
    assert near(left.mean((0, 1)), (0, 255, 0), 8)
    assert near(right[: HEIGHT // 2 - 4].mean((0, 1)), RED, 8)
    assert Image.open(io.BytesIO(fitted)).getexif().get(ExifTags.Base.Orientation, 1) == 1


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (90, 150)])
@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA", "L", "1", "LA"])
def test_other_modes_become_rgb(mode: str, size: tuple[int, int]) -> None:
    image = picture(*size, mode)
    fitted = fit(encode(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert Image.open(io.BytesIO(fitted)).mode in ("RGB", "L")
    upper, lower = halves(fitted)
    if mode in ("L", "1", "LA"):
        assert all(np.ptp(half) < 1 for half in (upper, lower))
        assert upper.mean() > lower.mean() + 20
    else:
        assert near(upper, RED, 12) and near(lower, BLUE, 12)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (90, 150)])
def test_transparency_is_black(size: tuple[int, int]) -> None:
    image = picture(*size, "RGBA")
    image.paste((255, 255, 255, 0), (0, 0, size[0], size[1] // 2))
    palette = picture(*size).quantize(2)
    red = palette.getpixel((0, 0))
    for data in (encode(image), encode(palette, transparency=red)):
        upper, lower = halves(fit(data))
        assert near(upper, (0, 0, 0), 6) and near(lower, BLUE, 12)


# What keeps its own size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (90, 150), (16, 16), (301, 77)])
def test_without_a_size_usable_images_keep_their_bytes(kind: str, mode: str, size: tuple[int, int]) -> None:
    data = encode(picture(*size, mode), kind)
    assert keep(data) is data


@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA", "1", "LA"])
def test_without_a_size_other_modes_become_rgb_of_their_own_size(mode: str) -> None:
    kept = Image.open(io.BytesIO(keep(encode(picture(90, 150, mode), "JPEG" if mode == "CMYK" else "PNG"))))
    assert (kept.format, kept.mode, kept.size) == ("JPEG", "RGB", (90, 150))
    if mode in ("P", "CMYK", "RGBA"):
        pixels = np.asarray(kept)
        assert near(pixels[:60].mean((0, 1)), RED, 12) and near(pixels[90:].mean((0, 1)), BLUE, 12)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_without_a_size_rotated_images_become_upright(mode: str) -> None:
    stored = picture(90, 150, mode).transpose(Image.Transpose.ROTATE_90)
    kept = Image.open(io.BytesIO(keep(encode(stored, "JPEG", quality=100, **oriented(stored, 6)))))
    assert kept.size == (90, 150)
    assert kept.getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert np.abs(np.asarray(kept.convert(mode)).astype(int) - np.asarray(picture(90, 150, mode))).mean() < 4


# What cannot be used


def deep_png(colour_type: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel, chunk by chunk: Pillow only writes the grey one."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + struct.pack(">H", 300) * channels * WIDTH) * HEIGHT
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("prepare", [fit, keep])
@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_refused(prepare: Prepare, colour_type: int, channels: int) -> None:
    with pytest.raises(UnreadableImageError, match="8 bits"):
        prepare(deep_png(colour_type, channels))


@pytest.mark.parametrize("prepare", [fit, keep])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_pixels_are_refused(prepare: Prepare, dtype: type) -> None:
    data = encode(Image.fromarray(np.full((HEIGHT, WIDTH), 300, dtype)), "TIFF")
    with pytest.raises(UnreadableImageError, match="8 bits"):
        prepare(data)


@pytest.mark.parametrize("prepare", [fit, keep])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (90, 150)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_refused(prepare: Prepare, kind: str, size: tuple[int, int], share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(UnreadableImageError):
        prepare(data[: int(share * len(data))])


@pytest.mark.parametrize("prepare", [fit, keep])
@pytest.mark.parametrize("data", [b"", b"no picture\n" * 40, b"\x89PNG\r\n\x1a\n", bytes(5000)])
def test_what_is_no_image_is_refused(prepare: Prepare, data: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        prepare(data)


@pytest.mark.parametrize("prepare", [fit, keep])
@pytest.mark.parametrize("size", [(15, 40), (40, 15), (1, 1)])
def test_tiny_images_are_refused(prepare: Prepare, size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImageError, match=f"{size[0]}x{size[1]}"):
        prepare(encode(picture(*size)))


# Decoding


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_takes_any_buffer(mode: str) -> None:
    data = encode(picture(WIDTH, HEIGHT, mode))
    expected = np.asarray(picture(WIDTH, HEIGHT, mode).convert("RGB"))
    for buffer in (data, bytearray(data), memoryview(data)):
        assert np.array_equal(decode(buffer), expected)


def noise(mode: str, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth below, hard edges and all colours above: rounding anywhere in a decoder shows."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[height // 2 :] = np.linspace(0, 255, width)[:, None]
    return Image.fromarray(pixels).convert(mode)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (31, 67)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [40, 95])
@pytest.mark.parametrize(
    "options", [{"subsampling": s} for s in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")] + [{"keep_rgb": 1}]
)
def test_a_colour_jpeg_decodes_as_pillow_does_bit_for_bit(
    size: tuple[int, int], progressive: bool, quality: int, options: dict[str, object]
) -> None:
    data = encode(noise("RGB", *size), "JPEG", quality=quality, progressive=progressive, **options)
    assert np.array_equal(decode(data, *size), by_pillow(data))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_gray_jpeg_decodes_as_pillow_does_bit_for_bit(progressive: bool) -> None:
    data = encode(noise("L"), "JPEG", quality=95, progressive=progressive)
    pixels = decode(data)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_what_was_fitted_decodes_as_pillow_does_bit_for_bit(mode: str) -> None:
    fitted = fit(encode(noise(mode, 90, 150), "JPEG"))
    assert np.array_equal(decode(fitted), by_pillow(fitted))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_with_stray_bytes_that_was_kept_still_decodes(mode: str) -> None:
    whole = encode(noise(mode), "JPEG", quality=95)
    stray = whole[:-2] + bytes(8) + whole[-2:]
    assert fit(stray) is stray
    assert np.array_equal(decode(stray), by_pillow(stray))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_formats_decode_too(kind: str, mode: str) -> None:
    data = encode(noise(mode), kind)
    assert np.array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(90, 150), (WIDTH, HEIGHT + 1), (20, 20), (HEIGHT, WIDTH)])
def test_another_size_is_resized_as_pillow_does(kind: str, mode: str, size: tuple[int, int]) -> None:
    data = encode(noise(mode, *size), kind)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(decode(data), np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
@pytest.mark.parametrize("size", [(90, 150), (31, 67), (20, 20), (64, 64), (640, 480), (2000, 3001)])
def test_preparing_resizes_as_pillow_does_up_to_rounding(mode: str, size: tuple[int, int]) -> None:
    data = encode(noise(mode, *size), "JPEG" if mode == "CMYK" else "PNG")
    pixels = by_pillow(data) if mode != "RGBA" else np.asarray(noise("RGB", *size))
    resized = Image.fromarray(pixels)
    # One pass each: from version 13 on, Pillow takes y first where that is the cheaper order.
    for step in ((WIDTH, size[1]), (WIDTH, HEIGHT)):
        resized = resized.resize(step, Image.Resampling.BICUBIC)
    ours = images._resized_fast(pixels.copy(), height=HEIGHT, width=WIDTH)
    off = np.abs(ours.astype(int) - np.asarray(resized))
    assert off.max() <= 2 and (off > 0).mean() < 0.03
    assert fit(data) == encode(Image.fromarray(ours), "JPEG", quality=95, subsampling=0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (90, 150), (20, 20)])
def test_pixels_land_in_the_buffer_that_is_given(kind: str, size: tuple[int, int]) -> None:
    data = encode(noise("RGB", *size), kind)
    batch = np.full((3, HEIGHT, WIDTH, 3), 7, np.uint8)
    returned = images.decode(data, height=HEIGHT, width=WIDTH, out=batch[1])
    assert np.shares_memory(returned, batch)
    assert np.array_equal(batch[1], decode(data))
    assert (batch[[0, 2]] == 7).all()


@pytest.mark.parametrize(
    "out",
    [np.empty((HEIGHT + 1, WIDTH, 3), np.uint8), np.empty((HEIGHT, WIDTH, 3), np.float32), np.empty((HEIGHT, WIDTH))],
)
def test_a_buffer_of_another_shape_or_type_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out"):
        images.decode(encode(noise("RGB"), "JPEG"), height=HEIGHT, width=WIDTH, out=out)


def test_decoding_what_is_no_image_is_an_error() -> None:
    with pytest.raises(OSError):
        decode(b"no picture\n" * 40)
