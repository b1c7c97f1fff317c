"""Claim: exact CMC, mAP and mINP against a million gallery features on disk need less than 512 MB of memory.

    python -m benchmarks.large_gallery [--queries 3803] [--gallery 1000000] [--dimensions 512] [--identities 100000]
                                       [--cmc identity] [--threads 2]

The distances would take 15 GB, a float32 copy of the features 2 GB. The gallery is a float16 memory map; images of an
identity are spread over all of it, so no part of either pass can be skipped. Memory is what the evaluation adds to the
process, excluding file pages, which the kernel may drop. Prints one Markdown row, then JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from icre.evaluation.large import evaluate_features

SEED = 0
ROWS_AT_A_TIME = 20_000
NOISE = 3.0
BOUND_MB = 512


def main() -> None:
    """Write a gallery to disk, evaluate it, and print time and memory."""
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gallery.f16"
        query, q_pids, g_pids = _write(file, options)
        gallery = np.memmap(file, np.float16, "r", shape=(options.gallery, options.dimensions))
        with _peak_memory() as peak:
            start = time.perf_counter()
            found = evaluate_features(query, gallery, q_pids, g_pids, camera_rule="none", cmc=options.cmc)
            seconds = time.perf_counter() - start
    result = {
        "benchmark": "large_gallery",
        **vars(options),
        "seconds": round(seconds, 1),
        "peak_mb": round(peak[0] / 2**20),
        "bound_mb": BOUND_MB,
        **{name: round(value, 4) for name, value in found.metrics().items()},
    }
    print(
        f"| {options.queries} queries, {options.gallery} gallery features of {options.dimensions} dimensions on disk, "
        f"CMC of {options.cmc}, {options.threads} threads | {result['seconds']} s "
        f"| memory added: {result['peak_mb']} MB, bound {BOUND_MB} MB |"
    )
    print(json.dumps(result))


def _write(file: Path, options: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Query features and both sides' identities; gallery features go to ``file``, with identities interleaved."""
    random = np.random.default_rng(SEED)
    people = random.standard_normal((options.identities, options.dimensions), np.float32)
    q_pids = random.integers(0, options.identities, options.queries)
    g_pids = np.arange(options.gallery) % options.identities
    with file.open("wb") as out:
        for start in range(0, options.gallery, ROWS_AT_A_TIME):
            part = people[g_pids[start : start + ROWS_AT_A_TIME]]
            (part + NOISE * random.standard_normal(part.shape, np.float32)).astype(np.float16).tofile(out)
    noise = NOISE * random.standard_normal((options.queries, options.dimensions), np.float32)
    return people[q_pids] + noise, q_pids, g_pids


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Peak private memory (excluding mapped files) inside the block, relative to its start, in bytes."""
    before, peak, done = _own_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _own_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _own_bytes() -> int:
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "the kernel does not say how much memory a process has of its own"
    return int(found[1]) * 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=3803)
    parser.add_argument("--gallery", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--identities", type=int, default=100_000)
    parser.add_argument("--cmc", default="identity", choices=("identity", "image"))
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
