"""A prepared data set: Parquet shards and the manifest that lists them.

``<storage>/datasets/<name>/manifest.json`` is written last and replaced atomically; readers ignore shards that it does
not list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from icre import config
from icre.data.plan import Rows, TrainingIndex
from icre.data.records import LABEL_COLUMNS, Record, SplitName
from icre.errors import DataError
from pipelines.storage import Storage

MANIFEST = "manifest.json"
FORMAT = 1
ROW_GROUP_ROWS = 256
"""Rows that are read together to fetch a single image."""


def location_of(recipe: config.Recipe) -> Storage:
    """Location of the recipe's data set, whether it exists yet or not."""
    return Storage(recipe.storage) / "datasets" / recipe.data.name


def open_data(recipe: config.Recipe) -> PreparedData:
    """The prepared data set that the recipe names."""
    return PreparedData.open(location_of(recipe))


@dataclass(frozen=True)
class PreparedData:
    """Reader of a prepared data set. Rows are numbered 0..N-1 across the shards in manifest order."""

    location: Storage
    manifest: dict[str, Any]

    @classmethod
    def open(cls, location: Storage) -> PreparedData:
        """Raises DataError if there is no manifest, or if a shard that it lists is missing or of another size."""
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
        """Hash of the content: labels, splits and stored pixels."""
        return str(self.manifest["hash"])

    @property
    def classes(self) -> list[str]:
        """Training identities, sorted; an identity's label is its index in this list."""
        return list(self.manifest["classes"])

    @property
    def shard_paths(self) -> list[str]:
        """Paths of the shards for ``location.arrow()``'s file system."""
        return [(self.location / shard["file"]).arrow()[1] for shard in self.manifest["shards"]]

    @cached_property
    def labels(self) -> pa.Table:
        """Every row's identity, modality, camera and split, dictionary-encoded; neither pixels nor paths are read."""
        return self._read(LABEL_COLUMNS, dictionaries=LABEL_COLUMNS).unify_dictionaries().combine_chunks()

    @cached_property
    def labels_and_paths(self) -> pa.Table:
        """``labels`` and every row's path within the source images."""
        return self.labels.append_column("path", pc.struct_field(self._read(["image.path"])["image"], "path"))

    def rows_of(self, split: SplitName) -> list[int]:
        """Row numbers of a split, ascending."""
        rows: list[int] = np.flatnonzero(self._codes("split", [split]) == 0).tolist()
        return rows

    def records(self, rows: Sequence[int]) -> list[Record]:
        """Records of ``rows``, in that order."""
        labels = self.labels_and_paths.take(rows)
        columns = (labels[name].to_pylist() for name in ("identity", "modality", "camera", "path"))
        return [Record(*values) for values in zip(*columns, strict=True)]

    @cached_property
    def targets(self) -> Rows:
        """(N,) int64: every row's label; -1 for rows not trained on, such as identities that lack a modality."""
        return self._codes("identity", self.classes)

    def training_index(self) -> TrainingIndex:
        """Rows that are trained on, by label."""
        rows = np.flatnonzero(self.targets >= 0)
        return TrainingIndex.build(rows, self.targets[rows], self._codes("modality", ["infrared"])[rows] == 0)

    def verified_shards(self) -> Iterator[pa.Buffer]:
        """Content of each shard, in order. Raises DataError if a shard's SHA-256 is not the manifest's."""
        filesystem, _ = self.location.arrow()
        for shard, path in zip(self.manifest["shards"], self.shard_paths, strict=True):
            yield _verified_shard(filesystem, path, shard)

    def verify(self) -> None:
        """Read every shard. Raises DataError if a shard's SHA-256 is not the manifest's."""
        for _ in self.verified_shards():
            pass

    def image(self, row: int) -> bytes:
        """Encoded image of one row; reads its whole row group. For many rows, use ``pipelines.data.caches``."""
        start = 0
        for shard, path in zip(self.manifest["shards"], self.shard_paths, strict=True):
            if row < start + shard["rows"]:
                group, place = divmod(row - start, ROW_GROUP_ROWS)
                with pq.ParquetFile(path, filesystem=self.location.arrow()[0]) as file:
                    column = file.read_row_group(group, columns=["image.bytes"])["image"]
                return bytes(column[place]["bytes"].as_buffer())
            start += shard["rows"]
        raise IndexError(f"row {row} of {start}")

    def _read(self, columns: Sequence[str], *, dictionaries: Sequence[str] = ()) -> pa.Table:
        filesystem, _ = self.location.arrow()
        files = (pq.ParquetFile(p, filesystem=filesystem, read_dictionary=dictionaries) for p in self.shard_paths)
        return pa.concat_tables([file.read(columns=list(columns)) for file in files])

    def _codes(self, column: str, values: Sequence[str]) -> Rows:
        """(N,) int64: the index of each row's label in ``values``, -1 if absent."""
        chunk = self.labels[column].combine_chunks()
        place = {value: number for number, value in enumerate(values)}
        codes = np.array([place.get(value, -1) for value in chunk.dictionary.to_pylist()], np.int64)
        found: Rows = codes[chunk.indices.to_numpy()]
        return found

    def _check_shard(self, shard: dict[str, Any]) -> None:
        path = self.location / shard["file"]
        size = path.size() if path.exists() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, the manifest says {shard['bytes']}"
            raise DataError(
                f"{path.url} {found}", hint="run `icre prepare` again; it writes what is missing or changed"
            )


def _verified_shard(filesystem: pa.fs.FileSystem, path: str, shard: dict[str, Any]) -> pa.Buffer:
    with filesystem.open_input_file(path) as file:
        content = file.read_buffer()
    if hashlib.sha256(content).hexdigest() != shard["sha256"]:
        raise DataError(
            f"{path}: its SHA-256 is not the manifest's; the file changed after it was prepared",
            hint="run `icre prepare` again; it writes what is missing or changed",
        )
    return content
