"""What verbs that train several runs share: each run is trained and evaluated once, however often it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from icre import config
from pipelines.data.prepared import PreparedData
from pipelines.evaluation import evaluate
from pipelines.evaluation.measure import choices
from pipelines.runs.run import Run
from pipelines.runtime.session import Demand, ray_session_for
from pipelines.storage import Storage
from pipelines.training import execution, launch, resumption
from pipelines.training.checkpointer import folder_name

CHECKPOINT = "best"


@contextmanager
def session_for(recipe: config.Recipe, folder: Storage, *, at_once: int = 1) -> Iterator[None]:
    """A Ray session that can train ``recipe`` ``at_once`` times and evaluate it; its logs end in ``folder``/logs."""
    training = Demand(at_once * Demand.of_training(recipe.train).cpus)
    demand = max(training, Demand.of_embedding(recipe.evaluation))
    with ray_session_for(folder, demand):
        yield


def check_reusable(run: Run, recipe: config.Recipe, data: PreparedData) -> None:
    """Raises UserError when ``run`` exists with another recipe or other images than the series'."""
    if (run.location / "manifest.json").exists():
        resumption.check_same(run, recipe, data)


def result_of(run: Run, recipe: config.Recipe) -> dict[str, Any]:
    """What ``icre evaluate`` says of the run's best checkpoint, inside an open Ray session.

    A run that is not there is trained, one that was interrupted goes on; what was done before is not repeated.
    Raises TrainingError when the training fails.
    """
    if not (run.location / "manifest.json").exists():
        launch.start(recipe, run.name)
    if run.state != "finished":
        execution.execute(run)
    return evaluation_of(run, recipe)


def evaluation_of(run: Run, recipe: config.Recipe) -> dict[str, Any]:
    """What ``icre evaluate`` says of the run's best checkpoint, as it said before if that is still the best."""
    written: dict[str, Any] | None = evaluate.result_path(run, CHECKPOINT, recipe).read_json(default=None)
    if written is not None and _is_current(written, run, recipe):
        return written
    return evaluate.evaluate(run, recipe, CHECKPOINT)


def _is_current(written: dict[str, Any], run: Run, recipe: config.Recipe) -> bool:
    """Neither of an earlier best, as it was in the middle of the training, nor by another protocol."""
    evaluated = folder_name(written["checkpoint"]["step"])
    return evaluated == run.reference(CHECKPOINT) and written["protocol"] == choices(recipe)
