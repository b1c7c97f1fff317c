"""Claim: the training feed is about as fast as plain decoding of its images, and as torch's own DataLoader.

    python -m benchmarks.feed [--processes 2] [--height 288 --width 144] [--identities 32] [--steps 40] [--rounds 3]

Three sides alternate in one run, with the same number of processes on the same JPEGs of a prepared data set: the feed
(Ray tasks, one training worker), a `torch.utils.data.DataLoader` over the same planned batches, and a pool that
decodes the same images and returns nothing. Prints one Markdown row, then JSON. Start-up is excluded: each side warms
up until Ray's memory has been used once, since new pages cost the first chunks about a sixth of their rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from icre import config
from icre.data import plan
from icre.data.images import decode
from icre.data.synthetic import SyntheticSpec, generate
from pipelines.data import ingest
from pipelines.data.caches import EncodedCache
from pipelines.data.feed import Feed
from pipelines.data.prepared import PreparedData
from pipelines.runtime.session import Demand, ray_session
from pipelines.storage import Storage

WARM_UP_STEPS = 50
CPU = torch.device("cpu")


def main() -> None:
    """Prepare a data set, time the three sides and print the result."""
    options = _options()
    with (
        tempfile.TemporaryDirectory(prefix="icre-benchmark-") as scratch,
        ray_session(Path(scratch) / "logs", demand=Demand(options.processes + 2)),
    ):
        recipe = _recipe(Path(scratch), options)
        spec = SyntheticSpec(
            identities=options.identities, images_per_modality=16, height=options.height, width=options.width
        )
        generate(Path(scratch) / "images", spec, workers=options.processes)
        data, _ = ingest.prepare(recipe)
        sides = {"feed": _by_feed, "loader": _by_loader, "decode": _by_decoding}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                times[name].append(side(recipe, data, options))
    _report(options, {name: statistics.median(rates) for name, rates in times.items()})


def _by_feed(recipe: config.Recipe, data: PreparedData, options: argparse.Namespace) -> float:
    feed = Feed(data, recipe, options.steps, 0, 1)
    batches = feed.batches(start=0, stop=WARM_UP_STEPS + options.steps, device=CPU)
    return _images_per_second((len(batch.rows) for batch in batches), recipe)


def _by_loader(recipe: config.Recipe, data: PreparedData, options: argparse.Namespace) -> float:
    loader: DataLoader[Tensor] = DataLoader(
        _Images(data.location.url, options.height, options.width),
        batch_sampler=_planned(recipe, data, WARM_UP_STEPS + options.steps),
        num_workers=options.processes,
        multiprocessing_context="spawn",
    )
    return _images_per_second((len(images) for images in loader), recipe)


def _by_decoding(recipe: config.Recipe, data: PreparedData, options: argparse.Namespace) -> float:
    batches = _planned(recipe, data, WARM_UP_STEPS + options.steps)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        work = partial(_decode_rows, data.location.url, options.height, options.width)
        return _images_per_second(pool.map(work, batches), recipe)


def _images_per_second(sizes: Iterator[int], recipe: config.Recipe) -> float:
    """Images per second, measured from the last warm-up batch."""
    for _ in range(WARM_UP_STEPS):
        next(sizes)
    start = time.perf_counter()
    return sum(sizes) / (time.perf_counter() - start)


def _planned(recipe: config.Recipe, data: PreparedData, steps: int) -> list[list[int]]:
    batch = recipe.batch
    rows = plan.plan_epoch(
        data.training_index(),
        identities=batch.identities,
        visible=batch.visible,
        infrared=batch.infrared,
        steps=steps,
        seed=recipe.seed,
        epoch=0,
    )
    return [step.ravel().tolist() for step in rows]


_CACHES: dict[str, EncodedCache] = {}


def _cache(location: str) -> EncodedCache:
    if location not in _CACHES:
        _CACHES[location] = EncodedCache(PreparedData.open(Storage(location)))
    return _CACHES[location]


def _decode_rows(location: str, height: int, width: int, rows: list[int]) -> int:
    for row in rows:
        decode(_cache(location)[row], height=height, width=width)
    return len(rows)


class _Images(Dataset[Tensor]):
    def __init__(self, location: str, height: int, width: int) -> None:
        self.location, self.height, self.width = location, height, width

    def __getitem__(self, row: int) -> Tensor:
        pixels = decode(_cache(self.location)[row], height=self.height, width=self.width)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _recipe(scratch: Path, options: argparse.Namespace) -> config.Recipe:
    return config.load_recipe(
        None,
        [
            f"storage={scratch / 'storage'}",
            f"data.root={scratch / 'images'}",
            "data.split.val=0",
            "data.split.test=0.1",
            f"data.height={options.height}",
            f"data.width={options.width}",
            f"train.loaders={options.processes}",
        ],
    )


def _report(options: argparse.Namespace, rates: dict[str, float]) -> None:
    result = {
        "benchmark": "feed",
        "processes": options.processes,
        "height": options.height,
        "width": options.width,
        **{f"{name}_images_per_s": round(rate) for name, rate in rates.items()},
        "feed_over_decode": round(rates["feed"] / rates["decode"], 2),
        "feed_over_loader": round(rates["feed"] / rates["loader"], 2),
    }
    print(
        f"| feed, {options.height}x{options.width}, {options.processes} processes | {result['feed_images_per_s']} "
        f"images/s | bare decoding {result['decode_images_per_s']} | DataLoader {result['loader_images_per_s']} "
        f"| x{result['feed_over_decode']} of decoding, x{result['feed_over_loader']} of the DataLoader |"
    )
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="decoding processes per side")
    parser.add_argument("--height", type=int, default=288)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--identities", type=int, default=32, help="synthetic identities with 16 + 16 images each")
    parser.add_argument("--steps", type=int, default=40, help="timed batches of 64 images")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per side; the median is reported")
    return parser.parse_args()


if __name__ == "__main__":
    main()
