"""Parquet shards of a prepared data set: selection of those to keep, planning and writing of new ones.

A shard's file is named after the rows that it was planned from, so the same images give the same names. A new shard has
a receipt next to it until the manifest is written, from which a killed preparation resumes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from icre.data.images import UnreadableImageError, fit_image
from icre.data.records import PARQUET_SCHEMA
from pipelines.data.fan_out import cpus_for_each, fan_out
from pipelines.data.prepared import ROW_GROUP_ROWS
from pipelines.runtime.progress import progress
from pipelines.storage import Storage

Shard = dict[str, Any]
"""Manifest entry of a shard: file, rows, bytes, sha256, and its first and last identity."""


@dataclass(frozen=True, order=True)
class Row:
    """One image to be stored in a shard. Rows sort like records."""

    identity: str
    modality: str
    camera: str
    path: str
    split: str
    sha256: str
    """SHA-256 of the original file."""


def digest(value: Any) -> str:
    """SHA-256 of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def usable_shards(location: Storage, shards: Sequence[Shard], wanted: Sequence[Row]) -> tuple[list[Shard], list[Row]]:
    """The ``shards`` that are intact and contain only wanted rows, and the remaining rows to write.

    A shard is intact if its SHA-256 is the listed one.
    """
    with progress("prepare: shards that are there", len(shards), "shards") as advance:
        found = fan_out(partial(_rows_if_whole, location), shards, done=lambda shard: advance(1))
    left = set(wanted)
    kept = []
    for shard, held in zip(shards, found, strict=True):
        if held is not None and held <= left:
            left -= held
            kept.append(shard)
    return kept, sorted(left)


def plan_shards(rows: Sequence[Row], sizes: dict[str, int], *, target: float) -> list[list[Row]]:
    """Rows sorted by identity, cut at the end of an identity once a shard's source files reach ``target`` bytes."""
    shards: list[list[Row]] = []
    size = 0.0
    for row in sorted(rows):
        if not shards or (size >= target and shards[-1][-1].identity != row.identity):
            shards.append([])
            size = 0
        size += sizes[row.path]
        shards[-1].append(row)
    return shards


def write_shards(
    root: Storage, location: Storage, shards: Sequence[Sequence[Row]], settings: dict[str, Any]
) -> tuple[list[Shard], dict[str, str]]:
    """Write each shard in its own task; return the shards, and the unusable images with the reason.

    The cluster's CPUs are divided among the shards, so that even a few shards keep it busy.
    """
    cpus = cpus_for_each(len(shards))
    # One extra thread, as some wait for files.
    write = partial(_write_shard, root, location, settings, cpus + 1)
    with progress("prepare: images into shards", sum(map(len, shards)), "images") as advance:
        results = fan_out(write, shards, cpus=cpus, done=lambda rows: advance(len(rows)))
    unreadable = {path: reason for result in results for path, reason in result["unreadable"].items()}
    return [result["shard"] for result in results if result["shard"]], unreadable


def _write_shard(
    root: Storage, location: Storage, settings: dict[str, Any], threads: int, rows: Sequence[Row]
) -> dict[str, Any]:
    """Decode, fit and store ``rows``, unless there is a receipt: ``{"shard": ..., "unreadable": ...}``."""
    name = f"shards/part-{digest([settings, [vars(row) for row in rows]])[:16]}"
    receipt = location / f"{name}.json"
    if receipt.exists():
        done: dict[str, Any] = receipt.read_json()
        if done["shard"] is None or _is_whole(location, done["shard"]):
            return done
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        fitted = zip(rows, pool.map(partial(_fit, root, settings), rows), strict=True)
        content, kept = _as_parquet(fitted, settings["source"], unreadable)
    result: dict[str, Any] = {"shard": None, "unreadable": unreadable}
    if kept:
        (location / f"{name}.parquet").write_bytes(content)
        result["shard"] = {
            "file": f"{name}.parquet",
            "rows": len(kept),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "identities": [kept[0].identity, kept[-1].identity],
        }
    receipt.write_json(result)
    return result


def _fit(root: Storage, settings: dict[str, Any], row: Row) -> bytes | str:
    """The bytes to store, or the reason there are none."""
    content = (root / row.path).read_bytes()
    try:
        return fit_image(
            content, height=settings["height"], width=settings["width"], jpeg_quality=settings["jpeg_quality"]
        )
    except UnreadableImageError as error:
        return str(error)


def _as_parquet(
    fitted: Iterable[tuple[Row, bytes | str]], source: str, unreadable: dict[str, str]
) -> tuple[bytes, list[Row]]:
    """The file and its rows; the others go to ``unreadable``. A row group is written as soon as it is full."""
    kept: list[Row] = []
    images: list[bytes] = []
    sink = io.BytesIO()
    # Images are already compressed; dictionary-encoded labels are tiny.
    with pq.ParquetWriter(sink, PARQUET_SCHEMA, compression="none") as writer:
        for row, stored in fitted:
            if isinstance(stored, str):
                unreadable[row.path] = stored
                continue
            kept.append(row)
            images.append(stored)
            if len(images) == ROW_GROUP_ROWS:
                writer.write_table(_table(kept[-len(images) :], images, source))
                images = []
        if images:
            writer.write_table(_table(kept[-len(images) :], images, source))
    return sink.getvalue(), kept


def _table(rows: Sequence[Row], images: Sequence[bytes], source: str) -> pa.Table:
    labels = {
        name: [getattr(row, name) for row in rows] for name in ("identity", "modality", "camera", "split", "sha256")
    }
    encoded = pa.array(images, pa.binary())
    image = pa.StructArray.from_arrays([encoded, pa.array([row.path for row in rows], pa.string())], ["bytes", "path"])
    columns = {"image": image, **labels, "source": [source] * len(rows)}
    return pa.table([columns[name] for name in PARQUET_SCHEMA.names], schema=PARQUET_SCHEMA)


def _is_whole(location: Storage, shard: Shard) -> bool:
    path = location / shard["file"]
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == str(shard["sha256"])


def _rows_if_whole(location: Storage, shard: Shard) -> set[Row] | None:
    if not _is_whole(location, shard):
        return None
    filesystem, path = (location / shard["file"]).arrow()
    columns = ["image.path", "identity", "modality", "camera", "split", "sha256"]
    rows = pq.ParquetFile(path, filesystem=filesystem).read(columns=columns).to_pylist()
    return {Row(path=row.pop("image")["path"], **row) for row in rows}
