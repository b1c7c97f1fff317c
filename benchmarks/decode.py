"""Claim: simplejpeg decodes the stored JPEGs faster than Pillow does, to the same pixels.

    python -m benchmarks.decode [--images 16] [--rounds 30]

Decoders that are installed take turns in one run, in an order drawn each round, with one thread; the CPU time of the
process counts, and the median of the rounds. Others are listed as not installed (`pip install opencv-python-headless
imagecodecs kornia-rs` adds them; PyTurboJPEG also needs the system's libturbojpeg). Images are synthetic people of
288x144 at quality 95, stored in four ways: 4:4:4 is what ``prepare`` writes, the others are kept as they come. Prints a
Markdown table, then JSON.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from icre.data import images
from icre.data.synthetic import MODALITIES, SyntheticSpec, render_image

HEIGHT, WIDTH, QUALITY = 288, 144, 95
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "colour 4:4:4": ("RGB", {"subsampling": "4:4:4"}),
    "colour 4:2:0": ("RGB", {"subsampling": "4:2:0"}),
    "colour 4:2:0 progressive": ("RGB", {"subsampling": "4:2:0", "progressive": True}),
    "gray": ("L", {}),
}
"""Pillow's mode, and how it saves."""

Pixels = npt.NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]


@dataclass(frozen=True)
class Result:
    """One decoder on one kind of image, against Pillow in the same run."""

    decoder: str
    kind: str
    us_per_image: float
    ratio: float
    """Pillow's time over this one's."""
    max_difference: int
    mean_difference: float


def main() -> None:
    """Time what is installed, and print the tables."""
    options = _options()
    decoders, absent = _installed()
    pictures = _pictures(options.images)
    results = [result for kind in KINDS for result in _measure(kind, pictures, decoders, rounds=options.rounds)]
    print("| images | decoder | µs an image | Pillow's time / its time | max difference | mean difference |")
    print("|---|---|---:|---:|---:|---:|")
    for r in results:
        cells = f"{r.us_per_image:.0f} | x{r.ratio:.2f} | {r.max_difference} | {r.mean_difference:.4f}"
        print(f"| {r.kind} | {r.decoder} | {cells} |")
    for name, reason in absent.items():
        print(f"\n{name}: not installed ({reason})")
    print(json.dumps({"benchmark": "decode", "results": [asdict(r) for r in results], "not_installed": absent}))


def _measure(kind: str, pictures: list[Image.Image], decoders: dict[str, Decoder], *, rounds: int) -> list[Result]:
    mode, options = KINDS[kind]
    files = [_encode(picture.convert(mode), **options) for picture in pictures]
    expected = np.stack([_pillow(file) for file in files]).astype(int)
    seconds = _median_seconds(decoders, files, rounds=rounds)
    results = []
    for name, decode in decoders.items():
        difference = np.abs(np.stack([decode(file) for file in files]) - expected)
        results.append(
            Result(
                decoder=name,
                kind=kind,
                us_per_image=round(1e6 * seconds[name] / len(files), 1),
                ratio=round(seconds["Pillow"] / seconds[name], 2),
                max_difference=int(difference.max()),
                mean_difference=float(difference.mean()),
            )
        )
    return results


def _median_seconds(decoders: dict[str, Decoder], files: list[bytes], *, rounds: int) -> dict[str, float]:
    """CPU seconds for all files. The decoders take turns, so that a busy machine slows them alike.

    Their order is drawn anew each round: whoever follows another finds its files and libjpeg's tables in the cache.
    """
    times: dict[str, list[float]] = {name: [] for name in decoders}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(decoders), len(decoders)):
            decode = decoders[name]
            start = time.process_time()
            for file in files:
                decode(file)
            times[name].append(time.process_time() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def _installed() -> tuple[dict[str, Decoder], dict[str, str]]:
    """Decoders by name, and the reason of each that cannot be used here."""
    found: dict[str, Decoder] = {"Pillow": _pillow, "icre.data.images.decode": _ours}
    absent: dict[str, str] = {}
    for package, make in _CANDIDATES.items():
        try:
            found[f"{package} {metadata.version(package)}"] = make()
        except (ImportError, RuntimeError) as error:  # PyTurboJPEG without its library is a RuntimeError
            absent[package] = str(error).splitlines()[0]
    return found, absent


def _pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _ours(data: bytes) -> Pixels:
    return images.decode(data, height=HEIGHT, width=WIDTH)


def _simplejpeg() -> Decoder:
    module = importlib.import_module("simplejpeg")
    return lambda data: module.decode_jpeg(data)


def _opencv() -> Decoder:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _imagecodecs() -> Decoder:
    module = importlib.import_module("imagecodecs")
    return lambda data: module.jpeg8_decode(data, outcolorspace="RGB")


def _kornia() -> Decoder:
    module = importlib.import_module("kornia_rs.io")
    return lambda data: np.asarray(module.decode_image_jpegturbo(data, "rgb"))


def _turbojpeg() -> Decoder:
    module = importlib.import_module("turbojpeg")
    turbo = module.TurboJPEG()
    return lambda data: turbo.decode(data, pixel_format=module.TJPF_RGB)


_CANDIDATES: dict[str, Callable[[], Decoder]] = {
    "simplejpeg": _simplejpeg,
    "opencv-python-headless": _opencv,
    "imagecodecs": _imagecodecs,
    "kornia-rs": _kornia,
    "PyTurboJPEG": _turbojpeg,
}


def _pictures(count: int) -> list[Image.Image]:
    """Synthetic people, visible and infrared in turn."""
    spec = SyntheticSpec(identities=max(3, count), images_per_modality=1, height=HEIGHT, width=WIDTH)
    shown = [(index + 1, MODALITIES[index % 2]) for index in range(count)]
    return [Image.fromarray(render_image(spec, pid, m, spec.cameras(m)[0], 0)) for pid, m in shown]


def _encode(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=QUALITY, **options)
    return out.getvalue()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="images of each kind")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each decoder; the median counts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
