"""Decoding and, where the size differs, re-encoding of single images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

MIN_SIDE = 16
"""Images with a shorter side hold no identity clue and are set aside."""


class UnreadableImageError(ValueError):
    """The file is not an image that can be used; the message is the reason."""


def fit_image(data: bytes, *, height: int, width: int, jpeg_quality: int) -> bytes:
    """``data`` itself when it already is an 8-bit image of the wanted size, else a JPEG of that size.

    Rotation by EXIF is applied, palettes and transparency become RGB. Raises UnreadableImageError for what does
    not decode completely, is tiny, or has more than 8 bits a channel (how to scale those depends on the sensor).
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            deep = any(";16" in str(tile[3]) for tile in image.tile)
            image.load()
            fits = image.size == (width, height) and image.mode in ("RGB", "L") and not _rotated(image)
            _refuse_unusable(image, deep=deep)
            if fits:
                return data
            upright = ImageOps.exif_transpose(image)
            pixels = _to_rgb(upright).resize((width, height), Image.Resampling.BICUBIC)
    except UnreadableImageError:
        raise
    # Pillow's decoders raise whatever their format's parser met: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(f"does not decode: {type(error).__name__}: {error}") from error
    out = io.BytesIO()
    pixels.save(out, format="JPEG", quality=jpeg_quality, subsampling=0)
    return out.getvalue()


def decode(data: Any) -> np.ndarray:
    """(height, width, 3) uint8 RGB from the encoded bytes of a prepared image (any buffer): what Pillow makes of them.

    A JPEG goes through simplejpeg, which is faster than Pillow and gives the same pixels, as both are libjpeg-turbo
    with its accurate inverse DCT and smooth chroma upsampling. What that refuses, Pillow decodes: other formats, and
    JPEGs with stray bytes, which some cameras write.
    """
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return _decode_by_pillow(data)
    return pixels


def _decode_by_pillow(data: Any) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _rotated(image: Image.Image) -> bool:
    return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _refuse_unusable(image: Image.Image, *, deep: bool) -> None:
    if min(image.size) < MIN_SIDE:
        raise UnreadableImageError(f"{image.width}x{image.height} pixels; at least {MIN_SIDE} a side are needed")
    # Pillow opens 16-bit colour as 8-bit RGB, of which only the raw mode of the file (``deep``) still tells.
    if deep or image.mode.startswith(("I", "F")):
        raise UnreadableImageError(f"mode {image.mode}: more than 8 bits a channel; scale it to 8 bits first")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    return image.convert("RGB")
