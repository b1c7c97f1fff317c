"""Strict reader of folders and list files of benchmark data sets: listed files must exist.

Labels come from paths relative to the root, so the name of the root and links to it do not matter. All errors in a
list are reported at once, with line and value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from icre.data.records import Record
from icre.data.sources.checks import stop_for
from icre.data.sources.folder import SUFFIXES
from icre.errors import DataError

_NUMBER = re.compile(r"[0-9]{1,9}")
_LINE = re.compile(r"(?P<path>\S.*?)\s+(?P<label>[0-9]{1,9})")


def as_root(root: str | Path) -> Path:
    """``root`` as a path. Raises DataError if it is not a folder."""
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"data set root {path}: no such folder", hint="name the folder that the release unpacks to")
    return path


def list_images(root: Path, folder: str) -> list[str] | None:
    """Sorted paths of the image files directly in ``folder``, relative to ``root``; None if there is no such folder.

    Hidden files, folders and files without an image suffix (``Thumbs.db``) are ignored. Raises DataError for an
    unreadable folder.
    """
    try:
        entries = list((root / folder).iterdir())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{root / folder}: cannot be listed: {error}", hint="make it a readable folder") from error
    images = (e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.name[0] != "." and e.is_file())
    return sorted(f"{folder}/{name}" for name in images)


def read_identities(root: Path, name: str) -> list[int]:
    """The identities of ``<root>/<name>``, ascending: one line of comma-separated positive integers, each once.

    Raises DataError for a file that is missing or of another form.
    """
    lines = _read_lines(root, name)
    problems = [f"line {number}: {line!r} is a second line" for number, line in lines[1:]]
    number, line = lines[0]
    seen: set[int] = set()
    for value in map(str.strip, line.split(",")):
        identity = int(value) if _NUMBER.fullmatch(value) else 0
        if identity < 1:
            problems.append(f"line {number}: {value!r} is not a positive integer")
        elif identity in seen:
            problems.append(f"line {number}: identity {identity} is listed twice")
        seen.add(identity)
    stop_for(problems, root / name, hint="the file is one line such as 6,10,17; take it from the release")
    return sorted(seen)


def read_records(root: Path, name: str, parse: Callable[[str], Record | None], *, layout: str) -> list[Record]:
    """The images of ``<root>/<name>``, one line ``<path> <label>`` each, sorted.

    parse: the record of a path, or None if it is not of ``layout``. Identities come from paths; labels only need
    to distinguish the same identities. Raises DataError for a missing file, a malformed line, a path that is listed
    twice or does not exist, and labels that contradict the paths.
    """
    problems = []
    records: dict[str, Record] = {}
    labels: dict[str, str] = {}
    images = cache(lambda folder: frozenset(list_images(root, folder) or ()))
    for number, line in _read_lines(root, name):
        match = _LINE.fullmatch(line)
        record = parse(match["path"]) if match else None
        if match is None or record is None:
            problems.append(f"line {number}: {line!r} is not `{layout} <label>`")
            continue
        if record.path not in images(record.path.rpartition("/")[0]):
            problems.append(f"line {number}: no such file {record.path}")
        if record.path in records:
            problems.append(f"line {number}: {record.path} is listed twice")
        records[record.path] = record
        problems += [
            f"line {number}: {problem}" for problem in _contradictions(labels, record.pid, int(match["label"]))
        ]
    stop_for(problems, root / name, hint="list and images come from one release: unpack both anew")
    return sorted(records.values())


def _contradictions(known: dict[str, str], pid: str, label: int) -> list[str]:
    """Contradictions of a pair of identity and label with ``known``, to which new pairs are added."""
    pairs = ((f"identity {pid}", f"label {label}"), (f"label {label}", f"identity {pid}"))
    return [
        f"{one} is {other} here and {known[one]} above" for one, other in pairs if known.setdefault(one, other) != other
    ]


def _read_lines(root: Path, name: str) -> list[tuple[int, str]]:
    """Stripped lines numbered from 1, without blank ones."""
    path = root / name
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint=f"the release has {name}; is {root} its root?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="take the file from the release") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: nothing is listed", hint="take the file from the release")
    return lines
