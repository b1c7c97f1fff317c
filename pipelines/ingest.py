"""An image folder becomes a prepared data set, sharded over the cluster by Ray Data.

list -> fingerprint every file -> plan shards -> decode, fit and write each shard in one task -> manifest last.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from icre import config
from icre.data import splits
from icre.data.images import MIN_SIDE, UnreadableImageError, fit_image
from icre.data.records import MODALITIES, PARQUET_SCHEMA, SPLITS, Record, SplitName
from icre.data.sources import folder
from icre.errors import DataError
from pipelines import runs
from pipelines.prepared import FORMAT, MANIFEST, ROW_GROUP_ROWS, PreparedData
from pipelines.storage import Storage

FILES_PER_TASK = 256


@dataclass(frozen=True)
class Survey:
    """What ``prepare`` knows from names alone, before it reads a file."""

    root: Storage
    records: list[Record]
    split_of: dict[str, SplitName]
    set_aside: dict[str, str]
    synthetic: bool

    def counts(self) -> dict[str, dict[str, Any]]:
        """Identities, images of each modality and cameras of each split."""
        return count(self.records, self.split_of)


def survey(recipe: config.Recipe) -> Survey:
    """List and check the image folder. Raises DataError when it cannot make a data set."""
    if recipe.data.root is None:
        raise DataError(
            "data.root is not set: there is no image folder to prepare",
            hint="add data.root=<folder> with {visible,infrared}/<identity>/<camera>_<anything>.jpg",
        )
    root = Storage(recipe.data.root)
    files = root.walk_files() if root.exists() else []
    records, aside = folder.parse(files)
    _refuse_empty(root, records, files)
    pids = sorted({record.pid for record in records})
    return Survey(
        root=root,
        records=records,
        split_of=_split(recipe, root, pids),
        set_aside=aside,
        synthetic="synthetic.json" in files,
    )


def prepare(recipe: config.Recipe) -> tuple[PreparedData, bool]:
    """Prepare ``recipe.data``; the data set, and whether anything was written.

    Raises DataError for an unusable folder, for the same picture under two identities, and when more than
    ``data.max_unreadable_share`` of the images do not decode; a data set prepared earlier then stays as it was.
    """
    found = survey(recipe)
    location = runs.datasets(Storage(recipe.storage)) / recipe.data.name
    location.check_writable()
    digests, sizes = _fingerprint(found)
    _refuse_conflicts(found, digests)
    settings = {
        "format": FORMAT,
        "height": recipe.data.height,
        "width": recipe.data.width,
        "jpeg_quality": recipe.data.jpeg_quality,
        "source": "synthetic" if found.synthetic else "folder",
    }
    shards = _plan_shards(found, digests, sizes, target=recipe.data.shard_mib * 2**20)
    fingerprint = _hash([settings, [asdict(row) for shard in shards for row in shard]])
    before = _current(location)
    if before is not None and before.manifest["fingerprint"] == fingerprint:
        return before, False
    manifest = before.manifest if before is not None else {"shards": []}
    try:
        written, unreadable = _write_shards(found.root, location, shards, settings)
        _check_unreadable(recipe, unreadable, total=len(found.records))
        manifest = _manifest(recipe, found, settings, fingerprint, written, unreadable)
        (location / MANIFEST).write_json(manifest)
    finally:
        # Of the two generations of shards one is unlisted now: the old one, or after an error the new one.
        _remove_unlisted(location, manifest)
    return PreparedData.open(location), True


def count(records: Sequence[Record], split_of: dict[str, SplitName]) -> dict[str, dict[str, Any]]:
    """Identities, images of each modality and cameras of each split."""
    result: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        mine = [record for record in records if split_of[record.pid] == split]
        images = Counter(record.modality for record in mine)
        cameras = {m: sorted({r.camid for r in mine if r.modality == m}) for m in MODALITIES}
        result[split] = {
            "identities": len({record.pid for record in mine}),
            **{modality: images[modality] for modality in MODALITIES},
            "cameras": cameras,
        }
    return result


@dataclass(frozen=True)
class Row:
    """One image to be written."""

    path: str
    identity: str
    modality: str
    camera: str
    split: str
    sha256: str


def _refuse_empty(root: Storage, records: Sequence[Record], files: Sequence[str]) -> None:
    layout = "{visible,infrared}/<identity>/<camera>_<anything>.<jpg|jpeg|png|bmp|webp>"
    present = {record.modality for record in records}
    if not present:
        seen = f"{len(files)} files there, none in that layout" if files else "the folder is missing or empty"
        raise DataError(f"data.root={root.url}: no images ({seen})", hint=f"the layout is {layout}")
    for modality in MODALITIES:
        if modality not in present:
            raise DataError(
                f"data.root={root.url}: {len(records)} images, none of them {modality}",
                hint=f"put the {modality} images at {modality}/<identity>/<camera>_<anything>.jpg",
            )


def _split(recipe: config.Recipe, root: Storage, pids: Sequence[str]) -> dict[str, SplitName]:
    settings = recipe.data.split
    if settings.file is None:
        split_of = splits.split_by_hash(pids, val=settings.val, test=settings.test, seed=recipe.seed)
    else:
        path = root / settings.file
        if not path.exists():
            raise DataError(
                f"data.split.file={settings.file}: no such file at {path.url}",
                hint="name a JSON file relative to data.root, or remove the key to split by shares",
            )
        split_of = splits.split_from_file(pids, path.read_text(), where=path.url)
    for split in ("train", "test"):
        if split not in split_of.values():
            raise DataError(
                f"data.root={root.url}: {len(pids)} identities, none of them in the {split} split",
                hint="change data.split, or add identities",
            )
    return split_of


def _fingerprint(found: Survey) -> tuple[dict[str, str], dict[str, int]]:
    """SHA-256 and size of every listed file, by path."""
    paths = [record.path for record in found.records]
    blocks = -(-len(paths) // FILES_PER_TASK)
    root = found.root

    def read(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        contents = [(root / path).read_bytes() for path in batch["item"].tolist()]
        return {
            "path": batch["item"],
            "sha256": np.array([hashlib.sha256(content).hexdigest() for content in contents]),
            "bytes": np.array([len(content) for content in contents]),
        }

    rows = ray.data.from_items(paths, override_num_blocks=blocks).map_batches(read, batch_size=None).take_all()
    return {r["path"]: r["sha256"] for r in rows}, {r["path"]: int(r["bytes"]) for r in rows}


def _refuse_conflicts(found: Survey, digests: dict[str, str]) -> None:
    holders: dict[str, list[Record]] = defaultdict(list)
    for record in found.records:
        holders[digests[record.path]].append(record)
    shared = (group for group in holders.values() if len({record.pid for record in group}) > 1)
    # Equal files that are no picture (empty, cut off) say nothing about labels: they are set aside later.
    conflicts = [group for group in shared if _is_picture((found.root / group[0].path).read_bytes())]
    if conflicts:
        examples = "; ".join(" = ".join(record.path for record in group) for group in conflicts[:3])
        raise DataError(
            f"{len(conflicts)} picture(s) are filed under two identities: {examples}",
            hint="one of the labels is wrong: remove the file from the identity it does not show",
        )


def _is_picture(content: bytes) -> bool:
    try:
        fit_image(content, height=MIN_SIDE, width=MIN_SIDE, jpeg_quality=95)
    except UnreadableImageError:
        return False
    return True


def _plan_shards(found: Survey, digests: dict[str, str], sizes: dict[str, int], *, target: float) -> list[list[Row]]:
    """Rows sorted by identity, cut where an identity ends once a shard's source files reach ``target`` bytes."""
    shards: list[list[Row]] = [[]]
    size = 0
    for record in found.records:
        last = shards[-1]
        if size >= target and last and last[-1].identity != record.pid:
            shards.append([])
            size = 0
        size += sizes[record.path]
        split = found.split_of[record.pid]
        digest = digests[record.path]
        shards[-1].append(Row(record.path, record.pid, record.modality, record.camid, split, digest))
    return shards


