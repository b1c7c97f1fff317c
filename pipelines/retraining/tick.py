"""A tick runs its steps over a journal. Steps may run twice; the second time they reuse results of the first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icre import config
from icre.errors import DataError, IcreError, StoppedError, StorageError
from pipelines.data import prepare
from pipelines.data.prepared import PreparedData, open_data
from pipelines.experiments import runner
from pipelines.retraining import challenger, images, tick_metrics
from pipelines.retraining.journal import STEPS, Journal, Outcome, Tick
from pipelines.retraining.judge import Model, broken_rules, judge
from pipelines.retraining.registry import BEST, PromotionConflictError, Registry, learnt
from pipelines.runs.lease import Lease, LeaseLostError
from pipelines.runs.run import UNTRAINED, Run, runs_of
from pipelines.runtime.console import say
from pipelines.training import execution

MARKS = "trained.npz"
DECISION = "decision.json"
WITH_RAY = STEPS[: STEPS.index("promote")]
Facts = dict[str, Any]


class End(Exception):  # noqa: N818
    """Raised by a step to end the tick."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


@dataclass(frozen=True)
class Work:
    """Context of a step."""

    recipe: config.Recipe
    registry: Registry
    journal: Journal
    tick: Tick

    @property
    def facts(self) -> Facts:
        """Results of the previous steps."""
        return self.tick.facts

    @property
    def run(self) -> Run:
        """The challenger's run."""
        return challenger.run_of(self.recipe, self.tick.name)

    @property
    def champion(self) -> Run | None:
        """The copy of the weights in service when the tick looked them up."""
        number = self.facts["champion"]
        return self.registry.weights(self.registry.entry(number)) if number else None

    def data(self) -> PreparedData:
        """The data set the tick prepared. Raises DataError when it was prepared again since."""
        data = open_data(self.recipe)
        if data.hash != self.facts["data"]:
            raise DataError(
                f"{data.location.url} was prepared again while tick {self.tick.name} was unfinished",
                hint="the tick is given up; the next one begins with the images as they are now",
            )
        return data


def run_tick(work: Work, lease: Lease) -> Tick:
    """Complete the remaining steps of the tick and end it.

    Raises the IcreError that stopped it. Transient causes (storage, lost lease, requested stop) leave the tick
    unfinished for the next command to resume; anything else ends it as failed.
    """
    if work.tick.ended is not None:
        return _told_again(work)
    try:
        work = _steps(work, lease)
        end = End("promoted" if "promoted" in work.facts else "kept", work.facts.get("reason", ""))
    except End as found:
        end = found
    except StoppedError:
        unfinished = work.journal.tick(work.tick.name) or work.tick
        work.journal.write(replace(unfinished, attempts=unfinished.attempts - 1))
        raise
    except (StorageError, LeaseLostError):
        raise
    except IcreError as error:
        work.journal.end(work.journal.tick(work.tick.name) or work.tick, "failed", error.message)
        raise
    tick = work.journal.end(work.journal.tick(work.tick.name) or work.tick, end.outcome, end.reason)
    _forget_old_runs(work)
    return tick


def _told_again(work: Work) -> Tick:
    """Complete the bookkeeping of an ended tick, whose command may have been killed just after, and do nothing else."""
    tick = work.tick
    assert tick.outcome is not None
    work.journal.end(tick, tick.outcome, tick.reason)
    _forget_old_runs(work)
    if tick.outcome == "failed":
        raise IcreError(f"tick {tick.name} failed: {tick.reason}", hint="another tick begins anew")
    return tick


def _steps(work: Work, lease: Lease) -> Work:
    if work.tick.attempts > work.recipe.retrain.max_attempts:
        raise IcreError(
            f"tick {work.tick.name}: step {work.tick.step} was begun {work.tick.attempts - 1} times and never ended",
            hint="the tick is given up, and the next one begins anew; its logs/ and those of its run say what happened",
        )
    with contextlib.ExitStack() as stack:
        if work.tick.step in WITH_RAY:
            folder = work.journal.folder(work.tick.name)
            stack.enter_context(runner.session_for(work.recipe, folder))
        for name in STEPS[STEPS.index(work.tick.step) :]:
            lease.check()
            say(f"retrain: {work.tick.name}: {name}")
            facts = ACTIONS[name](work)
            if name != STEPS[-1]:
                work = replace(work, tick=work.journal.advance(work.tick, facts))
    return work


