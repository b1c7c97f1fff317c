"""Training, validation and test identities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from icre.data.records import SPLITS, SplitName
from icre.errors import DataError


def split_by_hash(pids: Iterable[str], *, val: float, test: float, seed: int) -> dict[str, SplitName]:
    """Each identity's split from a hash of its name alone: new identities never move existing ones.

    val, test: expected shares in [0, 1]; the rest trains.
    """
    return {pid: _split_at(_uniform(seed, pid), val=val, test=test) for pid in pids}


def split_from_file(pids: Iterable[str], text: str, *, where: str) -> dict[str, SplitName]:
    """Each identity's split from JSON ``{"train": [...], "val": [...], "test": [...]}``.

    A number matches the identity with the same numeric name (``7`` matches ``0007``). Raises DataError when the
    text is not of that form, an identity is listed twice, or a folder's identity is not listed.
    """
    listed = _read(text, where)
    result: dict[str, SplitName] = {}
    unlisted = []
    for pid in pids:
        by_name, by_number = listed.get(pid), listed.get(int(pid)) if pid.isdecimal() else None
        if by_name and by_number:
            raise DataError(
                f"{where}: identity {pid!r} is listed by name in {by_name} and by number in {by_number}",
                hint="an identity belongs to exactly one split",
            )
        if split := by_name or by_number:
            result[pid] = split
        else:
            unlisted.append(pid)
    if unlisted:
        raise DataError(
            f"{where}: {len(unlisted)} identities of the images are not listed: {', '.join(unlisted[:5])}",
            hint="list each identity in one of train, val, test, or remove its folder",
        )
    return result


def _uniform(seed: int, pid: str) -> float:
    digest = hashlib.sha256(f"{seed}/{pid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_at(u: float, *, val: float, test: float) -> SplitName:
    return "test" if u < test else "val" if u < test + val else "train"


def _read(text: str, where: str) -> Mapping[str | int, SplitName]:
    form = 'write {"train": [...], "val": [...], "test": [...]} with identity names or numbers'
    try:
        data: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}", hint=form) from error
    if not isinstance(data, dict) or not set(data) <= set(SPLITS) or not {"train", "test"} <= set(data):
        raise DataError(f"{where}: the keys must be train, test and, if wanted, val", hint=form)
    listed: dict[str | int, SplitName] = {}
    for split in SPLITS:
        pids = data.get(split, [])
        if not isinstance(pids, list):
            raise DataError(f"{where}: {split} is {pids!r}, not a list", hint=form)
        for pid in pids:
            if not isinstance(pid, str | int) or isinstance(pid, bool):
                raise DataError(f"{where}: {split} holds {pid!r}, not an identity", hint=form)
            if pid in listed:
                raise DataError(
                    f"{where}: identity {pid!r} is listed in {listed[pid]} and in {split}",
                    hint="an identity belongs to exactly one split",
                )
            listed[pid] = split
    return listed