def _write_shards(
    root: Storage, location: Storage, shards: list[list[Row]], settings: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Each shard's description in order, and the images that could not be used with their reasons."""
    items = [{"index": index, "rows": json.dumps([asdict(row) for row in rows])} for index, rows in enumerate(shards)]

    def write(batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        rows = [Row(**fields) for fields in json.loads(str(batch["rows"][0]))]
        return {"result": [json.dumps(_write_shard(root, location, int(batch["index"][0]), rows, settings))]}

    tasks = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(write, batch_size=1)
    results = [json.loads(row["result"]) for row in tasks.take_all()]
    described = sorted((r["shard"] for r in results if r["shard"]), key=lambda shard: str(shard["file"]))
    unreadable = {path: reason for result in results for path, reason in result["unreadable"].items()}
    return described, dict(sorted(unreadable.items()))


def _write_shard(
    root: Storage, location: Storage, index: int, rows: Sequence[Row], settings: dict[str, Any]
) -> dict[str, Any]:
    kept: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
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
    if not kept:
        return {"shard": None, "unreadable": unreadable}
    sink = io.BytesIO()
    table = pa.Table.from_pylist(kept, schema=PARQUET_SCHEMA)
    # Images are compressed already; labels are tiny once they are dictionaries.
    pq.write_table(table, sink, compression="none", row_group_size=ROW_GROUP_ROWS)
    content = sink.getvalue()
    file = f"shards/part-{index:05d}-{_hash([settings, [asdict(row) for row in rows]])[:12]}.parquet"
    (location / file).write_bytes(content)
    shard = {
        "file": file,
        "rows": len(kept),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return {"shard": shard, "unreadable": unreadable}


def _check_unreadable(recipe: config.Recipe, unreadable: dict[str, str], *, total: int) -> None:
    share = len(unreadable) / total
    if share > recipe.data.max_unreadable_share:
        examples = "; ".join(f"{path}: {reason}" for path, reason in list(unreadable.items())[:3])
        raise DataError(
            f"{len(unreadable)} of {total} images ({100 * share:.1f} %) cannot be used; "
            f"data.max_unreadable_share={recipe.data.max_unreadable_share} allows "
            f"{100 * recipe.data.max_unreadable_share:g} %. First: {examples}",
            hint="repair or remove these files, or raise data.max_unreadable_share",
        )


def _manifest(
    recipe: config.Recipe,
    found: Survey,
    settings: dict[str, Any],
    fingerprint: str,
    shards: list[dict[str, Any]],
    unreadable: dict[str, str],
) -> dict[str, Any]:
    usable = [record for record in found.records if record.path not in unreadable]
    modalities: dict[str, set[str]] = defaultdict(set)
    for record in usable:
        modalities[record.pid].add(record.modality)
    training = sorted(pid for pid in modalities if found.split_of[pid] == "train")
    one_sided = {pid: f"only {min(modalities[pid])} images" for pid in training if len(modalities[pid]) < 2}
    classes = [pid for pid in training if pid not in one_sided]
    if not classes:
        raise DataError(
            f"data.root={found.root.url}: none of the {len(training)} training identities has both modalities",
            hint="an identity's visible and infrared folders must have the same name",
        )
    return {
        **settings,
        "name": recipe.data.name,
        "synthetic": found.synthetic,
        "created": runs.now(),
        "code": runs.code_version(),
        "fingerprint": fingerprint,
        "hash": _hash([settings, [shard["sha256"] for shard in shards]]),
        "counts": count(usable, found.split_of),
        "classes": classes,
        "not_trained": one_sided,
        "set_aside": found.set_aside | unreadable,
        "shards": shards,
    }


def _current(location: Storage) -> PreparedData | None:
    """The data set as it is, or None when there is none that is whole."""
    if not (location / MANIFEST).exists():
        return None
    try:
        data = PreparedData.open(location)
        data.verify()
    except DataError:
        return None
    return data


def _remove_unlisted(location: Storage, manifest: dict[str, Any]) -> None:
    listed = {shard["file"] for shard in manifest["shards"]}
    shards = location / "shards"
    for name in shards.list() if shards.exists() else []:
        if f"shards/{name}" not in listed:
            (location / "shards" / name).delete()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
