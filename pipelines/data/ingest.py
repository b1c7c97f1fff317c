"""Conversion of images to a prepared data set, sharded over the cluster by Ray Data.

survey -> fingerprint every file -> keep the shards that are still valid -> decode, fit and write each new shard in one
task -> manifest last. If killed at any point and run again, it resumes from what is written and produces the same
bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from icre import config
from icre.data.images import MIN_SIDE, UnreadableImageError, fit_image
from icre.data.records import Record
from icre.errors import DataError
from pipelines.data.catalog import Survey, count, survey
from pipelines.data.fingerprint import fingerprint
from pipelines.data.prepared import FORMAT, MANIFEST, PreparedData, location_of
from pipelines.data.shards import Row, Shard, digest, plan_shards, usable_shards, write_shards
from pipelines.runs.provenance import code_version, now
from pipelines.storage import Storage


def prepare(recipe: config.Recipe, found: Survey | None = None) -> tuple[PreparedData, bool]:
    """Prepare ``recipe.data``; return the data set, and whether anything was written.

    found: the images, if already listed; None lists them.

    An existing shard is kept, byte for byte, if every image in it is still present, unchanged and in the same split.
    All other images go to new shards. Raises DataError for an unusable folder, for the same picture under two
    identities, and if more than ``data.max_unreadable_share`` of the images do not decode; a data set prepared
    earlier is then left unchanged.
    """
    if found is None:
        found = survey(recipe)
    location = location_of(recipe)
    location.check_writable()
    digests, sizes = fingerprint(found.root, [record.path for record in found.records])
    _refuse_conflicts(found, digests)
    if recipe.data.source == "folder":
        found = _without_copies(found, digests)
    rows = [_row(record, found, digests) for record in found.records]
    settings = _settings(recipe, found)
    identifier = digest([settings, [vars(row) for row in sorted(rows)]])
    before = _manifest_of(location)
    same_settings = all(before.get(key) == value for key, value in settings.items())
    listed = before["shards"] if same_settings else []
    kept, left = usable_shards(location, listed, rows)
    if before.get("fingerprint") == identifier and len(kept) == len(listed):
        return PreparedData.open(location), False
    try:
        planned = plan_shards(left, sizes, target=recipe.data.shard_mib * 2**20)
        written, unreadable = write_shards(found.root, location, planned, settings)
        _check_unreadable(recipe, unreadable, total=len(found.records))
        manifest = _manifest(recipe, found, settings, identifier, [*kept, *written], unreadable)
    except DataError:  # but not a storage outage: the next run resumes from what is written
        _remove_unlisted(location, before)
        raise
    (location / MANIFEST).write_json(manifest)
    _remove_unlisted(location, manifest)
    return PreparedData.open(location), True


def _settings(recipe: config.Recipe, found: Survey) -> dict[str, Any]:
    """Settings that the stored bytes depend on besides the rows. Without height and width, images keep their sizes."""
    data = recipe.data
    settings = {
        "format": FORMAT,
        "height": data.height,
        "width": data.width,
        "jpeg_quality": data.jpeg_quality,
        "source": "synthetic" if found.synthetic else data.source,
    }
    # "resized" is not recorded: data sets prepared before the option existed stay valid.
    return settings if data.store == "resized" else settings | {"height": None, "width": None, "store": "original"}


def _row(record: Record, found: Survey, digests: dict[str, str]) -> Row:
    return Row(
        identity=record.pid,
        modality=record.modality,
        camera=record.camid,
        path=record.path,
        split=found.split_of[record.pid],
        sha256=digests[record.path],
    )


def _refuse_conflicts(found: Survey, digests: dict[str, str]) -> None:
    holders: dict[str, list[Record]] = defaultdict(list)
    for record in found.records:
        holders[digests[record.path]].append(record)
    shared = (group for group in holders.values() if len({record.pid for record in group}) > 1)
    # Equal files that are not pictures (empty, truncated) are no conflict of labels; they are set aside later.
    conflicts = [group for group in shared if _is_picture((found.root / group[0].path).read_bytes())]
    if conflicts:
        examples = "; ".join(" = ".join(record.path for record in group) for group in conflicts[:3])
        raise DataError(
            f"{len(conflicts)} picture(s) are filed under two identities: {examples}",
            hint="one of the labels is wrong: remove the file from the identity it does not show",
        )


def _without_copies(found: Survey, digests: dict[str, str]) -> Survey:
    """Keep only the first of equal files of an identity and modality: a copy would count twice in batches and ranks.

    Not applied to benchmark data sets, which stay as published.
    """
    first: dict[tuple[str, str, str], str] = {}
    copies = {}
    for record in found.records:
        original = first.setdefault((record.pid, record.modality, digests[record.path]), record.path)
        # Equal files that are not pictures each count as unreadable.
        if original != record.path and _is_picture((found.root / record.path).read_bytes()):
            copies[record.path] = f"the same file as {original}"
    records = [record for record in found.records if record.path not in copies]
    return replace(found, records=records, set_aside=found.set_aside | copies)


def _is_picture(content: bytes) -> bool:
    try:
        fit_image(content, height=MIN_SIDE, width=MIN_SIDE, jpeg_quality=95)
    except UnreadableImageError:
        return False
    return True


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
    identifier: str,
    shards: Sequence[Shard],
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
    # A fixed order regardless of history and location, so that rows are always numbered alike.
    ordered = sorted(shards, key=lambda shard: (shard["identities"], shard["file"]))
    return {
        **settings,
        "store": recipe.data.store,
        "name": recipe.data.name,
        "synthetic": found.synthetic,
        "created": now(),
        "code": code_version(),
        "fingerprint": identifier,
        "hash": digest([settings, [shard["sha256"] for shard in ordered]]),
        "counts": count(usable, found.split_of),
        "differences": found.differences,
        "classes": classes,
        "not_trained": one_sided,
        "set_aside": found.set_aside | dict(sorted(unreadable.items())),
        "shards": ordered,
    }


def _manifest_of(location: Storage) -> dict[str, Any]:
    """The current manifest, in any format; if there is none, one without shards."""
    path = location / MANIFEST
    found: dict[str, Any] = path.read_json(default={"shards": []})
    return found


def _remove_unlisted(location: Storage, manifest: dict[str, Any]) -> None:
    listed = {shard["file"] for shard in manifest["shards"]}
    shards = location / "shards"
    for name in shards.list():
        if f"shards/{name}" not in listed:
            (location / "shards" / name).delete()
