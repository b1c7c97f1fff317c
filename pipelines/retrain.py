"""``icre retrain``: one tick of scheduled retraining; a new model serves only when it is better."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from icre import config
from icre.errors import IcreError, StoppedError, StorageError
from pipelines.command import ConfigFile, DryRun, Overrides, read_recipe, run_command, say
from pipelines.data.prepared import location_of
from pipelines.data.survey import survey
from pipelines.prepare import describe_counts
from pipelines.registry.lease import hold, holder
from pipelines.registry.registry import Registry
from pipelines.retraining import telling
from pipelines.retraining.challenger import run_of
from pipelines.retraining.journal import Journal, Outcome, Tick
from pipelines.retraining.telling import NAMES, Told
from pipelines.retraining.tick import Work, run_tick
from pipelines.runs import warned_of
from pipelines.storage import Storage

EXIT_CODES: dict[Outcome, int] = {"promoted": 0, "kept": 20, "nothing_new": 21, "busy": 22, "failed": 1}
"""With ``--exit-code``; without it, all but ``failed`` are 0."""

TickName = Annotated[
    str | None,
    typer.Option(
        "--tick",
        help="Name of the tick, the same when a scheduler repeats it. None: <date>-<time>, or the unfinished one.",
    ),
]
ExitCode = Annotated[
    bool,
    typer.Option("--exit-code", help="0 promoted, 20 kept, 21 nothing new, 22 another tick is running, 1 failed."),
]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    tick: TickName = None,
    exit_code: ExitCode = False,
) -> None:
    """Prepare, train a challenger if there are new images, compare it with the model in service, promote the better.

    The last line of the output is the outcome: promoted, kept, nothing new, another tick is running, or failed.
    A tick that was killed goes on with the next call.
    """
    recipe = read_recipe(config_file, overrides)
    if dry_run:
        print(plan(recipe))
        return
    outcome: Outcome = "failed"
    try:
        outcome = retrain(recipe, tick)
    except StoppedError:
        raise
    except IcreError as error:  # in a tick, what is wrong with the data is no mistake of the command line
        raise IcreError(error.message, hint=error.hint) from error
    finally:
        print(NAMES[outcome])
    if exit_code:
        raise typer.Exit(EXIT_CODES[outcome])


def retrain(recipe: config.Recipe, name: str | None = None) -> Outcome:
    """Run one tick to its end and tell its outcome to Prometheus. Raises the IcreError that stopped it.

    name: of the tick; one that has ended under this name is told again, and nothing is done.
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
    """What a tick would do, and from what state."""
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
    """Metrics to the tick's folder and to the Pushgateway, as far as either can be reached."""
    model = journal.registry.model
    known = Told(outcome, seconds)
    with warned_of(StorageError):
        tick = journal.tick(name) if name else None
        new_images = tick.facts.get("new_images") if tick else None
        known = Told(outcome, seconds, journal.past(), telling.promoted_at(journal.registry), new_images)
        if name is not None:
            (journal.folder(name) / "metrics.prom").write_text(telling.as_text(telling.metrics_of(model, known)))
    if recipe.telemetry.pushgateway is not None:
        telling.push(recipe.telemetry.pushgateway, telling.metrics_of(model, known), model)


if __name__ == "__main__":
    run_command(command)
