"""Run one tick under its lease and publish its metrics."""

from __future__ import annotations

import time

from icre import config
from icre.errors import StorageError
from pipelines.data.catalog import survey
from pipelines.data.prepare import describe_counts
from pipelines.data.prepared import location_of
from pipelines.retraining import tick_metrics
from pipelines.retraining.challenger import run_of
from pipelines.retraining.journal import Journal, Outcome, Tick
from pipelines.retraining.registry import Registry
from pipelines.retraining.tick import Work, run_tick
from pipelines.retraining.tick_metrics import TickSummary
from pipelines.runs.lease import hold, holder
from pipelines.runtime.console import say, warned_of
from pipelines.storage import Storage


def retrain(recipe: config.Recipe, name: str | None = None) -> Outcome:
    """Run one tick to its end and publish its outcome to Prometheus. Raises the IcreError that stopped it.

    name: the tick's name; for a tick that already ended, its outcome is published again and nothing else is done.
    """
    registry = Registry(Storage(recipe.storage), recipe.name)
    journal = Journal(registry)
    started = time.monotonic()
    outcome: Outcome = "failed"
    tick: Tick | None = None
    try:
        with hold(registry.lease, term_s=recipe.retrain.lease_s) as lease:
            if lease is None:
                outcome = "busy"
                say(f"retrain: {holder(registry.lease) or 'another one'} works on {recipe.name}")
                return outcome
            tick = journal.begin(name)
            tick = run_tick(Work(recipe, registry, journal, tick), lease)
            assert tick.outcome is not None
            outcome = tick.outcome
            _say_end(journal, tick)
            return outcome
    finally:
        _tell(journal, recipe, tick.name if tick else None, outcome, time.monotonic() - started)


def plan(recipe: config.Recipe) -> str:
    """The current state, and what a tick would do."""
    registry = Registry(Storage(recipe.storage), recipe.name)
    journal = Journal(registry)
    champion, past = registry.champion(), journal.past()
    unfinished = journal.tick(past.current) if past.current else None
    named = unfinished.name if unfinished else "<date>-<time>"
    goes_on = f"goes on with tick {named}, step {unfinished.step}" if unfinished else "a new tick"
    serves = f"entry {champion.number}: {champion.run}, {champion.checkpoint}" if champion else "none yet"
    lines = [
        recipe.to_yaml(),
        *([describe_counts(survey(recipe).counts()), ""] if recipe.data.root is not None else []),
        f"champion of {recipe.name}: {serves}",
        f"tick: {goes_on}" + (f"; now running: {running}" if (running := holder(registry.lease)) else ""),
        f"frozen test list: {registry.frozen.newest() or 'would be written'}",
        f"would write: {location_of(recipe).url}, {run_of(recipe, named).location.url}, "
        f"{journal.folder(named).url}, {registry.location.url}",
    ]
    return "\n".join(lines)


def _say_end(journal: Journal, tick: Tick) -> None:
    if tick.reason:
        say(f"retrain: {tick.reason}")
    if "run" in tick.facts:
        print((journal.folder(tick.name) / "index.html").url)


def _tell(journal: Journal, recipe: config.Recipe, name: str | None, outcome: Outcome, seconds: float) -> None:
    """Write metrics to the tick's folder and the Pushgateway, if they can be reached."""
    model = journal.registry.model
    known = TickSummary(outcome, seconds)
    with warned_of(StorageError):
        tick = journal.tick(name) if name else None
        new_images = tick.facts.get("new_images") if tick else None
        known = TickSummary(outcome, seconds, journal.past(), tick_metrics.promoted_at(journal.registry), new_images)
        if name is not None:
            (journal.folder(name) / "metrics.prom").write_text(
                tick_metrics.as_text(tick_metrics.metrics_of(model, known))
            )
    if recipe.telemetry.pushgateway is not None:
        tick_metrics.push(recipe.telemetry.pushgateway, tick_metrics.metrics_of(model, known), model)
