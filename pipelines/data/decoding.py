"""Work of a loader process: decode rows of a prepared data set to pixels.

Ray's processes import the module of the function that they run. This one avoids torch, which would cost each loader
seconds at its start and over 200 MiB for its lifetime.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import ray

from icre.data import images
from icre.data.plan import Rows
from icre.errors import DataError
from pipelines.data.caches import EncodedCache
from pipelines.data.prepared import PreparedData
from pipelines.storage import Storage


@ray.remote
def decode_rows(location: str, data_hash: str, rows: Rows, height: int, width: int) -> np.ndarray:
    """(len(rows), height, width, 3) uint8 of the data set at ``location``. Raises DataError if its hash differs."""
    cache = encoded(location, data_hash)
    pixels = _buffer((len(rows), height, width, 3))
    for out, row in zip(pixels, rows.tolist(), strict=True):
        images.decode(cache[row], height=height, width=width, out=out)
    return pixels


# One process serves many tasks. Shared data is read once per process, and again after a new preparation.
@lru_cache(maxsize=2)
def encoded(location: str, data_hash: str) -> EncodedCache:
    """The encoded images of the data set at ``location``. Raises DataError if its hash is not ``data_hash``."""
    data = PreparedData.open(Storage(location))
    if data.hash != data_hash:
        raise DataError(
            f"{location} was prepared anew while it is trained on",
            hint="prepare under another data.name, or stop the training first",
        )
    return EncodedCache(data)


# Reused, as Ray copies a task's result before the process gets its next task; new memory faults in page by page.
@lru_cache(maxsize=2)
def _buffer(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)
