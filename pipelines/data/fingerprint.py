"""Fingerprints of files: the SHA-256 and the size of each.

Ray's processes import the module of the function that they run. This one and ``shards`` avoid torch, which would cost
each process seconds and 200 MiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipelines.data.fan_out import fan_out
from pipelines.runtime.progress import progress
from pipelines.storage import Storage

FILES_PER_TASK = 1024
"""One task costs Ray as much as reading a hundred files."""
READS_AT_ONCE = 4
"""Concurrent reads per task: an object store takes milliseconds to answer each."""


def fingerprint(root: Storage, paths: Sequence[str]) -> tuple[dict[str, str], dict[str, int]]:
    """SHA-256 and size in bytes of the files below ``root``, by path. Raises StorageError if one is missing."""
    parts = [paths[start : start + FILES_PER_TASK] for start in range(0, len(paths), FILES_PER_TASK)]
    with progress("prepare: fingerprints", len(paths), "files") as advance:
        found = fan_out(partial(_read_all, root), parts, done=lambda part: advance(len(part)))
    read = [one for part in found for one in part]
    digests = {path: digest for path, (digest, _) in zip(paths, read, strict=True)}
    return digests, {path: size for path, (_, size) in zip(paths, read, strict=True)}


def _read_all(root: Storage, paths: Sequence[str]) -> list[tuple[str, int]]:
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return list(pool.map(partial(_read, root), paths))


def _read(root: Storage, path: str) -> tuple[str, int]:
    content = (root / path).read_bytes()
    return hashlib.sha256(content).hexdigest(), len(content)
