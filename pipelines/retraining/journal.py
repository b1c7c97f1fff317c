"""Journals of a model's ticks: one small JSON object per model and one per tick, each replaced atomically.

A tick's journal stores the next step and all results of the previous ones. After a killed command, the next command
reads the journal and repeats that step, so every step must be idempotent.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from icre.errors import UserError
from pipelines.retraining.registry import Registry
from pipelines.runs.provenance import now
from pipelines.storage import Storage

Outcome = Literal["promoted", "kept", "nothing_new", "failed", "busy"]
STEPS = ("prepare", "compare", "freeze", "start", "train", "judge", "promote", "report")


@dataclass(frozen=True)
class Past:
    """State carried over from ended ticks to the next one."""

    current: str | None = None
    """The unfinished tick."""
    last: str | None = None
    """The tick that ended last."""
    judged: str | None = None
    """The tick whose challenger was judged last: new images are counted against its training images."""
    refused_in_a_row: int = 0
    last_success: float | None = None
    """Unix time of the last tick that did not fail."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metrics of ``champion`` and ``challenger`` on the frozen list."""
    challengers: list[str] = field(default_factory=list)
    """Runs that still have their checkpoints, oldest first."""

    def after(self, tick: Tick) -> Past:
        """The state after ``tick`` has ended."""
        outcome, facts = tick.outcome, tick.facts
        judged = outcome in ("promoted", "kept")
        refused = {"promoted": 0, "kept": self.refused_in_a_row + 1}.get(str(outcome), self.refused_in_a_row)
        metrics = self.metrics
        if "metrics" in facts:
            champion = facts["metrics"]["challenger" if outcome == "promoted" else "champion"]
            metrics = {"challenger": facts["metrics"]["challenger"]} | ({"champion": champion} if champion else {})
        return replace(
            self,
            current=None,
            last=tick.name,
            judged=tick.name if judged else self.judged,
            refused_in_a_row=refused,
            last_success=self.last_success if outcome == "failed" else tick.ended,
            metrics=metrics,
            challengers=[*self.challengers, *([facts["run"]] if "run" in facts else [])],
        )


@dataclass(frozen=True)
class Tick:
    """State of one tick."""

    name: str
    started: str
    step: str = STEPS[0]
    """The next step."""
    attempts: int = 1
    """How often ``step`` was started."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Results of the completed steps."""
    ended: float | None = None
    outcome: Outcome | None = None
    reason: str = ""


@dataclass(frozen=True)
class Journal:
    """Storage of both kinds of object. Only the holder of the model's lease writes."""

    registry: Registry

    def folder(self, tick: str) -> Storage:
        """The folder with all files of a tick."""
        return self.registry.storage / "retraining" / self.registry.model / tick

    def past(self) -> Past:
        """The state after the last ended tick."""
        return Past(**self._past.read_json(default={}))

    def tick(self, name: str) -> Tick | None:
        """The tick with this name, or None."""
        written = (self.folder(name) / "journal.json").read_json(default=None)
        return None if written is None else Tick(**written)

    def write(self, tick: Tick) -> None:
        """Replace a tick's journal."""
        (self.folder(tick.name) / "journal.json").write_json(asdict(tick))

    def write_past(self, past: Past) -> None:
        """Replace the state carried over from ended ticks."""
        self._past.write_json(asdict(past))

    def begin(self, name: str | None) -> Tick:
        """Resume the unfinished tick, else return the tick named ``name``, else start a new one."""
        if name is not None:
            _check_name(name)
        past = self.past()
        found = self.tick(past.current) if past.current else self.tick(name) if name else None
        if found is not None:
            if found.ended is None:
                found = replace(found, attempts=found.attempts + 1)
                self.write(found)
            return found
        tick = Tick(name=past.current or name or self._new_name(), started=now())
        self.write_past(replace(past, current=tick.name))
        self.write(tick)
        return tick

    def advance(self, tick: Tick, facts: dict[str, Any]) -> Tick:
        """Record the results of the completed step and move on to the next."""
        following = STEPS[STEPS.index(tick.step) + 1]
        tick = replace(tick, step=following, attempts=1, facts=tick.facts | facts)
        self.write(tick)
        return tick

    def end(self, tick: Tick, outcome: Outcome, reason: str) -> Tick:
        """End the tick. Its own journal is written first, so the carried-over state is updated only once."""
        if tick.ended is None:
            tick = replace(tick, ended=time.time(), outcome=outcome, reason=reason)
            self.write(tick)
        past = self.past()
        if past.current == tick.name:
            self.write_past(past.after(tick))
        return tick

    def _new_name(self) -> str:
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        taken = sum(self.tick(name + suffix) is not None for suffix in ("", "-2", "-3"))
        return name + ("", "-2", "-3", "-4")[taken]

    @property
    def _past(self) -> Storage:
        return self.registry.location / "ticks.json"


def _check_name(name: str) -> None:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or not name[0].isalnum():
        raise UserError(f"--tick {name}: not a name", hint="letters, digits, '.', '-' and '_', such as 20260131-020000")