def _prepare(work: Work) -> Facts:
    recipe = work.recipe
    data = prepare.run(recipe) if recipe.data.root is not None else open_data(recipe)
    return {"data": data.hash}


def _compare(work: Work) -> Facts:
    """Count new images since the last judged tick. Raises WeightsError for a corrupted champion."""
    data, settings, past = work.data(), work.recipe.retrain, work.journal.past()
    champion = work.registry.champion()
    if champion is not None:
        work.registry.verify(champion)
    marks = images.training_marks(data)
    images.write_marks(work.journal.folder(work.tick.name) / MARKS, marks)
    known = images.read_marks(work.journal.folder(past.judged) / MARKS) if past.judged else images.NOTHING
    facts = {
        "champion": champion.number if champion else 0,
        "new_images": int(np.count_nonzero(~np.isin(marks.images, known.images))),
        "new_identities": int(np.count_nonzero(~np.isin(marks.identities, known.identities))),
    }
    found = f"{facts['new_images']} new training images of {facts['new_identities']} new identities"
    say(f"retrain: {found}")
    few = facts["new_images"] < settings.min_new_images or facts["new_identities"] < settings.min_new_identities
    if champion is not None and few:
        work.journal.write(replace(work.tick, facts=work.facts | facts))
        raise End("nothing_new", found)
    return facts


def _freeze(work: Work) -> Facts:
    data, registry = work.data(), work.registry
    number = registry.frozen.newest() or images.freeze(registry, data, work.recipe, by=f"tick {work.tick.name}")
    images.frozen_rows(registry, number, data, work.recipe)
    start = _start_from(work)
    images.refuse_leaked(registry, number, [*data.classes, *(learnt(start)["seen"] if start else [])])
    return {"frozen": number}


def _start(work: Work) -> Facts:
    challenger.begin(work.recipe, work.run, work.data(), _start_from(work))
    return {"run": work.run.name}


def _train(work: Work) -> Facts:
    runner.check_reusable(work.run, work.recipe, work.data())
    if work.run.state != "finished":
        execution.execute(work.run)
    return {}


def _judge(work: Work) -> Facts:
    data = work.data()
    rows = images.frozen_rows(work.registry, work.facts["frozen"], data, work.recipe)
    serving = work.champion
    champion = Model(work.run, UNTRAINED) if serving is None else Model(serving, BEST)
    decision = judge(champion, Model(work.run, BEST), data, work.recipe, rows)
    (work.journal.folder(work.tick.name) / DECISION).write_json(decision)
    metrics = {name: decision["frozen"][name] for name in ("champion", "challenger")}
    metrics["champion"] = metrics["champion"] if serving else None
    return {"passed": decision["promote"], "metrics": metrics, "reason": broken_rules(decision)}


def _promote(work: Work) -> Facts:
    """Promote through the registry's compare-and-swap: the champion must still be the compared one."""
    if not work.facts["passed"]:
        return {}
    by, after = f"tick {work.tick.name}", work.facts["champion"]
    ours = [entry for entry in work.registry.entries()[after:] if entry.by == by]
    if ours:  # promoted before the command was killed
        return {"promoted": ours[0].number}
    decision = (work.journal.folder(work.tick.name) / DECISION).read_json()
    kept = {key: decision[key] for key in ("metric", "champion", "challenger", "rules")}
    kept["difference"] = decision["frozen"]["difference"]
    try:
        return {"promoted": work.registry.promote(work.run, BEST, after=after, by=by, decision=kept).number}
    except PromotionConflictError as error:
        return {"reason": f"compared with entry {after}, but {error.message}"}


def _report(work: Work) -> Facts:
    folder = work.journal.folder(work.tick.name)
    decision = (folder / DECISION).read_json()
    (folder / "index.html").write_text(tick_metrics.page(work.registry.model, work.tick, decision))
    return {}


ACTIONS: dict[str, Callable[[Work], Facts]] = {
    "prepare": _prepare,
    "compare": _compare,
    "freeze": _freeze,
    "start": _start,
    "train": _train,
    "judge": _judge,
    "promote": _promote,
    "report": _report,
}


def _start_from(work: Work) -> Run | None:
    return work.champion if work.recipe.retrain.start == "champion" else None


def _forget_old_runs(work: Work) -> None:
    past = work.journal.past()
    keep = work.recipe.retrain.keep_runs
    for name in past.challengers[:-keep]:
        challenger.forget(Run(runs_of(work.registry.storage) / name))
    if len(past.challengers) > keep:
        work.journal.write_past(replace(past, challengers=past.challengers[-keep:]))
