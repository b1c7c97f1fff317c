"""Random access to the images of a prepared data set, from one file per node shared by all its processes.

Parquet cannot fetch single rows. The first process of a node that needs an image copies and verifies all of them into
a memory-mapped file under ``ICRE_CACHE`` (default: the temporary folder), which the others use. Pages that do not fit
in memory are read from disk again, so the file may be larger than memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from icre.data import images
from icre.data.plan import Rows
from icre.errors import DataError
from pipelines.data.prepared import PreparedData

BATCH_ROWS = 1024


class EncodedCache:
    """The encoded images of all rows, in an uncompressed Arrow file."""

    def __init__(self, data: PreparedData) -> None:
        path = cache_folder() / f"{data.hash}.arrow"
        needed = sum(shard["bytes"] for shard in data.manifest["shards"])
        made_once(path, needed, lambda partial: _write_encoded(data, partial))
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._columns = [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]

    def __getitem__(self, row: int) -> memoryview:
        """Encoded bytes of ``row``, without a copy."""
        column = self._columns[row // BATCH_ROWS]
        return memoryview(column[row % BATCH_ROWS].as_buffer())


class DecodedCache:
    """The pixels of some rows at one size: (H, W, 3) uint8 each."""

    def __init__(self, data: PreparedData, rows: Rows, *, height: int, width: int, threads: int) -> None:
        """rows: ascending, and the same in every call for a data set."""
        path = cache_folder() / f"{data.hash}-{height}x{width}.npy"
        shape = (len(rows), height, width, 3)
        made_once(path, int(np.prod(shape)), lambda partial: _write_decoded(data, rows, shape, partial, threads))
        self._rows = rows
        self._pixels = np.load(path, mmap_mode="r")

    def take(self, rows: Rows) -> np.ndarray:
        """(len(rows), H, W, 3) uint8, a copy."""
        return np.take(self._pixels, np.searchsorted(self._rows, rows), axis=0)


def cache_folder() -> Path:
    """Cache folder of this node and user."""
    default = Path(tempfile.gettempdir()) / f"icre-cache-{os.getuid()}"
    return Path(os.environ.get("ICRE_CACHE", default))


def made_once(path: Path, size: int, write: Callable[[Path], None]) -> None:
    """Create a file of about ``size`` bytes with ``write``, unless another process of the node already has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise DataError(
                f"{path.parent}: {free / 2**20:.0f} MiB free, {size / 2**20:.0f} MiB of images would be kept there",
                hint="set ICRE_CACHE to a folder of a larger disk, on every node; or free some space",
            )
        partial = path.with_suffix(".partial")
        write(partial)
        partial.replace(path)


def _write_encoded(data: PreparedData, path: Path) -> None:
    pending = pa.table({"bytes": pa.array([], pa.binary())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pending.schema) as writer:
        for content in data.verified_shards():
            stored = pq.ParquetFile(pa.BufferReader(content)).read(columns=["image.bytes"])
            column = pc.struct_field(stored["image"], "bytes")
            pending = pa.concat_tables([pending, pa.table({"bytes": column})])
            # Every batch but the last has the same number of rows, so a row is found by division.
            whole = pending.num_rows // BATCH_ROWS * BATCH_ROWS
            _write_batches(writer, pending.slice(0, whole))
            pending = pending.slice(whole)
        _write_batches(writer, pending)


def _write_batches(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table) -> None:
    for start in range(0, table.num_rows, BATCH_ROWS):
        writer.write_batch(table.slice(start, BATCH_ROWS).combine_chunks().to_batches()[0])


def _write_decoded(data: PreparedData, rows: Rows, shape: tuple[int, ...], path: Path, threads: int) -> None:
    encoded = EncodedCache(data)
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

    def decode(place: int) -> None:
        images.decode(encoded[int(rows[place])], height=shape[1], width=shape[2], out=pixels[place])

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(decode, range(len(rows))):
            pass
    pixels.flush()
