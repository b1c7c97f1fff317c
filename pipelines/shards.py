"""Parquet shards of a prepared data set: which are kept, which are planned, and how one is written.

A shard's file is named after the rows that it was planned from, so the same images give the same names. Beside a new
shard lies its receipt until the manifest is written: a preparation that was killed finds there what is already done.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from icre.data.images import UnreadableImageError, fit_image
from icre.data.records import PARQUET_SCHEMA
from pipelines.prepared import ROW_GROUP_ROWS
from pipelines.storage import Storage

Shard = dict[str, Any]
"""A manifest's description of a shard: file, rows, bytes, sha256, and its first and last identity."""


@dataclass(frozen=True, order=True)
class Row:
    """One image that is to be in a shard. Rows sort as records do."""

    identity: str
    modality: str
    camera: str
    path: str
    split: str
    sha256: str
    """Of the original file."""


def digest(value: Any) -> str:
    """SHA-256 of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def usable_shards(location: Storage, shards: Sequence[Shard], wanted: Sequence[Row]) -> tuple[list[Shard], list[Row]]:
    """Those of ``shards`` that are whole and hold nothing but wanted rows; and the rows that they leave to be written.

    A shard is whole when its SHA-256 is the one that it was listed with.
    """
    if not shards:
        return [], list(wanted)

    def read(batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        shard = json.loads(str(batch["shard"][0]))
        return {"shard": [batch["shard"][0]], "rows": [json.dumps(_rows_if_whole(location, shard))]}

    items = [{"shard": json.dumps(shard)} for shard in shards]
    tasks = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(read, batch_size=1)
    left = set(wanted)
    kept = []
    for result in tasks.take_all():
        rows = json.loads(result["rows"])
        held = None if rows is None else {Row(**row) for row in rows}
        if held is not None and held <= left:
            left -= held
            kept.append(json.loads(result["shard"]))
    return kept, sorted(left)


def plan_shards(rows: Sequence[Row], sizes: dict[str, int], *, target: float) -> list[list[Row]]:
    """Rows sorted by identity, cut where an identity ends once a shard's source files reach ``target`` bytes."""
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
    """Write each shard in a task of its own; their descriptions, and the images that are unusable with the reason."""
    if not shards:
        return [], {}

    def write(batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        rows = [Row(**fields) for fields in json.loads(str(batch["rows"][0]))]
        return {"result": [json.dumps(write_shard(root, location, rows, settings))]}

    items = [{"rows": json.dumps([asdict(row) for row in rows])} for rows in shards]
    tasks = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(write, batch_size=1)
    results = [json.loads(row["result"]) for row in tasks.take_all()]
    unreadable = {path: reason for result in results for path, reason in result["unreadable"].items()}
    return [result["shard"] for result in results if result["shard"]], unreadable


def write_shard(root: Storage, location: Storage, rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """Decode, fit and store ``rows``, unless a receipt says that it is done: ``{"shard": ..., "unreadable": ...}``."""
    name = f"shards/part-{digest([settings, [asdict(row) for row in rows]])[:16]}"
    receipt = location / f"{name}.json"
    if receipt.exists():
        done: dict[str, Any] = receipt.read_json()
        if done["shard"] is None or _is_whole(location, done["shard"]):
            return done
    kept, unreadable = _fit(root, rows, settings)
    result: dict[str, Any] = {"shard": None, "unreadable": unreadable}
    if kept:
        content = _as_parquet(kept)
        (location / f"{name}.parquet").write_bytes(content)
        result["shard"] = {
            "file": f"{name}.parquet",
            "rows": len(kept),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "identities": [kept[0]["identity"], kept[-1]["identity"]],
        }
    receipt.write_json(result)
    return result


def _fit(root: Storage, rows: Sequence[Row], settings: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    kept, unreadable = [], {}
    for row in rows:
        try:
            stored = fit_image(
                (root / row.path).read_bytes(),
                height=settings["height"],
                width=settings["width"],
                jpeg_quality=settings["jpeg_quality"],
            )
        except UnreadableImageError as error:
            unreadable[row.path] = str(error)
            continue
        fields = asdict(row)
        path = fields.pop("path")
        kept.append({"image": {"bytes": stored, "path": path}, "source": settings["source"], **fields})
    return kept, unreadable


def _as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=PARQUET_SCHEMA)
    # Images are compressed already; labels are tiny once they are dictionaries.
    pq.write_table(table, sink, compression="none", row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


def _is_whole(location: Storage, shard: Shard) -> bool:
    path = location / shard["file"]
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == str(shard["sha256"])


def _rows_if_whole(location: Storage, shard: Shard) -> list[dict[str, str]] | None:
    if not _is_whole(location, shard):
        return None
    filesystem, path = (location / shard["file"]).arrow()
    columns = ["image.path", "identity", "modality", "camera", "split", "sha256"]
    rows = pq.ParquetFile(path, filesystem=filesystem).read(columns=columns).to_pylist()
    return [{"path": row.pop("image")["path"], **row} for row in rows]
