"""Which files are there: the SHA-256 and the size of each.

Ray's processes import the module of the function that they run: this one and ``shards`` do without torch, which
takes seconds and 200 MiB in each of them.
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
"""A task costs Ray as much as reading a hundred."""
READS_AT_ONCE = 4
"""Of a task: an object store answers each after milliseconds."""


def fingerprint(root: Storage, paths: Sequence[str]) -> tuple[dict[str, str], dict[str, int]]:
    """SHA-256 and size in bytes of the files below ``root``, by path. Raises StorageError for one that is gone."""
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
