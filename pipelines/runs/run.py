"""The run folder: the same tree on disk and in object storage.

config.yaml  manifest.json  metrics.jsonl  status.json  checkpoints/{last,best,step-*}  eval/*.json
features/  report/index.html  logs/

``checkpoints/last`` and ``checkpoints/best`` are one-line files that name a ``step-…`` folder: a single small
object can be replaced atomically everywhere, a folder cannot.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from icre import config
from icre.errors import DataError, IcreError, StoppedError, UserError
from pipelines.runs.checkpoints import CheckpointStore
from pipelines.runs.provenance import now, provenance
from pipelines.storage import Storage

CLASSES = "classes.json"
"""In a run folder: ``classes``, the training identities by label, and ``seen``, all that the weights ever learnt."""
UNTRAINED = "untrained"
"""Name of the checkpoint that every run has: the weights before the first step, rebuilt from the recipe."""


@dataclass(frozen=True)
class Run:
    """One run folder."""

    location: Storage

    @classmethod
    def named(cls, storage: str, name: str) -> Run:
        """The run ``name`` in the storage at this URL, started or not."""
        return cls(runs_of(Storage(storage)) / name)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.location.url.rstrip("/").rpartition("/")[2]

    @property
    def recipe(self) -> config.Recipe:
        """The resolved recipe that the run was started with."""
        text = (self.location / "config.yaml").read_text()
        return config.parse_recipe(yaml.safe_load(text), where=(self.location / "config.yaml").url)

    @property
    def manifest(self) -> dict[str, Any]:
        """Provenance, written once at the start."""
        content: dict[str, Any] = (self.location / "manifest.json").read_json()
        return content

    @property
    def state(self) -> str | None:
        """Last written state: running, finished, stopped, failed or pending; None for a run that has not started."""
        status = (self.location / "status.json").read_json(default=None)
        return None if status is None else str(status["state"])

    def write_status(self, state: str, **details: Any) -> None:
        """state: running, finished, failed, stopped (gracefully, to resume) or pending (until its sweep resumes)."""
        (self.location / "status.json").write_json({"state": state, "updated": now(), **details})

    def write_failure(self, error: IcreError, **details: Any) -> None:
        """Record for the user why the run ended early: message, hint and exit code, as separate keys of status.json."""
        state = "stopped" if isinstance(error, StoppedError) else "failed"
        self.write_status(state, error=error.message, hint=error.hint, exit_code=error.exit_code, **details)

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, oldest first; empty before the first is written."""
        path = self.location / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def validations(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl of kind validation."""
        return [row for row in self.metrics() if row["kind"] == "validation"]

    def write_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """Replace metrics.jsonl as a whole: object storage cannot append."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.location / "metrics.jsonl").write_text(text)

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(self.location / "checkpoints", self.name)


def runs_of(storage: Storage) -> Storage:
    """Location of all runs."""
    return storage / "runs"


def create_run(
    recipe: config.Recipe,
    name: str | None,
    *,
    data: Mapping[str, Any],
    data_url: str,
    lineage: Mapping[str, Any] | None = None,
) -> Run:
    """A new run folder with config.yaml and manifest.json. Raises UserError if the name is taken.

    data: the manifest of the data set at ``data_url``, on which the run trains.
    lineage: further entries of the run's manifest; its ``parents`` are listed after the data set.
    """
    name = name or f"{recipe.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    run = Run.named(recipe.storage, name)
    if (run.location / "manifest.json").exists():
        raise UserError(
            f"run {name} exists at {run.location.url}",
            hint="give another --run name, or leave it out for one made of the date and time",
        )
    (run.location / "config.yaml").write_text(recipe.to_yaml())
    (run.location / CLASSES).write_json({"classes": data["classes"], "seen": data["classes"]})
    further = dict(lineage or {})
    parents = [data_url, *further.pop("parents", [])]
    (run.location / "manifest.json").write_json(provenance(recipe, data) | further | {"run": name, "parents": parents})
    return run


def open_run(storage: Storage, name: str) -> Run:
    """An existing run; ``latest`` is the most recently started. Raises DataError if there is none."""
    found = newest_first(storage)
    if name == "latest" and found:
        return found[0]
    by_name = {run.name: run for run in found}
    if name not in by_name:
        raise DataError(
            f"no run {name!r} in {runs_of(storage).url}",
            hint=f"runs there: {', '.join(sorted(by_name)) or 'none'}; start one with `icre train`",
        )
    return by_name[name]


def newest_first(storage: Storage) -> list[Run]:
    """All runs, most recently started first."""
    folder = runs_of(storage)
    names = folder.list()
    started = [Run(folder / n) for n in names if (folder / n / "manifest.json").exists()]
    return sorted(started, key=lambda run: str(run.manifest["created"]), reverse=True)
