"""What a model's ticks have done so far: one small JSON object for the model, one for each tick, replaced as a whole.

A tick's journal names the step that comes next and everything the steps before found out. A command that was killed
is followed by one that reads the journal and begins with that step, so every step may run twice and must end alike.
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
    """What ended ticks leave to the next one."""

    current: str | None = None
    """The tick that has not ended."""
    last: str | None = None
    """The tick that ended last."""
    judged: str | None = None
    """The tick whose challenger was judged last: its training images are what new ones are counted from."""
    refused_in_a_row: int = 0
    last_success: float | None = None
    """Unix time at which a tick ended in order."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of ``champion`` and ``challenger`` on the frozen list, by metric."""
    challengers: list[str] = field(default_factory=list)
    """Runs that still have their checkpoints, oldest first."""

    def after(self, tick: Tick) -> Past:
        """With ``tick`` ended."""
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
    """One tick, as far as it got."""

    name: str
    started: str
    step: str = STEPS[0]
    """What comes next."""
    attempts: int = 1
    """Times that ``step`` was begun."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the steps found out."""
    ended: float | None = None
    outcome: Outcome | None = None
    reason: str = ""


@dataclass(frozen=True)
class Journal:
    """Where both kinds of object are. Only the holder of the model's lease writes."""

    registry: Registry

    def folder(self, tick: str) -> Storage:
        """Everything that a tick leaves."""
        return self.registry.storage / "retraining" / self.registry.model / tick

    def past(self) -> Past:
        """As the newest ended tick left it."""
        return Past(**self._past.read_json(default={}))

    def tick(self, name: str) -> Tick | None:
        """A tick by its name, None if there was none."""
        written = (self.folder(name) / "journal.json").read_json(default=None)
        return None if written is None else Tick(**written)

    def write(self, tick: Tick) -> None:
        """Replace a tick's journal."""
        (self.folder(tick.name) / "journal.json").write_json(asdict(tick))

    def write_past(self, past: Past) -> None:
        """Replace what ended ticks leave."""
        self._past.write_json(asdict(past))

    def begin(self, name: str | None) -> Tick:
        """The unfinished tick, begun once more; else one that ended under ``name``; else a new one."""
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
        """The step is done: its facts are written down, and the next one is due."""
        following = STEPS[STEPS.index(tick.step) + 1]
        tick = replace(tick, step=following, attempts=1, facts=tick.facts | facts)
        self.write(tick)
        return tick

    def end(self, tick: Tick, outcome: Outcome, reason: str) -> Tick:
        """The tick is over. Written to its own journal first, so that what it leaves is left once."""
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
