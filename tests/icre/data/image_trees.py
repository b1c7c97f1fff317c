"""Trees of empty files, and what else lies in real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from icre.errors import DataError

JUNK = (".DS_Store", "Thumbs.db", "._0001.jpg", ".hidden.bmp", "notes.txt", "0001.jpg.part")


def touch(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def add_junk(root: Path) -> None:
    """Into every folder; among images also a folder that is called like one."""
    for folder in [path for path in root.rglob("*") if path.is_dir()]:
        touch(folder, JUNK)
        if any(folder.glob("*.jpg")):
            (folder / "0000.jpg").mkdir()


def at_awkward_roots(tmp_path: Path, build: Callable[[Path], object]) -> list[Path | str]:
    """The same tree below names that hold what a path is searched for, and behind a link."""
    roots = [
        tmp_path / "plain",
        tmp_path / "my cam1 data/ünïcode",
        tmp_path / "cam3/0006/test_vis/nir Thermal/0002_c04",
    ]
    for root in roots:
        root.mkdir(parents=True)
        build(root)
    (tmp_path / "cam6").symlink_to(roots[0], target_is_directory=True)
    return [*roots, tmp_path / "cam6", str(roots[1]), f"{roots[0]}/"]


def assert_stops(call: Callable[[], object], *parts: str) -> None:
    """With a DataError that names each of the parts and says how to go on."""
    with pytest.raises(DataError) as caught:
        call()
    assert [part for part in parts if part not in caught.value.message] == []
    assert caught.value.hint
