"""A prepared data set: Parquet shards and the manifest that makes them one whole.

``<storage>/datasets/<name>/manifest.json`` is written last and replaced atomically, so shards that it does not
list do not exist for a reader.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from icre.data.plan import TrainingIndex
from icre.data.records import LABEL_COLUMNS, SplitName
from icre.errors import DataError
from pipelines.storage import Storage

MANIFEST = "manifest.json"
FORMAT = 1
ROW_GROUP_ROWS = 256
"""Rows that are read together when a single image is asked for."""
CACHE_BATCH_ROWS = 1024


@dataclass(frozen=True)
class PreparedData:
    """Reader of a prepared data set. Rows are numbered 0..N-1 through the shards in manifest order."""

    location: Storage
    manifest: dict[str, Any]

    @classmethod
    def open(cls, location: Storage) -> PreparedData:
        """Raises DataError when there is no manifest, or a shard that it lists is missing or of another size."""
        path = location / MANIFEST
        if not path.exists():
            raise DataError(
                f"no prepared data set at {location.url}",
                hint="run `icre prepare` with the same storage and data.name first",
            )
        manifest = path.read_json()
        if manifest.get("format") != FORMAT:
            raise DataError(
                f"{path.url}: format {manifest.get('format')!r}; this version reads {FORMAT}",
                hint="run `icre prepare` again with this version",
            )
        data = cls(location=location, manifest=manifest)
        for shard in manifest["shards"]:
            data._check_shard(shard)
        return data

    @property
    def hash(self) -> str:
        """Identifies the content: labels, splits and stored pixels."""
        return str(self.manifest["hash"])

    @property
    def classes(self) -> list[str]:
        """Training identities, sorted; an identity's label is its place in this list."""
        return list(self.manifest["classes"])

    @property
    def shard_paths(self) -> list[str]:
        """Paths of the shards for ``location.arrow()``'s file system."""
        return [(self.location / shard["file"]).arrow()[1] for shard in self.manifest["shards"]]

    @cached_property
    def labels(self) -> pa.Table:
        """Every row's path, identity, modality, camera and split; no pixels are read."""
        filesystem, _ = self.location.arrow()
        columns = list(LABEL_COLUMNS)
        tables = [pq.ParquetFile(p, filesystem=filesystem).read(columns=columns) for p in self.shard_paths]
        table = pa.concat_tables(tables)
        paths = pc.struct_field(table["image"], "path")
        return table.drop_columns("image").append_column("path", paths).combine_chunks()

    def rows_of(self, split: SplitName) -> list[int]:
        """Row numbers of a split, ascending."""
        mask = pc.equal(self.labels["split"], split)
        return [int(row) for row in pc.indices_nonzero(mask).to_pylist()]

    def training_index(self) -> TrainingIndex:
        """Rows of the training split by label; identities that lack a modality are not trained on."""
        label_of = {pid: label for label, pid in enumerate(self.classes)}
        pids = self.labels["identity"].to_pylist()
        rows = [row for row in self.rows_of("train") if pids[row] in label_of]
        modality = self.labels["modality"].to_pylist()
        return TrainingIndex.build(
            rows, [label_of[pids[row]] for row in rows], [modality[row] == "infrared" for row in rows]
        )

    def verify(self) -> None:
        """Read every shard. Raises DataError for one whose SHA-256 is not the manifest's."""
        filesystem, _ = self.location.arrow()
        for shard, path in zip(self.manifest["shards"], self.shard_paths, strict=True):
            _verified_shard(filesystem, path, shard)

    def image(self, row: int) -> bytes:
        """Encoded image of one row; reads the row group it lies in. For many rows use :class:`ImageCache`."""
        start = 0
        for shard, path in zip(self.manifest["shards"], self.shard_paths, strict=True):
            if row < start + shard["rows"]:
                group, place = divmod(row - start, ROW_GROUP_ROWS)
                with pq.ParquetFile(path, filesystem=self.location.arrow()[0]) as file:
                    column = file.read_row_group(group, columns=["image.bytes"])["image"]
                return bytes(column[place]["bytes"].as_buffer())
            start += shard["rows"]
        raise IndexError(f"row {row} of {start}")

    def _check_shard(self, shard: dict[str, Any]) -> None:
        path = self.location / shard["file"]
        size = path.size() if path.exists() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, the manifest says {shard['bytes']}"
            raise DataError(
                f"{path.url} {found}", hint="run `icre prepare` again; it writes what is missing or changed"
            )


class ImageCache:
    """Random access to the encoded images of a prepared data set, from one memory-mapped file a node.

    Parquet cannot fetch single rows, so the first process on a node copies the image column of all shards into
    an uncompressed Arrow file; all processes of the node then share its pages.
    """

    def __init__(self, data: PreparedData) -> None:
        path = _cache_folder() / f"{data.hash}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _write_cache(data, path)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._columns = [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]

    def __getitem__(self, row: int) -> memoryview:
        """Encoded bytes of ``row``, without a copy."""
        column = self._columns[row // CACHE_BATCH_ROWS]
        return memoryview(column[row % CACHE_BATCH_ROWS].as_buffer())


def _cache_folder() -> Path:
    default = Path(tempfile.gettempdir()) / f"icre-cache-{os.getuid()}"
    return Path(os.environ.get("ICRE_CACHE", default))


def _write_cache(data: PreparedData, path: Path) -> None:
    filesystem, _ = data.location.arrow()
    schema = pa.schema([("bytes", pa.binary())])
    partial = path.with_suffix(".partial")
    pending = pa.table({"bytes": pa.array([], pa.binary())})
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for shard, shard_path in zip(data.manifest["shards"], data.shard_paths, strict=True):
            content = _verified_shard(filesystem, shard_path, shard)
            images = pq.ParquetFile(pa.BufferReader(content)).read(columns=["image.bytes"])
            column = pc.struct_field(images["image"], "bytes")
            pending = pa.concat_tables([pending, pa.table({"bytes": column})])
            # Every batch but the last has the same number of rows, so a row is found by division.
            whole = pending.num_rows // CACHE_BATCH_ROWS * CACHE_BATCH_ROWS
            _write_batches(writer, pending.slice(0, whole))
            pending = pending.slice(whole)
        _write_batches(writer, pending)
    partial.replace(path)


def _write_batches(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table) -> None:
    for start in range(0, table.num_rows, CACHE_BATCH_ROWS):
        writer.write_batch(table.slice(start, CACHE_BATCH_ROWS).combine_chunks().to_batches()[0])


def _verified_shard(filesystem: pa.fs.FileSystem, path: str, shard: dict[str, Any]) -> pa.Buffer:
    with filesystem.open_input_file(path) as file:
        content = file.read_buffer()
    if hashlib.sha256(content).hexdigest() != shard["sha256"]:
        raise DataError(
            f"{path}: its SHA-256 is not the manifest's; the file changed after it was prepared",
            hint="run `icre prepare` again; it writes what is missing or changed",
        )
    return content
