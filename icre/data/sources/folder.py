"""Generic image folders: ``{visible,infrared}/<identity>/<camera>_<anything>.<jpg|jpeg|png|bmp|webp>``."""

from __future__ import annotations

from collections.abc import Iterable

from icre.data.records import MODALITIES, Modality, Record

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def parse(paths: Iterable[str]) -> tuple[list[Record], dict[str, str]]:
    """Records of the image files among ``paths``, and the skipped files with the reasons.

    paths: relative to the root, forward slashes. Hidden files, ``Thumbs.db`` and files outside the two modality
    folders (``split.json``, a README) are not part of the layout and are silently ignored.
    """
    records: list[Record] = []
    aside: dict[str, str] = {}
    by_name: dict[str, Modality] = {name: name for name in MODALITIES}
    for path in sorted(paths):
        parts = path.split("/")
        modality = by_name.get(parts[0])
        if modality is None or any(part.startswith(".") for part in parts) or parts[-1] == "Thumbs.db":
            continue
        name = parts[-1]
        camera, underscore, _ = name.partition("_")
        if not name.lower().endswith(SUFFIXES):
            aside[path] = f"not an image suffix ({', '.join(SUFFIXES)})"
        elif len(parts) != 3:
            aside[path] = "not at <modality>/<identity>/<file>"
        elif not underscore or not camera:
            aside[path] = "the file name does not begin with <camera>_"
        else:
            records.append(Record(pid=parts[1], modality=modality, camid=camera, path=path))
    return sorted(records), aside
