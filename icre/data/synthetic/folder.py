"""Write a synthetic data set as a folder: images, split, and a description."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from icre.data.synthetic.render import jpeg_quality, render_image
from icre.data.synthetic.spec import MODALITIES, SyntheticSpec
from icre.errors import ConfigError, DataError, StorageError

_MARKER = "synthetic.json"
_FORMAT = 1  # increase with any change of the images: folders of older versions are then rejected


def generate(
    root: Path, spec: SyntheticSpec, *, workers: int = 1, advance: Callable[[int], None] | None = None
) -> None:
    """Write ``<root>/{visible,infrared}/<identity:04d>/<camera>_<index:04d>.jpg`` and ``split.json``.

    SYNTHETIC.md marks the data as synthetic, and synthetic.json holds the spec. The folder is created atomically: it
    is built in a sibling folder and renamed. A ``root`` that already holds this spec is left unchanged. ``advance``
    is called with the number of images just written.

    Raises:
        ConfigError: ``workers`` is below 1.
        DataError: ``root`` holds something else.
        StorageError: writing fails.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}, must be at least 1", hint="use 1 to stay in this process")
    root = root.absolute()
    if _holds(root, spec):
        return
    _refuse_foreign(root)
    try:
        _build(root, spec, workers, advance)
    except OSError as error:
        if not _holds(root, spec):  # another process may have finished the same folder first
            raise StorageError(
                f"synthetic data set {root} cannot be written: {error}",
                hint="check the permissions and the free space of the folder above it",
            ) from error


def _build(root: Path, spec: SyntheticSpec, workers: int, advance: Callable[[int], None] | None) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        tree = Path(scratch) / "tree"  # not scratch itself, which is readable only by its owner
        tree.mkdir()
        for written in _write_all(tree, spec, workers):
            if advance is not None:
                advance(written)
        (tree / "split.json").write_text(json.dumps(spec.split(), indent=1) + "\n", encoding="utf-8")
        (tree / "SYNTHETIC.md").write_text(_page(spec), encoding="utf-8")
        (tree / _MARKER).write_text(json.dumps(_identity_card(spec), indent=1) + "\n", encoding="utf-8")
        tree.rename(root)


def _write_all(tree: Path, spec: SyntheticSpec, workers: int) -> Iterator[int]:
    """Yields the number of images of each person once written."""
    write = partial(_write_person, tree, spec)
    identities = range(1, spec.identities + 1)
    if workers == 1:
        yield from map(write, identities)
        return
    # Spawn, not fork: the caller may have threads (torch, Ray) whose locks a fork would leave held.
    with ProcessPoolExecutor(min(workers, spec.identities), mp_context=get_context("spawn")) as pool:
        yield from pool.map(write, identities, chunksize=4)


def _write_person(tree: Path, spec: SyntheticSpec, identity: int) -> int:
    for modality in MODALITIES:
        folder = tree / modality / f"{identity:04d}"
        folder.mkdir(parents=True)
        cameras = spec.cameras(modality)
        for index in range(spec.images_per_modality):
            where = (identity, modality, cameras[index % len(cameras)], index)
            image = Image.fromarray(render_image(spec, *where))
            image.save(folder / f"{where[2]}_{index:04d}.jpg", quality=jpeg_quality(spec, *where))
    return 2 * spec.images_per_modality


def _identity_card(spec: SyntheticSpec) -> dict[str, object]:
    return {"format": _FORMAT, "spec": asdict(spec)}


def _holds(root: Path, spec: SyntheticSpec) -> bool:
    try:
        found = json.loads((root / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == _identity_card(spec))


def _refuse_foreign(root: Path) -> None:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    what = "a synthetic data set of another spec or format" if (root / _MARKER).is_file() else "something else"
    raise DataError(
        f"{root} exists and holds {what}; a synthetic data set is only written to a new or empty folder",
        hint="choose another folder, or remove this one if nothing in it is needed",
    )


def _page(spec: SyntheticSpec) -> str:
    table = "\n".join(f"| {name} | {value} |" for name, value in asdict(spec).items())
    sizes = ", ".join(f"{len(names)} {part}" for part, names in spec.split().items())
    return f"""# Synthetic data: these people do not exist

Every image in this folder was drawn by a program (`icre.data.synthetic`). No photograph, no real person and
no part of SYSU-MM01, RegDB or LLCM is in it. Numbers measured on it say that a pipeline works and how parts
compare; they are not results on those data sets and must not be reported beside them.

| parameter | value |
|---|---|
{table}

Identities: {sizes} (`split.json`). Visible cameras {spec.cameras("visible")}, infrared cameras
{spec.cameras("infrared")}. Files: `{{visible,infrared}}/<identity>/<camera>_<index>.jpg`.

Both modalities share body shape, gait, the cut and pattern of clothes, and what is carried. Colours are drawn
for the visible images alone, material reflectance for the infrared images alone, each independent of the
other and of the pattern: matching by brightness or colour across modalities is no better than chance.
Viewpoint, light, background, occlusion, blur, noise and JPEG quality vary, the more the higher `difficulty`.
"""
