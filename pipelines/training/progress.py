"""A live progress line while workers train, on this machine or elsewhere.

Worker 0 posts to a small actor, which the driver polls twice a second.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from icre.errors import IcreError
from pipelines.runtime.console import say
from pipelines.runtime.progress import polling, shown

POST_INTERVAL_S = 0.5


@ray.remote(num_cpus=0)
class ProgressActor:
    """Mailbox between the driver and worker 0; neither waits for the other."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.posted: float | None = None
        self.restarts: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.validations: list[dict[str, Any]] = []
        self.places: list[PlacementGroup] = []
        self.has_started = self.stopping = False
        self.outcome: IcreError | None = None

    def post(self, state: dict[str, Any]) -> bool:
        """Replace the state; returns whether training should stop."""
        if self.restarts and self.restarts[-1]["seconds"] is None and self.posted is not None:
            self.restarts[-1]["seconds"] = round(time.monotonic() - self.posted, 1)
        self.state, self.posted = state, time.monotonic()
        return self.stopping

    def note(self, text: str) -> None:
        """Add a note to be shown to the user immediately."""
        self.notes.append(text)

    def validated(self, row: dict[str, Any]) -> None:
        """Add the metrics row of a validation whose checkpoint is durable."""
        self.validations.append(row)

    def validations_after(self, count: int) -> list[dict[str, Any]]:
        """All validations but the first ``count``; one repeated after a restart counts again."""
        return self.validations[count:]

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """The most recently posted state (empty before the first), and all notes."""
        return self.state, self.notes

    def history(self) -> list[dict[str, Any]]:
        """All restarts: first step, repeated steps and seconds lost, as far as progress posts show."""
        return self.restarts

    def started(self, step: int) -> int:
        """Register a start of the workers from the checkpoint of ``step``; returns the number of earlier starts."""
        if self.has_started:
            repeated = max(0, self.state.get("step", step) - step)
            self.restarts.append({"from_step": step, "repeated": repeated, "seconds": None})
            self.note(f"workers were lost; training goes on from step {step}, {repeated} steps are repeated")
        self.has_started = True
        return len(self.restarts)

    def placed(self, group: PlacementGroup) -> None:
        """Register the placement group reserved for the starting workers."""
        self.places.append(group)

    def all_places(self) -> list[PlacementGroup]:
        """All placement groups reserved for workers so far, including released ones."""
        return self.places

    def stop(self) -> None:
        """Request a checkpoint and the end of training."""
        self.stopping = True

    def end(self, outcome: IcreError) -> None:
        """Record why training ended early; only the first reason is kept, since later ones follow from it."""
        self.outcome = self.outcome or outcome

    def ended(self) -> IcreError | None:
        """Why training ended early, or None."""
        return self.outcome


def start_progress_actor() -> ActorHandle[Any]:
    """Create the actor on the driver's node, so that it survives the loss of other nodes."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress_actor: ActorHandle[Any] = ProgressActor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    return progress_actor


class ProgressReporter:
    """Worker 0's side: posts periodically, and reads the replies later without blocking."""

    def __init__(self, progress_actor: ActorHandle[Any]) -> None:
        self._progress_actor, self._posted, self._answer = progress_actor, -math.inf, None

    def post(self, state: Callable[[], dict[str, Any]]) -> None:
        """Post ``state()`` if the last post is old enough."""
        now = time.monotonic()
        if now - self._posted > POST_INTERVAL_S:
            self._posted, self._answer = now, self._progress_actor.post.remote(state())

    @property
    def is_stop_asked(self) -> bool:
        """Whether a stop was requested, according to the newest reply received."""
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        return bool(ray.get(self._answer))


class Rate:
    """Steps per second and remaining time, excluding the first steps after a start."""

    def __init__(self, *, step: int, total: int, warm_up: int = 3) -> None:
        self.total, self.first = total, step + warm_up
        self.since: float | None = None

    def eta_s(self, step: int) -> float | None:
        """Seconds left after ``step`` steps, or None while unknown."""
        if step < self.first:
            return None
        if self.since is None or step == self.first:
            self.since = time.monotonic()
            return None
        return (self.total - step) * (time.monotonic() - self.since) / (step - self.first)


@contextlib.contextmanager
def on_validation(progress_actor: ActorHandle[Any], listen: Callable[[dict[str, Any]], None] | None) -> Iterator[None]:
    """Call ``listen`` from a thread with each durable validation; the last call happens before the body ends."""
    if listen is None:
        yield
        return
    count = 0

    def pass_on(_: bool) -> None:
        nonlocal count
        rows = cast(Any, ray.get(progress_actor.validations_after.remote(count)))
        for row in rows:
            listen(row)
        count += len(rows)

    with polling(pass_on):
        yield


@contextlib.contextmanager
def follow(progress_actor: ActorHandle[Any], label: str) -> Iterator[None]:
    """Show the posted state until the body is done; print each note once."""
    told = 0

    def look() -> str:
        nonlocal told
        line, notes = _news(progress_actor, label)
        for note in notes[told:]:
            say(f"{label}: {note}")
        told = max(told, len(notes))
        return line

    with shown(look):
        yield


def format_line(label: str, state: dict[str, Any]) -> str:
    """Format the progress line for a state posted by :func:`pipelines.train`'s worker 0."""
    if not state:
        return f"{label}: starting workers"
    eta = state["eta_s"]
    # Most important parts first: a narrow terminal cuts off the end.
    parts = [
        f"{label}: epoch {state['epoch'] + 1}/{state['epochs']}  step {state['step']}/{state['steps']}",
        f"ETA {int(eta) // 60}:{int(eta) % 60:02d}" if eta is not None else "ETA …",
        *(f"{name} {value:.3f}" for name, value in state["terms"].items()),
        f"{state['images_per_s']:.0f} images/s",
        f"data wait {100 * state['data_wait_share']:.0f} %",
    ]
    if state["val_mAP"] is not None:
        parts.append(f"val mAP {100 * state['val_mAP']:.1f} %")
    return "  ".join(parts)


def _news(progress_actor: ActorHandle[Any], label: str) -> tuple[str, list[str]]:
    try:
        state, notes = cast(Any, ray.get(progress_actor.read.remote(), timeout=5))
    except ray.exceptions.RayError:
        # The progress line is best effort: cluster failures are reported by the training itself.
        return f"{label}: no news from the workers", []
    return format_line(label, state), notes
