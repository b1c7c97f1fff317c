"""The model registry: the model in service, its predecessors, and their weights.

``<storage>/registry/<model>/history/000001.json …``  promotions and rollbacks; the newest one names the champion
``<storage>/registry/<model>/models/<run>-<step>-<sha>/``  a copy of each promoted checkpoint, laid out as a run folder

The copy precedes the entry, so the weights of an entry exist even if the run is removed. Copies are never removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from icre.errors import DataError, UserError, WeightsError
from icre.training import checkpoint
from pipelines.runs.checkpoints import folder_name
from pipelines.runs.provenance import now
from pipelines.runs.run import CLASSES, Run
from pipelines.storage import Storage
from pipelines.storage.log import Log

"""In the run folder of a challenger: ``classes``, by label, and ``seen``, all identities its weights ever learnt."""
BEST = "best"


class PromotionConflictError(UserError):
    """Another promotion or rollback came first."""


@dataclass(frozen=True)
class Entry:
    """One entry of a model's history. ``origin`` is the number of the promotion that introduced its weights."""

    number: int
    kind: Literal["promote", "rollback"]
    time: str
    by: str
    run: str
    checkpoint: str
    folder: str
    sha256: str
    origin: int
    previous: int
    """Origin of the champion replaced when these weights were promoted; 0 for the first ones."""
    decision: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Registry:
    """The history of one model."""

    storage: Storage
    model: str

    @property
    def location(self) -> Storage:
        """The model's folder."""
        return self.storage / "registry" / self.model

    @property
    def history(self) -> Log:
        """Log of promotions and rollbacks."""
        return Log(self.location / "history")

    @property
    def frozen(self) -> Log:
        """Lists of test images for comparing models; the newest applies."""
        return Log(self.location / "frozen")

    @property
    def lease(self) -> Log:
        """The lease of the tick that works on this model."""
        return Log(self.location / "lease")

    def newest(self) -> int:
        """Number of the newest entry, or 0 without any."""
        return self.history.newest()

    def entry(self, number: int) -> Entry:
        """The entry with this number. Raises UserError if it is not in the history."""
        known = self.history.numbers()
        if number not in known:
            raise UserError(
                f"model {self.model} has no entry {number} in {self.history.location.url}",
                hint=f"its entries are {', '.join(map(str, known)) or 'none yet'}",
            )
        return Entry(number=number, **self.history.read(number))

    def entries(self) -> list[Entry]:
        """All entries, oldest first."""
        return [Entry(number=number, **self.history.read(number)) for number in self.history.numbers()]

    def champion(self) -> Entry | None:
        """The entry in service; None before the first promotion."""
        newest = self.newest()
        return self.entry(newest) if newest else None

    def weights(self, entry: Entry) -> Run:
        """The copy of an entry's checkpoint: ``best`` of a folder with a run's layout."""
        return Run(self.location / "models" / entry.folder)

    def verify(self, entry: Entry) -> None:
        """Raises WeightsError unless the SHA-256 of the copy's weights, which are read in full, matches the entry."""
        path = self.weights(entry).location / "checkpoints" / entry.checkpoint / checkpoint.NETWORK
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
        if found != entry.sha256:
            raise WeightsError(
                f"model {self.model}, entry {entry.number}: the weights {path.url} are "
                + ("missing" if found is None else f"corrupted: SHA-256 {found}, promoted were {entry.sha256}"),
                hint=self._way_back(entry),
            )

    def promote(self, run: Run, name: str, *, after: int, by: str, decision: Mapping[str, Any] | None = None) -> Entry:
        """Put the checkpoint ``name`` of ``run`` in service, if entry ``after`` is still the newest (0: none yet).

        Raises PromotionConflictError if it is not, DataError or WeightsError for a missing or damaged checkpoint; the
        registry is then unchanged.
        """
        champion = self.entry(after) if after else None
        folder, step, sha256 = self._copy(run, name)
        return self._append(
            Entry(
                number=after + 1,
                kind="promote",
                time=now(),
                by=by,
                run=run.name,
                checkpoint=step,
                folder=folder,
                sha256=sha256,
                origin=after + 1,
                previous=champion.origin if champion else 0,
                decision=decision,
            )
        )

    def rollback(self, *, to: int | None = None, by: str) -> Entry:
        """Return the weights of entry ``to`` to service; None: those the champion replaced when it was promoted.

        Raises UserError when there are none, WeightsError when theirs are corrupted too, PromotionConflictError after a
        concurrent promotion.
        """
        champion = self.champion()
        if champion is None:
            raise UserError(f"model {self.model} has no champion", hint="`icre registry list` names the models")
        asked = (champion.previous or champion.number) if to is None else to
        target = self.entry(self.entry(asked).origin)
        if target.origin == champion.origin:
            raise UserError(
                f"model {self.model} has nothing before entry {champion.origin} to go back to"
                if to is None
                else f"entry {to} of model {self.model} is what serves now",
                hint=f"`icre registry show {self.model}` lists the entries; `--to N` names one",
            )
        self.verify(target)
        changes = {"number": champion.number + 1, "kind": "rollback", "time": now(), "by": by, "decision": None}
        return self._append(Entry(**(asdict(target) | changes)))

    def _append(self, entry: Entry) -> Entry:
        content = {key: value for key, value in asdict(entry).items() if key != "number"}
        if not self.history.append(content, after=entry.number - 1):
            first = self.entry(entry.number)
            raise PromotionConflictError(
                f"model {self.model}: entry {first.number}, a {first.kind} of {first.run} by {first.by}, came first",
                hint=f"look at `icre registry show {self.model}`, and try again if this one shall still serve",
            )
        return entry

    def _copy(self, run: Run, name: str) -> tuple[str, str, str]:
        """Copy what serving and warm starts need; returns the folder, the step folder and the SHA-256 of the weights.

        ``checkpoints/best`` is written last, so an interrupted copy is made again.
        """
        with run.checkpoints.load(name) as (local, meta):
            described = meta["files"][checkpoint.NETWORK]
            step = folder_name(checkpoint.progress_of(meta).step)
            folder = f"{run.name}-{step}-{described['sha256'][:12]}"
            copy = Run(self.location / "models" / folder)
            if copy.checkpoints.pointed(BEST) is None or not _holds(copy, step, described):
                (copy.location / "config.yaml").write_text((run.location / "config.yaml").read_text())
                (copy.location / "manifest.json").write_json(run.manifest)
                (copy.location / CLASSES).write_json(learnt(run))
                copy.checkpoints.point(BEST, copy.checkpoints.write_network(local, meta))
            return folder, step, described["sha256"]

    def _way_back(self, entry: Entry) -> str:
        for number in sorted({e.origin for e in self.entries() if e.origin < entry.origin}, reverse=True):
            earlier = self.entry(number)
            try:
                self.verify(earlier)
            except WeightsError:
                continue
            return f"`icre registry rollback {self.model} --to {number}` serves {earlier.run} again, which is intact"
        return f"no earlier model is intact: `icre registry promote {self.model} --run …` serves another run"


def models(storage: Storage) -> list[str]:
    """Names of all models with a history, sorted."""
    return [name for name in (storage / "registry").list() if Registry(storage, name).newest()]


def learnt(run: Run) -> dict[str, Any]:
    """``classes``: training identities by label, None if unknown; ``seen``: all identities ever trained on."""
    content: dict[str, Any] | None = (run.location / CLASSES).read_json(default=None)
    if content is not None:
        return content
    from pipelines.data.prepared import open_data  # imports pyarrow, which looking up a model does not need

    try:
        data = open_data(run.recipe)
    except DataError:
        data = None
    known = data is not None and data.hash == run.manifest["data"]["hash"]
    classes = data.classes if data is not None and known else None
    return {"classes": classes, "seen": classes or []}


def _holds(copy: Run, step: str, described: dict[str, Any]) -> bool:
    """Whether the copy's weights have the expected SHA-256."""
    path = copy.location / "checkpoints" / step / checkpoint.NETWORK
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == described["sha256"]
