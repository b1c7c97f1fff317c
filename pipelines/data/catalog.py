"""Survey of a data set for ``prepare``, from names and lists alone, before any image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icre import config
from icre.data import splits
from icre.data.records import MODALITIES, SPLITS, Record, SplitName
from icre.data.sources import folder, llcm, regdb, sysu
from icre.errors import DataError
from pipelines.storage import Storage


@dataclass(frozen=True)
class Survey:
    """The images of a data set, sorted, and the split of each identity."""

    root: Storage
    records: list[Record]
    split_of: dict[str, SplitName]
    set_aside: dict[str, str] = field(default_factory=dict)
    """Files that are not images of the layout, with the reason."""
    differences: list[str] = field(default_factory=list)
    """Counts that differ from the published ones of a benchmark data set, one line each."""
    synthetic: bool = False

    def counts(self) -> dict[str, dict[str, Any]]:
        """Identities, images of each modality and cameras of each split."""
        return count(self.records, self.split_of)


def survey(recipe: config.Recipe) -> Survey:
    """List and check the images of ``data.root``. Raises DataError if they do not form a data set."""
    source = recipe.data.source
    if recipe.data.root is None:
        raise DataError(
            "data.root is not set: there are no images to prepare",
            hint=f"add data.root=<folder>; data.source={source} says which layout is expected there",
        )
    root = Storage(recipe.data.root)
    found = _folder(recipe, root) if source == "folder" else _benchmark(recipe, root)
    for split in ("train", "test"):
        if split not in found.split_of.values():
            raise DataError(
                f"data.root={root.url}: {len(found.split_of)} identities, none of them in the {split} split",
                hint="change data.split, or add identities",
            )
    return found


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


def _folder(recipe: config.Recipe, root: Storage) -> Survey:
    files = root.walk_files()
    records, aside = folder.parse(files)
    _refuse_empty(root, records, files)
    pids = sorted({record.pid for record in records})
    return Survey(root, records, _split(recipe, root, pids), aside, synthetic="synthetic.json" in files)


def _benchmark(recipe: config.Recipe, root: Storage) -> Survey:
    """Survey with the published training and test identities; a share of the training ones is for validation."""
    if root.is_remote:
        raise DataError(
            f"data.root={root.url}: data.source={recipe.data.source} is read from a folder",
            hint="copy or mount the release on the machines that prepare it; the prepared data set may be in s3://",
        )
    train, test, differences = _BENCHMARKS[recipe.data.source](Path(root.url), recipe.data.trial)
    tested = {record.pid for record in test}
    trained = sorted({record.pid for record in train})
    if both := tested & set(trained):
        raise DataError(
            f"data.root={root.url}: identities both trained and tested on: {', '.join(sorted(both)[:5])}",
            hint="take the identity lists from the release",
        )
    held_out = splits.split_by_hash(trained, val=recipe.data.split.val, test=0.0, seed=recipe.data.split.seed)
    split_of: dict[str, SplitName] = {**held_out, **dict.fromkeys(sorted(tested), "test")}
    return Survey(root, sorted([*train, *test]), split_of, differences=differences)


Benchmark = tuple[list[Record], list[Record], list[str]]


def _sysu(root: Path, _: int) -> Benchmark:
    return sysu.train(root), sysu.test(root), sysu.validate(root)


def _regdb(root: Path, trial: int) -> Benchmark:
    train, test = (
        [record for modality in MODALITIES for record in read(root, trial, modality)]
        for read in (regdb.train, regdb.test)
    )
    return train, test, regdb.validate(root)


def _llcm(root: Path, _: int) -> Benchmark:
    test = [record for modality in MODALITIES for record in llcm.query(root, modality)]
    return llcm.train(root), test, llcm.validate(root)


_BENCHMARKS: dict[str, Callable[[Path, int], Benchmark]] = {"sysu": _sysu, "regdb": _regdb, "llcm": _llcm}


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
        return splits.split_by_hash(pids, val=settings.val, test=settings.test, seed=settings.seed)
    path = root / settings.file
    if not path.exists():
        raise DataError(
            f"data.split.file={settings.file}: no such file at {path.url}",
            hint="name a JSON file relative to data.root, or remove the key to split by shares",
        )
    return splits.split_from_file(pids, path.read_text(), where=path.url)
