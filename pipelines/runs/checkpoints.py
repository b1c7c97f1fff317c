"""Checkpoints in storage: written whole, found by name, verified when read, pruned metadata first.

``last`` and ``best`` are one-line files that name a ``step-…`` folder. A single small object is replaced atomically
on every storage, a folder is not.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icre.errors import DataError, WeightsError
from icre.training import checkpoint
from pipelines.runtime.console import print_warning
from pipelines.storage import Storage


def folder_name(step: int) -> str:
    """Folder of the checkpoint after ``step`` steps; names sort in step order."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class CheckpointStore:
    """The folder ``checkpoints/`` of the run ``run``."""

    location: Storage
    run: str

    def list(self) -> list[str]:
        """Names of the ``step-…`` folders, oldest first."""
        return [name for name in self.location.list() if name.startswith("step-")]

    def pointed(self, name: str) -> str | None:
        """The ``step-…`` folder that ``last`` or ``best`` points to, or None."""
        path = self.location / name
        return path.read_text().strip() if path.exists() else None

    def point(self, name: str, step_folder: str) -> None:
        """Point ``last`` or ``best`` to a completely written checkpoint."""
        (self.location / name).write_text(step_folder + "\n")

    def write(self, snapshot: checkpoint.Snapshot) -> str:
        """Write a checkpoint, its metadata last; returns its folder's name. No pointer names it yet."""
        name = folder_name(snapshot.progress.step)
        with tempfile.TemporaryDirectory(prefix="icre-checkpoint-") as scratch:
            checkpoint.write_checkpoint(Path(scratch), snapshot)
            for file in (checkpoint.NETWORK, checkpoint.OPTIMIZER, checkpoint.META):
                (self.location / name / file).upload(Path(scratch) / file)
        return name

    def write_network(self, local: Path, meta: Mapping[str, Any]) -> str:
        """Write a copy of a checkpoint read by :meth:`load`, without the optimiser; returns its folder's name."""
        name = folder_name(checkpoint.progress_of(dict(meta)).step)
        (self.location / name / checkpoint.NETWORK).upload(local / checkpoint.NETWORK)
        described = {checkpoint.NETWORK: meta["files"][checkpoint.NETWORK]}
        (self.location / name / checkpoint.META).write_text(json.dumps({**meta, "files": described}, indent=2))
        return name

    def remove(self, *, but: Collection[str | None]) -> None:
        """Remove every ``step-…`` folder except ``but``, metadata first, so that no partial checkpoint is read."""
        for name in self.list():
            if name not in but:
                (self.location / name / checkpoint.META).delete()
                (self.location / name).delete()

    @contextlib.contextmanager
    def load(self, name: str, *, optimizer: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
        """A verified local copy of the checkpoint ``last``, ``best`` or ``step-…``, and its metadata.

        optimizer: also the optimiser's state, which is as large as the weights or twice that.
        Raises DataError if there is no such checkpoint, WeightsError if a file differs from its metadata.
        """
        folder = self.pointed(name) if name in ("last", "best") else name
        source = self.location / (folder or name)
        if folder is None or not (source / checkpoint.META).exists():
            raise DataError(
                f"run {self.run} has no checkpoint {name!r}",
                hint=f"it has: {', '.join(self.list()) or 'none yet'}; `untrained` is always there",
            )
        wanted = (checkpoint.NETWORK, checkpoint.OPTIMIZER) if optimizer else (checkpoint.NETWORK,)
        with tempfile.TemporaryDirectory(prefix="icre-checkpoint-") as scratch:
            local = Path(scratch)
            for file in (checkpoint.META, *wanted):
                if (source / file).exists():
                    (source / file).download(local / file)
            yield local, checkpoint.read_meta(local, files=wanted)

    @contextlib.contextmanager
    def newest(self, warn: Callable[[str], None] = print_warning) -> Iterator[tuple[Path, dict[str, Any]] | None]:
        """The checkpoint to resume training from: ``last``, or the newest intact one before it; None before any.

        A damaged one is skipped with a warning. Raises WeightsError if there are checkpoints and all are damaged.
        """
        last = self.pointed("last")
        if last is None:
            yield None
            return
        names = sorted({last, *(name for name in self.list() if name <= last)}, reverse=True)
        with contextlib.ExitStack() as stack:
            for name in names:
                try:
                    found = stack.enter_context(self.load(name, optimizer=True))
                except (WeightsError, DataError) as error:
                    warn(f"checkpoint {name} of run {self.run} is skipped: {error.message}")
                    continue
                yield found
                return
        raise WeightsError(
            f"run {self.run}: all its checkpoints are damaged: {', '.join(reversed(names))}",
            hint="restore one of them from a copy of the storage, or start a new run",
        )
