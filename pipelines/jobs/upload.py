"""Preview of a `--working-dir` upload, with Ray's own ignore rules."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ray._private.ray_constants import (
    DASHBOARD_CLIENT_MAX_SIZE,
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
    get_runtime_env_default_excludes,
)
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

from icre.errors import UserError

LIMIT: int = DASHBOARD_CLIENT_MAX_SIZE
"""Maximum bytes of a job's code; Ray packs it without compression."""

_SECRET_NAMES = re.compile(
    r"(^|/)(\.env(\..*)?|.*\.(pem|key|p12|pfx)|id_(rsa|ed25519|ecdsa)|auth_token|credentials|\.netrc|kubeconfig)$"
)
_Ignored = Callable[[Path], bool]


@dataclass(frozen=True)
class Upload:
    """Files of a working directory that would be uploaded: relative path to bytes."""

    folder: Path
    files: dict[str, int]

    @property
    def size(self) -> int:
        """Total bytes."""
        return sum(self.files.values())

    def largest(self, count: int = 5) -> list[tuple[str, int]]:
        """The largest entries of the top two levels with their bytes, largest first."""
        sizes: Counter[str] = Counter()
        for name, size in self.files.items():
            parts = name.split("/")
            sizes["/".join(parts[:2]) + ("/" if len(parts) > 2 else "")] += size
        return sizes.most_common(count)

    def check(self) -> None:
        """Raises UserError if it is not a copy of the project, is too large, or contains likely keys."""
        if "pipelines/__init__.py" not in self.files:
            raise UserError(
                f"{self.folder} holds no pipelines/: a job would not find its verbs",
                hint="submit from the root of the repository, or name it with --working-dir",
            )
        if secret := [name for name in self.files if _SECRET_NAMES.search(name)]:
            raise UserError(
                f"{len(secret)} file(s) that look like keys would be readable by everyone on the cluster: "
                f"{', '.join(secret[:5])}",
                hint="move them out of the folder, or name them in .rayignore",
            )
        if self.size >= LIMIT:
            shown = ", ".join(f"{name} {mib(size)}" for name, size in self.largest())
            raise UserError(
                f"{self.folder} would upload {mib(self.size)}, of {mib(LIMIT)} allowed; the largest: {shown}",
                hint="name what a job does not need in .rayignore; data belongs into s3://",
            )


def survey(folder: Path) -> Upload:
    """Walk ``folder`` as Ray does when packing it: .rayignore, .gitignore and Ray's own exclusions."""
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder}: no such folder", hint="name the root of the repository")
    root = folder.absolute()
    own = frozenset(get_runtime_env_default_excludes())
    with_gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    files = _walk(root, [lambda path: bool(own & set(path.relative_to(root).parts))], with_gitignore)
    return Upload(root, {path.relative_to(root).as_posix(): path.stat().st_size for path in files})


def mib(size: int) -> str:
    """Bytes formatted as MiB."""
    return f"{size / 2**20:.1f} MiB"


def _walk(folder: Path, ignored: list[_Ignored], with_gitignore: bool) -> Iterator[Path]:
    rules = [*ignored, *get_excludes_from_ignore_files(folder, include_gitignore=with_gitignore)]
    for path in sorted(folder.iterdir()):
        if any(rule(path) for rule in rules):
            continue
        if path.is_dir():
            yield from _walk(path, rules, with_gitignore)
        elif path.is_file():
            yield path
