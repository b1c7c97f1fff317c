"""Claim: `icre prepare` is about as fast as a plain Pillow loop on every core, with constant memory.

    python -m benchmarks.prepare [--images 1000] [--rounds 5] [--height 288 --width 144] [--growth 1 4 16]

First, three sides alternate in one run on the same files, which are twice as large as they are stored:

- `prepare`;
- a single-process loop that reads, decodes, resizes (bicubic), encodes and appends to a file, as a plain script would;
- one such loop per core in parallel, each on its share of the files.

The claim is `prepare`'s images/s over the single loop's times the number of cores. Where other programs or the
processor's limits prevent linear scaling, the parallel loops show the achievable rate. Reports medians over the rounds;
ratios are medians of per-round ratios.

Then `prepare` alone runs on folders of increasing size; "each further image" is the cost of the images beyond the next
smaller folder, which excludes the constant cost of a call. The start of the Ray session is excluded and printed
separately, and a first call, which starts Ray's worker processes, is not counted. Memory is private resident memory
(Linux). Prints Markdown, then JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import ray
from PIL import Image

from icre import config
from icre.data.synthetic import MODALITIES, SyntheticSpec, render_image
from pipelines.data import ingest
from pipelines.runtime.session import Demand, ray_session

QUALITY = 95
PICTURES = 32
"""Distinct pictures; further files differ by a comment, so none is excluded as a duplicate."""
IMAGES_PER_IDENTITY = 20
POLL_S = 0.2


@dataclass(frozen=True)
class Cost:
    """One call of ``prepare``."""

    images: int
    shards: int
    seconds: float
    driver_mib: float
    """Peak memory of the calling process; below, of the largest worker and of all workers together."""
    worker_mib: float
    workers_mib: float
    object_store_mib: float


def main() -> None:
    """Create the folders, time the sides and print the result."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="icre-benchmark-") as name:
        scratch = Path(name)
        folders = {times: scratch / f"images-{times}" for times in sorted({1, *options.growth})}
        pictures = _pictures(options)
        for times, folder in folders.items():
            _write_folder(folder, pictures, options.images * times)
        start = time.perf_counter()
        with ray_session(scratch / "logs", demand=Demand(2)):
            session_s = time.perf_counter() - start
            ratio = _compare(scratch, folders[1], options)
            growth = [_prepare(scratch, folders[times], options) for times in options.growth]
    _report(ratio, growth, session_s)


def _compare(scratch: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Images/s of the sides, and their ratios."""
    cores = len(os.sched_getaffinity(0))
    files = sorted(folder.glob("*/*/*.jpg"))
    shape = (options.height, options.width)
    rates: dict[str, list[float]] = {"prepare": [], "loop": [], "loops": []}
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        work = [(scratch / f"loop-{core}", files[core::cores], shape) for core in range(cores)]
        for _ in range(options.rounds + 1):
            rates["prepare"].append(options.images / _prepare(scratch, folder, options).seconds)
            rates["loop"].append(options.images / _seconds(partial(_loop, (scratch / "loop", files, shape))))
            rates["loops"].append(options.images / _seconds(lambda: list(pool.map(_loop, work))))
    rounds = list(zip(*(values[1:] for values in rates.values()), strict=True))  # the first is a warm-up
    return {
        "cores": cores,
        **{f"{name}_images_per_s": round(statistics.median(values[1:])) for name, values in rates.items()},
        "over_loop_times_cores": round(statistics.median(prepare / loop / cores for prepare, loop, _ in rounds), 2),
        "over_loops": round(statistics.median(prepare / loops for prepare, _, loops in rounds), 2),
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _loop(work: tuple[Path, list[Path], tuple[int, int]]) -> None:
    target, files, (height, width) = work
    with target.open("wb") as sink:
        for path in files:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                pixels = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            encoded = io.BytesIO()
            pixels.save(encoded, format="JPEG", quality=QUALITY, subsampling=0)
            sink.write(encoded.getvalue())


def _prepare(scratch: Path, folder: Path, options: argparse.Namespace) -> Cost:
    overrides = [
        f"storage={tempfile.mkdtemp(dir=scratch)}",
        f"data.root={folder}",
        f"data.height={options.height}",
        f"data.width={options.width}",
        f"data.jpeg_quality={QUALITY}",
    ]
    recipe = config.load_recipe(None, overrides)
    with _Peaks() as peaks:
        start = time.perf_counter()
        data, _ = ingest.prepare(recipe)
        seconds = time.perf_counter() - start
    shards = data.manifest["shards"]
    return Cost(sum(shard["rows"] for shard in shards), len(shards), seconds, *peaks.mib())


class _Peaks:
    """Peak memory inside the block."""

    def __enter__(self) -> _Peaks:
        self.largest = [0.0] * 4
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def mib(self) -> tuple[float, float, float, float]:
        """Driver, largest worker, all workers, object store."""
        driver, worker, workers, store = (value / 2**20 for value in self.largest)
        return driver, worker, workers, store

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            workers = [_private_bytes(pid) for pid in _workers()]
            store = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
            now = [_private_bytes(os.getpid()), max(workers, default=0), sum(workers), store]
            self.largest = [max(pair) for pair in zip(self.largest, now, strict=True)]


def _workers() -> list[int]:
    """Process ids of this session's Ray workers: descendants of this process with Ray's title."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").glob("[0-9]*")}
    mine = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= grown
    return [pid for pid in mine if _read(f"/proc/{pid}/cmdline").startswith("ray::")]


