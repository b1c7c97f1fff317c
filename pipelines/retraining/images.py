"""Detection of new images, and the frozen list of images for comparing models."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from icre import config
from icre.data.records import Record
from icre.errors import DataError
from pipelines.data.prepared import PreparedData
from pipelines.data.shards import digest
from pipelines.evaluation.measure import SPLIT, choices
from pipelines.retraining.registry import Registry
from pipelines.runs.provenance import now
from pipelines.storage import Storage

SHOWN = 5
"""Names listed in a message."""


@dataclass(frozen=True, eq=False)
class Marks:
    """Sorted hashes of image names (the same file under the same identity) and of identities."""

    images: NDArray[np.uint64]
    identities: NDArray[np.uint64]


NOTHING = Marks(np.empty(0, np.uint64), np.empty(0, np.uint64))


def checksums(data: PreparedData) -> list[str]:
    """SHA-256 of each row's original file."""
    filesystem, _ = data.location.arrow()
    found: list[str] = []
    for path in data.shard_paths:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            found += file.read(columns=["sha256"])["sha256"].to_pylist()
    return found


def training_marks(data: PreparedData) -> Marks:
    """Marks of the training images and their identities."""
    identities = data.labels["identity"].to_pylist()
    files = checksums(data)
    rows = np.flatnonzero(data.targets >= 0).tolist()
    return Marks(_marks([f"{identities[row]}\n{files[row]}" for row in rows]), _marks(data.classes))


def write_marks(path: Storage, marks: Marks) -> None:
    """Write marks with eight bytes per image and per identity."""
    sink = io.BytesIO()
    np.savez(sink, images=marks.images, identities=marks.identities)
    path.write_bytes(sink.getvalue())


def read_marks(path: Storage) -> Marks:
    """Read marks written by :func:`write_marks`."""
    with np.load(io.BytesIO(path.read_bytes())) as found:
        return Marks(found["images"], found["identities"])


def freeze(registry: Registry, data: PreparedData, recipe: config.Recipe, *, by: str) -> int:
    """Store the test images of ``data`` as the list for comparing models from now on; returns the list's number.

    If several commands freeze at once, one of them writes and all return its number.
    """
    newest = registry.frozen.newest()
    rows = data.rows_of(SPLIT)
    files = checksums(data)
    images = sorted(
        [r.pid, r.modality, r.camid, r.path, files[row]] for r, row in zip(data.records(rows), rows, strict=True)
    )
    entry = {
        "time": now(),
        "by": by,
        "data": {"name": data.manifest["name"], "hash": data.hash},
        "protocol": _pinned(recipe),
        "sha256": digest(images),
        "images": images,
    }
    registry.frozen.append(entry, after=newest)
    return newest + 1


def frozen_rows(
    registry: Registry, number: int, data: PreparedData, recipe: config.Recipe
) -> tuple[list[int], list[Record]]:
    """Positions of the frozen images in ``data.rows_of("test")``, and their records at the time of freezing.

    Raises DataError when the protocol changed or images are missing: nights would no longer be comparable.
    """
    entry = registry.frozen.read(number)
    where, hint = registry.frozen.path(number).url, f"`icre registry freeze` with this recipe begins list {number + 1}"
    changed = sorted(key for key, value in _pinned(recipe).items() if entry["protocol"].get(key) != value)
    if changed:
        pairs = ", ".join(
            f"{key} {entry['protocol'].get(key)!r} is {_pinned(recipe).get(key)!r} now" for key in changed
        )
        raise DataError(f"{where} is for another protocol: {pairs}", hint=hint)
    rows = data.rows_of(SPLIT)
    files = checksums(data)
    places = {
        (record.pid, record.modality, record.camid, files[row]): place
        for place, (record, row) in enumerate(zip(data.records(rows), rows, strict=True))
    }
    wanted = [(pid, modality, camid, sha256) for pid, modality, camid, _, sha256 in entry["images"]]
    missing = [image for image, key in zip(entry["images"], wanted, strict=True) if key not in places]
    if missing:
        names = ", ".join(image[3] for image in missing[:SHOWN])
        raise DataError(
            f"{len(missing)} of {len(wanted)} images of {where} are not among the test images of "
            f"{data.location.url} any more: {names}",
            hint=f"bring them back; or, if they are gone for good, {hint}",
        )
    return [places[key] for key in wanted], [Record(*image[:4]) for image in entry["images"]]


def refuse_leaked(registry: Registry, number: int, learnt: Iterable[str]) -> None:
    """Raises DataError when an identity of a frozen list is in ``learnt``."""
    frozen = {image[0] for image in registry.frozen.read(number)["images"]}
    leaked = sorted(frozen & set(learnt))
    if leaked:
        raise DataError(
            f"leaked: {len(leaked)} of {len(frozen)} identities of the frozen test list would be trained on: "
            f"{', '.join(leaked[:SHOWN])}{', …' if len(leaked) > SHOWN else ''}",
            hint="give them back to the test split; or `icre registry freeze`, and retrain.start=scratch once if the "
            "model in service learnt them",
        )


def _pinned(recipe: config.Recipe) -> dict[str, Any]:
    """Evaluation settings that affect the results. The input size is excluded, as each network has its own."""
    found = choices(recipe)
    return {key: value for key, value in found.items() if key not in ("image_size", "rerank", "distance")}


def _marks(names: Sequence[str]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.sort(np.array([int.from_bytes(found) for found in digests], np.uint64))