def _parent(process: Path) -> int:
    # "pid (name) state parent ...": the name may contain anything.
    fields = _read(f"{process}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def _private_bytes(pid: int) -> float:
    """Resident bytes, excluding mapped pages of the object store."""
    fields = _read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") if fields else 0.0


def _read(path: str) -> str:
    """The file's text; empty when the process has ended."""
    try:
        return Path(path).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _pictures(options: argparse.Namespace) -> list[bytes]:
    spec = SyntheticSpec(identities=PICTURES, images_per_modality=1, height=2 * options.height, width=2 * options.width)
    encoded = []
    for index in range(PICTURES):
        modality = MODALITIES[index % 2]
        sink = io.BytesIO()
        pixels = render_image(spec, index + 1, modality, spec.cameras(modality)[0], 0)
        Image.fromarray(pixels).save(sink, format="JPEG", quality=QUALITY)
        encoded.append(sink.getvalue())
    return encoded


def _write_folder(folder: Path, pictures: list[bytes], images: int) -> None:
    for number in range(images):
        identity, place = divmod(number, IMAGES_PER_IDENTITY)
        path = folder / MODALITIES[place % 2] / f"{identity:05d}" / f"{3 if place % 2 else 1}_{place:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        comment = f"{number:08d}".encode()
        picture = pictures[number // 2 % (PICTURES // 2) * 2 + place % 2]
        path.write_bytes(picture[:2] + b"\xff\xfe\x00\x0a" + comment + picture[2:])


def _report(ratio: dict[str, float], growth: list[Cost], session_s: float) -> None:
    print(
        f"| prepare, {ratio['cores']} cores | {ratio['prepare_images_per_s']} images/s | a Pillow loop "
        f"{ratio['loop_images_per_s']}, one on each core at once {ratio['loops_images_per_s']} | "
        f"x{ratio['over_loop_times_cores']} of the loop times the cores, x{ratio['over_loops']} of the loops at once "
        f"| session start {session_s:.1f} s |\n"
    )
    print(
        "| images | shards | seconds | images/s | each further image, images/s | driver MiB | largest worker MiB "
        "| all workers MiB | object store MiB |"
    )
    print("|" + "---:|" * 9)
    rows = [_row(cost, before) for cost, before in zip(growth, [None, *growth[:-1]], strict=True)]
    print(json.dumps({"benchmark": "prepare", **ratio, "session_s": round(session_s, 2), "growth": rows}))


def _row(cost: Cost, before: Cost | None) -> dict[str, float | None]:
    further = None if before is None else round((cost.images - before.images) / (cost.seconds - before.seconds))
    memory = [cost.driver_mib, cost.worker_mib, cost.workers_mib, cost.object_store_mib]
    cells = [cost.images, cost.shards, f"{cost.seconds:.1f}", f"{cost.images / cost.seconds:.0f}", further or "-"]
    print("| " + " | ".join(map(str, [*cells, *(f"{value:.0f}" for value in memory)])) + " |")
    return {**{key: round(value, 2) for key, value in asdict(cost).items()}, "further_images_per_s": further}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="images of the smallest folder")
    parser.add_argument("--height", type=int, default=288, help="stored height; the files are twice as high")
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--growth", type=int, nargs="*", default=[1, 4, 16], help="sizes of the folders")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per side; the median is reported")
    return parser.parse_args()


if __name__ == "__main__":
    main()
